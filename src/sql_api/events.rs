//! `ha.events`.

use pgrx::datum::TimestampWithTimeZone;
use serde_json::Value;

use crate::durable::events;
use crate::postgres::error::Answer;

/// A row of the view.
pub(crate) struct EventRow {
    pub(crate) at: Option<TimestampWithTimeZone>,
    pub(crate) node_name: Option<String>,
    pub(crate) kind: String,
    pub(crate) severity: String,
    pub(crate) message: String,
    pub(crate) details: Value,
}

/// Microseconds from 1970 to 2000, where PostgreSQL begins to count.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// All events that are kept, oldest first.
pub(crate) fn events_read() -> Answer<Vec<EventRow>> {
    Ok(events::read_all()?
        .into_iter()
        .map(|event| EventRow {
            at: TimestampWithTimeZone::try_from(event.at - POSTGRES_EPOCH).ok(),
            node_name: event.node_name,
            kind: event.kind,
            severity: event.severity,
            message: event.message,
            details: event.details,
        })
        .collect())
}
