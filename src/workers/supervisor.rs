//! The supervisor: one per server, started by the postmaster once recovery is over, started again a second after it
//! ends.
//!
//! It waits until this server has an identity, connects to the identity's database, publishes who this node is and
//! which nodes it knows, and keeps a receiver running for every enabled subscription (which starts its own applier),
//! with a growing delay while one keeps failing. `ha.*` functions that change the catalogs wake it at their commit.
//! It waits for nothing but its latch and,
//! reading the catalogs, for whoever has locked them. When the identity ends it exits, since a worker cannot leave a database
//! otherwise, and its successor waits anew. If it crashes, the server starts everything again; nothing of it is
//! state.

mod copies;
mod history;
mod retention;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use pg_ha_model::{Backoff, Millis};
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::catalog;
use crate::catalog::plan::{self, KnownNode, PlannedSubscription};
use crate::catalog::subscription_tables::{self, PendingTable};
use crate::catalog::{row_versions, sequences};
use crate::durable::events::{self, Severity};
use crate::durable::identity::{self, Identity};
use crate::durable::{leftovers, seen};
use crate::postgres::{latch, worker};
use crate::settings;
use crate::shared_state::{self, Status, layout, subscription};

/// Longest time between two looks at everything.
const LOOK: Duration = Duration::from_secs(5);

/// Time between two tries to undo what ended subscriptions left on other nodes.
const CLEANING: Duration = Duration::from_secs(15);

/// Time between two purges of what is older than the conflict horizon.
const PURGE: Duration = Duration::from_secs(60);

/// A worker that ran for so long was not failing: its next failure starts with the shortest delay again.
const HEALTHY: Duration = Duration::from_secs(30);

/// What the supervisor remembers of one subscription.
struct Kept {
    place: usize,
    backoff: Backoff,
    started: Option<Instant>,
    next_start: Instant,
    /// What the workers were started with; a change of it restarts them.
    fingerprint: String,
    /// The transaction that they know is to be passed over.
    skip_lsn: Option<u64>,
}

impl Kept {
    /// Takes a place in shared memory for a new subscription. None when all are taken; `ha.sub_create` refuses more
    /// subscriptions than there are places.
    fn claim(subscription: &PlannedSubscription) -> Option<Kept> {
        let place = subscription::claim(
            subscription.id,
            subscription.provider_node as u32,
            &subscription.name,
            &subscription.slot_name,
            &subscription.provider_name,
        )?;
        Some(Kept {
            place,
            backoff: backoff(),
            started: None,
            next_start: Instant::now(),
            fingerprint: fingerprint(subscription),
            skip_lsn: subscription.skip_lsn,
        })
    }
}

pub(crate) fn run() {
    let Some(area) = shared_state::area() else {
        worker::exit(0)
    };
    area.supervisor_pid.store(worker::process_id(), Release);
    worker::at_exit(forget, 0);
    let identity = wait_for_identity(area);
    worker::connect(identity.database_oid);
    let mut kept: HashMap<i32, Kept> = HashMap::new();
    let mut planned = Vec::new();
    let mut pending = Vec::new();
    let mut published = Vec::new();
    let mut last_telling = None;
    let mut copies = copies::Copies::default();
    let mut retention = retention::Retention::default();
    let mut history = history::History::new();
    let mut generation = None;
    let mut last_cleaning = None;
    let mut last_purge = Instant::now();
    let mut complained = String::new();
    loop {
        worker::heed_signals(1);
        let current = area.catalog_generation.load(Acquire);
        if generation != Some(current) {
            match look(&identity) {
                Ok(Some(found)) => {
                    publish(&identity, &found.nodes);
                    planned = found.subscriptions;
                    pending = found.pending;
                    published = found.sequences;
                    generation = Some(current);
                    area.seen_generation.store(current, Release);
                }
                Ok(None) => {
                    stop_everything(area);
                    give_up(area, current);
                }
                Err(error) => {
                    // Somebody may hold a lock on the catalogs. What runs goes on; look again soon.
                    if complained != error {
                        log!("pg_ha cannot read its catalogs: {error}");
                        complained = error;
                    }
                }
            }
        }
        let next = supervise(area, &planned, &mut kept).min(copies.tend(&pending, &planned));
        let next = next.min(retention.tend().unwrap_or(LOOK)).min(history.tend());
        if last_cleaning.is_none_or(|at: Instant| at.elapsed() >= CLEANING) {
            last_cleaning = Some(Instant::now());
            if !leftovers::is_empty() {
                worker::start_cleaner();
            }
        }
        if !published.is_empty() && last_telling.is_none_or(|at: Instant| at.elapsed() >= LOOK) {
            last_telling = Some(Instant::now());
            tell_of_sequences(&published, &mut complained);
        }
        if last_purge.elapsed() >= PURGE {
            last_purge = Instant::now();
            let horizon = settings::conflict_horizon().as_millis() as i64;
            if let Err(error) = super::read(|| row_versions::purge(horizon)) {
                log!("pg_ha cannot purge ha.row_versions: {error}");
            }
        }
        // Until the catalogs could be read, look more often.
        latch::wait(if generation.is_none() {
            next.min(Duration::from_secs(1))
        } else {
            next
        });
    }
}

