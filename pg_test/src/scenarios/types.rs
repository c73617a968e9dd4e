//! Failure story: a value arrives as another one: read under other settings, cut to another precision, as another label,
//! or as the number of another object. Or it cannot be read, and nobody says which one it was.

use anyhow::{Result, ensure};

use super::every_type;
use crate::cluster::{Cluster, Plan};
use crate::node::Node;
use crate::scenario::{Need, Scenario, Stage};
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
        "types_every",
        "a value of some type arrives changed, or its row is not found again, under other settings on either side",
        every,
    ),
    Scenario {
        name: "types_every_version",
        story: "a value of some type arrives changed at a server of another major version, or from one",
        run: every_version,
        needs: &[Need::OtherVersion],
        stock: false,
        weight: 1,
    },
    scenario(
        "types_convert",
        "columns of other types lose or mistake values, or a value that does not convert is not named",
        convert,
    ),
    scenario(
        "types_enum",
        "labels of an enum that come later, or that the subscriber lacks, end as other ones",
        labels,
    ),
];

const NAME: &str = "sub_n2_n1";

fn subscribe_with_copy(cluster: &Cluster) -> Result<()> {
    let dsn = cluster.node(1)?.dsn(&cluster.database);
    let two = cluster.node(2)?;
    two.exec(
        &cluster.database,
        &format!(
            "SELECT ha.sub_create({}, {}, synchronize_data => true)",
            literal(NAME),
            literal(&dsn)
        ),
    )?;
    wait_for_copies(cluster, two)
}

fn wait_for_copies(cluster: &Cluster, node: &Node) -> Result<()> {
    let waiting = format!("SELECT ha.sub_wait_for_sync({}, '1 s')", literal(NAME));
    let failed = "SELECT relname, last_error FROM ha.copied_tables WHERE last_error IS NOT NULL";
    let mut polling = node.polling(&cluster.database);
    wait::until("everything is copied", PATIENCE * 2, || {
        let done = sql::show(&polling.rows(&waiting)?) == "t";
        let errors = sql::show(&polling.rows(failed)?);
        Ok(Probe::when(done, errors))
    })
}

fn every(stage: &Stage) -> Result<()> {
    every_on(stage, Plan::nodes(2))
}

fn every_version(stage: &Stage) -> Result<()> {
    for other in [1, 2] {
        every_on(
            stage,
            Plan::nodes(2).node(other, |spec| spec.other_version = true),
        )?;
    }
    Ok(())
}

fn every_on(stage: &Stage, plan: Plan) -> Result<()> {
    let cluster = stage.cluster(plan.with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    for (variant, node) in [one, two].into_iter().enumerate() {
        every_type::create(node, database, variant)?;
        node.exec(database, &every_type::odd_settings(database, variant))?;
    }
    let (copied, others): (Vec<String>, Vec<String>) = every_type::tables()
        .into_iter()
        .partition(|table| table.starts_with(every_type::BY_NUMBER));
    let publish = |tables: &[String], copy: bool| {
        tables.iter().try_for_each(|table| {
            one.exec(
                database,
                &format!(
                    "SELECT ha.repset_add_table('default', {}, synchronize_data => {copy})",
                    literal(table)
                ),
            )
        })
    };
    publish(&copied, false)?;
    every_type::fill(one, database, 1)?;
    subscribe_with_copy(&cluster)?;
    // A copy for each table takes its time: of the others, one in eight.
    let (some, rest): (Vec<_>, Vec<_>) = others
        .into_iter()
        .enumerate()
        .partition(|(place, _)| place % 8 == 0);
    let names = |tables: Vec<(usize, String)>| tables.into_iter().map(|(_, table)| table).collect::<Vec<_>>();
    let (some, rest) = (names(some), names(rest));
    publish(&some, true)?;
    one.exec(database, &format!("TRUNCATE {}", rest.join(", ")))?;
    publish(&rest, false)?;
    every_type::fill_tables(one, database, 1, &rest)?;
    cluster.sync(1, 2)?;
    wait_for_copies(&cluster, two)?;
    every_type::same(one, two, database, "copied")?;
    every_type::change(one, database, 1)?;
    cluster.sync(1, 2)?;
    every_type::same(one, two, database, "changed after the copy")?;
    one.exec(database, &format!("TRUNCATE {}", every_type::tables().join(", ")))?;
    every_type::fill(one, database, 1)?;
    cluster.sync(1, 2)?;
    every_type::same(one, two, database, "inserted")?;
    every_type::change(one, database, 1)?;
    cluster.sync(1, 2)?;
    every_type::same(one, two, database, "changed")
}

/// A name, the provider's type, the subscriber's, values, and what they are on the subscriber if not the same text.
type Conversion = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    Option<&'static str>,
);

