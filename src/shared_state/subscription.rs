//! The shared place of one subscription.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::copies;
use super::layout::Subscription;
use crate::postgres::latch;

/// The words of `ha.sub_show_status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// Being set up: connecting for the first time.
    Initializing,
    /// Changes flow.
    Replicating,
    /// Switched off by `ha.sub_disable`.
    Disabled,
    /// The provider cannot be reached; the workers go on trying.
    Down,
    /// A change cannot be applied, or the provider refuses; somebody has to look.
    Failed,
}

impl Status {
    const ALL: [Status; 5] = [
        Status::Initializing,
        Status::Replicating,
        Status::Disabled,
        Status::Down,
        Status::Failed,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Status::Initializing => "initializing",
            Status::Replicating => "replicating",
            Status::Disabled => "disabled",
            Status::Down => "down",
            Status::Failed => "failed",
        }
    }

    fn from_number(number: u32) -> Status {
        Self::ALL
            .get(number as usize)
            .copied()
            .unwrap_or(Status::Initializing)
    }
}

/// The place of a subscription, if it has one.
pub(crate) fn find(id: i32) -> Option<&'static Subscription> {
    super::area()?
        .subscriptions
        .iter()
        .find(|place| place.id.load(Acquire) == id)
}

/// Finds or takes a place. None when all are taken.
pub(crate) fn claim(
    id: i32,
    provider_node: u32,
    name: &str,
    slot_name: &str,
    provider: &str,
) -> Option<usize> {
    let places = &super::area()?.subscriptions;
    let known = places.iter().position(|place| place.id.load(Acquire) == id);
    let index = known.or_else(|| {
        places
            .iter()
            .position(|place| place.id.load(Acquire) == 0 && !place.has_workers())
    })?;
    let place = &places[index];
    if known.is_none() {
        place.reset();
    }
    place.provider_node.store(provider_node, Relaxed);
    place.text.write(|text| {
        text.name.set(name);
        text.slot_name.set(slot_name);
        text.provider.set(provider);
    });
    place.id.store(id, Release);
    Some(index)
}

impl Subscription {
    fn reset(&self) {
        self.set_status(Status::Initializing);
        self.wanted.store(0, Relaxed);
        self.gates_generation.store(0, Relaxed);
        self.handover.store(0, Relaxed);
        self.synchronous.store(0, Relaxed);
        self.failed_in_applier.store(0, Relaxed);
        for position in [
            &self.provider_lsn,
            &self.received_lsn,
            &self.applied_lsn,
            &self.flushed_lsn,
        ] {
            position.store(0, Relaxed);
        }
        for count in [
            &self.transactions,
            &self.inserted,
            &self.updated,
            &self.deleted,
            &self.conflicts,
            &self.skipped,
            &self.retries,
            &self.spool_memory,
            &self.spool_disk,
            &self.spool_transactions,
        ] {
            count.store(0, Relaxed);
        }
        self.last_message.store(0, Relaxed);
        self.applied_commit.store(0, Relaxed);
        self.text.write(|text| {
            text.action.clear();
            text.last_error.clear();
        });
    }

    pub(crate) fn status(&self) -> Status {
        Status::from_number(self.status.load(Acquire))
    }

    /// Returns true when that is a change, so that the caller logs once per change and not once per loop.
    pub(crate) fn set_status(&self, status: Status) -> bool {
        self.status.swap(status as u32, AcqRel) != status as u32
    }

    pub(crate) fn set_action(&self, action: &str) {
        self.text.write(|text| text.action.set(action));
    }

    /// Returns true when the error is not the one already shown.
    pub(crate) fn set_error(&self, error: &str) -> bool {
        self.text.write(|text| {
            let new = text.last_error.as_str() != error;
            text.last_error.set(error);
            new
        })
    }

    pub(crate) fn clear_error(&self) {
        self.text.write(|text| text.last_error.clear());
    }

    pub(crate) fn stop(&self) {
        self.wanted.store(0, Release);
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Acquire) == 1
    }

    /// Whether the receiver or the applier runs.
    pub(crate) fn has_stream(&self) -> bool {
        self.receiver_pid.load(Acquire) != 0 || self.applier_pid.load(Acquire) != 0
    }

    /// Whether any worker runs: of the stream, or one that copies a table.
    pub(crate) fn has_workers(&self) -> bool {
        self.has_stream() || copies::of(self.id.load(Acquire)).next().is_some()
    }

    /// Asks the receiver and the applier to end.
    pub(crate) fn wake_stream_to_end(&self) {
        latch::terminate(self.receiver_pid.load(Acquire));
        latch::terminate(self.applier_pid.load(Acquire));
    }

    /// Asks all workers to end.
    pub(crate) fn wake_workers_to_end(&self) {
        self.wake_stream_to_end();
        for copy in copies::of(self.id.load(Acquire)) {
            latch::terminate(copy.pid.load(Acquire));
        }
    }

    /// Gives the place back; the supervisor does, once the workers are gone.
    pub(crate) fn release(&self) {
        self.id.store(0, Release);
    }

    /// Positions only grow; a worker that starts over must not show less than its predecessor.
    pub(crate) fn raise(position: &std::sync::atomic::AtomicU64, to: u64) {
        position.fetch_max(to, AcqRel);
    }
}
