//! Applying one change at a time through the executor's simple-relation API.
//!
//! A [`target::Target`] is what is known of a local table for as long as its definition does not change; an
//! [`table::OpenTable`] is that table opened in the current transaction. Neither decides anything: whether a change
//! is applied is the caller's judgement of what was found.

mod find;
mod partitioned;
pub(crate) mod table;
pub(crate) mod target;

use std::collections::HashSet;

use pg_ha_replication::conflict::{Action, Decision};
use pgrx::pg_sys;

use super::origin::Origin;
use super::version;

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
        "a row that entered the filter of table {table} came without its value of column \"{column}\", which is stored \
         out of line and did not change; give the table REPLICA IDENTITY FULL on the provider, and insert this row here \
         by hand"
    )]
    Incomplete { table: String, column: String },
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
}

/// A target, opened in the current transaction.
pub(crate) enum Opened {
    Plain(Box<table::OpenTable>),
    Partitioned(Box<partitioned::PartitionedTable>),
}

impl Opened {
    /// Opens a target that [`lock_table`] has locked.
    pub(crate) fn open(target: &target::Target) -> Opened {
        if target.partitioned {
            Opened::Partitioned(Box::new(partitioned::PartitionedTable::open(target)))
        } else {
            Opened::Plain(Box::new(table::OpenTable::open(target, true)))
        }
    }

    /// Applies one change, see [`table::OpenTable::apply`].
    pub(crate) fn apply(
        &mut self,
        target: &target::Target,
        change: &table::RowChange<'_, '_>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
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
    // SAFETY: outside a transaction; the applier's loop pairs it with commit or abort.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
    }
}

/// Commits under the origin of the remote transaction, with its position and time, atomically with the data. The
/// result is where the local commit record ends (it is durable only once the WAL is flushed that far).
///
/// The session must have set up `origin` ([`Origin::use_in_session`]).
pub(crate) fn commit(origin: Origin, origin_lsn: u64, commit_ts: i64) -> u64 {
    // SAFETY: in a transaction, with the origin set up in this session; the two variables are what the commit record
    // and the commit timestamp take (replication/origin.h).
    unsafe {
        pg_sys::replorigin_session_origin = origin.0;
        pg_sys::replorigin_session_origin_lsn = origin_lsn;
        pg_sys::replorigin_session_origin_timestamp = commit_ts;
        pg_sys::CommitTransactionCommand();
        Origin::stamp_nothing();
        pg_sys::XactLastCommitEnd
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

/// Truncates tables as one command.
///
/// # Errors
/// PostgreSQL's own, as panics.
pub(crate) fn truncate(tables: &[&target::Target], cascade: bool, restart_sequences: bool) {
    // SAFETY: in a transaction; the relations are opened with the lock that TRUNCATE takes, and closed again with
    // the locks kept until commit.
    unsafe {
        let (mut relations, mut oids, mut logged) = (
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            core::ptr::null_mut(),
        );
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        // A partitioned table means all that is below it.
        let lock = pg_sys::AccessExclusiveLock as i32;
        let mut wanted: Vec<pg_sys::Oid> = Vec::new();
        let mut met = HashSet::new();
        for table in tables {
            let below = if table.partitioned {
                partitioned::inheritors(table.oid, lock)
            } else {
                vec![table.oid]
            };
            for oid in below {
                if met.insert(oid) {
                    wanted.push(oid);
                }
            }
        }
        for oid in &wanted {
            let relation = pg_sys::table_open(*oid, lock);
            relations = pg_sys::lappend(relations, relation.cast());
            oids = pg_sys::lappend_oid(oids, *oid);
            if version::is_logically_logged(relation) {
                logged = pg_sys::lappend_oid(logged, *oid);
            }
        }
        let behavior = if cascade {
            pg_sys::DropBehavior::DROP_CASCADE
        } else {
            pg_sys::DropBehavior::DROP_RESTRICT
        };
        let opened: Vec<pg_sys::Relation> = (0..wanted.len())
            .map(|index| pg_sys::list_nth(relations, index as i32).cast())
            .collect();
        version::truncate(relations, oids, logged, behavior, restart_sequences);
        for relation in opened {
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
        }
        pg_sys::PopActiveSnapshot();
        pg_sys::CommandCounterIncrement();
    }
}

/// True where the decision writes to the row that was found.
pub(crate) fn writes(action: Action) -> bool {
    !matches!(action, Action::Skip)
}
