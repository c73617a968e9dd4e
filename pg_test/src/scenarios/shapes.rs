//! Failure story: a table is not shaped alike on both nodes (partitioned otherwise or not at all, with other columns
//! in another order, with only some rows or columns sent), and rows are lost, doubled or end in the wrong place.

use anyhow::{Result, ensure};

use super::support::refused;
use crate::cluster::{Cluster, Plan};
use crate::scenario::{Scenario, Stage};
use crate::sql;
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "shapes_partitions",
        story: "a partitioned table meets one that is partitioned in another way, and rows are lost or doubled",
        run: partitions,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "shapes_partitions_change",
        story: "partitions come and go while changes stream, and rows are sent that should not be, or lost",
        run: partitions_change,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "shapes_filters",
        story: "a row that enters or leaves a filter stays where it should not be, or a column leaks that was not listed",
        run: filters,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "shapes_columns",
        story: "columns differ in order, type, default or existence, and values end in the wrong column",
        run: columns,
        needs: &[],
        stock: false,
        weight: 1,
    },
];

/// The same query must give the same on both nodes.
fn same(cluster: &Cluster, when: &str, queries: &[&str]) -> Result<()> {
    cluster.sync(1, 2)?;
    for query in queries {
        let ordered = format!("SELECT t::text FROM ({query}) t ORDER BY 1");
        let left = cluster.node(1)?.rows(&cluster.database, &ordered)?;
        let right = cluster.node(2)?.rows(&cluster.database, &ordered)?;
        ensure!(
            left == right,
            "{when}: {query}: n1 has {} rows, n2 {}; first n1: {} n2: {}",
            left.len(),
            right.len(),
            sql::show(&left).chars().take(300).collect::<String>(),
            sql::show(&right).chars().take(300).collect::<String>()
        );
    }
    Ok(())
}

fn expect(cluster: &Cluster, when: &str, query: &str, wanted: &str) -> Result<()> {
    cluster.sync(1, 2)?;
    let found = cluster.node(2)?.rows(&cluster.database, query)?;
    let found: Vec<String> = found
        .iter()
        .map(|row| {
            let cells: Vec<&str> = row.iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect();
            cells.join(" ")
        })
        .collect();
    let found = found.join(", ");
    ensure!(
        found == wanted,
        "{when}: {query} on n2 should give {wanted:?} and gives {found:?}"
    );
    Ok(())
}

