//! Indexes that are built after the rows of a copy have come: sorting all keys once is faster than finding a place for
//! each of them, several times so where they come in no order.
//!
//! Within the copy's transaction the indexes are marked in `pg_index` as neither valid nor ready: this transaction's
//! inserts pass them over and its plans do not use them. Nobody else sees the mark, which is gone before the commit:
//! REINDEX builds each index into a file of its own and sets both marks again; an abort leaves all as it was.

use super::{Error, execute, read};
use crate::postgres::worker::with_latest_snapshot;

/// Takes the indexes of an empty table, and of its partitions, out of use for this transaction; returns their names,
/// for [`build`]. Empty where that cannot be or is not worth it: rows are there, or triggers of the table run and may
/// look rows up. Others can read the table until its indexes are built, and write to it after the commit.
pub(crate) fn defer(table: pgrx::pg_sys::Oid) -> Result<Vec<String>, Error> {
    let parts = read(
        "SELECT p.relid::oid, p.relid::regclass::text, \
                EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = p.relid AND NOT g.tgisinternal \
                           AND g.tgenabled IN ('A', 'R')) \
           FROM (SELECT $1::oid AS relid UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)) p \
           JOIN pg_catalog.pg_class c ON c.oid = p.relid AND c.relkind = 'r' \
          ORDER BY 1",
        &[table.into()],
        |row| {
            Ok((
                row.get::<pgrx::pg_sys::Oid>(1)?,
                row.get::<String>(2)?,
                row.get::<bool>(3)?,
            ))
        },
    )?;
    if parts.is_empty() || parts.iter().any(|(_, _, triggers)| *triggers) {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
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
        names.extend(super::write(
            "UPDATE pg_catalog.pg_index SET indisready = false, indisvalid = false \
              WHERE indrelid = $1 AND indisready AND indisvalid AND indislive \
          RETURNING indexrelid::regclass::text",
            &[oid.into()],
            |row| row.get::<String>(1),
        )?);
    }
    Ok(names)
}

/// Builds one of them; it is in use again.
pub(crate) fn build(index: &str) -> Result<(), Error> {
    execute(&format!("REINDEX INDEX {index}"), &[])?;
    Ok(())
}
