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
    let here = Settings(&server::setting);
    let slots = load.subscriptions.max(load.subscribers);
    let mut checks = provider_checks(&here, slots, load.subscribers);
    if server::version_number() >= 180_000 {
        checks.push(here.at_least("max_active_replication_origins", 2 * load.subscriptions.max(1)));
    }
    // The supervisor and PostgreSQL's own launcher, then a receiver and an applier for each subscription.
    checks.push(here.at_least("max_worker_processes", 2 + 2 * load.subscriptions.max(1)));
    checks.push(state_directory());
    checks
}

/// What a subscription with the option two_phase needs.
pub(crate) fn can_prepare() -> Check {
    Settings(&server::setting).at_least("max_prepared_transactions", 1)
}

/// The checks on what a server needs to be subscribed to: this one, or a provider at the other end of a connection.
pub(crate) fn provider_checks(settings: &Settings<'_>, slots: usize, senders: usize) -> Vec<Check> {
    let mut checks = vec![
        settings.exactly("wal_level", "logical"),
        settings.exactly("track_commit_timestamp", "on"),
    ];
    checks.extend(settings.output_plugin());
    checks.push(settings.at_least("max_replication_slots", slots.max(1)));
    checks.push(settings.at_least("max_wal_senders", senders.max(1)));
    checks
}

/// Refuses at the first failed check. `place` says of which server it speaks where that is not this one.
pub(crate) fn require(checks: Vec<Check>, place: Option<&str>) -> Answer<()> {
    match checks.into_iter().find(|check| !check.ok) {
        None => Ok(()),
        Some(check) => Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            match place {
                None => format!("{} must be {}", check.name, check.wanted),
                Some(_) => format!("on the provider, {} must be {}", check.name, check.wanted),
            },
        )
        .detail(match place {
            None => format!("It is {}.", check.found),
            Some(place) => format!("It is {} on {place}.", check.found),
        })
        .hint(check.hint)),
    }
}

fn line_to_set(name: &str, value: &str) -> String {
    format!("Add this line to postgresql.conf and restart the server: {name} = {value}")
}

/// A server's settings: by name, where it knows them.
pub(crate) struct Settings<'s>(pub(crate) &'s dyn Fn(&str) -> Option<String>);

impl Settings<'_> {
    fn found(&self, name: &str) -> String {
        (self.0)(name).unwrap_or_else(|| "missing".to_owned())
    }

    fn exactly(&self, name: &'static str, wanted: &'static str) -> Check {
        let found = self.found(name);
        Check::new(name, found == wanted, found, wanted, line_to_set(name, wanted))
    }

    fn at_least(&self, name: &'static str, wanted: usize) -> Check {
        let found = self.found(name);
        let ok = found.parse::<usize>().is_ok_and(|found| found >= wanted);
        let line = line_to_set(name, &wanted.max(10).to_string());
        Check::new(name, ok, found, format!("at least {wanted}"), line)
    }

    /// Some minor versions let only listed output plugins run; the administrator has to list ours.
    fn output_plugin(&self) -> Option<Check> {
        const NAME: &str = "output_plugin_libraries";
        let found = (self.0)(NAME)?;
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
            line_to_set(NAME, &format!("'{complete}'")),
        ))
    }
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
