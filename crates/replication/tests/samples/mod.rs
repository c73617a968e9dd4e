//! Frames that the golden and mutation tests share. What they hold must not change within protocol version 1.

use pg_ha_model::{Lsn, NodeId, PgTimestamp};
use pg_ha_replication::codec::Seen;
use pg_ha_replication::codec::{
    Begin, Commit, CommitPrepared, EncodeError, Encoder, Hello, List, Logical, OldKind, Prepare, Relation,
    RelationColumn, ReplicaIdentity, RollbackPrepared, StreamAbort, StreamAbortSub, StreamCommit,
    StreamStart, Truncate,
};

const COMMIT: Commit = Commit {
    commit_lsn: Lsn(0x1_0000_0100),
    end_lsn: Lsn(0x1_0000_0130),
    commit_ts: PgTimestamp(814_000_000_000_001),
    wal_end: Lsn(0x1_0000_0400),
};

/// Every sample by name.
pub(crate) fn all() -> Result<Vec<(&'static str, Vec<u8>)>, EncodeError> {
    let mut samples = Vec::new();
    for (name, write) in [
        ("hello", hello as fn(&mut Encoder) -> Result<(), EncodeError>),
        ("small_transaction", small_transaction),
        ("column_forms", column_forms),
        ("old_rows", old_rows),
        ("truncate_and_logical", truncate_and_logical),
        ("empty_transaction", empty_transaction),
        ("transaction_in_progress", transaction_in_progress),
        ("prepared_transaction", prepared_transaction),
        ("forwarded_transaction", forwarded_transaction),
    ] {
        let mut encoder = Encoder::new();
        write(&mut encoder)?;
        samples.push((name, encoder.as_bytes().to_vec()));
    }
    Ok(samples)
}

fn begin<'a>(seen: &'a [Seen]) -> Begin<'a> {
    Begin {
        xid: 741,
        commit_lsn: COMMIT.commit_lsn,
        end_lsn: COMMIT.end_lsn,
        commit_ts: COMMIT.commit_ts,
        origin: NodeId::MAX,
        origin_lsn: COMMIT.end_lsn,
        lane: 0,
        via: List::EMPTY,
        seen: List::from(seen),
    }
}

fn column<'a>(name: &'a str, type_oid: u32, type_name: &'a str, flags: u8) -> RelationColumn<'a> {
    RelationColumn {
        name,
        type_oid,
        type_namespace: "pg_catalog",
        type_name,
        typmod: -1,
        flags,
    }
}

fn hello(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.hello(&Hello {
        protocol: 1,
        server_version_num: 150_020,
        extension_version: "0.1.0",
        node_id: NodeId::MIN,
        node_name: "n1",
        system_identifier: 7_300_000_000_000_000_001,
        encoding: "UTF8",
        flags: 0,
    })
}

fn small_transaction(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.begin(&begin(&[
        Seen {
            origin: NodeId::MIN,
            lsn: Lsn(0x2A),
            timestamp: PgTimestamp(1),
        },
        Seen {
            origin: NodeId::MAX,
            lsn: Lsn(u64::MAX),
            timestamp: PgTimestamp(i64::MIN),
        },
    ]))?;
    let columns = [
        column("id", 23, "int4", RelationColumn::KEY),
        column("größe", 25, "text", 0),
        RelationColumn {
            name: "state",
            type_oid: 16_390,
            type_namespace: "app",
            type_name: "Mood",
            typmod: 7,
            flags: RelationColumn::GENERATED,
        },
    ];
    encoder.relation(&Relation {
        id: 16_384,
        namespace: "public",
        name: "t",
        replica_identity: ReplicaIdentity::Default,
        columns: List::from(&columns[..]),
    })?;
    encoder.start_insert(16_384, 3);
    encoder.plain_i32(-2);
    encoder.plain("füße".as_bytes());
    encoder.text(b"happy");
    encoder.finish_message()?;
    encoder.commit(&COMMIT)
}

