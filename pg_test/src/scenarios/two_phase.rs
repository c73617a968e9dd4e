//! Failure story: a transaction that was prepared on the provider is lost, applied twice, or ends differently on the
//! subscriber; or a conflict is settled by when it was prepared instead of when it committed.

use anyhow::{Result, ensure};

use super::forwarding::subscribe;
use super::support::{add_everywhere, counter, disable, enable, refused, wait_no_lag};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::{Node, Stop};
use crate::scenario::{Scenario, Stage};
use crate::sql::literal;
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "two_phase_ends",
        story: "a prepared transaction shows before it commits, stays after it rolled back, or has another commit time here",
        run: ends,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "two_phase_conflicts",
        story: "a conflict with a prepared transaction is settled by when it was prepared, so that nodes end up different",
        run: conflicts,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "two_phase_crash",
        story: "a crash between PREPARE and COMMIT PREPARED, on either side, loses the transaction or applies it twice",
        run: crash,
        needs: &[],
        stock: false,
        weight: 2,
    },
    Scenario {
        name: "two_phase_existing",
        story: "two-phase is switched on, or a subscription dropped, while transactions are prepared, and those are lost or nobody is told",
        run: existing,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "two_phase_values",
        story: "a row of a prepared transaction that has to be asked for from the provider, where it is not committed yet, is left out",
        run: values,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "two_phase_cannot",
        story: "what this server cannot prepare, or not any more of, stops the stream before the end of what is prepared",
        run: cannot,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "two_phase_alike",
        story: "of several equal rows a prepared transaction holds one, and the next change of another waits for it, and so does its own end",
        run: alike,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "two_phase_ways",
        story: "after a PREPARE that may come by another subscription too, that one waits until more is prepared or committed",
        run: ways,
        needs: &[],
        stock: false,
        weight: 2,
    },
];

const TABLES: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY, v text)";

fn plan() -> Plan {
    Plan::nodes(2)
        .with("max_prepared_transactions", "20")
        .with("logical_decoding_work_mem", "64kB")
        .with("ha.spool_mem", "64kB")
}

fn two_phase(cluster: &Cluster, node: &Node, subscription: &str) -> Result<()> {
    node.exec(
        &cluster.database,
        &format!("SELECT ha.sub_alter_options('{subscription}', '{{\"two_phase\": true}}')"),
    )?;
    // The workers start over with it.
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE two_phase AND active";
    let provider = cluster.nodes.iter().find(|known| known.number != node.number);
    if let Some(provider) = provider {
        let mut polling = provider.polling(&cluster.database);
        wait::until("the slot sends prepared transactions", PATIENCE, || {
            let seen = crate::sql::show(&polling.rows(slots)?);
            Ok(Probe::when(seen == "1", seen))
        })?;
    }
    cluster.wait_status(node, subscription, "replicating")
}

