//! The messages of the stream.

use pg_ha_model::{Lsn, NodeId, PgTimestamp};

use super::error::{EncodeError, Fault};
use super::list::{List, ListItem};
use super::tuple::Tuple;
use super::wire::{Reader, put_string};

/// One message, borrowed from its frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Message<'a> {
    /// Who speaks; the first of every session.
    Hello(Hello<'a>),
    /// A transaction begins.
    Begin(Begin<'a>),
    /// A transaction is complete.
    Commit(Commit),
    /// What a relation id in the following messages means.
    Relation(Relation<'a>),
    /// A new row.
    Insert(Insert<'a>),
    /// A changed row.
    Update(Update<'a>),
    /// A deleted row.
    Delete(Delete<'a>),
    /// Emptied tables.
    Truncate(Truncate<'a>),
    /// What somebody passed to pg_logical_emit_message().
    Logical(Logical<'a>),
    /// What follows belongs to a transaction in progress.
    StreamStart(StreamStart),
    /// A transaction that came in chunks has committed.
    StreamCommit(StreamCommit<'a>),
    /// A transaction that came in chunks was rolled back.
    StreamAbort(StreamAbort),
    /// A subtransaction of a transaction that comes in chunks was rolled back.
    StreamAbortSub(StreamAbortSub),
    /// A transaction that came in chunks was prepared.
    Prepare(Prepare<'a>),
    /// A prepared transaction has committed.
    CommitPrepared(CommitPrepared<'a>),
    /// A prepared transaction was rolled back.
    RollbackPrepared(RollbackPrepared<'a>),
}

impl Message<'_> {
    /// The kind's name, e.g. `Insert`.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "Hello",
            Message::Begin(_) => "Begin",
            Message::Commit(_) => "Commit",
            Message::Relation(_) => "Relation",
            Message::Insert(_) => "Insert",
            Message::Update(_) => "Update",
            Message::Delete(_) => "Delete",
            Message::Truncate(_) => "Truncate",
            Message::Logical(_) => "Logical",
            Message::StreamStart(_) => "StreamStart",
            Message::StreamCommit(_) => "StreamCommit",
            Message::StreamAbort(_) => "StreamAbort",
            Message::StreamAbortSub(_) => "StreamAbortSub",
            Message::Prepare(_) => "Prepare",
            Message::CommitPrepared(_) => "CommitPrepared",
            Message::RollbackPrepared(_) => "RollbackPrepared",
        }
    }
}

/// Who speaks: the first message of every session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The agreed protocol version.
    pub protocol: u16,
    /// The provider's server_version_num, e.g. 150020.
    pub server_version_num: u32,
    /// The provider's extension version, e.g. `0.1.0`.
    pub extension_version: &'a str,
    /// The provider's node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: &'a str,
    /// The provider's system identifier.
    pub system_identifier: u64,
    /// The encoding of text values in this session, by PostgreSQL's name, e.g. `UTF8`.
    pub encoding: &'a str,
    /// None defined in version 1: 0.
    pub flags: u32,
}

/// The beginning of a transaction that committed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Begin<'a> {
    /// Its transaction id on the provider, for messages to people.
    pub xid: u32,
    /// Where its commit record begins on the provider.
    pub commit_lsn: Lsn,
    /// Where its commit record ends on the provider: the position to report once it is durable here.
    pub end_lsn: Lsn,
    /// When it committed at its origin.
    pub commit_ts: PgTimestamp,
    /// The group in which it was first committed.
    pub origin: NodeId,
    /// Its commit position at its origin; the same as `end_lsn` where the provider is the origin.
    pub origin_lsn: Lsn,
    /// The provider's number for the way on which it came there: 0 for its own transactions. Those of one lane come in
    /// the order of their positions at their origin; a number means one lane for good.
    pub lane: u16,
    /// The nodes between the origin and the provider that it passed, in that order.
    pub via: List<'a, NodeId>,
    /// How far the writer's node had applied each other origin: only entries that changed since they were last sent in
    /// this session.
    pub seen: List<'a, Seen>,
}

/// How far the writer's node had applied an origin when it committed a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The origin.
    pub origin: NodeId,
    /// The commit position, at the origin, of its newest transaction that had been applied.
    pub lsn: Lsn,
    /// When that transaction committed at the origin: what a row's version can be compared with.
    pub timestamp: PgTimestamp,
}

/// The end of a transaction; repeats what its [`Begin`] said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Where its commit record begins on the provider.
    pub commit_lsn: Lsn,
    /// Where its commit record ends on the provider.
    pub end_lsn: Lsn,
    /// When it committed at its origin.
    pub commit_ts: PgTimestamp,
    /// Where the provider's durable WAL ended when this was sent: how far the subscriber is behind.
    pub wal_end: Lsn,
}

/// What identifies the old row in updates and deletes of a relation (pg_class.relreplident).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// `d`: the primary key, if there is one.
    Default,
    /// `i`: a chosen unique index.
    Index,
    /// `f`: the whole row.
    Full,
    /// `n`: nothing; the relation can only be inserted into.
    Nothing,
}

impl ReplicaIdentity {
    /// From pg_class.relreplident; none for any other byte.
    pub fn from_byte(byte: u8) -> Option<ReplicaIdentity> {
        match byte {
            b'd' => Some(ReplicaIdentity::Default),
            b'i' => Some(ReplicaIdentity::Index),
            b'f' => Some(ReplicaIdentity::Full),
            b'n' => Some(ReplicaIdentity::Nothing),
            _ => None,
        }
    }

    /// As in pg_class.relreplident.
    pub fn as_byte(self) -> u8 {
        match self {
            ReplicaIdentity::Default => b'd',
            ReplicaIdentity::Index => b'i',
            ReplicaIdentity::Full => b'f',
            ReplicaIdentity::Nothing => b'n',
        }
    }
}

/// A relation's definition as far as the stream needs it: the replicated columns, in the order in which tuples have
/// them. Sent before the relation's first row in a session and again after each change of definition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relation<'a> {
    /// The number that rows refer to: the provider's oid.
    pub id: u32,
    /// Its schema.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What identifies old rows.
    pub replica_identity: ReplicaIdentity,
    /// The columns of every new and every [`OldKind::Full`] tuple.
    pub columns: List<'a, RelationColumn<'a>>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type's oid on the provider: means the same everywhere for built-in types only.
    pub type_oid: u32,
    /// The type's schema.
    pub type_namespace: &'a str,
    /// The type's name.
    pub type_name: &'a str,
    /// The type's modifier, -1 for none.
    pub typmod: i32,
    /// [`Self::KEY`], [`Self::GENERATED`]; other bits are to be ignored.
    pub flags: u8,
}

impl RelationColumn<'_> {
    /// The column belongs to the replica identity: it is in [`OldKind::Key`] tuples.
    pub const KEY: u8 = 1;
    /// The column is generated on the provider.
    pub const GENERATED: u8 = 2;

    /// Whether the column belongs to the replica identity.
    pub fn is_key(&self) -> bool {
        self.flags & Self::KEY != 0
    }

    /// Whether the column is generated on the provider.
    pub fn is_generated(&self) -> bool {
        self.flags & Self::GENERATED != 0
    }
}

impl<'a> ListItem<'a> for RelationColumn<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<RelationColumn<'a>, Fault> {
        Ok(RelationColumn {
            flags: reader.u8()?,
            type_oid: reader.u32()?,
            typmod: reader.i32()?,
            name: reader.string()?,
            type_namespace: reader.string()?,
            type_name: reader.string()?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.push(self.flags);
        out.extend_from_slice(&self.type_oid.to_le_bytes());
        out.extend_from_slice(&self.typmod.to_le_bytes());
        put_string(out, self.name)?;
        put_string(out, self.type_namespace)?;
        put_string(out, self.type_name)
    }
}

/// A new row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    /// The relation's id.
    pub relation: u32,
    /// The row.
    pub new: Tuple<'a>,
}

