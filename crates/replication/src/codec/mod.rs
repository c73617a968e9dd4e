//! The binary form of the change stream, protocol version 1.
//!
//! # Frames
//!
//! A *frame* is the payload of one XLogData message: one or more messages, one behind the other. A small transaction
//! is one frame, which saves most of the per-message cost that pgoutput pays. A message never spans two frames, a
//! transaction may.
//!
//! # Messages
//!
//! `tag u8, body length u32, body`. All integers are little-endian. *Strings* and *byte strings* are a varint length
//! and their bytes; strings are UTF-8. A *varint* is an unsigned LEB128 number below 2^32 in its shortest form. A
//! *list* is a varint count and the items.
//!
//! | tag | message | body |
//! |---|---|---|
//! | `H` | [`Hello`] | protocol u16, server_version_num u32, node_id u16, system_identifier u64, flags u32, strings: extension_version, node_name, encoding |
//! | `B` | [`Begin`] | xid u32, commit_lsn u64, end_lsn u64, commit_ts i64, origin u16, origin_lsn u64, lane u16, list of node u16, list of (origin u16, lsn u64, timestamp i64) |
//! | `C` | [`Commit`] | commit_lsn u64, end_lsn u64, commit_ts i64, wal_end u64 |
//! | `R` | [`Relation`] | id u32, replica identity u8 (`d`, `i`, `f`, `n`), strings: namespace, name, list of columns: flags u8, type_oid u32, typmod i32, strings: name, type_namespace, type_name |
//! | `I` | [`Insert`] | relation u32, tuple |
//! | `U` | [`Update`] | relation u32, old kind u8 (0 none, 1 key, 2 full), old tuple unless none, new tuple |
//! | `D` | [`Delete`] | relation u32, old kind u8 (1 key, 2 full), old tuple |
//! | `T` | [`Truncate`] | flags u8, list of relation u32 |
//! | `M` | [`Logical`] | transactional u8 (0, 1), lsn u64, string prefix, byte string content |
//! | `S` | [`StreamStart`] | xid u32, subxid u32 |
//! | `c` | [`StreamCommit`] | wal_end u64, then as `B` |
//! | `A` | [`StreamAbort`] | xid u32 |
//! | `a` | [`StreamAbortSub`] | xid u32, subxid u32 |
//! | `P` | [`Prepare`] | string gid, then as `B` |
//! | `K` | [`CommitPrepared`] | string gid, wal_end u64, then as `B` |
//! | `r` | [`RollbackPrepared`] | string gid, xid u32, end_lsn u64 |
//!
//! A *tuple* is a column count u16 (at most [`MAX_COLUMNS`]) and per column one state byte: 0 null, 1 unchanged,
//! 2 plain, 3 binary, 4 text; the last three are followed by the value as a byte string. See [`Column`] and [`plain`].
//!
//! # Transactions in progress
//!
//! A large transaction may come before it commits, to subscribers that asked for it: in *chunks*, with whole
//! transactions and chunks of others in between, and then either `c` or `A`. A chunk is a frame that begins with `S`,
//! holds messages of one transaction and no `B` or `C`; what follows an `S` belongs to that subtransaction until the
//! next `S` of the frame. Frames that begin with `c`, `A` or `a` hold nothing else. So the first byte of a frame tells
//! whether it is about transactions in progress ([`is_streamed`]), and chunks can be kept as they are.
//!
//! Rows in chunks refer to relations that the same transaction described, in its chunks: what others described in
//! between counts for the others. A [`Relation`] counts for what follows it even where its subtransaction is aborted.
//! After `c`, `P` and `K` every relation is described anew before others use it.
//!
//! # Prepared transactions
//!
//! To subscribers that asked for it a prepared transaction comes in chunks whatever its size, and ends in `P`; then,
//! perhaps in another session, `K` or `r` tells what became of it. Frames that begin with `P`, `K` or `r` hold nothing
//! else. One of which nothing is wanted has no chunks, and a `P` all the same.
//!
//! # Versions
//!
//! The two ends agree on a version before the first frame (see [`crate::options`]). Within a version nothing changes
//! but tags from 0x80 on: those messages are optional, and a decoder that does not know one skips it. Any other
//! unknown tag, unknown code or left-over byte is an error.
//!
//! # Text
//!
//! Identifiers and values of text types are in the encoding that [`Hello`] names; identifiers are UTF-8 always.

mod decoder;
mod encoder;
mod error;
mod list;
mod message;
pub mod plain;
mod tuple;
mod wire;

pub use decoder::Decoder;
pub use encoder::{Encoder, Mark};
pub use error::{CodecError, EncodeError, Fault};
pub use list::{List, ListItem, ListIter};
pub use message::{
    Begin, Commit, CommitPrepared, Delete, Hello, Insert, Logical, Message, OldKind, Prepare, Relation,
    RelationColumn, ReplicaIdentity, RollbackPrepared, Seen, StreamAbort, StreamAbortSub, StreamCommit,
    StreamStart, Truncate, Update,
};
pub use tuple::{Column, Columns, Tuple};

/// The lowest protocol version this code speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The highest protocol version this code speaks.
pub const PROTOCOL_MAX: u16 = 1;
/// The most columns of a relation or tuple: PostgreSQL's MaxTupleAttributeNumber.
pub const MAX_COLUMNS: u16 = 1664;
/// The longest message body in bytes: PostgreSQL's MaxAllocSize, 1 GiB - 1.
pub const MAX_BODY_BYTES: usize = 0x3FFF_FFFF;
/// Bytes before each body: tag and length.
pub const HEADER_BYTES: usize = 5;
/// Messages whose tag has this bit may be skipped by those who do not know them.
pub const OPTIONAL_TAG: u8 = 0x80;

/// The tags of version 1.
mod tag {
    pub(super) const HELLO: u8 = b'H';
    pub(super) const BEGIN: u8 = b'B';
    pub(super) const COMMIT: u8 = b'C';
    pub(super) const RELATION: u8 = b'R';
    pub(super) const INSERT: u8 = b'I';
    pub(super) const UPDATE: u8 = b'U';
    pub(super) const DELETE: u8 = b'D';
    pub(super) const TRUNCATE: u8 = b'T';
    pub(super) const LOGICAL: u8 = b'M';
    pub(super) const STREAM_START: u8 = b'S';
    pub(super) const STREAM_COMMIT: u8 = b'c';
    pub(super) const STREAM_ABORT: u8 = b'A';
    pub(super) const STREAM_ABORT_SUB: u8 = b'a';
    pub(super) const PREPARE: u8 = b'P';
    pub(super) const COMMIT_PREPARED: u8 = b'K';
    pub(super) const ROLLBACK_PREPARED: u8 = b'r';
}

/// Whether a frame is a chunk of a transaction in progress.
#[inline]
pub fn is_chunk(frame: &[u8]) -> bool {
    frame.first() == Some(&tag::STREAM_START)
}

/// Whether a frame is about transactions in progress or prepared: a chunk of one, or the end of some.
#[inline]
pub fn is_streamed(frame: &[u8]) -> bool {
    matches!(
        frame.first(),
        Some(
            &(tag::STREAM_START
                | tag::STREAM_COMMIT
                | tag::STREAM_ABORT
                | tag::STREAM_ABORT_SUB
                | tag::PREPARE
                | tag::COMMIT_PREPARED
                | tag::ROLLBACK_PREPARED)
        )
    )
}
