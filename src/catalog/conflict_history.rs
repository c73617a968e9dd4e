//! `ha.conflict_history`: its bounds. It is written by [`crate::postgres::conflict_history`].

use super::{Error, execute};

/// Forgets the oldest conflicts: those beyond so many rows, and those that are older than so many milliseconds. Looks at
/// `batch` rows at most; returns how many it forgot.
pub(crate) fn purge(most: i64, retention_ms: i64, batch: usize) -> Result<usize, Error> {
    // Numbers grow with time, so that the oldest are found at the beginning of the index. Some numbers are missing: those
    // of transactions that failed. So there may be fewer rows than are allowed, and never more.
    execute(
        "DELETE FROM ha.conflict_history WHERE ctid = ANY (ARRAY( \
             SELECT o.ctid \
               FROM (SELECT h.ctid, h.conflict_id, h.at FROM ha.conflict_history h ORDER BY h.conflict_id LIMIT $3) o \
              WHERE o.at < pg_catalog.now() - $2 * interval '1 millisecond' \
                 OR o.conflict_id <= (SELECT max(n.conflict_id) FROM ha.conflict_history n) - $1))",
        &[
            most.into(),
            retention_ms.into(),
            i64::try_from(batch).unwrap_or(i64::MAX).into(),
        ],
    )
}
