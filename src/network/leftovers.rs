//! Undoing on other nodes what is left there of subscriptions that ended or never came to be.

use std::time::{Duration, Instant};

use serde_json::json;

use super::peer::{Peer, PeerError, Purpose};
use crate::durable::leftovers::{self, Leftover};
use crate::postgres::libpq::Patience;
use crate::settings;

/// Works off the notes of [`durable::leftovers`](crate::durable::leftovers); `slots_in_use` are the slots of the
/// subscriptions that exist. Returns how many notes remain for a later try. For the cleaner, outside of a
/// transaction: each note takes a few times `ha.connect_timeout` at worst.
pub(crate) fn clean_up(slots_in_use: &[String]) -> usize {
    leftovers::forget_used(slots_in_use);
    let due = leftovers::due(slots_in_use);
    let total = due.len();
    let undone = due.into_iter().filter(|note| undo(note).is_ok()).count();
    total - undone
}

/// Undoes one note and takes it out. For the end of a transaction too: raises nothing.
pub(crate) fn undo(note: &Leftover) -> Result<(), PeerError> {
    if note.slot_made {
        drop_slot(&note.dsn, &note.slot)?;
    }
    if !note.forget.is_empty() {
        let request = json!({"format": 1, "forget": note.forget}).to_string();
        connect(&note.dsn)?.query("SELECT ha.node_exchange($1::jsonb)", &[&request])?;
    }
    leftovers::done(&note.dsn, &note.slot);
    Ok(())
}

/// Drops a slot of ours if it exists, whoever reads from it. Raises nothing.
pub(crate) fn drop_slot(dsn: &str, slot: &str) -> Result<(), PeerError> {
    let mut peer = connect(dsn)?;
    let deadline = Instant::now() + timeout();
    loop {
        let found = peer.query(
            "SELECT active::text, pg_catalog.pg_terminate_backend(active_pid)::text \
               FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND plugin = 'pg_ha'",
            &[slot],
        )?;
        let Some(row) = found.into_iter().next() else {
            return Ok(());
        };
        let active = row.first().and_then(Option::as_deref) == Some("true");
        if !active || Instant::now() >= deadline {
            peer.query("SELECT pg_catalog.pg_drop_replication_slot($1)", &[slot])?;
            return Ok(());
        }
        peer.query("SELECT pg_catalog.pg_sleep(0.02)", &[])?;
    }
}

fn connect(dsn: &str) -> Result<Peer, PeerError> {
    Peer::connect_within(dsn, Purpose::Sql, Patience::Held, timeout())
}

fn timeout() -> Duration {
    settings::connect_timeout()
}
