//! `ha.sub_create`: the local node subscribes to another one.
//!
//! The order matters. Everything is looked at first, here and on the provider, without changing anything. Then come
//! the steps that change the provider, each of which can be undone: it gets to know us, and makes the slot. Only then
//! is anything written here, since a transaction id held while the provider waits for its running transactions would
//! make two nodes that subscribe to each other wait for ever. If the transaction rolls back after all, the abort
//! callback undoes what was done on the provider.

use std::collections::HashMap;

use pg_ha_model::slot_name::fingerprint;
use pg_ha_replication::codec::{PROTOCOL_MAX, PROTOCOL_MIN};
use pg_ha_replication::subscription_options::SubscriptionOptions;
use pgrx::datum::Interval;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;
use serde_json::json;

use super::exchange::{self, Request, Response};
use super::subscription_options::checked_delay;
use super::{
    arguments, checks, connection_checks, forward_origins, quoted_list, refuse_in_recovery,
    require_local_node, sequences, slots, synchronization,
};
use crate::catalog::nodes::{self, Node};
use crate::catalog::subscriptions::Subscription;
use crate::catalog::{self, copied_progress, subscriptions};
use crate::durable::events::{self, Severity};
use crate::durable::{leftovers, subscription_names};
use crate::network;
use crate::network::peer::{Peer, Purpose, parse_dsn};
use crate::postgres::error::{Answer, Report};
use crate::postgres::libpq::Patience;
use crate::postgres::{server, xact};
use crate::{settings, shared_state};

/// The arguments of `ha.sub_create`.
pub(crate) struct NewSubscription {
    pub(crate) subscription_name: Option<String>,
    pub(crate) provider_dsn: Option<String>,
    pub(crate) replication_sets: Option<Vec<Option<String>>>,
    pub(crate) synchronize_structure: Option<bool>,
    pub(crate) synchronize_data: Option<bool>,
    pub(crate) forward_origins: Option<Vec<Option<String>>>,
    pub(crate) apply_delay: Option<Interval>,
    pub(crate) enabled: Option<bool>,
}

