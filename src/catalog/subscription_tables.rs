//! `ha.subscription_tables`: the tables that subscriptions copy from their providers.

use super::{Error, Row, execute, read, read_one, write};
use crate::postgres::apply::ApplyError;
use crate::postgres::apply::acting::{self, Operation};
use crate::postgres::server;
use crate::postgres::worker::with_latest_snapshot;

/// What becomes of the rows that a table holds already when its copy begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExistingRows {
    /// There must be none.
    Refuse,
    /// They are removed.
    Truncate,
    /// They stay.
    Keep,
}

impl ExistingRows {
    fn as_str(self) -> &'static str {
        match self {
            ExistingRows::Refuse => "refuse",
            ExistingRows::Truncate => "truncate",
            ExistingRows::Keep => "keep",
        }
    }

    fn from_text(text: &str) -> Result<ExistingRows, Error> {
        [ExistingRows::Refuse, ExistingRows::Truncate, ExistingRows::Keep]
            .into_iter()
            .find(|known| known.as_str() == text)
            .ok_or_else(|| Error::Content {
                table: "ha.subscription_tables",
                reason: format!("existing_rows is \"{text}\""),
            })
    }
}

/// A table whose copy is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingTable {
    pub(crate) table_id: i32,
    pub(crate) subscription_id: i32,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) existing_rows: ExistingRows,
    /// What the provider said that it holds when the copy was asked for.
    pub(crate) expected_bytes: i64,
    /// The last attempt failed, and somebody has to look.
    pub(crate) failed: bool,
}

impl PendingTable {
    /// Schema and name, quoted where needed.
    pub(crate) fn qualified_name(&self) -> String {
        pgrx::spi::quote_qualified_identifier(&self.schema, &self.name)
    }
}

fn pending_from_row(row: &Row<'_>) -> Result<PendingTable, Error> {
    Ok(PendingTable {
        table_id: row.get(1)?,
        subscription_id: row.get(2)?,
        schema: row.get(3)?,
        name: row.get(4)?,
        existing_rows: ExistingRows::from_text(&row.get::<String>(5)?)?,
        expected_bytes: row.get(6)?,
        failed: row.get(7)?,
    })
}

/// The tables of enabled subscriptions whose copy is due, in the order in which it was asked for, large ones first.
pub(crate) fn pending() -> Result<Vec<PendingTable>, Error> {
    read(
        "SELECT t.table_id, t.subscription_id, t.nspname::text, t.relname::text, t.existing_rows, \
                t.expected_bytes, t.failed \
           FROM ha.subscription_tables t JOIN ha.subscription_catalog s USING (subscription_id) \
          WHERE t.state = 'init' AND s.enabled ORDER BY t.asked_at, t.expected_bytes DESC, t.table_id",
        &[],
        pending_from_row,
    )
}

/// Those of these tables whose copy is due.
pub(crate) fn pending_among(table_ids: &[i32]) -> Result<Vec<PendingTable>, Error> {
    read(
        "SELECT table_id, subscription_id, nspname::text, relname::text, existing_rows, expected_bytes, failed \
           FROM ha.subscription_tables WHERE table_id = ANY ($1) AND state = 'init' ORDER BY table_id",
        &[table_ids.to_vec().into()],
        pending_from_row,
    )
}

/// A table that the stream must not change like any other: schema, name, and the position from which on it may; None
/// while that is not known.
pub(crate) struct GatedTable {
    pub(crate) table_id: i32,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) from: Option<u64>,
}

/// The tables of a subscription that are not like any other.
pub(crate) fn gated(subscription_id: i32) -> Result<Vec<GatedTable>, Error> {
    read(
        "SELECT table_id, nspname::text, relname::text, \
                CASE WHEN state = 'catchup' THEN sync_lsn - '0/0'::pg_lsn END::bigint \
           FROM ha.subscription_tables WHERE subscription_id = $1 AND state <> 'ready'",
        &[subscription_id.into()],
        |row| {
            Ok(GatedTable {
                table_id: row.get(1)?,
                schema: row.get(2)?,
                name: row.get(3)?,
                from: row.maybe::<i64>(4)?.map(i64::cast_unsigned),
            })
        },
    )
}

