//! Third nodes: what they changed here must be with the provider before its table replaces ours, or it is lost: it would
//! not come again, neither from them nor with the copy.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::{Failure, Work, provider};
use crate::catalog::copied_progress::{self, NodeProgress};
use crate::catalog::subscription_tables::{self as catalog, ExistingRows};
use crate::postgres::walreceiver::Connection;
use crate::postgres::{latch, server, worker};
use crate::settings;

/// Time between two questions.
const LOOK: Duration = Duration::from_millis(50);

/// Waits, where rows are to be replaced, until the provider has applied of other nodes what is applied here, for
/// `ha.connect_timeout` at most: it may receive less of them than we do, and then never gets there. Nobody changes these
/// tables meanwhile. Returns how far it has.
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
    let applied = match replaced {
        true => of_others(worker::with_latest_snapshot(copied_progress::here)?),
        false => Vec::new(),
    };
    let started = Instant::now();
    loop {
        let there = of_others(provider::progress(connection)?);
        let lags = |known: &&NodeProgress| {
            there
                .iter()
                .any(|other| other.node_uid == known.node_uid && other.lsn < known.lsn)
        };
        let Some(behind) = applied.iter().find(lags) else {
            return Ok(there);
        };
        if started.elapsed() >= settings::connect_timeout() {
            log!(
                "pg_ha copies {} of subscription \"{}\" although its provider has not applied all that node {} has changed \
                 here; if both receive the same of it, resynchronise again",
                work.describe(),
                work.subscription.name,
                behind.node_id
            );
            return Ok(there);
        }
        server::check_for_interrupts();
        if !work.place.is_wanted() {
            return Err(Failure::Unwanted);
        }
        latch::wait(LOOK);
    }
}
