//! Frame to messages.

use pg_ha_model::PgTimestamp;

use super::error::{CodecError, Fault};
use super::list::List;
use super::message::{
    Begin, Commit, CommitPrepared, Delete, Hello, Insert, Logical, Message, OldKind, Prepare, Relation,
    ReplicaIdentity, RollbackPrepared, StreamAbort, StreamAbortSub, StreamCommit, StreamStart, Truncate,
    Update,
};
use super::tuple::Tuple;
use super::wire::Reader;
use super::{MAX_BODY_BYTES, MAX_COLUMNS, OPTIONAL_TAG, tag};

/// Reads a frame's messages one by one. Never allocates: messages borrow from the frame, and every length is checked
/// against what is left of it.
#[derive(Clone)]
pub struct Decoder<'a> {
    frame_len: usize,
    reader: Reader<'a>,
    failed: Option<CodecError>,
}

impl<'a> Decoder<'a> {
    /// At the beginning of a frame.
    pub fn new(frame: &'a [u8]) -> Decoder<'a> {
        Decoder {
            frame_len: frame.len(),
            reader: Reader::new(frame),
            failed: None,
        }
    }

    /// How many bytes of the frame have been read.
    pub fn offset(&self) -> usize {
        self.frame_len - self.reader.rest().len()
    }

    /// The next message, fully checked; none at the end of the frame. After an error the same error again: what
    /// follows cannot be told from garbage.
    #[allow(
        clippy::should_implement_trait,
        reason = "Result<Option<_>> lets callers write `while let Some(m) = d.next()?`"
    )]
    pub fn next(&mut self) -> Result<Option<Message<'a>>, CodecError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        while !self.reader.rest().is_empty() {
            let offset = self.offset();
            let error = |fault, message| CodecError {
                fault,
                message,
                offset,
            };
            let next = match self.header() {
                Ok((tag, _)) if tag & OPTIONAL_TAG != 0 => continue,
                Ok((tag, body)) => decode_body(tag, body).map_err(|fault| error(fault, kind(tag))),
                Err(fault) => Err(error(fault, "message header")),
            };
            self.failed = next.as_ref().err().copied();
            return next.map(Some);
        }
        Ok(None)
    }

    fn header(&mut self) -> Result<(u8, &'a [u8]), Fault> {
        let tag = self.reader.u8()?;
        let length = self.reader.u32()? as usize;
        if length > MAX_BODY_BYTES {
            return Err(Fault::BodyTooLong { length });
        }
        Ok((tag, self.reader.take(length)?))
    }
}

fn kind(tag: u8) -> &'static str {
    match tag {
        tag::HELLO => "Hello",
        tag::BEGIN => "Begin",
        tag::COMMIT => "Commit",
        tag::RELATION => "Relation",
        tag::INSERT => "Insert",
        tag::UPDATE => "Update",
        tag::DELETE => "Delete",
        tag::TRUNCATE => "Truncate",
        tag::LOGICAL => "Logical",
        tag::STREAM_START => "StreamStart",
        tag::STREAM_COMMIT => "StreamCommit",
        tag::STREAM_ABORT => "StreamAbort",
        tag::STREAM_ABORT_SUB => "StreamAbortSub",
        tag::PREPARE => "Prepare",
        tag::COMMIT_PREPARED => "CommitPrepared",
        tag::ROLLBACK_PREPARED => "RollbackPrepared",
        _ => "message header",
    }
}