/// The applier has passed the positions of these tables.
pub(crate) fn set_ready(table_ids: &[i32]) -> Result<usize, Error> {
    execute(
        "UPDATE ha.subscription_tables SET state = 'ready' WHERE table_id = ANY ($1) AND state = 'catchup'",
        &[table_ids.to_vec().into()],
    )
}

/// The table is copied, with everything up to `lsn`. In the transaction that brings its rows. False if nobody waits
/// for the copy any more.
pub(crate) fn set_copied(table_id: i32, lsn: u64, rows: u64, bytes: u64) -> Result<bool, Error> {
    let touched = execute(
        "UPDATE ha.subscription_tables \
            SET state = 'catchup', sync_lsn = '0/0'::pg_lsn + $2::numeric, copy_rows = $3, copy_bytes = $4, \
                copied_at = pg_catalog.clock_timestamp(), failed = false, last_error = NULL \
          WHERE table_id = $1 AND state = 'init'",
        &[
            table_id.into(),
            lsn.cast_signed().into(),
            rows.cast_signed().into(),
            bytes.cast_signed().into(),
        ],
    )?;
    Ok(touched == 1)
}

/// A copy did not work out. `failed`: somebody has to look, as opposed to a provider that cannot be reached. True if
/// the error is not the one that is shown already.
pub(crate) fn set_error(table_id: i32, error: &str, failed: bool) -> Result<bool, Error> {
    let changed = write(
        "UPDATE ha.subscription_tables t \
            SET last_error = $2, failed = $3, attempts = t.attempts + 1 \
           FROM ha.subscription_tables before \
          WHERE t.table_id = $1 AND t.state = 'init' AND before.table_id = t.table_id \
      RETURNING before.last_error IS DISTINCT FROM $2",
        &[table_id.into(), error.into(), failed.into()],
        |row| row.get::<bool>(1),
    )?;
    Ok(changed.into_iter().any(|changed| changed))
}

/// Prefix of the message in the provider's stream that asks subscribers to copy a table.
pub(crate) const COPY_MESSAGE: &str = "pg_ha.copy";

/// What that message says: a table is sent through this set from here on, and subscribers are to copy what it holds.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct CopyMessage {
    pub(crate) set_name: String,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) expected_rows: i64,
    pub(crate) expected_bytes: i64,
}

/// Tells subscribers, with the current transaction, to copy a table of this node.
pub(crate) fn tell_to_copy(relation: pgrx::pg_sys::Oid, set_name: &str) -> Result<(), Error> {
    let message = read_one(
        "SELECT n.nspname::text, c.relname::text, \
                CASE WHEN c.reltuples > 0 THEN c.reltuples::bigint ELSE 0 END, \
                CASE WHEN c.relkind = 'p' \
                THEN (SELECT coalesce(pg_catalog.sum(pg_catalog.pg_relation_size(p.relid)), 0) \
                        FROM pg_catalog.pg_partition_tree(c.oid) p WHERE p.isleaf)::bigint \
                ELSE pg_catalog.pg_relation_size(c.oid) END \
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        &[relation.into()],
        |row| {
            Ok(CopyMessage {
                set_name: set_name.to_owned(),
                schema: row.get(1)?,
                name: row.get(2)?,
                expected_rows: row.get(3)?,
                expected_bytes: row.get(4)?,
            })
        },
    )?
    .ok_or(Error::Null { column: 1 })?;
    let content = serde_json::to_string(&message).map_err(|error| Error::Content {
        table: "pg_class",
        reason: error.to_string(),
    })?;
    super::emit_transactional(COPY_MESSAGE, &content)
}

