//! Failure story (C11): while the applier looks a row up by its index, a local update moves the row. The scan sees
//! neither version, the row is taken for missing, and the remote update is thrown away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use super::support::add_everywhere;
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::wait;

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "false_missing",
    story: "a row that is being updated locally is taken for missing, and the remote update of it is thrown away",
    run,
    needs: &[],
    stock: false,
    weight: 2,
}];

// The indexed column changes with every update, so that no update is HOT and each adds index entries.
const TABLE: &str = "CREATE TABLE hot (id int PRIMARY KEY, v bigint, pad text); CREATE INDEX ON hot (v)";
const ROWS: u64 = 20;
const HAMMERS: u64 = 2;

fn run(stage: &Stage) -> Result<()> {
    let cluster = stage.mesh(Plan::nodes(2), TABLE)?;
    add_everywhere(&cluster, "default", &["hot"])?;
    let insert = format!("INSERT INTO hot SELECT g, g, repeat('x', 50) FROM generate_series(1, {ROWS}) AS g");
    cluster.node(1)?.exec(&cluster.database, &insert)?;
    cluster.sync(1, 2)?;
    let positions: Vec<u64> = cluster.nodes.iter().map(Node::log_position).collect();

    let (stop, updates) = (AtomicBool::new(false), AtomicU64::new(0));
    let seconds = if stage.long { 60 } else { 6 };
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let mut running = Vec::new();
        for node in &cluster.nodes {
            for number in 0..HAMMERS {
                let seed = stage.random(0..u64::MAX) ^ number;
                let (cluster, stop, updates) = (&*cluster.database, &stop, &updates);
                running.push(scope.spawn(move || hammer(node, cluster, seed, stop, updates)));
            }
        }
        let waited = wait::let_run(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
        let ended = running.into_iter().map(|thread| thread.join());
        let mut outcomes: Vec<Result<()>> = ended
            .map(|outcome| outcome.unwrap_or_else(|_| Err(anyhow!("a hammer panicked"))))
            .collect();
        outcomes.push(waited);
        outcomes
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    let done = updates.load(Ordering::Relaxed);
    ensure!(
        done > 500,
        "only {done} updates in {seconds} s: too few for a race to happen"
    );

    cluster.sync_all()?;
    nothing_missing(&cluster, &positions)?;
    compare::identical(&cluster, &["hot"])?;
    let count = cluster
        .node(1)?
        .number(&cluster.database, "SELECT count(*) FROM hot")?;
    ensure!(
        u64::try_from(count) == Ok(ROWS),
        "{count} of {ROWS} rows are left"
    );
    Ok(())
}

fn hammer(node: &Node, database: &str, seed: u64, stop: &AtomicBool, updates: &AtomicU64) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut session = node.session(database)?;
    while !stop.load(Ordering::Relaxed) {
        let (id, v) = (random.u64(1..=ROWS), random.u32(..));
        session.exec(&format!("UPDATE hot SET v = {v} WHERE id = {id}"))?;
        updates.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// No row was ever deleted, so a conflict of the kind "missing" or "deleted" is a false one.
fn nothing_missing(cluster: &Cluster, positions: &[u64]) -> Result<()> {
    for (node, position) in cluster.nodes.iter().zip(positions) {
        let log = node.log_since(*position)?;
        let wrong = log
            .lines()
            .find(|line| line.contains("update_missing") || line.contains("update_deleted"));
        ensure!(
            wrong.is_none(),
            "{} took a row for missing: {}",
            node.name,
            wrong.unwrap_or_default()
        );
    }
    Ok(())
}
