//! Failure story: somebody wants a transaction applied later, or not at all, and gets more or less than that: another
//! transaction is left out too, a crash brings back what was passed over, a delayed subscriber is taken for a dead one
//! or cannot be stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::support::{add_everywhere, disable, enable, refused, wait_no_lag};
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
        weight: 1,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "apply_held_skip",
        "skipping a transaction leaves out another one too, or it comes back after a crash",
        skip,
    ),
    scenario(
        "apply_held_taken_back",
        "a transaction is left out although nobody wants that any more",
        taken_back,
    ),
    scenario(
        "apply_held_delay",
        "a delayed subscriber applies too early, times out, or cannot be stopped",
        delay,
    ),
    scenario(
        "apply_held_blocked",
        "a subscription stands still and nobody can see at what",
        blocked,
    ),
];

const NAME: &str = "sub_n2_n1";
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v int)";

fn prepare(stage: &Stage, plan: Plan) -> Result<Arc<Cluster>> {
    let cluster = stage.mesh(plan, TABLE)?;
    add_everywhere(&cluster, "default", &["t"])?;
    cluster.sync_all()?;
    Ok(cluster)
}

fn last_error(cluster: &Cluster, node: &Node, word: &str) -> Result<String> {
    wait::until(
        &format!("last_error of {NAME} mentions {word:?}"),
        PATIENCE,
        || {
            let error = cluster.status_of(node, NAME, "last_error")?.unwrap_or_default();
            Ok(if error.contains(word) {
                Probe::Ready(error)
            } else {
                Probe::NotYet(error)
            })
        },
    )
}

/// The statement that the message offers.
fn offered(error: &str) -> Result<&str> {
    let start = error
        .find("SELECT ha.sub_skip_lsn")
        .context("no statement in the error")?;
    let length = error[start..]
        .find(" would pass")
        .context("no end of the statement")?;
    Ok(&error[start..start + length])
}

fn skip(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, Plan::nodes(2))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    two.exec(database, "ALTER TABLE t ADD CONSTRAINT small CHECK (v < 100)")?;
    one.exec(database, "INSERT INTO t VALUES (1, 1)")?;
    one.exec(
        database,
        "BEGIN; INSERT INTO t VALUES (2, 2); INSERT INTO t VALUES (3, 300); COMMIT",
    )?;
    one.exec(database, "INSERT INTO t VALUES (4, 4)")?;
    let error = last_error(&cluster, two, "small")?;
    let statement = offered(&error)?;

    // What is applied already, and what is no position, is refused.
    let applied = two.text(
        database,
        "SELECT applied_lsn FROM ha.status_subscriptions WHERE subscription_name = 'sub_n2_n1'",
    )?;
    for wrong in [format!("'{applied}'"), "'0/0'".to_owned(), "'0/1'".to_owned()] {
        let call = format!("SELECT ha.sub_skip_lsn('{NAME}', {wrong})");
        refused(two, database, &call, &["22023"], &["last_error"])?;
    }
    // A position at which nothing ends, beyond the failing transaction, does not help; it can be taken back.
    two.exec(database, &format!("SELECT ha.sub_skip_lsn('{NAME}', 'FFFF/0')"))?;
    last_error(&cluster, two, "small")?;
    two.exec(database, &format!("SELECT ha.sub_skip_lsn('{NAME}', NULL)"))?;

    two.exec(database, statement)?;
    cluster.sync(1, 2)?;
    let ids = two.rows(database, "SELECT id FROM t ORDER BY id")?;
    ensure!(
        sql::show(&ids) == "1\n4",
        "exactly the named transaction should be missing; there are: {}",
        sql::show(&ids)
    );
    let wish = "SELECT count(*) FROM ha.subscriptions WHERE skip_lsn IS NOT NULL";
    ensure!(two.number(database, wish)? == 0, "the wish is still there");
    let events = two.rows(
        database,
        "SELECT message FROM ha.events WHERE kind = 'transaction_skipped'",
    )?;
    ensure!(
        events.len() == 1 && sql::show(&events).contains("2 changes"),
        "ha.events: {}",
        sql::show(&events)
    );
    cluster.wait_status(two, NAME, "replicating")?;
    // It does not come back, and the next one is not left out.
    two.kill_server()?;
    two.start()?;
    cluster.wait_replicating()?;
    one.exec(database, "INSERT INTO t VALUES (5, 5)")?;
    cluster.sync(1, 2)?;
    let ids = two.rows(database, "SELECT id FROM t ORDER BY id")?;
    ensure!(
        sql::show(&ids) == "1\n4\n5",
        "after a crash there are: {}",
        sql::show(&ids)
    );

    // The wish is kept while the subscription does not run, and over a crash.
    one.exec(database, "INSERT INTO t VALUES (6, 600)")?;
    let error = last_error(&cluster, two, "small")?;
    let statement = offered(&error)?.to_owned();
    disable(&cluster, one, two)?;
    two.exec(database, &statement)?;
    two.kill_server()?;
    two.start()?;
    ensure!(two.number(database, wish)? == 1, "the wish did not survive");
    enable(&cluster, one, two)?;
    cluster.sync(1, 2)?;
    ensure!(two.number(database, "SELECT count(*) FROM t WHERE id = 6")? == 0);

    // A wish for what never comes is forgotten once the stream is beyond it.
    let between = one.text(database, "SELECT pg_current_wal_insert_lsn() + 8")?;
    two.exec(
        database,
        &format!("SELECT ha.sub_skip_lsn('{NAME}', {})", literal(&between)),
    )?;
    one.exec(database, "INSERT INTO t VALUES (7, 7)")?;
    cluster.sync(1, 2)?;
    ensure!(two.number(database, "SELECT count(*) FROM t WHERE id = 7")? == 1);
    ensure!(
        two.number(database, wish)? == 0,
        "the wish for nothing is still there"
    );

    // A large transaction, which comes in many pieces, is passed over as a whole.
    one.exec(
        database,
        "INSERT INTO t SELECT g, CASE g WHEN 50000 THEN 999 ELSE 1 END FROM generate_series(1000, 60000) g",
    )?;
    let error = last_error(&cluster, two, "small")?;
    two.exec(database, offered(&error)?)?;
    one.exec(database, "INSERT INTO t VALUES (8, 8)")?;
    cluster.sync(1, 2)?;
    let count = two.number(database, "SELECT count(*) FROM t WHERE id >= 1000")?;
    ensure!(count == 0, "{count} rows of the skipped transaction are there");
    one.exec(database, "DELETE FROM t WHERE v >= 100 OR id >= 1000 OR id = 2")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t"])?;
    wait_no_lag(&cluster)
}

