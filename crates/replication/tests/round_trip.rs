//! What is encoded is decoded to the same, for any message; and what an interruption or wrong use leaves of the frame.
#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise too"
)]

use pg_ha_model::{Lsn, NodeId, PgTimestamp};
use pg_ha_replication::codec::Seen;
use pg_ha_replication::codec::{
    Begin, Column, Commit, Decoder, EncodeError, Encoder, Fault, Hello, List, Logical, MAX_COLUMNS, Message,
    OldKind, Relation, RelationColumn, ReplicaIdentity, RollbackPrepared, StreamAbort, StreamAbortSub,
    StreamCommit, StreamStart, Truncate,
};
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Unchanged,
    Plain(Vec<u8>),
    Binary(Vec<u8>),
    Text(Vec<u8>),
}

impl Value {
    fn borrowed(&self) -> Column<'_> {
        match self {
            Value::Null => Column::Null,
            Value::Unchanged => Column::Unchanged,
            Value::Plain(bytes) => Column::Plain(bytes),
            Value::Binary(bytes) => Column::Binary(bytes),
            Value::Text(bytes) => Column::Text(bytes),
        }
    }
}

#[derive(Debug, Clone)]
struct Row {
    relation: u32,
    kind: Option<OldKind>,
    old: Vec<Value>,
    new: Vec<Value>,
}

fn values() -> impl Strategy<Value = Vec<Value>> {
    let bytes = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..12),
            prop::collection::vec(any::<u8>(), 120..300)
        ]
    };
    let value = prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        bytes().prop_map(Value::Plain),
        bytes().prop_map(Value::Binary),
        bytes().prop_map(Value::Text),
    ];
    prop::collection::vec(value, 0..10)
}

fn rows() -> impl Strategy<Value = Row> {
    let kind = prop::sample::select(vec![None, Some(OldKind::Key), Some(OldKind::Full)]);
    (any::<u32>(), kind, values(), values()).prop_map(|(relation, kind, old, new)| Row {
        relation,
        kind,
        old,
        new,
    })
}

fn node_ids() -> impl Strategy<Value = NodeId> {
    (1..=1023u32).prop_map(|number| NodeId::new(number).unwrap())
}

fn seen() -> impl Strategy<Value = Seen> {
    (node_ids(), any::<u64>(), any::<i64>()).prop_map(|(origin, lsn, timestamp)| Seen {
        origin,
        lsn: Lsn(lsn),
        timestamp: PgTimestamp(timestamp),
    })
}

fn columns(encoder: &mut Encoder, values: &[Value]) {
    values.iter().for_each(|value| encoder.column(value.borrowed()));
}

fn write_insert(encoder: &mut Encoder, row: &Row) -> Result<(), EncodeError> {
    encoder.start_insert(row.relation, row.new.len() as u16);
    columns(encoder, &row.new);
    encoder.finish_message()
}

