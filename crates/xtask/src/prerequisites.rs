//! What the machine must have beyond git, a C compiler and Rust. Missing Debian packages are installed when we
//! may; else the one line to run is printed.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::console::Step;
use crate::server::{self, Major};
use crate::{layout, process};

/// To build the extension: pgrx generates its bindings with libclang from the server's headers.
const BUILD: &[&str] = &["clang", "libclang-dev", "pkg-config", "libssl-dev", "libpq-dev"];

/// The cluster scenarios cut networks, bend clocks and make certificates.
const SCENARIOS: &[&str] = &["iproute2", "iptables", "nftables", "faketime", "openssl"];

/// To run servers of another Debian release with that release's own C library.
pub(crate) const OTHER_RELEASE: &[&str] = &["patchelf"];

/// For building and running one version of the server, from the host's packages where it has them.
pub(crate) fn ensure(major: Major) -> Result<()> {
    let mut wanted: Vec<String> = BUILD.iter().map(|name| (*name).to_owned()).collect();
    if server::on_host(major).is_none() && offered_by_host(major) {
        wanted.extend([
            format!("postgresql-{major}"),
            format!("postgresql-server-dev-{major}"),
        ]);
    } else if server::on_host(major).is_none() {
        wanted.extend(OTHER_RELEASE.iter().map(|name| (*name).to_owned()));
        // Some package must bring user `postgres` and psql.
        if let Some(host) =
            server::newest_on_host().or_else(|| Major::all().rev().find(|m| offered_by_host(*m)))
        {
            wanted.push(format!("postgresql-{host}"));
        }
    }
    install(&wanted)
}

pub(crate) fn ensure_for_scenarios() -> Result<()> {
    install(SCENARIOS)
}

/// Whether the host's own package archive has this version of the server.
pub(crate) fn offered_by_host(major: Major) -> bool {
    let policy = process::answer(Command::new("apt-cache").args(["policy", &format!("postgresql-{major}")]));
    policy.is_ok_and(|text| {
        text.lines().any(|line| {
            line.trim_start()
                .strip_prefix("Candidate:")
                .is_some_and(|v| v.trim() != "(none)")
        })
    })
}

pub(crate) fn install(wanted: &[impl AsRef<str>]) -> Result<()> {
    if !process::succeeds(Command::new("dpkg-query").arg("--version")) {
        // Not Debian: what is missing will be named by whoever misses it.
        return Ok(());
    }
    let missing: Vec<&str> = wanted
        .iter()
        .map(AsRef::as_ref)
        .filter(|name| !installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    let root = nix::unistd::geteuid().is_root();
    let sudo = !root && process::succeeds(Command::new("sudo").args(["-n", "true"]));
    if !root && !sudo {
        bail!(
            "packages are missing; run this line, then try again:\n\n  \
               sudo apt-get update && sudo apt-get install -y {packages}\n"
        );
    }
    let apt = |words: &[&str]| {
        let mut command = if sudo {
            let mut command = Command::new("sudo");
            command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            command
        } else {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command
        };
        command
            .args(["-q", "-y", "-o", "DPkg::Lock::Timeout=600"])
            .args(words);
        command
    };
    let log = layout::cache()?.join("prerequisites.log");
    let mut step = Step::begin(&format!("installing {packages}"));
    let mut run = |words: &[&str]| {
        process::logged(apt(words), &log, Duration::from_secs(1800), &mut |line| {
            step.progress(line.unwrap_or_default());
        })
    };
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(&missing);
    // The lists of a fresh machine may be absent or old; try what is there only after refreshing them.
    let refreshed = run(&["update"])?;
    if !run(&install)? {
        let advice = if refreshed {
            ""
        } else {
            "\n(the package lists could not be refreshed either)"
        };
        bail!(
            "apt-get could not install {packages}{advice}\n{}",
            process::tail(&log, 15)
        );
    }
    step.done("");
    Ok(())
}

fn installed(package: &str) -> bool {
    process::answer(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status.starts_with("installed"))
}
