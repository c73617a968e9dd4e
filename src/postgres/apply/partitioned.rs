//! A partitioned table as the target of changes: which partition a row belongs to, and rows that move.
//!
//! Every partition is a target of its own, with its own columns, indexes and triggers; the server's tuple routing says
//! which one a new row goes to. Where the table has a unique index rows can be found by, that holds the partition key,
//! so that a row's key leads to its partition too; otherwise the partitions are searched one after the other.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use pg_ha_replication::codec::{OldKind, Tuple};
use pg_ha_replication::conflict::{Action, Decision};
use pgrx::pg_sys;
use pgrx::{PgSqlErrorCode, PgTryBuilder};

use super::acting::Operation;
use super::compose::clear;
use super::table::{Look, OpenTable, RowChange, Updated};
use super::target::{Key, Target};
use super::{ApplyError, Found};
use crate::postgres::version;

// Exported by the server and not bound by pgrx.
unsafe extern "C-unwind" {
    fn ExecSetupPartitionTupleRouting(
        estate: *mut pg_sys::EState,
        relation: pg_sys::Relation,
    ) -> *mut pg_sys::PartitionTupleRouting;
    fn ExecFindPartition(
        state: *mut pg_sys::ModifyTableState,
        root: *mut pg_sys::ResultRelInfo,
        routing: *mut pg_sys::PartitionTupleRouting,
        slot: *mut pg_sys::TupleTableSlot,
        estate: *mut pg_sys::EState,
    ) -> *mut pg_sys::ResultRelInfo;
    fn ExecCleanupTupleRouting(
        state: *mut pg_sys::ModifyTableState,
        routing: *mut pg_sys::PartitionTupleRouting,
    );
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

/// A partitioned table, opened for the current transaction; released as an [`OpenTable`] is.
pub(crate) struct PartitionedTable {
    /// The table itself: rows are composed here to be routed.
    root: OpenTable,
    state: *mut pg_sys::ModifyTableState,
    routing: *mut pg_sys::PartitionTupleRouting,
    leaves: Vec<Leaf>,
    /// Where among them a partition is.
    opened: HashMap<pg_sys::Oid, usize>,
    /// All partitions that hold rows, once they had to be searched.
    all: Option<Vec<pg_sys::Oid>>,
}

struct Leaf {
    target: Rc<Target>,
    table: OpenTable,
    /// For each column of the table above its place in the partition.
    places: Vec<Option<usize>>,
}

/// A row composed for the table above, on its way to a partition.
pub(super) struct Routed<'r> {
    pub(super) slot: *mut pg_sys::TupleTableSlot,
    pub(super) places: &'r [Option<usize>],
    /// A column that it lacks, by its place among the columns that come.
    pub(super) lacks: Option<usize>,
}

impl Routed<'_> {
    /// Puts a row of the partition into the slot of the table above.
    ///
    /// # Safety
    /// `row` is a virtual slot of the partition, with a row in it.
    pub(super) unsafe fn take(&self, row: *mut pg_sys::TupleTableSlot) {
        // SAFETY: places are columns of the partition; the slot keeps copies of its own.
        unsafe {
            clear(self.slot);
            for (index, place) in self.places.iter().enumerate() {
                if let Some(place) = place {
                    *(*self.slot).tts_values.add(index) = *(*row).tts_values.add(*place);
                    *(*self.slot).tts_isnull.add(index) = *(*row).tts_isnull.add(*place);
                }
            }
            pg_sys::ExecStoreVirtualTuple(self.slot);
            pg_sys::ExecMaterializeSlot(self.slot);
        }
    }

    /// Puts the row of the table above into a slot of the partition; it lives as long as the row above.
    ///
    /// # Safety
    /// `row` is a virtual slot of the partition.
    pub(super) unsafe fn give(&self, row: *mut pg_sys::TupleTableSlot) {
        // SAFETY: places are columns of the partition.
        unsafe {
            clear(row);
            for (index, place) in self.places.iter().enumerate() {
                if let Some(place) = place {
                    *(*row).tts_values.add(*place) = *(*self.slot).tts_values.add(index);
                    *(*row).tts_isnull.add(*place) = *(*self.slot).tts_isnull.add(index);
                }
            }
            pg_sys::ExecStoreVirtualTuple(row);
        }
    }
}