fn forget(_: usize) {
    if let Some(area) = shared_state::area() {
        area.supervisor_pid.store(0, Release);
    }
}

/// Waits until there is an identity, and one that has not been found to be nobody's since the catalogs last changed.
fn wait_for_identity(area: &layout::Area) -> Identity {
    let mut complained = String::new();
    loop {
        worker::heed_signals(1);
        let stale = area.local.read(|local| local.node_id == u32::MAX)
            && area.seen_generation.load(Acquire) == area.catalog_generation.load(Acquire);
        match identity::on_disk() {
            Ok(Some(found)) if !stale => return found,
            Ok(_) => {}
            Err(error) => {
                let error = error.to_string();
                if error != complained {
                    log!("pg_ha cannot read who this server is: {error}");
                    complained = error;
                }
            }
        }
        latch::wait(LOOK);
    }
}

/// Tells subscribers of the sequences that are used. One that somebody has locked is looked at the next time.
fn tell_of_sequences(published: &[pg_sys::Oid], complained: &mut String) {
    for relation in published {
        let told = worker::with_setting(c"lock_timeout", c"100ms", || {
            super::read(|| sequences::tell(*relation, false))
        });
        if let Err(error) = told
            && *complained != error
        {
            log!("pg_ha cannot look at sequence {}: {error}", relation.to_u32());
            *complained = error;
        }
    }
}

/// What the catalogs say.
struct Seen {
    nodes: Vec<KnownNode>,
    subscriptions: Vec<PlannedSubscription>,
    /// The tables whose copy is due.
    pending: Vec<PendingTable>,
    /// The sequences that subscribers are told of.
    sequences: Vec<pg_sys::Oid>,
}

/// Reads the catalogs; None if the identity is none of the known nodes.
fn look(identity: &Identity) -> Result<Option<Seen>, String> {
    let read = || -> Result<Option<Seen>, catalog::Error> {
        let installed = Spi::connect(|client| {
            let rows = client.select("SELECT to_regclass('ha.node_catalog') IS NOT NULL", Some(1), &[])?;
            rows.first().get_one::<bool>()
        })?;
        if installed != Some(true) {
            return Ok(None);
        }
        let nodes = plan::nodes()?;
        if !nodes.iter().any(|node| node.uid == identity.node_uid) {
            return Ok(None);
        }
        Ok(Some(Seen {
            nodes,
            subscriptions: plan::subscriptions(None)?,
            pending: subscription_tables::pending()?,
            sequences: sequences::published()?,
        }))
    };
    super::read(read)
}

fn publish(identity: &Identity, nodes: &[KnownNode]) {
    let views: Vec<layout::NodeView> = nodes
        .iter()
        .take((settings::max_nodes().max(1) as usize).min(layout::MAX_NODES))
        .map(layout::NodeView::new)
        .collect();
    // Before who we are: streams that start want to know both.
    shared_state::publish_nodes(&views);
    if let Some(area) = shared_state::area() {
        area.local.write(|local| {
            local.node_id = identity.node_id as u32;
            local.database_oid = identity.database_oid;
            local.node_uid.set(&identity.node_uid);
            local.node_name.set(&identity.node_name);
            local.group_name.set(&identity.group_name);
        });
    }
}

/// Ends the supervisor because the identity is nobody's (any more).
fn give_up(area: &layout::Area, generation: u64) -> ! {
    // Not a node, and not to be tried again before the catalogs change.
    area.local.write(|local| local.node_id = u32::MAX);
    shared_state::publish_nodes(&[]);
    area.seen_generation.store(generation, Release);
    worker::exit(1)
}

fn stop_everything(area: &layout::Area) {
    for place in &area.subscriptions {
        if place.id.load(Acquire) != 0 {
            place.stop();
            place.wake_workers_to_end();
            place.release();
        }
    }
}

