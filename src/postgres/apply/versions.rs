//! The true versions of rows that a copy brought, from `ha.row_versions`.
//!
//! All rows of a copy bear one commit time and one replication origin, those of the copy. Where a row is younger than the
//! conflict horizon, its true version stands in `ha.row_versions`. It is looked up for no other rows: the origin number
//! tells.
//!
//! A row is named there by the oid of its table (of the root, where that is a partition) and by a digest of its key: for
//! each column of the replica identity or primary key its value's length in bytes, a colon and the value as text. Every
//! server computes that alike; [`key_expression`] is the same in SQL, for the provider of a copy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use pg_ha_replication::codec::Tuple;
use pgrx::{FromDatum, IntoDatum, pg_sys};

use super::compose::datum_of;
use super::target::Target;
use super::{ApplyError, Found};
use crate::postgres::invalidation;
use crate::postgres::origin::Origin;
use crate::postgres::publication::get_partition_ancestors;
use crate::postgres::{values, version, worker};

/// Bytes of a digest that are kept.
const DIGEST: usize = 16;

/// sha256(bytea), in every version.
const SHA256: u32 = 3420;

/// The columns by which a table's rows are named.
pub(crate) struct KeyColumns {
    /// The table itself, or the root of the partitions that it is one of.
    pub(crate) root: pg_sys::Oid,
    columns: Vec<KeyColumn>,
}

struct KeyColumn {
    /// In the table itself, from 1.
    number: i16,
    output: pg_sys::Oid,
    /// How it looks as text may depend on the time zone.
    zoned: bool,
}

