//! What the `ha.status*` views are made of: readings of shared memory, which never block and work on every server.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

use pgrx::PgSqlErrorCode as Code;

use crate::catalog::plan;
use crate::postgres::error::{Answer, Report};
use crate::postgres::{self, latch, server};
use crate::shared_state::{self, Status, copies, layout, subscription, table};

/// One row of `ha.status`.
pub(crate) struct NodeRow {
    pub(crate) node_name: String,
    pub(crate) group_name: String,
    pub(crate) region: Option<String>,
    pub(crate) role: String,
    pub(crate) state: &'static str,
    pub(crate) is_local: bool,
    pub(crate) epoch: Option<i64>,
    pub(crate) timeline: Option<i32>,
    pub(crate) lsn: Option<u64>,
    pub(crate) lag_bytes: Option<i64>,
    pub(crate) last_seen: Option<i64>,
    pub(crate) version_num: Option<u32>,
    pub(crate) extension_version: Option<String>,
}

/// One row per known node, the local one included.
pub(crate) fn nodes() -> Vec<NodeRow> {
    let local = shared_state::local_node().map(|local| local.node_id);
    shared_state::nodes()
        .iter()
        .map(|view| {
            if Some(view.node_id) == local {
                local_row(view)
            } else {
                remote_row(view)
            }
        })
        .collect()
}

fn local_row(view: &layout::NodeView) -> NodeRow {
    let recovering = server::in_recovery();
    NodeRow {
        role: if recovering {
            "standby".to_owned()
        } else {
            role(view)
        },
        state: "running",
        is_local: true,
        // A group of one has had one reign.
        epoch: Some(1),
        timeline: postgres::timeline(),
        lsn: Some(postgres::current_wal()),
        lag_bytes: Some(0),
        last_seen: Some(postgres::now()),
        version_num: Some(server::version_number()),
        extension_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        ..described(view)
    }
}

fn remote_row(view: &layout::NodeView) -> NodeRow {
    let from_it = shared_state::area()
        .map(|area| &area.subscriptions)
        .into_iter()
        .flatten()
        .find(|place| place.id.load(Acquire) != 0 && place.provider_node.load(Relaxed) == view.node_id);
    let Some(place) = from_it else {
        return described(view);
    };
    let seen = place.last_message.load(Relaxed);
    let provider_lsn = place.provider_lsn.load(Relaxed);
    NodeRow {
        state: match place.status() {
            Status::Replicating => "running",
            Status::Down => "unreachable",
            Status::Initializing | Status::Disabled | Status::Failed => "unknown",
        },
        lsn: (provider_lsn != 0).then_some(provider_lsn),
        lag_bytes: (provider_lsn != 0).then(|| lag(place)),
        last_seen: (seen != 0).then_some(seen),
        ..described(view)
    }
}

/// What the catalog and handshakes told of a node, with nothing measured.
fn described(view: &layout::NodeView) -> NodeRow {
    NodeRow {
        node_name: view.node_name.as_str().to_owned(),
        group_name: view.group_name.as_str().to_owned(),
        region: view.region.to_option(),
        role: role(view),
        state: "unknown",
        is_local: false,
        epoch: None,
        timeline: None,
        lsn: None,
        lag_bytes: None,
        last_seen: None,
        version_num: (view.server_version_num != 0).then_some(view.server_version_num),
        extension_version: view.extension_version.to_option(),
    }
}

fn role(view: &layout::NodeView) -> String {
    match view.kind.as_str() {
        "witness" => "witness".to_owned(),
        "standby" => "standby".to_owned(),
        _ => "primary".to_owned(),
    }
}

fn lag(place: &layout::Subscription) -> i64 {
    let provider = place.provider_lsn.load(Acquire);
    i64::try_from(provider.saturating_sub(place.applied_lsn.load(Acquire))).unwrap_or(i64::MAX)
}

/// One row of `ha.subscription_states()`.
pub(crate) struct SubscriptionRow {
    pub(crate) id: i32,
    pub(crate) status: &'static str,
    pub(crate) received_lsn: Option<u64>,
    pub(crate) applied_lsn: Option<u64>,
    pub(crate) lag_bytes: i64,
    /// Age of the last applied commit while something waits, in microseconds; 0 when nothing does.
    pub(crate) lag: Option<i64>,
    pub(crate) counts: [i64; 7],
    pub(crate) workers: i32,
    /// Transactions in progress: how many, their bytes in memory and on disk.
    pub(crate) spool: [i64; 3],
    pub(crate) action: Option<String>,
    pub(crate) last_error: Option<String>,
    pub(crate) receiver_pid: Option<i32>,
    pub(crate) applier_pid: Option<i32>,
}

