//! Failure story: any process may die at any moment, on either side, and among a hundred such deaths there is one after
//! which a row is missing, a change is applied twice, a copy is half there, or replication never comes back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::random_changes::{committed, pausing, subscribe_with_copy};
use super::support::wait_no_lag;
use crate::cluster::{Cluster, Plan};
use crate::menagerie::{self, Numbers, Table, Writer};
use crate::node::{Node, Stop};
use crate::scenario::{Scenario, Stage};
use crate::sql::{self, literal};
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "crash_anything_streaming",
        story: "a process of either server dies while changes stream, and afterwards the tables differ or nothing streams",
        run: streaming,
        needs: &[],
        stock: false,
        weight: 2,
    },
    Scenario {
        name: "crash_anything_copying",
        story: "a process of either server dies while tables are copied, and afterwards rows are doubled or missing, or a slot is left",
        run: copying,
        needs: &[],
        stock: false,
        weight: 2,
    },
];

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL, which resets the whole instance.
    Kill(&'static str),
    /// SIGTERM, as pg_terminate_backend sends it.
    Terminate(&'static str),
    Stop(Stop),
    /// Everything at once, as in a power cut.
    Server,
}

/// On which node, and what.
type Fall = (usize, Fault);

const EVERYWHERE: &[Fault] = &[
    Fault::Kill("pg_ha supervisor"),
    Fault::Kill("checkpointer"),
    Fault::Kill("walwriter"),
    Fault::Terminate("pg_ha supervisor"),
    Fault::Stop(Stop::Fast),
    Fault::Stop(Stop::Immediate),
    Fault::Server,
];
const ON_THE_PROVIDER: &[Fault] = &[Fault::Kill("walsender"), Fault::Terminate("walsender")];
const ON_THE_SUBSCRIBER: &[Fault] = &[
    Fault::Kill("pg_ha receiver"),
    Fault::Kill("pg_ha applier"),
    Fault::Terminate("pg_ha receiver"),
    Fault::Terminate("pg_ha applier"),
];
const ON_A_COPYING_SUBSCRIBER: &[Fault] = &[Fault::Kill("pg_ha copier"), Fault::Terminate("pg_ha copier")];

/// So many of them, in random order, none twice before all have been.
fn falls(stage: &Stage, copying: bool) -> Vec<Fall> {
    let mut all: Vec<Fall> = Vec::new();
    for (node, faults) in [
        (1, EVERYWHERE),
        (1, ON_THE_PROVIDER),
        (2, EVERYWHERE),
        (2, ON_THE_SUBSCRIBER),
    ] {
        all.extend(faults.iter().map(|fault| (node, *fault)));
    }
    if copying {
        all.extend(ON_A_COPYING_SUBSCRIBER.iter().map(|fault| (2, *fault)));
    }
    let count = stage.repetitions(10, 100);
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let mut round = all.clone();
        stage.shuffle(&mut round);
        chosen.extend(round);
    }
    chosen.truncate(count);
    chosen
}

