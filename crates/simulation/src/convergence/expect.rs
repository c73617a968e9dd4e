//! What a table must hold once everything has arrived, computed from the changes alone: sorted by version, without any
//! order of arrival, without anything that a node knows.

use std::collections::BTreeMap;

use pg_ha_replication::conflict::Version;
use pg_ha_replication::convergence::{Death, Kind, MergeRule, greater, lesser};

use super::{Key, Row, RowStep, Settings, Step, Transaction};

/// The expected end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) visible: BTreeMap<Key, (Row, Version)>,
    pub(super) waiting: BTreeMap<Key, (Row, Version)>,
}

enum Event<'a> {
    Change(&'a RowStep),
    Death(Death),
}

/// Computes it.
pub(super) fn expect(logs: &[Vec<Transaction>], settings: &Settings) -> Expected {
    let mut candidates: Vec<(Version, Key, Row)> = (0..settings.keys as Key)
        .filter_map(|key| {
            let (version, row) = of_key(&history(logs, key), settings.merges)?;
            Some((version, key, row))
        })
        .collect();
    candidates.sort_by_key(|(version, key, _)| (*version, *key));
    let mut expected = Expected {
        visible: BTreeMap::new(),
        waiting: BTreeMap::new(),
    };
    for (version, key, row) in candidates.into_iter().rev() {
        let taken = expected.visible.values().any(|(other, _)| other.rivals(&row));
        let place = if taken {
            &mut expected.waiting
        } else {
            &mut expected.visible
        };
        place.insert(key, (row, version));
    }
    expected
}

/// What happened to a key, from the oldest version to the newest.
fn history(logs: &[Vec<Transaction>], key: Key) -> Vec<(Version, Event<'_>)> {
    let mut events = Vec::new();
    for transaction in logs.iter().flatten() {
        let version = transaction.version;
        for step in &transaction.steps {
            let event = match step {
                Step::Truncate => Event::Death(Death { version, step: 0 }),
                Step::Row(step) if step.key != key => continue,
                Step::Row(step) if step.kind.deletes() => Event::Death(Death {
                    version,
                    step: step.step,
                }),
                Step::Row(step) => Event::Change(step),
            };
            events.push((version, event));
        }
    }
    // Stable: steps of one transaction stay in their order.
    events.sort_by_key(|(version, _)| *version);
    events
}

fn of_key(events: &[(Version, Event<'_>)], merges: Option<MergeRule>) -> Option<(Version, Row)> {
    let Some(bound_rule) = merges else {
        return match events.last()? {
            (version, Event::Change(step)) => Some((*version, step.new.clone())),
            (_, Event::Death(_)) => None,
        };
    };
    let last_death = events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Death(death) => Some(*death),
            Event::Change(_) => None,
        })
        .max();
    let living: Vec<(Version, &RowStep)> = events
        .iter()
        .filter_map(|(version, event)| match event {
            Event::Change(step) if step.true_after == last_death => Some((*version, *step)),
            _ => None,
        })
        .collect();
    let (version, newest) = living.last()?;
    let sum: i64 = living
        .iter()
        .map(|(_, step)| {
            let before = step.old_count.filter(|_| step.kind == Kind::Update);
            step.new.count.unwrap_or(0) - before.unwrap_or(0)
        })
        .sum();
    let bounds = living.iter().map(|(_, step)| step.new.bound);
    let row = Row {
        count: (sum != 0 || newest.new.count.is_some()).then_some(sum),
        bound: match bound_rule {
            MergeRule::Min => bounds.fold(None, lesser),
            _ => bounds.fold(None, greater),
        },
        ..newest.new.clone()
    };
    Some((*version, row))
}
