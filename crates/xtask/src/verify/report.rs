//! The table at the end, and the counts.

use super::{Tally, Verdict};
use crate::console;
use crate::server::Major;

pub(crate) struct Line {
    pub(crate) part: String,
    pub(crate) major: Option<Major>,
    pub(crate) version: String,
    pub(crate) verdict: Verdict,
    pub(crate) seconds: f64,
}

/// Prints it; true if nothing failed.
pub(crate) fn print(lines: &[Line]) -> bool {
    let (mut passed, mut failed) = (0, 0);
    let mut impossible = Vec::new();
    let mut rows = Vec::new();
    for line in lines {
        let (result, tally) = match &line.verdict {
            Verdict::Passed(tally) => ("ok", tally.clone()),
            Verdict::Failed(tally, _) => ("FAILED", tally.clone()),
            Verdict::Impossible(_) => (
                "FAILED",
                Tally {
                    note: "could not run".to_owned(),
                    ..Tally::default()
                },
            ),
            Verdict::Skipped(_) => ("skipped", Tally::default()),
        };
        match &line.verdict {
            Verdict::Passed(_) => passed += 1,
            Verdict::Failed(..) => failed += 1,
            Verdict::Impossible(why) | Verdict::Skipped(why) => {
                let fails = matches!(line.verdict, Verdict::Impossible(_));
                failed += usize::from(fails);
                impossible.push((named(line), why.clone(), fails));
            }
        }
        for skipped in &tally.skipped {
            let accepted = matches!(line.verdict, Verdict::Passed(_));
            impossible.push((named(line), skipped.clone(), !accepted));
        }
        passed += tally.passed;
        failed += tally.failed;
        let mut note = Vec::new();
        if tally.passed + tally.failed > 0 {
            note.push(format!(
                "{} of {} tests",
                tally.passed,
                tally.passed + tally.failed
            ));
        }
        if !tally.note.is_empty() {
            note.push(tally.note);
        }
        rows.push(vec![
            line.part.clone(),
            line.version.clone(),
            result.to_owned(),
            format!("{:.1}", line.seconds),
            note.join(", "),
        ]);
    }
    say!("");
    for (index, text) in console::table(&["part", "PostgreSQL", "result", "seconds", ""], &rows, &[3])
        .iter()
        .enumerate()
    {
        let text = match index {
            0 => console::bold(text),
            _ if text.contains("FAILED") => console::red(text),
            _ => text.clone(),
        };
        say!("{text}");
    }
    if !impossible.is_empty() {
        say!("\ncould not run:");
        for (name, why, fails) in &impossible {
            let weight = if *fails { "" } else { " (accepted)" };
            say!("  {name}{weight}: {}", why.replace('\n', "\n    "));
        }
    }
    let seconds: f64 = lines.iter().map(|line| line.seconds).sum();
    say!("\n{:.0} s in all", seconds);
    say!("{passed} passed, {failed} failed");
    failed == 0
}

pub(crate) fn named(line: &Line) -> String {
    match line.major {
        Some(major) => format!("{} on {major}", line.part),
        None => line.part.clone(),
    }
}
