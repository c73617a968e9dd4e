//! `ha.sub_resync_table`, `ha.sub_wait_for_sync`, and which tables a new subscription copies.

use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;
use serde_json::json;

use super::{arguments, quoted_list, refuse_in_recovery, subscription_changes};
use crate::catalog::subscription_tables::{self as tables, ExistingRows, NewTable};
use crate::catalog::subscriptions::Subscription;
use crate::catalog::{relations, subscriptions};
use crate::durable::events::{self, Severity};
use crate::network::peer::{Peer, Purpose};
use crate::network::structure;
use crate::postgres::error::{Answer, Report, explaining};
use crate::postgres::libpq::Patience;
use crate::postgres::{latch, worker, xact};
use crate::shared_state::{self, Status, copies, subscription};

/// The tables that the provider publishes in these sets, under the names under which it sends them, with what it
/// expects them to hold. `only`: this one alone.
pub(super) fn published(
    peer: &mut Peer,
    sets: &[String],
    only: Option<(&str, &str)>,
) -> Answer<Vec<NewTable>> {
    let (schema, name) = only.unwrap_or_default();
    let rows = peer.query(
        &format!(
            "WITH {} \
             SELECT n.nspname::text, c.relname::text, \
                    (CASE WHEN c.reltuples > 0 THEN c.reltuples::bigint ELSE 0 END)::text, \
                    (CASE WHEN c.relkind = 'p' \
                     THEN (SELECT pg_catalog.sum(pg_catalog.pg_relation_size(p.relid)) \
                             FROM pg_catalog.pg_partition_tree(c.oid) p WHERE p.isleaf) \
                     ELSE pg_catalog.pg_relation_size(c.oid) END)::text \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
              WHERE ($1 = '' AND $2 = '' OR n.nspname = $1 AND c.relname = $2) \
                AND EXISTS (SELECT FROM wanted w WHERE w.relid = c.oid AND w.replicate_insert \
                               AND (w.include_partitions OR c.relkind <> 'p')) \
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a \
                                  JOIN wanted w ON w.relid = a.relid \
                                 WHERE a.relid <> c.oid AND w.include_partitions) \
              ORDER BY 1, 2",
            tables::wanted(sets)
        ),
        &[schema, name],
    )?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let mut columns = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || columns.next().unwrap_or_default();
            NewTable {
                schema: next(),
                name: next(),
                expected_rows: next().parse().unwrap_or(0),
                expected_bytes: next().parse().unwrap_or(0),
            }
        })
        .collect())
}

/// Notes that a new subscription copies these tables.
pub(super) fn ask_for_all(subscription_id: i32, found: &[NewTable]) -> Answer<()> {
    for table in found {
        tables::ask(subscription_id, table, ExistingRows::Refuse)?;
    }
    Ok(())
}

/// The definitions of the provider's database.
pub(super) fn structure(dsn: &str) -> Answer<String> {
    let roles = crate::catalog::roles()?;
    structure::dump(dsn, &roles).map_err(|error| {
        Report::new(
            Code::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            "the structure of the provider's database could not be read",
        )
        .detail(format!("{error}."))
        .hint(
            "pg_dump is run beside the server's own program, as the DSN's role, which needs SELECT on all tables; it \
             must not be older than the provider's server.",
        )
    })
}

/// Makes here what the provider's database consists of; all or nothing, since it is part of the transaction.
pub(super) fn create_structure(script: &str) -> Answer<()> {
    explaining(
        |code, words| {
            Report::new(
                code,
                "the structure of the provider's database could not be created here",
            )
            .detail(words)
            .hint(
                "Nothing was created. Objects that exist already stand in the way, and so do tablespaces and extensions \
                 that do not: prepare the database, or create the structure by hand.",
            )
        },
        || crate::catalog::run_script(script),
    )??;
    Ok(())
}

