//! Failure story: the line between two sites breaks while tables are copied over it, packets vanish both ways and
//! nobody is told; and the copy hangs for ever, is never finished, brings rows twice, or leaves a slot behind.

use anyhow::{Context, Result, ensure};

use super::support::wait_no_lag;
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::faults::Direction;
use crate::scenario::{Need, Scenario, Stage};
use crate::sql::{self, literal};
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "copies_cut_off",
    story: "the network is cut both ways during a copy: it hangs, doubles rows, never ends, or leaves a slot on the provider",
    run,
    needs: &[Need::Root],
    stock: false,
    weight: 1,
}];

const NAME: &str = "sub_n2_n1";

fn run(stage: &Stage) -> Result<()> {
    let plan = Plan::nodes(2)
        .in_namespaces()
        .with("wal_receiver_timeout", "3s")
        .with("wal_sender_timeout", "3s")
        .with("ha.retry_max", "1s");
    let cluster = stage.cluster(plan)?;
    cluster.create_nodes()?;
    cluster.everywhere(
        "CREATE TABLE wide (id int, v text); ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
         CREATE TABLE keyed (id int PRIMARY KEY, v text)",
    )?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    // Without a key, so that nothing would hide a row that came twice.
    one.exec(
        database,
        "INSERT INTO wide SELECT g, repeat('x', 20000) FROM generate_series(1, 10000) g;
         INSERT INTO keyed SELECT g, 'v' FROM generate_series(1, 100000) g;
         SELECT ha.repset_add_table('default_insert_only', 'wide'), ha.repset_add_table('default', 'keyed')",
    )?;
    let create = format!(
        "SELECT ha.sub_create({}, {}, synchronize_data => true)",
        literal(NAME),
        literal(&one.dsn(database))
    );
    two.exec(database, &create)?;
    for round in 0..stage.repetitions(2, 10) {
        let what = format!("round {round}");
        if round > 0 {
            let again = format!("SELECT ha.sub_resync_table({}, 'wide')", literal(NAME));
            two.exec(database, &again)?;
        }
        let mut polling = two.polling(database);
        let copying = "SELECT max(copy_rows) FROM ha.copy_states() WHERE phase = 'copying' AND copy_rows > 0";
        wait::until("rows are being copied", PATIENCE, || {
            let rows = sql::show(&polling.rows(copying)?);
            Ok(Probe::when(rows != "NULL", rows))
        })
        .with_context(|| what.clone())?;
        cluster.network()?.cut(1, 2, Direction::BothWays)?;
        one.exec(
            database,
            &format!(
                "INSERT INTO wide VALUES ({}, 'meanwhile'); UPDATE keyed SET v = 'round {round}' WHERE id % 100 = {round}",
                20_000 + round
            ),
        )?;
        // The silence is noticed: the copier is gone, and so is the receiver.
        wait::until("the subscriber has noticed the cut", PATIENCE, || {
            let row = polling.rows(&format!(
                "SELECT (SELECT count(*) FROM ha.copy_states() WHERE copy_rows > 0), status
                   FROM ha.status_subscriptions WHERE subscription_name = {}",
                literal(NAME)
            ))?;
            let seen = sql::show(&row);
            Ok(Probe::when(seen == "0 | down", seen))
        })
        .with_context(|| what.clone())?;
        cluster.network()?.heal()?;
        copied(&cluster).with_context(|| what.clone())?;
        cluster.sync(1, 2)?;
        compare::identical(&cluster, &["wide", "keyed"]).with_context(|| what.clone())?;
    }
    wait::until("no slot of a copy is left on the provider", PATIENCE, || {
        let slots = one.rows(
            database,
            "SELECT slot_name FROM pg_replication_slots WHERE temporary",
        )?;
        Ok(Probe::when(slots.is_empty(), sql::show(&slots)))
    })?;
    ensure!(
        one.number(database, "SELECT count(*) FROM pg_replication_slots")? == 1,
        "more slots than the subscription's own"
    );
    wait_no_lag(&cluster)
}

fn copied(cluster: &Cluster) -> Result<()> {
    let mut polling = cluster.node(2)?.polling(&cluster.database);
    let open =
        "SELECT relname, status, attempts, last_error FROM ha.copied_tables WHERE status <> 'replicating'";
    wait::until("everything is copied", PATIENCE * 2, || {
        let rows = polling.rows(open)?;
        Ok(Probe::when(rows.is_empty(), sql::show(&rows)))
    })
}