fn column_forms(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.start_insert(u32::MAX, 14);
    encoder.null();
    encoder.unchanged();
    encoder.plain_bool(true);
    encoder.plain_bool(false);
    encoder.plain_i16(i16::MIN);
    encoder.plain_i32(i32::MAX);
    encoder.plain_i64(i64::MIN);
    encoder.plain_u32(u32::MAX);
    encoder.plain_f32(1.5);
    encoder.plain_f64(-0.1);
    encoder.plain(b"");
    encoder.plain(&[0xAB; 16]);
    encoder.binary(&[0xCD; 300]);
    encoder.text(&[b'x'; 127]);
    encoder.finish_message()?;
    encoder.start_insert(1, 0);
    encoder.finish_message()
}

fn old_rows(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.start_update(16_384, None);
    encoder.start_new_tuple(2);
    encoder.plain_i32(1);
    encoder.unchanged();
    encoder.finish_message()?;
    encoder.start_update(16_384, Some((OldKind::Key, 1)));
    encoder.plain_i32(1);
    encoder.start_new_tuple(2);
    encoder.plain_i32(2);
    encoder.text(b"two");
    encoder.finish_message()?;
    encoder.start_update(16_384, Some((OldKind::Full, 2)));
    encoder.plain_i32(2);
    encoder.null();
    encoder.start_new_tuple(2);
    encoder.plain_i32(3);
    encoder.null();
    encoder.finish_message()?;
    encoder.start_delete(16_384, OldKind::Key, 1);
    encoder.plain_i32(3);
    encoder.finish_message()?;
    encoder.start_delete(16_385, OldKind::Full, 2);
    encoder.null();
    encoder.text(b"gone");
    encoder.finish_message()
}

fn truncate_and_logical(encoder: &mut Encoder) -> Result<(), EncodeError> {
    let flags = Truncate::CASCADE | Truncate::RESTART_SEQS;
    encoder.truncate(&Truncate {
        flags,
        relations: List::from(&[16_384, 16_385][..]),
    })?;
    encoder.logical(&Logical {
        transactional: true,
        lsn: Lsn(0x99),
        prefix: "pg_ha",
        content: b"sync\0event",
    })?;
    encoder.logical(&Logical {
        transactional: false,
        lsn: Lsn(0x9A),
        prefix: "",
        content: b"",
    })
}

fn empty_transaction(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.begin(&begin(&[]))?;
    encoder.commit(&COMMIT)
}

fn transaction_in_progress(encoder: &mut Encoder) -> Result<(), EncodeError> {
    for subxid in [741, 742] {
        encoder.stream_start(StreamStart { xid: 741, subxid })?;
        encoder.start_insert(16_384, 1);
        encoder.plain_i32(1);
        encoder.finish_message()?;
    }
    encoder.stream_abort_sub(StreamAbortSub {
        xid: 741,
        subxid: 742,
    })?;
    encoder.stream_abort(StreamAbort { xid: u32::MAX })?;
    encoder.stream_commit(&StreamCommit {
        begin: begin(&[Seen {
            origin: NodeId::MIN,
            lsn: Lsn(0x2A),
            timestamp: PgTimestamp(1),
        }]),
        wal_end: COMMIT.wal_end,
    })
}

fn prepared_transaction(encoder: &mut Encoder) -> Result<(), EncodeError> {
    let gid = "größe 1";
    encoder.prepare(&Prepare {
        gid,
        begin: begin(&[]),
    })?;
    encoder.commit_prepared(&CommitPrepared {
        gid,
        begin: begin(&[Seen {
            origin: NodeId::MIN,
            lsn: Lsn(0x2A),
            timestamp: PgTimestamp(1),
        }]),
        wal_end: COMMIT.wal_end,
    })?;
    encoder.rollback_prepared(&RollbackPrepared {
        gid: "",
        xid: 742,
        end_lsn: COMMIT.end_lsn,
    })
}

fn forwarded_transaction(encoder: &mut Encoder) -> Result<(), EncodeError> {
    encoder.begin(&Begin {
        origin: NodeId::MIN,
        origin_lsn: Lsn(0x77),
        lane: 5,
        via: List::from(&[NodeId::MAX, NodeId::MIN][..]),
        ..begin(&[])
    })?;
    encoder.commit(&COMMIT)
}
