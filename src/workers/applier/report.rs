//! Conflicts: their history, their numbers, and a word in the log without flooding it.
//!
//! The history is written with the transaction that met the conflict, so that it is as durable and happens as often.
//! What is counted and logged is so once that transaction is committed.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

use pg_ha_model::{NodeId, PgTimestamp};
use pg_ha_replication::conflict::{Conflict, Local, Version};
use pgrx::prelude::*;

use crate::catalog;
use crate::durable::events::{self, Severity};
use crate::postgres::apply::target::Target;
use crate::postgres::apply::told;
use crate::postgres::conflict_history::{self, Entry, Writer};
use crate::postgres::values::to_server;
use crate::settings;
use crate::shared_state::layout::{Subscription, TableCounters};
use crate::shared_state::{self, layout};

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
    /// Those of the open transaction, by table, as they were met.
    of: Vec<(Option<&'static TableCounters>, u64)>,
    /// The line for the first of them.
    line: Option<String>,
    subscription: Vec<u8>,
    /// Names of nodes in the server's encoding, as of a generation of the catalogs.
    names: HashMap<NodeId, Vec<u8>>,
    generation: u64,
}

impl Conflicts {
    pub(super) fn new(place: &'static Subscription, subscription: &str) -> Conflicts {
        Conflicts {
            place,
            last_line: None,
            unsaid: 0,
            of: Vec::new(),
            line: None,
            subscription: to_server(subscription),
            names: HashMap::new(),
            generation: 0,
        }
    }

    /// A transaction begins: settings count from here.
    pub(super) fn begin(&mut self) {
        told::want((settings::max_conflicts() > 0).then(settings::conflict_max_row_size));
    }

    /// A change met a conflict, which has been settled. `origin_lsn`: where the remote transaction ends at its origin.
    pub(super) fn note(
        &mut self,
        conflict: Conflict,
        target: &Target,
        (remote, origin_lsn): (Version, u64),
        local: Local,
        counters: Option<&'static TableCounters>,
    ) -> Result<(), catalog::Error> {
        if let Some(rows) = told::take() {
            self.learn_names();
            let here = match local {
                // A version that the server has forgotten.
                Local::Present(row) if row.version.timestamp == PgTimestamp(i64::MIN) => None,
                Local::Present(row) => Some(row.version),
                Local::Missing | Local::SameTransaction => None,
            };
            for version in here.iter().chain([&remote]) {
                self.names
                    .entry(version.origin)
                    .or_insert_with(|| to_server(&version.origin.to_string()));
            }
            let writer = |version: Version| Writer {
                node: self.names.get(&version.origin).map_or(&[], Vec::as_slice),
                time: version.timestamp.0,
            };
            let written = conflict_history::write(&Entry {
                subscription: &self.subscription,
                relation: target.oid,
                relation_name: &to_server(&target.name),
                conflict_type: conflict.kind.as_str(),
                resolution: conflict.resolution.as_str(),
                rows: &rows,
                local: here.map(writer),
                remote: writer(remote),
                remote_lsn: origin_lsn,
            });
            if !written {
                return Err(catalog::Error::Content {
                    table: "ha.conflict_history",
                    reason: "it is missing or has other columns than this library knows".to_owned(),
                });
            }
        }
        let same = |known: Option<&'static TableCounters>| {
            known.map(std::ptr::from_ref) == counters.map(std::ptr::from_ref)
        };
        match self.of.iter_mut().rev().find(|(known, _)| same(*known)) {
            Some((_, count)) => *count += 1,
            None => self.of.push((counters, 1)),
        }
        if self.line.is_none() && self.last_line.is_none_or(|at| at.elapsed() >= QUIET) {
            let against = match local {
                Local::Present(row) => {
                    format!(
                        ", local row of node {} at {}",
                        row.version.origin, row.version.timestamp.0
                    )
                }
                Local::Missing | Local::SameTransaction => String::new(),
            };
            self.line = Some(format!(
                "pg_ha conflict {} on table {}: {} (remote change of node {} at {}{against})",
                conflict.kind.as_str(),
                target.name,
                conflict.resolution.as_str(),
                remote.origin,
                remote.timestamp.0
            ));
        }
        Ok(())
    }

    /// The transaction is committed.
    pub(super) fn publish(&mut self) {
        let mut count = 0;
        for (table, of_table) in self.of.drain(..) {
            count += of_table;
            if let Some(table) = table {
                table.conflicts.fetch_add(of_table, Relaxed);
            }
        }
        if count == 0 {
            return;
        }
        self.place.conflicts.fetch_add(count, Relaxed);
        let Some(line) = self.line.take() else {
            self.unsaid += count;
            return;
        };
        let more = match core::mem::replace(&mut self.unsaid, count - 1) {
            0 => String::new(),
            unsaid => format!("; {unsaid} more since the last such line"),
        };
        log!("{line}{more}");
        self.last_line = Some(Instant::now());
    }

    /// The transaction did not happen.
    pub(super) fn forget(&mut self) {
        self.of.clear();
        self.line = None;
        told::take();
    }

    fn learn_names(&mut self) {
        let now = shared_state::area().map_or(0, |area: &layout::Area| area.seen_generation.load(Acquire));
        if self.names.is_empty() || self.generation != now {
            self.generation = now;
            let nodes = shared_state::nodes();
            self.names = nodes
                .iter()
                .filter_map(|view| {
                    let id = NodeId::new(view.node_id).ok()?;
                    Some((id, to_server(view.node_name.as_str())))
                })
                .collect();
        }
    }
}
