//! The output plugin: WAL changes become messages of the replication codec.
//!
//! Everything of a transaction is written into one frame as long as it fits, and sent at its commit: a message of the
//! walsender costs more than the row in it. A transaction of which nothing is wanted costs nothing on the wire.

mod forward;
pub(crate) mod relation;
mod streamed;

use std::collections::HashMap;
use std::rc::Rc;

use pg_ha_model::{Lsn, NodeId, PgTimestamp};
use pg_ha_replication::codec::{
    self, EncodeError, Encoder, List, Mark, OldKind, RelationColumn, ReplicaIdentity, Seen,
};
use pg_ha_replication::forwarding::{Route, Wanted};
use pg_ha_replication::options::{self, PluginOptions, ProviderVersions};
use pgrx::{PgLogLevel, PgSqlErrorCode};

use forward::Forward;
pub(crate) use relation::ColumnForm;
use relation::Published;
use streamed::Streams;

use crate::postgres::{server, slot};
use crate::shared_state;

/// Frames are sent when they pass this size, in bytes; a transaction that fits goes in one.
const FRAME_LIMIT: usize = 64 * 1024;

/// Prefix of the logical messages that belong to pg_ha; others are applications' own and are not sent.
pub(crate) const MESSAGE_PREFIX: &str = "pg_ha.";

/// The logical message by which a subscriber learns whether the provider's commits wait for it; `on` or `off`.
pub(crate) const SYNCHRONOUS_MESSAGE: &str = "pg_ha.synchronous";

/// Why streaming cannot start.
pub(crate) struct Refusal {
    code: PgSqlErrorCode,
    message: String,
    hint: String,
}

impl Refusal {
    /// Raises it as an ERROR of the walsender, which the subscriber sees.
    pub(crate) fn raise(self) -> ! {
        pgrx::pg_sys::panic::ErrorReport::new(self.code, self.message, "pg_ha")
            .set_hint(self.hint)
            .report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Insert,
    Update,
    Delete,
}

/// A transaction whose changes are being replayed.
#[derive(Clone, Copy)]
pub(crate) struct Transaction {
    pub(crate) xid: u32,
    pub(crate) commit_lsn: u64,
    pub(crate) end_lsn: u64,
    pub(crate) commit_ts: i64,
    /// The number of its replication origin, 0 for the local node's own, and its position there.
    pub(crate) origin: u16,
    pub(crate) origin_lsn: u64,
}

/// One START_REPLICATION.
pub(crate) struct Session {
    options: PluginOptions,
    agreed: options::Agreed,
    node_id: NodeId,
    node_name: String,
    converts_text: bool,
    encoder: Encoder,
    said_hello: bool,
    forward: Forward,
    current: Option<(Transaction, Rc<Route>)>,
    began: bool,
    /// Positions of filtered transactions by PostgreSQL's origin number, met since the last look-up of names: names
    /// can be read only inside a transaction, which a filtered one does not open.
    met: HashMap<u16, (u64, i64)>,
    names: HashMap<u16, NodeId>,
    seen: HashMap<NodeId, (u64, i64)>,
    /// Entries of `seen` that changed since they were last sent.
    unsent: Vec<NodeId>,
    /// What the subscriber was last told of tables that several are sent as.
    shapes: HashMap<u32, u64>,
    /// Transactions that are sent while they are in progress.
    streams: Streams,
    /// The frame as it was before the change that is being written.
    unfinished: Option<Mark>,
    /// What the subscriber was last told of whether commits wait for it.
    synchronous: bool,
}

impl Session {
    /// Reads the options of START_REPLICATION and agrees on a version.
    pub(crate) fn start(pairs: &[(String, String)], converts_text: bool) -> Result<Session, Refusal> {
        let refuse = |message: String, hint: &str| Refusal {
            code: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            message,
            hint: hint.to_owned(),
        };
        let Some(local) = shared_state::local_node() else {
            return Err(Refusal {
                code: PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                message: "this server is not a pg_ha node, or its supervisor has not started yet".to_owned(),
                hint: "Call ha.node_create on it first; ha.doctor() tells what stands in the way.".to_owned(),
            });
        };
        let node_id = NodeId::new(local.node_id).map_err(|_| {
            refuse(
                format!("node id {} is out of range", local.node_id),
                "Run ha.doctor().",
            )
        })?;
        let options = PluginOptions::from_pairs(
            pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        )
        .map_err(|error| {
            refuse(
                format!("pg_ha cannot start streaming: {error}"),
                "The output plugin pg_ha speaks to pg_ha subscriptions only; use ha.sub_create to make one.",
            )
        })?;
        if options.provider_uid != local.node_uid.as_str() {
            return Err(refuse(
                format!(
                    "node \"{}\" takes this node for another one (uid {}, this is {})",
                    options.node_name,
                    options.provider_uid,
                    local.node_uid.as_str()
                ),
                "Drop the subscription there and make it again: this node was created anew since.",
            ));
        }
        let flushed = Lsn(crate::postgres::flushed_wal());
        if options.applied_lsn > flushed {
            return Err(refuse(
                format!(
                    "node \"{}\" has applied this node's changes up to {}, but the WAL here ends at {flushed}",
                    options.node_name, options.applied_lsn
                ),
                "This server was restored to an earlier state. Drop the subscription there and make it again.",
            ));
        }
        let nodes = shared_state::nodes();
        let wanted = Wanted::from_names(&options.forward_origins, |name| {
            let known = nodes.iter().find(|node| node.node_name.as_str() == name)?;
            NodeId::new(known.node_id).ok()
        })
        .map_err(|name| {
            refuse(
                format!(
                    "node \"{}\" wants the changes of node \"{name}\" forwarded, which node \"{}\" does not know",
                    options.node_name,
                    local.node_name.as_str()
                ),
                "Change forward_origins there with ha.sub_alter_options; ha.nodes shows the nodes that are known here.",
            )
        })?;
        let forward = Forward::new(wanted, options.node_id);
        // From an older position the server would go on silently where the slot is.
        let confirmed = Lsn(slot::own_confirmed().unwrap_or_default());
        if options.applied_lsn < confirmed {
            return Err(Refusal {
                code: PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                message: format!(
                    "gap in the stream: node \"{}\" has applied this node's changes up to {}, but had confirmed them up \
                     to {confirmed}",
                    options.node_name, options.applied_lsn
                ),
                hint: format!(
                    "That node was restored to an earlier state, or slot \"{}\" was advanced by hand; what lies between \
                     cannot be sent again. Drop the subscription there and make it again, then copy its tables anew \
                     with ha.sub_resync_table.",
                    slot::own_name()
                ),
            });
        }
        let agreed = options::negotiate(
            &options,
            &ProviderVersions::of_this_build(server::version_number()),
        )
        .map_err(|error| {
            refuse(
                format!(
                    "pg_ha cannot start streaming to node {}: {error}",
                    options.node_name
                ),
                "Install neighbouring versions of pg_ha on both servers.",
            )
        })?;
        Ok(Session {
            options,
            agreed,
            node_id,
            node_name: local.node_name.as_str().to_owned(),
            converts_text,
            encoder: Encoder::new(),
            said_hello: false,
            forward,
            current: None,
            began: false,
            met: HashMap::new(),
            names: HashMap::new(),
            seen: HashMap::new(),
            unsent: Vec::new(),
            shapes: HashMap::new(),
            streams: Streams::new(),
            unfinished: None,
            synchronous: false,
        })
    }

