use std::collections::BTreeMap;

use pg_ha_model::{NodeId, PgTimestamp};
use proptest::prelude::*;

use super::*;
use crate::codec::{Decoder, Encoder, Message};
use crate::conflict::{LocalRow, decide};

fn version(timestamp: i64, origin: u32) -> Version {
    Version {
        timestamp: PgTimestamp(timestamp),
        origin: NodeId::new(origin).unwrap(),
    }
}

fn change(digest: u64, keyed: bool, operation: Operation) -> Change {
    Change {
        digest,
        relation: 1,
        keyed,
        kind: Kind::Row(operation),
    }
}

/// The digest of an insert of these columns.
fn inserted(columns: &[(&str, bool, &[u8])]) -> u64 {
    let mut encoder = Encoder::new();
    encoder.start_insert(1, columns.len() as u16);
    for (_, _, value) in columns {
        encoder.plain(value);
    }
    encoder.finish_message().unwrap();
    let mut decoder = Decoder::new(encoder.as_bytes());
    let Ok(Some(Message::Insert(insert))) = decoder.next() else {
        panic!("no insert")
    };
    let shape = Shape::new("public", "t", columns.iter().map(|(name, key, _)| (*name, *key)));
    shape.row(Operation::Insert, None, Some(&insert.new))
}

#[test]
fn a_change_is_known_by_its_key() {
    let one = inserted(&[("id", true, b"1"), ("v", false, b"x")]);
    assert_eq!(one, inserted(&[("id", true, b"1"), ("v", false, b"other")]));
    assert_eq!(
        one,
        inserted(&[("v", false, b"x"), ("more", false, b"y"), ("id", true, b"1")])
    );
    assert_ne!(one, inserted(&[("id", true, b"2"), ("v", false, b"x")]));
    // Without a key by all of it.
    let all = inserted(&[("id", false, b"1"), ("v", false, b"x")]);
    assert_ne!(all, inserted(&[("id", false, b"1"), ("v", false, b"other")]));
    assert_eq!(all, inserted(&[("v", false, b"x"), ("id", false, b"1")]));
    // Values do not run into one another, nor do they change places.
    assert_ne!(
        inserted(&[("a", true, b"12"), ("b", true, b"3")]),
        inserted(&[("a", true, b"1"), ("b", true, b"23")])
    );
    assert_ne!(
        inserted(&[("a", true, b"1"), ("b", true, b"2")]),
        inserted(&[("a", true, b"2"), ("b", true, b"1")])
    );
    // On disk, so the same for good.
    assert_eq!(one, 8_978_437_251_911_202_632);
}

#[test]
fn the_first_time_everything_is_applied_and_noted() {
    let mut arrival = Arrival::first();
    assert_eq!(arrival.meet(change(7, true, Operation::Insert)), Verdict::Apply);
    assert_eq!(arrival.meet(change(7, true, Operation::Insert)), Verdict::Apply);
    assert_eq!(arrival.applied(), [7, 7]);
}

#[test]
fn what_was_noted_is_left_out_as_often_as_it_was() {
    let mut arrival = Arrival::late([7, 7]);
    let update = change(7, false, Operation::Update);
    assert_eq!(arrival.meet(update), Verdict::Skip);
    assert_eq!(arrival.meet(update), Verdict::Skip);
    assert_eq!(arrival.meet(update), Verdict::Late);
    assert_eq!(arrival.applied(), [7]);
}

#[test]
fn what_follows_a_gap_is_made_good() {
    // A way without deletes brought the insert alone; this one deletes first and inserts anew.
    let mut arrival = Arrival::late([2]);
    assert_eq!(arrival.meet(change(1, true, Operation::Delete)), Verdict::Late);
    assert_eq!(arrival.meet(change(2, true, Operation::Insert)), Verdict::Again);
    assert_eq!(arrival.applied(), [1]);
}

#[test]
fn only_later_changes_of_the_same_origin_overtake() {
    let here = |timestamp, origin| {
        Local::Present(LocalRow {
            version: version(timestamp, origin),
        })
    };
    let remote = version(10, 5);
    assert!(overtaken(Verdict::Late, remote, here(11, 5)).is_some());
    assert!(
        overtaken(Verdict::Late, remote, here(10, 5)).is_none(),
        "the same transaction"
    );
    assert!(overtaken(Verdict::Late, remote, here(9, 5)).is_none());
    assert!(
        overtaken(Verdict::Late, remote, here(11, 6)).is_none(),
        "a conflict, to be judged as any"
    );
    assert!(
        overtaken(Verdict::Apply, remote, here(11, 5)).is_none(),
        "a clock stepped back"
    );
    assert!(
        overtaken(Verdict::Remains, remote, here(10, 5)).is_some(),
        "it wrote the row after its delete"
    );
    assert!(overtaken(Verdict::Remains, remote, here(9, 5)).is_none());
    assert!(overtaken(Verdict::Late, remote, Local::Missing).is_none());
    assert!(overtaken(Verdict::Late, remote, Local::SameTransaction).is_none());
}

