//! Failure story: somebody drops the database or the extension, or a transaction around a call is rolled back; and
//! what is left is a slot that keeps WAL for ever, a worker in a restart loop, or a server that hangs.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::support::{inventory, left_nothing, left_nothing_within, refused, worker_lines};
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
        weight: 1,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "bad_input_rollback",
        "a rolled back sub_create leaves a slot, a rolled back sub_drop a dead subscription",
        rollback,
    ),
    scenario(
        "bad_input_rollback_crash",
        "a server that dies inside a transaction with sub_create leaves a slot on the provider, which keeps WAL for ever",
        crash,
    ),
    scenario(
        "bad_input_drop_database",
        "DROP DATABASE with subscriptions hangs, or leaves slots behind",
        drop_database,
    ),
    scenario(
        "bad_input_drop_extension",
        "DROP EXTENSION with subscriptions leaves slots behind and workers that fail for ever",
        drop_extension,
    ),
];

fn prepare(stage: &Stage) -> Result<Arc<Cluster>> {
    let cluster = stage.mesh(Plan::nodes(2), "CREATE TABLE t (id int PRIMARY KEY, v text)")?;
    super::support::add_everywhere(&cluster, "default", &["t"])?;
    still_replicates(&cluster, 1)?;
    Ok(cluster)
}

fn still_replicates(cluster: &Cluster, id: i32) -> Result<()> {
    cluster.wait_replicating()?;
    cluster
        .node(1)?
        .exec(&cluster.database, &format!("INSERT INTO t VALUES ({id}, 'n1')"))?;
    cluster
        .node(2)?
        .exec(&cluster.database, &format!("INSERT INTO t VALUES (-{id}, 'n2')"))?;
    cluster.sync_all()?;
    compare::identical(cluster, &["t"])
}

fn rollback(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_database()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    cluster.everywhere("CREATE EXTENSION pg_ha; CREATE TABLE t (id int PRIMARY KEY, v text)")?;
    let create = format!("SELECT ha.node_create('n2', {})", literal(&two.dsn(database)));
    let empty = inventory(two, database)?;
    two.exec(database, &format!("BEGIN; {create}; ROLLBACK"))?;
    left_nothing(two, database, &empty)?;
    for node in &cluster.nodes {
        cluster.create_node(node)?;
        node.exec(database, "SELECT ha.repset_add_table('default', 't')")?;
    }

    let (before_one, before_two) = (inventory(one, database)?, inventory(two, database)?);
    let unchanged =
        || left_nothing(one, database, &before_one).and_then(|()| left_nothing(two, database, &before_two));
    let subscribe = format!(
        "SELECT ha.sub_create('sub_n2_n1', {})",
        literal(&one.dsn(database))
    );
    two.exec(database, &format!("BEGIN; {subscribe}; ROLLBACK"))?;
    unchanged()?;
    two.exec(
        database,
        &format!("BEGIN; SAVEPOINT s; {subscribe}; ROLLBACK TO s; COMMIT"),
    )?;
    unchanged()?;
    let Err(error) = two.exec(database, &format!("BEGIN; {subscribe}; SELECT 1/0; COMMIT")) else {
        bail!("1/0 did not fail");
    };
    ensure!(
        sql::refusal(&error).is_some_and(|r| r.sqlstate == "22012"),
        "the wrong error: {error:#}"
    );
    unchanged()?;
    // The session dies with the transaction open.
    let mut session = two.session(database)?;
    session.exec(&format!("BEGIN; {subscribe}"))?;
    let pid = session.text("SELECT pg_backend_pid()")?;
    two.exec(database, &format!("SELECT pg_terminate_backend({pid})"))?;
    unchanged()?;
    two.exec(database, &format!("BEGIN; {subscribe}; COMMIT"))?;
    cluster.subscribe(2, 1)?;
    still_replicates(&cluster, 1)?;
    two.exec(database, "BEGIN; SELECT ha.sub_drop('sub_n2_n1'); ROLLBACK")?;
    two.exec(database, "BEGIN; SELECT ha.sub_disable('sub_n2_n1'); ROLLBACK")?;
    still_replicates(&cluster, 2)
}

