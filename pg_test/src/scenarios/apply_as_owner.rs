//! Failure story: whoever owns a replicated table has code run by the worker that applies its changes (triggers,
//! defaults, constraints, index expressions, domains), and becomes a superuser by it; or the change passes policies and
//! rights that its owner has set; or what runs as the owner breaks what ran before as the worker.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, Plan};
use crate::node::Node;
use crate::scenario::{Scenario, Stage};
use crate::sql::{self, literal};
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
        "apply_as_owner_code",
        "code of a table's owner, run while changes are applied, makes its owner a superuser",
        code,
    ),
    scenario(
        "apply_as_owner_rights",
        "changes are applied past row security and past rights that were taken away",
        rights,
    ),
    scenario(
        "apply_as_owner_deferred",
        "deferred constraints and triggers of an ordinary owner stop the stream, are skipped, or run as the worker",
        deferred,
    ),
];

const NAME: &str = "sub_n2_n1";

/// Where an attacker gets code of its own run.
const PREPARED: &str = "
    CREATE ROLE mallory LOGIN NOSUPERUSER; CREATE SCHEMA evil AUTHORIZATION mallory;
    SET ROLE mallory;
    CREATE TABLE evil.log (place text, who name, got text);
    CREATE FUNCTION evil.attack(place text) RETURNS boolean LANGUAGE sql VOLATILE AS 'SELECT true';
    CREATE FUNCTION evil.attack_immutable(place text, v int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
        'BEGIN PERFORM evil.attack(place); RETURN v; END';
    CREATE FUNCTION evil.attack_trigger() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM evil.attack(TG_NAME); RETURN CASE TG_OP WHEN ''DELETE'' THEN OLD ELSE NEW END; END';
    CREATE DOMAIN evil.checked AS int CHECK (evil.attack_immutable('domain', VALUE) IS NOT NULL);
    RESET ROLE;
    GRANT ALL ON SCHEMA public TO mallory;
    SET ROLE mallory;";

/// What it tries there: it notes as whom, and what came of it.
const ATTACK: &str = "
    CREATE OR REPLACE FUNCTION evil.attack(place text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
    DECLARE tried text; got text := '';
    BEGIN
        FOREACH tried IN ARRAY ARRAY['ALTER ROLE mallory SUPERUSER', 'SET ROLE postgres', 'RESET ROLE',
                'SET SESSION AUTHORIZATION postgres', 'RESET SESSION AUTHORIZATION',
                'CREATE TEMP TABLE left_behind (a int)', 'DECLARE later CURSOR WITH HOLD FOR SELECT evil.attack(''cursor'')',
                'SET session_replication_role = origin', 'COPY evil.log TO PROGRAM ''true'''] LOOP
            BEGIN
                EXECUTE tried;
                EXECUTE 'ALTER ROLE mallory SUPERUSER';
                got := got || tried || '; ';
            EXCEPTION WHEN OTHERS THEN
                IF current_user <> 'mallory' THEN got := got || tried || ' made it ' || current_user || '; '; END IF;
            END;
        END LOOP;
        INSERT INTO evil.log VALUES (place, current_user, got);
        -- What comes after is to read other dates, and to find other functions.
        PERFORM pg_catalog.set_config('datestyle', 'SQL, DMY', false);
        PERFORM pg_catalog.set_config('search_path', 'evil', false);
        RETURN true;
    END $$;";

const TABLES: [&str; 5] = ["t", "at", "part", "after", "copied"];

fn prepare_provider(one: &Node, database: &str) -> Result<()> {
    one.exec(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, d int, v int, day date);
         CREATE TABLE at (id int PRIMARY KEY, at timestamptz[]);
         CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
         CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1);
         CREATE TABLE after (id int PRIMARY KEY, v int);
         CREATE TABLE copied (id int PRIMARY KEY, d int, v int);
         INSERT INTO copied VALUES (1, 1, 1), (2, 2, 2);",
    )?;
    for table in TABLES {
        one.exec(
            database,
            &format!("SELECT ha.repset_add_table('default', '{table}')"),
        )?;
    }
    Ok(())
}

