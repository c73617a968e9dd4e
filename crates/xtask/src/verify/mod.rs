//! `cargo verify`: everything that checks the project, part by part, each timed, with a table at the end.

mod dependencies;
mod house_rules;
mod packages;
mod parts;
mod regress;
mod report;
mod source_text;
mod upgrades;

use anyhow::Result;

use crate::arguments::Arguments;
use crate::server::{self, Major};
use parts::Run;

/// What a part has to tell: tests counted one by one, and a sentence for the table.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Tests that could not run, each with its reason.
    pub(crate) skipped: Vec<String>,
    pub(crate) note: String,
}

/// How a part ended.
pub(crate) enum Verdict {
    Passed(Tally),
    /// With everything a person needs to see.
    Failed(Tally, String),
    /// Could not run, and that is a failure.
    Impossible(String),
    /// Could not run, and that is accepted: an archive that moves, an option that was given.
    Skipped(String),
}

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let mut run = Run::new(arguments)?;
    if let Some(name) = &arguments.only {
        // A replay: one scenario or one regression file, on one version.
        let major = arguments.pg.unwrap_or(Major::FULL);
        if regress::exists(name) {
            run.server_part("regression", major, |run, major| run.regression(major));
        } else {
            run.server_part("scenarios", major, |run, major| run.scenarios(major, Some(name)));
        }
        return Ok(run.finish());
    }
    run.part("format", Run::format);
    run.part("rules", Run::rules);
    run.part("dependencies", Run::dependencies);
    run.part("pure", Run::pure);
    run.part("simulation", Run::simulation);
    let majors: Vec<Major> = match arguments.pg {
        Some(major) => vec![major],
        None => vec![Major::FULL, Major::SECOND],
    };
    for major in &majors {
        run.server_part("lints", *major, Run::lints);
        run.server_part("build", *major, |run, major| run.build(major));
        run.server_part("regression", *major, |run, major| run.regression(major));
        run.server_part("scenarios", *major, |run, major| run.scenarios(major, None));
    }
    if arguments.pg.is_none() {
        for major in Major::all().filter(|major| major.optional()) {
            run.server_part("build", major, |run, major| run.build(major));
            run.server_part("walkthrough", major, |run, major| {
                run.scenarios(major, Some("walkthrough"))
            });
        }
    }
    Ok(run.finish())
}

/// `cargo pure`.
pub(crate) fn pure_alone() -> Result<bool> {
    let mut run = Run::new(&Arguments::default())?;
    run.part("pure", Run::pure);
    Ok(run.finish())
}

/// `cargo xtask rules`.
pub(crate) fn rules_alone() -> Result<bool> {
    let mut run = Run::new(&Arguments::default())?;
    run.part("rules", Run::rules);
    run.part("dependencies", Run::dependencies);
    Ok(run.finish())
}

/// `cargo xtask regress`.
pub(crate) fn regress_alone(arguments: &Arguments) -> Result<bool> {
    let mut run = Run::new(arguments)?;
    run.server_part("regression", server::chosen(arguments)?, |run, major| {
        run.regression(major)
    });
    Ok(run.finish())
}
