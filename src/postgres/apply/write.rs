//! Putting a composed row into its table, or taking a found one out of it.

use pgrx::pg_sys;

use super::deferred::Queued;
use super::partitioned::Routed;
use super::table::OpenTable;
use crate::postgres::version;

impl OpenTable {
    /// # Safety
    /// Within [`Self::apply`]; `new_row` holds a row.
    pub(super) unsafe fn insert_new_row(&mut self) {
        // SAFETY: the slots belong to the open table.
        unsafe {
            self.open_indexes();
            pg_sys::ExecSimpleRelationInsert(self.result, self.estate, self.new_row);
            self.queue_deferred(Queued::Insert);
        }
    }

    /// Inserts a row that was composed for the table above.
    ///
    /// # Safety
    /// Within [`Self::apply`] of that table.
    pub(super) unsafe fn insert_routed(&mut self, routed: &Routed<'_>) {
        // SAFETY: the slots belong to the open tables.
        unsafe {
            routed.give(self.new_row);
            self.insert_new_row();
        }
    }

    /// # Safety
    /// Within [`Self::apply`]; `local_row` holds a locked row, `new_row` what it becomes.
    pub(super) unsafe fn update_locked_row(&mut self) {
        // SAFETY: the slots belong to the open table.
        unsafe {
            self.open_indexes();
            pg_sys::ExecSimpleRelationUpdate(
                self.result,
                self.estate,
                self.epq,
                self.local_row,
                self.new_row,
            );
            self.queue_deferred(Queued::Update);
        }
    }

    /// # Safety
    /// Within [`Self::apply`]; `local_row` holds a locked row.
    pub(super) unsafe fn delete_locked_row(&mut self) {
        // SAFETY: the slots belong to the open table.
        unsafe {
            self.open_indexes();
            pg_sys::ExecSimpleRelationDelete(self.result, self.estate, self.epq, self.local_row);
            self.queue_deferred(Queued::Delete);
        }
    }

    /// Updates the row without locking it first, which saves a WAL record and a visit of the page, and without opening
    /// the indexes when none of their columns changes. False when the row is no longer the one that was found.
    ///
    /// This is ExecSimpleRelationUpdate of PostgreSQL for a table without triggers and generated columns.
    ///
    /// # Safety
    /// Within [`Self::apply`]; `local_row` holds a row, `new_row` what it becomes.
    pub(super) unsafe fn update_row(&mut self) -> bool {
        // SAFETY: the relation is open and the slots belong to it.
        unsafe {
            pg_sys::CheckCmdReplicaIdentity(self.relation, pg_sys::CmdType::CMD_UPDATE);
            if !(*(*self.relation).rd_att).constr.is_null() {
                pg_sys::ExecConstraints(self.result, self.new_row, self.estate);
            }
            if (*(*self.relation).rd_rel).relispartition {
                pg_sys::ExecPartitionCheck(self.result, self.new_row, self.estate, true);
            }
            let previous = pg_sys::MemoryContextSwitchTo((*self.estate).es_query_cxt);
            let updated = version::update_tuple(self.relation, self.local_row, self.new_row);
            if let Some(version::Updated {
                new_index_entries: Some(which),
            }) = updated
            {
                self.open_indexes();
                version::insert_index_entries(self.result, self.new_row, self.estate, which);
            }
            pg_sys::MemoryContextSwitchTo(previous);
            updated.is_some()
        }
    }

    /// # Safety
    /// Within [`Self::apply`].
    unsafe fn open_indexes(&mut self) {
        if !self.indexes_open {
            self.indexes_open = true;
            // SAFETY: the state outlives the indexes; its memory is where they are kept.
            unsafe {
                let previous = pg_sys::MemoryContextSwitchTo((*self.estate).es_query_cxt);
                pg_sys::ExecOpenIndices(self.result, false);
                pg_sys::MemoryContextSwitchTo(previous);
            }
        }
    }
}