/// A cluster of two, n2 subscribing to n1, two-phase.
fn pair(stage: &Stage) -> Result<std::sync::Arc<Cluster>> {
    let cluster = stage.cluster(plan())?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["t", "other"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    two_phase(&cluster, cluster.node(2)?, &name)?;
    Ok(cluster)
}

/// What n2 says of what is prepared: gid and state, by gid.
fn wait_prepared(cluster: &Cluster, node: &Node, wanted: &str) -> Result<()> {
    let sql = "SELECT coalesce(string_agg(gid || ' ' || state, ', ' ORDER BY gid), '') FROM ha.prepared_transactions";
    let mut polling = node.polling(&cluster.database);
    wait::until(
        &format!("ha.prepared_transactions of {} is {wanted:?}", node.name),
        PATIENCE,
        || {
            let seen = crate::sql::show(&polling.rows(sql)?);
            Ok(Probe::when(seen == wanted, seen))
        },
    )
}

fn ends(stage: &Stage) -> Result<()> {
    let cluster = pair(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let mut session = one.session(&cluster.database)?;
    session.exec(
        "BEGIN; INSERT INTO t SELECT g, 'a' FROM generate_series(1, 10) AS g; PREPARE TRANSACTION 'it''s a'",
    )?;
    wait_prepared(&cluster, two, "it's a prepared")?;
    // Others go on.
    session.exec("INSERT INTO other VALUES (1, 'x')")?;
    cluster.sync(1, 2)?;
    ensure!(
        two.number(&cluster.database, "SELECT count(*) FROM t")? == 0,
        "rows show before the commit"
    );
    session.exec("COMMIT PREPARED 'it''s a'")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t", "other"])?;
    let version = "SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE id = 1";
    ensure!(
        one.text(&cluster.database, version)? == two.text(&cluster.database, version)?,
        "the commit time is another one on the subscriber"
    );
    wait_prepared(&cluster, two, "")?;

    session.exec("BEGIN; UPDATE t SET v = 'b'; PREPARE TRANSACTION 'b'")?;
    wait_prepared(&cluster, two, "b prepared")?;
    session.exec("ROLLBACK PREPARED 'b'")?;
    wait_prepared(&cluster, two, "")?;
    session.exec("INSERT INTO other VALUES (100, 'counted')")?;
    cluster.sync(1, 2)?;
    let counted = |column: &str| counter(&cluster, two, "sub_n2_n1", column);
    let found = (counted("rows_inserted")?, counted("rows_updated")?);
    ensure!(found == (12, 0), "inserted and updated are counted as {found:?}");

    two.exec(&cluster.database, "ALTER TABLE other ADD COLUMN w int")?;
    // Large, with savepoints; empty; of tables that are not sent; all open at once.
    session.exec("BEGIN; INSERT INTO t SELECT g, repeat('large', 20) FROM generate_series(100, 4000) AS g; SAVEPOINT s")?;
    session.exec(
        "INSERT INTO t SELECT g, repeat('gone', 20) FROM generate_series(5000, 8000) AS g; ROLLBACK TO s",
    )?;
    session.exec("UPDATE t SET v = v || 'u' WHERE id % 3 = 0; PREPARE TRANSACTION 'large'")?;
    session.exec("BEGIN; PREPARE TRANSACTION 'empty'")?;
    session.exec(
        "CREATE TABLE unsent (id int); BEGIN; INSERT INTO unsent VALUES (1); PREPARE TRANSACTION 'unsent'",
    )?;
    session.exec("BEGIN; ALTER TABLE other ADD COLUMN w int; INSERT INTO other VALUES (2, 'y'); PREPARE TRANSACTION 'ddl'")?;
    // One without a transaction's traces in the WAL is not decoded.
    wait_prepared(&cluster, two, "ddl prepared, large prepared, unsent kept")?;
    for gid in ["unsent", "empty", "large"] {
        session.exec(&format!("COMMIT PREPARED '{gid}'"))?;
    }
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t"])?;
    session.exec("ROLLBACK PREPARED 'ddl'")?;
    wait_prepared(&cluster, two, "")?;
    two.exec(&cluster.database, "ALTER TABLE other DROP COLUMN w")?;
    session.exec("INSERT INTO other VALUES (3, 'z'); DELETE FROM t WHERE id < 2000")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t", "other"])?;
    wait_prepared(&cluster, two, "")?;
    wait_no_lag(&cluster)
}

fn conflicts(stage: &Stage) -> Result<()> {
    let cluster = stage.mesh(plan(), TABLES)?;
    add_everywhere(&cluster, "default", &["t", "other"])?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    two_phase(&cluster, two, &Cluster::subscription_name(one, two))?;
    one.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, 'first' FROM generate_series(1, 9) AS g",
    )?;
    cluster.sync_all()?;
    // n2 keeps its changes for itself for a while.
    disable(&cluster, two, one)?;
    two.exec(
        &cluster.database,
        "UPDATE t SET v = 'n2 before' WHERE id IN (1, 2)",
    )?;
    let mut session = one.session(&cluster.database)?;
    for (gid, rows) in [
        ("wins", "1, 4"),
        ("loses", "2, 5"),
        ("clear", "3, 6"),
        ("gone", "7"),
    ] {
        session.exec(&format!(
            "BEGIN; UPDATE t SET v = '{gid}' WHERE id IN ({rows}); PREPARE TRANSACTION '{gid}'"
        ))?;
        if gid == "clear" {
            two.exec(&cluster.database, "DELETE FROM t WHERE id = 7")?;
        }
    }
    wait_prepared(&cluster, two, "clear prepared, gone kept, loses kept, wins kept")?;
    ensure!(
        two.text(
            &cluster.database,
            "SELECT reason FROM ha.prepared_transactions WHERE gid = 'wins'"
        )?
        .contains("update_origin_differs"),
        "the view does not say why"
    );
    // Committed before and after another change of n2: the time of the commit counts, not that of the PREPARE.
    session.exec("COMMIT PREPARED 'loses'")?;
    cluster.sync(1, 2)?;
    two.exec(
        &cluster.database,
        "UPDATE t SET v = 'n2 after' WHERE id IN (1, 2)",
    )?;
    session.exec("COMMIT PREPARED 'wins'")?;
    session.exec("ROLLBACK PREPARED 'gone'")?;
    session.exec("COMMIT PREPARED 'clear'")?;
    cluster.sync(1, 2)?;
    wait_prepared(&cluster, two, "")?;
    enable(&cluster, two, one)?;
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;
    let found = one.text(
        &cluster.database,
        "SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM t WHERE id < 8",
    )?;
    ensure!(
        found == "1 wins, 2 n2 after, 3 clear, 4 wins, 5 loses, 6 clear",
        "the tables are the same and wrong: {found}"
    );
    wait_no_lag(&cluster)
}

fn crash(stage: &Stage) -> Result<()> {
    let cluster = pair(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    // Every other transaction meets a row of n2's own, so that it is kept rather than prepared.
    two.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, 'n2' FROM generate_series(0, 100000, 20) AS g",
    )?;
    let faults: [fn(&Node) -> Result<()>; 4] = [
        |_| Ok(()),
        |node| {
            node.stop(Stop::Fast)?;
            node.start()
        },
        |node| {
            node.kill_server()?;
            node.start()
        },
        |node| {
            node.rows(
                "postgres",
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
                  WHERE backend_type IN ('pg_ha applier', 'walsender')",
            )
            .map(drop)
        },
    ];
    let hit = || -> Result<()> {
        let node = if stage.random(0..3) == 0 { one } else { two };
        let fault = faults[stage.random(0..4) as usize];
        fault(node)
    };
    for round in 0..stage.repetitions(5, 20) as u64 {
        let first = 1 + round * 20;
        let (meets, clear, rolled) = (first + 19, first, first + 5);
        let mut session = one.session(&cluster.database)?;
        for (gid, id) in [("kept", meets), ("prepared", clear), ("rolled", rolled)] {
            session.exec(&format!(
                "BEGIN; INSERT INTO t VALUES ({id}, '{gid}'); INSERT INTO other SELECT {id} * 10000 + g, repeat('o', 90) \
                 FROM generate_series(1, {}) AS g; PREPARE TRANSACTION '{gid}'",
                1 + stage.random(0..2) * 1500
            ))?;
        }
        if stage.random(0..2) == 0 {
            wait_prepared(&cluster, two, "kept kept, prepared prepared, rolled prepared")?;
        }
        hit()?;
        let mut session = one.session(&cluster.database)?;
        session.exec("COMMIT PREPARED 'prepared'")?;
        hit()?;
        let mut session = one.session(&cluster.database)?;
        session.exec("COMMIT PREPARED 'kept'")?;
        session.exec("ROLLBACK PREPARED 'rolled'")?;
        hit()?;
        cluster.sync(1, 2)?;
        wait_prepared(&cluster, two, "")?;
        compare::identical(&cluster, &["other"])?;
        let rows =
            format!("SELECT string_agg(v, ',' ORDER BY id) FROM t WHERE id IN ({meets}, {clear}, {rolled})");
        let found = two.text(&cluster.database, &rows)?;
        ensure!(found == "prepared,kept", "round {round}: n2 has {found}");
    }
    wait_no_lag(&cluster)
}

fn existing(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(plan().node(2, |spec| {
        spec.settings
            .push(("max_prepared_transactions".to_owned(), "0".to_owned()));
    }))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["t", "other"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let on = format!("SELECT ha.sub_alter_options('{name}', '{{\"two_phase\": true}}')");
    refused(
        two,
        &cluster.database,
        &on,
        &["55000"],
        &["max_prepared_transactions"],
    )?;
    two.exec("postgres", "ALTER SYSTEM SET max_prepared_transactions = 20")?;
    two.restart()?;
    cluster.wait_replicating()?;

    // Prepared before: it comes when it commits, also to a subscription that is two-phase by then.
    let mut session = one.session(&cluster.database)?;
    session.exec("BEGIN; INSERT INTO t VALUES (1, 'before'); PREPARE TRANSACTION 'before'")?;
    session.exec("BEGIN; INSERT INTO t VALUES (2, 'rolled'); PREPARE TRANSACTION 'rolled'")?;
    session.exec("INSERT INTO other VALUES (1, 'x')")?;
    cluster.sync(1, 2)?;
    wait_prepared(&cluster, two, "")?;
    two_phase(&cluster, two, &name)?;
    session.exec("BEGIN; INSERT INTO t VALUES (3, 'since'); PREPARE TRANSACTION 'since'")?;
    wait_prepared(&cluster, two, "since prepared")?;
    for end in [
        "COMMIT PREPARED 'before'",
        "ROLLBACK PREPARED 'rolled'",
        "COMMIT PREPARED 'since'",
    ] {
        session.exec(end)?;
    }
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t", "other"])?;
    wait_prepared(&cluster, two, "")?;
    let off = format!("SELECT ha.sub_alter_options('{name}', '{{\"two_phase\": false}}')");
    refused(two, &cluster.database, &off, &["55000"], &["two_phase"])?;

    // Dropped with something prepared: that stays, and can be ended by hand.
    session.exec("BEGIN; INSERT INTO t VALUES (4, 'left'); PREPARE TRANSACTION 'left'")?;
    wait_prepared(&cluster, two, "left prepared")?;
    two.exec(&cluster.database, &format!("SELECT ha.sub_drop('{name}')"))?;
    let gid = two.text(&cluster.database, "SELECT gid FROM pg_prepared_xacts")?;
    ensure!(gid.starts_with("pg_ha_") && gid.ends_with("_left"), "{gid}");
    two.exec(&cluster.database, &format!("COMMIT PREPARED '{gid}'"))?;
    session.exec("COMMIT PREPARED 'left'")?;
    compare::identical(&cluster, &["t"])
}

fn values(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(plan())?;
    cluster.create_nodes()?;
    cluster.everywhere(
        "CREATE TABLE f (id int, region text, big text, PRIMARY KEY (id, region)); ALTER TABLE f ALTER big SET STORAGE EXTERNAL",
    )?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    one.exec(
        &cluster.database,
        "SELECT ha.repset_add_table('default', 'f', row_filter => 'region = ''eu''')",
    )?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    two_phase(&cluster, two, &name)?;
    let big = "repeat('0123456789', 2000)";
    let mut session = one.session(&cluster.database)?;
    session.exec(&format!("INSERT INTO f VALUES (1, 'us', {big})"))?;
    // Both enter the filter with a value that is not in the WAL of their update: the server cannot tell it yet.
    session.exec("BEGIN; UPDATE f SET region = 'eu' WHERE id = 1; PREPARE TRANSACTION 'key'")?;
    session.exec(&format!(
        "BEGIN; INSERT INTO f VALUES (2, 'us', {big}); UPDATE f SET region = 'eu' WHERE id = 2; PREPARE TRANSACTION 'new'"
    ))?;
    wait_prepared(&cluster, two, "key kept, new kept")?;
    session.exec("COMMIT PREPARED 'key'")?;
    session.exec("COMMIT PREPARED 'new'")?;
    cluster.sync(1, 2)?;
    wait_prepared(&cluster, two, "")?;
    compare::identical(&cluster, &["f"])
}

fn ways(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3).with("max_prepared_transactions", "20"))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    let (one, two, three) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    // t goes to n3 by both ways, the other table by n2 alone.
    one.exec(
        &cluster.database,
        "SELECT ha.repset_create('some'); SELECT ha.repset_add_table('some', 't')",
    )?;
    for node in [one, two] {
        node.exec(
            &cluster.database,
            "SELECT ha.repset_add_table('default', 't'); SELECT ha.repset_add_table('default', 'other')",
        )?;
    }
    cluster.subscribe(1, 2)?;
    three.exec(
        &cluster.database,
        &format!(
            "SELECT ha.sub_create('sub_n3_n1', {}, '{{some}}')",
            literal(&one.dsn(&cluster.database))
        ),
    )?;
    subscribe(&cluster, 2, 3, "{n1}")?;
    cluster.wait_replicating()?;
    two_phase(&cluster, three, "sub_n3_n1")?;
    let arrives = |id: u32| -> Result<()> {
        one.exec(
            &cluster.database,
            &format!("INSERT INTO other VALUES ({id}, 'x')"),
        )?;
        cluster.sync(1, 2)?;
        cluster.sync(2, 3)?;
        let found = three.number(&cluster.database, "SELECT max(id) FROM other")?;
        ensure!(found == i64::from(id), "n3 has {found}");
        Ok(())
    };
    arrives(1)?;
    let mut session = one.session(&cluster.database)?;
    session.exec("BEGIN; INSERT INTO t VALUES (1, 'a'); PREPARE TRANSACTION 'a'")?;
    wait_prepared(&cluster, three, "a kept")?;
    arrives(2)?;
    session.exec("BEGIN; INSERT INTO t VALUES (2, 'b'); PREPARE TRANSACTION 'b'")?;
    wait_prepared(&cluster, three, "a kept, b kept")?;
    session.exec("ROLLBACK PREPARED 'b'")?;
    wait_prepared(&cluster, three, "a kept")?;
    arrives(3)?;
    session.exec("COMMIT PREPARED 'a'")?;
    wait_prepared(&cluster, three, "")?;
    arrives(4)?;
    cluster.sync(1, 3)?;
    let rows = three.text(&cluster.database, "SELECT string_agg(v, ',') FROM t")?;
    ensure!(rows == "a", "n3 has {rows} of what was prepared");
    Ok(())
}