    /// Large transactions are sent while they are in progress.
    pub(crate) fn streaming(&self) -> bool {
        self.options.streaming
    }

    /// Prepared transactions are sent when they are prepared.
    pub(crate) fn two_phase(&self) -> bool {
        self.options.two_phase
    }

    pub(crate) fn replication_sets(&self) -> &[String] {
        &self.options.replication_sets
    }

    /// Values may take PostgreSQL's binary form.
    pub(crate) fn binary(&self) -> bool {
        self.agreed.binary
    }

    /// Text has to be converted from the server's to the session's encoding.
    pub(crate) fn converts_text(&self) -> bool {
        self.converts_text
    }

    pub(crate) fn encoder(&mut self) -> &mut Encoder {
        &mut self.encoder
    }

    /// Whether a record of this origin is left out as it is decoded. Others may still be left out when their transaction
    /// begins.
    pub(crate) fn withholds(&self, origin: u16) -> bool {
        self.forward.withholds(origin)
    }

    /// A transaction that came from another origin and is not sent: the local node had applied it by now.
    pub(crate) fn saw(&mut self, origin: u16, position: (u64, i64)) {
        let newest = self.met.entry(origin).or_default();
        *newest = position.max(*newest);
    }

    /// Turns what was seen since the last call into node ids; `name` reads an origin's name from the catalog.
    pub(crate) fn learn_origins(&mut self, name: impl Fn(u16) -> Option<String>) {
        // An origin may be too new for the transaction under whose snapshot names are read here: ask again later.
        let (names, seen, unsent) = (&mut self.names, &mut self.seen, &mut self.unsent);
        self.met.retain(|origin, position| {
            let known = names.get(origin).copied().or_else(|| {
                name(*origin)
                    .as_deref()
                    .and_then(crate::catalog::origins::node_of_name)
            });
            let Some(node) = known else { return true };
            names.insert(*origin, node);
            let newest = seen.entry(node).or_default();
            if *position > *newest {
                *newest = *position;
                if !unsent.contains(&node) {
                    unsent.push(node);
                }
            }
            false
        });
    }

