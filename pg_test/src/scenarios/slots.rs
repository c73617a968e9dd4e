//! Failure story: what a subscriber confirms and what it has are not the same. WAL is held back for nobody until the disk
//! is full; a subscriber that was restored to an older state goes on behind a gap; a commit that was acknowledged as
//! replicated is not there after a crash.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::support::{add_everywhere, counter, disable, enable, slot_name, wait_no_lag, worker_lines};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::{Node, Stop};
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
        weight: 1,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "slots_idle",
        "a provider that writes nothing for its subscribers keeps all its WAL for them",
        idle,
    ),
    scenario(
        "slots_restored",
        "a subscriber restored to an older state goes on as if nothing were missing",
        restored,
    ),
    scenario(
        "slots_retained",
        "the slot of a dead subscriber fills the provider's disk, or is ended without a word",
        retained,
    ),
    scenario(
        "slots_synchronous",
        "a commit is acknowledged as replicated and is lost with the subscriber, or waits for a clock",
        synchronous,
    ),
];

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE elsewhere (v text)";

/// n2 subscribes to n1.
fn prepare(stage: &Stage, plan: Plan) -> Result<Arc<Cluster>> {
    let cluster = stage.mesh(plan, TABLE)?;
    add_everywhere(&cluster, "default", &["t"])?;
    cluster
        .node(1)?
        .exec(&cluster.database, "INSERT INTO t VALUES (1, 'before')")?;
    cluster.sync_all()?;
    Ok(cluster)
}

fn position(node: &Node, database: &str, slot: &str, column: &str) -> Result<String> {
    node.text(
        database,
        &format!(
            "SELECT {column} FROM ha.status_slots WHERE slot_name = {}",
            literal(slot)
        ),
    )
}

/// Writes WAL that no subscriber wants.
fn write_elsewhere(node: &Node, database: &str) -> Result<()> {
    node.exec(
        database,
        "INSERT INTO elsewhere SELECT repeat('x', 1000) FROM generate_series(1, 3000)",
    )
}

