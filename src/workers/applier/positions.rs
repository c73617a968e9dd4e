//! How far everything is: what the receiver reports to the provider, and `ha.status_subscriptions` shows.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::time::{Duration, Instant};

use pg_ha_model::Lsn;
use pg_ha_replication::progress::{self, FlushTracker};
use pgrx::prelude::*;

use super::transaction;
use crate::durable::events::{self, Severity};
use crate::postgres::origin::Origin;
use crate::postgres::{self, latch, server, worker};
use crate::shared_state::{Status, layout};

/// How long commits may stay undurable before this process looks for their flush (the WAL writer's own delay).
const FLUSH_LOOK: Duration = Duration::from_millis(200);

/// The same while the provider's commits wait for this server: several share a flush when they come thick.
const SYNCHRONOUS_LOOK: Duration = Duration::from_millis(2);

/// Shortest time between two signals to the receiver.
const WAKE_PAUSE: Duration = Duration::from_millis(5);

/// Longest idle wait.
const IDLE: Duration = Duration::from_secs(10);

/// The positions of one stream.
pub(super) struct Positions {
    tracker: FlushTracker,
    place: &'static layout::Subscription,
    origin: Origin,
    changed: bool,
    woken: Instant,
    /// When a position at which nothing was committed was recorded last.
    recorded: Instant,
    /// Somebody waits for the provider to hear of what is done up to now.
    asked: bool,
    /// The provider's commits wait for this subscription.
    synchronous: bool,
}

impl Positions {
    pub(super) fn new(place: &'static layout::Subscription, origin: Origin, start: u64) -> Positions {
        // The provider tells each session anew.
        place.synchronous.store(0, Release);
        Positions {
            tracker: FlushTracker::new(Lsn(start)),
            place,
            origin,
            changed: false,
            woken: Instant::now(),
            recorded: Instant::now(),
            asked: false,
            synchronous: false,
        }
    }

    pub(super) fn place(&self) -> &'static layout::Subscription {
        self.place
    }

    /// Everything of the provider before it has been dealt with.
    pub(super) fn applied(&self) -> u64 {
        self.tracker.applied().0
    }

    /// How often to publish while there is always something to do.
    pub(super) fn look(&self) -> Duration {
        if self.synchronous {
            SYNCHRONOUS_LOOK
        } else {
            FLUSH_LOOK
        }
    }

    pub(super) fn committed(&mut self, remote_end: u64, local_end: u64) {
        self.recovered();
        self.tracker.committed(Lsn(remote_end), Lsn(local_end));
        layout::Subscription::raise(&self.place.applied_lsn, self.tracker.applied().0);
        self.changed = true;
    }

    pub(super) fn received(&mut self, position: u64) {
        if position > self.place.applied_lsn.load(Acquire) {
            self.recovered();
        }
        self.tracker.remote_received(Lsn(position));
        layout::Subscription::raise(&self.place.applied_lsn, self.tracker.applied().0);
        self.changed = true;
    }

    pub(super) fn asked(&mut self) {
        self.asked = true;
    }

    /// Something was applied: what failed before does not any more.
    fn recovered(&mut self) {
        if self.place.failed_in_applier.swap(0, AcqRel) == 0 {
            return;
        }
        self.place.clear_error();
        self.place.set_action("streaming");
        if self.place.set_status(Status::Replicating) {
            let name = self.place.text.read(|text| text.name.as_str().to_owned());
            log!("pg_ha subscription \"{name}\" replicates again");
            events::record(
                "subscription",
                Severity::Info,
                &format!("subscription \"{name}\" is replicating again"),
                serde_json::json!({ "subscription": name, "status": "replicating" }),
            );
        }
    }

    /// Looks what has become durable, and wakes the receiver if there is news and it was not woken just now: a signal
    /// per transaction would cost more than the transaction's rows. Returns how long to wait before the next look.
    /// `between`: no transaction is open.
    pub(super) fn publish(&mut self, between: bool) -> Result<Duration, String> {
        let mut next = IDLE;
        if between && let Some(wait) = self.record_in() {
            if wait.is_zero() {
                self.record()?;
            } else {
                next = wait;
            }
        }
        if let Some(awaited) = self.tracker.awaited_local() {
            if self.synchronous && self.changed {
                // Who waits for no more than that it is applied need not wait for the disk.
                self.wake();
            }
            if self.synchronous || self.asked && between {
                server::flush_wal(awaited.0);
            }
            self.tracker.local_flushed(Lsn(postgres::flushed_wal()));
        }
        if between {
            self.asked = false;
        }
        let flushed = self.tracker.flush().0;
        self.changed |= flushed > self.place.flushed_lsn.load(Acquire);
        layout::Subscription::raise(&self.place.flushed_lsn, flushed);
        if self.changed {
            let since = self.woken.elapsed();
            if since < WAKE_PAUSE && !self.synchronous {
                return Ok(WAKE_PAUSE - since);
            }
            self.wake();
        }
        Ok(if self.tracker.has_pending() {
            FLUSH_LOOK.min(next)
        } else {
            next
        })
    }

    fn wake(&mut self) {
        self.changed = false;
        self.woken = Instant::now();
        latch::wake(self.place.receiver_pid.load(Acquire));
    }

    fn record_in(&self) -> Option<Duration> {
        let since = u64::try_from(self.recorded.elapsed().as_millis()).unwrap_or(u64::MAX);
        let asked = self.asked || self.synchronous;
        progress::record_in(self.tracker.unrecorded(), since, asked).map(Duration::from_millis)
    }

    /// Writes down that everything up to here has been dealt with, so that it may be reported as flushed.
    fn record(&mut self) -> Result<(), String> {
        let (origin, position) = (self.origin, self.tracker.applied());
        let end = worker::catch(|| origin.record(position.0)).map_err(|caught| caught.describe())?;
        self.tracker.committed(position, Lsn(end));
        self.recorded = Instant::now();
        Ok(())
    }
}

impl transaction::Progress for Positions {
    fn committed(&mut self, remote_end: u64, local_end: u64) {
        Positions::committed(self, remote_end, local_end);
    }

    fn received(&mut self, position: u64) {
        Positions::received(self, position);
    }

    fn asked(&mut self) {
        Positions::asked(self);
    }

    fn synchronous(&mut self, synchronous: bool) {
        self.synchronous = synchronous;
        self.place.synchronous.store(u32::from(synchronous), Release);
    }
}
