//! Failure story: a server dies while a subscription that brings the provider's structure is being made, and leaves half of
//! it, a file with somebody's definitions, or a slot that holds WAL for ever.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::support::{inventory, left_nothing_within};
use crate::cluster::Plan;
use crate::compare;
use crate::scenario::{Scenario, Stage};
use crate::sql::literal;
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "copies_structure_cut",
    story: "a subscriber dies while it reads the provider's structure, and something is left behind on either side",
    run,
    needs: &[],
    stock: false,
    weight: 2,
}];

fn run(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2))?;
    cluster.create_nodes()?;
    let (first, second) = (cluster.node(1)?, cluster.node(2)?);
    first.exec(
        &cluster.database,
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g;
         SELECT ha.repset_add_table('default', 't')",
    )?;
    // pg_dump takes a second or two for these. (It could not be made to wait for a lock: the slot would do so before.)
    first.exec(
        &cluster.database,
        "DO $$ BEGIN FOR i IN 1..1500 LOOP
             EXECUTE format('CREATE VIEW v%s AS SELECT id, v, id + %s AS w FROM t WHERE v <> %L', i, i, i);
         END LOOP; END $$",
    )?;
    let create = format!(
        "SELECT ha.sub_create('s', {}, synchronize_structure => true, synchronize_data => true)",
        literal(&first.dsn(&cluster.database))
    );
    let before = inventory(first, &cluster.database)?;
    let mut maker = second.session(&cluster.database)?;
    std::thread::scope(|scope| -> Result<()> {
        let making = scope.spawn(|| maker.exec(&create));
        let mut polling = first.polling("postgres");
        let reached = wait::until("pg_dump is at work", PATIENCE, || {
            let rows = polling.rows("SELECT FROM pg_stat_activity WHERE application_name = 'pg_dump'")?;
            Ok(Probe::when(!rows.is_empty(), "it is not"))
        });
        let killed = second.kill_server();
        let made = making.join();
        reached?;
        killed?;
        ensure!(
            matches!(made, Ok(Err(_))),
            "the subscription was made although the server died"
        );
        Ok(())
    })?;
    second.start()?;
    left_nothing_within(first, &cluster.database, &before, PATIENCE)?;
    ensure!(
        second.number(&cluster.database, "SELECT count(*) FROM ha.subscriptions")? == 0,
        "half a subscription is left"
    );
    let state = second.data().with_extension("ha");
    let left: Vec<String> = fs::read_dir(&state)
        .with_context(|| format!("reading {}", state.display()))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.starts_with("structure"))
        .collect();
    ensure!(left.is_empty(), "files are left: {}", left.join(", "));

    second.exec(&cluster.database, &create)?;
    ensure!(
        second.text(&cluster.database, "SELECT ha.sub_wait_for_sync('s', '60 s')")? == "t",
        "the second attempt brought nothing"
    );
    compare::identical(&cluster, &["t"])
}
