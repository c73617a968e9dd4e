//! Rows of different keys that want the same value of another unique (or exclusion) constraint.
//!
//! The rows of a table, each resolved by its own key, are *candidates*. A candidate stands in the table unless a newer
//! one that stands there holds one of its unique values; then it waits, whole and with its version, until that value is
//! free. Every set of candidates has exactly one such outcome (take them from the newest to the oldest), so that nodes
//! which agree about the candidates agree about the table. Changes find a waiting row as they find a standing one.

use std::cmp::Ordering;

use super::Kind;
use crate::conflict::ConflictType;

/// Where a candidate belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// In the table. The holders of its unique values, all older, wait from now on; what they held besides may let
    /// others return.
    Stands,
    /// Aside: a newer row holds one of its unique values. What it held before may let others return.
    Waits,
}

/// Places a candidate among the standing rows that hold one of its unique values. Ranks are (version, key), so that two
/// rows of one transaction have an order too.
///
/// After each row that left the table, or gave up a unique value, the waiting rows that want one of those values are
/// placed again, from the highest rank to the lowest, until nothing moves. That ends: a row that returns moves only
/// rows of lower rank.
pub fn place<R: Ord>(row: &R, holders: impl IntoIterator<Item = R>) -> Placement {
    let beaten = holders
        .into_iter()
        .any(|holder| holder.cmp(row) == Ordering::Greater);
    if beaten {
        Placement::Waits
    } else {
        Placement::Stands
    }
}

/// The type under which a change that met `holders` rows of other keys is reported.
pub fn report(kind: Kind, holders: usize) -> Option<ConflictType> {
    match (holders, kind) {
        (0, _) => None,
        (1, Kind::Insert) => Some(ConflictType::InsertExists),
        (1, _) => Some(ConflictType::UpdateExists),
        _ => Some(ConflictType::MultipleUniqueConflicts),
    }
}
