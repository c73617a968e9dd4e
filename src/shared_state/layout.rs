//! What stands in shared memory. Every field's zero is valid and means "nothing yet".

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64};

use super::text::Text;
use crate::postgres::shmem::Guarded;

/// Most subscriptions of one node; `ha.max_subscriptions` may lower it.
pub(crate) const MAX_SUBSCRIPTIONS: usize = 256;
/// Most nodes shown by `ha.status`; `ha.max_nodes` may lower it.
pub(crate) const MAX_NODES: usize = 1023;
/// Most (subscription, table) pairs with counters of their own; changes to further tables are still applied and are
/// counted in the subscription's totals.
pub(crate) const MAX_TABLES: usize = 8192;
/// Most tables copied at once, over all subscriptions; `ha.sync_workers` limits the processes per subscription.
pub(crate) const MAX_COPIES: usize = 1024;

#[repr(C)]
pub(crate) struct Area {
    /// Process id of the supervisor, 0 while there is none.
    pub(crate) supervisor_pid: AtomicI32,
    /// Process id of the cleaner, 0 while there is none.
    pub(crate) cleaner_pid: AtomicI32,
    /// Grows with every committed change of the ha.* catalogs.
    pub(crate) catalog_generation: AtomicU64,
    /// The generation that the supervisor has last acted on.
    pub(crate) seen_generation: AtomicU64,
    pub(crate) local: Guarded<LocalNode>,
    pub(crate) nodes: Guarded<[NodeView; MAX_NODES]>,
    pub(crate) subscriptions: [Subscription; MAX_SUBSCRIPTIONS],
    pub(crate) tables: [TableCounters; MAX_TABLES],
    pub(crate) copies: [RunningCopy; MAX_COPIES],
}

/// Who this server is, once its identity has been found in the catalog of its database.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LocalNode {
    pub(crate) node_id: u32,
    pub(crate) database_oid: u32,
    pub(crate) node_uid: Text<40>,
    pub(crate) node_name: Text<64>,
    pub(crate) group_name: Text<64>,
}

/// One known node, for `ha.status`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct NodeView {
    pub(crate) node_id: u32,
    pub(crate) node_name: Text<64>,
    pub(crate) group_name: Text<64>,
    pub(crate) region: Text<64>,
    pub(crate) kind: Text<16>,
    /// Learned in the handshake of a subscription, 0 and empty before.
    pub(crate) server_version_num: u32,
    pub(crate) extension_version: Text<32>,
    /// Newest WAL position heard of, and when (TimestampTz, microseconds since 2000; 0 = never).
    pub(crate) lsn: u64,
    pub(crate) last_seen: i64,
}

/// One subscription: numbers are atomics that one worker at a time writes or only raises, so that the hot path takes no lock.
#[repr(C)]
pub(crate) struct Subscription {
    /// Its id in the catalog; 0 = a free place.
    pub(crate) id: AtomicI32,
    pub(crate) provider_node: AtomicU32,
    /// [`super::Status`] as a number.
    pub(crate) status: AtomicU32,
    /// 1 while the supervisor wants the workers to run.
    pub(crate) wanted: AtomicU32,
    /// 1 after a change that could not be applied, until something was.
    pub(crate) failed_in_applier: AtomicU32,
    pub(crate) receiver_pid: AtomicI32,
    pub(crate) applier_pid: AtomicI32,
    /// The catalog generation (`Area::catalog_generation`) as of which the running applier knows which tables are
    /// being copied; 0 before it has looked.
    pub(crate) gates_generation: AtomicU64,
    /// 1 while the provider's commits wait for this subscription.
    pub(crate) synchronous: AtomicU32,
    /// 1 when a copier waits for the applier to say how far it is.
    pub(crate) handover: AtomicU32,
    /// Newest position of the provider heard of.
    pub(crate) provider_lsn: AtomicU64,
    /// Everything before it has arrived here.
    pub(crate) received_lsn: AtomicU64,
    /// Everything before it has been applied and committed here.
    pub(crate) applied_lsn: AtomicU64,
    /// Everything before it is durable here.
    pub(crate) flushed_lsn: AtomicU64,
    /// TimestampTz of the last message from the provider, and of the commit last applied; 0 = none.
    pub(crate) last_message: AtomicI64,
    pub(crate) applied_commit: AtomicI64,
    pub(crate) transactions: AtomicU64,
    pub(crate) inserted: AtomicU64,
    pub(crate) updated: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) retries: AtomicU64,
    /// What the applier keeps of transactions in progress: bytes in memory, bytes on disk, and how many they are.
    pub(crate) spool_memory: AtomicU64,
    pub(crate) spool_disk: AtomicU64,
    pub(crate) spool_transactions: AtomicU64,
    pub(crate) text: Guarded<SubscriptionText>,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SubscriptionText {
    pub(crate) name: Text<64>,
    pub(crate) slot_name: Text<64>,
    pub(crate) provider: Text<64>,
    pub(crate) action: Text<128>,
    pub(crate) last_error: Text<1024>,
}

/// What one subscription did to one table; found by open addressing on (subscription, relation).
#[repr(C)]
pub(crate) struct TableCounters {
    /// subscription id in the upper, relation oid in the lower half; 0 = a free place.
    pub(crate) key: AtomicU64,
    pub(crate) inserted: AtomicU64,
    pub(crate) updated: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) conflicts: AtomicU64,
}

/// One running copy of a table: the supervisor takes the place, the copier gives it back when it ends. One process may
/// bring several small tables together; they then have a place each.
#[repr(C)]
pub(crate) struct RunningCopy {
    /// Subscription id in the upper, table id (`ha.subscription_tables`) in the lower half; 0 = a free place.
    pub(crate) key: AtomicU64,
    pub(crate) pid: AtomicI32,
    /// 0 where the process was started for this table; else the place, counted from 1, of the table that it was started
    /// for and with which it brings this one.
    pub(crate) leader: AtomicU32,
    /// [`super::copies::Phase`] as a number.
    pub(crate) phase: AtomicU32,
    /// In the phase catchup: the position of the applier, which waits there; the copier has to reach it.
    pub(crate) target: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// TimestampTz at which the place was taken.
    pub(crate) started_at: AtomicI64,
}

impl Area {
    /// Lightweight locks that the area needs.
    pub(crate) const LOCKS: usize = 3;

    /// Gives every guarded value its lock: one for all subscriptions' text, since it is touched a few times a minute.
    pub(crate) fn attach_locks(&self, mut attach: impl FnMut(usize, &AtomicPtr<pgrx::pg_sys::LWLock>)) {
        attach(0, self.local.lock_slot());
        attach(1, self.nodes.lock_slot());
        for subscription in &self.subscriptions {
            attach(2, subscription.text.lock_slot());
        }
    }
}
