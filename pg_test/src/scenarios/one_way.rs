//! Failure story: a value, a table or a statement of an everyday kind arrives wrong, late or not at all.

use anyhow::{Result, ensure};

use super::one_way_schema::{IDENTITY, ODD_NAMES, TYPES};
use super::support::add_everywhere;
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::scenario::{Scenario, Stage};

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
        "one_way_types",
        "a value of some type changes on its way, or depends on a session's settings",
        types,
    ),
    scenario(
        "one_way_toast",
        "an update that leaves a large value alone replaces it by something else",
        toast,
    ),
    scenario(
        "one_way_keys",
        "an update of the key, or of a table identified in another way than by a primary key, hits the wrong row",
        keys,
    ),
    scenario(
        "one_way_names",
        "a name that needs quotes, or a column that sits elsewhere, breaks replication",
        names,
    ),
    scenario(
        "one_way_no_key",
        "a table without a key is silently not replicated, or stops everything",
        no_key,
    ),
    scenario(
        "one_way_transactions",
        "savepoints, prepared or large transactions arrive in part",
        transactions,
    ),
    scenario(
        "one_way_truncate",
        "TRUNCATE is lost, or takes tables that it should not",
        truncate,
    ),
];

/// Two nodes with these tables on both, n1 sending to n2.
fn stream(stage: &Stage, schema: &str, tables: &[&str]) -> Result<std::sync::Arc<Cluster>> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    cluster.everywhere(schema)?;
    add_everywhere(&cluster, "default", tables)?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    Ok(cluster)
}

/// Runs statements on the provider one after the other; after each the tables must be equal.
fn step(cluster: &Cluster, tables: &[&str], statements: &[&str]) -> Result<()> {
    for statement in statements {
        cluster.node(1)?.exec(&cluster.database, statement)?;
        cluster.sync(1, 2)?;
        compare::identical(cluster, tables).map_err(|error| error.context(format!("after: {statement}")))?;
    }
    Ok(())
}

fn types(stage: &Stage) -> Result<()> {
    let cluster = stream(stage, TYPES, &["types"])?;
    // Text forms depend on these, and the stream must not.
    let provider = format!(
        "ALTER DATABASE {0} SET datestyle = 'German'; ALTER DATABASE {0} SET intervalstyle = 'sql_standard';
         ALTER DATABASE {0} SET extra_float_digits = -5; ALTER DATABASE {0} SET bytea_output = 'escape';
         ALTER DATABASE {0} SET timezone = 'Asia/Kathmandu'",
        cluster.database
    );
    cluster.node(1)?.exec("postgres", &provider)?;
    // The walsender of the running stream began before that.
    cluster.node(1)?.restart()?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let same = "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1;
                SET bytea_output = 'hex'; SET timezone = 'UTC'; SELECT t::text FROM types t ORDER BY id";
    for statement in [
        super::one_way_schema::INSERT_TYPES,
        "UPDATE types SET i8 = -i8, n = n + 0.000000001, t = t || 'ü', tz = tz + interval '1 microsecond'",
        "UPDATE types SET b = NULL, arr = NULL, comp = NULL, m = NULL, j = NULL WHERE id = 1",
        "UPDATE types SET r = 1e-37, d = 5e-324, bin = '\\x00ff'::bytea WHERE id = 2",
        "DELETE FROM types WHERE id = 3",
    ] {
        one.exec(&cluster.database, statement)?;
        cluster.sync(1, 2)?;
        let (sent, arrived) = (
            one.rows(&cluster.database, same)?,
            two.rows(&cluster.database, same)?,
        );
        ensure!(!sent.is_empty(), "no rows to compare after: {statement}");
        for (sent, arrived) in sent.iter().zip(&arrived) {
            ensure!(
                sent == arrived,
                "after {statement}\n  sent    {sent:?}\n  arrived {arrived:?}"
            );
        }
        ensure!(
            sent.len() == arrived.len(),
            "{} rows sent, {} arrived",
            sent.len(),
            arrived.len()
        );
    }
    Ok(())
}

