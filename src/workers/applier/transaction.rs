//! From messages to transactions: what each message does, and the judgement of each row.

mod failure;
mod prepared;
mod truncate;

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use pg_ha_model::{NodeId, PgTimestamp};
use pg_ha_replication::codec::{Begin, Commit, Decoder, Logical, Message};
use pg_ha_replication::conflict::{self, Decision, Local, LocalRow, Operation, SeenVersions, Version};
use pg_ha_replication::once::{self, Arrival, Change, Kind};
use pg_ha_replication::skip::Verdict;
use pg_ha_replication::stream::StreamCheck;

use super::complete::Completer;
use super::counts::Counts;
use super::report::{self, Conflicts};
use super::skip::{Passed, Skip};
use super::tables::Tables;
use super::ways::{Lane, Lanes, Rivals, Stray};
use crate::catalog::applied_changes::{self, TransactionId};
use crate::catalog::origins;
use crate::catalog::plan::PlannedSubscription;
use crate::catalog::sequences::{self, SequenceMessage};
use crate::catalog::subscription_tables::{self, CopiedMessage, CopyMessage, ExistingRows, NewTable};
use crate::decoding::SYNCHRONOUS_MESSAGE;
use crate::postgres::apply::table::{Look, RowChange};
use crate::postgres::apply::{self, Found};
use crate::postgres::origin::Origin;
use crate::postgres::worker;
use crate::shared_state::{self, layout};

pub(super) use failure::Failure;
use prepared::{being_copied, opened};

/// Who wants to know how far the stream is.
pub(super) trait Progress {
    /// A remote transaction ending at `remote_end` is the local one whose commit record ends at `local_end`.
    fn committed(&mut self, remote_end: u64, local_end: u64);
    /// Everything before this position of the provider has been dealt with, and nothing was committed for it.
    fn received(&mut self, position: u64);
    /// Somebody waits for the provider to hear of what is done up to here.
    fn asked(&mut self);
    /// Whether the provider's commits wait for this subscription.
    fn synchronous(&mut self, synchronous: bool);
}

/// A remote transaction that is being applied.
struct Open {
    xid: u32,
    end_lsn: u64,
    origin_lsn: u64,
    version: Version,
    /// Nothing of it is applied: it was already, before a restart, or somebody wants it passed over.
    skip: bool,
    /// It does not commit yet: nothing may depend on when it will.
    tentative: bool,
    lane: Lane,
    /// The provider's number for the lane, 0 for its own transactions.
    lane_number: u16,
    /// Where other subscriptions can bring it too.
    arrival: Option<Arrival>,
    /// Somebody wants it passed over.
    passed: Option<Passed>,
    /// With it ends the search for the one that was to be passed over.
    forget_skip: bool,
    changes: u64,
}

/// The state of the stream.
pub(super) struct Apply {
    place: &'static layout::Subscription,
    subscription_id: i32,
    replication_sets: Vec<String>,
    /// The open transaction asked for copies.
    asked_to_copy: bool,
    here: NodeId,
    provider: NodeId,
    /// What commits are stamped with, and up to where transactions are applied.
    lanes: Lanes,
    rivals: Rivals,
    /// The nodes that the server's origin numbers stand for, as far as they were met.
    origins: HashMap<u16, NodeId>,
    check: StreamCheck,
    /// How many messages of the current frame, or transaction from the spool, have come in this attempt, and how many
    /// have passed the check in this or an earlier one.
    number: u64,
    checked: u64,
    tables: Tables,
    completer: Completer,
    skip: Skip,
    open: Option<Open>,
    conflicts: Conflicts,
    counts: Counts,
    /// What the transactions changed that are prepared here, by their names; known to the process that prepared them.
    prepared_counts: HashMap<String, Counts>,
    /// How the inserts of the current frame go about it.
    look: Look,
    /// How far the provider had applied the others, as the stream told.
    seen: SeenVersions,
    seen_changed: bool,
}

