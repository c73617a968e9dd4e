//! What becomes of transactions that are prepared on the provider, as far as the state of the stream is concerned; see
//! [`super::super::prepared`].

use std::sync::atomic::Ordering::Relaxed;

use pg_ha_model::NodeId;
use pg_ha_replication::codec::Begin;
use pg_ha_replication::conflict::Version;
use pg_ha_replication::skip::Verdict;
use pgrx::PgSqlErrorCode;

use super::super::ways::Lane;
use super::{Apply, Failure, Open, Passed, Progress};
use crate::postgres::apply::acting;
use crate::postgres::apply::table::Look;
use crate::postgres::apply::target::{Key, Target};
use crate::postgres::{apply, two_phase, worker};

impl Apply {
    /// The node whose transactions come.
    pub(in crate::workers::applier) fn provider(&self) -> NodeId {
        self.provider
    }

    /// Whether a transaction that ends there was applied before a restart.
    pub(in crate::workers::applier) fn is_behind(&self, begin: &Begin<'_>) -> bool {
        begin.origin_lsn.0 <= self.lanes.own.progress
    }

    /// Whether other subscriptions of this node can bring it too.
    pub(in crate::workers::applier) fn shares(&self, begin: &Begin<'_>) -> bool {
        self.rivals.share(begin.origin)
    }

    /// Whether somebody wants this transaction passed over.
    pub(in crate::workers::applier) fn passes_over(&mut self, begin: &Begin<'_>) -> Result<bool, String> {
        Ok(self.skip.judge(begin)? == Verdict::PassOver)
    }

    /// Begins a prepared transaction, which does not commit yet. `again`: it has been begun before and failed.
    pub(in crate::workers::applier) fn begin_tentative(
        &mut self,
        begin: &Begin<'_>,
        again: bool,
        look: Look,
    ) -> Result<(), Failure> {
        self.start_frame(again, look);
        if !again {
            self.check.begin_prepared(begin)?;
        }
        let lane = self.learn(begin)?;
        lane.origin.use_in_session();
        apply::begin();
        lane.origin.mark_changes();
        self.open = Some(Open {
            tentative: true,
            ..opened(begin, lane)
        });
        Ok(())
    }

    /// Gives the transaction up that was begun so.
    pub(in crate::workers::applier) fn give_up(&mut self) {
        apply::abort();
        self.forget_open_transaction();
        self.check.give_up();
    }

    /// Prepares it under this name; or says why the server cannot, with nothing done: triggers may have made temporary
    /// tables, or too many others are prepared, whose ends come behind this in the stream.
    pub(in crate::workers::applier) fn prepare(
        &mut self,
        gid: &str,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let Some(open) = &self.open else { return Ok(()) };
        let stamp = open.lane.origin;
        let (end_lsn, origin_lsn, time) = (open.end_lsn, open.origin_lsn, open.version.timestamp.0);
        self.tables.close();
        // What triggers raise may not come again with another attempt. While this can fail the transaction is there to
        // be told of.
        acting::fire_deferred();
        worker::catch(|| two_phase::prepare(stamp, origin_lsn, time, gid)).map_err(|caught| match caught
            .sqlstate
        {
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED
            | PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY
            | PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE => {
                Failure::NotBeforeCommit(caught.message)
            }
            _ => Failure::Server(caught.describe()),
        })?;
        self.open = None;
        let counts = core::mem::take(&mut self.counts);
        self.prepared_counts.insert(gid.to_owned(), counts);
        self.check.give_up();
        self.done(end_lsn, origin_lsn, progress);
        Ok(())
    }

    /// Runs work in a local transaction, which commits with everything up to the end of a remote one counted as done.
    pub(in crate::workers::applier) fn instead_of(
        &mut self,
        begin: &Begin<'_>,
        progress: &mut dyn Progress,
        work: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let stamp = self.learn(begin)?.origin;
        stamp.use_in_session();
        apply::begin();
        stamp.mark_changes();
        work()?;
        let local_end = apply::commit(stamp, begin.origin_lsn.0, begin.commit_ts.0);
        self.advance(begin.origin_lsn.0);
        match local_end {
            Some(local_end) => progress.committed(begin.end_lsn.0, local_end),
            None => progress.received(begin.end_lsn.0),
        }
        Ok(())
    }

