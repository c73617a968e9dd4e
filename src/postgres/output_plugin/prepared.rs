//! The callbacks for prepared transactions: called at PREPARE TRANSACTION and at COMMIT or ROLLBACK PREPARED where the
//! subscriber asked for it; else such a transaction comes like any other when it has committed.

use core::ffi::{CStr, c_char};
use std::borrow::Cow;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::{Origin, Report, plugin, send, send_waiting, transaction, written};
use crate::decoding::Session;
use crate::postgres::two_phase::GID_PREFIX;

pub(super) fn register(callbacks: &mut pg_sys::OutputPluginCallbacks) {
    callbacks.filter_prepare_cb = Some(filter_prepare);
    callbacks.begin_prepare_cb = Some(begin_prepare);
    callbacks.prepare_cb = Some(prepare);
    callbacks.stream_prepare_cb = Some(prepare);
    callbacks.commit_prepared_cb = Some(commit_prepared);
    callbacks.rollback_prepared_cb = Some(rollback_prepared);
}

/// Has prepared transactions decoded when they are prepared, or not. Raises if the slot was used for that and shall not
/// be any more: what was prepared so far would come again, whole, when it commits.
///
/// # Safety
/// In the startup callback of a session that streams from a slot.
pub(super) unsafe fn agree(ctx: *mut pg_sys::LogicalDecodingContext, wanted: bool) {
    // SAFETY: the caller's promise; the slot is this process's.
    unsafe {
        if wanted {
            // The server marks the slot: from the position at which this session starts on.
            (*ctx).twophase_opt_given = true;
            return;
        }
        (*ctx).twophase = false;
        if (*pg_sys::MyReplicationSlot).data.two_phase {
            Report::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the slot has sent prepared transactions when they were prepared, and the subscriber does not want that \
                 any more",
            )
            .detail("A slot cannot go back: what is prepared now would be sent again when it commits.")
            .hint("Set the option two_phase of the subscription to true, or drop the subscription and make it again.")
            .raise();
        }
    }
}

/// # Safety
/// `txn` is a prepared transaction.
unsafe fn gid<'a>(txn: *mut pg_sys::ReorderBufferTXN) -> Cow<'a, str> {
    // SAFETY: the caller's promise; the name is nul-terminated and lives as long as the transaction.
    unsafe { CStr::from_ptr((*txn).gid) }.to_string_lossy()
}

/// Whether a prepared transaction is sent; else it was prepared by something else that applies changes of others, under
/// their origin.
///
/// # Safety
/// `txn` is a prepared transaction.
unsafe fn is_sent(session: &Session, txn: *mut pg_sys::ReorderBufferTXN) -> bool {
    // SAFETY: the caller's promise.
    session.sends_prepared(unsafe { (*txn).origin_id })
}

/// How the names of transactions begin that native logical replication has prepared (TwoPhaseTransactionGid).
const NATIVE_GID_PREFIX: &[u8] = b"pg_gid_";

/// True: this one comes when it commits. What this node has prepared for another does, and what came by native logical
/// replication: only then is it known whose it is. (The name is all that is the same whenever this is asked.)
#[pg_guard]
unsafe extern "C-unwind" fn filter_prepare(
    _ctx: *mut pg_sys::LogicalDecodingContext,
    _xid: pg_sys::TransactionId,
    gid: *const c_char,
) -> bool {
    // SAFETY: a nul-terminated name.
    let gid = unsafe { CStr::from_ptr(gid) }.to_bytes();
    gid.starts_with(GID_PREFIX.as_bytes()) || gid.starts_with(NATIVE_GID_PREFIX)
}

#[pg_guard]
unsafe extern "C-unwind" fn begin_prepare(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
) {
    // SAFETY: a live context and transaction; origins are looked up under the historic snapshot that is set up here.
    unsafe {
        let plugin = plugin(ctx);
        written(plugin.session.greet());
        send_waiting(ctx, plugin);
        plugin.session.learn_origins(|origin| Origin(origin).name());
        plugin.session.start_chunk((*txn).xid.into());
        if !is_sent(&plugin.session, txn) {
            plugin.session.withhold_chunk();
        }
    }
}

/// After the last chunk, also of one that was streamed while it was in progress.
#[pg_guard]
unsafe extern "C-unwind" fn prepare(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _prepare_lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: a live context in which a write is allowed.
    unsafe {
        let plugin = plugin(ctx);
        plugin.session.stop_chunk();
        if !is_sent(&plugin.session, txn) {
            return;
        }
        written(plugin.session.greet());
        send_waiting(ctx, plugin);
        plugin.session.learn_origins(|_| None);
        written(plugin.session.prepare(&gid(txn), &transaction(txn)));
        pg_sys::OutputPluginUpdateProgress(ctx, false);
        send(ctx, &mut plugin.session, true);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn commit_prepared(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _commit_lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: a live context in which a write is allowed; there is no snapshot, so that no name can be looked up.
    unsafe {
        let plugin = plugin(ctx);
        if !is_sent(&plugin.session, txn) {
            return;
        }
        written(plugin.session.greet());
        send_waiting(ctx, plugin);
        plugin.session.learn_origins(|_| None);
        written(plugin.session.commit_prepared(&gid(txn), &transaction(txn)));
        pg_sys::OutputPluginUpdateProgress(ctx, false);
        send(ctx, &mut plugin.session, true);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn rollback_prepared(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _prepare_end_lsn: pg_sys::XLogRecPtr,
    _prepare_time: pg_sys::TimestampTz,
) {
    // SAFETY: a live context in which a write is allowed.
    unsafe {
        let plugin = plugin(ctx);
        if !is_sent(&plugin.session, txn) {
            return;
        }
        written(plugin.session.greet());
        send_waiting(ctx, plugin);
        written(plugin.session.rollback_prepared(&gid(txn), &transaction(txn)));
        pg_sys::OutputPluginUpdateProgress(ctx, false);
        send(ctx, &mut plugin.session, true);
    }
}
