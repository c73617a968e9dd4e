//! Writing to the table behind `ha.conflicts`, as fast as the server writes to its own catalogs: there may be a conflict
//! with every row.

use pgrx::{IntoDatum, pg_sys};

use super::apply::told::Rows;

// Exported by the server and not bound by pgrx.
unsafe extern "C-unwind" {
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// What is written of a conflict.
pub(crate) struct Entry<'e> {
    /// Names are in the server's encoding, as all text here.
    pub(crate) subscription: &'e [u8],
    pub(crate) relation: pg_sys::Oid,
    pub(crate) relation_name: &'e [u8],
    pub(crate) conflict_type: &'static str,
    pub(crate) resolution: &'static str,
    pub(crate) rows: &'e Rows,
    /// Of the local row; None where nobody knows.
    pub(crate) local: Option<Writer<'e>>,
    pub(crate) remote: Writer<'e>,
    /// The position of the remote commit at its origin.
    pub(crate) remote_lsn: u64,
}

/// By whom a row was written, and when.
#[derive(Clone, Copy)]
pub(crate) struct Writer<'w> {
    pub(crate) node: &'w [u8],
    /// TimestampTz, microseconds since 2000.
    pub(crate) time: i64,
}

/// The columns of `ha.conflict_history`.
const COLUMNS: usize = 16;

/// Writes an entry with the open transaction; false if the table is not what this was made for.
pub(crate) fn write(entry: &Entry<'_>) -> bool {
    // SAFETY: in a transaction; relations are closed before return, with their locks kept until its end, and the values
    // are of the types that the extension's script gives the columns, in memory that lives until the row is written.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"ha".as_ptr(), true);
        let table = pg_sys::get_relname_relid(c"conflict_history".as_ptr(), schema);
        let sequence = pg_sys::get_relname_relid(c"conflict_history_conflict_id_seq".as_ptr(), schema);
        if table == pg_sys::InvalidOid || sequence == pg_sys::InvalidOid {
            return false;
        }
        let relation = pg_sys::table_open(table, pg_sys::RowExclusiveLock as i32);
        let desc = (*relation).rd_att;
        let fits = (*desc).natts as usize == COLUMNS;
        if fits {
            let memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"pg_ha conflict".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let previous = pg_sys::MemoryContextSwitchTo(memory);
            let rows = entry.rows;
            let fields: [Option<pg_sys::Datum>; COLUMNS] = [
                next_number(sequence).into_datum(),
                pg_sys::GetCurrentTimestamp().into_datum(),
                Some(name(entry.subscription)),
                Some(pg_sys::Datum::from(entry.relation)),
                Some(text(entry.relation_name)),
                Some(text(entry.conflict_type.as_bytes())),
                Some(text(entry.resolution.as_bytes())),
                Some(jsonb(&rows.key)),
                rows.local.as_ref().map(|row| jsonb(row)),
                entry.local.map(|local| name(local.node)),
                entry.local.and_then(|local| local.time.into_datum()),
                rows.remote.as_ref().map(|row| jsonb(row)),
                Some(name(entry.remote.node)),
                entry.remote.time.into_datum(),
                entry.remote_lsn.cast_signed().into_datum(),
                rows.omitted.as_ref().map(|names| jsonb(names)),
            ];
            let mut values = fields.map(|field| field.unwrap_or(pg_sys::Datum::from(0)));
            let mut nulls = fields.map(|field| field.is_none());
            let tuple = pg_sys::heap_form_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            let indexes = pg_sys::CatalogOpenIndexes(relation);
            pg_sys::CatalogTupleInsertWithInfo(relation, tuple, indexes);
            pg_sys::CatalogCloseIndexes(indexes);
            pg_sys::MemoryContextSwitchTo(previous);
            pg_sys::MemoryContextDelete(memory);
        }
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        fits
    }
}

/// # Safety
/// In a transaction; the sequence exists.
unsafe fn next_number(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false)) }
}

/// # Safety
/// In a transaction; allocated in the current memory context, as by the following.
unsafe fn name(bytes: &[u8]) -> pg_sys::Datum {
    const LENGTH: usize = pg_sys::NAMEDATALEN as usize;
    // SAFETY: a name has that many bytes, of which the last is zero.
    unsafe {
        let place: *mut u8 = pg_sys::palloc0(LENGTH).cast();
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len().min(LENGTH - 1));
        pg_sys::Datum::from(place)
    }
}

/// # Safety
/// As [`name`].
unsafe fn text(bytes: &[u8]) -> pg_sys::Datum {
    // SAFETY: the bytes are copied.
    unsafe {
        let text = pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32);
        pg_sys::Datum::from(text)
    }
}

/// # Safety
/// As [`name`].
unsafe fn jsonb(bytes: &[u8]) -> pg_sys::Datum {
    // SAFETY: the input function gets nul-terminated text of its own.
    unsafe {
        let text: *mut u8 = pg_sys::palloc(bytes.len() + 1).cast();
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), text, bytes.len());
        *text.add(bytes.len()) = 0;
        let input = pg_sys::Oid::from_u32(pg_sys::F_JSONB_IN);
        pg_sys::OidInputFunctionCall(input, text.cast(), pg_sys::InvalidOid, -1)
    }
}
