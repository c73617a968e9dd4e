//! Failure story: a large transaction takes the memory of the servers, holds everything else up, brings rows that were
//! rolled back, or half of itself after a crash.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::support::{add_everywhere, wait_no_lag};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::{Node, Stop};
use crate::scenario::{Scenario, Stage};
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "streamed_memory",
        story: "a transaction far larger than every limit grows the walsender, the receiver or the applier until the system kills it",
        run: memory,
        needs: &[],
        stock: false,
        weight: 2,
    },
    Scenario {
        name: "streamed_ends",
        story: "rows of a large transaction are seen before it commits or after it rolled back, or others wait for it, or it travels back to where it came from",
        run: ends,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "streamed_savepoints",
        story: "a rollback to a savepoint inside a large transaction drops other rows than its own, or takes forever with many savepoints",
        run: savepoints,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "streamed_ddl",
        story: "a large transaction that changes its tables, or that others overtake, has its rows read by the wrong definition",
        run: ddl,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "streamed_crash",
        story: "a process or server that dies in the middle of a large transaction loses it, repeats it or leaves half of it",
        run: crash,
        needs: &[],
        stock: false,
        weight: 2,
    },
    Scenario {
        name: "streamed_forwarded",
        story: "a large transaction that is passed on to a third node is lost there, comes twice or counts as the second node's",
        run: forwarded,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "streamed_limits",
        story: "a large transaction fills the subscriber's disk although that has a limit, or never arrives once there is room",
        run: limits,
        needs: &[],
        stock: false,
        weight: 1,
    },
];

/// Everything beyond 64 kB is large: sent in progress by the provider, and kept on disk by the subscriber.
fn small_limits(nodes: usize) -> Plan {
    Plan::nodes(nodes)
        .with("logical_decoding_work_mem", "64kB")
        .with("ha.spool_mem", "64kB")
}

const TABLES: &str =
    "CREATE TABLE big (id int PRIMARY KEY, v text); CREATE TABLE small (id int PRIMARY KEY, v text)";

/// Rows of about 120 bytes.
fn insert(from: u32, count: u32) -> String {
    format!(
        "INSERT INTO big SELECT g, repeat(md5(g::text), 3) FROM generate_series({from}, {}) AS g",
        from + count - 1
    )
}

/// The applier's word on how many transactions in progress it keeps.
fn wait_spooled(cluster: &Cluster, node: &Node, subscription: &str, wanted: i64) -> Result<()> {
    wait::until(
        &format!("{subscription} keeps {wanted} transactions in progress"),
        PATIENCE,
        || {
            let kept = cluster
                .status_of(node, subscription, "spool_transactions")?
                .unwrap_or_default();
            Ok(Probe::when(kept == wanted.to_string(), kept))
        },
    )
}

fn disk_of(cluster: &Cluster, node: &Node, subscription: &str) -> Result<u64> {
    let disk = cluster.status_of(node, subscription, "spool_disk_bytes")?;
    Ok(disk.unwrap_or_default().parse()?)
}

/// Private memory of a process, in kB.
fn private_memory(pid: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.unwrap_or_default().parse()?)
}

