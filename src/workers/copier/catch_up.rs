//! The changes of the tables from their snapshot to where the applier is, in the copier's own transaction.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use pg_ha_model::{Lsn, NodeId};
use pg_ha_replication::codec::{Decoder, Message, PROTOCOL_MAX, PROTOCOL_MIN};
use pg_ha_replication::conflict::{self, Operation, Version};
use pg_ha_replication::options::PluginOptions;
use pg_ha_replication::stream::StreamCheck;

use super::{Failure, Work};
use crate::catalog::row_versions::{self, RowVersion};
use crate::catalog::subscription_tables as catalog;
use crate::postgres::apply::table::{Look, RowChange};
use crate::postgres::apply::{self, versions};
use crate::postgres::walreceiver::{Connection, Received, StatusSender};
use crate::postgres::{server, worker};
use crate::shared_state;
use crate::shared_state::copies::Phase;
use crate::workers::applier::complete::Completer;
use crate::workers::applier::tables::Tables;
use crate::workers::applier::transaction::local;

/// Longest time without a look around.
const LOOK: Duration = Duration::from_millis(100);

/// Time between two reports to the provider.
const REPORT: Duration = Duration::from_secs(5);

/// Versions that are gathered before they are noted.
const GATHERED: usize = 10_000;

/// Time between two looks whether the applier waits for this process instead of answering it.
const LOOK_FOR_LOCKS: Duration = Duration::from_secs(2);

/// The tables on their way.
pub(super) struct CatchUp<'w> {
    work: &'w Work,
    tables: Tables,
    completer: Completer,
    check: StreamCheck,
    origins: HashMap<u16, NodeId>,
    /// The numbers of our tables in the stream, as far as the provider has described them, each with its place among
    /// the pieces of work.
    relations: HashMap<u32, usize>,
    /// The pieces by schema and name.
    pieces: HashMap<(&'w str, &'w str), usize>,
    /// The transaction whose changes are coming.
    open: Option<Version>,
    start: u64,
    /// All transactions that end before it have come.
    position: u64,
    /// Where the last one that came ended.
    last: u64,
    /// Whether anybody's changes may still be on their way that the rows have to be compared with.
    note: bool,
    /// The versions of the rows that were written, until they are noted.
    versions: Vec<RowVersion>,
}

