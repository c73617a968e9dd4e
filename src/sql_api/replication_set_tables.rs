//! `ha.repset_add_table`, `ha.repset_add_tables`, `ha.repset_add_all_tables`, `ha.repset_remove_table`.

use std::collections::HashSet;

use pg_ha_replication::pattern::Pattern;
use pgrx::pg_sys::Oid;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use super::error::sentence;
use super::replication_sets::{INSERT_ONLY, require};
use super::{arguments, quoted_list, refuse_in_recovery};
use crate::catalog::relations::{self, ColumnKind, Relation};
use crate::catalog::replication_set_tables::{self as members, Member};
use crate::catalog::replication_sets::{self, Actions, ReplicationSet};
use crate::catalog::subscription_tables;
use crate::postgres::error::{Answer, Report, rephrasing};
use crate::postgres::row_filter;

/// The arguments of `ha.repset_add_table`.
pub(crate) struct NewMember {
    pub(crate) set_name: Option<String>,
    pub(crate) relation: Option<Oid>,
    pub(crate) synchronize_data: Option<bool>,
    pub(crate) columns: Option<Vec<Option<String>>>,
    pub(crate) row_filter: Option<String>,
    pub(crate) include_partitions: Option<bool>,
}

fn require_relation(relation: Option<Oid>) -> Answer<Relation> {
    let oid = arguments::required("relation", relation)?;
    relations::by_oid(oid)?.ok_or_else(|| {
        Report::new(
            Code::ERRCODE_UNDEFINED_TABLE,
            format!("relation with OID {} does not exist", oid.to_u32()),
        )
        .detail("There is no such row in pg_class.")
        .hint("Pass the name of a table.")
    })
}

/// Why a relation can never be in a set, whatever set it is.
fn unsuitable(relation: &Relation) -> Option<Report> {
    let name = relation.quoted();
    let refuse = |code, what: String, detail: &str, hint: &str| {
        Some(Report::new(code, what).detail(detail).hint(hint))
    };
    let wrong_kind = |kind: &str, hint: &str| {
        refuse(
            Code::ERRCODE_WRONG_OBJECT_TYPE,
            format!("{name} is {kind} and cannot be replicated"),
            "Only ordinary and partitioned tables have changes of their own to send.",
            hint,
        )
    };
    let base = "Add the tables it is made from.";
    if relation.is_system {
        return refuse(
            Code::ERRCODE_WRONG_OBJECT_TYPE,
            format!("{name} is a system catalog and cannot be replicated"),
            "It belongs to PostgreSQL or to pg_ha and describes this server alone.",
            "Add tables of your own.",
        );
    }
    match relation.kind {
        'r' | 'p' => {}
        'v' => return wrong_kind("a view", base),
        'm' => {
            return wrong_kind(
                "a materialized view",
                "Add the tables it is made from, and refresh it on each node.",
            );
        }
        'f' => {
            return wrong_kind(
                "a foreign table",
                "Its rows are on another server already; add the table there.",
            );
        }
        'S' => {
            return wrong_kind(
                "a sequence",
                "Add it with ha.repset_add_seq, and the table that uses it with ha.repset_add_table.",
            );
        }
        'i' | 'I' => return wrong_kind("an index", "Add the table it belongs to."),
        _ => return wrong_kind("not a table", "Add a table."),
    }
    match relation.persistence {
        't' => refuse(
            Code::ERRCODE_WRONG_OBJECT_TYPE,
            format!("{name} is a temporary table and cannot be replicated"),
            "It exists in one session only, and its changes are not in the WAL.",
            "Make it an ordinary table.",
        ),
        'u' => refuse(
            Code::ERRCODE_WRONG_OBJECT_TYPE,
            format!("{name} is an unlogged table and cannot be replicated"),
            "Its changes are not in the WAL.",
            &format!("ALTER TABLE {name} SET LOGGED"),
        ),
        _ => None,
    }
}

