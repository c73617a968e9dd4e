//! What the copier asks of the provider.

use std::rc::Rc;
use std::time::Duration;

use pg_ha_model::NodeId;
use pgrx::pg_sys;

use super::Failure;
use crate::catalog::copied_progress::{self, NodeProgress};
use crate::catalog::subscription_tables::{PendingTable, wanted};
use crate::network::peer::literal;
use crate::postgres::apply::target::{RemoteColumn, RemoteTable};
use crate::postgres::apply::versions::KeyExpression;
use crate::postgres::copy::Format;
use crate::postgres::values::CANONICAL;
use crate::postgres::walreceiver::Connection;

/// The table as the provider has it.
pub(super) struct Described {
    pub(super) table: Rc<RemoteTable>,
    /// An ordinary table, whose children by inheritance are tables of their own.
    only: bool,
    oid: u32,
    /// Which rows are sent; None: all.
    condition: Option<String>,
    pub(super) server_version: u32,
}

/// What the provider says of the moment of a snapshot.
pub(super) struct Moment {
    /// The slot's position: the snapshot holds what was committed before it, the slot's stream brings what comes after.
    pub(super) start: u64,
    /// What was committed before this time (TimestampTz) is older than the conflict horizon.
    pub(super) horizon: i64,
    /// The provider knows of nodes beside itself and us.
    pub(super) others: bool,
    /// The provider got rows by a copy not longer ago than the conflict horizon.
    pub(super) copied: bool,
}

/// Begins a transaction whose snapshot is that of a new temporary slot.
pub(super) fn open_snapshot(
    connection: &mut Connection,
    slot: &str,
    horizon: Duration,
    here: NodeId,
    provider: NodeId,
) -> Result<Moment, Failure> {
    // Where the server has it.
    let no_limit = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
                     WHERE name = 'transaction_timeout'";
    connection.query(no_limit, 1).map_err(Failure::Refused)?;
    // A provider that cannot get rid of rows must notice as well, or it would keep the slot until its system gives up.
    let give_up = "SELECT pg_catalog.set_config('tcp_user_timeout', setting || unit, false) FROM pg_catalog.pg_settings \
                    WHERE name = 'wal_sender_timeout' AND pg_catalog.current_setting('tcp_user_timeout') IN ('0', '0ms')";
    connection.query(give_up, 1).map_err(Failure::Refused)?;
    for (name, value) in CANONICAL {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        let command = format!("SET {name} = {}", literal(&value));
        connection.command(&command).map_err(Failure::Refused)?;
    }
    for command in [
        // Rather an error than rows that row security hides; and nobody there waits for us with a limit.
        "SET row_security = off",
        "SET statement_timeout = 0",
        "SET lock_timeout = 0",
        "SET idle_in_transaction_session_timeout = 0",
        // Keys are compared as text.
        "SET TimeZone = 'UTC'",
        "BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ",
    ] {
        connection.command(command).map_err(Failure::Refused)?;
    }
    let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pg_ha USE_SNAPSHOT");
    let row = one(connection.query(&command, 4).map_err(Failure::Refused)?)?;
    let position = text(&row, 1)?;
    let start = position
        .parse::<pg_ha_model::Lsn>()
        .map_err(|error| Failure::Answer(error.to_string()))?
        .0;
    // In microseconds: a number has no time zone.
    let query = format!(
        "SELECT (extract(epoch FROM pg_catalog.now() - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint - {}, \
                EXISTS (SELECT FROM ha.nodes WHERE kind = 'data' AND node_id NOT IN ({here}, {provider})), \
                EXISTS (SELECT FROM ha.row_versions)",
        horizon.as_micros()
    );
    let row = one(connection.query(&query, 3).map_err(Failure::Refused)?)?;
    Ok(Moment {
        start,
        horizon: number(&row, 0)?,
        others: text(&row, 1)? == "t",
        copied: text(&row, 2)? == "t",
    })
}

