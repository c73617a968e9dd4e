//! Starting copiers for the tables whose copy is due, a few at a time, with a growing delay for a table whose copy keeps
//! failing. The others do not wait for it.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

use pg_ha_model::{Backoff, Millis};

use super::LOOK;
use crate::catalog::subscription_tables::PendingTable;
use crate::postgres::worker;
use crate::settings;
use crate::shared_state::{self, copies, subscription};

/// A copier that has not shown up for so long never will: the server could not start it.
const START: Duration = Duration::from_secs(10);

/// What is remembered of the tables whose copy is due, by their id.
#[derive(Default)]
pub(super) struct Copies {
    tables: HashMap<i32, Tended>,
}

struct Tended {
    backoff: Backoff,
    /// When its copier was started, while it runs as far as is known.
    started: Option<Instant>,
    next_start: Instant,
}

impl Copies {
    /// Starts what can be started; returns how long nothing will have to be done.
    pub(super) fn tend(&mut self, pending: &[PendingTable]) -> Duration {
        self.tables
            .retain(|id, _| pending.iter().any(|table| table.table_id == *id));
        // Also those of tables that nobody wants any more.
        let newest = crate::postgres::now() - START.as_micros() as i64;
        for copy in copies::all() {
            if copy.pid.load(Acquire) == 0 && copy.started_at.load(Relaxed) < newest {
                copy.release();
            }
        }
        let now = Instant::now();
        let mut next = LOOK;
        for table in pending {
            let tended = self.tables.entry(table.table_id).or_insert_with(|| Tended {
                backoff: Backoff::new(
                    Millis(settings::retry_min().as_millis() as u64),
                    Millis(settings::retry_max().as_millis() as u64),
                ),
                started: None,
                next_start: now,
            });
            next = next.min(tended.look(table, now));
        }
        next
    }
}

impl Tended {
    fn look(&mut self, table: &PendingTable, now: Instant) -> Duration {
        if copies::find(table.subscription_id, table.table_id).is_some() {
            self.started.get_or_insert(now);
            return LOOK;
        }
        if self.started.take().is_some() {
            self.next_start = now + Duration::from_millis(self.backoff.next().0);
        }
        if now < self.next_start {
            return self.next_start - now;
        }
        let wanted = subscription::find(table.subscription_id).is_some_and(|place| place.is_wanted());
        if !wanted || copies::of(table.subscription_id).count() >= settings::sync_workers() {
            // The end of one of those that run wakes this process.
            return LOOK;
        }
        let Some(place) = copies::claim(table.subscription_id, table.table_id) else {
            return LOOK;
        };
        if worker::start_copier(place).is_none()
            && let Some(area) = shared_state::area()
        {
            area.copies[place].release();
            pgrx::log!(
                "pg_ha cannot copy table {} yet: all max_worker_processes are in use",
                table.qualified_name()
            );
            self.next_start = now + Duration::from_millis(self.backoff.next().0);
            return self.next_start - now;
        }
        self.started = Some(now);
        LOOK
    }
}
