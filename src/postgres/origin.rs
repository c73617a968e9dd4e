//! Replication origins: the server's own bookkeeping of how far each origin has been applied, atomic with the data.

use std::ffi::CString;

use pgrx::pg_sys;

use super::version;

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

    /// How far it has been applied, as far as this server knows without a flush of its own WAL.
    pub(crate) fn progress(self) -> u64 {
        // SAFETY: reads shared memory.
        unsafe { pg_sys::replorigin_get_progress(self.0, false) }
    }

    /// Makes this process the one that advances the origin: its commits carry it. Raises when another process does.
    pub(crate) fn use_in_session(self) {
        // SAFETY: at most once in a worker's life; what is stamped on commits is exactly what is set up.
        unsafe {
            version::origin_session_setup(self.0);
            pg_sys::replorigin_session_origin = self.0;
        }
    }

    /// Commits the open transaction under this origin, at this position and time, and lets go of the origin. Other
    /// processes must be kept from doing the same meanwhile (only one at a time can have an origin set up).
    pub(crate) fn commit_once(self, position: u64, timestamp: i64) {
        // SAFETY: in a transaction, without an origin of this session's own ([`mark_unsent`] sets none up); what is
        // stamped on the commit is what is set up, and both are taken back once it is done.
        unsafe {
            version::origin_session_setup(self.0);
            pg_sys::replorigin_session_origin = self.0;
            pg_sys::replorigin_session_origin_lsn = position;
            pg_sys::replorigin_session_origin_timestamp = timestamp;
            pg_sys::CommitTransactionCommand();
            pg_sys::replorigin_session_origin = pg_sys::InvalidRepOriginId as u16;
            pg_sys::replorigin_session_origin_lsn = 0;
            pg_sys::replorigin_session_origin_timestamp = 0;
            pg_sys::replorigin_session_reset();
        }
    }
}

/// What this process writes from now on is nobody's own change: it is not sent to other nodes. (Origins proper can be
/// set up by one process at a time; this mark stands for none, so that it needs no such thing.)
pub(crate) fn mark_unsent() {
    // SAFETY: a variable of this process. The value is PostgreSQL's own "do not replicate", which commits without an
    // origin set up.
    unsafe { pg_sys::replorigin_session_origin = pg_sys::DoNotReplicateId as u16 };
}

/// Runs work that is this node's own, in a process that has an origin set up.
pub(crate) fn without<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: variables of this process, put back before return; an error in `work` ends the process's use of them.
    unsafe {
        let before = (
            pg_sys::replorigin_session_origin,
            pg_sys::replorigin_session_origin_timestamp,
        );
        pg_sys::replorigin_session_origin = pg_sys::InvalidRepOriginId as u16;
        pg_sys::replorigin_session_origin_timestamp = 0;
        let result = work();
        (
            pg_sys::replorigin_session_origin,
            pg_sys::replorigin_session_origin_timestamp,
        ) = before;
        result
    }
}
