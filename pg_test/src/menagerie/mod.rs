//! Sixty-odd tables, no two of a kind, and writers that do to them whatever SQL can do.
//!
//! Every row has a *number*, in whatever columns; the numbers of a node's writers are its own, so that nodes which
//! write to the same tables never meet in a row. `differences` compares whole tables with that in mind: what a node
//! sends of its rows must be exactly what every other node has with those numbers.

mod shapes;
mod types;
mod values;
mod writer;

use anyhow::{Result, bail};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::sql::Session;
use values::Kind;
pub(crate) use writer::{Numbers, Writer};

/// Numbers of one node begin at this multiple of its own number; they fit in a smallint.
pub(crate) const NUMBERS_OF_A_NODE: u64 = 8_000;

/// What may be done to a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Does {
    pub(crate) update: bool,
    pub(crate) delete: bool,
    /// Changes of the key.
    pub(crate) rekey: bool,
    pub(crate) truncate: bool,
    /// Inserts pass over rows that collide.
    pub(crate) on_conflict: bool,
}

const EVERYTHING: Does = Does {
    update: true,
    delete: true,
    rekey: true,
    truncate: true,
    on_conflict: true,
};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// Makes it, with all that belongs to it.
    create: &'static str,
    /// The same where it only receives, if that is another.
    create_here: Option<&'static str>,
    /// Puts it into its sets; by default into `default`.
    add: Option<&'static str>,
    columns: &'static [(&'static str, Kind)],
    /// A row's number.
    number: &'static str,
    /// What is compared; by default all columns.
    compared: Option<&'static str>,
    /// Which rows are sent.
    sent: &'static str,
    /// Where its rows are on a subscriber, if not in a table of the same name.
    held: Option<&'static str>,
    /// Statements of its own; {a} and {b} are numbers of the writer, {from} and {to} its range of them.
    special: &'static [&'static str],
    does: Does,
}

impl Table {
    const fn new(name: &'static str, create: &'static str, columns: &'static [(&'static str, Kind)]) -> Self {
        Self {
            name,
            create,
            create_here: None,
            add: None,
            columns,
            number: "id",
            compared: None,
            sent: "true",
            held: None,
            special: &[],
            does: EVERYTHING,
        }
    }

    /// Only where it receives.
    const fn here(mut self, create: &'static str) -> Self {
        self.create_here = Some(create);
        self
    }

    const fn add(mut self, add: &'static str) -> Self {
        self.add = Some(add);
        self
    }

    const fn number(mut self, number: &'static str) -> Self {
        self.number = number;
        self
    }

    const fn compared(mut self, columns: &'static str) -> Self {
        self.compared = Some(columns);
        self
    }

    const fn sent(mut self, condition: &'static str) -> Self {
        self.sent = condition;
        self
    }

    const fn held(mut self, from: &'static str) -> Self {
        self.held = Some(from);
        self
    }

    const fn special(mut self, statements: &'static [&'static str]) -> Self {
        self.special = statements;
        self
    }

    const fn insert_only(mut self) -> Self {
        self.does = Does {
            update: false,
            delete: false,
            rekey: false,
            ..self.does
        };
        self
    }

    const fn does(mut self, does: Does) -> Self {
        self.does = does;
        self
    }

    fn addition(&self) -> String {
        self.add.map_or_else(
            || {
                format!(
                    "SELECT ha.repset_add_table('default', {})",
                    crate::sql::literal(self.name)
                )
            },
            str::to_owned,
        )
    }

    fn columns_compared(&self) -> String {
        self.compared.map_or_else(
            || {
                self.columns
                    .iter()
                    .map(|(name, _)| *name)
                    .collect::<Vec<_>>()
                    .join(", ")
            },
            str::to_owned,
        )
    }
}

/// All of them.
pub(crate) fn tables() -> Vec<Table> {
    [shapes::TABLES, shapes::UNLIKE, types::TABLES].concat()
}

/// Those that look the same wherever rows are written, for clusters in which every node writes.
pub(crate) fn alike() -> Vec<Table> {
    [shapes::TABLES, types::TABLES].concat()
}

/// The sets that a subscriber wants.
pub(crate) const SETS: &str = "'{default,default_insert_only,some_rows,other_rows}'";

const PRELUDE: &str = "
    CREATE EXTENSION IF NOT EXISTS hstore; CREATE EXTENSION IF NOT EXISTS citext; CREATE EXTENSION IF NOT EXISTS btree_gist;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TYPE pair AS (x int, y text);
    CREATE DOMAIN posint AS int CHECK (VALUE > 0);
    CREATE DOMAIN word AS varchar(20) CHECK (VALUE !~ '^ ');
    CREATE TYPE floatrange AS RANGE (subtype = float8, subtype_diff = float8mi);
    CREATE FUNCTION must_not_run() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'an ordinary trigger ran for a replicated change'; END $$;
    CREATE TABLE witnessed (what text, n int);
    CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.witnessed VALUES (TG_TABLE_NAME || ' ' || TG_OP, 1); RETURN NULL; END $$;
    CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.stamped := 'stamped ' || NEW.id; RETURN NEW; END $$;";

