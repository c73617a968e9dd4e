//! Failure story: every feature works by itself, and together they don't: after a day of ordinary work on a schema
//! with tables of all shapes and types, some row of some table differs, and nobody knows since when.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Plan};
use crate::menagerie::{self, Numbers, SETS, Table, Writer};
use crate::scenario::{Scenario, Stage};
use crate::sql::literal;
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "random_changes_one_way",
        story: "random changes and ALTERs of tables of every shape and type leave some row different on the subscriber",
        run: one_way,
        needs: &[],
        stock: false,
        weight: 2,
    },
    Scenario {
        name: "random_changes_three_nodes",
        story: "random changes on three nodes at once leave some row different on one of them, or run in circles",
        run: three_nodes,
        needs: &[],
        stock: false,
        weight: 2,
    },
];

/// Small enough that ordinary transactions pass through every way of decoding.
const LITTLE_MEMORY: &str = "64kB";

/// An ALTER while changes stream.
struct Alteration {
    /// On the subscriber, before anything else.
    before: &'static str,
    there: &'static str,
    /// On the subscriber, once everything that came before `there` is applied.
    after: &'static str,
    /// While nobody writes and nothing is under way: an ALTER that rewrites a table makes all its rows new versions
    /// of the node it runs on, and an older change from elsewhere loses against them.
    at_rest: bool,
}

const ALTERATIONS: &[Alteration] = &[
    Alteration {
        before: "ALTER TABLE plain ADD added int DEFAULT 4, ADD more text",
        there: "ALTER TABLE plain ADD added int DEFAULT 4, ADD more text",
        after: "",
        at_rest: false,
    },
    Alteration {
        before: "ALTER TABLE counters ALTER n TYPE bigint; CREATE INDEX later ON counters (n)",
        there: "ALTER TABLE counters ALTER n TYPE bigint",
        after: "REINDEX TABLE counters",
        at_rest: true,
    },
    Alteration {
        before: "",
        there: "BEGIN; ALTER TABLE by_range DETACH PARTITION by_range_high;
                ALTER TABLE by_range ATTACH PARTITION by_range_high FOR VALUES FROM (300) TO (MAXVALUE); COMMIT",
        after: "",
        at_rest: false,
    },
    Alteration {
        before: "",
        there: "ALTER TABLE toasty REPLICA IDENTITY FULL; ALTER TABLE whole_keyed REPLICA IDENTITY DEFAULT",
        after: "VACUUM FULL toasty",
        at_rest: false,
    },
    Alteration {
        before: "",
        there: "ALTER TABLE plain DROP added",
        after: "ALTER TABLE plain DROP added",
        at_rest: false,
    },
    Alteration {
        before: "",
        there: "VACUUM FULL whole_large; CLUSTER compound USING compound_pkey; REINDEX TABLE by_index",
        after: "ALTER TABLE compound ALTER n TYPE numeric",
        at_rest: true,
    },
    Alteration {
        before: "",
        there: "ALTER TABLE by_range DETACH PARTITION by_range_low",
        after: "",
        at_rest: false,
    },
    Alteration {
        before: "BEGIN; ALTER TABLE list_to_hash DETACH PARTITION list_to_hash_0; TRUNCATE witnessed;
                 ALTER TABLE list_to_hash ATTACH PARTITION list_to_hash_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0); COMMIT",
        there: "ALTER TABLE by_range ATTACH PARTITION by_range_low FOR VALUES FROM (MINVALUE) TO (-300)",
        after: "",
        at_rest: false,
    },
    Alteration {
        before: "",
        there: "ALTER TABLE toasty REPLICA IDENTITY DEFAULT; ALTER TABLE by_other_index REPLICA IDENTITY DEFAULT;
                ALTER TABLE churn SET (fillfactor = 60); ANALYZE",
        after: "",
        at_rest: false,
    },
];

fn one_way(stage: &Stage) -> Result<()> {
    let tables = menagerie::tables();
    let cluster = stage.cluster(Plan::nodes(2).with("logical_decoding_work_mem", LITTLE_MEMORY))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    menagerie::create(one, database, &tables)?;
    menagerie::create_receiving(two, database, &tables)?;
    menagerie::add(one, database, &tables)?;
    let writers: Vec<Writer> = (0..3)
        .map(|number| {
            let numbers = Numbers::of(one, number);
            Writer::start(one, database, &tables, numbers, true, stage.seed, None)
        })
        .collect();
    committed(&writers, 60)?;
    subscribe_with_copy(&cluster)?;
    for (number, alteration) in (1..).zip(ALTERATIONS) {
        committed(&writers, if stage.long { 1_000 } else { 60 })?;
        let run = |node: &crate::node::Node, sql: &str| -> Result<()> {
            // One by one: VACUUM and CLUSTER want no transaction around them.
            let mut session = node.session(database)?;
            if sql.starts_with("BEGIN") {
                return session.exec(sql);
            }
            sql.split(';')
                .map(str::trim)
                .try_for_each(|part| session.exec(part))
        };
        let alter = || -> Result<()> {
            run(two, alteration.before)?;
            run(one, alteration.there)?;
            if !alteration.after.is_empty() {
                cluster.sync(1, 2)?;
                run(two, alteration.after)?;
            }
            Ok(())
        };
        if alteration.at_rest {
            pausing(&writers, || cluster.sync(1, 2).and_then(|()| alter()))
        } else {
            alter()
        }
        .with_context(|| format!("alteration {number}"))?;
        if number % 3 == 0 {
            pausing(&writers, || compared(stage, &cluster, 1, 2, &tables))
                .with_context(|| format!("after alteration {number}"))?;
        }
    }
    wait::until(
        "triggers with ENABLE ALWAYS or REPLICA have seen three kinds of changes",
        Duration::from_secs(60),
        || {
            let witnessed = two.number(database, "SELECT count(DISTINCT what) FROM witnessed")?;
            Ok(Probe::when(witnessed >= 3, format!("{witnessed}")))
        },
    )?;
    conclude(writers)?;
    compared(stage, &cluster, 1, 2, &tables).context("at the end")?;
    let skipped = two.number(database, "SELECT sum(rows_skipped) FROM ha.status_subscriptions")?;
    ensure!(skipped == 0, "{skipped} changes were passed over");
    Ok(())
}

