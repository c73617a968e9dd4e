//! From messages to transactions: what each message does, and the judgement of each row.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use pg_ha_model::{NodeId, PgTimestamp};
use pg_ha_replication::codec::{Begin, CodecError, Commit, Decoder, Logical, Message, Truncate};
use pg_ha_replication::conflict::{self, Decision, Local, LocalRow, Operation, SeenVersions, Version};
use pg_ha_replication::skip::Verdict;
use pg_ha_replication::stream::{StreamCheck, StreamError};

use super::complete::{CompleteError, Completer};
use super::report::Conflicts;
use super::skip::{Passed, Skip};
use super::tables::{Tables, TruncateError};
use crate::catalog::plan::PlannedSubscription;
use crate::catalog::subscription_tables::{self, CopyMessage, ExistingRows, NewTable};
use crate::catalog::{self, origins};
use crate::decoding::SYNCHRONOUS_MESSAGE;
use crate::postgres::apply::table::RowChange;
use crate::postgres::apply::{self, ApplyError, Found};
use crate::postgres::origin::Origin;
use crate::postgres::worker;
use crate::shared_state::{self, layout};

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

/// What ends the applier, PostgreSQL's own errors apart.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the stream cannot be read: {0}")]
    Codec(#[from] CodecError),
    #[error("the stream is out of order: {0}")]
    Order(#[from] StreamError),
    #[error(transparent)]
    Row(#[from] ApplyError),
    #[error("the provider's request to copy a table cannot be read: {0}")]
    Message(serde_json::Error),
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error(transparent)]
    Complete(#[from] CompleteError),
    #[error(transparent)]
    Empty(#[from] subscription_tables::EmptyError),
    #[error(transparent)]
    Truncate(#[from] TruncateError),
    #[error("the provider is node {found}, not {wanted}, which this subscription was made for")]
    WrongProvider { found: NodeId, wanted: NodeId },
    #[error("the stream brought a transaction of node {0}, but only the provider's own were asked for")]
    ForeignOrigin(NodeId),
}

/// A remote transaction that is being applied.
struct Open {
    xid: u32,
    end_lsn: u64,
    origin_lsn: u64,
    version: Version,
    /// Nothing of it is applied: it was already, before a restart, or somebody wants it passed over.
    skip: bool,
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
    /// What commits are stamped with.
    stamp: Origin,
    /// Up to here the origin's transactions are applied.
    progress: u64,
    /// The nodes that the server's origin numbers stand for, as far as they were met.
    origins: HashMap<u16, NodeId>,
    check: StreamCheck,
    /// How many messages of the current frame have passed the check.
    checked: usize,
    tables: Tables,
    completer: Completer,
    skip: Skip,
    open: Option<Open>,
    conflicts: Conflicts,
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
            stamp,
            progress,
            origins: HashMap::new(),
            check: StreamCheck::new(),
            checked: 0,
            tables: Tables::new(subscription.id),
            completer: Completer::new(&subscription.dsn),
            skip: Skip::new(subscription.id, &subscription.name, subscription.skip_lsn),
            open: None,
            conflicts: Conflicts::new(place),
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
        self.open = None;
        self.tables.forget_open();
    }

    /// Applies one frame. `again`: it has been begun before and failed.
    pub(super) fn frame(
        &mut self,
        frame: &[u8],
        again: bool,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let mut decoder = Decoder::new(frame);
        if !again {
            self.checked = 0;
        }
        let mut number = 0;
        while let Some(message) = decoder.next()? {
            number += 1;
            // What came before the error has been checked in an earlier attempt.
            if number > self.checked {
                self.check.observe(&message)?;
                self.checked = number;
            }
            self.message(&message, progress)?;
        }
        Ok(())
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
                    &RowChange::Insert(&insert.new),
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
        if logical.prefix != subscription_tables::COPY_MESSAGE
            || self.open.as_ref().is_none_or(|open| open.skip)
        {
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

    fn begin(&mut self, begin: &Begin<'_>) -> Result<(), Failure> {
        if begin.origin != self.provider {
            return Err(Failure::ForeignOrigin(begin.origin));
        }
        for seen in begin.seen.iter() {
            self.seen.advance(seen.origin, seen.timestamp);
            self.seen_changed = true;
        }
        let applied = begin.origin_lsn.0 <= self.progress;
        let verdict = if applied {
            Verdict::Apply
        } else {
            self.skip.judge(begin)
        };
        let passed = (verdict == Verdict::PassOver).then_some(Passed {
            xid: begin.xid,
            end_lsn: begin.end_lsn.0,
            changes: 0,
        });
        let skip = applied || passed.is_some();
        if !skip {
            apply::begin();
        }
        self.open = Some(Open {
            xid: begin.xid,
            end_lsn: begin.end_lsn.0,
            origin_lsn: begin.origin_lsn.0,
            version: Version {
                timestamp: begin.commit_ts,
                origin: begin.origin,
            },
            skip,
            passed,
            forget_skip: verdict == Verdict::ApplyAndForget,
            changes: 0,
        });
        Ok(())
    }

    fn commit(&mut self, commit: &Commit, progress: &mut dyn Progress) -> Result<(), Failure> {
        layout::Subscription::raise(&self.place.provider_lsn, commit.wal_end.0);
        self.tables.close();
        // While this can fail the transaction is there to be told of.
        match &self.open {
            Some(open) if open.passed.is_some() => self.skip.begin_in_its_place()?,
            Some(open) if open.forget_skip => self.skip.forget()?,
            _ => {}
        }
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        if open.skip && open.passed.is_none() {
            progress.received(commit.end_lsn.0);
            return Ok(());
        }
        self.completer.rest();
        let local_end = apply::commit(self.stamp, open.origin_lsn, open.version.timestamp.0);
        self.progress = open.origin_lsn;
        if core::mem::take(&mut self.asked_to_copy) {
            shared_state::catalog_changed();
        }
        match &open.passed {
            Some(passed) => self.skip.done(passed),
            None if open.forget_skip => self.skip.outrun(),
            None => {}
        }
        self.place.transactions.fetch_add(1, Relaxed);
        self.place.applied_commit.store(open.version.timestamp.0, Relaxed);
        match local_end {
            Some(local_end) => progress.committed(open.end_lsn, local_end),
            None => progress.received(open.end_lsn),
        }
        Ok(())
    }

    fn count_passed(&mut self) {
        if let Some(passed) = self.open.as_mut().and_then(|open| open.passed.as_mut()) {
            passed.changes += 1;
        }
    }

    fn truncate(&mut self, truncate: &Truncate<'_>) -> Result<(), Failure> {
        self.count_passed();
        let Some(open) = self.open.as_ref().filter(|open| !open.skip) else {
            return Ok(());
        };
        // Without the tables that are being copied, or were, with what followed this: a CASCADE must not reach them
        // through foreign keys, and without it the server would refuse to truncate what they refer to.
        let all = truncate.relations.iter().count();
        let end_lsn = open.end_lsn;
        self.tables.close();
        let mut ids = Vec::with_capacity(all);
        for id in truncate.relations.iter() {
            if self.tables.may_truncate(id, end_lsn)? {
                ids.push(id);
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        for id in &ids {
            self.tables.resolve(*id)?;
        }
        let targets = ids
            .iter()
            .map(|id| self.tables.target(*id))
            .collect::<Result<Vec<_>, _>>()?;
        if ids.len() < all {
            for target in targets {
                worker::with_latest_snapshot(|| subscription_tables::empty(&target.name))?;
            }
            return Ok(());
        }
        apply::truncate(
            &targets,
            truncate.flags & Truncate::CASCADE != 0,
            truncate.flags & Truncate::RESTART_SEQS != 0,
        )?;
        Ok(())
    }

    fn row(
        &mut self,
        relation: u32,
        operation: Operation,
        change: &RowChange<'_, '_>,
    ) -> Result<(), Failure> {
        self.count_passed();
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.skip || !self.tables.may_change(relation, open.end_lsn) {
            return Ok(());
        }
        open.changes += 1;
        let remote = open.version;
        let (target, table, counters) = self.tables.open(relation)?;
        let (origins, here, seen) = (&mut self.origins, self.here, &self.seen);
        let mut standing = None;
        let decision = self
            .completer
            .apply(target, table, relation, change, &mut |found| {
                let local = local(found, origins, here);
                standing = Some(local);
                conflict::decide(operation, remote, local, |version| seen.covers(version))
            })?;
        let Some(decision) = decision else {
            self.place.skipped.fetch_add(1, Relaxed);
            return Ok(());
        };
        if let (Some(conflict), Some(local)) = (decision.conflict, standing) {
            self.conflicts
                .note(conflict, &target.name, remote, local, counters);
        }
        self.count(operation, &decision, counters);
        Ok(())
    }

    fn count(
        &self,
        operation: Operation,
        decision: &Decision,
        counters: Option<&'static layout::TableCounters>,
    ) {
        if !apply::writes(decision.action) {
            self.place.skipped.fetch_add(1, Relaxed);
            return;
        }
        let (total, of_table) = match operation {
            Operation::Insert => (&self.place.inserted, counters.map(|counters| &counters.inserted)),
            Operation::Update => (&self.place.updated, counters.map(|counters| &counters.updated)),
            Operation::Delete => (&self.place.deleted, counters.map(|counters| &counters.deleted)),
        };
        total.fetch_add(1, Relaxed);
        if let Some(of_table) = of_table {
            of_table.fetch_add(1, Relaxed);
        }
    }
}

/// A row's version from what the commit-timestamp store says of its last writer. A row older than the store counts as
/// older than everything; one written without an origin, or with one that is not ours, is the local group's.
pub(in crate::workers) fn local(found: Found, origins: &mut HashMap<u16, NodeId>, here: NodeId) -> Local {
    match found {
        Found::Missing => Local::Missing,
        Found::Own => Local::SameTransaction,
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
