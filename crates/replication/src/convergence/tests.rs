//! The counterexamples that other systems fail, C1 to C14, as far as one key and pure rules can show them; whole
//! histories are `crates/simulation`'s. C11 (a scan that misses a row) and C13 (streamed transactions are resolved at
//! their commit time) are the shell's: what they need here is that the rule is given the truth.

use std::collections::BTreeSet;

use proptest::prelude::*;

use pg_ha_model::NodeId;

use super::*;
use crate::conflict::Resolution;

fn v(timestamp: i64, origin: u32) -> Version {
    Version {
        timestamp: PgTimestamp(timestamp),
        origin: NodeId::new(origin).unwrap(),
    }
}

fn change(kind: Kind, version: Version) -> Change {
    Change {
        kind,
        version,
        row_version: RowVersion::Known(version),
        step: 0,
        after: None,
        settled: PgTimestamp::BEGIN,
        incomplete: false,
    }
}

/// Nobody had seen anything.
const BLIND: Knowledge = Knowledge {
    saw_row: false,
    saw_death: false,
    row_saw: false,
    death_saw: false,
    complete: false,
    acknowledged: PgTimestamp::BEGIN,
    forgotten: PgTimestamp::BEGIN,
};
const PLAIN: Rules = Rules {
    merges: false,
    resolvers: Resolvers::LAST_UPDATE_WINS,
};
const MERGES: Rules = Rules {
    merges: true,
    ..PLAIN
};

fn plan(change: &Change, standing: Standing, rules: Rules, known: Knowledge) -> Plan {
    match resolve(change, &standing, &rules, &known) {
        Outcome::Do(plan) => plan,
        other => panic!("{other:?}"),
    }
}

/// A key on one node: its row's version and value, its counter, and the remembered delete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    standing: Standing,
    value: i64,
    count: i64,
}

/// A change, the value it brings, and by how much it counts.
type Brings = (Change, i64, i64);

fn apply(held: Held, (change, value, count): Brings, rules: Rules) -> Held {
    let plan = plan(&change, held.standing, rules, BLIND);
    let mut now = held;
    if matches!(plan.write, Write::Insert | Write::Update) {
        if rules.merges {
            now.count = count + if plan.merge_local { held.count } else { 0 };
        }
        if plan.plain == Whose::Remote {
            now.value = value;
        }
    }
    if plan.version.is_none() {
        (now.value, now.count) = (0, 0);
    }
    now.standing = Standing {
        row: plan.version,
        death: plan.death.or(held.standing.death),
    };
    now
}

/// The ends that all interleavings of the origins' changes lead to, deaths left aside.
fn ends(changes: &[Brings], rules: Rules) -> BTreeSet<(Option<Version>, i64, i64)> {
    fn go(held: Held, left: &[Brings], rules: Rules, ends: &mut BTreeSet<(Option<Version>, i64, i64)>) {
        if left.is_empty() {
            let version = held.standing.row.map(|row| match row {
                RowVersion::Known(version) => version,
                RowVersion::NotAfter(_) => panic!("unknown"),
            });
            ends.insert((version, held.value, held.count));
        }
        for next in 0..left.len() {
            let origin = left[next].0.version.origin;
            if left[..next]
                .iter()
                .any(|(before, _, _)| before.version.origin == origin)
            {
                continue;
            }
            let mut rest = left.to_vec();
            let brings = rest.remove(next);
            go(apply(held, brings, rules), &rest, rules, ends);
        }
    }
    let mut found = BTreeSet::new();
    go(Held::default(), changes, rules, &mut found);
    found
}

fn one_end(changes: &[Brings], rules: Rules) -> (Option<Version>, i64, i64) {
    let ends = ends(changes, rules);
    assert_eq!(ends.len(), 1, "{ends:?}");
    ends.into_iter().next().unwrap()
}

#[test]
fn c1_equal_timestamps_are_decided_by_the_rows_origin() {
    let (a, b, c) = (v(10, 1), v(10, 2), v(10, 3));
    let updates = [a, b, c].map(|version| {
        let change = change(Kind::Update, version);
        (change, i64::from(version.origin.get()), 0)
    });
    assert_eq!(one_end(&updates, PLAIN), (Some(c), 3, 0));
}

#[test]
fn c2_an_older_delete_loses_against_a_newer_update() {
    let insert = (change(Kind::Insert, v(1, 1)), 1, 0);
    let delete = (change(Kind::Delete, v(5, 2)), 0, 0);
    let update = (change(Kind::Update, v(6, 1)), 6, 0);
    assert_eq!(one_end(&[insert, delete, update], PLAIN), (Some(v(6, 1)), 6, 0));
}

