//! SQL as scenarios want it: text in, text out, errors with everything the server said.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use postgres::error::DbError;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};

pub(crate) type Row = Vec<Option<String>>;

/// One connection. Rows come as text, as psql would show them.
pub(crate) struct Session {
    client: Client,
    whom: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({})", self.whom)
    }
}

impl Session {
    pub(crate) fn connect(socket_directory: &Path, port: u16, database: &str, whom: &str) -> Result<Self> {
        let client = Config::new()
            .host_path(socket_directory)
            .port(port)
            .user("postgres")
            .dbname(database)
            .application_name("pg_ha_test")
            .connect_timeout(Duration::from_secs(10))
            // No statement of a scenario is meant to run longer; a hang becomes an error that names it.
            .options("-c statement_timeout=120s -c client_min_messages=warning")
            .connect(NoTls)
            .with_context(|| format!("connecting to {whom}, database {database}"))?;
        Ok(Self {
            client,
            whom: format!("{whom}/{database}"),
        })
    }

    /// The rows of the last statement that returned any.
    pub(crate) fn rows(&mut self, sql: &str) -> Result<Vec<Row>> {
        let messages = self
            .client
            .simple_query(sql)
            .with_context(|| format!("{}: {sql}", self.whom))?;
        let mut rows = Vec::new();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(_) => rows.clear(),
                SimpleQueryMessage::Row(row) => {
                    rows.push(
                        (0..row.len())
                            .map(|column| row.get(column).map(str::to_owned))
                            .collect(),
                    );
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    pub(crate) fn exec(&mut self, sql: &str) -> Result<()> {
        self.rows(sql).map(drop)
    }

    /// The single value of a single row; NULL is None.
    pub(crate) fn value(&mut self, sql: &str) -> Result<Option<String>> {
        let rows = self.rows(sql)?;
        match rows.as_slice() {
            [row] if row.len() == 1 => Ok(row[0].clone()),
            _ => bail!(
                "{}: expected one row of one column, got {rows:?} from: {sql}",
                self.whom
            ),
        }
    }

    /// The single value, which must be there.
    pub(crate) fn text(&mut self, sql: &str) -> Result<String> {
        self.value(sql)?
            .ok_or_else(|| anyhow!("{}: NULL from: {sql}", self.whom))
    }

    pub(crate) fn number(&mut self, sql: &str) -> Result<i64> {
        let text = self.text(sql)?;
        text.parse()
            .with_context(|| format!("{}: not a number: {text:?} from: {sql}", self.whom))
    }
}

/// What a server answered when it refused a statement.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) detail: String,
    pub(crate) hint: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "[{}] {}\n      DETAIL: {}\n      HINT: {}",
            self.sqlstate, self.message, self.detail, self.hint
        )
    }
}

impl Refusal {
    pub(crate) fn everything(&self) -> String {
        format!("{} {} {}", self.message, self.detail, self.hint)
    }
}

/// The server's error inside a chain of context, if it is one.
pub(crate) fn refusal(error: &anyhow::Error) -> Option<Refusal> {
    let server: &DbError = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<postgres::Error>()?.as_db_error())?;
    Some(Refusal {
        sqlstate: server.code().code().to_owned(),
        message: server.message().to_owned(),
        detail: server.detail().unwrap_or_default().to_owned(),
        hint: server.hint().unwrap_or_default().to_owned(),
    })
}

/// A string literal.
pub(crate) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// Rows as a small table for messages.
pub(crate) fn show(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "(no rows)".to_owned();
    }
    let line = |row: &Row| {
        row.iter()
            .map(|cell| cell.as_deref().unwrap_or("NULL"))
            .collect::<Vec<_>>()
            .join(" | ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
