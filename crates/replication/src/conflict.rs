//! Who wins when two groups changed the same row.
//!
//! Every row version has a place in one total order, (commit timestamp, origin). The decision compares those pairs and
//! nothing else, above all nothing about the server that decides: that is what makes all of them decide alike.

use std::collections::HashMap;

use pg_ha_model::{NodeId, PgTimestamp};

/// Which version of a row: when it was committed, and in which group first. The later one wins; of two with equal
/// timestamps the one of the higher origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// When its transaction committed at its origin.
    pub timestamp: PgTimestamp,
    /// The group in which it was first committed.
    pub origin: NodeId,
}

/// A kind of conflict, by PostgreSQL 18's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConflictType {
    /// An insert of a row that exists.
    InsertExists,
    /// An update of a row that another origin changed last.
    UpdateOriginDiffers,
    /// An update to a key that another row has.
    UpdateExists,
    /// An update of a row that does not exist.
    UpdateMissing,
    /// An update of a row that was deleted concurrently.
    UpdateDeleted,
    /// A delete of a row that another origin changed last.
    DeleteOriginDiffers,
    /// A delete of a row that does not exist.
    DeleteMissing,
    /// A new row that meets several existing rows in several unique indexes.
    MultipleUniqueConflicts,
}

impl ConflictType {
    /// All of them.
    pub const ALL: [ConflictType; 8] = [
        ConflictType::InsertExists,
        ConflictType::UpdateOriginDiffers,
        ConflictType::UpdateExists,
        ConflictType::UpdateMissing,
        ConflictType::UpdateDeleted,
        ConflictType::DeleteOriginDiffers,
        ConflictType::DeleteMissing,
        ConflictType::MultipleUniqueConflicts,
    ];

    /// The name, as in `ha.conflicts` and in PostgreSQL's log.
    pub fn as_str(self) -> &'static str {
        match self {
            ConflictType::InsertExists => "insert_exists",
            ConflictType::UpdateOriginDiffers => "update_origin_differs",
            ConflictType::UpdateExists => "update_exists",
            ConflictType::UpdateMissing => "update_missing",
            ConflictType::UpdateDeleted => "update_deleted",
            ConflictType::DeleteOriginDiffers => "delete_origin_differs",
            ConflictType::DeleteMissing => "delete_missing",
            ConflictType::MultipleUniqueConflicts => "multiple_unique_conflicts",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<ConflictType> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// What a remote change wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Insert a row.
    Insert,
    /// Update a row.
    Update,
    /// Delete a row.
    Delete,
}

/// What stands locally where a remote change wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// No such row.
    Missing,
    /// A row.
    Present(LocalRow),
    /// A row that an earlier change of the *same* remote transaction wrote: its version is the change's own, and the
    /// change is its continuation, not its duplicate.
    SameTransaction,
}

/// A local row, as far as it matters for the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRow {
    /// Its true version.
    pub version: Version,
}

/// What to do with the local table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Insert the remote row.
    Insert,
    /// Update the local row to the remote one.
    Update,
    /// Delete the local row.
    Delete,
    /// Leave everything as it is.
    Skip,
}

/// How a conflict was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The remote change won.
    ApplyRemote,
    /// The local row won.
    KeepLocal,
    /// Both counted: merge columns were merged, plain columns are the newer version's.
    Merge,
    /// There was nothing to apply the change to.
    Skip,
}

impl Resolution {
    /// The name, as in `ha.conflicts`.
    pub fn as_str(self) -> &'static str {
        match self {
            Resolution::ApplyRemote => "apply_remote",
            Resolution::KeepLocal => "keep_local",
            Resolution::Merge => "merge",
            Resolution::Skip => "skip",
        }
    }
}

/// A conflict and how it was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// Its kind.
    pub kind: ConflictType,
    /// How it was settled.
    pub resolution: Resolution,
}

/// What to do with a remote change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What to do with the local table.
    pub action: Action,
    /// The conflict, if there was one.
    pub conflict: Option<Conflict>,
}

/// What a remote writer had before its eyes: how far its node had applied each origin.
///
/// A change of a row whose local version its writer had seen is no conflict. This decides what is reported, never who
/// wins.
#[derive(Debug, Clone)]
pub struct SeenVersions {
    since: PgTimestamp,
    newest: HashMap<NodeId, PgTimestamp>,
}

impl SeenVersions {
    /// `since`: when the subscription was made; what is older counts as seen.
    pub fn new(since: PgTimestamp) -> SeenVersions {
        SeenVersions {
            since,
            newest: HashMap::new(),
        }
    }