const CONVERSIONS: &[Conversion] = &[
    ("small", "int2", "int8", &["-32768", "7"], None),
    ("wide", "int4", "int8", &["-2147483648"], None),
    ("exact", "int4", "numeric", &["-5"], None),
    ("real", "int4", "float8", &["5"], None),
    ("double", "float4", "float8", &["0.1", "NaN", "-Infinity"], None),
    (
        "digits",
        "float8",
        "numeric",
        &["0.1", "1e300"],
        Some(
            "0.1,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
        ),
    ),
    ("varying", "varchar(5)", "text", &["abc"], None),
    ("longer", "varchar(5)", "varchar(9)", &["abc"], None),
    ("padded", "char(5)", "text", &["abc"], Some("abc  ")),
    (
        "day",
        "date",
        "timestamp",
        &["2020-02-03"],
        Some("2020-02-03 00:00:00"),
    ),
    // In the subscriber's time zone, which is the one its users mean.
    (
        "moment",
        "timestamp",
        "timestamptz",
        &["2020-02-03 04:05:06"],
        Some("2020-02-03 07:35:06+00"),
    ),
    ("number_text", "numeric", "text", &["1.50", "NaN"], None),
    ("interval_text", "interval", "text", &["-1 days +02:03:00"], None),
    ("address", "inet", "text", &["10.0.0.1/8"], None),
    ("network", "cidr", "inet", &["10.0.0.0/8"], None),
    ("json", "json", "jsonb", &["{\"a\": 1.50}"], None),
    ("json_text", "jsonb", "text", &["{\"a\": 1.50}"], None),
    ("array", "int4[]", "int8[]", &["[2:3]={1,2}"], None),
    (
        "array_text",
        "timestamptz[]",
        "text",
        &["{\"2020-02-03 04:05:06+00\"}"],
        None,
    ),
    (
        "moment_text",
        "timestamptz",
        "text",
        &["2020-02-03 04:05:06+00"],
        None,
    ),
    (
        "moment_plain",
        "timestamptz",
        "timestamp",
        &["2020-02-03 04:05:06+00"],
        Some("2020-02-03 04:05:06"),
    ),
    (
        "scale",
        "numeric(10,4)",
        "numeric(12,6)",
        &["1.2345"],
        Some("1.234500"),
    ),
    ("ranges", "int4range", "int8range", &["[1,5)"], None),
    ("fold", "text", "citext", &["AbC"], None),
    (
        "id",
        "uuid",
        "text",
        &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
        None,
    ),
    ("label", "color", "text", &["red"], None),
    ("limited", "int4", "positive", &["5"], None),
];

