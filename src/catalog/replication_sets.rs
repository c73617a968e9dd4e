//! `ha.replication_sets`: which kinds of change a set sends.

use super::{Error, Row, execute, read, read_one, write};

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicationSet {
    pub(crate) id: i32,
    pub(crate) name: String,
    pub(crate) actions: Actions,
}

/// Kinds of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Actions {
    pub(crate) insert: bool,
    pub(crate) update: bool,
    pub(crate) delete: bool,
    pub(crate) truncate: bool,
}

impl Actions {
    /// Whether rows must be found again on the subscriber, which takes a key.
    pub(crate) fn need_key(self) -> bool {
        self.update || self.delete
    }
}

const COLUMNS: &str =
    "set_id, set_name::text, replicate_insert, replicate_update, replicate_delete, replicate_truncate";

fn from_row(row: &Row<'_>) -> Result<ReplicationSet, Error> {
    Ok(ReplicationSet {
        id: row.get(1)?,
        name: row.get(2)?,
        actions: Actions {
            insert: row.get(3)?,
            update: row.get(4)?,
            delete: row.get(5)?,
            truncate: row.get(6)?,
        },
    })
}

/// The set of this name.
pub(crate) fn by_name(name: &str) -> Result<Option<ReplicationSet>, Error> {
    read_one(
        &format!("SELECT {COLUMNS} FROM ha.replication_sets WHERE set_name = $1::text::name"),
        &[name.into()],
        from_row,
    )
}

/// The set with this number.
pub(crate) fn by_id(id: i32) -> Result<Option<ReplicationSet>, Error> {
    read_one(
        &format!("SELECT {COLUMNS} FROM ha.replication_sets WHERE set_id = $1"),
        &[id.into()],
        from_row,
    )
}

/// The names of all sets.
pub(crate) fn names() -> Result<Vec<String>, Error> {
    read(
        "SELECT set_name::text FROM ha.replication_sets ORDER BY set_id",
        &[],
        |row| row.get(1),
    )
}

/// Makes a set; returns its id.
pub(crate) fn insert(name: &str, actions: Actions) -> Result<i32, Error> {
    write(
        "INSERT INTO ha.replication_sets \
             (set_name, replicate_insert, replicate_update, replicate_delete, replicate_truncate) \
         VALUES ($1::text::name, $2, $3, $4, $5) RETURNING set_id",
        &[
            name.into(),
            actions.insert.into(),
            actions.update.into(),
            actions.delete.into(),
            actions.truncate.into(),
        ],
        |row| row.get(1),
    )?
    .into_iter()
    .next()
    .ok_or(Error::Null { column: 1 })
}

/// Changes what a set sends.
pub(crate) fn update(id: i32, actions: Actions) -> Result<(), Error> {
    execute(
        "UPDATE ha.replication_sets SET replicate_insert = $2, replicate_update = $3, \
                replicate_delete = $4, replicate_truncate = $5 WHERE set_id = $1",
        &[
            id.into(),
            actions.insert.into(),
            actions.update.into(),
            actions.delete.into(),
            actions.truncate.into(),
        ],
    )?;
    Ok(())
}

/// Drops a set that has no tables any more.
pub(crate) fn delete(id: i32) -> Result<(), Error> {
    execute("DELETE FROM ha.replication_sets WHERE set_id = $1", &[id.into()])?;
    Ok(())
}
