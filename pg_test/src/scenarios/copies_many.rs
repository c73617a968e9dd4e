//! Failure story: a copy is quick because it builds indexes late and brings many tables at once, and for that an index
//! lacks rows or lets duplicates in, one bad table takes a hundred good ones with it, or a set brings its tables without
//! their rows.

use anyhow::{Context, Result, ensure};

use super::copies::{NAME, subscribe_with_copy};
use super::support::refused;
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
        weight: 2,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "copies_indexes",
        "an index that a copy built late lacks rows, lets duplicates in, or stays unusable",
        indexes,
    ),
    scenario(
        "copies_many_tables",
        "small tables that are brought together wait for a bad one among them, or come half",
        many_tables,
    ),
    scenario(
        "copies_killed",
        "a copier dies while it builds indexes or brings many tables, and leaves indexes that lack rows, or half of them",
        killed,
    ),
];

fn wait_for_sync(cluster: &Cluster) -> Result<()> {
    let waiting = format!("SELECT ha.sub_wait_for_sync({}, '1 s')", literal(NAME));
    let tables = "SELECT relname, status, copy_rows, attempts, last_error FROM ha.copied_tables WHERE status <> 'replicating'";
    let mut polling = cluster.node(2)?.polling(&cluster.database);
    wait::until("everything is copied", PATIENCE * 2, || {
        if sql::show(&polling.rows(&waiting)?) == "t" {
            return Ok(Probe::Ready(()));
        }
        Ok(Probe::NotYet(sql::show(&polling.rows(tables)?)))
    })
}

const UNUSABLE: &str = "SELECT count(*) FROM pg_index WHERE NOT (indisvalid AND indisready AND indislive)";

fn all_usable(node: &Node, database: &str) -> Result<()> {
    let unusable = node.number(database, UNUSABLE)?;
    ensure!(
        unusable == 0,
        "{unusable} indexes are not usable on {}",
        node.name
    );
    Ok(())
}

fn indexes(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    let db = &cluster.database;
    cluster.everywhere(
        "CREATE TABLE big (id int PRIMARY KEY, v text, a int[], p point, r int4range, u int UNIQUE DEFERRABLE,
                           EXCLUDE USING gist (r WITH &&));
         CREATE INDEX ON big (lower(v)) WHERE id % 2 = 0;
         CREATE INDEX ON big USING gin (a);
         CREATE INDEX ON big USING hash (v);
         CREATE INDEX ON big USING brin (id);
         CREATE TABLE parted (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE INDEX ON parted (v);
         CREATE TABLE parted_a PARTITION OF parted FOR VALUES FROM (0) TO (15000);
         CREATE TABLE parted_b PARTITION OF parted FOR VALUES FROM (15000) TO (100000);
         CREATE TABLE referring (id int PRIMARY KEY, big int REFERENCES big);
         CREATE TABLE twice (id int PRIMARY KEY, v text)",
    )?;
    first.exec(
        db,
        "INSERT INTO big SELECT g, 'value ' || g, ARRAY[g, g % 7], point(g, g), int4range(g, g + 1), g
           FROM generate_series(1, 20000) g;
         INSERT INTO parted SELECT g, repeat('p', 50) || g FROM generate_series(1, 30000) g;
         INSERT INTO referring SELECT g, g FROM generate_series(1, 20000) g;
         INSERT INTO twice SELECT g, repeat('same', 20) FROM generate_series(1, 20000) g;
         SELECT ha.repset_add_all_tables('default', '{public}')",
    )?;
    // Rows that the index here does not let in.
    second.exec(db, "CREATE UNIQUE INDEX only_here ON twice (v)")?;
    subscribe_with_copy(&cluster)?;
    let mut polling = second.polling(db);
    wait::until(
        "the copy of twice has failed, all others have not",
        PATIENCE,
        || {
            let rows =
                polling.rows("SELECT relname, status, last_error FROM ha.copied_tables ORDER BY relname")?;
            let failed = |table: &str| {
                rows.iter().any(|row| {
                    row[0].as_deref() == Some(table)
                        && row[1].as_deref() == Some("failed")
                        && row[2].as_deref().is_some_and(|error| error.contains("only_here"))
                })
            };
            let done = rows
                .iter()
                .filter(|row| row[1].as_deref() == Some("replicating"))
                .count();
            Ok(Probe::when(failed("twice") && done == 3, sql::show(&rows)))
        },
    )?;
    all_usable(second, db).context("beside a copy that failed")?;
    ensure!(
        second.number(db, "SELECT count(*) FROM twice")? == 0,
        "half of a copy is left"
    );
    second.exec(db, "DROP INDEX only_here")?;
    wait_for_sync(&cluster)?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["big", "parted", "referring", "twice"])?;
    all_usable(second, db)?;
    // Every index finds every row, and refuses what it must.
    for (condition, rows) in [
        ("id = 777", 1),
        ("lower(v) = 'value 778' AND id % 2 = 0", 1),
        ("a @> ARRAY[779]", 1),
        ("v = 'value 780'", 1),
        ("r && int4range(781, 783)", 2),
        ("u = 784", 1),
        ("id BETWEEN 100 AND 199", 100),
    ] {
        let query = format!("SET enable_seqscan = off; SELECT count(*) FROM big WHERE {condition}");
        second.exec(db, &query)?;
        let found = second.number(db, &format!("SELECT count(*) FROM big WHERE {condition}"))?;
        ensure!(found == rows, "{condition}: {found} rows, not {rows}");
    }
    for (statement, state) in [
        ("INSERT INTO big (id) VALUES (5)", "23505"),
        ("INSERT INTO big (id, u) VALUES (-5, 5)", "23505"),
        ("INSERT INTO big (id, r) VALUES (-5, int4range(5, 9))", "23P01"),
        ("INSERT INTO parted VALUES (16000)", "23505"),
    ] {
        let error = second.rows(db, statement).err();
        let found = error
            .as_ref()
            .and_then(sql::refusal)
            .map(|refusal| refusal.sqlstate);
        ensure!(found.as_deref() == Some(state), "{statement} answered {found:?}");
    }
    // Once more, over rows that are there and are referred to.
    for table in ["big", "parted"] {
        second.exec(
            db,
            &format!(
                "SELECT ha.sub_resync_table({}, {})",
                literal(NAME),
                literal(table)
            ),
        )?;
    }
    first.exec(
        db,
        "UPDATE big SET v = v || '!' WHERE id % 10 = 0; UPDATE parted SET v = 'q' WHERE id % 9 = 0",
    )?;
    wait_for_sync(&cluster).context("again")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["big", "parted", "referring"])?;
    all_usable(second, db)
}

