//! Broken frames: mutations of good ones must be decoded or refused, never panic, and never give more than there is.
//!
//! `PG_HA_MUTATIONS` sets how many are tried per seed file (5,000 by default), `PG_HA_MUTATION_SEED` where the sequence
//! starts. A frame that once failed goes into `tests/corpus` and is tried, mutated, ever after.
#![allow(
    clippy::expect_used,
    reason = "a test's helpers may stop at the first surprise too"
)]

mod samples;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use pg_ha_replication::codec::{Decoder, Encoder, Message, Tuple};
use pg_ha_replication::stream::StreamCheck;

/// A small generator (splitmix64): the same mutations for the same seed on every machine.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(default, |value| value.parse().expect(variable))
}

fn mutate(frame: &[u8], other: &[u8], sequence: &mut Sequence) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    for _ in 0..=sequence.below(4) {
        let at = sequence.below(bytes.len());
        match sequence.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, sequence.next() as u8),
            2 if !bytes.is_empty() => drop(bytes.remove(at)),
            3 => bytes
                .splice(at..at, other[sequence.below(other.len())..].iter().copied())
                .for_each(drop),
            4 => {
                // Numbers at the edges, where lengths and counts go wrong.
                let edge = [
                    0,
                    1,
                    0x7F,
                    0x80,
                    0xFF,
                    0x680,
                    0x681,
                    0x3FFF_FFFF,
                    0x4000_0000,
                    u32::MAX,
                ];
                let value = edge[sequence.below(edge.len())].to_le_bytes();
                let end = bytes.len().min(at + 1 + sequence.below(4));
                bytes[at..end]
                    .iter_mut()
                    .zip(value)
                    .for_each(|(byte, new)| *byte = new);
            }
            _ if !bytes.is_empty() => bytes[at] ^= 1 << sequence.below(8),
            _ => {}
        }
    }
    bytes
}

/// Everything that a message lends, counted; each slice has to lie within the frame.
fn measure(frame: &[u8], message: &Message<'_>) -> usize {
    let within = |part: &[u8]| {
        let inside = frame.as_ptr_range();
        let part_range = part.as_ptr_range();
        assert!(part.is_empty() || (inside.start <= part_range.start && part_range.end <= inside.end));
        part.len()
    };
    let tuple = |tuple: &Tuple<'_>| -> usize {
        assert_eq!(
            tuple.columns().count(),
            usize::from(tuple.column_count()),
            "checked once, whole ever after"
        );
        tuple
            .columns()
            .map(|column| 1 + column.bytes().map_or(0, within))
            .sum()
    };
    match message {
        Message::Hello(hello) => [hello.extension_version, hello.node_name, hello.encoding]
            .iter()
            .map(|text| within(text.as_bytes()))
            .sum(),
        Message::Begin(begin) => begin.seen.iter().count(),
        Message::StreamCommit(commit) => commit.begin.seen.iter().count(),
        Message::Prepare(prepare) => within(prepare.gid.as_bytes()) + prepare.begin.seen.iter().count(),
        Message::CommitPrepared(commit) => within(commit.gid.as_bytes()) + commit.begin.seen.iter().count(),
        Message::RollbackPrepared(rollback) => within(rollback.gid.as_bytes()),
        Message::Commit(_)
        | Message::StreamStart(_)
        | Message::StreamAbort(_)
        | Message::StreamAbortSub(_) => 0,
        Message::Relation(relation) => {
            assert_eq!(relation.columns.iter().count(), relation.columns.len());
            let text = |column: &str| within(column.as_bytes());
            let columns = relation.columns.iter();
            columns
                .map(|c| text(c.name) + text(c.type_namespace) + text(c.type_name))
                .sum::<usize>()
                + text(relation.namespace)
                + text(relation.name)
        }
        Message::Insert(insert) => tuple(&insert.new),
        Message::Update(update) => update.old.as_ref().map_or(0, |(_, old)| tuple(old)) + tuple(&update.new),
        Message::Delete(delete) => tuple(&delete.old.1),
        Message::Truncate(truncate) => truncate.relations.iter().count(),
        Message::Logical(logical) => within(logical.prefix.as_bytes()) + within(logical.content),
    }
}

/// Decodes a frame to its end or first error; whether it was accepted as a whole.
fn try_frame(frame: &[u8]) -> bool {
    let mut decoder = Decoder::new(frame);
    let mut check = StreamCheck::new();
    let mut lent = 0;
    let accepted = loop {
        let start = decoder.offset();
        let message = match decoder.next() {
            Ok(Some(message)) => message,
            Ok(None) => break true,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!(decoder.next(), Err(error), "an error stays");
                break false;
            }
        };
        lent += measure(frame, &message);
        let _ = check.observe(&message);
        let mut again = Encoder::new();
        again.message(&message).expect("what was decoded can be encoded");
        let read = &frame[start..decoder.offset()];
        assert!(
            read.ends_with(again.as_bytes()),
            "one form per message (optional ones may precede it)"
        );
    };
    assert!(lent <= frame.len(), "{lent} of {}", frame.len());
    accepted
}

#[test]
fn mutations_never_panic() {
    let mut seeds: Vec<(String, Vec<u8>)> = samples::all()
        .unwrap()
        .into_iter()
        .map(|(name, frame)| (name.to_owned(), frame))
        .collect();
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut kept: Vec<PathBuf> = fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    kept.sort();
    seeds.extend(
        kept.into_iter()
            .map(|path| (path.display().to_string(), fs::read(&path).unwrap())),
    );
    let rounds = number("PG_HA_MUTATIONS", 5_000);
    let first = number("PG_HA_MUTATION_SEED", 1);
    for (index, (name, frame)) in seeds.iter().enumerate() {
        try_frame(frame);
        let mut accepted = 0;
        let other = &seeds[(index + 1) % seeds.len()].1;
        for round in 0..rounds {
            let seed = first + round;
            let broken = mutate(frame, other, &mut Sequence(seed));
            match catch_unwind(AssertUnwindSafe(|| try_frame(&broken))) {
                Ok(whole) => accepted += u64::from(whole),
                Err(_) => {
                    panic!("{name} with PG_HA_MUTATION_SEED={seed}: keep in tests/corpus: {broken:02x?}")
                }
            }
        }
        assert!(
            0 < accepted && accepted < rounds,
            "{name}: {accepted} of {rounds} accepted: nothing was tested"
        );
    }
}
