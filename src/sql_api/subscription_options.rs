//! `ha.sub_alter_options`.
//!
//! The workers of the subscription start over with the new options once the transaction commits.

use pg_ha_replication::subscription_options::{KEYS, SubscriptionOptionError};
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;
use serde_json::{Value, json};

use super::{arguments, forward_origins, require_local_node, subscription_changes};
use crate::catalog::nodes;
use crate::catalog::subscriptions::{self, Subscription};
use crate::durable::events::{self, Severity};
use crate::postgres::error::{Answer, Report};
use crate::postgres::{server, xact};
use crate::shared_state;

/// Keys whose feature does not exist yet: they can only be set back to their default.
const NOT_YET: [&str; 1] = ["workers"];

const MAX_PREPARED: &str = "max_prepared_transactions";

/// Changes options of a subscription; false if they were so already.
pub(crate) fn sub_alter_options(name: Option<String>, options: Option<Value>) -> Answer<bool> {
    let change = arguments::required("options", options)?;
    let subscription = subscription_changes::require(name)?;
    let altered = subscription.options.alter(&change)?;
    require_supported(&change)?;
    require_two_phase(subscription.options.two_phase(), altered.options.two_phase())?;
    let forward_origins = altered
        .forward_origins
        .clone()
        .unwrap_or_else(|| subscription.forward_origins.clone());
    let apply_delay = match &altered.apply_delay {
        Some(text) => apply_delay(text)?,
        None => subscription.apply_delay,
    };
    let new = Subscription {
        options: altered.options,
        forward_origins,
        apply_delay,
        ..subscription.clone()
    };
    if new == subscription {
        return Ok(false);
    }
    if new.forward_origins != subscription.forward_origins {
        let provider = nodes::by_id(new.provider_node_id)?.map_or_else(String::new, |node| node.node_name);
        let local = require_local_node()?;
        forward_origins::require_at(
            &new.provider_dsn,
            &new.forward_origins,
            &provider,
            &local.node_name,
        )?;
    }
    subscriptions::set_options(new.id, &new.forward_origins, new.apply_delay, &new.options)?;
    xact::after_commit(move || {
        shared_state::catalog_changed();
        events::record(
            "subscription_changed",
            Severity::Info,
            &format!("options of subscription \"{}\" were changed: {change}", new.name),
            json!({"subscription_id": new.id, "options": change}),
        );
    });
    Ok(true)
}

/// Microseconds of a delay that can be waited for.
fn apply_delay(text: &str) -> Answer<i64> {
    checked_delay(subscriptions::interval_length(text)?, text)
}

/// A length in microseconds, if there is one and it can be waited for.
pub(super) fn checked_delay(length: Option<i64>, given: &str) -> Answer<i64> {
    match length {
        Some(length) if length >= 0 => Ok(length),
        _ => Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "apply_delay must not be negative or infinite",
        )
        .detail(format!("The value given is \"{given}\"."))
        .hint("Give it an interval such as '5 minutes', or '0' for no delay.")),
    }
}

/// Prepared transactions can be taken as such where some can be prepared, and for good.
fn require_two_phase(before: bool, after: bool) -> Answer<()> {
    if before && !after {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the option two_phase cannot be taken back",
        )
        .detail(
            "The provider's slot has sent prepared transactions when they were prepared; it would send those again \
             when they commit.",
        )
        .hint("Drop the subscription and create it again, once no transaction is prepared on the provider."));
    }
    if after && !before && server::setting(MAX_PREPARED).is_none_or(|most| most == "0") {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this server cannot prepare transactions",
        )
        .detail(format!("{MAX_PREPARED} is 0."))
        .hint(format!(
            "Set {MAX_PREPARED} to as many as may be prepared at once on the provider, and restart the server."
        )));
    }
    Ok(())
}

fn require_supported(change: &Value) -> Answer<()> {
    let unsupported = change
        .as_object()
        .into_iter()
        .flatten()
        .find(|(key, value)| NOT_YET.contains(&key.as_str()) && !is_default(key, value));
    match unsupported {
        None => Ok(()),
        Some((key, value)) => Err(Report::new(
            Code::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("subscription option \"{key}\" is not supported yet"),
        )
        .detail(format!("The value given is {value}."))
        .hint("Leave the option out.")),
    }
}

/// Whether an option, which has been checked, has the value that it has by itself.
fn is_default(key: &str, value: &Value) -> bool {
    match key {
        "workers" => value == &json!(1) || value.is_null(),
        _ => value.is_null(),
    }
}

impl From<SubscriptionOptionError> for Report {
    fn from(error: SubscriptionOptionError) -> Report {
        let code = match error {
            SubscriptionOptionError::Unknown(_) => Code::ERRCODE_UNDEFINED_PARAMETER,
            _ => Code::ERRCODE_INVALID_PARAMETER_VALUE,
        };
        Report::new(code, error.to_string())
            .detail("Nothing was changed.")
            .hint(format!("The options are {}.", KEYS.join(", ")))
    }
}
