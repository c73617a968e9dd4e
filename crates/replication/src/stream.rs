//! Whether the messages of a session come in an order that makes sense.
//!
//! A receiver shows every message to a [`StreamCheck`] before it acts on it; a violation means that the provider and
//! this server disagree about the protocol, and that going on could apply wrong rows.

use std::collections::HashMap;

use pg_ha_model::{Lsn, PgTimestamp};
use thiserror::Error;

use crate::codec::{Begin, Commit, Hello, Message, OldKind, PROTOCOL_MAX, PROTOCOL_MIN, Relation, Tuple};

/// The most relations of one session: an upper bound on memory (some 16 MiB), far above any real database.
pub const MAX_RELATIONS: usize = 1 << 20;

/// A message that cannot come at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The first message was not Hello.
    #[error("change stream: the session began with {found} instead of Hello")]
    HelloMissing {
        /// What came instead.
        found: &'static str,
    },
    /// A second Hello.
    #[error("change stream: a second Hello in one session")]
    HelloRepeated,
    /// A protocol version that this code does not speak.
    #[error("change stream: protocol version {found}, this server speaks {PROTOCOL_MIN} to {PROTOCOL_MAX}")]
    Protocol {
        /// The version in Hello.
        found: u16,
    },
    /// A Begin inside a transaction.
    #[error("change stream: Begin of the transaction at {commit_lsn} inside another transaction")]
    BeginInTransaction {
        /// The commit position of the inner one.
        commit_lsn: Lsn,
    },
    /// A message that needs a transaction around it.
    #[error("change stream: {found} outside a transaction")]
    OutsideTransaction {
        /// The message.
        found: &'static str,
    },
    /// A commit position before one that was already there.
    #[error("change stream: a transaction with commit position {found} after one with {previous}")]
    CommitGoesBack {
        /// The position in Begin.
        found: Lsn,
        /// The previous transaction's.
        previous: Lsn,
    },
    /// A commit record that ends before it begins.
    #[error("change stream: a commit record from {commit_lsn} to {end_lsn}")]
    EndBeforeCommit {
        /// Its beginning.
        commit_lsn: Lsn,
        /// Its end.
        end_lsn: Lsn,
    },
    /// A Commit that does not repeat what its Begin said.
    #[error("change stream: the Commit at {found} belongs to another transaction than the Begin at {begun}")]
    CommitDiffers {
        /// The commit position in Commit.
        found: Lsn,
        /// The commit position in Begin.
        begun: Lsn,
    },
    /// A relation id without a Relation message before it.
    #[error("change stream: {message} for relation {relation}, which has not been described")]
    UnknownRelation {
        /// The message.
        message: &'static str,
        /// The relation's id.
        relation: u32,
    },
    /// A message about a transaction in progress among whole transactions.
    #[error("change stream: {found} outside the chunks of transactions in progress")]
    NotStreamed {
        /// The message.
        found: &'static str,
    },
    /// More relations than [`MAX_RELATIONS`].
    #[error("change stream: more than {MAX_RELATIONS} relations in one session")]
    TooManyRelations,
    /// A tuple that does not fit its relation's description.
    #[error(
        "change stream: a tuple of {found} columns for relation {relation}, which has {wanted} of that kind"
    )]
    ColumnCount {
        /// The relation's id.
        relation: u32,
        /// The columns that the tuple has.
        found: u16,
        /// The columns that it should have.
        wanted: u16,
    },
}

/// Checks the messages of one session; a new session needs a new one.
///
/// A transaction that comes in chunks is shown at its commit, as it would have come whole; see [`crate::spool`].
#[derive(Debug, Clone, Default)]
pub struct StreamCheck {
    greeted: bool,
    /// What the commit has to repeat.
    transaction: Option<(Lsn, Lsn, PgTimestamp)>,
    last_commit: Lsn,
    relations: HashMap<u32, Shape>,
    /// The relation of the latest row: most rows are of the same relation as the one before.
    latest: Option<(u32, Shape)>,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    columns: u16,
    key_columns: u16,
}

impl StreamCheck {
    /// At the beginning of a session.
    pub fn new() -> StreamCheck {
        StreamCheck::default()
    }

    /// Whether a transaction has begun and not yet committed.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// The commit position of the latest transaction that has begun, or [`Lsn::INVALID`].
    pub fn last_commit(&self) -> Lsn {
        self.last_commit
    }