/// How far the provider has applied other nodes. Before a snapshot that comes later: this contains all of it, since a
/// new slot waits for the transactions that run.
pub(super) fn progress(connection: &mut Connection) -> Result<Vec<NodeProgress>, Failure> {
    let rows = connection
        .query(copied_progress::QUERY, 3)
        .map_err(Failure::Refused)?;
    rows.iter()
        .map(|row| {
            let lsn = text(row, 2)?
                .parse::<pg_ha_model::Lsn>()
                .map_err(|error| Failure::Answer(error.to_string()))?;
            Ok(NodeProgress {
                node_id: number(row, 0)?,
                node_uid: text(row, 1)?.to_owned(),
                lsn: lsn.0,
            })
        })
        .collect()
}

/// Looks at the table in the snapshot: its columns and rows as the stream sends them.
pub(super) fn describe(
    connection: &mut Connection,
    table: &PendingTable,
    sets: &[String],
) -> Result<Described, Failure> {
    let query = format!(
        "SELECT c.oid::bigint::text, c.relkind::text, pg_catalog.current_setting('server_version_num') \
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
          WHERE n.nspname = {} AND c.relname = {}",
        literal(&table.schema),
        literal(&table.name)
    );
    let mut rows = connection.query(&query, 3).map_err(Failure::Refused)?;
    let row = rows.pop().ok_or(Failure::NotThere)?;
    let (oid, kind, server_version) = (number::<u32>(&row, 0)?, text(&row, 1)?, number(&row, 2)?);
    if !matches!(kind, "r" | "p") {
        return Err(Failure::NoTable);
    }
    let wanted = wanted(sets);
    // What stands above it and carries it along.
    let above = format!(
        "WITH {wanted} SELECT a.relid::regclass::text FROM pg_catalog.pg_partition_ancestors({oid}) a \
           JOIN wanted w ON w.relid = a.relid WHERE a.relid <> {oid} AND w.include_partitions LIMIT 1"
    );
    if let Some(row) = connection.query(&above, 1).map_err(Failure::Refused)?.pop() {
        return Err(Failure::PartOf(text(&row, 0)?.to_owned()));
    }
    Ok(Described {
        condition: condition(connection, &wanted, oid)?,
        table: Rc::new(RemoteTable {
            namespace: table.schema.clone(),
            name: table.name.clone(),
            full_identity: false,
            columns: columns(connection, &wanted, oid)?,
        }),
        only: kind == "r",
        oid,
        server_version,
    })
}

/// Which rows the sets send: those that one of the table's places in them lets through, and those of its partitions
/// that these let through by places of their own. None: all.
fn condition(connection: &mut Connection, wanted: &str, oid: u32) -> Result<Option<String>, Failure> {
    let query = format!(
        "WITH {wanted} SELECT w.relid::bigint::text, w.row_filter FROM wanted w JOIN pg_catalog.pg_class c ON c.oid = w.relid \
          WHERE w.replicate_insert AND (w.include_partitions OR c.relkind <> 'p') \
            AND (w.relid = {oid} OR w.relid IN (SELECT relid FROM pg_catalog.pg_partition_tree({oid})))"
    );
    let places = connection.query(&query, 2).map_err(Failure::Refused)?;
    let mut conditions = Vec::new();
    let mut published = false;
    for place in &places {
        let whole = number::<u32>(place, 0)? == oid;
        let filter = place.get(1).and_then(Option::as_deref);
        published |= whole;
        match (whole, filter) {
            (true, None) => return Ok(None),
            (true, Some(filter)) => conditions.push(format!("({filter})")),
            (false, filter) => conditions.push(format!(
                "(tableoid IN (SELECT relid FROM pg_catalog.pg_partition_tree({})) AND ({}))",
                text(place, 0)?,
                filter.unwrap_or("true")
            )),
        }
    }
    if published {
        Ok(Some(conditions.join(" OR ")))
    } else {
        Err(Failure::NotPublished)
    }
}

