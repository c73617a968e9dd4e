//! How far a subscriber may say it has got.
//!
//! The provider forgets what the subscriber reports as flushed. A remote transaction is safe only when the *local*
//! commit that it became is durable, so the tracker remembers which local position belongs to which remote one.
//!
//! The commit keeps the remote position, so that whatever state this server is restored to knows how far it had got.
//! A position at which nothing was committed here (the provider was idle, or wrote what nobody here wants) has to be
//! written down by itself before it is reported: a provider that has been told more than the subscriber knows takes it
//! for one that was restored to an earlier state. [`record_in`] says when that is worth it.

use std::collections::VecDeque;

use pg_ha_model::Lsn;

/// Pairs of remote and local commit positions whose local part is not known to be durable, and what follows from them.
///
/// Memory is bounded: with more than [`Self::MAX_PENDING`] commits in flight the newest ones share an entry, which can
/// only delay what is reported.
#[derive(Debug, Clone, Default)]
pub struct FlushTracker {
    /// In order of both positions.
    pending: VecDeque<Pending>,
    local_flushed: Lsn,
    applied: Lsn,
    recorded: Lsn,
    flush: Lsn,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    remote_end: Lsn,
    local_end: Lsn,
}

impl FlushTracker {
    /// The most entries kept.
    pub const MAX_PENDING: usize = 4096;

    /// A tracker of a stream that starts at `start`: what comes before is durable.
    pub fn new(start: Lsn) -> FlushTracker {
        FlushTracker {
            applied: start,
            recorded: start,
            flush: start,
            ..FlushTracker::default()
        }
    }

    /// A remote transaction ending at `remote_end` has become the local transaction whose commit record ends at
    /// `local_end`; or the record that ends there says that everything up to `remote_end` has been dealt with.
    pub fn committed(&mut self, remote_end: Lsn, local_end: Lsn) {
        let mut entry = Pending {
            remote_end,
            local_end,
        };
        // Both positions must grow from entry to entry, and nothing at or behind this transaction may be reported
        // before it: entries for which that would not hold become one with it.
        while let Some(last) = self.pending.back() {
            let joined = last.remote_end >= remote_end || last.local_end >= entry.local_end;
            if !joined && self.pending.len() < Self::MAX_PENDING {
                break;
            }
            entry.remote_end = entry.remote_end.max(last.remote_end);
            entry.local_end = entry.local_end.max(last.local_end);
            self.pending.pop_back();
        }
        self.pending.push_back(entry);
        self.applied = self.applied.max(remote_end);
        self.recorded = self.recorded.max(remote_end);
        self.settle();
    }

    /// The local WAL is durable up to `local` (on this server and wherever else it must be).
    pub fn local_flushed(&mut self, local: Lsn) {
        self.local_flushed = self.local_flushed.max(local);
        self.settle();
    }

    /// Everything up to `remote` has been received and what it had for this subscriber has been passed to
    /// [`Self::committed`]. To be called between transactions only (with a keepalive's position, say): a transaction
    /// that is still being received or applied must end after `remote`.
    ///
    /// It counts as applied at once, and as flushed after it was recorded, see [`Self::unrecorded`].
    pub fn remote_received(&mut self, remote: Lsn) {
        self.applied = self.applied.max(remote);
    }

    /// How many bytes of the provider's WAL lie between what is applied and what was committed or recorded here.
    pub fn unrecorded(&self) -> u64 {
        self.applied.bytes_since(self.recorded)
    }

    /// The remote position up to which everything is durable here; never goes back.
    pub fn flush(&self) -> Lsn {
        self.flush
    }

    /// The remote position up to which everything is committed here, durable or not; never goes back.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// Whether local commits are waiting to become durable.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The local position whose flush will make everything durable, if anything is pending.
    pub fn awaited_local(&self) -> Option<Lsn> {
        self.pending.back().map(|last| last.local_end)
    }

    fn settle(&mut self) {
        while let Some(first) = self.pending.front() {
            if first.local_end > self.local_flushed {
                return;
            }
            self.flush = self.flush.max(first.remote_end);
            self.pending.pop_front();
        }
    }
}