/// What an origin does to one of a few rows of a keyed table: the new value, or none to delete it.
type Step = (u8, Option<u8>);

/// A table here: for each row the value and its version.
type Table = BTreeMap<u8, (u8, i64)>;

/// Applies what one way brings of a transaction; returns how many rows it wrote.
fn bring(
    table: &mut Table,
    noted: &mut BTreeMap<i64, Vec<u64>>,
    late: bool,
    at: i64,
    steps: &[(u8, Step)],
) -> usize {
    let mut arrival = match late {
        true => Arrival::late(noted.get(&at).cloned().unwrap_or_default()),
        false => Arrival::first(),
    };
    let mut written = 0;
    for (kind, (row, value)) in steps {
        let operation = match (kind, value) {
            (_, None) => Operation::Delete,
            (0, _) => Operation::Insert,
            _ => Operation::Update,
        };
        let digest = u64::from(*row) << 8 | operation as u64;
        let verdict = arrival.meet(change(digest, true, operation));
        if verdict == Verdict::Skip {
            continue;
        }
        let remote = version(at, 5);
        let local = match table.get(row) {
            None => Local::Missing,
            Some((_, time)) => Local::Present(LocalRow {
                version: version(*time, 5),
            }),
        };
        match overtaken(verdict, remote, local)
            .unwrap_or_else(|| decide(operation, remote, local, |_| true))
            .action
        {
            Action::Skip => {}
            Action::Delete => {
                table.remove(row);
                written += 1;
            }
            _ => {
                table.insert(*row, (value.unwrap_or_default(), at));
                written += 1;
            }
        }
    }
    noted.entry(at).or_default().extend(arrival.applied());
    written
}

/// Transactions of one origin, each step with the operation it really is.
fn history(raw: &[Vec<Step>]) -> (Vec<Vec<(u8, Step)>>, Table) {
    let mut table = Table::new();
    let mut transactions = Vec::new();
    for (at, steps) in (1..).zip(raw) {
        let mut real = Vec::new();
        for (row, value) in steps {
            let exists = table.contains_key(row);
            match value {
                Some(value) => {
                    table.insert(*row, (*value, at));
                    real.push((u8::from(exists), (*row, Some(*value))));
                }
                None if exists => {
                    table.remove(row);
                    real.push((2, (*row, None)));
                }
                None => {}
            }
        }
        transactions.push(real);
    }
    (transactions, table)
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = (0..4u8, prop::option::weighted(0.7, any::<u8>()));
    prop::collection::vec(prop::collection::vec(step, 1..4), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Two ways, one of which brings only some rows (whole rows, as a filter by key does), in any interleaving: in the
    /// end everything is here as at the origin, and where both bring everything each change was written once.
    #[test]
    fn two_ways_make_one_history(raw in steps(), choices in prop::collection::vec(any::<bool>(), 30), rows in 0..5u8) {
        let (transactions, wanted) = history(&raw);
        let narrow: Vec<Vec<(u8, Step)>> = transactions
            .iter()
            .map(|steps| steps.iter().filter(|(_, (row, _))| *row < rows).copied().collect())
            .collect();
        let (mut table, mut noted, mut written) = (Table::new(), BTreeMap::new(), 0);
        let mut next = [0usize, 0];
        let mut choices = choices.into_iter().cycle();
        while next.iter().any(|next| *next < transactions.len()) {
            let mut way = usize::from(choices.next().unwrap_or_default());
            if next[way] == transactions.len() {
                way = 1 - way;
            }
            let at = next[way] as i64 + 1;
            let late = next[1 - way] > next[way];
            let brought = if way == 0 { &transactions } else { &narrow };
            written += bring(&mut table, &mut noted, late, at, &brought[next[way]]);
            next[way] += 1;
        }
        prop_assert_eq!(&table, &wanted);
        if rows >= 4 {
            prop_assert_eq!(written, transactions.iter().map(Vec::len).sum::<usize>());
        }
    }
}
