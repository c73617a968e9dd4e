//! By which ways transactions come: the origins under which this process commits them, and the other appliers of this
//! node that may bring the same.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::atomic::Ordering::Acquire;

use pg_ha_model::{NodeId, PgTimestamp};
use pg_ha_replication::codec::{Begin, CommitPrepared, Decoder, Message, Prepare, StreamCommit, is_chunk};
use pg_ha_replication::forwarding::Wanted;
use pg_ha_replication::once::{Arrival, Shape};
use pgrx::PgSqlErrorCode;

use crate::catalog::applied_changes::{self, TransactionId};
use crate::catalog::{self, origins, plan, subscription_tables};
use crate::postgres::apply;
use crate::postgres::origin::Origin;
use crate::postgres::worker;
use crate::shared_state;

/// How long to wait for another applier before looking around.
const PATIENCE: &CStr = c"200ms";

/// One way: what its commits are stamped with, and up to where its transactions are dealt with.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    pub(super) origin: Origin,
    pub(super) progress: u64,
}

/// All ways that lead through this subscription's provider.
pub(super) struct Lanes {
    here: NodeId,
    provider: NodeId,
    provider_uid: String,
    pub(super) own: Lane,
    forwarded: HashMap<(NodeId, u16), Lane>,
}

impl Lanes {
    pub(super) fn new(here: NodeId, provider: NodeId, provider_uid: &str, own: Lane) -> Lanes {
        Lanes {
            here,
            provider,
            provider_uid: provider_uid.to_owned(),
            own,
            forwarded: HashMap::new(),
        }
    }

    /// The lane of a transaction; Err for one that cannot come from this provider. Between two transactions.
    pub(super) fn of(&mut self, begin: &Begin<'_>) -> Result<&mut Lane, Stray> {
        if begin.lane == 0 && begin.origin == self.provider {
            return Ok(&mut self.own);
        }
        if begin.lane == 0 || begin.origin == self.here || begin.origin == self.provider {
            return Err(Stray::Origin(begin.origin));
        }
        let key = (begin.origin, begin.lane);
        if !self.forwarded.contains_key(&key) {
            let mut path: Vec<NodeId> = begin.via.iter().collect();
            path.push(self.provider);
            let way = origins::Way {
                node: begin.origin,
                provider_uid: &self.provider_uid,
                lane: begin.lane,
                path,
            };
            let origin = crate::workers::read(|| origins::ensure_way(&way))
                .map_err(Stray::Catalog)?
                .ok_or_else(|| Stray::Catalog("the replication origin could not be made".to_owned()))?;
            let lane = Lane {
                origin,
                progress: origin.durable_progress(),
            };
            // Other appliers of this origin have one more to reckon with.
            shared_state::catalog_changed();
            self.forwarded.insert(key, lane);
        }
        self.forwarded.get_mut(&key).ok_or(Stray::Origin(begin.origin))
    }

    /// A lane's transactions are dealt with up to here.
    pub(super) fn passed(&mut self, origin: &NodeId, lane: u16, position: u64) {
        let lane = match lane {
            0 => Some(&mut self.own),
            lane => self.forwarded.get_mut(&(*origin, lane)),
        };
        if let Some(lane) = lane {
            lane.progress = position;
        }
    }
}

/// Why a transaction has no lane.
pub(super) enum Stray {
    Origin(NodeId),
    Catalog(String),
}

/// A subscription of this node, as far as it matters by which ways changes come.
struct Path {
    subscription_id: i32,
    provider: NodeId,
    provider_uid: String,
    wanted: Wanted,
}

impl Path {
    fn brings(&self, origin: NodeId) -> bool {
        self.provider == origin || self.wanted.includes(origin)
    }
}

/// The other subscriptions of this node, enabled or not: what comes by one of them too is applied once.
pub(super) struct Rivals {
    subscription_id: i32,
    provider_uid: String,
    /// As of which generation of the catalogs; none: not known yet. (After a crash they are counted from 0 again.)
    generation: Option<u64>,
    paths: Vec<Path>,
    /// When tables, by the digests of their names, were copied last: what was applied before is not in them any more.
    copied: HashMap<u64, u64>,
    /// The origin that others are kept from.
    claimed: Option<NodeId>,
    /// The ways of origins that others bring, as far as they were asked for.
    lanes: HashMap<NodeId, Vec<(String, Origin)>>,
}

impl Rivals {
    pub(super) fn new(subscription_id: i32, provider_uid: &str) -> Rivals {
        Rivals {
            subscription_id,
            provider_uid: provider_uid.to_owned(),
            generation: None,
            paths: Vec::new(),
            copied: HashMap::new(),
            claimed: None,
            lanes: HashMap::new(),
        }
    }