const HIS_TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, d evil.checked, v int, day date,
                    filled int DEFAULT evil.attack_immutable('default', 1), computed int GENERATED ALWAYS AS (v + 1) STORED,
                    CONSTRAINT tried CHECK (evil.attack_immutable('check', v) > 0));
    CREATE INDEX ON t (evil.attack_immutable('index', v)); CREATE INDEX ON t (v) WHERE evil.attack_immutable('predicate', v) > 0;
    CREATE TRIGGER before_row BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION evil.attack_trigger();
    CREATE TRIGGER after_row AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW
        WHEN (evil.attack('condition')) EXECUTE FUNCTION evil.attack_trigger();
    CREATE CONSTRAINT TRIGGER deferred AFTER INSERT OR UPDATE OR DELETE ON t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION evil.attack_trigger();
    CREATE TRIGGER on_truncate BEFORE TRUNCATE ON t EXECUTE FUNCTION evil.attack_trigger();
    ALTER TABLE t ENABLE ALWAYS TRIGGER before_row; ALTER TABLE t ENABLE REPLICA TRIGGER after_row;
    ALTER TABLE t ENABLE ALWAYS TRIGGER deferred; ALTER TABLE t ENABLE ALWAYS TRIGGER on_truncate;
    CREATE TABLE copied (id int PRIMARY KEY, d evil.checked, v int);
    CREATE INDEX ON copied (evil.attack_immutable('copy index', v));
    CREATE TRIGGER copy_row BEFORE INSERT OR DELETE ON copied FOR EACH ROW EXECUTE FUNCTION evil.attack_trigger();
    CREATE TRIGGER copy_truncate BEFORE TRUNCATE ON copied EXECUTE FUNCTION evil.attack_trigger();
    ALTER TABLE copied ENABLE ALWAYS TRIGGER copy_row; ALTER TABLE copied ENABLE ALWAYS TRIGGER copy_truncate;
    INSERT INTO copied VALUES (9, 9, 9);
    CREATE TABLE part1 (id int NOT NULL, k int NOT NULL);
    CREATE TRIGGER in_partition AFTER INSERT ON part1 FOR EACH ROW EXECUTE FUNCTION evil.attack_trigger();
    ALTER TABLE part1 ENABLE ALWAYS TRIGGER in_partition;
    RESET ROLE;";

/// Tables of the superuser, and what stands in a trigger's way when others left settings behind.
const OUR_TABLES: &str = "
    CREATE TABLE at (id int PRIMARY KEY, at timestamptz[]);
    CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
    ALTER TABLE part ATTACH PARTITION part1 FOR VALUES IN (1);
    CREATE TABLE after (id int PRIMARY KEY, v int);
    CREATE TABLE after_log (who name, path text, dates text);
    CREATE FUNCTION after_note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.after_log VALUES (current_user, current_setting('search_path'), current_setting('datestyle'));
            RETURN NULL;
        END $$;
    CREATE TRIGGER note AFTER INSERT ON after FOR EACH ROW EXECUTE FUNCTION after_note();
    ALTER TABLE after ENABLE ALWAYS TRIGGER note;
    ALTER FUNCTION evil.attack OWNER TO mallory;";

fn mallory_has_nothing(two: &Node, database: &str, when: &str, places: &[&str]) -> Result<()> {
    let rolsuper = two.text(
        database,
        "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'",
    )?;
    ensure!(rolsuper == "f", "{when}: mallory has become a superuser");
    let wrong = two.rows(
        database,
        "SELECT DISTINCT place, who, got FROM evil.log WHERE who <> 'mallory' OR got <> ''",
    )?;
    ensure!(wrong.is_empty(), "{when}: {}", sql::show(&wrong));
    for place in places {
        let count = two.number(
            database,
            &format!("SELECT count(*) FROM evil.log WHERE place = {}", literal(place)),
        )?;
        ensure!(count > 0, "{when}: the attack from the {place} was never tried");
    }
    Ok(())
}

