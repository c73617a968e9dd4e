//! The tables that the provider has described, and what they are here.

use std::collections::HashMap;
use std::rc::Rc;

use pg_ha_replication::codec;
use pg_ha_replication::once::Shape;

use crate::catalog::{self, subscription_tables};
use crate::postgres::apply::target::{RemoteTable, Target};
use crate::postgres::apply::{self, ApplyError, Opened};
use crate::postgres::invalidation::{self, Invalidated};
use crate::postgres::worker;
use crate::shared_state::layout::TableCounters;
use crate::shared_state::table;

/// Which transactions of the stream may change a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::workers) enum Gate {
    /// All.
    Open,
    /// Those that end beyond this position of the provider: what comes before was copied.
    Beyond(u64),
    /// None: a copy of the table will bring everything.
    Closed,
}

/// A table of the provider.
pub(in crate::workers) struct Known {
    remote: Rc<RemoteTable>,
    shape: Rc<Shape>,
    gate: Gate,
    /// Its local counterpart, until that changes.
    target: Option<Target>,
    counters: Option<&'static TableCounters>,
}

/// Why it is not known whether a table may be truncated.
#[derive(Debug, thiserror::Error)]
pub(in crate::workers) enum TruncateError {
    #[error(transparent)]
    Table(#[from] ApplyError),
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
}

/// How many tables are open at once. Each open one holds a scan of its index, and with it a page of the server's shared
/// buffers, and some kilobytes: a transaction that changes thousands of tables must not hold that of all of them.
const MAX_OPEN: usize = 128;

/// All of them, and those that the current transaction has opened.
pub(in crate::workers) struct Tables {
    subscription_id: i32,
    known: HashMap<u32, Known>,
    /// The tables, by schema and name, that are not open to all transactions.
    gates: HashMap<(String, String), Gate>,
    open: Vec<(u32, Opened)>,
    /// Those whose definition changed while they were open.
    outdated: Vec<u32>,
}

impl Tables {
    pub(in crate::workers) fn new(subscription_id: i32) -> Tables {
        invalidation::register();
        Tables {
            subscription_id,
            known: HashMap::new(),
            gates: HashMap::new(),
            open: Vec::new(),
            outdated: Vec::new(),
        }
    }

    /// The provider describes a table, for the first time or anew.
    pub(in crate::workers) fn describe(&mut self, relation: &codec::Relation<'_>) {
        if let Some(place) = self.open.iter().position(|(id, _)| *id == relation.id) {
            self.open.swap_remove(place).1.close();
        }
        let remote = RemoteTable::new(relation);
        let known = Known {
            gate: gate(&self.gates, &remote),
            shape: Rc::new(shape(&remote)),
            remote: Rc::new(remote),
            target: None,
            counters: None,
        };
        self.known.insert(relation.id, known);
    }

    /// Sets which tables are not open to all transactions.
    pub(in crate::workers) fn set_gates(&mut self, gates: HashMap<(String, String), Gate>) {
        for known in self.known.values_mut() {
            known.gate = gate(&gates, &known.remote);
        }
        self.gates = gates;
    }

    /// Closes one table to the stream, until the gates are set again.
    pub(in crate::workers) fn close_gate(&mut self, schema: String, name: String) {
        let mut gates = core::mem::take(&mut self.gates);
        gates.insert((schema, name), Gate::Closed);
        self.set_gates(gates);
    }

    /// Whether a transaction that ends at this position of the provider may change the table.
    pub(in crate::workers) fn may_change(&self, id: u32, end_lsn: u64) -> bool {
        if self.gates.is_empty() {
            return true;
        }
        match self.known.get(&id).map(|known| known.gate) {
            Some(Gate::Closed) => false,
            Some(Gate::Beyond(position)) => end_lsn > position,
            Some(Gate::Open) | None => true,
        }
    }

    /// The same for a table that is truncated under its own name: a table above it may be what is copied.
    pub(in crate::workers) fn may_truncate(&mut self, id: u32, end_lsn: u64) -> Result<bool, TruncateError> {
        if self.gates.is_empty() {
            return Ok(true);
        }
        if !self.may_change(id, end_lsn) {
            return Ok(false);
        }
        self.resolve(id)?;
        let oid = self.target(id)?.oid;
        let above = worker::with_latest_snapshot(|| subscription_tables::tables_above(oid))?;
        Ok(above.iter().all(|name| match self.gates.get(name) {
            Some(Gate::Closed) => false,
            Some(Gate::Beyond(position)) => end_lsn > *position,
            Some(Gate::Open) | None => true,
        }))
    }

