//! The functions PostgreSQL calls by name: each one a thunk into safe code. Their SQL declarations are written
//! by hand in `sql/`, where argument names, comments and grants stand beside them.

#![allow(
    clippy::type_complexity,
    reason = "pg_extern reads the columns from the signature itself"
)]

use std::time::Duration;

use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::iter::TableIterator;
use pgrx::pg_sys::Oid;
use pgrx::{JsonB, name, pg_extern};

use super::error::answer;
use super::name::Name;
use super::server;
use crate::sql_api::arguments::required;
use crate::sql_api::replication_set_tables::{self as set_tables, NewMember};
use crate::sql_api::subscriptions::NewSubscription;
use crate::sql_api::{
    doctor as doctor_api, events, exchange, nodes, replication_sets, sequences, slot_confirm,
    subscription_changes, subscription_options, subscriptions, sync_event as sync_event_api, synchronization,
};

/// An interval's length; a negative one is none.
pub(super) fn duration(interval: Interval) -> Duration {
    let micros = i128::from(interval.months()) * 30 * 86_400_000_000
        + i128::from(interval.days()) * 86_400_000_000
        + i128::from(interval.micros());
    Duration::from_micros(u64::try_from(micros.max(0)).unwrap_or(u64::MAX))
}

fn text(name: Option<Name>) -> Option<String> {
    name.map(|Name(text)| text)
}

// Nodes

#[pg_extern(sql = false)]
fn mask_dsn(dsn: &str) -> String {
    pg_ha_model::conninfo::mask(dsn)
}

#[pg_extern(sql = false)]
fn node_create(
    node_name: Option<Name>,
    dsn: Option<String>,
    group_name: Option<Name>,
    node_id: Option<i32>,
    region: Option<String>,
    info: Option<JsonB>,
) -> i32 {
    answer(nodes::node_create(nodes::NewNode {
        node_name: text(node_name),
        dsn,
        group_name: text(group_name),
        node_id,
        region,
        info,
    }))
}

#[pg_extern(sql = false)]
fn standby_create(
    node_name: Option<Name>,
    dsn: Option<String>,
    _priority: Option<i32>,
    _region: Option<String>,
) -> i32 {
    answer(nodes::standby_create(text(node_name), dsn))
}

#[pg_extern(sql = false)]
fn witness_create(node_name: Option<Name>, dsn: Option<String>, _region: Option<String>) -> i32 {
    answer(nodes::witness_create(text(node_name), dsn))
}

#[pg_extern(sql = false)]
fn node_drop(node_name: Option<Name>, if_exists: Option<bool>) -> bool {
    answer(nodes::node_drop(text(node_name), if_exists))
}

#[pg_extern(sql = false)]
fn node_set(node_name: Option<Name>, option: Option<String>, value: Option<String>) {
    answer(nodes::node_set(text(node_name), option, value));
}

#[pg_extern(sql = false)]
fn node_info() -> TableIterator<
    'static,
    (
        name!(node_id, i32),
        name!(node_name, Name),
        name!(group_name, Name),
        name!(system_identifier, String),
        name!(dbname, Name),
        name!(extension_version, String),
        name!(protocol_version, i32),
    ),
> {
    let info = answer(nodes::node_info());
    TableIterator::once((
        info.node.node_id,
        Name(info.node.node_name),
        Name(info.node.group_name),
        info.node.system_identifier,
        Name(info.dbname),
        info.extension_version,
        info.protocol_version,
    ))
}

#[pg_extern(sql = false)]
fn node_exchange(nodes: Option<JsonB>) -> JsonB {
    answer(required("nodes", nodes).and_then(exchange::node_exchange))
}

// Replication sets

#[pg_extern(sql = false)]
fn repset_create(
    set_name: Option<Name>,
    replicate_insert: Option<bool>,
    replicate_update: Option<bool>,
    replicate_delete: Option<bool>,
    replicate_truncate: Option<bool>,
) -> i32 {
    answer(replication_sets::repset_create(
        text(set_name),
        [
            replicate_insert,
            replicate_update,
            replicate_delete,
            replicate_truncate,
        ],
    ))
}

