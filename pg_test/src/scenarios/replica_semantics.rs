//! Failure story: a subscriber's triggers, rules, foreign keys and constraints run twice, not at all, or against the order
//! of the stream: an audit counts rows double, a cascade deletes what the stream deletes too, a duplicate stands in a
//! unique index.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, Plan};
use crate::scenario::{Scenario, Stage};
use crate::sql;
use crate::wait::{self, PATIENCE, Probe};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "replica_semantics",
        story: "triggers, rules, foreign keys or deferrable constraints act otherwise than on a replica",
        run: replica,
        needs: &[],
        stock: false,
        weight: 1,
    },
    Scenario {
        name: "replica_deferred_error",
        story: "a deferred trigger catches one error and raises another, and the transaction that it ended counts as applied",
        run: deferred_error,
        needs: &[],
        stock: false,
        weight: 1,
    },
];

const OURS: &str = "
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE t (id int PRIMARY KEY, v int UNIQUE DEFERRABLE, w int);
    CREATE TABLE log (trigger text, op text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.log VALUES (TG_NAME, TG_OP);
            RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END $$;
    CREATE TRIGGER ordinary AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TRIGGER on_replica AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TRIGGER always BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TRIGGER of_column AFTER UPDATE OF v ON t FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TRIGGER of_statement AFTER INSERT ON t EXECUTE FUNCTION note();
    CREATE TRIGGER changed AFTER UPDATE ON t FOR EACH ROW WHEN (OLD.v IS DISTINCT FROM NEW.v) EXECUTE FUNCTION note();
    ALTER TABLE t ENABLE REPLICA TRIGGER on_replica; ALTER TABLE t ENABLE ALWAYS TRIGGER always;
    ALTER TABLE t ENABLE REPLICA TRIGGER of_column; ALTER TABLE t ENABLE ALWAYS TRIGGER of_statement;
    ALTER TABLE t ENABLE REPLICA TRIGGER changed;
    CREATE RULE twice AS ON INSERT TO t DO ALSO INSERT INTO log VALUES ('rule', 'INSERT');
    ALTER TABLE t ENABLE ALWAYS RULE twice;";

fn shows(cluster: &Cluster, query: &str, wanted: &str) -> Result<()> {
    cluster.sync(1, 2)?;
    let found = sql::show(&cluster.node(2)?.rows(&cluster.database, query)?);
    ensure!(
        found == wanted,
        "{query} on n2 should give {wanted:?} and gives {found:?}"
    );
    Ok(())
}

fn replica(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(
        database,
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, parent int);
         CREATE TABLE t (id int PRIMARY KEY, v int UNIQUE DEFERRABLE, w int);
         SELECT * FROM ha.repset_add_tables('default', 'public.*');",
    )?;
    two.exec(database, OURS)?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    one.exec(
        database,
        "INSERT INTO t VALUES (1, 1, 1), (2, 2, 2); UPDATE t SET w = 5 WHERE id = 1; UPDATE t SET v = 7 WHERE id = 2;
         DELETE FROM t WHERE id = 2;",
    )?;
    // Which columns an update set is not in the stream: triggers of columns fire at every one, and WHEN tells.
    shows(
        &cluster,
        "SELECT string_agg(trigger || ' ' || op || ' ' || count, ', ' ORDER BY trigger, op) FROM
             (SELECT trigger, op, count(*) FROM log GROUP BY 1, 2) counted",
        "always DELETE 1, always INSERT 2, always UPDATE 2, changed UPDATE 1, of_column UPDATE 2, \
         on_replica DELETE 1, on_replica INSERT 2, on_replica UPDATE 2",
    )?;
    // The stream's order is the provider's, who may have no such key; nothing cascades beside it.
    one.exec(
        database,
        "INSERT INTO child VALUES (1, 1), (2, 9); INSERT INTO parent VALUES (1), (2); UPDATE parent SET id = 3 WHERE id = 1;
         DELETE FROM parent WHERE id = 2",
    )?;
    shows(
        &cluster,
        "SELECT (SELECT string_agg(id || ':' || parent, ' ' ORDER BY id) FROM child), (SELECT string_agg(id::text, ' ') FROM parent)",
        "1:1 2:9 | 3",
    )?;
    // A unique constraint that may be checked late is checked.
    two.exec(database, "INSERT INTO t VALUES (100, 50, 0)")?;
    one.exec(database, "INSERT INTO t VALUES (50, 50, 0)")?;
    cluster.wait_status(two, &name, "failed")?;
    let told = cluster.status_of(two, &name, "last_error")?.unwrap_or_default();
    ensure!(
        told.contains("t_v_key") && told.contains("INSERT into table public.t"),
        "the error should name constraint and table: {told}"
    );
    two.exec(database, "DELETE FROM t WHERE id = 100")?;
    shows(&cluster, "SELECT id FROM t WHERE v = 50", "50")
}

fn deferred_error(stage: &Stage) -> Result<()> {
    let settings = Plan::nodes(2)
        .with("ha.retry_max", "1s")
        .with("max_prepared_transactions", "5");
    let cluster = stage.cluster(settings)?;
    cluster.create_nodes()?;
    cluster.everywhere("CREATE TABLE t (id int PRIMARY KEY); SELECT ha.repset_add_table('default', 't')")?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    two.exec(
        database,
        "CREATE TABLE closed (id int); CREATE TABLE tried (id int);
         CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 BEGIN
                     INSERT INTO public.tried VALUES (NEW.id);
                     RAISE 'caught';
                 EXCEPTION WHEN raise_exception THEN NULL;
                 END;
                 IF EXISTS (SELECT FROM public.closed) THEN RAISE 'closed'; END IF;
                 RETURN NULL;
             END $$;
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION judge();
         ALTER TABLE t ENABLE ALWAYS TRIGGER late",
    )?;
    let name = cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    for (id, prepared) in [(1, false), (2, true)] {
        if prepared {
            two.exec(
                database,
                &format!("SELECT ha.sub_alter_options('{name}', '{{\"two_phase\": true}}')"),
            )?;
            wait::until("the slot sends prepared transactions", PATIENCE, || {
                let seen = one.rows(database, "SELECT two_phase AND active FROM pg_replication_slots")?;
                Ok(Probe::when(sql::show(&seen) == "t", sql::show(&seen)))
            })?;
        }
        two.exec(database, "INSERT INTO closed VALUES (1)")?;
        let mut session = one.session(database)?;
        if prepared {
            session.exec(&format!(
                "BEGIN; INSERT INTO t VALUES ({id}); PREPARE TRANSACTION 'a'"
            ))?;
        } else {
            session.exec(&format!("INSERT INTO t VALUES ({id})"))?;
        }
        cluster.wait_status(two, &name, "failed")?;
        two.exec(database, "DELETE FROM closed")?;
        if prepared {
            session.exec("COMMIT PREPARED 'a'")?;
        }
        shows(&cluster, "SELECT max(id) FROM t", &id.to_string())?;
    }
    Ok(())
}
