//! The course of a history.

use pg_ha_replication::conflict::{ConflictType, Resolution};
use pg_ha_replication::convergence::RowVersion;

use super::expect::expect;
use super::node::{self, Node};
use super::{Breakage, Key, Settings, Transaction, node_id, version};
use crate::random::Random;

/// Nodes that write the same table.
#[derive(Debug)]
pub struct World {
    pub(super) settings: Settings,
    pub(super) broken: Breakage,
    pub(super) random: Random,
    pub(super) nodes: Vec<Node>,
    /// What each node has committed: the streams.
    pub(super) logs: Vec<Vec<Transaction>>,
    pub(super) now: i64,
    pub(super) next_value: u32,
    pub(super) conflicts: Vec<(ConflictType, Resolution)>,
    /// Changes that were set aside.
    pub(super) refused: usize,
    /// Rows that were asked for.
    pub(super) asked: usize,
}

/// What a history consisted of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Committed transactions, on all nodes.
    pub transactions: usize,
    /// Reported conflicts.
    pub conflicts: usize,
    /// Changes that were set aside.
    pub refused: usize,
    /// Rows that were asked for.
    pub asked: usize,
    /// Rows that wait at the end, on all nodes.
    pub waiting: usize,
    /// How often each type of conflict was reported, in the order of [`ConflictType::ALL`].
    pub types: [usize; ConflictType::ALL.len()],
}

/// The history of a seed. An error says which nodes ended how.
pub fn run(seed: u64, broken: Breakage) -> Result<Summary, String> {
    let mut random = Random::new(seed);
    let settings = Settings::draw(&mut random);
    let mut world = World::new(settings, random, broken);
    world.play();
    world.arrive_everywhere();
    world
        .check()
        .map_err(|difference| format!("{:#?}\n{difference}", world.settings))?;
    Ok(world.summary())
}

impl World {
    /// Nodes with empty tables.
    pub fn new(settings: Settings, random: Random, broken: Breakage) -> World {
        let nodes = settings.nodes;
        World {
            settings,
            broken,
            random,
            nodes: (0..nodes)
                .map(|place| Node::new(node_id(place), nodes, broken))
                .collect(),
            logs: vec![Vec::new(); nodes],
            now: 1000,
            next_value: 0,
            conflicts: Vec::new(),
            refused: 0,
            asked: 0,
        }
    }

    /// What happened.
    pub fn summary(&self) -> Summary {
        Summary {
            transactions: self.logs.iter().map(Vec::len).sum(),
            conflicts: self.conflicts.len(),
            refused: self.refused,
            asked: self.asked,
            waiting: (self.nodes.iter())
                .map(|node| node.keys().into_iter().filter(|key| node.waits(*key)).count())
                .sum(),
            types: ConflictType::ALL
                .map(|wanted| self.conflicts.iter().filter(|(kind, _)| *kind == wanted).count()),
        }
    }

    /// Lets things happen.
    pub fn play(&mut self) {
        for _ in 0..self.settings.events {
            self.now += self.random.between(0, self.settings.tick);
            let place = self.random.below(self.nodes.len());
            let happens = self.random.below(100);
            if happens < self.settings.crashes {
                self.crash(place);
            } else if happens < self.settings.crashes + self.settings.vacuums {
                let merges = self.settings.merges.is_some();
                if let Some(node) = self.nodes.get_mut(place) {
                    node.vacuum(merges);
                }
            } else {
                self.ordinary(place);
            }
        }
    }

    fn ordinary(&mut self, place: usize) {
        let other = self.random.below(self.nodes.len());
        match self.random.below(10) {
            0..=3 => self.write(place),
            4..=7 => self.deliver(other, place),
            8 => match self.random.below(4) {
                0 => self.repeat(other, place),
                1 => self.heartbeat(other, place),
                2 => self.settle(place),
                _ => {
                    if let Some(node) = self.nodes.get_mut(place) {
                        node.durable = node.state.clone();
                    }
                }
            },
            _ => {
                let error = self.settings.clock_error;
                let jump = self.random.between(-error, error);
                if let Some(node) = self.nodes.get_mut(place) {
                    node.clock_error = jump;
                }
            }
        }
    }

