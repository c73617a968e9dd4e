//! The applier: fed by its subscription's receiver through a queue, started by it, ending with it.
//!
//! One remote transaction is one local transaction, committed under the origin it came from, with the origin's
//! position and time: the server keeps that progress atomically with the data, so that after any crash the stream goes
//! on exactly where the data ends. Commits do not wait for the disk; what is reported as flushed does.
//!
//! It may block on rows, tables and unique keys that local transactions have locked, and on nothing else but its
//! latch. A small transaction comes in one message and is retried from it after a deadlock or another passing error,
//! and so is a large one that came while it was in progress, from the spool. For one that came whole in many messages,
//! and after any lasting error, the applier ends, and the supervisor starts the stream over from the last commit.

mod gates;
mod prepared;
mod report;
mod spool;
pub(super) mod tables;
pub(super) mod transaction;

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use pg_ha_model::{Lsn, NodeId, PgTimestamp};
use pg_ha_replication::codec::is_streamed;
use pg_ha_replication::conflict::SeenVersions;
use pg_ha_replication::progress::FlushTracker;
use pgrx::prelude::*;

use crate::catalog::{origins, plan};
use crate::durable::events::{self, Severity};
use crate::durable::seen as seen_file;
use crate::postgres::origin::Origin;
use crate::postgres::queue::{Receiver, Taken};
use crate::postgres::worker::{self, Caught};
use crate::postgres::{self, latch};
use crate::shared_state::{self, Status, layout};
use crate::workers::receiver::{HEADER, KIND_DATA};
use gates::Gates;
use spool::Spool;
use transaction::{Apply, Failure};

/// How long commits may stay undurable before this process looks for their flush (the WAL writer's own delay).
const FLUSH_LOOK: Duration = Duration::from_millis(200);

/// Shortest time between two signals to the receiver.
const WAKE_PAUSE: Duration = Duration::from_millis(5);

/// Shortest time between two writings of what the provider had seen.
const SAVE_PAUSE: Duration = Duration::from_secs(1);

/// Longest idle wait.
const IDLE: Duration = Duration::from_secs(10);

/// Times a transaction is tried again after a passing error before the stream starts over.
const RETRIES: u32 = 5;

pub(crate) fn run(index: usize, queue: u32) {
    let Some(area) = shared_state::area() else {
        worker::exit(0)
    };
    let Some(place) = area.subscriptions.get(index) else {
        worker::exit(0)
    };
    if place
        .applier_pid
        .compare_exchange(0, worker::process_id(), AcqRel, Acquire)
        .is_err()
    {
        worker::exit(0);
    }
    worker::at_exit(forget, index);
    // The number of a queue whose maker is gone cannot be attached to; then there is nothing to do here.
    let Some(queue) = Receiver::attach(queue) else {
        worker::exit(0)
    };
    worker::connect(area.local.read(|local| local.database_oid));
    settle();
    let name = place.text.read(|text| text.name.as_str().to_owned());
    if let Err(error) = serve(place, queue) {
        place.failed_in_applier.store(1, Release);
        let changed = place.set_status(Status::Failed);
        place.set_action("waiting to try again");
        if place.set_error(&error) || changed {
            log!("pg_ha subscription \"{name}\" failed: {error}");
            events::record(
                "subscription",
                Severity::Error,
                &format!("subscription \"{name}\" failed: {error}"),
                serde_json::json!({ "subscription": name }),
            );
        }
    }
    worker::exit(0);
}

fn forget(index: usize) {
    if let Some(area) = shared_state::area() {
        let place = &area.subscriptions[index];
        place.gates_generation.store(0, Release);
        for use_of_spool in [&place.spool_memory, &place.spool_disk, &place.spool_transactions] {
            use_of_spool.store(0, Relaxed);
        }
        place.applier_pid.store(0, Release);
        latch::wake(place.receiver_pid.load(Acquire));
        latch::wake(area.supervisor_pid.load(Acquire));
    }
}