fn many_tables(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    let db = &cluster.database;
    cluster.everywhere(
        "DO $$ BEGIN FOR i IN 1..150 LOOP
             EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, v text)', i);
         END LOOP; END $$;
         CREATE TABLE extra (id int PRIMARY KEY, v text); CREATE TABLE later (id int PRIMARY KEY, v text);
         SELECT ha.repset_create('more'), ha.repset_create('last')",
    )?;
    first.exec(
        db,
        "DO $$ BEGIN FOR i IN 1..150 LOOP
             EXECUTE format('INSERT INTO small_%s SELECT g, %L FROM generate_series(1, %s) g', i, 'row', i);
         END LOOP; END $$;
         INSERT INTO extra VALUES (1, 'extra'); INSERT INTO later VALUES (1, 'later');
         SELECT * FROM ha.repset_add_tables('default', 'small_*');
         SELECT ha.repset_add_table('more', 'extra'), ha.repset_add_table('more', 'small_1'),
                ha.repset_add_table('last', 'later')",
    )?;
    // Bad ones among the others: one missing, one with rows of its own.
    second.exec(db, "DROP TABLE small_77; INSERT INTO small_5 VALUES (-1, 'here')")?;
    subscribe_with_copy(&cluster)?;
    second.exec(
        db,
        &format!(
            "SELECT ha.sub_alter_options({}, '{{\"copy_workers\": 1}}')",
            literal(NAME)
        ),
    )?;
    let mut polling = second.polling(db);
    wait::until("all are copied but two", PATIENCE * 2, || {
        let rows = polling.rows(
            "SELECT status, count(*), string_agg(relname, ',' ORDER BY relname) FILTER (WHERE status <> 'replicating')
               FROM ha.copied_tables GROUP BY 1 ORDER BY 1",
        )?;
        let shown = sql::show(&rows);
        Ok(Probe::when(
            rows.len() == 2
                && rows[0][0].as_deref() == Some("failed")
                && rows[0][2].as_deref() == Some("small_5,small_77"),
            shown,
        ))
    })?;
    first.exec(
        db,
        "UPDATE small_3 SET v = 'changed'; DELETE FROM small_150 WHERE id < 10",
    )?;
    cluster.sync(1, 2)?;
    second.exec(
        db,
        "CREATE TABLE small_77 (id int PRIMARY KEY, v text); DELETE FROM small_5",
    )?;
    wait_for_sync(&cluster)?;
    cluster.sync(1, 2)?;
    let tables: Vec<String> = (1..=150).map(|number| format!("small_{number}")).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    compare::identical(&cluster, &tables)?;

    // A set that is added brings its tables, but not what the subscription has already.
    let add = |arguments: &str| format!("SELECT ha.sub_add_repset({}, {arguments})", literal(NAME));
    refused(second, db, &add("'nonsense'"), &["42704"], &["nonsense"])?;
    second.exec(db, &add("'more'"))?;
    second.exec(db, &add("'last', synchronize_data => false"))?;
    wait_for_sync(&cluster)?;
    first.exec(
        db,
        "INSERT INTO extra VALUES (2, 'more'); INSERT INTO later VALUES (2, 'streamed')",
    )?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["extra", "small_1"])?;
    let later = second.text(db, "SELECT string_agg(v, ',') FROM later")?;
    ensure!(
        later == "streamed",
        "a set that was added without its data brought {later}"
    );
    Ok(())
}

