//! `ha.sub_drop`, `ha.sub_enable`, `ha.sub_disable`, `ha.sub_add_repset`, `ha.sub_remove_repset`, `ha.sub_skip_lsn`.
//!
//! The catalog changes in the transaction; workers and the provider's slot follow after its commit, in bounded time.

use pg_ha_model::Lsn;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;
use serde_json::json;

use super::{
    arguments, local_node, quoted_list, refuse_in_recovery, sequences, slots, subscriptions as creation,
    synchronization,
};
use crate::catalog::prepared;
use crate::catalog::subscriptions::{self, Subscription};
use crate::durable::events::{self, Severity};
use crate::durable::{leftovers, subscription_names};
use crate::network;
use crate::network::peer::{Peer, Purpose};
use crate::postgres::error::{Answer, Report};
use crate::postgres::libpq::Patience;
use crate::postgres::{two_phase, xact};
use crate::{settings, shared_state};

fn missing(name: &str) -> Report {
    Report::new(
        Code::ERRCODE_UNDEFINED_OBJECT,
        format!("subscription \"{name}\" does not exist"),
    )
    .detail("This node has no subscription of that name.")
}

pub(super) fn require(name: Option<String>) -> Answer<Subscription> {
    let name = arguments::required("subscription_name", name)?;
    refuse_in_recovery("change a subscription")?;
    subscriptions::by_name(&name)?.ok_or_else(|| {
        missing(&name).hint("SELECT subscription_name FROM ha.subscriptions shows those that exist.")
    })
}

/// Ends a subscription.
pub(crate) fn sub_drop(name: Option<String>, if_exists: Option<bool>) -> Answer<bool> {
    let if_exists = arguments::required("if_exists", if_exists)?;
    let name = arguments::required("subscription_name", name)?;
    if if_exists && subscriptions::by_name(&name)?.is_none() {
        missing(&name).notice();
        return Ok(false);
    }
    let subscription = require(Some(name))?;
    subscriptions::delete(subscription.id)?;
    warn_of_prepared(&subscription)?;
    if local_node()?.is_none() {
        leave_slot_alone(&subscription);
        return Ok(true);
    }
    xact::after_commit(move || after_drop(&subscription));
    Ok(true)
}

/// What is prepared here for the provider's transactions stays, with its locks: whether it shall count is for somebody
/// to say who knows what became of them there.
fn warn_of_prepared(subscription: &Subscription) -> Answer<()> {
    let left = prepared::local_gids(&two_phase::gid_prefix(subscription.id))?;
    if left.is_empty() {
        return Ok(());
    }
    let quoted: Vec<String> = left.iter().map(pgrx::spi::quote_literal).collect();
    Report::new(
        Code::ERRCODE_WARNING,
        format!(
            "{} prepared transactions of subscription \"{}\" are left",
            left.len(),
            subscription.name
        ),
    )
    .detail(format!("They are {}.", quoted.join(", ")))
    .hint(
        "They hold their locks. End each as it ends on the provider, by COMMIT PREPARED or ROLLBACK PREPARED here.",
    )
    .warn();
    Ok(())
}

/// In a copy of a node's database, or where the identity was lost: the slot may be another database's by now.
fn leave_slot_alone(subscription: &Subscription) {
    Report::new(
        Code::ERRCODE_WARNING,
        format!(
            "slot \"{}\" on the provider was left alone",
            subscription.slot_name
        ),
    )
    .detail("This database is not a node: the slot may belong to the one that it was copied from.")
    .hint(format!(
        "If it does not, run on the provider: SELECT pg_drop_replication_slot({});",
        pgrx::spi::quote_literal(&subscription.slot_name)
    ))
    .warn();
}

fn after_drop(subscription: &Subscription) {
    subscription_names::remove(&subscription.name);
    shared_state::catalog_changed();
    let stopped = stop(subscription);
    let slot = &subscription.slot_name;
    let provider = format!("\"{}\"", pg_ha_model::conninfo::mask(&subscription.provider_dsn));
    let dropped = network::leftovers::drop_slot(&subscription.provider_dsn, slot);
    let severity = if stopped && dropped.is_ok() {
        Severity::Info
    } else {
        Severity::Warning
    };
    events::record(
        "subscription_dropped",
        severity,
        &format!("subscription \"{}\" was dropped", subscription.name),
        json!({"subscription_id": subscription.id, "slot": slot, "slot_dropped": dropped.is_ok()}),
    );
    if let Err(error) = dropped {
        leftovers::try_slot_later(&subscription.provider_dsn, slot);
        slots::warn_left(slot, &provider, error);
    }
}

fn stop(subscription: &Subscription) -> bool {
    let stopped = shared_state::stop_subscription(subscription.id, settings::connect_timeout());
    if !stopped {
        Report::new(
            Code::ERRCODE_WARNING,
            format!(
                "workers of subscription \"{}\" are still stopping",
                subscription.name
            ),
        )
        .detail(format!(
            "They did not end within {} s.",
            settings::connect_timeout().as_secs_f64()
        ))
        .hint("They end as soon as what they wait for lets them; pg_stat_activity shows it.")
        .warn();
    }
    stopped
}

/// Lets a subscription run.
pub(crate) fn sub_enable(name: Option<String>) -> Answer<bool> {
    set_enabled(require(name)?, true)
}

