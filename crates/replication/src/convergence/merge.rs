//! Columns that are merged.

use super::{Change, Kind, Plan};

/// How a column's concurrent changes become one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum MergeRule {
    /// The newest change's value.
    #[default]
    LastUpdate,
    /// Differences are added up; an insert adds its value.
    Delta,
    /// The greatest.
    Max,
    /// The least.
    Min,
}

impl MergeRule {
    /// All of them.
    pub const ALL: [MergeRule; 4] = [
        MergeRule::LastUpdate,
        MergeRule::Delta,
        MergeRule::Max,
        MergeRule::Min,
    ];

    /// The name, as in `ha.column_set_merge`.
    pub fn as_str(self) -> &'static str {
        match self {
            MergeRule::LastUpdate => "last_update",
            MergeRule::Delta => "delta",
            MergeRule::Max => "max",
            MergeRule::Min => "min",
        }
    }

    /// The rule of this name.
    pub fn from_name(name: &str) -> Option<MergeRule> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == name)
    }
}

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The change's.
    Remote,
    /// The local row's.
    Local,
}

/// How to make one column's new value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// The remote value; the local one if it came unchanged.
    Remote,
    /// The local value.
    Local,
    /// A sum, in which NULL counts as 0: the local value if `local`, plus the remote new value, minus the remote old
    /// value if `minus_old`. What to show for 0 is [`shown_sum`]'s matter.
    Sum {
        /// Add the local value.
        local: bool,
        /// Subtract the value before the remote change.
        minus_old: bool,
    },
    /// The greater of both; NULL is no value.
    Greater,
    /// The lesser of both; NULL is no value.
    Lesser,
}

impl Plan {
    /// How to make the value of a column with this rule.
    pub fn take(&self, change: &Change, rule: MergeRule) -> Take {
        let local = self.merge_local;
        match (rule, self.plain) {
            (MergeRule::LastUpdate, Whose::Local) => Take::Local,
            (MergeRule::LastUpdate, Whose::Remote) => Take::Remote,
            (MergeRule::Delta, _) => Take::Sum {
                local,
                minus_old: change.kind == Kind::Update,
            },
            (MergeRule::Max, _) if local => Take::Greater,
            (MergeRule::Min, _) if local => Take::Lesser,
            (MergeRule::Max | MergeRule::Min, _) => Take::Remote,
        }
    }
}

/// Shows a sum: 0 is NULL where the newest version of the row has NULL there, every other sum is a number.
///
/// `newest_is_null` is the remote new value's where the plan takes the remote plain columns. Else it is what
/// `ha.row_versions` says, or without an entry whether the local value is NULL. It must be kept there if it is true
/// and the sum is not 0.
pub fn shown_sum<N>(sum: N, is_zero: bool, newest_is_null: bool) -> Option<N> {
    (!(is_zero && newest_is_null)).then_some(sum)
}

/// The greater of two values, where NULL is no value.
pub fn greater<N: Ord>(one: Option<N>, other: Option<N>) -> Option<N> {
    one.max(other)
}

/// The lesser of two values, where NULL is no value.
pub fn lesser<N: Ord>(one: Option<N>, other: Option<N>) -> Option<N> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
