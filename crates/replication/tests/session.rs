//! Sessions as a receiver sees them: frames decoded, every message checked.
#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise too"
)]

use pg_ha_model::{Lsn, NodeId, PgTimestamp};
use pg_ha_replication::codec::{
    Begin, Commit, Decoder, EncodeError, Encoder, Hello, List, Logical, OldKind, Relation, RelationColumn,
    ReplicaIdentity, Truncate,
};
use pg_ha_replication::stream::{StreamCheck, StreamError};

const HELLO: Hello<'_> = Hello {
    protocol: 1,
    server_version_num: 150_020,
    extension_version: "0.1.0",
    node_id: NodeId::MIN,
    node_name: "n1",
    system_identifier: 1,
    encoding: "UTF8",
    flags: 0,
};

/// Writes one message of a session.
type Step = fn(&mut Encoder) -> Result<(), EncodeError>;

fn commit_at(lsn: u64) -> Commit {
    Commit {
        commit_lsn: Lsn(lsn),
        end_lsn: Lsn(lsn + 8),
        commit_ts: PgTimestamp(5),
        wal_end: Lsn(lsn + 8),
    }
}

fn begin_at(encoder: &mut Encoder, lsn: u64) -> Result<(), EncodeError> {
    let Commit {
        commit_lsn,
        end_lsn,
        commit_ts,
        ..
    } = commit_at(lsn);
    let seen = List::EMPTY;
    encoder.begin(&Begin {
        xid: 1,
        commit_lsn,
        end_lsn,
        commit_ts,
        origin: NodeId::MIN,
        origin_lsn: end_lsn,
        lane: 0,
        via: List::EMPTY,
        seen,
    })
}

fn hello(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.hello(&HELLO)
}

fn begin(encoder: &mut Encoder) -> Result<(), EncodeError> {
    begin_at(encoder, 100)
}

fn commit(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.commit(&commit_at(100))
}

/// Relation 1: two columns, the first one the key.
fn relation(encoder: &mut Encoder) -> Result<(), EncodeError> {
    let column = |name, flags| RelationColumn {
        name,
        type_oid: 23,
        type_namespace: "pg_catalog",
        type_name: "int4",
        typmod: -1,
        flags,
    };
    encoder.relation(&Relation {
        id: 1,
        namespace: "public",
        name: "t",
        replica_identity: ReplicaIdentity::Default,
        columns: List::from(&[column("id", RelationColumn::KEY), column("v", 0)][..]),
    })
}

fn insert(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.start_insert(1, 2);
    encoder.plain_i32(1);
    encoder.null();
    encoder.finish_message()
}

fn update(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.start_update(1, Some((OldKind::Key, 1)));
    encoder.plain_i32(1);
    encoder.start_new_tuple(2);
    encoder.plain_i32(2);
    encoder.unchanged();
    encoder.finish_message()
}

fn delete(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.start_delete(1, OldKind::Full, 2);
    encoder.plain_i32(2);
    encoder.null();
    encoder.finish_message()
}

fn truncate(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.truncate(&Truncate {
        flags: 0,
        relations: List::from(&[1][..]),
    })
}

fn marker(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.logical(&Logical {
        transactional: false,
        lsn: Lsn(1),
        prefix: "pg_ha",
        content: b"",
    })
}

fn event(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.logical(&Logical {
        transactional: true,
        lsn: Lsn(1),
        prefix: "pg_ha",
        content: b"",
    })
}

/// Runs a session; the index of the first message that was refused, and why.
fn run(steps: &[Step]) -> Result<StreamCheck, (usize, StreamError)> {
    let mut encoder = Encoder::new();
    for step in steps {
        step(&mut encoder).unwrap();
    }
    let mut decoder = Decoder::new(encoder.as_bytes());
    let mut check = StreamCheck::new();
    let mut index = 0;
    while let Some(message) = decoder.next().unwrap() {
        check.observe(&message).map_err(|error| (index, error))?;
        index += 1;
    }
    Ok(check)
}

