//! The parts of a verification, and what they share: servers made ready once, libraries built once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::{self, Line};
use super::{Tally, Verdict, dependencies, house_rules, packages, regress, upgrades};
use crate::arguments::Arguments;
use crate::console::{self, Step};
use crate::layout::{self, RunDirectory};
use crate::process::{self, ServerUser};
use crate::server::{self, Major, Prefix, Server};
use crate::{extension, prerequisites};

/// Longer than any part takes; a part that hangs must not hang the run.
const LIMIT: Duration = Duration::from_secs(3600);

/// A few seconds' worth.
const HISTORIES: u64 = 10_000;
/// A few minutes' worth.
const LONG_HISTORIES: u64 = 1_000_000;

pub(crate) struct Run {
    arguments: Arguments,
    lines: Vec<Line>,
    servers: BTreeMap<Major, std::result::Result<Server, String>>,
    installed: BTreeMap<Major, std::result::Result<Prefix, String>>,
    directory: Option<RunDirectory>,
}

impl Run {
    pub(crate) fn new(arguments: &Arguments) -> Result<Self> {
        Ok(Self {
            arguments: arguments.clone(),
            lines: Vec::new(),
            servers: BTreeMap::new(),
            installed: BTreeMap::new(),
            directory: None,
        })
    }

    pub(crate) fn part(&mut self, name: &str, check: impl FnOnce(&mut Self) -> Result<Verdict>) {
        self.timed(name, None, check);
    }

    /// A part that needs a version of the server.
    pub(crate) fn server_part(
        &mut self,
        name: &str,
        major: Major,
        check: impl FnOnce(&mut Self, Major) -> Result<Verdict>,
    ) {
        self.timed(name, Some(major), |run| match run.server(major) {
            Ok(_) => check(run, major),
            Err(why) if major.optional() && run.arguments.pg.is_none() => Ok(Verdict::Skipped(why)),
            Err(why) => Ok(Verdict::Impossible(why)),
        });
    }

    fn timed(&mut self, name: &str, major: Option<Major>, check: impl FnOnce(&mut Self) -> Result<Verdict>) {
        if self
            .arguments
            .parts
            .as_ref()
            .is_some_and(|parts| !parts.iter().any(|part| part == name))
        {
            return;
        }
        let started = Instant::now();
        let verdict =
            check(self).unwrap_or_else(|error| Verdict::Failed(Tally::default(), format!("{error:#}")));
        let seconds = started.elapsed().as_secs_f64();
        let version = major.map_or_else(String::new, |major| {
            self.servers
                .get(&major)
                .and_then(|server| server.as_ref().ok())
                .map_or_else(|| major.to_string(), |server| server.version.clone())
        });
        let line = Line {
            part: name.to_owned(),
            major,
            version,
            verdict,
            seconds,
        };
        let (mark, text) = match &line.verdict {
            Verdict::Passed(tally) => (console::green("ok     "), tally.note.clone()),
            Verdict::Failed(_, output) => (console::red("FAILED "), format!("\n{output}\n")),
            Verdict::Impossible(why) => (console::red("FAILED "), format!("could not run: {why}")),
            Verdict::Skipped(why) => (
                console::yellow("skipped"),
                why.lines().next().unwrap_or("").to_owned(),
            ),
        };
        let named = report::named(&line);
        let time = console::dim(&format!("{seconds:.1} s"));
        say!(
            "{mark} {named} {time}{}{text}",
            if text.is_empty() || text.starts_with('\n') {
                ""
            } else {
                ": "
            }
        );
        self.lines.push(line);
    }

    pub(crate) fn finish(mut self) -> bool {
        // Before the table: what cannot be removed should be seen above it.
        self.directory = None;
        report::print(&self.lines)
    }

    fn server(&mut self, major: Major) -> std::result::Result<Server, String> {
        self.servers
            .entry(major)
            .or_insert_with(|| server::prepare(major).map_err(|error| format!("{error:#}")))
            .clone()
    }

    /// The run directory, made when first needed: user `postgres` may only exist by then.
    fn directory(&mut self) -> Result<PathBuf> {
        if self.directory.is_none() {
            self.directory = Some(RunDirectory::create("verify", &ServerUser::find()?)?);
        }
        self.directory
            .as_ref()
            .map(|directory| directory.path.clone())
            .context("no run directory")
    }

