//! Whether a database, or the extension, may be dropped.

use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use super::{local_node, quoted_list};
use crate::catalog::{nodes, subscriptions};
use crate::durable::{identity, subscription_names};
use crate::postgres::error::{Answer, Report};
use crate::postgres::server;

/// DROP DATABASE, run in another one: refused while it is a node's.
pub(crate) fn database(oid: u32) -> Answer<()> {
    let Some(identity) = identity::current()? else {
        return Ok(());
    };
    if identity.database_oid != oid || identity.system_identifier != server::system_identifier().to_string() {
        return Ok(());
    }
    let name = server::database_name(oid).unwrap_or(identity.database);
    let subscriptions = subscription_names::list();
    let slots = nodes::provider_slots_of(oid)?;
    let mut steps: Vec<String> = subscriptions
        .iter()
        .map(|subscription| format!("SELECT ha.sub_drop({});", pgrx::spi::quote_literal(subscription)))
        .collect();
    steps.push(format!(
        "SELECT ha.node_drop({});",
        pgrx::spi::quote_literal(&identity.node_name)
    ));
    Err(Report::new(
        Code::ERRCODE_OBJECT_IN_USE,
        format!("database \"{name}\" is replicated and cannot be dropped"),
    )
    .detail(format!(
        "It is node \"{}\" with {} subscription(s){}{} and {} slot(s) that other nodes read from.",
        identity.node_name,
        subscriptions.len(),
        if subscriptions.is_empty() { "" } else { ": " },
        quoted_list(subscriptions.iter().map(String::as_str)),
        slots.len()
    ))
    .hint(format!(
        "Drop the subscriptions to it on other nodes, then run in that database: {}",
        steps.join(" ")
    )))
}

/// DROP EXTENSION pg_ha in this database: refused while it is a node, or something would be left behind.
pub(crate) fn extension() -> Answer<()> {
    let refuse = |detail: String, hint: String| {
        Err(Report::new(
            Code::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            "extension \"pg_ha\" is in use and cannot be dropped",
        )
        .detail(detail)
        .hint(hint))
    };
    let subscriptions = subscriptions::all()?;
    if let Some(first) = subscriptions.first() {
        return refuse(
            format!(
                "This database has subscriptions: {}.",
                quoted_list(
                    subscriptions
                        .iter()
                        .map(|subscription| subscription.name.as_str())
                )
            ),
            format!(
                "Drop them first: SELECT ha.sub_drop({})",
                pgrx::spi::quote_literal(&first.name)
            ),
        );
    }
    if let Some(node) = local_node()? {
        return refuse(
            format!("This database is node \"{}\".", node.node_name),
            format!(
                "Drop the node first: SELECT ha.node_drop({})",
                pgrx::spi::quote_literal(&node.node_name)
            ),
        );
    }
    let slots: Vec<String> = nodes::provider_slots()?
        .into_iter()
        .map(|(slot, _)| slot)
        .collect();
    if let Some(first) = slots.first() {
        return refuse(
            format!(
                "Slots of this database use its output plugin: {}.",
                quoted_list(slots.iter().map(String::as_str))
            ),
            format!(
                "Drop them first: SELECT pg_drop_replication_slot({})",
                pgrx::spi::quote_literal(first)
            ),
        );
    }
    Ok(())
}
