//! The functions behind the `ha.status*` views; see [`crate::sql_api::status`].

use core::ffi::CStr;

use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;

use super::error::{self, Report};
use crate::sql_api::status;

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn node_states() -> TableIterator<
    'static,
    (
        name!(node_name, String),
        name!(group_name, String),
        name!(region, Option<String>),
        name!(role, String),
        name!(state, String),
        name!(is_local, bool),
        name!(epoch, Option<i64>),
        name!(timeline, Option<i32>),
        name!(lsn, Option<i64>),
        name!(lag_bytes, Option<i64>),
        name!(last_seen, Option<TimestampWithTimeZone>),
        name!(version_num, Option<i32>),
        name!(extension_version, Option<String>),
    ),
> {
    TableIterator::new(status::nodes().into_iter().map(|row| {
        (
            row.node_name,
            row.group_name,
            row.region,
            row.role,
            row.state.to_owned(),
            row.is_local,
            row.epoch,
            row.timeline,
            row.lsn.map(|lsn| lsn as i64),
            row.lag_bytes,
            row.last_seen
                .and_then(|seen| TimestampWithTimeZone::try_from(seen).ok()),
            row.version_num.map(|version| version as i32),
            row.extension_version,
        )
    }))
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn subscription_states() -> TableIterator<
    'static,
    (
        name!(subscription_id, i32),
        name!(status, String),
        name!(received_lsn, Option<i64>),
        name!(applied_lsn, Option<i64>),
        name!(lag_bytes, i64),
        name!(lag, Option<Interval>),
        name!(transactions, i64),
        name!(rows_inserted, i64),
        name!(rows_updated, i64),
        name!(rows_deleted, i64),
        name!(conflicts, i64),
        name!(rows_skipped, i64),
        name!(retries, i64),
        name!(workers, i32),
        name!(current_action, Option<String>),
        name!(last_error, Option<String>),
        name!(receiver_pid, Option<i32>),
        name!(applier_pid, Option<i32>),
        name!(spool_transactions, i64),
        name!(spool_memory_bytes, i64),
        name!(spool_disk_bytes, i64),
    ),
> {
    TableIterator::new(status::subscriptions().into_iter().map(|row| {
        let [
            transactions,
            inserted,
            updated,
            deleted,
            conflicts,
            skipped,
            retries,
        ] = row.counts;
        let [spool_transactions, spool_memory, spool_disk] = row.spool;
        (
            row.id,
            row.status.to_owned(),
            row.received_lsn.map(|lsn| lsn as i64),
            row.applied_lsn.map(|lsn| lsn as i64),
            row.lag_bytes,
            row.lag.and_then(|lag| Interval::new(0, 0, lag).ok()),
            transactions,
            inserted,
            updated,
            deleted,
            conflicts,
            skipped,
            retries,
            row.workers,
            row.action,
            row.last_error,
            row.receiver_pid,
            row.applier_pid,
            spool_transactions,
            spool_memory,
            spool_disk,
        )
    }))
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn table_states() -> TableIterator<
    'static,
    (
        name!(subscription_id, i32),
        name!(relation, pg_sys::Oid),
        name!(rows_inserted, i64),
        name!(rows_updated, i64),
        name!(rows_deleted, i64),
        name!(conflicts, i64),
    ),
> {
    TableIterator::new(status::tables().into_iter().map(
        |(id, relation, [inserted, updated, deleted, conflicts])| {
            (
                id,
                pg_sys::Oid::from(relation),
                inserted,
                updated,
                deleted,
                conflicts,
            )
        },
    ))
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn copy_states() -> TableIterator<
    'static,
    (
        name!(subscription_id, i32),
        name!(table_id, i32),
        name!(phase, String),
        name!(copy_rows, i64),
        name!(copy_bytes, i64),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(pid, Option<i32>),
    ),
> {
    TableIterator::new(status::copies().into_iter().map(|row| {
        (
            row.subscription_id,
            row.table_id,
            row.phase.to_owned(),
            row.rows,
            row.bytes,
            TimestampWithTimeZone::try_from(row.started_at).ok(),
            row.pid,
        )
    }))
}

#[pg_extern(sql = false)]
fn wait_for_sync_event(origin_node: Option<&CStr>, lsn: Option<i64>, timeout: Option<Interval>) -> bool {
    let required = |name: &str| -> ! {
        Report::new(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{name} must not be null"),
        )
        .hint("Pass the name of a node that this one subscribes to, and what ha.sync_event() returned there.")
        .raise()
    };
    let Some(origin) = origin_node else {
        required("origin_node")
    };
    let Some(lsn) = lsn else { required("lsn") };
    let timeout = timeout.map(super::entry::duration);
    error::answer(status::wait_for_sync_event(
        &origin.to_string_lossy(),
        lsn as u64,
        timeout,
    ))
}
