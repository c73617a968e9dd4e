//! The callbacks of the output plugin, and the reading of rows and catalogs they need.
//!
//! Logical decoding calls these in the walsender, in WAL order, a transaction at a time. They only move data between
//! PostgreSQL's structures and [`crate::decoding::Session`], which decides what is sent.

mod prepared;
mod streamed;

use std::collections::{HashMap, HashSet};

use pgrx::pg_sys;
use pgrx::prelude::*;

use pg_ha_replication::codec::EncodeError;

use super::error::Report;
use super::invalidation::{self, Invalidated};
use super::origin::Origin;
use super::row_filter::{self, RowFilter, Verdict};
use super::{publication, values, version, worker};
use crate::decoding::relation::Published;
use crate::decoding::{Change, ColumnForm, Session, Transaction};

/// What a decoding context owns: the session, and what this file caches for it.
struct Plugin {
    session: Session,
    /// Reset after every change: detoasted values and the results of output functions.
    scratch: pg_sys::MemoryContext,
    relations: HashMap<pg_sys::Oid, Published>,
    /// For tables that stand above others in `relations`, which: they change with them.
    below: HashMap<pg_sys::Oid, HashSet<pg_sys::Oid>>,
    datums: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    /// Changes passed over since the last sign of life.
    silent: u32,
}

#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _PG_output_plugin_init(callbacks: *mut pg_sys::OutputPluginCallbacks) {
    // SAFETY: the server passes a zeroed structure to fill.
    let callbacks = unsafe { &mut *callbacks };
    callbacks.startup_cb = Some(startup);
    callbacks.begin_cb = Some(begin);
    callbacks.change_cb = Some(change);
    callbacks.truncate_cb = Some(truncate);
    callbacks.commit_cb = Some(commit);
    callbacks.message_cb = Some(message);
    callbacks.filter_by_origin_cb = Some(filter_by_origin);
    streamed::register(callbacks);
    prepared::register(callbacks);
}