#[test]
fn c3_an_insert_that_comes_after_its_own_delete_stays_deleted() {
    let insert = (change(Kind::Insert, v(1, 1)), 1, 7);
    let delete = (change(Kind::Delete, v(5, 2)), 0, 0);
    for rules in [PLAIN, MERGES] {
        assert_eq!(one_end(&[insert, delete], rules), (None, 0, 0));
    }
    // No conflict: who deleted had seen the insert.
    let gone = apply(Held::default(), delete, PLAIN).standing;
    let known = Knowledge {
        death_saw: true,
        ..BLIND
    };
    assert_eq!(plan(&insert.0, gone, PLAIN, known).conflict, None);
}

#[test]
fn c4_an_update_before_its_insert_is_kept() {
    let insert = (change(Kind::Insert, v(1, 1)), 1, 100);
    let update = (change(Kind::Update, v(5, 2)), 5, 3);
    assert_eq!(one_end(&[insert, update], PLAIN).1, 5);
    assert_eq!(one_end(&[insert, update], MERGES), (Some(v(5, 2)), 5, 103));
    // Nothing is reported unless the writer's row should be here.
    let report = |complete| {
        let known = Knowledge { complete, ..BLIND };
        plan(&update.0, Standing::default(), PLAIN, known).conflict
    };
    assert_eq!(report(false), None);
    assert_eq!(report(true).unwrap().kind, ConflictType::UpdateMissing);
}

#[test]
fn c5_a_forgotten_delete_is_never_guessed_about() {
    let update = change(Kind::Update, v(5, 2));
    let known = Knowledge {
        forgotten: PgTimestamp(5),
        ..BLIND
    };
    assert_eq!(
        resolve(&update, &Standing::default(), &PLAIN, &known),
        Outcome::Refuse(Refusal::BeyondHorizon)
    );
    let later = change(Kind::Update, v(6, 2));
    assert_eq!(
        plan(&later, Standing::default(), PLAIN, known).write,
        Write::Insert
    );
}

#[test]
fn c6_a_row_without_a_version_is_bounded_by_the_oldest_one_kept() {
    let frozen = Standing {
        row: Some(RowVersion::NotAfter(PgTimestamp(100))),
        death: None,
    };
    for (timestamp, write, reported) in [(100, Write::Nothing, true), (101, Write::Update, false)] {
        let plan = plan(&change(Kind::Update, v(timestamp, 3)), frozen, PLAIN, BLIND);
        assert_eq!((plan.write, plan.conflict.is_some()), (write, reported));
    }
}

#[test]
fn c7_concurrent_changes_of_a_key_leave_the_old_one_empty() {
    // Node 1 moves the row away at 5, node 2 at 6: whichever comes first, nothing stays at the old key, and each new
    // key has its row (`place` and the simulation see to rows that exclude each other).
    let insert = (change(Kind::Insert, v(1, 1)), 1, 0);
    let away = |version| (change(Kind::MoveAway, version), 0, 0);
    assert_eq!(
        one_end(&[insert, away(v(5, 1)), away(v(6, 2))], PLAIN),
        (None, 0, 0)
    );
    // Two rows moved to one key: the newer stays, and an update_exists is reported.
    let here = |version, value| (change(Kind::MoveHere, version), value, 0);
    assert_eq!(
        one_end(&[here(v(5, 1), 5), here(v(6, 2), 6)], PLAIN),
        (Some(v(6, 2)), 6, 0)
    );
    let standing = apply(Held::default(), here(v(6, 2), 6), PLAIN).standing;
    let conflict = plan(&here(v(5, 1), 5).0, standing, PLAIN, BLIND).conflict;
    assert_eq!(conflict.unwrap().kind, ConflictType::UpdateExists);
}

#[test]
fn c8_a_row_against_two_holders_waits_for_the_newer() {
    let (older, row, newer) = ((v(5, 1), 1), (v(6, 2), 2), (v(7, 1), 3));
    assert_eq!(place(&row, [older]), Placement::Stands);
    assert_eq!(place(&row, [older, newer]), Placement::Waits);
    assert_eq!(place(&row, []), Placement::Stands);
    let reports = [0, 1, 2].map(|holders| report(Kind::Insert, holders));
    let wanted = [ConflictType::InsertExists, ConflictType::MultipleUniqueConflicts];
    assert_eq!(reports, [None, Some(wanted[0]), Some(wanted[1])]);
    assert_eq!(report(Kind::Update, 1), Some(ConflictType::UpdateExists));
}