fn toast(stage: &Stage) -> Result<()> {
    let schema = "CREATE TABLE big (id int PRIMARY KEY, n int, payload text, other text);
                  ALTER TABLE big ALTER payload SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL";
    let cluster = stream(stage, schema, &["big"])?;
    step(
        &cluster,
        &["big"],
        &[
            "INSERT INTO big SELECT g, 0, repeat(md5(g::text), 4000), repeat(md5(g::text), 500)
               FROM generate_series(1, 20) AS g",
            "UPDATE big SET n = n + 1",
            "UPDATE big SET other = repeat('z', 9000) WHERE id <= 10",
            "UPDATE big SET payload = NULL WHERE id = 3",
            "BEGIN; UPDATE big SET n = n + 1; UPDATE big SET n = n + 1, other = other || 'x'; COMMIT",
            "UPDATE big SET id = id + 100",
            "UPDATE big SET payload = 'short' WHERE id = 101",
            "DELETE FROM big WHERE id > 110",
        ],
    )?;
    let kept = "SELECT count(*) FROM big WHERE id NOT IN (101, 103) AND length(payload) = 128000";
    let count = cluster.node(2)?.number(&cluster.database, kept)?;
    ensure!(
        count == 8,
        "8 rows kept their large value on n1, {count} did on n2"
    );

    // With the whole row as identity the old large value has to travel too.
    step(
        &cluster,
        &["big"],
        &[
            "ALTER TABLE big REPLICA IDENTITY FULL",
            "UPDATE big SET n = n + 1",
            "DELETE FROM big WHERE id = 105",
        ],
    )
}

fn keys(stage: &Stage) -> Result<()> {
    let tables = ["keyed", "compound", "by_index", "whole_row"];
    let cluster = stream(stage, IDENTITY, &tables)?;
    step(
        &cluster,
        &tables,
        &[
            "INSERT INTO keyed SELECT g, 'v' || g FROM generate_series(1, 50) AS g",
            "UPDATE keyed SET id = id + 1000 WHERE id <= 25",
            "UPDATE keyed SET id = id + 1, v = v || '!' WHERE id = 1025",
            "BEGIN; UPDATE keyed SET id = -id; UPDATE keyed SET id = id + 7; COMMIT",
            "DELETE FROM keyed WHERE id % 2 = 0",
            "INSERT INTO compound SELECT g % 5, 'k' || g, g FROM generate_series(1, 50) AS g",
            "UPDATE compound SET a = a + 10 WHERE v < 20",
            "UPDATE compound SET v = v + 1",
            "DELETE FROM compound WHERE a = 11",
            "INSERT INTO by_index VALUES (1, 'one', 10), (NULL, 'none', 20), (3, 'three', 30)",
            "UPDATE by_index SET n = n + 1, id = NULL WHERE code = 'one'",
            "UPDATE by_index SET code = 'two' WHERE code = 'three'",
            "DELETE FROM by_index WHERE code = 'none'",
            // Equal rows, NULLs, and a type without a default operator class.
            "INSERT INTO whole_row VALUES (1, 'a', '(1,2)'), (1, 'a', '(1,2)'), (NULL, NULL, NULL), (2, 'b', NULL)",
            "UPDATE whole_row SET v = 'changed' WHERE a IS NULL",
            "DELETE FROM whole_row WHERE ctid = (SELECT min(ctid) FROM whole_row WHERE a = 1)",
            "UPDATE whole_row SET p = '(3,4)' WHERE a = 1",
            "DELETE FROM whole_row",
        ],
    )?;
    let left = cluster
        .node(2)?
        .number(&cluster.database, "SELECT count(*) FROM keyed")?;
    ensure!(
        left > 0,
        "nothing left in keyed: the comparison above compared nothing"
    );
    Ok(())
}

