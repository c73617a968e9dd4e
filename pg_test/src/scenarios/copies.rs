//! Failure story: a node joins, or a table is brought back, while everybody works; and rows are missing, doubled, come
//! back to where they were copied from, or one bad table stops everything.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::support::{
    CONFLICTS, ROWS_APPLIED, SECRET, counter, inventory, left_nothing, no_secret_in_logs, refused,
    wait_no_lag,
};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::{Node, Stop};
use crate::scenario::{Scenario, Stage};
use crate::sql::{self, literal};
use crate::wait::{self, PATIENCE, Probe};
use crate::workload::{self, Branches, Schema, TABLES, Writer};

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
        "copies_added",
        "a table that joins a set with its rows lacks some on the subscriber, or has them twice",
        added,
    ),
    scenario(
        "copies_crash",
        "a copier, the process that feeds it or a whole server dies during a copy, and rows are lost or doubled",
        crash,
    ),
    scenario(
        "copies_shapes",
        "a copy brings rows or columns that the stream would not, or leaves out what it would bring",
        shapes,
    ),
    scenario(
        "copies_structure",
        "a copied structure is half there, takes hidden parts along, or tells the password of the connection string",
        structure,
    ),
    scenario(
        "copies_under_load",
        "rows that change while their table is copied are lost, doubled, or sent back to where they came from",
        under_load,
    ),
    scenario(
        "copies_refused",
        "a table that cannot be copied stops the others or the stream, does not say why, or never recovers",
        cannot,
    ),
];

/// The one subscription of these scenarios: node 2 receives from node 1.
pub(super) const NAME: &str = "sub_n2_n1";

pub(super) fn subscribe_with_copy(cluster: &Cluster) -> Result<()> {
    let dsn = cluster.node(1)?.dsn(&cluster.database);
    cluster.node(2)?.exec(
        &cluster.database,
        &format!(
            "SELECT ha.sub_create({}, {}, synchronize_data => true)",
            literal(NAME),
            literal(&dsn)
        ),
    )
}

/// Also across restarts of either server.
fn wait_for_sync(cluster: &Cluster) -> Result<()> {
    let waiting = format!("SELECT ha.sub_wait_for_sync({}, '1 s')", literal(NAME));
    let tables = "SELECT relname, status, copy_rows, attempts, last_error FROM ha.copied_tables";
    let mut polling = cluster.node(2)?.polling(&cluster.database);
    wait::until("everything is copied", PATIENCE * 2, || {
        if sql::show(&polling.rows(&waiting)?) == "t" {
            return Ok(Probe::Ready(()));
        }
        Ok(Probe::NotYet(sql::show(&polling.rows(tables)?)))
    })
}

fn resync(cluster: &Cluster, table: &str) -> Result<()> {
    let call = format!(
        "SELECT ha.sub_resync_table({}, {})",
        literal(NAME),
        literal(table)
    );
    cluster.node(2)?.exec(&cluster.database, &call)
}

/// Filled tables on node 1, empty ones on node 2, nodes but no subscription.
fn prepare(stage: &Stage, schema: Schema) -> Result<Arc<Cluster>> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    workload::initialise(&cluster, &stage.install, schema)?;
    cluster
        .node(2)?
        .exec(&cluster.database, &format!("TRUNCATE {}", TABLES.join(", ")))?;
    cluster.everywhere("SELECT * FROM ha.repset_add_tables('default', 'pgbench_*')")?;
    Ok(cluster)
}

fn writer(stage: &Stage, cluster: &Cluster, schema: Schema) -> Result<Writer> {
    let share = Branches::share(1, 1, schema)?;
    Ok(Writer::start(
        cluster.node(1)?,
        &cluster.database,
        share,
        stage.seed,
        None,
    ))
}

fn finish(cluster: &Cluster, writer: Writer) -> Result<()> {
    let label = writer.label.clone();
    let account = writer.stop()?;
    wait_for_sync(cluster)?;
    cluster.sync(1, 2)?;
    for node in &cluster.nodes {
        workload::audit(node, &cluster.database, &label, &account)?;
        workload::balanced(node, &cluster.database)?;
    }
    compare::identical(cluster, &TABLES)
}

