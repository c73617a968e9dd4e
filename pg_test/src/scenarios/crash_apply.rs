//! Failure story: a server or one of its workers dies in the middle of the load, and afterwards a row is missing,
//! applied twice, or an acknowledged commit is gone.

use std::time::Duration;

use anyhow::{Context, Result};

use super::support::wait_no_lag;
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::{Node, Stop};
use crate::scenario::{Scenario, Stage};
use crate::wait::{self, PATIENCE, Probe};
use crate::workload::{self, Branches, Schema, TABLES, Writer};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "crash_apply_worker",
        story: "kill -9 of an applier or receiver under load loses rows, repeats them, or replication never comes back",
        run: kill_workers,
        needs: &[],
        stock: false,
        weight: 2,
    },
    Scenario {
        name: "crash_apply_terminate",
        story: "a worker ended by pg_terminate_backend does not come back, or takes the whole instance with it",
        run: terminate_workers,
        needs: &[],
        stock: false,
        weight: 2,
    },
    Scenario {
        name: "crash_apply_server",
        story: "kill -9 of whole servers under load loses acknowledged commits, repeats changes, or nodes end up different",
        run: kill_servers,
        needs: &[],
        stock: false,
        weight: 2,
    },
];

const SCHEMA: (u64, usize) = (3, 3);

/// SIGTERM, as pg_terminate_backend sends it: the worker comes back, and nobody else notices.
fn terminate_workers(stage: &Stage) -> Result<()> {
    under_load(stage, |node| {
        let mut bystander = node.session("postgres")?;
        let kinds = ["pg_ha applier", "pg_ha receiver", "pg_ha supervisor"];
        let kind = stage.pick(&kinds).context("a kind of worker")?;
        let ended = node.rows(
            "postgres",
            &format!("SELECT pg_terminate_backend(pid, 10000), pid FROM pg_stat_activity WHERE backend_type = '{kind}'"),
        )?;
        anyhow::ensure!(!ended.is_empty(), "there was no {kind} on {}", node.name);
        for row in &ended {
            anyhow::ensure!(
                row[0].as_deref() == Some("t"),
                "a {kind} on {} ignored SIGTERM for 10 s",
                node.name
            );
        }
        let mut polling = node.polling("postgres");
        let running = format!("SELECT count(*) FROM pg_stat_activity WHERE backend_type = '{kind}'");
        wait::until(
            &format!("every terminated {kind} of {} is back", node.name),
            PATIENCE,
            || {
                let count = crate::sql::show(&polling.rows(&running)?);
                Ok(Probe::when(
                    count == ended.len().to_string(),
                    format!("{count} of {}", ended.len()),
                ))
            },
        )?;
        bystander
            .exec("SELECT 1")
            .context("ending one worker took other sessions with it")
    })
}

fn kill_workers(stage: &Stage) -> Result<()> {
    under_load(stage, |node| {
        let kinds = ["pg_ha applier", "pg_ha receiver", "pg_ha supervisor", "walsender"];
        let kind = stage.pick(&kinds).context("a kind of worker")?;
        node.kill_backend(kind)?;
        node.wait_accepting()
    })
}

fn kill_servers(stage: &Stage) -> Result<()> {
    under_load(stage, |node| {
        match stage.random(0..4) {
            0 => node.stop(Stop::Fast)?,
            1 => node.stop(Stop::Immediate)?,
            _ => node.kill_server()?,
        }
        wait::let_run(Duration::from_millis(stage.random(0..1500)))?;
        node.start()
    })
}

fn under_load(stage: &Stage, fault: impl Fn(&Node) -> Result<()>) -> Result<()> {
    let schema = Schema::small(SCHEMA.0);
    let cluster = stage.cluster(Plan::nodes(SCHEMA.1))?;
    cluster.create_nodes()?;
    workload::initialise(&cluster, &stage.install, schema)?;
    cluster.everywhere("SELECT * FROM ha.repset_add_tables('default', 'pgbench_*')")?;
    cluster.mesh()?;

    let mut writers = Vec::new();
    for node in &cluster.nodes {
        let share = Branches::share(node.number, cluster.nodes.len(), schema)?;
        writers.push(Writer::start(node, &cluster.database, share, stage.seed, None));
    }
    for round in 1..=stage.repetitions(3, 10) {
        wait::let_run(Duration::from_millis(stage.random(200..1500)))?;
        let node = stage.pick(&cluster.nodes).context("a node")?;
        fault(node).with_context(|| format!("round {round}: the fault on {}", node.name))?;
        recover(&cluster, &writers)
            .with_context(|| format!("round {round}, after the fault on {}", node.name))?;
    }
    let mut accounts = Vec::new();
    for writer in writers {
        accounts.push((writer.label.clone(), writer.stop()?));
    }
    cluster.sync_all()?;
    for node in &cluster.nodes {
        for (label, account) in &accounts {
            workload::audit(node, &cluster.database, label, account)?;
        }
        workload::balanced(node, &cluster.database)?;
    }
    compare::identical(&cluster, &TABLES)?;
    wait_no_lag(&cluster)
}

/// Every writer commits again and every subscription replicates: the next fault hits a cluster that works.
fn recover(cluster: &Cluster, writers: &[Writer]) -> Result<()> {
    for writer in writers {
        let before = writer.progress();
        wait::until(
            &format!("the writer on {} commits again", writer.label),
            PATIENCE,
            || {
                Ok(Probe::when(
                    writer.progress() > before + 5,
                    format!("{} commits so far", writer.progress()),
                ))
            },
        )?;
    }
    cluster.wait_replicating()
}