fn names(stage: &Stage) -> Result<()> {
    let (weird, moved) = ("\"Odd Schema\".\"quo\"\"ted, \\ Table\"", "moved_columns");
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    cluster.everywhere(ODD_NAMES)?;
    // The same columns in another order, after a dropped one, beside columns that only the subscriber has.
    cluster.node(1)?.exec(
        &cluster.database,
        "CREATE TABLE moved_columns (gone int, id int PRIMARY KEY, a text, b int, double_b int GENERATED ALWAYS AS (b * 2) STORED);
         ALTER TABLE moved_columns DROP COLUMN gone",
    )?;
    cluster.node(2)?.exec(
        &cluster.database,
        "CREATE TABLE moved_columns (b int, double_b int GENERATED ALWAYS AS (b * 2) STORED, a text,
                                     own text DEFAULT 'mine', id int PRIMARY KEY)",
    )?;
    add_everywhere(&cluster, "default", &[weird, moved])?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    step(
        &cluster,
        &[weird],
        &[
            &format!("INSERT INTO {weird} VALUES (1, 'a', true), (2, 'b', false)"),
            &format!("UPDATE {weird} SET \"sel ect\" = 'c''c' WHERE \"ÜMLAUT\" = 2"),
            &format!("DELETE FROM {weird} WHERE \"ÜMLAUT\" = 1"),
        ],
    )?;
    let one = cluster.node(1)?;
    one.exec(
        &cluster.database,
        "INSERT INTO moved_columns (id, a, b) VALUES (1, 'x', 10), (2, 'y', 20)",
    )?;
    one.exec(&cluster.database, "UPDATE moved_columns SET b = 11 WHERE id = 1")?;
    one.exec(&cluster.database, "DELETE FROM moved_columns WHERE id = 2")?;
    cluster.sync(1, 2)?;
    let row = cluster.node(2)?.rows(
        &cluster.database,
        "SELECT id, a, b, double_b, own FROM moved_columns",
    )?;
    let shown = crate::sql::show(&row);
    ensure!(
        shown == "1 | x | 11 | 22 | mine",
        "moved_columns on n2 holds {shown:?}, not 1 | x | 11 | 22 | mine"
    );
    Ok(())
}

fn no_key(stage: &Stage) -> Result<()> {
    let schema = "CREATE TABLE log (at int, what text); CREATE TABLE keyed (id int PRIMARY KEY, v int)";
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    cluster.everywhere(schema)?;
    for node in &cluster.nodes {
        let words = ["log", "key"];
        let statement = "SELECT ha.repset_add_table('default', 'log')";
        super::support::refused(
            node,
            &cluster.database,
            statement,
            &["55000", "42P16", "42809", "22023"],
            &words,
        )?;
    }
    add_everywhere(&cluster, "default_insert_only", &["log"])?;
    add_everywhere(&cluster, "default", &["keyed"])?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let one = cluster.node(1)?;
    one.exec(
        &cluster.database,
        "INSERT INTO log SELECT g, 'row' FROM generate_series(1, 100) AS g",
    )?;
    one.exec(&cluster.database, "INSERT INTO log VALUES (1, 'row')")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["log"])?;
    // Updates and deletes work for local users and stay local; what follows them still arrives.
    one.exec(
        &cluster.database,
        "UPDATE log SET what = 'changed' WHERE at > 50; DELETE FROM log WHERE at <= 50",
    )?;
    one.exec(&cluster.database, "INSERT INTO keyed VALUES (1, 1)")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["keyed"])?;
    let count = cluster
        .node(2)?
        .number(&cluster.database, "SELECT count(*) FROM log WHERE what = 'row'")?;
    ensure!(
        count == 101,
        "an insert-only set carries no update or delete, yet n2 has {count} of 101 rows as inserted"
    );
    Ok(())
}