/// Stops a subscription.
pub(crate) fn sub_disable(name: Option<String>) -> Answer<bool> {
    set_enabled(require(name)?, false)
}

fn set_enabled(subscription: Subscription, enabled: bool) -> Answer<bool> {
    if subscription.enabled == enabled {
        return Ok(false);
    }
    subscriptions::set_enabled(subscription.id, enabled)?;
    xact::after_commit(move || {
        shared_state::catalog_changed();
        if !enabled {
            stop(&subscription);
        }
        let (kind, done) = if enabled {
            ("subscription_enabled", "enabled")
        } else {
            ("subscription_disabled", "disabled")
        };
        events::record(
            kind,
            Severity::Info,
            &format!("subscription \"{}\" was {done}", subscription.name),
            json!({"subscription_id": subscription.id}),
        );
    });
    Ok(true)
}

/// Adds one of the provider's sets. The provider is asked whether it has it, and which tables come with it if these are
/// to be copied (None: if those that came with the subscription were).
pub(crate) fn sub_add_repset(
    name: Option<String>,
    set: Option<String>,
    synchronize_data: Option<bool>,
) -> Answer<bool> {
    let set = arguments::required_name("replication_set", set)?;
    let subscription = require(name)?;
    if subscription.replication_sets.contains(&set) {
        return Ok(false);
    }
    let mut peer = Peer::connect(&subscription.provider_dsn, Purpose::Sql, Patience::Interruptible)?;
    creation::require_sets(&mut peer, std::slice::from_ref(&set))?;
    let mut sets = subscription.replication_sets.clone();
    sets.push(set.clone());
    let copy = match synchronize_data {
        Some(copy) => copy,
        None => subscriptions::synchronizes_data(subscription.id)?,
    };
    let to_copy = if copy {
        let known = synchronization::published(&mut peer, &subscription.replication_sets, None)?;
        let mut found = synchronization::published(&mut peer, &sets, None)?;
        // What the subscription receives already stays as it is.
        found.retain(|table| {
            !known
                .iter()
                .any(|known| known.schema == table.schema && known.name == table.name)
        });
        found
    } else {
        Vec::new()
    };
    let values = sequences::ask(&mut peer, std::slice::from_ref(&set), false)?;
    drop(peer);
    set_sets(&subscription, sets)?;
    sequences::set_all(&values)?;
    synchronization::ask_for_all(subscription.id, &to_copy)?;
    Ok(true)
}

/// Takes a set out.
pub(crate) fn sub_remove_repset(name: Option<String>, set: Option<String>) -> Answer<bool> {
    let set = arguments::required_name("replication_set", set)?;
    let subscription = require(name)?;
    let mut sets = subscription.replication_sets.clone();
    sets.retain(|known| *known != set);
    if sets.len() == subscription.replication_sets.len() {
        return Ok(false);
    }
    if sets.is_empty() {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "\"{set}\" is the last replication set of subscription \"{}\"",
                subscription.name
            ),
        )
        .detail("A subscription without replication sets receives nothing.")
        .hint("Drop or disable the subscription instead."));
    }
    set_sets(&subscription, sets)?;
    Ok(true)
}

fn set_sets(subscription: &Subscription, sets: Vec<String>) -> Answer<()> {
    subscriptions::set_replication_sets(subscription.id, &sets)?;
    let (id, name) = (subscription.id, subscription.name.clone());
    xact::after_commit(move || {
        shared_state::catalog_changed();
        events::record(
            "subscription_changed",
            Severity::Info,
            &format!(
                "subscription \"{name}\" now has the replication sets {}",
                quoted_list(sets.iter().map(String::as_str))
            ),
            json!({"subscription_id": id, "replication_sets": sets}),
        );
    });
    Ok(())
}

/// Has the transaction that ends at a position of the provider passed over; without a position, none.
pub(crate) fn sub_skip_lsn(name: Option<String>, lsn: Option<u64>) -> Answer<bool> {
    let subscription = require(name)?;
    if let Some(lsn) = lsn.map(Lsn) {
        let progress = Lsn(subscriptions::progress(subscription.id)?);
        let refuse = |detail: String| {
            Report::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("no transaction that ends at {lsn} can be passed over"),
            )
            .detail(detail)
            .hint("Pass the position that the message in last_error of ha.status_subscriptions names.")
        };
        if !lsn.is_valid() {
            return Err(refuse("That is no position in a WAL.".to_owned()));
        }
        if lsn <= progress {
            return Err(refuse(format!(
                "Subscription \"{}\" has applied everything up to {progress}.",
                subscription.name
            )));
        }
    }
    if !subscriptions::set_skip(subscription.id, lsn)? {
        return Ok(false);
    }
    xact::after_commit(move || {
        shared_state::catalog_changed();
        let what = match lsn {
            Some(lsn) => format!("will pass over the transaction that ends at {}", Lsn(lsn)),
            None => "will pass over no transaction".to_owned(),
        };
        events::record(
            "subscription_changed",
            Severity::Info,
            &format!("subscription \"{}\" {what}", subscription.name),
            json!({"subscription_id": subscription.id, "skip_lsn": lsn.map(|lsn| Lsn(lsn).to_string())}),
        );
    });
    Ok(true)
}
