//! Failure story: a major upgrade goes through replication, as everybody does it who cannot stop for hours; and with
//! two versions in the cluster a value changes its form, a copy fails, or the way back does not work.

use anyhow::{Context, Result, ensure};

use super::support::refused;
use crate::cluster::{Cluster, Plan};
use crate::menagerie::{self, Numbers, SETS, Writer};
use crate::scenario::{Need, Scenario, Stage};
use crate::sql::literal;
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "mixed_versions",
    story: "servers of two major versions replicate both ways, with structure and rows copied from one to the other: something differs",
    run,
    needs: &[Need::OtherVersion],
    stock: false,
    weight: 2,
}];

/// Node 1 runs this run's version and is full, node 2 the other one and is empty; then both write.
fn run(stage: &Stage) -> Result<()> {
    let tables = menagerie::alike();
    let plan = Plan::nodes(2)
        .with("logical_decoding_work_mem", "64kB")
        .node(2, |spec| spec.other_version = true);
    let cluster = stage.cluster(plan)?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    let versions = (one.install.major, two.install.major);
    ensure!(versions.0 != versions.1, "both nodes run {}", versions.0);
    menagerie::create(one, database, &tables)?;
    menagerie::add(one, database, &tables)?;
    let write = |node: &crate::node::Node, alone| {
        Writer::start(
            node,
            database,
            &tables,
            Numbers::of(node, 0),
            alone,
            stage.seed,
            Some(if stage.long { 5_000 } else { 300 }),
        )
    };
    write(one, true).finish()?;

    let create = |structure: bool| {
        format!(
            "SELECT ha.sub_create('sub_n2_n1', {}, {SETS}, synchronize_structure => {structure}, synchronize_data => true)",
            literal(&one.dsn(database))
        )
    };
    if versions.0 < versions.1 {
        two.exec(database, &create(true))?;
    } else {
        // pg_dump refuses servers newer than itself. The refusal says so and leaves nothing behind.
        refused(
            two,
            database,
            &create(true),
            &["38000"],
            &["version", &versions.0.to_string(), &versions.1.to_string()],
        )?;
        menagerie::create(two, database, &tables)?;
        two.exec(database, &create(false))?;
    }
    copied(&cluster)?;
    menagerie::add(two, database, &tables)?;
    one.exec(
        database,
        &format!(
            "SELECT ha.sub_create('sub_n1_n2', {}, {SETS})",
            literal(&two.dsn(database))
        ),
    )?;
    cluster.wait_replicating()?;
    let writers = [write(one, false), write(two, false)];
    for writer in writers {
        writer.finish()?;
    }
    cluster.sync_all()?;
    menagerie::compare_all(&cluster, &tables).with_context(|| {
        format!(
            "{} is n1 and {} is n2, seed {}",
            versions.0, versions.1, stage.seed
        )
    })
}

fn copied(cluster: &Cluster) -> Result<()> {
    let mut polling = cluster.node(2)?.polling(&cluster.database);
    let open =
        "SELECT relname, status, last_error FROM ha.copied_tables WHERE status <> 'replicating' LIMIT 3";
    wait::until("everything is copied", PATIENCE * 2, || {
        let rows = polling.rows(open)?;
        Ok(Probe::when(rows.is_empty(), crate::sql::show(&rows)))
    })
}
