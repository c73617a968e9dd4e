//! The running copies of tables, and how a copier hands its table over to the applier.
//!
//! A copier reads the table as of a position S of the provider. The applier leaves the table's changes out all that
//! time, and is at some other position when the copy is done. So the copier catches up: it streams and applies the
//! changes of its table alone, from S to where the applier is, and for the last stretch the applier waits:
//!
//! - `Starting`, `Copying`, `Indexing`, `CatchingUp`: the applier takes no notice.
//! - `Waiting`: the copier is about as far as the applier and asks it to stop between two transactions. The applier
//!   writes its position to `target`, sets `Handing` and waits.
//! - `Handing`: the copier applies what is left up to `target` and commits everything, with the position that it
//!   reached. Then it gives its place back, the applier looks at the catalog and goes on: changes of the table up to
//!   that position are the copier's, later ones its own.
//!
//! A copier that brings several small tables together does this once for all of them, in the place of the first.
//!
//! An applier that starts finds a copier in `Handing` and waits too, so that nobody passes a copier's final position
//! before it is committed. When the copier ends without a commit, the table stays closed and is copied anew.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::layout::RunningCopy;
use crate::postgres;

/// How far a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Starting,
    Copying,
    Indexing,
    CatchingUp,
    Waiting,
    Handing,
}

impl Phase {
    const ALL: [Phase; 6] = [
        Phase::Starting,
        Phase::Copying,
        Phase::Indexing,
        Phase::CatchingUp,
        Phase::Waiting,
        Phase::Handing,
    ];

    /// The word of `ha.copy_states()`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Copying => "copying",
            Phase::Indexing => "indexing",
            Phase::CatchingUp | Phase::Waiting | Phase::Handing => "catchup",
        }
    }
}

/// All places that are taken.
pub(crate) fn all() -> impl Iterator<Item = &'static RunningCopy> {
    super::area()
        .map(|area| &area.copies)
        .into_iter()
        .flatten()
        .filter(|copy| copy.key.load(Acquire) != 0)
}

/// The places of one subscription's copies.
pub(crate) fn of(subscription_id: i32) -> impl Iterator<Item = &'static RunningCopy> {
    all().filter(move |copy| copy.subscription_id() == subscription_id)
}

/// The place of a table's copy, if it is running.
pub(crate) fn find(subscription_id: i32, table_id: i32) -> Option<&'static RunningCopy> {
    let key = key(subscription_id, table_id);
    all().find(|copy| copy.key.load(Acquire) == key)
}

/// The places of one process's tables, that for which it was started first.
pub(crate) fn led_by(index: usize) -> Vec<&'static RunningCopy> {
    let leader = super::area().and_then(|area| area.copies.get(index));
    let others = all().filter(|copy| {
        copy.leader.load(Acquire) == index as u32 + 1
            && leader.is_some_and(|leader| leader.subscription_id() == copy.subscription_id())
    });
    leader.into_iter().chain(others).collect()
}

/// Takes a place; None when all are taken. `leader`: the place of the table whose process brings this one too. Only
/// the supervisor does.
pub(crate) fn claim(subscription_id: i32, table_id: i32, leader: Option<usize>) -> Option<usize> {
    let places = &super::area()?.copies;
    let index = places.iter().position(|copy| copy.key.load(Acquire) == 0)?;
    let copy = &places[index];
    copy.pid.store(0, Relaxed);
    copy.leader
        .store(leader.map_or(0, |place| place as u32 + 1), Relaxed);
    copy.target.store(0, Relaxed);
    copy.rows.store(0, Relaxed);
    copy.bytes.store(0, Relaxed);
    copy.started_at.store(postgres::now(), Relaxed);
    copy.set_phase(Phase::Starting);
    copy.key.store(key(subscription_id, table_id), Release);
    Some(index)
}

impl RunningCopy {
    pub(crate) fn subscription_id(&self) -> i32 {
        (self.key.load(Acquire) >> 32) as i32
    }

    pub(crate) fn table_id(&self) -> i32 {
        self.key.load(Acquire) as u32 as i32
    }

    pub(crate) fn phase(&self) -> Phase {
        let number = self.phase.load(Acquire) as usize;
        Phase::ALL.get(number).copied().unwrap_or(Phase::Starting)
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Release);
    }

    /// The applier's answer to a copier that waits: where it stands, and that it stays there.
    pub(crate) fn hand_over_at(&self, position: u64) -> bool {
        self.target.store(position, Release);
        self.phase
            .compare_exchange(Phase::Waiting as u32, Phase::Handing as u32, AcqRel, Acquire)
            .is_ok()
    }

    /// Whether a process was started for this table, rather than for another one that it comes with.
    pub(crate) fn leads(&self) -> bool {
        self.leader.load(Acquire) == 0
    }

    /// Gives the place back.
    pub(crate) fn release(&self) {
        self.pid.store(0, Release);
        self.leader.store(0, Release);
        self.key.store(0, Release);
    }
}

fn key(subscription_id: i32, table_id: i32) -> u64 {
    ((subscription_id as u32 as u64) << 32) | u64::from(table_id as u32)
}
