//! The rule itself.

use std::cmp::Ordering;

use super::{
    Change, Death, Kind, Knowledge, Outcome, Plan, Refusal, Resolver, RowVersion, Rules, Standing, Whose,
    Write,
};
use crate::conflict::{Conflict, ConflictType, Resolution, Version};

/// What a change does to the key, given what is known of it here.
pub fn resolve(change: &Change, standing: &Standing, rules: &Rules, known: &Knowledge) -> Outcome {
    if beyond_horizon(change, standing, rules, known) {
        return Outcome::Refuse(Refusal::BeyondHorizon);
    }
    if change.kind.deletes() {
        return delete(change, standing, rules, known);
    }
    match life(change, standing.death, rules, known) {
        Ordering::Less => Outcome::Do(Plan {
            conflict: concurrent_with_death(known)
                .then(|| conflict(ConflictType::UpdateDeleted, Resolution::Skip)),
            ..nothing(standing)
        }),
        Ordering::Greater => next_life(change, standing, known),
        Ordering::Equal => match standing.row {
            None => missing(change, standing, known),
            Some(row) => present(change, row, rules, known),
        },
    }
}

/// Deletes of this age had to be forgotten, and whether one of them is this key's would have decided.
fn beyond_horizon(change: &Change, standing: &Standing, rules: &Rules, known: &Knowledge) -> bool {
    if change.kind.deletes() {
        return false;
    }
    if rules.merges {
        // A writer that did not know them all may belong to a life that ended.
        let later = |death: &Death| death.version.timestamp > known.forgotten;
        let told = change.after.as_ref().is_some_and(later) || standing.death.as_ref().is_some_and(later);
        return change.settled < known.forgotten && !told;
    }
    let dead = standing
        .death
        .is_some_and(|death| !not_older(change.row_version, RowVersion::Known(death.version)));
    change.version.timestamp <= known.forgotten && standing.row.is_none() && !dead
}

/// The change's life of the row against the one that is known here.
fn life(change: &Change, death: Option<Death>, rules: &Rules, known: &Knowledge) -> Ordering {
    if !rules.merges {
        // Without merge columns the newest wins, whatever came between. A death of the very same version was dealt by
        // the same transaction, before this change.
        return match death {
            Some(death) if !not_older(change.row_version, RowVersion::Known(death.version)) => Ordering::Less,
            _ => Ordering::Equal,
        };
    }
    // What every writer knew tells no lives apart any more; it is forgotten here sooner, there later.
    let told = |death: &Death| death.version.timestamp > known.acknowledged;
    let death = death.filter(told);
    let after = match death {
        Some(death) if death.version.timestamp <= change.settled => change.after.max(Some(death)),
        _ => change.after,
    };
    after.filter(told).cmp(&death)
}

fn delete(change: &Change, standing: &Standing, rules: &Rules, known: &Knowledge) -> Outcome {
    let death = Death {
        version: change.version,
        step: change.step,
    };
    let newest = Some(death) > standing.death;
    let Some(row) = standing.row else {
        let anomaly = match standing.death {
            Some(_) => concurrent_with_death(known),
            None => known.complete && change.version.timestamp > known.forgotten,
        };
        return Outcome::Do(Plan {
            death: newest.then_some(death),
            conflict: (anomaly && change.kind != Kind::Gone)
                .then(|| conflict(ConflictType::DeleteMissing, Resolution::Skip)),
            ..nothing(standing)
        });
    };
    let wins = if rules.merges {
        newest
    } else {
        not_older(RowVersion::Known(change.version), row)
    };
    match decided(
        ConflictType::DeleteOriginDiffers,
        wins,
        change.version,
        row,
        rules,
        known,
    ) {
        Verdict::Ask(kind) => Outcome::Ask(kind),
        Verdict::Refuse(kind) => Outcome::Refuse(Refusal::Resolver(kind)),
        Verdict::Wins(conflict) => Outcome::Do(Plan {
            write: Write::Delete,
            plain: Whose::Remote,
            merge_local: false,
            version: None,
            death: newest.then_some(death),
            conflict,
        }),
        Verdict::Loses(conflict) | Verdict::Ignored(conflict) => Outcome::Do(Plan {
            conflict,
            ..nothing(standing)
        }),
    }
}

/// The writer knew of a delete that has not arrived here yet: the local row's life is over.
fn next_life(change: &Change, standing: &Standing, known: &Knowledge) -> Outcome {
    if change.incomplete {
        return Outcome::NeedRow;
    }
    // The local row may be of a later life still, brought by an answer: then its writer had seen this.
    let lost = matches!(standing.row, Some(RowVersion::Known(_))) && !known.saw_row && !known.row_saw;
    Outcome::Do(Plan {
        write: match standing.row {
            Some(_) => Write::Update,
            None => Write::Insert,
        },
        plain: Whose::Remote,
        merge_local: false,
        version: Some(change.row_version),
        death: change.after,
        conflict: lost.then(|| conflict(meets(change.kind), Resolution::ApplyRemote)),
    })
}

fn missing(change: &Change, standing: &Standing, known: &Knowledge) -> Outcome {
    if change.incomplete {
        return Outcome::NeedRow;
    }
    let report = match standing.death {
        Some(_) => concurrent_with_death(known).then_some(ConflictType::UpdateDeleted),
        None => (change.kind == Kind::Update && known.complete).then_some(ConflictType::UpdateMissing),
    };
    Outcome::Do(Plan {
        write: Write::Insert,
        plain: Whose::Remote,
        merge_local: false,
        version: Some(change.row_version),
        death: None,
        conflict: report.map(|kind| conflict(kind, Resolution::ApplyRemote)),
    })
}

