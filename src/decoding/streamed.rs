//! Transactions that are sent before they commit: while they are in progress, and when they are prepared.
//!
//! They come in chunks, between which others are sent, and end in a commit or an abort. What the subscriber is told of
//! tables inside a transaction counts for that transaction alone, since it is read at its commit: each describes its
//! tables itself. At its commit the subscriber reads those descriptions, and takes them for the newest; a new *era*
//! then begins, in which whole transactions describe their tables again.

use std::collections::HashMap;
use std::rc::Rc;

use pg_ha_model::Lsn;
use pg_ha_replication::codec::{self, EncodeError};
use pg_ha_replication::forwarding::Route;

use super::relation::Published;
use super::{Session, Transaction};

/// All of a session.
pub(super) struct Streams {
    /// Those of which something has been sent, by transaction id.
    open: HashMap<u32, Stream>,
    chunk: Option<Chunk>,
    era: u64,
    /// How many descriptions of tables have got a number.
    numbered: u64,
}

/// One of which something has been sent.
struct Stream {
    /// How it has described tables: by the tables' numbers in the stream.
    announced: HashMap<u32, u64>,
    /// By the origin of its first change: an applier marks its changes with the origin of all of them.
    route: Rc<Route>,
    /// Its first change had no origin.
    looked_local: bool,
}

/// The transaction whose changes are coming.
struct Chunk {
    xid: u32,
    /// The subtransaction that the current change belongs to.
    subxid: u32,
    /// What the origin of the current change means.
    route: Rc<Route>,
    /// The current change has no origin.
    is_local: bool,
    /// The subtransaction that the frame last named; None: it has not begun with this chunk.
    named: Option<u32>,
}

impl Streams {
    pub(super) fn new() -> Streams {
        Streams {
            open: HashMap::new(),
            chunk: None,
            era: 1,
            numbered: 0,
        }
    }

    pub(super) fn in_chunk(&self) -> bool {
        self.chunk.is_some()
    }

    /// Whether the current change is wanted, by its origin.
    pub(super) fn wants_change(&self) -> bool {
        self.chunk
            .as_ref()
            .is_some_and(|chunk| *chunk.route != Route::Withheld)
    }

    /// Grows when descriptions of tables may have lost their meaning to the subscriber.
    pub(super) fn era(&self) -> u64 {
        self.era
    }

    /// Whether the transaction has to describe a table before its next change of it; notes that it does.
    pub(super) fn announces(&mut self, table: &mut Published) -> bool {
        let Some(chunk) = &self.chunk else { return true };
        if table.number == 0 {
            self.numbered += 1;
            table.number = self.numbered;
        }
        let description = table.shape.unwrap_or(table.number);
        self.open
            .get_mut(&chunk.xid)
            .is_none_or(|stream| stream.announced.insert(table.id, description) != Some(description))
    }
}

impl Session {
    /// Changes of a transaction in progress follow. The frame must be empty, see [`Self::has_frame`].
    pub(crate) fn start_chunk(&mut self, xid: u32) {
        self.streams.chunk = Some(Chunk {
            xid,
            subxid: xid,
            route: Rc::new(Route::AsOwn),
            is_local: true,
            named: None,
        });
    }

    /// Nothing of the transaction whose changes follow is wanted.
    pub(crate) fn withhold_chunk(&mut self) {
        if let Some(chunk) = &mut self.streams.chunk {
            chunk.route = Rc::new(Route::Withheld);
        }
    }

    /// Whether a transaction that was prepared under this origin (0: none) is sent. What pg_ha prepares for others comes
    /// at its commit; other means of replication bring what is either the provider's own to everybody else, or nothing.
    pub(crate) fn sends_prepared(&self, origin: u16) -> bool {
        origin == 0 || self.forward.wants_all()
    }

    /// The next change belongs to this subtransaction of the transaction in progress, and bears this origin, 0 for the
    /// local node's own. `name` reads an origin's name from the catalog.
    pub(crate) fn in_subtransaction(
        &mut self,
        subxid: u32,
        origin: u16,
        name: impl Fn(u16) -> Option<String>,
    ) {
        let route = (origin != 0).then(|| self.forward.route(origin, name));
        if let Some(chunk) = &mut self.streams.chunk {
            chunk.subxid = subxid;
            chunk.is_local = origin == 0;
            match route {
                Some(route) => chunk.route = route,
                None if *chunk.route != Route::AsOwn => chunk.route = Rc::new(Route::AsOwn),
                None => {}
            }
        }
    }

    /// The chunk is complete.
    pub(crate) fn stop_chunk(&mut self) {
        self.take_back_unfinished();
        self.streams.chunk = None;
    }