/// The tables that were copied, by name, and when, by whatever subscription, last (microseconds since 1970).
pub(crate) fn copied() -> Result<Vec<(String, String, i64)>, Error> {
    read(
        "SELECT nspname::text, relname::text, (extract(epoch FROM max(copied_at)) * 1000000)::bigint \
           FROM ha.subscription_tables WHERE copied_at IS NOT NULL GROUP BY 1, 2",
        &[],
        |row| Ok((row.get(1)?, row.get(2)?, row.get(3)?)),
    )
}

/// Prefix of the message that a table was copied, for those to whom changes of its provider are forwarded.
pub(crate) const COPIED_MESSAGE: &str = "pg_ha.copied";

/// What that message says: the rows of a table, and what changed while they were copied, were not sent on.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct CopiedMessage {
    pub(crate) set_names: Vec<String>,
    pub(crate) schema: String,
    pub(crate) name: String,
}

/// Tells, with the current transaction, that it copied a table, which other nodes may get from here. A partition is sent
/// under the names of the tables above it too.
pub(crate) fn tell_of_copy(table: &PendingTable) -> Result<(), Error> {
    let messages = read(
        "SELECT n.nspname::text, c.relname::text, pg_catalog.array_agg(s.set_name::text) \
           FROM ha.replication_set_tables t JOIN ha.replication_sets s USING (set_id) \
           JOIN pg_catalog.pg_class c ON c.oid = t.relation \
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
          WHERE t.relation = pg_catalog.to_regclass($1) \
             OR t.relation IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(pg_catalog.to_regclass($1))) \
          GROUP BY 1, 2",
        &[table.qualified_name().into()],
        |row| {
            Ok(CopiedMessage {
                schema: row.get(1)?,
                name: row.get(2)?,
                set_names: row.get(3)?,
            })
        },
    )?;
    for message in messages {
        let content = serde_json::to_string(&message).map_err(|error| Error::Content {
            table: "pg_class",
            reason: error.to_string(),
        })?;
        super::emit_transactional(COPIED_MESSAGE, &content)?;
    }
    Ok(())
}

/// A table that a new subscription copies.
pub(crate) struct NewTable {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) expected_rows: i64,
    pub(crate) expected_bytes: i64,
}

/// Asks for the copy of a table, for the first time or again.
pub(crate) fn ask(subscription_id: i32, table: &NewTable, existing: ExistingRows) -> Result<(), Error> {
    write(
        "INSERT INTO ha.subscription_tables AS t \
             (subscription_id, nspname, relname, existing_rows, expected_rows, expected_bytes) \
         VALUES ($1, $2::text::name, $3::text::name, $4, $5, $6) \
         ON CONFLICT (subscription_id, nspname, relname) DO UPDATE \
            SET state = 'init', existing_rows = excluded.existing_rows, sync_lsn = NULL, copy_rows = 0, \
                copy_bytes = 0, expected_rows = excluded.expected_rows, expected_bytes = excluded.expected_bytes, \
                asked_at = pg_catalog.now(), copied_at = NULL, attempts = 0, failed = false, last_error = NULL",
        &[
            subscription_id.into(),
            table.schema.as_str().into(),
            table.name.as_str().into(),
            existing.as_str().into(),
            table.expected_rows.into(),
            table.expected_bytes.into(),
        ],
        |_| Ok(()),
    )?;
    Ok(())
}

/// The id of a table that a subscription copies or has copied.
pub(crate) fn id_of(subscription_id: i32, schema: &str, name: &str) -> Result<Option<i32>, Error> {
    read_one(
        "SELECT table_id FROM ha.subscription_tables \
          WHERE subscription_id = $1 AND nspname = $2::text::name AND relname = $3::text::name",
        &[subscription_id.into(), schema.into(), name.into()],
        |row| row.get(1),
    )
}

