//! The tables that the provider has described, and what they are here.

use std::collections::HashMap;
use std::rc::Rc;

use pg_ha_replication::codec;

use crate::postgres::apply::target::{RemoteTable, Target};
use crate::postgres::apply::{self, ApplyError, Opened};
use crate::postgres::invalidation::{self, Invalidated};
use crate::shared_state::layout::TableCounters;
use crate::shared_state::table;

/// A table of the provider.
pub(super) struct Known {
    remote: Rc<RemoteTable>,
    /// Its local counterpart, until that changes.
    target: Option<Target>,
    pub(super) counters: Option<&'static TableCounters>,
}

/// All of them, and those that the current transaction has opened.
pub(super) struct Tables {
    subscription_id: i32,
    known: HashMap<u32, Known>,
    open: Vec<(u32, Opened)>,
}

impl Tables {
    pub(super) fn new(subscription_id: i32) -> Tables {
        invalidation::register();
        Tables {
            subscription_id,
            known: HashMap::new(),
            open: Vec::new(),
        }
    }

    /// The provider describes a table, for the first time or anew.
    pub(super) fn describe(&mut self, relation: &codec::Relation<'_>) {
        if let Some(place) = self.open.iter().position(|(id, _)| *id == relation.id) {
            self.open.swap_remove(place).1.close();
        }
        let known = Known {
            remote: Rc::new(RemoteTable::new(relation)),
            target: None,
            counters: None,
        };
        self.known.insert(relation.id, known);
    }

    /// The table, opened in the current transaction.
    pub(super) fn open(
        &mut self,
        id: u32,
    ) -> Result<(&Target, &mut Opened, Option<&'static TableCounters>), ApplyError> {
        let place = match self.open.iter().position(|(open, _)| *open == id) {
            Some(place) => place,
            None => {
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
                return Ok(Opened::open(target));
            }
        }
    }

    /// The local counterpart of a table that the provider has described.
    pub(super) fn resolve(&mut self, id: u32) -> Result<(), ApplyError> {
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

    pub(super) fn target(&self, id: u32) -> Result<&Target, ApplyError> {
        self.known
            .get(&id)
            .and_then(|known| known.target.as_ref())
            .ok_or(ApplyError::UnknownTable(id))
    }

    /// Closes what the transaction opened; before its commit.
    pub(super) fn close(&mut self) {
        for (_, open) in self.open.drain(..) {
            open.close();
        }
    }

    /// Forgets what the transaction opened, after its abort released it.
    pub(super) fn forget_open(&mut self) {
        self.open.clear();
    }

    /// Targets in use stay: their tables are locked, so that nobody else changes them before the transaction ends.
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
            if !in_use.contains(id) && known.target.as_ref().is_some_and(&is_changed) {
                known.target = None;
            }
        }
    }
}