#[test]
fn c9_an_unchanged_column_is_taken_only_from_the_row_that_the_writer_saw() {
    let update = Change {
        incomplete: true,
        ..change(Kind::Update, v(9, 2))
    };
    let standing = Standing {
        row: Some(RowVersion::Known(v(1, 1))),
        death: None,
    };
    for (saw_row, complete) in [(false, false), (true, false), (false, true)] {
        let known = Knowledge {
            saw_row,
            complete,
            ..BLIND
        };
        assert_eq!(resolve(&update, &standing, &PLAIN, &known), Outcome::NeedRow);
    }
    let known = Knowledge {
        saw_row: true,
        complete: true,
        ..BLIND
    };
    assert_eq!(plan(&update, standing, PLAIN, known).write, Write::Update);
    // A losing change needs nothing.
    let newer = Standing {
        row: Some(RowVersion::Known(v(10, 1))),
        death: None,
    };
    assert_eq!(plan(&update, newer, PLAIN, BLIND).write, Write::Nothing);
    // The row as the provider has it now, newer than the change.
    let told = update.with_row(RowVersion::Known(v(12, 3)));
    assert_eq!(
        plan(&told, standing, PLAIN, BLIND).version,
        Some(RowVersion::Known(v(12, 3)))
    );
    // Where its store no longer knows, the bound is kept: what is not later is older than the row.
    let old = update.with_row(RowVersion::NotAfter(PgTimestamp(20)));
    let told = plan(&old, standing, PLAIN, BLIND);
    assert_eq!((told.write, told.version), (Write::Update, Some(old.row_version)));
    let newer = Standing {
        row: Some(RowVersion::Known(v(21, 1))),
        death: None,
    };
    assert_eq!(plan(&old, newer, PLAIN, BLIND).write, Write::Nothing);
    // The provider has none any more: what is here goes too, and stays away.
    let gone = update.gone(None, &PLAIN);
    let plan = plan(&gone, standing, PLAIN, BLIND);
    assert_eq!(
        (plan.write, plan.death.unwrap().version),
        (Write::Delete, v(9, 2))
    );
}

#[test]
fn c10_a_truncate_takes_what_is_older() {
    let truncate = (change(Kind::Delete, v(5, 2)), 0, 0);
    let older = (change(Kind::Insert, v(4, 1)), 4, 0);
    let newer = (change(Kind::Insert, v(6, 1)), 6, 0);
    assert_eq!(one_end(&[older, truncate], PLAIN), (None, 0, 0));
    assert_eq!(one_end(&[newer, truncate], PLAIN), (Some(v(6, 1)), 6, 0));
}

#[test]
fn c12_and_c14_the_floor_and_missing_nodes_change_nothing_here() {
    // A version below what its writer had seen loses everywhere but at the writer: hence the clock floor. It is
    // reported, though its writer had seen the row.
    let standing = Standing {
        row: Some(RowVersion::Known(v(10, 1))),
        death: None,
    };
    let known = Knowledge {
        saw_row: true,
        complete: true,
        ..BLIND
    };
    let plan = plan(&change(Kind::Update, v(9, 2)), standing, PLAIN, known);
    assert_eq!(plan.conflict.unwrap().resolution, Resolution::KeepLocal);
}

#[test]
fn a_delete_ends_a_life_of_counting() {
    let death = Death {
        version: v(5, 1),
        step: 0,
    };
    let after = |change: Change| Change {
        after: Some(death),
        ..change
    };
    let insert = (change(Kind::Insert, v(1, 1)), 1, 100);
    let delete = (change(Kind::Delete, v(5, 1)), 0, 0);
    // Its writer had not seen the delete; it is newer, and yet its life is over.
    let lost = (change(Kind::Update, v(7, 3)), 7, 1000);
    let again = (after(change(Kind::Insert, v(9, 2))), 9, 20);
    let more = (after(change(Kind::Update, v(12, 2))), 12, 3);
    assert_eq!(
        one_end(&[insert, delete, lost, again, more], MERGES),
        (Some(v(12, 2)), 12, 23)
    );
    assert_eq!(one_end(&[insert, delete, lost], MERGES), (None, 0, 0));
}

#[test]
fn two_inserts_count_together() {
    let inserts = [(v(5, 1), 10), (v(6, 2), 20), (v(6, 3), 30)]
        .map(|(version, count)| (change(Kind::Insert, version), count, count));
    assert_eq!(one_end(&inserts, MERGES), (Some(v(6, 3)), 30, 60));
}