fn crash(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let (before_one, before_two) = (
        inventory(one, &cluster.database)?,
        inventory(two, &cluster.database)?,
    );
    let mut session = two.session(&cluster.database)?;
    session.exec(&format!(
        "BEGIN; SELECT ha.sub_create('sub_n2_n1', {})",
        literal(&one.dsn(&cluster.database))
    ))?;
    two.kill_server()?;
    two.start()?;
    left_nothing(two, &cluster.database, &before_two)?;
    // What n2 had noted before it died is undone in the background.
    left_nothing_within(one, &cluster.database, &before_one, PATIENCE)
}

fn drop_database(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    for (round, force) in ["", " WITH (FORCE)"].into_iter().enumerate() {
        let statement = format!("DROP DATABASE {}{force}", cluster.database);
        match two.exec("postgres", &statement) {
            // Carried through: then nothing of it may be left on the provider.
            Ok(()) => return no_slots(one, &cluster),
            Err(_) => {
                refused(
                    two,
                    "postgres",
                    &statement,
                    &["55006", "2BP01", "55000"],
                    &["sub_drop"],
                )?;
                still_replicates(&cluster, 10 + i32::try_from(round)?)?;
            }
        }
    }
    // The way out that the hint gave.
    way_out(&cluster)?;
    two.exec("postgres", &format!("DROP DATABASE {}", cluster.database))?;
    quiet(two)
}

fn drop_extension(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    for (round, cascade) in ["", " CASCADE"].into_iter().enumerate() {
        let statement = format!("DROP EXTENSION pg_ha{cascade}");
        match two.exec(&cluster.database, &statement) {
            Ok(()) => {
                no_slots(one, &cluster)?;
                return quiet(two);
            }
            Err(_) => {
                refused(
                    two,
                    &cluster.database,
                    &statement,
                    &["55006", "2BP01", "55000"],
                    &["sub_drop"],
                )?;
                still_replicates(&cluster, 10 + i32::try_from(round)?)?;
            }
        }
    }
    way_out(&cluster)?;
    two.exec(&cluster.database, "DROP EXTENSION pg_ha")?;
    quiet(two)?;
    two.exec(&cluster.database, "CREATE EXTENSION pg_ha")?;
    cluster.create_node(two)
}

/// Both directions end, and so does the node.
fn way_out(cluster: &Cluster) -> Result<()> {
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    two.exec(&cluster.database, "SELECT ha.sub_drop('sub_n2_n1')")?;
    one.exec(&cluster.database, "SELECT ha.sub_drop('sub_n1_n2')")?;
    no_slots(one, cluster)?;
    no_slots(two, cluster)?;
    one.exec(&cluster.database, "SELECT ha.node_drop('n2')")?;
    two.exec(
        &cluster.database,
        "SELECT ha.node_drop('n1'); SELECT ha.node_drop('n2')",
    )
}

fn no_slots(node: &Node, cluster: &Cluster) -> Result<()> {
    wait::until(&format!("{} has no slot left", node.name), PATIENCE, || {
        let rows = node.rows(
            &cluster.database,
            "SELECT slot_name, active FROM pg_replication_slots",
        )?;
        Ok(Probe::when(rows.is_empty(), sql::show(&rows)))
    })
}

/// No worker fails again and again over something that is gone.
fn quiet(node: &Node) -> Result<()> {
    let since = node.log_position();
    wait::holds("the log stays quiet", std::time::Duration::from_secs(4), || {
        let lines = worker_lines(node, since)?;
        ensure!(
            lines.len() <= 3,
            "{} lines from pg_ha's workers:\n{}",
            lines.len(),
            lines.join("\n")
        );
        Ok(())
    })
}