impl Apply {
    pub(super) fn new(
        place: &'static layout::Subscription,
        subscription: &PlannedSubscription,
        here: NodeId,
        provider: NodeId,
        stamp: Origin,
        progress: u64,
        seen: SeenVersions,
    ) -> Apply {
        Apply {
            place,
            subscription_id: subscription.id,
            replication_sets: subscription.replication_sets.clone(),
            asked_to_copy: false,
            here,
            provider,
            lanes: Lanes::new(
                here,
                provider,
                &subscription.provider_uid,
                Lane {
                    origin: stamp,
                    progress,
                },
            ),
            rivals: Rivals::new(subscription.id, &subscription.provider_uid),
            origins: HashMap::new(),
            check: StreamCheck::new(),
            number: 0,
            checked: 0,
            tables: Tables::new(subscription.id),
            completer: Completer::new(&subscription.dsn),
            skip: Skip::new(subscription.id, &subscription.name, subscription.skip_lsn),
            open: None,
            conflicts: Conflicts::new(place, &subscription.name),
            counts: Counts::default(),
            prepared_counts: HashMap::new(),
            look: Look::First,
            seen,
            seen_changed: false,
        }
    }

    pub(super) fn tables(&mut self) -> &mut Tables {
        &mut self.tables
    }

    pub(super) fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// What the provider had applied of others, if that changed since the last call.
    pub(super) fn take_changed_seen(&mut self) -> Option<&SeenVersions> {
        core::mem::take(&mut self.seen_changed).then_some(&self.seen)
    }

    /// For messages: which remote transaction is being applied.
    pub(super) fn where_it_stands(&self) -> String {
        match &self.open {
            Some(open) => format!(
                " (transaction {} of node {}, ending at {}; {})",
                open.xid,
                open.version.origin,
                pg_ha_model::Lsn(open.end_lsn),
                self.skip.advice(open.end_lsn)
            ),
            None => String::new(),
        }
    }

    /// After an abort: the message that began the transaction will come again.
    pub(super) fn forget_open_transaction(&mut self) {
        self.asked_to_copy = false;
        self.counts.forget();
        self.conflicts.forget();
        self.open = None;
        self.tables.forget_open();
    }

    /// Applies one frame. `again`: it has been begun before and failed.
    pub(super) fn frame(
        &mut self,
        frame: &[u8],
        again: bool,
        look: Look,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        self.start_frame(again, look);
        let mut decoder = Decoder::new(frame);
        while let Some(message) = decoder.next()? {
            self.next(&message, progress)?;
        }
        Ok(())
    }

    /// Messages of a frame, or of a transaction from the spool, follow. `again`: the same as before; `look`: how inserts
    /// go about it.
    pub(super) fn start_frame(&mut self, again: bool, look: Look) {
        self.number = 0;
        self.look = look;
        if !again {
            self.checked = 0;
        }
    }

    /// Applies one message.
    pub(super) fn next(&mut self, message: &Message<'_>, progress: &mut dyn Progress) -> Result<(), Failure> {
        self.number += 1;
        // What came before an error has been checked in an earlier attempt.
        if self.number > self.checked {
            self.check.observe(message)?;
            self.checked = self.number;
        }
        self.message(message, progress)
    }