/// Which columns an old tuple has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldKind {
    /// Only the relation's columns with [`RelationColumn::KEY`], in the relation's order.
    Key,
    /// All of the relation's columns.
    Full,
}

/// A changed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    /// The relation's id.
    pub relation: u32,
    /// The row before: none if its key did not change and the identity is not full (the key is then in `new`).
    pub old: Option<(OldKind, Tuple<'a>)>,
    /// The row after.
    pub new: Tuple<'a>,
}

/// A deleted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    /// The relation's id.
    pub relation: u32,
    /// The row.
    pub old: (OldKind, Tuple<'a>),
}

/// Tables emptied by one TRUNCATE.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truncate<'a> {
    /// [`Self::CASCADE`], [`Self::RESTART_SEQS`].
    pub flags: u8,
    /// The relations' ids.
    pub relations: List<'a, u32>,
}

impl Truncate<'_> {
    /// TRUNCATE … CASCADE.
    pub const CASCADE: u8 = 1;
    /// TRUNCATE … RESTART IDENTITY.
    pub const RESTART_SEQS: u8 = 2;
}

/// A logical message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logical<'a> {
    /// Whether it is part of a transaction (and then stands between its begin and commit).
    pub transactional: bool,
    /// Its position on the provider.
    pub lsn: Lsn,
    /// The prefix that tells users of messages apart.
    pub prefix: &'a str,
    /// Its content.
    pub content: &'a [u8],
}