/// In how many milliseconds a position at which nothing was committed should be recorded: 0 for now, None for not as
/// long as nothing else happens. `unrecorded`: see [`FlushTracker::unrecorded`]. `since`: milliseconds since one was
/// recorded last. `asked`: somebody waits for it.
///
/// Recording writes a little WAL, of which a subscriber of this server hears, which then may have something to record
/// of its own: so few bytes wait until more have come, and two idle nodes fall silent.
pub fn record_in(unrecorded: u64, since: u64, asked: bool) -> Option<u64> {
    /// As much as idle servers write between them on each other's account, and some more.
    const LITTLE: u64 = 512;
    const MUCH: u64 = 64 * 1024;
    if unrecorded == 0 {
        None
    } else if asked {
        Some(0)
    } else if unrecorded < LITTLE {
        None
    } else if unrecorded < MUCH {
        Some(10_000_u64.saturating_sub(since))
    } else {
        Some(1_000_u64.saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn flush_follows_the_local_disk() {
        let mut tracker = FlushTracker::new(Lsn(100));
        assert_eq!((tracker.flush(), tracker.applied()), (Lsn(100), Lsn(100)));
        tracker.committed(Lsn(110), Lsn(5));
        tracker.committed(Lsn(120), Lsn(9));
        assert_eq!((tracker.flush(), tracker.applied()), (Lsn(100), Lsn(120)));
        assert_eq!(tracker.awaited_local(), Some(Lsn(9)));
        tracker.local_flushed(Lsn(8));
        assert_eq!(tracker.flush(), Lsn(110));
        tracker.remote_received(Lsn(130));
        assert_eq!((tracker.flush(), tracker.applied()), (Lsn(110), Lsn(130)));
        tracker.local_flushed(Lsn(9));
        assert_eq!(tracker.flush(), Lsn(120));
        assert!(!tracker.has_pending());
    }

    #[test]
    fn what_is_not_recorded_is_not_reported_as_flushed() {
        let mut tracker = FlushTracker::new(Lsn(5));
        tracker.remote_received(Lsn(7));
        assert_eq!((tracker.flush(), tracker.applied()), (Lsn(5), Lsn(7)));
        assert_eq!(tracker.unrecorded(), 2);
        tracker.committed(Lsn(7), Lsn(40));
        assert_eq!((tracker.flush(), tracker.unrecorded()), (Lsn(5), 0));
        tracker.local_flushed(Lsn(40));
        assert_eq!(tracker.flush(), Lsn(7));
        tracker.remote_received(Lsn(3));
        assert_eq!((tracker.flush(), tracker.applied()), (Lsn(7), Lsn(7)));
        assert_eq!(tracker.unrecorded(), 0);
        // A commit records what came before it, too.
        tracker.remote_received(Lsn(8));
        tracker.committed(Lsn(9), Lsn(41));
        assert_eq!(
            (tracker.unrecorded(), tracker.awaited_local()),
            (0, Some(Lsn(41)))
        );
    }

    #[test]
    fn little_is_recorded_late_or_never_and_what_is_waited_for_at_once() {
        assert_eq!(record_in(0, 1_000_000, true), None, "there is nothing to record");
        assert_eq!(record_in(1, 0, true), Some(0));
        assert_eq!(record_in(200, 1_000_000, false), None);
        assert_eq!(record_in(512, 4_000, false), Some(6_000));
        assert_eq!(record_in(512, 10_000, false), Some(0));
        assert_eq!(record_in(1 << 30, 0, false), Some(1_000));
        assert_eq!(record_in(64 * 1024, 1_001, false), Some(0));
    }

    #[test]
    fn memory_is_bounded_and_progress_is_not_lost() {
        let mut tracker = FlushTracker::new(Lsn::INVALID);
        let commits = 3 * FlushTracker::MAX_PENDING as u64;
        for commit in 1..=commits {
            tracker.committed(Lsn(commit * 10), Lsn(commit));
            assert!(tracker.pending.len() <= FlushTracker::MAX_PENDING);
        }
        tracker.local_flushed(Lsn(50));
        assert_eq!(tracker.flush(), Lsn(500));
        tracker.local_flushed(Lsn(commits));
        assert_eq!(tracker.flush(), Lsn(commits * 10));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Committed(u64, u64),
        LocalFlushed(u64),
        Received(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            3 => (0..6u64, 0..6u64).prop_map(|(remote, local)| Event::Committed(remote, local)),
            2 => (0..40u64).prop_map(Event::LocalFlushed),
            1 => (0..4u64).prop_map(Event::Received),
        ];
        prop::collection::vec(event, 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn never_ahead_of_the_local_disk(events in events()) {
            let mut tracker = FlushTracker::new(Lsn::INVALID);
            let (mut remote, mut local, mut flushed) = (0, 0, 0);
            let mut commits: Vec<(u64, u64)> = Vec::new();
            for event in events {
                let before = (tracker.flush(), tracker.applied());
                match event {
                    Event::Committed(remote_step, local_step) => {
                        remote += remote_step + 1;
                        local += local_step;
                        commits.push((remote, local));
                        tracker.committed(Lsn(remote), Lsn(local));
                    }
                    Event::LocalFlushed(to) => {
                        flushed = flushed.max(to);
                        tracker.local_flushed(Lsn(to));
                    }
                    Event::Received(step) => {
                        remote += step;
                        tracker.remote_received(Lsn(remote));
                    }
                }
                prop_assert!(tracker.flush() >= before.0 && tracker.applied() >= before.1, "monotone");
                prop_assert!(tracker.flush() <= tracker.applied());
                prop_assert_eq!(tracker.applied(), Lsn(remote));
                let unsafe_commit = commits.iter().find(|(_, local_end)| *local_end > flushed);
                let recorded = commits.last().map_or(0, |(remote_end, _)| *remote_end);
                prop_assert_eq!(tracker.unrecorded(), remote - recorded);
                match unsafe_commit {
                    Some((remote_end, _)) => prop_assert!(tracker.flush() < Lsn(*remote_end), "not durable yet"),
                    None => prop_assert_eq!(tracker.flush(), Lsn(recorded), "everything is durable"),
                }
            }
        }

        #[test]
        fn commits_out_of_order_are_never_reported_early(commits in prop::collection::vec((1..30u64, 1..30u64), 1..20), flushed in 0..30u64) {
            let mut tracker = FlushTracker::new(Lsn::INVALID);
            for (remote_end, local_end) in &commits {
                tracker.committed(Lsn(*remote_end), Lsn(*local_end));
            }
            tracker.local_flushed(Lsn(flushed));
            for (remote_end, local_end) in &commits {
                prop_assert!(*local_end <= flushed || tracker.flush() < Lsn(*remote_end));
            }
        }
    }
}