    /// The table, opened in the current transaction.
    pub(in crate::workers) fn open(
        &mut self,
        id: u32,
    ) -> Result<(&Target, &mut Opened, Option<&'static TableCounters>), ApplyError> {
        let place = match self.open.iter().position(|(open, _)| *open == id) {
            // Those in steady use come to the front, where they are found at once.
            Some(place) if place >= 8 => {
                self.open.swap(place, place / 2);
                place / 2
            }
            Some(place) => place,
            None => {
                if self.open.len() >= MAX_OPEN {
                    self.close();
                }
                let opened = self.open_now(id)?;
                self.open.push((id, opened));
                self.open.len() - 1
            }
        };
        let known = self.known.get(&id).ok_or(ApplyError::UnknownTable(id))?;
        let target = known.target.as_ref().ok_or(ApplyError::UnknownTable(id))?;
        Ok((target, &mut self.open[place].1, known.counters))
    }

    fn open_now(&mut self, id: u32) -> Result<Opened, ApplyError> {
        loop {
            self.resolve(id)?;
            let oid = self.target(id)?.oid;
            apply::lock_table(oid);
            // Taking the lock may have told us of a change that the target does not know yet.
            self.forget_changed();
            if let Some(target) = self.known.get(&id).and_then(|known| known.target.as_ref())
                && target.oid == oid
            {
                return Opened::open(target);
            }
        }
    }

    /// The local counterpart of a table that the provider has described.
    pub(in crate::workers) fn resolve(&mut self, id: u32) -> Result<(), ApplyError> {
        self.forget_changed();
        let subscription_id = self.subscription_id;
        let known = self.known.get_mut(&id).ok_or(ApplyError::UnknownTable(id))?;
        if known.target.is_none() {
            let target = Target::resolve(&known.remote)?;
            known.counters = table::counters(subscription_id, target.oid.to_u32());
            known.target = Some(target);
        }
        Ok(())
    }

    /// By what changes of the table are recognised when they come again.
    pub(in crate::workers) fn shape(&self, id: u32) -> Result<Rc<Shape>, ApplyError> {
        let known = self.known.get(&id).ok_or(ApplyError::UnknownTable(id))?;
        Ok(Rc::clone(&known.shape))
    }

    pub(in crate::workers) fn target(&self, id: u32) -> Result<&Target, ApplyError> {
        self.known
            .get(&id)
            .and_then(|known| known.target.as_ref())
            .ok_or(ApplyError::UnknownTable(id))
    }

    /// Closes what the transaction opened; before its commit, or to open others.
    pub(in crate::workers) fn close(&mut self) {
        for (_, open) in self.open.drain(..) {
            open.close();
        }
        self.forget_outdated();
    }

    /// Forgets what the transaction opened, after its abort released it.
    pub(in crate::workers) fn forget_open(&mut self) {
        self.open.clear();
        self.forget_outdated();
    }

    fn forget_outdated(&mut self) {
        for id in self.outdated.drain(..) {
            if let Some(known) = self.known.get_mut(&id) {
                known.target = None;
            }
        }
    }

    /// Targets in use stay until they are closed: their tables are locked, so that nobody else changes what matters to
    /// them before. (Rights and indexes can change under that lock.)
    fn forget_changed(&mut self) {
        let changed = invalidation::take();
        let in_use: Vec<u32> = self.open.iter().map(|(id, _)| *id).collect();
        let is_changed = |target: &Target| match &changed {
            Invalidated::Nothing => false,
            Invalidated::All => true,
            Invalidated::Relations(oids) => oids.contains(&target.oid),
        };
        if matches!(changed, Invalidated::Nothing) {
            return;
        }
        for (id, known) in &mut self.known {
            if !known.target.as_ref().is_some_and(&is_changed) {
                continue;
            }
            if !in_use.contains(id) {
                known.target = None;
            } else if !self.outdated.contains(id) {
                self.outdated.push(*id);
            }
        }
    }
}

fn shape(remote: &RemoteTable) -> Shape {
    // Where whole rows are the identity there may be several alike.
    let columns = remote.columns.iter();
    let columns = columns.map(|column| (column.name.as_str(), column.key && !remote.full_identity));
    Shape::new(&remote.namespace, &remote.name, columns)
}

fn gate(gates: &HashMap<(String, String), Gate>, remote: &RemoteTable) -> Gate {
    if gates.is_empty() {
        return Gate::Open;
    }
    let name = (remote.namespace.clone(), remote.name.clone());
    gates.get(&name).copied().unwrap_or(Gate::Open)
}