/// What follows in the frame belongs to a transaction in progress: the first message of each of its frames, and again
/// where the subtransaction changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStart {
    /// The transaction's id on the provider.
    pub xid: u32,
    /// The subtransaction's; the transaction's own id outside any.
    pub subxid: u32,
}

/// A transaction that came in chunks has committed: everything of it that was not aborted counts, in the order in
/// which it came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StreamCommit<'a> {
    /// What [`Begin`] says of a transaction that comes whole.
    pub begin: Begin<'a>,
    /// As in [`Commit`].
    pub wal_end: Lsn,
}

/// A transaction that came in chunks was prepared: it is complete, and its fate open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prepare<'a> {
    /// Its name on the provider, for messages to people.
    pub gid: &'a str,
    /// As of a commit, but of the prepare record: positions and time are those of PREPARE TRANSACTION.
    pub begin: Begin<'a>,
}

/// A prepared transaction has committed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CommitPrepared<'a> {
    /// As in [`Prepare`].
    pub gid: &'a str,
    /// What [`Begin`] says of a transaction that comes whole.
    pub begin: Begin<'a>,
    /// As in [`Commit`].
    pub wal_end: Lsn,
}

/// A prepared transaction was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollbackPrepared<'a> {
    /// As in [`Prepare`].
    pub gid: &'a str,
    /// The transaction's id on the provider.
    pub xid: u32,
    /// Where the record of the rollback ends on the provider.
    pub end_lsn: Lsn,
}

impl Begin<'_> {
    /// The end of the transaction; for `wal_end` see [`Commit`].
    pub fn commit(&self, wal_end: Lsn) -> Commit {
        Commit {
            commit_lsn: self.commit_lsn,
            end_lsn: self.end_lsn,
            commit_ts: self.commit_ts,
            wal_end,
        }
    }
}

/// A transaction that came in chunks was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAbort {
    /// The transaction's id on the provider.
    pub xid: u32,
}

/// A subtransaction was rolled back: nothing of it counts but the relations that it described. Those inside it are
/// told one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAbortSub {
    /// The transaction's id on the provider.
    pub xid: u32,
    /// The subtransaction's.
    pub subxid: u32,
}
