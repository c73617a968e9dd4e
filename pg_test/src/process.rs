//! Processes as /proc shows them. A PostgreSQL server is a postmaster and its direct children.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sends a signal; a process that is already gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Ok(raw) = i32::try_from(pid) {
        let _gone = kill(Pid::from_raw(raw), signal);
    }
}

/// (state letter, parent), or None when there is no such process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name stands in parentheses and may hold anything, so fields count from the last one.
    let after_name = text.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, parent))
}

/// The replicating processes of a server: its walsenders and pg_ha's workers.
pub(crate) fn replicating(parent: u32) -> Vec<u32> {
    let replicates = |pid: &u32| {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.contains("pg_ha ") || title.contains("walsender")
    };
    children(parent).into_iter().filter(replicates).collect()
}

/// The processor time that the replicating processes of a server have used that run now.
pub(crate) fn replication_time(parent: u32) -> Duration {
    let used: u64 = replicating(parent)
        .into_iter()
        .map(|pid| ticks(pid, 11..13))
        .sum();
    Duration::from_millis(used * 10)
}

/// The processor time that a server has used since it started, of processes that have ended too.
pub(crate) fn processor_time(parent: u32) -> Duration {
    let own: u64 = children(parent).into_iter().map(|pid| ticks(pid, 11..13)).sum();
    // What Linux shows to programs is in hundredths of a second, whatever it counts in itself.
    Duration::from_millis((own + ticks(parent, 11..15)) * 10)
}

/// The sum of these fields of /proc/<pid>/stat, counted from the state.
fn ticks(pid: u32, fields: std::ops::Range<usize>) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let numbers = after_name
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0));
    numbers.skip(fields.start).take(fields.len()).sum::<u64>()
}

/// What a process holds for itself alone, in kilobytes.
pub(crate) fn own_memory(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Runs or can run: neither gone nor a zombie that only waits to be collected.
pub(crate) fn is_alive(pid: u32) -> bool {
    matches!(stat(pid), Some((state, _)) if state != 'Z' && state != 'X')
}

pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(listing) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    listing
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| matches!(stat(*pid), Some((_, its_parent)) if its_parent == parent))
        .collect()
}

/// SIGKILL for a process and its children. The parent is stopped first: a postmaster that still runs would
/// answer the death of a child by starting another one while we count.
pub(crate) fn kill_tree(parent: u32) -> Vec<u32> {
    if !is_alive(parent) {
        return Vec::new();
    }
    signal(parent, Signal::SIGSTOP);
    let mut tree = children(parent);
    tree.push(parent);
    for pid in &tree {
        signal(*pid, Signal::SIGKILL);
    }
    tree
}

/// Stops or resumes a server: the postmaster first when stopping, last when resuming, so that it never sees
/// its children in a state that it would react to.
pub(crate) fn freeze_tree(parent: u32) {
    signal(parent, Signal::SIGSTOP);
    for pid in children(parent) {
        signal(pid, Signal::SIGSTOP);
    }
}

pub(crate) fn thaw_tree(parent: u32) {
    for pid in children(parent) {
        signal(pid, Signal::SIGCONT);
    }
    signal(parent, Signal::SIGCONT);
}
