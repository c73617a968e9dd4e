//! Failure story: changes that pass through a third node are lost, come twice, circle, or look as if that node had made
//! them; above all after a crash on the way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::support::{CONFLICTS, counter, disable, enable, inventory, left_nothing, refused};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::sql::{self, literal};
use crate::wait::{self, PATIENCE, Probe};
use crate::workload::{self, Branches, Schema, TABLES, Writer};

pub(super) const fn scenario(
    name: &'static str,
    story: &'static str,
    run: fn(&Stage) -> Result<()>,
) -> Scenario {
    Scenario {
        name,
        story,
        run,
        needs: &[],
        stock: false,
        weight: 2,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "forwarding_cascade_crash",
        "a process or a server on the way A -> B -> C dies, and C lacks rows of A or has them twice",
        cascade_crash,
    ),
    scenario(
        "forwarding_ring",
        "in a ring changes circle for ever, come twice, or are taken for conflicts",
        ring,
    ),
    scenario(
        "forwarding_cascade",
        "what passes through a third node loses its time, its origin or its large values",
        cascade,
    ),
    scenario(
        "forwarding_unknown",
        "a node gets changes of one that it has never heard of, or that was made anew, and loses them or takes old for new",
        unknown,
    ),
];

/// `to` receives from `from`, with changes of others.
pub(super) fn subscribe(cluster: &Cluster, from: usize, to: usize, forward: &str) -> Result<String> {
    let (from, to) = (cluster.node(from)?, cluster.node(to)?);
    let name = Cluster::subscription_name(from, to);
    to.exec(
        &cluster.database,
        &format!(
            "SELECT ha.sub_create({}, {}, forward_origins => {})",
            literal(&name),
            literal(&from.dsn(&cluster.database)),
            literal(forward)
        ),
    )?;
    Ok(name)
}

/// What was committed on the first node is on the last one, having passed all between.
pub(super) fn sync_along(cluster: &Cluster, path: &[usize]) -> Result<()> {
    path.windows(2)
        .try_for_each(|step| cluster.sync(step[0], step[1]))
}

pub(super) fn write(cluster: &Cluster, node: usize, sql: &str) -> Result<()> {
    cluster.node(node)?.exec(&cluster.database, sql)
}

pub(super) fn read(cluster: &Cluster, node: usize, sql: &str) -> Result<String> {
    Ok(sql::show(&cluster.node(node)?.rows(&cluster.database, sql)?))
}

pub(super) fn expect(cluster: &Cluster, node: usize, sql: &str, wanted: &str) -> Result<()> {
    let found = read(cluster, node, sql)?;
    ensure!(found == wanted, "n{node}: {sql} gives {found}, not {wanted}");
    Ok(())
}

pub(super) fn no_conflicts(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let rows = node.rows(
            &cluster.database,
            "SELECT subscription_name, conflicts FROM ha.status_subscriptions WHERE conflicts > 0",
        )?;
        ensure!(
            rows.is_empty(),
            "conflicts on {}: {}",
            node.name,
            sql::show(&rows)
        );
    }
    Ok(())
}

