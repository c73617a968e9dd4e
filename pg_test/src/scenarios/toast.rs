//! Failure story: a large value, stored out of line, is not in the WAL of an update that left it alone. The row arrives
//! without it, as NULL, or is not found by it.

use anyhow::{Result, ensure};

use super::support::{disable, enable};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::scenario::{Scenario, Stage};
use crate::sql;

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
        "toast_unchanged",
        "an update, a move or a delete of a row with large values loses them or does not find the row",
        unchanged,
    ),
    scenario(
        "toast_entering",
        "a row that has to be inserted comes without a large value that did not change",
        entering,
    ),
];

fn shows(cluster: &Cluster, node: usize, query: &str, wanted: &str) -> Result<()> {
    let found = sql::show(&cluster.node(node)?.rows(&cluster.database, query)?);
    ensure!(
        found == wanted,
        "{query} on n{node} should give {wanted:?} and gives {found:?}"
    );
    Ok(())
}

/// Tables with large values out of line: beside the key, in the key, with whole rows as identity, in partitions.
const TABLES: &str = "
    CREATE TABLE beside (id int PRIMARY KEY, n int, big text, other bytea);
    ALTER TABLE beside ALTER big SET STORAGE EXTERNAL; ALTER TABLE beside ALTER other SET STORAGE EXTERNAL;
    CREATE TABLE within (k text PRIMARY KEY, n int, big text) WITH (toast_tuple_target = 128);
    ALTER TABLE within ALTER k SET STORAGE EXTERNAL; ALTER TABLE within ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE whole (k text, n int, big text, j json, p point) WITH (toast_tuple_target = 128);
    ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
    ALTER TABLE whole ALTER j SET STORAGE EXTERNAL;
    CREATE TABLE parts (id int, k int, n int, big text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
    ALTER TABLE parts ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1); CREATE TABLE parts2 PARTITION OF parts FOR VALUES IN (2);";

const ALL: [&str; 4] = ["beside", "within", "whole", "parts"];

fn unchanged(stage: &Stage) -> Result<()> {
    let cluster = stage.mesh(Plan::nodes(3), TABLES)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    for table in ALL {
        cluster.everywhere(&format!("SELECT ha.repset_add_table('default', '{table}')"))?;
    }
    // The subscriber may keep them otherwise: compressed, or in the row.
    two.exec(
        database,
        "ALTER TABLE beside ALTER big SET STORAGE EXTENDED; ALTER TABLE whole ALTER big SET STORAGE PLAIN",
    )?;
    one.exec(
        database,
        "INSERT INTO beside SELECT i, 0, repeat(chr(96 + i), 9000), decode(repeat('ab', 9000), 'hex') FROM generate_series(1, 6) i;
         INSERT INTO within SELECT repeat(chr(96 + i), 900), 0, repeat(chr(96 + i), 5000) FROM generate_series(1, 6) i;
         INSERT INTO whole SELECT repeat('k', i), 0, repeat(chr(96 + i), 3000), to_json(repeat(chr(96 + i), 5000)), point(i, -0.0)
           FROM generate_series(1, 6) i;
         INSERT INTO parts SELECT i, 1, 0, repeat(chr(96 + i), 9000) FROM generate_series(1, 6) i;",
    )?;
    cluster.sync_all()?;
    let stored = one.number(
        database,
        "SELECT count(*) FROM within WHERE pg_column_size(k) >= 900",
    )?;
    ensure!(stored == 6, "the keys are not as large as they should be");
    let toasted = one.number(
        database,
        "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 'within'",
    )?;
    ensure!(toasted > 0, "nothing of table within is out of line");
    one.exec(
        database,
        "UPDATE beside SET n = 1; UPDATE beside SET id = id + 10 WHERE id = 2; UPDATE beside SET big = NULL WHERE id = 3;
         UPDATE beside SET other = 'x' WHERE id = 4;
         UPDATE within SET n = 1; UPDATE within SET k = k || 'z' WHERE k LIKE 'b%'; DELETE FROM within WHERE k LIKE 'c%';
         UPDATE whole SET n = 1; UPDATE whole SET k = 'new' WHERE k = 'kk'; DELETE FROM whole WHERE k = 'kkk';
         UPDATE parts SET n = 1; UPDATE parts SET k = 2 WHERE id < 4; DELETE FROM parts WHERE id = 5;",
    )?;
    cluster.sync_all()?;
    compare::identical(&cluster, &ALL)?;
    // Another node goes on with rows that it got so, and the third gets both.
    two.exec(
        database,
        "UPDATE beside SET n = 2; UPDATE within SET n = 2; UPDATE whole SET n = 2; UPDATE parts SET n = 2, k = 3 - k;
         DELETE FROM whole WHERE k = 'k'; DELETE FROM within WHERE k LIKE 'd%'",
    )?;
    cluster.sync_all()?;
    compare::identical(&cluster, &ALL)?;
    for node in 1..=3 {
        shows(
            &cluster,
            node,
            "SELECT (SELECT sum(length(big)) FROM beside), (SELECT sum(length(big)) FROM within), \
                    (SELECT sum(length(j::text)) FROM whole), (SELECT sum(length(big)) FROM parts)",
            "45000 | 20000 | 20008 | 45000",
        )?;
    }
    Ok(())
}

