//! The SQL regression files: each runs through psql in a fresh database of one server, and what it prints must be
//! what is expected. A file that leaves its database undroppable gets the server replaced, so that files do not
//! depend on one another.
//!
//! A file may use the psql variable `:dsn`, which leads to its own database, and `:port`. Both stand for values
//! that differ between runs; in the output they are replaced by fixed words.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Tally, Verdict};
use crate::cleanup::{self, Debt};
use crate::console::Step;
use crate::instance::Instance;
use crate::layout;
use crate::process::{self, ServerUser};
use crate::server::Prefix;

/// No regression file has reason to take longer.
const LIMIT: Duration = Duration::from_secs(120);

fn directory() -> PathBuf {
    layout::repository().join("pg_test/regress")
}

pub(crate) fn exists(name: &str) -> bool {
    directory().join(format!("sql/{name}.sql")).is_file()
}

pub(crate) fn run(prefix: &Prefix, run: &Path, only: Option<&str>, accept: bool) -> Result<Verdict> {
    let mut names: Vec<String> = fs::read_dir(directory().join("sql"))
        .map(|entries| {
            entries
                .filter_map(|entry| entry.ok().map(|entry| entry.path()))
                .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
                .filter_map(|path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
                .filter(|name| only.is_none_or(|only| only == name))
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    if names.is_empty() {
        return Ok(Verdict::Failed(
            Tally::default(),
            "there are no regression files to run".to_owned(),
        ));
    }
    let user = ServerUser::find()?;
    let mut servers = 0;
    let mut current: Option<Instance> = None;
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let mut step = Step::begin("regression");
    for name in &names {
        step.progress(name);
        let server = match current.take() {
            Some(server) => server,
            None => {
                servers += 1;
                let label = format!("regress{}-{servers}", prefix.major);
                let settings = "shared_preload_libraries = 'pg_ha'\nfsync = off\n";
                let mut server = Instance::create(prefix, &user, run, &label, settings)?;
                server.start(7600)?;
                server
            }
        };
        let output = one(&server, name, run)?;
        match compare(name, &output, run, accept)? {
            None => tally.passed += 1,
            Some(difference) => {
                tally.failed += 1;
                let log = process::tail(&server.log(), 15);
                failures.push(format!(
                    "--- {name} ---\n{difference}\nthe end of the server's log:\n{log}"
                ));
            }
        }
        let dropped = server.sql(
            "postgres",
            &format!("DROP DATABASE \"regress_{name}\" WITH (FORCE)"),
        );
        if dropped.is_ok() {
            current = Some(server);
        } else {
            cleanup::stop_server(&server.data);
        }
    }
    drop(current);
    step.erase();
    if failures.is_empty() {
        if servers > 1 {
            tally.note = format!("{servers} servers");
        }
        return Ok(Verdict::Passed(tally));
    }
    Ok(Verdict::Failed(tally, failures.join("\n\n")))
}

/// Runs one file and returns what it printed, with what differs between runs replaced.
fn one(server: &Instance, name: &str, run: &Path) -> Result<String> {
    let database = format!("regress_{name}");
    server.sql(
        "postgres",
        &format!("CREATE DATABASE \"{database}\" TEMPLATE template0"),
    )?;
    let raw = run.join(format!("{name}.raw"));
    // psql and its messages write to one file, through one position, so that their order is kept.
    let output = File::create(&raw)?;
    let mut command: Command = server.client("psql");
    command
        // From standard input: messages then carry no file name and line.
        .args(["-X", "-q", "-a", "-d", &database])
        .arg("-v")
        .arg(format!("dsn={}", server.dsn(&database)))
        .arg("-v")
        .arg(format!("port={}", server.port))
        .env("PGTZ", "UTC")
        .env("PGDATESTYLE", "ISO, MDY")
        .env("LC_ALL", "C")
        .stdin(File::open(directory().join(format!("sql/{name}.sql")))?)
        .stdout(Stdio::from(output.try_clone()?))
        .stderr(Stdio::from(output));
    let mut child = command.spawn().context("cannot run psql")?;
    let owed = cleanup::owe(Debt::Group(child.id().cast_signed()));
    let deadline = Instant::now() + LIMIT;
    let mut late = "";
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            late = "\n[ended: it took too long]\n";
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    owed.forgive();
    let text = String::from_utf8_lossy(&fs::read(&raw)?).into_owned();
    Ok(text
        .replace(&format!("port={}", server.port), "port=PORT")
        .replace(&format!("port {}", server.port), "port PORT")
        .replace(&server.data.display().to_string(), "DATA_DIRECTORY")
        .replace(&run.display().to_string(), "RUN_DIRECTORY")
        + late)
}

/// None if the output is as expected, in the main file or in an alternative `name_1.out`; else the difference.
fn compare(name: &str, output: &str, run: &Path, accept: bool) -> Result<Option<String>> {
    let expected = directory().join(format!("expected/{name}.out"));
    if accept {
        fs::create_dir_all(directory().join("expected"))?;
        fs::write(&expected, output)?;
        return Ok(None);
    }
    let alternatives = (1..10).map(|number| directory().join(format!("expected/{name}_{number}.out")));
    for path in std::iter::once(expected.clone()).chain(alternatives) {
        if fs::read_to_string(&path).is_ok_and(|text| text == output) {
            return Ok(None);
        }
    }
    let got = run.join(format!("{name}.out"));
    fs::write(&got, output)?;
    if !expected.exists() {
        return Ok(Some(format!(
            "expected/{name}.out does not exist; the output was:\n{output}"
        )));
    }
    // diff says 1 when they differ, which is what it was called for.
    let difference = Command::new("diff")
        .args(["-u", "--label", "expected", "--label", "found"])
        .arg(&expected)
        .arg(&got)
        .output()
        .context("cannot run diff")?;
    if difference.status.code() != Some(1) {
        bail!("diff failed: {}", String::from_utf8_lossy(&difference.stderr));
    }
    Ok(Some(String::from_utf8_lossy(&difference.stdout).into_owned()))
}
