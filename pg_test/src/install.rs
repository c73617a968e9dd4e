//! The server's files: where the binaries are, who runs them, what they know.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};

use crate::cleanup::{self, Registration, Resource};
use crate::template;

/// Names a second prefix, of another major version.
const OTHER: &str = "PG_HA_INSTALL_OTHER";

/// The unprivileged account that servers run under when the harness itself is root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
}

#[derive(Debug)]
pub(crate) struct Install {
    /// The binaries' directory, as the servers see it.
    bin: PathBuf,
    chroot: Option<PathBuf>,
    account: Option<Account>,
    pub(crate) major: u32,
    /// Whether pg_ha's library is among the server's.
    pub(crate) has_extension: bool,
    /// Every setting that this server knows.
    settings: BTreeSet<String>,
    pub(crate) pgbench: Option<PathBuf>,
    /// Everything a run writes is below this directory.
    pub(crate) base: PathBuf,
    pub(crate) keep: bool,
    /// A server of another major version, for clusters of both.
    pub(crate) other: Option<Arc<Install>>,
    registration: Option<Registration>,
}

impl Install {
    /// What the environment names, with the server of another version if it names one.
    pub(crate) fn find(keep: bool) -> Result<Self> {
        let mut install = Self::at("PG_HA_INSTALL", None, keep)?;
        if env::var_os(OTHER).is_some_and(|value| !value.is_empty()) {
            let other = Self::at(OTHER, Some(&install.base.join("other")), keep)?;
            if other.major == install.major || !other.has_extension {
                bail!(
                    "{OTHER} must hold pg_ha on another major version than {}, and holds {}",
                    install.major,
                    other.major
                );
            }
            install.other = Some(Arc::new(other));
        }
        Ok(install)
    }

    /// What the variable names, or the host's own server; everything is written below `base`, or a new directory.
    fn at(variable: &str, base: Option<&Path>, keep: bool) -> Result<Self> {
        let chroot = env::var_os("PG_HA_CHROOT")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from);
        let prefix = env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
        let outside = |path: &Path| match &chroot {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        };
        let wanted = prefix.clone().unwrap_or_else(|| PathBuf::from("/usr"));
        let bin = find_binaries(&wanted, &outside)?;
        let is_root = nix::unistd::geteuid().is_root();
        let account = if is_root {
            Some(find_account(chroot.as_deref())?)
        } else {
            None
        };
        if chroot.is_some() && !is_root {
            bail!("PG_HA_CHROOT needs root: chroot(2) is not for ordinary users");
        }

        let temp = outside(Path::new("/tmp"));
        let temp = if chroot.is_none() { env::temp_dir() } else { temp };
        let base = base.map_or_else(
            || temp.join(format!("pgha-{}", std::process::id())),
            Path::to_owned,
        );
        fs::create_dir(&base).with_context(|| format!("creating {}", base.display()))?;
        fs::set_permissions(&base, fs::Permissions::from_mode(0o755))?;
        let registration = Some(cleanup::register("", Resource::Directory(base.clone())));