fn options(node: &Node, database: &str, options: &str) -> Result<()> {
    node.exec(
        database,
        &format!("SELECT ha.sub_alter_options('{NAME}', '{options}')"),
    )
}

fn delay(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2)
        .with("wal_sender_timeout", "2s")
        .with("wal_receiver_timeout", "2s")
        .with("wal_receiver_status_interval", "1s");
    let cluster = prepare(stage, plan)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let there = |id: i32| -> Result<bool> {
        Ok(two.number(database, &format!("SELECT count(*) FROM t WHERE id = {id}"))? == 1)
    };
    refused(
        two,
        database,
        &format!("SELECT ha.sub_alter_options('{NAME}', '{{\"apply_delay\": \"-1 s\"}}')"),
        &["22023"],
        &["apply_delay"],
    )?;

    options(two, database, r#"{"apply_delay": "3 s"}"#)?;
    cluster.wait_replicating()?;
    let started = Instant::now();
    one.exec(database, "INSERT INTO t VALUES (1, 1)")?;
    wait::holds("it is not applied early", Duration::from_millis(2500), || {
        // Both servers run by one clock.
        if started.elapsed() < Duration::from_millis(2900) {
            ensure!(!there(1)?, "it was there after {:?}", started.elapsed());
        }
        Ok(())
    })?;
    wait::until("it is applied in the end", PATIENCE, || {
        Ok(Probe::when(there(1)?, "not there"))
    })?;
    ensure!(
        started.elapsed() < Duration::from_secs(6),
        "a delay of 3 s took {:?}",
        started.elapsed()
    );

    // A long delay: the stream stays up, with more behind it than the queue holds.
    options(two, database, r#"{"apply_delay": "1 hour"}"#)?;
    cluster.wait_replicating()?;
    one.exec(database, "INSERT INTO t VALUES (2, 2)")?;
    wait::until("current_action says what it waits for", PATIENCE, || {
        let action = cluster
            .status_of(two, NAME, "current_action")?
            .unwrap_or_default();
        Ok(Probe::when(action.contains("apply_delay until 20"), action))
    })?;
    // The provider can be stopped although not everything is applied.
    let started = Instant::now();
    one.restart()?;
    ensure!(
        started.elapsed() < Duration::from_secs(20),
        "restarting the provider took {:?}",
        started.elapsed()
    );
    cluster.wait_replicating()?;
    ensure!(!there(2)?, "a restart of the provider ended the delay");
    for part in 1..=20 {
        one.exec(
            database,
            &format!("INSERT INTO t SELECT {part} * 10000 + g, g FROM generate_series(1, 10000) g"),
        )?;
    }
    let sender = "SELECT active_pid FROM pg_replication_slots WHERE active";
    let before = one.text(database, sender)?;
    wait::holds("the stream survives the delay", Duration::from_secs(6), || {
        let now = sql::show(&one.rows(database, sender)?);
        ensure!(now == before, "the walsender was {before} and is {now}");
        ensure!(!there(2)?, "it was applied");
        let status = cluster.status_of(two, NAME, "status")?;
        ensure!(status.as_deref() == Some("replicating"), "status {status:?}");
        Ok(())
    })?;
    // The receiver holds no more than its queue.
    let receiver = two.text(
        database,
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_ha receiver'",
    )?;
    let status = std::fs::read_to_string(format!("/proc/{receiver}/status"))?;
    let anonymous: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .context("RssAnon of the receiver")?;
    ensure!(anonymous < 32 * 1024, "the receiver uses {anonymous} kB");

    // Stopping, crashing and dropping do not wait for the delay.
    let started = Instant::now();
    disable(&cluster, one, two)?;
    enable(&cluster, one, two)?;
    cluster.wait_status(two, NAME, "replicating")?;
    two.kill_server()?;
    two.start()?;
    cluster.wait_replicating()?;
    ensure!(!there(2)?, "a restart ended the delay");
    two.restart()?;
    cluster.wait_replicating()?;
    ensure!(
        started.elapsed() < Duration::from_secs(30),
        "stopping and starting took {:?}",
        started.elapsed()
    );
    options(two, database, r#"{"apply_delay": null}"#)?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t"])?;
    wait_no_lag(&cluster)?;

    // From the start, and dropped in the middle of a wait.
    let drop = format!("SELECT ha.sub_drop('{NAME}')");
    two.exec(database, &drop)?;
    two.exec(
        database,
        &format!(
            "SELECT ha.sub_create('{NAME}', {}, apply_delay => '1 hour')",
            literal(&one.dsn(database))
        ),
    )?;
    cluster.wait_replicating()?;
    one.exec(database, "INSERT INTO t VALUES (3, 3)")?;
    wait::until("the new subscription waits, too", PATIENCE, || {
        let action = cluster
            .status_of(two, NAME, "current_action")?
            .unwrap_or_default();
        Ok(Probe::when(action.contains("apply_delay"), action))
    })?;
    let started = Instant::now();
    two.exec(database, &drop)?;
    ensure!(
        started.elapsed() < Duration::from_secs(5),
        "ha.sub_drop took {:?}",
        started.elapsed()
    );
    let slots = one.number(
        database,
        "SELECT count(*) FROM pg_replication_slots WHERE plugin = 'pg_ha'",
    )?;
    ensure!(slots == 0, "{slots} slots are left");
    Ok(())
}

fn blocked(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage, Plan::nodes(2))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let shows = |what: &str, column: &str, word: &str| -> Result<()> {
        wait::until(&format!("{column} tells of {what}"), PATIENCE, || {
            let seen = cluster.status_of(two, NAME, column)?.unwrap_or_default();
            Ok(Probe::when(seen.contains(word), seen))
        })
    };
    // Locks: whose, and on what.
    one.exec(database, "INSERT INTO t VALUES (1, 1)")?;
    cluster.sync(1, 2)?;
    for (statement, word) in [
        ("LOCK TABLE t IN ACCESS EXCLUSIVE MODE", "on t"),
        ("UPDATE t SET v = 5 WHERE id = 1", "transactionid"),
    ] {
        let mut holder = two.session(database)?;
        let pid = holder.text("SELECT pg_backend_pid()")?;
        holder.exec(&format!("BEGIN; {statement}"))?;
        one.exec(database, "UPDATE t SET v = v + 1 WHERE id = 1")?;
        shows("a lock", "blocked_by", &pid)?;
        shows("a lock", "current_action", word)?;
        holder.exec("ROLLBACK")?;
        cluster.sync(1, 2)?;
        let left = cluster.status_of(two, NAME, "blocked_by")?;
        ensure!(left.is_none(), "blocked_by is still {left:?}");
    }
    // Values: which table, which column, which value.
    let cases = [
        (
            "ALTER TABLE t ALTER v SET NOT NULL",
            "ALTER TABLE t ALTER v DROP NOT NULL",
            "INSERT INTO t VALUES (10, NULL)",
            vec!["\"v\"", "\"t\"", "23502", "10"],
        ),
        (
            "ALTER TABLE t ADD CONSTRAINT few CHECK (v < 1000)",
            "ALTER TABLE t DROP CONSTRAINT few",
            "INSERT INTO t VALUES (11, 4711)",
            vec!["\"few\"", "\"t\"", "23514", "4711"],
        ),
        (
            "ALTER TABLE t RENAME v TO w",
            "ALTER TABLE t RENAME w TO v",
            "INSERT INTO t VALUES (12, 12)",
            vec!["\"v\"", "t"],
        ),
        (
            "ALTER TABLE t RENAME TO u",
            "ALTER TABLE u RENAME TO t",
            "INSERT INTO t VALUES (13, 13)",
            vec!["public.t", "does not exist"],
        ),
    ];
    for (break_it, mend_it, change, words) in cases {
        two.exec(database, break_it)?;
        one.exec(database, change)?;
        for word in words {
            shows(break_it, "last_error", word)?;
        }
        two.exec(database, mend_it)?;
        cluster.sync(1, 2)?;
    }
    compare::identical(&cluster, &["t"])?;

    // A value that the local type does not take.
    one.exec(
        database,
        "CREATE TABLE words (id int PRIMARY KEY, w text); SELECT ha.repset_add_table('default', 'words')",
    )?;
    two.exec(database, "CREATE DOMAIN short AS text CHECK (length(value) < 5)")?;
    two.exec(database, "CREATE TABLE words (id int PRIMARY KEY, w short)")?;
    one.exec(database, "INSERT INTO words VALUES (1, 'much too long')")?;
    for word in ["words", "\"w\""] {
        shows("a value", "last_error", word)?;
    }
    two.exec(database, "ALTER DOMAIN short DROP CONSTRAINT short_check")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["words"])
}

