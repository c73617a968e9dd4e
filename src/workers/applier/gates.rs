//! Which tables the stream leaves alone because a copier is at work on them, and the meeting with the copiers (see
//! [`crate::shared_state::copies`]). All of it happens between two transactions.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::time::Duration;

use super::tables::{Gate, Tables};
use crate::catalog::subscription_tables as catalog;
use crate::durable::events::{self, Severity};
use crate::postgres::{latch, worker};
use crate::shared_state::copies::{self, Phase};
use crate::shared_state::{self, layout};

/// What the applier knows of the tables that are being copied.
pub(super) struct Gates {
    place: &'static layout::Subscription,
    subscription_id: i32,
    /// As of which generation of the catalogs.
    generation: Option<u64>,
    /// Copied tables and the positions from which on they are like any other.
    copied: Vec<(i32, String, u64)>,
}

impl Gates {
    pub(super) fn new(place: &'static layout::Subscription, subscription_id: i32) -> Gates {
        // A copier may be waiting for the position of the applier that was here before.
        place.handover.store(1, Release);
        Gates {
            place,
            subscription_id,
            generation: None,
            copied: Vec::new(),
        }
    }

    /// Does what copiers wait for, and learns what has changed. Two loads where there is nothing to do. `position`:
    /// everything of the provider before it has been dealt with.
    pub(super) fn attend(&mut self, position: u64, tables: &mut Tables) -> Result<(), String> {
        let Some(area) = shared_state::area() else {
            return Ok(());
        };
        if self.place.handover.load(Acquire) != 0 && self.place.handover.swap(0, AcqRel) != 0 {
            self.hand_over(position);
        }
        let current = area.catalog_generation.load(Acquire);
        if self.generation != Some(current) {
            self.look(tables)?;
            self.generation = Some(current);
            self.place.gates_generation.store(current, Release);
            for copy in copies::of(self.subscription_id) {
                latch::wake(copy.pid.load(Acquire));
            }
        }
        if self.copied.iter().any(|(_, _, from)| *from <= position) {
            self.open(position)?;
        }
        Ok(())
    }

    /// Tells the copiers that wait where this process stands, and stays there until they have finished.
    fn hand_over(&self, position: u64) {
        for copy in copies::of(self.subscription_id) {
            if copy.hand_over_at(position) {
                latch::wake(copy.pid.load(Acquire));
            }
        }
        while copies::of(self.subscription_id).any(|copy| copy.phase() == Phase::Handing) {
            worker::heed_signals(0);
            latch::wait(Duration::from_secs(1));
        }
    }

    fn look(&mut self, tables: &mut Tables) -> Result<(), String> {
        let id = self.subscription_id;
        let found = crate::workers::read(|| catalog::gated(id))?;
        self.copied = found
            .iter()
            .filter_map(|table| {
                let name = pgrx::spi::quote_qualified_identifier(&table.schema, &table.name);
                table.from.map(|from| (table.table_id, name, from))
            })
            .collect();
        let gates: HashMap<(String, String), Gate> = found
            .into_iter()
            .map(|table| {
                let gate = table.from.map_or(Gate::Closed, Gate::Beyond);
                ((table.schema, table.name), gate)
            })
            .collect();
        tables.set_gates(gates);
        Ok(())
    }

    /// The stream has passed the positions of some copied tables: from here on they are like any other.
    fn open(&mut self, position: u64) -> Result<(), String> {
        let passed: Vec<(i32, String)> = self
            .copied
            .iter()
            .filter(|(_, _, from)| *from <= position)
            .map(|(id, name, _)| (*id, name.clone()))
            .collect();
        let ids: Vec<i32> = passed.iter().map(|(id, _)| *id).collect();
        crate::workers::read(|| catalog::set_ready(&ids))?;
        self.copied.retain(|(_, _, from)| *from > position);
        let subscription = self.place.text.read(|text| text.name.as_str().to_owned());
        // One event for all that came together: each is a write to the disk that the stream waits for.
        let tables: Vec<String> = passed.into_iter().map(|(_, table)| table).collect();
        let what = match tables.as_slice() {
            [table] => format!("table {table} of subscription \"{subscription}\" is copied and replicates"),
            tables => format!(
                "{} tables of subscription \"{subscription}\" are copied and replicate",
                tables.len()
            ),
        };
        events::record(
            "table_copied",
            Severity::Info,
            &what,
            serde_json::json!({ "subscription": subscription, "tables": tables }),
        );
        shared_state::catalog_changed();
        Ok(())
    }
}
