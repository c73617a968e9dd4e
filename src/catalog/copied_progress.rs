//! How far a provider had applied third nodes when it was copied from, `ha.copied_progress`.

use super::{Error, execute, read, read_one};

/// Everything that a node committed before this position of its own WAL has been applied somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeProgress {
    pub(crate) node_id: i32,
    pub(crate) node_uid: String,
    pub(crate) lsn: u64,
}

/// For queries anywhere: node, its uid and the position, as text.
pub(crate) const QUERY: &str = "SELECT node_id::text, node_uid::text, lsn::text FROM ha.applied_progress()";

/// What this node has applied of others to which it has an enabled subscription.
pub(crate) fn here() -> Result<Vec<NodeProgress>, Error> {
    read(
        "SELECT p.node_id, p.node_uid::text, (p.lsn - '0/0'::pg_lsn)::bigint FROM ha.applied_progress() p \
           JOIN ha.subscription_catalog s ON s.provider_node_id = p.node_id WHERE s.enabled",
        &[],
        |row| {
            Ok(NodeProgress {
                node_id: row.get(1)?,
                node_uid: row.get(2)?,
                lsn: row.get::<i64>(3)?.cast_unsigned(),
            })
        },
    )
}

/// Notes, in the transaction that brings the rows of a table, what its copy contains of other nodes.
pub(crate) fn note(table_id: i32, progress: &[NodeProgress]) -> Result<(), Error> {
    execute(
        "DELETE FROM ha.copied_progress WHERE table_id = $1",
        &[table_id.into()],
    )?;
    for known in progress {
        execute(
            "INSERT INTO ha.copied_progress (table_id, node_id, node_uid, lsn) \
             VALUES ($1, $2, $3::uuid, '0/0'::pg_lsn + $4::numeric)",
            &[
                table_id.into(),
                known.node_id.into(),
                known.node_uid.as_str().into(),
                known.lsn.cast_signed().into(),
            ],
        )?;
    }
    Ok(())
}

/// How many tables were copied when their provider had not applied a node as far as this position, and one of them.
pub(crate) fn behind(node_uid: &str, lsn: u64) -> Result<(i64, Option<String>), Error> {
    read_one(
        "SELECT pg_catalog.count(*), pg_catalog.min(pg_catalog.quote_ident(t.nspname) || '.' || pg_catalog.quote_ident(t.relname)) \
           FROM ha.copied_progress p JOIN ha.subscription_tables t USING (table_id) \
          WHERE p.node_uid = $1::uuid AND p.lsn < '0/0'::pg_lsn + $2::numeric AND t.state <> 'init'",
        &[node_uid.into(), lsn.cast_signed().into()],
        |row| Ok((row.get(1)?, row.maybe(2)?)),
    )?
    .ok_or(Error::Null { column: 1 })
}
