//! The server's own replication slots, as `pg_replication_slots` shows them.

use super::{Error, read, read_one};

/// What a slot's consumer has confirmed.
pub(crate) struct Confirmed {
    pub(crate) slot_name: String,
    /// None: nothing yet (a physical slot that nobody has used, or one that the server has ended).
    pub(crate) position: Option<u64>,
}

/// How far the consumer of the slot with this name is, or without a name those of all slots of pg_ha's output plugin.
pub(crate) fn confirmed(slot_name: Option<&str>) -> Result<Vec<Confirmed>, Error> {
    read(
        "SELECT slot_name::text, coalesce(confirmed_flush_lsn, restart_lsn)::text \
           FROM pg_catalog.pg_replication_slots \
          WHERE CASE WHEN $1 IS NULL THEN plugin = 'pg_ha' AND NOT temporary ELSE slot_name = $1::text END \
          ORDER BY slot_name",
        &[slot_name.into()],
        |row| {
            Ok(Confirmed {
                slot_name: row.get(1)?,
                position: lsn(row.maybe(2)?)?,
            })
        },
    )
}

/// The end of the WAL that this server has made, durable or not.
pub(crate) fn end_of_wal() -> Result<u64, Error> {
    let end = read_one(
        "SELECT pg_catalog.pg_current_wal_insert_lsn()::text",
        &[],
        |row| row.get(1),
    )?;
    lsn(end)?.ok_or(Error::Null { column: 1 })
}

fn lsn(text: Option<String>) -> Result<Option<u64>, Error> {
    text.map(|text| text.parse::<pg_ha_model::Lsn>().map(|lsn| lsn.0))
        .transpose()
        .map_err(|error| Error::Content {
            table: "pg_replication_slots",
            reason: error.to_string(),
        })
}

/// A slot of a subscriber, or of one of its copies, that keeps WAL.
pub(crate) struct Retaining {
    pub(crate) name: String,
    pub(crate) reader: Option<i32>,
    pub(crate) temporary: bool,
    /// Bytes of WAL that it keeps from being removed.
    pub(crate) retained: u64,
    pub(crate) restart: String,
    pub(crate) confirmed: Option<String>,
}

/// All slots of pg_ha's output plugin that keep WAL.
pub(crate) fn retaining() -> Result<Vec<Retaining>, Error> {
    read(
        "SELECT slot_name::text, active_pid, temporary, \
                greatest(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn), 0)::bigint, \
                restart_lsn::text, confirmed_flush_lsn::text \
           FROM pg_catalog.pg_replication_slots WHERE plugin = 'pg_ha' AND restart_lsn IS NOT NULL",
        &[],
        |row| {
            Ok(Retaining {
                name: row.get(1)?,
                reader: row.maybe(2)?,
                temporary: row.get(3)?,
                retained: row.get::<i64>(4)?.cast_unsigned(),
                restart: row.get(5)?,
                confirmed: row.maybe(6)?,
            })
        },
    )
}