fn write_update(encoder: &mut Encoder, row: &Row) -> Result<(), EncodeError> {
    encoder.start_update(row.relation, row.kind.map(|kind| (kind, row.old.len() as u16)));
    if row.kind.is_some() {
        columns(encoder, &row.old);
    }
    encoder.start_new_tuple(row.new.len() as u16);
    columns(encoder, &row.new);
    encoder.finish_message()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_come_back(rows in prop::collection::vec(rows(), 0..6)) {
        let mut encoder = Encoder::new();
        for row in &rows {
            write_insert(&mut encoder, row).unwrap();
            write_update(&mut encoder, row).unwrap();
            encoder.start_delete(row.relation, row.kind.unwrap_or(OldKind::Key), row.old.len() as u16);
            columns(&mut encoder, &row.old);
            encoder.finish_message().unwrap();
        }
        let mut decoder = Decoder::new(encoder.as_bytes());
        let same = |tuple: pg_ha_replication::codec::Tuple<'_>, values: &[Value]| {
            tuple.columns().len() == values.len() && tuple.columns().eq(values.iter().map(Value::borrowed))
        };
        for row in &rows {
            let Ok(Some(Message::Insert(insert))) = decoder.next() else { panic!("no insert") };
            prop_assert!(insert.relation == row.relation && same(insert.new, &row.new));
            let Ok(Some(Message::Update(update))) = decoder.next() else { panic!("no update") };
            prop_assert!(update.relation == row.relation && same(update.new, &row.new));
            prop_assert_eq!(update.old.map(|(kind, _)| kind), row.kind);
            prop_assert!(update.old.is_none_or(|(_, old)| same(old, &row.old)));
            let Ok(Some(Message::Delete(delete))) = decoder.next() else { panic!("no delete") };
            prop_assert_eq!(delete.old.0, row.kind.unwrap_or(OldKind::Key));
            prop_assert!(same(delete.old.1, &row.old));
        }
        prop_assert_eq!(decoder.next(), Ok(None));
    }

    #[test]
    fn whole_messages_come_back(
        texts in prop::collection::vec(any::<String>(), 3),
        numbers in any::<(u16, u32, u64, u64, i64, u32, bool)>(),
        (node, origin) in (node_ids(), node_ids()),
        seen in prop::collection::vec(seen(), 0..5),
        via in prop::collection::vec(node_ids(), 0..4),
        oids in prop::collection::vec(any::<u32>(), 0..5),
        types in prop::collection::vec((any::<String>(), any::<i32>(), any::<u8>()), 0..5),
        content in prop::collection::vec(any::<u8>(), 0..200),
        identity in prop::sample::select(vec![
            ReplicaIdentity::Default, ReplicaIdentity::Index, ReplicaIdentity::Full, ReplicaIdentity::Nothing,
        ]),
    ) {
        let (small, number, lsn, end, time, other, flag) = numbers;
        let described: Vec<RelationColumn<'_>> = types
            .iter()
            .map(|(name, typmod, flags)| RelationColumn {
                name, type_oid: number, type_namespace: &texts[0], type_name: &texts[1], typmod: *typmod, flags: *flags,
            })
            .collect();
        let commit = Commit { commit_lsn: Lsn(lsn), end_lsn: Lsn(end), commit_ts: PgTimestamp(time), wal_end: Lsn(end) };
        let messages = [
            Message::Hello(Hello {
                protocol: small, server_version_num: number, extension_version: &texts[0], node_id: node,
                node_name: &texts[1], system_identifier: lsn, encoding: &texts[2], flags: other,
            }),
            Message::Begin(Begin {
                xid: number, commit_lsn: Lsn(lsn), end_lsn: Lsn(end), commit_ts: PgTimestamp(time), origin,
                origin_lsn: Lsn(end), lane: small, via: List::from(&via[..]), seen: List::from(&seen[..]),
            }),
            Message::Relation(Relation {
                id: number, namespace: &texts[0], name: &texts[1], replica_identity: identity,
                columns: List::from(&described[..]),
            }),
            Message::Truncate(Truncate { flags: small as u8, relations: List::from(&oids[..]) }),
            Message::Logical(Logical { transactional: flag, lsn: Lsn(lsn), prefix: &texts[2], content: &content }),
            Message::Commit(commit),
            Message::StreamStart(StreamStart { xid: number, subxid: other }),
            Message::StreamAbortSub(StreamAbortSub { xid: other, subxid: number }),
            Message::StreamAbort(StreamAbort { xid: number }),
            Message::StreamCommit(StreamCommit {
                begin: Begin {
                    xid: number, commit_lsn: Lsn(lsn), end_lsn: Lsn(end), commit_ts: PgTimestamp(time), origin,
                    origin_lsn: Lsn(end), lane: small, via: List::from(&[][..]), seen: List::from(&seen[..]),
                },
                wal_end: Lsn(lsn),
            }),
            Message::RollbackPrepared(RollbackPrepared { gid: &texts[0], xid: number, end_lsn: Lsn(end) }),
        ];
        let mut encoder = Encoder::new();
        for message in &messages {
            encoder.message(message).unwrap();
        }
        let mut decoder = Decoder::new(encoder.as_bytes());
        for message in &messages {
            prop_assert_eq!(decoder.next(), Ok(Some(*message)));
        }
        prop_assert_eq!(decoder.next(), Ok(None));
    }

    #[test]
    fn an_interrupted_message_leaves_no_trace(rows in prop::collection::vec(rows(), 1..4), interrupted in rows(), done in 0..12usize) {
        let mut encoder = Encoder::new();
        let mut wanted = Encoder::new();
        for row in &rows {
            let mark = encoder.mark();
            encoder.start_insert(interrupted.relation, interrupted.new.len() as u16);
            columns(&mut encoder, &interrupted.new[..done.min(interrupted.new.len())]);
            encoder.truncate_to(mark);
            write_update(&mut encoder, row).unwrap();
            write_update(&mut wanted, row).unwrap();
        }
        prop_assert_eq!(encoder.as_bytes(), wanted.as_bytes());
    }

    #[test]
    fn a_wrong_number_of_columns_is_refused(row in rows(), announced in 0..12u16) {
        let mut encoder = Encoder::new();
        write_insert(&mut encoder, &row).unwrap();
        let before = encoder.as_bytes().to_vec();
        encoder.start_insert(row.relation, announced);
        columns(&mut encoder, &row.new);
        let finished = encoder.finish_message();
        if usize::from(announced) == row.new.len() {
            prop_assert_eq!(finished, Ok(()));
        } else {
            prop_assert_eq!(finished, Err(EncodeError::ColumnCount));
            prop_assert_eq!(encoder.as_bytes(), before);
        }
        prop_assert_eq!(write_insert(&mut encoder, &row), Ok(()), "the encoder goes on");
    }

    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::new(&bytes);
        while let Ok(Some(_)) = decoder.next() {}
    }
}