    /// Before a message of a chunk: names the transaction, and the subtransaction where that has changed.
    pub(super) fn ensure_chunk(&mut self) -> Result<(), EncodeError> {
        let Some(chunk) = self.streams.chunk.as_mut() else {
            return Ok(());
        };
        if self.encoder.is_empty() {
            chunk.named = None;
        }
        if chunk.named == Some(chunk.subxid) {
            return Ok(());
        }
        chunk.named = Some(chunk.subxid);
        let start = codec::StreamStart {
            xid: chunk.xid,
            subxid: chunk.subxid,
        };
        let (route, looked_local) = (&chunk.route, chunk.is_local);
        self.streams.open.entry(start.xid).or_insert_with(|| Stream {
            announced: HashMap::new(),
            route: Rc::clone(route),
            looked_local,
        });
        self.encoder.stream_start(start)
    }

    /// A transaction, or a subtransaction of one, was rolled back. True if that has to be sent now: what is rolled
    /// back of a transaction is only looked at when it commits, and can wait for company.
    pub(crate) fn stream_abort(&mut self, xid: u32, subxid: u32) -> Result<bool, EncodeError> {
        if xid == subxid {
            if self.streams.open.remove(&xid).is_none() {
                return Ok(false);
            }
            self.encoder.stream_abort(codec::StreamAbort { xid })?;
            return Ok(true);
        }
        if self.streams.open.contains_key(&xid) {
            self.encoder
                .stream_abort_sub(codec::StreamAbortSub { xid, subxid })?;
        }
        Ok(self.frame_is_full())
    }

    /// A transaction has committed; true if there is something to send.
    pub(crate) fn stream_commit(&mut self, transaction: &Transaction) -> Result<bool, EncodeError> {
        let Some(stream) = self.streams.open.remove(&transaction.xid) else {
            self.saw_applied(transaction);
            return Ok(false);
        };
        if transaction.origin != 0 && stream.looked_local {
            // Its changes looked like the local node's own, and its commit says that they are not.
            self.saw_applied(transaction);
            let xid = transaction.xid;
            self.encoder.stream_abort(codec::StreamAbort { xid })?;
            return Ok(true);
        }
        if !stream.announced.is_empty() {
            self.begin_era();
        }
        let seen = self.take_unsent();
        let commit = codec::StreamCommit {
            begin: self.begin_of(transaction, &stream.route, &seen),
            wal_end: Lsn(crate::postgres::flushed_wal()),
        };
        self.encoder.stream_commit(&commit)?;
        Ok(true)
    }

    /// One that came from another origin and is not sent.
    fn saw_applied(&mut self, transaction: &Transaction) {
        if transaction.origin != 0 {
            self.saw_commit(transaction);
        }
    }

    /// A transaction was prepared, also one of which nothing was sent.
    pub(crate) fn prepare(&mut self, gid: &str, transaction: &Transaction) -> Result<(), EncodeError> {
        self.stop_chunk();
        self.streams.open.remove(&transaction.xid);
        self.begin_era();
        let seen = self.take_unsent();
        let begin = self.begin_of(transaction, &Route::AsOwn, &seen);
        self.encoder.prepare(&codec::Prepare { gid, begin })
    }

    /// A prepared transaction has committed.
    pub(crate) fn commit_prepared(
        &mut self,
        gid: &str,
        transaction: &Transaction,
    ) -> Result<(), EncodeError> {
        // The subscriber may read the descriptions only now, also those of an earlier session.
        self.begin_era();
        let seen = self.take_unsent();
        let commit = codec::CommitPrepared {
            gid,
            begin: self.begin_of(transaction, &Route::AsOwn, &seen),
            wal_end: Lsn(crate::postgres::flushed_wal()),
        };
        self.encoder.commit_prepared(&commit)
    }

    /// A prepared transaction was rolled back.
    pub(crate) fn rollback_prepared(
        &mut self,
        gid: &str,
        transaction: &Transaction,
    ) -> Result<(), EncodeError> {
        self.encoder.rollback_prepared(&codec::RollbackPrepared {
            gid,
            xid: transaction.xid,
            end_lsn: Lsn(transaction.end_lsn),
        })
    }

    fn begin_era(&mut self) {
        self.streams.era += 1;
        self.shapes.clear();
    }

    /// There is something in the frame.
    pub(crate) fn has_frame(&self) -> bool {
        !self.encoder.is_empty()
    }

    /// Says who speaks, if that has not been said: in a frame of its own before frames about transactions in progress.
    pub(crate) fn greet(&mut self) -> Result<(), EncodeError> {
        self.ensure_hello()
    }
}
