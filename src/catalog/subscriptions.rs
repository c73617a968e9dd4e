//! `ha.subscription_catalog`: the flows from other nodes to this one.

use pg_ha_replication::subscription_options::SubscriptionOptions;
use pgrx::JsonB;

use super::{Error, Row, execute, read, read_one, write};

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
    pub(crate) forward_origins: Vec<String>,
    /// In microseconds; not negative.
    pub(crate) apply_delay: i64,
    pub(crate) options: SubscriptionOptions,
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
        forward_origins: row.get(8)?,
        apply_delay: row.get(9)?,
        options: options(row.get(10)?)?,
    })
}

/// The options as the catalog keeps them.
pub(super) fn options(JsonB(value): JsonB) -> Result<SubscriptionOptions, Error> {
    SubscriptionOptions::from_json(&value).map_err(|error| Error::Content {
        table: "ha.subscription_catalog",
        reason: error.to_string(),
    })
}

/// An interval's length in microseconds, a month taken as 30 days; raises what PostgreSQL says of text that is none.
/// None if it has no end.
pub(crate) fn interval_length(text: &str) -> Result<Option<i64>, Error> {
    let length = "SELECT CASE WHEN pg_catalog.isfinite($1::text::interval) \
                         THEN (extract(epoch FROM $1::text::interval) * 1000000)::bigint END";
    Ok(read_one(length, &[text.into()], |row| row.maybe(1))?.flatten())
}

/// All subscriptions, by id.
pub(crate) fn all() -> Result<Vec<Subscription>, Error> {
    read(
        "SELECT subscription_id, subscription_name::text, provider_node_id, provider_dsn, slot_name::text, \
                enabled, replication_sets, \
                forward_origins, (extract(epoch FROM apply_delay) * 1000000)::bigint, options \
           FROM ha.subscription_catalog ORDER BY subscription_id",
        &[],
        from_row,
    )
}

/// The subscription of this name.
pub(crate) fn by_name(name: &str) -> Result<Option<Subscription>, Error> {
    Ok(all()?.into_iter().find(|subscription| subscription.name == name))
}

/// Adds a subscription whose slot begins at this position of the provider; returns its id. The `id` given is not looked
/// at.
pub(crate) fn insert(subscription: &Subscription, slot_lsn: u64) -> Result<i32, Error> {
    write(
        "INSERT INTO ha.subscription_catalog \
             (subscription_name, provider_node_id, provider_dsn, slot_name, enabled, replication_sets, \
              forward_origins, apply_delay, options, slot_lsn) \
         VALUES ($1::text::name, $2, $3, $4::text::name, $5, $6, $7, $8 * interval '1 microsecond', $9, \
                 '0/0'::pg_lsn + $10::numeric) \
         RETURNING subscription_id",
        &[
            subscription.name.as_str().into(),
            subscription.provider_node_id.into(),
            subscription.provider_dsn.as_str().into(),
            subscription.slot_name.as_str().into(),
            subscription.enabled.into(),
            subscription.replication_sets.clone().into(),
            subscription.forward_origins.clone().into(),
            subscription.apply_delay.into(),
            JsonB(subscription.options.to_json()).into(),
            slot_lsn.cast_signed().into(),
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

/// Notes that a subscription was made to copy what the tables held.
pub(crate) fn set_synchronizes_data(id: i32) -> Result<(), Error> {
    execute(
        "UPDATE ha.subscription_catalog SET synchronize_data = true WHERE subscription_id = $1",
        &[id.into()],
    )?;
    Ok(())
}

/// Whether a subscription was made to copy what the tables held.
pub(crate) fn synchronizes_data(id: i32) -> Result<bool, Error> {
    read_one(
        "SELECT synchronize_data FROM ha.subscription_catalog WHERE subscription_id = $1",
        &[id.into()],
        |row| row.get(1),
    )
    .map(|found| found.unwrap_or(false))
}

/// Changes how a subscription works.
pub(crate) fn set_options(
    id: i32,
    forward_origins: &[String],
    apply_delay: i64,
    options: &SubscriptionOptions,
) -> Result<(), Error> {
    execute(
        "UPDATE ha.subscription_catalog \
            SET forward_origins = $2, apply_delay = $3 * interval '1 microsecond', options = $4 \
          WHERE subscription_id = $1",
        &[
            id.into(),
            forward_origins.to_vec().into(),
            apply_delay.into(),
            JsonB(options.to_json()).into(),
        ],
    )?;
    Ok(())
}

/// Up to where the provider's transactions are applied, or at least need not be.
pub(crate) fn progress(id: i32) -> Result<u64, Error> {
    let progress = "SELECT greatest(max(pg_catalog.pg_replication_origin_progress(o.roname, false)), max(s.slot_lsn)) \
                           - '0/0'::pg_lsn \
                      FROM ha.subscription_catalog s JOIN ha.node_catalog n ON n.node_id = s.provider_node_id \
                      LEFT JOIN ha.origin_ids i ON i.node_uid = n.node_uid AND i.lane = 0 AND i.ordinal >= 0 \
                      LEFT JOIN pg_catalog.pg_replication_origin o ON o.roident = i.roident \
                     WHERE s.subscription_id = $1";
    let progress = read_one(&format!("SELECT ({progress})::bigint"), &[id.into()], |row| {
        row.maybe::<i64>(1)
    })?;
    Ok(progress.flatten().unwrap_or_default().cast_unsigned())
}

/// Notes which transaction is to be passed over, by its end; None: none. False if that was so already.
pub(crate) fn set_skip(id: i32, lsn: Option<u64>) -> Result<bool, Error> {
    let changed = execute(
        "UPDATE ha.subscription_catalog SET skip_lsn = '0/0'::pg_lsn + $2::numeric \
          WHERE subscription_id = $1 AND skip_lsn IS DISTINCT FROM '0/0'::pg_lsn + $2::numeric",
        &[id.into(), lsn.map(u64::cast_signed).into()],
    )?;
    Ok(changed > 0)
}

/// Takes out that this transaction is to be passed over, unless another one has been named by now.
pub(crate) fn forget_skip(id: i32, lsn: u64) -> Result<(), Error> {
    execute(
        "UPDATE ha.subscription_catalog SET skip_lsn = NULL \
          WHERE subscription_id = $1 AND skip_lsn = '0/0'::pg_lsn + $2::numeric",
        &[id.into(), lsn.cast_signed().into()],
    )?;
    Ok(())
}