/// How many tables of a subscription are not ready, and the error of one of them.
pub(crate) fn unready(subscription_id: i32) -> Result<(i64, Option<String>), Error> {
    read_one(
        "SELECT pg_catalog.count(*), pg_catalog.min(last_error) FILTER (WHERE failed) \
           FROM ha.subscription_tables WHERE subscription_id = $1 AND state <> 'ready'",
        &[subscription_id.into()],
        |row| Ok((row.get(1)?, row.maybe(2)?)),
    )?
    .ok_or(Error::Null { column: 1 })
}

/// How the rows of this table alone are named: without those of tables that inherit from it, which are tables of their
/// own, but with those of its partitions.
fn rows_of(qualified_name: &str) -> Result<String, Error> {
    let partitioned = read_one(
        "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = $1::pg_catalog.regclass",
        &[qualified_name.into()],
        |row| row.get::<bool>(1),
    )?;
    Ok(match partitioned {
        Some(true) => qualified_name.to_owned(),
        _ => format!("ONLY {qualified_name}"),
    })
}

/// Whether the local table holds a row.
pub(crate) fn holds_rows(qualified_name: &str) -> Result<bool, Error> {
    let rows = rows_of(qualified_name)?;
    read_one(&format!("SELECT EXISTS (SELECT FROM {rows})"), &[], |row| {
        row.get(1)
    })?
    .ok_or(Error::Null { column: 1 })
}

/// Keeps others from writing to a table until the end of the transaction. A table that does not exist is not locked.
/// Gives the transaction no number, as LOCK TABLE by SPI would: the provider waits for those that have one.
pub(crate) fn lock(qualified_name: &str) -> Result<(), Error> {
    let table = read_one(
        "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid",
        &[qualified_name.into()],
        |row| row.maybe(1),
    )?;
    if let Some(table) = table.flatten() {
        server::lock_against_writers(table);
    }
    Ok(())
}

/// Gives back the room of an ordinary table that holds no rows, where it is much: what a copy that failed left behind
/// would otherwise stand before the rows of the next one. False if it holds rows after all: those of a transaction that
/// was open when somebody looked.
pub(crate) fn shrink(qualified_name: &str) -> Result<bool, EmptyError> {
    let large = read_one(
        "SELECT relkind = 'r' AND pg_catalog.pg_relation_size(oid) > 1048576 FROM pg_catalog.pg_class \
          WHERE oid = $1::pg_catalog.regclass",
        &[qualified_name.into()],
        |row| row.get::<bool>(1),
    )?;
    if large == Some(true) && !is_referenced(qualified_name)? {
        // TRUNCATE would wait for its writers and then remove what they wrote.
        execute(
            &format!("LOCK TABLE ONLY {qualified_name} IN ACCESS EXCLUSIVE MODE"),
            &[],
        )?;
        if with_latest_snapshot(|| holds_rows(qualified_name))? {
            return Ok(false);
        }
        as_owner(
            qualified_name,
            Operation::Truncate,
            &format!("TRUNCATE ONLY {qualified_name}"),
        )?;
    }
    Ok(true)
}

/// Whether foreign keys of other tables lead to the table or its partitions.
fn is_referenced(qualified_name: &str) -> Result<bool, Error> {
    read_one(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint \
                         WHERE contype = 'f' AND conrelid <> confrelid \
                           AND (confrelid = $1::pg_catalog.regclass OR confrelid IN \
                                (SELECT relid FROM pg_catalog.pg_partition_tree($1::pg_catalog.regclass))))",
        &[qualified_name.into()],
        |row| row.get(1),
    )?
    .ok_or(Error::Null { column: 1 })
}

