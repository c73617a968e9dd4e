//! The slots that subscriptions have on their providers.

use pg_ha_model::{NodeId, slot_name};
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use crate::durable::leftovers;
use crate::network::peer::{self, Peer, PeerError, Purpose};
use crate::postgres::error::{Answer, Report};
use crate::postgres::libpq::Patience;
use crate::settings;

/// What the names of all slots that a subscriber has on its providers begin with; nothing begins with what an id out
/// of range, which the catalog cannot hold, gives.
pub(crate) fn prefix(subscriber_node_id: i32) -> String {
    node_id(subscriber_node_id).map_or_else(|_| "(none)".to_owned(), slot_name::prefix)
}

/// The slot of a subscription.
pub(crate) fn name(subscriber_node_id: i32, subscription: &str) -> Answer<String> {
    Ok(slot_name::slot_name(node_id(subscriber_node_id)?, subscription))
}

fn node_id(number: i32) -> Answer<NodeId> {
    NodeId::new(u32::try_from(number).unwrap_or_default())
        .map_err(|error| Report::new(Code::ERRCODE_DATA_CORRUPTED, error.to_string()))
}

/// Makes the slot; returns the position that it begins at. One of that name that nobody reads from is a leftover and
/// made anew.
///
/// The provider waits for the transactions that run on it, so that this may take long; the caller must not have an
/// xid by then, or two nodes that subscribe to each other would wait for one another.
///
/// From the moment in which the slot may exist and be this call's, the note in `durable::leftovers` says so. (When
/// the wait is cut short the provider goes on making the slot, so it may be there or come.)
pub(crate) fn create(dsn: &str, slot: &str) -> Answer<u64> {
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
    leftovers::set_slot_made(dsn, slot, true)?;
    let limit = settings::slot_timeout();
    match peer.simple_within(
        &format!("CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pg_ha NOEXPORT_SNAPSHOT"),
        limit,
    ) {
        Ok(made) => begins_at(made, slot),
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
                leftovers::set_slot_made(dsn, slot, false)?;
            }
            Err(error.into())
        }
    }
}

/// The position in the answer to CREATE_REPLICATION_SLOT: name, position, and what does not matter here.
fn begins_at(made: Vec<Vec<Option<String>>>, slot: &str) -> Answer<u64> {
    let position = made.into_iter().flatten().flatten().nth(1);
    position
        .as_deref()
        .and_then(|position| position.parse::<pg_ha_model::Lsn>().ok())
        .map(|position| position.0)
        .ok_or_else(|| {
            Report::new(
                Code::ERRCODE_PROTOCOL_VIOLATION,
                format!("the provider did not say where slot \"{slot}\" begins"),
            )
            .detail(format!("It answered {position:?}."))
            .hint("Is it a PostgreSQL server of version 15 or newer?")
        })
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
        "It is dropped as soon as that node answers. To drop it at once, run there: \
         SELECT pg_drop_replication_slot({});",
        pgrx::spi::quote_literal(slot)
    ))
    .warn();
}