/// Three nodes with the tables of the workload, filled alike, in the set "default".
pub(super) fn loaded(stage: &Stage, schema: Schema) -> Result<Arc<Cluster>> {
    let cluster = stage.cluster(Plan::nodes(3).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    workload::initialise(&cluster, &stage.install, schema)?;
    cluster.everywhere("SELECT * FROM ha.repset_add_tables('default', 'pgbench_*')")?;
    Ok(cluster)
}

pub(super) fn writer(
    stage: &Stage,
    cluster: &Cluster,
    node: usize,
    of: usize,
    schema: Schema,
) -> Result<Writer> {
    let share = Branches::share(node, of, schema)?;
    let node = cluster.node(node)?;
    let writer = Writer::start(node, &cluster.database, share, stage.seed, None);
    wait::until("the writer commits", PATIENCE, || {
        Ok(Probe::when(writer.progress() > 5, "not yet"))
    })?;
    Ok(writer)
}

fn cascade(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3))?;
    cluster.create_nodes()?;
    cluster.everywhere(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int DEFAULT 0); ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
         SELECT ha.repset_add_table('default', 't')",
    )?;
    cluster.subscribe(1, 2)?;
    // The provider and the node itself are no names that mean something here, nor is one that nobody has.
    let third = cluster.node(3)?;
    let before = inventory(third, &cluster.database)?;
    let dsn = literal(&cluster.node(2)?.dsn(&cluster.database));
    for (names, state, word) in [
        ("{n2}", "22023", "provider"),
        ("{n3}", "22023", "local node"),
        ("{n1,nobody}", "42704", "nobody"),
    ] {
        refused(
            third,
            &cluster.database,
            &format!("SELECT ha.sub_create('s', {dsn}, forward_origins => '{names}')"),
            &[state],
            &[word],
        )?;
    }
    left_nothing(third, &cluster.database, &before)?;

    let name = subscribe(&cluster, 2, 3, "{n1}")?;
    cluster.wait_replicating()?;
    let long = "repeat('0123456789', 2000)";
    write(
        &cluster,
        1,
        &format!("INSERT INTO t VALUES (1, {long}), (2, 'short')"),
    )?;
    write(&cluster, 1, "UPDATE t SET n = n + 1")?;
    sync_along(&cluster, &[1, 2, 3])?;
    write(&cluster, 2, "INSERT INTO t VALUES (3, 'of n2')")?;
    sync_along(&cluster, &[2, 3])?;
    expect(&cluster, 1, "SELECT count(*) FROM t", "2")?;
    expect(
        &cluster,
        3,
        "SELECT id, length(v), n FROM t ORDER BY id",
        &read(&cluster, 2, "SELECT id, length(v), n FROM t ORDER BY id")?,
    )?;
    // A forwarded change keeps the time and the origin it has everywhere.
    let time = "SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE id < 3";
    expect(&cluster, 3, time, &read(&cluster, 1, time)?)?;
    let origin = "SELECT t.id, o.roname ~ '^pg_ha_1(_|$)', o.roname ~ '^pg_ha_2(_|$)'
                    FROM t, pg_xact_commit_timestamp_origin(t.xmin) x JOIN pg_replication_origin o ON o.roident = x.roident
                   ORDER BY 1";
    expect(&cluster, 3, origin, "1 | t | f\n2 | t | f\n3 | f | t")?;
    no_conflicts(&cluster)?;
    expect(
        &cluster,
        3,
        "SELECT forward_origins FROM ha.sub_show_status()",
        "{n1}",
    )?;

    // A conflict is judged by the true version: n3 changes the row after n1 did, and n1's change arrives late.
    disable(&cluster, cluster.node(2)?, third)?;
    write(&cluster, 1, "UPDATE t SET v = 'older' WHERE id = 2")?;
    write(&cluster, 3, "UPDATE t SET v = 'newer' WHERE id = 2")?;
    write(&cluster, 3, "UPDATE t SET v = 'older' WHERE id = 1")?;
    write(&cluster, 1, "UPDATE t SET v = 'newer' WHERE id = 1")?;
    sync_along(&cluster, &[1, 2])?;
    enable(&cluster, cluster.node(2)?, third)?;
    cluster.wait_status(third, &name, "replicating")?;
    sync_along(&cluster, &[2, 3])?;
    expect(
        &cluster,
        3,
        "SELECT id, v FROM t WHERE id < 3 ORDER BY id",
        "1 | newer\n2 | newer",
    )?;
    let conflicts = counter(&cluster, third, &name, CONFLICTS)?;
    ensure!(conflicts == 2, "two conflicts, {conflicts} were counted");
    // Both are told with the node that made the change, not the one that passed it on.
    expect(
        &cluster,
        3,
        "SELECT key ->> 'id', resolution, local_origin, remote_origin FROM ha.conflicts ORDER BY 1",
        "1 | apply_remote | n3 | n1\n2 | keep_local | n3 | n1",
    )?;

    copied_between(&cluster, &name)?;

    // Switched off and on again.
    refused(
        third,
        &cluster.database,
        &format!(
            "SELECT ha.sub_alter_options({}, '{{\"forward_origins\": [\"nobody\"]}}')",
            literal(&name)
        ),
        &["42704"],
        &["nobody"],
    )?;
    for (names, id, arrives) in [
        ("", 20, false),
        ("\"n1\"", 21, true),
        ("", 22, false),
        ("\"all\"", 23, true),
    ] {
        forward(&cluster, &name, names)?;
        write(&cluster, 1, &format!("INSERT INTO t VALUES ({id})"))?;
        sync_along(&cluster, &[1, 2, 3])?;
        expect(
            &cluster,
            3,
            &format!("SELECT EXISTS (SELECT FROM t WHERE id = {id})"),
            if arrives { "t" } else { "f" },
        )?;
    }
    Ok(())
}