fn cause(stage: &Stage, cluster: &Cluster, (number, fault): Fall) -> Result<()> {
    let node = cluster.node(number)?;
    match fault {
        Fault::Kill(kind) => {
            if let Some(pid) = process_of(node, kind)? {
                crate::process::signal(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        // By signal too: the server may be recovering from the last fall, which it noticed only just now.
        Fault::Terminate(kind) => {
            if let Some(pid) = process_of(node, kind)? {
                crate::process::signal(pid, nix::sys::signal::Signal::SIGTERM);
            }
        }
        Fault::Stop(how) => {
            node.stop(how)?;
            wait::let_run(Duration::from_millis(stage.random(0..300)))?;
            node.start()?;
        }
        Fault::Server => {
            node.kill_server()?;
            wait::let_run(Duration::from_millis(stage.random(0..300)))?;
            node.start()?;
        }
    }
    node.wait_accepting()
}

/// One that may have ended by itself is not waited for: the moment is what counts.
fn process_of(node: &Node, kind: &str) -> Result<Option<u32>> {
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = {} LIMIT 1",
        literal(kind)
    );
    let mut found = None;
    wait::until(&format!("{} says what runs on it", node.name), PATIENCE, || {
        let rows = node.rows("postgres", &sql)?;
        found = rows.first().and_then(|row| row.first().cloned().flatten());
        Ok(Probe::Ready(()))
    })?;
    found.map(|pid| Ok(pid.parse()?)).transpose()
}

fn prepare(stage: &Stage) -> Result<(Arc<Cluster>, Vec<Table>, Vec<Writer>)> {
    let tables = menagerie::tables();
    let plan = Plan::nodes(2)
        .with("logical_decoding_work_mem", "64kB")
        .with("ha.retry_max", "1s")
        .with("restart_after_crash", "on");
    let cluster = stage.cluster(plan)?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    menagerie::create(one, database, &tables)?;
    menagerie::create_receiving(two, database, &tables)?;
    menagerie::add(one, database, &tables)?;
    let writers: Vec<Writer> = (0..2)
        .map(|number| {
            let numbers = Numbers::of(one, number);
            Writer::start(one, database, &tables, numbers, true, stage.seed, None)
        })
        .collect();
    committed(&writers, 40)?;
    subscribe_with_copy(&cluster)?;
    Ok((cluster, tables, writers))
}

fn compared(cluster: &Cluster, tables: &[Table], writers: &[Writer]) -> Result<()> {
    pausing(writers, || {
        cluster.wait_replicating()?;
        cluster.sync(1, 2)?;
        menagerie::compare(cluster, 1, 2, tables)
    })
}

fn streaming(stage: &Stage) -> Result<()> {
    let (cluster, tables, writers) = prepare(stage)?;
    for (round, fall) in (1..).zip(falls(stage, false)) {
        let told = || format!("round {round}, after {fall:?}, seed {}", stage.seed);
        wait::let_run(Duration::from_millis(stage.random(50..800)))?;
        cause(stage, &cluster, fall).with_context(told)?;
        // Not after each one: a second fault may find the recovery from the first at any point.
        if round % 3 == 0 {
            compared(&cluster, &tables, &writers).with_context(told)?;
        }
    }
    finish(&cluster, &tables, writers)
}

fn copying(stage: &Stage) -> Result<()> {
    let (cluster, tables, writers) = prepare(stage)?;
    let two = cluster.node(2)?;
    for (round, fall) in (1..).zip(falls(stage, true)) {
        let told = || format!("round {round}, after {fall:?}, seed {}", stage.seed);
        let ask = format!(
            "SELECT ha.sub_resync_table('sub_n2_n1', relation) FROM ha.copied_tables
              WHERE relation IS NOT NULL AND status = 'replicating' AND table_id % 9 = {}",
            stage.random(0..9)
        );
        wait::until("n2 takes the wish for copies", PATIENCE, || {
            two.exec(&cluster.database, &ask)?;
            Ok(Probe::Ready(()))
        })
        .with_context(told)?;
        wait::let_run(Duration::from_millis(stage.random(0..700)))?;
        cause(stage, &cluster, fall).with_context(told)?;
        if round % 3 == 0 {
            wait_copied(&cluster).with_context(told)?;
            compared(&cluster, &tables, &writers).with_context(told)?;
        }
    }
    wait_copied(&cluster)?;
    finish(&cluster, &tables, writers)
}

fn wait_copied(cluster: &Cluster) -> Result<()> {
    let mut polling = cluster.node(2)?.polling(&cluster.database);
    let open = "SELECT relname, status, attempts, last_error FROM ha.copied_tables WHERE status <> 'replicating' LIMIT 3";
    wait::until("everything is copied", PATIENCE * 2, || {
        let rows = polling.rows(open)?;
        Ok(Probe::when(rows.is_empty(), sql::show(&rows)))
    })
}

fn finish(cluster: &Cluster, tables: &[Table], writers: Vec<Writer>) -> Result<()> {
    compared(cluster, tables, &writers).context("at the end")?;
    for writer in writers {
        let outcome = writer.stop()?;
        ensure!(
            outcome.committed > 100,
            "only {} transactions committed",
            outcome.committed
        );
    }
    let one = cluster.node(1)?;
    wait::until("one slot is left, the subscription's", PATIENCE, || {
        let slots = one.rows(
            &cluster.database,
            "SELECT slot_name, temporary, active FROM pg_replication_slots",
        )?;
        Ok(Probe::when(
            slots.len() == 1 && slots[0][1].as_deref() == Some("f"),
            sql::show(&slots),
        ))
    })?;
    wait_no_lag(cluster)
}