#[track_caller]
fn refused(steps: &[Step], error: StreamError) {
    assert_eq!(run(steps).map(drop), Err((steps.len() - 1, error)));
}

#[test]
fn a_good_session_passes() {
    let check = run(&[
        hello, marker, begin, relation, insert, update, delete, truncate, event, marker, commit, begin,
        insert,
    ])
    .unwrap();
    assert!(check.in_transaction());
    assert_eq!(check.last_commit(), Lsn(100));
}

#[test]
fn hello_comes_first_and_once() {
    refused(&[begin], StreamError::HelloMissing { found: "Begin" });
    refused(&[hello, hello], StreamError::HelloRepeated);
    refused(
        &[|e| e.hello(&Hello { protocol: 2, ..HELLO })],
        StreamError::Protocol { found: 2 },
    );
    refused(
        &[|e| e.hello(&Hello { protocol: 0, ..HELLO })],
        StreamError::Protocol { found: 0 },
    );
}

#[test]
fn transactions_do_not_nest_and_hold_the_rows() {
    refused(
        &[hello, begin, begin],
        StreamError::BeginInTransaction { commit_lsn: Lsn(100) },
    );
    for (step, found) in [
        (commit as Step, "Commit"),
        (insert, "Insert"),
        (update, "Update"),
        (delete, "Delete"),
        (truncate, "Truncate"),
        (event, "transactional Logical"),
    ] {
        refused(
            &[hello, relation, step],
            StreamError::OutsideTransaction { found },
        );
        refused(
            &[hello, relation, begin, commit, step],
            StreamError::OutsideTransaction { found },
        );
    }
}

#[test]
fn commits_go_forward_and_match() {
    let back = StreamError::CommitGoesBack {
        found: Lsn(99),
        previous: Lsn(100),
    };
    refused(&[hello, begin, commit, |e| begin_at(e, 99)], back);
    let differs = StreamError::CommitDiffers {
        found: Lsn(101),
        begun: Lsn(100),
    };
    refused(&[hello, begin, |e| e.commit(&commit_at(101))], differs);
    let short: Step = |e| {
        let (commit_lsn, end_lsn, origin) = (Lsn(9), Lsn(8), NodeId::MIN);
        let (commit_ts, seen) = (PgTimestamp(0), List::EMPTY);
        e.begin(&Begin {
            xid: 1,
            commit_lsn,
            end_lsn,
            commit_ts,
            origin,
            origin_lsn: end_lsn,
            lane: 0,
            via: List::EMPTY,
            seen,
        })
    };
    refused(
        &[hello, short],
        StreamError::EndBeforeCommit {
            commit_lsn: Lsn(9),
            end_lsn: Lsn(8),
        },
    );
}

#[test]
fn relations_are_described_before_their_rows() {
    for (step, message) in [
        (insert as Step, "Insert"),
        (update, "Update"),
        (delete, "Delete"),
        (truncate, "Truncate"),
    ] {
        refused(
            &[hello, begin, step],
            StreamError::UnknownRelation { message, relation: 1 },
        );
    }
}

#[test]
fn tuples_fit_their_relation() {
    let wide: Step = |e| {
        e.start_insert(1, 3);
        (0..3).for_each(|_| e.null());
        e.finish_message()
    };
    refused(
        &[hello, relation, begin, wide],
        StreamError::ColumnCount {
            relation: 1,
            found: 3,
            wanted: 2,
        },
    );
    let full_as_key: Step = |e| {
        e.start_delete(1, OldKind::Key, 2);
        (0..2).for_each(|_| e.null());
        e.finish_message()
    };
    refused(
        &[hello, relation, begin, full_as_key],
        StreamError::ColumnCount {
            relation: 1,
            found: 2,
            wanted: 1,
        },
    );
}