/// The slot has been confirmed up to where the WAL ends now, and keeps none from before it.
fn slot_moves(cluster: &Cluster, node: &Node, slot: &str) -> Result<()> {
    let target = node.text(&cluster.database, "SELECT pg_current_wal_insert_lsn()")?;
    let moved = format!(
        "SELECT coalesce(restart_lsn >= '{target}' AND confirmed_flush_lsn >= '{target}', false),
                restart_lsn, confirmed_flush_lsn
           FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    wait::until(
        &format!("slot {slot} lets go of the WAL before {target}"),
        PATIENCE,
        || {
            // Where decoding could start again is noted at checkpoints, and goes with what is confirmed after one.
            node.exec(&cluster.database, "CHECKPOINT")?;
            write_elsewhere(node, &cluster.database)?;
            let rows = node.rows(&cluster.database, &moved)?;
            Ok(Probe::when(sql::show(&rows).starts_with("t "), sql::show(&rows)))
        },
    )
}

fn idle(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, Plan::nodes(2))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    let slot = slot_name(&cluster, two, &name)?;
    slot_moves(&cluster, one, &slot)?;
    // Writes in other databases are no different.
    one.exec("postgres", "CREATE TABLE far (v text)")?;
    one.exec(
        "postgres",
        "INSERT INTO far SELECT repeat('x', 1000) FROM generate_series(1, 3000)",
    )?;
    slot_moves(&cluster, one, &slot)?;

    // Whoever waits for all subscribers need not wait for more WAL.
    let waiting = "SELECT ha.wait_slot_confirm_lsn(NULL, NULL, '30 s')";
    for _ in 0..3 {
        one.exec(&cluster.database, "INSERT INTO elsewhere VALUES ('a little')")?;
        let started = Instant::now();
        ensure!(
            one.text(&cluster.database, waiting)? == "t",
            "an idle subscriber does not confirm within 30 s"
        );
        ensure!(
            started.elapsed() < Duration::from_secs(5),
            "an idle subscriber confirmed after {:?} only",
            started.elapsed()
        );
    }
    // Nor in a transaction that has written something.
    let mut session = one.session(&cluster.database)?;
    session.exec("BEGIN; INSERT INTO elsewhere VALUES ('a little')")?;
    let started = Instant::now();
    ensure!(
        session.text(waiting)? == "t" && started.elapsed() < Duration::from_secs(5),
        "an idle subscriber confirmed after {:?} only to who had written something",
        started.elapsed()
    );
    session.exec("COMMIT")?;

    // What it has confirmed while idle survives its crash: nothing is missing, and it says so.
    for round in 0..3 {
        write_elsewhere(one, &cluster.database)?;
        ensure!(one.text(&cluster.database, waiting)? == "t");
        two.kill_server()?;
        one.exec(
            &cluster.database,
            &format!("INSERT INTO t VALUES ({}, 'while it is down')", 100 + round),
        )?;
        two.start()?;
        cluster.wait_replicating()?;
    }
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;
    wait_no_lag(&cluster)?;

    // Two idle nodes do not keep each other busy: what one writes down makes the other write down nothing.
    let end = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn";
    let quiet = |node: &Node| -> Result<i64> { node.number(&cluster.database, end) };
    ensure!(one.text(&cluster.database, waiting)? == "t");
    ensure!(two.text(&cluster.database, waiting)? == "t");
    let before = (quiet(one)?, quiet(two)?);
    wait::let_run(Duration::from_secs(if stage.long { 120 } else { 12 }))?;
    let grown = (quiet(one)? - before.0, quiet(two)? - before.1);
    ensure!(
        grown.0 < 4096 && grown.1 < 4096,
        "idle nodes wrote {grown:?} bytes of WAL"
    );

    // A fast shutdown of the provider waits for its subscribers to confirm, and they do.
    let started = Instant::now();
    one.stop(Stop::Fast)?;
    ensure!(
        started.elapsed() < Duration::from_secs(15),
        "the provider took {:?} to stop",
        started.elapsed()
    );
    one.start()?;
    cluster.wait_replicating()
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "copying {} to {}", from.display(), to.display());
    Ok(())
}

fn restored(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, Plan::nodes(2))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    let slot = slot_name(&cluster, two, &name)?;
    // A state that is put back before anything was confirmed since is no older state.
    let saved = two.directory.join("saved");
    two.stop(Stop::Fast)?;
    copy_tree(&two.data(), &saved)?;
    std::fs::remove_dir_all(two.data())?;
    copy_tree(&saved, &two.data())?;
    two.start()?;
    cluster.wait_replicating()?;

    one.exec(&cluster.database, "INSERT INTO t VALUES (2, 'lost here')")?;
    cluster.sync(1, 2)?;
    ensure!(
        one.text(
            &cluster.database,
            "SELECT ha.wait_slot_confirm_lsn(timeout => '30 s')"
        )? == "t"
    );
    two.stop(Stop::Fast)?;
    std::fs::remove_dir_all(two.data())?;
    copy_tree(&saved, &two.data())?;
    let since = two.log_position();
    two.start()?;
    cluster.wait_status(two, &name, "failed")?;
    let error = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
    for word in ["gap in the stream", &slot, "ha.sub_resync_table"] {
        ensure!(
            error.contains(word),
            "last_error does not mention {word:?}: {error}"
        );
    }
    one.exec(&cluster.database, "INSERT INTO t VALUES (3, 'after the gap')")?;
    wait::holds(
        "nothing is applied behind the gap, and the log stays quiet",
        Duration::from_secs(4),
        || {
            let ids = two.rows(&cluster.database, "SELECT id FROM t ORDER BY id")?;
            ensure!(sql::show(&ids) == "1", "t holds {}", sql::show(&ids));
            let lines = worker_lines(two, since)?;
            ensure!(lines.len() <= 8, "it logs too much:\n{}", lines.join("\n"));
            Ok(())
        },
    )?;
    // The way out that the message tells.
    two.exec(
        &cluster.database,
        &format!("SELECT ha.sub_drop({})", literal(&name)),
    )?;
    cluster.subscribe(1, 2)?;
    cluster.wait_status(two, &name, "replicating")?;
    two.exec(
        &cluster.database,
        &format!("SELECT ha.sub_resync_table({}, 't')", literal(&name)),
    )?;
    ensure!(
        two.text(
            &cluster.database,
            &format!("SELECT ha.sub_wait_for_sync({}, '60 s')", literal(&name))
        )? == "t"
    );
    one.exec(&cluster.database, "INSERT INTO t VALUES (4, 'as ever')")?;
    cluster.sync(1, 2)?;
    let ids = two.rows(&cluster.database, "SELECT id FROM t ORDER BY id")?;
    ensure!(
        sql::show(&ids) == "1\n2\n3\n4",
        "after the way out t holds {}",
        sql::show(&ids)
    );
    Ok(())
}

