//! Each change once, whichever way brings it first.
//!
//! A transaction of one origin may come to a node along several ways: from the origin itself, and forwarded by others.
//! The ways need not bring the same of it: sets, column lists and filters differ, a forwarder may have kept newer rows
//! of its own, its triggers may have added some. So a position says too little. A node that has several ways to an
//! origin notes which changes it has applied, by a digest of each, and leaves out exactly those when the transaction
//! comes again. What was not noted is applied, however late it is; a change is never left out on a guess.
//!
//! What comes late may have been overtaken: a later transaction of the same origin that changed the same row may be here
//! already. [`Verdict::Late`] asks for a look at the row's version first, which is a total order of one origin's
//! changes of a row.

use std::collections::{HashMap, HashSet};

use crate::codec::{Column, OldKind, Tuple};
use crate::conflict::{Action, Decision, Local, Operation, Version};

/// The most changes of one transaction that are noted; those beyond it are applied again when they come again, late.
/// 8 bytes each.
pub const MAX_NOTED: usize = 1 << 22;

/// What happens to a row, or to a whole table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A row is inserted, updated or deleted.
    Row(Operation),
    /// A table is emptied.
    Truncate,
}

/// Recognises one change: the same on all ways that bring it, whatever else they bring of the row.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// Of the table's name, the operation and the row's key, or of the whole row where there is no key.
    pub digest: u64,
    /// The table's number in the stream.
    pub relation: u32,
    /// The table has a key, by which rows are found again.
    pub keyed: bool,
    /// What happens.
    pub kind: Kind,
}

/// What to do with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Apply it as if there were no other way.
    Apply,
    /// Apply it unless [`overtaken`]: it has not come before, but later ones of its origin may have.
    Late,
    /// Apply it unless [`overtaken`], without a word: it has come before, and has to be made good.
    Again,
    /// A delete that has been applied: if the row is here in an older version, delete it, without a word.
    Remains,
    /// It has been applied.
    Skip,
}

/// One transaction on its way in.
#[derive(Debug, Default)]
pub struct Arrival {
    late: bool,
    /// How often each change was applied when the transaction came before.
    earlier: HashMap<u64, u32>,
    /// Tables of which this way brings what others did not: from there on nothing of theirs is left out in this
    /// transaction, since the change that was missing may have undone what follows it.
    mended: HashSet<u32>,
    applied: Vec<u64>,
}

impl Arrival {
    /// A transaction that no other way can have brought yet.
    pub fn first() -> Arrival {
        Arrival::default()
    }

    /// A transaction that came, or may have come, before: `noted` are the digests of what was applied of it.
    pub fn late(noted: impl IntoIterator<Item = u64>) -> Arrival {
        let mut earlier: HashMap<u64, u32> = HashMap::new();
        for digest in noted {
            *earlier.entry(digest).or_default() += 1;
        }
        Arrival {
            late: true,
            earlier,
            ..Arrival::default()
        }
    }

    /// Whether it may have come before.
    pub fn is_late(&self) -> bool {
        self.late
    }

    /// The next change.
    pub fn meet(&mut self, change: Change) -> Verdict {
        if !self.late {
            self.note(change.digest);
            return Verdict::Apply;
        }
        let known = self.earlier.get_mut(&change.digest).filter(|count| **count > 0);
        match known {
            Some(count) => {
                *count -= 1;
                let mended = change.keyed && self.mended.contains(&change.relation);
                // An insert of an earlier transaction that only this way brought may have put the row here again.
                let delete = change.keyed && change.kind == Kind::Row(Operation::Delete);
                match (mended, delete) {
                    (true, _) => Verdict::Again,
                    (false, true) => Verdict::Remains,
                    (false, false) => Verdict::Skip,
                }
            }
            None => {
                self.note(change.digest);
                if change.keyed {
                    self.mended.insert(change.relation);
                }
                Verdict::Late
            }
        }
    }

    /// The digests of what was applied now and not before, to be kept with the transaction.
    pub fn applied(&self) -> &[u64] {
        &self.applied
    }

    fn note(&mut self, digest: u64) {
        if self.applied.len() < MAX_NOTED {
            self.applied.push(digest);
        }
    }
}

