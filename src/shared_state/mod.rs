//! The cluster view in shared memory: what workers publish and `ha.status*` shows. Reading it never blocks on a
//! worker, needs no transaction and works on a standby.

pub(crate) mod copies;
pub(crate) mod layout;
pub(crate) mod subscription;
pub(crate) mod table;
pub(crate) mod text;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(crate) use subscription::Status;

use crate::postgres::{latch, shmem};
use layout::{Area, LocalNode, NodeView};

/// The area, in every process of a server that preloads the library.
pub(crate) fn area() -> Option<&'static Area> {
    shmem::area()
}

/// Who this server is, or None before `ha.node_create`.
pub(crate) fn local_node() -> Option<LocalNode> {
    area()
        .map(|area| area.local.read(|local| *local))
        .filter(LocalNode::is_node)
}

/// Tells the supervisor that a committed transaction changed the ha.* catalogs.
pub(crate) fn catalog_changed() {
    if let Some(area) = area() {
        area.catalog_generation.fetch_add(1, Ordering::AcqRel);
        latch::wake(area.supervisor_pid.load(Ordering::Acquire));
    }
}

/// Asks the workers of a subscription to stop and waits until they are gone; false when `timeout` was not enough.
pub(crate) fn stop_subscription(subscription_id: i32, timeout: Duration) -> bool {
    let Some(place) = subscription::find(subscription_id) else {
        return true;
    };
    place.stop();
    wait_until(timeout, || {
        place.wake_workers_to_end();
        !place.has_workers()
    })
}

/// The same for every subscription of this node.
pub(crate) fn stop_all(timeout: Duration) -> bool {
    let Some(area) = area() else { return true };
    let deadline = Instant::now() + timeout;
    area.subscriptions
        .iter()
        .map(|place| place.id.load(Ordering::Acquire))
        .filter(|id| *id != 0)
        .all(|id| stop_subscription(id, deadline.saturating_duration_since(Instant::now())))
}

/// Publishes the known nodes; what a handshake taught about a node that stays known is kept.
pub(crate) fn publish_nodes(known: &[NodeView]) {
    let Some(area) = area() else { return };
    let before = nodes();
    area.nodes.write(|nodes| {
        for (index, view) in nodes.iter_mut().enumerate() {
            *view = known.get(index).copied().unwrap_or_default();
            if let Some(old) = before.iter().find(|old| old.node_id == view.node_id) {
                view.server_version_num = old.server_version_num;
                view.extension_version = old.extension_version;
                view.lsn = old.lsn;
                view.last_seen = old.last_seen;
            }
        }
    });
}

/// Changes what is shown of one known node.
pub(crate) fn update_node(node_id: u32, change: impl FnOnce(&mut NodeView)) {
    if let Some(area) = area() {
        area.nodes
            .write(|nodes| nodes.iter_mut().find(|view| view.node_id == node_id).map(change));
    }
}

/// All known nodes.
pub(crate) fn nodes() -> Vec<NodeView> {
    let Some(area) = area() else { return Vec::new() };
    let mut found = Vec::with_capacity(layout::MAX_NODES);
    area.nodes
        .read(|nodes| found.extend(nodes.iter().filter(|view| view.node_id != 0)));
    found
}

/// Waits in short interruptible steps until `done`, at most `timeout`.
fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        latch::pause(Duration::from_millis(10));
    }
}

impl LocalNode {
    /// An identity was found and confirmed. The supervisor writes an impossible id for one that is nobody's.
    fn is_node(&self) -> bool {
        self.node_id != 0 && self.node_id != u32::MAX
    }
}