fn memory(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2)
        .with("logical_decoding_work_mem", "1MB")
        .with("ha.spool_mem", "1MB")
        .with("max_wal_size", "2GB");
    let cluster = stage.cluster(plan)?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["big"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);

    let rows = if stage.long { 2_000_000 } else { 300_000 };
    let mut watched = Vec::new();
    for (node, kind) in [
        (one, "walsender"),
        (two, "pg_ha receiver"),
        (two, "pg_ha applier"),
    ] {
        let pid = node.text(
            "postgres",
            &format!("SELECT pid FROM pg_stat_activity WHERE backend_type = '{kind}'"),
        )?;
        let before = private_memory(&pid)?;
        watched.push((kind, pid, before, before));
    }
    let mut look = || -> Result<()> {
        for (_, pid, _, peak) in &mut watched {
            *peak = private_memory(pid)?.max(*peak);
        }
        Ok(())
    };
    let mut session = one.session(&cluster.database)?;
    session.exec("BEGIN")?;
    let mut disk = 0;
    for part in 0..10 {
        session.exec(&insert(1 + part * (rows / 10), rows / 10))?;
        look()?;
        disk = disk_of(&cluster, two, &name)?.max(disk);
    }
    wait::until(
        "most of the transaction lies on the subscriber's disk",
        PATIENCE,
        || {
            look()?;
            let disk = disk_of(&cluster, two, &name)?;
            Ok(Probe::when(disk > u64::from(rows) * 100, disk.to_string()))
        },
    )?;
    session.exec("COMMIT")?;
    let mut polling = two.polling(&cluster.database);
    wait::until("the transaction is visible", PATIENCE * 2, || {
        look()?;
        let count = crate::sql::show(&polling.rows("SELECT count(*) FROM big")?);
        Ok(Probe::when(count == rows.to_string(), count))
    })?;
    compare::identical(&cluster, &["big"])?;
    ensure!(
        disk_of(&cluster, two, &name)? == 0,
        "the spool still has bytes on disk"
    );
    for (kind, _, before, peak) in &watched {
        ensure!(
            peak.saturating_sub(*before) < 16 * 1024,
            "the {kind} grew from {before} to {peak} kB with a transaction of {rows} rows, about {} MB",
            rows / 8000
        );
    }
    Ok(())
}

fn ends(stage: &Stage) -> Result<()> {
    let cluster = stage.mesh(small_limits(2), TABLES)?;
    add_everywhere(&cluster, "default", &["big", "small"])?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    let mut session = one.session(&cluster.database)?;
    let mut other = one.session(&cluster.database)?;

    session.exec("BEGIN")?;
    session.exec(&insert(1, 5000))?;
    wait_spooled(&cluster, two, &name, 1)?;
    wait::until("it goes to disk", PATIENCE, || {
        let disk = disk_of(&cluster, two, &name)?;
        Ok(Probe::when(disk > 0, disk.to_string()))
    })?;
    // Others do not wait, whole or in chunks, and what is in progress shows nothing.
    other.exec("INSERT INTO small SELECT g, 'whole' FROM generate_series(1, 10) AS g")?;
    other.exec("INSERT INTO small SELECT g, repeat('chunks', 20) FROM generate_series(11, 3000) AS g")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["small"])?;
    ensure!(
        two.number(&cluster.database, "SELECT count(*) FROM big")? == 0,
        "rows of a transaction in progress are visible"
    );
    wait_spooled(&cluster, two, &name, 1)?;
    session.exec("UPDATE big SET v = v || 'x' WHERE id % 3 = 0")?;
    session.exec("DELETE FROM big WHERE id % 7 = 0")?;
    session.exec("COMMIT")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["big", "small"])?;
    wait_spooled(&cluster, two, &name, 0)?;

    session.exec("BEGIN")?;
    session.exec("UPDATE big SET v = 'rolled back'")?;
    wait_spooled(&cluster, two, &name, 1)?;
    session.exec("ROLLBACK")?;
    wait_spooled(&cluster, two, &name, 0)?;
    ensure!(
        disk_of(&cluster, two, &name)? == 0,
        "what was rolled back is still on disk"
    );

    session.exec("BEGIN; TRUNCATE big")?;
    session.exec(&insert(1, 3000))?;
    session.exec("SELECT pg_logical_emit_message(true, 'application', repeat('x', 100000))")?;
    wait_spooled(&cluster, two, &name, 1)?;
    session.exec("COMMIT")?;
    // A session that ends in the middle rolls back.
    other.exec("BEGIN; DELETE FROM big")?;
    wait_spooled(&cluster, two, &name, 1)?;
    drop(other);
    wait_spooled(&cluster, two, &name, 0)?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["big", "small"])?;
    // What n2 applied is not decoded for n1, let alone sent.
    let back = "SELECT coalesce(sum(stream_txns + spill_txns), 0) FROM pg_stat_replication_slots";
    two.exec(
        &cluster.database,
        "INSERT INTO small VALUES (0, 'so that statistics are written')",
    )?;
    cluster.sync(2, 1)?;
    ensure!(
        two.number(&cluster.database, back)? == 0,
        "a large transaction travelled back to where it came from"
    );
    wait_no_lag(&cluster)
}