/// What to do with a change that came late where the row tells that later changes of its origin are here; none: judge it
/// as any.
pub fn overtaken(verdict: Verdict, remote: Version, local: Local) -> Option<Decision> {
    let keep = match (verdict, local) {
        (Verdict::Late | Verdict::Again, Local::Present(row)) => {
            row.version.origin == remote.origin && row.version.timestamp > remote.timestamp
        }
        // What the same transaction wrote, it wrote after the delete.
        (Verdict::Remains, Local::Present(row)) => {
            row.version.origin == remote.origin && row.version.timestamp >= remote.timestamp
        }
        (Verdict::Remains, Local::SameTransaction) | (Verdict::Skip, _) => true,
        _ => false,
    };
    keep.then_some(Decision {
        action: Action::Skip,
        conflict: None,
    })
}

/// A table, as far as digests of its changes go: made once, when the provider describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    table: u64,
    /// Digests of the columns' names, and which columns are the key.
    columns: Vec<(u64, bool)>,
    keyed: bool,
}

impl Shape {
    /// A table of this name with these columns, in the stream's order; true: the column belongs to the key.
    pub fn new<'c>(namespace: &str, name: &str, columns: impl IntoIterator<Item = (&'c str, bool)>) -> Shape {
        let mut table = Digest::new();
        table.value(namespace.as_bytes());
        table.value(name.as_bytes());
        let columns: Vec<(u64, bool)> = columns
            .into_iter()
            .map(|(name, key)| {
                let mut digest = Digest::new();
                digest.value(name.as_bytes());
                (digest.finish(), key)
            })
            .collect();
        Shape {
            table: table.finish(),
            keyed: columns.iter().any(|(_, key)| *key),
            columns,
        }
    }

    /// The digest of the table's name.
    pub fn table(&self) -> u64 {
        self.table
    }

    /// Whether the table has a key.
    pub fn is_keyed(&self) -> bool {
        self.keyed
    }

    /// The digest of a change of a row: of its key, or of all of it where the table has none. In whatever order the
    /// columns come.
    pub fn row(
        &self,
        operation: Operation,
        old: Option<(OldKind, &Tuple<'_>)>,
        new: Option<&Tuple<'_>>,
    ) -> u64 {
        let mut digest = self.begin(match operation {
            Operation::Insert => b'I',
            Operation::Update => b'U',
            Operation::Delete => b'D',
        });
        if let Some((kind, row)) = old {
            digest.number(self.values(kind, row));
        }
        if let Some(row) = new {
            digest.number(self.values(OldKind::Full, row));
        }
        digest.finish()
    }

    /// The digest of the emptied table.
    pub fn truncate(&self) -> u64 {
        self.begin(b'T').finish()
    }

    fn begin(&self, operation: u8) -> Digest {
        let mut digest = Digest::new();
        digest.number(self.table);
        digest.bytes(&[operation]);
        digest
    }

    fn values(&self, kind: OldKind, row: &Tuple<'_>) -> u64 {
        let wanted = |(_, key): &&(u64, bool)| match kind {
            OldKind::Key => *key,
            OldKind::Full => true,
        };
        let columns = self.columns.iter().filter(wanted).zip(row.columns());
        columns
            .filter(|((_, key), _)| *key || !self.keyed)
            .map(|((name, _), value)| {
                let mut digest = Digest::new();
                digest.number(*name);
                match value {
                    Column::Null => digest.bytes(b"n"),
                    Column::Unchanged => digest.bytes(b"u"),
                    // In whatever form they come.
                    Column::Plain(bytes) | Column::Binary(bytes) | Column::Text(bytes) => digest.value(bytes),
                }
                digest.finish()
            })
            .fold(0, u64::wrapping_add)
    }
}

/// FNV-1a with a finalizer. Written down here, since digests are kept on disk and must mean the same in later versions.
struct Digest(u64);

impl Digest {
    fn new() -> Digest {
        Digest(0xcbf2_9ce4_8422_2325)
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn value(&mut self, bytes: &[u8]) {
        self.bytes(b"v");
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(self) -> u64 {
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }
}

#[cfg(test)]
mod tests;
