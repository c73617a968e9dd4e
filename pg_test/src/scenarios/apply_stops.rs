//! Failure story: a change cannot be applied, or not yet: a constraint, a missing table, a lock, a deadlock with a
//! local user. It is skipped, or the subscriber's log fills up, or everybody else has to wait, or apply does not go on
//! once the cause is gone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::support::{add_everywhere, counter, local_users_are_fine, wait_no_lag, worker_lines};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::scenario::{Scenario, Stage};
use crate::sql;
use crate::wait::{self, PATIENCE, Probe};

const fn scenario(name: &'static str, story: &'static str, run: fn(&Stage) -> Result<()>) -> Scenario {
    Scenario {
        name,
        story,
        run,
        needs: &[],
        stock: false,
        weight: 1,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "apply_stops_constraint",
        "a change that violates a local constraint is skipped, or fills the log",
        constraint,
    ),
    scenario(
        "apply_stops_missing_table",
        "changes of a table that the subscriber lacks are thrown away",
        missing_table,
    ),
    scenario(
        "apply_stops_lock",
        "an applier that waits for a lock is taken for a dead subscriber",
        lock,
    ),
    scenario(
        "apply_stops_deadlock",
        "an applier that loses a deadlock against a local user drops its transaction",
        deadlock,
    ),
];

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE other (id int PRIMARY KEY)";

fn prepare(stage: &Stage, plan: Plan) -> Result<Arc<Cluster>> {
    let cluster = stage.mesh(plan, TABLE)?;
    add_everywhere(&cluster, "default", &["t", "other"])?;
    Ok(cluster)
}

/// The subscription n2 <- n1 says that it has failed and why; the log says so once; the other direction and local
/// users go on; nothing after the failed transaction is applied.
fn stopped(cluster: &Cluster, since: u64, words: &[&str]) -> Result<()> {
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    cluster.wait_status(two, "sub_n2_n1", "failed")?;
    one.exec(&cluster.database, "INSERT INTO other VALUES (1)")?;
    let mut local = 1000;
    wait::holds(
        "the failed change waits and the log stays quiet",
        Duration::from_secs(15),
        || {
            local += 1;
            local_users_are_fine(cluster, two, &format!("INSERT INTO other VALUES ({local})"))?;
            let count = two.number(&cluster.database, "SELECT count(*) FROM other WHERE id = 1")?;
            ensure!(count == 0, "a later transaction overtook the one that failed");
            let lines = worker_lines(two, since)?;
            ensure!(
                lines.len() <= 3,
                "{} log lines about one failure:\n{}",
                lines.len(),
                lines.join("\n")
            );
            Ok(())
        },
    )?;
    let error = cluster
        .status_of(two, "sub_n2_n1", "last_error")?
        .unwrap_or_default();
    for word in words {
        ensure!(
            error.contains(word),
            "last_error does not mention {word:?}: {error}"
        );
    }
    cluster.sync(2, 1)
}

/// The cause is gone: without anybody's help everything arrives.
fn goes_on(cluster: &Cluster) -> Result<()> {
    cluster.sync_all()?;
    compare::identical(cluster, &["t", "other"])?;
    wait_no_lag(cluster)
}

fn constraint(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, Plan::nodes(2))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    two.exec(
        &cluster.database,
        "ALTER TABLE t ADD CONSTRAINT small CHECK (v < 100)",
    )?;
    let since = two.log_position();
    one.exec(
        &cluster.database,
        "BEGIN; INSERT INTO t VALUES (1, 1); INSERT INTO t VALUES (2, 200); COMMIT",
    )?;
    stopped(&cluster, since, &["small", "23514"])?;
    let count = two.number(&cluster.database, "SELECT count(*) FROM t")?;
    ensure!(
        count == 0,
        "half of the failed transaction is there: {count} rows"
    );
    two.exec(&cluster.database, "ALTER TABLE t DROP CONSTRAINT small")?;
    goes_on(&cluster)
}

