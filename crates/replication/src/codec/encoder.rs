//! Messages to frame.

use super::error::EncodeError;
use super::message::{
    Begin, Commit, CommitPrepared, Hello, Logical, Message, OldKind, Prepare, Relation, RollbackPrepared,
    StreamAbort, StreamAbortSub, StreamCommit, StreamStart, Truncate,
};
use super::tuple::{Column, Tuple, state};
use super::wire::{put_bytes, put_string, put_varint};
use super::{HEADER_BYTES, MAX_BODY_BYTES, MAX_COLUMNS, tag};

/// Collects messages into a frame, in one buffer that is kept from frame to frame.
///
/// Row messages are written column by column, without allocation:
///
/// ```
/// use pg_ha_replication::codec::{EncodeError, Encoder, OldKind};
///
/// let mut encoder = Encoder::new();
/// encoder.start_update(16384, Some((OldKind::Key, 1)));
/// encoder.plain_i32(7);
/// encoder.start_new_tuple(2);
/// encoder.plain_i32(8);
/// encoder.unchanged();
/// encoder.finish_message()?;
/// # Ok::<(), EncodeError>(())
/// ```
///
/// Wrong use (a missing or extra column, a message begun inside another) is noticed by the next `finish_message` or
/// whole message, which takes the message back and returns an error.
#[derive(Debug, Default)]
pub struct Encoder {
    frame: Vec<u8>,
    open: Open,
}

/// The message being written.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    stage: Stage,
    /// Where it begins in the frame.
    start: usize,
    /// Columns still to come in the current tuple.
    columns_left: u16,
    wrong: Option<EncodeError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Closed,
    /// `start_new_tuple` must still come.
    BeforeNewTuple,
    LastTuple,
}

/// A state of an [`Encoder`] to which it can be taken back.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    len: usize,
    open: Open,
}

impl Encoder {
    /// An empty frame.
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// Empties the frame and keeps its memory.
    pub fn clear(&mut self) {
        self.frame.clear();
        self.open = Open::default();
    }

