//! Preparing transactions, and ending prepared ones, under an origin.

use core::ffi::c_char;
use std::ffi::CString;

use pgrx::pg_sys;

use super::apply::acting;
use super::origin::Origin;

// Exported by the server and not bound by pgrx.
unsafe extern "C-unwind" {
    fn FinishPreparedTransaction(gid: *const c_char, is_commit: bool);
}

/// How the names of all transactions begin that are prepared here for a provider's.
pub(crate) const GID_PREFIX: &str = "pg_ha_";

/// How those of one subscription begin.
pub(crate) fn gid_prefix(subscription_id: i32) -> String {
    format!("{GID_PREFIX}{subscription_id}_")
}

/// # Safety
/// The session has set up `origin`.
unsafe fn stamp(origin: Origin, origin_lsn: u64, timestamp: i64) {
    // SAFETY: the caller's promise; the variables are what the records take (replication/origin.h).
    unsafe {
        pg_sys::replorigin_session_origin = origin.0;
        pg_sys::replorigin_session_origin_lsn = origin_lsn;
        pg_sys::replorigin_session_origin_timestamp = timestamp;
    }
}

/// Prepares the open transaction ([`super::apply::begin`]). Once this returns it is durable, and so is the origin's
/// progress up to `origin_lsn`.
///
/// # Errors
/// PostgreSQL's own, as panics: the name is in use, or max_prepared_transactions are prepared already.
pub(crate) fn prepare(origin: Origin, origin_lsn: u64, timestamp: i64, gid: &str) {
    let gid = CString::new(gid).unwrap_or_default();
    acting::fire_deferred();
    // SAFETY: in a transaction without a block, with the origin set up in this session. The block is what PREPARE ends.
    unsafe {
        pg_sys::BeginTransactionBlock();
        pg_sys::CommitTransactionCommand();
        stamp(origin, origin_lsn, timestamp);
        pg_sys::PrepareTransactionBlock(gid.as_ptr());
        pg_sys::CommitTransactionCommand();
        Origin::stamp_nothing();
    }
}

/// Commits or rolls back a prepared transaction, outside any other. Once this returns that is durable, with the
/// origin's progress.
///
/// # Errors
/// PostgreSQL's own, as panics: there is no such transaction, or somebody else is ending it.
pub(crate) fn finish(origin: Origin, origin_lsn: u64, timestamp: i64, gid: &str, commits: bool) {
    let gid = CString::new(gid).unwrap_or_default();
    // SAFETY: outside a transaction, with the origin set up in this session; the transaction around it writes nothing,
    // so that the stamp is the prepared one's alone.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        stamp(origin, origin_lsn, timestamp);
        pg_sys::ffi::pg_guard_ffi_boundary(|| FinishPreparedTransaction(gid.as_ptr(), commits));
        Origin::stamp_nothing();
        pg_sys::CommitTransactionCommand();
    }
}
