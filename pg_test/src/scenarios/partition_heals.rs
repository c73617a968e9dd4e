//! Failure story: the network between two sites breaks under load, in both directions or only in one, and when it
//! is back some changes never arrive, or a half-open connection is waited on for ever.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::support::wait_no_lag;
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::faults::Direction;
use crate::scenario::{Need, Scenario, Stage};
use crate::wait::{self, PATIENCE, Probe};
use crate::workload::{self, Branches, Schema, TABLES, Writer};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "partition_heals",
    story: "after a network partition under load, whole or one-way, changes are missing or a dead connection is waited on",
    run,
    needs: &[Need::Root],
    stock: false,
    weight: 2,
}];

fn run(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(3)
        .in_namespaces()
        .with("wal_receiver_timeout", "4s")
        .with("wal_sender_timeout", "4s");
    let cluster = stage.cluster(plan)?;
    let schema = Schema::small(3);
    cluster.create_nodes()?;
    workload::initialise(&cluster, &stage.install, schema)?;
    cluster.everywhere("SELECT * FROM ha.repset_add_tables('default', 'pgbench_*')")?;
    cluster.mesh()?;
    let mut writers = Vec::new();
    for node in &cluster.nodes {
        let share = Branches::share(node.number, cluster.nodes.len(), schema)?;
        writers.push(Writer::start(node, &cluster.database, share, stage.seed, None));
    }

    for round in 0..stage.repetitions(1, 5) {
        let network = cluster.network()?;
        network.cut(1, 2, Direction::BothWays)?;
        down_and_back(&cluster, &writers, &[(1, 2), (2, 1)])
            .map_err(|e| e.context(format!("round {round}, both ways")))?;
        // What n1 sends to n2 is lost: neither its stream nor its answers to n2's requests arrive.
        network.cut(1, 2, Direction::OneWay)?;
        down_and_back(&cluster, &writers, &[(1, 2)])
            .map_err(|e| e.context(format!("round {round}, one way")))?;
        network.isolate(3)?;
        down_and_back(&cluster, &writers, &[(1, 3), (2, 3), (3, 1), (3, 2)])
            .map_err(|e| e.context(format!("round {round}, n3 isolated")))?;
    }

    let mut accounts = Vec::new();
    for writer in writers {
        accounts.push((writer.label.clone(), writer.stop()?));
    }
    cluster.sync_all()?;
    compare::identical(&cluster, &TABLES)?;
    for node in &cluster.nodes {
        for (label, account) in &accounts {
            workload::audit(node, &cluster.database, label, account)?;
        }
    }
    wait_no_lag(&cluster)
}

/// The cut subscriptions say `down`, all writers go on meanwhile; healed, everything replicates again.
fn down_and_back(cluster: &Cluster, writers: &[Writer], cut: &[(usize, usize)]) -> Result<()> {
    for (from, to) in cut {
        let (from, to) = (cluster.node(*from)?, cluster.node(*to)?);
        cluster.wait_status(to, &Cluster::subscription_name(from, to), "down")?;
    }
    for (from, to) in cluster.pairs() {
        if !cut.contains(&(from.number, to.number)) && !cut.contains(&(to.number, from.number)) {
            let name = Cluster::subscription_name(from, to);
            let status = cluster.status_of(to, &name, "status")?;
            ensure!(
                status.as_deref() == Some("replicating"),
                "{name} was not cut and its status is {status:?}"
            );
        }
    }
    for writer in writers {
        let before = writer.progress();
        wait::until(
            &format!("the writer on {} goes on during the cut", writer.label),
            Duration::from_secs(10),
            || {
                Ok(Probe::when(
                    writer.progress() > before + 10,
                    format!("{} commits", writer.progress() - before),
                ))
            },
        )?;
    }
    cluster.network()?.heal()?;
    wait::until(
        "all subscriptions replicate after the cut is healed",
        PATIENCE,
        || cluster.wait_replicating().map(Probe::Ready),
    )
}