/// Makes a subscription; returns its id.
pub(crate) fn sub_create(new: NewSubscription) -> Answer<i32> {
    let name = arguments::required_name("subscription_name", new.subscription_name)?;
    let dsn = arguments::required("provider_dsn", new.provider_dsn)?;
    let sets = arguments::names("replication_sets", new.replication_sets)?;
    if sets.is_empty() {
        return Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "argument \"replication_sets\" must not be empty",
        )
        .detail("A subscription without replication sets receives nothing.")
        .hint("Name at least one of the provider's sets, or leave the argument out."));
    }
    let synchronize_structure = arguments::required("synchronize_structure", new.synchronize_structure)?;
    let synchronize_data = arguments::required("synchronize_data", new.synchronize_data)?;
    let forwarded = arguments::names("forward_origins", new.forward_origins)?;
    let delay = arguments::required("apply_delay", new.apply_delay)?;
    let apply_delay = checked_delay(interval_length(&delay), &format!("{delay}"))?;
    let enabled = arguments::required("enabled", new.enabled)?;
    parse_dsn(&dsn)?;

    refuse_in_recovery("create a subscription")?;
    let local = require_local_node()?;
    let existing = subscriptions::all()?;
    require_room(&name, &existing)?;
    if !catalog::try_advisory_lock(fingerprint(&format!("ha.sub_create {name}")).cast_signed())? {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_IN_USE,
            format!("subscription \"{name}\" is being created by another session"),
        )
        .detail("That session's transaction has not ended yet.")
        .hint("Wait until it has, or choose another name."));
    }

    let mut peer = Peer::connect(&dsn, Purpose::Sql, Patience::Interruptible)?;
    let (provider, answer) = examine(&mut peer, &local, &existing, &sets)?;
    let known_there: Vec<String> = answer.nodes.iter().map(|node| node.node_name.clone()).collect();
    forward_origins::require(&forwarded, &known_there, &provider.node_name, &local.node_name)?;
    let slot = slots::name(local.node_id, &name)?;
    introduce(&mut peer, &dsn, &slot, &local, &answer.nodes)?;
    let slot_lsn = slots::create(&dsn, &slot)?;
    // After the slot was made: a table that joins a set later sends from then on what it gets.
    let to_copy = if synchronize_data {
        synchronization::published(&mut peer, &sets, None)?
    } else {
        Vec::new()
    };
    // Those in the sets whatever is copied: what was told of them before the slot was made is not told again.
    let sequences = sequences::ask(&mut peer, &sets, synchronize_data && synchronize_structure)?;
    drop(peer);
    // As late as the definitions can be: no change of them is replicated. Before anything is written here.
    let structure = if synchronize_structure {
        Some(synchronization::structure(&dsn)?)
    } else {
        None
    };

    if let Some(script) = structure {
        synchronization::create_structure(&script)?;
    }
    let theirs = format!("node \"{}\"", provider.node_name);
    exchange::merge(&answer.nodes, Some(&provider.node_uid), &local, &theirs)?;
    let new = Subscription {
        id: 0,
        name: name.clone(),
        provider_node_id: provider.node_id,
        provider_dsn: dsn,
        slot_name: slot.clone(),
        enabled,
        replication_sets: sets,
        forward_origins: forwarded,
        apply_delay,
        options: SubscriptionOptions::default(),
    };
    warn_of_gap(&provider, slot_lsn)?;
    let id = subscriptions::insert(&new, slot_lsn)?;
    sequences::set_all(&sequences)?;
    if synchronize_data {
        subscriptions::set_synchronizes_data(id)?;
    }
    synchronization::ask_for_all(id, &to_copy)?;
    xact::after_commit(move || {
        subscription_names::add(&name);
        events::record(
            "subscription_created",
            Severity::Info,
            &format!(
                "subscription \"{name}\" to node \"{}\" was created",
                provider.node_name
            ),
            json!({"subscription_id": id, "provider": provider.node_name, "slot": slot}),
        );
        shared_state::catalog_changed();
    });
    Ok(id)
}

/// Microseconds, a month taken as 30 days and a year as 365.25, as PostgreSQL does; None if it has no end.
fn interval_length(interval: &Interval) -> Option<i64> {
    const DAY: i64 = 86_400_000_000;
    if interval.months() == i32::MAX || interval.months() == i32::MIN {
        return None;
    }
    let months = i64::from(interval.months());
    let days = i64::from(interval.days()).checked_add(months % 12 * 30)?;
    let years = (months / 12).checked_mul(DAY * 1461 / 4)?;
    days.checked_mul(DAY)?
        .checked_add(years)?
        .checked_add(interval.micros())
}

/// Tables that were copied from another node before this slot was made may lack changes of this provider: those that the
/// other node had not got when it was copied, and that the slot does not hold any more.
fn warn_of_gap(provider: &Node, slot_lsn: u64) -> Answer<()> {
    let (count, example) = copied_progress::behind(&provider.node_uid, slot_lsn)?;
    if let (true, Some(example)) = (count > 0, example) {
        Report::new(
            Code::ERRCODE_WARNING,
            format!(
                "changes of node \"{}\" may be missing in {count} tables that were copied from another node",
                provider.node_name
            ),
        )
        .detail(format!(
            "{example} was copied when that node had not applied all that the new slot does not hold."
        ))
        .hint("Copy these tables again with ha.sub_resync_table. Next time subscribe to all other nodes first, with enabled => false.")
        .warn();
    }
    Ok(())
}