    /// Whether the open transaction was applied before.
    pub(super) fn was_applied(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.skip && open.passed.is_none())
    }

    fn message(&mut self, message: &Message<'_>, progress: &mut dyn Progress) -> Result<(), Failure> {
        match message {
            Message::Hello(hello) => {
                if hello.node_id != self.provider {
                    return Err(Failure::WrongProvider {
                        found: hello.node_id,
                        wanted: self.provider,
                    });
                }
                let version = hello.extension_version;
                shared_state::update_node(u32::from(self.provider.get()), |view| {
                    view.server_version_num = hello.server_version_num;
                    view.extension_version.set(version);
                });
            }
            Message::Begin(begin) => self.begin(begin)?,
            Message::Commit(commit) => self.commit(commit, progress)?,
            Message::Relation(relation) => self.tables.describe(relation),
            Message::Insert(insert) => {
                self.row(
                    insert.relation,
                    Operation::Insert,
                    &RowChange::Insert(&insert.new, self.look),
                )?;
            }
            Message::Update(update) => {
                let old = update.old.as_ref().map(|(kind, tuple)| (*kind, tuple));
                self.row(
                    update.relation,
                    Operation::Update,
                    &RowChange::Update(old, &update.new),
                )?;
            }
            Message::Delete(delete) => {
                self.row(
                    delete.relation,
                    Operation::Delete,
                    &RowChange::Delete(delete.old.0, &delete.old.1),
                )?;
            }
            Message::Truncate(truncate) => self.truncate(truncate)?,
            Message::Logical(logical) => {
                if logical.transactional {
                    self.told(logical)?;
                } else {
                    self.told_at_once(logical, progress);
                }
            }
            // They do not pass the check.
            Message::StreamStart(_)
            | Message::StreamCommit(_)
            | Message::StreamAbort(_)
            | Message::StreamAbortSub(_)
            | Message::Prepare(_)
            | Message::CommitPrepared(_)
            | Message::RollbackPrepared(_) => {}
        }
        Ok(())
    }

    /// A message that belongs to no transaction.
    fn told_at_once(&self, logical: &Logical<'_>, progress: &mut dyn Progress) {
        if self.open.is_none() {
            progress.received(logical.lsn.0);
        }
        if logical.prefix == SYNCHRONOUS_MESSAGE {
            progress.synchronous(logical.content == b"on");
        } else {
            progress.asked();
        }
    }

    /// A message of the transaction that is being applied.
    fn told(&mut self, logical: &Logical<'_>) -> Result<(), Failure> {
        if self.open.as_ref().is_none_or(|open| open.skip) {
            return Ok(());
        }
        let acted_upon = [
            sequences::MESSAGE,
            subscription_tables::COPIED_MESSAGE,
            subscription_tables::COPY_MESSAGE,
        ];
        if self.open.as_ref().is_some_and(|open| open.tentative) && acted_upon.contains(&logical.prefix) {
            return Err(Failure::NotBeforeCommit(format!(
                "what its message {} asks for cannot wait here",
                logical.prefix
            )));
        }
        if logical.prefix == sequences::MESSAGE {
            let message: SequenceMessage =
                serde_json::from_slice(logical.content).map_err(Failure::Message)?;
            if message
                .set_names
                .iter()
                .any(|set| self.replication_sets.contains(set))
            {
                worker::with_latest_snapshot(|| sequences::set(&message.value))?;
            }
            return Ok(());
        }
        if logical.prefix == subscription_tables::COPIED_MESSAGE {
            return self.told_of_copy(logical);
        }
        if logical.prefix != subscription_tables::COPY_MESSAGE {
            return Ok(());
        }
        let message: CopyMessage = serde_json::from_slice(logical.content).map_err(Failure::Message)?;
        if !self.replication_sets.contains(&message.set_name) {
            return Ok(());
        }
        let table = NewTable {
            schema: message.schema,
            name: message.name,
            expected_rows: message.expected_rows,
            expected_bytes: message.expected_bytes,
        };
        let id = self.subscription_id;
        worker::with_latest_snapshot(|| subscription_tables::ask(id, &table, ExistingRows::Refuse))?;
        // What follows of the table in this very transaction is the copy's as well.
        self.tables.close_gate(table.schema, table.name);
        self.asked_to_copy = true;
        Ok(())
    }

    /// A table was copied on the provider: those changes of its origin that came with the copy are not forwarded.
    fn told_of_copy(&mut self, logical: &Logical<'_>) -> Result<(), Failure> {
        let message: CopiedMessage = serde_json::from_slice(logical.content).map_err(Failure::Message)?;
        if message
            .set_names
            .iter()
            .any(|name| self.replication_sets.contains(name))
        {
            report::copied_on_provider(self.place, &message.schema, &message.name);
        }
        Ok(())
    }

    /// What a transaction says of its way and of what its writer had seen. Between two transactions.
    fn learn(&mut self, begin: &Begin<'_>) -> Result<Lane, Failure> {
        self.rivals.attend().map_err(Failure::Ways)?;
        let lane = *self.lanes.of(begin).map_err(|stray| match stray {
            Stray::Origin(origin) => Failure::ForeignOrigin(origin),
            Stray::Catalog(error) => Failure::Ways(error),
        })?;
        for seen in begin.seen.iter() {
            self.seen.advance(seen.origin, seen.timestamp);
            self.seen_changed = true;
        }
        Ok(lane)
    }

    fn begin(&mut self, begin: &Begin<'_>) -> Result<(), Failure> {
        let lane = self.learn(begin)?;
        let applied = begin.origin_lsn.0 <= lane.progress;
        let verdict = if applied {
            Verdict::Apply
        } else {
            self.skip.judge(begin).map_err(Failure::Skip)?
        };
        let passed = (verdict == Verdict::PassOver).then(|| Passed::new(begin));
        let skip = applied || passed.is_some();
        let mut arrival = None;
        if !skip {
            lane.origin.use_in_session();
            apply::begin();
            lane.origin.mark_changes();
            self.conflicts.begin();
            if self.rivals.share(begin.origin) {
                arrival = Some(self.rivals.meet(TransactionId {
                    origin: begin.origin,
                    position: begin.origin_lsn.0,
                    time: begin.commit_ts,
                })?);
            }
        }
        self.open = Some(Open {
            skip,
            arrival,
            passed,
            forget_skip: verdict == Verdict::ApplyAndForget,
            ..opened(begin, lane)
        });
        Ok(())
    }

    fn commit(&mut self, commit: &Commit, progress: &mut dyn Progress) -> Result<(), Failure> {
        layout::Subscription::raise(&self.place.provider_lsn, commit.wal_end.0);
        self.tables.close();
        // While this can fail the transaction is there to be told of.
        match &self.open {
            Some(open) if open.passed.is_some() => {
                open.lane.origin.use_in_session();
                self.skip.begin_in_its_place()?;
            }
            Some(open) if open.forget_skip => self.skip.forget()?,
            _ => {}
        }
        self.note_applied()?;
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        if open.skip && open.passed.is_none() {
            progress.received(commit.end_lsn.0);
            return Ok(());
        }
        self.completer.rest();
        let own = open.lane_number == 0;
        let stamp = open.lane.origin;
        let mut local_end = apply::commit(stamp, open.origin_lsn, open.version.timestamp.0);
        if local_end.is_none() && (!own || open.arrival.is_some()) {
            // What others have applied of it is before this record in the WAL: once the record is safe, so is that.
            local_end = Some(stamp.record(open.origin_lsn));
        }
        self.lanes
            .passed(&open.version.origin, open.lane_number, open.origin_lsn);
        if !own {
            // The provider had it when it wrote what follows.
            self.seen.advance(open.version.origin, open.version.timestamp);
            self.seen_changed = true;
        }
        if core::mem::take(&mut self.asked_to_copy) {
            shared_state::catalog_changed();
        }
        match &open.passed {
            Some(passed) => self.skip.done(passed),
            None if open.forget_skip => self.skip.outrun(),
            None => {}
        }
        self.counts.publish(self.place);
        self.conflicts.publish();
        self.place.transactions.fetch_add(1, Relaxed);
        self.place.applied_commit.store(open.version.timestamp.0, Relaxed);
        match local_end {
            Some(local_end) if own => progress.committed(open.end_lsn, local_end),
            // The stream starts where the provider's own progress is, which this has not moved: it is written down later.
            _ => progress.received(open.end_lsn),
        }
        Ok(())
    }

    /// Where the open transaction may come again by another way: notes what was applied of it.
    fn note_applied(&self) -> Result<(), Failure> {
        if let Some(open) = &self.open
            && let Some(arrival) = &open.arrival
            && !arrival.applied().is_empty()
        {
            let id = TransactionId {
                origin: open.version.origin,
                position: open.origin_lsn,
                time: open.version.timestamp,
            };
            worker::with_latest_snapshot(|| applied_changes::note(id, arrival.applied()))?;
        }
        Ok(())
    }

    /// See [`Rivals::attend`].
    pub(super) fn attend_ways(&mut self) -> Result<(), String> {
        self.rivals.attend()
    }

    /// See [`Rivals::claim`].
    pub(super) fn claim(&mut self, frame: &[u8]) -> Result<bool, String> {
        self.rivals.claim(frame)
    }

    /// Gives the claim back unless a transaction is open: also after a frame that left none behind, such as a PREPARE, or
    /// others of that origin would wait for whatever comes next.
    pub(super) fn release_claim(&mut self) {
        if self.open.is_none() {
            self.rivals.release();
        }
    }

    /// See [`Rivals::forget`].
    pub(super) fn forget_noted(&self, oldest: PgTimestamp) -> Result<bool, String> {
        self.rivals.forget(oldest)
    }

    fn count_passed(&mut self) {
        if let Some(passed) = self.open.as_mut().and_then(|open| open.passed.as_mut()) {
            passed.changes += 1;
        }
    }

    fn row(
        &mut self,
        relation: u32,
        operation: Operation,
        change: &RowChange<'_, '_>,
    ) -> Result<(), Failure> {
        self.count_passed();
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.skip {
            return Ok(());
        }
        if !self.tables.may_change(relation, open.end_lsn) {
            return match open.tentative {
                true => Err(being_copied()),
                false => Ok(()),
            };
        }
        let tentative = open.tentative;
        let verdict = match &mut open.arrival {
            None => once::Verdict::Apply,
            Some(arrival) => {
                let shape = self.tables.shape(relation)?;
                let (old, new) = change.rows();
                arrival.meet(Change {
                    digest: self.rivals.since_copy(&shape, shape.row(operation, old, new)),
                    relation,
                    keyed: shape.is_keyed(),
                    kind: Kind::Row(operation),
                })
            }
        };
        if verdict == once::Verdict::Skip {
            return Ok(());
        }
        let looking;
        let change = match change {
            // What has come before is there: an insert would fail.
            RowChange::Insert(new, Look::Never) if verdict != once::Verdict::Apply => {
                looking = RowChange::Insert(new, Look::First);
                &looking
            }
            change => change,
        };
        open.changes += 1;
        let (remote, forwarded, provider) = (open.version, open.lane_number != 0, self.provider);
        let origin_lsn = open.origin_lsn;
        let (target, table, counters) = self.tables.open(relation)?;
        if tentative {
            prepared::can_wait(target)?;
        }
        let (origins, here, seen) = (&mut self.origins, self.here, &self.seen);
        let mut standing = None;
        let decision = self
            .completer
            .apply(target, table, relation, change, &mut |found| {
                let local = local(found, origins, here);
                standing = Some(local);
                if let Some(overtaken) = once::overtaken(verdict, remote, local) {
                    return overtaken;
                }
                // What the writer of a forwarded change had seen is not known, but what whoever passed it on had seen.
                let decision = conflict::decide(operation, remote, local, |version| {
                    seen.covers(version) || forwarded && version.origin == provider
                });
                match verdict {
                    once::Verdict::Apply | once::Verdict::Late => decision,
                    // It was judged, and told of, when it first came.
                    once::Verdict::Again | once::Verdict::Remains | once::Verdict::Skip => Decision {
                        conflict: None,
                        ..decision
                    },
                }
            })?;
        let Some(decision) = decision else {
            if tentative {
                return Err(prepared::not_shown(target));
            }
            self.counts.skipped();
            return Ok(());
        };
        if tentative && (decision.conflict.is_some() || !apply::writes(decision.action)) {
            let what = decision
                .conflict
                .map_or("nothing to change", |conflict| conflict.kind.as_str());
            return Err(Failure::NotBeforeCommit(format!(
                "{what} on table {}",
                target.name
            )));
        }
        if let (Some(conflict), Some(local)) = (decision.conflict, standing) {
            self.conflicts
                .note(conflict, target, (remote, origin_lsn), local, counters)?;
        }
        if apply::writes(decision.action) {
            self.counts.wrote(operation, counters);
        } else {
            self.counts.skipped();
        }
        Ok(())
    }
}