    /// The next transaction of one node arrives at another.
    pub(super) fn deliver(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let progress = self.nodes.get(to).and_then(|node| node.state.progress.get(from));
        if let Some(next) = progress.copied() {
            self.apply(to, from, next);
        }
    }

    /// An earlier transaction arrives once more, by another path or after a restart: its position stops it.
    fn repeat(&mut self, from: usize, to: usize) {
        let progress = self.nodes.get(to).and_then(|node| node.state.progress.get(from));
        if let Some(again) = progress.and_then(|progress| progress.checked_sub(1))
            && from != to
            && self.broken == Breakage::AppliedTwice
        {
            self.apply(to, from, again);
        }
    }

    /// A node that has nothing to send tells how far it is.
    fn heartbeat(&mut self, from: usize, to: usize) {
        let (Some(sender), Some(log)) = (self.nodes.get(from), self.logs.get(from)) else {
            return;
        };
        // Only what a crash cannot take back.
        let floor = sender.durable.floor;
        let settled = node::settled(&sender.durable, sender.id);
        let sent = log.len();
        let Some(receiver) = self.nodes.get_mut(to) else {
            return;
        };
        if from == to || receiver.state.progress.get(from) != Some(&sent) {
            return;
        }
        for (known, value) in [
            (&mut receiver.state.heard, floor),
            (&mut receiver.state.told, settled),
        ] {
            if let Some(known) = known.get_mut(from) {
                *known = value.max(*known);
            }
        }
    }

    /// What was not flushed is lost; the local commits flush what came before them.
    fn crash(&mut self, place: usize) {
        if let Some(node) = self.nodes.get_mut(place) {
            node.state = node.durable.clone();
        }
    }

    fn settle(&mut self, place: usize) {
        if let Some(node) = self.nodes.get_mut(place) {
            node.settle(version(node.state.floor, node.id));
        }
    }

    /// Whether a node has applied everything that anybody has committed.
    pub(super) fn has_everything(&self, place: usize) -> bool {
        self.nodes.get(place).is_some_and(|node| {
            let lengths = self.logs.iter().map(Vec::len);
            node.state.progress.iter().copied().eq(lengths)
        })
    }

    /// Everything arrives, still in random order.
    pub fn arrive_everywhere(&mut self) {
        while let Some(place) = (0..self.nodes.len()).find(|place| !self.has_everything(*place)) {
            let from = self.random.below(self.nodes.len());
            let to = if self.random.percent(50) {
                place
            } else {
                self.random.below(self.nodes.len())
            };
            self.deliver(from, to);
        }
        for place in 0..self.nodes.len() {
            self.settle(place);
        }
    }

    /// Compares all nodes with what is expected.
    pub fn check(&self) -> Result<(), String> {
        if self.refused > 0 {
            // What was set aside is visible, and the nodes differ by it.
            return match self.settings.death_limit {
                Some(_) => Ok(()),
                None => Err(format!("{} changes were set aside", self.refused)),
            };
        }
        if self.settings.in_turn && !self.conflicts.is_empty() {
            return Err(format!(
                "nothing was concurrent, but reported: {:?}",
                self.conflicts
            ));
        }
        let expected = expect(&self.logs, &self.settings);
        for node in &self.nodes {
            for key in 0..self.settings.keys as Key {
                let (place, wanted) = match (expected.visible.get(&key), expected.waiting.get(&key)) {
                    (Some(wanted), _) => (false, Some(wanted)),
                    (None, Some(wanted)) => (true, Some(wanted)),
                    (None, None) => (false, None),
                };
                let found = node.candidate(key);
                let fits = match (&found, wanted) {
                    (None, None) => true,
                    (Some(found), Some((row, version))) => {
                        // A version that every change to come is newer than may be forgotten.
                        let known = match found.version {
                            RowVersion::Known(known) => {
                                known == *version || version.timestamp.0 <= node.settled()
                            }
                            RowVersion::NotAfter(bound) => version.timestamp <= bound,
                        };
                        found.row == *row && known && node.waits(key) == place
                    }
                    _ => false,
                };
                if !fits {
                    return Err(format!(
                        "node {} has {found:?} at key {key} (waiting: {}), expected {wanted:?} (waiting: {place})",
                        node.id,
                        node.waits(key)
                    ));
                }
            }
        }
        Ok(())
    }
}