const BY_REGION: &str = "
    CREATE TABLE p (id int, region text, gone int, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    ALTER TABLE p DROP COLUMN gone;
    CREATE TABLE p_eu (v text, junk int, region text NOT NULL, id int NOT NULL);
    ALTER TABLE p_eu DROP COLUMN junk;
    ALTER TABLE p ATTACH PARTITION p_eu FOR VALUES IN ('eu');
    CREATE TABLE p_us PARTITION OF p FOR VALUES IN ('us') PARTITION BY RANGE (id);
    CREATE TABLE p_us1 PARTITION OF p_us FOR VALUES FROM (0) TO (100);
    CREATE TABLE p_us2 PARTITION OF p_us FOR VALUES FROM (100) TO (5000);";

const BY_ID: &str = "
    CREATE TABLE p (v text, id int, extra int DEFAULT 7, region text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (50);
    CREATE TABLE p_high (id int NOT NULL, junk int, v text, region text, extra int DEFAULT 8);
    ALTER TABLE p_high DROP COLUMN junk;
    ALTER TABLE p ATTACH PARTITION p_high FOR VALUES FROM (50) TO (5000);";

fn partitions(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(database, BY_REGION)?;
    two.exec(database, BY_ID)?;
    // q: partitioned to plain; r: plain to partitioned; s: no key, partitioned to partitioned, found by whole rows;
    // u: the key of each partition, none on the root.
    let halves = |table: &str| {
        format!(
            "CREATE TABLE {table}_0 PARTITION OF {table} FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE {table}_1 PARTITION OF {table} FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        )
    };
    let hashed = |table: &str, key: &str| {
        format!(
            "CREATE TABLE {table} (id int {key}, v text) PARTITION BY HASH (id); {}",
            halves(table)
        )
    };
    let plain = |table: &str| format!("CREATE TABLE {table} (id int PRIMARY KEY, v text);");
    one.exec(
        database,
        &format!(
            "{} {} {} ALTER TABLE s REPLICA IDENTITY FULL; ALTER TABLE s_0 REPLICA IDENTITY FULL;
             ALTER TABLE s_1 REPLICA IDENTITY FULL; {}",
            hashed("q", "PRIMARY KEY"),
            plain("r"),
            hashed("s", ""),
            plain("u")
        ),
    )?;
    two.exec(
        database,
        &format!(
            "{} {} CREATE TABLE s (v text, id int) PARTITION BY RANGE (v);
             CREATE TABLE s_a PARTITION OF s FOR VALUES FROM ('a') TO ('m');
             CREATE TABLE s_m PARTITION OF s FOR VALUES FROM ('m') TO ('zz');
             CREATE TABLE u (id int NOT NULL, v text) PARTITION BY LIST (v);
             CREATE TABLE u_a PARTITION OF u (PRIMARY KEY (id)) FOR VALUES IN ('a');
             CREATE TABLE u_rest PARTITION OF u (PRIMARY KEY (id)) DEFAULT;",
            plain("q"),
            hashed("r", "PRIMARY KEY")
        ),
    )?;
    for table in ["p", "q", "r", "s", "u"] {
        one.exec(
            database,
            &format!("SELECT ha.repset_add_table('default', '{table}')"),
        )?;
    }
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let all = &[
        "SELECT id, region, v FROM p",
        "SELECT id, v FROM q",
        "SELECT id, v FROM r",
        "SELECT id, v FROM s",
        "SELECT id, v FROM u",
    ];
    one.exec(
        database,
        "INSERT INTO p SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, repeat('v', i) FROM generate_series(1, 200) i;
         INSERT INTO q SELECT i, i FROM generate_series(1, 100) i;
         INSERT INTO r SELECT i, i FROM generate_series(1, 100) i;
         INSERT INTO s SELECT i, chr(97 + i % 26) FROM generate_series(1, 100) i;
         INSERT INTO u SELECT i, chr(97 + i % 2) FROM generate_series(1, 20) i;",
    )?;
    same(&cluster, "after the inserts", all)?;
    expect(
        &cluster,
        "a column that only n2 has, of the table itself",
        "SELECT DISTINCT extra FROM p",
        "7",
    )?;
    one.exec(
        database,
        "UPDATE p SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END WHERE id < 60;
         UPDATE p SET id = id + 300 WHERE id IN (10, 20, 30, 70);
         UPDATE p SET v = repeat('x', 5000) || id WHERE id > 150;
         UPDATE p SET id = id - 141 WHERE id IN (151, 161, 171);
         DELETE FROM p WHERE id > 180 AND id < 300;
         UPDATE q SET v = 'x' WHERE id < 50;
         UPDATE q SET id = id + 1000 WHERE id > 80;
         DELETE FROM q WHERE id < 10;
         UPDATE r SET v = 'y' WHERE id < 20;
         UPDATE r SET id = id + 1000 WHERE id BETWEEN 30 AND 40;
         DELETE FROM r WHERE id > 90 AND id < 1000;
         UPDATE s SET v = chr(97 + (id + 13) % 26) WHERE id < 50;
         DELETE FROM s WHERE id > 80;
         UPDATE u SET v = CASE v WHEN 'a' THEN 'b' ELSE 'a' END WHERE id < 10;
         UPDATE u SET id = id + 100 WHERE id > 15;
         DELETE FROM u WHERE id = 12;",
    )?;
    same(&cluster, "after updates, moves and deletes", all)?;

    // Partitions with replica identities of their own, in turn; triggers of the partitions that rows move between.
    one.exec(
        database,
        "CREATE TABLE w (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
         CREATE TABLE w1 PARTITION OF w FOR VALUES IN (1); CREATE TABLE w2 PARTITION OF w FOR VALUES IN (2);
         ALTER TABLE w1 REPLICA IDENTITY FULL; SELECT ha.repset_add_table('default', 'w');",
    )?;
    two.exec(
        database,
        "CREATE TABLE w (id int, k int, v text, g text GENERATED ALWAYS AS (v || id) STORED, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE w_a PARTITION OF w FOR VALUES FROM (0) TO (10); CREATE TABLE w_b PARTITION OF w DEFAULT;
         CREATE TABLE w_log (what text);
         CREATE FUNCTION w_note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.w_log VALUES (TG_TABLE_NAME || chr(32) || TG_OP); RETURN NULL; END';
         CREATE TRIGGER w_note AFTER INSERT OR UPDATE OR DELETE ON w FOR EACH ROW EXECUTE FUNCTION w_note();
         ALTER TABLE w_a ENABLE ALWAYS TRIGGER w_note; ALTER TABLE w_b ENABLE REPLICA TRIGGER w_note;",
    )?;
    one.exec(
        database,
        "BEGIN; INSERT INTO w VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 1, 'c'); UPDATE w SET v = v || '!' WHERE id = 1;
         UPDATE w SET v = v || '!' WHERE id = 2; UPDATE w SET v = v || '?' WHERE k = 1; COMMIT;
         UPDATE w SET id = id + 100 WHERE id = 3; DELETE FROM w WHERE id = 2;",
    )?;
    same(
        &cluster,
        "identities differ among partitions",
        &["SELECT id, k, v FROM w"],
    )?;
    expect(
        &cluster,
        "generated columns follow",
        "SELECT tableoid::regclass, g FROM w ORDER BY id",
        "w_a a!?1, w_b c?103",
    )?;
    expect(
        &cluster,
        "triggers of the partitions fire",
        "SELECT what, count(*) FROM w_log GROUP BY 1 ORDER BY 1",
        "w_a DELETE 2, w_a INSERT 3, w_a UPDATE 4, w_b INSERT 1",
    )?;

    // A row that n2 has no partition for: the stream waits, says so, and goes on once there is one.
    one.exec(
        database,
        "ALTER TABLE p_us2 RENAME TO p_us_2; INSERT INTO p VALUES (6000, 'eu', 'far')",
    )?;
    cluster.wait_status(two, "sub_n2_n1", "failed")?;
    let told = two.text(database, "SELECT last_error FROM ha.status_subscriptions")?;
    ensure!(
        told.contains("no partition of relation"),
        "the error should name the reason: {told}"
    );
    two.exec(
        database,
        "CREATE TABLE p_far PARTITION OF p FOR VALUES FROM (5000) TO (9000)",
    )?;
    same(&cluster, "once there is a partition", all)?;

    // What is missing there, and has no partition there, is no reason to stop.
    two.exec(database, "DELETE FROM p WHERE id = 6000; DROP TABLE p_far")?;
    one.exec(database, "DELETE FROM p WHERE id = 6000")?;
    same(&cluster, "after the delete of what n2 lacks", all)?;
    one.exec(database, "TRUNCATE p, q, r, s, u")?;
    same(&cluster, "after TRUNCATE", all)
}

fn partitions_change(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(database, BY_REGION)?;
    two.exec(
        database,
        "CREATE TABLE p (id int, region text, v text, PRIMARY KEY (id, region))",
    )?;
    one.exec(database, "SELECT ha.repset_add_table('default', 'p')")?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let ids = "SELECT id FROM p ORDER BY 1";
    one.exec(
        database,
        "INSERT INTO p VALUES (1, 'eu', 'a'), (2, 'us', 'b');
         CREATE TABLE p_ap (id int NOT NULL, region text NOT NULL, v text);
         INSERT INTO p_ap VALUES (3, 'ap', 'before');
         ALTER TABLE p ATTACH PARTITION p_ap FOR VALUES IN ('ap');
         INSERT INTO p VALUES (4, 'ap', 'attached');",
    )?;
    expect(&cluster, "attached: what came before is not sent", ids, "1, 2, 4")?;
    one.exec(
        database,
        "ALTER TABLE p DETACH PARTITION p_ap; INSERT INTO p_ap VALUES (5, 'ap', 'detached');
         ALTER TABLE p DETACH PARTITION p_us; INSERT INTO p_us1 VALUES (6, 'us', 'with its parent');
         ALTER TABLE p ATTACH PARTITION p_us FOR VALUES IN ('us'); INSERT INTO p_us1 VALUES (7, 'us', 'back');
         CREATE TABLE p_new PARTITION OF p FOR VALUES IN ('new'); INSERT INTO p VALUES (8, 'new', 'new');",
    )?;
    expect(&cluster, "a subtree detached and back", ids, "1, 2, 4, 7, 8")?;

    // One partition alone is truncated under its own name.
    one.exec(database, "TRUNCATE p_us1")?;
    cluster.wait_status(two, "sub_n2_n1", "failed")?;
    let told = two.text(database, "SELECT last_error FROM ha.status_subscriptions")?;
    ensure!(
        told.contains("p_us1"),
        "the error should name the partition: {told}"
    );
    two.exec(
        database,
        "CREATE TABLE p_us1 (LIKE p INCLUDING ALL); INSERT INTO p_us1 VALUES (1, 'us')",
    )?;
    expect(
        &cluster,
        "a truncated partition",
        "SELECT count(*) FROM p_us1",
        "0",
    )?;

    // The table above renamed on both sides; then out of the set, one partition in by itself; then both.
    cluster.everywhere("ALTER TABLE p RENAME TO pp")?;
    one.exec(database, "INSERT INTO pp VALUES (9, 'eu', 'renamed')")?;
    expect(&cluster, "renamed", "SELECT v FROM pp WHERE id = 9", "renamed")?;
    one.exec(
        database,
        "SELECT ha.repset_remove_table('default', 'pp'); INSERT INTO pp VALUES (10, 'eu', 'not sent');
         SELECT ha.repset_add_table('default', 'p_us1'); INSERT INTO pp VALUES (11, 'us', 'own');",
    )?;
    expect(&cluster, "a partition by itself", "SELECT v FROM p_us1", "own")?;
    one.exec(
        database,
        "SELECT ha.repset_add_table('default', 'pp'); INSERT INTO pp VALUES (12, 'us', 'once');",
    )?;
    expect(
        &cluster,
        "both in the set: once, under the root",
        "SELECT (SELECT count(*) FROM pp WHERE id = 12), (SELECT count(*) FROM p_us1 WHERE id = 12)",
        "1 0",
    )?;
    expect(
        &cluster,
        "never sent",
        "SELECT count(*) FROM pp WHERE id = 10",
        "0",
    )
}

fn filters(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(
        database,
        "CREATE TABLE listed (id int PRIMARY KEY, a text, secret text, n int);
         CREATE TABLE f (id int, region text, v text, PRIMARY KEY (id, region));
         CREATE TABLE whole (id int, v int, big text);
         ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE once (id int, v text);
         CREATE TABLE fp (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
         CREATE TABLE fp1 (v text, k int NOT NULL, id int NOT NULL);
         ALTER TABLE fp ATTACH PARTITION fp1 FOR VALUES FROM (0) TO (10);
         CREATE TABLE fp2 PARTITION OF fp FOR VALUES FROM (10) TO (20);
         SELECT ha.repset_add_table('default', 'listed', columns => '{id,a}');
         SELECT ha.repset_add_table('default', 'f', row_filter => 'region = ''eu'' AND id > 10');
         SELECT ha.repset_add_table('default', 'whole', row_filter => 'v > 100 OR v IS NULL');
         SELECT ha.repset_add_table('default_insert_only', 'once', row_filter => 'lower(v) LIKE ''x%''');
         SELECT ha.repset_add_table('default', 'fp', row_filter => 'k BETWEEN 5 AND 15');
         SELECT ha.repset_create('other'); SELECT ha.repset_create('inserts', true, false, false, false);",
    )?;
    two.exec(
        database,
        "CREATE TABLE listed (n int DEFAULT 5, a text, id int PRIMARY KEY, secret text DEFAULT 'none');
         CREATE TABLE f (id int, region text, v text, PRIMARY KEY (id, region));
         CREATE TABLE whole (id int, v int, big text); CREATE TABLE once (id int, v text);
         CREATE TABLE fp (id int, k int, v text, PRIMARY KEY (id, k));",
    )?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;

    one.exec(
        database,
        "INSERT INTO listed VALUES (1, 'a', 's', 1), (2, 'b', 's', 2), (4, 'd', 's', 4);
         UPDATE listed SET a = 'aa', secret = 'x' WHERE id = 1; UPDATE listed SET id = 3 WHERE id = 2;
         DELETE FROM listed WHERE id = 4;",
    )?;
    expect(
        &cluster,
        "only listed columns",
        "SELECT id, a, secret, n FROM listed ORDER BY id",
        "1 aa none 5, 3 b none 5",
    )?;

    one.exec(
        database,
        "INSERT INTO f SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, 'v' FROM generate_series(1, 20) i",
    )?;
    let f = "SELECT id, v FROM f ORDER BY id";
    expect(&cluster, "filtered inserts", f, "12 v, 14 v, 16 v, 18 v, 20 v")?;
    one.exec(
        database,
        "UPDATE f SET region = 'us' WHERE id = 12; UPDATE f SET region = 'eu' WHERE id = 11;
         UPDATE f SET v = 'u'; UPDATE f SET id = 5 WHERE id = 14; UPDATE f SET id = 30 WHERE id = 2;
         DELETE FROM f WHERE id IN (15, 16);",
    )?;
    expect(&cluster, "in, out and within", f, "11 u, 18 u, 20 u, 30 u")?;

    // With the whole old row nothing is lost of a row that enters, large values neither.
    one.exec(
        database,
        "INSERT INTO whole SELECT i, i * 50, repeat('b', 10000) FROM generate_series(1, 3) i;
         INSERT INTO whole VALUES (4, NULL);
         UPDATE whole SET v = v + 100 WHERE id = 1; UPDATE whole SET v = 1 WHERE id = 3; DELETE FROM whole WHERE id = 4;",
    )?;
    expect(
        &cluster,
        "REPLICA IDENTITY FULL",
        "SELECT id, v, length(big) FROM whole",
        "1 150 10000",
    )?;
    one.exec(
        database,
        "INSERT INTO once VALUES (1, 'xa'), (2, 'Xb'), (3, 'yc'), (4, NULL)",
    )?;
    expect(&cluster, "inserts only", "SELECT id FROM once ORDER BY 1", "1, 2")?;
    one.exec(
        database,
        "INSERT INTO fp SELECT i, i, 'v' FROM generate_series(1, 19) i; UPDATE fp SET k = k + 10 WHERE k < 8;
         UPDATE fp SET v = 'w'",
    )?;
    same(
        &cluster,
        "a filter on partitions with other columns",
        &["SELECT id, k, v FROM fp WHERE k BETWEEN 5 AND 15"],
    )?;
    expect(
        &cluster,
        "nothing else",
        "SELECT count(*) FROM fp WHERE k NOT BETWEEN 5 AND 15",
        "0",
    )?;

    // Several sets: columns add up, one filter of several is enough, no filter wins for what its set sends.
    one.exec(
        database,
        "SELECT ha.repset_add_table('other', 'listed', columns => '{id,n}');
         SELECT ha.repset_add_table('other', 'f', row_filter => 'id < 3');
         SELECT ha.repset_add_table('inserts', 'whole');",
    )?;
    for set in ["other", "inserts"] {
        two.exec(database, &format!("SELECT ha.sub_add_repset('{name}', '{set}')"))?;
    }
    cluster.wait_replicating()?;
    one.exec(
        database,
        "INSERT INTO listed VALUES (9, 'nine', 'secret', 99); INSERT INTO f VALUES (1, 'xx', 'x'), (9, 'xx', 'x');
         INSERT INTO whole VALUES (7, 1), (8, 1); UPDATE whole SET big = 'not sent' WHERE id = 7;",
    )?;
    expect(
        &cluster,
        "union of columns",
        "SELECT a, secret, n FROM listed WHERE id = 9",
        "nine none 99",
    )?;
    expect(
        &cluster,
        "either filter",
        "SELECT id FROM f WHERE region = 'xx'",
        "1",
    )?;
    expect(
        &cluster,
        "no filter on inserts",
        "SELECT id, big FROM whole WHERE id > 6 ORDER BY 1",
        "7 NULL, 8 NULL",
    )?;
    // A large value that did not change is not in the WAL without it, and is fetched.
    one.exec(
        database,
        "ALTER TABLE f ALTER v SET STORAGE EXTERNAL; INSERT INTO f VALUES (40, 'large', repeat('l', 10000));
         UPDATE f SET region = 'eu' WHERE id = 40",
    )?;
    expect(
        &cluster,
        "a large value that did not change",
        "SELECT id, region, length(v) FROM f WHERE id = 40",
        "40 eu 10000",
    )?;
    refused(
        one,
        database,
        "SELECT ha.repset_add_table('other', 'once', row_filter => 'v IS NULL')",
        &["55000"],
        &["once", "default_insert_only"],
    )
    .map(drop)
}

fn columns(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(
        database,
        "CREATE TABLE c (a int, gone text, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, small int2, code varchar(5),
                         name char(4), g int GENERATED ALWAYS AS (a * 2) STORED, at date, f real);
         ALTER TABLE c DROP COLUMN gone;
         CREATE TABLE parent (id int PRIMARY KEY, v text);
         CREATE TABLE child (more int, PRIMARY KEY (id)) INHERITS (parent);",
    )?;
    two.exec(
        database,
        "CREATE TABLE c (lost int, f double precision, extra int, name text, code text, at timestamp, g bigint GENERATED ALWAYS AS (a + 1000) STORED,
                         id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a bigint, defaulted text DEFAULT 'd' NOT NULL, small numeric,
                         serial bigint GENERATED BY DEFAULT AS IDENTITY);
         ALTER TABLE c DROP COLUMN lost;
         CREATE TABLE parent (v text, id int PRIMARY KEY);
         CREATE TABLE child (more int, PRIMARY KEY (id)) INHERITS (parent);",
    )?;
    for table in ["c", "parent", "child"] {
        one.exec(
            database,
            &format!("SELECT ha.repset_add_table('default', '{table}')"),
        )?;
    }
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    one.exec(
        database,
        "INSERT INTO c (a, small, code, name, at, f) VALUES (1, 2, 'c1', 'n1', '2020-02-29', 1.5), (2, 3, 'c2', NULL, NULL, 'NaN')",
    )?;
    let query = "SELECT id, a, g, small, code, rtrim(name), f, extra, defaulted, serial FROM c ORDER BY id";
    expect(
        &cluster,
        "inserted",
        query,
        "1 1 1001 2 c1 n1 1.5 NULL d 1, 2 2 1002 3 c2 NULL NaN NULL d 2",
    )?;
    expect(
        &cluster,
        "a date is a timestamp",
        "SELECT at FROM c WHERE id = 1",
        "2020-02-29 00:00:00",
    )?;
    two.exec(database, "UPDATE c SET extra = 9, defaulted = 'mine'")?;
    one.exec(
        database,
        "UPDATE c SET a = 10, code = 'cc' WHERE id = 1; DELETE FROM c WHERE id = 2;
         ALTER TABLE c ADD COLUMN added int DEFAULT 3; ALTER TABLE c DROP COLUMN small;",
    )?;
    two.exec(database, "ALTER TABLE c ADD COLUMN added int")?;
    one.exec(database, "UPDATE c SET f = 2.5; INSERT INTO c (a) VALUES (4)")?;
    expect(
        &cluster,
        "updated, with columns dropped and added",
        "SELECT id, a, g, small, code, f, extra, defaulted, added FROM c ORDER BY id",
        "1 10 1010 2 cc 2.5 9 mine 3, 3 4 1004 NULL NULL NULL NULL d 3",
    )?;
    one.exec(
        database,
        "INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c', 20); UPDATE parent SET v = v || '!';
         INSERT INTO child VALUES (3, 'x', 30); DELETE FROM parent WHERE id = 3;",
    )?;
    expect(
        &cluster,
        "inheritance",
        "SELECT tableoid::regclass, id, v FROM parent ORDER BY id",
        "parent 1 p!, child 2 c!",
    )?;
    // A value that does not fit says where, and goes on once it does.
    two.exec(database, "ALTER TABLE c ALTER code TYPE varchar(2)")?;
    one.exec(database, "UPDATE c SET code = 'long' WHERE id = 1")?;
    cluster.wait_status(two, "sub_n2_n1", "failed")?;
    two.exec(database, "ALTER TABLE c ALTER code TYPE text")?;
    wait::until("n2 has the long value", PATIENCE, || {
        let found = two.rows(database, "SELECT code FROM c WHERE id = 1")?;
        Ok(Probe::when(sql::show(&found) == "long", sql::show(&found)))
    })
}
