//! Starting copiers for the tables whose copy is due, a few at a time, with a growing delay for a table whose copy keeps
//! failing. The others do not wait for it.
//!
//! A process, a slot and a meeting with the applier cost more than a small table's rows. So small tables share one
//! copier, which brings them in one transaction. When that fails because of one of them, each goes by itself.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

use pg_ha_model::{Backoff, Millis};

use super::LOOK;
use crate::catalog::plan::PlannedSubscription;
use crate::catalog::subscription_tables::PendingTable;
use crate::postgres::worker;
use crate::settings;
use crate::shared_state::{copies, subscription};

/// A copier that has not shown up for so long never will: the server could not start it.
const START: Duration = Duration::from_secs(10);

/// A table is small up to this many bytes.
const SMALL: i64 = 1 << 20;

/// Most tables that one copier brings together.
const TOGETHER: usize = 100;

/// What is remembered of the tables whose copy is due, by their id.
#[derive(Default)]
pub(super) struct Copies {
    tables: HashMap<i32, Tended>,
}

struct Tended {
    backoff: Backoff,
    /// While its copier runs, as far as is known: the tables that this one brings together.
    running: Option<Vec<i32>>,
    next_start: Instant,
    /// A copy together with others failed because of one of them.
    alone: bool,
}

impl Copies {
    /// Starts what can be started; returns how long nothing will have to be done.
    pub(super) fn tend(&mut self, pending: &[PendingTable], planned: &[PlannedSubscription]) -> Duration {
        if pending.is_empty() && self.tables.is_empty() && copies::all().next().is_none() {
            return LOOK;
        }
        let by_id: HashMap<i32, &PendingTable> =
            pending.iter().map(|table| (table.table_id, table)).collect();
        self.tables.retain(|id, _| by_id.contains_key(id));
        // Also those of tables that nobody wants any more.
        let newest = crate::postgres::now() - START.as_micros() as i64;
        let mut running = HashSet::new();
        for copy in copies::all() {
            if copy.pid.load(Acquire) == 0 && copy.started_at.load(Relaxed) < newest {
                copy.release();
            } else {
                running.insert((copy.subscription_id(), copy.table_id()));
            }
        }
        let now = Instant::now();
        let mut next = LOOK;
        // Tables that could be started now, by subscription.
        let mut due: HashMap<i32, Vec<&PendingTable>> = HashMap::new();
        for table in pending {
            let tended = self.tables.entry(table.table_id).or_insert_with(|| Tended {
                backoff: Backoff::new(
                    Millis(settings::retry_min().as_millis() as u64),
                    Millis(settings::retry_max().as_millis() as u64),
                ),
                running: None,
                next_start: now,
                alone: false,
            });
            if running.contains(&(table.subscription_id, table.table_id)) {
                tended.running.get_or_insert_default();
                continue;
            }
            if let Some(together) = tended.running.take() {
                tended.next_start = now + Duration::from_millis(tended.backoff.next().0);
                tended.alone |= together
                    .iter()
                    .any(|id| by_id.get(id).is_some_and(|table| table.failed));
            }
            if now < tended.next_start {
                next = next.min(tended.next_start - now);
            } else {
                due.entry(table.subscription_id).or_default().push(table);
            }
        }
        for (subscription_id, due) in due {
            let limit = planned
                .iter()
                .find(|subscription| subscription.id == subscription_id)
                .and_then(|subscription| subscription.options.copy_workers())
                .map_or_else(settings::sync_workers, usize::from);
            next = next.min(self.start(subscription_id, limit, &due, now));
        }
        next
    }

    /// Starts copiers for a subscription's tables, so that up to `limit` run.
    fn start(&mut self, subscription_id: i32, limit: usize, due: &[&PendingTable], now: Instant) -> Duration {
        if !subscription::find(subscription_id).is_some_and(|place| place.is_wanted()) {
            return LOOK;
        }
        let busy = copies::of(subscription_id).filter(|copy| copy.leads()).count();
        // The end of one of those that run wakes this process.
        let free = limit.saturating_sub(busy);
        let mut left: Vec<&PendingTable> = due.to_vec();
        for remaining in (1..=free).rev() {
            let Some(first) = left.first().copied() else { break };
            let mut together = vec![first];
            if self.may_share(first) {
                // Those that may be brought at once share them.
                let sharing = left.iter().filter(|table| self.may_share(table)).count();
                let most = sharing.div_ceil(remaining).min(TOGETHER);
                let others = left.iter().skip(1).filter(|table| self.may_share(table));
                together.extend(others.take(most.saturating_sub(1)).copied());
            }
            let taken: HashSet<i32> = together.iter().map(|table| table.table_id).collect();
            left.retain(|table| !taken.contains(&table.table_id));
            if let Some(pause) = self.start_one(&together, now) {
                return pause;
            }
        }
        LOOK
    }

    fn may_share(&self, table: &PendingTable) -> bool {
        let alone = self
            .tables
            .get(&table.table_id)
            .is_some_and(|tended| tended.alone);
        table.expected_bytes <= SMALL && !table.failed && !alone
    }

    /// Starts one copier; returns how long to wait where the server has no room for it.
    fn start_one(&mut self, together: &[&PendingTable], now: Instant) -> Option<Duration> {
        let (first, others) = together.split_first()?;
        let leader = copies::claim(first.subscription_id, first.table_id, None)?;
        let mut ids = vec![first.table_id];
        for other in others {
            if copies::claim(other.subscription_id, other.table_id, Some(leader)).is_none() {
                break;
            }
            ids.push(other.table_id);
        }
        if worker::start_copier(leader).is_some() {
            for id in &ids {
                if let Some(tended) = self.tables.get_mut(id) {
                    tended.running = Some(ids.clone());
                }
            }
            return None;
        }
        for copy in copies::led_by(leader).iter().rev() {
            copy.release();
        }
        pgrx::log!(
            "pg_ha cannot copy table {} yet: all max_worker_processes are in use",
            first.qualified_name()
        );
        let mut pause = LOOK;
        for id in &ids {
            if let Some(tended) = self.tables.get_mut(id) {
                tended.next_start = now + Duration::from_millis(tended.backoff.next().0);
                pause = pause.min(tended.next_start - now);
            }
        }
        Some(pause)
    }
}