fn missing_table(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, Plan::nodes(2))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let since = two.log_position();
    one.exec(
        &cluster.database,
        "CREATE TABLE late (id int PRIMARY KEY, v int); SELECT ha.repset_add_table('default', 'late');
         INSERT INTO late VALUES (1, 1)",
    )?;
    stopped(&cluster, since, &["late"])?;
    // A table that lacks a column is no better.
    two.exec(&cluster.database, "CREATE TABLE late (id int PRIMARY KEY)")?;
    let what = "last_error names the missing column";
    wait::until(what, PATIENCE, || {
        let error = cluster
            .status_of(two, "sub_n2_n1", "last_error")?
            .unwrap_or_default();
        Ok(Probe::when(error.contains("\"v\""), error))
    })?;
    two.exec(&cluster.database, "ALTER TABLE late ADD COLUMN v int")?;
    goes_on(&cluster)?;
    compare::identical(&cluster, &["late"])
}

fn lock(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2)
        .with("wal_sender_timeout", "3s")
        .with("wal_receiver_timeout", "3s")
        .with("wal_receiver_status_interval", "1s");
    let cluster = prepare(stage, plan)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let senders = "SELECT active_pid FROM pg_replication_slots WHERE active";
    let before = one.text(&cluster.database, senders)?;
    let mut holder = two.session(&cluster.database)?;
    holder.exec("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")?;
    // Far more than buffers hold, so that the stream itself stands still.
    for part in 0..20 {
        let insert =
            format!("INSERT INTO t SELECT {part} * 10000 + g, g FROM generate_series(1, 10000) AS g");
        one.exec(&cluster.database, &insert)?;
    }
    wait::holds(
        "the stream survives while the applier waits for a lock",
        Duration::from_secs(8),
        || {
            let now = sql::show(&one.rows(&cluster.database, senders)?);
            ensure!(now == before, "the walsender was {before} and is {now}");
            Ok(())
        },
    )?;
    holder.exec("COMMIT")?;
    goes_on(&cluster)
}

fn deadlock(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, Plan::nodes(2).with("deadlock_timeout", "200ms"))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    one.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, 0 FROM generate_series(1, 2) AS g",
    )?;
    cluster.sync(1, 2)?;
    let since = two.log_position();
    for round in 1..=5 {
        let mut local = two.session(&cluster.database)?;
        // Either of the two may be chosen as the victim; a large deadlock_timeout leaves it to the applier.
        local.exec("SET deadlock_timeout = '60s'; BEGIN; SELECT * FROM t WHERE id = 2 FOR UPDATE")?;
        one.exec(
            &cluster.database,
            &format!(
                "BEGIN; UPDATE t SET v = {round} WHERE id = 1; UPDATE t SET v = {round} WHERE id = 2; COMMIT"
            ),
        )?;
        let mut polling = two.polling(&cluster.database);
        wait::until("the applier waits for the local user's row", PATIENCE, || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_ha applier' AND wait_event_type = 'Lock'";
            let count = sql::show(&polling.rows(waiting)?);
            Ok(Probe::when(
                count == "1",
                format!("{count} appliers wait for a lock"),
            ))
        })?;
        // Closes the circle; the applier gives way, and tries again.
        if let Err(error) = local.exec("SELECT * FROM t WHERE id = 1 FOR UPDATE; COMMIT") {
            bail!("round {round}: the local user lost: {error:#}");
        }
        cluster.sync(1, 2)?;
        compare::identical(&cluster, &["t"])?;
    }
    goes_on(&cluster)?;
    let retries = counter(&cluster, two, "sub_n2_n1", "retries")?;
    ensure!(
        retries >= 5,
        "the applier lost 5 deadlocks, and counts {retries} retries"
    );
    // Another attempt is all it takes: no failure, no new connection, nothing to tell.
    let lines = worker_lines(two, since)?;
    ensure!(
        lines.is_empty(),
        "a deadlock is no failure, yet the log says:\n{}",
        lines.join("\n")
    );
    Ok(())
}
