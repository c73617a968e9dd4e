//! `ha.subscription_catalog`: the flows from other nodes to this one.

use super::{Error, Row, execute, read, write};

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) id: i32,
    pub(crate) name: String,
    pub(crate) provider_node_id: i32,
    pub(crate) provider_dsn: String,
    pub(crate) slot_name: String,
    pub(crate) enabled: bool,
    pub(crate) replication_sets: Vec<String>,
}

fn from_row(row: &Row<'_>) -> Result<Subscription, Error> {
    Ok(Subscription {
        id: row.get(1)?,
        name: row.get(2)?,
        provider_node_id: row.get(3)?,
        provider_dsn: row.get(4)?,
        slot_name: row.get(5)?,
        enabled: row.get(6)?,
        replication_sets: row.get(7)?,
    })
}

/// All subscriptions, by id.
pub(crate) fn all() -> Result<Vec<Subscription>, Error> {
    read(
        "SELECT subscription_id, subscription_name::text, provider_node_id, provider_dsn, slot_name::text, \
                enabled, replication_sets \
           FROM ha.subscription_catalog ORDER BY subscription_id",
        &[],
        from_row,
    )
}

/// The subscription of this name.
pub(crate) fn by_name(name: &str) -> Result<Option<Subscription>, Error> {
    Ok(all()?.into_iter().find(|subscription| subscription.name == name))
}

/// Adds a subscription; returns its id. The `id` given is not looked at.
pub(crate) fn insert(subscription: &Subscription) -> Result<i32, Error> {
    write(
        "INSERT INTO ha.subscription_catalog \
             (subscription_name, provider_node_id, provider_dsn, slot_name, enabled, replication_sets) \
         VALUES ($1::text::name, $2, $3, $4::text::name, $5, $6) RETURNING subscription_id",
        &[
            subscription.name.as_str().into(),
            subscription.provider_node_id.into(),
            subscription.provider_dsn.as_str().into(),
            subscription.slot_name.as_str().into(),
            subscription.enabled.into(),
            subscription.replication_sets.clone().into(),
        ],
        |row| row.get(1),
    )?
    .into_iter()
    .next()
    .ok_or(Error::Null { column: 1 })
}

/// Removes a subscription.
pub(crate) fn delete(id: i32) -> Result<(), Error> {
    execute(
        "DELETE FROM ha.subscription_tables WHERE subscription_id = $1",
        &[id.into()],
    )?;
    execute(
        "DELETE FROM ha.subscription_catalog WHERE subscription_id = $1",
        &[id.into()],
    )?;
    Ok(())
}

/// Gives subscriptions to a node its new connection string, where they had its old one.
pub(crate) fn follow_node(node_id: i32, old_dsn: &str, new_dsn: &str) -> Result<usize, Error> {
    execute(
        "UPDATE ha.subscription_catalog SET provider_dsn = $3 WHERE provider_node_id = $1 AND provider_dsn = $2",
        &[node_id.into(), old_dsn.into(), new_dsn.into()],
    )
}

/// Enables or disables a subscription.
pub(crate) fn set_enabled(id: i32, enabled: bool) -> Result<(), Error> {
    execute(
        "UPDATE ha.subscription_catalog SET enabled = $2 WHERE subscription_id = $1",
        &[id.into(), enabled.into()],
    )?;
    Ok(())
}

/// Changes which of the provider's sets a subscription receives.
pub(crate) fn set_replication_sets(id: i32, sets: &[String]) -> Result<(), Error> {
    execute(
        "UPDATE ha.subscription_catalog SET replication_sets = $2 WHERE subscription_id = $1",
        &[id.into(), sets.to_vec().into()],
    )?;
    Ok(())
}