fn decode_body(tag: u8, body: &[u8]) -> Result<Message<'_>, Fault> {
    let mut reader = Reader::new(body);
    let r = &mut reader;
    let message = match tag {
        tag::INSERT => Message::Insert(Insert {
            relation: r.u32()?,
            new: Tuple::read(r)?,
        }),
        tag::UPDATE => Message::Update(Update {
            relation: r.u32()?,
            old: old_row(r)?,
            new: Tuple::read(r)?,
        }),
        tag::DELETE => Message::Delete(delete(r)?),
        tag::BEGIN => Message::Begin(begin(r)?),
        tag::COMMIT => Message::Commit(Commit {
            commit_lsn: r.lsn()?,
            end_lsn: r.lsn()?,
            commit_ts: PgTimestamp(r.i64()?),
            wal_end: r.lsn()?,
        }),
        tag::RELATION => Message::Relation(relation(r)?),
        tag::TRUNCATE => Message::Truncate(Truncate {
            flags: r.u8()?,
            relations: List::read(r)?,
        }),
        tag::LOGICAL => Message::Logical(logical(r)?),
        tag::HELLO => Message::Hello(hello(r)?),
        tag::STREAM_START => Message::StreamStart(StreamStart {
            xid: r.u32()?,
            subxid: r.u32()?,
        }),
        tag::STREAM_COMMIT => Message::StreamCommit(StreamCommit {
            wal_end: r.lsn()?,
            begin: begin(r)?,
        }),
        tag::STREAM_ABORT => Message::StreamAbort(StreamAbort { xid: r.u32()? }),
        tag::STREAM_ABORT_SUB => Message::StreamAbortSub(StreamAbortSub {
            xid: r.u32()?,
            subxid: r.u32()?,
        }),
        tag::PREPARE => Message::Prepare(Prepare {
            gid: r.string()?,
            begin: begin(r)?,
        }),
        tag::COMMIT_PREPARED => Message::CommitPrepared(CommitPrepared {
            gid: r.string()?,
            wal_end: r.lsn()?,
            begin: begin(r)?,
        }),
        tag::ROLLBACK_PREPARED => Message::RollbackPrepared(RollbackPrepared {
            gid: r.string()?,
            xid: r.u32()?,
            end_lsn: r.lsn()?,
        }),
        tag => return Err(Fault::UnknownTag { tag }),
    };
    match reader.rest().len() {
        0 => Ok(message),
        count => Err(Fault::LeftOver { count }),
    }
}

fn hello<'a>(r: &mut Reader<'a>) -> Result<Hello<'a>, Fault> {
    Ok(Hello {
        protocol: r.u16()?,
        server_version_num: r.u32()?,
        node_id: r.node_id()?,
        system_identifier: r.u64()?,
        flags: r.u32()?,
        extension_version: r.string()?,
        node_name: r.string()?,
        encoding: r.string()?,
    })
}

fn begin<'a>(r: &mut Reader<'a>) -> Result<Begin<'a>, Fault> {
    Ok(Begin {
        xid: r.u32()?,
        commit_lsn: r.lsn()?,
        end_lsn: r.lsn()?,
        commit_ts: PgTimestamp(r.i64()?),
        origin: r.node_id()?,
        origin_lsn: r.lsn()?,
        lane: r.u16()?,
        via: List::read(r)?,
        seen: List::read(r)?,
    })
}

fn relation<'a>(r: &mut Reader<'a>) -> Result<Relation<'a>, Fault> {
    let id = r.u32()?;
    let identity = r.u8()?;
    let replica_identity = ReplicaIdentity::from_byte(identity).ok_or(Fault::UnknownCode {
        field: "replica identity",
        found: identity,
    })?;
    let relation = Relation {
        id,
        replica_identity,
        namespace: r.string()?,
        name: r.string()?,
        columns: List::read(r)?,
    };
    match relation.columns.len() {
        found if found > usize::from(MAX_COLUMNS) => Err(Fault::TooManyColumns { found: found as u32 }),
        _ => Ok(relation),
    }
}

fn old_row<'a>(r: &mut Reader<'a>) -> Result<Option<(OldKind, Tuple<'a>)>, Fault> {
    let kind = match r.u8()? {
        0 => return Ok(None),
        1 => OldKind::Key,
        2 => OldKind::Full,
        found => {
            return Err(Fault::UnknownCode {
                field: "old row kind",
                found,
            });
        }
    };
    Ok(Some((kind, Tuple::read(r)?)))
}

fn delete<'a>(r: &mut Reader<'a>) -> Result<Delete<'a>, Fault> {
    let relation = r.u32()?;
    let old = old_row(r)?.ok_or(Fault::UnknownCode {
        field: "old row kind",
        found: 0,
    })?;
    Ok(Delete { relation, old })
}

fn logical<'a>(r: &mut Reader<'a>) -> Result<Logical<'a>, Fault> {
    let transactional = match r.u8()? {
        0 => false,
        1 => true,
        found => {
            return Err(Fault::UnknownCode {
                field: "transactional flag",
                found,
            });
        }
    };
    Ok(Logical {
        transactional,
        lsn: r.lsn()?,
        prefix: r.string()?,
        content: r.bytes()?,
    })
}