fn code(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    prepare_provider(one, database)?;
    two.exec(
        database,
        &format!("{PREPARED} {HIS_TABLES} {OUR_TABLES} {ATTACK}"),
    )?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    one.exec(
        database,
        "BEGIN; INSERT INTO t VALUES (1, 1, 1, '2020-02-03'), (2, 2, 2, '2020-03-02');
         INSERT INTO at VALUES (1, ARRAY['2020-02-03 04:05:06+00'::timestamptz]); INSERT INTO after VALUES (1, 1);
         UPDATE t SET v = v + 10, d = 5 WHERE id = 1; DELETE FROM t WHERE id = 2;
         INSERT INTO part VALUES (1, 1); INSERT INTO after VALUES (2, 2); COMMIT",
    )?;
    cluster.sync(1, 2)?;
    let places = [
        "domain",
        "default",
        "check",
        "index",
        "predicate",
        "before_row",
        "condition",
        "after_row",
        "deferred",
        "in_partition",
    ];
    mallory_has_nothing(two, database, "after a transaction", &places)?;
    let fired = two.number(database, "SELECT count(*) FROM evil.log WHERE place = 'deferred'")?;
    ensure!(
        fired == 4,
        "the deferred trigger should fire 4 times, and did {fired} times"
    );
    let found = sql::show(&two.rows(database, "SELECT id, d, v, day, filled, computed FROM t")?);
    ensure!(found == "1 | 5 | 11 | 2020-02-03 | 1 | 12", "t holds {found}");
    let found = two.text(
        database,
        "SELECT at = ARRAY['2020-02-03 04:05:06+00'::timestamptz] FROM at",
    )?;
    ensure!(
        found == "t",
        "a value was read with settings that a trigger had left behind"
    );
    let left = "SELECT DISTINCT who, path, dates FROM after_log";
    let found = sql::show(&two.rows(database, left)?);
    ensure!(
        found == "postgres |  | ISO, MDY" || found == "postgres | \"\" | ISO, MDY",
        "what a trigger had set reached the next table: {found}"
    );

    one.exec(database, "TRUNCATE t, after")?;
    cluster.sync(1, 2)?;
    mallory_has_nothing(two, database, "after TRUNCATE", &["on_truncate"])?;

    two.exec(
        database,
        &format!("SELECT ha.sub_resync_table({}, 'copied')", literal(NAME)),
    )?;
    wait::until("copied is there", PATIENCE, || {
        let done = two.text(
            database,
            &format!("SELECT ha.sub_wait_for_sync({}, '1 s')", literal(NAME)),
        )?;
        Ok(Probe::when(done == "t", done))
    })?;
    let found = two.text(
        database,
        "SELECT string_agg(id::text, ',' ORDER BY id) FROM copied",
    )?;
    ensure!(found == "1,2", "copied holds {found}");
    mallory_has_nothing(
        two,
        database,
        "after a copy",
        &["copy index", "copy_row", "copy_truncate"],
    )?;

    // The owner's choice: everything as the worker.
    two.exec(
        database,
        &format!(
            "SELECT ha.sub_alter_options({}, '{{\"run_as\": \"subscription_owner\"}}');
             CREATE TABLE who (id int PRIMARY KEY, who name DEFAULT current_user); ALTER TABLE who OWNER TO mallory",
            literal(NAME)
        ),
    )?;
    one.exec(
        database,
        "CREATE TABLE who (id int PRIMARY KEY); SELECT ha.repset_add_table('default', 'who'); INSERT INTO who VALUES (1)",
    )?;
    cluster.sync(1, 2)?;
    let who = two.text(database, "SELECT who FROM who")?;
    ensure!(who == "postgres", "run_as subscription_owner ran as {who}");
    two.exec(
        database,
        &format!(
            "SELECT ha.sub_alter_options({}, '{{\"run_as\": null}}')",
            literal(NAME)
        ),
    )?;
    one.exec(database, "INSERT INTO who VALUES (2)")?;
    cluster.sync(1, 2)?;
    let who = two.text(database, "SELECT who FROM who WHERE id = 2")?;
    ensure!(who == "mallory", "run_as table_owner ran as {who}");
    Ok(())
}

