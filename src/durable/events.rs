//! What happened to this node, in a bounded file of the state directory: standbys and fenced servers record too,
//! which no table could.
//!
//! One checksummed JSON record per event. When the file would grow beyond `ha.events_max_size` it becomes `events.1`
//! (replacing an older one) and a new one is begun. Recording never fails its caller and waits for nothing but a
//! short lock: an event that cannot be written goes to the server log instead.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pg_ha_model::record::{self, ReadEnd};
use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, directory, ensure_directory, identity, lock, private_file};
use crate::postgres::error::Report;
use crate::settings;

/// Longer texts are cut, so that one event cannot push out all others.
const MAX_MESSAGE_BYTES: usize = 4096;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    Info,
    Warning,
    #[allow(dead_code, reason = "the workers' failures")]
    Error,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One event as it stands in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Microseconds since 1970.
    pub(crate) at: i64,
    pub(crate) node_name: Option<String>,
    pub(crate) kind: String,
    pub(crate) severity: String,
    pub(crate) message: String,
    pub(crate) details: Value,
}

/// Records that something happened, from any process, inside or outside of a transaction.
pub(crate) fn record(kind: &str, severity: Severity, message: &str, details: Value) {
    let node_name = identity::current()
        .ok()
        .flatten()
        .map(|identity| identity.node_name)
        .or_else(settings::node_name);
    record_for(node_name, kind, severity, message, details);
}

/// As [`record`], for a node that is not (or no longer) the one of the identity file.
pub(crate) fn record_for(
    node_name: Option<String>,
    kind: &str,
    severity: Severity,
    message: &str,
    details: Value,
) {
    let event = Event {
        at: now(),
        node_name,
        kind: kind.to_owned(),
        severity: severity.word().to_owned(),
        message: shortened(message).to_owned(),
        details,
    };
    if let Err(error) = append(&event) {
        Report::new(
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("pg_ha: event {} was not recorded: {}", event.kind, event.message),
        )
        .detail(error.to_string())
        .log();
    }
}

/// All events that are kept, oldest first. A damaged file is read up to the damage.
pub(crate) fn read_all() -> Result<Vec<Event>, Error> {
    let directory = directory();
    let mut events = Vec::new();
    for name in ["events.1", "events"] {
        let path = directory.join(name);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let (payloads, _) = record::decode_all(&content);
        events.extend(
            payloads
                .iter()
                .filter_map(|payload| serde_json::from_slice(payload).ok()),
        );
    }
    Ok(events)
}

fn append(event: &Event) -> Result<(), Error> {
    let path = ensure_directory()?.join("events");
    let damaged = |reason: String| Error::Damaged {
        path: path.clone(),
        reason,
    };
    let payload = serde_json::to_vec(event).map_err(|error| damaged(error.to_string()))?;
    let mut bytes = Vec::new();
    record::encode(&payload, &mut bytes).map_err(|error| damaged(error.to_string()))?;

    let _lock = lock("events.lock", Duration::from_millis(500))?;
    prepare(&path, bytes.len() as u64)?;
    let mut file = private_file()
        .append(true)
        .create(true)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_data())
        .map_err(Error::io("write", &path))
}

/// Rotates the file if it is full or damaged, and cuts off what an interrupted append left.
fn prepare(path: &Path, room: u64) -> Result<(), Error> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let end = record::decode_all(&content).1;
    let full = content.len() as u64 + room > settings::events_max_bytes();
    if full || matches!(end, ReadEnd::Corrupt { .. }) {
        return fs::rename(path, path.with_extension("1")).map_err(Error::io("rotate", path));
    }
    if let ReadEnd::TornTail { offset } = end {
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(offset as u64))
            .map_err(Error::io("truncate", path))?;
    }
    Ok(())
}

fn shortened(message: &str) -> &str {
    let mut length = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(length) {
        length -= 1;
    }
    message.get(..length).unwrap_or_default()
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or_default()
}