fn keyless(relation: &Relation, set_name: &str) -> Report {
    let name = relation.quoted();
    let detail =
        format!("Set \"{set_name}\" sends updates or deletes, which need a key to find the row again.");
    let hint = if relation.replica_identity == 'n' {
        format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT with a primary key, or add it to {INSERT_ONLY}.")
    } else if relation.has_primary_key {
        format!("A deferrable key does not count: make it NOT DEFERRABLE, or add the table to {INSERT_ONLY}.")
    } else {
        format!("Add a primary key to it, or add it to {INSERT_ONLY}.")
    };
    Report::new(
        Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("table {name} has no primary key or replica identity"),
    )
    .detail(detail)
    .hint(hint)
}

/// Adds one table.
pub(crate) fn repset_add_table(new: NewMember) -> Answer<bool> {
    let set = require(new.set_name)?;
    let relation = require_relation(new.relation)?;
    let synchronize = arguments::required("synchronize_data", new.synchronize_data)?;
    let include_partitions = arguments::required("include_partitions", new.include_partitions)?;
    refuse_in_recovery("change a replication set")?;
    if let Some(refusal) = unsuitable(&relation) {
        return Err(refusal);
    }
    let columns = match new.columns {
        Some(columns) => Some(require_columns(&relation, columns)?),
        None => None,
    };
    if relation.kind == 'p' && !include_partitions && (columns.is_some() || new.row_filter.is_some()) {
        return Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "columns and row_filter mean nothing for {} without its partitions",
                relation.quoted()
            ),
        )
        .detail("A partitioned table has no rows but those of its partitions.")
        .hint("Leave include_partitions on, or add the partitions one by one."));
    }
    if synchronize && !set.actions.insert {
        return Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "set \"{}\" does not send inserts, so that nothing can be copied through it",
                set.name
            ),
        )
        .detail("Subscribers receive no rows of tables in this set.")
        .hint("Leave out synchronize_data, or let the set send inserts with ha.repset_alter."));
    }
    let member = Member {
        relation: relation.oid,
        columns,
        row_filter: new.row_filter,
        include_partitions,
    };
    require_shape(&relation, &member, &set.name, set.actions)?;
    if members::contains(set.id, relation.oid)? {
        return Err(Report::new(
            Code::ERRCODE_DUPLICATE_OBJECT,
            format!(
                "table {} is in replication set \"{}\" already",
                relation.quoted(),
                set.name
            ),
        )
        .detail("A table can be in several sets, but in each of them once.")
        .hint("To change how it is replicated, take it out first with ha.repset_remove_table."));
    }
    if relation.kind == 'p' && !include_partitions {
        Report::new(
            Code::ERRCODE_SUCCESSFUL_COMPLETION,
            format!(
                "nothing is sent of {} until its partitions are added by themselves",
                relation.quoted()
            ),
        )
        .detail("A partitioned table has no rows but those of its partitions.")
        .notice();
    }
    members::insert(set.id, &member)?;
    if synchronize {
        // Before the first change that is sent through the set.
        subscription_tables::tell_to_copy(relation.oid, &set.name)?;
    }
    Ok(true)
}

