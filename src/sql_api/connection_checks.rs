//! Whether a DSN leads where it should, and whether its role may do what links need.

use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use crate::catalog;
use crate::network::peer::{Peer, Purpose};
use crate::postgres::error::{Answer, Report};
use crate::postgres::libpq::Patience;
use crate::postgres::server;

/// Connects and refuses unless the DSN leads back to this very server and database.
///
/// A system identifier proves nothing, since standbys and clones share it. So this transaction takes an advisory lock
/// on a number that nobody can guess, and the session at the other end looks for it: locks exist in one running
/// server and one database only.
pub(crate) fn leads_here(dsn: &str) -> Answer<()> {
    let key = catalog::random_key()?;
    if !catalog::try_advisory_lock(key)? {
        return Err(Report::new(
            Code::ERRCODE_INTERNAL_ERROR,
            "a random advisory lock is taken already",
        ));
    }
    let mut peer = Peer::connect(dsn, Purpose::Sql, Patience::Interruptible)?;
    let rows = peer.query(
        "SELECT pg_catalog.current_database()::text, \
                (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), \
                EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database \
                         WHERE d.datname = pg_catalog.current_database() AND l.locktype = 'advisory' \
                           AND l.classid::bigint = $1::bigint AND l.objid::bigint = $2::bigint \
                           AND l.objsubid = 1 AND l.pid = $3::integer AND l.granted)::text",
        &[
            &(key.cast_unsigned() >> 32).to_string(),
            &(key.cast_unsigned() & 0xFFFF_FFFF).to_string(),
            &server::process_id().to_string(),
        ],
    )?;
    let column = |index: usize| {
        rows.first()
            .and_then(|row| row.get(index))
            .and_then(Clone::clone)
            .unwrap_or_default()
    };
    if column(2) == "true" {
        return require_role(&mut peer);
    }
    let here = server::system_identifier().to_string();
    let database = server::database_name(server::database_oid()).unwrap_or_default();
    let hint = "Pass the connection string by which other nodes reach this server and this database.";
    let report = if column(1) != here {
        Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "the DSN leads to another server",
        )
        .detail(format!(
            "{} has system identifier {}, this server has {here}.",
            peer.name(),
            column(1)
        ))
    } else if column(0) != database {
        Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "the DSN leads to another database",
        )
        .detail(format!(
            "{} is database \"{}\", this is database \"{database}\".",
            peer.name(),
            column(0)
        ))
    } else {
        Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "the DSN leads to another server",
        )
        .detail(format!(
            "{} has this server's system identifier, {here}, but is a standby or a copy of it.",
            peer.name()
        ))
    };
    Err(report.hint(hint))
}

/// Refuses unless the role at the other end may replicate and call what nodes call.
pub(crate) fn require_role(peer: &mut Peer) -> Answer<()> {
    let rows = peer.query(
        "SELECT r.rolname::text, (r.rolsuper OR r.rolreplication)::text, \
                (r.rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'ha_replication' \
                                          AND pg_catalog.pg_has_role(g.oid, 'USAGE')))::text \
           FROM pg_catalog.pg_roles r WHERE r.rolname = current_user",
        &[],
    )?;
    let mut columns = rows.into_iter().flatten().map(Option::unwrap_or_default);
    let role = columns.next().unwrap_or_default();
    let mut missing = Vec::new();
    let mut statements = Vec::new();
    let quoted = pgrx::spi::quote_identifier(&role);
    if columns.next().as_deref() != Some("true") {
        missing.push("the REPLICATION attribute");
        statements.push(format!("ALTER ROLE {quoted} REPLICATION;"));
    }
    if columns.next().as_deref() != Some("true") {
        missing.push("membership in ha_replication");
        statements.push(format!("GRANT ha_replication TO {quoted};"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Report::new(
        Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("role \"{role}\" of the DSN lacks privileges"),
    )
    .detail(format!("On {} it lacks {}.", peer.name(), missing.join(" and ")))
    .hint(format!("Run there as a superuser: {}", statements.join(" "))))
}
