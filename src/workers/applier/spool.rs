//! Transactions that come while they are in progress: kept, in memory and on disk, until the provider says how they
//! ended, and then applied as if they had come whole, or forgotten.
//!
//! A chunk is kept as it came, and looked into only when its transaction has committed. What was rolled back of it is
//! passed over then. Nothing here survives the applier: a stream that starts over brings unfinished transactions again
//! from their beginning.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use pg_ha_replication::codec::{CodecError, Decoder, Message, StreamCommit};
use pg_ha_replication::spool::{Ledger, Limits, Step, Unknown};

use super::transaction::{Apply, Failure};
use super::{Leaps, Positions, attempt};
use crate::durable::spool::SpoolFile;
use crate::postgres::worker;
use crate::settings;
use crate::shared_state::layout;

/// What has come of one transaction.
#[derive(Default)]
pub(super) struct Held {
    /// On disk, in the order in which it came.
    file: Option<SpoolFile>,
    /// What came after that; empty where there is a file.
    frames: Vec<Box<[u8]>>,
}

/// All transactions in progress of one stream.
pub(super) struct Spool {
    place: &'static layout::Subscription,
    pub(super) subscription_id: i32,
    ledger: Ledger,
    held: HashMap<u32, Held>,
}

impl Spool {
    pub(super) fn new(place: &'static layout::Subscription, subscription_id: i32) -> Spool {
        let spool = Spool {
            place,
            subscription_id,
            ledger: Ledger::new(),
            held: HashMap::new(),
        };
        spool.show();
        spool
    }

    /// Takes one frame about transactions in progress.
    pub(super) fn frame(
        &mut self,
        frame: &[u8],
        apply: &mut Apply,
        positions: &mut Positions,
        leaps: &mut Leaps,
    ) -> Result<(), String> {
        if apply.in_transaction() {
            return Err(
                "the stream is out of order: a transaction in progress inside another one".to_owned(),
            );
        }
        let mut decoder = Decoder::new(frame);
        while let Some(message) = decoder.next().map_err(unreadable)? {
            match message {
                // The rest of the frame is the chunk.
                Message::StreamStart(start) => {
                    self.keep(start.xid, frame)?;
                    break;
                }
                Message::StreamAbortSub(abort) => self
                    .ledger
                    .aborted(abort.xid, abort.subxid)
                    .map_err(|error| error.to_string())?,
                Message::StreamAbort(abort) => {
                    self.ledger.ended(abort.xid).map_err(|error| error.to_string())?;
                    self.held.remove(&abort.xid);
                }
                Message::StreamCommit(commit) => self.committed(&commit, apply, positions, leaps)?,
                Message::Prepare(prepare) => self.prepared(&prepare, apply, positions, leaps)?,
                Message::CommitPrepared(commit) => self.commit_prepared(&commit, apply, positions, leaps)?,
                Message::RollbackPrepared(rollback) => {
                    self.rollback_prepared(&rollback, apply, positions, leaps)?;
                }
                other => {
                    return Err(format!(
                        "the stream is out of order: {} beside the end of a transaction in progress",
                        other.name()
                    ));
                }
            }
        }
        self.show();
        Ok(())
    }

    /// Keeps a chunk, in memory or on disk.
    fn keep(&mut self, xid: u32, frame: &[u8]) -> Result<(), String> {
        let bytes = frame.len() as u64;
        loop {
            let limits = Limits {
                memory: settings::spool_mem(),
                disk: settings::spool_max_size(),
            };
            let step = self.ledger.next(xid, bytes, limits).map_err(|full| {
                format!(
                    "{full}; raise ha.spool_max_size, or set the option streaming of the subscription to false"
                )
            })?;
            match step {
                Step::Keep => {
                    self.held.entry(xid).or_default().frames.push(frame.into());
                    self.ledger.kept(xid, bytes);
                    return Ok(());
                }
                Step::Write => {
                    if let Some(file) = self.held.entry(xid).or_default().file.as_mut() {
                        file.append(frame).map_err(|error| error.to_string())?;
                    }
                    self.ledger.written(xid, bytes);
                    return Ok(());
                }
                Step::Move(victim) => self.move_to_disk(victim).map_err(|error| error.to_string())?,
            }
        }
    }