fn require_room(name: &str, existing: &[Subscription]) -> Answer<()> {
    if existing.iter().any(|subscription| subscription.name == name) {
        return Err(Report::new(
            Code::ERRCODE_DUPLICATE_OBJECT,
            format!("subscription \"{name}\" already exists"),
        )
        .detail("Names of subscriptions are unique within a node.")
        .hint("Choose another name, or drop that one first with ha.sub_drop."));
    }
    if existing.len() >= usize::try_from(settings::max_subscriptions()).unwrap_or_default() {
        return Err(
            Report::new(Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "too many subscriptions")
                .detail(format!(
                    "There are {}, ha.max_subscriptions is {}.",
                    existing.len(),
                    settings::max_subscriptions()
                ))
                .hint("Raise ha.max_subscriptions in postgresql.conf and restart the server."),
        );
    }
    let load = checks::Load {
        subscriptions: existing.len() + 1,
        subscribers: nodes::provider_slots()?.len(),
    };
    checks::require(checks::server_checks(load), None)
}

/// Looks at the provider, and changes nothing.
fn examine(
    peer: &mut Peer,
    local: &Node,
    existing: &[Subscription],
    sets: &[String],
) -> Answer<(Node, Response)> {
    let facts = peer.query(
        "SELECT pg_catalog.current_database()::text, pg_catalog.pg_is_in_recovery()::text, \
                EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'pg_ha')::text",
        &[],
    )?;
    let mut facts = facts.into_iter().flatten().map(Option::unwrap_or_default);
    let database = facts.next().unwrap_or_default();
    let is = |fact: Option<String>| fact.as_deref() == Some("true");
    let (standby, installed) = (is(facts.next()), is(facts.next()));
    if !installed {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the provider does not have the extension pg_ha",
        )
        .detail(format!(
            "It is not in database \"{database}\" at {}.",
            peer.name()
        ))
        .hint("Run there, in that database: CREATE EXTENSION pg_ha; SELECT ha.node_create(…);"));
    }
    if standby {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the provider is a standby",
        )
        .detail(format!("The server at {} is in recovery.", peer.name()))
        .hint("Pass the connection string of its primary."));
    }
    connection_checks::require_role(peer)?;
    require_settings(peer)?;
    let answer = exchange::ask(peer, &Request::default())?;
    let provider = require_compatible(peer, &answer, local, &database)?;
    if let Some(other) = existing
        .iter()
        .find(|subscription| subscription.provider_node_id == provider.node_id)
    {
        return Err(Report::new(
            Code::ERRCODE_DUPLICATE_OBJECT,
            format!(
                "there is a subscription to node \"{}\" already",
                provider.node_name
            ),
        )
        .detail(format!("It is subscription \"{}\".", other.name))
        .hint("Add replication sets to that one with ha.sub_add_repset, or drop it first."));
    }
    let theirs = format!("node \"{}\"", provider.node_name);
    exchange::plan(&nodes::all()?, &answer.nodes, Some(&provider.node_uid), &theirs)?;
    require_sets(peer, sets)?;
    Ok((provider, answer))
}

/// Refuses a provider that could not serve a slot, for the same reasons as it would be refused as a node itself.
fn require_settings(peer: &mut Peer) -> Answer<()> {
    let rows = peer.query(
        "SELECT name, setting FROM pg_catalog.pg_settings \
          UNION ALL SELECT '', pg_catalog.count(*)::text FROM pg_catalog.pg_replication_slots",
        &[],
    )?;
    let settings: HashMap<String, String> = rows
        .into_iter()
        .filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(name), Some(setting)]) => Some((name, setting)),
            _ => None,
        })
        .collect();
    let slots = settings.get("").and_then(|count| count.parse().ok()).unwrap_or(0);
    let get = |name: &str| settings.get(name).cloned();
    checks::require(
        checks::provider_checks(&checks::Settings(&get), slots + 1, 1),
        Some(peer.name()),
    )
}