    /// A private copy of the server with the extension installed, built once per run.
    fn installed(&mut self, major: Major) -> Result<Prefix> {
        let server = self.server(major).map_err(anyhow::Error::msg)?;
        if !self.installed.contains_key(&major) {
            let root = self.directory()?.join(format!("pg{major}"));
            let prefix = extension::build(&server, self.arguments.release)
                .and_then(|library| extension::private_copy(&server, &library, &root));
            self.installed
                .insert(major, prefix.map_err(|error| format!("{error:#}")));
        }
        let known = self.installed.get(&major).context("just inserted")?;
        known
            .clone()
            .map_err(|_| anyhow::anyhow!("the build failed, see above"))
    }

    /// Runs a program as one part, its output in a log.
    fn logged(&self, part: &str, command: Command, counted: Counting) -> Result<Verdict> {
        let log = extension::log(part)?;
        let mut step = Step::begin(part);
        let mut tally = Tally::default();
        let succeeded = process::logged(command, &log, LIMIT, &mut |line| {
            if let Some(line) = line {
                counted.count(line, &mut tally);
            }
            step.progress(line.unwrap_or_default());
        })?;
        step.erase();
        if succeeded && tally.failed == 0 {
            return Ok(Verdict::Passed(tally));
        }
        let output = process::tail(&log, 200);
        Ok(Verdict::Failed(
            tally,
            format!("{output}\n(all of it in {})", log.display()),
        ))
    }

    pub(crate) fn format(&mut self) -> Result<Verdict> {
        self.logged(
            "format",
            plain_cargo(&["fmt", "--all", "--check"]),
            Counting::Nothing,
        )
    }

    pub(crate) fn rules(&mut self) -> Result<Verdict> {
        let repository = layout::repository();
        let mut found = house_rules::scan(&repository)?;
        found.extend(packages::check(&repository)?);
        found.extend(upgrades::check(&repository)?);
        Ok(verdict_of(&found))
    }

    pub(crate) fn dependencies(&mut self) -> Result<Verdict> {
        let (found, note) = dependencies::check(&layout::repository())?;
        Ok(match verdict_of(&found) {
            Verdict::Passed(tally) => Verdict::Passed(Tally { note, ..tally }),
            other => other,
        })
    }

    /// Tests of the crates that need no server: the pure ones, and this tool's own.
    pub(crate) fn pure(&mut self) -> Result<Verdict> {
        let names = packages::pure(&layout::repository())?;
        let mut words = vec!["test", "--locked", "--package", "xtask"];
        for name in &names {
            words.extend(["--package", name.as_str()]);
        }
        self.logged("pure", plain_cargo(&words), Counting::Libtest)
    }

    /// Whole histories from seeds; `--long` makes a million of them, `--seed` replays one.
    pub(crate) fn simulation(&mut self) -> Result<Verdict> {
        let mut command = plain_cargo(&[
            "test",
            "--locked",
            "--release",
            "--package",
            "pg_ha_simulation",
            "--",
            "--nocapture",
        ]);
        let histories = if self.arguments.long {
            LONG_HISTORIES
        } else {
            HISTORIES
        };
        command.env("PG_HA_HISTORIES", histories.to_string());
        let mut note = format!("{histories} histories");
        if let Some(seed) = self.arguments.seed {
            command.env("PG_HA_SEED", seed.to_string());
            note = format!("seed {seed}");
        }
        Ok(match self.logged("simulation", command, Counting::Libtest)? {
            Verdict::Passed(tally) => Verdict::Passed(Tally { note, ..tally }),
            other => other,
        })
    }

    pub(crate) fn lints(&mut self, major: Major) -> Result<Verdict> {
        let server = self.server(major).map_err(anyhow::Error::msg)?;
        let mut command = extension::cargo(&server, &["clippy", "--workspace", "--all-targets"]);
        command.args(["--", "-D", "warnings"]);
        self.logged(&format!("lints-pg{major}"), command, Counting::Nothing)
    }

    pub(crate) fn build(&mut self, major: Major) -> Result<Verdict> {
        self.installed(major)?;
        let origin = self
            .server(major)
            .map_or_else(|_| String::new(), |server| server.origin);
        Ok(Verdict::Passed(Tally {
            note: origin,
            ..Tally::default()
        }))
    }

    pub(crate) fn regression(&mut self, major: Major) -> Result<Verdict> {
        let prefix = self.installed(major)?;
        let directory = self.directory()?;
        regress::run(
            &prefix,
            &directory,
            self.arguments.only.as_deref(),
            self.arguments.accept,
        )
    }

