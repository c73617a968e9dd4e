//! Applying one change at a time through the executor's simple-relation API.
//!
//! A [`target::Target`] is what is known of a local table for as long as its definition does not change; an
//! [`table::OpenTable`] is that table opened in the current transaction. Neither decides anything: whether a change
//! is applied is the caller's judgement of what was found.

pub(crate) mod acting;
mod compose;
pub(crate) mod context;
mod deferred;
mod find;
mod partitioned;
pub(crate) mod table;
pub(crate) mod target;
pub(crate) mod told;
mod truncate;
pub(crate) mod versions;
mod write;

pub(crate) use truncate::truncate;

use pg_ha_replication::conflict::{Action, Decision};
use pgrx::pg_sys;

use super::origin::Origin;

/// What a change cannot be applied to, or with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("table {0} does not exist on this node")]
    MissingTable(String),
    #[error("{0} is not a table that changes can be applied to (it is a {1})")]
    NotATable(String, &'static str),
    #[error("table {table} has no column \"{column}\" on this node")]
    MissingColumn { table: String, column: String },
    #[error("column \"{column}\" of table {table} is {local} here and {remote} on the provider")]
    TypeMismatch {
        table: String,
        column: String,
        local: String,
        remote: String,
    },
    #[error("column \"{column}\" of table {table}: a value of {length} bytes does not fit its type")]
    BadValue {
        table: String,
        column: String,
        length: usize,
    },
    #[error(
        "table {0} has no unique index on this node over what the provider sends as its key, so rows cannot be found"
    )]
    NoKey(String),
    #[error(
        "a row of table {table} is to be inserted and came without its value of column \"{column}\", which is stored out \
         of line and did not change"
    )]
    Incomplete { table: String, column: String },
    #[error(
        "row security of table {table} applies to \"{user}\", as whom its changes are applied, and policies cannot be \
         applied to replicated changes: let its owner bypass them (ALTER TABLE ... NO FORCE ROW LEVEL SECURITY), or set \
         the subscription's option run_as to subscription_owner"
    )]
    RowSecurity { table: String, user: String },
    #[error(
        "\"{user}\", as whom changes of table {table} are applied, has no right to {what} there: GRANT it, or set the \
         subscription's option run_as to subscription_owner"
    )]
    NotAllowed {
        table: String,
        user: String,
        what: &'static str,
    },
    #[error(
        "table {table} has deferred triggers or constraints and belongs to \"{user}\", and the same transaction changes \
         such a table of \"{other}\": this server cannot check both as their owners; set the subscription's option \
         run_as to subscription_owner"
    )]
    DeferredOwners {
        table: String,
        user: String,
        other: String,
    },
    #[error("the provider sent a change of table number {0} without describing that table first")]
    UnknownTable(u32),
}

/// What stands locally where a change wants to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    Missing,
    /// Written by this very transaction.
    Own,
    /// Written by a committed transaction: its commit timestamp, where the store still has it, and the number of its
    /// replication origin (0 = local).
    Row {
        timestamp: Option<i64>,
        origin: u16,
    },
    /// Brought by a copy, with its true version: when it was committed, and the id of the node that did.
    Versioned {
        timestamp: i64,
        node: u16,
    },
}

/// A target, opened in the current transaction.
pub(crate) enum Opened {
    Plain(Box<table::OpenTable>),
    Partitioned(Box<partitioned::PartitionedTable>),
}

impl Opened {
    /// Opens a target that [`lock_table`] has locked.
    ///
    /// # Errors
    /// See [`table::OpenTable::open`].
    pub(crate) fn open(target: &target::Target) -> Result<Opened, ApplyError> {
        if target.partitioned {
            Ok(Opened::Partitioned(Box::new(
                partitioned::PartitionedTable::open(target)?,
            )))
        } else {
            Ok(Opened::Plain(Box::new(table::OpenTable::open(target, true)?)))
        }
    }

