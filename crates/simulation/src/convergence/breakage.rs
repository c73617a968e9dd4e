//! Rules broken on purpose, to prove that histories find it out.

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// Nothing.
    None,
    /// Of two versions with equal times the one that is there wins, on each node.
    TieByNode,
    /// Deletes are not remembered.
    ForgottenDeletes,
    /// A row whose version is no longer known counts as the newest.
    FrozenIsNewest,
    /// `ha.row_versions` is not consulted.
    NoRowVersions,
    /// A column that came unchanged is taken from whatever row is there.
    UnchangedFromAnywhere,
    /// Every change counts in the life of the row that is here.
    OneLife,
    /// A repeated transaction is applied again.
    AppliedTwice,
    /// The row that comes first keeps a unique value.
    FirstKeepsUnique,
    /// Clocks may run behind what is applied.
    NoClockFloor,
    /// NULL is nothing special: a sum is always a number.
    NoNull,
    /// A change that loses is not merged.
    LosersNotMerged,
    /// A TRUNCATE empties the table, newer rows included.
    TruncateTakesAll,
    /// A writer's knowledge of deletes is forgotten as early as in tables without merge columns.
    ForgetsBeforeAcknowledged,
    /// A row that was asked for does not raise the clock floor.
    AnswerBelowFloor,
    /// A writer does not tell what it had asked for.
    AnswerNotTold,
    /// Versions are not compared: the last to come wins.
    LastToCome,
}

impl Breakage {
    /// All that are broken.
    pub const ALL: [Breakage; 16] = [
        Breakage::TieByNode,
        Breakage::ForgottenDeletes,
        Breakage::FrozenIsNewest,
        Breakage::NoRowVersions,
        Breakage::UnchangedFromAnywhere,
        Breakage::OneLife,
        Breakage::AppliedTwice,
        Breakage::FirstKeepsUnique,
        Breakage::NoClockFloor,
        Breakage::NoNull,
        Breakage::LosersNotMerged,
        Breakage::TruncateTakesAll,
        Breakage::ForgetsBeforeAcknowledged,
        Breakage::AnswerBelowFloor,
        Breakage::AnswerNotTold,
        Breakage::LastToCome,
    ];
}
