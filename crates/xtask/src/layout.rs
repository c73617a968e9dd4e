//! Where things are: the checkout, its build output, the cache, and directories that live as long as one run.
//!
//! Servers run as user `postgres` when we are root, and that user may not be able to read the checkout. What
//! servers read is therefore kept in the cache or in a run directory, never in the checkout.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cleanup::{self, Debt, Owed};
use crate::process::ServerUser;

pub(crate) fn repository() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .ancestors()
        .nth(2)
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Build output. Each PostgreSQL version has its own, so that changing version does not rebuild the world; the
/// first one shares cargo's default directory with whatever else is built there.
pub(crate) fn target(subdirectory: Option<&str>) -> PathBuf {
    let root =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let root = if root.is_absolute() {
        root
    } else {
        repository().join(root)
    };
    match subdirectory {
        Some(name) => root.join(name),
        None => root,
    }
}

/// What is expensive to fetch and the same for every checkout.
pub(crate) fn cache() -> Result<PathBuf> {
    let path = if let Some(chosen) = std::env::var_os("PG_HA_CACHE") {
        PathBuf::from(chosen)
    } else if nix::unistd::geteuid().is_root() {
        PathBuf::from("/var/cache/pg_ha")
    } else if let Some(home) = std::env::var_os("HOME") {
        PathBuf::from(home).join(".cache/pg_ha")
    } else {
        std::env::temp_dir().join("pg_ha-cache")
    };
    make_readable(&path)?;
    Ok(path)
}

/// A name for this checkout, so that two checkouts on one machine do not share staged copies.
pub(crate) fn checkout_name() -> String {
    // FNV-1a: stable between runs and toolchains, which std's hasher does not promise.
    let hash = repository()
        .to_string_lossy()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{hash:016x}")
}

/// Creates a directory that user `postgres` can enter and read.
pub(crate) fn make_readable(path: &Path) -> Result<()> {
    if !path.is_dir() {
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// A directory of one run, owned by the user that runs the servers, removed when the run ends.
pub(crate) struct RunDirectory {
    pub(crate) path: PathBuf,
    owed: Owed,
}

impl RunDirectory {
    pub(crate) fn create(purpose: &str, user: &ServerUser) -> Result<Self> {
        remove_abandoned(purpose);
        // Short: a Unix socket's path has room for about a hundred bytes.
        let path = std::env::temp_dir().join(format!("pg_ha-{purpose}-{}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let owed = cleanup::owe(Debt::Directory(path.clone()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        if let Some((uid, gid)) = user.ids() {
            chown(&path, Some(uid), Some(gid))?;
        }
        Ok(Self { path, owed })
    }

    /// Leaves the directory behind on purpose.
    pub(crate) fn keep(self) -> PathBuf {
        self.owed.forgive();
        self.path
    }
}

/// Removes what runs left behind that were killed and could not clean up. A demo's directory may be kept on
/// purpose and is looked after by its state file.
fn remove_abandoned(purpose: &str) {
    let start = format!("pg_ha-{purpose}-");
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for directory in entries.map(|entry| entry.path()).filter(|_| purpose != "demo") {
        let name = directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some(Ok(owner)) = name.strip_prefix(&start).map(str::parse::<u32>) else {
            continue;
        };
        if Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        for data in fs::read_dir(&directory).into_iter().flatten().flatten() {
            cleanup::stop_server(&data.path());
        }
        let _ = fs::remove_dir_all(&directory);
    }
}