/// A copier dies while an index is being built, then while it brings tables together; each held there by a lock.
fn killed(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    let db = &cluster.database;
    cluster.everywhere(
        "CREATE TABLE big (id int PRIMARY KEY, v text);
         DO $$ BEGIN FOR i IN 1..40 LOOP
             EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, v text)', i);
         END LOOP; END $$",
    )?;
    // Waits while somebody holds the lock.
    second.exec(
        db,
        "CREATE FUNCTION slow(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
         BEGIN PERFORM pg_advisory_lock_shared(42); PERFORM pg_advisory_unlock_shared(42); RETURN $1; END $$;
         CREATE INDEX ON big (slow(id)); CREATE INDEX ON big (v)",
    )?;
    first.exec(
        db,
        "INSERT INTO big SELECT g, repeat('b', 50) || g FROM generate_series(1, 20000) g;
         DO $$ BEGIN FOR i IN 1..40 LOOP
             EXECUTE format('INSERT INTO small_%s SELECT g, %L FROM generate_series(1, 50) g', i, 'row');
         END LOOP; END $$;
         SELECT ha.repset_add_all_tables('default', '{public}')",
    )?;
    let mut holder = second.session(db)?;
    holder.exec("SELECT pg_advisory_lock(42)")?;
    holder.exec("BEGIN; LOCK TABLE small_20 IN SHARE MODE")?;
    subscribe_with_copy(&cluster)?;
    let mut polling = second.polling(db);
    wait::until(
        "a copier builds an index, another one brings tables",
        PATIENCE,
        || {
            let rows = polling.rows(
            "SELECT count(*) FILTER (WHERE phase = 'indexing'), count(*) FILTER (WHERE phase = 'catchup' AND copy_rows = 50)
               FROM ha.copy_states()",
        )?;
            let counts: Vec<i64> = rows[0]
                .iter()
                .map(|count| count.as_deref().and_then(|count| count.parse().ok()).unwrap_or(0))
                .collect();
            Ok(Probe::when(counts[0] == 1 && counts[1] > 0, sql::show(&rows)))
        },
    )?;
    // Nobody sees any of it.
    let unusable = "SELECT count(*) FROM pg_index WHERE NOT (indisvalid AND indisready)";
    ensure!(
        second.number(db, unusable)? == 0,
        "others see the indexes out of use"
    );
    second.kill_backend("pg_ha copier")?;
    // The locks go with the server's other sessions.
    wait_for_sync(&cluster)?;
    first.exec(
        db,
        "UPDATE big SET v = 'changed' WHERE id % 100 = 0; UPDATE small_20 SET v = 'changed'",
    )?;
    cluster.sync(1, 2)?;
    let tables: Vec<String> = (1..=40).map(|number| format!("small_{number}")).collect();
    let mut tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    tables.push("big");
    compare::identical(&cluster, &tables)?;
    all_usable(second, db)?;
    let found = "SET enable_seqscan = off; SELECT count(*) FROM big WHERE slow(id) BETWEEN 1 AND 20000";
    second.exec(db, found)?;
    // What the dead copier wrote was given back before the next one wrote.
    let pages = |node: &Node| node.number(db, "SELECT pg_relation_size('big')");
    let (there, here) = (pages(first)?, pages(second)?);
    ensure!(
        here < there * 3 / 2,
        "the table takes {here} bytes here, {there} there"
    );
    Ok(())
}