/// Settings under which changes are applied, whatever the server's, the database's and the roles' own are.
pub(super) fn settle() {
    // Triggers and rules fire as on a replica: only those enabled as REPLICA or ALWAYS.
    worker::set(c"session_replication_role", c"replica");
    // Names come qualified.
    worker::set(c"search_path", c"");
    // Values that come as text are in the form that the provider's session wrote.
    worker::set(c"datestyle", c"ISO");
    worker::set(c"intervalstyle", c"postgres");
    worker::set(c"extra_float_digits", c"3");
    // A lost tail of commits comes again from the provider, which keeps it until it is flushed here.
    worker::set(c"synchronous_commit", c"off");
    // Nobody is there to answer for a slow statement or an idle transaction.
    worker::set(c"statement_timeout", c"0");
    worker::set(c"idle_in_transaction_session_timeout", c"0");
    worker::set(c"lock_timeout", c"0");
    for name in postgres::version::OTHER_TIMEOUTS {
        worker::set(name, c"0");
    }
    // Triggers see what is committed, and defaults may draw from sequences.
    worker::set(c"default_transaction_isolation", c"read committed");
    worker::set(c"default_transaction_read_only", c"off");
}

/// Applies what comes until the receiver is gone.
fn serve(place: &'static layout::Subscription, mut queue: Receiver) -> Result<(), String> {
    let id = place.id.load(Acquire);
    let subscription = super::read(|| plan::subscriptions(Some(id)))?
        .pop()
        .ok_or_else(|| "the subscription is not in the catalog any more".to_owned())?;
    let local = shared_state::local_node().ok_or_else(|| "this server is no node".to_owned())?;
    let here = NodeId::new(local.node_id).map_err(|error| error.to_string())?;
    let provider = NodeId::new(subscription.provider_node as u32).map_err(|error| error.to_string())?;
    let origin: Origin = super::read(|| origins::ensure(provider, &subscription.provider_uid))?
        .ok_or_else(|| "the replication origin could not be made".to_owned())?;
    worker::in_transaction(|| origin.use_in_session()).map_err(|caught| caught.describe())?;
    // What is started from counts as flushed, so it has to be.
    let start = origin.durable_progress();
    let mut seen = SeenVersions::new(PgTimestamp(subscription.created_at));
    for (node, timestamp) in seen_file::load(id) {
        seen.advance(node, timestamp);
    }
    let mut apply = Apply::new(place, &subscription, here, provider, origin, start, seen);
    let mut positions = Positions {
        tracker: FlushTracker::new(Lsn(start)),
        place,
        changed: false,
        woken: Instant::now(),
    };
    let mut saved = Instant::now();
    let mut gates = Gates::new(place, id);
    let mut spool = Spool::new(place, id);
    let mut published = saved;
    loop {
        worker::heed_signals(0);
        if !apply.in_transaction() {
            gates.attend(positions.tracker.applied().0, apply.tables())?;
        }
        match queue.take() {
            Taken::Message(message) => {
                take(&mut apply, &mut spool, &mut positions, message)?;
                // While there is always something to do, the provider must still hear of what is done.
                if published.elapsed() >= FLUSH_LOOK {
                    published = Instant::now();
                    positions.publish();
                    if !apply.in_transaction() {
                        worker::report_statistics();
                    }
                }
            }
            Taken::Detached => return Ok(()),
            Taken::Empty => {
                let next = positions.publish();
                published = Instant::now();
                if saved.elapsed() >= SAVE_PAUSE
                    && let Some(seen) = apply.take_changed_seen()
                {
                    saved = Instant::now();
                    // Without the file a stream that starts again reports more than it should; nothing is lost.
                    let _ = seen_file::save(id, seen.iter());
                }
                if !apply.in_transaction() {
                    worker::report_statistics();
                }
                latch::wait(next);
            }
        }
    }
}

