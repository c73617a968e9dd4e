//! Failure story: a subscriber takes over, and its sequences give numbers that the provider has given already.

use anyhow::{Result, ensure};

use super::support::refused;
use crate::cluster::{Cluster, Plan};
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
        weight: 2,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "sequences_take_over",
        "a subscriber that takes over gives numbers that the provider gave already",
        take_over,
    ),
    scenario(
        "sequences_mended",
        "a sequence that a subscriber lacks is passed over without a word, or stops the stream for good",
        mended,
    ),
    scenario(
        "sequences_late",
        "a subscription that copies no rows, or gets a set later, gives numbers again that its provider has given",
        late,
    ),
];

fn last_value(node: &Node, database: &str, sequence: &str) -> Result<i64> {
    node.number(
        database,
        &format!(
            "SELECT coalesce(pg_sequence_last_value({}), 0)",
            literal(sequence)
        ),
    )
}

/// Until the subscriber's sequence is beyond the provider's.
fn wait_ahead(first: &Node, second: &Node, database: &str, sequence: &str) -> Result<()> {
    wait::until(
        &format!("{sequence} is ahead on {}", second.name),
        PATIENCE,
        || {
            let (there, here) = (
                last_value(first, database, sequence)?,
                last_value(second, database, sequence)?,
            );
            Ok(Probe::when(here >= there, format!("{here} here, {there} there")))
        },
    )
}

fn take_over(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    let db = &cluster.database;
    first.exec(
        db,
        "CREATE TABLE orders (id bigserial PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text);
         CREATE SEQUENCE tickets; CREATE SEQUENCE down INCREMENT -1;
         INSERT INTO orders (v) SELECT 'before' FROM generate_series(1, 500);
         SELECT nextval('tickets') FROM generate_series(1, 5000);
         SELECT nextval('down') FROM generate_series(1, 300);
         SELECT ha.repset_add_all_tables('default', '{public}');
         SELECT ha.repset_add_seq('default', 'tickets'), ha.repset_add_seq('default', 'down', true)",
    )?;
    let name = Cluster::subscription_name(first, second);
    second.exec(
        db,
        &format!(
            "SELECT ha.sub_create({}, {}, synchronize_structure => true, synchronize_data => true)",
            literal(&name),
            literal(&first.dsn(db))
        ),
    )?;
    second.exec(db, &format!("SELECT ha.sub_wait_for_sync({})", literal(&name)))?;
    // At once, also those that columns draw from, which nobody added.
    for sequence in ["tickets", "orders_id_seq", "orders_n_seq"] {
        let (there, here) = (
            last_value(first, db, sequence)?,
            last_value(second, db, sequence)?,
        );
        ensure!(
            here >= there,
            "{sequence} is {here} on the subscriber, {there} on the provider"
        );
    }
    ensure!(last_value(second, db, "down")? <= last_value(first, db, "down")?);
    second.exec(
        db,
        "BEGIN; INSERT INTO orders (v) VALUES ('a number of its own'); ROLLBACK",
    )?;

    // As it is used, and faster than the buffer.
    first.exec(db, "SELECT nextval('tickets') FROM generate_series(1, 800)")?;
    wait_ahead(first, second, db, "tickets")?;
    first.exec(db, "SELECT nextval('tickets') FROM generate_series(1, 50000)")?;
    wait_ahead(first, second, db, "tickets")?;
    // Now, in order with the changes.
    first.exec(
        db,
        "SELECT nextval('tickets') FROM generate_series(1, 20000); SELECT nextval('down') FROM generate_series(1, 20000);
         SELECT ha.sync_seq('tickets'), ha.sync_seq('down')",
    )?;
    cluster.sync(1, 2)?;
    let (there, here) = (
        last_value(first, db, "tickets")?,
        last_value(second, db, "tickets")?,
    );
    ensure!(
        here > there,
        "after sync_seq tickets is {here}, on the provider {there}"
    );
    ensure!(last_value(second, db, "down")? < last_value(first, db, "down")?);
    // What is taken here stays.
    second.exec(db, "SELECT setval('tickets', 900000)")?;
    first.exec(db, "SELECT ha.sync_seq('tickets')")?;
    cluster.sync(1, 2)?;
    ensure!(
        last_value(second, db, "tickets")? == 900_000,
        "a sequence was set back"
    );
    // Restarted there and here, it is told anew.
    first.exec(
        db,
        "SELECT ha.repset_add_seq('default', 'orders_id_seq', true); TRUNCATE orders RESTART IDENTITY;
         INSERT INTO orders (v) VALUES ('after')",
    )?;
    cluster.sync(1, 2)?;
    wait_ahead(first, second, db, "orders_id_seq")?;

    // A subscription back does not let the two drive each other on.
    second.exec(db, "SELECT ha.repset_add_seq('default', 'tickets')")?;
    cluster.subscribe(2, 1)?;
    cluster.wait_replicating()?;
    first.exec(db, "SELECT nextval('tickets'), ha.sync_seq('tickets')")?;
    second.exec(db, "SELECT nextval('tickets'), ha.sync_seq('tickets')")?;
    cluster.sync_all()?;
    let told = "SELECT max(greatest(told_value, received_value)) FROM ha.status_sequences WHERE relation = 'tickets'::regclass";
    let before = (first.number(db, told)?, second.number(db, told)?);
    // Both look at their sequences every five seconds: past the next look of each.
    wait::let_run(std::time::Duration::from_secs(11))?;
    cluster.sync_all()?;
    let after = (first.number(db, told)?, second.number(db, told)?);
    ensure!(
        before == after,
        "two idle nodes told each other {before:?}, then {after:?}"
    );
    Ok(())
}

