//! Sequences in replication sets, `ha.replication_set_sequences`, and what has been told of them,
//! `ha.sequence_states`.

use pg_ha_replication::sequence::{self, OtherDirection, Shape, Told};
use pgrx::pg_sys::Oid;

use super::{Error, execute, read, read_one};
use crate::settings;

/// Prefix of the message in the provider's stream that tells of a sequence.
pub(crate) const MESSAGE: &str = "pg_ha.sequence";

/// What that message says.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct SequenceMessage {
    pub(crate) set_names: Vec<String>,
    #[serde(flatten)]
    pub(crate) value: SequenceValue,
}

/// How far a sequence of the provider is, with a buffer.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct SequenceValue {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) value: i64,
    pub(crate) ascending: bool,
}

/// Why a sequence could not be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetError {
    #[error("sequence {0} does not exist on this node")]
    Missing(String),
    #[error("sequence {name} cannot be set: {source}")]
    Direction { name: String, source: OtherDirection },
    #[error(transparent)]
    Catalog(#[from] Error),
}

/// Whether the sequence is in the set.
pub(crate) fn contains(set_id: i32, relation: Oid) -> Result<bool, Error> {
    Ok(read_one(
        "SELECT 1 FROM ha.replication_set_sequences WHERE set_id = $1 AND relation = $2::oid::regclass",
        &[set_id.into(), relation.into()],
        |row| row.get::<i32>(1),
    )?
    .is_some())
}

/// Adds a sequence to a set.
pub(crate) fn insert(set_id: i32, relation: Oid) -> Result<(), Error> {
    execute(
        "INSERT INTO ha.replication_set_sequences (relation, set_id) VALUES ($1::oid::regclass, $2)",
        &[relation.into(), set_id.into()],
    )?;
    Ok(())
}

/// Takes a sequence out of a set; false if it was not in it.
pub(crate) fn delete(set_id: i32, relation: Oid) -> Result<bool, Error> {
    let deleted = execute(
        "DELETE FROM ha.replication_set_sequences WHERE set_id = $1 AND relation = $2::oid::regclass",
        &[set_id.into(), relation.into()],
    )?;
    Ok(deleted > 0)
}

/// Takes all sequences out of a set.
pub(crate) fn delete_set(set_id: i32) -> Result<(), Error> {
    execute(
        "DELETE FROM ha.replication_set_sequences WHERE set_id = $1",
        &[set_id.into()],
    )?;
    Ok(())
}

/// The sequences that are in sets, as far as they exist.
pub(crate) fn published() -> Result<Vec<Oid>, Error> {
    read(
        "SELECT DISTINCT c.oid FROM ha.replication_set_sequences s JOIN pg_catalog.pg_class c ON c.oid = s.relation \
          WHERE c.relkind = 'S' ORDER BY 1",
        &[],
        |row| row.get(1),
    )
}

/// The sets that a sequence is in.
pub(crate) fn sets_of(relation: Oid) -> Result<Vec<String>, Error> {
    read(
        "SELECT r.set_name::text FROM ha.replication_set_sequences s JOIN ha.replication_sets r USING (set_id) \
          WHERE s.relation = $1::oid::regclass ORDER BY 1",
        &[relation.into()],
        |row| row.get(1),
    )
}

/// A sequence as it stands.
struct Standing {
    schema: String,
    name: String,
    shape: Shape,
    last: Option<i64>,
}

fn standing(relation: Oid) -> Result<Option<Standing>, Error> {
    read_one(
        "SELECT n.nspname::text, c.relname::text, s.seqincrement, s.seqmin, s.seqmax, \
                pg_catalog.pg_sequence_last_value(c.oid) \
           FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid \
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE s.seqrelid = $1",
        &[relation.into()],
        |row| {
            Ok(Standing {
                schema: row.get(1)?,
                name: row.get(2)?,
                shape: Shape {
                    increment: row.get(3)?,
                    min: row.get(4)?,
                    max: row.get(5)?,
                },
                last: row.maybe(6)?,
            })
        },
    )
}

/// Tells subscribers, with the current transaction, how far a sequence of this node is, if that is due or asked for now.
/// True if they are told.
pub(crate) fn tell(relation: Oid, now: bool) -> Result<bool, Error> {
    let Some(standing) = standing(relation)? else {
        return Ok(false);
    };
    let state = read_one(
        "SELECT told_value, buffer, received_value FROM ha.sequence_states WHERE relation = $1::oid::regclass",
        &[relation.into()],
        |row| {
            let told = match (row.maybe(1)?, row.maybe(2)?) {
                (Some(value), Some(buffer)) => Some(Told { value, buffer }),
                _ => None,
            };
            Ok((told, row.maybe(3)?))
        },
    )?;
    let (told, received) = state.unwrap_or_default();
    let buffer = settings::sequence_buffer();
    let Some(next) = sequence::to_tell(standing.shape, standing.last, told, received, buffer, now) else {
        return Ok(false);
    };
    execute(
        "INSERT INTO ha.sequence_states AS s (relation, told_value, buffer) VALUES ($1::oid::regclass, $2, $3) \
         ON CONFLICT (relation) DO UPDATE SET told_value = excluded.told_value, buffer = excluded.buffer",
        &[relation.into(), next.value.into(), next.buffer.into()],
    )?;
    let message = SequenceMessage {
        set_names: sets_of(relation)?,
        value: SequenceValue {
            schema: standing.schema,
            name: standing.name,
            value: next.value,
            ascending: standing.shape.increment > 0,
        },
    };
    let content = serde_json::to_string(&message).map_err(|error| Error::Content {
        table: "pg_sequence",
        reason: error.to_string(),
    })?;
    super::emit_transactional(MESSAGE, &content)?;
    Ok(true)
}

/// Sets the sequence of this name here to at least what the provider told. (Sequences know no transactions: an abort does
/// not set it back, and what comes twice does no harm.)
pub(crate) fn set(told: &SequenceValue) -> Result<(), SetError> {
    let name = pgrx::spi::quote_qualified_identifier(&told.schema, &told.name);
    let relation = read_one(
        "SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
          WHERE n.nspname = $1::text::name AND c.relname = $2::text::name AND c.relkind = 'S'",
        &[told.schema.as_str().into(), told.name.as_str().into()],
        |row| row.get::<Oid>(1),
    )?;
    let Some(relation) = relation else {
        return Err(SetError::Missing(name));
    };
    let Some(standing) = standing(relation)? else {
        return Err(SetError::Missing(name));
    };
    let value = sequence::to_set(standing.shape, standing.last, told.ascending, told.value)
        .map_err(|source| SetError::Direction { name, source })?;
    if let Some(value) = value {
        execute(
            "SELECT pg_catalog.setval($1::oid::regclass, $2)",
            &[relation.into(), value.into()],
        )?;
        execute(
            "INSERT INTO ha.sequence_states AS s (relation, received_value) VALUES ($1::oid::regclass, $2) \
             ON CONFLICT (relation) DO UPDATE SET received_value = excluded.received_value",
            &[relation.into(), value.into()],
        )?;
    }
    Ok(())
}
