//! The initial copy, as a user sees it: an empty database subscribes, and is ready once every table has its structure
//! and rows and replicates. Native replication leaves the structure to pg_dump, which is counted in.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cpu;
use super::kind::Kind;
use super::pair::Pair;
use super::session::Session;
use super::{DATABASE, LIMIT, Measure};
use crate::console::Step;
use crate::process::{self, ServerUser};
use crate::server::Prefix;

const BIG_ROWS: usize = 5_000_000;
const SMALL_TABLES: usize = 200;
const SMALL_ROWS: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Big,
    Many,
}

impl What {
    fn set(self) -> &'static str {
        match self {
            Self::Big => "big",
            Self::Many => "many",
        }
    }

    fn rows(self) -> usize {
        match self {
            Self::Big => BIG_ROWS,
            Self::Many => SMALL_TABLES * SMALL_ROWS,
        }
    }
}

/// A provider with the rows, and a subscriber without.
pub(super) fn prepare(
    kind: Kind,
    what: What,
    prefix: &Prefix,
    user: &ServerUser,
    directory: &Path,
) -> Result<Pair> {
    let mut step = Step::begin(&format!("preparing rows to copy for {}", kind.name()));
    let pair = Pair::start(kind, &format!("{}_", what.set()), prefix, user, directory)?;
    let provider = &pair.provider;
    provider.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
    step.progress("");
    let fill = match what {
        What::Big => format!(
            "CREATE TABLE big (id bigint PRIMARY KEY, part integer NOT NULL, filler text); \
             INSERT INTO big SELECT i, i % 1000, repeat('x', 40) FROM generate_series(1, {BIG_ROWS}) i"
        ),
        What::Many => format!(
            "DO $$ BEGIN FOR t IN 1..{SMALL_TABLES} LOOP \
               EXECUTE format('CREATE TABLE small_%s (id integer PRIMARY KEY, part integer NOT NULL, filler text)', t); \
               EXECUTE format('INSERT INTO small_%s SELECT i, i %% 7, repeat(''x'', 40) \
                                 FROM generate_series(1, {SMALL_ROWS}) i', t); \
             END LOOP; END $$"
        ),
    };
    provider.sql(DATABASE, &fill)?;
    provider.sql(DATABASE, "VACUUM ANALYZE")?;
    provider.sql(DATABASE, "CHECKPOINT")?;
    kind.join(provider, DATABASE)?;
    let tables = "(SELECT array_agg(oid::regclass) FROM pg_class \
                   WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)";
    kind.publish(provider, DATABASE, what.set(), tables)?;
    step.done("");
    Ok(pair)
}

pub(super) fn run(pair: &Pair, what: What, round: usize) -> Result<Measure> {
    let mut step = Step::begin(&format!("{}: copying", pair.kind.name()));
    let (provider, subscriber) = (&pair.provider, &pair.subscriber);
    let database = format!("copy{round}");
    subscriber.sql("postgres", &format!("CREATE DATABASE {database}"))?;
    pair.kind.join(subscriber, &database)?;
    for server in [provider, subscriber] {
        server.sql("postgres", "CHECKPOINT")?;
    }
    step.progress("");
    let mut session = Session::open(subscriber, &database)?;
    let before = cpu::server(&provider.data)? + cpu::server(&subscriber.data)?;
    let started = Instant::now();
    if pair.kind == Kind::Native {
        copy_structure(pair, &database)?;
    }
    pair.kind
        .subscribe_with_rows(subscriber, &database, &provider.dsn(DATABASE), what.set())?;
    session
        .wait_for(pair.kind.is_copied(), Duration::from_millis(20), LIMIT)
        .context("the copy did not end")?;
    let seconds = started.elapsed().as_secs_f64();
    let used = cpu::server(&provider.data)? + cpu::server(&subscriber.data)? - before;
    step.erase();
    check(pair, what, &database)?;
    drop(session);
    pair.kind.leave(subscriber, &database, provider)?;
    // Not the database: pglogical's manager would not let it go.
    subscriber.sql(&database, "DROP SCHEMA public CASCADE")?;
    let rows = what.rows() as f64;
    Ok(Measure(vec![seconds, rows / seconds, used / rows * 1e6]))
}

fn copy_structure(pair: &Pair, database: &str) -> Result<()> {
    let script = pair.subscriber.data.join("structure.sql");
    process::answer(
        pair.provider
            .client("pg_dump")
            .args(["--schema-only", "--no-publications", "--file"])
            .arg(&script)
            .arg(DATABASE),
    )?;
    process::answer(
        pair.subscriber
            .client("psql")
            .args(["-X", "-q", "-d", database, "-f"])
            .arg(&script),
    )?;
    Ok(())
}

fn check(pair: &Pair, what: What, database: &str) -> Result<()> {
    let (question, wanted) = match what {
        What::Big => (
            "SELECT count(*) = 5000000 AND sum(id) = 12500002500000 FROM big",
            "5,000,000 rows",
        ),
        What::Many => (
            "SELECT count(*) = 200 AND bool_and((xpath('/row/c/text()', query_to_xml( \
               format('SELECT count(*) AS c FROM %s', oid::regclass), false, true, '')))[1]::text = '1000') \
               FROM pg_class WHERE relkind = 'r' AND relname LIKE 'small%'",
            "200 tables of 1,000 rows",
        ),
    };
    if pair.subscriber.sql(database, question)? != "t" {
        bail!("{}: the subscriber does not have {wanted}", pair.kind.name());
    }
    Ok(())
}