fn convert(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    one.exec(database, "CREATE TYPE color AS ENUM ('red')")?;
    two.exec(
        database,
        &format!(
            "CREATE EXTENSION citext; CREATE DOMAIN positive AS int CHECK (VALUE > 0);
             ALTER DATABASE {database} SET timezone TO 'America/St_Johns'"
        ),
    )?;
    for (name, provider, subscriber, values, _) in CONVERSIONS {
        one.exec(
            database,
            &format!("CREATE TABLE c_{name} (id int PRIMARY KEY, v {provider}); SELECT ha.repset_add_table('default', 'c_{name}')"),
        )?;
        two.exec(
            database,
            &format!("CREATE TABLE c_{name} (v {subscriber}, id int PRIMARY KEY)"),
        )?;
        for (id, value) in values.iter().enumerate() {
            one.exec(
                database,
                &every_type::usual(&format!(
                    "INSERT INTO c_{name} VALUES ({id}, {}), ({id} + 100, NULL)",
                    literal(value)
                )),
            )?;
        }
    }
    let check = |when: &str| -> Result<()> {
        for (name, provider, subscriber, values, wanted) in CONVERSIONS {
            let found = two.text(
                database,
                &every_type::usual(&format!(
                    "SELECT string_agg(v::text, ',' ORDER BY id) || ' of ' || count(*) FROM c_{name}"
                )),
            )?;
            let wanted = wanted.map_or_else(|| values.join(","), str::to_owned);
            let wanted = format!("{wanted} of {}", 2 * values.len());
            ensure!(
                found == wanted,
                "{when}: {provider} to {subscriber}: {wanted:?} became {found:?}"
            );
        }
        Ok(())
    };
    subscribe_with_copy(&cluster)?;
    check("copied")?;
    for (name, ..) in CONVERSIONS {
        one.exec(
            database,
            &format!("WITH gone AS (DELETE FROM c_{name} RETURNING *) SELECT 1 FROM gone; "),
        )?;
    }
    cluster.sync(1, 2)?;
    for (name, _, _, values, _) in CONVERSIONS {
        for (id, value) in values.iter().enumerate() {
            one.exec(
                database,
                &every_type::usual(&format!(
                    "INSERT INTO c_{name} VALUES ({id}, {}), ({id} + 100, NULL)",
                    literal(value)
                )),
            )?;
        }
    }
    cluster.sync(1, 2)?;
    check("streamed")?;

    // What does not convert: named, waited for, and applied once it does.
    let cases = [
        (
            "c_limited",
            "-7",
            "\"v\"",
            "-7",
            "ALTER TABLE c_limited ALTER v TYPE int",
        ),
        (
            "c_longer",
            "'abcde'",
            "\"v\"",
            "abcde",
            "ALTER TABLE c_longer ALTER v TYPE text",
        ),
        (
            "c_scale",
            "99999.5",
            "\"v\"",
            "99999.5",
            "ALTER TABLE c_scale ALTER v TYPE numeric",
        ),
        (
            "c_digits",
            "'Infinity'",
            "\"v\"",
            "Infinity",
            "ALTER TABLE c_digits ALTER v TYPE float8",
        ),
    ];
    two.exec(
        database,
        "ALTER TABLE c_longer ALTER v TYPE varchar(4); ALTER TABLE c_scale ALTER v TYPE numeric(6,2);
         ALTER TABLE c_digits ALTER v TYPE numeric(320,2)",
    )?;
    for (table, value, column, shown, mend) in cases {
        one.exec(database, &format!("INSERT INTO {table} VALUES (50, {value})"))?;
        let words = [table, column, shown];
        wait::until(&format!("the subscription names {words:?}"), PATIENCE, || {
            let told = cluster.status_of(two, NAME, "last_error")?.unwrap_or_default();
            Ok(Probe::when(words.iter().all(|word| told.contains(word)), told))
        })?;
        two.exec(database, mend)?;
        cluster.sync(1, 2)?;
    }
    // Of another kind altogether: before any value.
    one.exec(database, "CREATE TABLE odd (id int PRIMARY KEY, v bool); SELECT ha.repset_add_table('default', 'odd'); INSERT INTO odd VALUES (1, true)")?;
    two.exec(database, "CREATE TABLE odd (id int PRIMARY KEY, v inet)")?;
    wait::until("the subscription names both types", PATIENCE, || {
        let told = cluster.status_of(two, NAME, "last_error")?.unwrap_or_default();
        let all = ["public.odd", "\"v\"", "inet", "bool"];
        Ok(Probe::when(all.iter().all(|word| told.contains(word)), told))
    })?;
    two.exec(database, "ALTER TABLE odd ALTER v TYPE text")?;
    cluster.sync(1, 2)?;

    // A copy that meets such a value says the same, and is made once it converts.
    one.exec(
        database,
        "CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES (1, 'one'), (2, 'twelve')",
    )?;
    two.exec(database, "CREATE TABLE late (id int PRIMARY KEY, v varchar(3))")?;
    one.exec(
        database,
        "SELECT ha.repset_add_table('default', 'late', synchronize_data => true)",
    )?;
    let words = ["late", "column v", "twelve"];
    wait::until("the copy names the value", PATIENCE, || {
        let told = sql::show(&two.rows(
            database,
            "SELECT last_error FROM ha.copied_tables WHERE relname = 'late'",
        )?);
        Ok(Probe::when(words.iter().all(|word| told.contains(word)), told))
    })?;
    two.exec(database, "ALTER TABLE late ALTER v TYPE text")?;
    wait_for_copies(&cluster, two)?;
    let found = two.text(database, "SELECT string_agg(v, ',' ORDER BY id) FROM late")?;
    ensure!(found == "one,twelve", "late holds {found}");
    Ok(())
}

