//! Medians, ratios, the machine, and docs/benchmarks.md.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Measure;
use super::contender::Kind;
use crate::{layout, process};

type Rows = Vec<Vec<String>>;

/// One row per contender, and the ratio of the last to the first where there are two.
pub(super) fn table(results: &[(Kind, Vec<Measure>)]) -> ([&'static str; 5], Rows) {
    let header = [
        "",
        "rows/s",
        "sender us/row",
        "applier us/row",
        "spread of rows/s",
    ];
    let medians: Vec<[f64; 3]> = results
        .iter()
        .map(|(_, measures)| {
            [
                median(measures.iter().map(Measure::rows_per_second)),
                median(measures.iter().map(Measure::sender)),
                median(measures.iter().map(Measure::applier)),
            ]
        })
        .collect();
    let mut rows: Rows = results
        .iter()
        .zip(&medians)
        .map(|((kind, measures), [speed, sender, applier])| {
            let lowest = measures
                .iter()
                .map(Measure::rows_per_second)
                .fold(f64::INFINITY, f64::min);
            let highest = measures.iter().map(Measure::rows_per_second).fold(0.0, f64::max);
            vec![
                kind.name().to_owned(),
                format!("{speed:.0}"),
                format!("{sender:.2}"),
                format!("{applier:.2}"),
                format!("{lowest:.0} to {highest:.0}"),
            ]
        })
        .collect();
    if let [first, second] = medians.as_slice() {
        let ratio = |column: usize| {
            let (a, b) = (
                first.get(column).copied().unwrap_or(0.0),
                second.get(column).copied().unwrap_or(0.0),
            );
            if a > 0.0 {
                format!("{:.2}", b / a)
            } else {
                "-".to_owned()
            }
        };
        rows.push(vec![
            "ratio".to_owned(),
            ratio(0),
            ratio(1),
            ratio(2),
            String::new(),
        ]);
    }
    (header, rows)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    if sorted.len() % 2 == 1 {
        at(middle)
    } else {
        f64::midpoint(at(middle.saturating_sub(1)), at(middle))
    }
}

/// What the figures were taken on.
pub(super) fn machine(version: &str) -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name")?
                .split_once(':')
                .map(|(_, name)| name.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            text.lines()
                .next()?
                .split_whitespace()
                .nth(1)?
                .parse::<u64>()
                .ok()
        })
        .map_or_else(String::new, |kilobytes| {
            format!(", {} GB memory", (kilobytes + 524_288) / 1_048_576)
        });
    let kernel = process::answer(Command::new("uname").args(["-s", "-r"]))?;
    let rustc = process::answer(Command::new("rustc").arg("--version"))?;
    Ok(format!(
        "{model}, {cores} cores{memory}, {kernel}, PostgreSQL {version}, {rustc}"
    ))
}

const BEGIN: &str = "<!-- bench-peers: begin; written by `cargo bench-peers --write` -->";
const END: &str = "<!-- bench-peers: end -->";
const PREFACE: &str = "# Benchmarks\n\nFigures are for comparing the columns of one table with one another: they were taken in one run, in turn, on\none machine. Below 15% a difference means nothing.\n\n";

/// Replaces the section between the two marks, or adds it.
pub(super) fn write(
    header: &[&str],
    rows: &Rows,
    machine: &str,
    rounds: usize,
    transactions: usize,
) -> Result<PathBuf> {
    let path = layout::repository().join("docs/benchmarks.md");
    let date = process::answer(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut section = format!(
        "{BEGIN}\n## Draining a backlog\n\n`cargo bench-peers`: {transactions} TPC-B transactions of pgbench (scale 10, \
         {} row changes each) wait while the\nsubscription is disabled; measured from the start of the stream until the last row \
         is visible. Medians of {rounds} rounds, in turn.\nThe applier is everything that works on the subscriber for it; a \
         microsecond per row is a CPU second per million rows.\n\n",
        super::ROWS_PER_TRANSACTION
    );
    section += &line(&header.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    section += &format!("|{}\n", "---|".repeat(header.len()));
    for row in rows {
        section += &line(row);
    }
    section += &format!("\n{date}: {machine}\n{END}\n");

    let old = fs::read_to_string(&path).unwrap_or_else(|_| PREFACE.to_owned());
    fs::create_dir_all(path.parent().context("docs/ has a parent")?)?;
    fs::write(&path, replaced(&old, &section))?;
    Ok(path)
}

fn replaced(old: &str, section: &str) -> String {
    match (old.find(BEGIN), old.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let before = old.get(..begin).unwrap_or_default();
            let after = old
                .get(end + END.len()..)
                .unwrap_or_default()
                .trim_start_matches('\n');
            let gap = if after.is_empty() { "" } else { "\n" };
            format!("{before}{section}{gap}{after}")
        }
        _ => format!("{}\n\n{section}", old.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }

    #[test]
    fn the_ratio_is_ours_to_theirs() {
        let measure = |seconds: f64, cpu: f64| Measure {
            seconds,
            rows: 1e6,
            sender_cpu: cpu,
            applier_cpu: 2.0 * cpu,
        };
        let (_, rows) = table(&[
            (Kind::Native, vec![measure(10.0, 4.0)]),
            (Kind::PgHa, vec![measure(5.0, 2.0)]),
        ]);
        assert_eq!(rows[0][..4], ["native", "100000", "4.00", "8.00"]);
        assert_eq!(rows[2][..4], ["ratio", "2.00", "0.50", "0.50"]);
    }

    #[test]
    fn the_section_is_replaced_in_place() {
        let section = format!("{BEGIN}\nnew\n{END}\n");
        let old = format!("# Benchmarks\n\n{BEGIN}\nold\n{END}\n\n## By hand\n");
        assert_eq!(
            replaced(&old, &section),
            format!("# Benchmarks\n\n{section}\n## By hand\n")
        );
        assert_eq!(
            replaced("# Benchmarks\n", &section),
            format!("# Benchmarks\n\n{section}")
        );
    }
}
