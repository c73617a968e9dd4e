//! A connection to another node, from a session: every wait has a deadline, no message holds a password.

use std::time::Duration;

use pg_ha_model::conninfo::{self, Conninfo, ConninfoError};

use crate::postgres::libpq::{self, Connection, Patience, Rows, ServerError};
use crate::postgres::server;
use crate::settings;

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// SQL.
    Sql,
    /// Replication commands; SQL only without parameters.
    Replication,
}

/// Why a peer could not be asked. `peer` is its connection string without passwords.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("{0}")]
    Dsn(#[from] ConninfoError),
    #[error("the DSN is empty")]
    Empty,
    #[error("connection option \"{0}\" cannot be used here")]
    Option(String),
    #[error("could not connect to {peer}: {message}")]
    Connect { peer: String, message: String },
    #[error("could not connect to {peer}: no answer within {seconds} s")]
    ConnectTimeout { peer: String, seconds: f64 },
    #[error("no answer from {peer} within {seconds} s")]
    Timeout { peer: String, seconds: f64 },
    #[error("lost the connection to {peer}: {message}")]
    Lost { peer: String, message: String },
    #[error("{peer} refused: {}", .error.message)]
    Server { peer: String, error: ServerError },
    #[error("interrupted while waiting for {peer}")]
    Interrupted { peer: String },
    #[error("cannot ask {peer}: {message}")]
    Local { peer: String, message: String },
}

/// An open connection to a peer.
pub(crate) struct Peer {
    connection: Connection,
    name: String,
    secrets: Vec<String>,
    timeout: Duration,
}

/// Connection options that would change what the connection is.
const NOT_IN_A_DSN: [&str; 2] = ["replication", "client_encoding"];

/// Reads a DSN and refuses options that the extension sets itself.
pub(crate) fn parse_dsn(dsn: &str) -> Result<Conninfo, PeerError> {
    let conninfo = Conninfo::parse(dsn)?;
    if conninfo.iter().next().is_none() {
        return Err(PeerError::Empty);
    }
    match NOT_IN_A_DSN
        .iter()
        .find(|keyword| conninfo.get(keyword).is_some())
    {
        Some(keyword) => Err(PeerError::Option((*keyword).to_owned())),
        None => Ok(conninfo),
    }
}

impl Peer {
    /// Connects within `ha.connect_timeout`.
    pub(crate) fn connect(dsn: &str, purpose: Purpose, patience: Patience) -> Result<Peer, PeerError> {
        Peer::connect_within(dsn, purpose, patience, settings::connect_timeout())
    }

    /// Connects within `timeout` (or the DSN's own `connect_timeout`, if shorter), which later questions get as well.
    pub(crate) fn connect_within(
        dsn: &str,
        purpose: Purpose,
        patience: Patience,
        timeout: Duration,
    ) -> Result<Peer, PeerError> {
        let mut conninfo = parse_dsn(dsn)?;
        conninfo.set_default("application_name", "pg_ha")?;
        conninfo.set("client_encoding", &server::encoding())?;
        if purpose == Purpose::Replication {
            conninfo.set("replication", "database")?;
        }
        let name = format!("\"{}\"", conninfo::mask(dsn).trim());
        let secrets = conninfo
            .iter()
            .filter(|(keyword, value)| conninfo::is_secret(keyword) && value.len() > 2)
            .map(|(_, value)| value.to_owned())
            .collect::<Vec<_>>();
        let timeout = match conninfo
            .get("connect_timeout")
            .and_then(|seconds| seconds.parse().ok())
        {
            Some(seconds @ 1..) => timeout.min(Duration::from_secs(seconds)),
            _ => timeout,
        };
        let parameters: Vec<(&str, &str)> = conninfo.iter().collect();
        let connection = match Connection::open(&parameters, timeout, patience) {
            Ok(connection) => connection,
            Err(libpq::Error::Timeout(after)) => {
                return Err(PeerError::ConnectTimeout {
                    peer: name,
                    seconds: after.as_secs_f64(),
                });
            }
            Err(error) => return Err(describe(error, name, &secrets)),
        };
        let mut peer = Peer {
            connection,
            name,
            secrets,
            timeout,
        };
        // Whatever its role's settings are, what we ask for means the same; and no lock on the peer is waited for
        // longer than this session waits for the answer. (Making a slot waits on locks for as long as transactions
        // run there; that wait has its own deadline.)
        let patience = match purpose {
            Purpose::Sql => timeout.as_millis(),
            Purpose::Replication => 0,
        };
        peer.simple(&format!(
            "SET search_path = pg_catalog, pg_temp; SET lock_timeout = {patience}; \
             SET statement_timeout = {patience}; SET default_transaction_read_only = off"
        ))?;
        Ok(peer)
    }

    /// One statement with text parameters.
    pub(crate) fn query(&mut self, sql: &str, parameters: &[&str]) -> Result<Rows, PeerError> {
        let result = self.connection.query(sql, parameters, self.timeout);
        result.map_err(|error| describe(error, self.name.clone(), &self.secrets))
    }

    /// SQL without parameters, or a replication command.
    pub(crate) fn simple(&mut self, sql: &str) -> Result<Rows, PeerError> {
        self.simple_within(sql, self.timeout)
    }

    /// As [`Peer::simple`], with more patience.
    pub(crate) fn simple_within(&mut self, sql: &str, timeout: Duration) -> Result<Rows, PeerError> {
        let result = self.connection.simple(sql, timeout);
        result.map_err(|error| describe(error, self.name.clone(), &self.secrets))
    }

    /// The peer's connection string, quoted and without passwords.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// A text literal for statements that take no parameters.
pub(crate) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

fn describe(error: libpq::Error, peer: String, secrets: &[String]) -> PeerError {
    let redact = |text: String| {
        secrets
            .iter()
            .fold(text, |text, secret| text.replace(secret.as_str(), conninfo::MASK))
    };
    match error {
        libpq::Error::Connect(message) => PeerError::Connect {
            peer,
            message: redact(message),
        },
        libpq::Error::Timeout(after) => PeerError::Timeout {
            peer,
            seconds: after.as_secs_f64(),
        },
        libpq::Error::Lost(message) => PeerError::Lost {
            peer,
            message: redact(message),
        },
        libpq::Error::Server(error) => PeerError::Server {
            peer,
            error: ServerError {
                sqlstate: error.sqlstate,
                message: redact(error.message),
                detail: error.detail.map(redact),
                hint: error.hint.map(redact),
            },
        },
        libpq::Error::Interrupted => PeerError::Interrupted { peer },
        error @ (libpq::Error::NoFile | libpq::Error::ZeroByte) => PeerError::Local {
            peer,
            message: error.to_string(),
        },
    }
}