/// Copies a table anew.
pub(crate) fn sub_resync_table(
    name: Option<String>,
    relation: Option<Oid>,
    truncate: Option<bool>,
) -> Answer<bool> {
    let relation = arguments::required("relation", relation)?;
    let truncate = arguments::required("truncate", truncate)?;
    let subscription = subscription_changes::require(name)?;
    let table = relations::by_oid(relation)?.ok_or_else(|| {
        Report::new(
            Code::ERRCODE_UNDEFINED_TABLE,
            format!("relation with OID {} does not exist", relation.to_u32()),
        )
        .detail("It may have been dropped just now.")
        .hint("Name a table that exists.")
    })?;
    let shown = table.quoted();
    if !matches!(table.kind, 'r' | 'p') || table.persistence != 'p' || table.is_system {
        return Err(Report::new(
            Code::ERRCODE_WRONG_OBJECT_TYPE,
            format!("{shown} cannot be copied"),
        )
        .detail("It is not a permanent table of a user.")
        .hint("Name an ordinary or a partitioned table."));
    }
    require_idle(&subscription, &table.schema, &table.name, &shown)?;
    let mut peer = Peer::connect(&subscription.provider_dsn, Purpose::Sql, Patience::Interruptible)?;
    let found = published(
        &mut peer,
        &subscription.replication_sets,
        Some((&table.schema, &table.name)),
    )?;
    let Some(found) = found.into_iter().next() else {
        return Err(Report::new(
            Code::ERRCODE_UNDEFINED_OBJECT,
            format!("the provider does not publish {shown} to this subscription"),
        )
        .detail(format!(
            "On {} no table of that name is sent as such by the subscription's replication sets: {}.",
            peer.name(),
            quoted_list(subscription.replication_sets.iter().map(String::as_str))
        ))
        .hint("Add it there with ha.repset_add_table, or the set here with ha.sub_add_repset; a partition is copied with the table above it that is in a set."));
    };
    drop(peer);
    let existing = if truncate {
        ExistingRows::Truncate
    } else {
        ExistingRows::Keep
    };
    tables::ask(subscription.id, &found, existing)?;
    xact::after_commit(move || {
        events::record(
            "table_resync",
            Severity::Info,
            &format!(
                "table {shown} of subscription \"{}\" is to be copied anew",
                subscription.name
            ),
            json!({"subscription_id": subscription.id, "table": shown, "truncate": truncate}),
        );
        shared_state::catalog_changed();
    });
    Ok(true)
}

/// Refuses while a copy of the table runs: that one would end as this one's.
fn require_idle(subscription: &Subscription, schema: &str, name: &str, shown: &str) -> Answer<()> {
    let running = tables::id_of(subscription.id, schema, name)?
        .is_some_and(|table_id| copies::find(subscription.id, table_id).is_some());
    if !running {
        return Ok(());
    }
    Err(Report::new(
        Code::ERRCODE_OBJECT_IN_USE,
        format!("{shown} is being copied already"),
    )
    .detail(format!(
        "Subscription \"{}\" copies it right now.",
        subscription.name
    ))
    .hint("Wait for it with ha.sub_wait_for_sync, or end it with ha.sub_disable."))
}

/// Waits until the stream runs and every table that the subscription copies is copied.
pub(crate) fn sub_wait_for_sync(name: Option<String>, timeout: Option<Duration>) -> Answer<bool> {
    refuse_in_recovery("wait for a subscription")?;
    let subscription = subscription_changes::require(name)?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut pause = Duration::from_millis(2);
    let mut said = None;
    loop {
        let (now, unready, error) = worker::with_latest_snapshot(|| -> Answer<_> {
            let now = subscriptions::by_name(&subscription.name)?.filter(|now| now.id == subscription.id);
            let (unready, error) = tables::unready(subscription.id)?;
            Ok((now, unready, error))
        })?;
        match now {
            Some(now) if now.enabled => {}
            Some(_) => {
                return Err(Report::new(
                    Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("subscription \"{}\" is disabled", subscription.name),
                )
                .detail("Nothing is copied or applied while it is.")
                .hint("Enable it with ha.sub_enable."));
            }
            None => {
                return Err(Report::new(
                    Code::ERRCODE_UNDEFINED_OBJECT,
                    format!("subscription \"{}\" was dropped", subscription.name),
                )
                .detail("It was dropped while this session waited for it.")
                .hint("SELECT subscription_name FROM ha.subscriptions shows those that exist."));
            }
        }
        let streams =
            subscription::find(subscription.id).is_some_and(|place| place.status() == Status::Replicating);
        if streams && unready == 0 {
            return Ok(true);
        }
        if let Some(error) = error
            && said.as_ref() != Some(&error)
        {
            Report::new(Code::ERRCODE_WARNING, error.clone())
                .detail("The copy is tried again by itself; this session goes on waiting.")
                .hint("Mend what is wrong; ha.status_tables shows every table.")
                .warn();
            said = Some(error);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        latch::pause(left.map_or(pause, |left| pause.min(left)));
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
