//! The state directory: what a node keeps outside its data directory, so that neither a base backup nor pg_rewind
//! carries one node's identity to another. Every file is checksummed, replaced as a whole or only appended to, and
//! on disk before anything relies on it.

pub(crate) mod events;
pub(crate) mod identity;
pub(crate) mod leftovers;
pub(crate) mod seen;
pub(crate) mod spool;
pub(crate) mod subscription_names;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pg_ha_model::record;

use crate::postgres::server;
use crate::settings;

/// What went wrong with a file of the state directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not {action} \"{}\": {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("file \"{}\" is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("another session holds \"{}\"", path.display())]
    Locked { path: PathBuf },
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// The state directory's path: `ha.state_directory`, or the data directory's path with `.ha` appended.
pub(crate) fn directory() -> PathBuf {
    match settings::state_directory() {
        Some(configured) => PathBuf::from(configured),
        None => {
            let mut path = server::data_directory().into_os_string();
            path.push(".ha");
            PathBuf::from(path)
        }
    }
}

/// Makes the state directory unless it is there, for nobody but the server's own user.
pub(crate) fn ensure_directory() -> Result<PathBuf, Error> {
    let directory = directory();
    if !directory.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(Error::io("create directory", &directory))?;
        if let Some(parent) = directory.parent() {
            sync_directory(parent)?;
        }
    }
    Ok(directory)
}

/// The payload of a one-record file; `None` if there is no such file.
fn read_sealed(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let payload = record::unseal(&content).map_err(|reason| Error::Damaged {
        path: path.to_owned(),
        reason: reason.to_string(),
    })?;
    Ok(Some(payload.to_owned()))
}

/// Replaces a one-record file: after a crash there is the old content or the new, never a mixture.
fn write_sealed(path: &Path, payload: &[u8]) -> Result<(), Error> {
    let content = record::seal(payload).map_err(|reason| Error::Damaged {
        path: path.to_owned(),
        reason: reason.to_string(),
    })?;
    let temporary = path.with_extension("new");
    let mut file = private_file()
        .create(true)
        .truncate(true)
        .open(&temporary)
        .map_err(Error::io("create", &temporary))?;
    file.write_all(&content)
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("rename to", path))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Removes a file for good; no error if it is not there.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("flush directory", path))
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// An exclusive lock between processes, held until the value is dropped (or its process ends, however it does).
pub(crate) struct Lock(#[allow(dead_code, reason = "held, never read")] File);

/// Takes the lock that `name` in the state directory stands for, waiting at most `patience`.
fn lock(name: &str, patience: Duration) -> Result<Lock, Error> {
    let path = ensure_directory()?.join(name);
    let file = private_file()
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path }),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
    }
}

/// Makes sure that the state directory is there and can be written to.
pub(crate) fn probe() -> Result<(), Error> {
    let path = ensure_directory()?.join("probe");
    private_file()
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(Error::io("create", &path))?;
    remove(&path)
}
