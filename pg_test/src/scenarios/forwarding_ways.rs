//! Failure story: changes that come to a node on two ways are applied twice, or what only one way brings is taken for
//! applied, or nothing goes on any more.

use std::time::Duration;

use anyhow::{Context, Result};

use super::forwarding::{
    again, expect, lets_go, loaded, no_conflicts, read, scenario, subscribe, sync_along, write, writer,
};
use super::support::{disable, enable};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::scenario::{Scenario, Stage};
use crate::sql::{self, literal};
use crate::wait::{self, PATIENCE, Probe};
use crate::workload::{self, Schema, TABLES};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "forwarding_diamond_crash",
        "changes that come to a node on two ways are applied twice, or not at all, when one way dies",
        diamond_crash,
    ),
    scenario(
        "forwarding_diamond_copy",
        "a table that is copied from one of two providers never gets there under load, or lacks what the other one brought",
        diamond_copy,
    ),
    scenario(
        "forwarding_narrow",
        "of two ways one brings less, and what it leaves out is taken for applied",
        narrow,
    ),
    scenario(
        "forwarding_late_truncate",
        "a TRUNCATE that only the slower of two ways brings takes along what the faster one brought since",
        late_truncate,
    ),
    scenario(
        "forwarding_forgets",
        "what is remembered of changes that came on two ways grows faster than it is forgotten",
        forgets,
    ),
];

/// n3 counts what is applied there: triggers that fire always.
const COUNTING: &str = "CREATE TABLE counted (relation text, op text, id text);
    CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.counted VALUES (tg_relname, tg_op, coalesce(new.v, old.v));
        RETURN NULL;
    END $$;";

fn counting(table: &str) -> String {
    format!(
        "CREATE TRIGGER counts AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION count_it();
         ALTER TABLE {table} ENABLE ALWAYS TRIGGER counts;"
    )
}

fn diamond_crash(stage: &Stage) -> Result<()> {
    let schema = Schema::small(2);
    let cluster = loaded(stage, schema)?;
    write(
        &cluster,
        3,
        "CREATE TABLE counted (id bigint);
         CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.counted VALUES (new.bid); RETURN NULL; END $$;
         CREATE TRIGGER counts AFTER UPDATE ON pgbench_branches FOR EACH ROW EXECUTE FUNCTION count_it();
         ALTER TABLE pgbench_branches ENABLE ALWAYS TRIGGER counts",
    )?;
    cluster.subscribe(1, 2)?;
    cluster.subscribe(1, 3)?;
    subscribe(&cluster, 2, 3, "{all}")?;
    cluster.wait_replicating()?;
    let writing = writer(stage, &cluster, 1, 1, schema)?;
    let (first, second, third) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    let pause = Duration::from_millis(700);
    let faults: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("an absent direct way", &|| {
            disable(&cluster, first, third)?;
            wait::let_run(pause)?;
            enable(&cluster, first, third)
        }),
        ("kill -9 of C's applier", &|| third.kill_backend("pg_ha applier")),
        ("an absent forwarder", &|| {
            second.kill_server()?;
            wait::let_run(pause)?;
            second.start()
        }),
        ("kill -9 of C", &|| again(stage, third)),
        ("an absent indirect way", &|| {
            disable(&cluster, second, third)?;
            wait::let_run(pause)?;
            enable(&cluster, second, third)
        }),
    ];
    for round in 1..=stage.repetitions(1, 6) {
        for (what, fault) in &faults {
            wait::let_run(Duration::from_millis(stage.random(100..900)))?;
            fault().with_context(|| format!("round {round}: {what}"))?;
            second.wait_accepting()?;
            third.wait_accepting()?;
            cluster
                .wait_replicating()
                .with_context(|| format!("round {round}, after {what}"))?;
        }
    }
    let (label, account) = (writing.label.clone(), writing.stop()?);
    sync_along(&cluster, &[1, 2, 3])?;
    sync_along(&cluster, &[1, 3])?;
    for node in [second, third] {
        workload::audit(node, &cluster.database, &label, &account)?;
        workload::balanced(node, &cluster.database)?;
    }
    compare::identical(&cluster, &TABLES)?;
    let history = read(&cluster, 3, "SELECT count(*) FROM pgbench_history")?;
    expect(&cluster, 3, "SELECT count(*) FROM counted", &history)?;
    no_conflicts(&cluster)?;
    lets_go(&cluster, second)?;
    // What is remembered of them ends with the last way that they came by.
    let mut polling = third.polling(&cluster.database);
    wait::until("nothing but the newest is remembered", PATIENCE, || {
        write(
            &cluster,
            1,
            "UPDATE pgbench_branches SET filler = 'x' WHERE bid = 1",
        )?;
        let left = sql::show(&polling.rows("SELECT count(*) < 10, count(*) FROM ha.applied_changes")?);
        Ok(Probe::when(left.starts_with('t'), left))
    })
}

