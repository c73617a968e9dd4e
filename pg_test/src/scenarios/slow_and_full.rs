//! Failure stories: a link between continents makes replication crawl or time out; a full disk on a subscriber
//! loses what could not be written.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::support::{add_everywhere, wait_no_lag, worker_lines};
use crate::cluster::Plan;
use crate::compare;
use crate::faults::Ballast;
use crate::proxy::{Link, Proxy};
use crate::scenario::{Need, Scenario, Stage};
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "slow_link",
        story: "over a link with 100 ms and little bandwidth every transaction waits for a round trip, or the stream times out",
        run: slow_link,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "disk_full",
        story: "a subscriber whose disk is full drops changes, or never goes on once there is room",
        run: disk_full,
        needs: &[Need::Root],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "disk_full_whole_server",
        story: "a subscriber that went down with a full disk comes back with changes missing or applied twice",
        run: whole_disk,
        needs: &[Need::Root],
        stock: false,
        weight: 1,
    },
];

fn slow_link(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2)
        .with("wal_receiver_timeout", "5s")
        .with("wal_sender_timeout", "5s")
        .with("wal_receiver_status_interval", "1s");
    let cluster = stage.cluster(plan)?;
    cluster.create_nodes()?;
    cluster.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text)")?;
    add_everywhere(&cluster, "default", &["t"])?;
    let one = cluster.node(1)?;
    let link = Link {
        latency: Duration::from_millis(100),
        bytes_per_second: 250_000,
    };
    let proxy = Proxy::start(one.port, link)?;
    let dsn = format!(
        "host=127.0.0.1 port={} dbname={} user=postgres",
        proxy.port, cluster.database
    );
    let name = cluster.subscribe_through(&dsn, 1, 2)?;
    cluster.wait_replicating()?;

    // Small transactions are pipelined: 500 of them must not take 500 round trips of 200 ms.
    let mut session = one.session(&cluster.database)?;
    let started = Instant::now();
    for id in 0..500 {
        session.exec(&format!("INSERT INTO t VALUES ({id}, 'small')"))?;
    }
    cluster.sync(1, 2)?;
    let took = started.elapsed();
    ensure!(
        took < Duration::from_secs(30),
        "500 small transactions took {took:?}: one round trip each would be 100 s"
    );
    // 3 MB at 250 kB/s keep the link busy longer than the time-outs; the connection must survive it.
    let carried = proxy.carried();
    let pid = "SELECT active_pid FROM pg_replication_slots WHERE active";
    let before = one.text(&cluster.database, pid)?;
    session.exec("INSERT INTO t SELECT g, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 30 + g % 2))
                    FROM generate_series(1000, 4000) AS g")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t"])?;
    ensure!(
        proxy.carried() > carried + 2_000_000,
        "only {} bytes went over the slow link",
        proxy.carried() - carried
    );
    let after = one.text(&cluster.database, pid)?;
    ensure!(
        before == after,
        "the connection of {name} did not survive a large transaction over a slow link"
    );
    wait_no_lag(&cluster)
}

fn disk_full(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    // Only the table's own disk fills up: WAL and catalogs of the subscriber go on.
    let small = two.directory.join("small");
    two.mount_small_disk(&small, 8)?;
    let location = stage.install.inside(&small);
    two.exec(
        "postgres",
        &format!("CREATE TABLESPACE small LOCATION '{}'", location.display()),
    )?;
    one.exec(
        &cluster.database,
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE free (id int PRIMARY KEY)",
    )?;
    two.exec(
        &cluster.database,
        "CREATE TABLE t (id int PRIMARY KEY, v text) TABLESPACE small; CREATE TABLE free (id int PRIMARY KEY)",
    )?;
    add_everywhere(&cluster, "default", &["t", "free"])?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    one.exec(&cluster.database, "INSERT INTO t VALUES (0, 'fits')")?;
    cluster.sync(1, 2)?;

    let ballast = Ballast::fill(&small)?;
    let since = two.log_position();
    one.exec(
        &cluster.database,
        "INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 2000) AS g",
    )?;
    one.exec(&cluster.database, "INSERT INTO free VALUES (1)")?;
    wait::until(&format!("{name} says that the disk is full"), PATIENCE, || {
        let error = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
        Ok(Probe::when(error.contains("No space left on device"), error))
    })?;
    wait::holds(
        "apply pauses, retries quietly and leaves nothing out",
        Duration::from_secs(4),
        || {
            let (full, free) = (
                two.number(&cluster.database, "SELECT count(*) FROM t")?,
                two.number(&cluster.database, "SELECT count(*) FROM free")?,
            );
            ensure!(
                full == 1 && free == 0,
                "t has {full} rows and free has {free}, while the first change cannot be applied"
            );
            let lines = worker_lines(two, since)?;
            ensure!(
                lines.len() <= 12,
                "{} log lines about one full disk:\n{}",
                lines.len(),
                lines.join("\n")
            );
            Ok(())
        },
    )?;
    drop(ballast);
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t", "free"])?;
    cluster.wait_status(two, &name, "replicating")?;
    wait_no_lag(&cluster)
}

fn whole_disk(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2)
        .with("min_wal_size", "32MB")
        .with("max_wal_size", "64MB")
        .node(2, |spec| spec.disk_megabytes = Some(250));
    let cluster = stage.cluster(plan)?;
    cluster.create_nodes()?;
    cluster.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text)")?;
    add_everywhere(&cluster, "default", &["t"])?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    one.exec(&cluster.database, "INSERT INTO t VALUES (0, 'fits')")?;
    cluster.sync(1, 2)?;

    let ballast = Ballast::fill(&two.data())?;
    let since = two.log_position();
    for part in 0..40 {
        let insert = format!(
            "INSERT INTO t SELECT {part} * 1000 + g, repeat('x', 900) FROM generate_series(1, 1000) AS g"
        );
        one.exec(&cluster.database, &insert)?;
    }
    // 36 MB do not fit: an ERROR in the applier or, where WAL is concerned, a PANIC of the whole instance.
    wait::until("n2 has noticed that its disk is full", PATIENCE, || {
        let log = two.log_since(since)?;
        Ok(Probe::when(
            log.contains("No space left on device"),
            two.log_tail(1),
        ))
    })?;
    drop(ballast);
    // PostgreSQL may have given up while there was no room to recover; what starts it again is outside.
    wait::until("n2 works again now that it has room", PATIENCE, || {
        if two.exit_status()?.is_some() {
            two.launch()?;
        }
        two.value(&cluster.database, "SELECT 1")?;
        Ok(Probe::Ready(()))
    })?;
    cluster.wait_replicating()?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t"])?;
    wait_no_lag(&cluster)
}