    /// Applies one change, see [`table::OpenTable::apply`].
    pub(crate) fn apply(
        &mut self,
        target: &target::Target,
        change: &table::RowChange<'_, '_>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
        let _during = context::During(|| format!("{} table {}", change.verb(), target.name));
        match self {
            Opened::Plain(table) => table.apply(target, change, judge),
            Opened::Partitioned(table) => table.apply(target, change, judge),
        }
    }

    /// Closes it; locks stay until the end of the transaction.
    pub(crate) fn close(self) {
        match self {
            Opened::Plain(table) => table.close(),
            Opened::Partitioned(table) => table.close(),
        }
    }
}

/// Starts the local transaction of a remote one.
pub(crate) fn begin() {
    acting::forget_deferred();
    // SAFETY: outside a transaction; the applier's loop pairs it with commit or abort.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
    }
}

/// Keeps other appliers from an origin until [`release`], or the end of this process: only between two of its
/// transactions can they tell which of them has applied what. False if one has it and `wait` is not set; the server sees
/// deadlocks. In a transaction.
pub(crate) fn claim(origin: u16, wait: bool) -> bool {
    let tag = claim_tag(origin);
    // SAFETY: in a transaction; the lock is the session's.
    let taken = unsafe { pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, true, !wait) };
    taken != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

/// Gives a claim back.
pub(crate) fn release(origin: u16) {
    let tag = claim_tag(origin);
    // SAFETY: this session has the lock.
    unsafe {
        pg_sys::LockRelease(&tag, pg_sys::ExclusiveLock as i32, true);
    }
}

fn claim_tag(origin: u16) -> pg_sys::LOCKTAG {
    // Users' advisory locks have 1 or 2 in the last field.
    pg_sys::LOCKTAG {
        // SAFETY: a variable of this process.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: 0x6861,
        locktag_field3: u32::from(origin),
        locktag_field4: 3,
        locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
    }
}

/// Commits under the origin of the remote transaction, with its position and time, atomically with the data. The
/// result is where the local commit record ends (it is durable only once the WAL is flushed that far); None if nothing
/// was written: then there is no such record, and the origin's progress is what it was.
///
/// The session must have set up `origin` ([`Origin::use_in_session`]).
pub(crate) fn commit(origin: Origin, origin_lsn: u64, commit_ts: i64) -> Option<u64> {
    acting::fire_deferred();
    // SAFETY: in a transaction, with the origin set up in this session; the two variables are what the commit record
    // and the commit timestamp take (replication/origin.h).
    unsafe {
        let wrote = u32::from(pg_sys::GetTopTransactionIdIfAny()) != 0;
        pg_sys::replorigin_session_origin = origin.0;
        pg_sys::replorigin_session_origin_lsn = origin_lsn;
        pg_sys::replorigin_session_origin_timestamp = commit_ts;
        pg_sys::CommitTransactionCommand();
        Origin::stamp_nothing();
        wrote.then_some(pg_sys::XactLastCommitEnd)
    }
}

/// Gives up whatever transaction is open, after an error.
pub(crate) fn abort() {
    // From 16 on an abort advances the session's origin to the position that is set: a transaction that failed in its
    // own commit would count as applied, and be lost.
    Origin::stamp_nothing();
    // SAFETY: safe in any transaction state; it is what PostgreSQL's own main loops do after an error.
    unsafe {
        pg_sys::AbortOutOfAnyTransaction();
    }
}

/// Locks a table as changes of its rows do, until the end of the transaction; what changed it before becomes known.
pub(crate) fn lock_table(oid: pg_sys::Oid) {
    // SAFETY: in a transaction; locking an oid that is gone is harmless.
    unsafe { pg_sys::LockRelationOid(oid, pg_sys::RowExclusiveLock as i32) };
}

/// True where the decision writes to the row that was found.
pub(crate) fn writes(action: Action) -> bool {
    !matches!(action, Action::Skip)
}
