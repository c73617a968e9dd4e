//! Failure story: two nodes change the same row without having seen each other, and end up with different rows; or
//! the older change wins; or nobody can see that there was a conflict.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::support::{CONFLICTS, add_everywhere, counter, disable, enable};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::Node;
use crate::scenario::{Scenario, Stage};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "conflict_lww",
        story: "concurrent inserts and updates of one row leave the nodes different, or the older change wins",
        run: concurrent,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "conflict_lww_in_turn",
        story: "nodes that change a row in turn, each having seen the other's change, are told of conflicts that are none",
        run: in_turn,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "conflict_lww_three_nodes",
        story: "with three nodes the order of arrival decides who wins",
        run: three_nodes,
        needs: &[],
        stock: false,
        weight: 2,
    },
];

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n int DEFAULT 0)";

fn prepare(stage: &Stage, nodes: usize) -> Result<Arc<Cluster>> {
    let cluster = stage.mesh(Plan::nodes(nodes), TABLE)?;
    add_everywhere(&cluster, "default", &["t"])?;
    Ok(cluster)
}

/// Runs `work` while no change travels, then lets everything through and waits until it has arrived.
fn apart(cluster: &Cluster, work: impl Fn() -> Result<()>) -> Result<()> {
    for (from, to) in cluster.pairs() {
        disable(cluster, from, to)?;
    }
    work()?;
    for (from, to) in cluster.pairs() {
        enable(cluster, from, to)?;
    }
    cluster.wait_replicating()?;
    cluster.sync_all()
}

fn all_conflicts(cluster: &Cluster) -> Result<u64> {
    let pairs = cluster.pairs().into_iter();
    pairs
        .map(|(from, to)| counter(cluster, to, &Cluster::subscription_name(from, to), CONFLICTS))
        .sum()
}

fn expect_value(cluster: &Cluster, id: u32, wanted: &str) -> Result<()> {
    for node in &cluster.nodes {
        let found = node.text(&cluster.database, &format!("SELECT v FROM t WHERE id = {id}"))?;
        ensure!(
            found == wanted,
            "row {id} on {} is {found:?}; the later change made it {wanted:?}",
            node.name
        );
    }
    compare::identical(cluster, &["t"])
}

fn write(cluster: &Cluster, node: &Node, sql: &str) -> Result<()> {
    node.exec(&cluster.database, sql)
}

fn concurrent(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, 2)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let before = all_conflicts(&cluster)?;

    apart(&cluster, || {
        // Commits are one after the other, so the second is the later one, whoever made it.
        write(&cluster, one, "INSERT INTO t VALUES (1, 'early n1')")?;
        write(&cluster, two, "INSERT INTO t VALUES (1, 'late n2')")?;
        write(&cluster, two, "INSERT INTO t VALUES (2, 'early n2')")?;
        write(&cluster, one, "INSERT INTO t VALUES (2, 'late n1')")
    })?;
    expect_value(&cluster, 1, "late n2")?;
    expect_value(&cluster, 2, "late n1")?;
    let inserted = all_conflicts(&cluster)?;
    // Each of the two rows met another version on both nodes, and one side of each lost.
    ensure!(
        inserted >= before + 2,
        "two rows were inserted twice, but only {} conflicts were counted",
        inserted - before
    );

    apart(&cluster, || {
        write(&cluster, one, "UPDATE t SET v = 'early n1' WHERE id = 1")?;
        write(&cluster, two, "UPDATE t SET v = 'early n2' WHERE id = 2")?;
        write(&cluster, two, "UPDATE t SET v = 'late n2' WHERE id = 1")?;
        write(&cluster, one, "UPDATE t SET v = 'late n1' WHERE id = 2")
    })?;
    expect_value(&cluster, 1, "late n2")?;
    expect_value(&cluster, 2, "late n1")?;
    let updated = all_conflicts(&cluster)?;
    ensure!(
        updated >= inserted + 2,
        "two rows were updated twice, but only {} conflicts were counted",
        updated - inserted
    );

    // Several changes on both sides, in one transaction and in many; the last commit decides.
    apart(&cluster, || {
        for round in 0..20 {
            write(
                &cluster,
                one,
                &format!("UPDATE t SET v = 'n1 {round}', n = n + 1"),
            )?;
            write(
                &cluster,
                two,
                &format!("BEGIN; UPDATE t SET v = 'n2 {round}'; UPDATE t SET n = n + 1; COMMIT"),
            )?;
        }
        Ok(())
    })?;
    expect_value(&cluster, 1, "n2 19")?;
    expect_value(&cluster, 2, "n2 19")
}