/// Refuses what would make a table's changes unusable: no key to find rows by, a column list without the key, a filter
/// that cannot be evaluated on the old row. For a partitioned table, in each of its partitions too.
pub(super) fn require_shape(
    relation: &Relation,
    member: &Member,
    set_name: &str,
    actions: Actions,
) -> Answer<()> {
    let filter_columns = match &member.row_filter {
        Some(filter) => row_filter::check(relation.oid, filter)?,
        None => Vec::new(),
    };
    if !actions.need_key() {
        return Ok(());
    }
    let mut carriers = vec![relation.clone()];
    if relation.kind == 'p' && member.include_partitions {
        carriers.extend(relations::leaf_partitions(relation.oid)?);
    }
    let sends = format!("Set \"{set_name}\" sends updates or deletes");
    for carrier in carriers {
        if !carrier.has_identity {
            return Err(keyless(&carrier, set_name));
        }
        let name = carrier.quoted();
        let key = relations::identity_columns(carrier.oid)?;
        let list = |columns: &[String]| quoted_list(columns.iter().map(String::as_str));
        let sent = relations::columns(carrier.oid)?;
        if let Some(generated) = key.iter().find(|column| !sent.contains(column)) {
            return Err(Report::new(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("the key of table {name} has a generated column, \"{generated}\""),
            )
            .detail(
                "Generated columns are not sent but computed by each node, so no row could be found by it.",
            )
            .hint(format!(
                "Use another replica identity, or add the table to {INSERT_ONLY}."
            )));
        }
        if let Some(columns) = &member.columns
            && let Some(missing) = key.iter().find(|column| !columns.contains(column))
        {
            return Err(Report::new(
                Code::ERRCODE_INVALID_COLUMN_REFERENCE,
                format!("the columns to send of table {name} lack \"{missing}\" of its replica identity"),
            )
            .detail(format!("{sends}; rows are found by {}.", list(&key)))
            .hint(format!(
                "Name these columns too, or add the table to {INSERT_ONLY}."
            )));
        }
        if let Some(outside) = filter_columns.iter().find(|column| !key.contains(column)) {
            return Err(Report::new(
                Code::ERRCODE_INVALID_COLUMN_REFERENCE,
                format!("the row_filter of table {name} uses \"{outside}\", which is not in its replica identity"),
            )
            .detail(format!(
                "{sends}; of the old row they carry {} alone, so the filter could not be asked about it.",
                list(&key)
            ))
            .hint(format!(
                "Filter by these columns, or ALTER TABLE {name} REPLICA IDENTITY FULL, or add the table to {INSERT_ONLY}."
            )));
        }
    }
    Ok(())
}

fn require_columns(relation: &Relation, columns: Vec<Option<String>>) -> Answer<Vec<String>> {
    let columns = arguments::names("columns", Some(columns))?;
    let name = relation.quoted();
    if columns.is_empty() {
        return Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "argument \"columns\" must not be empty",
        )
        .detail("Rows without columns cannot be sent.")
        .hint("Name at least one column, or leave the argument out to send all of them."));
    }
    let known = relations::columns(relation.oid)?;
    let Some(wrong) = columns.iter().find(|column| !known.contains(column)) else {
        return Ok(columns);
    };
    let (code, message) = match relations::column_kind(relation.oid, wrong)? {
        ColumnKind::Missing => (
            Code::ERRCODE_UNDEFINED_COLUMN,
            format!("table {name} has no column \"{wrong}\" to send"),
        ),
        ColumnKind::System => (
            Code::ERRCODE_INVALID_COLUMN_REFERENCE,
            format!("\"{wrong}\" is a system column and cannot be sent"),
        ),
        ColumnKind::Generated => (
            Code::ERRCODE_INVALID_COLUMN_REFERENCE,
            format!("column \"{wrong}\" of table {name} is generated and cannot be sent"),
        ),
    };
    Err(Report::new(code, message)
        .detail(format!(
            "It has {}.",
            quoted_list(known.iter().map(String::as_str))
        ))
        .hint("Name columns that exist and are not generated."))
}

/// What became of one table.
pub(crate) struct Outcome {
    pub(crate) relation: Oid,
    /// The set it is in now, if any.
    pub(crate) set_name: Option<String>,
    pub(crate) reason: String,
}

