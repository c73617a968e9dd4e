//! Failure story: one server's clock is seconds ahead. Its changes win for a while, which is unavoidable; but every
//! node must agree on who won, and an update of a row must not lose to the version that it was made from.

use anyhow::{Result, ensure};

use super::support::{add_everywhere, disable, enable};
use crate::cluster::Plan;
use crate::compare;
use crate::faults;
use crate::scenario::{Need, Scenario, Stage};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "wrong_clock",
    story: "with one clock 5 s ahead the nodes disagree on which change won",
    run,
    needs: &[Need::Faketime],
    stock: false,
    weight: 2,
}];

fn run(stage: &Stage) -> Result<()> {
    let ahead = faults::wrong_clock(&stage.install, "+5s")?;
    let plan = Plan::nodes(3).node(2, |spec| spec.environment = ahead);
    let cluster = stage.mesh(plan, "CREATE TABLE t (id int PRIMARY KEY, v text)")?;
    add_everywhere(&cluster, "default", &["t"])?;
    let (one, two, three) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);

    one.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, 'n1' FROM generate_series(1, 10) AS g",
    )?;
    two.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, 'n2' FROM generate_series(11, 20) AS g",
    )?;
    three.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, 'n3' FROM generate_series(21, 30) AS g",
    )?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;

    for (from, to) in cluster.pairs() {
        disable(&cluster, from, to)?;
    }
    // n2 writes first and is 5 s ahead: by its timestamp it is the last one, on every node.
    two.exec(
        &cluster.database,
        "UPDATE t SET v = 'from n2' WHERE id BETWEEN 1 AND 10",
    )?;
    one.exec(
        &cluster.database,
        "UPDATE t SET v = 'from n1' WHERE id BETWEEN 1 AND 10",
    )?;
    three.exec(
        &cluster.database,
        "UPDATE t SET v = 'from n3' WHERE id BETWEEN 1 AND 5",
    )?;
    for (from, to) in cluster.pairs() {
        enable(&cluster, from, to)?;
    }
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;
    let won = one.number(&cluster.database, "SELECT count(*) FROM t WHERE v = 'from n2'")?;
    ensure!(
        won == 10,
        "the node ahead has the latest timestamps; {won} of its 10 changes won"
    );

    // Changes of rows that the fast node wrote more than 5 s "later" still end up equal everywhere.
    three.exec(&cluster.database, "DELETE FROM t WHERE id = 21")?;
    one.exec(&cluster.database, "INSERT INTO t VALUES (31, 'late')")?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])
}
