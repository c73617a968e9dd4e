//! Medians, ratios, the machine, and docs/benchmarks.md.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Results;
use super::kind::Kind;
use crate::{layout, process};

type Rows = Vec<Vec<String>>;

/// One row per kind with its medians, and the ratios of ours to each of the others'.
pub(super) fn table(results: &Results) -> (Vec<String>, Rows) {
    let columns = results.workload.columns();
    let mut header = vec![String::new()];
    header.extend(columns.iter().map(|column| column.name.to_owned()));
    header.push(format!("spread of {}", columns[0].name));
    let medians: Vec<(Kind, Vec<f64>)> = results
        .of
        .iter()
        .map(|(kind, measures)| {
            let of = |index: usize| median(measures.iter().filter_map(|m| m.0.get(index).copied()));
            (*kind, (0..columns.len()).map(of).collect())
        })
        .collect();
    let mut rows: Rows = results
        .of
        .iter()
        .zip(&medians)
        .map(|((kind, measures), (_, medians))| {
            let first = || measures.iter().filter_map(|measure| measure.0.first().copied());
            let lowest = first().fold(f64::INFINITY, f64::min);
            let highest = first().fold(0.0, f64::max);
            let digits = columns[0].digits;
            let mut row = vec![kind.name().to_owned()];
            row.extend(
                columns
                    .iter()
                    .zip(medians)
                    .map(|(column, value)| format!("{value:.*}", column.digits)),
            );
            row.push(format!("{lowest:.digits$} to {highest:.digits$}"));
            row
        })
        .collect();
    let ours = medians.iter().find(|(kind, _)| *kind == Kind::PgHa);
    for (kind, theirs) in medians.iter().filter(|(kind, _)| *kind != Kind::PgHa) {
        if let Some((_, ours)) = ours {
            let mut row = vec![format!("pg_ha / {}", kind.name())];
            row.extend(ours.iter().zip(theirs).map(|(ours, theirs)| {
                if *theirs > 0.0 {
                    format!("{:.2}", ours / theirs)
                } else {
                    "-".to_owned()
                }
            }));
            row.push(String::new());
            rows.push(row);
        }
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
pub(super) fn write(all: &[Results], machine: &str) -> Result<PathBuf> {
    let path = layout::repository().join("docs/benchmarks.md");
    let date = process::answer(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut section = format!(
        "{BEGIN}\n## Against native logical replication and pglogical\n\n`cargo bench-peers`: medians of the rounds, all kinds \
         in turn. A backlog waits while the subscription is disabled, and is measured from the\nstart of the stream until \
         its last row is visible. The applier is everything that works on the subscriber for it (pg_ha: receiver and\n\
         applier); a microsecond per row is a CPU second per million rows. MB is the peak of anonymous memory. A copy \
         begins with an empty\ndatabase (native: pg_dump brings the structure, which is counted in) and ends when every \
         table replicates; its CPU is that of both whole\nservers.\n"
    );
    for results in all {
        let rounds = results.of.first().map_or(0, |(_, measures)| measures.len());
        let (header, rows) = table(results);
        section += &format!("\n### {}\n\n", results.workload.title());
        section += &line(&header);
        section += &format!("|{}\n", "---|".repeat(header.len()));
        for row in &rows {
            section += &line(row);
        }
        section += &format!("\n{rounds} rounds.\n");
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
    use super::super::{Measure, Workload};
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }

    #[test]
    fn ratios_are_ours_to_theirs() {
        let results = Results {
            workload: Workload::Latency,
            of: vec![
                (Kind::Native, vec![Measure(vec![2.0, 8.0])]),
                (Kind::Pglogical, vec![Measure(vec![4.0, 4.0])]),
                (Kind::PgHa, vec![Measure(vec![1.0, 2.0]), Measure(vec![3.0, 4.0])]),
            ],
        };
        let (header, rows) = table(&results);
        assert_eq!(header, ["", "p50 ms", "p99 ms", "spread of p50 ms"]);
        assert_eq!(rows[2], ["pg_ha", "2.000", "3.000", "1.000 to 3.000"]);
        assert_eq!(rows[3], ["pg_ha / native", "1.00", "0.38", ""]);
        assert_eq!(rows[4], ["pg_ha / pglogical", "0.50", "0.75", ""]);
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