/// The subscription stops with these words; once mended it goes on by itself.
fn stops_until(cluster: &Cluster, words: &[&str], mend: &str) -> Result<()> {
    let two = cluster.node(2)?;
    wait::until(&format!("the subscription says {words:?}"), PATIENCE, || {
        let told = cluster.status_of(two, NAME, "last_error")?.unwrap_or_default();
        Ok(Probe::when(words.iter().all(|word| told.contains(word)), told))
    })?;
    cluster.wait_status(two, NAME, "failed")?;
    two.exec(&cluster.database, mend)?;
    cluster.sync(1, 2)
}

fn rights(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    cluster.everywhere(
        "CREATE ROLE owner; CREATE TABLE r (id int PRIMARY KEY, v int); ALTER TABLE r OWNER TO owner;
         GRANT ALL ON SCHEMA public TO owner",
    )?;
    one.exec(database, "SELECT ha.repset_add_table('default', 'r')")?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    // Policies bind others than the owner, unless they are forced.
    two.exec(
        database,
        "CREATE POLICY none ON r USING (v < 100); ALTER TABLE r ENABLE ROW LEVEL SECURITY",
    )?;
    one.exec(database, "INSERT INTO r VALUES (1, 1), (2, 200)")?;
    cluster.sync(1, 2)?;
    two.exec(database, "ALTER TABLE r FORCE ROW LEVEL SECURITY")?;
    one.exec(database, "UPDATE r SET v = 300 WHERE id = 1")?;
    stops_until(
        &cluster,
        &["row security", "public.r", "\"owner\"", "run_as"],
        "ALTER TABLE r NO FORCE ROW LEVEL SECURITY",
    )?;
    two.exec(database, "ALTER TABLE r FORCE ROW LEVEL SECURITY")?;
    one.exec(database, "TRUNCATE r")?;
    // A right that only roles have, and no table.
    stops_until(
        &cluster,
        &["row security", "public.r"],
        "ALTER ROLE owner BYPASSRLS",
    )?;
    two.exec(database, "REVOKE INSERT ON r FROM owner")?;
    one.exec(database, "INSERT INTO r VALUES (3, 3)")?;
    stops_until(
        &cluster,
        &["\"owner\"", "public.r", "INSERT"],
        "GRANT INSERT ON r TO owner",
    )?;
    two.exec(database, "REVOKE DELETE ON r FROM owner")?;
    one.exec(database, "DELETE FROM r")?;
    stops_until(
        &cluster,
        &["\"owner\"", "public.r", "DELETE"],
        &format!(
            "SELECT ha.sub_alter_options({}, '{{\"run_as\": \"subscription_owner\"}}')",
            literal(NAME)
        ),
    )?;
    let left = two.number(database, "SELECT count(*) FROM r")?;
    ensure!(left == 0, "{left} rows are left");
    Ok(())
}

const DEFERRED: &str = "
    CREATE ROLE app; GRANT ALL ON SCHEMA public TO app; SET ROLE app;
    CREATE TABLE swap (id int PRIMARY KEY, v int UNIQUE DEFERRABLE INITIALLY DEFERRED, w int UNIQUE DEFERRABLE);
    CREATE TABLE seen (what text, who name, rows bigint, swapped bigint);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.seen SELECT TG_OP || ' ' || coalesce(NEW.id, OLD.id), current_user, count(*),
                count(*) FILTER (WHERE id <> v) FROM public.swap;
            RETURN NULL;
        END $$;
    CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE OR DELETE ON swap DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION note();
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN IF OLD.id = 3 THEN RETURN NULL; END IF; RETURN CASE TG_OP WHEN ''DELETE'' THEN OLD ELSE NEW END; END';
    CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON swap FOR EACH ROW EXECUTE FUNCTION keep();
    RESET ROLE;";