impl<'w> CatchUp<'w> {
    pub(super) fn new(work: &'w Work, start: u64, note: bool) -> CatchUp<'w> {
        CatchUp {
            work,
            tables: Tables::new(work.subscription.id),
            completer: Completer::new(&work.subscription.dsn),
            check: StreamCheck::new(),
            origins: HashMap::new(),
            relations: HashMap::new(),
            pieces: work
                .pieces
                .iter()
                .enumerate()
                .map(|(number, piece)| ((piece.table.schema.as_str(), piece.table.name.as_str()), number))
                .collect(),
            open: None,
            start,
            position: start,
            last: start,
            note,
            versions: Vec::new(),
        }
    }

    /// Streams until the applier is reached and waits there; returns the position up to which everything is here.
    pub(super) fn run(mut self, connection: &mut Connection, slot: &str) -> Result<u64, Failure> {
        let options = self.options()?;
        connection
            .start(slot, self.start, &options.to_pairs())
            .map_err(Failure::Refused)?;
        let mut reporter = Reporter::new(connection.status_sender());
        let mut looked_for_locks = Instant::now();
        let mut heard = Instant::now();
        loop {
            server::check_for_interrupts();
            if !self.work.place.is_wanted() {
                return Err(Failure::Unwanted);
            }
            if let Some(end) = self.meet_applier() {
                self.tables.close();
                self.note_versions()?;
                return Ok(end);
            }
            let lost = |error: crate::postgres::walreceiver::StreamError| Failure::Lost(error.to_string());
            match connection.receive().map_err(lost)? {
                Received::Nothing => {
                    reporter.report(self.position, false)?;
                    if heard.elapsed() > server::replication_timeout() {
                        return Err(Failure::Lost("the provider has fallen silent".to_owned()));
                    }
                    if self.work.meeting().phase() == Phase::Waiting
                        && looked_for_locks.elapsed() >= LOOK_FOR_LOCKS
                    {
                        looked_for_locks = Instant::now();
                        self.look_for_locks()?;
                    }
                    connection.wait(LOOK);
                }
                Received::End => return Err(Failure::Lost("the provider ended the stream".to_owned())),
                Received::Data { payload, .. } => {
                    heard = Instant::now();
                    self.frame(payload)?;
                    reporter.report(self.position, false)?;
                }
                Received::Keepalive {
                    wal_end,
                    reply_requested,
                    ..
                } => {
                    heard = Instant::now();
                    if self.open.is_none() {
                        self.position = self.position.max(wal_end);
                    }
                    reporter.report(self.position, reply_requested)?;
                }
            }
        }
    }

    /// Between two transactions: whether it is time to ask the applier where it is, and whether its answer is reached.
    fn meet_applier(&self) -> Option<u64> {
        if self.open.is_some() {
            return None;
        }
        match self.work.meeting().phase() {
            Phase::CatchingUp => {
                if self.position >= self.work.place.applied_lsn.load(Acquire) {
                    self.work.ask_for_position();
                }
                None
            }
            Phase::Handing => {
                let target = self.work.meeting().target.load(Acquire);
                (self.position >= target).then(|| target.max(self.last))
            }
            _ => None,
        }
    }

    /// An applier that waits for a lock of ours (a TRUNCATE that reaches our table through a foreign key, say) will
    /// never answer, and the server cannot see that as a deadlock: make way.
    fn look_for_locks(&self) -> Result<(), Failure> {
        let applier = self.work.place.applier_pid.load(Acquire);
        let blocked = applier != 0 && worker::with_latest_snapshot(|| catalog::waits_for_us(applier))?;
        if blocked { Err(Failure::InTheWay) } else { Ok(()) }
    }

    fn options(&self) -> Result<PluginOptions, Failure> {
        let local = shared_state::local_node().ok_or(Failure::Unwanted)?;
        Ok(PluginOptions {
            proto_min: PROTOCOL_MIN,
            proto_max: PROTOCOL_MAX,
            server_version_num: server::version_number(),
            extension_version: env!("CARGO_PKG_VERSION").to_owned(),
            node_id: self.work.here,
            node_name: local.node_name.as_str().to_owned(),
            provider_uid: self.work.subscription.provider_uid.clone(),
            applied_lsn: Lsn(self.start),
            encoding: server::encoding(),
            replication_sets: self.work.subscription.replication_sets.clone(),
            forward_origins: self.work.subscription.forward_origins.clone(),
            // The copy's transaction cannot wait for others to commit.
            streaming: false,
            two_phase: false,
        })
    }

    fn frame(&mut self, frame: &[u8]) -> Result<(), Failure> {
        let mut decoder = Decoder::new(frame);
        while let Some(message) = decoder.next()? {
            self.check.observe(&message)?;
            self.message(&message)?;
        }
        Ok(())
    }

    fn message(&mut self, message: &Message<'_>) -> Result<(), Failure> {
        match message {
            Message::Hello(hello) if hello.node_id != self.work.provider => {
                return Err(Failure::Answer(format!(
                    "it is node {}, not {}, which this subscription was made for",
                    hello.node_id, self.work.provider
                )));
            }
            Message::Begin(begin) => {
                self.open = Some(Version {
                    timestamp: begin.commit_ts,
                    origin: begin.origin,
                });
            }
            Message::Commit(commit) => {
                self.open = None;
                self.completer.rest();
                self.last = commit.end_lsn.0;
                self.position = self.position.max(self.last);
            }
            Message::Relation(relation) => {
                // All of them, since a partition of ours is truncated under its own name.
                self.tables.describe(relation);
                let found = self.pieces.get(&(relation.namespace, relation.name)).copied();
                match (self.relations.get(&relation.id).copied(), found) {
                    (Some(before), now) if now != Some(before) => {
                        self.work.at.set(Some(before));
                        return Err(Failure::Renamed);
                    }
                    (None, Some(number)) => {
                        self.relations.insert(relation.id, number);
                    }
                    _ => {}
                }
            }
            Message::Insert(insert) => self.row(
                insert.relation,
                Operation::Insert,
                &RowChange::Insert(&insert.new, Look::First),
            )?,
            Message::Update(update) => {
                let old = update.old.as_ref().map(|(kind, tuple)| (*kind, tuple));
                let change = RowChange::Update(old, &update.new);
                self.row(update.relation, Operation::Update, &change)?;
            }
            Message::Delete(delete) => {
                let change = RowChange::Delete(delete.old.0, &delete.old.1);
                self.row(delete.relation, Operation::Delete, &change)?;
            }
            Message::Truncate(truncate) => {
                for id in truncate.relations.iter() {
                    self.truncate(id)?;
                }
            }
            Message::Hello(_) | Message::Logical(_) => {}
            // The check has refused them: they were not asked for.
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

    /// Empties one of the tables, or the partition of one that the provider truncated.
    fn truncate(&mut self, id: u32) -> Result<(), Failure> {
        self.tables.close();
        let name = if let Some(number) = self.relations.get(&id) {
            self.work.pieces[*number].table.qualified_name()
        } else {
            // A table that is not here, or is none that changes can go to, is no partition of ours.
            let Ok(()) = self.tables.resolve(id) else {
                return Ok(());
            };
            let target = self.tables.target(id)?;
            let above = worker::with_latest_snapshot(|| catalog::tables_above(target.oid))?;
            let ours = |(schema, name): &(String, String)| {
                self.pieces.contains_key(&(schema.as_str(), name.as_str()))
            };
            if !above.iter().any(ours) {
                return Ok(());
            }
            target.name.clone()
        };
        worker::with_latest_snapshot(|| catalog::empty(&name))?;
        Ok(())
    }

    fn row(
        &mut self,
        relation: u32,
        operation: Operation,
        change: &RowChange<'_, '_>,
    ) -> Result<(), Failure> {
        let (Some(remote), Some(number)) = (self.open, self.relations.get(&relation).copied()) else {
            return Ok(());
        };
        self.work.at.set(Some(number));
        let (target, table, _) = self.tables.open(relation)?;
        let (origins, here) = (&mut self.origins, self.work.here);
        let decision = self
            .completer
            .apply(target, table, relation, change, &mut |found| {
                conflict::decide(operation, remote, local(found, origins, here), |_| true)
            })?;
        if self.note
            && decision.is_some_and(|decision| apply::writes(decision.action))
            && let RowChange::Insert(new, _) | RowChange::Update(_, new) = change
        {
            let (target, ..) = self.tables.open(relation)?;
            if let Some((relation, key)) = worker::with_latest_snapshot(|| versions::name_of(target, new))? {
                self.versions.push(RowVersion {
                    relation,
                    key,
                    committed_at: remote.timestamp.0,
                    origin: remote.origin.get(),
                });
            }
            if self.versions.len() >= GATHERED {
                self.note_versions()?;
            }
        }
        self.work.at.set(None);
        Ok(())
    }

    /// The rows bear the copy's own time; what they really are is noted beside them.
    fn note_versions(&mut self) -> Result<(), Failure> {
        if self.versions.is_empty() {
            return Ok(());
        }
        let versions = core::mem::take(&mut self.versions);
        worker::with_latest_snapshot(|| row_versions::note(versions))?;
        Ok(())
    }
}

/// What the provider has been told.
struct Reporter {
    sender: StatusSender,
    at: Instant,
}

impl Reporter {
    fn new(sender: StatusSender) -> Reporter {
        Reporter {
            sender,
            at: Instant::now(),
        }
    }

    fn report(&mut self, position: u64, now: bool) -> Result<(), Failure> {
        if now || self.at.elapsed() >= REPORT {
            self.at = Instant::now();
            // The provider need not keep anything for this slot: it goes with the connection. Asking for an answer
            // tells a silent provider from one that is gone.
            self.sender
                .send(position, position, position, !now)
                .map_err(|error| Failure::Lost(error.to_string()))?;
        }
        Ok(())
    }
}
