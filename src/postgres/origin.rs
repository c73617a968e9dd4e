//! Replication origins: the server's own bookkeeping of how far each origin has been applied, atomic with the data.

use std::cell::Cell;
use std::ffi::CString;

use pg_ha_replication::origin_name::{OriginKind, OriginName};
use pgrx::pg_sys;

use super::version;

thread_local! {
    /// The origin that this process has set up.
    static SET_UP: Cell<Option<Origin>> = const { Cell::new(None) };
}

/// Lets go of the origin that is set up, if any.
fn leave_session() {
    if SET_UP.take().is_some() {
        // SAFETY: there is one.
        unsafe { pg_sys::replorigin_session_reset() };
    }
}

/// A replication origin of this server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Origin(pub(crate) u16);

impl Origin {
    /// Looks an origin up by name. In a transaction.
    pub(crate) fn find(name: &str) -> Option<Origin> {
        let name = CString::new(name).ok()?;
        // SAFETY: a catalog look-up by a nul-terminated name.
        let number = unsafe { pg_sys::replorigin_by_name(name.as_ptr(), true) };
        (number != 0).then_some(Origin(number))
    }

    /// Makes one. In a transaction; needs no superuser in a worker.
    pub(crate) fn create(name: &str) -> Option<Origin> {
        let name = CString::new(name).ok()?;
        // SAFETY: nul-terminated name; raises where it exists.
        Some(Origin(unsafe { pg_sys::replorigin_create(name.as_ptr()) }))
    }

    /// Its name; None when there is no such origin. In a transaction.
    pub(crate) fn name(self) -> Option<String> {
        let mut name = core::ptr::null_mut();
        // SAFETY: a catalog look-up; the name is palloc'd text.
        unsafe {
            pg_sys::replorigin_by_oid(self.0, true, &mut name)
                .then(|| core::ffi::CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    /// Whether it is the one that rows copied from a node bear; None when it is none of ours, whose number may stand for
    /// another origin later. In a transaction.
    pub(crate) fn is_of_copies(self) -> Option<bool> {
        let name = OriginName::parse(&self.name()?)?;
        Some(name.kind == OriginKind::Copy)
    }

    /// How far it has been applied, durably: flushes this server's WAL as far as that takes.
    pub(crate) fn durable_progress(self) -> u64 {
        // SAFETY: reads shared memory and flushes WAL; not during recovery.
        unsafe { pg_sys::replorigin_get_progress(self.0, true) }
    }

    /// How far it has been applied, durably or not.
    pub(crate) fn progress(self) -> u64 {
        // SAFETY: reads shared memory.
        unsafe { pg_sys::replorigin_get_progress(self.0, false) }
    }

    /// Makes this process the one that advances the origin, by [`super::apply::commit`], instead of the one it advanced
    /// before. Raises when another process does already, or when the server has no room for it. Outside a transaction,
    /// or before its first change.
    pub(crate) fn use_in_session(self) {
        thread_local! {
            static REGISTERED: Cell<bool> = const { Cell::new(false) };
        }
        if SET_UP.get() == Some(self) {
            return;
        }
        leave_session();
        // SAFETY: none is set up; what is stamped on commits is exactly what is set up.
        unsafe { version::origin_session_setup(self.0) };
        SET_UP.set(Some(self));
        if !REGISTERED.replace(true) {
            // Registered after the process connected to its database, so that it runs before the transaction that a
            // FATAL error interrupts is aborted.
            super::worker::at_exit(|_| Origin::stamp_nothing(), 0);
        }
    }

    /// From here to the end of the transaction all that it writes bears the origin: a server that decodes it for others
    /// sees at once that it is not this node's own. If only the commit bore it, a large transaction would travel back
    /// to where it came from before that came out. The position comes with the commit alone, see [`super::apply::commit`]
    /// and [`super::apply::abort`].
    ///
    /// The session must have set up this origin.
    pub(crate) fn mark_changes(self) {
        // SAFETY: a variable of this process; what ends the transaction takes it back.
        unsafe { pg_sys::replorigin_session_origin = self.0 };
    }

    /// Writes down that everything of the origin up to `position` has been dealt with, although nothing was committed for
    /// it; returns where the record ends, which is durable once the WAL is flushed that far, as is all that was committed
    /// before this call. Between transactions. Raises when another process has the origin set up.
    pub(crate) fn record(self, position: u64) -> u64 {
        // Not even this process may have it set up; the next transaction sets it up again.
        if SET_UP.get() == Some(self) {
            leave_session();
        }
        // SAFETY: outside a transaction. The first call writes the record and moves the position under one lock, which a
        // checkpoint takes too; XactLastRecEnd is then the end of that record. The second one notes that end, for who
        // asks how far the WAL has to be on disk before the position may be relied on.
        unsafe {
            pg_sys::replorigin_advance(self.0, position, 0, false, true);
            let end = pg_sys::XactLastRecEnd;
            pg_sys::replorigin_advance(self.0, position, end, false, false);
            pg_sys::XactLastRecEnd = 0;
            // The WAL writer flushes it with what else there is.
            pg_sys::XLogSetAsyncXactLSN(end);
            end
        }
    }

    /// Ends the stamping of commits: what this process commits or aborts from here on is local.
    pub(crate) fn stamp_nothing() {
        // SAFETY: variables of this process (replication/origin.h), read when a transaction ends.
        unsafe {
            pg_sys::replorigin_session_origin = 0;
            pg_sys::replorigin_session_origin_lsn = 0;
            pg_sys::replorigin_session_origin_timestamp = 0;
        }
    }

    /// Commits the open transaction under this origin, with this time and without a position, and lets go of the
    /// origin. Other processes must be kept from doing the same meanwhile: one at a time can have an origin set up.
    pub(crate) fn commit_once(self, timestamp: i64) {
        super::apply::acting::fire_deferred();
        // SAFETY: in a transaction, in a session without an origin of its own; what is stamped on the commit is what is
        // set up, and both are taken back once it is done.
        unsafe {
            version::origin_session_setup(self.0);
            pg_sys::replorigin_session_origin = self.0;
            pg_sys::replorigin_session_origin_lsn = 0;
            pg_sys::replorigin_session_origin_timestamp = timestamp;
            pg_sys::CommitTransactionCommand();
            Origin::stamp_nothing();
            pg_sys::replorigin_session_reset();
        }
    }
}

/// Lets work write for those to whom the transaction is sent on, in a transaction that [`mark_unsent`] began.
pub(crate) fn unmarked<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: a variable of this process; after an error the transaction is given up, and what follows it is local.
    unsafe { pg_sys::replorigin_session_origin = 0 };
    let result = work();
    mark_unsent();
    result
}

/// What this process writes from now on is nobody's own change: it is not sent to other nodes. (Origins proper can be
/// set up by one process at a time; this mark stands for none, so that it needs no such thing.)
pub(crate) fn mark_unsent() {
    // SAFETY: a variable of this process. The value is PostgreSQL's own "do not replicate", which commits without an
    // origin set up.
    unsafe { pg_sys::replorigin_session_origin = pg_sys::DoNotReplicateId as u16 };
}
