//! Failure story: two nodes with one name or number, a table that cannot be replicated, a name that does not exist:
//! accepted at first, and found out when the data is already wrong.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::support::{inventory, left_nothing, refused};
use crate::cluster::{Cluster, Plan};
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::sql::literal;

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
        "bad_input_names",
        "two nodes bear one name or number, here or through a third node, and changes are mixed up",
        names,
    ),
    scenario(
        "bad_input_provider",
        "a provider without the extension, or with another version of it, is accepted",
        provider,
    ),
    scenario(
        "bad_input_relations",
        "a relation that cannot be replicated is accepted, and never is",
        relations,
    ),
    scenario(
        "bad_input_drops",
        "a misspelled name in a drop is taken for success",
        drops,
    ),
    scenario(
        "bad_input_later",
        "an argument whose feature does not exist yet is accepted and ignored",
        not_yet,
    ),
];

const TAKEN: &[&str] = &["42710", "23505"];
const INVALID: &[&str] = &["22023", "22003", "42602"];
const MISSING: &[&str] = &["42704", "42P01"];

/// Refused, and nothing is left of it.
fn refused_cleanly(
    node: &Node,
    database: &str,
    statement: &str,
    states: &[&str],
    words: &[&str],
) -> Result<()> {
    let before = inventory(node, database)?;
    refused(node, database, statement, states, words)?;
    left_nothing(node, database, &before)
}

fn with_extension(stage: &Stage, nodes: usize) -> Result<Arc<Cluster>> {
    let cluster = stage.cluster(Plan::nodes(nodes))?;
    cluster.create_database()?;
    cluster.everywhere("CREATE EXTENSION pg_ha")?;
    Ok(cluster)
}

fn names(stage: &Stage) -> Result<()> {
    let cluster = with_extension(stage, 3)?;
    let (one, two, three) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    let database = cluster.database.as_str();
    let create = |node: &Node, arguments: &str| {
        let (name, rest) = arguments.split_once('|').unwrap_or((arguments, ""));
        format!(
            "SELECT ha.node_create({}, {}{rest})",
            literal(name),
            literal(&node.dsn(database))
        )
    };
    for id in ["0", "1024", "-1"] {
        let statement = create(one, &format!("n1|, node_id => {id}"));
        refused_cleanly(one, database, &statement, INVALID, &[id])?;
    }
    refused_cleanly(one, database, &create(one, ""), INVALID, &["name"])?;
    one.exec(database, &create(one, "n1"))?;
    // Once a node, not a second one: neither here nor in another database of the server.
    refused_cleanly(one, database, &create(one, "again"), TAKEN, &["n1"])?;
    one.exec("postgres", "CREATE DATABASE second")?;
    one.exec("second", "CREATE EXTENSION pg_ha")?;
    let elsewhere = format!("SELECT ha.node_create('again', {})", literal(&one.dsn("second")));
    refused(one, "second", &elsewhere, &["42710", "55000"], &["n1", database])?;

    // n2 takes the number, then the name, of n1; they find out when they meet.
    let subscribe = |to: &Node| format!("SELECT ha.sub_create('s', {})", literal(&to.dsn(database)));
    two.exec(database, &create(two, "n2|, node_id => 1"))?;
    refused_cleanly(two, database, &subscribe(one), TAKEN, &["node_id"])?;
    two.exec(database, "SELECT ha.node_drop('n2')")?;
    two.exec(database, &create(two, "n1|, node_id => 2"))?;
    refused_cleanly(two, database, &subscribe(one), TAKEN, &["n1"])?;
    two.exec(database, "SELECT ha.node_drop('n1')")?;
    two.exec(database, &create(two, "n2"))?;
    two.exec(database, &subscribe(one))?;
    cluster.wait_status(two, "s", "replicating")?;
    refused_cleanly(two, database, &subscribe(one), TAKEN, &["s"])?;
    let twice = format!("SELECT ha.sub_create('other', {})", literal(&one.dsn(database)));
    refused_cleanly(two, database, &twice, TAKEN, &["n1"])?;

    // n3 has n2's number, and learns of n2 only through n1.
    three.exec(database, &create(three, "n3|, node_id => 2"))?;
    let before = inventory(one, database)?;
    refused_cleanly(three, database, &subscribe(one), TAKEN, &["n2", "node_id"])?;
    left_nothing(one, database, &before)?;
    three.exec(database, "SELECT ha.node_drop('n3')")?;
    three.exec(database, &create(three, "n2|, node_id => 3"))?;
    refused_cleanly(three, database, &subscribe(one), TAKEN, &["n2"])?;
    left_nothing(one, database, &before)?;
    three.exec(database, "SELECT ha.node_drop('n2')")?;
    three.exec(database, &create(three, "n3"))?;
    three.exec(database, &subscribe(one))?;
    cluster.wait_status(three, "s", "replicating")?;
    // Sets that the provider does not have.
    three.exec(database, "SELECT ha.sub_drop('s')")?;
    let unknown = format!(
        "SELECT ha.sub_create('s', {}, '{{default,nonsense}}')",
        literal(&one.dsn(database))
    );
    refused_cleanly(three, database, &unknown, MISSING, &["nonsense"])
}