    /// Nothing is written before the first change that is wanted. `name` reads an origin's name from the catalog.
    pub(crate) fn begin(&mut self, transaction: Transaction, name: impl Fn(u16) -> Option<String>) {
        let route = match transaction.origin {
            0 => Rc::new(Route::AsOwn),
            origin => self.forward.route(origin, name),
        };
        self.began = false;
        self.current = match *route {
            Route::Withheld => {
                self.saw_commit(&transaction);
                None
            }
            _ => Some((transaction, route)),
        };
    }

    fn saw_commit(&mut self, transaction: &Transaction) {
        // Copies have no position.
        if transaction.origin_lsn != 0 {
            let position = (transaction.origin_lsn, transaction.commit_ts);
            self.saw(transaction.origin, position);
        }
    }

    /// Whether changes of the transaction that has begun are wanted at all.
    pub(crate) fn wants_transaction(&self) -> bool {
        if self.streams.in_chunk() {
            self.streams.wants_change()
        } else {
            self.current.is_some()
        }
    }

    /// Starts a row message; the caller then writes the columns.
    pub(crate) fn start_change(
        &mut self,
        change: Change,
        table: &mut Published,
        has_old: bool,
    ) -> Result<(), EncodeError> {
        self.ensure_begun()?;
        self.announce(table)?;
        if self.streams.in_chunk() {
            self.unfinished = Some(self.encoder.mark());
        }
        let (old_kind, old_columns) = if table.full {
            (OldKind::Full, table.columns.len())
        } else {
            (OldKind::Key, table.key_columns())
        };
        let old = (old_kind, old_columns as u16);
        match change {
            Change::Insert => self.encoder.start_insert(table.id, table.columns.len() as u16),
            Change::Update => self.encoder.start_update(table.id, has_old.then_some(old)),
            Change::Delete => self.encoder.start_delete(table.id, old.0, old.1),
        }
        Ok(())
    }

    /// Before the new row of an update.
    pub(crate) fn start_new_row(&mut self, table: &Published) {
        self.encoder.start_new_tuple(table.columns.len() as u16);
    }

    pub(crate) fn finish_change(&mut self) -> Result<(), EncodeError> {
        self.unfinished = None;
        self.encoder.finish_message()
    }

    /// Takes back what an error has left of a change: a transaction that is sent in progress may be rolled back while
    /// its rows are being read, and decoding goes on with others.
    fn take_back_unfinished(&mut self) {
        if let Some(mark) = self.unfinished.take() {
            self.encoder.truncate_to(mark);
        }
    }

