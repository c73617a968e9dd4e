//! Failure story: one node goes away for a while, and the others' users feel it, their logs fill up, nobody can see
//! what is wrong, or replication does not come back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::support::{
    add_everywhere, disable, enable, local_users_are_fine, slot_name, wait_no_lag, worker_lines,
};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::{Node, Stop};
use crate::scenario::{Scenario, Stage};
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
        "provider_gone",
        "a provider that is down fills its subscribers' logs, or they do not come back to it",
        down,
    ),
    scenario(
        "provider_gone_frozen",
        "a provider that is frozen, connections open, is taken for a quiet one",
        frozen,
    ),
    scenario(
        "provider_gone_slot",
        "a slot dropped by hand is silently made again (rows are lost), or retried for ever",
        slot,
    ),
    scenario(
        "provider_gone_at_start",
        "a server that starts while its providers are away does not serve its own users",
        at_start,
    ),
];

fn prepare(stage: &Stage) -> Result<Arc<Cluster>> {
    let plan = Plan::nodes(2)
        .with("wal_receiver_timeout", "2s")
        .with("wal_sender_timeout", "2s");
    let cluster = stage.mesh(plan, "CREATE TABLE t (id int PRIMARY KEY, v text)")?;
    add_everywhere(&cluster, "default", &["t"])?;
    cluster
        .node(1)?
        .exec(&cluster.database, "INSERT INTO t VALUES (1, 'before')")?;
    cluster.sync_all()?;
    Ok(cluster)
}

/// While the provider is away: local users are fine, the log stays quiet.
fn bear_absence(cluster: &Cluster, node: &Node, since: u64, time: Duration, most_lines: usize) -> Result<()> {
    let mut count = 0;
    let noise = |lines: &[String]| {
        format!(
            "{} lines from pg_ha's workers:\n{}",
            lines.len(),
            lines.join("\n")
        )
    };
    wait::holds("local users are served and the log stays quiet", time, || {
        count += 1;
        let statement = format!("INSERT INTO t VALUES ({}, 'local')", 1000 + count);
        local_users_are_fine(cluster, node, &statement)?;
        let lines = worker_lines(node, since)?;
        ensure!(
            lines.len() <= most_lines,
            "the log of {} is not quiet, {}",
            node.name,
            noise(&lines)
        );
        Ok(())
    })?;
    let lines = worker_lines(node, since)?;
    ensure!(
        !lines.is_empty(),
        "{} lost its provider and its log says nothing",
        node.name
    );
    Ok(())
}

fn down(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    let since = two.log_position();
    one.stop(Stop::Fast)?;
    cluster.wait_status(two, &name, "down")?;
    let error = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
    ensure!(!error.is_empty(), "{name} is down and last_error is empty");
    // The receiver of n2, and the walsender and receiver that served the other direction: a line or two each.
    let time = Duration::from_secs(if stage.long { 180 } else { 8 });
    bear_absence(&cluster, two, since, time, 4)?;

    let back = two.log_position();
    one.start()?;
    cluster.wait_status(two, &name, "replicating")?;
    let lines = worker_lines(two, back)?;
    ensure!(
        !lines.is_empty(),
        "the log of n2 does not say that {name} is back"
    );
    ensure!(
        lines.len() <= 4,
        "coming back is one change of state, the log has:\n{}",
        lines.join("\n")
    );
    let error = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
    one.exec(&cluster.database, "INSERT INTO t VALUES (2, 'after')")?;
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;
    wait_no_lag(&cluster)?;
    ensure!(
        error.is_empty(),
        "{name} replicates again and still shows the old error {error:?}"
    );
    Ok(())
}

fn frozen(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    let since = two.log_position();
    one.freeze()?;
    cluster.wait_status(two, &name, "down")?;
    bear_absence(&cluster, two, since, Duration::from_secs(4), 6)?;
    one.thaw()?;
    cluster.wait_status(two, &name, "replicating")?;
    one.exec(&cluster.database, "INSERT INTO t VALUES (2, 'after')")?;
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])
}

fn slot(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    let slot = slot_name(&cluster, two, &name)?;
    disable(&cluster, one, two)?;
    one.exec(
        &cluster.database,
        &format!("SELECT pg_drop_replication_slot('{slot}')"),
    )?;
    one.exec(
        &cluster.database,
        "INSERT INTO t VALUES (2, 'while there is no slot')",
    )?;
    let since = two.log_position();
    enable(&cluster, one, two)?;
    cluster.wait_status(two, &name, "failed")?;
    let error = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
    ensure!(
        error.contains(&slot),
        "last_error does not name the slot {slot}: {error:?}"
    );
    bear_absence(&cluster, two, since, Duration::from_secs(5), 3)?;
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let count = one.number(&cluster.database, &slots)?;
    ensure!(
        count == 0,
        "the slot {slot} was made again behind everybody's back: what happened meanwhile is lost"
    );
    let status = cluster.status_of(two, &name, "status")?;
    ensure!(
        status.as_deref() == Some("failed"),
        "{name} has no slot and its status is {status:?}"
    );
    // The other direction does not suffer.
    two.exec(&cluster.database, "INSERT INTO t VALUES (3, 'other direction')")?;
    cluster.sync(2, 1)?;
    // And there is a way out.
    two.exec(&cluster.database, &format!("SELECT ha.sub_drop('{name}')"))?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    one.exec(&cluster.database, "INSERT INTO t VALUES (4, 'new slot')")?;
    cluster.sync(1, 2)?;
    wait::until("the row sent through the new slot is there", PATIENCE, || {
        let count = two.number(&cluster.database, "SELECT count(*) FROM t WHERE id = 4")?;
        Ok(Probe::when(count == 1, format!("{count} rows")))
    })
}

fn at_start(stage: &Stage) -> Result<()> {
    let cluster = prepare(stage)?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let name = Cluster::subscription_name(one, two);
    two.stop(Stop::Fast)?;
    one.stop(Stop::Fast)?;
    let since = two.log_position();
    two.start()?;
    cluster.wait_status(two, &name, "down")?;
    bear_absence(&cluster, two, since, Duration::from_secs(3), 6)?;
    one.start()?;
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])
}
