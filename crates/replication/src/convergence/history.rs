//! Whether the writer of a *local* row's version had seen a change that arrives only now.
//!
//! [`crate::conflict::SeenVersions`] answers for the change's writer, from the newest that its stream told. For the
//! local row's writer the newest is too much: a change that it applied after it wrote the row is concurrent with the
//! row all the same. So what a node told of an origin is kept with the time at which it was true.

use std::collections::VecDeque;

use pg_ha_model::PgTimestamp;

/// How far one node had applied one other origin, at each of its commits.
#[derive(Debug, Clone)]
pub struct SeenHistory {
    /// (from this commit of the node on, up to this commit of the origin), both rising.
    told: VecDeque<(PgTimestamp, PgTimestamp)>,
    limit: usize,
}

impl SeenHistory {
    /// Keeps at most `limit` entries (16 bytes each), at least one. What falls out counts as not seen: then a change
    /// made in turn may be reported as a conflict, and no conflict is ever left out.
    pub fn new(limit: usize) -> SeenHistory {
        SeenHistory {
            told: VecDeque::new(),
            limit: limit.max(1),
        }
    }

    /// The node's transaction that committed at `at` was the first to tell that it had applied the origin up to
    /// `reached`.
    pub fn told(&mut self, at: PgTimestamp, reached: PgTimestamp) {
        if self.told.back().is_some_and(|(_, known)| reached <= *known) {
            return;
        }
        self.told.push_back((at, reached));
        if self.told.len() > self.limit {
            self.told.pop_front();
        }
    }

    /// Whether the node, when it committed at `at`, had seen what the origin committed at `change`.
    pub fn saw(&self, at: PgTimestamp, change: PgTimestamp) -> bool {
        let then = self.told.partition_point(|(told_at, _)| *told_at <= at);
        then.checked_sub(1)
            .and_then(|entry| self.told.get(entry))
            .is_some_and(|(_, reached)| change <= *reached)
    }

    /// Forgets what no change that still arrives can ask for: all are newer than `settled`.
    pub fn forget(&mut self, settled: PgTimestamp) {
        while self.told.front().is_some_and(|(_, reached)| *reached <= settled) {
            self.told.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn t(micros: i64) -> PgTimestamp {
        PgTimestamp(micros)
    }

    #[test]
    fn what_was_applied_later_was_not_seen() {
        let mut history = SeenHistory::new(10);
        history.told(t(10), t(5));
        history.told(t(20), t(15));
        history.told(t(21), t(14));
        assert!(history.saw(t(10), t(5)));
        assert!(!history.saw(t(10), t(6)));
        assert!(!history.saw(t(9), t(5)));
        assert!(!history.saw(t(19), t(15)));
        assert!(history.saw(t(30), t(15)));
    }

    #[test]
    fn what_falls_out_counts_as_unseen() {
        let mut history = SeenHistory::new(2);
        for at in 1..=3 {
            history.told(t(at * 10), t(at * 10 - 5));
        }
        assert!(!history.saw(t(15), t(5)));
        assert!(history.saw(t(25), t(5)));
        history.forget(t(15));
        assert!(!history.saw(t(25), t(15)));
        assert!(history.saw(t(35), t(16)));
    }
}