fn mended(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    let db = &cluster.database;
    cluster.everywhere("CREATE TABLE t (id int PRIMARY KEY); SELECT ha.repset_add_table('default', 't')")?;
    first.exec(
        db,
        "CREATE SEQUENCE missing; CREATE SEQUENCE turned; CREATE SEQUENCE large;
         SELECT nextval('missing'), nextval('turned'), setval('large', 100000);
         SELECT ha.repset_add_seq('default', 'missing')",
    )?;
    let name = Cluster::subscription_name(first, second);
    let create = format!(
        "SELECT ha.sub_create({}, {}, synchronize_data => true)",
        literal(&name),
        literal(&first.dsn(db))
    );
    refused(second, db, &create, &["55000"], &["missing", "does not exist"])?;
    second.exec(db, "CREATE SEQUENCE missing")?;
    second.exec(db, &create)?;
    cluster.wait_replicating()?;

    second.exec(
        db,
        "CREATE SEQUENCE turned INCREMENT -1; CREATE SEQUENCE large AS smallint",
    )?;
    first.exec(db, "SELECT ha.repset_add_seq('default', 'turned', true)")?;
    let wait_failed = |words: &str| -> Result<()> {
        wait::until(&format!("the subscription says {words}"), PATIENCE, || {
            let error = cluster
                .status_of(second, &name, "last_error")?
                .unwrap_or_default();
            Ok(Probe::when(error.contains(words), error))
        })
    };
    wait_failed("public.turned cannot be set: it counts in the other direction")?;
    first.exec(db, "INSERT INTO t VALUES (1)")?;
    second.exec(db, "DROP SEQUENCE turned; CREATE SEQUENCE turned")?;
    cluster.sync(1, 2)?;
    ensure!(last_value(second, db, "turned")? == 1001);

    // Beyond what it can hold, it gives no number rather than one that was given.
    first.exec(db, "SELECT ha.repset_add_seq('default', 'large', true)")?;
    cluster.sync(1, 2)?;
    ensure!(last_value(second, db, "large")? == 32_767);
    let refusal = second.rows(db, "SELECT nextval('large')").err();
    let state = refusal
        .as_ref()
        .and_then(sql::refusal)
        .map(|refusal| refusal.sqlstate);
    ensure!(
        state.as_deref() == Some("2200H"),
        "nextval at the bound answered {state:?}"
    );

    second.exec(db, "DROP SEQUENCE missing")?;
    first.exec(db, "SELECT nextval('missing'), ha.sync_seq('missing')")?;
    wait_failed("sequence public.missing does not exist")?;
    first.exec(db, "INSERT INTO t VALUES (2)")?;
    second.exec(db, "CREATE SEQUENCE missing")?;
    cluster.sync(1, 2)?;
    ensure!(last_value(second, db, "missing")? == 1002);
    ensure!(
        second.number(db, "SELECT count(*) FROM t")? == 2,
        "what followed was lost"
    );
    cluster.wait_status(second, &name, "replicating")
}

fn late(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    cluster.everywhere("CREATE SEQUENCE s; CREATE SEQUENCE later")?;
    // Told before anybody listens, and not told again before half of the buffer is used.
    first.exec(
        &cluster.database,
        "SELECT ha.repset_create('other'); SELECT nextval('s'), nextval('later') FROM generate_series(1, 50);
         SELECT ha.repset_add_seq('default', 's', true), ha.repset_add_seq('other', 'later', true)",
    )?;
    let name = cluster.subscribe(1, 2)?;
    ensure!(
        second.number(&cluster.database, "SELECT nextval('s')")? > 50,
        "a number was given twice"
    );
    cluster.wait_replicating()?;
    let add = format!("SELECT ha.sub_add_repset({}, 'other')", literal(&name));
    second.exec(&cluster.database, &add)?;
    ensure!(
        second.number(&cluster.database, "SELECT nextval('later')")? > 50,
        "a number was given twice once its set was added"
    );
    Ok(())
}