    pub(crate) fn scenarios(&mut self, major: Major, only: Option<&str>) -> Result<Verdict> {
        prerequisites::ensure_for_scenarios()?;
        let prefix = self.installed(major)?;
        let mut command = plain_cargo(&[
            "run",
            "--quiet",
            "--locked",
            "--package",
            "pg_ha_test",
            "--",
            "run",
        ]);
        if let Some(name) = only {
            command.args(["--only", name]);
        }
        if let Some(seed) = self.arguments.seed {
            command.arg("--seed").arg(seed.to_string());
        }
        if let Some(jobs) = self.arguments.jobs {
            command.arg("--jobs").arg(jobs.to_string());
        }
        if self.arguments.long {
            command.arg("--long");
        }
        command
            .env("PG_HA_INSTALL", &prefix.root)
            .env("PG_HA_PG_MAJOR", major.to_string());
        if let Some(other) = partner(major, only) {
            command.env("PG_HA_INSTALL_OTHER", self.installed(other)?.root);
        }
        let verdict = self.logged(&format!("scenarios-pg{major}"), command, Counting::Scenarios)?;
        Ok(match verdict {
            Verdict::Passed(tally) if tally.passed == 0 => {
                let skipped = tally.skipped.join("\n");
                Verdict::Failed(tally, format!("no scenario ran\n{skipped}"))
            }
            // What could not run is not verified.
            Verdict::Passed(tally) if !tally.skipped.is_empty() && !major.optional() => {
                let skipped = tally.skipped.join("\n");
                Verdict::Failed(tally, format!("these scenarios could not run:\n{skipped}"))
            }
            other => other,
        })
    }
}

/// The version that a run's scenarios meet beside their own. A replay of one scenario does not build it in vain.
fn partner(major: Major, only: Option<&str>) -> Option<Major> {
    if only.is_some_and(|name| !name.starts_with("mixed_versions")) {
        return None;
    }
    match major {
        Major::FULL => Some(Major::SECOND),
        Major::SECOND => Some(Major::FULL),
        _ => None,
    }
}

/// How a program's lines tell its tests.
#[derive(Clone, Copy)]
enum Counting {
    Nothing,
    /// `test result: ok. 5 passed; 0 failed; …`
    Libtest,
    /// `ok name 1.2s` and `FAILED name …`
    Scenarios,
}

impl Counting {
    fn count(self, line: &str, tally: &mut Tally) {
        match self {
            Self::Nothing => {}
            Self::Libtest => {
                let Some(result) = line.strip_prefix("test result: ") else {
                    return;
                };
                let mut words = result
                    .split([' ', ';', '.'])
                    .filter(|word| !word.is_empty())
                    .peekable();
                while let Some(word) = words.next() {
                    if let (Ok(number), Some(next)) = (word.parse::<usize>(), words.peek()) {
                        match *next {
                            "passed" => tally.passed += number,
                            "failed" => tally.failed += number,
                            _ => {}
                        }
                    }
                }
            }
            Self::Scenarios if line.starts_with("ok ") => tally.passed += 1,
            Self::Scenarios if line.starts_with("FAILED ") => tally.failed += 1,
            Self::Scenarios if line.starts_with("skipped ") => {
                tally.skipped.push(line.trim_start_matches("skipped ").to_owned());
            }
            Self::Scenarios => {}
        }
    }
}

fn plain_cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(layout::repository());
    extension::without_our_own(&mut command);
    command
}

fn verdict_of(found: &[String]) -> Verdict {
    if found.is_empty() {
        Verdict::Passed(Tally::default())
    } else {
        Verdict::Failed(Tally::default(), found.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_libtest_and_the_scenario_runner_say() {
        let mut tally = Tally::default();
        Counting::Libtest.count(
            "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; finished in 0.01s",
            &mut tally,
        );
        assert_eq!((tally.passed, tally.failed), (12, 3));
        for line in [
            "skipped thaw: needs root",
            "ok walkthrough 12.3s",
            "FAILED slot_lost after 3s",
            "3 passed, 1 failed",
        ] {
            Counting::Scenarios.count(line, &mut tally);
        }
        assert_eq!((tally.passed, tally.failed), (13, 4));
        assert_eq!(tally.skipped, ["thaw: needs root"]);
    }

    #[test]
    fn two_versions_meet_where_everything_runs_and_where_it_is_asked_for() {
        assert_eq!(partner(Major::FULL, None), Some(Major::SECOND));
        assert_eq!(partner(Major::SECOND, Some("mixed_versions")), Some(Major::FULL));
        assert_eq!(partner(Major::FULL, Some("walkthrough")), None);
    }
}
