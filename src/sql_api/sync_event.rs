//! `ha.sync_event`: a marker in the local node's stream.

use super::{refuse_in_recovery, require_local_node};
use crate::catalog;
use crate::postgres::error::Answer;
use crate::postgres::server;

/// Writes the marker, waits until it is on disk (nothing sends what is not), and returns where it ends.
pub(crate) fn sync_event() -> Answer<i64> {
    refuse_in_recovery("write a sync event")?;
    let node = require_local_node()?;
    let lsn = catalog::emit_message(catalog::SYNC_MESSAGE, &node.node_name)?;
    server::flush_wal(lsn);
    Ok(lsn.cast_signed())
}