    /// Learns what has changed. One load where nothing has. Between two transactions.
    pub(super) fn attend(&mut self) -> Result<(), String> {
        let current = Some(generation());
        if self.generation != current {
            crate::workers::read(|| self.look())?;
            self.generation = current;
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), catalog::Error> {
        let nodes = plan::nodes()?;
        let id_of = |name: &str| {
            let node = nodes.iter().find(|node| node.node_name == name)?;
            NodeId::new(node.node_id.cast_unsigned()).ok()
        };
        self.paths = plan::subscriptions(None)?
            .into_iter()
            .filter_map(|subscription| {
                Some(Path {
                    subscription_id: subscription.id,
                    provider: NodeId::new(subscription.provider_node.cast_unsigned()).ok()?,
                    provider_uid: subscription.provider_uid,
                    // A name that is not known here may be there: better take a way into account that is none.
                    wanted: Wanted::from_names(&subscription.forward_origins, id_of).unwrap_or(Wanted::All),
                })
            })
            .collect();
        self.copied = subscription_tables::copied()?
            .into_iter()
            .map(|(schema, name, at)| (Shape::new(&schema, &name, []).table(), at.cast_unsigned()))
            .collect();
        self.lanes.clear();
        Ok(())
    }

    /// Tells the changes of a table from those that were applied before it was copied, and went with its rows.
    pub(super) fn since_copy(&self, shape: &Shape, digest: u64) -> u64 {
        let copied = self.copied.get(&shape.table()).copied().unwrap_or_default();
        digest ^ copied.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Whether another subscription can bring changes of this origin.
    pub(super) fn share(&self, origin: NodeId) -> bool {
        let others = self.paths.iter();
        others
            .filter(|path| path.subscription_id != self.subscription_id)
            .any(|path| path.brings(origin))
    }

    /// Before a frame, between two transactions: keeps others from the origin of the transaction that begins in it, if
    /// they can bring it too. False if one of them was at it for as long as this waits; meanwhile others may want
    /// something of this process.
    pub(super) fn claim(&mut self, frame: &[u8]) -> Result<bool, String> {
        self.attend()?;
        if self.paths.len() < 2 {
            return Ok(true);
        }
        if is_chunk(frame) {
            return Ok(true);
        }
        let mut decoder = Decoder::new(frame);
        let origin = loop {
            match decoder.next() {
                Ok(Some(
                    Message::Begin(begin)
                    | Message::StreamCommit(StreamCommit { begin, .. })
                    | Message::Prepare(Prepare { begin, .. })
                    | Message::CommitPrepared(CommitPrepared { begin, .. }),
                )) => break begin.origin,
                Ok(Some(_)) => {}
                // What cannot be read is for others to complain of.
                Ok(None) | Err(_) => return Ok(true),
            }
        };
        if !self.share(origin) || self.claimed == Some(origin) {
            return Ok(true);
        }
        let number = origin.get();
        let mut taken = worker::in_transaction(|| apply::claim(number, false));
        if let Ok(false) = taken {
            worker::set(c"lock_timeout", PATIENCE);
            taken = worker::in_transaction(|| apply::claim(number, true));
            worker::set(c"lock_timeout", c"0");
        }
        match taken {
            Ok(taken) => {
                self.claimed = taken.then_some(origin);
                Ok(taken)
            }
            Err(caught) if caught.sqlstate == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE => Ok(false),
            Err(caught) => Err(caught.describe()),
        }
    }

    /// The transaction has ended.
    pub(super) fn release(&mut self) {
        if let Some(origin) = self.claimed.take() {
            apply::release(origin.get());
        }
    }

    /// Looks what others have applied of this transaction. In its local transaction, before the first change.
    pub(super) fn meet(&mut self, id: TransactionId) -> Result<Arrival, catalog::Error> {
        // Where it was not known before that others can bring it.
        if self.claimed != Some(id.origin) {
            self.release();
            apply::claim(id.origin.get(), true);
            self.claimed = Some(id.origin);
        }
        let current = Some(generation());
        worker::with_latest_snapshot(|| {
            // Others may have found new ways while this process waited.
            if self.generation != current {
                self.look()?;
                self.generation = current;
            }
            let lanes = match self.lanes.entry(id.origin) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(free) => free.insert(origins::ways_of(id.origin)?),
            };
            // Positions of one way grow; where no other one has come as far, this transaction cannot have come.
            let came = lanes
                .iter()
                .filter(|(uid, _)| *uid != self.provider_uid)
                .any(|(_, lane)| lane.progress() >= id.position);
            // Two lanes of this provider may bring parts of one transaction, but never the same part.
            Ok(match came {
                true => Arrival::late(applied_changes::noted(id)?),
                false => Arrival::first(),
            })
        })
    }

    /// Forgets what was noted of transactions that cannot come again, and of those older than `oldest`. Between two
    /// transactions. True if there may be more.
    pub(super) fn forget(&self, oldest: PgTimestamp) -> Result<bool, String> {
        crate::workers::read(|| -> Result<bool, catalog::Error> {
            let mut more = false;
            for origin in applied_changes::origins()? {
                let paths: Vec<&Path> = self.paths.iter().filter(|path| path.brings(origin)).collect();
                let passed = match paths.as_slice() {
                    // Nobody minds it, or only this one.
                    [] => u64::MAX,
                    [only] if only.subscription_id == self.subscription_id => u64::MAX,
                    [..] => {
                        if !paths
                            .iter()
                            .any(|path| path.subscription_id == self.subscription_id)
                        {
                            continue;
                        }
                        let lanes = origins::ways_of(origin)?;
                        let least = paths.iter().map(|path| {
                            let of_path = lanes.iter().filter(|(uid, _)| *uid == path.provider_uid);
                            of_path.map(|(_, lane)| lane.progress()).min().unwrap_or(0)
                        });
                        least.min().unwrap_or(0)
                    }
                };
                more |= applied_changes::forget(origin, passed, oldest)?;
            }
            Ok(more)
        })
    }
}

fn generation() -> u64 {
    shared_state::area().map_or(0, |area| area.catalog_generation.load(Acquire))
}