/// Adds the tables that match a pattern. `path` holds the schemas of the caller's search path, in order.
pub(crate) fn repset_add_tables(
    set_name: Option<String>,
    pattern: Option<String>,
    path: &[u32],
) -> Answer<Vec<Outcome>> {
    let set = require(set_name)?;
    let text = arguments::required("pattern", pattern)?;
    refuse_in_recovery("change a replication set")?;
    let invalid = |detail: &str| {
        Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("invalid pattern \"{text}\""),
        )
        .detail(detail)
        .hint("Write it as for psql's \\d: 'pgbench_*', 'public.*', '\"Mixed Case\"'.")
    };
    let pattern = Pattern::parse(&text).map_err(|error| invalid(&sentence(&error.to_string())))?;
    let broken =
        invalid("Outside quotes it is a regular expression but for * and ?, and this one is not valid.");
    let mut matching = rephrasing(Code::ERRCODE_INVALID_REGULAR_EXPRESSION, &broken, || {
        relations::tables_matching(pattern.schema.as_deref(), Some(&pattern.name))
    })?;
    if pattern.schema.is_none() {
        matching = visible(matching, path);
    }
    if matching.is_empty() {
        return Err(Report::new(
            Code::ERRCODE_UNDEFINED_TABLE,
            format!("no table matches the pattern \"{text}\""),
        )
        .detail(if pattern.schema.is_none() {
            "A pattern without a schema stands for tables in the search path.".to_owned()
        } else {
            "Views, sequences and system tables do not count.".to_owned()
        })
        .hint("Check the spelling, or name the schema: 'public.*'."));
    }
    add_all(&set, matching, false)
}

/// The tables that can be named without their schema, as psql shows them.
fn visible(tables: Vec<Relation>, path: &[u32]) -> Vec<Relation> {
    let place = |table: &Relation| path.iter().position(|schema| *schema == table.schema_oid);
    let first = tables
        .iter()
        .filter_map(|table| Some((place(table)?, table.name.clone())))
        .fold(std::collections::HashMap::new(), |mut first, (place, name)| {
            let best = first.entry(name).or_insert(place);
            *best = place.min(*best);
            first
        });
    tables
        .into_iter()
        .filter(|table| place(table).is_some() && place(table) == first.get(&table.name).copied())
        .collect()
}

/// Adds what can be added. A partition whose root is among the tables comes with its root.
fn add_all(set: &ReplicationSet, tables: Vec<Relation>, synchronize: bool) -> Answer<Vec<Outcome>> {
    let oids: HashSet<Oid> = tables.iter().map(|table| table.oid).collect();
    let fallback = replication_sets::by_name(INSERT_ONLY)?;
    let mut outcomes = Vec::new();
    for table in tables {
        if table.partition_root.is_some_and(|root| oids.contains(&root)) {
            continue;
        }
        if let Some(refusal) = unsuitable(&table) {
            outcomes.push(Outcome {
                relation: table.oid,
                set_name: None,
                reason: format!("skipped: {}", refusal.message()),
            });
            continue;
        }
        let partitions = match table.kind {
            'p' => relations::leaf_partitions(table.oid)?,
            _ => Vec::new(),
        };
        let has_key = table.has_identity && partitions.iter().all(|partition| partition.has_identity);
        let lacks_key = set.actions.need_key() && !has_key;
        let target = match (&fallback, lacks_key) {
            (_, false) => set,
            (Some(fallback), true) if !fallback.actions.need_key() => fallback,
            (_, true) => return Err(keyless(&table, &set.name)),
        };
        let added = !members::contains(target.id, table.oid)?;
        if added {
            members::insert(target.id, &Member::whole(table.oid))?;
            if synchronize && target.actions.insert {
                subscription_tables::tell_to_copy(table.oid, &target.name)?;
            }
        }
        let done = if added { "added" } else { "already in the set" };
        outcomes.push(Outcome {
            relation: table.oid,
            set_name: Some(target.name.clone()),
            reason: if lacks_key {
                format!("no primary key or replica identity: {done}, inserts only")
            } else {
                done.to_owned()
            },
        });
    }
    Ok(outcomes)
}

