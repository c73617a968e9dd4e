//! Who this server is: the file `identity` in the state directory.
//!
//! The catalog describes nodes, never "who am I", since a base backup carries it to other servers. A node exists
//! here if, and only if, the identity's uid is the uid of a row of `ha.node_catalog` in the identity's database.
//! `node_create` writes the file before its commit and `node_drop` removes it after; a crash in between leaves an
//! identity without a row (no node) or none with a row (no node either, `node_drop` takes the row away).

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, Lock, directory, ensure_directory, lock, read_sealed, remove, write_sealed};
use crate::postgres::error::Report;
use crate::postgres::xact;

/// The version of the file's content.
pub(crate) const FORMAT: u32 = 1;

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) format: u32,
    pub(crate) node_name: String,
    pub(crate) node_id: i32,
    pub(crate) node_uid: String,
    /// The origin: the id of the node that founded the group.
    pub(crate) group_id: i32,
    pub(crate) group_name: String,
    /// The name at the time; `database_oid` counts, since databases can be renamed.
    pub(crate) database: String,
    pub(crate) database_oid: u32,
    pub(crate) system_identifier: String,
    pub(crate) created_at: String,
}

/// What the open transaction will make of the file.
#[derive(Debug, Clone)]
enum Pending {
    Create(Identity),
    Drop,
}

thread_local! {
    static PENDING: RefCell<Option<Pending>> = const { RefCell::new(None) };
}

fn path() -> PathBuf {
    directory().join("identity")
}

/// The identity as the open transaction sees it.
pub(crate) fn current() -> Result<Option<Identity>, Error> {
    match PENDING.with_borrow(Clone::clone) {
        Some(Pending::Create(identity)) => Ok(Some(identity)),
        Some(Pending::Drop) => Ok(None),
        None => on_disk(),
    }
}

/// The identity that was committed last.
pub(crate) fn on_disk() -> Result<Option<Identity>, Error> {
    let path = path();
    let Some(payload) = read_sealed(&path)? else {
        return Ok(None);
    };
    match serde_json::from_slice::<Identity>(&payload) {
        Ok(identity) if identity.format == FORMAT => Ok(Some(identity)),
        Ok(identity) => Err(Error::Damaged {
            path,
            reason: format!("its format {} is not {FORMAT}", identity.format),
        }),
        Err(error) => Err(Error::Damaged {
            path,
            reason: error.to_string(),
        }),
    }
}

/// Whether the open transaction has created or dropped the local node already.
pub(crate) fn is_pending() -> bool {
    PENDING.with_borrow(Option::is_some)
}

/// Keeps other sessions, also those in other databases of this server, from creating or dropping a node.
pub(crate) fn lock_for_change() -> Result<Lock, Error> {
    lock("identity.lock", Duration::from_millis(200))
}

/// Makes `identity` this server's when the open transaction commits.
pub(crate) fn create_at_commit(identity: Identity, lock: Lock) {
    set_pending(Some(Pending::Create(identity.clone())));
    let written = std::rc::Rc::new(std::cell::Cell::new(false));
    let was_written = written.clone();
    xact::before_commit(move || {
        written.set(true);
        write(&identity).map_err(Report::from)
    });
    xact::on_abort(move || {
        set_pending(None);
        if was_written.get()
            && let Err(error) = remove(&path())
        {
            Report::from(error).warn();
        }
    });
    xact::after_commit(move || {
        set_pending(None);
        drop(lock);
    });
}

/// Ends this server's identity when the open transaction commits.
pub(crate) fn drop_at_commit(lock: Lock) {
    set_pending(Some(Pending::Drop));
    xact::on_abort(|| set_pending(None));
    xact::after_commit(move || {
        set_pending(None);
        if let Err(error) = remove(&path()) {
            Report::from(error)
                .hint("The node is dropped. Remove the file, or the next ha.node_create replaces it.")
                .warn();
        }
        drop(lock);
    });
}

fn set_pending(pending: Option<Pending>) {
    PENDING.with_borrow_mut(|current| *current = pending);
}

fn write(identity: &Identity) -> Result<(), Error> {
    let file = ensure_directory()?.join("identity");
    let payload = serde_json::to_vec(identity).map_err(|error| Error::Damaged {
        path: file.clone(),
        reason: error.to_string(),
    })?;
    write_sealed(&file, &payload)
}
