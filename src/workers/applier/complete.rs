//! Rows of which the stream left something out: a value stored out of line that an update did not change is not in the
//! provider's WAL. It does no harm while the row stands here. Where the row has to be inserted (it entered a row
//! filter, or is missing here), the value is taken from the old row where that came along, and otherwise asked for from
//! the provider, by the row's key.
//!
//! What the provider answers is newer than the place of the stream. That is right in the end: a later change of the
//! value is in the stream in full. A row that is not there any more was deleted, or got another key: the stream will say
//! so, and this change of it is left out.

use pg_ha_replication::codec::{CodecError, Column, Decoder, EncodeError, Encoder, Message, OldKind, Tuple};
use pg_ha_replication::conflict::Decision;

use crate::network::peer::{Peer, PeerError, Purpose, literal};
use crate::postgres::apply::table::RowChange;
use crate::postgres::apply::target::Target;
use crate::postgres::apply::{ApplyError, Found, Opened};
use crate::postgres::libpq::Patience;
use crate::postgres::values;

/// Why a row could not be completed.
#[derive(Debug, thiserror::Error)]
pub(in crate::workers) enum CompleteError {
    #[error(transparent)]
    Row(#[from] ApplyError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Decode(#[from] CodecError),
    #[error(
        "column \"{column}\" of table {table}, stored out of line and not changed, could not be fetched from the \
         provider (with REPLICA IDENTITY FULL there it would come along): {error}"
    )]
    Peer {
        table: String,
        column: String,
        error: Box<PeerError>,
    },
}

/// Asks the provider of one subscription.
pub(in crate::workers) struct Completer {
    dsn: String,
    connection: Option<Peer>,
}

impl Completer {
    pub(in crate::workers) fn new(dsn: &str) -> Completer {
        Completer {
            dsn: dsn.to_owned(),
            connection: None,
        }
    }

    /// Lets go of the connection, at the end of a transaction.
    pub(in crate::workers) fn rest(&mut self) {
        self.connection = None;
    }

    /// Applies a change, completed where that is needed; None: the provider does not have the row any more, and nothing
    /// was done.
    pub(in crate::workers) fn apply(
        &mut self,
        target: &Target,
        table: &mut Opened,
        relation: u32,
        change: &RowChange<'_, '_>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Option<Decision>, CompleteError> {
        match table.apply(target, change, judge) {
            Err(ApplyError::Incomplete { .. }) => {}
            outcome => return Ok(Some(outcome?)),
        }
        let Some(frame) = self.complete(target, relation, change)? else {
            return Ok(None);
        };
        let mut decoder = Decoder::new(&frame);
        let Some(Message::Insert(insert)) = decoder.next()? else {
            return Ok(None);
        };
        let whole = match change {
            RowChange::Update(old, _) => RowChange::Update(*old, &insert.new),
            RowChange::Insert(_, look) => RowChange::Insert(&insert.new, *look),
            RowChange::Delete(..) => return Ok(None),
        };
        Ok(Some(table.apply(target, &whole, judge)?))
    }

    /// The new row of a change, complete, as a frame with one insert; None if the provider does not have it any more.
    fn complete(
        &mut self,
        target: &Target,
        relation: u32,
        change: &RowChange<'_, '_>,
    ) -> Result<Option<Vec<u8>>, CompleteError> {
        let (new, old) = match change {
            RowChange::Insert(new, _) => (*new, None),
            RowChange::Update(old, new) => (*new, *old),
            RowChange::Delete(..) => return Ok(None),
        };
        let mut row: Vec<Column<'_>> = new.columns().collect();
        if let Some((kind, old)) = old {
            take_from(&mut row, kind, old, &target.key_columns);
        }
        let lacking: Vec<usize> = (0..row.len())
            .filter(|place| matches!(row[*place], Column::Unchanged))
            .collect();
        let fetched = if lacking.is_empty() {
            Vec::new()
        } else {
            match self.fetch(target, &row, &lacking)? {
                Some(values) => values,
                None => return Ok(None),
            }
        };
        for (place, value) in lacking.iter().zip(&fetched) {
            row[*place] = match value {
                Some(text) => Column::Text(text),
                None => Column::Null,
            };
        }
        let mut encoder = Encoder::new();
        encoder.start_insert(relation, new.column_count());
        for column in row {
            match column {
                Column::Null => encoder.null(),
                Column::Unchanged => encoder.unchanged(),
                Column::Plain(bytes) => encoder.plain(bytes),
                Column::Binary(bytes) => encoder.binary(bytes),
                Column::Text(bytes) => encoder.text(bytes),
            }
        }
        encoder.finish_message()?;
        Ok(Some(encoder.as_bytes().to_vec()))
    }

    fn fetch(
        &mut self,
        target: &Target,
        row: &[Column<'_>],
        lacking: &[usize],
    ) -> Result<Option<Vec<Option<Vec<u8>>>>, CompleteError> {
        let Some(query) = query(target, row, lacking)? else {
            return Ok(None);
        };
        let rows = self.ask(&query).map_err(|error| CompleteError::Peer {
            table: target.name.clone(),
            column: lacking
                .first()
                .and_then(|place| target.columns.get(*place))
                .map_or_else(String::new, |column| column.name.clone()),
            error: Box::new(error),
        })?;
        Ok(rows.into_iter().next().map(|row| {
            row.into_iter()
                .map(|value| value.map(|text| values::to_server(&text)))
                .collect()
        }))
    }

    fn ask(&mut self, query: &str) -> Result<Vec<Vec<Option<String>>>, PeerError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = Peer::connect(&self.dsn, Purpose::Sql, Patience::Interruptible)?;
                for (name, value) in values::CANONICAL {
                    let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
                    connection.simple(&format!("SET {name} = {}", literal(&value)))?;
                }
                // Rather an error than rows that row security hides.
                connection.simple("SET row_security = off; SET client_encoding = 'UTF8'")?;
                connection
            }
        };
        let rows = connection.simple(query)?;
        self.connection = Some(connection);
        Ok(rows)
    }
}