        let mut install = Self {
            major: 0,
            has_extension: has_library(&outside(&wanted)),
            settings: BTreeSet::new(),
            pgbench: find_pgbench(&outside(&bin), chroot.is_some()),
            bin,
            chroot,
            account,
            base,
            keep,
            other: None,
            registration,
        };
        if prefix.is_some() && !install.has_extension {
            bail!(
                "{variable}={} holds no pg_ha library: build and install the extension there",
                wanted.display()
            );
        }
        install.major = major_version(&run(install.command("postgres", None).arg("--version"))?)?;
        install.settings = run(install.command("postgres", None).arg("--describe-config"))?
            .lines()
            .filter_map(|line| line.split('\t').next())
            .map(str::to_owned)
            .collect();
        template::create(&install)?;
        Ok(install)
    }

    pub(crate) fn knows(&self, setting: &str) -> bool {
        self.settings.contains(setting)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.account.is_some()
    }

    /// A path as the servers see it.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        match &self.chroot {
            Some(root) => Path::new("/").join(path.strip_prefix(root).unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// A path of the servers' world as we see it.
    pub(crate) fn outside(&self, path: &Path) -> PathBuf {
        match &self.chroot {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// One of the server's programs: under the servers' account, in its root directory and network namespace.
    /// Each wrapper replaces itself by the next program, so the child's process id is the server's.
    pub(crate) fn command(&self, program: &str, namespace: Option<&str>) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some(name) = namespace {
            words.extend(["ip", "netns", "exec", name].map(str::to_owned));
        }
        if let (Some(root), Some(Account { uid, gid })) = (&self.chroot, self.account) {
            words.extend([
                "chroot".to_owned(),
                format!("--userspec={uid}:{gid}"),
                "--groups=".to_owned(),
            ]);
            words.push(root.display().to_string());
        } else if let (Some(_), Some(Account { uid, gid })) = (namespace, self.account) {
            words.extend([
                "setpriv".to_owned(),
                format!("--reuid={uid}"),
                format!("--regid={gid}"),
            ]);
            words.push("--clear-groups".to_owned());
        }
        words.push(self.bin.join(program).display().to_string());

        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir("/").stdin(Stdio::null());
        // Each server in a process group of its own: Ctrl-C is ours to handle.
        command.process_group(0);
        if let (None, None, Some(Account { uid, gid })) = (namespace, &self.chroot, self.account) {
            command.uid(uid).gid(gid);
        }
        for name in [
            "RUST_BACKTRACE",
            "RUST_LIB_BACKTRACE",
            // The caller's home is not the servers': libpq in them would look for certificates in it, and fail.
            "HOME",
            "PGDATA",
            "PGHOST",
            "PGPORT",
            "PGUSER",
            "PGDATABASE",
        ] {
            // A backtrace in the DETAIL of every error would hide what a person is meant to read.
            command.env_remove(name);
        }
        command.env("LC_ALL", "C");
        command
    }

    /// Gives a file or directory to the servers' account.
    pub(crate) fn hand_over(&self, path: &Path) -> Result<()> {
        if let Some(Account { uid, gid }) = self.account {
            chown(path, Some(uid), Some(gid)).with_context(|| format!("chown of {}", path.display()))?;
        }
        Ok(())
    }

    /// A directory that belongs to the servers and to nobody else.
    pub(crate) fn private_directory(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        self.hand_over(path)
    }

    /// Mount options that make a file system's root directory the servers' own.
    pub(crate) fn mount_owner(&self) -> String {
        match self.account {
            Some(Account { uid, gid }) => format!("uid={uid},gid={gid},mode=700"),
            None => "mode=700".to_owned(),
        }
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        cleanup::release(&Resource::Directory(self.base.clone()), self.keep);
        self.registration.take();
    }
}

fn find_binaries(prefix: &Path, outside: &dyn Fn(&Path) -> PathBuf) -> Result<PathBuf> {
    let mut candidates: Vec<(u32, PathBuf)> = Vec::new();
    let versions = prefix.join("lib/postgresql");
    if let Ok(listing) = fs::read_dir(outside(&versions)) {
        for entry in listing.flatten() {
            let name = entry.file_name();
            if let Some(major) = name.to_str().and_then(|name| name.parse().ok()) {
                candidates.push((major, versions.join(name).join("bin")));
            }
        }
    }
    candidates.push((0, prefix.join("bin")));
    candidates.sort();
    candidates
        .into_iter()
        .rev()
        .map(|(_, bin)| bin)
        .find(|bin| outside(&bin.join("initdb")).exists() && outside(&bin.join("postgres")).exists())
        .ok_or_else(|| {
            anyhow!(
                "no PostgreSQL server below {}: looked for lib/postgresql/*/bin and bin",
                prefix.display()
            )
        })
}

/// pg_ha.so, wherever the layout of this installation puts loadable libraries.
fn has_library(prefix: &Path) -> bool {
    let mut places = vec![prefix.join("lib"), prefix.join("lib/postgresql")];
    if let Ok(listing) = fs::read_dir(prefix.join("lib/postgresql")) {
        places.extend(listing.flatten().map(|entry| entry.path().join("lib")));
    }
    places.iter().any(|place| place.join("pg_ha.so").exists())
}

/// The installation's own pgbench, or the host's: it only speaks SQL, any version will do.
fn find_pgbench(bin: &Path, in_chroot: bool) -> Option<PathBuf> {
    let own = bin.join("pgbench");
    if own.exists() && !in_chroot {
        return Some(own);
    }
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("bin/pgbench"))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop()
}

fn find_account(chroot: Option<&Path>) -> Result<Account> {
    let file = chroot.unwrap_or(Path::new("/")).join("etc/passwd");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let account = text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            ["postgres", _, uid, gid, ..] => Some(Account {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            }),
            _ => None,
        }
    });
    account.ok_or_else(|| {
        anyhow!(
            "servers refuse to run as root, and {} has no user postgres",
            file.display()
        )
    })
}

fn major_version(answer: &str) -> Result<u32> {
    // "postgres (PostgreSQL) 15.20 (Debian …)", "… 18devel"
    let version = answer.split_whitespace().nth(2).unwrap_or_default();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .with_context(|| format!("no version number in {answer:?}"))
}

/// Runs a command to its end and returns what it printed; a failure carries both outputs.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?} ended with {}: {}{}",
            output.status,
            stderr.trim_end(),
            stdout.trim_end()
        );
    }
    Ok(stdout)
}