/// One message of the queue.
fn take(
    apply: &mut Apply,
    spool: &mut Spool,
    positions: &mut Positions,
    message: &[u8],
) -> Result<(), String> {
    let Some((head, payload)) = message.split_at_checked(HEADER) else {
        return Err("the queue holds a message that is too short".to_owned());
    };
    if head[0] != KIND_DATA {
        // Everything up to this position of the provider has passed through the queue before it.
        let mut position = [0; 8];
        position.copy_from_slice(&head[1..9]);
        if !apply.in_transaction() {
            positions.received(u64::from_le_bytes(position));
        }
        return Ok(());
    }
    if is_streamed(payload) {
        return spool.frame(payload, apply, positions);
    }
    attempt(apply, positions, |apply, again, positions| {
        apply.frame(payload, again, positions)
    })
}

/// Applies what `work` brings; again, if it is all of a transaction and met an error that another attempt may not meet.
/// `work` is told whether it is another attempt.
fn attempt(
    apply: &mut Apply,
    positions: &mut Positions,
    mut work: impl FnMut(&mut Apply, bool, &mut Positions) -> Result<(), Failure>,
) -> Result<(), String> {
    let mut attempt = 0;
    loop {
        let whole = !apply.in_transaction();
        match worker::catch(|| work(apply, attempt > 0, positions)) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => {
                postgres::apply::abort();
                return Err(format!("{error}{}", apply.where_it_stands()));
            }
            Err(caught) => {
                let again = whole && attempt < RETRIES && passing(&caught);
                if !again {
                    return Err(format!("{}{}", caught.describe(), apply.where_it_stands()));
                }
                attempt += 1;
                positions.place.retries.fetch_add(1, Relaxed);
                apply.forget_open_transaction();
                latch::wait(Duration::from_millis(10 << attempt));
            }
        }
    }
}

/// Errors that another attempt may not meet: deadlock, serialization, a unique key that a local transaction took
/// between our look and our insert, a lock or a statement that was cancelled.
fn passing(caught: &Caught) -> bool {
    matches!(
        caught.sqlstate,
        PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED
            | PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE
            | PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION
            | PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
            | PgSqlErrorCode::ERRCODE_QUERY_CANCELED
    )
}

/// How far everything is, for the receiver to report and for `ha.status_subscriptions`.
struct Positions {
    tracker: FlushTracker,
    place: &'static layout::Subscription,
    changed: bool,
    woken: Instant,
}

impl Positions {
    fn committed(&mut self, remote_end: u64, local_end: u64) {
        self.recovered();
        self.tracker.committed(Lsn(remote_end), Lsn(local_end));
        layout::Subscription::raise(&self.place.applied_lsn, self.tracker.applied().0);
        self.changed = true;
    }

    fn received(&mut self, position: u64) {
        if position > self.place.applied_lsn.load(Acquire) {
            self.recovered();
        }
        self.tracker.remote_received(Lsn(position));
        layout::Subscription::raise(&self.place.applied_lsn, self.tracker.applied().0);
        self.changed = true;
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
    fn publish(&mut self) -> Duration {
        if self.tracker.has_pending() {
            self.tracker.local_flushed(Lsn(postgres::flushed_wal()));
        }
        let flushed = self.tracker.flush().0;
        self.changed |= flushed > self.place.flushed_lsn.load(Acquire);
        layout::Subscription::raise(&self.place.flushed_lsn, flushed);
        if self.changed {
            let since = self.woken.elapsed();
            if since < WAKE_PAUSE {
                return WAKE_PAUSE - since;
            }
            self.changed = false;
            self.woken = Instant::now();
            latch::wake(self.place.receiver_pid.load(Acquire));
        }
        if self.tracker.has_pending() {
            FLUSH_LOOK
        } else {
            IDLE
        }
    }
}

impl transaction::Progress for Positions {
    fn committed(&mut self, remote_end: u64, local_end: u64) {
        Positions::committed(self, remote_end, local_end);
    }

    fn received(&mut self, position: u64) {
        Positions::received(self, position);
    }
}
