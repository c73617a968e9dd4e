//! A node as far as its table is concerned.

use std::collections::BTreeMap;

use pg_ha_model::{NodeId, PgTimestamp};
use pg_ha_replication::conflict::Version;
use pg_ha_replication::convergence::{Death, Placement, RowVersion, Standing, place};

use super::breakage::Breakage;
use super::{Key, Row, place_of, version};

/// A row in the table.
#[derive(Debug, Clone)]
struct Stored {
    row: Row,
    /// What the commit-timestamp store says of its xmin.
    written: Version,
    /// Tells this tuple from all others.
    stamp: u64,
}

/// A row of `ha.row_versions`.
#[derive(Debug, Clone)]
struct Entry {
    /// The tuple that it is about; another one has its version from its xmin.
    stamp: u64,
    version: RowVersion,
    /// `count` is NULL in the newest version.
    null_in_newest: bool,
}

/// A row, in the table or waiting for a unique value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The row.
    pub row: Row,
    /// Its true version.
    pub version: RowVersion,
    /// `count` is NULL in the newest version.
    pub null_in_newest: bool,
}

/// What a crash may lose.
#[derive(Debug, Clone)]
pub(super) struct State {
    rows: BTreeMap<Key, Stored>,
    waiting: BTreeMap<Key, Candidate>,
    entries: BTreeMap<Key, Entry>,
    pub(super) deaths: BTreeMap<Key, Death>,
    pub(super) truncated: Option<Death>,
    /// The newest delete of each key ever known: for the expectation only.
    pub(super) all_deaths: BTreeMap<Key, Death>,
    /// How many transactions of each node are applied.
    pub(super) progress: Vec<usize>,
    /// When the newest of them committed.
    pub(super) applied: Vec<i64>,
    /// Up to here everything of each node is applied.
    pub(super) heard: Vec<i64>,
    /// Up to here each node had applied everything, when it wrote what is applied here.
    pub(super) told: Vec<i64>,
    /// The newest commit time on this node, local or applied.
    pub(super) floor: i64,
    /// The newest version of what was asked for.
    pub(super) ahead: i64,
    /// The commit-timestamp store knows nothing older.
    frozen: i64,
    /// Up to here deletes were forgotten because they were too many.
    pub(super) forgotten: i64,
    next_stamp: u64,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) id: NodeId,
    pub(super) state: State,
    pub(super) durable: State,
    pub(super) clock_error: i64,
    pub(super) broken: Breakage,
}

impl Node {
    pub(super) fn new(id: NodeId, nodes: usize, broken: Breakage) -> Node {
        let state = State {
            rows: BTreeMap::new(),
            waiting: BTreeMap::new(),
            entries: BTreeMap::new(),
            deaths: BTreeMap::new(),
            truncated: None,
            all_deaths: BTreeMap::new(),
            progress: vec![0; nodes],
            applied: vec![i64::MIN; nodes],
            heard: vec![i64::MIN; nodes],
            told: vec![i64::MIN; nodes],
            floor: 0,
            ahead: i64::MIN,
            frozen: i64::MIN,
            forgotten: i64::MIN,
            next_stamp: 0,
        };
        Node {
            id,
            durable: state.clone(),
            state,
            clock_error: 0,
            broken,
        }
    }

    /// The rows in the table.
    pub fn visible(&self) -> impl Iterator<Item = (Key, &Row)> {
        self.state.rows.iter().map(|(key, stored)| (*key, &stored.row))
    }

    /// The row of a key, in the table or waiting.
    pub fn candidate(&self, key: Key) -> Option<Candidate> {
        if let Some(waiting) = self.state.waiting.get(&key) {
            return Some(waiting.clone());
        }
        let stored = self.state.rows.get(&key)?;
        let entry = self
            .state
            .entries
            .get(&key)
            .filter(|entry| entry.stamp == stored.stamp && self.broken != Breakage::NoRowVersions);
        Some(Candidate {
            row: stored.row.clone(),
            version: match entry {
                Some(entry) => entry.version,
                None if stored.written.timestamp.0 > self.state.frozen => RowVersion::Known(stored.written),
                None => RowVersion::NotAfter(PgTimestamp(self.state.frozen)),
            },
            null_in_newest: entry.map_or(stored.row.count.is_none(), |entry| entry.null_in_newest),
        })
    }

