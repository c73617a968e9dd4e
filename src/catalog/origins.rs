//! `ha.origin_ids`: which of this server's replication origins stands for which origin group.
//!
//! Rows keep the number of the origin under which they were written, and PostgreSQL gives the number of a dropped
//! origin to the next one. So a mapped origin is never dropped, whatever happens to its subscription. A node that was
//! made anew under an id used before gets an origin of its own: positions of another server's WAL say nothing about
//! how much of its changes is applied. Both stand for the same id, by which rows are compared.

use pg_ha_model::NodeId;
use pgrx::spi::{self, Spi};

use crate::postgres::origin::Origin;

/// The name of a replication origin that stands for a node's group.
fn name(node: NodeId, ordinal: i32) -> String {
    match ordinal {
        0 => format!("pg_ha_{node}"),
        _ => format!("pg_ha_{node}_{ordinal}"),
    }
}

/// The name of the replication origin that rows copied from a node bear.
fn copy_name(node: NodeId) -> String {
    format!("pg_ha_{node}_copy")
}

/// Which node's group an origin's name stands for.
pub(crate) fn node_of_name(name: &str) -> Option<NodeId> {
    let rest = name.strip_prefix("pg_ha_")?;
    let number = rest.split_once('_').map_or(rest, |(number, _)| number);
    NodeId::new(number.parse::<u32>().ok()?).ok()
}

/// The origin that stands for this very node, made and mapped if this is the first time. In a transaction.
pub(crate) fn ensure(node: NodeId, node_uid: &str) -> Result<Option<Origin>, spi::Error> {
    let known = Spi::connect(|client| {
        let rows = client.select(
            "SELECT roident::int FROM ha.origin_ids WHERE node_id = $1 AND node_uid = $2::uuid AND ordinal >= 0",
            Some(1),
            &[i32::from(node.get()).into(), node_uid.into()],
        )?;
        if rows.is_empty() {
            Ok(None)
        } else {
            rows.first().get_one::<i32>()
        }
    })?;
    if let Some(known) = known {
        return Ok(Some(Origin(known as u16)));
    }
    // Two workers of one subscription may come here at once; the second one waits and finds the first one's row.
    let ordinal = Spi::connect_mut(|client| {
        client.update("LOCK TABLE ha.origin_ids IN SHARE ROW EXCLUSIVE MODE", None, &[])?;
        client
            .update(
                "SELECT coalesce(max(ordinal) + 1, 0), \
                        (SELECT o.roident::int FROM ha.origin_ids o \
                          WHERE o.node_id = $1 AND o.node_uid = $2::uuid AND o.ordinal >= 0) \
                   FROM ha.origin_ids WHERE node_id = $1",
                Some(1),
                &[i32::from(node.get()).into(), node_uid.into()],
            )?
            .first()
            .get_two::<i32, i32>()
    })?;
    let mut ordinal = match ordinal {
        (_, Some(made_meanwhile)) => return Ok(Some(Origin(made_meanwhile as u16))),
        (ordinal, None) => ordinal.unwrap_or_default(),
    };
    // An origin that is not mapped was left by an earlier installation of the extension, with positions in whatever
    // server's WAL that was.
    while Origin::find(&name(node, ordinal)).is_some() {
        ordinal += 1;
    }
    let Some(origin) = Origin::create(&name(node, ordinal)) else {
        return Ok(None);
    };
    map(origin, node, ordinal, node_uid)?;
    Ok(Some(origin))
}

/// The origin that rows copied from a node bear, made and mapped if this is the first time. It says whom they come from
/// and nothing of how far that node has been applied, so that there is one for all nodes of this id. In a transaction.
pub(crate) fn ensure_for_copies(node: NodeId, node_uid: &str) -> Result<Option<Origin>, spi::Error> {
    Spi::connect_mut(|client| {
        client.update("LOCK TABLE ha.origin_ids IN SHARE ROW EXCLUSIVE MODE", None, &[])?;
        Ok::<(), spi::Error>(())
    })?;
    if let Some(origin) = Origin::find(&copy_name(node)) {
        return Ok(Some(origin));
    }
    let Some(origin) = Origin::create(&copy_name(node)) else {
        return Ok(None);
    };
    map(origin, node, COPIES, node_uid)?;
    Ok(Some(origin))
}

/// The ordinal of the origins of copies.
const COPIES: i32 = -1;

fn map(origin: Origin, node: NodeId, ordinal: i32, node_uid: &str) -> Result<(), spi::Error> {
    Spi::connect_mut(|client| {
        client.update(
            "INSERT INTO ha.origin_ids (roident, node_id, ordinal, node_uid) VALUES ($1::oid, $2, $3, $4::uuid) \
             ON CONFLICT (node_id, ordinal) DO UPDATE SET roident = excluded.roident",
            None,
            &[
                i32::from(origin.0).into(),
                i32::from(node.get()).into(),
                ordinal.into(),
                node_uid.into(),
            ],
        )?;
        Ok::<(), spi::Error>(())
    })
}