    pub(crate) fn truncate<'a>(
        &mut self,
        tables: impl Iterator<Item = &'a mut Published>,
        cascade: bool,
        restart_sequences: bool,
    ) -> Result<(), EncodeError> {
        let mut wanted = Vec::new();
        for table in tables {
            if table.membership.truncate {
                self.ensure_begun()?;
                self.announce(table)?;
                wanted.push(table.id);
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut flags = 0;
        if cascade {
            flags |= codec::Truncate::CASCADE;
        }
        if restart_sequences {
            flags |= codec::Truncate::RESTART_SEQS;
        }
        self.encoder.truncate(&codec::Truncate {
            flags,
            relations: List::from(wanted.as_slice()),
        })
    }

    /// Ends the transaction; true if there is something to send.
    pub(crate) fn commit(&mut self) -> Result<bool, EncodeError> {
        let Some((transaction, route)) = self.current.clone() else {
            return Ok(false);
        };
        let forwarded = matches!(*route, Route::Forwarded { .. });
        if !self.began && forwarded && self.forward.is_sign_due() {
            self.ensure_begun()?;
        }
        self.current = None;
        if forwarded {
            self.saw_commit(&transaction);
        }
        if !self.began {
            return Ok(false);
        }
        self.encoder.commit(&codec::Commit {
            commit_lsn: Lsn(transaction.commit_lsn),
            end_lsn: Lsn(transaction.end_lsn),
            commit_ts: PgTimestamp(transaction.commit_ts),
            wal_end: Lsn(crate::postgres::flushed_wal()),
        })?;
        Ok(true)
    }

    /// A logical message; true if it was one of ours and was written.
    pub(crate) fn message(
        &mut self,
        transactional: bool,
        lsn: u64,
        prefix: &str,
        content: &[u8],
    ) -> Result<bool, EncodeError> {
        if !prefix.starts_with(MESSAGE_PREFIX) {
            return Ok(false);
        }
        if transactional {
            self.ensure_begun()?;
        } else {
            self.ensure_hello()?;
        }
        self.encoder.logical(&codec::Logical {
            transactional,
            lsn: Lsn(lsn),
            prefix,
            content,
        })?;
        Ok(true)
    }

    /// Between transactions: tells the subscriber whether commits wait for it, if that has changed; true if it was
    /// written.
    pub(crate) fn tell_synchronous(&mut self, synchronous: bool, lsn: u64) -> Result<bool, EncodeError> {
        if self.synchronous == synchronous {
            return Ok(false);
        }
        self.synchronous = synchronous;
        let content: &[u8] = if synchronous { b"on" } else { b"off" };
        self.message(false, lsn, SYNCHRONOUS_MESSAGE, content)
    }

    pub(crate) fn frame_is_full(&self) -> bool {
        self.encoder.len() >= FRAME_LIMIT
    }

    pub(crate) fn frame(&self) -> &[u8] {
        self.encoder.as_bytes()
    }

    pub(crate) fn frame_sent(&mut self) {
        self.encoder.clear();
        // One huge row must not keep its memory for the life of the connection.
        self.encoder.shrink_to(16 * FRAME_LIMIT);
    }

    fn ensure_hello(&mut self) -> Result<(), EncodeError> {
        if self.said_hello {
            return Ok(());
        }
        self.said_hello = true;
        self.encoder.hello(&codec::Hello {
            protocol: self.agreed.protocol,
            server_version_num: server::version_number(),
            extension_version: env!("CARGO_PKG_VERSION"),
            node_id: self.node_id,
            node_name: &self.node_name,
            system_identifier: server::system_identifier(),
            encoding: &self.options.encoding,
            flags: 0,
        })
    }

    fn ensure_begun(&mut self) -> Result<(), EncodeError> {
        if self.streams.in_chunk() {
            return self.ensure_chunk();
        }
        if self.began {
            return Ok(());
        }
        let Some((transaction, route)) = self.current.clone() else {
            return Ok(());
        };
        self.ensure_hello()?;
        self.began = true;
        let seen = self.take_unsent();
        let begin = self.begin_of(&transaction, &route, &seen);
        self.encoder.begin(&begin)
    }

    fn begin_of<'a>(
        &self,
        transaction: &Transaction,
        route: &'a Route,
        seen: &'a [Seen],
    ) -> codec::Begin<'a> {
        let (origin, origin_lsn, lane, via) = match route {
            Route::Forwarded { origin, via } => (
                *origin,
                transaction.origin_lsn,
                transaction.origin,
                via.as_slice(),
            ),
            _ => (self.node_id, transaction.end_lsn, 0, [].as_slice()),
        };
        codec::Begin {
            xid: transaction.xid,
            commit_lsn: Lsn(transaction.commit_lsn),
            end_lsn: Lsn(transaction.end_lsn),
            commit_ts: PgTimestamp(transaction.commit_ts),
            origin,
            origin_lsn: Lsn(origin_lsn),
            lane,
            via: List::from(via),
            seen: List::from(seen),
        }
    }

    /// What the subscriber has not been told yet of what this node had seen.
    fn take_unsent(&mut self) -> Vec<Seen> {
        self.unsent
            .drain(..)
            .map(|origin| {
                let (lsn, timestamp) = self.seen.get(&origin).copied().unwrap_or_default();
                Seen {
                    origin,
                    lsn: Lsn(lsn),
                    timestamp: PgTimestamp(timestamp),
                }
            })
            .collect()
    }

    fn announce(&mut self, table: &mut Published) -> Result<(), EncodeError> {
        if self.streams.in_chunk() {
            if !self.streams.announces(table) {
                return Ok(());
            }
        } else {
            let era = self.streams.era();
            match table.shape {
                None if table.announced == era => return Ok(()),
                Some(shape) if self.shapes.insert(table.id, shape) == Some(shape) => return Ok(()),
                _ => {}
            }
            table.announced = era;
        }
        let columns: Vec<RelationColumn<'_>> = table
            .columns
            .iter()
            .map(|column| RelationColumn {
                name: &column.name,
                type_oid: column.type_oid,
                type_namespace: &column.type_name.0,
                type_name: &column.type_name.1,
                typmod: column.typmod,
                flags: if column.key { RelationColumn::KEY } else { 0 },
            })
            .collect();
        self.encoder.relation(&codec::Relation {
            id: table.id,
            namespace: &table.namespace,
            name: &table.name,
            replica_identity: ReplicaIdentity::from_byte(table.replica_identity)
                .unwrap_or(ReplicaIdentity::Nothing),
            columns: List::from(columns.as_slice()),
        })
    }
}
