//! Failure stories: what administrators do every day meets the stream, and one waits for the other, or for ever.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::support::{add_everywhere, wait_no_lag};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::Stop;
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
        "stream_and_ddl_locks",
        "a walsender that waits for its subscriber keeps a lock, and REINDEX or ALTER TABLE waits with it",
        locks,
    ),
    scenario(
        "stream_and_ddl_schemas",
        "a renamed schema: changes go to the table that had the name before, or the stream never goes on",
        schemas,
    ),
    scenario(
        "stream_and_ddl_catalogs",
        "somebody locks pg_ha's catalogs for a while: the supervisor stops, subscriptions are lost, or rows do not arrive",
        catalogs,
    ),
    scenario(
        "stream_and_ddl_statistics",
        "applied rows do not count in the statistics, so that autovacuum never looks at the tables",
        statistics,
    ),
    scenario(
        "stream_and_ddl_restored",
        "a provider restored to an earlier state goes on under old positions, and its new changes are passed over",
        restored,
    ),
];

fn prepare(stage: &Stage) -> Result<Arc<Cluster>> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    cluster.everywhere("CREATE TABLE t (id int PRIMARY KEY, n int, v text)")?;
    add_everywhere(&cluster, "default", &["t"])?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    Ok(cluster)
}

fn locks(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    // The applier waits for this lock; its queue and the sockets fill, and the walsender waits in a transaction.
    let mut holder = two.session(database)?;
    holder.exec("BEGIN; LOCK TABLE t")?;
    one.exec(
        database,
        "INSERT INTO t SELECT g, g, repeat('x', 1000) FROM generate_series(1, 60000) g",
    )?;
    let mut polling = one.polling(database);
    let waits = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'walsender'";
    let sent = "SELECT sent_lsn FROM pg_stat_replication";
    let mut last = String::new();
    let mut steady = 0;
    wait::until("the walsender waits for the subscriber", PATIENCE, || {
        let now = format!(
            "{} {}",
            sql::show(&polling.rows(waits)?),
            sql::show(&polling.rows(sent)?)
        );
        steady = if now == last && now.contains("WalSenderW") {
            steady + 1
        } else {
            0
        };
        last.clone_from(&now);
        Ok(Probe::when(steady > 20, now))
    })?;
    for statement in [
        "REINDEX TABLE t",
        "CREATE INDEX extra ON t (n)",
        "DROP INDEX extra",
        "VACUUM FULL t",
        "ALTER TABLE t ALTER n SET DEFAULT 5",
        "TRUNCATE t",
        "INSERT INTO t VALUES (100000, 1, 'after')",
    ] {
        let mut session = one.session(database)?;
        session.exec("SET lock_timeout = '10s'")?;
        session
            .exec(statement)
            .with_context(|| format!("{statement} while the walsender waits"))?;
    }
    holder.exec("COMMIT")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t"])?;
    wait_no_lag(&cluster)
}

fn schemas(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    cluster.everywhere("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)")?;
    one.exec(
        database,
        "SELECT ha.repset_add_table('default', 'a.t'); INSERT INTO a.t VALUES (1, 'in a')",
    )?;
    cluster.sync(1, 2)?;
    // Renamed there in the middle of a transaction; the table that now has the old name is another.
    one.exec(
        database,
        "BEGIN; INSERT INTO a.t VALUES (2, 'still in a'); ALTER SCHEMA a RENAME TO b; INSERT INTO b.t VALUES (3, 'in b'); COMMIT;
         CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text); INSERT INTO a.t VALUES (1, 'another table')",
    )?;
    let mut polling = two.polling(database);
    wait::until("the subscriber misses the new name", PATIENCE, || {
        let seen = sql::show(&polling.rows("SELECT status, last_error FROM ha.status_subscriptions")?);
        Ok(Probe::when(
            seen.starts_with("failed") && seen.contains("b.t"),
            seen,
        ))
    })?;
    ensure!(
        two.number(database, "SELECT count(*) FROM a.t")? == 1,
        "half of a transaction is visible"
    );
    two.exec(
        database,
        "ALTER SCHEMA a RENAME TO b; CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)",
    )?;
    let rows = "SELECT id FROM b.t ORDER BY 1";
    // The first part of the transaction was for the table's name of that time.
    wait::until("the rows arrive under the new name", PATIENCE, || {
        let seen = sql::show(&polling.rows("SELECT id FROM b.t UNION ALL SELECT id FROM a.t ORDER BY 1")?);
        Ok(Probe::when(seen == "1\n2\n3", seen))
    })?;
    cluster.sync(1, 2)?;
    // And under the eyes of a stream that runs: first here, then there.
    two.exec(database, "ALTER SCHEMA b RENAME TO c")?;
    one.exec(
        database,
        "ALTER SCHEMA b RENAME TO c; UPDATE c.t SET v = 'in c' WHERE id IN (1, 3); INSERT INTO c.t VALUES (4, 'in c')",
    )?;
    cluster.sync(1, 2)?;
    let found = sql::show(&two.rows(database, &rows.replace("b.t", "c.t WHERE v = 'in c'"))?);
    ensure!(found == "1\n3\n4", "c.t has {found}");
    wait_no_lag(&cluster)
}

