//! Where transactions in progress wait for their commit: which of them are kept in memory, which on disk, and what of
//! them was rolled back.
//!
//! The bytes themselves are the caller's. It asks [`Ledger::next`] where to put a chunk, does what the answer says and
//! tells the ledger, until the chunk has its place. Memory and disk are bounded; a transaction that has gone to disk
//! stays there, so that its chunks keep their order.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

/// How much transactions in progress may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In memory.
    pub memory: u64,
    /// On disk.
    pub disk: u64,
}

/// What to do about a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Keep it in memory, then call [`Ledger::kept`].
    Keep,
    /// Append it to its transaction's file, then call [`Ledger::written`].
    Write,
    /// First move what memory has of this transaction to its file, call [`Ledger::moved`], and ask again.
    Move(u32),
}

/// A chunk for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "transactions in progress on the provider need more than {limit} bytes on this node's disk ({open} of them are open)"
)]
pub struct Full {
    /// The limit.
    pub limit: u64,
    /// How many transactions are open.
    pub open: usize,
}

/// A message about a transaction that never began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("change stream: the end of transaction {0}, of which nothing has come")]
pub struct Unknown(pub u32);

/// What one session keeps of transactions in progress.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    open: HashMap<u32, Account>,
    memory: u64,
    disk: u64,
}

/// One transaction.
#[derive(Debug, Clone, Default)]
struct Account {
    memory: u64,
    disk: u64,
    on_disk: bool,
    aborted: HashSet<u32>,
}

/// What a set takes for one subtransaction, in bytes, about.
const PER_ABORTED: u64 = 8;

impl Ledger {
    /// With nothing in it.
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// What to do next to place a chunk of so many bytes.
    pub fn next(&self, xid: u32, bytes: u64, limits: Limits) -> Result<Step, Full> {
        let full = |needed: u64| {
            let limit = limits.disk;
            (needed > limit).then_some(Full {
                limit,
                open: self.open.len(),
            })
        };
        if self.open.get(&xid).is_some_and(|account| account.on_disk) {
            return full(self.disk + bytes).map_or(Ok(Step::Write), Err);
        }
        if self.memory + bytes <= limits.memory {
            return Ok(Step::Keep);
        }
        // The largest makes the most room with the fewest files. The chunk counts for its own transaction.
        let size = |id: u32, account: &Account| account.memory + if id == xid { bytes } else { 0 };
        let largest = self
            .open
            .iter()
            .filter(|(_, account)| !account.on_disk)
            .map(|(id, account)| (size(*id, account), account.memory, *id))
            .max();
        let (victim, moved) = match largest {
            Some((total, memory, id)) if total >= bytes => (id, memory),
            // A first chunk that does not fit.
            _ => (xid, 0),
        };
        let needed = self.disk + moved + if victim == xid { bytes } else { 0 };
        full(needed).map_or(Ok(Step::Move(victim)), Err)
    }

    /// The chunk is in memory.
    pub fn kept(&mut self, xid: u32, bytes: u64) {
        self.open.entry(xid).or_default().memory += bytes;
        self.memory += bytes;
    }

    /// The chunk is in its transaction's file.
    pub fn written(&mut self, xid: u32, bytes: u64) {
        self.open.entry(xid).or_default().disk += bytes;
        self.disk += bytes;
    }

    /// What was in memory of a transaction is in its file, and what follows goes there.
    pub fn moved(&mut self, xid: u32) {
        let account = self.open.entry(xid).or_default();
        let kept = account.memory - account.aborted.len() as u64 * PER_ABORTED;
        account.on_disk = true;
        account.disk += kept;
        account.memory -= kept;
        self.memory -= kept;
        self.disk += kept;
    }

    /// A subtransaction was rolled back.
    pub fn aborted(&mut self, xid: u32, subxid: u32) -> Result<(), Unknown> {
        let account = self.open.get_mut(&xid).ok_or(Unknown(xid))?;
        if account.aborted.insert(subxid) {
            account.memory += PER_ABORTED;
            self.memory += PER_ABORTED;
        }
        Ok(())
    }

    /// A transaction has ended: it is forgotten. Returns which of its subtransactions were rolled back.
    pub fn ended(&mut self, xid: u32) -> Result<HashSet<u32>, Unknown> {
        let account = self.open.remove(&xid).ok_or(Unknown(xid))?;
        self.memory -= account.memory;
        self.disk -= account.disk;
        Ok(account.aborted)
    }

    /// Bytes in memory.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Bytes on disk.
    pub fn disk(&self) -> u64 {
        self.disk
    }

    /// How many transactions there are.
    pub fn open(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        memory: 100,
        disk: 1000,
    };

