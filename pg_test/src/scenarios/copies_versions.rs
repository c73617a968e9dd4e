//! Failure story: a node copies a table while changes of a third node are still on their way. The copy holds a row as its
//! provider had it; whether a late change is older or newer than that, nobody knows any more, and nodes differ for ever.

use anyhow::{Result, ensure};

use super::support::{disable, enable};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::scenario::{Scenario, Stage};
use crate::sql::literal;
use crate::wait::{self, PATIENCE, Probe};

const fn scenario(name: &'static str, story: &'static str, run: fn(&Stage) -> Result<()>) -> Scenario {
    Scenario {
        name,
        story,
        run,
        needs: &[],
        stock: false,
        weight: 3,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "copies_versions",
        "a change that was on its way while its row was copied wins or loses by when the copy was made",
        versions,
    ),
    scenario(
        "copies_third_node",
        "a copy replaces what a third node has changed here with what its provider has not got from it yet",
        third_node,
    ),
];

const TABLES: [&str; 3] = ["rows", "parted", "odd"];

fn versions(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3))?;
    cluster.create_nodes()?;
    let (first, second, third) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    let db = &cluster.database;
    cluster.everywhere(
        "CREATE TABLE rows (id int PRIMARY KEY, v text);
         CREATE TABLE parted (k text, id int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
         CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a');
         CREATE TABLE parted_b PARTITION OF parted FOR VALUES IN ('b');
         CREATE TABLE odd (at timestamptz, flag boolean, c char(5), v text, PRIMARY KEY (at, flag, c));
         SELECT ha.repset_add_all_tables('default', '{public}')",
    )?;
    cluster.mesh()?;
    cluster.wait_replicating()?;
    third.exec(
        db,
        "INSERT INTO rows SELECT g, 'made' FROM generate_series(1, 50) g;
         INSERT INTO parted SELECT CASE g % 2 WHEN 0 THEN 'a' ELSE 'b' END, g, 'made' FROM generate_series(1, 50) g;
         INSERT INTO odd SELECT timestamptz '2020-01-01 12:00+05' + g * interval '1 hour', g % 2 = 0, 'c' || g, 'made'
           FROM generate_series(1, 50) g",
    )?;
    cluster.sync_all()?;
    compare::identical(&cluster, &TABLES)?;

    // Nobody hears of the third node's changes, and it of nobody's.
    for (from, to) in [(third, first), (third, second), (first, third), (second, third)] {
        disable(&cluster, from, to)?;
    }
    let change = |word: &str, what: &str| {
        format!(
            "UPDATE rows SET v = '{word}' WHERE id {what};
             UPDATE parted SET v = '{word}' WHERE id {what};
             UPDATE odd SET v = '{word}' WHERE substr(c, 2)::int {what}"
        )
    };
    // Of rows 1 to 10 the third node's change is the older one, of 11 to 20 the newer one.
    third.exec(db, &change("older", "<= 10"))?;
    first.exec(db, &change("newer", "<= 10"))?;
    first.exec(db, &change("older", "BETWEEN 11 AND 20"))?;
    third.exec(db, &change("newer", "BETWEEN 11 AND 20"))?;
    cluster.sync(1, 2)?;

    let name = Cluster::subscription_name(first, second);
    for table in TABLES {
        second.exec(
            db,
            &format!(
                "SELECT ha.sub_resync_table({}, {})",
                literal(&name),
                literal(table)
            ),
        )?;
    }
    let mut polling = second.polling(db);
    wait::until("the tables are copied", PATIENCE, || {
        let waiting = format!("SELECT ha.sub_wait_for_sync({}, '1 s')", literal(&name));
        let rows = polling.rows(&waiting)?;
        Ok(Probe::when(crate::sql::show(&rows) == "t", "not yet"))
    })?;
    let known = second.number(
        db,
        "SELECT count(*) FROM ha.row_versions WHERE relation = 'rows'::regclass",
    )?;
    ensure!(known == 50, "the versions of {known} rows came along, of 50");
    let origins = second.text(
        db,
        "SELECT string_agg(origin || ':' || count, ' ' ORDER BY origin)
           FROM (SELECT origin, count(*) FROM ha.row_versions WHERE relation = 'rows'::regclass GROUP BY 1) o",
    )?;
    ensure!(origins == "1:20 3:30", "the rows' origins came as {origins}");

    for (from, to) in [(third, first), (third, second), (first, third), (second, third)] {
        enable(&cluster, from, to)?;
    }
    cluster.wait_replicating()?;
    cluster.sync_all()?;
    compare::identical(&cluster, &TABLES)?;
    for table in TABLES {
        let lost = format!("SELECT count(*) FROM {table} WHERE v = 'older'");
        ensure!(second.number(db, &lost)? == 0, "an older change won in {table}");
        let won = format!("SELECT count(*) FROM {table} WHERE v = 'newer'");
        ensure!(
            second.number(db, &won)? == 20,
            "a newer change was lost in {table}"
        );
    }
    // What is forgotten is forgotten: a dropped table's, and what is past the horizon.
    second.exec(
        db,
        "SELECT ha.repset_remove_table('default', 'odd'); DROP TABLE odd",
    )?;
    let of_gone = "SELECT count(*) FROM ha.row_versions v WHERE NOT EXISTS
                    (SELECT FROM pg_class c WHERE c.oid = v.relation)";
    ensure!(
        second.number(db, of_gone)? == 0,
        "versions of a dropped table are left"
    );
    Ok(())
}