fn under_load(stage: &Stage) -> Result<()> {
    let schema = Schema {
        scale: 2,
        accounts_per_branch: 40_000,
    };
    let cluster = prepare(stage, schema)?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    // The way back, to see that copied rows do not take it.
    let back = cluster.subscribe(2, 1)?;
    let writing = writer(stage, &cluster, schema)?;
    wait::until("the writer commits", PATIENCE, || {
        Ok(Probe::when(writing.progress() > 20, "not yet"))
    })?;
    subscribe_with_copy(&cluster)?;
    wait_for_sync(&cluster).context("the first copy")?;
    for round in 1..=stage.repetitions(2, 10) {
        for table in TABLES {
            resync(&cluster, table)?;
        }
        wait_for_sync(&cluster).with_context(|| format!("round {round}: all tables anew"))?;
    }
    finish(&cluster, writing)?;
    let sent_back = counter(&cluster, first, &back, ROWS_APPLIED)?;
    ensure!(
        sent_back == 0,
        "{sent_back} rows came back to where they were copied from"
    );

    // A table that was changed here is the provider's again. The change here goes to the provider first.
    cluster.node(2)?.exec(
        &cluster.database,
        &format!("SELECT ha.sub_disable({})", literal(NAME)),
    )?;
    first.exec(
        &cluster.database,
        &format!("SELECT ha.sub_disable({})", literal(&back)),
    )?;
    second.exec(
        &cluster.database,
        "DELETE FROM pgbench_accounts WHERE aid % 3 = 0; UPDATE pgbench_tellers SET tbalance = 7",
    )?;
    second.exec(
        &cluster.database,
        &format!("SELECT ha.sub_enable({})", literal(NAME)),
    )?;
    for table in ["pgbench_accounts", "pgbench_tellers"] {
        resync(&cluster, table)?;
    }
    wait_for_sync(&cluster).context("diverged tables")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &TABLES)?;

    // What follows on copied rows is no conflict.
    let before = counter(&cluster, second, NAME, CONFLICTS)?;
    first.exec(
        &cluster.database,
        "UPDATE pgbench_tellers SET tbalance = tbalance + 1",
    )?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &TABLES)?;
    let after = counter(&cluster, second, NAME, CONFLICTS)?;
    ensure!(before == after, "{} conflicts on copied rows", after - before);
    Ok(())
}

/// A copy of accounts is under way and has brought rows.
fn wait_copying(cluster: &Cluster) -> Result<()> {
    let running = "SELECT c.copy_rows FROM ha.copy_states() c JOIN ha.subscription_tables t USING (table_id)
          WHERE t.relname = 'pgbench_accounts' AND c.phase = 'copying' AND c.copy_rows > 1000";
    let node = cluster.node(2)?;
    let mut polling = node.polling(&cluster.database);
    wait::until("the accounts are being copied", PATIENCE, || {
        let rows = polling.rows(running)?;
        Ok(Probe::when(!rows.is_empty(), "no such copy"))
    })
}

fn crash(stage: &Stage) -> Result<()> {
    let schema = Schema {
        scale: 3,
        accounts_per_branch: 100_000,
    };
    let cluster = prepare(stage, schema)?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    let writing = writer(stage, &cluster, schema)?;
    subscribe_with_copy(&cluster)?;
    let faults: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("kill -9 of a copier", &|| second.kill_backend("pg_ha copier")),
        ("kill -9 of the applier", &|| second.kill_backend("pg_ha applier")),
        ("end of the process that sends the copy", &|| {
            first.exec(
                "postgres",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pg_ha % copy %'",
            )
        }),
        ("end of the copier", &|| {
            second.exec(
                "postgres",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_ha copier'",
            )
        }),
        ("end of the subscriber", &|| restart(stage, second)),
        ("end of the provider", &|| restart(stage, first)),
    ];
    for round in 0..stage.repetitions(1, 4) {
        for (number, (what, fault)) in faults.iter().enumerate() {
            if round + number > 0 {
                resync(&cluster, "pgbench_accounts")?;
            }
            wait_copying(&cluster).with_context(|| format!("before the {what}"))?;
            fault().with_context(|| format!("the {what}"))?;
            second.wait_accepting()?;
            first.wait_accepting()?;
            wait_for_sync(&cluster).with_context(|| format!("after the {what}"))?;
        }
    }
    finish(&cluster, writing)?;
    let left = "SELECT slot_name FROM pg_replication_slots WHERE temporary";
    let slots = first.rows(&cluster.database, left)?;
    ensure!(
        slots.is_empty(),
        "slots of copies are left: {}",
        sql::show(&slots)
    );
    wait_no_lag(&cluster)
}