fn deferred(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(
        database,
        "CREATE TABLE swap (id int PRIMARY KEY, v int UNIQUE DEFERRABLE INITIALLY DEFERRED, w int);
         CREATE TABLE other (id int PRIMARY KEY, v int UNIQUE DEFERRABLE INITIALLY DEFERRED);
         SELECT ha.repset_add_table('default', 'swap'); SELECT ha.repset_add_table('default', 'other');",
    )?;
    two.exec(
        database,
        &format!(
            "{DEFERRED} ALTER TABLE swap ENABLE ALWAYS TRIGGER late; ALTER TABLE swap ENABLE REPLICA TRIGGER keep;
             CREATE TABLE other (id int PRIMARY KEY, v int UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        ),
    )?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    one.exec(
        database,
        "BEGIN; INSERT INTO swap VALUES (1, 1, 1), (2, 2, 2), (3, 3, 3);
         UPDATE swap SET v = 3 - v WHERE id < 3; UPDATE swap SET w = 9 WHERE id = 3; COMMIT",
    )?;
    cluster.sync(1, 2)?;
    let rows = |query: &str| -> Result<String> { Ok(sql::show(&two.rows(database, query)?)) };
    let found = rows("SELECT string_agg(id || ':' || v || ':' || w, ' ' ORDER BY id) FROM swap")?;
    ensure!(found == "1:2:1 2:1:2 3:3:3", "swap holds {found}");
    // They see what the transaction ends with, and none tells of the update that a trigger prevented.
    let found = rows(
        "SELECT string_agg(what, ',' ORDER BY what), string_agg(DISTINCT who || ' ' || rows || ' ' || swapped, ',') FROM seen",
    )?;
    ensure!(
        found == "INSERT 1,INSERT 2,INSERT 3,UPDATE 1,UPDATE 2 | app 3 2",
        "the deferred triggers noted {found}"
    );
    one.exec(database, "DELETE FROM swap WHERE id >= 2")?;
    cluster.sync(1, 2)?;
    let found = rows("SELECT string_agg(what, ',') FROM seen WHERE what LIKE 'DEL%'")?;
    ensure!(found == "DELETE 2", "the deferred triggers noted {found}");

    // A violation is one, at the end of the transaction; nothing of it is there.
    one.exec(database, "INSERT INTO swap VALUES (7, 3, 7), (8, 8, 8)")?;
    stops_until(
        &cluster,
        &["swap_v_key", "23505"],
        "ALTER TABLE swap DISABLE TRIGGER keep; DELETE FROM swap WHERE id = 3",
    )?;
    let found = rows("SELECT string_agg(id::text, ',' ORDER BY id) FROM swap")?;
    ensure!(found == "1,7,8", "swap holds {found}");

    // Of two owners in one transaction: as each of them, or a clear word where the server cannot tell them apart.
    one.exec(
        database,
        "BEGIN; INSERT INTO swap VALUES (20, 20, 20); INSERT INTO other VALUES (1, 2), (2, 1);
         UPDATE other SET v = 3 - v; COMMIT",
    )?;
    if stage.install.major < 18 {
        stops_until(
            &cluster,
            &["deferred", "public.", "\"app\"", "run_as"],
            &format!(
                "SELECT ha.sub_alter_options({}, '{{\"run_as\": \"subscription_owner\"}}')",
                literal(NAME)
            ),
        )?;
    }
    cluster.sync(1, 2)?;
    let found = rows("SELECT string_agg(id || ':' || v, ' ' ORDER BY id) FROM other")?;
    ensure!(found == "1:1 2:2", "other holds {found}");

    // As the worker they fire in the commit itself: what fails there did not happen, and is tried again.
    two.exec(
        database,
        &format!(
            "SELECT ha.sub_alter_options({}, '{{\"run_as\": \"subscription_owner\"}}');
             INSERT INTO other VALUES (100, 50)",
            literal(NAME)
        ),
    )?;
    one.exec(
        database,
        "INSERT INTO other VALUES (50, 50); INSERT INTO other VALUES (51, 51)",
    )?;
    stops_until(
        &cluster,
        &["other_v_key", "23505"],
        "DELETE FROM other WHERE id = 100",
    )?;
    let found = rows("SELECT string_agg(id::text, ',' ORDER BY id) FROM other")?;
    ensure!(
        found == "1,2,50,51",
        "a transaction that failed in its commit counts as applied: other holds {found}"
    );
    Ok(())
}