fn retained(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, Plan::nodes(2))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    let slot = slot_name(&cluster, two, &name)?;
    let column = |column: &str| position(one, &cluster.database, &slot, column);
    one.exec(
        &cluster.database,
        "SELECT pg_create_physical_replication_slot('others', true);
         SELECT pg_create_logical_replication_slot('others_logical', 'test_decoding')",
    )?;
    disable(&cluster, one, two)?;
    ensure!(
        column("subscriber")? == "n2",
        "subscriber: {}",
        column("subscriber")?
    );
    for _ in 0..4 {
        write_elsewhere(one, &cluster.database)?;
    }
    ensure!(
        column("retained_bytes")?.parse::<u64>()? > 8 << 20,
        "retained_bytes: {}",
        column("retained_bytes")?
    );
    // Without a limit it may.
    wait::holds("the slot is kept without a limit", Duration::from_secs(3), || {
        let status = column("wal_status")?;
        ensure!(status == "reserved" || status == "extended", "{status}");
        Ok(())
    })?;
    let since = one.log_position();
    one.configure(&[("ha.max_slot_retained", "8MB")])?;
    one.exec("postgres", "SELECT pg_reload_conf()")?;
    wait::until("the slot is ended", PATIENCE, || {
        let status = column("wal_status")?;
        Ok(Probe::when(status == "lost", status))
    })?;
    let left = one.rows(
        &cluster.database,
        "SELECT slot_name FROM pg_replication_slots WHERE wal_status <> 'lost' ORDER BY 1",
    )?;
    let left = sql::show(&left);
    ensure!(
        left.contains("others\n") && left.contains("others_logical"),
        "slots of others are none of its business; left: {left}"
    );
    let event = "SELECT message, details ->> 'slot' FROM ha.events WHERE kind = 'slot_ended'";
    wait::until("ha.events tells of it", PATIENCE, || {
        let event = one.rows(&cluster.database, event)?;
        Ok(Probe::when(
            event.len() == 1 && sql::show(&event).contains(&slot),
            sql::show(&event),
        ))
    })?;
    let log = one.log_since(since)?;
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARNING:")).collect();
    ensure!(
        warnings.len() == 1 && warnings[0].contains(&slot) && warnings[0].contains("bytes"),
        "the log should tell once, with numbers:\n{}",
        warnings.join("\n")
    );
    one.exec(&cluster.database, "CHECKPOINT")?;

    one.exec(&cluster.database, "INSERT INTO t VALUES (2, 'never sent')")?;
    enable(&cluster, one, two)?;
    cluster.wait_status(two, &name, "failed")?;
    let error = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
    for word in [
        slot.as_str(),
        "ha.max_slot_retained",
        "ha.sub_create",
        "ha.sub_resync_table",
    ] {
        ensure!(
            error.contains(word),
            "last_error does not mention {word:?}: {error}"
        );
    }
    // It stays so over restarts of both.
    one.restart()?;
    two.restart()?;
    cluster.wait_status(two, &name, "failed")?;
    two.exec(
        &cluster.database,
        &format!("SELECT ha.sub_drop({})", literal(&name)),
    )?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    two.exec(
        &cluster.database,
        &format!("SELECT ha.sub_resync_table({}, 't')", literal(&name)),
    )?;
    ensure!(
        two.text(
            &cluster.database,
            &format!("SELECT ha.sub_wait_for_sync({}, '60 s')", literal(&name))
        )? == "t"
    );
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;

    // A reader that is alive, but stuck, is ended just so.
    let mut holder = two.session(&cluster.database)?;
    holder.exec("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")?;
    one.exec(&cluster.database, "INSERT INTO t VALUES (5, 'stuck')")?;
    wait::until("the stuck slot is ended", PATIENCE, || {
        write_elsewhere(one, &cluster.database)?;
        let status = column("wal_status")?;
        Ok(Probe::when(status == "lost", status))
    })?;
    holder.exec("COMMIT")?;
    cluster.wait_status(two, &name, "failed")
}

