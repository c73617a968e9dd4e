//! What a transaction changed, counted once it is committed: an attempt that failed and is repeated counts nothing.

use std::sync::atomic::Ordering::Relaxed;

use pg_ha_replication::conflict::Operation;

use crate::shared_state::layout::{self, TableCounters};

/// The changes of the open transaction.
#[derive(Default)]
pub(super) struct Counts {
    /// One entry for each table and operation, as they were met.
    of: Vec<Entry>,
    skipped: u64,
}

struct Entry {
    operation: Operation,
    table: Option<&'static TableCounters>,
    rows: u64,
}

impl Counts {
    /// A row was written.
    pub(super) fn wrote(&mut self, operation: Operation, table: Option<&'static TableCounters>) {
        let address = |table: Option<&'static TableCounters>| table.map(std::ptr::from_ref);
        let same =
            |entry: &&mut Entry| entry.operation == operation && address(entry.table) == address(table);
        // The last one first: rows of one table come one after the other.
        if let Some(entry) = self.of.iter_mut().rev().find(same) {
            entry.rows += 1;
        } else {
            self.of.push(Entry {
                operation,
                table,
                rows: 1,
            });
        }
    }

    /// A row lost, or found nothing to change.
    pub(super) fn skipped(&mut self) {
        self.skipped += 1;
    }

    /// The transaction did not happen.
    pub(super) fn forget(&mut self) {
        self.of.clear();
        self.skipped = 0;
    }

    /// The transaction is committed.
    pub(super) fn publish(&mut self, place: &layout::Subscription) {
        for entry in self.of.drain(..) {
            let (total, of_table) = match entry.operation {
                Operation::Insert => (&place.inserted, entry.table.map(|table| &table.inserted)),
                Operation::Update => (&place.updated, entry.table.map(|table| &table.updated)),
                Operation::Delete => (&place.deleted, entry.table.map(|table| &table.deleted)),
            };
            total.fetch_add(entry.rows, Relaxed);
            if let Some(of_table) = of_table {
                of_table.fetch_add(entry.rows, Relaxed);
            }
        }
        if self.skipped > 0 {
            place.skipped.fetch_add(self.skipped, Relaxed);
            self.skipped = 0;
        }
    }
}