fn restart(stage: &Stage, node: &Node) -> Result<()> {
    match stage.random(0..3) {
        0 => node.stop(Stop::Immediate)?,
        _ => node.kill_server()?,
    }
    wait::let_run(Duration::from_millis(stage.random(0..500)))?;
    node.start()
}

fn cannot(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    first.exec(
        &cluster.database,
        "CREATE TABLE good (id int PRIMARY KEY, v text); INSERT INTO good SELECT g, 'v' || g FROM generate_series(1, 1000) g;
         CREATE TABLE nothing (id int PRIMARY KEY);
         CREATE TABLE missing (id int PRIMARY KEY); INSERT INTO missing VALUES (1);
         CREATE TABLE narrow (id int PRIMARY KEY, v text, w text); INSERT INTO narrow VALUES (1, 'a', 'b');
         CREATE TABLE other_type (id int PRIMARY KEY, v text); INSERT INTO other_type VALUES (1, 'long enough');
         CREATE TABLE full_already (id int PRIMARY KEY); INSERT INTO full_already VALUES (1), (2);
         SELECT ha.repset_add_all_tables('default', '{public}')",
    )?;
    second.exec(
        &cluster.database,
        "CREATE TABLE good (id int PRIMARY KEY, v text); CREATE TABLE nothing (id int PRIMARY KEY);
         CREATE TABLE narrow (id int PRIMARY KEY, v text);
         CREATE TABLE other_type (id int PRIMARY KEY, v varchar(4));
         CREATE TABLE full_already (id int PRIMARY KEY); INSERT INTO full_already VALUES (9)",
    )?;
    subscribe_with_copy(&cluster)?;
    let expected = [
        ("full_already", "failed", "holds rows"),
        ("good", "replicating", ""),
        ("missing", "failed", "public.missing does not exist"),
        ("narrow", "failed", "no column \"w\""),
        ("nothing", "replicating", ""),
        ("other_type", "failed", "column v: \"long enough\""),
    ];
    let mut polling = second.polling(&cluster.database);
    wait::until("every table has succeeded or failed", PATIENCE, || {
        let rows =
            polling.rows("SELECT relname, status, last_error FROM ha.copied_tables ORDER BY relname")?;
        let as_expected = rows.len() == expected.len()
            && rows.iter().zip(expected).all(|(row, (table, status, words))| {
                let text = |column: usize| row[column].clone().unwrap_or_default();
                text(0) == table && text(1) == status && text(2).contains(words)
            });
        Ok(Probe::when(as_expected, sql::show(&rows)))
    })?;
    cluster.wait_status(second, NAME, "failed")?;
    let error = cluster.status_of(second, NAME, "last_error")?.unwrap_or_default();
    ensure!(error.contains("copy of table public."), "last_error is {error:?}");

    // The stream goes on beside them.
    first.exec(
        &cluster.database,
        "UPDATE good SET v = 'changed' WHERE id <= 10; INSERT INTO nothing VALUES (5); INSERT INTO missing VALUES (2);
         UPDATE narrow SET w = 'c'; DELETE FROM full_already WHERE id = 1",
    )?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["good", "nothing"])?;
    refused(
        second,
        &cluster.database,
        &format!("SELECT ha.sub_resync_table({}, 'pg_class')", literal(NAME)),
        &["42809"],
        &["pg_class"],
    )?;

    second.exec(
        &cluster.database,
        "CREATE TABLE missing (id int PRIMARY KEY); ALTER TABLE narrow ADD w text;
         ALTER TABLE other_type ALTER v TYPE text; DELETE FROM full_already",
    )?;
    wait_for_sync(&cluster).context("once everything was mended")?;
    cluster.sync(1, 2)?;
    compare::identical(
        &cluster,
        &[
            "good",
            "nothing",
            "missing",
            "narrow",
            "other_type",
            "full_already",
        ],
    )?;
    cluster.wait_status(second, NAME, "replicating")
}

