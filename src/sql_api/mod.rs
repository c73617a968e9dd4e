//! The functions of the SQL contract, one file per family: validate, call, return. Refusals are values
//! ([`Report`](crate::postgres::error::Report)) that the thunks in `postgres::entry` raise.

pub(crate) mod arguments;
pub(crate) mod checks;
pub(crate) mod connection_checks;
pub(crate) mod doctor;
pub(crate) mod drop_checks;
mod error;
pub(crate) mod events;
pub(crate) mod exchange;
mod forward_origins;
pub(crate) mod nodes;
pub(crate) mod replication_set_tables;
pub(crate) mod replication_sets;
pub(crate) mod sequences;
pub(crate) mod slot_confirm;
pub(crate) mod slots;
pub(crate) mod status;
pub(crate) mod subscription_changes;
pub(crate) mod subscription_options;
pub(crate) mod subscriptions;
pub(crate) mod sync_event;
pub(crate) mod synchronization;

use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use crate::catalog::nodes::{self as node_catalog, Node};
use crate::durable::identity;
use crate::postgres::error::{Answer, Report};
use crate::postgres::server;

/// The node that this server and database are.
pub(crate) fn local_node() -> Answer<Option<Node>> {
    Ok(node_catalog::local(identity::current()?.as_ref())?)
}

/// As [`local_node`], where there must be one.
pub(crate) fn require_local_node() -> Answer<Node> {
    local_node()?.ok_or_else(|| {
        Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this database is not a node",
        )
        .detail(match server::database_name(server::database_oid()) {
            Some(database) => format!("No node was created in database \"{database}\" of this server."),
            None => "No node was created here.".to_owned(),
        })
        .hint("Create it first: SELECT ha.node_create('<name>', '<connection string that leads here>')")
    })
}

/// Refuses to go on where nothing can be written.
pub(crate) fn refuse_in_recovery(what: &str) -> Answer<()> {
    if server::in_recovery() {
        return Err(Report::new(
            Code::ERRCODE_READ_ONLY_SQL_TRANSACTION,
            format!("cannot {what} on a standby"),
        )
        .detail("The server is in recovery.")
        .hint("Run it on the primary."));
    }
    Ok(())
}

/// For lists in messages: `"a", "b"`.
pub(crate) fn quoted_list<'s>(names: impl IntoIterator<Item = &'s str>) -> String {
    names
        .into_iter()
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ")
}
