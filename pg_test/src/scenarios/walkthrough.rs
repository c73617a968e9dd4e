//! Failure story: the first thing anybody tries does not work. Three servers, the pgbench tables, a mesh of
//! subscriptions, writers on all three; and then rows differ, changes run in circles, or the status views say
//! something else than what is there.

use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use super::support::{ROWS_APPLIED, counter, wait_no_lag};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::workload::{self, Branches, Schema, TABLES, Writer};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "walkthrough",
        story: "three servers, pgbench tables, writers on all three: rows differ, changes loop, or status lies",
        run: with_pgbench,
        needs: &[],
        stock: false,
        weight: 2,
    },
    Scenario {
        name: "walkthrough_without_pgbench",
        story: "the same on a server that has no client programs, with single-row writers",
        run: without_pgbench,
        needs: &[],
        stock: false,
        weight: 2,
    },
];

fn with_pgbench(stage: &Stage) -> Result<()> {
    let Some(pgbench) = &stage.install.pgbench else {
        return without_pgbench(stage);
    };
    // Each of three nodes writes to branches of its own, so there are at least three.
    let schema = Schema::pgbench(if stage.long { 10 } else { 3 });
    let (clients, transactions) = if stage.long { (4, 2500) } else { (2, 400) };
    let cluster = prepare(stage, schema)?;
    let committed: Vec<u64> = thread::scope(|scope| {
        let mut running = Vec::new();
        for node in &cluster.nodes {
            let share = Branches::share(node.number, cluster.nodes.len(), schema)?;
            let database = &cluster.database;
            running.push(
                scope.spawn(move || workload::pgbench(pgbench, node, database, share, clients, transactions)),
            );
        }
        let join = |thread: thread::ScopedJoinHandle<'_, Result<u64>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a pgbench thread panicked")))
        };
        running.into_iter().map(join).collect::<Result<Vec<u64>>>()
    })
    .map_err(|error: anyhow::Error| error.context("while pgbench ran on all three nodes"))?;
    conclude(&cluster, &committed)
}

fn without_pgbench(stage: &Stage) -> Result<()> {
    let schema = Schema::small(3);
    let cluster = prepare(stage, schema)?;
    let mut writers = Vec::new();
    for node in &cluster.nodes {
        let share = Branches::share(node.number, cluster.nodes.len(), schema)?;
        writers.push(Writer::start(
            node,
            &cluster.database,
            share,
            stage.seed,
            Some(500),
        ));
    }
    let mut committed = Vec::new();
    for writer in writers {
        committed.push(u64::try_from(writer.finish()?.acknowledged.len())?);
    }
    conclude(&cluster, &committed)
}

fn prepare(stage: &Stage, schema: Schema) -> Result<std::sync::Arc<Cluster>> {
    let cluster = stage.cluster(Plan::nodes(3))?;
    cluster.create_nodes()?;
    workload::initialise(&cluster, &stage.install, schema)?;
    cluster.on_all(|node| add_tables(&cluster, node))?;
    cluster.mesh()?;
    ensure!(cluster.pairs().len() == 6, "three nodes make six subscriptions");
    for (from, to) in cluster.pairs() {
        let name = Cluster::subscription_name(from, to);
        let provider = cluster.status_of(to, &name, "provider_node")?;
        ensure!(
            provider.as_deref() == Some(from.name.as_str()),
            "the provider of {name} is shown as {provider:?}"
        );
    }
    for node in &cluster.nodes {
        let shown =
            "SELECT count(*) FROM ha.sub_show_status() WHERE status = 'replicating' AND slot_name <> ''";
        let count = node.number(&cluster.database, shown)?;
        ensure!(
            count == 2,
            "ha.sub_show_status() on {} shows {count} of 2 subscriptions replicating",
            node.name
        );
    }
    Ok(cluster)
}

fn add_tables(cluster: &Cluster, node: &Node) -> Result<()> {
    let rows = node.rows(
        &cluster.database,
        "SELECT relation::text, set_name, reason FROM ha.repset_add_tables('default', 'pgbench_*') ORDER BY 1",
    )?;
    let found: Vec<(&str, &str)> = rows
        .iter()
        .map(|row| (row[0].as_deref().unwrap_or(""), row[1].as_deref().unwrap_or("")))
        .collect();
    let wanted = [
        ("pgbench_accounts", "default"),
        ("pgbench_branches", "default"),
        ("pgbench_history", "default_insert_only"),
        ("pgbench_tellers", "default"),
    ];
    ensure!(
        found == wanted,
        "{}: repset_add_tables answered {found:?} instead of {wanted:?}",
        node.name
    );
    let reason = rows.get(2).and_then(|row| row[2].clone()).unwrap_or_default();
    ensure!(
        reason.to_lowercase().contains("key"),
        "{}: the row of pgbench_history does not say that it has no key, but {reason:?}",
        node.name
    );
    Ok(())
}

const ROWS_PER_TRANSACTION: u64 = 4;

fn conclude(cluster: &Cluster, committed: &[u64]) -> Result<()> {
    ensure!(
        committed.iter().all(|count| *count > 0),
        "a writer committed nothing: {committed:?}"
    );
    cluster.sync_all()?;
    compare::identical(cluster, &TABLES)?;
    for node in &cluster.nodes {
        workload::balanced(node, &cluster.database)?;
        let total = node.number(&cluster.database, "SELECT count(*) FROM pgbench_history")?;
        let sent: u64 = committed.iter().sum();
        ensure!(
            u64::try_from(total) == Ok(sent),
            "{} has {total} history rows for {sent} transactions",
            node.name
        );
    }
    wait_no_lag(cluster)?;
    // No loops: what came through a subscription is what the provider's own writers did, nothing more.
    for (from, to) in cluster.pairs() {
        let name = Cluster::subscription_name(from, to);
        let applied = counter(cluster, to, &name, ROWS_APPLIED)?;
        let count = committed.get(from.number - 1).context("a writer per node")?;
        ensure!(
            applied == count * ROWS_PER_TRANSACTION,
            "{name} applied {applied} rows; {} wrote {count} transactions of {ROWS_PER_TRANSACTION} rows",
            from.name
        );
        let conflicts = counter(cluster, to, &name, super::support::CONFLICTS)?;
        ensure!(
            conflicts == 0,
            "{name} counts {conflicts} conflicts although every writer kept to its own rows"
        );
    }
    Ok(())
}
