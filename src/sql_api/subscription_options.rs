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
use crate::postgres::xact;
use crate::shared_state;

/// Keys whose feature does not exist yet: they can only be set back to their default.
const NOT_YET: [&str; 3] = ["streaming", "two_phase", "workers"];

/// Changes options of a subscription; false if they were so already.
pub(crate) fn sub_alter_options(name: Option<String>, options: Option<Value>) -> Answer<bool> {
    let change = arguments::required("options", options)?;
    let subscription = subscription_changes::require(name)?;
    let altered = subscription.options.alter(&change)?;
    require_supported(&change)?;
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
        "two_phase" | "streaming" => value == &json!(false) || value.is_null(),
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