impl PartitionedTable {
    /// Opens the table in the current transaction; its partitions as rows come to them.
    ///
    /// # Errors
    /// As [`OpenTable::open`].
    pub(crate) fn open(target: &Target) -> Result<PartitionedTable, ApplyError> {
        let root = OpenTable::open(target, true)?;
        // Partition keys may be computed by functions.
        let acting = target.actor.begin();
        // SAFETY: as apply_handle_tuple_routing of PostgreSQL's own worker: a node without a plan.
        unsafe {
            let previous = pg_sys::MemoryContextSwitchTo((*root.estate).es_query_cxt);
            let state: *mut pg_sys::ModifyTableState =
                pg_sys::palloc0(core::mem::size_of::<pg_sys::ModifyTableState>()).cast();
            (*state).ps.type_ = pg_sys::NodeTag::T_ModifyTableState;
            (*state).ps.state = root.estate;
            (*state).operation = pg_sys::CmdType::CMD_INSERT;
            (*state).resultRelInfo = root.result;
            let routing = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                ExecSetupPartitionTupleRouting(root.estate, root.relation)
            });
            pg_sys::MemoryContextSwitchTo(previous);
            acting.end();
            Ok(PartitionedTable {
                root,
                state,
                routing,
                leaves: Vec::new(),
                opened: HashMap::new(),
                all: None,
            })
        }
    }

    /// Closes everything; the locks stay until the end of the transaction.
    pub(crate) fn close(self) {
        for leaf in self.leaves {
            leaf.table.close();
        }
        // SAFETY: set up by `open`, used up here.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| ExecCleanupTupleRouting(self.state, self.routing));
        }
        self.root.close();
    }

    /// As [`OpenTable::apply`].
    pub(crate) fn apply(
        &mut self,
        target: &Target,
        change: &RowChange<'_, '_>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
        target.check(match change {
            RowChange::Insert(..) => Operation::Insert,
            RowChange::Update(..) => Operation::Update,
            RowChange::Delete(..) => Operation::Delete,
        })?;
        // SAFETY: in a transaction; the snapshot is popped and the per-tuple memory reset before return. On an error
        // both are released by the abort.
        unsafe {
            let entered = self.root.enter();
            let outcome = match change {
                RowChange::Insert(new, look) => self.insert(target, new, *look, judge),
                RowChange::Update(old, new) => self.update(target, *old, new, judge),
                RowChange::Delete(kind, old) => self.delete(target, *kind, old, judge),
            };
            self.root.leave(entered);
            outcome
        }
    }

    /// # Safety
    /// Within [`Self::apply`].
    unsafe fn insert(
        &mut self,
        target: &Target,
        new: &Tuple<'_>,
        look: Look,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
        // SAFETY: slots and partitions belong to the open table.
        unsafe {
            self.root.lacks = None;
            self.root.fill_from_remote(target, new, false)?;
            let lacks = self.root.lacks;
            let place = self.route(target)?;
            let slot = self.root.new_row;
            let leaf = &mut self.leaves[place];
            let routed = Routed {
                slot,
                places: &leaf.places,
                lacks,
            };
            let entered = leaf.table.enter();
            let outcome = leaf.table.insert(&leaf.target, new, look, Some(&routed), judge);
            leaf.table.leave(entered);
            outcome
        }
    }

    /// # Safety
    /// Within [`Self::apply`].
    unsafe fn update(
        &mut self,
        target: &Target,
        old: Option<(OldKind, &Tuple<'_>)>,
        new: &Tuple<'_>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
        let (kind, key_row) = old.unwrap_or((OldKind::Full, new));
        // SAFETY: slots and partitions belong to the open table.
        unsafe {
            let outcome = match self.locate(target, kind, key_row)? {
                Some(place) => {
                    let slot = self.root.new_row;
                    let leaf = &mut self.leaves[place];
                    let routed = Routed {
                        slot,
                        places: &leaf.places,
                        lacks: None,
                    };
                    let entered = leaf.table.enter();
                    let outcome = leaf.table.update(&leaf.target, old, new, Some(&routed), judge);
                    leaf.table.leave(entered);
                    outcome?
                }
                None => {
                    let decision = judge(Found::Missing);
                    self.root
                        .tell(target, &decision, false, (kind, key_row), Some(new));
                    if decision.action == Action::Insert {
                        Updated::ToInsert(decision)
                    } else {
                        Updated::Done(decision)
                    }
                }
            };
            let decision = match outcome {
                Updated::Done(decision) => return Ok(decision),
                Updated::ToInsert(decision) => {
                    self.root.lacks = None;
                    self.root.fill_from_remote(target, new, false)?;
                    if let Some(column) = self.root.lacks {
                        return Err(target.incomplete(column));
                    }
                    decision
                }
                // The old row is deleted, the new one stands in the root's slot.
                Updated::Moves(decision) => decision,
            };
            let place = self.route(target)?;
            let slot = self.root.new_row;
            let leaf = &mut self.leaves[place];
            leaf.target.check(Operation::Insert)?;
            let entered = leaf.table.enter();
            leaf.table.insert_routed(&Routed {
                slot,
                places: &leaf.places,
                lacks: None,
            });
            leaf.table.leave(entered);
            Ok(decision)
        }
    }

    /// # Safety
    /// Within [`Self::apply`].
    unsafe fn delete(
        &mut self,
        target: &Target,
        kind: OldKind,
        old: &Tuple<'_>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
        // SAFETY: slots and partitions belong to the open table.
        unsafe {
            match self.locate(target, kind, old)? {
                Some(place) => {
                    let leaf = &mut self.leaves[place];
                    let entered = leaf.table.enter();
                    let outcome = leaf.table.delete(&leaf.target, kind, old, judge);
                    leaf.table.leave(entered);
                    outcome
                }
                None => {
                    let decision = judge(Found::Missing);
                    self.root.tell(target, &decision, false, (kind, old), None);
                    Ok(decision)
                }
            }
        }
    }

    /// The partition in which the row with a key stands, or would stand; None if there is none.
    ///
    /// # Safety
    /// Within [`Self::apply`].
    unsafe fn locate(
        &mut self,
        target: &Target,
        kind: OldKind,
        row: &Tuple<'_>,
    ) -> Result<Option<usize>, ApplyError> {
        // SAFETY: slots and partitions belong to the open table.
        unsafe {
            if matches!(target.key, Key::Index { .. }) {
                self.root.fill_key(target, kind, row)?;
                return match self.find_partition() {
                    Some(oid) => self.leaf(target, oid).map(Some),
                    None => Ok(None),
                };
            }
            let mut searchable = false;
            for oid in self.all_leaves(target) {
                let place = self.leaf(target, oid)?;
                let leaf = &mut self.leaves[place];
                if matches!(leaf.target.key, Key::None) {
                    continue;
                }
                searchable = true;
                let entered = leaf.table.enter();
                // Locked, so that nobody moves it to another partition before it is looked at again.
                let found = leaf.table.find(&leaf.target, kind, row, true);
                leaf.table.leave(entered);
                if !matches!(found?, Found::Missing) {
                    return Ok(Some(place));
                }
            }
            if searchable {
                Ok(None)
            } else {
                Err(target.no_key())
            }
        }
    }

    /// The partition for the row in the root's slot; raises where there is none.
    ///
    /// # Safety
    /// Within [`Self::apply`].
    unsafe fn route(&mut self, target: &Target) -> Result<usize, ApplyError> {
        // SAFETY: the routing belongs to this table.
        let oid = unsafe { self.partition_of_slot() };
        self.leaf(target, oid)
    }

    /// As [`Self::route`], but None where there is no partition.
    ///
    /// # Safety
    /// Within [`Self::apply`].
    unsafe fn find_partition(&mut self) -> Option<pg_sys::Oid> {
        let table = AssertUnwindSafe(&*self);
        // SAFETY: the error that is caught is raised before anything is opened or locked, so that there is nothing to
        // give back; the memory context is the one of the caller again.
        unsafe {
            let memory = pg_sys::CurrentMemoryContext;
            let found = PgTryBuilder::new(AssertUnwindSafe(|| Some(table.partition_of_slot())))
                .catch_when(PgSqlErrorCode::ERRCODE_CHECK_VIOLATION, |_| None)
                .execute();
            pg_sys::MemoryContextSwitchTo(memory);
            found
        }
    }

    /// # Safety
    /// Within [`Self::apply`], with a row in the root's slot.
    unsafe fn partition_of_slot(&self) -> pg_sys::Oid {
        // SAFETY: state and routing were set up together; what it opens is kept in the query's memory.
        unsafe {
            let root = &self.root;
            let result = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                ExecFindPartition(self.state, root.result, self.routing, root.new_row, root.estate)
            });
            (*(*result).ri_RelationDesc).rd_id
        }
    }

    /// A partition, opened.
    fn leaf(&mut self, target: &Target, oid: pg_sys::Oid) -> Result<usize, ApplyError> {
        if let Some(place) = self.opened.get(&oid) {
            return Ok(*place);
        }
        let leaf_target = target.partition(oid)?;
        // SAFETY: what is opened lives in the memory of the table above, which is closed after its partitions.
        let table = unsafe {
            let previous = pg_sys::MemoryContextSwitchTo((*self.root.estate).es_query_cxt);
            let table = OpenTable::open(&leaf_target, false);
            pg_sys::MemoryContextSwitchTo(previous);
            table?
        };
        // SAFETY: both relations are open.
        let places = unsafe {
            let (above, below) = ((*self.root.relation).rd_att, (*table.relation).rd_att);
            (0..(*above).natts as usize)
                .map(|index| {
                    let attribute = version::attribute(above, index);
                    if attribute.attisdropped {
                        return None;
                    }
                    let name = core::ffi::CStr::from_ptr(attribute.attname.data.as_ptr());
                    (0..(*below).natts as usize).find(|place| {
                        let other = version::attribute(below, *place);
                        !other.attisdropped && core::ffi::CStr::from_ptr(other.attname.data.as_ptr()) == name
                    })
                })
                .collect()
        };
        self.opened.insert(oid, self.leaves.len());
        self.leaves.push(Leaf {
            target: leaf_target,
            table,
            places,
        });
        Ok(self.leaves.len() - 1)
    }

    /// All partitions that hold rows here.
    fn all_leaves(&mut self, target: &Target) -> Vec<pg_sys::Oid> {
        self.all.get_or_insert_with(|| leaves(target.oid)).clone()
    }
}

/// The partitions of a table, without those that are partitioned themselves, locked for changes.
fn leaves(root: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    inheritors(root, pg_sys::RowExclusiveLock as i32)
        .into_iter()
        // SAFETY: a look-up of an existing relation.
        .filter(|oid| unsafe { pg_sys::get_rel_relkind(*oid) as u8 } == pg_sys::RELKIND_RELATION)
        .collect()
}

/// A table and everything below it, locked.
pub(super) fn inheritors(root: pg_sys::Oid, lock: pg_sys::LOCKMODE) -> Vec<pg_sys::Oid> {
    // SAFETY: in a transaction; the list holds oids.
    unsafe {
        let list =
            pg_sys::ffi::pg_guard_ffi_boundary(|| find_all_inheritors(root, lock, core::ptr::null_mut()));
        let count = if list.is_null() { 0 } else { (*list).length };
        (0..count)
            .map(|place| pg_sys::list_nth_oid(list, place))
            .collect()
    }
}
