//! `ha.wait_slot_confirm_lsn`: waits on the provider until subscribers have a position.

use std::time::{Duration, Instant};

use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use super::{local_node, quoted_list};
use crate::catalog::{self, replication_slots};
use crate::postgres::error::{Answer, Report};
use crate::postgres::{self, latch, server};

/// Longest pause between two looks at the slots.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits until the consumers of the slot, or of all slots of pg_ha, have confirmed `target` (by default the end of the
/// durable WAL as of now); false when the time is over first.
pub(crate) fn wait_slot_confirm_lsn(
    slot_name: Option<String>,
    target: Option<u64>,
    timeout: Option<Duration>,
) -> Answer<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    require(slot_name.as_deref())?;
    let target = target.unwrap_or_else(end_of_wal);
    let mut asked = false;
    let mut pause = Duration::from_millis(1);
    loop {
        let slots = replication_slots::confirmed(slot_name.as_deref())?;
        if slot_name.is_some() && slots.is_empty() {
            // It was dropped meanwhile.
            require(slot_name.as_deref())?;
        }
        if slots.iter().all(|slot| slot.position >= Some(target)) {
            return Ok(true);
        }
        // Subscribers that nothing was sent to for a while confirm in steps; a message in the stream makes them do it
        // at once. It has to come after the position.
        if !asked && end_of_wal() >= target {
            asked = true;
            ask_for_confirmation()?;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        latch::pause(left.map_or(pause, |left| pause.min(left)));
        pause = (pause * 2).min(PAUSE);
    }
}

fn end_of_wal() -> u64 {
    if server::in_recovery() {
        postgres::current_wal()
    } else {
        postgres::flushed_wal()
    }
}

fn ask_for_confirmation() -> Answer<()> {
    if server::in_recovery() {
        return Ok(());
    }
    if let Some(node) = local_node()? {
        server::flush_wal(catalog::emit_message(catalog::SYNC_MESSAGE, &node.node_name)?);
    }
    Ok(())
}

fn require(slot_name: Option<&str>) -> Answer<()> {
    let Some(name) = slot_name else { return Ok(()) };
    if !replication_slots::confirmed(Some(name))?.is_empty() {
        return Ok(());
    }
    let known = replication_slots::confirmed(None)?;
    Err(Report::new(
        Code::ERRCODE_UNDEFINED_OBJECT,
        format!("replication slot \"{name}\" does not exist"),
    )
    .detail(if known.is_empty() {
        "No node subscribes to this one.".to_owned()
    } else {
        format!(
            "The slots of this node's subscribers are {}.",
            quoted_list(known.iter().map(|slot| slot.slot_name.as_str()))
        )
    })
    .hint("ha.status_slots lists all slots of this server; NULL waits for those of all subscribers."))
}