fn labels(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster(Plan::nodes(2).with("ha.retry_max", "1s"))?;
    cluster.create_nodes()?;
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let database = cluster.database.as_str();
    cluster.everywhere("CREATE TYPE mood AS ENUM ('sad', 'ok')")?;
    cluster.everywhere("CREATE TABLE m (id int PRIMARY KEY, v mood, vs mood[])")?;
    one.exec(database, "SELECT ha.repset_add_table('default', 'm')")?;
    cluster.subscribe(1, 2)?;
    cluster.wait_replicating()?;
    let all = || -> Result<String> {
        two.text(
            database,
            "SELECT string_agg(id || v::text || coalesce(vs::text, ''), ' ' ORDER BY id) FROM m",
        )
    };
    one.exec(database, "INSERT INTO m VALUES (1, 'sad', '{ok}')")?;
    // Added here first, in another place; then there, while rows stream.
    two.exec(database, "ALTER TYPE mood ADD VALUE 'glad' BEFORE 'sad'")?;
    one.exec(database, "ALTER TYPE mood ADD VALUE 'glad'")?;
    one.exec(database, "INSERT INTO m VALUES (2, 'glad', '{glad,sad}')")?;
    cluster.sync(1, 2)?;
    ensure!(all()? == "1sad{ok} 2glad{glad,sad}", "m holds {}", all()?);
    // One that is missing here is named, and what it is missing from; it is waited for.
    one.exec(database, "ALTER TYPE mood ADD VALUE 'elated'")?;
    one.exec(
        database,
        "INSERT INTO m VALUES (3, 'ok', '{elated}'); INSERT INTO m VALUES (4, 'elated')",
    )?;
    let words = ["public.m", "\"vs\"", "elated", "mood"];
    wait::until("the subscription names the label", PATIENCE, || {
        let told = cluster.status_of(two, NAME, "last_error")?.unwrap_or_default();
        Ok(Probe::when(words.iter().all(|word| told.contains(word)), told))
    })?;
    two.exec(database, "ALTER TYPE mood ADD VALUE 'elated'")?;
    cluster.sync(1, 2)?;
    ensure!(
        all()? == "1sad{ok} 2glad{glad,sad} 3ok{elated} 4elated",
        "m holds {}",
        all()?
    );
    // A label renamed on both sides, the provider first: what came before it is still read by its old name.
    one.exec(
        database,
        "INSERT INTO m VALUES (5, 'elated'); ALTER TYPE mood RENAME VALUE 'elated' TO 'overjoyed'",
    )?;
    cluster.sync(1, 2)?;
    two.exec(database, "ALTER TYPE mood RENAME VALUE 'elated' TO 'overjoyed'")?;
    one.exec(database, "UPDATE m SET v = 'overjoyed' WHERE id = 1")?;
    cluster.sync(1, 2)?;
    ensure!(
        all()? == "1overjoyed{ok} 2glad{glad,sad} 3ok{overjoyed} 4overjoyed 5overjoyed",
        "m holds {}",
        all()?
    );
    Ok(())
}
