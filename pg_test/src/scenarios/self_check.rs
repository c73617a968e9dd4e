//! Failure story: a fault that does not bite. A cut that lets packets through, a clock that is right after all
//! or a disk that is never full would make every scenario built on it pass, whatever the extension does. These
//! run on any server, with or without pg_ha.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::cluster::Plan;
use crate::compare;
use crate::faults::{self, Ballast, Direction};
use crate::node::{Node, Stop};
use crate::proxy::{Link, Proxy};
use crate::scenario::{Need, Scenario, Stage};
use crate::sql;
use crate::wait::{self, PATIENCE, Probe};
use crate::workload::{self, Branches, Schema, Writer};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "self_check_servers",
        story: "a kill that spares a process, or copies of one server that cannot be told apart, make crash tests pass for nothing",
        run: servers,
        needs: &[],
        stock: true,
        weight: 1,
    },
    Scenario {
        name: "self_check_network",
        story: "a cut that lets packets through makes every partition test pass for nothing",
        run: network,
        needs: &[Need::Root],
        stock: true,
        weight: 1,
    },
    Scenario {
        name: "self_check_clock",
        story: "a wrong clock that is right after all makes every clock test pass for nothing",
        run: clock,
        needs: &[Need::Faketime],
        stock: true,
        weight: 1,
    },
    Scenario {
        name: "self_check_disk",
        story: "a full disk that still has room makes every disk test pass for nothing",
        run: disk,
        needs: &[Need::Root],
        stock: true,
        weight: 1,
    },
    Scenario {
        name: "self_check_slow_link",
        story: "a slow link that is fast makes every latency test pass for nothing",
        run: slow_link,
        needs: &[],
        stock: true,
        weight: 1,
    },
    Scenario {
        name: "self_check_audit",
        story: "a comparison or an audit that overlooks a difference makes every scenario pass for nothing",
        run: audit,
        needs: &[],
        stock: true,
        weight: 1,
    },
];

fn identifier(node: &Node) -> Result<String> {
    node.text("postgres", "SELECT system_identifier FROM pg_control_system()")
}

fn servers(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    ensure!(
        identifier(one)? != identifier(two)?,
        "two nodes share the system identifier {}",
        identifier(one)?
    );

    one.exec("postgres", "CREATE TABLE kept (a int)")?;
    one.exec("postgres", "INSERT INTO kept VALUES (1)")?;
    let mut session = one.session("postgres")?;
    one.kill_server()?;
    ensure!(
        session.exec("SELECT 1").is_err(),
        "a session survived the kill of its server"
    );
    one.start()?;
    ensure!(
        one.number("postgres", "SELECT a FROM kept")? == 1,
        "the row is gone after crash recovery"
    );

    let mut session = one.session("postgres")?;
    one.kill_backend("checkpointer")?;
    wait::until(
        "the killed checkpointer took the sessions with it",
        PATIENCE,
        || {
            Ok(Probe::when(
                session.exec("SELECT 1").is_err(),
                "the session still works",
            ))
        },
    )?;
    one.wait_accepting()?;

    one.freeze()?;
    let mark = Instant::now();
    let (directory, port) = (one.directory.clone(), one.port);
    let asking = std::thread::spawn(move || {
        sql::Session::connect(&directory, port, "postgres", "frozen")?
            .exec("SELECT 1")
            .map(|()| Instant::now())
    });
    wait::holds(
        "a frozen server gives no answer",
        Duration::from_millis(300),
        || {
            ensure!(!asking.is_finished(), "it answered after {:?}", mark.elapsed());
            Ok(())
        },
    )?;
    one.thaw()?;
    match asking.join() {
        Ok(answer) => drop(answer?),
        Err(_) => bail!("the asking thread panicked"),
    }

    two.stop(Stop::Immediate)?;
    two.start()?;
    two.restart()
}

/// Whether a TCP connection from one node's namespace to the other's server comes about.
fn reaches(from: &Node, to: &Node) -> Result<bool> {
    let Some(namespace) = &from.namespace else {
        bail!("{} has no namespace", from.name)
    };
    let connect = format!("exec 3<>/dev/tcp/{}/{}", to.address, to.port);
    let status = std::process::Command::new("ip")
        .args(["netns", "exec", namespace, "timeout", "1", "bash", "-c", &connect])
        .stderr(std::process::Stdio::null())
        .status()?;
    match status.code() {
        Some(0) => Ok(true),
        // 124: timed out. Anything else (refused, no route) is not what a cut looks like.
        Some(124) => Ok(false),
        _ => bail!("connecting from {} to {} ended with {status}", from.name, to.name),
    }
}

fn network(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3).in_namespaces())?;
    let (one, two, three) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    let network = cluster.network()?;
    ensure!(
        reaches(one, two)? && reaches(two, one)?,
        "the nodes do not reach each other before any cut"
    );
    network.cut(1, 2, Direction::BothWays)?;
    ensure!(!reaches(one, two)?, "n1 reaches n2 although both ways are cut");
    ensure!(!reaches(two, one)?, "n2 reaches n1 although both ways are cut");
    ensure!(
        reaches(one, three)?,
        "n1 does not reach n3, which was not cut off"
    );
    network.heal()?;
    ensure!(reaches(one, two)?, "n1 does not reach n2 after healing");
    // One way is enough to stop TCP, and only between these two.
    network.cut(2, 1, Direction::OneWay)?;
    ensure!(!reaches(one, two)?, "n1 reaches n2 although answers are cut");
    network.heal()?;
    network.isolate(3)?;
    ensure!(
        !reaches(three, one)? && !reaches(three, two)?,
        "n3 reaches somebody although it is isolated"
    );
    ensure!(
        reaches(two, one)?,
        "n2 does not reach n1 although only n3 is isolated"
    );
    network.heal()
}