fn entering(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(
        database,
        "CREATE TYPE color AS ENUM ('red', 'blue');
         CREATE TABLE f (id int, c color, region text, big text, arr int[], at timestamptz[], PRIMARY KEY (region, c, id));
         ALTER TABLE f ALTER big SET STORAGE EXTERNAL; ALTER TABLE f ALTER arr SET STORAGE EXTERNAL;
         ALTER TABLE f ALTER at SET STORAGE EXTERNAL;
         CREATE TABLE heir (LIKE f INCLUDING ALL) INHERITS (f);
         CREATE TABLE pf (id int, k int, big text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
         CREATE TABLE pf1 PARTITION OF pf FOR VALUES FROM (0) TO (100); ALTER TABLE pf1 ALTER big SET STORAGE EXTERNAL;
         SELECT ha.repset_add_table('default', 'f', row_filter => 'region = ''eu''');
         SELECT ha.repset_add_table('default', 'pf', row_filter => 'k > 50');",
    )?;
    two.exec(
        database,
        "CREATE TYPE color AS ENUM ('blue', 'red');
         CREATE TABLE f (id bigint, c color, region text, big text, arr int[], at timestamptz[], PRIMARY KEY (region, c, id));
         CREATE TABLE pf (id int, k int, big text, PRIMARY KEY (id, k))",
    )?;
    one.exec(
        database,
        "CREATE ROLE link LOGIN REPLICATION IN ROLE ha_replication; GRANT SELECT ON f, pf TO link",
    )?;
    let dsn = one.dsn(database).replace("user=postgres", "user=link");
    let name = cluster.subscribe_through(&dsn, 1, 2)?;
    cluster.wait_replicating()?;
    let insert = |id: u32, table: &str| {
        format!(
            "INSERT INTO {table} SELECT {id}, 'red', 'us', repeat('it''s \\ {id} ä', 1000), array_agg(i), \
                    array_agg(timestamptz '2020-02-03 04:05:06+00' + i * interval '1 s') FROM generate_series(1, 3000) i;"
        )
    };
    let wanted =
        "SELECT id, md5(big), md5(arr::text), md5(at::text) FROM ONLY f WHERE region = 'eu' ORDER BY id";
    let same = |when: &str| -> Result<()> {
        cluster.sync(1, 2)?;
        let (left, right) = (one.rows(database, wanted)?, two.rows(database, wanted)?);
        ensure!(
            !left.is_empty() && left == right,
            "{when}: {left:?} became {right:?}"
        );
        Ok(())
    };
    // An heir has a row with the same key, of its own.
    one.exec(
        database,
        &format!(
            "{} {} {} {} UPDATE ONLY f SET region = 'eu'",
            insert(1, "heir"),
            insert(1, "f"),
            insert(2, "f"),
            insert(3, "f")
        ),
    )?;
    same("rows that entered")?;
    one.exec(
        database,
        "INSERT INTO pf SELECT 1, 1, repeat('p', 9000); UPDATE pf SET k = 60",
    )?;
    cluster.sync(1, 2)?;
    shows(&cluster, 2, "SELECT id, k, length(big) FROM pf", "1 | 60 | 9000")?;

    // Late, when the provider has something else: another value, no row, another key.
    disable(&cluster, one, two)?;
    one.exec(
        database,
        &format!(
            "{} {} {} {} UPDATE ONLY f SET region = 'eu' WHERE id > 3;
             UPDATE ONLY f SET big = repeat('new', 3000) WHERE id = 4; DELETE FROM ONLY f WHERE id = 5;
             UPDATE ONLY f SET id = 60 WHERE id = 6; UPDATE ONLY f SET region = 'us' WHERE id = 7;
             UPDATE ONLY f SET big = 'inline' WHERE id = 60;",
            insert(4, "f"),
            insert(5, "f"),
            insert(6, "f"),
            insert(7, "f")
        ),
    )?;
    enable(&cluster, one, two)?;
    cluster.sync(1, 2)?;
    shows(&cluster, 2, "SELECT id FROM f WHERE id > 3 ORDER BY id", "4")?;
    // The one that got another key was not there to be updated; the provider still has it, the next change of it...
    one.exec(
        database,
        "UPDATE ONLY f SET region = 'us' WHERE id = 60; UPDATE ONLY f SET region = 'eu' WHERE id = 60",
    )?;
    same("rows that changed meanwhile")?;

    // A provider that refuses to answer is asked again.
    one.exec(
        database,
        &format!(
            "{} REVOKE SELECT ON f FROM link; UPDATE ONLY f SET region = 'eu' WHERE id = 8",
            insert(8, "f")
        ),
    )?;
    cluster.wait_status(two, &name, "failed")?;
    let told = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
    ensure!(
        told.contains("public.f") && told.contains("\"big\"") && told.contains("permission denied"),
        "the error should name table, column and reason: {told}"
    );
    one.exec(database, "GRANT SELECT ON f TO link")?;
    same("once the provider answers")
}