    fn move_to_disk(&mut self, xid: u32) -> Result<(), crate::durable::Error> {
        let held = self.held.entry(xid).or_default();
        let mut file = SpoolFile::create(self.subscription_id, xid)?;
        for frame in held.frames.drain(..) {
            file.append(&frame)?;
        }
        held.frames = Vec::new();
        held.file = Some(file);
        self.ledger.moved(xid);
        Ok(())
    }

    /// The transaction counts: applies it. After a passing error from its beginning.
    fn committed(
        &mut self,
        commit: &StreamCommit<'_>,
        apply: &mut Apply,
        positions: &mut Positions,
        leaps: &mut Leaps,
    ) -> Result<(), String> {
        let (held, aborted) = self
            .take(commit.begin.xid)
            .ok_or_else(|| Unknown(commit.begin.xid).to_string())?;
        self.place.set_action("applying a large transaction");
        let outcome = attempt(apply, positions, leaps, |apply, again, look, positions| {
            apply.start_frame(again, look);
            apply.next(&Message::Begin(commit.begin), positions)?;
            // Applied before a restart, all of it.
            if !apply.was_applied() {
                held.play(&aborted, apply, positions)?;
            }
            let commit = commit.begin.commit(commit.wal_end);
            apply.next(&Message::Commit(commit), positions)
        });
        self.place.set_action("streaming");
        outcome
    }

    /// What has come of a transaction, which is forgotten here, and which of its subtransactions were rolled back.
    pub(super) fn take(&mut self, xid: u32) -> Option<(Held, HashSet<u32>)> {
        let aborted = self.ledger.ended(xid).ok()?;
        Some((self.held.remove(&xid).unwrap_or_default(), aborted))
    }

    /// For `ha.status_subscriptions`.
    fn show(&self) {
        self.place.spool_memory.store(self.ledger.memory(), Relaxed);
        self.place.spool_disk.store(self.ledger.disk(), Relaxed);
        self.place
            .spool_transactions
            .store(self.ledger.open() as u64, Relaxed);
    }
}

impl Held {
    /// Applies all of it, in the open transaction.
    pub(super) fn play(
        &self,
        aborted: &HashSet<u32>,
        apply: &mut Apply,
        positions: &mut Positions,
    ) -> Result<(), Failure> {
        let mut looked = Instant::now();
        self.each(|frame| {
            chunk(frame, aborted, apply, positions)?;
            worker::heed_signals(0);
            // What was committed before becomes durable meanwhile.
            if looked.elapsed() >= positions.look() {
                looked = Instant::now();
                positions.publish(false).map_err(Failure::Positions)?;
            }
            Ok(())
        })
    }

    /// Whether nothing has come.
    pub(super) fn is_empty(&self) -> bool {
        self.file.is_none() && self.frames.is_empty()
    }

    /// Shows all frames, in the order in which they came.
    pub(super) fn each(&self, mut show: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        if let Some(file) = &self.file {
            let (mut place, mut frame) = (0, Vec::new());
            while file.read(&mut place, &mut frame)? {
                show(&frame)?;
            }
        }
        self.frames.iter().try_for_each(|frame| show(frame))
    }
}

/// Applies what counts of a chunk.
pub(super) fn chunk(
    frame: &[u8],
    aborted: &HashSet<u32>,
    apply: &mut Apply,
    positions: &mut Positions,
) -> Result<(), Failure> {
    let mut decoder = Decoder::new(frame);
    let mut counts = true;
    while let Some(message) = decoder.next()? {
        match message {
            Message::StreamStart(start) => counts = aborted.is_empty() || !aborted.contains(&start.subxid),
            // What is described counts for what follows it, whatever became of the subtransaction.
            Message::Relation(_) => apply.next(&message, positions)?,
            _ if counts => apply.next(&message, positions)?,
            _ => {}
        }
    }
    Ok(())
}

fn unreadable(error: CodecError) -> String {
    format!("the stream cannot be read: {error}")
}