fn provider(stage: &Stage) -> Result<()> {
    let cluster = with_extension(stage, 2)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    cluster.create_node(two)?;
    let subscribe = format!("SELECT ha.sub_create('s', {})", literal(&one.dsn(database)));
    let not_ready = ["55000", "0A000"];
    one.exec("postgres", "CREATE DATABASE plain")?;
    let plain = format!("SELECT ha.sub_create('s', {})", literal(&one.dsn("plain")));
    refused_cleanly(two, database, &plain, &not_ready, &["extension"])?;
    refused_cleanly(two, database, &subscribe, &not_ready, &["node_create"])?;

    cluster.create_node(one)?;
    let before = inventory(one, database)?;
    // As if a later release had answered: ha.node_exchange is what nodes introduce themselves with.
    one.exec(
        database,
        "ALTER EXTENSION pg_ha DROP FUNCTION ha.node_exchange(jsonb);
         ALTER FUNCTION ha.node_exchange(jsonb) RENAME TO node_exchange_real;
         CREATE FUNCTION ha.node_exchange(nodes jsonb) RETURNS jsonb LANGUAGE sql AS
             $$ SELECT ha.node_exchange_real(nodes)
                    || '{\"protocol_min\": 99, \"protocol_max\": 99, \"extension_version\": \"99.0\"}' $$",
    )?;
    refused_cleanly(two, database, &subscribe, &not_ready, &["99"])?;
    one.exec(
        database,
        "DROP FUNCTION ha.node_exchange(jsonb);
         ALTER FUNCTION ha.node_exchange_real(jsonb) RENAME TO node_exchange;
         ALTER EXTENSION pg_ha ADD FUNCTION ha.node_exchange(jsonb)",
    )?;
    left_nothing(one, database, &before)?;
    two.exec(database, &subscribe)?;
    cluster.wait_status(two, "s", "replicating")
}

fn relations(stage: &Stage) -> Result<()> {
    let cluster = with_extension(stage, 1)?;
    let node = cluster.node(1)?;
    let database = cluster.database.as_str();
    cluster.create_node(node)?;
    node.exec(
        database,
        "CREATE UNLOGGED TABLE an_unlogged (id int PRIMARY KEY); CREATE VIEW a_view AS SELECT 1 AS id;
         CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS id; CREATE SEQUENCE a_sequence;
         CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
         CREATE FOREIGN TABLE a_foreign (id int) SERVER s; CREATE TABLE fine (id int PRIMARY KEY);
         CREATE TYPE a_type AS (id int)",
    )?;
    let wrong_kind: &[&str] = &["42809", "0A000", "22023"];
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("an_unlogged", wrong_kind, &["an_unlogged", "unlogged"]),
        ("a_view", wrong_kind, &["a_view", "view"]),
        ("a_matview", wrong_kind, &["a_matview", "view"]),
        ("a_sequence", wrong_kind, &["a_sequence", "sequence"]),
        ("a_foreign", wrong_kind, &["a_foreign", "foreign"]),
        ("fine_pkey", wrong_kind, &["fine_pkey", "index"]),
        ("a_type", wrong_kind, &["a_type"]),
        (
            "pg_catalog.pg_class",
            &["42809", "0A000", "22023", "42501"],
            &["pg_class", "catalog"],
        ),
        (
            "ha.replication_sets",
            &["42809", "0A000", "22023", "42501"],
            &["replication_sets"],
        ),
    ];
    for (relation, states, words) in cases {
        let statement = format!("SELECT ha.repset_add_table('default', '{relation}')");
        refused_cleanly(node, database, &statement, states, words)?;
    }
    let temporary = "CREATE TEMPORARY TABLE a_temporary (id int PRIMARY KEY); SELECT ha.repset_add_table('default', 'a_temporary')";
    refused(
        node,
        database,
        temporary,
        wrong_kind,
        &["a_temporary", "temporary"],
    )?;
    // What the cast to regclass refuses is PostgreSQL's own answer; an oid reaches us.
    refused_cleanly(
        node,
        database,
        "SELECT ha.repset_add_table('default', 4000000000::oid::regclass)",
        &["42P01"],
        &[],
    )?;
    refused_cleanly(
        node,
        database,
        "SELECT ha.repset_add_table('nonsense', 'fine')",
        MISSING,
        &["nonsense"],
    )?;
    node.exec(database, "SELECT ha.repset_add_table('default', 'fine')")?;
    refused_cleanly(
        node,
        database,
        "SELECT ha.repset_add_table('default', 'fine')",
        &["42710"],
        &["fine"],
    )?;
    // A pattern leaves out what cannot be replicated, and says so row by row.
    let rows = node.rows(
        database,
        "SELECT relation, set_name, reason FROM ha.repset_add_tables('default', 'a*')",
    )?;
    let silent = rows
        .iter()
        .find(|row| row[1].is_some() || row[2].as_deref().unwrap_or("").is_empty());
    ensure!(
        silent.is_none(),
        "no relation like a* can be replicated, but: {}",
        crate::sql::show(&rows)
    );
    let count = node.number(database, "SELECT count(*) FROM ha.replication_set_tables")?;
    ensure!(
        count == 1,
        "one table was added, ha.replication_set_tables has {count}"
    );
    Ok(())
}