/// The columns that the sets send: those of the lists, with the key where rows have to be found again.
fn columns(connection: &mut Connection, wanted: &str, oid: u32) -> Result<Vec<RemoteColumn>, Failure> {
    let query = format!(
        "WITH {wanted} \
         SELECT a.attname::text, a.atttypid::bigint::text, n.nspname || '.' || t.typname, a.atttypmod::text \
           FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
           JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
           JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
          WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
            AND EXISTS (SELECT FROM wanted w \
                         WHERE w.relid = a.attrelid \
                           AND (w.columns IS NULL OR a.attname::text = ANY (w.columns) \
                                OR w.needs_key AND (c.relreplident = 'f' OR EXISTS \
                                   (SELECT FROM pg_catalog.pg_index i \
                                     WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey) \
                                       AND (c.relreplident = 'd' AND i.indisprimary \
                                            OR c.relreplident = 'i' AND i.indisreplident))))) \
          ORDER BY a.attnum"
    );
    connection
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
        .collect()
}

impl Described {
    /// The statement by which the provider sends the versions of the youngest rows that are not older than the horizon,
    /// as rows of `ha.row_versions`; at most so many. `provider`: whose the rows are that bear no origin. `copied`: the
    /// provider itself got rows by a copy; of two versions of a row the newer one is the true one.
    pub(super) fn versions_command(
        &self,
        key: &KeyExpression,
        horizon: i64,
        most: i32,
        provider: NodeId,
        copied: bool,
    ) -> String {
        let name = self.table.qualified_name();
        let only = if self.only { "ONLY " } else { "" };
        let condition = self.condition.as_deref().unwrap_or("true");
        let since =
            format!("timestamptz '2000-01-01 00:00:00+00' + interval '1 microsecond' * {horizon}::bigint");
        let oid = self.oid;
        let (columns, digest) = (&key.columns, &key.digest);
        let written = format!(
            "SELECT {digest} AS key, r.ha_at AS at, coalesce(o.node_id, {provider}) AS node \
               FROM (SELECT {columns}, pg_catalog.pg_xact_commit_timestamp(xmin) AS ha_at, \
                            pg_catalog.pg_xact_commit_timestamp_origin(xmin) AS ha_origin \
                       FROM {only}{name} \
                      WHERE pg_catalog.pg_xact_commit_timestamp(xmin) >= {since} AND ({condition}) \
                      ORDER BY ha_at DESC LIMIT {most}) r \
               LEFT JOIN ha.origin_ids o ON o.roident = (r.ha_origin).roident"
        );
        let all = if copied {
            format!(
                "SELECT DISTINCT ON (key) key, at, node FROM ({written} \
                  UNION ALL \
                 SELECT v.key, v.committed_at, v.origin FROM ha.row_versions v \
                  WHERE v.committed_at >= {since} \
                    AND v.relation = coalesce(pg_catalog.pg_partition_root({oid})::oid, {oid}::oid)) both_kinds \
                  ORDER BY key, at DESC, node DESC LIMIT {most}"
            )
        } else {
            written
        };
        format!(
            "COPY (SELECT {}::oid, key, at, node FROM ({all}) found) TO STDOUT",
            key.relation.to_u32()
        )
    }

    /// The statement by which the provider sends the rows.
    pub(super) fn copy_command(&self, format: Format) -> String {
        let columns: Vec<String> = self
            .table
            .columns
            .iter()
            .map(|column| pgrx::spi::quote_identifier(&column.name))
            .collect();
        let (name, columns) = (self.table.qualified_name(), columns.join(", "));
        let source = match &self.condition {
            None if self.only && !columns.is_empty() => format!("{name} ({columns})"),
            None if self.only => name,
            None => format!("(SELECT {columns} FROM {name})"),
            Some(condition) if self.only => format!("(SELECT {columns} FROM ONLY {name} WHERE {condition})"),
            Some(condition) => format!("(SELECT {columns} FROM {name} WHERE {condition})"),
        };
        format!("COPY {source} TO STDOUT WITH (FORMAT {})", format.as_str())
    }
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
