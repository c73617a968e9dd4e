//! What the layers below report, in the words and SQLSTATEs that users see.

use std::io::ErrorKind;

use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use crate::network::peer::PeerError;
use crate::postgres::error::{Report, code_of_sqlstate};
use crate::{catalog, durable};

const DSN_SYNTAX: &str = "Write it as libpq takes it: 'host=... port=... dbname=... user=...' or 'postgresql://user@host:port/dbname'.";

impl From<catalog::Error> for Report {
    fn from(error: catalog::Error) -> Report {
        Report::new(Code::ERRCODE_INTERNAL_ERROR, error.to_string())
    }
}

impl From<durable::Error> for Report {
    fn from(error: durable::Error) -> Report {
        match error {
            durable::Error::Io { action, path, source } => {
                let code = match source.kind() {
                    ErrorKind::PermissionDenied => Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                    ErrorKind::StorageFull => Code::ERRCODE_DISK_FULL,
                    _ => Code::ERRCODE_IO_ERROR,
                };
                Report::new(code, format!("could not {action} \"{}\"", path.display()))
                    .detail(sentence(&source.to_string()))
                    .hint(
                        "The state directory (ha.state_directory) must be on a file system that the server's user \
                         can write to, outside the data directory.",
                    )
            }
            durable::Error::Damaged { path, reason } => Report::new(
                Code::ERRCODE_DATA_CORRUPTED,
                format!("file \"{}\" is damaged", path.display()),
            )
            .detail(sentence(&reason))
            .hint(
                "Restore the file, or remove it if this server shall not be the node it stood for any more.",
            ),
            durable::Error::Locked { path } => Report::new(
                Code::ERRCODE_OBJECT_IN_USE,
                "another session is changing this server's state directory",
            )
            .detail(format!("It holds \"{}\".", path.display()))
            .hint("Wait until it is done, then try again."),
        }
    }
}

impl From<PeerError> for Report {
    fn from(error: PeerError) -> Report {
        let summary = error.to_string();
        match error {
            PeerError::Dsn(reason) => Report::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                "the DSN is not a valid connection string",
            )
            .detail(sentence(&reason.to_string()))
            .hint(DSN_SYNTAX),
            PeerError::Empty => Report::new(Code::ERRCODE_INVALID_PARAMETER_VALUE, summary)
                .detail("It names neither a host nor a database.")
                .hint(DSN_SYNTAX),
            PeerError::Option(_) => Report::new(Code::ERRCODE_INVALID_PARAMETER_VALUE, summary)
                .detail("pg_ha sets it itself, as each connection needs it.")
                .hint("Leave it out of the DSN."),
            PeerError::Connect { peer, message } => connect(&peer, &message),
            PeerError::ConnectTimeout { peer, seconds } => Report::new(
                Code::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
                format!("could not connect to {peer}"),
            )
            .detail(format!("There was no answer within {seconds} s."))
            .hint("Check host, port and firewalls, or allow more time with ha.connect_timeout."),
            PeerError::Timeout { .. } => Report::new(Code::ERRCODE_CONNECTION_FAILURE, summary)
                .hint("Look there for what holds it up, or allow more time with ha.connect_timeout."),
            PeerError::Lost { peer, message } => Report::new(
                Code::ERRCODE_CONNECTION_FAILURE,
                format!("lost the connection to {peer}"),
            )
            .detail(sentence(&message))
            .hint("Look into that server's log."),
            PeerError::Server { error: found, .. } => {
                let mut report = Report::new(code_of_sqlstate(&found.sqlstate), summary);
                if let Some(detail) = found.detail {
                    report = report.detail(detail);
                }
                if let Some(hint) = found.hint {
                    report = report.hint(hint);
                }
                report
            }
            PeerError::Interrupted { .. } => Report::new(Code::ERRCODE_QUERY_CANCELED, summary),
            PeerError::Local { .. } => Report::new(Code::ERRCODE_INSUFFICIENT_RESOURCES, summary),
        }
    }
}

/// libpq gives no SQLSTATE for what went wrong while connecting, only its message or the server's.
fn connect(peer: &str, message: &str) -> Report {
    let has = |text: &str| message.contains(text);
    let (code, hint) = if has("could not translate host name") {
        (
            Code::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
            "Check the host's name in the DSN, and that this server can resolve it.",
        )
    } else if has("password authentication failed") || has("no password supplied") {
        (
            Code::ERRCODE_INVALID_PASSWORD,
            "Check user and password in the DSN; a password file must be one of the server's own user.",
        )
    } else if has("invalid response to SSL negotiation") {
        (
            Code::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
            "What listens at that host and port is no PostgreSQL server.",
        )
    } else if has("pg_hba.conf") || has("authentication") || has("certificate") || has("SSL") {
        (
            Code::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            "Allow the connection in pg_hba.conf there, for the database itself, and check user and SSL options.",
        )
    } else if has("role \"") && has("does not exist") {
        (
            Code::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            "Create the role there, with LOGIN and REPLICATION and as a member of ha_replication.",
        )
    } else if has("database \"") && has("does not exist") {
        (Code::ERRCODE_INVALID_CATALOG_NAME, "Check dbname in the DSN.")
    } else if has("too many clients") || has("remaining connection slots") || has("too many connections") {
        (
            Code::ERRCODE_TOO_MANY_CONNECTIONS,
            "Raise max_connections there, or close connections.",
        )
    } else if has("invalid ") {
        (Code::ERRCODE_INVALID_PARAMETER_VALUE, "Correct the DSN.")
    } else {
        (
            Code::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
            "Check that a server runs at that host and port and accepts connections.",
        )
    };
    Report::new(code, format!("could not connect to {peer}"))
        .detail(sentence(message))
        .hint(hint)
}

/// A capital and a full stop, as details have.
pub(super) fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let Some(first) = characters.next() else {
        return String::new();
    };
    let stop = if text.ends_with(['.', '?', '!']) { "" } else { "." };
    format!("{}{}{stop}", first.to_uppercase(), characters.as_str())
}