/// # Safety
/// `ctx` is a context whose startup callback has completed.
unsafe fn plugin<'a>(ctx: *mut pg_sys::LogicalDecodingContext) -> &'a mut Plugin {
    // SAFETY: set in `startup`; one callback runs at a time.
    unsafe { &mut *(*ctx).output_plugin_private.cast::<Plugin>() }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup(
    ctx: *mut pg_sys::LogicalDecodingContext,
    options: *mut pg_sys::OutputPluginOptions,
    is_init: bool,
) {
    // SAFETY: the server's own structures, valid during the call; the plugin's memory is tied to the context's.
    unsafe {
        (*options).output_type = pg_sys::OutputPluginOutputType::OUTPUT_PLUGIN_BINARY_OUTPUT;
        if is_init {
            (*ctx).streaming = false;
            (*ctx).twophase = false;
            return;
        }
        let pairs = option_pairs((*ctx).output_plugin_options);
        let session = match Session::start(&pairs, client_encoding_differs()) {
            Ok(session) => session,
            Err(refusal) => refusal.raise(),
        };
        // The callbacks are there; whether they are called is for the subscriber to say.
        (*ctx).streaming &= session.streaming();
        prepared::agree(ctx, session.two_phase());
        // Whatever the role's, the database's and the server's own are.
        for (name, value) in values::CANONICAL {
            worker::set(name, value);
        }
        invalidation::register();
        let scratch = pg_sys::AllocSetContextCreateInternal(
            (*ctx).context,
            c"pg_ha output plugin".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        let plugin = Plugin {
            session,
            scratch,
            relations: HashMap::new(),
            below: HashMap::new(),
            datums: Vec::new(),
            nulls: Vec::new(),
            silent: 0,
        };
        (*ctx).output_plugin_private = pgrx::PgMemoryContexts::For((*ctx).context)
            .leak_and_drop_on_delete(plugin)
            .cast();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
) {
    // SAFETY: a live context and transaction; origins are looked up under the historic snapshot that is set up here.
    unsafe {
        let plugin = plugin(ctx);
        send_waiting(ctx, plugin);
        plugin.session.learn_origins(|origin| Origin(origin).name());
        plugin
            .session
            .begin(transaction(txn), |origin| Origin(origin).name());
    }
}

/// # Safety
/// `txn` is a transaction whose commit is being replayed, or which has been prepared.
unsafe fn transaction(txn: *mut pg_sys::ReorderBufferTXN) -> Transaction {
    // SAFETY: the caller's promise.
    unsafe {
        Transaction {
            xid: (*txn).xid.into(),
            commit_lsn: (*txn).final_lsn,
            end_lsn: (*txn).end_lsn,
            commit_ts: version::commit_time(txn),
            origin: (*txn).origin_id,
            origin_lsn: (*txn).origin_lsn,
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn change(
    ctx: *mut pg_sys::LogicalDecodingContext,
    _txn: *mut pg_sys::ReorderBufferTXN,
    relation: pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    use pg_sys::ReorderBufferChangeType as Action;
    // SAFETY: a live context, an open relation, a change of it; memory is the plugin's own scratch context.
    unsafe {
        let plugin = plugin(ctx);
        if !plugin.session.wants_transaction() {
            plugin.passed_over(ctx);
            return;
        }
        plugin.forget_invalidated();
        let oid = (*relation).rd_id;
        let previous = pg_sys::MemoryContextSwitchTo(plugin.scratch);
        if !plugin.relations.contains_key(&oid) {
            let published = publication::describe(relation, &plugin.session);
            for above in &published.above {
                plugin.below.entry((*above).into()).or_default().insert(oid);
            }
            plugin.relations.insert(oid, published);
        }
        let Plugin {
            session,
            relations,
            datums,
            nulls,
            ..
        } = plugin;
        let mut sent = false;
        if let Some(published) = relations.get_mut(&oid) {
            let (old, new) = version::change_rows(change);
            let kind = match (*change).action {
                Action::REORDER_BUFFER_CHANGE_INSERT => Change::Insert,
                Action::REORDER_BUFFER_CHANGE_UPDATE => Change::Update,
                _ => Change::Delete,
            };
            let desc = (*relation).rd_att;
            let kind = if !published.lets_through(kind, !old.is_null()) {
                published.warn_of_lost_identity(kind);
                None
            } else if let Some(filter) = &published.filter {
                filtered(filter, kind, desc, old, new)
            } else {
                Some(kind)
            };
            if let Some(kind) = kind {
                written(session.start_change(kind, published, !old.is_null()));
                if !old.is_null() && kind != Change::Insert {
                    let none = core::ptr::null_mut();
                    write_row(
                        session,
                        published,
                        desc,
                        old,
                        none,
                        !published.full,
                        datums,
                        nulls,
                    );
                }
                if !new.is_null() && kind != Change::Delete {
                    if kind == Change::Update {
                        session.start_new_row(published);
                    }
                    // An insert that an update became has nobody to take unsent values from but its old row.
                    let complete = if kind == Change::Insert {
                        old
                    } else {
                        core::ptr::null_mut()
                    };
                    write_row(session, published, desc, new, complete, false, datums, nulls);
                }
                written(session.finish_change());
                sent = true;
            }
        }
        pg_sys::MemoryContextSwitchTo(previous);
        pg_sys::MemoryContextReset(plugin.scratch);
        if plugin.session.frame_is_full() {
            send(ctx, &mut plugin.session, false);
        }
        if sent {
            plugin.silent = 0;
        } else {
            plugin.passed_over(ctx);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn truncate(
    ctx: *mut pg_sys::LogicalDecodingContext,
    _txn: *mut pg_sys::ReorderBufferTXN,
    count: core::ffi::c_int,
    relations: *mut pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: a live context, `count` open relations, a truncate change.
    unsafe {
        let plugin = plugin(ctx);
        if !plugin.session.wants_transaction() {
            return;
        }
        plugin.forget_invalidated();
        let previous = pg_sys::MemoryContextSwitchTo(plugin.scratch);
        let relations: Vec<pg_sys::Relation> =
            (0..count as usize).map(|index| *relations.add(index)).collect();
        let oids: HashSet<u32> = relations
            .iter()
            .map(|relation| (**relation).rd_id.to_u32())
            .collect();
        let mut published: Vec<Published> = relations
            .iter()
            .map(|relation| publication::describe_alone(*relation, &plugin.session))
            // What is truncated with a table above it, under whose name it is sent, needs no word of its own.
            .filter(|known| !known.above.iter().any(|above| oids.contains(above)))
            .collect();
        let truncation = (*change).data.truncate;
        written(
            plugin
                .session
                .truncate(published.iter_mut(), truncation.cascade, truncation.restart_seqs),
        );
        pg_sys::MemoryContextSwitchTo(previous);
        pg_sys::MemoryContextReset(plugin.scratch);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn commit(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _commit_lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: a live context in which a write is allowed; the entry of this walsender, if it is one.
    unsafe {
        let plugin = plugin(ctx);
        let committed = written(plugin.session.commit());
        let synchronous = pg_sys::MyWalSnd
            .as_ref()
            .is_some_and(|sender| sender.sync_standby_priority > 0);
        let told = written(plugin.session.tell_synchronous(synchronous, (*txn).end_lsn));
        if committed || told {
            pg_sys::OutputPluginUpdateProgress(ctx, !committed);
            send(ctx, &mut plugin.session, true);
        } else {
            pg_sys::OutputPluginUpdateProgress(ctx, true);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn message(
    ctx: *mut pg_sys::LogicalDecodingContext,
    _txn: *mut pg_sys::ReorderBufferTXN,
    lsn: pg_sys::XLogRecPtr,
    transactional: bool,
    prefix: *const core::ffi::c_char,
    size: pg_sys::Size,
    content: *const core::ffi::c_char,
) {
    // SAFETY: a live context; the prefix is nul-terminated, the content has `size` bytes.
    unsafe {
        let plugin = plugin(ctx);
        if transactional && !plugin.session.wants_transaction() {
            return;
        }
        // One that belongs to no transaction has one beside it if its writer had a number, and is as urgent then.
        if !transactional {
            send_waiting(ctx, plugin);
        }
        let prefix = core::ffi::CStr::from_ptr(prefix).to_string_lossy();
        let content = if size == 0 {
            &[]
        } else {
            core::slice::from_raw_parts(content.cast::<u8>(), size)
        };
        if written(plugin.session.message(transactional, lsn, &prefix, content)) && !transactional {
            send(ctx, &mut plugin.session, true);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn filter_by_origin(
    ctx: *mut pg_sys::LogicalDecodingContext,
    origin: pg_sys::RepOriginId,
) -> bool {
    // SAFETY: the reader stands on the record that is being decoded.
    unsafe {
        if origin == pg_sys::InvalidRepOriginId as pg_sys::RepOriginId {
            return false;
        }
        // Slots are made with a context that has no session yet.
        if (*ctx).output_plugin_private.is_null() {
            return true;
        }
        if !plugin(ctx).session.withholds(origin) {
            return false;
        }
        if let Some(position) = applied_origin_position((*ctx).reader) {
            plugin(ctx).session.saw(origin, position);
        }
        true
    }
}

/// The origin's position and time in the commit record that the reader stands on; None on any other record.
///
/// Begin and commit callbacks never fire for filtered transactions, so this is the only place where the plugin meets
/// them, in WAL order: what the stream says of how far this node had seen others rests on it.
///
/// # Safety
/// `reader` stands on a decoded record.
unsafe fn applied_origin_position(reader: *mut pg_sys::XLogReaderState) -> Option<(u64, i64)> {
    // SAFETY: a decoded record lives until the next one is read; a commit record has the layout that
    // ParseCommitRecord expects.
    unsafe {
        let record = (*reader).record;
        if record.is_null() || u32::from((*record).header.xl_rmid) != RM_XACT_ID {
            return None;
        }
        let info = (*record).header.xl_info;
        let operation = u32::from(info) & pg_sys::XLOG_XACT_OPMASK;
        if operation != pg_sys::XLOG_XACT_COMMIT && operation != pg_sys::XLOG_XACT_COMMIT_PREPARED {
            return None;
        }
        let mut parsed = pg_sys::xl_xact_parsed_commit::default();
        pg_sys::ParseCommitRecord(info, (*record).main_data.cast(), &mut parsed);
        (parsed.origin_lsn != 0).then_some((parsed.origin_lsn, parsed.origin_timestamp))
    }
}

/// RM_XACT_ID of rmgrlist.h: its place in the list is part of the WAL format.
const RM_XACT_ID: u32 = 1;

impl Plugin {
    /// A change of which nothing is sent. A long transaction of such must not let the other side time out.
    ///
    /// # Safety
    /// In a callback of `ctx` that may write.
    unsafe fn passed_over(&mut self, ctx: *mut pg_sys::LogicalDecodingContext) {
        self.silent += 1;
        if self.silent >= 100 {
            self.silent = 0;
            // SAFETY: the caller's promise.
            unsafe { pg_sys::OutputPluginUpdateProgress(ctx, false) };
        }
    }

    /// Drops what the relation cache said has changed, so that it is described and announced again.
    fn forget_invalidated(&mut self) {
        match invalidation::take() {
            Invalidated::Nothing => {}
            Invalidated::All => {
                self.relations.clear();
                self.below.clear();
            }
            Invalidated::Relations(changed) => {
                for oid in changed {
                    self.relations.remove(&oid);
                    for partition in self.below.remove(&oid).unwrap_or_default() {
                        self.relations.remove(&partition);
                    }
                }
            }
        }
    }
}

/// What the codec cannot express (a row beyond a gigabyte, more columns than PostgreSQL allows) ends the stream: better
/// than leaving a change out.
fn written<T>(result: Result<T, EncodeError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => Report::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("pg_ha cannot send a change: {error}"),
        )
        .raise(),
    }
}

/// Sends the frame that has been written.
///
/// # Safety
/// In a callback of `ctx` that may write.
unsafe fn send(ctx: *mut pg_sys::LogicalDecodingContext, session: &mut Session, last: bool) {
    let frame = session.frame();
    if frame.is_empty() {
        return;
    }
    // SAFETY: between PrepareWrite and Write the output buffer accepts bytes.
    unsafe {
        pg_sys::OutputPluginPrepareWrite(ctx, last);
        pg_sys::appendBinaryStringInfo((*ctx).out, frame.as_ptr().cast(), frame.len() as i32);
        pg_sys::OutputPluginWrite(ctx, last);
    }
    session.frame_sent();
}

/// Sends what has waited for company (see [`Session::stream_abort`]), so that the frame that follows holds nothing else.
///
/// # Safety
/// As [`send`].
unsafe fn send_waiting(ctx: *mut pg_sys::LogicalDecodingContext, plugin: &mut Plugin) {
    if plugin.session.has_frame() {
        // SAFETY: the caller's promise.
        unsafe { send(ctx, &mut plugin.session, false) };
    }
}

/// What a change becomes by its table's row filter; None: it is not sent.
///
/// # Safety
/// As [`RowFilter::judge`].
unsafe fn filtered(
    filter: &RowFilter,
    kind: Change,
    desc: pg_sys::TupleDesc,
    old: pg_sys::HeapTuple,
    new: pg_sys::HeapTuple,
) -> Option<Change> {
    let action = match kind {
        Change::Insert => row_filter::Action::Insert,
        Change::Update => row_filter::Action::Update,
        Change::Delete => row_filter::Action::Delete,
    };
    // SAFETY: the caller's promise.
    match unsafe { filter.judge(action, desc, old, new) } {
        Verdict::Drop => None,
        Verdict::Send => Some(kind),
        Verdict::SendAsInsert => Some(Change::Insert),
        Verdict::SendAsDelete => Some(Change::Delete),
    }
}

/// Writes the columns of one row; `key_only`: of its identity columns alone. Values that the row lacks are taken from
/// `complete`, where that is not null.
///
/// # Safety
/// `row` is a row of a table with descriptor `desc`, which `published` describes.
#[allow(
    clippy::too_many_arguments,
    reason = "the buffers are passed one by one, to be borrowed beside the session"
)]
unsafe fn write_row(
    session: &mut Session,
    published: &Published,
    desc: pg_sys::TupleDesc,
    row: pg_sys::HeapTuple,
    complete: pg_sys::HeapTuple,
    key_only: bool,
    datums: &mut Vec<pg_sys::Datum>,
    nulls: &mut Vec<bool>,
) {
    // SAFETY: the buffers have room for every column; by-reference datums point into the row.
    unsafe {
        let natts = (*desc).natts as usize;
        datums.resize(natts, pg_sys::Datum::from(0));
        nulls.resize(natts, true);
        pg_sys::heap_deform_tuple(row, desc, datums.as_mut_ptr(), nulls.as_mut_ptr());
        if !complete.is_null() {
            values::complete_from(desc, datums.as_mut_ptr(), nulls.as_mut_ptr(), complete);
        }
        let convert = session.converts_text();
        let out = session.encoder();
        for column in &published.columns {
            let index = column.index;
            if key_only && !column.key {
                continue;
            }
            if nulls[index] {
                out.null();
                continue;
            }
            let datum = datums[index];
            if column.varlena && values::is_external_ondisk(datum) {
                // The WAL holds no copy of a TOAST value that an update left alone.
                out.unchanged();
                continue;
            }
            match column.form {
                ColumnForm::Plain(plain) => plain.encode(datum, convert, out),
                ColumnForm::Binary(function) => {
                    let bytes = pg_sys::OidSendFunctionCall(function, datum);
                    out.binary(pgrx::varlena_to_byte_slice(bytes.cast()));
                }
                ColumnForm::Text(function) => {
                    let text = pg_sys::OidOutputFunctionCall(function, datum);
                    let bytes = core::ffi::CStr::from_ptr(text).to_bytes();
                    out.text(if convert { values::to_client(bytes) } else { bytes });
                }
            }
        }
    }
}

fn client_encoding_differs() -> bool {
    // SAFETY: reads two settings of this session.
    unsafe { pg_sys::pg_get_client_encoding() != pg_sys::GetDatabaseEncoding() }
}

/// The options of START_REPLICATION as text pairs.
///
/// # Safety
/// `list` is a list of DefElem.
unsafe fn option_pairs(list: *mut pg_sys::List) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    // SAFETY: the list's members are DefElem nodes whose values are strings or absent.
    unsafe {
        for index in 0..if list.is_null() { 0 } else { (*list).length } {
            let option = pg_sys::list_nth(list, index).cast::<pg_sys::DefElem>();
            let name = core::ffi::CStr::from_ptr((*option).defname)
                .to_string_lossy()
                .into_owned();
            let value = if (*option).arg.is_null() {
                String::new()
            } else {
                core::ffi::CStr::from_ptr(pg_sys::defGetString(option))
                    .to_string_lossy()
                    .into_owned()
            };
            pairs.push((name, value));
        }
    }
    pairs
}