    /// The same for a transaction that is passed over, with the wish for that taken out of the catalog.
    pub(in crate::workers::applier) fn pass_over(
        &mut self,
        begin: &Begin<'_>,
        progress: &mut dyn Progress,
        work: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let stamp = self.learn(begin)?.origin;
        stamp.use_in_session();
        self.skip.begin_in_its_place()?;
        stamp.mark_changes();
        work()?;
        let local_end = apply::commit(stamp, begin.origin_lsn.0, begin.commit_ts.0);
        self.advance(begin.origin_lsn.0);
        self.skip.done(&Passed::new(begin));
        match local_end {
            Some(local_end) => progress.committed(begin.end_lsn.0, local_end),
            None => progress.received(begin.end_lsn.0),
        }
        Ok(())
    }

    /// Commits or rolls back what was prepared under this name; `begin` has the positions and the time of that.
    pub(in crate::workers::applier) fn finish(
        &mut self,
        gid: &str,
        begin: &Begin<'_>,
        commits: bool,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let stamp = self.learn(begin)?.origin;
        stamp.use_in_session();
        let time = begin.commit_ts.0;
        two_phase::finish(stamp, begin.origin_lsn.0, time, gid, commits);
        let counts = self.prepared_counts.remove(gid);
        if commits {
            if let Some(mut counts) = counts {
                counts.publish(self.place);
            }
            self.place.transactions.fetch_add(1, Relaxed);
            self.place.applied_commit.store(time, Relaxed);
        }
        self.done(begin.end_lsn.0, begin.origin_lsn.0, progress);
        Ok(())
    }

    /// Prepared transactions are the provider's own: what it prepared for others comes when it commits.
    fn advance(&mut self, origin_lsn: u64) {
        let own = &mut self.lanes.own;
        own.progress = own.progress.max(origin_lsn);
    }

    /// Everything up to the end of this transaction is done, durably.
    fn done(&mut self, end_lsn: u64, origin_lsn: u64, progress: &mut dyn Progress) {
        self.advance(origin_lsn);
        progress.committed(end_lsn, 0);
    }
}

/// An open transaction, not to be passed over.
pub(super) fn opened(begin: &Begin<'_>, lane: Lane) -> Open {
    Open {
        xid: begin.xid,
        end_lsn: begin.end_lsn.0,
        origin_lsn: begin.origin_lsn.0,
        version: Version {
            timestamp: begin.commit_ts,
            origin: begin.origin,
        },
        skip: false,
        tentative: false,
        lane,
        lane_number: begin.lane,
        arrival: None,
        passed: None,
        forget_skip: false,
        changes: 0,
    }
}

/// Whether rows of the table may be held until their transaction commits. Not where rows are told apart by all of their
/// values: of several that are equal, the one that is held here is not the one that is held on the provider. The next
/// change of another would wait for it, and its end comes behind that change.
pub(super) fn can_wait(target: &Target) -> Result<(), Failure> {
    match target.key {
        Key::Full => Err(Failure::NotBeforeCommit(format!(
            "rows of table {} have no key",
            target.name
        ))),
        Key::Index { .. } | Key::None => Ok(()),
    }
}

/// Why a transaction is not prepared of which a value has to be asked for.
pub(super) fn not_shown(target: &Target) -> Failure {
    Failure::NotBeforeCommit(format!(
        "the provider does not show a row of table {} yet, a value of which has to be asked for",
        target.name
    ))
}

/// Why a transaction is not prepared that a copy is in the way of.
pub(super) fn being_copied() -> Failure {
    Failure::NotBeforeCommit("a table of it is being copied".to_owned())
}
