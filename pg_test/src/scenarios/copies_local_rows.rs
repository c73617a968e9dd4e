//! Failure story: a table is copied while people write to it on the node that receives the copy, and what they wrote is
//! gone there, or is there on one of two nodes only.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::copies::{NAME, subscribe_with_copy};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::sql::{self, literal};
use crate::wait::{self, PATIENCE, Probe};

const fn scenario(name: &'static str, story: &'static str, run: fn(&Stage) -> Result<()>) -> Scenario {
    Scenario {
        name,
        story,
        run,
        needs: &[],
        stock: false,
        weight: 2,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "copies_meet_a_writer",
        "a copy empties a table that looked empty, and with it goes what somebody wrote in a transaction that was open",
        meet_a_writer,
    ),
    scenario(
        "copies_meet_own_changes",
        "a table is copied anew from a node that lags behind, and what was written here is on that node alone in the end",
        meet_own_changes,
    ),
    scenario(
        "copies_both_ways",
        "two nodes copy from each other, and each waits for ever until the other's copy is through",
        both_ways,
    ),
];

fn wait_for_table(cluster: &Cluster, node: &Node, table: &str, status: &str) -> Result<()> {
    let query = format!(
        "SELECT status, last_error FROM ha.copied_tables WHERE relname = {}",
        literal(table)
    );
    let mut polling = node.polling(&cluster.database);
    wait::until(&format!("{table} is {status}"), PATIENCE, || {
        let rows = polling.rows(&query)?;
        let reached = rows.first().is_some_and(|row| row[0].as_deref() == Some(status));
        Ok(Probe::when(reached, sql::show(&rows)))
    })
}

fn meet_a_writer(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    cluster.everywhere(
        "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = false);
         SELECT ha.repset_add_table('default', 't')",
    )?;
    first.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, 'copied' FROM generate_series(1, 100) g",
    )?;
    // Much room and no rows: what a copy that failed leaves behind.
    second.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g; DELETE FROM t",
    )?;
    let mut writer = second.session(&cluster.database)?;
    writer.exec("BEGIN; INSERT INTO t VALUES (0, 'mine')")?;
    subscribe_with_copy(&cluster)?;
    let mut polling = second.polling(&cluster.database);
    wait::until("the copier waits for the writer", PATIENCE, || {
        let rows = polling.rows(
            "SELECT FROM pg_stat_activity WHERE backend_type = 'pg_ha copier' AND wait_event_type = 'Lock'",
        )?;
        Ok(Probe::when(!rows.is_empty(), "no copier waits for a lock"))
    })?;
    let shown = second.rows(
        &cluster.database,
        &format!(
            "SELECT current_action, blocked_by = ARRAY[{}] FROM ha.status_subscriptions",
            writer.number("SELECT pg_backend_pid()")?
        ),
    )?;
    writer.exec("COMMIT")?;
    wait_for_table(&cluster, second, "t", "failed")?;
    ensure!(
        second.text(&cluster.database, "SELECT v FROM t WHERE id = 0")? == "mine",
        "what was written during the copy is gone"
    );
    ensure!(
        sql::show(&shown) == "waiting for a relation lock (AccessExclusiveLock) on t | t",
        "while the copier waited this was shown: {}",
        sql::show(&shown)
    );
    second.exec(&cluster.database, "DELETE FROM t")?;
    wait_for_table(&cluster, second, "t", "replicating")?;
    compare::identical(&cluster, &["t"])
}

fn meet_own_changes(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.connect_timeout", "60s"))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    cluster.everywhere(
        "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT ha.repset_add_table('default', 't')",
    )?;
    cluster.mesh()?;
    cluster.wait_replicating()?;
    first.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, 'first' FROM generate_series(1, 100) g",
    )?;
    cluster.sync(1, 2)?;
    // Node 1 cannot apply what node 2 writes now.
    let mut holder = first.session(&cluster.database)?;
    holder.exec("BEGIN; LOCK TABLE t IN SHARE ROW EXCLUSIVE MODE")?;
    second.exec(
        &cluster.database,
        "INSERT INTO t VALUES (0, 'second'); UPDATE t SET v = 'second' WHERE id = 1; DELETE FROM t WHERE id = 2",
    )?;
    second.exec(
        &cluster.database,
        &format!("SELECT ha.sub_resync_table({}, 't')", literal(NAME)),
    )?;
    // Whatever time it takes: what node 2 wrote must be with node 1 first.
    wait::holds("the table is not replaced yet", Duration::from_secs(3), || {
        let state = second.text(&cluster.database, "SELECT state FROM ha.subscription_tables")?;
        ensure!(state == "init", "it was copied, now it is in state {state}");
        Ok(())
    })?;
    holder.exec("COMMIT")?;
    wait_for_table(&cluster, second, "t", "replicating")?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;
    ensure!(
        second.number(&cluster.database, "SELECT count(*) FROM t WHERE v = 'second'")? == 2,
        "what node 2 wrote is on neither node"
    );
    // Where nothing lags it does not take the time after which a copier goes on by itself.
    let started = Instant::now();
    second.exec(
        &cluster.database,
        &format!("SELECT ha.sub_resync_table({}, 't')", literal(NAME)),
    )?;
    wait_for_table(&cluster, second, "t", "replicating")?;
    ensure!(
        started.elapsed() < Duration::from_secs(9),
        "the copy took {:?}",
        started.elapsed()
    );
    let warnings = "SELECT count(*) FROM ha.events WHERE kind = 'table_resync' AND severity = 'warning'";
    ensure!(
        second.number(&cluster.database, warnings)? == 0,
        "the copier did not wait until its provider had everything"
    );
    Ok(())
}

fn both_ways(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    cluster.everywhere(
        "CREATE TABLE one (id int PRIMARY KEY, v text); CREATE TABLE two (id int PRIMARY KEY, v text);
         SELECT ha.repset_add_table('default', 'one'), ha.repset_add_table('default', 'two')",
    )?;
    cluster.mesh()?;
    cluster.wait_replicating()?;
    first.exec(
        &cluster.database,
        "INSERT INTO one SELECT g, 'one' FROM generate_series(1, 100) g; INSERT INTO two SELECT g, 'two' FROM generate_series(1, 100) g",
    )?;
    cluster.sync(1, 2)?;
    // Slots are not ready while these run, so that both copiers have begun before either goes on.
    let mut holders = Vec::new();
    for node in [first, second] {
        let mut holder = node.session(&cluster.database)?;
        holder.exec("BEGIN; SELECT pg_current_xact_id()")?;
        holders.push(holder);
    }
    for (node, subscription, table) in [(first, "sub_n1_n2", "two"), (second, NAME, "one")] {
        let call = format!(
            "SELECT ha.sub_resync_table({}, {})",
            literal(subscription),
            literal(table)
        );
        node.exec(&cluster.database, &call)?;
    }
    for node in [first, second] {
        let mut polling = node.polling(&cluster.database);
        wait::until("the other node's copier makes its slot", PATIENCE, || {
            let rows = polling.rows("SELECT FROM pg_replication_slots WHERE temporary")?;
            Ok(Probe::when(!rows.is_empty(), "there is none"))
        })?;
    }
    for mut holder in holders {
        holder.exec("COMMIT")?;
    }
    wait_for_table(&cluster, second, "one", "replicating")?;
    wait_for_table(&cluster, first, "two", "replicating")?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["one", "two"])
}
