//! Failure story: what a provider got by another means of replication, and is asked to send on as its own, is lost where
//! it is large or prepared.

use anyhow::Result;

use super::forwarding::{scenario, subscribe};
use crate::cluster::{Cluster, Plan};
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::sql::{self, literal};
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[scenario(
    "forwarding_others",
    "what a provider got by native replication is not sent on where it is large or was prepared",
    others,
)];

fn wait_rows(cluster: &Cluster, node: &Node, sql: &str, wanted: &str) -> Result<()> {
    let mut polling = node.polling(&cluster.database);
    wait::until(&format!("{} has {wanted} by {sql}", node.name), PATIENCE, || {
        let seen = sql::show(&polling.rows(sql)?);
        Ok(Probe::when(seen == wanted, seen))
    })
}

fn others(stage: &Stage) -> Result<()> {
    // n1 is a server like any other, without a node; n2 subscribes to it natively.
    let plan = Plan::nodes(3)
        .with("max_prepared_transactions", "20")
        .with("logical_decoding_work_mem", "64kB");
    let cluster = stage.cluster(plan)?;
    cluster.create_database()?;
    let (first, second, third) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    for node in [second, third] {
        node.exec(&cluster.database, "CREATE EXTENSION pg_ha")?;
        cluster.create_node(node)?;
    }
    cluster.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text)")?;
    first.exec(&cluster.database, "CREATE PUBLICATION p FOR TABLE t")?;
    second.exec(&cluster.database, "SELECT ha.repset_add_table('default', 't')")?;
    let name = subscribe(&cluster, 2, 3, "{all}")?;
    cluster.wait_status(third, &name, "replicating")?;
    third.exec(
        &cluster.database,
        &format!("SELECT ha.sub_alter_options('{name}', '{{\"two_phase\": true}}')"),
    )?;
    wait_rows(
        &cluster,
        second,
        "SELECT two_phase AND active FROM pg_replication_slots",
        "t",
    )?;
    second.exec(
        &cluster.database,
        &format!(
            "CREATE SUBSCRIPTION s CONNECTION {} PUBLICATION p WITH (copy_data = false, two_phase = true)",
            literal(&first.dsn(&cluster.database))
        ),
    )?;
    wait_rows(
        &cluster,
        second,
        "SELECT subtwophasestate FROM pg_subscription",
        "e",
    )?;

    let count = "SELECT count(*) FROM t";
    first.exec(&cluster.database, "INSERT INTO t VALUES (1, 'small')")?;
    wait_rows(&cluster, third, count, "1")?;
    first.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, repeat('large', 20) FROM generate_series(2, 5000) g",
    )?;
    wait_rows(&cluster, second, count, "5000")?;
    wait_rows(&cluster, third, count, "5000")?;

    let mut session = first.session(&cluster.database)?;
    session.exec("BEGIN; INSERT INTO t VALUES (5001, 'prepared'); PREPARE TRANSACTION 'a'")?;
    session.exec("BEGIN; INSERT INTO t VALUES (5002, 'gone'); PREPARE TRANSACTION 'b'")?;
    wait_rows(&cluster, second, "SELECT count(*) FROM pg_prepared_xacts", "2")?;
    session.exec("ROLLBACK PREPARED 'b'")?;
    session.exec("COMMIT PREPARED 'a'")?;
    let tail = "SELECT id FROM t WHERE id > 5000";
    wait_rows(&cluster, second, tail, "5001")?;
    wait_rows(&cluster, third, tail, "5001")?;
    second.exec(&cluster.database, "INSERT INTO t VALUES (6000, 'of n2')")?;
    cluster.sync(2, 3)?;
    wait_rows(
        &cluster,
        third,
        "SELECT id FROM t WHERE id > 5000 ORDER BY id",
        "5001\n6000",
    )
}
