//! Failure story: a subscriber's triggers, rules, foreign keys and constraints run twice, not at all, or against the order
//! of the stream: an audit counts rows double, a cascade deletes what the stream deletes too, a duplicate stands in a
//! unique index.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, Plan};
use crate::scenario::{Scenario, Stage};
use crate::sql;

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "replica_semantics",
    story: "triggers, rules, foreign keys or deferrable constraints act otherwise than on a replica",
    run: replica,
    needs: &[],
    stock: false,
    weight: 1,
}];

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
