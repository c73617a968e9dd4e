//! What PostgreSQL's catalogs say about relations, as far as it decides whether they can be replicated.

use pgrx::pg_sys::Oid;

use super::{Error, Row, read, read_one};

/// A relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) oid: Oid,
    pub(crate) schema_oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `pg_class.relkind`.
    pub(crate) kind: char,
    /// `pg_class.relpersistence`.
    pub(crate) persistence: char,
    /// `pg_class.relreplident`.
    pub(crate) replica_identity: char,
    /// Whether updates and deletes carry a key (or, with FULL, the whole row) that finds the row again.
    pub(crate) has_identity: bool,
    pub(crate) has_primary_key: bool,
    /// The root of the partition tree that it is a part of, if it is not itself a root.
    pub(crate) partition_root: Option<Oid>,
    /// Whether it belongs to PostgreSQL or to this extension.
    pub(crate) is_system: bool,
}

impl Relation {
    /// For messages: `schema.name`, quoted where SQL needs it.
    pub(crate) fn quoted(&self) -> String {
        // The schema's real name, which has a number in it, means nothing to its user.
        let schema = if self.persistence == 't' {
            "pg_temp"
        } else {
            &self.schema
        };
        pgrx::spi::quote_qualified_identifier(schema, &self.name)
    }
}

const QUERY: &str = "\
SELECT c.oid, c.relnamespace, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
       c.relreplident::text,
       CASE c.relreplident
           WHEN 'f' THEN true
           WHEN 'n' THEN false
           WHEN 'i' THEN EXISTS (SELECT FROM pg_catalog.pg_index i
                                  WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)
           ELSE EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
                           AND i.indisvalid AND i.indimmediate)
       END,
       EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
       CASE WHEN c.relispartition THEN pg_catalog.pg_partition_root(c.oid)::oid END,
       c.oid < 16384 OR n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast', 'ha')
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

fn from_row(row: &Row<'_>) -> Result<Relation, Error> {
    let letter = |column| -> Result<char, Error> {
        let text: String = row.get(column)?;
        text.chars().next().ok_or(Error::Null { column })
    };
    let schema_oid: Oid = row.get(2)?;
    Ok(Relation {
        oid: row.get(1)?,
        schema_oid: schema_oid.to_u32(),
        schema: row.get(3)?,
        name: row.get(4)?,
        kind: letter(5)?,
        persistence: letter(6)?,
        replica_identity: letter(7)?,
        has_identity: row.get(8)?,
        has_primary_key: row.get(9)?,
        partition_root: row.maybe(10)?,
        is_system: row.get(11)?,
    })
}

/// The relation with this oid.
pub(crate) fn by_oid(oid: Oid) -> Result<Option<Relation>, Error> {
    read_one(&format!("{QUERY} WHERE c.oid = $1"), &[oid.into()], from_row)
}

/// The tables, ordinary and partitioned, whose schema and name match these regular expressions; system tables and
/// those of other sessions are left out.
pub(crate) fn tables_matching(schema: Option<&str>, name: Option<&str>) -> Result<Vec<Relation>, Error> {
    read(
        &format!(
            "{QUERY} WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND c.oid >= 16384 \
               AND n.nspname NOT IN ('information_schema', 'ha') \
               AND ($1 IS NULL OR n.nspname ~ $1) AND ($2 IS NULL OR c.relname ~ $2) \
             ORDER BY n.nspname, c.relname"
        ),
        &[schema.into(), name.into()],
        from_row,
    )
}

/// The tables of one schema, in the same way.
pub(crate) fn tables_of_schema(schema: &str) -> Result<Vec<Relation>, Error> {
    read(
        &format!(
            "{QUERY} WHERE c.relkind IN ('r', 'p') AND n.nspname = $1::text::name AND c.oid >= 16384 \
             ORDER BY c.relname"
        ),
        &[schema.into()],
        from_row,
    )
}

/// Whether there is a schema of this name.
pub(crate) fn schema_exists(schema: &str) -> Result<bool, Error> {
    Ok(read_one(
        "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1::text::name",
        &[schema.into()],
        |row| row.get::<i32>(1),
    )?
    .is_some())
}

/// The columns of a relation that are stored and sent.
pub(crate) fn columns(oid: Oid) -> Result<Vec<String>, Error> {
    read(
        "SELECT attname::text FROM pg_catalog.pg_attribute \
          WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
        &[oid.into()],
        |row| row.get(1),
    )
}

/// The columns that updates and deletes find rows by; all of them for replica identity FULL.
pub(crate) fn identity_columns(oid: Oid) -> Result<Vec<String>, Error> {
    read(
        "SELECT a.attname::text \
           FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
          WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped \
            AND (c.relreplident = 'f' AND a.attgenerated = '' OR EXISTS \
                 (SELECT FROM pg_catalog.pg_index i \
                   WHERE i.indrelid = c.oid \
                     AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident) \
                     AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))) \
          ORDER BY a.attnum",
        &[oid.into()],
        |row| row.get(1),
    )
}

/// What a name that is not among [`columns`] stands for.
pub(crate) enum ColumnKind {
    Missing,
    System,
    Generated,
}

/// What a name stands for that is not among [`columns`].
pub(crate) fn column_kind(oid: Oid, name: &str) -> Result<ColumnKind, Error> {
    let system = read_one(
        "SELECT attnum < 0 FROM pg_catalog.pg_attribute \
          WHERE attrelid = $1 AND attname = $2::text::name AND NOT attisdropped",
        &[oid.into(), name.into()],
        |row| row.get::<bool>(1),
    )?;
    Ok(match system {
        None => ColumnKind::Missing,
        Some(true) => ColumnKind::System,
        Some(false) => ColumnKind::Generated,
    })
}

/// The partitions of a table that hold rows on this server.
pub(crate) fn leaf_partitions(root: Oid) -> Result<Vec<Relation>, Error> {
    read(
        &format!(
            "{QUERY} WHERE c.relkind = 'r' AND c.oid IN \
               (SELECT relid FROM pg_catalog.pg_partition_tree($1::oid::regclass) WHERE isleaf) \
             ORDER BY n.nspname, c.relname"
        ),
        &[root.into()],
        from_row,
    )
}
