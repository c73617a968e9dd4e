//! `ha.repset_create`, `ha.repset_alter`, `ha.repset_drop`.

use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use super::replication_set_tables::require_shape;
use super::{arguments, quoted_list, refuse_in_recovery};
use crate::catalog::replication_sets::{self, Actions, ReplicationSet};
use crate::catalog::{relations, replication_set_tables, sequences};
use crate::postgres::error::{Answer, Report};

/// The set for tables without a key.
pub(crate) const INSERT_ONLY: &str = "default_insert_only";
const PREDEFINED: [&str; 3] = ["default", INSERT_ONLY, "ddl_sql"];

fn missing(name: &str) -> Report {
    Report::new(
        Code::ERRCODE_UNDEFINED_OBJECT,
        format!("replication set \"{name}\" does not exist"),
    )
}

/// The set of this name, which must exist.
pub(super) fn require(name: Option<String>) -> Answer<ReplicationSet> {
    let name = arguments::required_name("set_name", name)?;
    replication_sets::by_name(&name)?.ok_or_else(|| {
        let known = replication_sets::names().unwrap_or_default();
        missing(&name)
            .detail(format!(
                "This node has {}.",
                quoted_list(known.iter().map(String::as_str))
            ))
            .hint("Create it first with ha.repset_create.")
    })
}

/// Makes a set. The four values say what it sends: insert, update, delete, truncate.
pub(crate) fn repset_create(name: Option<String>, actions: [Option<bool>; 4]) -> Answer<i32> {
    let name = arguments::required_name("set_name", name)?;
    let [insert, update, delete, truncate] = actions;
    let actions = Actions {
        insert: arguments::required("replicate_insert", insert)?,
        update: arguments::required("replicate_update", update)?,
        delete: arguments::required("replicate_delete", delete)?,
        truncate: arguments::required("replicate_truncate", truncate)?,
    };
    refuse_in_recovery("create a replication set")?;
    if replication_sets::by_name(&name)?.is_some() {
        return Err(Report::new(
            Code::ERRCODE_DUPLICATE_OBJECT,
            format!("replication set \"{name}\" already exists"),
        )
        .detail("Names of replication sets are unique within a node.")
        .hint("Choose another name, or change that one with ha.repset_alter."));
    }
    Ok(replication_sets::insert(&name, actions)?)
}

/// Changes what a set sends; null leaves a kind of change as it is.
pub(crate) fn repset_alter(name: Option<String>, actions: [Option<bool>; 4]) -> Answer<i32> {
    let set = require(name)?;
    refuse_in_recovery("change a replication set")?;
    let [insert, update, delete, truncate] = actions;
    let actions = Actions {
        insert: insert.unwrap_or(set.actions.insert),
        update: update.unwrap_or(set.actions.update),
        delete: delete.unwrap_or(set.actions.delete),
        truncate: truncate.unwrap_or(set.actions.truncate),
    };
    if actions == set.actions {
        return Ok(set.id);
    }
    if actions.need_key() && !set.actions.need_key() {
        require_keys(&set)?;
        for member in replication_set_tables::members(set.id)? {
            if let Some(relation) = relations::by_oid(member.relation)? {
                require_shape(&relation, &member, &set.name, actions)?;
            }
        }
    }
    replication_sets::update(set.id, actions)?;
    replication_set_tables::invalidate_set(set.id)?;
    Ok(set.id)
}

fn require_keys(set: &ReplicationSet) -> Answer<()> {
    let mut keyless = Vec::new();
    for oid in replication_set_tables::of_set(set.id)? {
        if let Some(relation) = relations::by_oid(oid)?
            && !relation.has_identity
        {
            keyless.push(relation.quoted());
        }
    }
    if keyless.is_empty() {
        return Ok(());
    }
    Err(Report::new(
        Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "replication set \"{}\" has tables without a primary key or replica identity",
            set.name
        ),
    )
    .detail(format!("Tables: {}.", keyless.join(", ")))
    .hint("Updates and deletes need a key: add primary keys to these tables, or take them out of the set."))
}

/// Drops a set.
pub(crate) fn repset_drop(name: Option<String>, if_exists: Option<bool>) -> Answer<bool> {
    let name = arguments::required_name("set_name", name)?;
    let if_exists = arguments::required("if_exists", if_exists)?;
    refuse_in_recovery("drop a replication set")?;
    if PREDEFINED.contains(&name.as_str()) {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("replication set \"{name}\" cannot be dropped"),
        )
        .detail("It comes with the extension, and subscriptions receive it by default.")
        .hint("Take its tables out with ha.repset_remove_table."));
    }
    if if_exists && replication_sets::by_name(&name)?.is_none() {
        missing(&name).notice();
        return Ok(false);
    }
    let set = require(Some(name))?;
    replication_set_tables::delete_set(set.id)?;
    sequences::delete_set(set.id)?;
    replication_sets::delete(set.id)?;
    Ok(true)
}
