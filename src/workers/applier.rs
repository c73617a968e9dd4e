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

pub(super) mod complete;
mod counts;
mod delay;
mod gates;
mod positions;
mod prepared;
mod report;
mod skip;
mod spool;
pub(super) mod tables;
pub(super) mod transaction;
mod ways;

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use pg_ha_model::{NodeId, PgTimestamp};
use pg_ha_replication::codec::is_streamed;
use pg_ha_replication::conflict::SeenVersions;
use pgrx::prelude::*;

use crate::catalog::{origins, plan};
use crate::durable::events::{self, Severity};
use crate::durable::seen as seen_file;
use crate::postgres::apply::table::Look;
use crate::postgres::origin::Origin;
use crate::postgres::queue::{Receiver, Taken};
use crate::postgres::values::CANONICAL;
use crate::postgres::worker::{self, Caught};
use crate::postgres::{self, apply, latch};
use crate::settings;
use crate::shared_state::{self, Status, layout};
use crate::workers::receiver::{HEADER, KIND_ASKED, KIND_DATA};
use delay::Delay;
use gates::Gates;
use positions::Positions;
use spool::Spool;
use transaction::{Apply, Failure};

/// Shortest time between two writings of what the provider had seen.
const SAVE_PAUSE: Duration = Duration::from_secs(1);

/// Shortest time between two looks for what need not be remembered any more.
const FORGET_PAUSE: Duration = Duration::from_secs(10);

/// The same where the last look left some.
const FORGET_ON: Duration = Duration::from_millis(200);

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
    // Policies are never applied silently.
    worker::set(c"row_security", c"on");
    // Values that come as text mean what the provider's session meant. The time zone is this database's own: values
    // come with theirs, and it is what defaults and triggers count days by.
    for (name, value) in CANONICAL {
        if name != c"timezone" {
            worker::set(name, value);
        }
    }
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
    let start = subscription.start_after(origin.durable_progress());
    let mut seen = SeenVersions::new(PgTimestamp(subscription.created_at));
    for (node, timestamp) in seen_file::load(id) {
        seen.advance(node, timestamp);
    }
    let mut apply = Apply::new(place, &subscription, here, provider, origin, start, seen);
    let mut positions = Positions::new(place, origin, start);
    postgres::apply::acting::run_as(subscription.options.run_as());
    let mut leaps = Leaps::default();
    let mut saved = Instant::now();
    let mut gates = Gates::new(place, id);
    let mut spool = Spool::new(place, id);
    let mut delay = Delay::new(place, subscription.apply_delay);
    let mut published = saved;
    let mut statistics = worker::Statistics::new();
    let (mut forgot, mut forget_pause) = (saved, FORGET_PAUSE);
    loop {
        worker::heed_signals(0);
        if !apply.in_transaction() {
            gates.attend(positions.applied(), apply.tables())?;
            // Now, rather than with the next transaction: whoever locks the catalogs then does not hold it up.
            apply.attend_ways()?;
            if forgot.elapsed() >= forget_pause {
                let retention = settings::duplicate_retention().as_micros() as i64;
                let more = apply.forget_noted(PgTimestamp(postgres::now().saturating_sub(retention)))?;
                forgot = Instant::now();
                forget_pause = if more { FORGET_ON } else { FORGET_PAUSE };
            }
        }
        match queue.take() {
            Taken::Message(message) => {
                if !apply.in_transaction()
                    && let Some(due) = due(&delay, message)
                {
                    while let Some(left) = delay.left(due) {
                        let next = positions.publish(true)?;
                        latch::wait(left.min(next));
                        worker::heed_signals(0);
                        // The queue cannot be asked while its message is held.
                        if place.receiver_pid.load(Acquire) == 0 {
                            return Ok(());
                        }
                        gates.attend(positions.applied(), apply.tables())?;
                    }
                    delay.over();
                }
                if !apply.in_transaction()
                    && let Some(frame) = frame(message)
                {
                    // Who has the origin may wait for a copier, and that one for this process.
                    while !apply.claim(frame)? {
                        positions.publish(true)?;
                        worker::heed_signals(0);
                        if place.receiver_pid.load(Acquire) == 0 {
                            return Ok(());
                        }
                        gates.attend(positions.applied(), apply.tables())?;
                    }
                }
                take(&mut apply, &mut spool, &mut positions, &mut leaps, message)?;
                apply.release_claim();
                // While there is always something to do, the provider must still hear of what is done.
                if published.elapsed() >= positions.look() {
                    published = Instant::now();
                    positions.publish(!apply.in_transaction())?;
                    if !apply.in_transaction() {
                        statistics.write();
                    }
                }
            }
            Taken::Detached => return Ok(()),
            Taken::Empty => {
                let mut next = positions.publish(!apply.in_transaction())?.min(forget_pause);
                published = Instant::now();
                if saved.elapsed() >= SAVE_PAUSE
                    && let Some(seen) = apply.take_changed_seen()
                {
                    saved = Instant::now();
                    // Without the file a stream that starts again reports more than it should; nothing is lost.
                    let _ = seen_file::save(id, seen.iter());
                }
                if !apply.in_transaction()
                    && let Some(left) = statistics.write()
                {
                    next = next.min(left);
                }
                latch::wait(next);
            }
        }
    }
}

