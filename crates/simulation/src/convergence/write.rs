//! Transactions of the users of one node: plain SQL, of which nothing of ours knows more than a trigger or the WAL does.

use pg_ha_replication::conflict::Version;
use pg_ha_replication::convergence::{Death, Kind, MergeRule, RowVersion, greater, lesser};

use super::history::World;
use super::node::Candidate;
use super::{Breakage, Key, Row, RowStep, Step, Transaction, version};

impl World {
    /// A transaction on one node, unless its clock forbids it or it would change nothing.
    pub(super) fn write(&mut self, place: usize) {
        let Some(node) = self.nodes.get(place) else { return };
        if self.settings.in_turn && !self.has_everything(place) {
            return;
        }
        let clock = self.now + node.clock_error;
        let floor = node.state.floor;
        // The commit waits until the clock has passed the floor, or is refused.
        let timestamp = if clock > floor || self.broken == Breakage::NoClockFloor {
            clock
        } else if floor + 1 - clock <= self.settings.max_clock_skew {
            floor + 1
        } else {
            return;
        };
        let own = version(timestamp, node.id);
        let mut transaction = Transaction {
            version: own,
            seen: node.state.progress.clone(),
            seen_times: node.state.applied.clone(),
            settled: node.settled(),
            ahead: if node.state.ahead > node.settled() {
                node.state.ahead
            } else {
                i64::MIN
            },
            steps: Vec::new(),
        };
        if self.random.percent(self.settings.truncates) {
            self.truncate(place, own, &mut transaction.steps);
        }
        for _ in 0..1 + self.random.below(3) {
            self.statement(place, own, &mut transaction.steps);
        }
        if transaction.steps.is_empty() {
            return;
        }
        let settles = self.random.percent(50);
        if let (Some(node), Some(log)) = (self.nodes.get_mut(place), self.logs.get_mut(place)) {
            log.push(transaction);
            if let (Some(progress), Some(applied)) = (
                node.state.progress.get_mut(place),
                node.state.applied.get_mut(place),
            ) {
                *progress = log.len();
                *applied = timestamp;
            }
            node.state.floor = node.state.floor.max(timestamp);
            node.durable = node.state.clone();
            if settles {
                node.settle(own);
            }
        }
    }

    fn truncate(&mut self, place: usize, own: Version, steps: &mut Vec<Step>) {
        let Some(node) = self.nodes.get_mut(place) else {
            return;
        };
        let death = Death {
            version: own,
            step: 0,
        };
        for key in node.keys() {
            node.remove(key);
        }
        node.truncate(death, self.settings.keys);
        steps.push(Step::Truncate);
    }

    fn statement(&mut self, place: usize, own: Version, steps: &mut Vec<Step>) {
        let key = self.random.below(self.settings.keys) as Key;
        let Some(node) = self.nodes.get(place) else { return };
        match node.row(key).cloned() {
            None => {
                if let Some(row) = self.new_row(place, key, None) {
                    self.arrive(place, own, key, Kind::Insert, row, None, false, steps);
                }
            }
            Some(_) if self.random.percent(self.settings.deletes) => {
                self.leave(place, own, key, Kind::Delete, steps);
            }
            Some(old) => {
                let Some(row) = self.new_row(place, key, Some(&old)) else {
                    return;
                };
                let unchanged = row.large == old.large;
                if !self.random.percent(self.settings.moves) {
                    let old_count = old.count;
                    self.arrive(place, own, key, Kind::Update, row, old_count, unchanged, steps);
                    return;
                }
                let to = self.random.below(self.settings.keys) as Key;
                if to != key && self.may_arrive(place, to) {
                    self.leave(place, own, key, Kind::MoveAway, steps);
                    self.arrive(place, own, to, Kind::MoveHere, row, None, unchanged, steps);
                }
            }
        }
    }

    /// A row to write, if it is allowed.
    fn new_row(&mut self, place: usize, key: Key, old: Option<&Row>) -> Option<Row> {
        if old.is_none() && !self.may_arrive(place, key) {
            return None;
        }
        self.next_value += 1;
        let fresh = self.next_value;
        let keep = old.filter(|_| self.settings.unchanged && self.random.percent(50));
        let mut unique = old.map_or([None; 2], |old| old.unique);
        for (column, value) in unique.iter_mut().enumerate() {
            if old.is_some() && self.random.percent(60) {
                continue;
            }
            let wanted = (self.settings.unique > 0 && self.random.percent(70))
                .then(|| self.random.below(self.settings.unique) as u8);
            if !self.nodes.get(place)?.is_taken(column, wanted, key) {
                *value = wanted;
            }
        }
        let number = |random: &mut crate::Random, low| (!random.percent(20)).then(|| random.between(low, 5));
        let old_count = old.and_then(|old| old.count);
        let count = match old_count {
            Some(count) if self.random.percent(70) => Some(count + self.random.between(-3, 3)),
            _ if self.random.percent(30) => old_count,
            _ => number(&mut self.random, -2),
        };
        let mut bound = number(&mut self.random, 0);
        // A trigger keeps the greater (lesser) value: within a row's life such a column only grows (shrinks).
        match (old, self.settings.merges) {
            (Some(old), Some(MergeRule::Max)) => bound = greater(old.bound, bound),
            (Some(old), Some(MergeRule::Min)) => bound = lesser(old.bound, bound),
            _ => {}
        }
        Some(Row {
            plain: fresh,
            large: keep.map_or(fresh, |old| old.large),
            unique,
            count,
            bound,
        })
    }

    /// Whether a user may bring a row to this key. Where a row of the key waits, an insert would hide what it counted.
    fn may_arrive(&self, place: usize, key: Key) -> bool {
        self.nodes.get(place).is_some_and(|node| {
            node.row(key).is_none() && !(self.settings.merges.is_some() && node.waits(key))
        })
    }

    #[expect(clippy::too_many_arguments)]
    fn arrive(
        &mut self,
        place: usize,
        own: Version,
        key: Key,
        kind: Kind,
        row: Row,
        old_count: Option<i64>,
        unchanged: bool,
        steps: &mut Vec<Step>,
    ) {
        let Some(node) = self.nodes.get_mut(place) else {
            return;
        };
        steps.push(Step::Row(RowStep {
            key,
            kind,
            step: 0,
            after: node.death(key),
            true_after: node.state.all_deaths.get(&key).copied(),
            new: row.clone(),
            old_count,
            unchanged,
        }));
        let candidate = Candidate {
            null_in_newest: row.count.is_none(),
            row,
            version: RowVersion::Known(own),
        };
        node.put(key, candidate, own);
    }

    fn leave(&mut self, place: usize, own: Version, key: Key, kind: Kind, steps: &mut Vec<Step>) {
        let Some(node) = self.nodes.get_mut(place) else {
            return;
        };
        let before = node.death(key).filter(|death| death.version == own);
        let step = before.map_or(0, |death| death.step + 1);
        let true_after = node.state.all_deaths.get(&key).copied();
        let Some(row) = node.row(key).cloned() else { return };
        steps.push(Step::Row(RowStep {
            key,
            kind,
            step,
            after: node.death(key),
            true_after,
            old_count: row.count,
            new: row,
            unchanged: false,
        }));
        node.remove(key);
        node.remember(key, Death { version: own, step });
    }
}