fn in_turn(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, 2)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    // Rows from before the subscription count as seen; these are new ones.
    write(
        &cluster,
        one,
        "INSERT INTO t SELECT g, 'start' FROM generate_series(1, 10) AS g",
    )?;
    cluster.sync(1, 2)?;
    for round in 0..10 {
        write(
            &cluster,
            two,
            &format!("UPDATE t SET v = 'n2 {round}', n = n + 1"),
        )?;
        cluster.sync(2, 1)?;
        write(
            &cluster,
            one,
            &format!("UPDATE t SET v = 'n1 {round}', n = n + 1"),
        )?;
        cluster.sync(1, 2)?;
    }
    write(&cluster, two, "DELETE FROM t WHERE id > 5")?;
    cluster.sync(2, 1)?;
    write(
        &cluster,
        one,
        "INSERT INTO t SELECT g, 'again' FROM generate_series(6, 10) AS g",
    )?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t"])?;
    let sum = one.number(&cluster.database, "SELECT sum(n) FROM t")?;
    ensure!(
        sum == 100,
        "20 updates of 5 remaining rows make a sum of 100, it is {sum}"
    );
    let conflicts = all_conflicts(&cluster)?;
    ensure!(
        conflicts == 0,
        "{conflicts} conflicts were counted although each node had seen what it changed"
    );
    for node in &cluster.nodes {
        let written = node.number(&cluster.database, "SELECT count(*) FROM ha.conflicts")?;
        ensure!(
            written == 0,
            "{} has {written} conflicts in its history",
            node.name
        );
    }
    Ok(())
}

fn three_nodes(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, 3)?;
    let rows = 30;
    let mut winners = Vec::new();
    apart(&cluster, || {
        write(
            &cluster,
            cluster.node(1)?,
            &format!("INSERT INTO t SELECT g, '' FROM generate_series(1, {rows}) AS g"),
        )
    })?;
    for (from, to) in cluster.pairs() {
        disable(&cluster, from, to)?;
    }
    for id in 1..=rows {
        // Every node changes every row; the order is random and the last one must win.
        let mut order: Vec<&Node> = cluster.nodes.iter().collect();
        for at in (1..order.len()).rev() {
            order.swap(at, usize::try_from(stage.random(0..u64::try_from(at)? + 1))?);
        }
        for node in &order {
            write(
                &cluster,
                node,
                &format!("UPDATE t SET v = '{}' WHERE id = {id}", node.name),
            )?;
        }
        winners.push((id, order.last().context("three nodes")?.name.clone()));
    }
    // They learn of one another in a random order, too.
    let mut pairs = cluster.pairs();
    while !pairs.is_empty() {
        let at = usize::try_from(stage.random(0..u64::try_from(pairs.len())?))?;
        let (from, to) = pairs.swap_remove(at);
        let name = Cluster::subscription_name(from, to);
        enable(&cluster, from, to)?;
        cluster.wait_status(to, &name, "replicating")?;
        cluster.sync(from.number, to.number)?;
    }
    cluster.sync_all()?;
    for (id, winner) in winners {
        expect_value(&cluster, id, &winner)?;
    }
    Ok(())
}
