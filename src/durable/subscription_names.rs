//! The names of the local subscriptions, for messages of sessions in *other* databases: DROP DATABASE is run from
//! one, and cannot look into the catalog of the database it drops. Nothing else relies on this file.

use std::path::PathBuf;
use std::time::Duration;

use super::{Error, directory, ensure_directory, lock, read_sealed, write_sealed};
use crate::postgres::error::Report;

fn path() -> PathBuf {
    directory().join("subscriptions")
}

/// The names, as far as is known.
pub(crate) fn list() -> Vec<String> {
    read_sealed(&path())
        .ok()
        .flatten()
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .unwrap_or_default()
}

/// Notes that a subscription was created.
pub(crate) fn add(name: &str) {
    change(|names| {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    });
}

/// Notes that a subscription was dropped.
pub(crate) fn remove(name: &str) {
    change(|names| names.retain(|known| known != name));
}

/// Notes that there are none.
pub(crate) fn clear() {
    change(Vec::clear);
}

fn change(change: impl FnOnce(&mut Vec<String>)) {
    if let Err(error) = try_change(change) {
        Report::from(error).log();
    }
}

fn try_change(change: impl FnOnce(&mut Vec<String>)) -> Result<(), Error> {
    ensure_directory()?;
    let _lock = lock("subscriptions.lock", Duration::from_secs(1))?;
    let mut names = list();
    change(&mut names);
    let payload = serde_json::to_vec(&names).map_err(|error| Error::Damaged {
        path: path(),
        reason: error.to_string(),
    })?;
    write_sealed(&path(), &payload)
}
