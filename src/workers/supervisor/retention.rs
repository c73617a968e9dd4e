//! Ends the slots of subscribers that hold back more WAL than `ha.max_slot_retained`, before the disk fills.

use std::time::{Duration, Instant};

use pg_ha_replication::retention::{self, Slot, Verdict};
use pgrx::prelude::*;

use crate::catalog::replication_slots::{self, Retaining};
use crate::durable::events::{self, Severity};
use crate::postgres::error::Report;
use crate::postgres::{latch, slot};
use crate::settings;

/// Time between two looks while there is a limit, and while a reader is ending.
const LOOK: Duration = Duration::from_secs(1);
const ENDING: Duration = Duration::from_millis(50);

/// What the supervisor remembers of it.
#[derive(Default)]
pub(super) struct Retention {
    looked: Option<Instant>,
    complained: String,
}

impl Retention {
    /// Looks at the slots, if it is time to, and ends those that have to; returns how long nothing will have to be
    /// done, None as long as there is no limit.
    pub(super) fn tend(&mut self) -> Option<Duration> {
        let limit = settings::max_slot_retained()?;
        let since = self.looked.map_or(LOOK, |at| at.elapsed());
        if since < LOOK {
            return Some(LOOK - since);
        }
        let slots = match crate::workers::read(replication_slots::retaining) {
            Ok(slots) => slots,
            Err(error) => {
                self.complain(format!("pg_ha cannot look at the replication slots: {error}"));
                self.looked = Some(Instant::now());
                return Some(LOOK);
            }
        };
        let mut ending = false;
        for slot in &slots {
            let seen = Slot {
                retained: slot.retained,
                reader: slot.reader,
                temporary: slot.temporary,
            };
            match retention::judge(seen, Some(limit)) {
                Verdict::Keep => {}
                Verdict::EndReader(process) => {
                    latch::terminate(process);
                    if slot.temporary {
                        tell(slot, limit);
                    } else {
                        ending = true;
                    }
                }
                Verdict::End => match slot::end(&slot.name) {
                    Ok(()) => tell(slot, limit),
                    // Its reader is back already, or somebody has dropped it: the next look tells.
                    Err(error) => {
                        self.complain(format!(
                            "pg_ha could not end replication slot \"{}\": {error}",
                            slot.name
                        ));
                        ending = true;
                    }
                },
            }
        }
        self.looked = if ending { None } else { Some(Instant::now()) };
        Some(if ending { ENDING } else { LOOK })
    }

    fn complain(&mut self, what: String) {
        if self.complained != what {
            log!("{what}");
            self.complained = what;
        }
    }
}

fn tell(slot: &Retaining, limit: u64) {
    let what = format!(
        "replication slot \"{}\" held back {} bytes of WAL and was ended",
        slot.name, slot.retained
    );
    let hint = if slot.temporary {
        "The copy of a table that it served starts over."
    } else {
        "Its subscription fails from now on: drop it on its node and make it again, then copy its tables anew. The \
         slot shows as lost in ha.status_slots until then."
    };
    Report::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, what.clone())
        .detail(format!(
            "ha.max_slot_retained allows {limit} bytes. The slot kept WAL from {}, its reader had confirmed {}.",
            slot.restart,
            slot.confirmed.as_deref().unwrap_or("nothing")
        ))
        .hint(hint)
        .warn();
    events::record(
        "slot_ended",
        Severity::Error,
        &what,
        serde_json::json!({
            "slot": slot.name, "retained_bytes": slot.retained, "limit_bytes": limit,
            "restart_lsn": slot.restart, "confirmed_flush_lsn": slot.confirmed, "temporary": slot.temporary,
        }),
    );
}