    /// Places a chunk; returns the transactions that were moved on the way, and whether it lies on disk.
    fn place(ledger: &mut Ledger, xid: u32, bytes: u64, limits: Limits) -> Result<(Vec<u32>, bool), Full> {
        let mut moved = Vec::new();
        loop {
            match ledger.next(xid, bytes, limits)? {
                Step::Keep => {
                    ledger.kept(xid, bytes);
                    return Ok((moved, false));
                }
                Step::Write => {
                    ledger.written(xid, bytes);
                    return Ok((moved, true));
                }
                Step::Move(victim) => {
                    ledger.moved(victim);
                    moved.push(victim);
                }
            }
        }
    }

    #[test]
    fn the_largest_goes_to_disk() {
        let mut ledger = Ledger::new();
        assert_eq!(place(&mut ledger, 1, 60, LIMITS), Ok((vec![], false)));
        assert_eq!(place(&mut ledger, 2, 30, LIMITS), Ok((vec![], false)));
        assert_eq!(place(&mut ledger, 2, 20, LIMITS), Ok((vec![1], false)));
        assert_eq!((ledger.memory(), ledger.disk(), ledger.open()), (50, 60, 2));
        assert_eq!(
            place(&mut ledger, 1, 10, LIMITS),
            Ok((vec![], true)),
            "it stays there"
        );
        assert_eq!(
            place(&mut ledger, 3, 101, LIMITS),
            Ok((vec![3], true)),
            "its first chunk"
        );
        assert_eq!((ledger.memory(), ledger.disk()), (50, 171));
        ledger.ended(1).unwrap();
        ledger.ended(3).unwrap();
        assert_eq!((ledger.memory(), ledger.disk(), ledger.open()), (50, 0, 1));
    }

    #[test]
    fn the_disk_has_an_end() {
        let mut ledger = Ledger::new();
        let full = Full { limit: 1000, open: 1 };
        assert!(place(&mut ledger, 1, 1000, LIMITS).is_ok());
        assert_eq!(place(&mut ledger, 1, 1, LIMITS), Err(full));
        assert_eq!(
            place(&mut ledger, 2, 100, LIMITS),
            Ok((vec![], false)),
            "memory has room"
        );
        assert!(place(&mut ledger, 2, 1, LIMITS).is_err());
        assert_eq!((ledger.memory(), ledger.disk()), (100, 1000), "nothing changed");
    }

    #[test]
    fn what_was_rolled_back_is_told_at_the_end() {
        let mut ledger = Ledger::new();
        assert_eq!(ledger.aborted(1, 2), Err(Unknown(1)));
        place(&mut ledger, 1, 10, LIMITS).unwrap();
        ledger.aborted(1, 2).unwrap();
        ledger.aborted(1, 3).unwrap();
        ledger.aborted(1, 3).unwrap();
        assert_eq!(ledger.memory(), 10 + 2 * PER_ABORTED);
        ledger.moved(1);
        assert_eq!((ledger.memory(), ledger.disk()), (2 * PER_ABORTED, 10));
        assert_eq!(ledger.ended(1), Ok(HashSet::from([2, 3])));
        assert_eq!((ledger.memory(), ledger.disk()), (0, 0));
        assert_eq!(ledger.ended(1), Err(Unknown(1)));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Chunk(u32, u64),
        Aborted(u32, u32),
        Ended(u32),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            6 => (0..5u32, 0..60u64).prop_map(|(xid, bytes)| Event::Chunk(xid, bytes)),
            2 => (0..5u32, 0..9u32).prop_map(|(xid, sub)| Event::Aborted(xid, sub)),
            1 => (0..5u32).prop_map(Event::Ended),
        ];
        prop::collection::vec(event, 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn limits_hold_and_nothing_leaks(events in events()) {
            let limits = Limits { memory: 100, disk: 400 };
            let mut ledger = Ledger::new();
            let mut chunks: HashMap<u32, u64> = HashMap::new();
            for event in events {
                match event {
                    Event::Chunk(xid, bytes) => {
                        if place(&mut ledger, xid, bytes, limits).is_ok() {
                            *chunks.entry(xid).or_default() += bytes;
                        }
                    }
                    Event::Aborted(xid, sub) => {
                        prop_assert_eq!(ledger.aborted(xid, sub).is_ok(), ledger.open.contains_key(&xid));
                    }
                    Event::Ended(xid) => {
                        let known = ledger.ended(xid).is_ok();
                        prop_assert!(known || !chunks.contains_key(&xid));
                        chunks.remove(&xid);
                    }
                }
                let aborted: u64 = ledger.open.values().map(|account| account.aborted.len() as u64 * PER_ABORTED).sum();
                let held = ledger.memory() - aborted + ledger.disk();
                prop_assert_eq!(held, chunks.values().sum::<u64>());
                prop_assert!(ledger.memory() <= limits.memory + aborted);
                prop_assert!(ledger.disk() <= limits.disk);
            }
            for xid in 0..5 {
                let _ = ledger.ended(xid);
            }
            prop_assert_eq!((ledger.memory(), ledger.disk(), ledger.open()), (0, 0, 0));
        }
    }
}
