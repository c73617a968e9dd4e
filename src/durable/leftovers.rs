//! What has to be undone on other nodes: slots that a subscription made there, and nodes that became known there.
//!
//! Noted before anything is done on the provider, taken out once the subscription is committed or what was done is
//! undone. So a server that dies in between, or a provider that does not answer, leaves a note instead of a slot that
//! nobody knows of; the cleaner works the notes off (`network::leftovers`). The connection strings in it have
//! their passwords, as the catalog's have: the file is readable by the server's own user alone.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, directory, ensure_directory, lock, read_sealed, write_sealed};
use crate::postgres::error::Report;
use crate::postgres::server;

/// Older notes give way to newer ones above this number.
const MAX_NOTES: usize = 256;

/// One thing to undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leftover {
    pub(crate) dsn: String,
    pub(crate) slot: String,
    /// Whether a slot of that name, if there is one, is the one to drop. Before, it would be somebody else's.
    pub(crate) slot_made: bool,
    /// Uids of the nodes that the provider should forget.
    pub(crate) forget: Vec<String>,
    /// The session that may still commit what this undoes; none once it is known that it will not.
    owner: Option<Owner>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    process_id: i32,
    server_started: i64,
}

impl Leftover {
    /// Whether the transaction that made the note may still be open.
    fn is_owned(&self) -> bool {
        self.owner.is_some_and(|owner| {
            owner.server_started == server::started_at() && server::is_backend(owner.process_id)
        })
    }
}

fn path() -> PathBuf {
    directory().join("leftovers")
}

/// Notes what this session's transaction is about to do. In place of an older note about the same slot.
pub(crate) fn begin(dsn: &str, slot: &str, forget: &[String]) -> Result<(), Error> {
    add(Leftover {
        dsn: dsn.to_owned(),
        slot: slot.to_owned(),
        slot_made: false,
        forget: forget.to_vec(),
        owner: Some(Owner {
            process_id: server::process_id(),
            server_started: server::started_at(),
        }),
    })
}

/// Notes, between [`begin`] and the end of the transaction, whether the slot has been, or is being, made.
pub(crate) fn set_slot_made(dsn: &str, slot: &str, made: bool) -> Result<(), Error> {
    change(|notes| {
        if let Some(note) = notes.iter_mut().find(|note| note.dsn == dsn && note.slot == slot) {
            note.slot_made = made;
        }
    })
}

/// The note about a slot.
pub(crate) fn find(dsn: &str, slot: &str) -> Option<Leftover> {
    read()
        .into_iter()
        .find(|note| note.dsn == dsn && note.slot == slot)
}

/// Notes that this could not be undone and is to be tried again.
pub(crate) fn try_later(note: Leftover) {
    log(add(Leftover { owner: None, ..note }));
}

/// Notes that a slot whose subscription is gone could not be dropped and is to be tried again.
pub(crate) fn try_slot_later(dsn: &str, slot: &str) {
    log(add(Leftover {
        dsn: dsn.to_owned(),
        slot: slot.to_owned(),
        slot_made: true,
        forget: Vec::new(),
        owner: None,
    }));
}

/// Whether there is nothing to undo.
pub(crate) fn is_empty() -> bool {
    read().is_empty()
}

/// This has been undone.
pub(crate) fn done(dsn: &str, slot: &str) {
    log(change(|notes| {
        notes.retain(|note| note.dsn != dsn || note.slot != slot)
    }));
}

/// What may be undone now. Notes about slots in `in_use` are out of date; those about slots that an open transaction
/// is making have to wait.
pub(crate) fn due(in_use: &[String]) -> Vec<Leftover> {
    let notes = read();
    let owned: Vec<String> = notes
        .iter()
        .filter(|note| note.is_owned())
        .map(|note| note.slot.clone())
        .collect();
    notes
        .into_iter()
        .filter(|note| !owned.contains(&note.slot) && !in_use.contains(&note.slot))
        .collect()
}

/// Takes out the notes about slots in `in_use`, whose subscriptions were committed after all.
pub(crate) fn forget_used(in_use: &[String]) {
    if read().iter().any(|note| in_use.contains(&note.slot)) {
        log(change(|notes| {
            notes.retain(|note| !in_use.contains(&note.slot) || note.is_owned())
        }));
    }
}

fn read() -> Vec<Leftover> {
    read_sealed(&path())
        .ok()
        .flatten()
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .unwrap_or_default()
}

fn add(note: Leftover) -> Result<(), Error> {
    change(|notes| {
        notes.retain(|known| known.dsn != note.dsn || known.slot != note.slot);
        notes.push(note);
        let surplus = notes.len().saturating_sub(MAX_NOTES);
        notes.drain(..surplus);
    })
}

fn change(change: impl FnOnce(&mut Vec<Leftover>)) -> Result<(), Error> {
    ensure_directory()?;
    let _lock = lock("leftovers.lock", Duration::from_secs(2))?;
    let mut notes = read();
    change(&mut notes);
    let payload = serde_json::to_vec(&notes).map_err(|error| Error::Damaged {
        path: path(),
        reason: error.to_string(),
    })?;
    write_sealed(&path(), &payload)
}

fn log(result: Result<(), Error>) {
    if let Err(error) = result {
        Report::from(error).log();
    }
}
