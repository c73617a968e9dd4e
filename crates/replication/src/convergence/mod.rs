//! How one remote change meets one key of a local table, so that all nodes end alike whatever the order of arrival.
//!
//! [`resolve`] is total and looks at nothing but its arguments: the change, what is known of its key here, the table's
//! rules, and who had seen what. What it may assume, and what it promises, is in `docs/convergence.md`; in short:
//!
//! - changes of one origin come in its order, each once (a repeated one is stopped by its commit position);
//! - a writer's version is greater than every version that its node had applied (the clock floor);
//! - a table's TRUNCATE counts as a delete of each of its keys, at the TRUNCATE's version;
//! - a changed key is two changes: [`Kind::MoveAway`] from the old one, then [`Kind::MoveHere`] to the new one.
//!
//! *Tables without merge columns*: the newest change of a key wins, deletes included.
//!
//! *Tables with merge columns*: a delete ends a **life** of the row, and counts begin anew in the next one. Each change
//! tells the newest delete of its key that its writer knew ([`Change::after`]), so that everybody knows the life which
//! it belongs to; a later life replaces an earlier one, and within a life plain columns are the newest change's and
//! merge columns are merged.

mod history;
mod merge;
mod place;
mod resolver;
mod rule;
#[cfg(test)]
mod tests;

use pg_ha_model::PgTimestamp;

use crate::conflict::{Conflict, ConflictType, Version};

pub use history::SeenHistory;
pub use merge::{MergeRule, Take, Whose, greater, lesser, shown_sum};
pub use place::{Placement, place, report};
pub use resolver::{Resolver, Resolvers};
pub use rule::resolve;

/// A delete of a key, as it is remembered: when and by whom, and which delete of that key in its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Death {
    /// The version of the transaction that deleted.
    pub version: Version,
    /// How many deletes of this key came before it in the same transaction, mostly 0.
    pub step: u32,
}

/// What a change does to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A new row.
    Insert,
    /// A changed row with the same key.
    Update,
    /// A deleted row.
    Delete,
    /// The old key of a row whose key was changed.
    MoveAway,
    /// The new key of a row whose key was changed.
    MoveHere,
    /// A change whose row the provider no longer has, see [`Change::gone`].
    Gone,
}

impl Kind {
    /// Whether the key has no row afterwards.
    pub fn deletes(self) -> bool {
        matches!(self, Kind::Delete | Kind::MoveAway | Kind::Gone)
    }
}

/// A remote change of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What it does.
    pub kind: Kind,
    /// Its transaction's version.
    pub version: Version,
    /// The version of the plain columns that it brings: `version`, or a later one where the row was asked for after
    /// [`Outcome::NeedRow`].
    pub row_version: RowVersion,
    /// For deletes: how many of this key came before it in its transaction.
    pub step: u32,
    /// The newest delete of the key that its writer knew. Only tables with merge columns need it.
    pub after: Option<Death>,
    /// Deletes up to this time were known to its writer's node, and need not be told in `after`.
    pub settled: PgTimestamp,
    /// Some of its columns are [`crate::codec::Column::Unchanged`].
    pub incomplete: bool,
}

impl Change {
    /// The change with the row that the provider has now, after [`Outcome::NeedRow`], and that row's true version.
    pub fn with_row(self, version: RowVersion) -> Change {
        Change {
            row_version: version,
            incomplete: false,
            ..self
        }
    }

    /// The change when the provider has no row of its key any more, after [`Outcome::NeedRow`]: a delete. It cannot be
    /// left out: its writer's next change tells that it has been seen. `death` is the newest delete that the provider
    /// remembers; without one (in tables without merge columns it may be forgotten already) it is as if the change
    /// itself had deleted, since a later delete is on its way.
    pub fn gone(self, death: Option<Death>, rules: &Rules) -> Change {
        let death = death
            .filter(|death| rules.merges || death.version >= self.version)
            .unwrap_or(Death {
                version: self.version,
                step: self.step,
            });
        Change {
            kind: Kind::Gone,
            version: death.version,
            row_version: RowVersion::Known(death.version),
            step: death.step,
            incomplete: false,
            ..self
        }
    }
}

