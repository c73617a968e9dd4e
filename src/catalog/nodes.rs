//! `ha.node_catalog`: every node that this one knows of.

use pgrx::JsonB;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, execute, read, read_one};
use crate::durable::identity::Identity;
use crate::postgres::server;

/// A row of the table, and the form in which nodes tell each other about nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) node_id: i32,
    pub(crate) node_name: String,
    pub(crate) group_name: String,
    pub(crate) kind: String,
    pub(crate) dsn: String,
    pub(crate) region: Option<String>,
    pub(crate) priority: i32,
    pub(crate) options: Value,
    pub(crate) info: Option<Value>,
    pub(crate) created_at: String,
    pub(crate) node_uid: String,
    pub(crate) system_identifier: String,
}

fn content(error: &serde_json::Error) -> Error {
    Error::Content {
        table: "ha.node_catalog",
        reason: error.to_string(),
    }
}

/// All nodes, by id.
pub(crate) fn all() -> Result<Vec<Node>, Error> {
    read(
        "SELECT pg_catalog.to_jsonb(n) FROM ha.node_catalog n ORDER BY node_id",
        &[],
        |row| {
            let JsonB(value) = row.get(1)?;
            serde_json::from_value(value).map_err(|error| content(&error))
        },
    )
}

/// The node of this name.
pub(crate) fn by_name(name: &str) -> Result<Option<Node>, Error> {
    Ok(all()?.into_iter().find(|node| node.node_name == name))
}

/// The node of this id.
pub(crate) fn by_id(node_id: i32) -> Result<Option<Node>, Error> {
    Ok(all()?.into_iter().find(|node| node.node_id == node_id))
}

/// The row that is this server and database, given what the identity file says.
pub(crate) fn local(identity: Option<&Identity>) -> Result<Option<Node>, Error> {
    let Some(identity) = identity else {
        return Ok(None);
    };
    if identity.database_oid != server::database_oid()
        || identity.system_identifier != server::system_identifier().to_string()
    {
        return Ok(None);
    }
    Ok(all()?.into_iter().find(|node| node.node_uid == identity.node_uid))
}

/// Keeps other sessions from changing the table until the transaction ends.
pub(crate) fn lock() -> Result<(), Error> {
    execute("LOCK TABLE ha.node_catalog IN SHARE ROW EXCLUSIVE MODE", &[])?;
    Ok(())
}

/// Adds a node.
pub(crate) fn insert(node: &Node) -> Result<(), Error> {
    let value = serde_json::to_value(node).map_err(|error| content(&error))?;
    execute(
        "INSERT INTO ha.node_catalog \
         SELECT * FROM pg_catalog.jsonb_populate_record(NULL::ha.node_catalog, $1)",
        &[JsonB(value).into()],
    )?;
    Ok(())
}

/// Takes over what a known node says about itself. Its id, name and uid never change.
pub(crate) fn update_settings(node: &Node) -> Result<(), Error> {
    execute(
        "UPDATE ha.node_catalog SET dsn = $2, region = $3, priority = $4, options = $5, info = $6 \
          WHERE node_uid = $1::uuid",
        &[
            node.node_uid.as_str().into(),
            node.dsn.as_str().into(),
            node.region.clone().into(),
            node.priority.into(),
            JsonB(node.options.clone()).into(),
            node.info.clone().map(JsonB).into(),
        ],
    )?;
    Ok(())
}

/// Forgets one node.
pub(crate) fn delete(node_id: i32) -> Result<(), Error> {
    execute(
        "DELETE FROM ha.node_catalog WHERE node_id = $1",
        &[node_id.into()],
    )?;
    Ok(())
}

/// Forgets all nodes.
pub(crate) fn delete_all() -> Result<(), Error> {
    execute("DELETE FROM ha.node_catalog", &[])?;
    Ok(())
}

/// The slots of our output plugin in this database: name, and whether somebody reads from it.
pub(crate) fn provider_slots() -> Result<Vec<(String, bool)>, Error> {
    read(
        "SELECT slot_name::text, active FROM pg_catalog.pg_replication_slots \
          WHERE plugin = 'pg_ha' AND database = pg_catalog.current_database() ORDER BY 1",
        &[],
        |row| Ok((row.get(1)?, row.get(2)?)),
    )
}

/// The slots of our output plugin in any one database.
pub(crate) fn provider_slots_of(database_oid: u32) -> Result<Vec<String>, Error> {
    read(
        "SELECT slot_name::text FROM pg_catalog.pg_replication_slots \
          WHERE plugin = 'pg_ha' AND datoid = $1 ORDER BY 1",
        &[pgrx::pg_sys::Oid::from(database_oid).into()],
        |row| row.get(1),
    )
}

/// The extension's version as installed in this database.
pub(crate) fn extension_version() -> Result<Option<String>, Error> {
    read_one(
        "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pg_ha'",
        &[],
        |row| row.get(1),
    )
}
