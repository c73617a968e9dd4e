//! Keeps `ha.conflicts` within its bounds, a batch at a time.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::catalog::conflict_history;
use crate::postgres::worker;
use crate::settings;

/// Time between two looks,
const LOOK: Duration = Duration::from_secs(10);
/// and while there is more to forget than one batch.
const MORE: Duration = Duration::from_millis(200);

/// How many rows are looked at, as long as none of them has to go,
const GLANCE: usize = 100;
/// and once one had to.
const BATCH: usize = 20_000;

/// What the supervisor remembers of it.
pub(super) struct History {
    next: Instant,
    batch: usize,
    complained: String,
}

impl History {
    pub(super) fn new() -> History {
        History {
            next: Instant::now(),
            batch: GLANCE,
            complained: String::new(),
        }
    }

    /// Forgets what is beyond the bounds, if it is time to; returns how long nothing will have to be done.
    pub(super) fn tend(&mut self) -> Duration {
        let now = Instant::now();
        if now < self.next {
            return self.next - now;
        }
        let most = settings::max_conflicts();
        let retention = i64::try_from(settings::conflict_retention().as_millis()).unwrap_or(i64::MAX);
        // Somebody may have locked the table, or no standby may be there to confirm: the supervisor must not wait.
        let purged = worker::with_setting(c"lock_timeout", c"100ms", || {
            worker::with_setting(c"synchronous_commit", c"off", || {
                crate::workers::read(|| conflict_history::purge(most, retention, self.batch))
            })
        });
        let wait = match purged {
            Ok(count) => {
                self.complained.clear();
                self.batch = if count == 0 { GLANCE } else { BATCH };
                if count == 0 { LOOK } else { MORE }
            }
            Err(error) => {
                if self.complained != error {
                    log!("pg_ha cannot purge ha.conflict_history: {error}");
                    self.complained = error;
                }
                LOOK
            }
        };
        self.next = Instant::now() + wait;
        wait
    }
}