    /// The writer's node has applied an origin's transactions up to the one that committed at `timestamp`.
    pub fn advance(&mut self, origin: NodeId, timestamp: PgTimestamp) {
        let newest = self.newest.entry(origin).or_insert(timestamp);
        *newest = timestamp.max(*newest);
    }

    /// How far each origin had been applied.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, PgTimestamp)> {
        self.newest
            .iter()
            .map(|(origin, timestamp)| (*origin, *timestamp))
    }

    /// Whether the writer had seen this version of a row.
    pub fn covers(&self, version: Version) -> bool {
        version.timestamp < self.since
            || self
                .newest
                .get(&version.origin)
                .is_some_and(|newest| version.timestamp <= *newest)
    }
}

/// Decides what to do with a remote change.
///
/// Changes of one origin come in the order in which it made them, so that a change whose origin wrote the local row
/// continues it: it is applied and is no conflict. (A change that comes twice is stopped before it gets here, by its
/// commit position.) `seen` tells whether the writer had seen a local version.
pub fn decide(
    operation: Operation,
    remote: Version,
    local: Local,
    seen: impl Fn(Version) -> bool,
) -> Decision {
    let (apply, differs) = match operation {
        Operation::Insert => (Action::Update, ConflictType::InsertExists),
        Operation::Update => (Action::Update, ConflictType::UpdateOriginDiffers),
        Operation::Delete => (Action::Delete, ConflictType::DeleteOriginDiffers),
    };
    let quiet = |action| Decision {
        action,
        conflict: None,
    };
    let settled = |action, kind, resolution| Decision {
        action,
        conflict: Some(Conflict { kind, resolution }),
    };
    match local {
        Local::Missing => match operation {
            Operation::Insert => quiet(Action::Insert),
            Operation::Update => settled(Action::Skip, ConflictType::UpdateMissing, Resolution::Skip),
            Operation::Delete => settled(Action::Skip, ConflictType::DeleteMissing, Resolution::Skip),
        },
        Local::SameTransaction => quiet(apply),
        Local::Present(row) if row.version.origin == remote.origin => quiet(apply),
        Local::Present(row) if remote > row.version && seen(row.version) => quiet(apply),
        Local::Present(row) if remote > row.version => settled(apply, differs, Resolution::ApplyRemote),
        Local::Present(_) => settled(Action::Skip, differs, Resolution::KeepLocal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(timestamp: i64, origin: u32) -> Version {
        Version {
            timestamp: PgTimestamp(timestamp),
            origin: NodeId::new(origin).unwrap(),
        }
    }

    fn present(timestamp: i64, origin: u32) -> Local {
        Local::Present(LocalRow {
            version: version(timestamp, origin),
        })
    }

    #[test]
    fn every_case() {
        use Action as A;
        use ConflictType as C;
        use Operation::{Delete, Insert, Update};
        use Resolution as R;
        let remote = version(10, 5);
        for (operation, local, action, conflict) in [
            (Insert, Local::Missing, A::Insert, None),
            (
                Insert,
                present(9, 6),
                A::Update,
                Some((C::InsertExists, R::ApplyRemote)),
            ),
            (
                Insert,
                present(11, 4),
                A::Skip,
                Some((C::InsertExists, R::KeepLocal)),
            ),
            (
                Insert,
                present(10, 4),
                A::Update,
                Some((C::InsertExists, R::ApplyRemote)),
            ),
            (
                Insert,
                present(10, 6),
                A::Skip,
                Some((C::InsertExists, R::KeepLocal)),
            ),
            (Insert, present(9, 5), A::Update, None),
            (Insert, present(10, 5), A::Update, None),
            (Insert, Local::SameTransaction, A::Update, None),
            (Update, Local::Missing, A::Skip, Some((C::UpdateMissing, R::Skip))),
            (
                Update,
                present(9, 6),
                A::Update,
                Some((C::UpdateOriginDiffers, R::ApplyRemote)),
            ),
            (
                Update,
                present(11, 4),
                A::Skip,
                Some((C::UpdateOriginDiffers, R::KeepLocal)),
            ),
            (Update, present(9, 5), A::Update, None),
            (Update, present(10, 5), A::Update, None),
            (Update, Local::SameTransaction, A::Update, None),
            (Delete, Local::Missing, A::Skip, Some((C::DeleteMissing, R::Skip))),
            (
                Delete,
                present(9, 6),
                A::Delete,
                Some((C::DeleteOriginDiffers, R::ApplyRemote)),
            ),
            (
                Delete,
                present(11, 4),
                A::Skip,
                Some((C::DeleteOriginDiffers, R::KeepLocal)),
            ),
            (Delete, present(9, 5), A::Delete, None),
            (Delete, present(10, 5), A::Delete, None),
            (Delete, Local::SameTransaction, A::Delete, None),
        ] {
            let conflict = conflict.map(|(kind, resolution)| Conflict { kind, resolution });
            assert_eq!(
                decide(operation, remote, local, |_| false),
                Decision { action, conflict },
                "{operation:?} on {local:?}"
            );
        }
    }

    #[test]
    fn what_was_seen_is_no_conflict_but_decides_nothing() {
        let remote = version(10, 5);
        let quiet = |action| Decision {
            action,
            conflict: None,
        };
        assert_eq!(
            decide(Operation::Update, remote, present(9, 6), |_| true),
            quiet(Action::Update)
        );
        assert_eq!(
            decide(Operation::Delete, remote, present(10, 4), |_| true),
            quiet(Action::Delete)
        );
        // A clock that stepped back made the later change the older version: it still loses, and that is reported.
        let kept = Conflict {
            kind: ConflictType::UpdateOriginDiffers,
            resolution: Resolution::KeepLocal,
        };
        assert_eq!(
            decide(Operation::Update, remote, present(11, 4), |_| true),
            Decision {
                action: Action::Skip,
                conflict: Some(kept)
            }
        );
    }

    #[test]
    fn seen_is_what_is_older_than_the_subscription_or_was_applied_by_the_writer() {
        let mut seen = SeenVersions::new(PgTimestamp(100));
        assert!(seen.covers(version(99, 3)));
        assert!(!seen.covers(version(100, 3)));
        seen.advance(version(0, 3).origin, PgTimestamp(150));
        seen.advance(version(0, 3).origin, PgTimestamp(120));
        assert!(seen.covers(version(150, 3)));
        assert!(!seen.covers(version(151, 3)));
        assert!(!seen.covers(version(150, 4)));
    }

    #[test]
    fn names_are_postgresql_18s() {
        for kind in ConflictType::ALL {
            assert_eq!(ConflictType::from_name(kind.as_str()), Some(kind));
        }
        assert_eq!(ConflictType::from_name("insert"), None);
    }

    fn versions() -> impl Strategy<Value = Version> {
        // Few values, so that ties are common.
        (0..6i64, 1..5u32).prop_map(|(timestamp, origin)| version(timestamp, origin))
    }

    fn apply_all(arrivals: &[Version]) -> Version {
        arrivals.iter().fold(version(i64::MIN, 1023), |row, remote| {
            match decide(
                Operation::Update,
                *remote,
                Local::Present(LocalRow { version: row }),
                |_| false,
            )
            .action
            {
                Action::Update => *remote,
                _ => row,
            }
        })
    }

    /// An order of arrival that keeps each origin's own order: `choices` say whose change comes next.
    fn interleave(sorted: &[Version], choices: &[prop::sample::Index]) -> Vec<Version> {
        let mut left = sorted.to_vec();
        let mut arrivals = Vec::new();
        let mut choices = choices.iter().cycle();
        while !left.is_empty() {
            let origin = left[choices.next().unwrap().index(left.len())].origin;
            let first = left.iter().position(|version| version.origin == origin).unwrap();
            arrivals.push(left.remove(first));
        }
        arrivals
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn versions_are_totally_ordered(a in versions(), b in versions(), c in versions()) {
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a == b, a.cmp(&b).is_eq());
            prop_assert!(!(a <= b && b <= c) || a <= c);
            prop_assert!(a <= b || b <= a);
        }

        #[test]
        fn the_order_of_arrival_does_not_matter(
            mut set in prop::collection::vec(versions(), 1..12),
            choices in prop::collection::vec(any::<prop::sample::Index>(), 12),
            others in prop::collection::vec(any::<prop::sample::Index>(), 12),
        ) {
            set.sort();
            let newest = set[set.len() - 1];
            prop_assert_eq!(apply_all(&interleave(&set, &choices)), newest);
            prop_assert_eq!(apply_all(&interleave(&set, &others)), newest);
        }

        #[test]
        fn a_pair_of_versions_has_one_winner(
            a in versions(),
            timestamp in 0..6i64,
            further in 1..4u32,
            operation in prop::sample::select(vec![Operation::Insert, Operation::Update, Operation::Delete]),
        ) {
            let b = version(timestamp, (u32::from(a.origin.get()) - 1 + further) % 4 + 1);
            let here = decide(operation, a, Local::Present(LocalRow { version: b }), |_| false);
            let there = decide(operation, b, Local::Present(LocalRow { version: a }), |_| false);
            prop_assert_ne!(here.action == Action::Skip, there.action == Action::Skip);
        }
    }
}
