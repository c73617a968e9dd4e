//! What a server must have to be a node: shared by `ha.doctor`, which lists all of it, and by `ha.node_create` and
//! `ha.sub_create`, which refuse at the first thing that is missing.

use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use crate::durable;
use crate::postgres::error::{Answer, Report};
use crate::postgres::server;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) ok: bool,
    pub(crate) found: String,
    pub(crate) wanted: String,
    /// Empty where all is well.
    pub(crate) hint: String,
}

impl Check {
    pub(crate) fn new(
        name: impl Into<String>,
        ok: bool,
        found: impl Into<String>,
        wanted: impl Into<String>,
        hint: impl Into<String>,
    ) -> Check {
        Check {
            name: name.into(),
            ok,
            found: found.into(),
            wanted: wanted.into(),
            hint: if ok { String::new() } else { hint.into() },
        }
    }

    /// A check that failed with a refusal.
    pub(crate) fn failed(name: impl Into<String>, wanted: impl Into<String>, report: &Report) -> Check {
        let found = match report.detail_text() {
            Some(detail) => format!("{}: {detail}", report.message()),
            None => report.message().to_owned(),
        };
        Check::new(name, false, found, wanted, report.hint_text().unwrap_or_default())
    }
}

/// How much the server shall carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Flows from other nodes to this one.
    pub(crate) subscriptions: usize,
    /// Flows from this node to others.
    pub(crate) subscribers: usize,
}

/// All checks on this server's settings and state directory.
pub(crate) fn server_checks(load: Load) -> Vec<Check> {
    let mut checks = vec![
        exactly("wal_level", "logical"),
        exactly("track_commit_timestamp", "on"),
    ];
    checks.extend(output_plugin());
    let flows = load.subscriptions.max(load.subscribers).max(1);
    checks.push(at_least("max_replication_slots", flows));
    checks.push(at_least("max_wal_senders", load.subscribers.max(1)));
    if server::version_number() >= 180_000 {
        checks.push(at_least(
            "max_active_replication_origins",
            load.subscriptions.max(1),
        ));
    }
    // The supervisor and PostgreSQL's own launcher, then a receiver and an applier for each subscription.
    checks.push(at_least(
        "max_worker_processes",
        2 + 2 * load.subscriptions.max(1),
    ));
    checks.push(state_directory());
    checks
}

/// Refuses at the first failed check.
pub(crate) fn require(checks: Vec<Check>) -> Answer<()> {
    match checks.into_iter().find(|check| !check.ok) {
        None => Ok(()),
        Some(check) => Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("{} must be {}", check.name, check.wanted),
        )
        .detail(format!("It is {}.", check.found))
        .hint(check.hint)),
    }
}

fn found(name: &str) -> String {
    server::setting(name).unwrap_or_else(|| "missing".to_owned())
}

fn line_to_set(name: &str, value: &str) -> String {
    format!("Add this line to postgresql.conf and restart the server: {name} = {value}")
}

fn exactly(name: &'static str, wanted: &'static str) -> Check {
    let found = found(name);
    Check::new(name, found == wanted, found, wanted, line_to_set(name, wanted))
}

fn at_least(name: &'static str, wanted: usize) -> Check {
    let found = found(name);
    let ok = found.parse::<usize>().is_ok_and(|found| found >= wanted);
    Check::new(
        name,
        ok,
        found,
        format!("at least {wanted}"),
        line_to_set(name, &wanted.max(10).to_string()),
    )
}

/// Some minor versions let only listed output plugins run; the administrator has to list ours.
fn output_plugin() -> Option<Check> {
    const NAME: &str = "output_plugin_libraries";
    let found = server::setting(NAME)?;
    let listed = found
        .split(',')
        .map(|library| library.trim().trim_matches('"'))
        .any(|library| matches!(library, "pg_ha" | "$libdir/pg_ha"));
    let complete = match found.trim() {
        "" => "pg_ha".to_owned(),
        others => format!("{others}, pg_ha"),
    };
    Some(Check::new(
        NAME,
        listed,
        format!("'{found}'"),
        "a list with pg_ha in it",
        format!("Add this line to postgresql.conf and restart the server: {NAME} = '{complete}'"),
    ))
}

fn state_directory() -> Check {
    const WANTED: &str = "a directory outside the data directory that the server can write to";
    const HINT: &str =
        "Set ha.state_directory in postgresql.conf to such a directory and restart the server.";
    let path = durable::directory();
    if path.starts_with(server::data_directory()) {
        let found = format!("\"{}\", inside the data directory", path.display());
        return Check::new("ha.state_directory", false, found, WANTED, HINT);
    }
    match durable::probe() {
        Ok(()) => Check::new(
            "ha.state_directory",
            true,
            format!("\"{}\"", path.display()),
            WANTED,
            "",
        ),
        Err(error) => Check::new("ha.state_directory", false, error.to_string(), WANTED, HINT),
    }
}
