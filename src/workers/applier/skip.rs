//! `ha.sub_skip_lsn`: passing over the one transaction that was named.
//!
//! The wish stands in the catalog. It is taken out in the transaction that moves the progress past the one that is passed
//! over, so that after any crash either both have happened or neither.

use pg_ha_model::Lsn;
use pg_ha_replication::codec::Begin;
use pg_ha_replication::skip::{self, Verdict};
use pgrx::prelude::*;

use crate::catalog::{self, plan, subscriptions};
use crate::durable::events::{self, Severity};
use crate::postgres::{apply, worker};
use crate::shared_state;

/// What is to be passed over by one subscription.
pub(super) struct Skip {
    subscription_id: i32,
    subscription: String,
    wanted: Option<Lsn>,
}

/// A transaction that is being passed over.
pub(super) struct Passed {
    pub(super) xid: u32,
    pub(super) end_lsn: u64,
    /// Rows and truncates that are not applied.
    pub(super) changes: u64,
}

impl Passed {
    pub(super) fn new(begin: &Begin<'_>) -> Passed {
        Passed {
            xid: begin.xid,
            end_lsn: begin.end_lsn.0,
            changes: 0,
        }
    }
}

impl Skip {
    pub(super) fn new(subscription_id: i32, subscription: &str, wanted: Option<u64>) -> Skip {
        Skip {
            subscription_id,
            subscription: subscription.to_owned(),
            wanted: wanted.map(Lsn),
        }
    }

    /// Before the transaction, between two others: a wish may have been taken back since this process began, which is
    /// looked for only when it would be carried out.
    pub(super) fn judge(&mut self, begin: &Begin<'_>) -> Result<Verdict, String> {
        let verdict = skip::judge(self.wanted, begin.commit_lsn, begin.end_lsn);
        if verdict == Verdict::PassOver {
            let found = crate::workers::read(|| plan::subscriptions(Some(self.subscription_id)))?.pop();
            self.wanted = found.and_then(|known| known.skip_lsn).map(Lsn);
            return Ok(skip::judge(self.wanted, begin.commit_lsn, begin.end_lsn));
        }
        Ok(verdict)
    }

    /// For messages: what somebody may do who does not want a transaction.
    pub(super) fn advice(&self, end_lsn: u64) -> String {
        format!(
            "SELECT ha.sub_skip_lsn({}, '{}') would pass over it",
            pgrx::spi::quote_literal(&self.subscription),
            Lsn(end_lsn)
        )
    }

    /// At the end of the transaction that is passed over: starts the local one that stands for it.
    pub(super) fn begin_in_its_place(&self) -> Result<(), catalog::Error> {
        apply::begin();
        self.forget()
    }

    /// Takes the wish out of the catalog, in the current transaction. [`Skip::done`] or [`Skip::outrun`] follow its
    /// commit.
    pub(super) fn forget(&self) -> Result<(), catalog::Error> {
        let Some(wanted) = self.wanted else { return Ok(()) };
        worker::with_latest_snapshot(|| subscriptions::forget_skip(self.subscription_id, wanted.0))
    }

    /// The transaction was passed over, durably as soon as any other would be.
    pub(super) fn done(&mut self, passed: &Passed) {
        self.wanted = None;
        let what = format!(
            "subscription \"{}\" passed over transaction {} ending at {}: {} changes were not applied",
            self.subscription,
            passed.xid,
            Lsn(passed.end_lsn),
            passed.changes
        );
        log!("pg_ha {what}, as ha.sub_skip_lsn had asked for");
        events::record(
            "transaction_skipped",
            Severity::Warning,
            &what,
            serde_json::json!({
                "subscription": self.subscription, "xid": passed.xid, "end_lsn": Lsn(passed.end_lsn).to_string(),
                "changes": passed.changes,
            }),
        );
        shared_state::catalog_changed();
    }

    /// The stream went past the position without a transaction that ended there.
    pub(super) fn outrun(&mut self) {
        let Some(wanted) = self.wanted.take() else { return };
        let what = format!(
            "subscription \"{}\" passed over nothing: no transaction ended at {wanted}",
            self.subscription
        );
        log!("pg_ha {what}, which ha.sub_skip_lsn had named");
        events::record(
            "transaction_skipped",
            Severity::Warning,
            &what,
            serde_json::json!({ "subscription": self.subscription, "lsn": wanted.to_string() }),
        );
        shared_state::catalog_changed();
    }
}