fn third_node(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(3).with("ha.connect_timeout", "60s"))?;
    cluster.create_nodes()?;
    let (first, second, third) = (cluster.node(1)?, cluster.node(2)?, cluster.node(3)?);
    let db = &cluster.database;
    cluster.everywhere(
        "CREATE TABLE rows (id int PRIMARY KEY, v text); SELECT ha.repset_add_table('default', 'rows')",
    )?;
    cluster.mesh()?;
    cluster.wait_replicating()?;
    first.exec(
        db,
        "INSERT INTO rows SELECT g, 'made' FROM generate_series(1, 1000) g",
    )?;
    third.exec(db, "INSERT INTO rows VALUES (0, 'third')")?;
    cluster.sync_all()?;

    // What the third node changes now is here, and not yet where the copy comes from.
    disable(&cluster, third, first)?;
    third.exec(
        db,
        "UPDATE rows SET v = 'third' WHERE id <= 100; DELETE FROM rows WHERE id > 900",
    )?;
    cluster.sync(3, 2)?;
    let name = Cluster::subscription_name(first, second);
    second.exec(
        db,
        &format!("SELECT ha.sub_resync_table({}, 'rows')", literal(&name)),
    )?;
    let mut polling = second.polling(db);
    wait::until("the copier is at work", PATIENCE, || {
        let rows = polling.rows("SELECT FROM pg_stat_activity WHERE backend_type = 'pg_ha copier'")?;
        Ok(Probe::when(!rows.is_empty(), "there is none"))
    })?;
    // Long enough for a copy that does not wait.
    wait::let_run(std::time::Duration::from_secs(1))?;
    enable(&cluster, third, first)?;
    let waiting = format!("SELECT ha.sub_wait_for_sync({}, '1 s')", literal(&name));
    wait::until("the table is copied", PATIENCE, || {
        Ok(Probe::when(
            crate::sql::show(&polling.rows(&waiting)?) == "t",
            "not yet",
        ))
    })?;
    cluster.sync_all()?;
    compare::identical(&cluster, &["rows"])?;
    let kept = second.number(db, "SELECT count(*) FROM rows WHERE v = 'third'")?;
    ensure!(
        kept == 101,
        "{kept} of 101 rows that the third node changed are as it left them"
    );

    // A slot on the third node that is younger than the copy: said, since what lies between may be missing.
    let theirs = Cluster::subscription_name(third, second);
    second.exec(db, &format!("SELECT ha.sub_drop({})", literal(&theirs)))?;
    third.exec(db, "INSERT INTO rows VALUES (-1, 'between')")?;
    let said = second.log_since(0)?.matches("may be missing in 1 tables").count();
    cluster.subscribe(3, 2)?;
    let now = second.log_since(0)?.matches("may be missing in 1 tables").count();
    ensure!(now > said, "nobody said that the slot is younger than the copy");
    Ok(())
}