/// Partitioned tables, column lists, row filters, inheritance, generated columns, names that need quotes.
fn shapes(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    let common = "CREATE TABLE parted (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE parted_a PARTITION OF parted FOR VALUES FROM (0) TO (100);
         CREATE TABLE parent (id int PRIMARY KEY, v text);
         CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
         CREATE TABLE listed (id int PRIMARY KEY, shown text, hidden text DEFAULT 'local');
         CREATE TABLE filtered (id int PRIMARY KEY, v text);
         CREATE TABLE reckoned (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
         CREATE SCHEMA \"My Schema\";
         CREATE TABLE \"My Schema\".\"Odd \"\"Name\"\"\" (\"a b\" int PRIMARY KEY, \"select\" text, \"ü\" text[]);";
    first.exec(
        &cluster.database,
        &format!(
            "{common}
             CREATE TABLE parted_b PARTITION OF parted FOR VALUES FROM (100) TO (1000);
             INSERT INTO parted SELECT g, 'p' || g FROM generate_series(1, 500) g;
             INSERT INTO parent VALUES (1, 'only'); INSERT INTO child VALUES (2, 'child');
             INSERT INTO listed SELECT g, 's' || g, 'secret' FROM generate_series(1, 50) g;
             INSERT INTO filtered SELECT g, 'f' || g FROM generate_series(1, 50) g;
             INSERT INTO reckoned SELECT g FROM generate_series(1, 50) g;
             INSERT INTO \"My Schema\".\"Odd \"\"Name\"\"\" VALUES (1, E'tab\\there', '{{a,NULL}}'), (2, NULL, '{{}}');
             SELECT ha.repset_add_table('default', 'parted'), ha.repset_add_table('default', 'parted_a'),
                    ha.repset_add_table('default', 'parent'),
                    ha.repset_add_table('default', 'listed', columns => '{{id,shown}}'),
                    ha.repset_add_table('default', 'filtered', row_filter => 'id > 20'),
                    ha.repset_add_table('default', 'reckoned');
             SELECT ha.repset_add_all_tables('default', '{{My Schema}}')"
        ),
    )?;
    // Other partitions here than there.
    second.exec(
        &cluster.database,
        &format!(
            "{common}
             CREATE TABLE parted_rest PARTITION OF parted DEFAULT"
        ),
    )?;
    subscribe_with_copy(&cluster)?;
    wait_for_sync(&cluster)?;
    let expect = || -> Result<()> {
        cluster.sync(1, 2)?;
        let same = [
            "parted",
            "ONLY parent",
            "reckoned",
            "\"My Schema\".\"Odd \"\"Name\"\"\"",
        ];
        compare::identical(&cluster, &same)?;
        for (sent, here) in [
            (
                "SELECT id, shown, 'local' FROM listed ORDER BY id",
                "SELECT * FROM listed ORDER BY id",
            ),
            (
                "SELECT * FROM filtered WHERE id > 20 ORDER BY id",
                "SELECT * FROM filtered ORDER BY id",
            ),
            ("SELECT FROM child WHERE false", "SELECT FROM child"),
        ] {
            let (sent, found) = (
                first.rows(&cluster.database, sent)?,
                second.rows(&cluster.database, here)?,
            );
            ensure!(
                sent == found,
                "{here}: {}, but sent were {}",
                sql::show(&found),
                sql::show(&sent)
            );
        }
        Ok(())
    };
    expect().context("copied")?;
    let names = "SELECT string_agg(relname, ',' ORDER BY relname) FROM ha.copied_tables";
    let copied = second.text(&cluster.database, names)?;
    ensure!(
        copied == "Odd \"Name\",filtered,listed,parent,parted,reckoned",
        "copied were {copied}"
    );
    refused(
        second,
        &cluster.database,
        &format!("SELECT ha.sub_resync_table({}, 'parted_a')", literal(NAME)),
        &["42704"],
        &["public.parted_a"],
    )?;
    first.exec(
        &cluster.database,
        "UPDATE parted SET v = v || '!' WHERE id % 7 = 0; UPDATE filtered SET v = 'again' WHERE id = 30;
         UPDATE listed SET shown = 'changed', hidden = 'more' WHERE id = 1; DELETE FROM reckoned WHERE id < 5",
    )?;
    for table in ["parted", "listed", "filtered"] {
        resync(&cluster, table)?;
    }
    // While that is under way or not: a partition is emptied, under its own name.
    first.exec(
        &cluster.database,
        "TRUNCATE parted_a; INSERT INTO parted VALUES (7, 'new')",
    )?;
    wait_for_sync(&cluster)?;
    expect().context("copied again")
}

/// A table joins a set while it is written to, also in the same transaction, and brings what it holds.
fn added(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    cluster.everywhere(
        "CREATE TABLE one (id int PRIMARY KEY, v text); CREATE TABLE two (id int PRIMARY KEY, v text);
         CREATE TABLE log (id int, v text); SELECT ha.repset_create('other')",
    )?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    first.exec(
        &cluster.database,
        "INSERT INTO one SELECT g, 'one' FROM generate_series(1, 20000) g;
         INSERT INTO two SELECT g, 'two' FROM generate_series(1, 100) g; INSERT INTO log VALUES (1, 'before')",
    )?;
    refused(
        first,
        &cluster.database,
        "SELECT ha.repset_create('quiet', replicate_insert => false);
         SELECT ha.repset_add_table('quiet', 'one', synchronize_data => true)",
        &["22023"],
        &["quiet"],
    )?;
    // A set that nobody subscribed to is nobody's business.
    first.exec(
        &cluster.database,
        "SELECT ha.repset_add_table('other', 'two', synchronize_data => true)",
    )?;
    first.exec(
        &cluster.database,
        "BEGIN; INSERT INTO one VALUES (0, 'before'); UPDATE one SET v = 'changed' WHERE id = 1;
         SELECT ha.repset_add_table('default', 'one', synchronize_data => true);
         INSERT INTO one VALUES (-1, 'after'); UPDATE one SET v = 'changed too' WHERE id = 2; DELETE FROM one WHERE id = 3;
         COMMIT",
    )?;
    first.exec(
        &cluster.database,
        "INSERT INTO one VALUES (-2, 'later'); DELETE FROM one WHERE id = 4; UPDATE one SET id = -5 WHERE id = 5",
    )?;
    cluster.sync(1, 2)?;
    wait_for_sync(&cluster)?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["one"])?;
    ensure!(
        second.number(&cluster.database, "SELECT count(*) FROM two")? == 0,
        "a table of a set that is not subscribed to was copied"
    );
    first.exec(
        &cluster.database,
        "SELECT ha.repset_remove_table('other', 'two'), ha.repset_remove_table('default', 'one');
         SELECT ha.repset_add_all_tables('default', '{public}', synchronize_data => true)",
    )?;
    second.exec(&cluster.database, "TRUNCATE one")?;
    cluster.sync(1, 2)?;
    wait_for_sync(&cluster)?;
    first.exec(&cluster.database, "INSERT INTO log VALUES (2, 'after')")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["one", "two", "log"])
}