/// Makes the tables on a node that writes.
pub(crate) fn create(node: &Node, database: &str, tables: &[Table]) -> Result<()> {
    make(node, database, tables, |table| table.create)
}

/// Makes the tables on a node that only receives.
pub(crate) fn create_receiving(node: &Node, database: &str, tables: &[Table]) -> Result<()> {
    make(node, database, tables, |table| {
        table.create_here.unwrap_or(table.create)
    })
}

fn make(node: &Node, database: &str, tables: &[Table], which: impl Fn(&Table) -> &'static str) -> Result<()> {
    let mut session = node.session(database)?;
    session.exec(PRELUDE)?;
    tables.iter().try_for_each(|table| session.exec(which(table)))
}

/// Puts the tables into their sets.
pub(crate) fn add(node: &Node, database: &str, tables: &[Table]) -> Result<()> {
    let mut session = node.session(database)?;
    session.exec(
        "SELECT ha.repset_create('some_rows', replicate_truncate => false), ha.repset_create('other_rows')",
    )?;
    tables
        .iter()
        .try_for_each(|table| session.exec(&table.addition()))
}

/// What `to` has of the rows that `from` wrote must be what `from` sends of them.
pub(crate) fn compare(cluster: &Cluster, from: usize, to: usize, tables: &[Table]) -> Result<()> {
    let (from, to) = (cluster.node(from)?, cluster.node(to)?);
    let mut left = from.session(&cluster.database)?;
    let mut right = to.session(&cluster.database)?;
    let mut found = Vec::new();
    for table in tables {
        let (columns, number) = (table.columns_compared(), table.number);
        let own = format!("({number}) / {NUMBERS_OF_A_NODE} = {}", from.number);
        let sent = format!(
            "SELECT {columns} FROM {} WHERE {own} AND ({})",
            table.name, table.sent
        );
        let held = format!(
            "SELECT {columns} FROM {} WHERE {own}",
            table.held.unwrap_or(table.name)
        );
        if checksum(&mut left, &sent)? != checksum(&mut right, &held)? {
            found.push(differing_rows(table.name, &mut left, &sent, &mut right, &held)?);
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!(
        "{} tables of {} are not the same on {} (< what {} has, > what {} has):\n{}",
        found.len(),
        from.name,
        to.name,
        from.name,
        to.name,
        found.join("\n")
    )
}

/// All pairs that subscribe to each other.
pub(crate) fn compare_all(cluster: &Cluster, tables: &[Table]) -> Result<()> {
    cluster
        .pairs()
        .into_iter()
        .try_for_each(|(from, to)| compare(cluster, from.number, to.number, tables))
}

fn checksum(session: &mut Session, query: &str) -> Result<String> {
    let sql = format!(
        "SELECT count(*) || ' rows, sum ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM ({query}) t"
    );
    session.text(&sql)
}

fn differing_rows(
    table: &str,
    left: &mut Session,
    sent: &str,
    right: &mut Session,
    held: &str,
) -> Result<String> {
    const SHOWN: usize = 5;
    const WIDTH: usize = 200;
    let texts = |session: &mut Session, query: &str| -> Result<Vec<String>> {
        let rows = session.rows(&format!(
            "SELECT left(t::text, 60000) FROM ({query}) t ORDER BY t::text COLLATE \"C\""
        ))?;
        Ok(rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect())
    };
    let (sent, held) = (texts(left, sent)?, texts(right, held)?);
    let missing_from = |rows: &[String], other: &[String], mark: &str| -> Vec<String> {
        let mut counts = std::collections::HashMap::new();
        for row in other {
            *counts.entry(row).or_insert(0_usize) += 1;
        }
        let mut missing = Vec::new();
        for row in rows {
            match counts.get_mut(row) {
                Some(count) if *count > 0 => *count -= 1,
                _ => missing.push(format!(
                    "      {mark} {}",
                    row.chars().take(WIDTH).collect::<String>()
                )),
            }
        }
        missing
    };
    let mut lines = missing_from(&sent, &held, "<");
    let others = missing_from(&held, &sent, ">");
    let told = format!(
        "    {table}: {} rows are missing, {} should not be there",
        lines.len(),
        others.len()
    );
    lines.truncate(SHOWN);
    lines.extend(others.into_iter().take(SHOWN));
    Ok(format!("{told}\n{}", lines.join("\n")))
}
