//! What the copier asks of the provider.

use pgrx::pg_sys;

use super::Failure;
use crate::catalog::subscription_tables::PendingTable;
use crate::network::peer::literal;
use crate::postgres::apply::target::{RemoteColumn, RemoteTable};
use crate::postgres::copy::Format;
use crate::postgres::walreceiver::Connection;

/// The table as the provider has it.
pub(super) struct Described {
    pub(super) table: RemoteTable,
    pub(super) server_version: u32,
}

/// Begins a transaction whose snapshot is that of a new temporary slot; returns the slot's position: the snapshot holds
/// what was committed before it, the slot's stream brings what comes after.
pub(super) fn open_snapshot(connection: &mut Connection, slot: &str) -> Result<u64, Failure> {
    // Where the server has it.
    let no_limit = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
                     WHERE name = 'transaction_timeout'";
    connection.query(no_limit, 1).map_err(Failure::Refused)?;
    for command in [
        // Rather an error than rows that row security hides; and nobody there waits for us with a limit.
        "SET row_security = off",
        "SET statement_timeout = 0",
        "SET lock_timeout = 0",
        "SET idle_in_transaction_session_timeout = 0",
        "BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ",
    ] {
        connection.command(command).map_err(Failure::Refused)?;
    }
    let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pg_ha USE_SNAPSHOT");
    let row = one(connection.query(&command, 4).map_err(Failure::Refused)?)?;
    let position = text(&row, 1)?;
    position
        .parse::<pg_ha_model::Lsn>()
        .map(|lsn| lsn.0)
        .map_err(|error| Failure::Answer(error.to_string()))
}

/// Looks at the table in the snapshot.
pub(super) fn describe(
    connection: &mut Connection,
    table: &PendingTable,
    sets: &[String],
) -> Result<Described, Failure> {
    let sets: Vec<String> = sets.iter().map(|set| literal(set)).collect();
    let query = format!(
        "SELECT c.oid::text, c.relkind::text, pg_catalog.current_setting('server_version_num'), \
                EXISTS (SELECT FROM ha.replication_set_tables m JOIN ha.replication_sets s USING (set_id) \
                         WHERE m.relation = c.oid AND s.replicate_insert AND s.set_name IN ({}))::text \
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
          WHERE n.nspname = {} AND c.relname = {}",
        sets.join(", "),
        literal(&table.schema),
        literal(&table.name)
    );
    let mut rows = connection.query(&query, 4).map_err(Failure::Refused)?;
    let row = rows.pop().ok_or(Failure::NotThere)?;
    let (oid, kind, version, published) = (text(&row, 0)?, text(&row, 1)?, number(&row, 2)?, text(&row, 3)?);
    if kind != "r" {
        return Err(Failure::NoTable);
    }
    if published != "true" {
        return Err(Failure::NotPublished);
    }
    let query = format!(
        "SELECT a.attname::text, a.atttypid::bigint::text, n.nspname || '.' || t.typname, a.atttypmod::text \
           FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
           JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
          WHERE a.attrelid = {oid}::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
          ORDER BY a.attnum"
    );
    let columns = connection
        .query(&query, 4)
        .map_err(Failure::Refused)?
        .into_iter()
        .map(|row| {
            Ok(RemoteColumn {
                name: text(&row, 0)?.to_owned(),
                type_oid: pg_sys::Oid::from_u32(number(&row, 1)?),
                type_name: text(&row, 2)?.to_owned(),
                typmod: number(&row, 3)?,
                key: false,
            })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    Ok(Described {
        table: RemoteTable {
            namespace: table.schema.clone(),
            name: table.name.clone(),
            full_identity: false,
            columns,
        },
        server_version: version,
    })
}

/// Lets the provider send the rows.
pub(super) fn start_copy(
    connection: &mut Connection,
    described: &Described,
    format: Format,
) -> Result<(), Failure> {
    let columns: Vec<String> = described
        .table
        .columns
        .iter()
        .map(|column| pgrx::spi::quote_identifier(&column.name))
        .collect();
    let columns = if columns.is_empty() {
        String::new()
    } else {
        format!(" ({})", columns.join(", "))
    };
    let command = format!(
        "COPY {}{columns} TO STDOUT WITH (FORMAT {})",
        described.table.qualified_name(),
        format.as_str()
    );
    connection.start_copy(&command).map_err(Failure::Refused)
}

type Row = Vec<Option<String>>;

fn one(rows: Vec<Row>) -> Result<Row, Failure> {
    rows.into_iter()
        .next()
        .ok_or_else(|| Failure::Answer("no row".to_owned()))
}

fn text(row: &Row, column: usize) -> Result<&str, Failure> {
    row.get(column)
        .and_then(Option::as_deref)
        .ok_or_else(|| Failure::Answer(format!("nothing in column {column}")))
}

fn number<T: std::str::FromStr>(row: &Row, column: usize) -> Result<T, Failure> {
    let text = text(row, column)?;
    text.parse()
        .map_err(|_| Failure::Answer(format!("\"{text}\" is no number")))
}
