//! pg_ha_test: starts real servers, breaks them on purpose, and checks what pg_ha promises.
//!
//! It knows the extension only from outside: SQL, ports and processes.

mod cleanup;
mod cluster;
mod compare;
mod faults;
mod install;
mod menagerie;
mod node;
mod process;
mod proxy;
mod report;
mod runner;
mod scenario;
mod scenarios;
mod sql;
mod template;
mod wait;
mod workload;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::install::Install;
use crate::scenario::Scenario;

const USAGE: &str = "\
usage: pg_ha_test list
       pg_ha_test run [--only NAME]... [--seed N] [--long] [--jobs N] [--keep]

--only   a scenario's name, or the beginning of several names; may be given more than once
--seed   replays the random choices of an earlier run
--long   the full counts of repetitions
--jobs   scenarios at once (default: the number of cores)
--keep   leaves the servers' directories behind

PG_HA_INSTALL   prefix of a server's files with pg_ha installed (lib/postgresql/<major>/bin or bin below it);
                without it the host's newest server is used
PG_HA_INSTALL_OTHER   the same with another major version, for scenarios with servers of both
PG_HA_CHROOT    directory to chroot into for running the server's programs; PG_HA_INSTALL is a path inside it";

struct Arguments {
    only: Vec<String>,
    seed: Option<u64>,
    long: bool,
    jobs: Option<usize>,
    keep: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["list"] => {
            list();
            Ok(true)
        }
        ["run", options @ ..] => parse(options).and_then(|arguments| run(&arguments)),
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

fn parse(words: &[&str]) -> Result<Arguments> {
    let mut arguments = Arguments {
        only: Vec::new(),
        seed: None,
        long: false,
        jobs: None,
        keep: false,
    };
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let mut value = || {
            rest.next()
                .with_context(|| format!("{word} needs a value\n{USAGE}"))
        };
        match *word {
            "--only" => arguments.only.push((*value()?).to_owned()),
            "--seed" => arguments.seed = Some(value()?.parse().context("--seed takes a number")?),
            "--jobs" => arguments.jobs = Some(value()?.parse().context("--jobs takes a number")?),
            "--long" => arguments.long = true,
            "--keep" => arguments.keep = true,
            other => bail!("unknown option {other}\n{USAGE}"),
        }
    }
    if arguments.jobs == Some(0) {
        bail!("--jobs must be at least 1");
    }
    Ok(arguments)
}

fn select(only: &[String]) -> Result<Vec<Scenario>> {
    let all = scenarios::all();
    if only.is_empty() {
        return Ok(all);
    }
    for wanted in only {
        if !all
            .iter()
            .any(|scenario| scenario.name.starts_with(wanted.as_str()))
        {
            bail!("no scenario's name begins with {wanted:?}; see pg_ha_test list");
        }
    }
    // A full name means that scenario alone, even where others begin with it.
    let chosen = |scenario: &Scenario| {
        only.iter().any(|wanted| {
            let exact = all.iter().any(|other| other.name == wanted);
            if exact {
                scenario.name == wanted
            } else {
                scenario.name.starts_with(wanted.as_str())
            }
        })
    };
    Ok(all.iter().copied().filter(chosen).collect())
}

fn run(arguments: &Arguments) -> Result<bool> {
    let chosen = select(&arguments.only)?;
    clean_up_on_signal(arguments.keep)?;
    let install = Arc::new(Install::find(arguments.keep)?);
    let options = runner::Options {
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000_000)),
        long: arguments.long,
        jobs: arguments
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
    };
    announce(&install, chosen.len(), options);
    let totals = runner::run(&install, chosen, options);
    conclude(totals);
    Ok(totals.failed == 0 && !cleanup::interrupted())
}

/// First signal: scenarios notice, stop and clean up. If they don't within seconds, or at the second signal,
/// whatever is registered is removed by force.
fn clean_up_on_signal(keep: bool) -> Result<()> {
    const GRACE: std::time::Duration = std::time::Duration::from_secs(10);
    ctrlc::set_handler(move || {
        if cleanup::interrupted() {
            cleanup::release_everything(keep);
            std::process::exit(130);
        }
        cleanup::interrupt();
        complain("interrupted: stopping servers and cleaning up");
        std::thread::spawn(move || {
            wait::pause(GRACE);
            cleanup::release_everything(keep);
            std::process::exit(130);
        });
    })
    .context("installing the signal handler")
}

#[expect(clippy::print_stdout, reason = "the run's report is this program's output")]
fn announce(install: &Install, scenarios: usize, options: runner::Options) {
    let extension = if install.has_extension {
        "with pg_ha"
    } else {
        "without pg_ha"
    };
    let other = install
        .other
        .as_ref()
        .map_or_else(String::new, |other| format!(" (and {})", other.major));
    println!(
        "{scenarios} scenarios on PostgreSQL {}{other} {extension}, seed {}, {} at once, in {}",
        install.major,
        options.seed,
        options.jobs,
        install.base.display()
    );
}

#[expect(clippy::print_stdout, reason = "the run's report is this program's output")]
fn conclude(totals: runner::Totals) {
    let skipped = if totals.skipped > 0 {
        format!(", {} skipped", totals.skipped)
    } else {
        String::new()
    };
    println!("{} passed, {} failed{skipped}", totals.passed, totals.failed);
}

#[expect(clippy::print_stdout, reason = "the list is this program's output")]
fn list() {
    for scenario in scenarios::all() {
        let needs: Vec<String> = scenario
            .needs
            .iter()
            .map(|need| format!("{need:?}").to_lowercase())
            .collect();
        let needs = if needs.is_empty() {
            String::new()
        } else {
            format!(" [needs {}]", needs.join(", "))
        };
        println!("{}{needs}\n    {}", scenario.name, scenario.story);
    }
}

#[expect(clippy::print_stderr, reason = "a tool's complaints go to stderr")]
fn complain(message: &str) {
    eprintln!("{message}");
}