#[pg_extern(sql = false)]
fn repset_alter(
    set_name: Option<Name>,
    replicate_insert: Option<bool>,
    replicate_update: Option<bool>,
    replicate_delete: Option<bool>,
    replicate_truncate: Option<bool>,
) -> i32 {
    answer(replication_sets::repset_alter(
        text(set_name),
        [
            replicate_insert,
            replicate_update,
            replicate_delete,
            replicate_truncate,
        ],
    ))
}

#[pg_extern(sql = false)]
fn repset_drop(set_name: Option<Name>, if_exists: Option<bool>) -> bool {
    answer(replication_sets::repset_drop(text(set_name), if_exists))
}

#[pg_extern(sql = false)]
fn repset_add_table(
    set_name: Option<Name>,
    relation: Option<Oid>,
    synchronize_data: Option<bool>,
    columns: Option<Vec<Option<String>>>,
    row_filter: Option<String>,
    include_partitions: Option<bool>,
) -> bool {
    answer(set_tables::repset_add_table(NewMember {
        set_name: text(set_name),
        relation,
        synchronize_data,
        columns,
        row_filter,
        include_partitions,
    }))
}

#[pg_extern(sql = false)]
fn repset_add_tables(
    set_name: Option<Name>,
    pattern: Option<String>,
) -> TableIterator<
    'static,
    (
        name!(relation, Oid),
        name!(set_name, Option<Name>),
        name!(reason, String),
    ),
> {
    let path = server::search_path();
    let outcomes = answer(server::with_fixed_search_path(|| {
        set_tables::repset_add_tables(text(set_name), pattern, &path)
    }));
    TableIterator::new(
        outcomes
            .into_iter()
            .map(|outcome| (outcome.relation, outcome.set_name.map(Name), outcome.reason)),
    )
}

#[pg_extern(sql = false)]
fn repset_add_all_tables(
    set_name: Option<Name>,
    schema_names: Option<Vec<Option<String>>>,
    synchronize_data: Option<bool>,
) -> bool {
    answer(set_tables::repset_add_all_tables(
        text(set_name),
        schema_names,
        synchronize_data,
    ))
}

#[pg_extern(sql = false)]
fn repset_remove_table(set_name: Option<Name>, relation: Option<Oid>) -> bool {
    answer(set_tables::repset_remove_table(text(set_name), relation))
}

#[pg_extern(sql = false)]
fn repset_add_seq(set_name: Option<Name>, relation: Option<Oid>, synchronize_data: Option<bool>) -> bool {
    answer(sequences::repset_add_seq(
        text(set_name),
        relation,
        synchronize_data,
    ))
}

#[pg_extern(sql = false)]
fn repset_remove_seq(set_name: Option<Name>, relation: Option<Oid>) -> bool {
    answer(sequences::repset_remove_seq(text(set_name), relation))
}

#[pg_extern(sql = false)]
fn sync_seq(relation: Option<Oid>) -> bool {
    answer(sequences::sync_seq(relation))
}

#[pg_extern(sql = false)]
fn repset_check_table(set_id: Option<i32>, relation: Option<Oid>) {
    answer(set_tables::repset_check_table(set_id, relation))
}

// Subscriptions

#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments, reason = "the SQL function has them")]
fn sub_create(
    subscription_name: Option<Name>,
    provider_dsn: Option<String>,
    replication_sets: Option<Vec<Option<String>>>,
    synchronize_structure: Option<bool>,
    synchronize_data: Option<bool>,
    forward_origins: Option<Vec<Option<String>>>,
    apply_delay: Option<Interval>,
    enabled: Option<bool>,
) -> i32 {
    answer(subscriptions::sub_create(NewSubscription {
        subscription_name: text(subscription_name),
        provider_dsn,
        replication_sets,
        synchronize_structure,
        synchronize_data,
        forward_origins,
        apply_delay,
        enabled,
    }))
}