/// Structure and data into an empty database, with a role that may no more than it must.
fn structure(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    first.exec(
        &cluster.database,
        &format!(
            "CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('good', 'bad');
             CREATE TABLE app.people (id serial PRIMARY KEY, mood app.mood, name text DEFAULT 'nobody' CHECK (name ~ '^\\w+$'), CHECK (id > 0));
             CREATE TABLE app.pets (id int PRIMARY KEY, owner int REFERENCES app.people);
             CREATE TABLE app.visits (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE app.visits_1 PARTITION OF app.visits FOR VALUES FROM (0) TO (1000);
             CREATE FUNCTION app.touch() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
UPDATE app.people
SET name = 'touched';
SET row_security = on;
SET lock_timeout = 0;
END $$;
             CREATE VIEW app.good AS SELECT * FROM app.people WHERE mood = 'good';
             INSERT INTO app.people (mood) SELECT 'good' FROM generate_series(1, 500);
             INSERT INTO app.pets SELECT g, g FROM generate_series(1, 500) g;
             INSERT INTO app.visits SELECT g FROM generate_series(1, 500) g;
             SELECT ha.repset_add_all_tables('default', '{{app}}');
             CREATE ROLE links LOGIN REPLICATION PASSWORD '{SECRET}'; GRANT ha_replication TO links;
             CREATE ROLE \"On both\"; CREATE ROLE here_only; CREATE FUNCTION app.whose() RETURNS int SECURITY DEFINER LANGUAGE sql
                 RETURN 1;
             ALTER TABLE app.people OWNER TO \"On both\"; ALTER FUNCTION app.whose() OWNER TO \"On both\";
             ALTER TABLE app.pets OWNER TO here_only;
             REVOKE ALL ON FUNCTION app.whose() FROM PUBLIC; GRANT SELECT ON app.good TO \"On both\", here_only"
        ),
    )?;
    let dsn = format!(
        "{} user=links password={SECRET}",
        first.dsn(&cluster.database).replace("user=postgres", "")
    );
    let create = format!(
        "SELECT ha.sub_create({}, {}, synchronize_structure => true, synchronize_data => true)",
        literal(NAME),
        literal(&dsn)
    );
    second.exec(&cluster.database, "CREATE ROLE \"On both\"")?;
    let before = inventory(first, &cluster.database)?;
    refused(
        second,
        &cluster.database,
        &create,
        &["38000"],
        &["permission denied", "pg_dump"],
    )?;
    first.exec(
        &cluster.database,
        "GRANT USAGE ON SCHEMA app TO links; GRANT SELECT ON ALL TABLES IN SCHEMA app, public TO links;
         GRANT SELECT ON ALL SEQUENCES IN SCHEMA app TO links",
    )?;
    second.exec(&cluster.database, "CREATE SCHEMA app")?;
    refused(
        second,
        &cluster.database,
        &create,
        &["42P06"],
        &["app", "already exists"],
    )?;
    left_nothing(first, &cluster.database, &before)?;
    second.exec(&cluster.database, "DROP SCHEMA app")?;
    // In a transaction whose settings stay its own.
    let mut session = second.session(&cluster.database)?;
    session.exec("SET standard_conforming_strings = off")?;
    session.exec("BEGIN")?;
    let settings = "SELECT name, setting FROM pg_settings WHERE source = 'session' OR name IN
         ('row_security', 'check_function_bodies', 'client_min_messages', 'default_table_access_method', 'search_path')";
    let before = session.rows(settings)?;
    session.rows(&create)?;
    ensure!(
        session.rows(settings)? == before,
        "settings of the session were changed"
    );
    session.exec("COMMIT")?;
    let privileges = second.text(
        &cluster.database,
        "SELECT (SELECT count(*) FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f'::\"char\", proowner)))
                  WHERE proname = 'whose' AND grantee = 0)::text || ' ' ||
                has_table_privilege('On both', 'app.good', 'SELECT')::text",
    )?;
    ensure!(
        privileges == "0 true",
        "who may call the function and read the view: {privileges}"
    );
    let owners = "SELECT (SELECT string_agg(relowner::regrole::text, ', ' ORDER BY relname) FROM pg_class
                           WHERE oid IN ('app.people'::regclass, 'app.pets'::regclass))
                 || ', ' || (SELECT proowner::regrole FROM pg_proc WHERE proname = 'whose')";
    ensure!(
        second.text(&cluster.database, owners)? == r#""On both", postgres, "On both""#,
        "owners are {}",
        second.text(&cluster.database, owners)?
    );
    let rule = "SELECT string_agg(pg_get_constraintdef(oid), ', ' ORDER BY conname) FROM pg_constraint
         WHERE conrelid = 'app.people'::regclass AND contype = 'c'";
    ensure!(
        first.text(&cluster.database, rule)? == second.text(&cluster.database, rule)?,
        "constraints were changed on the way"
    );
    wait_for_sync(&cluster)?;
    first.exec(
        &cluster.database,
        "INSERT INTO app.people (mood) VALUES ('bad'); SELECT app.touch(); DELETE FROM app.pets WHERE id = 1",
    )?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["app.people", "app.pets", "app.visits", "app.good"])?;
    let body = "SELECT prosrc FROM pg_proc WHERE proname = 'touch'";
    ensure!(
        first.text(&cluster.database, body)? == second.text(&cluster.database, body)?,
        "the function's body was changed on the way"
    );
    no_secret_in_logs(&cluster)
}