/// A local row's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowVersion {
    /// The true one: from `ha.row_versions` if it is there, else of the row's xmin.
    Known(Version),
    /// The commit-timestamp store no longer knows it: it is not later than the oldest that the store knows.
    NotAfter(PgTimestamp),
}

impl RowVersion {
    /// The time, or its bound.
    pub fn timestamp(self) -> PgTimestamp {
        match self {
            RowVersion::Known(version) => version.timestamp,
            RowVersion::NotAfter(bound) => bound,
        }
    }
}

/// What is known here of a change's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// The row, if there is one (also one that waits for a unique value, see [`place`]).
    pub row: Option<RowVersion>,
    /// The newest delete of the key or TRUNCATE of the table that is remembered.
    pub death: Option<Death>,
}

/// Who had seen what, and what has been forgotten here.
///
/// The first four decide only what is reported. `saw_row` and `complete` together also prove that a column which came
/// unchanged is the same here as at the writer; each must be false where that is not certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knowledge {
    /// The change's writer had seen the local row's version.
    pub saw_row: bool,
    /// The change's writer had seen the remembered delete.
    pub saw_death: bool,
    /// The writer of the local row's version had seen the change.
    pub row_saw: bool,
    /// The writer of the remembered delete had seen the change.
    pub death_saw: bool,
    /// All that the change's writer had seen is applied here: what its stream told of each origin, and up to
    /// [`Change::row_version`] of what it had asked for, everything of every origin.
    pub complete: bool,
    /// Every change that can still arrive was written by a node that knew all deletes up to this time: the least of what
    /// all origins' streams told as [`Change::settled`], and of what is settled here. Only tables with merge columns need
    /// it, and only up to it they may forget deletes; others may as soon as nothing older can arrive.
    /// [`PgTimestamp::BEGIN`] if that is not known.
    pub acknowledged: PgTimestamp,
    /// Deletes up to this time were forgotten here *before* it was certain that nothing older could still arrive: the
    /// bound on remembered deletes was hit. [`PgTimestamp::BEGIN`] if that never happened.
    pub forgotten: PgTimestamp,
}

/// A table's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// A column has a rule other than `last_update`.
    pub merges: bool,
    /// Who decides each type of conflict.
    pub resolvers: Resolvers,
}

/// What to do with the local table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Insert a row.
    Insert,
    /// Update the local row.
    Update,
    /// Delete the local row.
    Delete,
    /// Nothing.
    Nothing,
}

/// What to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What to write.
    pub write: Write,
    /// Whose plain columns the row has afterwards.
    pub plain: Whose,
    /// Whether the local row's merge columns count; if not, the remote ones start from nothing.
    pub merge_local: bool,
    /// The row's true version afterwards, none without a row. Where it is not the change's own
    /// ([`Change::version`]), it has to stand in `ha.row_versions`.
    pub version: Option<RowVersion>,
    /// A delete to be remembered from now on, in place of what was remembered of the key.
    pub death: Option<Death>,
    /// What to report.
    pub conflict: Option<Conflict>,
}

/// Why a change is not applied and has to be set aside, visibly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is as old as deletes that had to be forgotten, so that nobody here can tell whether its row was deleted.
    BeyondHorizon,
    /// The table's resolver for this type is `error`.
    Resolver(ConflictType),
}

/// The answer to a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Carry this out.
    Do(Plan),
    /// Columns that came unchanged cannot be taken from here. Ask the provider for the row as it is there now (plain
    /// columns and true version) and resolve again: [`Change::with_row`], or [`Change::gone`] if it has none. The clock
    /// floor rises to [`Change::row_version`] then: what is written here from now on has seen the answer.
    NeedRow,
    /// The table's resolver for this type is a function: call it, then [`Resolver::ApplyRemote`] or
    /// [`Resolver::KeepLocal`] take its place.
    Ask(ConflictType),
    /// Set it aside.
    Refuse(Refusal),
}
