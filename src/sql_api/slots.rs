//! The slots that subscriptions have on their providers.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use crate::network::peer::{self, Peer, PeerError, Purpose};
use crate::postgres::error::{Answer, Report};
use crate::postgres::libpq::Patience;
use crate::settings;

/// What the names of all slots that a subscriber has on its providers begin with.
pub(crate) fn prefix(subscriber_node_id: i32) -> String {
    format!("pg_ha_{subscriber_node_id}_")
}

/// The slot of a subscription: always the same for the same subscriber and name, with only the characters that slots
/// may have, and distinct for names that differ in others.
pub(crate) fn name(subscriber_node_id: i32, subscription: &str) -> String {
    let prefix = prefix(subscriber_node_id);
    let hash = format!("{:08x}", fingerprint(subscription) & 0xFFFF_FFFF);
    let room = 63 - prefix.len() - 1 - hash.len();
    let readable: String = subscription
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(room)
        .collect();
    format!("{prefix}{readable}_{hash}")
}

/// FNV-1a.
pub(crate) fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Makes the slot. One of that name that nobody reads from is a leftover and made anew.
///
/// The provider waits for the transactions that run on it, so that this may take long; the caller must not have an
/// xid by then, or two nodes that subscribe to each other would wait for one another.
///
/// `ours` becomes true once a slot of that name, if there is one, is this call's: only then may it be dropped to undo
/// the call. (When the wait is cut short the provider goes on making the slot, so it may be there or come.)
pub(crate) fn create(dsn: &str, slot: &str, ours: &Cell<bool>) -> Answer<()> {
    let mut peer = Peer::connect(dsn, Purpose::Replication, Patience::Interruptible)?;
    let existing = peer.simple(&format!(
        "SELECT active::text FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        peer::literal(slot)
    ))?;
    match existing.into_iter().flatten().flatten().next().as_deref() {
        None => {}
        Some("true") => {
            return Err(Report::new(
                Code::ERRCODE_OBJECT_IN_USE,
                format!("slot \"{slot}\" on the provider is in use"),
            )
            .detail(format!("Somebody reads from it on {}.", peer.name()))
            .hint("Is there another node with this node's id, or a server that was copied from this one?"));
        }
        Some(_) => {
            peer.simple(&format!("DROP_REPLICATION_SLOT \"{slot}\""))?;
        }
    }
    ours.set(true);
    let limit = settings::slot_timeout();
    match peer.simple_within(
        &format!("CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pg_ha NOEXPORT_SNAPSHOT"),
        limit,
    ) {
        Ok(_) => Ok(()),
        Err(PeerError::Timeout { peer, seconds }) => Err(Report::new(
            Code::ERRCODE_LOCK_NOT_AVAILABLE,
            format!("the provider did not make the slot within {seconds} s"),
        )
        .detail(format!(
            "A slot is ready once all transactions that run on {peer} have ended."
        ))
        .hint(
            "Look for long transactions there in pg_stat_activity, or allow more time with ha.slot_timeout.",
        )),
        Err(error) => {
            if matches!(error, PeerError::Server { .. }) {
                // The provider has made nothing; a slot of that name would be somebody else's.
                ours.set(false);
            }
            Err(error.into())
        }
    }
}

/// Drops the slot if it exists, whoever reads from it. For the end of a transaction: raises nothing, takes at most
/// `timeout` for each of a few steps.
pub(crate) fn drop_held(dsn: &str, slot: &str, timeout: Duration) -> Result<(), PeerError> {
    let mut peer = Peer::connect_within(dsn, Purpose::Sql, Patience::Held, timeout)?;
    let deadline = Instant::now() + timeout;
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

/// Says which slot is left where, and how to drop it.
pub(crate) fn warn_left(slot: &str, provider: &str, error: PeerError) {
    let reason = Report::from(error);
    let detail = match reason.detail_text() {
        Some(detail) => format!("{}: {detail}", reason.message()),
        None => reason.message().to_owned(),
    };
    Report::new(
        Code::ERRCODE_WARNING,
        format!("slot \"{slot}\" is left on {provider}, where it keeps WAL from being removed"),
    )
    .detail(detail)
    .hint(format!(
        "Run there: SELECT pg_drop_replication_slot({});",
        pgrx::spi::quote_literal(slot)
    ))
    .warn();
}