thread_local! {
    // A backend has one thread, and nothing is called while one of these is borrowed.
    /// Whether an origin number is one of copies. Numbers that are mapped are never given to another origin.
    static COPIES: RefCell<HashMap<u16, bool>> = RefCell::new(HashMap::new());
    /// The origin met last that is not one of copies.
    static ORDINARY: Cell<u16> = const { Cell::new(0) };
    static KEYS: RefCell<HashMap<pg_sys::Oid, Option<Rc<KeyColumns>>>> = RefCell::new(HashMap::new());
    /// As of when these keys are known.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

fn is_of_copies(origin: u16) -> bool {
    if origin == ORDINARY.get() {
        return false;
    }
    let known = COPIES.with_borrow(|known| known.get(&origin).copied());
    let is = known.unwrap_or_else(|| {
        let is = Origin(origin).is_of_copies();
        if let Some(is) = is {
            COPIES.with_borrow_mut(|known| known.insert(origin, is));
        }
        is.unwrap_or(false)
    });
    if !is && known.is_some() {
        ORDINARY.set(origin);
    }
    is
}

/// The true version of a row whose last writer has this origin, where that is a copy and the version is known.
///
/// # Safety
/// In a transaction; `row` holds a row read from a table.
pub(super) unsafe fn true_version(origin: u16, row: *mut pg_sys::TupleTableSlot) -> Option<Found> {
    if origin == 0 || !is_of_copies(origin) {
        return None;
    }
    // SAFETY: the slot's table is open; its columns are read as its own definition says.
    unsafe {
        let table = (*row).tts_tableOid;
        let key = key_columns(table)?;
        let mut text = Vec::new();
        for column in &key.columns {
            let mut null = false;
            let value = pg_sys::slot_getattr(row, i32::from(column.number), &mut null);
            if null {
                return None;
            }
            column.append(value, &mut text);
        }
        look_up(key.root, &digest(&text))
    }
}

/// The name in `ha.row_versions` of a row that a change brought: its table and digest. None where rows have no key, or
/// the change does not hold it. In a transaction, with an active snapshot.
pub(crate) fn name_of(
    target: &Target,
    row: &Tuple<'_>,
) -> Result<Option<(pg_sys::Oid, Vec<u8>)>, ApplyError> {
    // Functions of the key's types are run.
    let acting = target.act();
    let name = name_of_as_owner(target, row);
    acting.end();
    name
}

fn name_of_as_owner(target: &Target, row: &Tuple<'_>) -> Result<Option<(pg_sys::Oid, Vec<u8>)>, ApplyError> {
    // SAFETY: the table is locked; values are decoded as the target's columns say and printed as such.
    unsafe {
        let Some(key) = key_columns(target.oid) else {
            return Ok(None);
        };
        let values: Vec<_> = row.columns().collect();
        let mut text = Vec::new();
        for column in &key.columns {
            let place = target
                .columns
                .iter()
                .position(|sent| sent.index as i16 + 1 == column.number);
            let Some((sent, value)) = place.and_then(|place| {
                let value = values.get(place)?;
                Some((&target.columns[place], value))
            }) else {
                return Ok(None);
            };
            let Some(value) = datum_of(target, sent, value)? else {
                return Ok(None);
            };
            column.append(value, &mut text);
        }
        Ok(Some((key.root, digest(&text))))
    }
}

/// The table under which the versions of a target's rows stand, and a row's key as SQL: the columns, and the digest over
/// their names. None where rows have no key, or not all of it is sent. In a transaction.
pub(crate) fn key_expression(target: &Target) -> Option<KeyExpression> {
    // SAFETY: in a transaction; the table is locked.
    let key = unsafe { key_columns(target.oid) }?;
    let mut columns = Vec::new();
    let mut parts = Vec::new();
    for column in &key.columns {
        let sent = target
            .columns
            .iter()
            .find(|sent| sent.index as i16 + 1 == column.number)?;
        let name = pgrx::spi::quote_identifier(&sent.name);
        let value = format!("pg_catalog.format('%s', {name})");
        parts.push(format!("pg_catalog.octet_length({value}) || ':' || {value}"));
        columns.push(name);
    }
    let text = parts.join(" || ");
    Some(KeyExpression {
        relation: key.root,
        columns: columns.join(", "),
        digest: format!(
            "pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to({text}, pg_catalog.getdatabaseencoding())), 1, {DIGEST})"
        ),
    })
}

/// How the versions of a table's rows are asked for.
pub(crate) struct KeyExpression {
    /// The local table under which they stand.
    pub(crate) relation: pg_sys::Oid,
    /// The columns of the key, quoted, with commas between.
    pub(crate) columns: String,
    /// The digest, over these columns.
    pub(crate) digest: String,
}

impl KeyColumn {
    /// # Safety
    /// The value is one of the column's type.
    unsafe fn append(&self, value: pg_sys::Datum, text: &mut Vec<u8>) {
        // SAFETY: the output function of the value's own type; it returns nul-terminated text.
        let print = || unsafe {
            let printed = pg_sys::OidOutputFunctionCall(self.output, value);
            core::ffi::CStr::from_ptr(printed).to_bytes().to_vec()
        };
        let printed = if self.zoned {
            worker::with_setting(c"timezone", c"UTC", print)
        } else {
            print()
        };
        text.extend_from_slice(printed.len().to_string().as_bytes());
        text.push(b':');
        text.extend_from_slice(&printed);
    }
}

/// # Safety
/// In a transaction.
unsafe fn digest(text: &[u8]) -> Vec<u8> {
    // SAFETY: a function of the server over a value made here; its result is copied.
    unsafe {
        let Some(value) = text.into_datum() else {
            return Vec::new();
        };
        let sum = pg_sys::OidFunctionCall1Coll(pg_sys::Oid::from_u32(SHA256), pg_sys::InvalidOid, value);
        let mut sum = Vec::<u8>::from_datum(sum, false).unwrap_or_default();
        sum.truncate(DIGEST);
        sum
    }
}

/// By what the rows of a table are named.
///
/// # Safety
/// In a transaction, with the table locked.
unsafe fn key_columns(table: pg_sys::Oid) -> Option<Rc<KeyColumns>> {
    invalidation::register();
    let generation = invalidation::generation();
    if GENERATION.replace(generation) != generation {
        KEYS.with_borrow_mut(HashMap::clear);
    }
    if let Some(known) = KEYS.with_borrow(|known| known.get(&table).cloned()) {
        return known;
    }
    // SAFETY: the caller's promise.
    let found = unsafe { read_key_columns(table) }.map(Rc::new);
    KEYS.with_borrow_mut(|known| known.insert(table, found.clone()));
    found
}

/// # Safety
/// In a transaction, with the table locked.
unsafe fn read_key_columns(table: pg_sys::Oid) -> Option<KeyColumns> {
    // SAFETY: relations are closed before return; a table above a locked one cannot go away. Columns are those of valid
    // indexes and descriptors.
    unsafe {
        let root = if pg_sys::get_rel_relispartition(table) {
            let ancestors = pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(table));
            if ancestors.is_null() {
                table
            } else {
                pg_sys::list_nth_oid(ancestors, (*ancestors).length - 1)
            }
        } else {
            table
        };
        let relation = pg_sys::table_open(root, pg_sys::AccessShareLock as i32);
        let mut index = pg_sys::RelationGetReplicaIndex(relation);
        if index == pg_sys::InvalidOid {
            index = version::primary_key_index(relation);
        }
        let mut names = Vec::new();
        if index != pg_sys::InvalidOid {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
            let form = &*(*index).rd_index;
            for attribute in form.indkey.values.as_slice(form.indnkeyatts as usize) {
                if *attribute > 0 {
                    let column = version::attribute((*relation).rd_att, *attribute as usize - 1);
                    names.push(values::identifier(column.attname.data.as_ptr()));
                }
            }
            pg_sys::index_close(index, pg_sys::AccessShareLock as i32);
        }
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        if names.is_empty() {
            return None;
        }
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let descriptor = (*relation).rd_att;
        let columns = names
            .into_iter()
            .map(|name| {
                let number = (0..(*descriptor).natts as usize).find(|number| {
                    let column = version::attribute(descriptor, *number);
                    !column.attisdropped && values::identifier(column.attname.data.as_ptr()) == name
                })?;
                let type_oid = version::attribute(descriptor, number).atttypid;
                let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
                pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut varlena);
                let (mut category, mut preferred) = (0, false);
                pg_sys::get_type_category_preferred(type_oid, &mut category, &mut preferred);
                Some(KeyColumn {
                    number: number as i16 + 1,
                    output,
                    // Numbers, strings, booleans.
                    zoned: !matches!(category as u8, b'N' | b'S' | b'B') && type_oid != pg_sys::UUIDOID,
                })
            })
            .collect::<Option<Vec<_>>>();
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        columns.map(|columns| KeyColumns { root, columns })
    }
}