/// A row's version from what the commit-timestamp store says of its last writer. A row older than the store counts as
/// older than everything; one written without an origin, or with one that is not ours, is the local group's.
pub(in crate::workers) fn local(found: Found, origins: &mut HashMap<u16, NodeId>, here: NodeId) -> Local {
    match found {
        Found::Missing => Local::Missing,
        Found::Own => Local::SameTransaction,
        Found::Versioned { timestamp, node } => Local::Present(LocalRow {
            version: Version {
                timestamp: PgTimestamp(timestamp),
                origin: NodeId::new(u32::from(node)).unwrap_or(here),
            },
        }),
        Found::Row { timestamp, origin } => Local::Present(LocalRow {
            version: Version {
                timestamp: timestamp.map_or(PgTimestamp(i64::MIN), PgTimestamp),
                origin: if origin == 0 {
                    here
                } else {
                    node_of(origin, origins).unwrap_or(here)
                },
            },
        }),
    }
}

fn node_of(origin: u16, origins: &mut HashMap<u16, NodeId>) -> Option<NodeId> {
    if let Some(node) = origins.get(&origin) {
        return Some(*node);
    }
    // What is not ours now may be later: numbers of dropped origins are used again.
    let node = Origin(origin).name().as_deref().and_then(origins::node_of_name)?;
    origins.insert(origin, node);
    Some(node)
}