fn diamond_copy(stage: &Stage) -> Result<()> {
    let schema = Schema::small(2);
    let cluster = loaded(stage, schema)?;
    cluster.subscribe(1, 2)?;
    cluster.subscribe(1, 3)?;
    let indirect = subscribe(&cluster, 2, 3, "{n1}")?;
    cluster.wait_replicating()?;
    let writing = writer(stage, &cluster, 1, 1, schema)?;
    for round in 1..=stage.repetitions(2, 8) {
        for table in ["pgbench_branches", "pgbench_accounts"] {
            write(
                &cluster,
                3,
                &format!(
                    "SELECT ha.sub_resync_table({}, {})",
                    literal(&indirect),
                    literal(table)
                ),
            )?;
            let waiting = format!(
                "SELECT ha.sub_wait_for_sync({}, '{} s')",
                literal(&indirect),
                PATIENCE.as_secs()
            );
            expect(&cluster, 3, &waiting, "t").with_context(|| format!("round {round}: {table}"))?;
        }
    }
    let (label, account) = (writing.label.clone(), writing.stop()?);
    sync_along(&cluster, &[1, 2, 3])?;
    sync_along(&cluster, &[1, 3])?;
    for node in &cluster.nodes {
        workload::audit(node, &cluster.database, &label, &account)?;
        workload::balanced(node, &cluster.database)?;
    }
    compare::identical(&cluster, &TABLES)
}

fn narrow(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3))?;
    cluster.create_nodes()?;
    cluster.everywhere(
        "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text);
         CREATE TABLE c (id int PRIMARY KEY, v text); CREATE TABLE f (id int PRIMARY KEY, v text);
         CREATE TABLE k (v text);",
    )?;
    write(&cluster, 3, COUNTING)?;
    for table in ["a", "b", "c", "f", "k"] {
        write(&cluster, 3, &counting(table))?;
    }
    // n1 sends everything to n2. To n3 it sends a and k in "direct", of f one half; n2 sends a, b, k, and the other
    // half of f; of c it sends inserts alone, n1 all.
    write(
        &cluster,
        1,
        "SELECT ha.repset_create('everything'); SELECT ha.repset_create('direct');
         SELECT ha.repset_add_table('everything', t) FROM unnest('{a,b,c,f}'::regclass[]) t;
         SELECT ha.repset_add_table('default_insert_only', 'k');
         SELECT ha.repset_add_table('direct', t) FROM unnest('{a,c}'::regclass[]) t;
         SELECT ha.repset_add_table('direct', 'f', row_filter => 'id % 2 = 0')",
    )?;
    write(
        &cluster,
        2,
        "SELECT ha.repset_add_table('default', t) FROM unnest('{a,b}'::regclass[]) t;
         SELECT ha.repset_add_table('default', 'f', row_filter => 'id % 2 = 1');
         SELECT ha.repset_add_table('default_insert_only', t) FROM unnest('{c,k}'::regclass[]) t",
    )?;
    let (first, second, third) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    let dsn = literal(&first.dsn(&cluster.database));
    write(
        &cluster,
        2,
        &format!("SELECT ha.sub_create('sub_n2_n1', {dsn}, '{{everything,default_insert_only}}')"),
    )?;
    write(
        &cluster,
        3,
        &format!("SELECT ha.sub_create('sub_n3_n1', {dsn}, '{{direct,default_insert_only}}')"),
    )?;
    subscribe(&cluster, 2, 3, "{n1}")?;
    cluster.wait_replicating()?;

    let ways = [(first, "direct"), (second, "indirect")];
    let mut expected = 0;
    for round in 0..6 {
        // One way is closed, so that the other one brings everything first; then the other way round; then none is.
        let closed = ways.get(round % 3);
        if let Some((from, _)) = closed {
            disable(&cluster, from, third)?;
        }
        let base = round * 10;
        for table in ["a", "b", "c", "f"] {
            write(
                &cluster,
                1,
                &format!(
                    "BEGIN; INSERT INTO {table} SELECT {base} + g, 'i' FROM generate_series(1, 4) g; INSERT INTO k VALUES ('{table} {round}'); COMMIT;
                     UPDATE {table} SET v = 'u {round}' WHERE id IN ({base} + 1, {base} + 2);
                     BEGIN; DELETE FROM {table} WHERE id = {base} + 3; UPDATE {table} SET v = v || '!' WHERE id = {base} + 2; COMMIT;
                     DELETE FROM {table} WHERE id = {base} + 4;
                     INSERT INTO {table} VALUES ({base} + 4, 'again');"
                ),
            )?;
        }
        expected += 4;
        match closed {
            Some((from, _)) if from.number == 1 => sync_along(&cluster, &[1, 2, 3])?,
            Some(_) => {
                sync_along(&cluster, &[1, 3])?;
                sync_along(&cluster, &[1, 2])?;
            }
            None => {}
        }
        if let Some((from, what)) = closed {
            enable(&cluster, from, third)?;
            let name = Cluster::subscription_name(from, third);
            cluster
                .wait_status(third, &name, "replicating")
                .with_context(|| format!("round {round}, the {what} way"))?;
        }
        sync_along(&cluster, &[1, 2, 3])?;
        sync_along(&cluster, &[1, 3])?;
        for table in ["a", "b", "c", "f", "k"] {
            let rows = format!("SELECT * FROM {table} ORDER BY 1");
            expect(&cluster, 3, &rows, &read(&cluster, 1, &rows)?)
                .with_context(|| format!("round {round}, closed: {:?}", closed.map(|(_, what)| what)))?;
        }
    }
    // Each once: 4 inserts, 3 updates, 2 deletes and an insert a round and table; of k an insert.
    let counted = "SELECT relation, op, count(*) FROM counted WHERE relation IN ('a', 'b', 'k') GROUP BY 1, 2 ORDER BY 1, 2";
    let rounds = expected / 4;
    let wanted = format!(
        "a | DELETE | {}\na | INSERT | {}\na | UPDATE | {}\nb | DELETE | {}\nb | INSERT | {}\nb | UPDATE | {}\nk | INSERT | {expected}",
        2 * rounds,
        5 * rounds,
        3 * rounds,
        2 * rounds,
        5 * rounds,
        3 * rounds
    );
    expect(&cluster, 3, counted, &wanted)
}

