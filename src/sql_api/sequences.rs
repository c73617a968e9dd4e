//! `ha.repset_add_seq`, `ha.repset_remove_seq`, `ha.sync_seq`, and the sequences of a new subscription.

use pgrx::pg_sys::Oid;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use super::replication_sets::require;
use super::{arguments, refuse_in_recovery};
use crate::catalog::relations::{self, Relation};
use crate::catalog::sequences::{self, SequenceValue, SetError};
use crate::network::peer::Peer;
use crate::postgres::error::{Answer, Report};
use crate::postgres::xact;
use crate::shared_state;

fn require_sequence(relation: Option<Oid>) -> Answer<Relation> {
    let oid = arguments::required("relation", relation)?;
    let relation = relations::by_oid(oid)?.ok_or_else(|| {
        Report::new(
            Code::ERRCODE_UNDEFINED_TABLE,
            format!("relation with OID {} does not exist", oid.to_u32()),
        )
        .detail("There is no such row in pg_class.")
        .hint("Pass the name of a sequence.")
    })?;
    let name = relation.quoted();
    let refuse = |what: String, detail: &str, hint: &str| {
        Err(Report::new(Code::ERRCODE_WRONG_OBJECT_TYPE, what)
            .detail(detail)
            .hint(hint))
    };
    if relation.kind != 'S' {
        return refuse(
            format!("{name} is not a sequence"),
            "Only sequences are replicated by their value.",
            "Add a table with ha.repset_add_table; pg_get_serial_sequence() names the sequence of a column.",
        );
    }
    if relation.is_system {
        return refuse(
            format!("{name} cannot be replicated"),
            "It belongs to PostgreSQL or to pg_ha and counts for this server alone.",
            "Add sequences of your own.",
        );
    }
    match relation.persistence {
        't' => refuse(
            format!("{name} is a temporary sequence and cannot be replicated"),
            "It exists in one session only.",
            "Make it an ordinary sequence.",
        ),
        'u' => refuse(
            format!("{name} is an unlogged sequence and cannot be replicated"),
            "A crash sets it back to its start.",
            &format!("ALTER SEQUENCE {name} SET LOGGED"),
        ),
        _ => Ok(relation),
    }
}

/// Adds a sequence to a set; its value is told at once if `synchronize_data` is set, else with the next look at it.
pub(crate) fn repset_add_seq(
    set_name: Option<String>,
    relation: Option<Oid>,
    synchronize_data: Option<bool>,
) -> Answer<bool> {
    let set = require(set_name)?;
    let relation = require_sequence(relation)?;
    let synchronize = arguments::required("synchronize_data", synchronize_data)?;
    refuse_in_recovery("change a replication set")?;
    if sequences::contains(set.id, relation.oid)? {
        return Err(Report::new(
            Code::ERRCODE_DUPLICATE_OBJECT,
            format!(
                "sequence {} is in replication set \"{}\" already",
                relation.quoted(),
                set.name
            ),
        )
        .detail("A sequence can be in several sets, but in each of them once.")
        .hint("ha.sync_seq tells subscribers how far it is."));
    }
    sequences::insert(set.id, relation.oid)?;
    if synchronize {
        sequences::tell(relation.oid, true)?;
    }
    xact::after_commit(shared_state::catalog_changed);
    Ok(true)
}

/// Takes a sequence out of a set.
pub(crate) fn repset_remove_seq(set_name: Option<String>, relation: Option<Oid>) -> Answer<bool> {
    let set = require(set_name)?;
    let relation = require_sequence(relation)?;
    refuse_in_recovery("change a replication set")?;
    if !sequences::delete(set.id, relation.oid)? {
        return Err(not_in_a_set(&relation, Some(&set.name)));
    }
    xact::after_commit(shared_state::catalog_changed);
    Ok(true)
}

fn not_in_a_set(relation: &Relation, set: Option<&str>) -> Report {
    let name = relation.quoted();
    Report::new(
        Code::ERRCODE_UNDEFINED_OBJECT,
        match set {
            Some(set) => format!("sequence {name} is not in replication set \"{set}\""),
            None => format!("sequence {name} is in no replication set"),
        },
    )
    .detail("Nothing was changed.")
    .hint("SELECT * FROM ha.replication_set_sequences shows which sequences are in which sets.")
}

/// Tells subscribers how far a sequence is, with the current transaction; false if it has not been used yet.
pub(crate) fn sync_seq(relation: Option<Oid>) -> Answer<bool> {
    let relation = require_sequence(relation)?;
    refuse_in_recovery("send the value of a sequence")?;
    if sequences::sets_of(relation.oid)?.is_empty() {
        return Err(not_in_a_set(&relation, None));
    }
    Ok(sequences::tell(relation.oid, true)?)
}

/// A sequence of the provider whose value a subscription starts with.
pub(super) struct Wanted {
    value: SequenceValue,
    /// In one of the sets, rather than only used by a column of a table in one.
    published: bool,
}

/// How far the sequences in these sets are on the provider. `of_columns`: also those that columns of the sets' tables
/// draw from.
pub(super) fn ask(peer: &mut Peer, sets: &[String], of_columns: bool) -> Answer<Vec<Wanted>> {
    let sets: Vec<String> = sets.iter().map(pgrx::spi::quote_literal).collect();
    let rows = peer.query(
        &format!(
            "SELECT nspname::text, relname::text, value::text, ascending::text, published::text \
               FROM ha.sequence_values(ARRAY[{}]::text[]) WHERE published OR {of_columns}",
            sets.join(", ")
        ),
        &[],
    )?;
    Ok(rows
        .into_iter()
        .filter_map(|row| match <[Option<String>; 5]>::try_from(row) {
            Ok(
                [
                    Some(schema),
                    Some(name),
                    Some(value),
                    Some(ascending),
                    Some(published),
                ],
            ) => Some(Wanted {
                value: SequenceValue {
                    schema,
                    name,
                    value: value.parse().ok()?,
                    ascending: ascending == "true",
                },
                published: published == "true",
            }),
            _ => None,
        })
        .collect())
}

/// Sets the sequences here to at least these values. One that only a column draws from may be missing, or be another one.
pub(super) fn set_all(wanted: &[Wanted]) -> Answer<()> {
    for sequence in wanted {
        match sequences::set(&sequence.value) {
            Err(SetError::Missing(_) | SetError::Direction { .. }) if !sequence.published => {}
            Err(error @ (SetError::Missing(_) | SetError::Direction { .. })) => {
                return Err(Report::new(
                    Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    error.to_string(),
                )
                .detail("It is in a replication set of the provider that the subscription receives.")
                .hint("Create it here as it is there, or take it out of the set there with ha.repset_remove_seq."));
            }
            Err(SetError::Catalog(error)) => return Err(error.into()),
            Ok(()) => {}
        }
    }
    Ok(())
}
