//! Failure story: somebody with a schema for each customer puts all of it into one set, and what took seconds with a
//! thousand tables takes hours with ten thousand: each table, each change, each look at a view costs as much as all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::support::wait_no_lag;
use crate::cluster::{Cluster, Plan};
use crate::node::Node;
use crate::scenario::{Scenario, Stage};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "many_tables",
    story: "with 10,000 tables in a set, adding, changing, looking and removing cost much more for each than with 1,000",
    run,
    needs: &[],
    stock: false,
    weight: 2,
}];

const FEW: usize = 1_000;
const MANY: usize = 10_000;

/// What is linear costs ten times as much, and what is quadratic a hundred times. Caches that are too small for many
/// tables account for the rest.
const FACTOR: f64 = 20.0;
/// What is less is mostly noise.
const NOISE: Duration = Duration::from_millis(50);

/// The steps, with the processor time that each took on both servers: unlike the clock's, it does not depend on what
/// else the machine does.
type Times = Vec<(&'static str, Duration)>;

fn run(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2)
        .with("ha.max_tracked_tables", "512")
        .with("max_locks_per_transaction", "512")
        .with("shared_buffers", "400MB")
        .with("fsync", "off")
        .with("autovacuum", "off");
    let cluster = stage.cluster(plan)?;
    cluster.create_nodes()?;
    let few = measure(&cluster, "few", FEW).context("with few tables")?;
    let many = measure(&cluster, "many", MANY).context("with many tables")?;
    let mut told = String::new();
    let mut complaints = Vec::new();
    for ((step, few), (_, many)) in few.iter().zip(&many) {
        told.push_str(&format!(
            "{step}: {:.3} s with {FEW}, {:.3} s with {MANY}\n",
            few.as_secs_f64(),
            many.as_secs_f64()
        ));
        if many.as_secs_f64() > FACTOR * few.max(&NOISE).as_secs_f64() {
            complaints.push(*step);
        }
    }
    ensure!(
        complaints.is_empty(),
        "more than linear: {}\n{told}",
        complaints.join("; ")
    );
    Ok(())
}

/// Tables of a schema of that name, from beginning to end.
fn measure(cluster: &Cluster, schema: &str, count: usize) -> Result<Times> {
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    cluster.on_all(|node| {
        let mut session = node.session(database)?;
        session.exec(&format!("CREATE SCHEMA {schema}"))?;
        for first in (0..count).step_by(500) {
            session.exec(&format!(
                "DO $$ BEGIN FOR g IN {first} .. {} LOOP
                    EXECUTE 'CREATE TABLE {schema}.t' || g || ' (id int PRIMARY KEY, n int)'; END LOOP; END $$",
                (first + 499).min(count - 1)
            ))?;
        }
        Ok(())
    })?;
    let mut times = Times::new();
    let mut timed = |what: &'static str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        // Of what a session does, only calls of ha.* are of interest, not what the server needs for so many tables.
        let whole = !["change", "truncating", "transaction"]
            .iter()
            .any(|word| what.contains(word));
        let used = || -> Result<Duration> {
            if whole {
                return Ok(one.processor_time()? + two.processor_time()?);
            }
            Ok(one.replication_time()? + two.replication_time()?)
        };
        let before = used()?;
        work().context(what)?;
        times.push((what, used()?.saturating_sub(before)));
        Ok(())
    };
    // In pieces, so that no statement takes longer than a session of the harness allows.
    let change = |statement: &str, tables: usize| -> Result<()> {
        let mut session = one.session(database)?;
        session.exec("SET synchronous_commit = off")?;
        for first in (0..tables).step_by(500) {
            session.exec(&format!(
                "DO $$ BEGIN FOR g IN {first} .. {} LOOP EXECUTE format($f${statement}$f$, '{schema}.t' || g); END LOOP; END $$",
                (first + 499).min(tables - 1)
            ))?;
        }
        cluster.sync(1, 2)
    };
    timed("adding all tables to a set", &|| {
        one.exec(
            database,
            &format!("SELECT ha.repset_add_all_tables('default', '{{{schema}}}')"),
        )
    })?;
    timed("subscribing", &|| {
        cluster.subscribe(1, 2)?;
        cluster.wait_replicating()
    })?;
    timed("the first change of every table", &|| {
        change("INSERT INTO %s VALUES (1, 0), (2, 0)", count)
    })?;
    timed("the second change of every table", &|| {
        change("UPDATE %s SET n = n + 1", count)
    })?;
    timed("all tables in one transaction", &|| {
        let piece = format!(
            "DO $$ BEGIN FOR g IN 0 .. {} LOOP EXECUTE format('DELETE FROM {schema}.t%s WHERE id = 2', g); END LOOP; END $$",
            count - 1
        );
        one.exec(database, &piece)?;
        cluster.sync(1, 2)
    })?;
    timed("a hundred tables altered and changed", &|| {
        for node in [two, one] {
            alter(node, database, schema, "ADD more int")?;
        }
        change("UPDATE %s SET more = 1", 100)
    })?;
    let list: Vec<String> = (0..count).map(|number| format!("{schema}.t{number}")).collect();
    timed("truncating them all", &|| {
        one.exec(database, &format!("TRUNCATE {}", list.join(", ")))?;
        cluster.sync(1, 2)
    })?;
    timed("looking at the views", &|| {
        for view in [
            "ha.status",
            "ha.status_subscriptions",
            "ha.status_tables",
            "ha.copied_tables",
            "ha.sub_show_status()",
        ] {
            cluster.on_all(|node| node.rows(database, &format!("SELECT * FROM {view}")).map(drop))?;
        }
        Ok(())
    })?;
    timed("taking a hundred tables out of the set", &|| {
        let sql = format!(
            "SELECT ha.repset_remove_table('default', to_regclass('{schema}.t' || g)) FROM generate_series(0, 99) AS g"
        );
        one.exec(database, &sql)?;
        change("INSERT INTO %s VALUES (3, 0)", 200)
    })?;
    let arrived = two.number(
        database,
        &format!("SELECT (SELECT count(*) FROM {schema}.t0) * 10 + (SELECT count(*) FROM {schema}.t150)"),
    )?;
    ensure!(arrived == 1, "t0 and t150 have {arrived:02} rows");
    wait_no_lag(cluster)?;
    timed("dropping all tables", &|| {
        let mut session = one.session(database)?;
        for first in (0..count).step_by(500) {
            session.exec(&format!(
                "DO $$ BEGIN FOR g IN {first} .. {} LOOP EXECUTE 'DROP TABLE {schema}.t' || g; END LOOP; END $$",
                (first + 499).min(count - 1)
            ))?;
        }
        cluster.sync(1, 2)
    })?;
    timed("dropping the subscription", &|| {
        two.exec(database, "SELECT ha.sub_drop('sub_n2_n1')")
    })?;
    Ok(times)
}

fn alter(node: &Node, database: &str, schema: &str, change: &str) -> Result<()> {
    node.exec(
        database,
        &format!("DO $$ BEGIN FOR g IN 0 .. 99 LOOP EXECUTE 'ALTER TABLE {schema}.t' || g || ' {change}'; END LOOP; END $$"),
    )
}