fn taken_back(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    cluster.everywhere(TABLE)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(
        database,
        "SELECT ha.repset_add_table('default', 't'); INSERT INTO t VALUES (1, 1)",
    )?;
    two.exec(database, "INSERT INTO t VALUES (1, 1)")?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    // The applier stands before the transaction that is named.
    let mut holder = two.session(database)?;
    holder.exec("BEGIN; SELECT FROM t WHERE id = 1 FOR UPDATE")?;
    let mut session = one.session(database)?;
    session.exec("DELETE FROM t WHERE id = 1")?;
    session.exec("INSERT INTO t VALUES (2, 2)")?;
    let end = one.text(database, "SELECT pg_current_wal_insert_lsn()")?;
    session.exec("INSERT INTO t VALUES (3, 3)")?;
    let waiting =
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_ha applier' AND wait_event_type = 'Lock'";
    let mut polling = two.polling(database);
    let mut waits = |unlike: &str| {
        wait::until("the applier waits for the row", PATIENCE, || {
            let pid = sql::show(&polling.rows(waiting)?);
            Ok(match pid != "(no rows)" && pid != unlike {
                true => Probe::Ready(pid),
                false => Probe::NotYet(pid),
            })
        })
    };
    let before = waits("")?;
    two.exec(
        database,
        &format!("SELECT ha.sub_skip_lsn('{NAME}', {})", literal(&end)),
    )?;
    waits(&before)?;
    two.exec(database, &format!("SELECT ha.sub_skip_lsn('{NAME}', NULL)"))?;
    holder.exec("COMMIT")?;
    cluster.sync(1, 2)?;
    let ids = sql::show(&two.rows(database, "SELECT id FROM t ORDER BY id")?);
    ensure!(ids == "2\n3", "n2 has {ids}");
    Ok(())
}