/// One row per subscription that the supervisor knows.
pub(crate) fn subscriptions() -> Vec<SubscriptionRow> {
    let places = shared_state::area()
        .map(|area| &area.subscriptions)
        .into_iter()
        .flatten();
    places
        .filter(|place| place.id.load(Acquire) != 0)
        .map(|place| {
            let text = place.text.read(|text| *text);
            let position = |position: &std::sync::atomic::AtomicU64| {
                let value = position.load(Acquire);
                (value != 0).then_some(value)
            };
            let count = |count: &std::sync::atomic::AtomicU64| count.load(Relaxed) as i64;
            let lag_bytes = lag(place);
            let applied_commit = place.applied_commit.load(Relaxed);
            let lag = match lag_bytes {
                0 => Some(0),
                _ => (applied_commit != 0).then(|| (postgres::now() - applied_commit).max(0)),
            };
            let [receiver_pid, applier_pid] = [&place.receiver_pid, &place.applier_pid]
                .map(|pid| Some(pid.load(Acquire)).filter(|pid| *pid != 0));
            SubscriptionRow {
                id: place.id.load(Acquire),
                status: place.status().as_str(),
                received_lsn: position(&place.received_lsn),
                applied_lsn: position(&place.applied_lsn),
                lag_bytes,
                lag,
                counts: [
                    count(&place.transactions),
                    count(&place.inserted),
                    count(&place.updated),
                    count(&place.deleted),
                    count(&place.conflicts),
                    count(&place.skipped),
                    count(&place.retries),
                ],
                workers: ([receiver_pid, applier_pid].iter().flatten().count()
                    + copies::of(place.id.load(Acquire))
                        .filter(|copy| copy.leads())
                        .count()) as i32,
                spool: [
                    count(&place.spool_transactions),
                    count(&place.spool_memory),
                    count(&place.spool_disk),
                ],
                receiver_pid,
                applier_pid,
                action: text.action.to_option(),
                last_error: text.last_error.to_option(),
            }
        })
        .collect()
}

/// One row per subscription and table with changes since the server started.
pub(crate) fn tables() -> Vec<(i32, u32, [i64; 4])> {
    table::all()
        .into_iter()
        .map(|(id, relation, inserted, updated, deleted, conflicts)| {
            (
                id,
                relation,
                [inserted as i64, updated as i64, deleted as i64, conflicts as i64],
            )
        })
        .collect()
}

/// One row of `ha.copy_states()`.
pub(crate) struct CopyRow {
    pub(crate) subscription_id: i32,
    pub(crate) table_id: i32,
    pub(crate) phase: &'static str,
    pub(crate) rows: i64,
    pub(crate) bytes: i64,
    pub(crate) started_at: i64,
    pub(crate) pid: Option<i32>,
}

/// One row per running copy.
pub(crate) fn copies() -> Vec<CopyRow> {
    copies::all()
        .map(|copy| CopyRow {
            subscription_id: copy.subscription_id(),
            table_id: copy.table_id(),
            phase: copy.phase().as_str(),
            rows: copy.rows.load(Relaxed) as i64,
            bytes: copy.bytes.load(Relaxed) as i64,
            started_at: copy.started_at.load(Relaxed),
            pid: Some(copy.pid.load(Acquire)).filter(|pid| *pid != 0),
        })
        .collect()
}

/// Waits until everything that the origin committed before `lsn` is applied here.
pub(crate) fn wait_for_sync_event(origin: &str, lsn: u64, timeout: Option<Duration>) -> Answer<bool> {
    let subscriptions = plan::subscriptions(None)
        .map_err(|error| Report::new(Code::ERRCODE_INTERNAL_ERROR, error.to_string()))?;
    let Some(from) = subscriptions
        .iter()
        .find(|subscription| subscription.provider_name == origin)
    else {
        let known: Vec<String> = subscriptions
            .iter()
            .map(|subscription| format!("\"{}\"", subscription.provider_name))
            .collect();
        return Err(Report::new(
            Code::ERRCODE_UNDEFINED_OBJECT,
            format!("no subscription on this node receives changes of origin \"{origin}\""),
        )
        .detail(if known.is_empty() {
            "This node has no subscriptions.".to_owned()
        } else {
            format!("Its subscriptions receive changes of {}.", known.join(", "))
        })
        .hint("Give the name of a node that this one subscribes to; ha.subscriptions lists them."));
    };
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut pause = Duration::from_millis(1);
    loop {
        let applied = subscription::find(from.id).map_or(0, |place| place.applied_lsn.load(Acquire));
        if applied >= lsn {
            return Ok(true);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        latch::pause(left.map_or(pause, |left| pause.min(left)));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