#[pg_extern(sql = false)]
fn sub_drop(subscription_name: Option<Name>, if_exists: Option<bool>) -> bool {
    answer(subscription_changes::sub_drop(text(subscription_name), if_exists))
}

#[pg_extern(sql = false)]
fn sub_enable(subscription_name: Option<Name>) -> bool {
    answer(subscription_changes::sub_enable(text(subscription_name)))
}

#[pg_extern(sql = false)]
fn sub_disable(subscription_name: Option<Name>) -> bool {
    answer(subscription_changes::sub_disable(text(subscription_name)))
}

#[pg_extern(sql = false)]
fn sub_add_repset(
    subscription_name: Option<Name>,
    replication_set: Option<Name>,
    synchronize_data: Option<bool>,
) -> bool {
    answer(subscription_changes::sub_add_repset(
        text(subscription_name),
        text(replication_set),
        synchronize_data,
    ))
}

#[pg_extern(sql = false)]
fn sub_remove_repset(subscription_name: Option<Name>, replication_set: Option<Name>) -> bool {
    answer(subscription_changes::sub_remove_repset(
        text(subscription_name),
        text(replication_set),
    ))
}

#[pg_extern(sql = false)]
fn sub_alter_options(subscription_name: Option<Name>, options: Option<JsonB>) -> bool {
    answer(subscription_options::sub_alter_options(
        text(subscription_name),
        options.map(|JsonB(value)| value),
    ))
}

#[pg_extern(sql = false)]
fn sub_skip_lsn(subscription_name: Option<Name>, lsn: Option<i64>) -> bool {
    answer(subscription_changes::sub_skip_lsn(
        text(subscription_name),
        lsn.map(i64::cast_unsigned),
    ))
}

#[pg_extern(sql = false)]
fn sync_event() -> i64 {
    answer(sync_event_api::sync_event())
}

#[pg_extern(sql = false)]
fn wait_slot_confirm_lsn(slot_name: Option<Name>, target: Option<i64>, timeout: Option<Interval>) -> bool {
    answer(slot_confirm::wait_slot_confirm_lsn(
        text(slot_name),
        target.map(i64::cast_unsigned),
        timeout.map(duration),
    ))
}

#[pg_extern(sql = false)]
fn sub_resync_table(subscription_name: Option<Name>, relation: Option<Oid>, truncate: Option<bool>) -> bool {
    answer(synchronization::sub_resync_table(
        text(subscription_name),
        relation,
        truncate,
    ))
}

#[pg_extern(sql = false)]
fn sub_wait_for_sync(subscription_name: Option<Name>, timeout: Option<Interval>) -> bool {
    answer(synchronization::sub_wait_for_sync(
        text(subscription_name),
        timeout.map(duration),
    ))
}

// Seeing

#[pg_extern(sql = false)]
fn doctor() -> TableIterator<
    'static,
    (
        name!(check_name, String),
        name!(ok, bool),
        name!(found, String),
        name!(wanted, String),
        name!(hint, Option<String>),
    ),
> {
    TableIterator::new(answer(doctor_api::doctor()).into_iter().map(|check| {
        let hint = (!check.hint.is_empty()).then_some(check.hint);
        (check.name, check.ok, check.found, check.wanted, hint)
    }))
}

#[pg_extern(sql = false)]
fn events_read() -> TableIterator<
    'static,
    (
        name!(at, Option<TimestampWithTimeZone>),
        name!(node_name, Option<Name>),
        name!(kind, String),
        name!(severity, String),
        name!(message, String),
        name!(details, JsonB),
    ),
> {
    TableIterator::new(answer(events::events_read()).into_iter().map(|event| {
        (
            event.at,
            event.node_name.map(Name),
            event.kind,
            event.severity,
            event.message,
            JsonB(event.details),
        )
    }))
}
