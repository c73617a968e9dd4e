//! `ha.origin_ids`: which of this server's replication origins stands for which origin group.
//!
//! Rows keep the number of the origin under which they were written, and PostgreSQL gives the number of a dropped
//! origin to the next one. So a mapped origin is never dropped, whatever happens to its subscription.

use std::collections::HashMap;

use pg_ha_model::NodeId;
use pgrx::spi::{self, Spi};

use crate::postgres::origin::Origin;

/// The name of the first replication origin that stands for a node's group.
pub(crate) fn name(node: NodeId) -> String {
    format!("pg_ha_{node}")
}

/// The name of the replication origin that rows copied from a node bear. It says who they come from, and nothing of how
/// far that node has been applied: [`node_of_name`] does not know it.
fn copy_name(node: NodeId) -> String {
    format!("pg_ha_{node}_copy")
}

/// Which node's group an origin's name stands for.
pub(crate) fn node_of_name(name: &str) -> Option<NodeId> {
    let number = name.strip_prefix("pg_ha_")?;
    NodeId::new(number.parse::<u32>().ok()?).ok()
}

/// All mappings: the server's origin number to the node.
pub(crate) fn all() -> Result<HashMap<u16, NodeId>, spi::Error> {
    Spi::connect(|client| {
        let mut found = HashMap::new();
        for row in client.select("SELECT roident::int, node_id FROM ha.origin_ids", None, &[])? {
            let (origin, node) = (
                row.get::<i32>(1)?.unwrap_or_default(),
                row.get::<i32>(2)?.unwrap_or_default(),
            );
            if let Ok(node) = NodeId::new(node as u32) {
                found.insert(origin as u16, node);
            }
        }
        Ok(found)
    })
}

/// The origin that stands for a node's group, made and mapped if this is the first time.
pub(crate) fn ensure(node: NodeId) -> Result<Option<Origin>, spi::Error> {
    ensure_named(&name(node), node, 0)
}

/// The origin of rows that are copied from a node, made and mapped if this is the first time.
pub(crate) fn ensure_for_copies(node: NodeId) -> Result<Option<Origin>, spi::Error> {
    ensure_named(&copy_name(node), node, 1)
}

/// The same origin, if it has been made.
pub(crate) fn of_copies(node: NodeId) -> Option<Origin> {
    Origin::find(&copy_name(node))
}

fn ensure_named(name: &str, node: NodeId, ordinal: i32) -> Result<Option<Origin>, spi::Error> {
    let Some(origin) = Origin::find(name).or_else(|| Origin::create(name)) else {
        return Ok(None);
    };
    let mapped = Spi::connect(|client| {
        let rows = client.select(
            "SELECT FROM ha.origin_ids WHERE roident = $1::int::oid",
            Some(1),
            &[i32::from(origin.0).into()],
        )?;
        Ok::<bool, spi::Error>(!rows.is_empty())
    })?;
    if !mapped {
        Spi::connect_mut(|client| {
            client.update(
                "INSERT INTO ha.origin_ids (roident, node_id, ordinal) VALUES ($1::int::oid, $2, $3)",
                None,
                &[
                    i32::from(origin.0).into(),
                    i32::from(node.get()).into(),
                    ordinal.into(),
                ],
            )?;
            Ok::<(), spi::Error>(())
        })?;
    }
    Ok(Some(origin))
}