/// Sets what n3 wants forwarded, and waits for the stream that does it.
fn forward(cluster: &Cluster, subscription: &str, names: &str) -> Result<()> {
    let receiver = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_ha receiver'";
    let before = read(cluster, 3, receiver)?;
    write(
        cluster,
        3,
        &format!(
            "SELECT ha.sub_alter_options({}, '{{\"forward_origins\": [{names}]}}')",
            literal(subscription)
        ),
    )?;
    let third = cluster.node(3)?;
    let mut polling = third.polling(&cluster.database);
    wait::until("the stream starts over", PATIENCE, || {
        let now = sql::show(&polling.rows(receiver)?);
        Ok(Probe::when(now != before && now != "(no rows)", now))
    })?;
    cluster.wait_status(third, subscription, "replicating")
}

/// n2 copies the table anew from n1, which is no change of n1's: n3 is told, and keeps what it has until it copies too.
fn copied_between(cluster: &Cluster, subscription: &str) -> Result<()> {
    let (second, third) = (cluster.node(2)?, cluster.node(3)?);
    let all = "SELECT id, length(v), n FROM t ORDER BY id";
    let wait_for = |node: &Node, name: &str| {
        let waiting = format!("SELECT ha.sub_wait_for_sync({}, '60 s')", literal(name));
        expect(cluster, node.number, &waiting, "t")
    };
    let kept = read(cluster, 3, all)?;
    write(cluster, 2, "SELECT ha.sub_resync_table('sub_n2_n1', 't')")?;
    wait_for(second, "sub_n2_n1")?;
    sync_along(cluster, &[2, 3])?;
    expect(cluster, 3, all, &kept)?;
    expect(
        cluster,
        3,
        "SELECT message ~ 'public.t .*ha.sub_resync_table' FROM ha.events WHERE kind = 'table_copied_on_provider'",
        "t",
    )?;
    write(
        cluster,
        3,
        &format!("SELECT ha.sub_resync_table({}, 't')", literal(subscription)),
    )?;
    wait_for(third, subscription)?;
    expect(cluster, 3, all, &read(cluster, 2, all)?)
}

/// How far n3 is with n1's transactions, by the server's own word.
fn progress(cluster: &Cluster) -> Result<String> {
    let sql =
        "SELECT remote_lsn FROM pg_replication_origin_status WHERE external_id ~ '^pg_ha_1_via_2_[0-9]+$'";
    read(cluster, 3, sql)
}