fn insert_of(columns: u16) -> Result<Encoder, EncodeError> {
    let mut encoder = Encoder::new();
    encoder.start_insert(1, columns);
    (0..columns).for_each(|_| encoder.null());
    encoder.finish_message().map(|()| encoder)
}

#[test]
fn tuples_have_a_limit() {
    assert!(insert_of(MAX_COLUMNS).is_ok());
    let found = usize::from(MAX_COLUMNS) + 1;
    assert_eq!(
        insert_of(MAX_COLUMNS + 1).unwrap_err(),
        EncodeError::TooManyColumns { found }
    );
    let mut frame = insert_of(MAX_COLUMNS).unwrap().as_bytes().to_vec();
    frame[9..11].copy_from_slice(&(MAX_COLUMNS + 1).to_le_bytes());
    let error = Decoder::new(&frame).next().unwrap_err();
    assert_eq!(error.fault, Fault::TooManyColumns { found: found as u32 });
}

#[test]
fn a_message_inside_another_discards_both() {
    let mut encoder = insert_of(1).unwrap();
    let before = encoder.as_bytes().to_vec();
    let commit = Commit {
        commit_lsn: Lsn(1),
        end_lsn: Lsn(2),
        commit_ts: PgTimestamp(3),
        wal_end: Lsn(4),
    };
    encoder.start_insert(1, 1);
    assert_eq!(encoder.commit(&commit), Err(EncodeError::Unfinished));
    assert_eq!(encoder.as_bytes(), before);
    encoder.start_insert(1, 1);
    encoder.start_insert(1, 0);
    assert_eq!(encoder.finish_message(), Err(EncodeError::Unfinished));
    assert_eq!(encoder.as_bytes(), before);
    assert_eq!(encoder.finish_message(), Err(EncodeError::Unfinished));
    encoder.null();
    assert_eq!(
        encoder.as_bytes(),
        before,
        "a column outside a message writes nothing"
    );
    assert_eq!(encoder.commit(&commit), Err(EncodeError::ColumnCount));
    assert_eq!(encoder.commit(&commit), Ok(()));
}