const NAMES: &str = "synchronous_standby_names";

fn set(node: &Node, name: &str, value: &str) -> Result<()> {
    node.configure(&[(name, value)])?;
    node.exec("postgres", "SELECT pg_reload_conf()")
}

/// How long commits take, in milliseconds, the median of some.
fn latency(node: &Node, database: &str, table: &str, level: &str) -> Result<f64> {
    let mut session = node.session(database)?;
    session.exec(&format!("SET synchronous_commit = {level}"))?;
    let mut times = Vec::new();
    for _ in 0..31 {
        let started = Instant::now();
        session.exec(&format!(
            "INSERT INTO {table} SELECT coalesce(max(id), 0) + 1, 'sync' FROM {table}"
        ))?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[15])
}

/// The same commits with a native subscription in our place.
fn no_worse_than_native(cluster: &Cluster) -> Result<()> {
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let ours = "sub_n2_n1";
    let mut measured = Vec::new();
    for level in ["remote_write", "on", "remote_apply"] {
        measured.push((level, latency(one, database, "t", level)?));
    }
    one.exec(
        database,
        "CREATE TABLE native (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE native",
    )?;
    two.exec(database, "CREATE TABLE native (id int PRIMARY KEY, v text)")?;
    two.exec(
        database,
        &format!(
            "CREATE SUBSCRIPTION native CONNECTION {} PUBLICATION p",
            literal(&one.dsn(database))
        ),
    )?;
    set(one, NAMES, "native")?;
    is_synchronous(one, database, "native")?;
    for (level, ours) in measured {
        let native = latency(one, database, "native", level)?;
        ensure!(
            ours < native * 2.0 + 20.0,
            "synchronous_commit = {level}: {ours:.1} ms, native logical replication takes {native:.1} ms"
        );
    }
    set(one, NAMES, ours)?;
    is_synchronous(one, database, ours)?;
    two.exec(database, "DROP SUBSCRIPTION native")
}

fn is_synchronous(node: &Node, database: &str, name: &str) -> Result<()> {
    wait::until(&format!("{name} is synchronous"), PATIENCE, || {
        let rows = node.rows(
            database,
            "SELECT application_name, sync_state FROM pg_stat_replication ORDER BY 1",
        )?;
        let seen = sql::show(&rows);
        Ok(Probe::when(seen.contains(&format!("{name} | sync")), seen))
    })
}