/// When a message of the queue may be applied; None if at once.
fn due(delay: &Delay, message: &[u8]) -> Option<i64> {
    delay.due(frame(message)?)
}

/// The frame in a message of the queue; None if it brings none.
fn frame(message: &[u8]) -> Option<&[u8]> {
    let (head, payload) = message.split_at_checked(HEADER)?;
    (head[0] == KIND_DATA).then_some(payload)
}

/// One message of the queue.
fn take(
    apply: &mut Apply,
    spool: &mut Spool,
    positions: &mut Positions,
    leaps: &mut Leaps,
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
        if head[0] == KIND_ASKED {
            positions.asked();
        }
        return Ok(());
    }
    if is_streamed(payload) {
        return spool.frame(payload, apply, positions, leaps);
    }
    attempt(apply, positions, leaps, |apply, again, look, positions| {
        apply.frame(payload, again, look, positions)
    })
}

/// Applies what `work` brings; again, if it is all of a transaction and met an error that another attempt may not meet.
/// `work` is told whether it is another attempt, and how inserts go about it.
fn attempt(
    apply: &mut Apply,
    positions: &mut Positions,
    leaps: &mut Leaps,
    mut work: impl FnMut(&mut Apply, bool, Look, &mut Positions) -> Result<(), Failure>,
) -> Result<(), String> {
    let mut attempt = 0;
    let mut again = false;
    // Only what can be tried again may go without a look.
    let mut look = if apply.in_transaction() {
        Look::First
    } else {
        leaps.next()
    };
    loop {
        let whole = !apply.in_transaction();
        match worker::catch(|| work(apply, again, look, positions)) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => {
                postgres::apply::abort();
                return Err(told(&error.to_string(), apply));
            }
            Err(caught)
                if look == Look::Never && caught.sqlstate == PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION =>
            {
                leaps.missed();
                look = Look::First;
                again = true;
                apply::context::take_place();
                apply.forget_open_transaction();
            }
            Err(caught) => {
                if !whole || attempt >= RETRIES || !passing(&caught) {
                    return Err(told(&caught.describe(), apply));
                }
                attempt += 1;
                again = true;
                apply::context::take_place();
                positions.place().retries.fetch_add(1, Relaxed);
                apply.forget_open_transaction();
                latch::wait(Duration::from_millis(10 << attempt));
            }
        }
    }
}

/// What went wrong, with where. A row of many columns is cut, so that what follows it can still be shown.
fn told(error: &str, stream: &Apply) -> String {
    const LONGEST: usize = 700;
    let cut = (0..=LONGEST).rev().find(|at| error.is_char_boundary(*at));
    let shown = match cut.and_then(|cut| error.get(..cut)) {
        Some(beginning) if error.len() > LONGEST => format!("{beginning} ..."),
        _ => error.to_owned(),
    };
    let value = match apply::context::take_place() {
        Some(value) => format!("; {value}"),
        None => String::new(),
    };
    format!("{shown}{value}{}", stream.where_it_stands())
}

/// Inserts without a look, as long as that goes well.
#[derive(Default)]
struct Leaps {
    /// So many transactions look first.
    careful: u32,
}

impl Leaps {
    /// Where one insert found its row to be there, others will: each costs an aborted transaction.
    const CAREFUL: u32 = 1000;

    fn next(&mut self) -> Look {
        if self.careful == 0 {
            return Look::Never;
        }
        self.careful -= 1;
        Look::First
    }

    fn missed(&mut self) {
        self.careful = Self::CAREFUL;
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