fn require_compatible(peer: &Peer, answer: &Response, local: &Node, database: &str) -> Answer<Node> {
    let Some(provider) = answer.node.clone() else {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the provider is not a node",
        )
        .detail(format!(
            "Database \"{database}\" at {} has the extension, but no node was created in it.",
            peer.name()
        ))
        .hint("Run there, in that database: SELECT ha.node_create('<name>', '<dsn>');"));
    };
    if provider.node_uid == local.node_uid {
        return Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "a node cannot subscribe to itself",
        )
        .detail(format!(
            "{} leads to this node, \"{}\".",
            peer.name(),
            local.node_name
        ))
        .hint("Pass the connection string of another node."));
    }
    if answer.protocol_min > PROTOCOL_MAX || answer.protocol_max < PROTOCOL_MIN {
        return Err(Report::new(
            Code::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!(
                "node \"{}\" runs an incompatible version of pg_ha",
                provider.node_name
            ),
        )
        .detail(format!(
            "Its version {} speaks protocols {} to {}, this node's {PROTOCOL_MIN} to {PROTOCOL_MAX}.",
            answer.extension_version, answer.protocol_min, answer.protocol_max
        ))
        .hint("Upgrade the older one; versions one release apart work together."));
    }
    if answer.encoding != server::encoding() {
        return Err(Report::new(
            Code::ERRCODE_FEATURE_NOT_SUPPORTED,
            "provider and subscriber have different encodings",
        )
        .detail(format!(
            "Node \"{}\" has {}, this database has {}.",
            provider.node_name,
            answer.encoding,
            server::encoding()
        ))
        .hint("Replicate between databases of the same encoding."));
    }
    Ok(provider)
}

/// Refuses sets that the provider does not have.
pub(super) fn require_sets(peer: &mut Peer, sets: &[String]) -> Answer<()> {
    let rows = peer.query(
        "SELECT set_name::text FROM ha.replication_sets ORDER BY set_id",
        &[],
    )?;
    let known: Vec<String> = rows.into_iter().flatten().flatten().collect();
    match sets.iter().find(|set| !known.contains(set)) {
        None => Ok(()),
        Some(missing) => Err(Report::new(
            Code::ERRCODE_UNDEFINED_OBJECT,
            format!("the provider has no replication set \"{missing}\""),
        )
        .detail(format!(
            "{} has {}.",
            peer.name(),
            quoted_list(known.iter().map(String::as_str))
        ))
        .hint("Create the set there with ha.repset_create, or leave it out.")),
    }
}

/// Makes the local node and those it knows known to the provider, and sees to it that this, and the slot that
/// follows, are undone if the transaction rolls back or this server dies before it commits.
fn introduce(peer: &mut Peer, dsn: &str, slot: &str, local: &Node, known_there: &[Node]) -> Answer<()> {
    let nodes = nodes::all()?;
    let forget: Vec<String> = nodes
        .iter()
        .map(|node| &node.node_uid)
        .filter(|uid| !known_there.iter().any(|known| known.node_uid == **uid))
        .cloned()
        .collect();
    leftovers::begin(dsn, slot, &forget)?;
    undo_on_abort(dsn, slot, peer.name());
    let (dsn, slot) = (dsn.to_owned(), slot.to_owned());
    xact::after_commit(move || leftovers::done(&dsn, &slot));
    exchange::ask(
        peer,
        &Request {
            from: Some(local.node_uid.clone()),
            nodes,
            ..Request::default()
        },
    )?;
    Ok(())
}

fn undo_on_abort(dsn: &str, slot: &str, provider: &str) {
    let (dsn, slot, provider) = (dsn.to_owned(), slot.to_owned(), provider.to_owned());
    xact::on_abort(move || {
        let Some(note) = leftovers::find(&dsn, &slot) else {
            return;
        };
        if let Err(error) = network::leftovers::undo(&note) {
            if note.slot_made {
                slots::warn_left(&slot, &provider, error);
            }
            leftovers::try_later(note);
        }
    });
}
