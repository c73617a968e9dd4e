//! The `ha.*` tables, one file each, and what is looked up in PostgreSQL's own catalogs.
//!
//! Reading never assigns a transaction id, so that it works on standbys and that a session which waits for another
//! node holds nothing that the other one could wait for.

pub(crate) mod applied_changes;
pub(crate) mod conflict_history;
pub(crate) mod copied_progress;
pub(crate) mod deferred_indexes;
pub(crate) mod nodes;
pub(crate) mod origins;
pub(crate) mod plan;
pub(crate) mod prepared;
pub(crate) mod relations;
pub(crate) mod replication_set_tables;
pub(crate) mod replication_sets;
pub(crate) mod replication_slots;
pub(crate) mod row_versions;
pub(crate) mod sequences;
pub(crate) mod subscription_tables;
pub(crate) mod subscriptions;

use pgrx::datum::DatumWithOid;
use pgrx::spi::{self, Spi, SpiHeapTupleData};

use crate::postgres::server;

/// What can go wrong between us and our own tables. (Most failures raise inside SPI and never come back.)
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("query on the catalog failed: {0}")]
    Spi(#[from] spi::Error),
    #[error("column {column} of a catalog query is null")]
    Null { column: usize },
    #[error("unexpected content in {table}: {reason}")]
    Content { table: &'static str, reason: String },
}

/// One row of an answer.
pub(crate) struct Row<'r>(SpiHeapTupleData<'r>);

impl Row<'_> {
    /// A value that cannot be null. Columns count from 1.
    fn get<T: pgrx::FromDatum + pgrx::IntoDatum>(&self, column: usize) -> Result<T, Error> {
        self.maybe(column)?.ok_or(Error::Null { column })
    }

    fn maybe<T: pgrx::FromDatum + pgrx::IntoDatum>(&self, column: usize) -> Result<Option<T>, Error> {
        Ok(self.0.get(column)?)
    }
}

/// Runs a query that changes nothing.
fn read<T>(
    sql: &str,
    arguments: &[DatumWithOid<'_>],
    each: impl Fn(&Row<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    Spi::connect(|client| {
        client
            .select(sql, None, arguments)?
            .map(|row| each(&Row(row)))
            .collect()
    })
}

/// Runs a query of which at most the first row matters.
fn read_one<T>(
    sql: &str,
    arguments: &[DatumWithOid<'_>],
    each: impl Fn(&Row<'_>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    Ok(read(sql, arguments, each)?.into_iter().next())
}

/// Runs a statement that changes something; returns what it returns.
fn write<T>(
    sql: &str,
    arguments: &[DatumWithOid<'_>],
    each: impl Fn(&Row<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    Spi::connect_mut(|client| {
        client
            .update(sql, None, arguments)?
            .map(|row| each(&Row(row)))
            .collect()
    })
}

/// Runs a statement for its effect; returns how many rows it touched.
fn execute(sql: &str, arguments: &[DatumWithOid<'_>]) -> Result<usize, Error> {
    Spi::connect_mut(|client| Ok(client.update(sql, None, arguments)?.len()))
}

/// Runs statements that pg_dump wrote, one after the other, in the current transaction; settings that they change are as
/// before in the end.
pub(crate) fn run_script(script: &str) -> Result<(), Error> {
    server::with_settings_restored(|| {
        Spi::connect_mut(|client| {
            // The script says so itself, but all of it is read before anything of it is run.
            client.update("SET LOCAL standard_conforming_strings = on", None, &[])?;
            client.update(script, None, &[])?;
            Ok(())
        })
    })
}

/// The roles of this server, quoted where needed.
pub(crate) fn roles() -> Result<Vec<String>, Error> {
    read(
        "SELECT pg_catalog.quote_ident(rolname) FROM pg_catalog.pg_roles",
        &[],
        |row| row.get(1),
    )
}

/// A random UUID.
pub(crate) fn new_uid() -> Result<String, Error> {
    read_one("SELECT pg_catalog.gen_random_uuid()::text", &[], |row| row.get(1))?
        .ok_or(Error::Null { column: 1 })
}

/// Takes an advisory lock until the transaction ends; false if somebody else holds it.
pub(crate) fn try_advisory_lock(key: i64) -> Result<bool, Error> {
    read_one(
        "SELECT pg_catalog.pg_try_advisory_xact_lock($1)",
        &[key.into()],
        |row| row.get(1),
    )?
    .ok_or(Error::Null { column: 1 })
}

/// A number that nobody can guess.
pub(crate) fn random_key() -> Result<i64, Error> {
    let uid = new_uid()?.replace('-', "");
    let number = uid.get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok());
    number.map(u64::cast_signed).ok_or(Error::Content {
        table: "gen_random_uuid()",
        reason: uid,
    })
}

/// The current time as text.
pub(crate) fn now_text() -> Result<String, Error> {
    read_one("SELECT pg_catalog.now()::text", &[], |row| row.get(1))?.ok_or(Error::Null { column: 1 })
}

/// Writes a logical message that is sent with the transaction, at this place among its changes.
pub(crate) fn emit_transactional(prefix: &str, content: &str) -> Result<(), Error> {
    read(
        "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2)::text",
        &[prefix.into(), content.into()],
        |_| Ok(()),
    )?;
    Ok(())
}

/// The prefix of the logical message that is a marker in the stream: subscribers that meet it write down how far they are,
/// and report it, at once.
pub(crate) const SYNC_MESSAGE: &str = "pg_ha.sync";

/// Writes a logical message that is sent whatever becomes of the transaction; returns where it ends.
pub(crate) fn emit_message(prefix: &str, content: &str) -> Result<u64, Error> {
    let lsn: Option<String> = read_one(
        "SELECT pg_catalog.pg_logical_emit_message(false, $1, $2)::text",
        &[prefix.into(), content.into()],
        |row| row.get(1),
    )?;
    let lsn = lsn.ok_or(Error::Null { column: 1 })?;
    lsn.parse::<pg_ha_model::Lsn>()
        .map(|lsn| lsn.0)
        .map_err(|error| Error::Content {
            table: "pg_logical_emit_message()",
            reason: error.to_string(),
        })
}
