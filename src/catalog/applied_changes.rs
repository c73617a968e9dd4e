//! `ha.applied_changes`: what was applied of transactions that may come again by another way.

use pg_ha_model::{NodeId, PgTimestamp};

use super::{Error, execute, read};

/// Which transaction: its origin, its commit position and its commit time there. The time tells it from one of an
/// earlier node with the same id.
#[derive(Clone, Copy)]
pub(crate) struct TransactionId {
    pub(crate) origin: NodeId,
    pub(crate) position: u64,
    pub(crate) time: PgTimestamp,
}

const DIGEST: usize = 8;

/// The digests of the changes that were applied of a transaction.
pub(crate) fn noted(id: TransactionId) -> Result<Vec<u64>, Error> {
    let parts: Vec<Vec<u8>> = read(
        "SELECT changes FROM ha.applied_changes \
          WHERE origin_id = $1 AND origin_lsn = '0/0'::pg_lsn + $2::numeric AND commit_time = $3",
        &[
            i32::from(id.origin.get()).into(),
            id.position.cast_signed().into(),
            id.time.0.into(),
        ],
        |row| row.get(1),
    )?;
    Ok(parts
        .iter()
        .flat_map(|part| part.as_chunks::<DIGEST>().0)
        .map(|digest| u64::from_le_bytes(*digest))
        .collect())
}

/// Notes, with the transaction that applied them, what was applied.
pub(crate) fn note(id: TransactionId, digests: &[u64]) -> Result<(), Error> {
    let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
    execute(
        "INSERT INTO ha.applied_changes (origin_id, origin_lsn, commit_time, changes) \
         VALUES ($1, '0/0'::pg_lsn + $2::numeric, $3, $4)",
        &[
            i32::from(id.origin.get()).into(),
            id.position.cast_signed().into(),
            id.time.0.into(),
            bytes.into(),
        ],
    )?;
    Ok(())
}

/// The origins of which something is noted.
pub(crate) fn origins() -> Result<Vec<NodeId>, Error> {
    // From one to the next by the index, however much is noted of each.
    let found: Vec<i32> = read(
        "WITH RECURSIVE o (id) AS ( \
             SELECT min(origin_id) FROM ha.applied_changes \
             UNION ALL \
             SELECT (SELECT min(a.origin_id) FROM ha.applied_changes a WHERE a.origin_id > o.id) FROM o WHERE o.id IS NOT NULL) \
         SELECT id FROM o WHERE id IS NOT NULL",
        &[],
        |row| row.get(1),
    )?;
    Ok(found
        .into_iter()
        .filter_map(|id| NodeId::new(id.cast_unsigned()).ok())
        .collect())
}

/// How many transactions are forgotten at a time: the stream waits meanwhile.
const AT_ONCE: i32 = 10_000;

/// Forgets the transactions of an origin up to a position, by which every way has brought them, and those that
/// committed before a time. Leaves alone what others are at. True if there may be more.
pub(crate) fn forget(origin: NodeId, position: u64, time: PgTimestamp) -> Result<bool, Error> {
    let passed = execute(
        "DELETE FROM ha.applied_changes WHERE ctid = ANY (ARRAY \
           (SELECT ctid FROM ha.applied_changes WHERE origin_id = $1 AND origin_lsn <= '0/0'::pg_lsn + $2::numeric \
             FOR UPDATE SKIP LOCKED LIMIT $3))",
        &[
            i32::from(origin.get()).into(),
            position.min(i64::MAX.unsigned_abs()).cast_signed().into(),
            AT_ONCE.into(),
        ],
    )?;
    if passed >= AT_ONCE.unsigned_abs() as usize {
        return Ok(true);
    }
    execute(
        "DELETE FROM ha.applied_changes WHERE origin_id = $1 AND commit_time < $2",
        &[i32::from(origin.get()).into(), time.0.into()],
    )?;
    Ok(false)
}