#[test]
fn what_was_seen_is_not_reported_and_decides_nothing() {
    let standing = Standing {
        row: Some(RowVersion::Known(v(5, 1))),
        death: None,
    };
    for (timestamp, known) in [
        (
            6,
            Knowledge {
                saw_row: true,
                ..BLIND
            },
        ),
        (
            4,
            Knowledge {
                row_saw: true,
                ..BLIND
            },
        ),
    ] {
        let change = change(Kind::Update, v(timestamp, 2));
        let quiet = plan(&change, standing, PLAIN, known);
        let loud = plan(&change, standing, PLAIN, BLIND);
        assert!(quiet.conflict.is_none() && loud.conflict.is_some());
        assert_eq!(
            Plan {
                conflict: None,
                ..loud
            },
            quiet
        );
    }
}

#[test]
fn resolvers_are_asked_only_about_conflicts() {
    let standing = Standing {
        row: Some(RowVersion::Known(v(5, 1))),
        death: None,
    };
    let update = change(Kind::Update, v(6, 2));
    let answer = |resolver, known| {
        let rules = Rules {
            resolvers: Resolvers::all(resolver),
            ..PLAIN
        };
        match resolve(&update, &standing, &rules, &known) {
            Outcome::Do(plan) => Some(plan.write),
            _ => None,
        }
    };
    let seen = Knowledge {
        saw_row: true,
        ..BLIND
    };
    for (resolver, wanted) in [
        (Resolver::LastUpdateWins, Some(Write::Update)),
        (Resolver::FirstUpdateWins, Some(Write::Nothing)),
        (Resolver::ApplyRemote, Some(Write::Update)),
        (Resolver::KeepLocal, Some(Write::Nothing)),
        (Resolver::Skip, Some(Write::Nothing)),
        (Resolver::Error, None),
        (Resolver::Function, None),
    ] {
        assert_eq!(answer(resolver, BLIND), wanted, "{resolver:?}");
        assert_eq!(answer(resolver, seen), Some(Write::Update), "{resolver:?}");
    }
}

#[test]
fn names_lead_back() {
    for rule in MergeRule::ALL {
        assert_eq!(MergeRule::from_name(rule.as_str()), Some(rule));
    }
    assert_eq!(Resolver::from_name("keep_local"), Some(Resolver::KeepLocal));
    assert_eq!(Resolver::from_name("function"), None);
    let mut resolvers = Resolvers::default();
    resolvers.set(ConflictType::MultipleUniqueConflicts, Resolver::Error);
    assert_eq!(
        resolvers.of(ConflictType::MultipleUniqueConflicts),
        Resolver::Error
    );
    assert_eq!(resolvers.of(ConflictType::InsertExists), Resolver::LastUpdateWins);
}

#[test]
fn null_counts_as_zero_and_shows_where_the_newest_has_it() {
    assert_eq!(shown_sum(0, true, true), None);
    assert_eq!(shown_sum(0, true, false), Some(0));
    assert_eq!(shown_sum(4, false, true), Some(4));
    assert_eq!(greater(None, Some(3)), Some(3));
    assert_eq!(lesser(None, Some(3)), Some(3));
    assert_eq!(lesser(Some(2), Some(3)), Some(2));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Commutative and associative: all interleavings of up to five changes end alike, with and without merging.
    #[test]
    fn every_order_of_arrival_ends_alike(
        drawn in prop::collection::vec((0..3usize, 1..6i64, 1..4u32), 1..6),
        merges in any::<bool>(),
    ) {
        let mut drawn = drawn;
        drawn.sort_by_key(|(_, timestamp, origin)| (*origin, *timestamp));
        drawn.dedup_by_key(|(_, timestamp, origin)| (*origin, *timestamp));
        let mut own_death = [None; 4];
        let changes: Vec<Brings> = drawn
            .into_iter()
            .map(|(kind, timestamp, origin)| {
                let kind = [Kind::Insert, Kind::Update, Kind::Delete][kind];
                let version = v(timestamp, origin);
                // A writer knows its own deletes.
                let after = own_death[origin as usize];
                if kind.deletes() {
                    own_death[origin as usize] = Some(Death { version, step: 0 });
                }
                let change = Change { after, ..change(kind, version) };
                (change, timestamp, 1 << (timestamp * 3 + i64::from(origin)))
            })
            .collect();
        one_end(&changes, if merges { MERGES } else { PLAIN });
    }

    /// Idempotent as far as versions go: what is there already changes nothing.
    #[test]
    fn a_repeated_change_changes_nothing(timestamp in 1..9i64, origin in 1..4u32, kind in 0..3usize) {
        let kind = [Kind::Insert, Kind::Update, Kind::Delete][kind];
        let brings = (change(kind, v(timestamp, origin)), timestamp, 0);
        let once = apply(Held::default(), brings, PLAIN);
        prop_assert_eq!(apply(once, brings, PLAIN), once);
    }
}
