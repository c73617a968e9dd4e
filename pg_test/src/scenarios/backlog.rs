//! Failure story: a subscriber was away for a weekend, and on Monday the backlog fills the memory of a server, takes
//! longer than the weekend, or ends in a difference.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::support::{add_everywhere, wait_no_lag};
use crate::cluster::Plan;
use crate::compare;
use crate::node::Stop;
use crate::process;
use crate::scenario::{Scenario, Stage};
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "backlog",
    story: "a subscriber that was down for 1 GB of WAL does not catch up, or a process's memory grows with the backlog",
    run,
    needs: &[],
    stock: false,
    weight: 2,
}];

const BACKLOG: i64 = 1 << 30;
/// Kilobytes that a process of the replication may hold for itself, whatever waits.
const MEMORY: u64 = 160 * 1024;

fn run(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2).with("max_wal_size", "2GB").with("fsync", "off");
    let cluster = stage.cluster(plan)?;
    cluster.create_nodes()?;
    cluster.everywhere(
        "CREATE TABLE large (id int PRIMARY KEY, v text); ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
         CREATE TABLE small (id int PRIMARY KEY, n int)",
    )?;
    add_everywhere(&cluster, "default", &["large", "small"])?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    two.stop(Stop::Fast)?;
    let before = one.text(database, "SELECT pg_current_wal_lsn()")?;
    let mut session = one.session(database)?;
    // Few rows of a megabyte each, transactions of many rows, and many transactions of few.
    for part in 0..10 {
        for first in (0..100).step_by(4) {
            let (from, to) = (part * 100 + first, part * 100 + first + 3);
            session.exec(&format!(
                "INSERT INTO large SELECT g, repeat(chr(65 + g % 26), 1000000) FROM generate_series({from}, {to}) g"
            ))?;
        }
        session.exec(&format!(
            "INSERT INTO small SELECT {part} * 10000 + g, g FROM generate_series(0, 9999) g;
             UPDATE small SET n = n + 1 WHERE id % 7 = {part} % 7"
        ))?;
        let tiny: Vec<String> = (0..200)
            .map(|number| {
                format!(
                    "UPDATE small SET n = {number} WHERE id = {}; COMMIT",
                    part * 10_000 + number
                )
            })
            .collect();
        session.exec(&tiny.join("; "))?;
    }
    let written = one.number(
        database,
        &format!("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')::bigint"),
    )?;
    ensure!(written >= BACKLOG, "the backlog has only {written} bytes");

    two.start()?;
    let mut most: Vec<(u32, u64)> = Vec::new();
    let mut polling = two.polling(database);
    let lag = "SELECT status, lag_bytes, (SELECT count(*) FROM small) FROM ha.status_subscriptions";
    let end = one.text(database, "SELECT ha.sync_event()")?;
    let arrived =
        format!("SELECT applied_lsn >= '{end}' AND status = 'replicating' FROM ha.status_subscriptions");
    // As much as the machine needs; what is checked is that it comes to an end, and what it holds meanwhile.
    wait::until("the backlog is applied", PATIENCE * 4, || {
        for node in [one, two] {
            for pid in process::replicating(node.pid()?) {
                let held = process::own_memory(pid).unwrap_or(0);
                match most.iter_mut().find(|(known, _)| *known == pid) {
                    Some((_, most)) => *most = held.max(*most),
                    None => most.push((pid, held)),
                }
            }
        }
        if crate::sql::show(&polling.rows(&arrived)?) == "t" {
            return Ok(Probe::Ready(()));
        }
        Ok(Probe::NotYet(crate::sql::show(&polling.rows(lag)?)))
    })?;
    ensure!(most.len() >= 4, "saw only {} processes at work", most.len());
    if let Some((pid, held)) = most.iter().find(|(_, held)| *held > MEMORY) {
        anyhow::bail!("process {pid} held {held} kB for itself, and {MEMORY} kB is the limit: {most:?}");
    }
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["large", "small"])?;
    wait_no_lag(&cluster)?;
    // Let go of: the next checkpoints take the backlog's WAL away.
    let held = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots";
    wait::until(
        "the provider keeps the backlog no longer",
        Duration::from_secs(60),
        || {
            one.exec(database, "CHECKPOINT")?;
            cluster.sync(1, 2)?;
            let bytes = one.number(database, held)?;
            Ok(Probe::when(bytes < BACKLOG / 8, format!("{bytes} bytes")))
        },
    )
}
