//! `ha.replication_set_tables`: which tables belong to which sets.
//!
//! Every change tells running decoding sessions to look again, by an invalidation of the tables concerned: it stands
//! in the WAL with the commit, so that they notice at exactly that position.

use pgrx::pg_sys::Oid;

use super::{Error, Row, execute, read, read_one};
use crate::postgres::server;

/// Whether the table is in the set.
pub(crate) fn contains(set_id: i32, relation: Oid) -> Result<bool, Error> {
    Ok(read_one(
        "SELECT 1 FROM ha.replication_set_tables WHERE set_id = $1 AND relation = $2::oid::regclass",
        &[set_id.into(), relation.into()],
        |row| row.get::<i32>(1),
    )?
    .is_some())
}

/// The tables of a set, as far as they exist.
pub(crate) fn of_set(set_id: i32) -> Result<Vec<Oid>, Error> {
    read(
        "SELECT t.relation::oid FROM ha.replication_set_tables t \
           JOIN pg_catalog.pg_class c ON c.oid = t.relation WHERE t.set_id = $1 ORDER BY 1",
        &[set_id.into()],
        |row| row.get(1),
    )
}

/// A table's place in a set.
pub(crate) struct Member {
    pub(crate) relation: Oid,
    /// None: all columns.
    pub(crate) columns: Option<Vec<String>>,
    pub(crate) row_filter: Option<String>,
    pub(crate) include_partitions: bool,
}

impl Member {
    /// All rows and columns, and all partitions.
    pub(crate) fn whole(relation: Oid) -> Member {
        Member {
            relation,
            columns: None,
            row_filter: None,
            include_partitions: true,
        }
    }
}

const MEMBERS: &str = "SELECT t.relation::oid, t.columns, t.row_filter, t.include_partitions \
     FROM ha.replication_set_tables t JOIN pg_catalog.pg_class c ON c.oid = t.relation WHERE t.set_id = $1";

fn from_row(row: &Row<'_>) -> Result<Member, Error> {
    Ok(Member {
        relation: row.get(1)?,
        columns: row.maybe(2)?,
        row_filter: row.maybe(3)?,
        include_partitions: row.get(4)?,
    })
}

/// The tables of a set with what is sent of them, as far as they exist.
pub(crate) fn members(set_id: i32) -> Result<Vec<Member>, Error> {
    read(&format!("{MEMBERS} ORDER BY 1"), &[set_id.into()], from_row)
}

/// One of them.
pub(crate) fn member(set_id: i32, relation: Oid) -> Result<Option<Member>, Error> {
    read_one(
        &format!("{MEMBERS} AND t.relation = $2::oid::regclass"),
        &[set_id.into(), relation.into()],
        from_row,
    )
}

/// Adds a table to a set.
pub(crate) fn insert(set_id: i32, member: &Member) -> Result<(), Error> {
    execute(
        "INSERT INTO ha.replication_set_tables (relation, set_id, columns, row_filter, include_partitions) \
         VALUES ($1::oid::regclass, $2, $3, $4, $5)",
        &[
            member.relation.into(),
            set_id.into(),
            member.columns.clone().into(),
            member.row_filter.as_deref().into(),
            member.include_partitions.into(),
        ],
    )?;
    invalidate(member.relation)
}

/// Takes a table out of a set; false if it was not in it.
pub(crate) fn delete(set_id: i32, relation: Oid) -> Result<bool, Error> {
    let deleted = execute(
        "DELETE FROM ha.replication_set_tables WHERE set_id = $1 AND relation = $2::oid::regclass",
        &[set_id.into(), relation.into()],
    )?;
    if deleted > 0 {
        invalidate(relation)?;
    }
    Ok(deleted > 0)
}

/// Takes all tables out of a set.
pub(crate) fn delete_set(set_id: i32) -> Result<(), Error> {
    invalidate_set(set_id)?;
    execute(
        "DELETE FROM ha.replication_set_tables WHERE set_id = $1",
        &[set_id.into()],
    )?;
    Ok(())
}

/// Makes decoding sessions look again at all tables of a set.
pub(crate) fn invalidate_set(set_id: i32) -> Result<(), Error> {
    of_set(set_id)?.into_iter().try_for_each(invalidate)
}

/// The table itself and, where it is partitioned, everything below it.
fn invalidate(relation: Oid) -> Result<(), Error> {
    let relations: Vec<Oid> = read(
        "SELECT c.oid FROM pg_catalog.pg_class c WHERE c.oid = $1 \
         UNION SELECT relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass)",
        &[relation.into()],
        |row| row.get(1),
    )?;
    relations.into_iter().for_each(server::invalidate_relation);
    Ok(())
}