fn three_nodes(stage: &Stage) -> Result<()> {
    let tables = menagerie::alike();
    let cluster = stage.cluster(Plan::nodes(3).with("logical_decoding_work_mem", LITTLE_MEMORY))?;
    cluster.create_nodes()?;
    let database = cluster.database.as_str();
    cluster.on_all(|node| {
        menagerie::create(node, database, &tables)?;
        menagerie::add(node, database, &tables)
    })?;
    for (from, to) in cluster.pairs() {
        let (name, dsn) = (Cluster::subscription_name(from, to), from.dsn(database));
        let create = format!(
            "SELECT ha.sub_create({}, {}, {SETS})",
            literal(&name),
            literal(&dsn)
        );
        to.exec(database, &create)?;
    }
    cluster.wait_replicating()?;
    let writers: Vec<Writer> = cluster
        .nodes
        .iter()
        .map(|node| {
            let numbers = Numbers::of(node, 0);
            Writer::start(node, database, &tables, numbers, false, stage.seed, None)
        })
        .collect();
    let each = if stage.long { 2_000 } else { 150 };
    for round in 1..=3 {
        committed(&writers, each)?;
        if round == 2 {
            // One after the other: until the last has the column, changes that bring it wait on their way there.
            for node in &cluster.nodes {
                node.exec(database, "ALTER TABLE plain ADD added int DEFAULT 4")?;
            }
            cluster.sync_all()?;
        }
        pausing(&writers, || {
            cluster.sync_all()?;
            menagerie::compare_all(&cluster, &tables)
        })
        .with_context(|| format!("round {round}, seed {}", stage.seed))?;
    }
    conclude(writers)?;
    cluster.sync_all()?;
    let conflicts: i64 = cluster
        .nodes
        .iter()
        .map(|node| node.number(database, "SELECT sum(conflicts) FROM ha.status_subscriptions"))
        .sum::<Result<i64>>()?;
    ensure!(
        conflicts == 0,
        "{conflicts} conflicts, and nobody wrote to another's rows"
    );
    Ok(())
}

pub(super) fn subscribe_with_copy(cluster: &Cluster) -> Result<()> {
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let create = format!(
        "SELECT ha.sub_create('sub_n2_n1', {}, {SETS}, synchronize_data => true)",
        literal(&one.dsn(&cluster.database))
    );
    two.exec(&cluster.database, &create)?;
    let mut polling = two.polling(&cluster.database);
    let open =
        "SELECT relname, status, last_error FROM ha.copied_tables WHERE status <> 'replicating' LIMIT 3";
    wait::until("everything is copied", PATIENCE * 2, || {
        let rows = polling.rows(open)?;
        Ok(Probe::when(rows.is_empty(), crate::sql::show(&rows)))
    })
}

/// Every writer has committed that many more.
pub(super) fn committed(writers: &[Writer], more: u64) -> Result<()> {
    for writer in writers {
        let wanted = writer.progress() + more;
        wait::until(
            &format!("the writer on {} has committed {more} times", writer.label),
            PATIENCE + Duration::from_millis(20 * more),
            || {
                let done = writer.progress();
                // One that stopped by itself tells why when it is asked for its outcome.
                Ok(Probe::when(
                    done >= wanted || writer.is_done(),
                    format!("{done} of {wanted}"),
                ))
            },
        )?;
    }
    Ok(())
}

/// With the writers at rest.
pub(super) fn pausing(writers: &[Writer], check: impl FnOnce() -> Result<()>) -> Result<()> {
    for writer in writers {
        writer.pause()?;
    }
    let outcome = check();
    writers.iter().for_each(Writer::resume);
    outcome
}

fn compared(stage: &Stage, cluster: &Cluster, from: usize, to: usize, tables: &[Table]) -> Result<()> {
    cluster.sync(from, to)?;
    menagerie::compare(cluster, from, to, tables).with_context(|| format!("seed {}", stage.seed))
}

fn conclude(writers: Vec<Writer>) -> Result<()> {
    let (mut committed, mut rolled_back) = (0, 0);
    for writer in writers {
        let outcome = writer.stop()?;
        committed += outcome.committed;
        rolled_back += outcome.rolled_back;
    }
    ensure!(
        committed > rolled_back,
        "{rolled_back} transactions were rolled back and only {committed} committed: the load is not what it should be"
    );
    Ok(())
}