fn catalogs(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let workers = "SELECT string_agg(backend_type || ' ' || pid, ', ' ORDER BY pid) FROM pg_stat_activity WHERE backend_type LIKE 'pg_ha%'";
    let before = two.text("postgres", workers)?;
    let since = two.log_position();
    let mut holder = two.session(database)?;
    holder.exec(
        "BEGIN; LOCK TABLE ha.subscription_catalog, ha.node_catalog, ha.subscription_tables, ha.origin_ids",
    )?;
    let mut id = 0;
    // Longer than the supervisor's own clock.
    wait::holds("rows arrive and all workers stay", Duration::from_secs(8), || {
        id += 1;
        one.exec(
            database,
            &format!("INSERT INTO t VALUES ({id}, 0, 'while locked')"),
        )?;
        wait::until("the row arrives", Duration::from_secs(10), || {
            let count = two.number(database, &format!("SELECT count(*) FROM t WHERE id = {id}"))?;
            Ok(Probe::when(count == 1, "not yet"))
        })?;
        let now = two.text("postgres", workers)?;
        ensure!(now == before, "the workers were {before} and are {now}");
        Ok(())
    })?;
    holder.exec("COMMIT")?;
    cluster.sync(1, 2)?;
    cluster.wait_replicating()?;
    let log = two.log_since(since)?;
    ensure!(
        !log.contains("ERROR") && !log.contains("FATAL"),
        "the log of n2: {log}"
    );
    compare::identical(&cluster, &["t"])?;
    wait_no_lag(&cluster)
}

fn statistics(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(
        database,
        "INSERT INTO t SELECT g, 0, 'v' FROM generate_series(1, 500) g; UPDATE t SET n = 1 WHERE id <= 200;
         DELETE FROM t WHERE id <= 50",
    )?;
    cluster.sync(1, 2)?;
    let counted = "SELECT n_tup_ins || ' ' || n_tup_upd || ' ' || n_tup_del || ' ' || n_live_tup || ' ' || (n_mod_since_analyze > 0)
                     FROM pg_stat_user_tables WHERE relname = 't'";
    let mut polling = two.polling(database);
    wait::until("the applied rows are counted", PATIENCE, || {
        let seen = sql::show(&polling.rows(counted)?);
        Ok(Probe::when(seen.starts_with("500 200 50 450"), seen))
    })
}

fn restored(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(database, "INSERT INTO t VALUES (1, 0, 'before the backup')")?;
    cluster.sync(1, 2)?;
    one.stop(Stop::Fast)?;
    let backup = one.directory.join("backup");
    let copy = |from: &std::path::Path, to: &std::path::Path| -> Result<()> {
        crate::install::run(std::process::Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
    };
    copy(&one.data(), &backup)?;
    one.start()?;
    one.exec(
        database,
        "INSERT INTO t SELECT g, 0, repeat('x', 100) FROM generate_series(2, 5000) g",
    )?;
    cluster.sync(1, 2)?;
    one.stop(Stop::Fast)?;
    std::fs::remove_dir_all(one.data())?;
    copy(&backup, &one.data())?;
    one.start()?;
    let mut polling = two.polling(database);
    wait::until(
        "the subscriber says that the provider was restored",
        PATIENCE,
        || {
            let seen = sql::show(&polling.rows("SELECT status, last_error FROM ha.status_subscriptions")?);
            Ok(Probe::when(
                seen.starts_with("failed") && seen.contains("WAL here ends at"),
                seen,
            ))
        },
    )?;
    // It stays so, and what the provider does now is not taken for what it did before.
    one.exec(database, "UPDATE t SET v = 'after the restore' WHERE id = 1")?;
    wait::holds("nothing is applied", Duration::from_secs(3), || {
        let v = two.text(database, "SELECT v FROM t WHERE id = 1")?;
        ensure!(v == "before the backup", "row 1 became {v:?}");
        Ok(())
    })
}