    pub(super) fn waits(&self, key: Key) -> bool {
        self.state.waiting.contains_key(&key)
    }

    pub(super) fn row(&self, key: Key) -> Option<&Row> {
        self.state.rows.get(&key).map(|stored| &stored.row)
    }

    /// Whether another row in the table has this value in this unique column.
    pub(super) fn is_taken(&self, column: usize, value: Option<u8>, key: Key) -> bool {
        self.state.rows.iter().any(|(other, stored)| {
            *other != key && value.is_some() && stored.row.unique.get(column) == Some(&value)
        })
    }

    pub(super) fn standing(&self, key: Key) -> Standing {
        Standing {
            row: self.candidate(key).map(|candidate| candidate.version),
            death: self.death(key),
        }
    }

    pub(super) fn death(&self, key: Key) -> Option<Death> {
        self.state.deaths.get(&key).copied().max(self.state.truncated)
    }

    pub(super) fn remember(&mut self, key: Key, death: Death) {
        let known = self.state.all_deaths.entry(key).or_insert(death);
        *known = death.max(*known);
        if self.broken != Breakage::ForgottenDeletes {
            self.state.deaths.insert(key, death);
        }
    }

    /// A TRUNCATE is a delete of each key.
    pub(super) fn truncate(&mut self, death: Death, keys: usize) {
        for key in 0..keys as Key {
            let known = self.state.all_deaths.entry(key).or_insert(death);
            *known = death.max(*known);
        }
        if self.broken != Breakage::ForgottenDeletes {
            self.state.truncated = self.state.truncated.max(Some(death));
        }
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<Key> = self
            .state
            .rows
            .keys()
            .chain(self.state.waiting.keys())
            .copied()
            .collect();
        keys.sort_unstable();
        keys
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.state.rows.remove(&key);
        self.state.entries.remove(&key);
        self.state.waiting.remove(&key);
    }

    /// Writes a row in a transaction of version `written`.
    pub(super) fn put(&mut self, key: Key, candidate: Candidate, written: Version) {
        self.remove(key);
        self.store(key, candidate, written);
    }

    fn store(&mut self, key: Key, candidate: Candidate, written: Version) {
        let stamp = self.state.next_stamp;
        self.state.next_stamp += 1;
        if candidate.version != RowVersion::Known(written)
            || candidate.null_in_newest != candidate.row.count.is_none()
        {
            let entry = Entry {
                stamp,
                version: candidate.version,
                null_in_newest: candidate.null_in_newest,
            };
            self.state.entries.insert(key, entry);
        }
        let row = candidate.row;
        self.state.rows.insert(key, Stored { row, written, stamp });
    }

    /// Gives unique values to the newest rows that want them; rows move in a transaction of version `written`.
    pub(super) fn settle(&mut self, written: Version) {
        loop {
            let beaten = self
                .state
                .rows
                .iter()
                .find(|(key, stored)| !self.stands(**key, &stored.row))
                .map(|(key, _)| *key);
            if let Some(key) = beaten {
                if let Some(candidate) = self.candidate(key) {
                    self.remove(key);
                    self.state.waiting.insert(key, candidate);
                }
                continue;
            }
            let returns = self
                .state
                .waiting
                .iter()
                .filter(|(key, waiting)| self.stands(**key, &waiting.row))
                .map(|(key, waiting)| (ranked(waiting.version), *key))
                .max();
            let Some((_, key)) = returns else { break };
            if let Some(candidate) = self.state.waiting.remove(&key) {
                self.store(key, candidate, written);
            }
        }
        self.pin_versions();
    }

    /// The true version of a row that another one waits for is kept, whatever becomes of the commit-timestamp store.
    fn pin_versions(&mut self) {
        let wanted = self
            .state
            .rows
            .keys()
            .copied()
            .filter(|key| self.is_waited_for(*key));
        for key in wanted.collect::<Vec<Key>>() {
            let (Some(candidate), Some(stored)) = (self.candidate(key), self.state.rows.get(&key)) else {
                continue;
            };
            let entry = Entry {
                stamp: stored.stamp,
                version: candidate.version,
                null_in_newest: candidate.null_in_newest,
            };
            self.state.entries.insert(key, entry);
        }
    }

