//! The argument and option `forward_origins`: whose changes a subscription receives besides the provider's own.

use pg_ha_replication::forwarding::ALL;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use super::quoted_list;
use crate::network::peer::{Peer, Purpose};
use crate::postgres::error::{Answer, Report};
use crate::postgres::libpq::Patience;

/// Refuses names that the provider knows no node by, and those whose changes come, or stay away, in any case.
pub(super) fn require(wanted: &[String], known_there: &[String], provider: &str, local: &str) -> Answer<()> {
    let refuse = |message: String, detail: String| {
        Err(Report::new(Code::ERRCODE_INVALID_PARAMETER_VALUE, message)
            .detail(detail)
            .hint(format!(
                "Name nodes that \"{provider}\" subscribes to, or \"{ALL}\" for everything that it has."
            )))
    };
    for name in wanted.iter().filter(|name| *name != ALL) {
        if name == provider {
            return refuse(
                format!("forward_origins names the provider, \"{name}\""),
                "Its own changes always come.".to_owned(),
            );
        }
        if name == local {
            return refuse(
                format!("forward_origins names the local node, \"{name}\""),
                "A node's changes are never sent back to it.".to_owned(),
            );
        }
        if !known_there.contains(name) {
            return Err(Report::new(
                Code::ERRCODE_UNDEFINED_OBJECT,
                format!("node \"{provider}\" knows no node \"{name}\" whose changes it could forward"),
            )
            .detail(format!(
                "It knows {}.",
                quoted_list(known_there.iter().map(String::as_str))
            ))
            .hint(format!(
                "Name nodes that \"{provider}\" subscribes to, or \"{ALL}\" for everything that it has."
            )));
        }
    }
    Ok(())
}

/// As [`require`], for a subscription that exists: asks its provider.
pub(super) fn require_at(dsn: &str, wanted: &[String], provider: &str, local: &str) -> Answer<()> {
    if wanted.iter().all(|name| name == ALL) {
        return Ok(());
    }
    let mut peer = Peer::connect(dsn, Purpose::Sql, Patience::Interruptible)?;
    let rows = peer.query("SELECT node_name::text FROM ha.nodes ORDER BY node_id", &[])?;
    let known: Vec<String> = rows.into_iter().flatten().flatten().collect();
    require(wanted, &known, provider, local)
}
