//! Finding the local row that a remote change is about.
//!
//! A scan with a dirty snapshot sees uncommitted rows too, so that the applier waits for their writers instead of
//! missing them. But it can miss a row that is there all the time: it reads an index page, then a concurrent update
//! moves the row to a new place whose index entry it has passed already, and the old version is dead by the time it
//! gets to it. A scan with an ordinary snapshot cannot: whatever version was committed when the snapshot was taken has
//! its index entry. So nothing is called missing before such a scan agrees; when it does not, the search starts over.

use pgrx::pg_sys;

use super::Found;
use super::target::LocalColumn;
use crate::postgres::version;

/// The index by which a table's rows are found, opened for the current transaction.
pub(super) struct OpenIndex {
    index: pg_sys::Relation,
    /// Lives in the transaction's memory: the scan keeps a pointer to it.
    dirty: *mut pg_sys::SnapshotData,
    scan: pg_sys::IndexScanDesc,
    /// The target's scan keys.
    keys: *mut pg_sys::ScanKeyData,
    count: usize,
    has_null: bool,
}

impl OpenIndex {
    /// # Safety
    /// In a transaction, with `relation` open; the current memory context lives as long as the open table.
    pub(super) unsafe fn open(
        relation: pg_sys::Relation,
        oid: pg_sys::Oid,
        keys: *mut pg_sys::ScanKeyData,
        count: usize,
    ) -> OpenIndex {
        // SAFETY: the server's own way to scan an index; a dirty snapshot is just its type.
        unsafe {
            let index = pg_sys::index_open(oid, pg_sys::RowExclusiveLock as i32);
            let dirty: *mut pg_sys::SnapshotData =
                pg_sys::palloc0(core::mem::size_of::<pg_sys::SnapshotData>()).cast();
            (*dirty).snapshot_type = pg_sys::SnapshotType::SNAPSHOT_DIRTY;
            let scan = version::index_beginscan(relation, index, dirty, count as i32);
            OpenIndex {
                index,
                dirty,
                scan,
                keys,
                count,
                has_null: false,
            }
        }
    }

    /// # Safety
    /// Once, in the transaction that opened it.
    pub(super) unsafe fn close(self) {
        // SAFETY: the lock stays until the end of the transaction.
        unsafe {
            pg_sys::index_endscan(self.scan);
            pg_sys::index_close(self.index, pg_sys::NoLock as i32);
        }
    }

    /// Sets what to look for in one key column; a null is never found.
    pub(super) fn set_key(&mut self, place: usize, value: Option<pg_sys::Datum>) {
        self.has_null |= value.is_none();
        debug_assert!(place < self.count);
        // SAFETY: the target has as many scan keys as key columns, and `place` is one of them.
        unsafe { (*self.keys.add(place)).sk_argument = value.unwrap_or(pg_sys::Datum::from(0)) };
    }

    /// Forgets the keys of the row before.
    pub(super) fn clear_keys(&mut self) {
        self.has_null = false;
    }
}

/// Finds the row with the index's keys and locks it, if wanted; it then stands in `row`.
///
/// # Safety
/// In a transaction with an active snapshot; `row` is a slot of the table.
pub(super) unsafe fn by_index(
    relation: pg_sys::Relation,
    index: &mut OpenIndex,
    row: *mut pg_sys::TupleTableSlot,
    locked: bool,
) -> bool {
    if index.has_null {
        return false;
    }
    // SAFETY: scans of an open index; slots are materialised before the scan moves on.
    unsafe {
        loop {
            pgrx::check_for_interrupts!();
            let count = index.count as i32;
            pg_sys::index_rescan(index.scan, index.keys, count, core::ptr::null_mut(), 0);
            if !pg_sys::index_getnext_slot(index.scan, pg_sys::ScanDirection::ForwardScanDirection, row) {
                if exists_by_index(relation, index, row) {
                    continue;
                }
                return false;
            }
            pg_sys::ExecMaterializeSlot(row);
            let busy = if (*index.dirty).xmin != pg_sys::InvalidTransactionId {
                (*index.dirty).xmin
            } else {
                (*index.dirty).xmax
            };
            if busy != pg_sys::InvalidTransactionId {
                pg_sys::XactLockTableWait(
                    busy,
                    core::ptr::null_mut(),
                    core::ptr::null_mut(),
                    pg_sys::XLTW_Oper::XLTW_None,
                );
                continue;
            }
            if !locked || lock(relation, row) {
                return true;
            }
        }
    }
}