/// Why a table could not be emptied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EmptyError {
    #[error(transparent)]
    Table(#[from] ApplyError),
    #[error(transparent)]
    Catalog(#[from] Error),
}

/// Removes all rows of the local table, as its owner: by TRUNCATE, which waits for its readers, or row by row where
/// foreign keys of other tables lead to it and TRUNCATE would take these along.
pub(crate) fn empty(qualified_name: &str) -> Result<(), EmptyError> {
    let rows = rows_of(qualified_name)?;
    let (operation, statement) = if is_referenced(qualified_name)? {
        (Operation::Delete, format!("DELETE FROM {rows}"))
    } else {
        (Operation::Truncate, format!("TRUNCATE {rows}"))
    };
    as_owner(qualified_name, operation, &statement)
}

/// Removes the rows of the local table that were committed before a time (TimestampTz), or at it if that is `included`,
/// and those that the current transaction has written, as the table's owner.
pub(crate) fn empty_of_older(qualified_name: &str, time: i64, included: bool) -> Result<(), EmptyError> {
    let rows = rows_of(qualified_name)?;
    let statement = format!(
        "DELETE FROM {rows} WHERE coalesce(pg_catalog.pg_xact_commit_timestamp(xmin), '-infinity') {} '{}'::timestamptz",
        if included { "<=" } else { "<" },
        crate::postgres::time_text(time)
    );
    as_owner(qualified_name, Operation::Delete, &statement)
}

/// Runs a statement on a table as whoever its changes are applied as: triggers of the table run by it.
fn as_owner(qualified_name: &str, operation: Operation, statement: &str) -> Result<(), EmptyError> {
    let oid: Option<pgrx::pg_sys::Oid> = read_one(
        "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid",
        &[qualified_name.into()],
        |row| row.get(1),
    )?;
    let oid = oid.ok_or_else(|| ApplyError::MissingTable(qualified_name.to_owned()))?;
    acting::as_owner_of(oid, qualified_name, operation, || execute(statement, &[]))??;
    Ok(())
}

/// The partitioned tables above a local table, by schema and name.
pub(crate) fn tables_above(relation: pgrx::pg_sys::Oid) -> Result<Vec<(String, String)>, Error> {
    read(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_partition_ancestors($1::oid) a \
           JOIN pg_catalog.pg_class c ON c.oid = a.relid \
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE a.relid <> $1::oid",
        &[relation.into()],
        |row| Ok((row.get(1)?, row.get(2)?)),
    )
}

/// For queries on a provider: the beginning of a WITH that names the places of tables in these sets `wanted`.
pub(crate) fn wanted(sets: &[String]) -> String {
    let sets: Vec<String> = sets.iter().map(pgrx::spi::quote_literal).collect();
    format!(
        "wanted AS (SELECT m.relation::oid AS relid, m.columns, m.row_filter, m.include_partitions, \
                           s.replicate_insert, s.replicate_update OR s.replicate_delete AS needs_key \
                      FROM ha.replication_set_tables m JOIN ha.replication_sets s USING (set_id) \
                     WHERE s.set_name IN ({}))",
        sets.join(", ")
    )
}

/// Whether a process waits, directly or through others, for something that this one holds.
pub(crate) fn waits_for_us(process_id: i32) -> Result<bool, Error> {
    read_one(
        "WITH RECURSIVE chain (pid) AS ( \
             SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) \
              UNION SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids(pid)) FROM chain) \
         SELECT EXISTS (SELECT FROM chain WHERE pid = pg_catalog.pg_backend_pid())",
        &[process_id.into()],
        |row| row.get(1),
    )?
    .ok_or(Error::Null { column: 1 })
}

/// Waits for a lock on the end of copies that bear this origin; until [`unlock_origin`] or the end of the process.
pub(crate) fn lock_origin(origin: u16) -> Result<(), Error> {
    execute(
        "SELECT pg_catalog.pg_advisory_lock($1, $2)",
        &[LOCK_CLASS.into(), i32::from(origin).into()],
    )?;
    Ok(())
}

/// Gives the lock back.
pub(crate) fn unlock_origin(origin: u16) -> Result<(), Error> {
    execute(
        "SELECT pg_catalog.pg_advisory_unlock($1, $2)",
        &[LOCK_CLASS.into(), i32::from(origin).into()],
    )?;
    Ok(())
}

/// The class of our advisory locks: the letters of "ha".
const LOCK_CLASS: i32 = 0x6861;