fn alike(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(plan())?;
    cluster.create_nodes()?;
    cluster.everywhere(
        "CREATE TABLE k (v text); ALTER TABLE k REPLICA IDENTITY FULL; SELECT ha.repset_add_table('default', 'k')",
    )?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    two_phase(&cluster, two, &name)?;
    let mut session = one.session(&cluster.database)?;
    session.exec("INSERT INTO k VALUES ('same'), ('same'), ('same')")?;
    session.exec(
        "BEGIN; DELETE FROM k WHERE ctid = '(0,1)'; INSERT INTO k VALUES ('new'); PREPARE TRANSACTION 'a'",
    )?;
    wait_prepared(&cluster, two, "a kept")?;
    // On the provider these are other rows than those of the prepared transaction, here they are any that are equal.
    session.exec("DELETE FROM k WHERE ctid = '(0,2)'; INSERT INTO k VALUES ('new')")?;
    session.exec("DELETE FROM k WHERE v = 'new'")?;
    cluster.sync(1, 2)?;
    session.exec("COMMIT PREPARED 'a'")?;
    cluster.sync(1, 2)?;
    let rows = two.text(&cluster.database, "SELECT string_agg(v, ',' ORDER BY v) FROM k")?;
    ensure!(rows == "new,same", "n2 has {rows}");
    Ok(())
}

