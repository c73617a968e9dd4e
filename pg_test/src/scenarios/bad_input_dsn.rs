//! Failure story: a connection string is wrong, and the answer is libpq's raw text, the password included; or half
//! of the node exists afterwards; or the call hangs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::support::{SECRET, inventory, left_nothing, no_secret_in_logs, refused};
use crate::cluster::Plan;
use crate::node::{Node, free_port};
use crate::scenario::{Scenario, Stage};
use crate::sql::literal;

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "bad_input_dsn",
    story: "a wrong connection string shows its password, hangs, or leaves half a node behind",
    run,
    needs: &[],
    stock: false,
    weight: 1,
}];

const HBA: &str = "local all all trust\nhost all link,bare,weak 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";

/// (what is wrong with it, connection string, SQLSTATEs, words in the answer)
type Wrong = (
    &'static str,
    String,
    &'static [&'static str],
    &'static [&'static str],
);

fn wrong_strings(database: &str, node: &Node) -> Result<Vec<Wrong>> {
    let (port, closed) = (node.port, free_port()?);
    let invalid: &[&str] = &["22023", "42601"];
    let unreachable: &[&str] = &["08001", "08006"];
    let denied: &[&str] = &["28P01", "28000", "08001", "08006", "42501"];
    let here = format!("host=127.0.0.1 port={port}");
    Ok(vec![
        (
            "does not parse",
            format!("host=127.0.0.1 password={SECRET} dbname"),
            invalid,
            &[],
        ),
        (
            "unknown option",
            format!("{here} dbname={database} password={SECRET} colour=red"),
            invalid,
            &["colour"],
        ),
        (
            "bad URI",
            format!("postgresql://u:{SECRET}@[::1/{database}"),
            invalid,
            &[],
        ),
        ("empty", String::new(), &["22023", "42601", "08001", "08006"], &[]),
        (
            "does not resolve",
            format!("host=no-such-host.invalid dbname={database} user=link password={SECRET}"),
            unreachable,
            &["no-such-host.invalid"],
        ),
        (
            "nobody listens",
            format!("host=127.0.0.1 port={closed} dbname={database} user=link password={SECRET}"),
            unreachable,
            &["refused"],
        ),
        (
            "packets vanish",
            format!("host=192.0.2.1 dbname={database} user=link password={SECRET} connect_timeout=2"),
            unreachable,
            &["192.0.2.1"],
        ),
        (
            "wrong password",
            format!("{here} dbname={database} user=link password={SECRET}x"),
            denied,
            &["authentication"],
        ),
        (
            "no such role",
            format!("{here} dbname={database} user=stranger"),
            denied,
            &["stranger"],
        ),
        (
            "no such database",
            format!("{here} dbname=nowhere user=postgres"),
            &["3D000", "08001", "08006"],
            &["nowhere"],
        ),
        (
            "a role without REPLICATION",
            format!("{here} dbname={database} user=weak password={SECRET}"),
            &["42501"],
            &["weak", "replication"],
        ),
        (
            "a role outside ha_replication",
            format!("{here} dbname={database} user=bare password={SECRET}"),
            &["42501"],
            &["bare", "ha_replication"],
        ),
    ])
}

fn run(stage: &Stage) -> Result<()> {
    let mut plan = Plan::nodes(3);
    for number in 1..=3 {
        plan = plan.node(number, |spec| spec.hba = Some(HBA.to_owned()));
    }
    let cluster = stage.cluster(plan)?;
    let (one, two, three) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    let database = cluster.database.as_str();
    cluster.create_database()?;
    cluster.everywhere("CREATE EXTENSION pg_ha")?;
    cluster.everywhere(&format!(
        "CREATE ROLE link LOGIN REPLICATION PASSWORD '{SECRET}' IN ROLE ha_replication;
         CREATE ROLE bare LOGIN REPLICATION PASSWORD '{SECRET}';
         CREATE ROLE weak LOGIN PASSWORD '{SECRET}' IN ROLE ha_replication"
    ))?;
    cluster.create_node(one)?;
    cluster.create_node(two)?;
    // The third server stays without a node: it is where node_create is refused.
    three.exec("postgres", "CREATE DATABASE other")?;

    let before = inventory(three, database)?;
    for (what, dsn, states, words) in wrong_strings(database, three)? {
        let statement = format!("SELECT ha.node_create('n3', {})", literal(&dsn));
        promptly(what, || {
            refused(three, database, &statement, states, words).map(drop)
        })?;
        left_nothing(three, database, &before)?;
    }
    let elsewhere: &[&str] = &["22023", "55000", "42710"];
    let lead_astray = [
        ("another server", one.dsn(database), "server"),
        ("another database", three.dsn("other"), "other"),
    ];
    for (what, dsn, word) in lead_astray {
        let statement = format!("SELECT ha.node_create('n3', {})", literal(&dsn));
        refused(three, database, &statement, elsewhere, &[word]).map_err(|error| error.context(what))?;
        left_nothing(three, database, &before)?;
    }

    let (before_one, before_two) = (inventory(one, database)?, inventory(two, database)?);
    let unchanged =
        || left_nothing(two, database, &before_two).and_then(|()| left_nothing(one, database, &before_one));
    for (what, dsn, states, words) in wrong_strings(database, one)? {
        let statement = format!("SELECT ha.sub_create('s', {})", literal(&dsn));
        promptly(what, || {
            refused(two, database, &statement, states, words).map(drop)
        })?;
        unchanged()?;
    }
    let statement = format!("SELECT ha.sub_create('s', {})", literal(&two.dsn(database)));
    refused(
        two,
        database,
        &statement,
        &["22023", "55000", "42710"],
        &["itself"],
    )?;
    unchanged()?;

    // The right string, to show that only what was wrong was refused.
    let dsn = format!(
        "host=127.0.0.1 port={} dbname={database} user=link password={SECRET}",
        one.port
    );
    let name = cluster.subscribe_through(&dsn, 1, 2)?;
    cluster.wait_status(two, &name, "replicating")?;
    no_secret_in_logs(&cluster)
}

const PROMPT: Duration = Duration::from_secs(20);

fn promptly(what: &str, call: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    call().map_err(|error| error.context(format!("a connection string: {what}")))?;
    let took = started.elapsed();
    ensure!(
        took < PROMPT,
        "a connection string ({what}) was refused only after {took:?}"
    );
    Ok(())
}