/// Whether a committed row with the keys exists, by a snapshot taken now.
///
/// # Safety
/// As [`by_index`].
unsafe fn exists_by_index(
    relation: pg_sys::Relation,
    index: &mut OpenIndex,
    row: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: the snapshot is registered for as long as the scan lives.
    unsafe {
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let count = index.count as i32;
        let scan = version::index_beginscan(relation, index.index, snapshot, count);
        pg_sys::index_rescan(scan, index.keys, count, core::ptr::null_mut(), 0);
        let found = pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, row);
        pg_sys::ExecClearTuple(row);
        pg_sys::index_endscan(scan);
        pg_sys::UnregisterSnapshot(snapshot);
        found
    }
}

/// Finds a row by comparing all columns that the provider sends, and locks it; it then stands in `row`.
///
/// # Safety
/// As [`by_index`]; `search` holds the row to look for.
pub(super) unsafe fn by_whole_row(
    relation: pg_sys::Relation,
    search: *mut pg_sys::TupleTableSlot,
    row: *mut pg_sys::TupleTableSlot,
    columns: &[LocalColumn],
) -> bool {
    // SAFETY: the dirty snapshot lives through the scan that uses it; slots are materialised before it ends.
    unsafe {
        let mut dirty = pg_sys::SnapshotData {
            snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
            ..Default::default()
        };
        loop {
            pgrx::check_for_interrupts!();
            // An identical row rather than one that is merely equal (1.0 and 1.00).
            let dirty_snapshot = &raw mut dirty;
            if !scan_for(relation, dirty_snapshot, search, row, columns, true)
                && !scan_for(relation, dirty_snapshot, search, row, columns, false)
            {
                // As for an index: the scan may have passed where a concurrent update put the row.
                let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
                let exists = scan_for(relation, snapshot, search, row, columns, false);
                pg_sys::ExecClearTuple(row);
                pg_sys::UnregisterSnapshot(snapshot);
                if exists {
                    continue;
                }
                return false;
            }
            let busy = if dirty.xmin != pg_sys::InvalidTransactionId {
                dirty.xmin
            } else {
                dirty.xmax
            };
            if busy != pg_sys::InvalidTransactionId {
                pg_sys::XactLockTableWait(
                    busy,
                    core::ptr::null_mut(),
                    core::ptr::null_mut(),
                    pg_sys::XLTW_Oper::XLTW_None,
                );
                continue;
            }
            if lock(relation, row) {
                return true;
            }
        }
    }
}

/// Scans the table for a row equal (`exact`: identical) to the one in `search`; materialises it in `row`.
///
/// # Safety
/// The snapshot lives through the call.
unsafe fn scan_for(
    relation: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    search: *mut pg_sys::TupleTableSlot,
    row: *mut pg_sys::TupleTableSlot,
    columns: &[LocalColumn],
    exact: bool,
) -> bool {
    // SAFETY: an ordinary table scan, ended before return.
    unsafe {
        let scan = pg_sys::table_beginscan(relation, snapshot, 0, core::ptr::null_mut());
        let mut found = false;
        while !found && pg_sys::table_scan_getnextslot(scan, pg_sys::ScanDirection::ForwardScanDirection, row)
        {
            found = rows_equal(search, row, columns, exact);
        }
        if found {
            pg_sys::ExecMaterializeSlot(row);
        }
        pg_sys::table_endscan(scan);
        found
    }
}