/// Brings the workers in line with the plan; returns how long nothing will have to be done.
fn supervise(
    area: &layout::Area,
    planned: &[PlannedSubscription],
    kept: &mut HashMap<i32, Kept>,
) -> Duration {
    let mut next = LOOK;
    drop_unplanned(area, planned, kept);
    for subscription in planned {
        let tended = match kept.entry(subscription.id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => match Kept::claim(subscription) {
                Some(claimed) => free.insert(claimed),
                None => continue,
            },
        };
        next = next.min(tend(&area.subscriptions[tended.place], subscription, tended));
    }
    next
}

/// Ends the workers of subscriptions that are no longer there, and gives their places back once they are gone.
fn drop_unplanned(area: &layout::Area, planned: &[PlannedSubscription], kept: &mut HashMap<i32, Kept>) {
    for place in &area.subscriptions {
        let id = place.id.load(Acquire);
        if id != 0 && !planned.iter().any(|subscription| subscription.id == id) {
            place.stop();
            if place.has_workers() {
                place.wake_workers_to_end();
            } else {
                place.release();
                kept.remove(&id);
                seen::forget(id);
            }
        }
    }
}

/// The delays between retries, as they are set now.
fn backoff() -> Backoff {
    Backoff::new(
        Millis(settings::retry_min().as_millis() as u64),
        Millis(settings::retry_max().as_millis() as u64),
    )
}

/// What restarts the workers when it changes.
fn fingerprint(subscription: &PlannedSubscription) -> String {
    let options = &subscription.options;
    format!(
        "{}\n{}\n{}\n{}\n{:?} {:?} {} {} {}",
        subscription.dsn,
        subscription.slot_name,
        subscription.replication_sets.join("\n"),
        subscription.forward_origins.join("\n"),
        subscription.apply_delay,
        options.run_as(),
        options.streaming(),
        options.two_phase(),
        options.workers(),
    )
}

fn tend(place: &layout::Subscription, subscription: &PlannedSubscription, kept: &mut Kept) -> Duration {
    let now = Instant::now();
    let print = fingerprint(subscription);
    // The applier takes it out by itself once the transaction is passed over.
    let skip = subscription.skip_lsn != kept.skip_lsn && subscription.skip_lsn.is_some();
    kept.skip_lsn = subscription.skip_lsn;
    if kept.fingerprint != print || skip {
        kept.fingerprint = print;
        kept.backoff = backoff();
        kept.next_start = now;
        // Copies go on: what they bring does not depend on what else the stream carries.
        place.wake_stream_to_end();
    }
    if !subscription.enabled {
        place.stop();
        place.wake_workers_to_end();
        if place.set_status(Status::Disabled) {
            place.clear_error();
            place.set_action("disabled");
            record(subscription, Severity::Info, "disabled");
        }
        kept.backoff = backoff();
        kept.next_start = now;
        return LOOK;
    }
    if place.status() == Status::Disabled {
        place.failed_in_applier.store(0, Release);
        place.set_status(Status::Initializing);
        record(subscription, Severity::Info, "enabled");
    }
    if place.has_stream() {
        return LOOK;
    }
    if let Some(started) = kept.started.take() {
        if now.duration_since(started) >= HEALTHY {
            kept.backoff = backoff();
        }
        kept.next_start = now + Duration::from_millis(kept.backoff.next().0);
    }
    if now < kept.next_start {
        return kept.next_start - now;
    }
    place.wanted.store(1, Release);
    kept.started = Some(now);
    if worker::start_receiver(kept.place).is_none() && place.set_error("no free background worker") {
        log!(
            "pg_ha subscription \"{}\" cannot start: all max_worker_processes are in use",
            subscription.name
        );
        place.set_status(Status::Down);
    }
    // The receiver says that it runs once it does; a start that fails shows as workers missing at the next look.
    Duration::from_millis(500)
}

fn record(subscription: &PlannedSubscription, severity: Severity, what: &str) {
    events::record(
        "subscription",
        severity,
        &format!("subscription \"{}\" {what}", subscription.name),
        serde_json::json!({ "subscription": subscription.name, "provider": subscription.provider_name }),
    );
}

impl layout::NodeView {
    fn new(node: &KnownNode) -> layout::NodeView {
        let mut view = layout::NodeView {
            node_id: node.node_id as u32,
            ..Default::default()
        };
        view.node_name.set(&node.node_name);
        view.group_name.set(&node.group_name);
        view.region.set(node.region.as_deref().unwrap_or_default());
        view.kind.set(&node.kind);
        view
    }
}
