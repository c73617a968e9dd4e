//! Failure story: replication sets, subscriptions and nodes are changed while changes stream, and a change is sent
//! that should not be, or lost, or the stream breaks; or a node is dropped that others still need.

use anyhow::{Context, Result, ensure};

use super::support::{add_everywhere, disable, enable, refused};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::scenario::{Scenario, Stage};
use crate::sql::literal;
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "mixed_sets",
        story: "changing what a subscription receives while it streams loses rows, or sends what is no longer wanted",
        run: sets,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "mixed_sets_mesh_at_once",
        story: "nodes that subscribe to one another at the same moment wait for each other for ever",
        run: mesh_at_once,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "mixed_sets_drops",
        story: "a node or subscription is dropped half: others still need it, or its slot keeps WAL for ever",
        run: drops,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "mixed_sets_rebuilt_node",
        story: "a node made anew under an old id has the old server's WAL positions held against it: its rows are skipped",
        run: rebuilt_node,
        needs: &[],
        stock: false,
        weight: 1,
    },
];

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int);
                      CREATE TABLE c (id int PRIMARY KEY, v int)";

fn sets(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    cluster.everywhere(
        "SELECT ha.repset_create('extra'); SELECT ha.repset_create('no_deletes', true, true, false, false)",
    )?;
    add_everywhere(&cluster, "default", &["a"])?;
    add_everywhere(&cluster, "extra", &["b"])?;
    add_everywhere(&cluster, "no_deletes", &["c"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let count = |table: &str| two.number(database, &format!("SELECT count(*) FROM {table}"));
    let insert = |id: u32| {
        one.exec(
            database,
            &format!("INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}); INSERT INTO c VALUES ({id})"),
        )
    };
    let expect = |when: &str, wanted: [i64; 3]| -> Result<()> {
        cluster.sync(1, 2)?;
        let found = [count("a")?, count("b")?, count("c")?];
        ensure!(
            found == wanted,
            "{when}: n2 should have {wanted:?} rows in a, b, c and has {found:?}"
        );
        Ok(())
    };

    insert(1)?;
    expect("subscribed to default only", [1, 0, 0])?;
    let answer = |sql: &str| two.text(database, sql);
    ensure!(
        answer(&format!("SELECT ha.sub_add_repset('{name}', 'extra')"))? == "t",
        "sub_add_repset answered false"
    );
    ensure!(
        answer(&format!("SELECT ha.sub_add_repset('{name}', 'no_deletes')"))? == "t",
        "sub_add_repset answered false"
    );
    cluster.wait_replicating()?;
    insert(2)?;
    expect("with extra and no_deletes", [2, 1, 1])?;
    one.exec(
        database,
        "DELETE FROM a WHERE id = 2; DELETE FROM b WHERE id = 2; DELETE FROM c WHERE id = 2",
    )?;
    expect("after deletes, which no_deletes does not send", [1, 0, 1])?;

    two.exec(
        database,
        &format!("SELECT ha.sub_remove_repset('{name}', 'extra')"),
    )?;
    cluster.wait_replicating()?;
    insert(3)?;
    expect("without extra", [2, 0, 2])?;

    disable(&cluster, one, two)?;
    insert(4)?;
    ensure!(count("a")? == 2, "a disabled subscription applied something");
    enable(&cluster, one, two)?;
    cluster.wait_replicating()?;
    expect("enabled again: what waited arrives", [3, 0, 3])?;

    // From the stream: what comes before stays, what comes after is not sent.
    one.exec(database, "INSERT INTO a VALUES (5)")?;
    one.exec(database, "SELECT ha.repset_remove_table('default', 'a')")?;
    one.exec(database, "INSERT INTO a VALUES (6)")?;
    expect("a removed from default", [4, 0, 3])?;
    one.exec(
        database,
        "SELECT ha.repset_add_table('default', 'a'); INSERT INTO a VALUES (7)",
    )?;
    expect("a back in default", [5, 0, 3])?;
    one.exec(
        database,
        "SELECT ha.repset_alter('default', replicate_insert => false); INSERT INTO a VALUES (8)",
    )?;
    one.exec(
        database,
        "SELECT ha.repset_alter('default', replicate_insert => true); INSERT INTO a VALUES (9)",
    )?;
    expect("inserts switched off for one row", [6, 0, 3])?;

    // In one transaction with changes: each is judged by what holds when it is made.
    one.exec(
        database,
        "BEGIN; INSERT INTO a VALUES (10); SELECT ha.repset_remove_table('default', 'a'); INSERT INTO a VALUES (11); COMMIT",
    )?;
    cluster.sync(1, 2)?;
    let ids = two.rows(database, "SELECT id FROM a WHERE id >= 10")?;
    ensure!(
        crate::sql::show(&ids) == "10",
        "of rows 10 and 11 only 10 came before the removal; n2 has {ids:?}"
    );

    // A table that n2 does not have, dropped and made again.
    cluster.everywhere("DROP TABLE b; CREATE TABLE b (id int PRIMARY KEY, v int, w int)")?;
    add_everywhere(&cluster, "default", &["b"])?;
    one.exec(database, "INSERT INTO b VALUES (1, 1, 1)")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["b"])
}

fn mesh_at_once(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["a"])?;
    let shared = &*cluster;
    let outcomes: Vec<Result<String>> = std::thread::scope(|scope| {
        let pairs = shared
            .pairs()
            .into_iter()
            .map(|(from, to)| (from.number, to.number));
        let running: Vec<_> = pairs
            .map(|(from, to)| scope.spawn(move || shared.subscribe(from, to)))
            .collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended
            .map(|outcome| outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
            .collect()
    });
    outcomes.into_iter().collect::<Result<Vec<String>>>()?;
    cluster.wait_replicating()?;
    for node in &cluster.nodes {
        node.exec(
            &cluster.database,
            &format!("INSERT INTO a VALUES ({0}, {0})", node.number),
        )?;
        let known = node.number(&cluster.database, "SELECT count(*) FROM ha.nodes")?;
        ensure!(known == 3, "{} knows {known} of 3 nodes", node.name);
    }
    cluster.sync_all()?;
    compare::identical(&cluster, &["a"])
}

fn drops(stage: &Stage) -> Result<()> {
    let cluster = stage.mesh(Plan::nodes(3), TABLES)?;
    add_everywhere(&cluster, "default", &["a"])?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let in_use = ["55006", "2BP01", "55000"];
    refused(one, database, "SELECT ha.node_drop('n1')", &in_use, &["n1"])?;
    refused(one, database, "SELECT ha.node_drop('n2')", &in_use, &["n2"])?;
    one.exec(database, "INSERT INTO a VALUES (1, 1)")?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["a"])?;

    // n3 leaves: its subscriptions, then those to it, then the others forget it.
    for (from, to) in cluster.pairs() {
        if from.number == 3 || to.number == 3 {
            let name = Cluster::subscription_name(from, to);
            let answer = to.text(database, &format!("SELECT ha.sub_drop('{name}')"))?;
            ensure!(answer == "t", "sub_drop('{name}') answered {answer}");
        }
    }
    for node in &cluster.nodes {
        let wanted = if node.number == 3 { 0 } else { 1 };
        wait::until(
            &format!("{} has {wanted} slots left", node.name),
            PATIENCE,
            || {
                let rows = node.rows(database, "SELECT slot_name, active FROM pg_replication_slots")?;
                Ok(Probe::when(rows.len() == wanted, crate::sql::show(&rows)))
            },
        )?;
    }
    for node in [one, two] {
        let answer = node.text(database, "SELECT ha.node_drop('n3')")?;
        ensure!(answer == "t", "{}: node_drop('n3') answered {answer}", node.name);
        let left = node.number(database, "SELECT count(*) FROM ha.nodes WHERE node_name = 'n3'")?;
        ensure!(left == 0, "{} still knows n3", node.name);
    }
    let three = cluster.node(3)?;
    for row in three.rows(database, "SELECT node_name FROM ha.nodes WHERE node_name <> 'n3'")? {
        let name = row[0].clone().context("node_name")?;
        three.exec(database, &format!("SELECT ha.node_drop('{name}')"))?;
    }
    three.exec(database, "SELECT ha.node_drop('n3')")?;
    three.exec(database, "DROP EXTENSION pg_ha")?;

    // The two that stay go on.
    one.exec(database, "INSERT INTO a VALUES (2, 2)")?;
    two.exec(database, "INSERT INTO a VALUES (3, 3)")?;
    cluster.sync(1, 2)?;
    cluster.sync(2, 1)?;
    let (left, right) = (
        one.number(database, "SELECT sum(id) FROM a")?,
        two.number(database, "SELECT sum(id) FROM a")?,
    );
    ensure!(
        left == 6 && right == 6,
        "rows 1, 2, 3 make 6; n1 has {left}, n2 {right}"
    );
    // And the one that left can come back.
    three.exec(database, "CREATE EXTENSION pg_ha")?;
    cluster.create_node(three)?;
    cluster.subscribe(1, 3)?;
    cluster.wait_status(three, "sub_n3_n1", "replicating")
}