fn cascade_crash(stage: &Stage) -> Result<()> {
    let schema = Schema::small(2);
    let cluster = loaded(stage, schema)?;
    cluster.subscribe(1, 2)?;
    subscribe(&cluster, 2, 3, "{n1}")?;
    cluster.wait_replicating()?;
    let writing = writer(stage, &cluster, 1, 2, schema)?;
    let own = writer(stage, &cluster, 2, 2, schema)?;
    let (second, third) = (cluster.node(2)?, cluster.node(3)?);
    let faults: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("kill -9 of C's applier", &|| third.kill_backend("pg_ha applier")),
        ("kill -9 of C", &|| again(stage, third)),
        ("kill -9 of B's applier", &|| second.kill_backend("pg_ha applier")),
        ("kill -9 of B", &|| again(stage, second)),
        ("kill -9 of B's walsender", &|| second.kill_backend("walsender")),
        ("kill -9 of B and C", &|| {
            second.kill_server()?;
            third.kill_server()?;
            third.start()?;
            second.start()
        }),
    ];
    for round in 1..=stage.repetitions(1, 6) {
        for (what, fault) in &faults {
            wait::let_run(Duration::from_millis(stage.random(100..900)))?;
            fault().with_context(|| format!("round {round}: {what}"))?;
            second.wait_accepting()?;
            third.wait_accepting()?;
            cluster
                .wait_replicating()
                .with_context(|| format!("round {round}, after {what}"))?;
        }
    }
    let (label, account) = (writing.label.clone(), writing.stop()?);
    let (own_label, own_account) = (own.label.clone(), own.stop()?);
    sync_along(&cluster, &[1, 2, 3])?;
    for node in [second, third] {
        workload::audit(node, &cluster.database, &label, &account)?;
        workload::audit(node, &cluster.database, &own_label, &own_account)?;
        workload::balanced(node, &cluster.database)?;
    }
    // The progress is the origin's own position, and no crash tells another one.
    let position = "SELECT pg_current_wal_insert_lsn()";
    let before = read(&cluster, 1, position)?;
    write(
        &cluster,
        1,
        "UPDATE pgbench_branches SET filler = 'last' WHERE bid = 1",
    )?;
    let after = read(&cluster, 1, position)?;
    sync_along(&cluster, &[1, 2, 3])?;
    let live = progress(&cluster)?;
    expect(
        &cluster,
        3,
        &format!("SELECT '{before}'::pg_lsn < '{live}' AND '{live}' <= '{after}'::pg_lsn"),
        "t",
    )?;
    third.kill_server()?;
    third.start()?;
    cluster.wait_replicating()?;
    expect(
        &cluster,
        3,
        &format!("SELECT '{live}'::pg_lsn"),
        &progress(&cluster)?,
    )?;
    no_conflicts(&cluster)?;
    lets_go(&cluster, second)?;
    // n1 does not know what n2 writes.
    for table in TABLES {
        let sql = format!("SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {table} AS t");
        expect(&cluster, 3, &sql, &read(&cluster, 2, &sql)?)?;
    }
    Ok(())
}

pub(super) fn again(stage: &Stage, node: &Node) -> Result<()> {
    node.kill_server()?;
    wait::let_run(Duration::from_millis(stage.random(0..300)))?;
    node.start()
}

/// A provider that only forwards does not keep its WAL.
pub(super) fn lets_go(cluster: &Cluster, provider: &Node) -> Result<()> {
    let end = provider.text(&cluster.database, "SELECT pg_current_wal_lsn()")?;
    let waiting = format!(
        "SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots WHERE plugin = 'pg_ha' AND confirmed_flush_lsn < '{end}'"
    );
    let mut polling = provider.polling(&cluster.database);
    wait::until("the slots have moved on", PATIENCE, || {
        let rows = polling.rows(&waiting)?;
        Ok(Probe::when(rows.is_empty(), sql::show(&rows)))
    })
}