fn transactions(stage: &Stage) -> Result<()> {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE fired (what text);
                  CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                      $$ BEGIN INSERT INTO public.fired VALUES (TG_NAME); RETURN NEW; END $$;
                  CREATE TRIGGER ordinary AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
                  CREATE TRIGGER replica AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
                  ALTER TABLE t ENABLE REPLICA TRIGGER replica";
    let cluster = stage.cluster(
        Plan::nodes(2)
            .with("max_prepared_transactions", "5")
            .with("logical_decoding_work_mem", "64kB"),
    )?;
    cluster.create_nodes()?;
    cluster.everywhere(schema)?;
    add_everywhere(&cluster, "default", &["t"])?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    step(
        &cluster,
        &["t"],
        &[
            "INSERT INTO t VALUES (1, 'one')",
            "BEGIN; INSERT INTO t VALUES (2, 'gone'); ROLLBACK",
            "BEGIN; INSERT INTO t VALUES (3, 'kept'); SAVEPOINT s; UPDATE t SET v = 'gone'; ROLLBACK TO s;
             INSERT INTO t VALUES (4, 'kept'); COMMIT",
            "BEGIN; INSERT INTO t VALUES (5, 'a'); UPDATE t SET v = 'b' WHERE id = 5; DELETE FROM t WHERE id = 5;
             INSERT INTO t VALUES (5, 'c'); COMMIT",
            "BEGIN; INSERT INTO t VALUES (6, 'prepared'); PREPARE TRANSACTION 'p'",
            "COMMIT PREPARED 'p'",
            "BEGIN; INSERT INTO t VALUES (7, 'prepared'); PREPARE TRANSACTION 'q'",
            "ROLLBACK PREPARED 'q'",
            "INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(100, 20000) AS g",
            "UPDATE t SET v = v || 'y' WHERE id > 10000",
        ],
    )?;
    let fired = cluster
        .node(2)?
        .rows(&cluster.database, "SELECT DISTINCT what FROM fired")?;
    let shown = crate::sql::show(&fired);
    ensure!(
        shown == "replica",
        "apply fires replica triggers and no ordinary ones; on n2 fired: {shown}"
    );
    Ok(())
}

fn truncate(stage: &Stage) -> Result<()> {
    let tables = ["a", "b"];
    let schema = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a);
                  CREATE TABLE quiet (id int PRIMARY KEY)";
    let cluster = stream(stage, schema, &tables)?;
    cluster.everywhere("SELECT ha.repset_create('no_truncate', true, true, true, false)")?;
    add_everywhere(&cluster, "no_truncate", &["quiet"])?;
    let name = Cluster::subscription_name(cluster.node(1)?, cluster.node(2)?);
    let add = format!("SELECT ha.sub_add_repset('{name}', 'no_truncate')");
    cluster.node(2)?.exec(&cluster.database, &add)?;
    cluster.wait_replicating()?;
    step(
        &cluster,
        &tables,
        &[
            "INSERT INTO a SELECT generate_series(1, 100)",
            "INSERT INTO b SELECT generate_series(1, 100)",
            "TRUNCATE b",
            "INSERT INTO b SELECT generate_series(1, 10)",
            "TRUNCATE a, b",
            "INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)",
            "TRUNCATE a CASCADE",
            "INSERT INTO a VALUES (2)",
            "BEGIN; TRUNCATE a CASCADE; INSERT INTO a VALUES (3); COMMIT",
        ],
    )?;
    let one = cluster.node(1)?;
    one.exec(&cluster.database, "INSERT INTO quiet VALUES (1)")?;
    one.exec(&cluster.database, "TRUNCATE quiet")?;
    cluster.sync(1, 2)?;
    let count = cluster
        .node(2)?
        .number(&cluster.database, "SELECT count(*) FROM quiet")?;
    ensure!(
        count == 1,
        "quiet is in a set that does not send TRUNCATE, yet n2 has {count} rows instead of 1"
    );
    Ok(())
}
