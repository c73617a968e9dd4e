//! Processor time of running processes, from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Seconds on a processor so far, user and system; the kernel counts nanoseconds where it keeps schedstat,
/// else hundredths of a second.
pub(super) fn seconds(pid: i32) -> Result<f64> {
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/schedstat"))
        && let Some(nanoseconds) = text
            .split_whitespace()
            .next()
            .and_then(|word| word.parse::<f64>().ok())
        && nanoseconds > 0.0
    {
        return Ok(nanoseconds / 1e9);
    }
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    from_stat(&stat).with_context(|| format!("/proc/{pid}/stat is not as expected"))
}

fn from_stat(stat: &str) -> Option<f64> {
    Some((field(stat, 11)? + field(stat, 12)?) / 100.0)
}

/// Seconds on a processor of a whole server so far: its first process, those that have ended, and those that run.
pub(super) fn server(data: &Path) -> Result<f64> {
    let file = data.join("postmaster.pid");
    let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
    let first: i32 = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .with_context(|| format!("{} names no process", file.display()))?;
    let mut sum = 0.0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // Gone meanwhile: then it counts as one that has ended.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if pid == first {
            sum += from_stat(&stat).unwrap_or(0.0) + of_the_ended(&stat).unwrap_or(0.0);
        } else if parent(&stat) == Some(first) {
            sum += from_stat(&stat).unwrap_or(0.0);
        }
    }
    Ok(sum)
}

fn field(stat: &str, index: usize) -> Option<f64> {
    // The program's name may hold anything: fields are counted from behind it.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(index)?
        .parse()
        .ok()
}

fn parent(stat: &str) -> Option<i32> {
    field(stat, 1).map(|pid| pid as i32)
}

fn of_the_ended(stat: &str) -> Option<f64> {
    Some((field(stat, 13)? + field(stat, 14)?) / 100.0)
}

/// The time that a set of processes has used since it was last looked at.
pub(super) struct Meter(BTreeMap<i32, f64>);

impl Meter {
    /// Processes that do not exist yet start at zero.
    pub(super) fn start(pids: &[i32]) -> Self {
        Self(
            pids.iter()
                .filter_map(|pid| seconds(*pid).ok().map(|used| (*pid, used)))
                .collect(),
        )
    }

    pub(super) fn used_by(&self, pids: &[i32]) -> Result<f64> {
        pids.iter()
            .map(|pid| Ok(seconds(*pid)? - self.0.get(pid).copied().unwrap_or(0.0)))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_behind_an_odd_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1";
        assert_eq!(from_stat(stat), Some(2.0));
        assert_eq!(
            of_the_ended("12 (a) S 7 2 3 4 5 6 7 8 9 10 1 1 30 20 0"),
            Some(0.5)
        );
        assert_eq!(parent(stat), Some(1));
        assert_eq!(from_stat("12 (a) S 1"), None);
    }
}