#[test]
fn an_update_needs_its_new_tuple() {
    let mut encoder = Encoder::new();
    encoder.start_update(1, Some((OldKind::Key, 1)));
    encoder.null();
    assert_eq!(encoder.finish_message(), Err(EncodeError::ColumnCount));
    encoder.start_update(1, Some((OldKind::Key, 1)));
    encoder.start_new_tuple(0);
    assert_eq!(encoder.finish_message(), Err(EncodeError::ColumnCount));
    encoder.start_insert(1, 0);
    encoder.start_new_tuple(0);
    assert_eq!(encoder.finish_message(), Err(EncodeError::ColumnCount));
    assert!(encoder.is_empty());
}

#[test]
fn a_mark_from_before_clear_empties_the_frame() {
    let mut encoder = insert_of(5).unwrap();
    let mark = encoder.mark();
    encoder.clear();
    encoder.start_insert(1, 1);
    encoder.truncate_to(mark);
    assert!(encoder.is_empty());
    encoder.start_insert(1, 0);
    assert_eq!(encoder.finish_message(), Ok(()));
}

#[test]
fn optional_messages_are_skipped_and_others_are_not() {
    let known = insert_of(1).unwrap();
    let optional = [0x80, 3, 0, 0, 0, 1, 2, 3, 0xFF, 0, 0, 0, 0];
    let frame = [&optional[..], known.as_bytes(), &optional[..]].concat();
    let mut decoder = Decoder::new(&frame);
    assert!(matches!(decoder.next(), Ok(Some(Message::Insert(_)))));
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.offset(), frame.len());
    for reserved in *b"EbpXz" {
        let error = Decoder::new(&[reserved, 0, 0, 0, 0]).next().unwrap_err();
        assert_eq!(error.fault, Fault::UnknownTag { tag: reserved });
    }
    let error = Decoder::new(&[b'X', 0, 0, 0, 0]).next().unwrap_err();
    assert_eq!(
        error.to_string(),
        "change stream: unknown message tag 0x58 in message header at byte 0 of the frame"
    );
}

#[test]
fn faults_are_named() {
    let fault = |frame: &[u8]| {
        Decoder::new(frame)
            .next()
            .map_err(|error| error.fault)
            .unwrap_err()
    };
    assert_eq!(fault(b"I"), Fault::UnexpectedEnd);
    assert_eq!(fault(b"I\x05\0\0\0abcd"), Fault::UnexpectedEnd);
    assert_eq!(
        fault(&[b'I', 0, 0, 0, 0x40]),
        Fault::BodyTooLong { length: 0x4000_0000 }
    );
    assert_eq!(fault(b"I\x07\0\0\0\x01\0\0\0\0\0x"), Fault::LeftOver { count: 1 });
    assert_eq!(
        fault(b"I\x07\0\0\0\x01\0\0\0\x01\0\x05"),
        Fault::UnknownCode {
            field: "column state",
            found: 5
        }
    );
    assert_eq!(
        fault(b"D\x07\0\0\0\x01\0\0\0\0\0\0"),
        Fault::UnknownCode {
            field: "old row kind",
            found: 0
        }
    );
    assert_eq!(fault(b"T\x06\0\0\0\0\xFF\xFF\xFF\xFF\x0F"), Fault::UnexpectedEnd);
    assert_eq!(fault(b"M\x0C\0\0\0\0\0\0\0\0\0\0\0\0\x01\xFF\0"), Fault::NotUtf8);
    assert_eq!(
        fault(b"R\x05\0\0\0\0\0\0\0x"),
        Fault::UnknownCode {
            field: "replica identity",
            found: b'x'
        }
    );
}