fn savepoints(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(small_limits(2))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["big", "small"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let mut session = one.session(&cluster.database)?;
    session.exec("INSERT INTO big SELECT g, 'first' FROM generate_series(1, 500) AS g")?;

    for round in 0..stage.repetitions(4, 20) {
        session.exec("BEGIN")?;
        session.exec(&insert(1000, 1500))?;
        let mut depth = 0u32;
        let mut next = 10_000;
        for _ in 0..400 {
            let statement = match stage.random(0..10) {
                0 | 1 => {
                    depth += 1;
                    format!("SAVEPOINT s{depth}")
                }
                2 if depth > 0 => {
                    // Back to any of them: those inside go with it.
                    depth = 1 + stage.random(0..u64::from(depth)) as u32;
                    format!("ROLLBACK TO s{depth}")
                }
                3 if depth > 0 => {
                    depth = stage.random(0..u64::from(depth)) as u32;
                    format!("RELEASE s{}", depth + 1)
                }
                4 => format!("DELETE FROM big WHERE id % 97 = {}", stage.random(0..97)),
                5 | 6 => format!(
                    "UPDATE big SET v = v || 'u' WHERE id % 61 = {}",
                    stage.random(0..61)
                ),
                _ => {
                    let count = 1 + stage.random(0..60) as u32;
                    next += count;
                    insert(next - count, count)
                }
            };
            session.exec(&statement)?;
        }
        let end = if round % 4 == 3 { "ROLLBACK" } else { "COMMIT" };
        session.exec(end)?;
        session.exec("DELETE FROM big WHERE id >= 1000 AND id % 2 = 0")?;
        cluster.sync(1, 2)?;
        compare::identical(&cluster, &["big"])?;
        session.exec("DELETE FROM big WHERE id >= 1000")?;
    }

    // Ten thousand subtransactions, every third rolled back.
    let mut block = String::from("DO $$ BEGIN FOR i IN 1..10000 LOOP BEGIN ");
    write!(
        block,
        "INSERT INTO small VALUES (i, repeat('s', 100)); IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF; \
         EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$"
    )?;
    session.exec(&block)?;
    let started = std::time::Instant::now();
    cluster.sync(1, 2)?;
    ensure!(
        started.elapsed() < Duration::from_secs(20),
        "10,000 subtransactions took {:?}",
        started.elapsed()
    );
    compare::identical(&cluster, &["big", "small"])?;
    ensure!(
        two.number(&cluster.database, "SELECT count(*) FROM small")? == 6667,
        "every third was rolled back"
    );
    let streamed = "SELECT sum(stream_txns) FROM pg_stat_replication_slots";
    wait::until("the provider has sent transactions in progress", PATIENCE, || {
        let count = one.number(&cluster.database, streamed)?;
        Ok(Probe::when(count > 3, count.to_string()))
    })?;
    wait_spooled(&cluster, two, &name, 0)
}

fn ddl(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(small_limits(2))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    cluster.everywhere(
        "CREATE TABLE parts (id int PRIMARY KEY, v text, w text) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10000);
         CREATE TABLE parts_2 (w text, id int NOT NULL PRIMARY KEY, v text);
         ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (10000) TO (20000)",
    )?;
    add_everywhere(&cluster, "default", &["big", "small", "parts"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    two.exec(
        &cluster.database,
        "ALTER TABLE big ADD COLUMN c int, ADD COLUMN d text; ALTER TABLE small ADD COLUMN extra int",
    )?;
    let mut first = one.session(&cluster.database)?;
    let mut second = one.session(&cluster.database)?;
    let mut third = one.session(&cluster.database)?;

    first.exec("BEGIN")?;
    first.exec(&insert(1, 2000))?;
    second.exec("BEGIN")?;
    second
        .exec("INSERT INTO parts SELECT g, 'second', md5(g::text) FROM generate_series(1, 19000, 7) AS g")?;
    wait_spooled(&cluster, two, &name, 2)?;
    first.exec("ALTER TABLE big ADD COLUMN c int")?;
    first.exec("INSERT INTO big SELECT g, md5(g::text), g FROM generate_series(3000, 5000) AS g")?;
    first.exec("SAVEPOINT s")?;
    first.exec("ALTER TABLE big DROP COLUMN v; ALTER TABLE big ADD COLUMN d text")?;
    first.exec("INSERT INTO big SELECT g, g, repeat('d', 50) FROM generate_series(6000, 8000) AS g")?;
    first.exec("ROLLBACK TO s")?;
    first.exec("INSERT INTO big SELECT g, 'after', g FROM generate_series(8000, 9500) AS g")?;
    // Whole transactions in between describe the same tables, before and after a change of the sets.
    third.exec("INSERT INTO parts VALUES (3, 'third', 'w'), (10003, 'third', 'w'); INSERT INTO small VALUES (1, 'x')")?;
    third.exec("ALTER TABLE small ADD COLUMN extra int")?;
    third.exec("INSERT INTO small VALUES (2, 'y', 2)")?;
    second.exec("INSERT INTO small SELECT g, 'second', g FROM generate_series(100, 2500) AS g")?;
    third.exec("SELECT ha.repset_remove_table('default', 'small')")?;
    third.exec("SELECT ha.repset_add_table('default', 'small', columns => '{id,extra}')")?;
    third.exec("INSERT INTO small VALUES (3, NULL, 3)")?;
    cluster.sync(1, 2)?;
    second.exec("INSERT INTO small SELECT g, NULL, g FROM generate_series(3000, 5000) AS g")?;
    second.exec("UPDATE parts SET v = v || 'u' WHERE id > 9000")?;
    third.exec("INSERT INTO small VALUES (4, NULL, 4)")?;
    second.exec("COMMIT")?;
    third.exec("INSERT INTO small VALUES (5, NULL, 5); INSERT INTO parts VALUES (4, 'third', 'w')")?;
    first.exec("ALTER TABLE big DROP COLUMN c; ALTER TABLE big ADD COLUMN d text DEFAULT 'd'")?;
    first.exec("UPDATE big SET v = 'last' WHERE id < 3000")?;
    first.exec("COMMIT")?;
    third.exec("INSERT INTO big (id, v) VALUES (-1, 'whole')")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["parts"])?;
    // What a rewrite fills in, and what was dropped again, is the provider's alone. From when on a column is left out of
    // a transaction that runs while its set changes is not promised.
    for what in [
        "(id, v) FROM big",
        "(id, d) FROM big WHERE id < 3000",
        "(id, extra) FROM small",
        "(id, v) FROM small WHERE id < 2000",
    ] {
        let (row, rest) = what.split_once(" FROM ").unwrap_or((what, ""));
        let sum =
            format!("SELECT count(*) || ' ' || sum(hashtextextended({row}::text, 0)::numeric) FROM {rest}");
        let (here, there) = (
            one.text(&cluster.database, &sum)?,
            two.text(&cluster.database, &sum)?,
        );
        ensure!(here == there, "{what}: n1 has {here}, n2 has {there}");
    }
    ensure!(
        two.number(&cluster.database, "SELECT count(*) FROM big WHERE c = id")? == 2001 + 1501,
        "rows with the column that was added and dropped again"
    );
    wait_spooled(&cluster, two, &name, 0)
}

fn crash(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(small_limits(2))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["big", "small"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    type Fault<'a> = (&'a str, Box<dyn Fn() -> Result<()> + 'a>);
    let faults: Vec<Fault<'_>> = vec![
        (
            "the applier was killed",
            Box::new(|| {
                let pid = "SELECT max(pid) FROM pg_stat_activity WHERE backend_type = 'pg_ha applier'";
                let before = two.text("postgres", pid)?;
                two.kill_backend("pg_ha applier")?;
                // The server restarts with it, and accepts nobody meanwhile.
                wait::until("another applier runs", PATIENCE, || {
                    let now = two.text("postgres", pid).unwrap_or_default();
                    Ok(Probe::when(!now.is_empty() && now != before, now))
                })?;
                Ok(())
            }),
        ),
        (
            "the receiver was ended",
            Box::new(|| {
                two.rows(
                    "postgres",
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE backend_type = 'pg_ha receiver'",
                )
                .map(drop)
            }),
        ),
        (
            "the subscriber was killed",
            Box::new(|| {
                two.kill_server()?;
                two.start()
            }),
        ),
        (
            "the subscriber was stopped",
            Box::new(|| {
                two.stop(Stop::Fast)?;
                two.start()
            }),
        ),
        (
            "the walsender was ended",
            Box::new(|| {
                one.rows(
                    "postgres",
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE backend_type = 'walsender'",
                )
                .map(drop)
            }),
        ),
    ];
    let mut next = 1;
    for (what, fault) in &faults {
        // In the middle of the transaction.
        let mut session = one.session(&cluster.database)?;
        session.exec("BEGIN")?;
        session.exec(&insert(next, 3000))?;
        wait_spooled(&cluster, two, &name, 1)?;
        fault()?;
        session.exec("UPDATE big SET v = v || 'u' WHERE id % 5 = 0")?;
        one.exec(
            &cluster.database,
            &format!("INSERT INTO small VALUES ({next}, 'x')"),
        )?;
        cluster.sync(1, 2)?;
        compare::identical(&cluster, &["small"])?;
        session.exec("COMMIT")?;
        // While it is applied: a lock holds the applier where the fault finds it.
        let mut holder = two.session(&cluster.database)?;
        holder.exec("BEGIN; LOCK TABLE small")?;
        session.exec(&format!(
            "BEGIN; {}; UPDATE small SET v = v || 'y'; COMMIT",
            insert(next + 5000, 3000)
        ))?;
        wait::until(
            "the applier waits in the middle of a large transaction",
            PATIENCE,
            || {
                let waits = two.number(
                "postgres",
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_ha applier' AND wait_event_type = 'Lock'",
            )?;
                Ok(Probe::when(waits == 1, waits.to_string()))
            },
        )?;
        fault()?;
        drop(holder);
        cluster.sync(1, 2)?;
        compare::identical(&cluster, &["big", "small"])
            .map_err(|error| error.context(format!("after {what}")))?;
        wait_spooled(&cluster, two, &name, 0)?;
        next += 10_000;
    }
    // A provider that dies rolls back.
    let mut session = one.session(&cluster.database)?;
    session.exec("BEGIN")?;
    session.exec(&insert(next, 3000))?;
    wait_spooled(&cluster, two, &name, 1)?;
    one.kill_server()?;
    one.start()?;
    cluster.wait_replicating()?;
    cluster.sync(1, 2)?;
    wait_spooled(&cluster, two, &name, 0)?;
    compare::identical(&cluster, &["big", "small"])?;
    ensure!(
        one.number(
            &cluster.database,
            &format!("SELECT count(*) FROM big WHERE id >= {next}")
        )? == 0,
        "the provider has rows of a transaction that it never committed"
    );
    wait_no_lag(&cluster)
}

fn limits(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(
        small_limits(2)
            .with("ha.spool_max_size", "1MB")
            .with("ha.retry_max", "2s"),
    )?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["big", "small"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let fails = || {
        wait::until("the subscription names the limit", PATIENCE, || {
            let error = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
            Ok(Probe::when(error.contains("ha.spool_max_size"), error))
        })
    };
    let mut session = one.session(&cluster.database)?;
    session.exec("BEGIN")?;
    session.exec(&insert(1, 20_000))?;
    fails()?;
    ensure!(
        two.number(&cluster.database, "SELECT count(*) FROM big")? == 0,
        "half of a transaction was applied"
    );
    // With room it goes on by itself.
    two.exec("postgres", "ALTER SYSTEM SET ha.spool_max_size = '100MB'")?;
    two.exec("postgres", "SELECT pg_reload_conf()")?;
    cluster.wait_status(two, &name, "replicating")?;
    wait_spooled(&cluster, two, &name, 1)?;
    session.exec("COMMIT")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["big"])?;

    // Without room: whole transactions need none.
    two.exec("postgres", "ALTER SYSTEM SET ha.spool_max_size = 0")?;
    two.exec("postgres", "SELECT pg_reload_conf()")?;
    session.exec("BEGIN")?;
    session.exec("UPDATE big SET v = 'again'")?;
    fails()?;
    two.exec(
        &cluster.database,
        &format!("SELECT ha.sub_alter_options('{name}', '{{\"streaming\": false}}')"),
    )?;
    cluster.wait_status(two, &name, "replicating")?;
    one.exec(&cluster.database, "INSERT INTO small VALUES (1, 'x')")?;
    cluster.sync(1, 2)?;
    session.exec("COMMIT")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["big", "small"])?;
    wait_no_lag(&cluster)
}

fn forwarded(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(small_limits(3))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["big", "small"])?;
    let (one, two, three) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    cluster.subscribe(1, 2)?;
    let name = cluster.subscribe(2, 3)?;
    three.exec(
        &cluster.database,
        &format!("SELECT ha.sub_alter_options('{name}', '{{\"forward_origins\": [\"n1\"]}}')"),
    )?;
    cluster.wait_replicating()?;
    let mut session = one.session(&cluster.database)?;
    session.exec("BEGIN; INSERT INTO small VALUES (1, 'n1')")?;
    session.exec(&insert(1, 4000))?;
    session.exec("COMMIT")?;
    two.exec(&cluster.database, "INSERT INTO small VALUES (2, 'n2')")?;
    two.exec(&cluster.database, &insert(10_000, 4000))?;
    cluster.sync(1, 2)?;
    cluster.sync(2, 3)?;
    let count = "SELECT count(*) FROM big WHERE id < 10000";
    ensure!(
        three.number(&cluster.database, count)? == 4000,
        "the forwarded transaction is not there"
    );
    ensure!(
        three.number(&cluster.database, "SELECT count(*) FROM big")? == 8000,
        "n2's own is not there"
    );
    let version = "SELECT pg_xact_commit_timestamp(xmin) FROM small WHERE id = 1";
    let (here, there) = (
        one.text(&cluster.database, version)?,
        three.text(&cluster.database, version)?,
    );
    ensure!(here == there, "its commit time is {there} on n3 and {here} on n1");
    let streamed = "SELECT sum(stream_txns) FROM pg_stat_replication_slots";
    wait::until("n2 has sent both in chunks", PATIENCE, || {
        let count = two.number(&cluster.database, streamed)?;
        Ok(Probe::when(count >= 2, count.to_string()))
    })?;
    session.exec("UPDATE big SET v = 'again'")?;
    cluster.sync(1, 2)?;
    cluster.sync(2, 3)?;
    ensure!(
        three.number(&cluster.database, "SELECT count(*) FROM big WHERE v = 'again'")? == 4000,
        "the second one is not there"
    );
    wait_spooled(&cluster, three, &name, 0)
}