fn cannot(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(plan().node(2, |spec| {
        spec.settings
            .push(("max_prepared_transactions".to_owned(), "2".to_owned()));
    }))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLES)?;
    add_everywhere(&cluster, "default", &["t", "other"])?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    two.exec(
        &cluster.database,
        "CREATE FUNCTION passing() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 CREATE TEMP TABLE IF NOT EXISTS passing (id int);
                 RETURN NULL;
             END $$;
         CREATE TRIGGER passes AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION passing();
         ALTER TABLE other ENABLE ALWAYS TRIGGER passes",
    )?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    two_phase(&cluster, two, &name)?;
    let mut session = one.session(&cluster.database)?;
    session.exec("BEGIN; INSERT INTO other VALUES (1, 'x'); PREPARE TRANSACTION 'a'")?;
    for (gid, id) in [("b", 1), ("c", 2), ("d", 3)] {
        session.exec(&format!(
            "BEGIN; INSERT INTO t VALUES ({id}, '{gid}'); PREPARE TRANSACTION '{gid}'"
        ))?;
    }
    wait_prepared(&cluster, two, "a kept, b prepared, c prepared, d kept")?;
    for gid in ["d", "c", "b", "a"] {
        session.exec(&format!("COMMIT PREPARED '{gid}'"))?;
    }
    cluster.sync(1, 2)?;
    wait_prepared(&cluster, two, "")?;
    compare::identical(&cluster, &["t", "other"])
}
