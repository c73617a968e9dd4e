//! `ha.doctor`: everything that stands in the way, on this server and towards each peer. It refuses nothing: what it
//! finds is its answer.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pg_ha_replication::codec::{PROTOCOL_MAX, PROTOCOL_MIN};

use super::checks::{self, Check, Load};
use super::exchange::{self, Request};
use super::{connection_checks, local_node};
use crate::catalog::nodes::{self, Node};
use crate::catalog::subscriptions::{self, Subscription};
use crate::network::peer::{Peer, Purpose};
use crate::postgres::error::Answer;
use crate::postgres::libpq::Patience;
use crate::postgres::server;

/// Above this, clocks decide conflicts in ways that surprise people.
const CLOCK_SKEW: Duration = Duration::from_millis(500);

/// All checks.
pub(crate) fn doctor() -> Answer<Vec<Check>> {
    let subscriptions = subscriptions::all()?;
    let mut checks = checks::server_checks(Load {
        subscriptions: subscriptions.len(),
        subscribers: nodes::provider_slots()?.len(),
    });
    if subscriptions.iter().any(|known| known.options.two_phase()) {
        checks.push(checks::can_prepare());
    }
    let local = match local_node() {
        Ok(local) => local,
        Err(report) => {
            checks.push(Check::failed("local node", "a node", &report));
            return Ok(checks);
        }
    };
    checks.push(match &local {
        Some(node) => Check::new(
            "local node",
            true,
            format!("\"{}\" with id {}", node.node_name, node.node_id),
            "a node",
            "",
        ),
        None if server::in_recovery() => Check::new("local node", true, "a server in recovery", "a node", ""),
        None => Check::new(
            "local node",
            false,
            "none",
            "a node",
            "Create it: SELECT ha.node_create('<name>', '<connection string that leads here>')",
        ),
    });
    let Some(local) = local else {
        return Ok(checks);
    };
    checks.push(own_dsn(&local));
    for peer in nodes::all()?
        .iter()
        .filter(|node| node.node_uid != local.node_uid)
    {
        checks.extend(towards(peer));
    }
    for subscription in &subscriptions {
        checks.push(slot_of(subscription));
    }
    Ok(checks)
}

fn own_dsn(local: &Node) -> Check {
    const NAME: &str = "local node: dsn";
    const WANTED: &str = "a connection string that leads back here";
    match connection_checks::leads_here(&local.dsn) {
        Ok(()) => Check::new(NAME, true, "it does", WANTED, ""),
        Err(report) => Check::failed(NAME, WANTED, &report),
    }
}

fn towards(node: &Node) -> Vec<Check> {
    let name = |what: &str| format!("node {}: {what}", node.node_name);
    let mut checks = Vec::new();
    let mut peer = match Peer::connect(&node.dsn, Purpose::Sql, Patience::Interruptible) {
        Ok(peer) => peer,
        Err(error) => return vec![Check::failed(name("connection"), "a connection", &error.into())],
    };
    checks.push(Check::new(
        name("connection"),
        true,
        "connected",
        "a connection",
        "",
    ));
    checks.push(match connection_checks::require_role(&mut peer) {
        Ok(()) => Check::new(
            name("role"),
            true,
            "sufficient",
            "REPLICATION and ha_replication",
            "",
        ),
        Err(report) => Check::failed(name("role"), "REPLICATION and ha_replication", &report),
    });
    match exchange::ask(&mut peer, &Request::default()) {
        Err(report) => checks.push(Check::failed(name("identity"), "the node itself", &report)),
        Ok(answer) => {
            let found = answer.node.as_ref();
            checks.push(Check::new(
                name("identity"),
                found.is_some_and(|found| found.node_uid == node.node_uid),
                found.map_or("no node".to_owned(), |found| {
                    format!("\"{}\" (uid {})", found.node_name, found.node_uid)
                }),
                format!("\"{}\" (uid {})", node.node_name, node.node_uid),
                format!(
                    "Correct the DSN with ha.node_set, or, if the node was dropped or made anew, forget it: \
                     SELECT ha.node_drop({})",
                    pgrx::spi::quote_literal(&node.node_name)
                ),
            ));
            checks.push(Check::new(
                name("protocol"),
                answer.protocol_min <= PROTOCOL_MAX && answer.protocol_max >= PROTOCOL_MIN,
                format!(
                    "{} to {} (pg_ha {})",
                    answer.protocol_min, answer.protocol_max, answer.extension_version
                ),
                format!("{PROTOCOL_MIN} to {PROTOCOL_MAX}"),
                "Upgrade the older node; versions one release apart work together.",
            ));
        }
    }
    checks.extend(clock(&mut peer, name("clock")));
    checks
}

/// The other clock, assuming that it was read half way through the round trip.
fn clock(peer: &mut Peer, name: String) -> Option<Check> {
    let sent = Instant::now();
    let rows = peer
        .query(
            "SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint::text",
            &[],
        )
        .ok()?;
    let round_trip = i64::try_from(sent.elapsed().as_millis()).ok()?;
    let theirs: i64 = rows.into_iter().flatten().flatten().next()?.parse().ok()?;
    let ours = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()?;
    let skew = theirs - (ours - round_trip / 2);
    let limit = i64::try_from(CLOCK_SKEW.as_millis()).ok()?;
    Some(Check::new(
        name,
        skew.abs() <= limit + round_trip / 2,
        format!("{skew} ms off, measured over a round trip of {round_trip} ms"),
        format!("within {limit} ms"),
        "Run a time service (NTP, chrony) on both servers: the later change wins, by the clock.",
    ))
}

fn slot_of(subscription: &Subscription) -> Check {
    let name = format!("subscription {}: slot", subscription.name);
    let wanted = format!("slot \"{}\" on the provider", subscription.slot_name);
    let found = Peer::connect(&subscription.provider_dsn, Purpose::Sql, Patience::Interruptible).and_then(
        |mut peer| {
            peer.query(
                "SELECT CASE WHEN active THEN 'in use' ELSE 'not in use' END \
                   FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND plugin = 'pg_ha'",
                &[&subscription.slot_name],
            )
        },
    );
    match found {
        Err(error) => Check::failed(name, wanted, &error.into()),
        Ok(rows) => match rows.into_iter().flatten().flatten().next() {
            Some(state) => Check::new(name, true, state, wanted, ""),
            None => Check::new(
                name,
                false,
                "no such slot",
                wanted,
                "Somebody dropped it, and the changes since then are lost to this subscription: drop it with \
                 ha.sub_drop, make the tables equal and create it again.",
            ),
        },
    }
}
