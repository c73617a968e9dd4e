//! The callbacks of the output plugin, and the reading of rows and catalogs they need.
//!
//! Logical decoding calls these in the walsender, in WAL order, a transaction at a time. They only move data between
//! PostgreSQL's structures and [`crate::decoding::Session`], which decides what is sent.

use std::collections::HashMap;

use pgrx::pg_sys;
use pgrx::prelude::*;

use pg_ha_replication::codec::EncodeError;

use super::error::Report;
use super::invalidation::{self, Invalidated};
use super::origin::Origin;
use super::{values, version};
use crate::decoding::relation::{Column, Membership, Published};
use crate::decoding::{Change, ColumnForm, Session, Transaction};

/// What a decoding context owns: the session, and what this file caches for it.
struct Plugin {
    session: Session,
    /// Reset after every change: detoasted values and the results of output functions.
    scratch: pg_sys::MemoryContext,
    relations: HashMap<pg_sys::Oid, Published>,
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
            return;
        }
        let pairs = option_pairs((*ctx).output_plugin_options);
        let session = match Session::start(&pairs, client_encoding_differs()) {
            Ok(session) => session,
            Err(refusal) => refusal.raise(),
        };
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
        plugin.session.learn_origins(|origin| Origin(origin).name());
        plugin.session.begin(Transaction {
            xid: (*txn).xid.into(),
            commit_lsn: (*txn).final_lsn,
            end_lsn: (*txn).end_lsn,
            commit_ts: version::commit_time(txn),
        });
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
        plugin.forget_invalidated();
        let oid = (*relation).rd_id;
        let previous = pg_sys::MemoryContextSwitchTo(plugin.scratch);
        if !plugin.relations.contains_key(&oid) {
            let published = describe(relation, &plugin.session);
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
            if written(session.start_change(kind, published, !old.is_null())) {
                let desc = (*relation).rd_att;
                if !old.is_null() {
                    write_row(session, published, desc, old, !published.full, datums, nulls);
                }
                if !new.is_null() {
                    if kind == Change::Update {
                        session.start_new_row(published);
                    }
                    write_row(session, published, desc, new, false, datums, nulls);
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
        plugin.silent = if sent { 0 } else { plugin.silent + 1 };
        if plugin.silent >= 100 {
            // A long transaction of which nothing is sent must not let the other side time out.
            plugin.silent = 0;
            pg_sys::OutputPluginUpdateProgress(ctx, false);
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
        plugin.forget_invalidated();
        let previous = pg_sys::MemoryContextSwitchTo(plugin.scratch);
        let mut published = Vec::new();
        for index in 0..count as usize {
            let relation = *relations.add(index);
            let oid = (*relation).rd_id;
            let known = match plugin.relations.remove(&oid) {
                Some(known) => known,
                None => describe(relation, &plugin.session),
            };
            published.push((oid, known));
        }
        let truncation = (*change).data.truncate;
        written(plugin.session.truncate(
            published.iter_mut().map(|(_, known)| known),
            truncation.cascade,
            truncation.restart_seqs,
        ));
        plugin.relations.extend(published);
        pg_sys::MemoryContextSwitchTo(previous);
        pg_sys::MemoryContextReset(plugin.scratch);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn commit(
    ctx: *mut pg_sys::LogicalDecodingContext,
    _txn: *mut pg_sys::ReorderBufferTXN,
    _commit_lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: a live context in which a write is allowed.
    unsafe {
        let plugin = plugin(ctx);
        if written(plugin.session.commit()) {
            pg_sys::OutputPluginUpdateProgress(ctx, false);
            send(ctx, &mut plugin.session, true);
        } else {
            pg_sys::OutputPluginUpdateProgress(ctx, true);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn message(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    lsn: pg_sys::XLogRecPtr,
    transactional: bool,
    prefix: *const core::ffi::c_char,
    size: pg_sys::Size,
    content: *const core::ffi::c_char,
) {
    // SAFETY: a live context; the prefix is nul-terminated, the content has `size` bytes.
    unsafe {
        let plugin = plugin(ctx);
        let prefix = core::ffi::CStr::from_ptr(prefix).to_string_lossy();
        let content = if size == 0 {
            &[]
        } else {
            core::slice::from_raw_parts(content.cast::<u8>(), size)
        };
        if written(plugin.session.message(transactional, lsn, &prefix, content)) && txn.is_null() {
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
        if !(*ctx).output_plugin_private.is_null()
            && let Some(position) = applied_origin_position((*ctx).reader)
        {
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
    /// Drops what the relation cache said has changed, so that it is described and announced again.
    fn forget_invalidated(&mut self) {
        match invalidation::take() {
            Invalidated::Nothing => {}
            Invalidated::All => self.relations.clear(),
            Invalidated::Relations(changed) => {
                for oid in changed {
                    self.relations.remove(&oid);
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

/// Writes the columns of one row; `key_only`: of its identity columns alone.
///
/// # Safety
/// `row` is a row of a table with descriptor `desc`, which `published` describes.
unsafe fn write_row(
    session: &mut Session,
    published: &Published,
    desc: pg_sys::TupleDesc,
    row: pg_sys::HeapTuple,
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
            if column.varlena && is_external_ondisk(datum) {
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

/// # Safety
/// `datum` is a varlena.
unsafe fn is_external_ondisk(datum: pg_sys::Datum) -> bool {
    // SAFETY: the first bytes of every varlena tell its kind (postgres.h: VARATT_IS_EXTERNAL_ONDISK).
    unsafe {
        let value = datum.cast_mut_ptr::<pg_sys::varlena>();
        pgrx::varatt_is_1b_e(value)
            && (*value.cast::<pg_sys::varattrib_1b_e>()).va_tag as u32
                == pg_sys::vartag_external::VARTAG_ONDISK
    }
}

/// Reads from the catalogs, as of this point of the WAL, what a table's changes need.
///
/// # Safety
/// `relation` is open, under the historic snapshot.
unsafe fn describe(relation: pg_sys::Relation, session: &Session) -> Published {
    // SAFETY: the relation's own descriptor and catalogs, read with the server's functions.
    unsafe {
        let oid = (*relation).rd_id;
        let form = &*(*relation).rd_rel;
        let desc = (*relation).rd_att;
        // Takes no lock on the indexes, unlike RelationGetIndexAttrBitmap: somebody may hold them until what we decode
        // has been acknowledged.
        let key = pg_sys::RelationGetIdentityKeyBitmap(relation);
        let identity = form.relreplident as u8;
        let full = identity == pg_sys::REPLICA_IDENTITY_FULL;
        let mut columns = Vec::with_capacity((*desc).natts as usize);
        for index in 0..(*desc).natts as usize {
            let attribute = version::attribute(desc, index);
            if attribute.attisdropped || attribute.attgenerated != 0 {
                continue;
            }
            let member = i32::from(attribute.attnum) - pg_sys::FirstLowInvalidHeapAttributeNumber;
            columns.push(Column {
                index,
                name: values::identifier(attribute.attname.data.as_ptr()),
                type_oid: attribute.atttypid.to_u32(),
                type_name: type_name(attribute.atttypid),
                typmod: attribute.atttypmod,
                key: full || pg_sys::bms_is_member(member, key),
                varlena: attribute.attlen == -1,
                form: column_form(attribute.atttypid, session.binary()),
            });
        }
        let namespace = pg_sys::get_namespace_name(form.relnamespace);
        Published {
            id: oid.to_u32(),
            namespace: if namespace.is_null() {
                String::new()
            } else {
                values::identifier(namespace)
            },
            name: values::identifier(form.relname.data.as_ptr()),
            replica_identity: identity,
            full,
            columns,
            membership: membership(oid, session.replication_sets()),
            announced: false,
            warned: false,
        }
    }
}

/// Which form a type takes in this session.
///
/// # Safety
/// The type exists.
unsafe fn column_form(type_oid: pg_sys::Oid, binary: bool) -> ColumnForm {
    if let Some(plain) = values::Plain::of(type_oid) {
        return ColumnForm::Plain(plain);
    }
    let mut function = pg_sys::InvalidOid;
    let mut varlena = false;
    // SAFETY: catalog look-ups of an existing type.
    unsafe {
        if binary && values::has_binary_form(type_oid) {
            pg_sys::getTypeBinaryOutputInfo(type_oid, &mut function, &mut varlena);
            return ColumnForm::Binary(function);
        }
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
    }
    ColumnForm::Text(function)
}

/// Schema and name of a type.
///
/// # Safety
/// In a transaction.
unsafe fn type_name(type_oid: pg_sys::Oid) -> (String, String) {
    // SAFETY: a syscache look-up, released again; names are nul-terminated.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::TYPEOID as i32,
            pg_sys::Datum::from(type_oid),
        );
        if tuple.is_null() {
            return (String::new(), String::new());
        }
        let form: *const pg_sys::FormData_pg_type = pg_sys::GETSTRUCT(tuple).cast();
        let name = values::identifier((*form).typname.data.as_ptr());
        let namespace = pg_sys::get_namespace_name((*form).typnamespace);
        let namespace = if namespace.is_null() {
            String::new()
        } else {
            values::identifier(namespace)
        };
        pg_sys::ReleaseSysCache(tuple);
        (namespace, name)
    }
}

/// What the wanted replication sets say of a table, read under the historic snapshot from tables that are declared as
/// user catalogs for this purpose.
///
/// # Safety
/// In a decoding callback.
unsafe fn membership(relation: pg_sys::Oid, wanted: &[String]) -> Membership {
    let mut membership = Membership::default();
    // SAFETY: catalog scans with the server's functions; every scan is ended and every relation closed. Columns are
    // fixed-width or names, read by the descriptor of the table itself.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"ha".as_ptr(), true);
        let sets = pg_sys::get_relname_relid(c"replication_sets".as_ptr(), schema);
        let members = pg_sys::get_relname_relid(c"replication_set_tables".as_ptr(), schema);
        let index = pg_sys::get_relname_relid(c"replication_set_tables_pkey".as_ptr(), schema);
        if [schema, sets, members, index].contains(&pg_sys::InvalidOid) {
            return membership;
        }
        let mut ids = Vec::new();
        scan(members, index, Some(relation), |row| {
            ids.push(row.integer(c"set_id"))
        });
        if ids.is_empty() {
            return membership;
        }
        scan(sets, pg_sys::InvalidOid, None, |row| {
            if ids.contains(&row.integer(c"set_id"))
                && wanted.iter().any(|name| *name == row.name(c"set_name"))
            {
                membership.insert |= row.boolean(c"replicate_insert");
                membership.update |= row.boolean(c"replicate_update");
                membership.delete |= row.boolean(c"replicate_delete");
                membership.truncate |= row.boolean(c"replicate_truncate");
            }
        });
    }
    membership
}

/// A row of a small catalog table, read column by column.
struct CatalogRow {
    tuple: pg_sys::HeapTuple,
    desc: pg_sys::TupleDesc,
}

impl CatalogRow {
    fn value(&self, column: &core::ffi::CStr) -> Option<pg_sys::Datum> {
        // SAFETY: the tuple belongs to the descriptor; the attribute number was found in it.
        unsafe {
            for index in 0..(*self.desc).natts as usize {
                let attribute = version::attribute(self.desc, index);
                if core::ffi::CStr::from_ptr(attribute.attname.data.as_ptr()) == column {
                    let mut null = true;
                    let datum = pg_sys::heap_getattr(self.tuple, index as i32 + 1, self.desc, &mut null);
                    return (!null).then_some(datum);
                }
            }
        }
        None
    }

    fn integer(&self, column: &core::ffi::CStr) -> i32 {
        self.value(column).map_or(0, |datum| datum.value() as i32)
    }

    fn boolean(&self, column: &core::ffi::CStr) -> bool {
        self.value(column).is_some_and(|datum| datum.value() as u8 != 0)
    }

    fn name(&self, column: &core::ffi::CStr) -> String {
        // SAFETY: the column is of type name, whose datum points to a nul-terminated array.
        self.value(column).map_or_else(String::new, |datum| unsafe {
            values::identifier(datum.cast_mut_ptr::<pg_sys::NameData>().cast())
        })
    }
}

/// Scans a catalog table, by its index's first column (an oid) where a key is given.
///
/// # Safety
/// In a transaction; the relations exist.
unsafe fn scan(
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    key: Option<pg_sys::Oid>,
    mut each: impl FnMut(CatalogRow),
) {
    // SAFETY: the server's own way to read catalogs under the current catalog snapshot.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let mut keys = [pg_sys::ScanKeyData::default()];
        if let Some(key) = key {
            pg_sys::ScanKeyInit(
                &mut keys[0],
                1,
                pg_sys::BTEqualStrategyNumber as u16,
                pg_sys::F_OIDEQ.into(),
                pg_sys::Datum::from(key),
            );
        }
        let count = i32::from(key.is_some());
        let scan = pg_sys::systable_beginscan(
            relation,
            index,
            key.is_some(),
            core::ptr::null_mut(),
            count,
            keys.as_mut_ptr(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            each(CatalogRow {
                tuple,
                desc: (*relation).rd_att,
            });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
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