/// Takes what the new row lacks from the old one.
fn take_from<'a>(row: &mut [Column<'a>], kind: OldKind, old: &Tuple<'a>, key_columns: &[usize]) {
    for (position, value) in old.columns().enumerate() {
        let place = match kind {
            OldKind::Full => Some(position),
            OldKind::Key => key_columns.get(position).copied(),
        };
        if let Some(column) = place.and_then(|place| row.get_mut(place))
            && matches!(column, Column::Unchanged)
        {
            *column = value;
        }
    }
}

/// Asks for values of the row with this key, without those of tables that inherit from its table; None: it has no key to
/// be found by.
fn query(target: &Target, row: &[Column<'_>], lacking: &[usize]) -> Result<Option<String>, ApplyError> {
    let name = |place: &usize| {
        let column = target.columns.get(*place);
        column.map(|column| pgrx::spi::quote_identifier(&column.name))
    };
    let mut conditions = Vec::new();
    for place in &target.key_columns {
        let (Some(column), Some(value)) = (name(place), row.get(*place)) else {
            return Ok(None);
        };
        let Some(text) = target.text_of(*place, value)? else {
            return Ok(None);
        };
        // The equality of a type that is not built in would be looked up in schemas where others may put theirs.
        conditions.push(if target.key_is_built_in(*place) {
            format!("{column} OPERATOR(pg_catalog.=) {}", literal(&text))
        } else {
            format!(
                "{column}::pg_catalog.text OPERATOR(pg_catalog.=) {}",
                literal(&text)
            )
        });
    }
    if conditions.is_empty() {
        return Ok(None);
    }
    let wanted: Vec<String> = lacking.iter().filter_map(name).collect();
    let (table, named) = (target.remote_name(), literal(&target.remote_name()));
    Ok(Some(format!(
        "SELECT {} FROM {table} WHERE {} AND (tableoid = {named}::pg_catalog.regclass OR tableoid IN \
             (SELECT relid FROM pg_catalog.pg_partition_tree({named}::pg_catalog.regclass)))",
        wanted.join(", "),
        conditions.join(" AND ")
    )))
}
