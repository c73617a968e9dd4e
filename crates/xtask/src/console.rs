//! What a person sees: colours and redrawn lines on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Progress goes to standard error, so that what a command answers can be captured.
fn progress_is_drawn() -> bool {
    is_terminal() && std::io::stderr().is_terminal()
}

fn coloured(code: &str, text: &str) -> String {
    if is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

pub(crate) fn red(text: &str) -> String {
    coloured("31;1", text)
}

pub(crate) fn green(text: &str) -> String {
    coloured("32", text)
}

pub(crate) fn yellow(text: &str) -> String {
    coloured("33", text)
}

pub(crate) fn bold(text: &str) -> String {
    coloured("1", text)
}

pub(crate) fn dim(text: &str) -> String {
    coloured("2", text)
}

/// One step that takes a while: on a terminal a line that is redrawn, elsewhere a line now and then.
pub(crate) struct Step {
    title: String,
    started: Instant,
    drawn: Option<Instant>,
}

impl Step {
    pub(crate) fn begin(title: &str) -> Self {
        let mut step = Self {
            title: title.to_owned(),
            started: Instant::now(),
            drawn: None,
        };
        step.progress("");
        step
    }

    pub(crate) fn progress(&mut self, detail: &str) {
        let every = if progress_is_drawn() {
            Duration::from_millis(100)
        } else {
            Duration::from_secs(15)
        };
        if self.drawn.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        let first = self.drawn.is_none();
        self.drawn = Some(Instant::now());
        if progress_is_drawn() {
            let line = format!("  {} {}", self.title, detail);
            eprint!("\r\x1b[K{}", clipped(&line, 100));
            let _ = std::io::stderr().flush();
        } else if !first {
            eprintln!("  {}: {:.0} s {detail}", self.title, self.seconds());
        }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Ends without a word: the caller has its own.
    pub(crate) fn erase(self) {
        if progress_is_drawn() {
            eprint!("\r\x1b[K");
        }
    }

    pub(crate) fn done(self, detail: &str) {
        self.end(&green("✓"), detail);
    }

    pub(crate) fn end(self, mark: &str, detail: &str) {
        let start = if progress_is_drawn() { "\r\x1b[K" } else { "" };
        let detail = if detail.is_empty() {
            String::new()
        } else {
            format!(": {detail}")
        };
        say!(
            "{start}{mark} {}{detail} {}",
            self.title,
            dim(&format!("({:.1} s)", self.seconds()))
        );
    }
}

/// The first `width` characters.
pub(crate) fn clipped(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

/// Columns as wide as their widest cell; the columns named in `right` are numbers.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain(header.get(column).map(|name| name.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, cell) in cells.enumerate() {
            let padding = " ".repeat(width(column).saturating_sub(cell.chars().count()));
            let separator = if column == 0 { "" } else { "  " };
            let (before, after) = if right.contains(&column) {
                (padding.as_str(), "")
            } else {
                ("", padding.as_str())
            };
            line.push_str(&format!("{separator}{before}{cell}{after}"));
        }
        line.trim_end().to_owned()
    };
    std::iter::once(line(&mut header.iter().copied()))
        .chain(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["n1".to_owned(), "1200".to_owned()],
            vec!["node2".to_owned(), "7".to_owned()],
        ];
        assert_eq!(
            table(&["node", "rows"], &rows, &[1]),
            ["node   rows", "n1     1200", "node2     7"]
        );
    }
}