unsafe extern "C-unwind" {
    /// utils/datum.h: whether two values are the same bytes, TOAST aside.
    fn datum_image_eq(
        first: pg_sys::Datum,
        second: pg_sys::Datum,
        by_value: bool,
        length: core::ffi::c_int,
    ) -> bool;
}

/// Whether two rows of a table are equal in all columns that the provider sends. Where a type has no equality operator
/// its values' bytes are compared (native replication stops at such a column); `exact`: for all types.
///
/// # Safety
/// Both slots hold rows of the same table.
unsafe fn rows_equal(
    first: *mut pg_sys::TupleTableSlot,
    second: *mut pg_sys::TupleTableSlot,
    columns: &[LocalColumn],
    exact: bool,
) -> bool {
    // SAFETY: both arrays have a member per column; equality functions come from the type's own operator class.
    unsafe {
        pg_sys::slot_getallattrs(first);
        pg_sys::slot_getallattrs(second);
        let desc = (*first).tts_tupleDescriptor;
        for index in columns.iter().map(|column| column.index) {
            let attribute = version::attribute(desc, index);
            let null = *(*first).tts_isnull.add(index);
            if null != *(*second).tts_isnull.add(index) {
                return false;
            }
            if null {
                continue;
            }
            let (one, other) = (*(*first).tts_values.add(index), *(*second).tts_values.add(index));
            let equality = if exact {
                core::ptr::null_mut()
            } else {
                let type_entry =
                    pg_sys::lookup_type_cache(attribute.atttypid, pg_sys::TYPECACHE_EQ_OPR_FINFO as i32);
                &raw mut (*type_entry).eq_opr_finfo
            };
            let equal = if equality.is_null() || (*equality).fn_oid == pg_sys::InvalidOid {
                pg_sys::ffi::pg_guard_ffi_boundary(|| {
                    datum_image_eq(one, other, attribute.attbyval, i32::from(attribute.attlen))
                })
            } else {
                pg_sys::FunctionCall2Coll(equality, attribute.attcollation, one, other).value() as u8 != 0
            };
            if !equal {
                return false;
            }
        }
        true
    }
}

/// Locks the row in the slot in its newest version; false when it changed meanwhile and has to be searched again.
///
/// # Safety
/// `row` holds a row of the relation.
unsafe fn lock(relation: pg_sys::Relation, row: *mut pg_sys::TupleTableSlot) -> bool {
    let mut failure = pg_sys::TM_FailureData::default();
    // SAFETY: an active snapshot stands for as long as the lock call needs it.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let result = pg_sys::table_tuple_lock(
            relation,
            &raw mut (*row).tts_tid,
            pg_sys::GetActiveSnapshot(),
            row,
            pg_sys::GetCurrentCommandId(false),
            pg_sys::LockTupleMode::LockTupleExclusive,
            pg_sys::LockWaitPolicy::LockWaitBlock,
            0,
            &mut failure,
        );
        pg_sys::PopActiveSnapshot();
        result == pg_sys::TM_Result::TM_Ok
    }
}

/// Who wrote the row in the slot last.
///
/// # Safety
/// `row` holds a row read from the table.
pub(super) unsafe fn version_of(row: *mut pg_sys::TupleTableSlot) -> Found {
    // SAFETY: the system attribute is the row's raw xmin, also when frozen; the commit-timestamp store answers for
    // any transaction id, with "unknown" for those it no longer has.
    unsafe {
        let mut null = false;
        let xmin = pg_sys::slot_getsysattr(row, pg_sys::MinTransactionIdAttributeNumber, &mut null);
        let xmin = pg_sys::TransactionId::from(xmin.value() as u32);
        if pg_sys::TransactionIdIsCurrentTransactionId(xmin) {
            return Found::Own;
        }
        let (mut timestamp, mut origin) = (0, 0);
        let known = pg_sys::TransactionIdGetCommitTsData(xmin, &mut timestamp, &mut origin);
        if let Some(copied) = super::versions::true_version(origin, row) {
            return copied;
        }
        Found::Row {
            timestamp: known.then_some(timestamp),
            origin,
        }
    }
}
