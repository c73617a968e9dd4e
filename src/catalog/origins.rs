//! `ha.origin_ids`: which of this server's replication origins stands for which origin group, and for which way.
//!
//! Rows keep the number of the origin under which they were written, and PostgreSQL gives the number of a dropped
//! origin to the next one. So a mapped origin is never dropped, whatever happens to its subscription. A node that was
//! made anew under an id used before gets an origin of its own: positions of another server's WAL say nothing about
//! how much of its changes is applied. Both stand for the same id, by which rows are compared.
//!
//! Transactions that a provider forwards have origins of their own too, one for each of the provider's lanes: a lane
//! brings its transactions in the order of their positions, two lanes together need not. And an origin can be set up by
//! one process at a time: here it is always the applier of that provider.

use pg_ha_model::NodeId;
use pg_ha_replication::origin_name::{OriginKind, OriginName};
use pgrx::spi::{self, Spi};

use crate::postgres::origin::Origin;

/// Which node's group an origin's name stands for.
pub(crate) fn node_of_name(name: &str) -> Option<NodeId> {
    OriginName::parse(name).map(|name| name.node)
}

/// A way on which transactions of an origin come here.
pub(crate) struct Way<'a> {
    /// The origin.
    pub(crate) node: NodeId,
    /// The provider, and its number for the way there; 0: its own transactions.
    pub(crate) provider_uid: &'a str,
    pub(crate) lane: u16,
    /// The nodes that forward, in the order in which transactions pass them; the provider is the last. Empty for lane 0.
    pub(crate) path: Vec<NodeId>,
}

/// The origin that stands for the own transactions of this very node, made and mapped if this is the first time. In a
/// transaction.
pub(crate) fn ensure(node: NodeId, node_uid: &str) -> Result<Option<Origin>, spi::Error> {
    ensure_way(&Way {
        node,
        provider_uid: node_uid,
        lane: 0,
        path: Vec::new(),
    })
}

/// The origin of a way, made and mapped if this is the first time. In a transaction.
pub(crate) fn ensure_way(way: &Way<'_>) -> Result<Option<Origin>, spi::Error> {
    let (node, lane) = (i32::from(way.node.get()), i32::from(way.lane));
    let known = Spi::connect(|client| {
        let rows = client.select(
            "SELECT roident::int FROM ha.origin_ids \
              WHERE node_id = $1 AND node_uid = $2::uuid AND lane = $3 AND ordinal >= 0",
            Some(1),
            &[node.into(), way.provider_uid.into(), lane.into()],
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
                          WHERE o.node_id = $1 AND o.node_uid = $2::uuid AND o.lane = $3 AND o.ordinal >= 0) \
                   FROM ha.origin_ids WHERE node_id = $1",
                Some(1),
                &[node.into(), way.provider_uid.into(), lane.into()],
            )?
            .first()
            .get_two::<i32, i32>()
    })?;
    let mut ordinal = match ordinal {
        (_, Some(made_meanwhile)) => return Ok(Some(Origin(made_meanwhile as u16))),
        (ordinal, None) => ordinal.unwrap_or_default(),
    };
    let name = |ordinal: i32| {
        let number = ordinal.unsigned_abs();
        let kind = match way.path.is_empty() {
            true => OriginKind::Direct(number),
            false => OriginKind::Via(way.path.clone(), number),
        };
        OriginName { node: way.node, kind }.to_string()
    };
    // An origin that is not mapped was left by an earlier installation of the extension, with positions in whatever
    // server's WAL that was.
    while Origin::find(&name(ordinal)).is_some() {
        ordinal += 1;
    }
    let Some(origin) = Origin::create(&name(ordinal)) else {
        return Ok(None);
    };
    map(origin, way.node, ordinal, way.provider_uid, lane)?;
    Ok(Some(origin))
}

/// All ways on which transactions of an origin have come here: the provider's uid, and the origin that keeps the
/// progress.
pub(crate) fn ways_of(node: NodeId) -> Result<Vec<(String, Origin)>, spi::Error> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT node_uid::text, roident::int FROM ha.origin_ids WHERE node_id = $1 AND ordinal >= 0",
            None,
            &[i32::from(node.get()).into()],
        )?;
        rows.map(|row| {
            Ok((
                row.get::<String>(1)?.unwrap_or_default(),
                Origin(row.get::<i32>(2)?.unwrap_or_default() as u16),
            ))
        })
        .collect()
    })
}

/// The origin that rows copied from a node bear, made and mapped if this is the first time. It says whom they come from
/// and nothing of how far that node has been applied, so that there is one for all nodes of this id. In a transaction.
pub(crate) fn ensure_for_copies(node: NodeId, node_uid: &str) -> Result<Option<Origin>, spi::Error> {
    Spi::connect_mut(|client| {
        client.update("LOCK TABLE ha.origin_ids IN SHARE ROW EXCLUSIVE MODE", None, &[])?;
        Ok::<(), spi::Error>(())
    })?;
    let kind = OriginKind::Copy;
    let name = OriginName { node, kind }.to_string();
    if let Some(origin) = Origin::find(&name) {
        return Ok(Some(origin));
    }
    let Some(origin) = Origin::create(&name) else {
        return Ok(None);
    };
    map(origin, node, COPIES, node_uid, 0)?;
    Ok(Some(origin))
}

/// The ordinal of the origins of copies.
const COPIES: i32 = -1;

fn map(origin: Origin, node: NodeId, ordinal: i32, node_uid: &str, lane: i32) -> Result<(), spi::Error> {
    Spi::connect_mut(|client| {
        client.update(
            "INSERT INTO ha.origin_ids (roident, node_id, ordinal, node_uid, lane) \
             VALUES ($1::oid, $2, $3, $4::uuid, $5) \
             ON CONFLICT (node_id, ordinal) DO UPDATE SET roident = excluded.roident",
            None,
            &[
                i32::from(origin.0).into(),
                i32::from(node.get()).into(),
                ordinal.into(),
                node_uid.into(),
                lane.into(),
            ],
        )?;
        Ok::<(), spi::Error>(())
    })
}