    fn is_waited_for(&self, key: Key) -> bool {
        let mut waiting = self.state.waiting.values();
        self.row(key)
            .is_some_and(|row| waiting.any(|waiting| waiting.row.rivals(row)))
    }

    fn stands(&self, key: Key, row: &Row) -> bool {
        let rivals = self.state.rows.iter();
        let mut rivals = rivals.filter(|(other, stored)| **other != key && stored.row.rivals(row));
        if self.broken == Breakage::FirstKeepsUnique {
            let stamp = |key| self.state.rows.get(key).map_or(u64::MAX, |stored| stored.stamp);
            return rivals.all(|(rival, _)| stamp(rival) > stamp(&key));
        }
        let rank = |key: Key| {
            self.candidate(key)
                .map(|candidate| (ranked(candidate.version), key))
        };
        place(&rank(key), rivals.map(|(rival, _)| rank(*rival))) == Placement::Stands
    }

    /// Nothing of other nodes that is as old as this can still arrive.
    pub(super) fn settled(&self) -> i64 {
        settled(&self.state, self.id)
    }

    /// Up to here everything is applied, that of one node left aside.
    pub(super) fn has_all_but(&self, place: usize) -> i64 {
        let heard = self.others().filter(|other| *other != place);
        let heard = heard.filter_map(|other| self.state.heard.get(other));
        heard.min().copied().unwrap_or(i64::MAX)
    }

    /// Every change that can still arrive was written by a node that knew all deletes up to this.
    pub(super) fn acknowledged(&self) -> i64 {
        let told = self.others().map(|other| self.state.told.get(other).copied());
        told.map(|told| told.unwrap_or(i64::MIN))
            .min()
            .unwrap_or(i64::MIN)
            .min(self.settled())
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let here = place_of(self.id);
        (0..self.state.heard.len()).filter(move |other| *other != here)
    }

    /// Forgets what can make no difference any more; freezes rows too.
    pub(super) fn vacuum(&mut self, merges: bool) {
        self.settle(version(self.state.floor, self.id));
        let settled = self.settled();
        let horizon = if merges && self.broken != Breakage::ForgetsBeforeAcknowledged {
            self.acknowledged()
        } else {
            settled
        };
        let state = &mut self.state;
        state
            .deaths
            .retain(|_, death| death.version.timestamp.0 > horizon);
        state.truncated = state
            .truncated
            .filter(|death| death.version.timestamp.0 > horizon);
        state.frozen = state.frozen.max(settled);
        let forgettable: Vec<Key> = (self.state.entries.iter())
            .filter(|(key, entry)| {
                !self.is_waited_for(**key)
                    && self.state.rows.get(key).is_none_or(|stored| {
                        stored.stamp != entry.stamp
                            || stored.written.timestamp.max(entry.version.timestamp()).0 <= settled
                    })
            })
            .map(|(key, _)| *key)
            .collect();
        for key in forgettable {
            self.state.entries.remove(&key);
        }
    }

    /// Forgets the oldest deletes if there are more than the limit.
    pub(super) fn bound_deaths(&mut self, limit: usize) {
        while self.state.deaths.len() > limit {
            let oldest = self.state.deaths.iter().map(|(key, death)| (*death, *key)).min();
            let Some((death, key)) = oldest else { return };
            self.state.deaths.remove(&key);
            self.state.forgotten = self.state.forgotten.max(death.version.timestamp.0);
        }
    }
}

/// Up to here everything of other nodes is applied.
pub(super) fn settled(state: &State, here: NodeId) -> i64 {
    let others = state
        .heard
        .iter()
        .enumerate()
        .filter(|(place, _)| *place != place_of(here));
    others.map(|(_, heard)| *heard).min().unwrap_or(i64::MIN)
}

/// A version to compare with: an unknown one is older than all that can arrive, and newer than what has been waiting
/// for it.
pub(super) fn ranked(row: RowVersion) -> Version {
    match row {
        RowVersion::Known(version) => version,
        RowVersion::NotAfter(bound) => version(bound.0, NodeId::MAX),
    }
}