fn drops(stage: &Stage) -> Result<()> {
    let cluster = with_extension(stage, 1)?;
    let node = cluster.node(1)?;
    let database = cluster.database.as_str();
    cluster.create_node(node)?;
    node.exec(database, "CREATE TABLE fine (id int PRIMARY KEY)")?;
    for statement in [
        "SELECT ha.node_drop('nonsense')",
        "SELECT ha.node_set('nonsense', 'region', 'x')",
        "SELECT ha.repset_drop('nonsense')",
        "SELECT ha.repset_alter('nonsense', replicate_insert => false)",
        "SELECT ha.sub_drop('nonsense')",
        "SELECT ha.sub_enable('nonsense')",
        "SELECT ha.sub_disable('nonsense')",
        "SELECT ha.sub_add_repset('nonsense', 'default')",
        "SELECT ha.sub_remove_repset('nonsense', 'default')",
        "SELECT ha.wait_for_sync_event('nonsense', '0/1', '1 s')",
        "SELECT ha.repset_remove_table('nonsense', 'fine')",
    ] {
        refused_cleanly(node, database, statement, MISSING, &["nonsense"])?;
    }
    refused_cleanly(
        node,
        database,
        "SELECT ha.repset_remove_table('default', 'fine')",
        MISSING,
        &["fine"],
    )?;
    refused_cleanly(
        node,
        database,
        "SELECT ha.repset_drop('default')",
        &["55000", "2BP01", "42501", "42939"],
        &["default"],
    )?;
    refused_cleanly(
        node,
        database,
        "SELECT ha.repset_create('default')",
        TAKEN,
        &["default"],
    )?;
    for function in ["node_drop", "repset_drop", "sub_drop"] {
        let answer = node.text(
            database,
            &format!("SELECT ha.{function}('nonsense', if_exists => true)"),
        )?;
        ensure!(
            answer == "f",
            "ha.{function}('nonsense', if_exists => true) answered {answer} instead of false"
        );
    }
    Ok(())
}

fn not_yet(stage: &Stage) -> Result<()> {
    let cluster = with_extension(stage, 2)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    cluster.create_node(one)?;
    cluster.create_node(two)?;
    one.exec(database, "CREATE TABLE fine (id int PRIMARY KEY, v int)")?;
    let dsn = literal(&two.dsn(database));
    for (statement, word) in [
        (format!("SELECT ha.standby_create('s', {dsn})"), "standby_create"),
        (format!("SELECT ha.witness_create('s', {dsn})"), "witness_create"),
    ] {
        refused_cleanly(one, database, &statement, &["0A000"], &[word])?;
        let count = two.number(database, "SELECT count(*) FROM pg_replication_slots")?;
        ensure!(count == 0, "{statement} left a slot on n2");
    }
    Ok(())
}
