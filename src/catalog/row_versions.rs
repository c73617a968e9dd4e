//! `ha.row_versions`: the true versions of rows whose last local writer is not who wrote them.

use pgrx::pg_sys::Oid;

use super::{Error, execute, read_one};

/// The version of a row, by its table and the digest of its key.
pub(crate) struct RowVersion {
    pub(crate) relation: Oid,
    pub(crate) key: Vec<u8>,
    /// TimestampTz, microseconds since 2000.
    pub(crate) committed_at: i64,
    pub(crate) origin: u16,
}

/// The table, for COPY.
pub(crate) fn table() -> Result<Oid, Error> {
    read_one("SELECT 'ha.row_versions'::regclass::oid", &[], |row| row.get(1))?
        .ok_or(Error::Null { column: 1 })
}

/// Forgets what is known of a table's rows.
pub(crate) fn forget(relation: Oid) -> Result<(), Error> {
    execute(
        "DELETE FROM ha.row_versions WHERE relation = $1",
        &[relation.into()],
    )?;
    Ok(())
}

/// Notes versions, instead of those that are known.
pub(crate) fn note(versions: Vec<RowVersion>) -> Result<(), Error> {
    let mut relations = Vec::with_capacity(versions.len());
    let mut keys = Vec::with_capacity(versions.len());
    let mut times = Vec::with_capacity(versions.len());
    let mut origins = Vec::with_capacity(versions.len());
    for version in versions {
        relations.push(version.relation);
        keys.push(version.key);
        times.push(version.committed_at);
        origins.push(i32::from(version.origin));
    }
    execute(
        "INSERT INTO ha.row_versions (relation, key, committed_at, origin) \
         SELECT DISTINCT ON (relation, key) relation, key, \
                '2000-01-01 00:00:00+00'::timestamptz + at * interval '1 microsecond', origin \
           FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::bytea[]), \
                           pg_catalog.unnest($3::bigint[]), pg_catalog.unnest($4::integer[])) \
                AS v (relation, key, at, origin) ORDER BY relation, key, at DESC \
         ON CONFLICT (relation, key) DO UPDATE SET committed_at = excluded.committed_at, origin = excluded.origin",
        &[relations.into(), keys.into(), times.into(), origins.into()],
    )?;
    Ok(())
}

/// Forgets versions older than the horizon, a bounded number at once; returns how many.
pub(crate) fn purge(horizon_ms: i64) -> Result<usize, Error> {
    execute(
        "DELETE FROM ha.row_versions WHERE ctid = ANY (ARRAY(\
             SELECT ctid FROM ha.row_versions \
              WHERE committed_at < pg_catalog.now() - $1 * interval '1 millisecond' LIMIT 50000))",
        &[horizon_ms.into()],
    )
}