    /// Checks the next message. After an error the session should be ended.
    pub fn observe(&mut self, message: &Message<'_>) -> Result<(), StreamError> {
        if !self.greeted {
            return self.greet(message);
        }
        match message {
            Message::Insert(insert) => {
                let shape = self.row("Insert", insert.relation)?;
                fits(insert.relation, &insert.new, shape.columns)
            }
            Message::Update(update) => {
                let shape = self.row("Update", update.relation)?;
                if let Some((kind, old)) = &update.old {
                    fits(update.relation, old, shape.of(*kind))?;
                }
                fits(update.relation, &update.new, shape.columns)
            }
            Message::Delete(delete) => {
                let shape = self.row("Delete", delete.relation)?;
                let (kind, old) = &delete.old;
                fits(delete.relation, old, shape.of(*kind))
            }
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => self.commit(commit),
            Message::Relation(relation) => self.describe(relation),
            Message::Truncate(truncate) => {
                truncate
                    .relations
                    .iter()
                    .try_for_each(|id| self.row("Truncate", id).map(drop))?;
                self.inside("Truncate")
            }
            Message::Logical(logical) if logical.transactional => self.inside("transactional Logical"),
            Message::Logical(_) => Ok(()),
            Message::Hello(_) => Err(StreamError::HelloRepeated),
            Message::StreamStart(_)
            | Message::StreamCommit(_)
            | Message::StreamAbort(_)
            | Message::StreamAbortSub(_)
            | Message::Prepare(_)
            | Message::CommitPrepared(_)
            | Message::RollbackPrepared(_) => Err(StreamError::NotStreamed {
                found: message.name(),
            }),
        }
    }

    /// The rows of a prepared transaction follow, which does not commit yet; then its [`Commit`] or
    /// [`Self::give_up`]. It may come long after others that were prepared later, so that its position says nothing.
    pub fn begin_prepared(&mut self, begin: &Begin<'_>) -> Result<(), StreamError> {
        match self.transaction {
            Some(_) => Err(StreamError::BeginInTransaction {
                commit_lsn: begin.commit_lsn,
            }),
            None => {
                self.transaction = Some((begin.commit_lsn, begin.end_lsn, begin.commit_ts));
                Ok(())
            }
        }
    }

    /// The transaction that was begun last is not gone on with.
    pub fn give_up(&mut self) {
        self.transaction = None;
    }

    fn greet(&mut self, message: &Message<'_>) -> Result<(), StreamError> {
        match message {
            Message::Hello(Hello { protocol, .. }) if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(protocol) => {
                Err(StreamError::Protocol { found: *protocol })
            }
            Message::Hello(_) => {
                self.greeted = true;
                Ok(())
            }
            other => Err(StreamError::HelloMissing { found: other.name() }),
        }
    }

    fn inside(&self, found: &'static str) -> Result<(), StreamError> {
        match self.transaction {
            Some(_) => Ok(()),
            None => Err(StreamError::OutsideTransaction { found }),
        }
    }

    fn begin(&mut self, begin: &Begin<'_>) -> Result<(), StreamError> {
        let Begin {
            commit_lsn,
            end_lsn,
            commit_ts,
            ..
        } = *begin;
        if self.transaction.is_some() {
            return Err(StreamError::BeginInTransaction { commit_lsn });
        }
        if commit_lsn < self.last_commit {
            return Err(StreamError::CommitGoesBack {
                found: commit_lsn,
                previous: self.last_commit,
            });
        }
        if end_lsn < commit_lsn {
            return Err(StreamError::EndBeforeCommit { commit_lsn, end_lsn });
        }
        self.last_commit = commit_lsn;
        self.transaction = Some((commit_lsn, end_lsn, commit_ts));
        Ok(())
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), StreamError> {
        match self.transaction.take() {
            None => Err(StreamError::OutsideTransaction { found: "Commit" }),
            Some(begun) if begun != (commit.commit_lsn, commit.end_lsn, commit.commit_ts) => {
                Err(StreamError::CommitDiffers {
                    found: commit.commit_lsn,
                    begun: begun.0,
                })
            }
            Some(_) => Ok(()),
        }
    }

    fn describe(&mut self, relation: &Relation<'_>) -> Result<(), StreamError> {
        if self.relations.len() >= MAX_RELATIONS && !self.relations.contains_key(&relation.id) {
            return Err(StreamError::TooManyRelations);
        }
        let key_columns = relation.columns.iter().filter(|column| column.is_key()).count();
        // Both are at most MAX_COLUMNS: the codec has checked.
        let shape = Shape {
            columns: relation.columns.len() as u16,
            key_columns: key_columns as u16,
        };
        self.relations.insert(relation.id, shape);
        self.latest = Some((relation.id, shape));
        Ok(())
    }

    fn row(&mut self, message: &'static str, relation: u32) -> Result<Shape, StreamError> {
        self.inside(message)?;
        match self.latest {
            Some((id, shape)) if id == relation => Ok(shape),
            _ => {
                let known = self.relations.get(&relation).copied();
                let shape = known.ok_or(StreamError::UnknownRelation { message, relation })?;
                self.latest = Some((relation, shape));
                Ok(shape)
            }
        }
    }
}

impl Shape {
    fn of(self, kind: OldKind) -> u16 {
        match kind {
            OldKind::Key => self.key_columns,
            OldKind::Full => self.columns,
        }
    }
}

fn fits(relation: u32, tuple: &Tuple<'_>, wanted: u16) -> Result<(), StreamError> {
    match tuple.column_count() {
        found if found == wanted => Ok(()),
        found => Err(StreamError::ColumnCount {
            relation,
            found,
            wanted,
        }),
    }
}
