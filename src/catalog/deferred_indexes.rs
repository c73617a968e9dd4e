//! Indexes that are built after the rows of a copy have come: sorting all keys once is faster than finding a place for
//! each of them, several times so where they come in no order.
//!
//! Within the copy's transaction the indexes are marked in `pg_index` as neither valid nor ready: this transaction's
//! inserts pass them over and its plans do not use them. Nobody else sees the mark, which is gone before the commit:
//! REINDEX builds each index into a file of its own and sets both marks again; an abort leaves all as it was.

use pgrx::pg_sys::Oid;

use super::{Error, execute, read, read_one};
use crate::postgres::worker::with_latest_snapshot;

/// Takes the indexes of an empty table, and of its partitions, out of use for this transaction; returns them, for
/// [`build`]. Empty where that cannot be or is not worth it: rows are there, or triggers of the table run and may
/// look rows up. Others can read the table until its indexes are built, and write to it after the commit.
pub(crate) fn defer(table: Oid) -> Result<Vec<Oid>, Error> {
    let parts = read(
        "SELECT p.relid::oid, p.relid::regclass::text, \
                EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = p.relid AND NOT g.tgisinternal \
                           AND g.tgenabled IN ('A', 'R')) \
           FROM (SELECT $1::oid AS relid UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)) p \
           JOIN pg_catalog.pg_class c ON c.oid = p.relid AND c.relkind = 'r' \
          ORDER BY 1",
        &[table.into()],
        |row| Ok((row.get::<Oid>(1)?, row.get::<String>(2)?, row.get::<bool>(3)?)),
    )?;
    if parts.is_empty() || parts.iter().any(|(_, _, triggers)| *triggers) {
        return Ok(Vec::new());
    }
    let mut indexes = Vec::new();
    for (oid, name, _) in parts {
        // What is not in the indexes must not be found through them: the rows that others wrote before this lock.
        execute(
            &format!("LOCK TABLE ONLY {name} IN SHARE ROW EXCLUSIVE MODE"),
            &[],
        )?;
        let empty = with_latest_snapshot(|| {
            read(
                &format!("SELECT NOT EXISTS (SELECT FROM ONLY {name})"),
                &[],
                |row| row.get::<bool>(1),
            )
        })?;
        if empty != [true] {
            continue;
        }
        indexes.extend(super::write(
            "UPDATE pg_catalog.pg_index SET indisready = false, indisvalid = false \
              WHERE indrelid = $1 AND indisready AND indisvalid AND indislive \
          RETURNING indexrelid",
            &[oid.into()],
            |row| row.get::<Oid>(1),
        )?);
    }
    Ok(indexes)
}

/// Builds one of them; it is in use again. (By what it is called now: somebody may have given it another name, and this
/// one to another index.)
pub(crate) fn build(index: Oid) -> Result<(), Error> {
    let name = read_one(
        "SELECT $1::oid::pg_catalog.regclass::text",
        &[index.into()],
        |row| row.get::<String>(1),
    )?
    .ok_or(Error::Null { column: 1 })?;
    execute(&format!("REINDEX INDEX {name}"), &[])?;
    let built = with_latest_snapshot(|| {
        read_one(
            "SELECT indisready AND indisvalid FROM pg_catalog.pg_index WHERE indexrelid = $1",
            &[index.into()],
            |row| row.get::<bool>(1),
        )
    })?;
    match built {
        Some(true) => Ok(()),
        _ => Err(Error::Content {
            table: "pg_index",
            reason: format!("index {name} was not built"),
        }),
    }
}