fn present(change: &Change, row: RowVersion, rules: &Rules, known: &Knowledge) -> Outcome {
    let wins = not_older(change.row_version, row);
    let verdict = decided(meets(change.kind), wins, change.version, row, rules, known);
    match verdict {
        Verdict::Ask(kind) => Outcome::Ask(kind),
        Verdict::Refuse(kind) => Outcome::Refuse(Refusal::Resolver(kind)),
        Verdict::Wins(_) if change.incomplete && !same_before(change, row, known) => Outcome::NeedRow,
        Verdict::Wins(conflict) => Outcome::Do(Plan {
            write: Write::Update,
            plain: Whose::Remote,
            merge_local: true,
            version: Some(change.row_version),
            death: None,
            conflict: conflict.map(|conflict| merged(conflict, rules)),
        }),
        Verdict::Loses(conflict) if rules.merges => Outcome::Do(Plan {
            write: Write::Update,
            plain: Whose::Local,
            merge_local: true,
            version: Some(row),
            death: None,
            conflict: conflict.map(|conflict| merged(conflict, rules)),
        }),
        Verdict::Loses(conflict) | Verdict::Ignored(conflict) => Outcome::Do(Plan {
            write: Write::Nothing,
            plain: Whose::Local,
            merge_local: true,
            version: Some(row),
            death: None,
            conflict,
        }),
    }
}

/// Whether the columns that came unchanged are the same here as at the writer: the local row's version was seen by the
/// writer, and all that the writer had seen is here, so that the newest version of either side is the other's too.
fn same_before(change: &Change, row: RowVersion, known: &Knowledge) -> bool {
    // The row that a changed key brings came from another key.
    change.kind == Kind::Update
        && (row == RowVersion::Known(change.version) || known.saw_row && known.complete)
}

/// A change that equals the row's version continues it: it is a later step of the same transaction.
fn not_older(change: RowVersion, row: RowVersion) -> bool {
    match (change, row) {
        (RowVersion::Known(change), RowVersion::Known(row)) => change >= row,
        (RowVersion::Known(change), RowVersion::NotAfter(bound)) => change.timestamp > bound,
        // The provider had everything up to its bound, and this was the newest of it.
        (RowVersion::NotAfter(bound), row) => row.timestamp() <= bound,
    }
}

enum Verdict {
    Wins(Option<Conflict>),
    Loses(Option<Conflict>),
    /// Loses, and is not merged.
    Ignored(Option<Conflict>),
    Ask(ConflictType),
    Refuse(ConflictType),
}

/// Lets the table's resolver decide where the versions are concurrent.
fn decided(
    kind: ConflictType,
    wins: bool,
    change: Version,
    row: RowVersion,
    rules: &Rules,
    known: &Knowledge,
) -> Verdict {
    let continues = row == RowVersion::Known(change);
    // A writer that had seen the row has a newer version, unless its clock betrayed it: that is worth a report.
    // What is too old to have a version is also too old to be concurrent with what wins over it.
    let settled = matches!(row, RowVersion::NotAfter(_));
    let in_turn = continues || known.row_saw || wins && (known.saw_row || settled);
    if in_turn {
        return if wins {
            Verdict::Wins(None)
        } else {
            Verdict::Loses(None)
        };
    }
    let won = Verdict::Wins(Some(conflict(kind, Resolution::ApplyRemote)));
    let lost = Verdict::Loses(Some(conflict(kind, Resolution::KeepLocal)));
    match rules.resolvers.of(kind) {
        Resolver::LastUpdateWins if wins => won,
        Resolver::LastUpdateWins => lost,
        Resolver::FirstUpdateWins if wins && !known.saw_row => lost,
        Resolver::FirstUpdateWins | Resolver::ApplyRemote => won,
        Resolver::KeepLocal => lost,
        Resolver::Skip => Verdict::Ignored(Some(conflict(kind, Resolution::Skip))),
        Resolver::Error => Verdict::Refuse(kind),
        Resolver::Function => Verdict::Ask(kind),
    }
}

fn concurrent_with_death(known: &Knowledge) -> bool {
    !known.saw_death && !known.death_saw
}

fn meets(kind: Kind) -> ConflictType {
    match kind {
        Kind::Insert => ConflictType::InsertExists,
        Kind::MoveHere => ConflictType::UpdateExists,
        Kind::Update => ConflictType::UpdateOriginDiffers,
        Kind::Delete | Kind::MoveAway | Kind::Gone => ConflictType::DeleteOriginDiffers,
    }
}

fn conflict(kind: ConflictType, resolution: Resolution) -> Conflict {
    Conflict { kind, resolution }
}

fn merged(conflict: Conflict, rules: &Rules) -> Conflict {
    if rules.merges {
        Conflict {
            resolution: Resolution::Merge,
            ..conflict
        }
    } else {
        conflict
    }
}

fn nothing(standing: &Standing) -> Plan {
    Plan {
        write: Write::Nothing,
        plain: Whose::Local,
        merge_local: true,
        version: standing.row,
        death: None,
        conflict: None,
    }
}
