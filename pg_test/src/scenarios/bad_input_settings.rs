//! Failure story: a setting that replication needs is missing, and the user finds out hours later from a log line of
//! some worker, instead of at once from one sentence that says what to set.

use anyhow::Result;

use super::support::{inventory, left_nothing, refused};
use crate::cluster::Plan;
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::sql::literal;

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "bad_input_settings",
    story: "a missing server setting shows up hours later in a log instead of at once in an error with the line to add",
    run,
    needs: &[],
    stock: false,
    weight: 1,
}];

/// object_not_in_prerequisite_state: the server is not set up for this.
const NOT_READY: &[&str] = &["55000"];

fn run(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_database()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();

    reconfigure(two, &[("shared_preload_libraries", "")])?;
    refused(
        two,
        database,
        "CREATE EXTENSION pg_ha",
        NOT_READY,
        &["shared_preload_libraries", "pg_ha"],
    )?;
    reconfigure(two, &[("shared_preload_libraries", "pg_ha")])?;

    cluster.everywhere("CREATE EXTENSION pg_ha")?;
    cluster.create_node(one)?;
    let create = format!("SELECT ha.node_create('n2', {})", literal(&two.dsn(database)));
    let subscribe = format!("SELECT ha.sub_create('s', {})", literal(&one.dsn(database)));
    let mut unfit = vec![
        ("wal_level", "replica", "logical"),
        ("track_commit_timestamp", "off", "on"),
    ];
    if stage.install.knows("output_plugin_libraries") {
        unfit.push((
            "output_plugin_libraries",
            "pgoutput, test_decoding",
            "pgoutput, test_decoding, pg_ha",
        ));
    }

    // A server that is unfit does not become a node.
    let before = inventory(two, database)?;
    for (setting, wrong, right) in &unfit {
        reconfigure(two, &[(setting, wrong)])?;
        refused(two, database, &create, NOT_READY, &[setting])?;
        left_nothing(two, database, &before)?;
        doctor_says(two, database, setting)?;
        reconfigure(two, &[(setting, right)])?;
    }
    refused(two, database, &subscribe, NOT_READY, &["node_create"])?;
    two.exec(database, &create)?;

    // A provider that has become unfit since is refused with nothing left on either side.
    let (before_one, before_two) = (inventory(one, database)?, inventory(two, database)?);
    for (setting, wrong, right) in &unfit {
        reconfigure(one, &[(setting, wrong)])?;
        refused(two, database, &subscribe, NOT_READY, &[setting])?;
        reconfigure(one, &[(setting, right)])?;
        left_nothing(one, database, &before_one)?;
        left_nothing(two, database, &before_two)?;
    }
    // No slot left to take on the provider.
    reconfigure(one, &[("max_replication_slots", "0")])?;
    refused(
        two,
        database,
        &subscribe,
        &["55000", "53400"],
        &["max_replication_slots"],
    )?;
    reconfigure(one, &[("max_replication_slots", "20")])?;
    left_nothing(two, database, &before_two)?;

    // The library taken away from a server that has a node already.
    reconfigure(two, &[("shared_preload_libraries", "")])?;
    refused(
        two,
        database,
        &subscribe,
        NOT_READY,
        &["shared_preload_libraries"],
    )?;
    reconfigure(two, &[("shared_preload_libraries", "pg_ha")])?;

    // And with everything right it works, so none of the above was refused for another reason.
    two.exec(database, &subscribe)?;
    cluster.wait_status(two, "s", "replicating")
}

fn reconfigure(node: &Node, settings: &[(&str, &str)]) -> Result<()> {
    node.configure(settings)?;
    node.restart()
}

/// ha.doctor() names the setting, what was found, what is wanted and what to do.
fn doctor_says(node: &Node, database: &str, setting: &str) -> Result<()> {
    let sql = format!(
        "SELECT check_name, found, wanted, hint FROM ha.doctor() WHERE NOT ok AND concat(check_name, hint, wanted) LIKE {}
            AND found <> '' AND wanted <> '' AND hint <> ''",
        literal(&format!("%{setting}%"))
    );
    let rows = node.rows(database, &sql)?;
    anyhow::ensure!(
        rows.len() == 1,
        "ha.doctor() on {} should have one complaint about {setting}: {rows:?}",
        node.name
    );
    Ok(())
}
