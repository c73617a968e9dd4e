//! Counting conflicts, and saying so without flooding the log.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pg_ha_replication::conflict::{Conflict, Local, Version};
use pgrx::prelude::*;

use crate::durable::events::{self, Severity};
use crate::shared_state::layout::{Subscription, TableCounters};

/// Says that a table of the provider was copied there from another node, and what follows from that here.
pub(super) fn copied_on_provider(place: &Subscription, schema: &str, name: &str) {
    let subscription = place.text.read(|text| text.name.as_str().to_owned());
    let table = pgrx::spi::quote_qualified_identifier(schema, name);
    let what = format!(
        "table {table} of subscription \"{subscription}\" was copied on the provider: its rows were not forwarded, nor what \
         changed during the copy; ha.sub_resync_table brings them here"
    );
    log!("pg_ha {what}");
    events::record(
        "table_copied_on_provider",
        Severity::Warning,
        &what,
        serde_json::json!({ "subscription": subscription, "table": table }),
    );
}

/// At most one line in the log per this time; the counters tell of all.
const QUIET: Duration = Duration::from_secs(1);

/// The conflicts of one subscription.
pub(super) struct Conflicts {
    place: &'static Subscription,
    last_line: Option<Instant>,
    unsaid: u64,
}

impl Conflicts {
    pub(super) fn new(place: &'static Subscription) -> Conflicts {
        Conflicts {
            place,
            last_line: None,
            unsaid: 0,
        }
    }

    pub(super) fn note(
        &mut self,
        conflict: Conflict,
        table: &str,
        remote: Version,
        local: Local,
        counters: Option<&'static TableCounters>,
    ) {
        self.place.conflicts.fetch_add(1, Relaxed);
        if let Some(counters) = counters {
            counters.conflicts.fetch_add(1, Relaxed);
        }
        if self.last_line.is_some_and(|at| at.elapsed() < QUIET) {
            self.unsaid += 1;
            return;
        }
        let against = match local {
            Local::Present(row) => {
                format!(
                    ", local row of node {} at {}",
                    row.version.origin, row.version.timestamp.0
                )
            }
            Local::Missing | Local::SameTransaction => String::new(),
        };
        let more = match core::mem::take(&mut self.unsaid) {
            0 => String::new(),
            unsaid => format!("; {unsaid} more since the last such line"),
        };
        log!(
            "pg_ha conflict {} on table {table}: {} (remote change of node {} at {}{against}){more}",
            conflict.kind.as_str(),
            conflict.resolution.as_str(),
            remote.origin,
            remote.timestamp.0
        );
        self.last_line = Some(Instant::now());
    }
}