/// Adds all tables of some schemas.
pub(crate) fn repset_add_all_tables(
    set_name: Option<String>,
    schema_names: Option<Vec<Option<String>>>,
    synchronize_data: Option<bool>,
) -> Answer<bool> {
    let set = require(set_name)?;
    let schemas = arguments::names("schema_names", schema_names)?;
    let synchronize = arguments::required("synchronize_data", synchronize_data)?;
    refuse_in_recovery("change a replication set")?;
    let mut tables = Vec::new();
    for schema in &schemas {
        if !relations::schema_exists(schema)? {
            return Err(Report::new(
                Code::ERRCODE_INVALID_SCHEMA_NAME,
                format!("schema \"{schema}\" does not exist"),
            )
            .detail("No table was added.")
            .hint("Check the spelling."));
        }
        if schema.starts_with("pg_") || matches!(schema.as_str(), "information_schema" | "ha") {
            return Err(Report::new(
                Code::ERRCODE_WRONG_OBJECT_TYPE,
                format!("the tables of schema \"{schema}\" cannot be replicated"),
            )
            .detail("It belongs to PostgreSQL or to pg_ha.")
            .hint("Name schemas with tables of your own."));
        }
        tables.extend(relations::tables_of_schema(schema)?);
    }
    let names: std::collections::HashMap<Oid, String> =
        tables.iter().map(|table| (table.oid, table.quoted())).collect();
    for outcome in add_all(&set, tables, synchronize)? {
        if outcome.set_name.as_deref() != Some(set.name.as_str()) {
            let name = names.get(&outcome.relation).map_or("a table", String::as_str);
            Report::new(
                Code::ERRCODE_SUCCESSFUL_COMPLETION,
                match &outcome.set_name {
                    Some(other) => format!("table {name} went to replication set \"{other}\""),
                    None => format!("table {name} was left out"),
                },
            )
            .detail(outcome.reason)
            .notice();
        }
    }
    Ok(true)
}

/// Takes a table out of a set.
pub(crate) fn repset_remove_table(set_name: Option<String>, relation: Option<Oid>) -> Answer<bool> {
    let set = require(set_name)?;
    let relation = require_relation(relation)?;
    refuse_in_recovery("change a replication set")?;
    if members::delete(set.id, relation.oid)? {
        return Ok(true);
    }
    Err(Report::new(
        Code::ERRCODE_UNDEFINED_OBJECT,
        format!(
            "table {} is not in replication set \"{}\"",
            relation.quoted(),
            set.name
        ),
    )
    .detail("Nothing was changed.")
    .hint("SELECT * FROM ha.replication_set_tables shows which tables are in which sets."))
}

/// Refuses a change of a table's definition after which a set could not send it as it is told to. Decoding reads old
/// definitions as they were: what is broken once stays broken for the changes made meanwhile.
pub(crate) fn repset_check_table(set_id: Option<i32>, relation: Option<Oid>) -> Answer<()> {
    let (Some(set), Some(oid)) = (
        replication_sets::by_id(arguments::required("set_id", set_id)?)?,
        relation,
    ) else {
        return Ok(());
    };
    let Some(relation) = relations::by_oid(oid)? else {
        return Ok(());
    };
    let Some(member) = members::member(set.id, oid)? else {
        return Ok(());
    };
    let listed = member
        .columns
        .clone()
        .map(|columns| columns.into_iter().map(Some).collect());
    let checked = match listed {
        Some(columns) => require_columns(&relation, columns).map(drop),
        None => Ok(()),
    };
    let Err(refusal) = checked.and_then(|()| require_shape(&relation, &member, &set.name, set.actions))
    else {
        return Ok(());
    };
    Err(Report::new(
        Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "replication set \"{}\" could not send table {} any more",
            set.name,
            relation.quoted()
        ),
    )
    .detail(match refusal.detail_text() {
        Some(detail) => format!("{} {detail}", sentence(refusal.message())),
        None => sentence(refusal.message()),
    })
    .hint(
        "Give it first what is missing, or take the table out of the set with ha.repset_remove_table, and add it again \
         afterwards.",
    ))
}
