//! What was changed here, by this node or by third ones, must be with the provider before its table replaces ours, or it
//! is lost here: it would not come again, neither with the copy nor by a stream.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use pg_ha_model::slot_name;

use super::{Failure, Work, provider};
use crate::catalog::copied_progress::{self, NodeProgress};
use crate::catalog::subscription_tables::{self as catalog, ExistingRows};
use crate::catalog::{self as catalogs, replication_slots};
use crate::durable::events::{self, Severity};
use crate::postgres::walreceiver::Connection;
use crate::postgres::{latch, origin, server, worker};
use crate::settings;

/// Time between two questions.
const LOOK: Duration = Duration::from_millis(50);

/// Waits, where rows are to be replaced, until the provider has applied of this node and of others what is here, for
/// `ha.connect_timeout` at most: it may be stopped, or receive less of them than we do, and then never gets there. Nobody
/// changes these tables meanwhile. Returns how far it has third nodes.
pub(super) fn wait_for_provider(
    work: &Work,
    connection: &mut Connection,
) -> Result<Vec<NodeProgress>, Failure> {
    let ours = [work.here, work.provider].map(|node| i32::from(node.get()));
    let of_others = |mut progress: Vec<NodeProgress>| {
        progress.retain(|known| !ours.contains(&known.node_id));
        progress
    };
    let mut replaced = false;
    for (number, piece) in work.pieces.iter().enumerate() {
        if piece.table.existing_rows == ExistingRows::Truncate {
            replaced = true;
            work.at.set(Some(number));
            worker::with_latest_snapshot(|| catalog::lock(&piece.table.qualified_name()))?;
        }
    }
    work.at.set(None);
    let (applied, written) = match replaced {
        true => (
            of_others(worker::with_latest_snapshot(copied_progress::here)?),
            mark_own_changes(work)?,
        ),
        false => (Vec::new(), 0),
    };
    let started = Instant::now();
    loop {
        let there = of_others(provider::progress(connection)?);
        let lags = |known: &&NodeProgress| {
            there
                .iter()
                .any(|other| other.node_uid == known.node_uid && other.lsn < known.lsn)
        };
        let behind = match applied.iter().find(lags) {
            Some(other) => Some(format!("node {}", other.node_id)),
            None if own_changes_are_there(work, written)? => None,
            None => Some("this node".to_owned()),
        };
        let Some(behind) = behind else {
            return Ok(there);
        };
        if started.elapsed() >= settings::connect_timeout() {
            warn(work, &behind);
            return Ok(there);
        }
        server::check_for_interrupts();
        if !work.place.is_wanted() {
            return Err(Failure::Unwanted);
        }
        latch::wait(LOOK);
    }
}

/// Where what this node has written so far ends; 0 if the provider does not subscribe to us. A message asks it to confirm
/// that it has come as far.
fn mark_own_changes(work: &Work) -> Result<u64, Failure> {
    if slots_of_provider(work)?.is_empty() {
        return Ok(0);
    }
    let end = worker::with_latest_snapshot(replication_slots::end_of_wal)?;
    // It belongs to no transaction, so that it gives ours no number which the provider would wait for.
    let asked = origin::unmarked(|| {
        worker::with_latest_snapshot(|| catalogs::emit_message(catalogs::SYNC_MESSAGE, "before a copy"))
    })?;
    server::flush_wal(asked);
    Ok(end)
}

fn own_changes_are_there(work: &Work, written: u64) -> Result<bool, Failure> {
    Ok(written == 0
        || slots_of_provider(work)?
            .iter()
            .all(|slot| slot.position >= Some(written)))
}

/// The slots here that the provider reads our changes from.
fn slots_of_provider(work: &Work) -> Result<Vec<replication_slots::Confirmed>, Failure> {
    let prefix = slot_name::prefix(work.provider);
    let mut slots = worker::with_latest_snapshot(|| replication_slots::confirmed(None))?;
    slots.retain(|slot| slot.slot_name.starts_with(&prefix));
    Ok(slots)
}

fn warn(work: &Work, behind: &str) {
    let message = format!(
        "{} of subscription \"{}\" is copied anew although its provider has not applied all that {behind} has changed here; \
         what comes to the provider later is missing here: copy again once it is there",
        work.describe(),
        work.subscription.name
    );
    log!("pg_ha {message}");
    let tables: Vec<String> = work
        .pieces
        .iter()
        .map(|piece| piece.table.qualified_name())
        .collect();
    events::record(
        "table_resync",
        Severity::Warning,
        &message,
        serde_json::json!({ "subscription": work.subscription.name, "tables": tables }),
    );
}
