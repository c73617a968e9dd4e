//! Failure story: a change loses against a concurrent one, and nobody can find out what it was: the history has no row
//! of it, or the wrong one, or two; or the history itself stops the stream, grows without end, or shows rows to people
//! who may not read them.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::support::{CONFLICTS, add_everywhere, counter, disable, enable};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::sql;
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
        "conflict_history_content",
        "the history of conflicts lacks one, has one twice, or shows other rows than there were",
        content,
    ),
    scenario(
        "conflict_history_values",
        "a value that is hard to show as JSON stops the stream or is missing from the history",
        values,
    ),
    scenario(
        "conflict_history_transactions",
        "a conflict of a repeated, streamed or prepared transaction is written twice, or not at all",
        transactions,
    ),
    scenario(
        "conflict_history_burst",
        "many conflicts at once make the stream fall behind, or the history grow without end",
        burst,
    ),
];

fn shows(cluster: &Cluster, node: &Node, query: &str, wanted: &str) -> Result<()> {
    let found = sql::show(&node.rows(&cluster.database, query)?);
    ensure!(
        found == wanted,
        "{query} on {} should give\n{wanted}\nand gives\n{found}",
        node.name
    );
    Ok(())
}

/// Runs `work` while no change travels, then lets everything through and waits until it has arrived.
fn apart(cluster: &Cluster, work: impl Fn(&Node, &Node) -> Result<()>) -> Result<()> {
    for (from, to) in cluster.pairs() {
        disable(cluster, from, to)?;
    }
    work(cluster.node(1)?, cluster.node(2)?)?;
    for (from, to) in cluster.pairs() {
        enable(cluster, from, to)?;
    }
    cluster.wait_replicating()?;
    cluster.sync_all()
}

fn pair(stage: &Stage, plan: Plan, schema: &str, tables: &[&str]) -> Result<Arc<Cluster>> {
    let cluster = stage.mesh(plan, schema)?;
    add_everywhere(&cluster, "default", tables)?;
    Ok(cluster)
}

/// The counters of a node's only subscription and of its tables are what the history holds.
fn counted(cluster: &Cluster) -> Result<()> {
    for (from, to) in cluster.pairs() {
        let written = to.number(&cluster.database, "SELECT count(*) FROM ha.conflicts")?;
        let counted = counter(cluster, to, &Cluster::subscription_name(from, to), CONFLICTS)?;
        let tables = to.number(
            &cluster.database,
            "SELECT coalesce(sum(conflicts), 0)::bigint FROM ha.status_tables",
        )?;
        ensure!(
            u64::try_from(written)? == counted && written == tables,
            "{} has {written} conflicts written, {counted} counted for its subscription, {tables} for its tables",
            to.name
        );
    }
    Ok(())
}

/// As [`sql::show`] shows it.
const NO_ROWS: &str = "(no rows)";

/// What is known of each conflict, apart from times and positions; the large value by its length.
const ROWS: &str = "SELECT relation, conflict_type, resolution, key,
           CASE WHEN local_row ->> 'big' > '' THEN jsonb_set(local_row, '{big}', to_jsonb(length(local_row ->> 'big'))) ELSE local_row END,
           local_origin, remote_row, remote_origin, omitted
      FROM ha.conflicts ORDER BY relation::text, conflict_type, key::text";

