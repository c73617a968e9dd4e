//! What the supervisor and the receivers want to know of the catalogs.

use std::time::Duration;

use pg_ha_replication::subscription_options::SubscriptionOptions;
use pgrx::JsonB;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::spi::{self, Spi};

use super::{Error, subscriptions};

/// One row of `ha.node_catalog`.
pub(crate) struct KnownNode {
    pub(crate) node_id: i32,
    pub(crate) node_name: String,
    pub(crate) group_name: String,
    pub(crate) region: Option<String>,
    pub(crate) kind: String,
    pub(crate) uid: String,
}

/// One row of `ha.subscription_catalog`, with its provider's name.
pub(crate) struct PlannedSubscription {
    pub(crate) id: i32,
    pub(crate) name: String,
    pub(crate) provider_node: i32,
    pub(crate) provider_name: String,
    pub(crate) provider_uid: String,
    pub(crate) dsn: String,
    pub(crate) slot_name: String,
    pub(crate) enabled: bool,
    pub(crate) replication_sets: Vec<String>,
    pub(crate) forward_origins: Vec<String>,
    /// How long after its commit a transaction is applied.
    pub(crate) apply_delay: Duration,
    pub(crate) options: SubscriptionOptions,
    /// When it was made (TimestampTz, microseconds since 2000).
    pub(crate) created_at: i64,
    /// Where its slot began; 0 if that is not known.
    pub(crate) slot_lsn: u64,
    /// The end of the transaction that is to be passed over.
    pub(crate) skip_lsn: Option<u64>,
}

impl PlannedSubscription {
    /// Where the stream starts after so much progress of its origin: an origin outlives subscriptions, and what was
    /// committed between two of them is not sent.
    pub(crate) fn start_after(&self, progress: u64) -> u64 {
        progress.max(self.slot_lsn)
    }
}

/// All known nodes, in the order of their ids.
pub(crate) fn nodes() -> Result<Vec<KnownNode>, spi::Error> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT node_id, node_name::text, group_name::text, region, kind, node_uid::text \
             FROM ha.node_catalog ORDER BY node_id",
            None,
            &[],
        )?;
        rows.map(|row| {
            Ok(KnownNode {
                node_id: row.get::<i32>(1)?.unwrap_or_default(),
                node_name: row.get::<String>(2)?.unwrap_or_default(),
                group_name: row.get::<String>(3)?.unwrap_or_default(),
                region: row.get::<String>(4)?,
                kind: row.get::<String>(5)?.unwrap_or_default(),
                uid: row.get::<String>(6)?.unwrap_or_default(),
            })
        })
        .collect()
    })
}

/// All subscriptions, or the one with this id.
pub(crate) fn subscriptions(id: Option<i32>) -> Result<Vec<PlannedSubscription>, Error> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT s.subscription_id, s.subscription_name::text, s.provider_node_id, n.node_name::text, \
                    s.provider_dsn, s.slot_name::text, s.enabled, s.replication_sets, s.forward_origins, s.created_at, \
                    n.node_uid::text, (extract(epoch FROM s.apply_delay) * 1000000)::bigint, s.options, \
                    (s.slot_lsn - '0/0'::pg_lsn)::bigint, (s.skip_lsn - '0/0'::pg_lsn)::bigint \
             FROM ha.subscription_catalog s JOIN ha.node_catalog n ON n.node_id = s.provider_node_id \
             WHERE $1 IS NULL OR s.subscription_id = $1 ORDER BY 1",
            None,
            &[id.into()],
        )?;
        rows.map(|row| {
            Ok(PlannedSubscription {
                id: row.get::<i32>(1)?.unwrap_or_default(),
                name: row.get::<String>(2)?.unwrap_or_default(),
                provider_node: row.get::<i32>(3)?.unwrap_or_default(),
                provider_uid: row.get::<String>(11)?.unwrap_or_default(),
                provider_name: row.get::<String>(4)?.unwrap_or_default(),
                dsn: row.get::<String>(5)?.unwrap_or_default(),
                slot_name: row.get::<String>(6)?.unwrap_or_default(),
                enabled: row.get::<bool>(7)?.unwrap_or_default(),
                replication_sets: row.get::<Vec<String>>(8)?.unwrap_or_default(),
                forward_origins: row.get::<Vec<String>>(9)?.unwrap_or_default(),
                created_at: row.get::<TimestampWithTimeZone>(10)?.map_or(i64::MIN, i64::from),
                apply_delay: Duration::from_micros(row.get::<i64>(12)?.unwrap_or_default().max(0) as u64),
                options: subscriptions::options(row.get::<JsonB>(13)?.ok_or(Error::Null { column: 13 })?)?,
                skip_lsn: row.get::<i64>(15)?.map(i64::cast_unsigned),
                slot_lsn: row.get::<i64>(14)?.unwrap_or_default().cast_unsigned(),
            })
        })
        .collect()
    })
}