/// # Safety
/// In a transaction.
unsafe fn look_up(root: pg_sys::Oid, key: &[u8]) -> Option<Found> {
    // SAFETY: relations are locked while they are open; the snapshot outlives the scan; the columns are those of the
    // extension's own table.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"ha".as_ptr(), true);
        let heap = pg_sys::get_relname_relid(c"row_versions".as_ptr(), schema);
        let index = pg_sys::get_relname_relid(c"row_versions_pkey".as_ptr(), schema);
        if heap == pg_sys::InvalidOid || index == pg_sys::InvalidOid {
            return None;
        }
        let key = key.into_datum()?;
        let lock = pg_sys::AccessShareLock as i32;
        let heap = pg_sys::table_open(heap, lock);
        let index = pg_sys::index_open(index, lock);
        let slot = pg_sys::table_slot_create(heap, core::ptr::null_mut());
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let scan = version::index_beginscan(heap, index, pg_sys::GetActiveSnapshot(), 2);
        let mut keys: [pg_sys::ScanKeyData; 2] = core::mem::zeroed();
        let equal = pg_sys::BTEqualStrategyNumber as u16;
        for (place, (function, value)) in [
            (pg_sys::F_OIDEQ, pg_sys::Datum::from(root)),
            (pg_sys::F_BYTEAEQ, key),
        ]
        .into_iter()
        .enumerate()
        {
            pg_sys::ScanKeyInit(
                &mut keys[place],
                place as i16 + 1,
                equal,
                pg_sys::Oid::from(function),
                value,
            );
        }
        pg_sys::index_rescan(scan, keys.as_mut_ptr(), 2, core::ptr::null_mut(), 0);
        let found =
            pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot).then(|| {
                let mut null = false;
                let timestamp = pg_sys::slot_getattr(slot, 3, &mut null).value() as i64;
                let node = pg_sys::slot_getattr(slot, 4, &mut null).value() as i32;
                Found::Versioned {
                    timestamp,
                    node: node as u16,
                }
            });
        pg_sys::index_endscan(scan);
        pg_sys::PopActiveSnapshot();
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::index_close(index, lock);
        pg_sys::table_close(heap, lock);
        found
    }
}