fn ring(stage: &Stage) -> Result<()> {
    let schema = Schema::small(3);
    let cluster = loaded(stage, schema)?;
    cluster.everywhere(
        "CREATE TABLE turn (id int PRIMARY KEY, v text, n int DEFAULT 0); SELECT ha.repset_add_table('default', 'turn')",
    )?;
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        subscribe(&cluster, from, to, "{all}")?;
    }
    cluster.wait_replicating()?;
    let round = [1, 2, 3, 1, 2, 3];

    // In turn, each having seen what it changes.
    write(
        &cluster,
        1,
        "INSERT INTO turn SELECT g FROM generate_series(1, 10) g",
    )?;
    sync_along(&cluster, &round)?;
    for turn in 0..4 {
        for node in [2, 1, 3] {
            write(
                &cluster,
                node,
                &format!("UPDATE turn SET v = 'n{node} {turn}', n = n + 1"),
            )?;
            sync_along(&cluster, &round)?;
        }
    }
    compare::identical(&cluster, &["turn"])?;
    expect(&cluster, 1, "SELECT sum(n) FROM turn", "120")?;
    no_conflicts(&cluster)?;

    // Everybody at once, each on rows of its own.
    let mut writers = Vec::new();
    for node in 1..=3 {
        writers.push(writer(stage, &cluster, node, 3, schema)?);
    }
    wait::let_run(Duration::from_millis(1500))?;
    cluster.node(2)?.kill_backend("pg_ha applier")?;
    cluster.node(2)?.wait_accepting()?;
    wait::let_run(Duration::from_millis(1500))?;
    let mut accounts = Vec::new();
    for writer in writers {
        accounts.push((writer.label.clone(), writer.stop()?));
    }
    sync_along(&cluster, &round)?;
    for node in &cluster.nodes {
        for (label, account) in &accounts {
            workload::audit(node, &cluster.database, label, account)?;
        }
        workload::balanced(node, &cluster.database)?;
    }
    compare::identical(&cluster, &TABLES)?;
    no_conflicts(&cluster)?;

    // Nothing goes round any more.
    let applied = "SELECT sum(transactions_applied) FROM ha.status_subscriptions";
    let before: Vec<String> = (1..=3)
        .map(|node| read(&cluster, node, applied))
        .collect::<Result<_>>()?;
    sync_along(&cluster, &round)?;
    let after: Vec<String> = (1..=3)
        .map(|node| read(&cluster, node, applied))
        .collect::<Result<_>>()?;
    ensure!(
        before == after,
        "changes circle: {before:?} transactions, then {after:?}"
    );
    Ok(())
}

fn unknown(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3))?;
    cluster.create_nodes()?;
    cluster.everywhere(
        "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT ha.repset_add_table('default', 't')",
    )?;
    // n3 subscribes before n2 has heard of n1, and is never told of it.
    subscribe(&cluster, 2, 3, "{all}")?;
    cluster.wait_replicating()?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    write(&cluster, 1, "INSERT INTO t VALUES (1, 'first'), (2, 'first')")?;
    sync_along(&cluster, &[1, 2, 3])?;
    expect(
        &cluster,
        3,
        "SELECT count(*) FROM ha.nodes WHERE node_name = 'n1'",
        "0",
    )?;
    expect(&cluster, 3, "SELECT * FROM t ORDER BY id", "1 | first\n2 | first")?;
    let origins = "SELECT DISTINCT o.roname FROM t, pg_xact_commit_timestamp_origin(t.xmin) x
                     JOIN pg_replication_origin o ON o.roident = x.roident ORDER BY 1";
    expect(&cluster, 3, origins, "pg_ha_1_via_2_0")?;

    // The same id, another node: what it does has nothing to do with the positions of the one before.
    let first = cluster.node(1)?;
    write(
        &cluster,
        2,
        "SELECT ha.sub_drop('sub_n2_n1'); SELECT ha.node_drop('n1')",
    )?;
    write(
        &cluster,
        1,
        "SELECT ha.node_drop(node_name) FROM ha.nodes WHERE node_name <> 'n1'; SELECT ha.node_drop('n1')",
    )?;
    cluster.create_node(first)?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    write(
        &cluster,
        1,
        "UPDATE t SET v = 'second' WHERE id = 2; INSERT INTO t VALUES (3, 'second')",
    )?;
    sync_along(&cluster, &[1, 2, 3])?;
    expect(
        &cluster,
        3,
        "SELECT * FROM t ORDER BY id",
        "1 | first\n2 | second\n3 | second",
    )?;
    expect(&cluster, 3, origins, "pg_ha_1_via_2_0\npg_ha_1_via_2_1")?;
    no_conflicts(&cluster)
}