fn clock(stage: &Stage) -> Result<()> {
    let ahead = faults::wrong_clock(&stage.install, "+5s")?;
    let cluster = stage.cluster(Plan::nodes(2).node(2, |spec| spec.environment = ahead))?;
    let now = "SELECT extract(epoch FROM clock_timestamp())";
    let right: f64 = cluster.node(1)?.text("postgres", now)?.parse()?;
    let wrong: f64 = cluster.node(2)?.text("postgres", now)?.parse()?;
    let difference = wrong - right;
    ensure!(
        (4.0..8.0).contains(&difference),
        "the clock of n2 should be 5 s ahead, it is {difference:.2} s"
    );
    let started = Instant::now();
    cluster.node(2)?.exec("postgres", "SELECT pg_sleep(0.3)")?;
    let slept = started.elapsed();
    ensure!(
        (0.25..3.0).contains(&slept.as_secs_f64()),
        "pg_sleep(0.3) took {slept:?} under a wrong clock"
    );
    Ok(())
}

fn disk(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(1).node(1, |spec| spec.disk_megabytes = Some(200)))?;
    let node = cluster.node(1)?;
    let small = node.directory.join("small");
    node.mount_small_disk(&small, 4)?;
    let location = stage.install.inside(&small);
    node.exec(
        "postgres",
        &format!("CREATE TABLESPACE small LOCATION '{}'", location.display()),
    )?;
    node.exec("postgres", "CREATE TABLE t (a text) TABLESPACE small")?;
    let insert = "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 200)";
    node.exec("postgres", insert)?;
    let ballast = Ballast::fill(&small)?;
    let error = match node.exec("postgres", insert) {
        Ok(()) => bail!("200 kB went into a full tablespace"),
        Err(error) => error,
    };
    let state = sql::refusal(&error).map(|refusal| refusal.sqlstate);
    ensure!(
        state.as_deref() == Some("53100"),
        "a full disk should be SQLSTATE 53100, it was {error:#}"
    );
    drop(ballast);
    node.exec("postgres", insert)
}

fn slow_link(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(1))?;
    let node = cluster.node(1)?;
    let link = Link {
        latency: Duration::from_millis(40),
        bytes_per_second: 1_000_000,
    };
    let proxy = Proxy::start(node.port, link)?;
    let text = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", proxy.port);
    let mut client = postgres::Client::connect(&text, postgres::NoTls)?;
    let started = Instant::now();
    client.simple_query("SELECT 1")?;
    let round_trip = started.elapsed();
    ensure!(
        round_trip >= 2 * link.latency,
        "a round trip of 2 x 40 ms took {round_trip:?}"
    );
    let started = Instant::now();
    client.simple_query("SELECT repeat('x', 500000)")?;
    let transfer = started.elapsed();
    ensure!(
        transfer >= Duration::from_millis(400),
        "500 kB at 1 MB/s took {transfer:?}"
    );
    ensure!(
        proxy.carried() > 500_000,
        "the proxy carried {} bytes of 500 kB",
        proxy.carried()
    );
    Ok(())
}

fn audit(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_database()?;
    let schema = Schema::small(2);
    workload::initialise(&cluster, &stage.install, schema)?;
    compare::identical(&cluster, &workload::TABLES)?;

    let one = cluster.node(1)?;
    let writer = Writer::start(
        one,
        &cluster.database,
        Branches::share(1, 2, schema)?,
        stage.seed,
        None,
    );
    wait::until("the writer has written", PATIENCE, || {
        Ok(Probe::when(
            writer.progress() > 50,
            format!("{} transactions", writer.progress()),
        ))
    })?;
    one.kill_server()?;
    one.start()?;
    let before = writer.progress();
    wait::until("the writer goes on after the crash", PATIENCE, || {
        Ok(Probe::when(
            writer.progress() > before + 50,
            format!("{} transactions", writer.progress()),
        ))
    })?;
    let account = writer.stop()?;
    workload::audit(one, &cluster.database, "n1", &account)?;
    workload::balanced(one, &cluster.database)?;

    match compare::identical(&cluster, &workload::TABLES) {
        Ok(()) => bail!("the comparison did not notice what only n1 has"),
        Err(error) => ensure!(
            format!("{error}").contains("rows only on n1"),
            "the wrong story: {error}"
        ),
    }
    one.exec(
        &cluster.database,
        "DELETE FROM pgbench_history WHERE ctid = (SELECT min(ctid) FROM pgbench_history)",
    )?;
    ensure!(
        workload::audit(one, &cluster.database, "n1", &account).is_err(),
        "the audit did not notice a lost transaction"
    );
    ensure!(
        workload::balanced(one, &cluster.database).is_err(),
        "the sums did not notice a lost transaction"
    );
    Ok(())
}