const CONTENT: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text, big text, n int GENERATED ALWAYS AS (id * 2) STORED);
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE part (k int, id int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
    CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1);
    -- Its columns stand in another order.
    CREATE TABLE part2 (v text, id int NOT NULL, k int NOT NULL);
    ALTER TABLE part ATTACH PARTITION part2 FOR VALUES IN (2);
    CREATE TABLE whole (id int, v text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE gone (id int PRIMARY KEY, v text);";

fn content(stage: &Stage) -> Result<()> {
    let cluster = pair(stage, Plan::nodes(2), CONTENT, &["t", "part", "whole", "gone"])?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(
        database,
        "INSERT INTO t SELECT g, 'start', CASE WHEN g = 4 THEN repeat('x', 9000) END FROM generate_series(2, 7) g;
         INSERT INTO part SELECT 2, g, 'start' FROM generate_series(1, 3) g;
         INSERT INTO whole VALUES (1, 'start'), (2, 'start'); INSERT INTO gone VALUES (1, 'start')",
    )?;
    cluster.sync_all()?;
    // Each having seen the other's: no conflict.
    for (node, value) in [(two, "seen"), (one, "turn")] {
        node.exec(
            database,
            &format!(
                "UPDATE t SET v = '{value}'; UPDATE part SET v = '{value}'; UPDATE whole SET v = '{value}'"
            ),
        )?;
        cluster.sync_all()?;
    }
    for node in &cluster.nodes {
        shows(&cluster, node, "SELECT count(*) FROM ha.conflicts", "0")?;
    }
    let position = |node: &Node| node.text(database, "SELECT pg_current_wal_lsn()");
    let starts = [position(one)?, position(two)?];
    apart(&cluster, |one, two| {
        let writes = [
            (one, "INSERT INTO t VALUES (1, 'early')"),
            (two, "INSERT INTO t VALUES (1, 'late')"),
            (two, "UPDATE t SET v = 'early' WHERE id IN (2, 4)"),
            (one, "UPDATE t SET v = 'late' WHERE id IN (2, 4)"),
            // Deleted here, updated there, in both orders; and deleted on both.
            (one, "DELETE FROM t WHERE id IN (3, 6)"),
            (two, "UPDATE t SET v = 'after the delete' WHERE id = 3"),
            (two, "UPDATE t SET v = 'before the delete' WHERE id = 5"),
            (two, "DELETE FROM t WHERE id = 6"),
            (one, "DELETE FROM t WHERE id = 5"),
            // A delete that loses.
            (two, "DELETE FROM t WHERE id = 7"),
            (one, "UPDATE t SET v = 'kept' WHERE id = 7"),
            // In partitions; one row moves to another.
            (one, "UPDATE part SET v = 'early' WHERE id = 1"),
            (two, "UPDATE part SET v = 'late', k = 1 WHERE id = 1"),
            (one, "DELETE FROM part WHERE id = 2"),
            (two, "UPDATE part SET v = 'lost' WHERE id = 2"),
            (two, "UPDATE part SET v = 'early' WHERE id = 3"),
            (one, "UPDATE part SET v = 'late' WHERE id = 3"),
            // Without a key.
            (one, "UPDATE whole SET v = 'early' WHERE id = 1"),
            (two, "DELETE FROM whole WHERE id = 1"),
            (one, "UPDATE gone SET v = 'early'"),
            (two, "UPDATE gone SET v = 'late'"),
        ];
        writes.iter().try_for_each(|(node, sql)| node.exec(database, sql))
    })?;
    shows(&cluster, one, ROWS, ON_ONE)?;
    shows(&cluster, two, ROWS, ON_TWO)?;
    // Times and positions are those of the commits: the version that is remote here is the local one there.
    let times = "SELECT string_agg(concat_ws(' ', relation, conflict_type, key, local_commit_ts, remote_commit_ts), E'\n' ORDER BY relation::text, key)
                   FROM (SELECT relation, conflict_type, key, least(local_commit_ts, remote_commit_ts) AS local_commit_ts,
                                greatest(local_commit_ts, remote_commit_ts) AS remote_commit_ts
                           FROM ha.conflicts WHERE conflict_type IN ('insert_exists', 'update_origin_differs')) c";
    let (here, there) = (one.text(database, times)?, two.text(database, times)?);
    ensure!(here == there, "the versions differ:\n{here}\n{there}");
    for (node, from, start) in [(one, two, &starts[1]), (two, one, &starts[0])] {
        let end = position(from)?;
        shows(
            &cluster,
            node,
            &format!(
                "SELECT conflict_id, remote_lsn FROM ha.conflicts
                  WHERE remote_lsn NOT BETWEEN '{start}' AND '{end}' OR remote_commit_ts > at
                     OR (resolution = 'apply_remote') IS DISTINCT FROM (remote_commit_ts > local_commit_ts) AND resolution <> 'skip'
                     OR subscription_name <> 'sub_{}_{}' OR relation_name <> 'public.' || relation::text",
                node.name, from.name
            ),
            NO_ROWS,
        )?;
    }
    counted(&cluster)?;
    // What happened to a table that is dropped stays.
    one.exec(database, "DROP TABLE gone")?;
    shows(
        &cluster,
        one,
        "SELECT relation::text ~ '^[0-9]+$', key, local_row, remote_row FROM ha.conflicts WHERE relation_name = 'public.gone'",
        r#"t | {"id": 1} | {"v": "early", "id": 1} | {"v": "late", "id": 1}"#,
    )
}

const ON_ONE: &str = r#"gone | update_origin_differs | apply_remote | {"id": 1} | {"v": "early", "id": 1} | n1 | {"v": "late", "id": 1} | n2 | NULL
part | delete_origin_differs | apply_remote | {"k": 2, "id": 1} | {"k": 2, "v": "early", "id": 1} | n1 | NULL | n2 | NULL
part | update_missing | skip | {"k": 2, "id": 2} | NULL | NULL | {"k": 2, "v": "lost", "id": 2} | n2 | NULL
part | update_origin_differs | keep_local | {"k": 2, "id": 3} | {"k": 2, "v": "late", "id": 3} | n1 | {"k": 2, "v": "early", "id": 3} | n2 | NULL
t | delete_missing | skip | {"id": 6} | NULL | NULL | NULL | n2 | NULL
t | delete_origin_differs | keep_local | {"id": 7} | {"n": 14, "v": "kept", "id": 7, "big": null} | n1 | NULL | n2 | NULL
t | insert_exists | apply_remote | {"id": 1} | {"n": 2, "v": "early", "id": 1, "big": null} | n1 | {"v": "late", "id": 1, "big": null} | n2 | NULL
t | update_missing | skip | {"id": 3} | NULL | NULL | {"v": "after the delete", "id": 3, "big": null} | n2 | NULL
t | update_missing | skip | {"id": 5} | NULL | NULL | {"v": "before the delete", "id": 5, "big": null} | n2 | NULL
t | update_origin_differs | keep_local | {"id": 2} | {"n": 4, "v": "late", "id": 2, "big": null} | n1 | {"v": "early", "id": 2, "big": null} | n2 | NULL
t | update_origin_differs | keep_local | {"id": 4} | {"n": 8, "v": "late", "id": 4, "big": 9000} | n1 | {"v": "early", "id": 4} | n2 | {"remote_row": {"big": "unchanged"}}
whole | delete_missing | skip | {"v": "turn", "id": 1} | NULL | NULL | NULL | n2 | NULL"#;
const ON_TWO: &str = r#"gone | update_origin_differs | keep_local | {"id": 1} | {"v": "late", "id": 1} | n2 | {"v": "early", "id": 1} | n1 | NULL
part | delete_origin_differs | keep_local | {"k": 2, "id": 2} | {"k": 2, "v": "lost", "id": 2} | n2 | NULL | n1 | NULL
part | update_missing | skip | {"k": 2, "id": 1} | NULL | NULL | {"k": 2, "v": "early", "id": 1} | n1 | NULL
part | update_origin_differs | apply_remote | {"k": 2, "id": 3} | {"k": 2, "v": "early", "id": 3} | n2 | {"k": 2, "v": "late", "id": 3} | n1 | NULL
t | delete_missing | skip | {"id": 6} | NULL | NULL | NULL | n1 | NULL
t | delete_origin_differs | keep_local | {"id": 3} | {"n": 6, "v": "after the delete", "id": 3, "big": null} | n2 | NULL | n1 | NULL
t | delete_origin_differs | apply_remote | {"id": 5} | {"n": 10, "v": "before the delete", "id": 5, "big": null} | n2 | NULL | n1 | NULL
t | insert_exists | keep_local | {"id": 1} | {"n": 2, "v": "late", "id": 1, "big": null} | n2 | {"v": "early", "id": 1, "big": null} | n1 | NULL
t | update_missing | skip | {"id": 7} | NULL | NULL | {"v": "kept", "id": 7, "big": null} | n1 | NULL
t | update_origin_differs | apply_remote | {"id": 2} | {"n": 4, "v": "early", "id": 2, "big": null} | n2 | {"v": "late", "id": 2, "big": null} | n1 | NULL
t | update_origin_differs | apply_remote | {"id": 4} | {"n": 8, "v": "early", "id": 4, "big": 9000} | n2 | {"v": "late", "id": 4} | n1 | {"remote_row": {"big": "unchanged"}}
whole | update_missing | skip | {"v": "turn", "id": 1} | NULL | NULL | {"v": "early", "id": 1} | n1 | NULL"#;

const VALUES: &str = "
    CREATE ROLE owner; CREATE SCHEMA hers AUTHORIZATION owner; GRANT ALL ON SCHEMA public TO owner;
    CREATE TYPE hers.pair AS (a int, b text[]);
    CREATE TYPE hers.mood AS ENUM ('glad', 'sad'); CREATE TYPE hers.wild AS ENUM ('on', 'off');
    CREATE TYPE hers.span AS RANGE (subtype = float8);
    ALTER TYPE hers.mood OWNER TO owner; ALTER TYPE hers.wild OWNER TO owner;
    SET ROLE owner;
    CREATE FUNCTION hers.mood_json(hers.mood) RETURNS json LANGUAGE plpgsql AS
        'BEGIN RETURN json_build_object(''mood'', $1::text, ''shown by'', current_user); END';
    CREATE FUNCTION hers.wild_json(hers.wild) RETURNS json LANGUAGE plpgsql AS 'BEGIN RAISE ''never''; END';
    CREATE CAST (hers.mood AS json) WITH FUNCTION hers.mood_json(hers.mood);
    CREATE CAST (hers.wild AS json) WITH FUNCTION hers.wild_json(hers.wild);
    CREATE DOMAIN hers.small AS int;
    CREATE TABLE v (id int PRIMARY KEY, n int, \"a \"\"name\"\", in quotes\" text, b bool, s smallint, i8 bigint, f float8, g float4,
        num numeric, money money, at timestamptz, ts timestamp, d date, span interval, by bytea, u uuid, addr inet, c char(5),
        js json, jb jsonb, ints int[], texts text[], jss json[], p hers.pair, ps hers.pair[], m hers.mood, r hers.span,
        x xml, pt point, small hers.small, vc varchar(20), nm numeric(6, 2), oids oid, fmt bit(3));
    CREATE TABLE hard (id int PRIMARY KEY, n int, js json, w hers.wild, small hers.small, long text);
    RESET ROLE;";

const VALUE_ROWS: &str = r#"
    INSERT INTO v VALUES (1, 0, E'quote " backslash \\ newline \n bell \x07 ä €', true, -7, 9007199254740993, 'NaN', 1.5,
        '123456789012345678901234567890.1234567890', 3.5, '2026-02-03 04:05:06.789+02', '2026-02-03 04:05:06', 'infinity', '1 day 2 hours',
        '\x00ff', '00000000-0000-0000-0000-0000000000ff', '10.0.0.1/8', 'ab', '{"b": 1, "a": [1, "x"]}', '{"k": null}',
        '{{1,2},{3,null}}', '{"a b","NULL",null}', array['{"a":1}'::json], '(1,"{x,y}")', array['(1,"{x}")'::hers.pair], 'glad', '[1,2.5)',
        '<a>b</a>', '(1,2)', 5, 'text', '12.30', 4294967295, B'101');
    INSERT INTO v (id, n, f, num) VALUES (2, 0, '-Infinity', 'Infinity');
    INSERT INTO hard VALUES (1, 0, '{"zero": "\u0000"}', 'on', 5, 'short'), (2, 0, '{"large": 1e999999}', 'off', 5, 'short'), (3, 0, NULL, NULL, 5, 'short')"#;

fn values(stage: &Stage) -> Result<()> {
    let cluster = pair(stage, Plan::nodes(2), VALUES, &["v", "hard"])?;
    let one = cluster.node(1)?;
    let database = cluster.database.as_str();
    // In the subscriber's own terms, whatever the server's are.
    one.exec("postgres", "ALTER SYSTEM SET datestyle = 'SQL, DMY'")?;
    one.exec(database, VALUE_ROWS)?;
    cluster.sync_all()?;
    one.exec("postgres", "ALTER SYSTEM SET ha.conflict_max_row_size = '1kB'")?;
    apart(&cluster, |one, two| {
        two.exec(database, "UPDATE v SET n = 2; UPDATE hard SET n = 2 WHERE id < 3")?;
        two.exec(database, "UPDATE hard SET small = 500 WHERE id = 3")?;
        one.exec(
            database,
            "UPDATE v SET n = 1; UPDATE hard SET n = 1; DELETE FROM hard WHERE id = 3",
        )?;
        // A change that is left out is not held up by a value that would not fit.
        one.exec(database, "ALTER DOMAIN hers.small ADD CHECK (VALUE < 100)")?;
        one.exec(
            database,
            "CREATE TABLE saved AS SELECT id, to_jsonb(v) AS row FROM v",
        )
    })?;
    cluster.sync_all()?;
    shows(
        &cluster,
        one,
        "SELECT s.id, c.local_row, s.row, c.remote_row
           FROM ha.conflicts c JOIN saved s ON c.key = jsonb_build_object('id', s.id) AND c.relation = 'v'::regclass
          WHERE (c.local_row - 'm') IS DISTINCT FROM (s.row - 'm') OR c.remote_row IS DISTINCT FROM c.local_row || '{\"n\": 2}'
             OR c.omitted IS NOT NULL",
        NO_ROWS,
    )?;
    shows(
        &cluster,
        one,
        "SELECT id, local_row -> 'm' FROM ha.conflicts, jsonb_to_record(key) k(id int) WHERE relation = 'v'::regclass ORDER BY 1",
        "1 | {\"mood\": \"glad\", \"shown by\": \"owner\"}\n2 | null",
    )?;
    shows(
        &cluster,
        one,
        "SELECT conflict_type, local_row, remote_row, omitted FROM ha.conflicts WHERE relation = 'hard'::regclass ORDER BY key::text",
        HARD,
    )?;
    counted(&cluster)?;
    // By whom changes are applied, by him they are shown.
    let name = Cluster::subscription_name(cluster.node(2)?, one);
    one.exec(
        database,
        &format!("SELECT ha.sub_alter_options('{name}', '{{\"run_as\": \"subscription_owner\"}}')"),
    )?;
    apart(&cluster, |one, two| {
        two.exec(database, "UPDATE v SET n = 4 WHERE id = 1")?;
        one.exec(database, "UPDATE v SET n = 3 WHERE id = 1")
    })?;
    shows(
        &cluster,
        one,
        "SELECT local_row -> 'm' FROM ha.conflicts WHERE key = '{\"id\": 1}' ORDER BY conflict_id DESC LIMIT 1",
        "{\"mood\": \"glad\", \"shown by\": \"postgres\"}",
    )?;
    // What does not fit is named.
    one.exec(database, "SELECT pg_reload_conf()")?;
    apart(&cluster, |one, two| {
        two.exec(database, "UPDATE hard SET long = repeat('l', 2000) WHERE id = 1")?;
        one.exec(database, "UPDATE hard SET n = 3 WHERE id = 1")
    })?;
    shows(
        &cluster,
        one,
        "SELECT local_row ->> 'long', remote_row ? 'long', omitted FROM ha.conflicts ORDER BY conflict_id DESC LIMIT 1",
        "short | f | {\"remote_row\": {\"long\": \"too large\"}}",
    )?;
    Ok(())
}

const HARD: &str = r#"update_origin_differs | {"n": 1, "w": "on", "id": 1, "js": "{\"zero\": \"\\u0000\"}", "long": "short", "small": 5} | {"n": 2, "w": "on", "id": 1, "js": "{\"zero\": \"\\u0000\"}", "long": "short", "small": 5} | NULL
update_origin_differs | {"n": 1, "w": "off", "id": 2, "js": "{\"large\": 1e999999}", "long": "short", "small": 5} | {"n": 2, "w": "off", "id": 2, "js": "{\"large\": 1e999999}", "long": "short", "small": 5} | NULL
update_missing | NULL | {"n": 0, "w": null, "id": 3, "js": null, "long": "short"} | {"remote_row": {"small": "unreadable"}}"#;

fn transactions(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2)
        .with("logical_decoding_work_mem", "64kB")
        .with("ha.spool_mem", "64kB")
        .with("max_prepared_transactions", "10");
    let cluster = pair(stage, plan, "CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"])?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let name = Cluster::subscription_name(two, one);
    one.exec(
        database,
        "INSERT INTO t SELECT g, 'start' FROM generate_series(1, 6000) g",
    )?;
    cluster.sync_all()?;
    one.exec(
        database,
        &format!("SELECT ha.sub_alter_options('{name}', '{{\"two_phase\": true}}')"),
    )?;
    let mut polling = two.polling(database);
    wait::until("the slot sends prepared transactions", PATIENCE, || {
        let seen =
            sql::show(&polling.rows("SELECT count(*) FROM pg_replication_slots WHERE two_phase AND active")?);
        Ok(Probe::when(seen == "1", seen))
    })?;
    cluster.wait_status(one, &name, "replicating")?;
    let kinds = |wanted: &str| {
        shows(
            &cluster,
            one,
            "SELECT conflict_type, resolution, count(*), count(DISTINCT key) FROM ha.conflicts GROUP BY 1, 2 ORDER BY 1",
            wanted,
        )
    };
    // An insert that meets a row makes the whole transaction be tried again, after its update has met a conflict.
    disable(&cluster, two, one)?;
    two.exec(
        database,
        "BEGIN; UPDATE t SET v = 'n2' WHERE id = 1; INSERT INTO t VALUES (10001, 'n2'); COMMIT",
    )?;
    one.exec(
        database,
        "UPDATE t SET v = 'n1' WHERE id = 1; INSERT INTO t VALUES (10001, 'n1')",
    )?;
    enable(&cluster, two, one)?;
    cluster.sync_all()?;
    kinds("insert_exists | keep_local | 1 | 1\nupdate_origin_differs | keep_local | 1 | 1")?;
    // A large transaction, part of which is rolled back.
    disable(&cluster, two, one)?;
    two.exec(
        database,
        "BEGIN; UPDATE t SET v = 'n2' WHERE id BETWEEN 1001 AND 4000; SAVEPOINT a;
         UPDATE t SET v = 'never' WHERE id BETWEEN 4001 AND 6000; ROLLBACK TO a; COMMIT",
    )?;
    one.exec(database, "UPDATE t SET v = 'n1' WHERE id > 1000")?;
    enable(&cluster, two, one)?;
    cluster.sync_all()?;
    kinds("insert_exists | keep_local | 1 | 1\nupdate_origin_differs | keep_local | 3001 | 3001")?;
    // Nothing is said of a prepared transaction before it commits.
    disable(&cluster, one, two)?;
    one.exec(database, "UPDATE t SET v = 'n1' WHERE id IN (11, 12)")?;
    let mut session = two.session(database)?;
    session.exec("BEGIN; UPDATE t SET v = 'later' WHERE id = 11; PREPARE TRANSACTION 'commits'")?;
    session.exec("BEGIN; UPDATE t SET v = 'never' WHERE id = 12; PREPARE TRANSACTION 'ends'")?;
    cluster.sync(2, 1)?;
    shows(
        &cluster,
        one,
        "SELECT gid, state FROM ha.prepared_transactions ORDER BY 1",
        "commits | kept\nends | kept",
    )?;
    kinds("insert_exists | keep_local | 1 | 1\nupdate_origin_differs | keep_local | 3001 | 3001")?;
    session.exec("COMMIT PREPARED 'commits'")?;
    session.exec("ROLLBACK PREPARED 'ends'")?;
    cluster.sync(2, 1)?;
    shows(
        &cluster,
        one,
        "SELECT key, resolution, remote_commit_ts > local_commit_ts FROM ha.conflicts WHERE key IN ('{\"id\": 11}', '{\"id\": 12}')",
        "{\"id\": 11} | apply_remote | t",
    )?;
    enable(&cluster, one, two)?;
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    counted(&cluster)?;
    // The server dies in the middle of many small ones: what comes again is written once.
    one.exec(database, "DELETE FROM ha.conflict_history")?;
    for (from, to) in cluster.pairs() {
        disable(&cluster, from, to)?;
    }
    one.exec(database, "UPDATE t SET v = 'again' WHERE id <= 3000")?;
    let mut session = two.session(database)?;
    session.exec("SET synchronous_commit = off")?;
    session.exec(
        "DO $$ BEGIN FOR i IN 1..3000 LOOP UPDATE t SET v = 'again n2' WHERE id = i; COMMIT; END LOOP; END $$",
    )?;
    enable(&cluster, two, one)?;
    let mut polling = one.polling(database);
    wait::until("some are written", PATIENCE, || {
        let seen = sql::show(&polling.rows("SELECT count(*) FROM ha.conflicts")?);
        Ok(Probe::when(seen != "0", seen))
    })?;
    drop(polling);
    one.kill_server()?;
    one.start()?;
    // Only now: what n2 writes once it has n1's change is no conflict.
    enable(&cluster, one, two)?;
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    kinds("update_origin_differs | apply_remote | 3000 | 3000")?;
    compare::identical(&cluster, &["t"])
}

