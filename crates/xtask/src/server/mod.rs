//! Where a version of PostgreSQL comes from: the host's packages, another Debian release's packages with their
//! own C library, or a pinned archive. Whatever the source, the result is the same: server files that can be
//! copied to a private prefix and run there, and a `pg_config` to build against.

mod release;
mod wheel;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::arguments::Arguments;
use crate::{layout, prerequisites, process};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Major(u16);

impl Major {
    /// The one that everything is tested on, and the one to install where there is none.
    pub(crate) const FULL: Self = Self(15);
    /// Also tested in full, with packages of a stable Debian release.
    pub(crate) const SECOND: Self = Self(17);

    pub(crate) fn all() -> impl DoubleEndedIterator<Item = Self> {
        (15..=18).map(Self)
    }

    pub(crate) fn number(self) -> u16 {
        self.0
    }

    /// Whether it comes from an archive that moves or is not a distribution's: then its absence is no failure.
    pub(crate) fn optional(self) -> bool {
        self != Self::FULL && self != Self::SECOND
    }
}

impl fmt::Display for Major {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for Major {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::all()
            .find(|major| major.to_string() == text)
            .with_context(|| format!("--pg takes 15, 16, 17 or 18, not {text:?}"))
    }
}

/// A version of the server that is ready to be built against and copied.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) major: Major,
    pub(crate) version: String,
    pub(crate) origin: String,
    pub(crate) pg_config: PathBuf,
    /// (what, where to under a prefix)
    trees: Vec<(PathBuf, PathBuf)>,
}

impl Server {
    fn new(major: Major, origin: &str, pg_config: PathBuf, trees: Vec<(PathBuf, PathBuf)>) -> Result<Self> {
        let version = process::answer(Command::new(&pg_config).arg("--version"))?;
        let version = version.split_whitespace().nth(1).unwrap_or("?").to_owned();
        Ok(Self {
            major,
            version,
            origin: origin.to_owned(),
            pg_config,
            trees,
        })
    }
}

/// The version asked for, else the newest on the host that can be built against, else the one to install.
pub(crate) fn chosen(arguments: &Arguments) -> Result<Major> {
    Ok(arguments.pg.or_else(newest_on_host).unwrap_or(Major::FULL))
}

pub(crate) fn newest_on_host() -> Option<Major> {
    Major::all().rev().find(|major| on_host(*major).is_some())
}

/// The host's packages in Debian's layout, with headers to build against.
pub(crate) fn on_host(major: Major) -> Option<Server> {
    debian_layout(Path::new("/"), major, "host packages").ok()
}

fn debian_layout(root: &Path, major: Major, origin: &str) -> Result<Server> {
    let lib = PathBuf::from(format!("lib/postgresql/{major}"));
    let share = PathBuf::from(format!("share/postgresql/{major}"));
    let pg_config = root.join("usr").join(&lib).join("bin/pg_config");
    let headers = root.join(format!("usr/include/postgresql/{major}/server/postgres.h"));
    for needed in [
        &pg_config,
        &headers,
        &root.join("usr").join(&lib).join("bin/postgres"),
    ] {
        if !needed.exists() {
            bail!("{} is missing", needed.display());
        }
    }
    let trees = vec![
        (root.join("usr").join(&lib), lib.clone()),
        (root.join("usr").join(&share), share.clone()),
    ];
    Server::new(major, origin, pg_config, trees)
}

/// Makes a version ready, installing or fetching what is missing.
pub(crate) fn prepare(major: Major) -> Result<Server> {
    prerequisites::ensure(major)?;
    if let Some(server) = on_host(major) {
        return Ok(server);
    }
    match release::codename(major) {
        Some(codename) => release::prepare(major, codename),
        None => wheel::prepare(major),
    }
    .with_context(|| format!("PostgreSQL {major} is not on this machine and could not be fetched"))
}

/// A copy of a server's files that belongs to us.
#[derive(Debug, Clone)]
pub(crate) struct Prefix {
    pub(crate) root: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) major: Major,
}

impl Prefix {
    pub(crate) fn new(root: &Path, major: Major) -> Self {
        Self {
            root: root.to_owned(),
            bin: root.join(format!("lib/postgresql/{major}/bin")),
            major,
        }
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// Copies a server's files under `root`, unless a copy of the same files is there already.
pub(crate) fn copy_to(server: &Server, root: &Path) -> Result<Prefix> {
    let prefix = Prefix::new(root, server.major);
    let stamp = root.join("copied-from");
    let source = format!(
        "{} {} {}\n",
        server.pg_config.display(),
        server.version,
        modified(&server.pg_config)
    );
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == source) {
        return Ok(prefix);
    }
    if root.exists() {
        std::fs::remove_dir_all(root)?;
    }
    layout::make_readable(root)?;
    for (from, to) in &server.trees {
        let to = root.join(to);
        layout::make_readable(&to)?;
        process::answer(
            Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(from.join("."))
                .arg(&to),
        )?;
    }
    // Only just-in-time compilation of built-in functions reads it, and it is most of the copy.
    let _ = std::fs::remove_dir_all(root.join(format!("lib/postgresql/{}/lib/bitcode", server.major)));
    std::fs::write(&stamp, source)?;
    Ok(prefix)
}

fn modified(path: &Path) -> u64 {
    std::fs::metadata(path)
        .and_then(|data| data.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs())
}