fn forgets(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let second = cluster.node(2)?;
    // As after some minutes of many small transactions of an origin that nobody brings any more.
    write(
        &cluster,
        2,
        "INSERT INTO ha.applied_changes
         SELECT 77, '0/0'::pg_lsn + g, 1000000 * (extract(epoch FROM now()) - 946684800), 'x' FROM generate_series(1, 150000) g",
    )?;
    let mut polling = second.polling(&cluster.database);
    wait::until("nothing is remembered", PATIENCE, || {
        let left = sql::show(&polling.rows("SELECT count(*) FROM ha.applied_changes")?);
        Ok(Probe::when(left == "0", left))
    })
}

fn late_truncate(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3))?;
    cluster.create_nodes()?;
    cluster.everywhere("CREATE TABLE t (id int PRIMARY KEY); SELECT ha.repset_add_table('default', 't')")?;
    write(
        &cluster,
        1,
        "SELECT ha.repset_create('direct', replicate_truncate => false); SELECT ha.repset_add_table('direct', 't')",
    )?;
    cluster.subscribe(1, 2)?;
    let dsn = literal(&cluster.node(1)?.dsn(&cluster.database));
    write(
        &cluster,
        3,
        &format!("SELECT ha.sub_create('sub_n3_n1', {dsn}, '{{direct}}')"),
    )?;
    let indirect = subscribe(&cluster, 2, 3, "{n1}")?;
    cluster.wait_replicating()?;
    let (second, third) = (cluster.node(2)?, cluster.node(3)?);
    disable(&cluster, second, third)?;
    write(
        &cluster,
        1,
        "INSERT INTO t VALUES (1), (2); BEGIN; INSERT INTO t VALUES (3); TRUNCATE t; INSERT INTO t VALUES (4); COMMIT;
         INSERT INTO t VALUES (5)",
    )?;
    sync_along(&cluster, &[1, 3])?;
    sync_along(&cluster, &[1, 2])?;
    expect(&cluster, 3, "SELECT count(*) FROM t", "5")?;
    enable(&cluster, second, third)?;
    cluster.wait_status(third, &indirect, "replicating")?;
    sync_along(&cluster, &[2, 3])?;
    expect(&cluster, 3, "SELECT id FROM t ORDER BY id", "4\n5")
}