fn synchronous(stage: &Stage) -> Result<()> {
    // The other direction loses its provider again and again, too.
    let cluster = prepare(stage, Plan::nodes(2).with("ha.retry_max", "1s"))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    set(one, NAMES, &format!("\"{name}\""))?;
    is_synchronous(one, &cluster.database, &name)?;
    for level in ["remote_write", "on", "remote_apply"] {
        let before = one.number(&cluster.database, "SELECT count(*) FROM t")?;
        let median = latency(one, &cluster.database, "t", level)?;
        ensure!(
            median < 100.0,
            "a commit with synchronous_commit = {level} takes {median:.1} ms: it waits for a clock"
        );
        if level == "remote_apply" {
            // What was acknowledged is visible there at once.
            let count = two.number(&cluster.database, "SELECT count(*) FROM t")? - before;
            ensure!(count == 31, "{count} of 31 rows are visible");
        }
    }
    if stage.long {
        no_worse_than_native(&cluster)?;
    }
    // Commits of which nothing is sent wait no longer.
    let started = Instant::now();
    let mut session = one.session(&cluster.database)?;
    for _ in 0..20 {
        session.exec("INSERT INTO elsewhere VALUES ('unpublished')")?;
    }
    ensure!(
        started.elapsed() < Duration::from_secs(4),
        "20 commits of which nothing is sent took {:?}",
        started.elapsed()
    );

    // Acknowledged is durable: a power cut at any moment loses nothing that was acknowledged.
    let rounds = if stage.long { 10 } else { 3 };
    let mut next = 10_000_i64;
    for _ in 0..rounds {
        let acknowledged = std::thread::scope(|scope| -> Result<i64> {
            let (from, database) = (next, &cluster.database);
            let writer = scope.spawn(move || -> Result<i64> {
                let mut session = one.session(database)?;
                let mut id = from;
                while session
                    .exec(&format!("INSERT INTO t VALUES ({id}, 'acknowledged')"))
                    .is_ok()
                {
                    id += 1;
                }
                Ok(id)
            });
            wait::let_run(Duration::from_millis(fastrand::u64(200..900)))?;
            two.kill_server()?;
            // Its last commit is never acknowledged; cancelling it would be taken for an acknowledgement.
            wait::until("the writer has ended", PATIENCE, || {
                one.exec(
                    "postgres",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
                )?;
                Ok(Probe::when(writer.is_finished(), "it waits"))
            })?;
            match writer.join() {
                Ok(outcome) => outcome,
                Err(_) => bail!("the writer panicked"),
            }
        })?;
        ensure!(acknowledged > next, "nothing was written before the kill");
        // Alone, without help from the provider.
        one.freeze()?;
        two.start()?;
        let count = two.number(
            &cluster.database,
            &format!("SELECT count(*) FROM t WHERE id >= {next} AND id < {acknowledged}"),
        );
        one.thaw()?;
        let count = count.context("looking at the rows after the crash")?;
        ensure!(
            count == acknowledged - next,
            "of {} acknowledged rows {count} survived the crash of the subscriber",
            acknowledged - next
        );
        next = acknowledged + 10;
        cluster.wait_replicating()?;
    }

    // Without the subscriber commits wait, and they go on with it.
    two.stop(Stop::Fast)?;
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| one.exec(&cluster.database, "INSERT INTO t VALUES (9000, 'waits')"));
        let held = wait::holds(
            "the commit waits for the subscriber",
            Duration::from_secs(2),
            || {
                ensure!(!writer.is_finished(), "it returned");
                Ok(())
            },
        );
        two.start()?;
        held?;
        match writer.join() {
            Ok(outcome) => outcome,
            Err(_) => bail!("the writer panicked"),
        }
    })?;
    let there = two.number(&cluster.database, "SELECT count(*) FROM t WHERE id = 9000")?;
    ensure!(there == 1, "the commit returned before its row was there");
    set(one, NAMES, "")?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;
    ensure!(
        counter(&cluster, two, &name, "conflicts")? == 0,
        "there were conflicts"
    );
    Ok(())
}
