//! The callbacks for transactions in progress: called instead of begin, change and commit once a transaction has grown
//! beyond logical_decoding_work_mem, between others, and only where the subscriber asked for it.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::{Origin, change, message, plugin, send, send_waiting, transaction, truncate, written};

pub(super) fn register(callbacks: &mut pg_sys::OutputPluginCallbacks) {
    callbacks.stream_start_cb = Some(stream_start);
    callbacks.stream_stop_cb = Some(stream_stop);
    callbacks.stream_abort_cb = Some(stream_abort);
    callbacks.stream_commit_cb = Some(stream_commit);
    callbacks.stream_change_cb = Some(stream_change);
    callbacks.stream_message_cb = Some(stream_message);
    callbacks.stream_truncate_cb = Some(stream_truncate);
}

#[pg_guard]
unsafe extern "C-unwind" fn stream_start(
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
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stream_stop(
    ctx: *mut pg_sys::LogicalDecodingContext,
    _txn: *mut pg_sys::ReorderBufferTXN,
) {
    // SAFETY: a live context in which a write is allowed.
    unsafe {
        let plugin = plugin(ctx);
        plugin.session.stop_chunk();
        send(ctx, &mut plugin.session, true);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stream_abort(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _abort_lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: a live context in which a write is allowed; a subtransaction knows its transaction.
    unsafe {
        let plugin = plugin(ctx);
        let top = if (*txn).toptxn.is_null() {
            txn
        } else {
            (*txn).toptxn
        };
        if written(plugin.session.stream_abort((*top).xid.into(), (*txn).xid.into())) {
            send(ctx, &mut plugin.session, true);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stream_commit(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _commit_lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: a live context in which a write is allowed; there is no snapshot, so that no name can be looked up.
    unsafe {
        let plugin = plugin(ctx);
        plugin.session.learn_origins(|_| None);
        let sent = written(plugin.session.stream_commit(&transaction(txn)));
        pg_sys::OutputPluginUpdateProgress(ctx, !sent);
        if sent {
            send(ctx, &mut plugin.session, true);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stream_change(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    relation: pg_sys::Relation,
    what: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: a live context; a change knows the subtransaction that made it.
    unsafe {
        let (subtransaction, origin) = ((*(*what).txn).xid, (*what).origin_id);
        plugin(ctx)
            .session
            .in_subtransaction(subtransaction.into(), origin, |origin| Origin(origin).name());
        change(ctx, txn, relation, what);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stream_truncate(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    count: core::ffi::c_int,
    relations: *mut pg_sys::Relation,
    what: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: as in `stream_change`.
    unsafe {
        let (subtransaction, origin) = ((*(*what).txn).xid, (*what).origin_id);
        plugin(ctx)
            .session
            .in_subtransaction(subtransaction.into(), origin, |origin| Origin(origin).name());
        truncate(ctx, txn, count, relations, what);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stream_message(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    lsn: pg_sys::XLogRecPtr,
    transactional: bool,
    prefix: *const core::ffi::c_char,
    size: pg_sys::Size,
    content: *const core::ffi::c_char,
) {
    // SAFETY: a live context. The server does not pass the subtransaction of a message, but keeps it in a variable for
    // as long as it may still be rolled back; when it may not, the transaction's own number does as well.
    unsafe {
        let subtransaction = match pg_sys::CheckXidAlive {
            pg_sys::InvalidTransactionId => (*txn).xid,
            alive => alive,
        };
        // A message bears no origin; pg_ha's own are written by the local node.
        plugin(ctx)
            .session
            .in_subtransaction(subtransaction.into(), 0, |_| None);
        message(ctx, txn, lsn, transactional, prefix, size, content);
    }
}