    /// Gives memory back that the frame holds above `bytes`, after an exceptionally large row.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.frame.shrink_to(bytes);
    }

    /// The frame's length in bytes.
    pub fn len(&self) -> usize {
        self.frame.len()
    }

    /// Whether there is nothing in the frame.
    pub fn is_empty(&self) -> bool {
        self.frame.is_empty()
    }

    /// The frame. Whole messages only, unless one has been begun and not finished.
    pub fn as_bytes(&self) -> &[u8] {
        &self.frame
    }

    /// The present state, to come back to when writing what follows is interrupted (by a PostgreSQL ERROR, say).
    pub fn mark(&self) -> Mark {
        Mark {
            len: self.frame.len(),
            open: self.open,
        }
    }

    /// Takes back everything since `mark`. A mark from before the last `clear` empties the frame.
    pub fn truncate_to(&mut self, mark: Mark) {
        if mark.len > self.frame.len() {
            return self.clear();
        }
        self.frame.truncate(mark.len);
        self.open = mark.open;
    }

    /// Adds a [`Hello`].
    pub fn hello(&mut self, hello: &Hello<'_>) -> Result<(), EncodeError> {
        self.whole(tag::HELLO, |out| {
            out.extend_from_slice(&hello.protocol.to_le_bytes());
            out.extend_from_slice(&hello.server_version_num.to_le_bytes());
            out.extend_from_slice(&hello.node_id.get().to_le_bytes());
            out.extend_from_slice(&hello.system_identifier.to_le_bytes());
            out.extend_from_slice(&hello.flags.to_le_bytes());
            put_string(out, hello.extension_version)?;
            put_string(out, hello.node_name)?;
            put_string(out, hello.encoding)
        })
    }

    /// Adds a [`Begin`].
    pub fn begin(&mut self, begin: &Begin<'_>) -> Result<(), EncodeError> {
        self.whole(tag::BEGIN, |out| put_begin(out, begin))
    }

    /// Adds a [`Commit`].
    pub fn commit(&mut self, commit: &Commit) -> Result<(), EncodeError> {
        self.whole(tag::COMMIT, |out| {
            out.extend_from_slice(&commit.commit_lsn.0.to_le_bytes());
            out.extend_from_slice(&commit.end_lsn.0.to_le_bytes());
            out.extend_from_slice(&commit.commit_ts.0.to_le_bytes());
            out.extend_from_slice(&commit.wal_end.0.to_le_bytes());
            Ok(())
        })
    }

    /// Adds a [`Relation`] of at most [`MAX_COLUMNS`] columns.
    pub fn relation(&mut self, relation: &Relation<'_>) -> Result<(), EncodeError> {
        self.whole(tag::RELATION, |out| {
            if relation.columns.len() > usize::from(MAX_COLUMNS) {
                return Err(EncodeError::TooManyColumns {
                    found: relation.columns.len(),
                });
            }
            out.extend_from_slice(&relation.id.to_le_bytes());
            out.push(relation.replica_identity.as_byte());
            put_string(out, relation.namespace)?;
            put_string(out, relation.name)?;
            relation.columns.write(out)
        })
    }

    /// Adds a [`Truncate`].
    pub fn truncate(&mut self, truncate: &Truncate<'_>) -> Result<(), EncodeError> {
        self.whole(tag::TRUNCATE, |out| {
            out.push(truncate.flags);
            truncate.relations.write(out)
        })
    }

    /// Adds a [`Logical`].
    pub fn logical(&mut self, logical: &Logical<'_>) -> Result<(), EncodeError> {
        self.whole(tag::LOGICAL, |out| {
            out.push(u8::from(logical.transactional));
            out.extend_from_slice(&logical.lsn.0.to_le_bytes());
            put_string(out, logical.prefix)?;
            put_bytes(out, logical.content)
        })
    }

    /// Adds a [`StreamStart`].
    pub fn stream_start(&mut self, start: StreamStart) -> Result<(), EncodeError> {
        self.whole(tag::STREAM_START, |out| {
            out.extend_from_slice(&start.xid.to_le_bytes());
            out.extend_from_slice(&start.subxid.to_le_bytes());
            Ok(())
        })
    }

    /// Adds a [`StreamCommit`].
    pub fn stream_commit(&mut self, commit: &StreamCommit<'_>) -> Result<(), EncodeError> {
        self.whole(tag::STREAM_COMMIT, |out| {
            out.extend_from_slice(&commit.wal_end.0.to_le_bytes());
            put_begin(out, &commit.begin)
        })
    }

    /// Adds a [`StreamAbort`].
    pub fn stream_abort(&mut self, abort: StreamAbort) -> Result<(), EncodeError> {
        self.whole(tag::STREAM_ABORT, |out| {
            out.extend_from_slice(&abort.xid.to_le_bytes());
            Ok(())
        })
    }

    /// Adds a [`StreamAbortSub`].
    pub fn stream_abort_sub(&mut self, abort: StreamAbortSub) -> Result<(), EncodeError> {
        self.whole(tag::STREAM_ABORT_SUB, |out| {
            out.extend_from_slice(&abort.xid.to_le_bytes());
            out.extend_from_slice(&abort.subxid.to_le_bytes());
            Ok(())
        })
    }

    /// Adds a [`Prepare`].
    pub fn prepare(&mut self, prepare: &Prepare<'_>) -> Result<(), EncodeError> {
        self.whole(tag::PREPARE, |out| {
            put_string(out, prepare.gid)?;
            put_begin(out, &prepare.begin)
        })
    }

    /// Adds a [`CommitPrepared`].
    pub fn commit_prepared(&mut self, commit: &CommitPrepared<'_>) -> Result<(), EncodeError> {
        self.whole(tag::COMMIT_PREPARED, |out| {
            put_string(out, commit.gid)?;
            out.extend_from_slice(&commit.wal_end.0.to_le_bytes());
            put_begin(out, &commit.begin)
        })
    }

    /// Adds a [`RollbackPrepared`].
    pub fn rollback_prepared(&mut self, rollback: &RollbackPrepared<'_>) -> Result<(), EncodeError> {
        self.whole(tag::ROLLBACK_PREPARED, |out| {
            put_string(out, rollback.gid)?;
            out.extend_from_slice(&rollback.xid.to_le_bytes());
            out.extend_from_slice(&rollback.end_lsn.0.to_le_bytes());
            Ok(())
        })
    }

    /// Adds any message, e.g. one that was just decoded.
    pub fn message(&mut self, message: &Message<'_>) -> Result<(), EncodeError> {
        match message {
            Message::Hello(hello) => self.hello(hello),
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => self.commit(commit),
            Message::Relation(relation) => self.relation(relation),
            Message::Truncate(truncate) => self.truncate(truncate),
            Message::Logical(logical) => self.logical(logical),
            Message::StreamStart(start) => self.stream_start(*start),
            Message::StreamCommit(commit) => self.stream_commit(commit),
            Message::StreamAbort(abort) => self.stream_abort(*abort),
            Message::StreamAbortSub(abort) => self.stream_abort_sub(*abort),
            Message::Prepare(prepare) => self.prepare(prepare),
            Message::CommitPrepared(commit) => self.commit_prepared(commit),
            Message::RollbackPrepared(rollback) => self.rollback_prepared(rollback),
            Message::Insert(insert) => {
                self.start_insert(insert.relation, insert.new.column_count());
                self.columns(&insert.new);
                self.finish_message()
            }
            Message::Update(update) => {
                let old = update.old.as_ref();
                self.start_update(
                    update.relation,
                    old.map(|(kind, tuple)| (*kind, tuple.column_count())),
                );
                if let Some((_, tuple)) = old {
                    self.columns(tuple);
                }
                self.start_new_tuple(update.new.column_count());
                self.columns(&update.new);
                self.finish_message()
            }
            Message::Delete(delete) => {
                let (kind, tuple) = &delete.old;
                self.start_delete(delete.relation, *kind, tuple.column_count());
                self.columns(tuple);
                self.finish_message()
            }
        }
    }

    /// Begins an insert of `columns` columns: as many column calls follow, then [`Self::finish_message`].
    pub fn start_insert(&mut self, relation: u32, columns: u16) {
        self.start(tag::INSERT, relation, Stage::LastTuple);
        self.start_tuple(columns);
    }

    /// Begins an update. With an old row, its columns follow; in any case then [`Self::start_new_tuple`].
    pub fn start_update(&mut self, relation: u32, old: Option<(OldKind, u16)>) {
        self.start(tag::UPDATE, relation, Stage::BeforeNewTuple);
        match old {
            Some((kind, columns)) => {
                self.frame.push(old_code(kind));
                self.start_tuple(columns);
            }
            None => self.frame.push(0),
        }
    }

    /// Goes on to an update's new row of `columns` columns: they follow, then [`Self::finish_message`].
    pub fn start_new_tuple(&mut self, columns: u16) {
        if self.open.stage != Stage::BeforeNewTuple || self.open.columns_left != 0 {
            return self.blame(EncodeError::ColumnCount);
        }
        self.open.stage = Stage::LastTuple;
        self.start_tuple(columns);
    }

    /// Begins a delete whose old row has `columns` columns: they follow, then [`Self::finish_message`].
    pub fn start_delete(&mut self, relation: u32, kind: OldKind, columns: u16) {
        self.start(tag::DELETE, relation, Stage::LastTuple);
        self.frame.push(old_code(kind));
        self.start_tuple(columns);
    }

    /// A column: SQL NULL.
    #[inline]
    pub fn null(&mut self) {
        if self.next_column() {
            self.frame.push(state::NULL);
        }
    }

    /// A column: an out-of-line value that did not change and is not sent.
    #[inline]
    pub fn unchanged(&mut self) {
        if self.next_column() {
            self.frame.push(state::UNCHANGED);
        }
    }

    /// A column in the portable form, see [`super::plain`].
    #[inline]
    pub fn plain(&mut self, bytes: &[u8]) {
        self.value(state::PLAIN, bytes);
    }

    /// A column: what the type's send function gave.
    #[inline]
    pub fn binary(&mut self, bytes: &[u8]) {
        self.value(state::BINARY, bytes);
    }

    /// A column: what the type's output function gave, without its terminating zero.
    #[inline]
    pub fn text(&mut self, bytes: &[u8]) {
        self.value(state::TEXT, bytes);
    }

    /// A plain column of type bool.
    #[inline]
    pub fn plain_bool(&mut self, value: bool) {
        self.small(&[state::PLAIN, 1, u8::from(value)]);
    }

    /// A plain column of type int2.
    #[inline]
    pub fn plain_i16(&mut self, value: i16) {
        let [a, b] = value.to_le_bytes();
        self.small(&[state::PLAIN, 2, a, b]);
    }

    /// A plain column of type int4 or date.
    #[inline]
    pub fn plain_i32(&mut self, value: i32) {
        self.plain_u32(value as u32);
    }

    /// A plain column of type oid.
    #[inline]
    pub fn plain_u32(&mut self, value: u32) {
        let [a, b, c, d] = value.to_le_bytes();
        self.small(&[state::PLAIN, 4, a, b, c, d]);
    }

    /// A plain column of type int8, time, timestamp, timestamptz or money.
    #[inline]
    pub fn plain_i64(&mut self, value: i64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.small(&[state::PLAIN, 8, a, b, c, d, e, f, g, h]);
    }

    /// A plain column of type float4.
    #[inline]
    pub fn plain_f32(&mut self, value: f32) {
        self.plain_u32(value.to_bits());
    }

    /// A plain column of type float8.
    #[inline]
    pub fn plain_f64(&mut self, value: f64) {
        self.plain_i64(value.to_bits() as i64);
    }

    /// A column in the form in which it was decoded.
    pub fn column(&mut self, column: Column<'_>) {
        match column {
            Column::Null => self.null(),
            Column::Unchanged => self.unchanged(),
            Column::Plain(bytes) => self.plain(bytes),
            Column::Binary(bytes) => self.binary(bytes),
            Column::Text(bytes) => self.text(bytes),
        }
    }

    /// Completes the row message. On an error the frame is what it was before the message.
    pub fn finish_message(&mut self) -> Result<(), EncodeError> {
        let open = std::mem::take(&mut self.open);
        if open.stage == Stage::Closed {
            return Err(open.wrong.unwrap_or(EncodeError::Unfinished));
        }
        let incomplete = open.stage != Stage::LastTuple || open.columns_left != 0;
        let checked = match open.wrong {
            Some(wrong) => Err(wrong),
            None if incomplete => Err(EncodeError::ColumnCount),
            None => self.patch_length(open.start),
        };
        if checked.is_err() {
            self.frame.truncate(open.start);
        }
        checked
    }

    fn columns(&mut self, tuple: &Tuple<'_>) {
        tuple.columns().for_each(|column| self.column(column));
    }

    fn start(&mut self, tag: u8, relation: u32, stage: Stage) {
        let mut wrong = self.open.wrong;
        if self.open.stage != Stage::Closed {
            self.frame.truncate(self.open.start);
            wrong = Some(EncodeError::Unfinished);
        }
        self.open = Open {
            stage,
            start: self.frame.len(),
            columns_left: 0,
            wrong,
        };
        let [a, b, c, d] = relation.to_le_bytes();
        self.frame.extend_from_slice(&[tag, 0, 0, 0, 0, a, b, c, d]);
    }

    fn start_tuple(&mut self, columns: u16) {
        if columns > MAX_COLUMNS {
            return self.blame(EncodeError::TooManyColumns {
                found: usize::from(columns),
            });
        }
        self.open.columns_left = columns;
        self.frame.extend_from_slice(&columns.to_le_bytes());
    }

    #[inline]
    fn next_column(&mut self) -> bool {
        match self.open.columns_left.checked_sub(1) {
            Some(left) => {
                self.open.columns_left = left;
                true
            }
            None => {
                self.blame(EncodeError::ColumnCount);
                false
            }
        }
    }

    #[inline]
    fn small(&mut self, column: &[u8]) {
        if self.next_column() {
            self.frame.extend_from_slice(column);
        }
    }

    #[inline]
    fn value(&mut self, state: u8, bytes: &[u8]) {
        if !self.next_column() {
            return;
        }
        if bytes.len() > MAX_BODY_BYTES {
            return self.blame(EncodeError::BodyTooLong);
        }
        self.frame.push(state);
        put_varint(&mut self.frame, bytes.len() as u32);
        self.frame.extend_from_slice(bytes);
    }

    /// Remembers the first thing that went wrong, for `finish_message`.
    #[cold]
    fn blame(&mut self, wrong: EncodeError) {
        self.open.wrong.get_or_insert(wrong);
    }

    fn whole(
        &mut self,
        tag: u8,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let open = std::mem::take(&mut self.open);
        if open.stage != Stage::Closed {
            self.frame.truncate(open.start);
            return Err(EncodeError::Unfinished);
        }
        if let Some(wrong) = open.wrong {
            return Err(wrong);
        }
        let start = self.frame.len();
        self.frame.extend_from_slice(&[tag, 0, 0, 0, 0]);
        let written = write(&mut self.frame).and_then(|()| self.patch_length(start));
        if written.is_err() {
            self.frame.truncate(start);
        }
        written
    }

    fn patch_length(&mut self, start: usize) -> Result<(), EncodeError> {
        let body = self.frame.len().saturating_sub(start + HEADER_BYTES);
        if body > MAX_BODY_BYTES {
            return Err(EncodeError::BodyTooLong);
        }
        if let Some(length) = self.frame.get_mut(start + 1..start + HEADER_BYTES) {
            length.copy_from_slice(&(body as u32).to_le_bytes());
        }
        Ok(())
    }
}

fn put_begin(out: &mut Vec<u8>, begin: &Begin<'_>) -> Result<(), EncodeError> {
    out.extend_from_slice(&begin.xid.to_le_bytes());
    out.extend_from_slice(&begin.commit_lsn.0.to_le_bytes());
    out.extend_from_slice(&begin.end_lsn.0.to_le_bytes());
    out.extend_from_slice(&begin.commit_ts.0.to_le_bytes());
    out.extend_from_slice(&begin.origin.get().to_le_bytes());
    out.extend_from_slice(&begin.origin_lsn.0.to_le_bytes());
    out.extend_from_slice(&begin.lane.to_le_bytes());
    begin.via.write(out)?;
    begin.seen.write(out)
}

fn old_code(kind: OldKind) -> u8 {
    match kind {
        OldKind::Key => 1,
        OldKind::Full => 2,
    }
}