fn burst(stage: &Stage) -> Result<()> {
    let rows = stage.repetitions(10_000, 100_000);
    let cluster = pair(
        stage,
        Plan::nodes(2),
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int, at timestamptz DEFAULT now());
         CREATE PROCEDURE each(rows int) LANGUAGE plpgsql AS $$
         BEGIN FOR i IN 1..rows LOOP UPDATE t SET n = n + 1 WHERE id = i; COMMIT; END LOOP; END $$",
        &["t"],
    )?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let name = Cluster::subscription_name(two, one);
    one.exec(
        database,
        &format!("INSERT INTO t SELECT g, repeat('v', 50), g FROM generate_series(1, {rows}) g"),
    )?;
    cluster.sync_all()?;
    disable(&cluster, one, two)?;
    let mut met = 0;
    let mut costs = Vec::new();
    for (kept, small) in [(0, false), (0, true), (1_000_000, false), (1_000_000, true)] {
        one.exec("postgres", &format!("ALTER SYSTEM SET ha.max_conflicts = {kept}"))?;
        one.exec("postgres", "SELECT pg_reload_conf()")?;
        disable(&cluster, two, one)?;
        one.exec(database, "UPDATE t SET n = n + 1")?;
        let mut session = two.session(database)?;
        session.exec("SET synchronous_commit = off")?;
        session.exec(&match small {
            true => format!("CALL each({rows})"),
            false => "UPDATE t SET n = n + 1".to_owned(),
        })?;
        let before = one.replication_time()?;
        let started = Instant::now();
        enable(&cluster, two, one)?;
        met += rows as u64;
        wait::until("every conflict is met", PATIENCE, || {
            let seen = counter(&cluster, one, &name, CONFLICTS)?;
            Ok(Probe::when(seen == met, seen.to_string()))
        })?;
        let time = started.elapsed().as_secs_f64();
        let spent = one.replication_time()?.saturating_sub(before).as_secs_f64() * 1e6;
        costs.push((spent / rows as f64, rows as f64 / time));
    }
    // A build without optimization takes 30 to 90 on a slow machine; what grows with the history takes thousands.
    let dearest = costs.iter().map(|(cost, _)| *cost).fold(0.0, f64::max);
    ensure!(
        dearest < 1000.0,
        "microseconds of the subscriber's processor for each conflict, and conflicts in a second: not written in one \
         transaction and in one for each, written in one and in one for each: {costs:.1?}"
    );
    let count = "SELECT count(*), count(DISTINCT (key, remote_lsn)) FROM ha.conflicts";
    shows(&cluster, one, count, &format!("{0} | {0}", 2 * rows))?;
    // Bounded: the oldest go, by number and by age.
    let newest = one.number(database, "SELECT max(conflict_id) FROM ha.conflicts")?;
    one.exec("postgres", "ALTER SYSTEM SET ha.max_conflicts = 3000")?;
    one.exec("postgres", "SELECT pg_reload_conf()")?;
    let bounded = |wanted: String| {
        let mut polling = one.polling(database);
        wait::until("the oldest conflicts have gone", PATIENCE, || {
            let seen = sql::show(
                &polling.rows("SELECT min(conflict_id), max(conflict_id), count(*) FROM ha.conflicts")?,
            );
            Ok(Probe::when(seen == wanted, seen))
        })
    };
    bounded(format!("{} | {newest} | 3000", newest - 2999))?;
    one.exec(
        database,
        &format!(
            "UPDATE ha.conflict_history SET at = at - interval '29 days 23 hours';
             UPDATE ha.conflict_history SET at = at - interval '2 hours' WHERE conflict_id <= {}",
            newest - 1000
        ),
    )?;
    bounded(format!("{} | {newest} | 1000", newest - 999))?;
    enable(&cluster, one, two)?;
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])
}