/// n1 dies for good; another server takes its id. Its WAL begins far below where n1's was when n2 applied it.
fn rebuilt_node(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3))?;
    cluster.create_database()?;
    cluster.everywhere("CREATE EXTENSION pg_ha")?;
    cluster.everywhere(TABLES)?;
    let (one, two, three) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    let database = cluster.database.as_str();
    cluster.create_node(one)?;
    cluster.create_node(two)?;
    for node in [one, two] {
        node.exec(database, "SELECT ha.repset_add_table('default', 'a')")?;
    }
    let old = cluster.subscribe(1, 2)?;
    for id in 1..=3 {
        one.exec(database, &format!("INSERT INTO a VALUES ({id}, 1)"))?;
        one.exec(database, "SELECT pg_switch_wal()")?;
    }
    one.exec(database, "INSERT INTO a VALUES (4, 1)")?;
    cluster.sync(1, 2)?;
    let lsn = |sql: &str, node: &crate::node::Node| node.text(database, sql);
    let applied = lsn("SELECT max(remote_lsn) FROM pg_replication_origin_status", two)?;
    let below = lsn(&format!("SELECT pg_current_wal_lsn() < '{applied}'"), three)?;
    ensure!(
        below == "t",
        "n3's WAL must be below {applied} for this test to mean anything"
    );

    two.exec(database, &format!("SELECT ha.sub_drop('{old}')"))?;
    two.exec(database, "SELECT ha.node_drop('n1')")?;
    let dsn = literal(&three.dsn(database));
    three.exec(
        database,
        &format!("SELECT ha.node_create('n3', {dsn}, node_id => 1)"),
    )?;
    three.exec(database, "SELECT ha.repset_add_table('default', 'a')")?;
    cluster.subscribe(3, 2)?;
    three.exec(database, "INSERT INTO a VALUES (5, 5)")?;
    cluster.sync(3, 2)?;
    let rows = two.text(database, "SELECT string_agg(id::text, ',' ORDER BY id) FROM a")?;
    ensure!(rows == "1,2,3,4,5", "n2 has the rows {rows}, wanted 1 to 5");
    let origins = two.text(
        database,
        "SELECT count(*)::text FROM ha.origin_ids WHERE node_id = 1",
    )?;
    ensure!(
        origins == "2",
        "n2 knows {origins} origins under id 1, wanted one for each server"
    );
    Ok(())
}
