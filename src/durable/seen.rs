//! What a subscription's provider had applied of other origins, as its stream told: one small file per subscription.
//!
//! The provider learns it from the WAL as it goes and does not tell twice, so that a stream that starts again would
//! begin knowing nothing, and changes made in turn would be reported as conflicts. Older knowledge is still true, so
//! the file may be seconds behind; it decides what is reported, never which row wins.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pg_ha_model::{NodeId, PgTimestamp};

use super::{Error, directory, ensure_directory, read_sealed, remove, write_sealed};

fn path(subscription_id: i32) -> PathBuf {
    directory().join(format!("seen-{subscription_id}"))
}

/// What was known last; nothing if there is no readable file.
pub(crate) fn load(subscription_id: i32) -> Vec<(NodeId, PgTimestamp)> {
    let known: BTreeMap<u32, i64> = read_sealed(&path(subscription_id))
        .ok()
        .flatten()
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .unwrap_or_default();
    known
        .into_iter()
        .filter_map(|(node, timestamp)| Some((NodeId::new(node).ok()?, PgTimestamp(timestamp))))
        .collect()
}

/// Replaces what is known.
pub(crate) fn save(
    subscription_id: i32,
    known: impl Iterator<Item = (NodeId, PgTimestamp)>,
) -> Result<(), Error> {
    ensure_directory()?;
    let known: BTreeMap<u32, i64> = known
        .map(|(node, timestamp)| (u32::from(node.get()), timestamp.0))
        .collect();
    let path = path(subscription_id);
    let payload = serde_json::to_vec(&known).unwrap_or_default();
    write_sealed(&path, &payload)
}

/// Forgets a subscription that is gone.
pub(crate) fn forget(subscription_id: i32) {
    // A file that cannot be removed is a few bytes that nobody reads: subscription ids are not used again.
    let _ = remove(&path(subscription_id));
}
