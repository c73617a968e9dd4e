//! Draining a backlog: changes wait while the subscription is disabled, and are measured from the start of the stream
//! until the last one is visible.

use std::time::Duration;

use anyhow::{Context, Result};

use super::cpu::Meter;
use super::memory::Sampler;
use super::pair::Pair;
use super::session::Session;
use super::{DATABASE, LIMIT, MARKER, Measure};
use crate::console::Step;
use crate::process;

/// Transactions of one row each.
pub(super) const ROWS: usize = 200_000;

const TPCB_CLIENTS: usize = 4;
/// Three updates and an insert.
const TPCB_ROWS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backlog {
    Tpcb { transactions: usize },
    Inserts,
    Updates,
}

impl Backlog {
    fn make(self, pair: &Pair, round: usize) -> Result<usize> {
        let one_by_one = |statement: &str| {
            // Only to have it sooner: what lands in the WAL is the same.
            pair.provider
                .sql(
                    DATABASE,
                    &format!(
                        "DO $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false); \
                         FOR i IN 1..{ROWS} LOOP {statement}; COMMIT; END LOOP; END $$"
                    ),
                )
                .map(|_| ROWS)
        };
        match self {
            Self::Tpcb { transactions } => {
                let each = transactions / TPCB_CLIENTS;
                let mut pgbench = pair.provider.client("pgbench");
                pgbench.env("PGOPTIONS", "-c synchronous_commit=off");
                process::answer(pgbench.args([
                    "-n",
                    "-M",
                    "prepared",
                    "-c",
                    &TPCB_CLIENTS.to_string(),
                    "-t",
                    &each.to_string(),
                    DATABASE,
                ]))?;
                Ok(each * TPCB_CLIENTS * TPCB_ROWS)
            }
            Self::Inserts => one_by_one(&format!(
                "INSERT INTO bench_inserts VALUES ({round}::bigint * 10000000 + i, {round}, repeat('x', 40))"
            )),
            Self::Updates => one_by_one(&format!("UPDATE bench_updates SET part = {round} WHERE id = i")),
        }
    }

    fn question(self) -> &'static str {
        match self {
            Self::Tpcb { .. } => {
                "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts)"
            }
            Self::Inserts => "SELECT count(*), sum(id) FROM bench_inserts",
            Self::Updates => "SELECT count(*), sum(part) FROM bench_updates",
        }
    }
}

pub(super) fn run(pair: &Pair, backlog: Backlog, round: usize) -> Result<Measure> {
    let mut step = Step::begin(&format!("{}: making the backlog", pair.kind.name()));
    pair.enable(false)?;
    pair.wait_for_stream(false)?;
    let rows = backlog.make(pair, round)? as f64;
    let marker = pair.provider.sql(
        DATABASE,
        &format!("INSERT INTO {MARKER} SELECT count(*) + 1 FROM {MARKER} RETURNING id"),
    )?;
    // Neither shall write the other's dirty pages while it is measured.
    for server in [&pair.provider, &pair.subscriber] {
        server.sql(DATABASE, "CHECKPOINT")?;
    }
    step.progress("draining");
    let mut session = Session::open(&pair.subscriber, DATABASE)?;
    let meter = Meter::start(&[]);
    pair.enable(true)?;
    pair.wait_for_stream(true)?;
    let memory = Sampler::start(pair.senders()?, pair.appliers()?);
    session
        .wait_for(
            &format!("SELECT EXISTS (SELECT FROM {MARKER} WHERE id = {marker})"),
            Duration::from_millis(10),
            LIMIT,
        )
        .context("the backlog did not drain")?;
    // From the sender's birth: how long a launcher idles before it starts a worker (up to five seconds for
    // native replication) is not the speed of the drain.
    let seconds: f64 = pair
        .provider
        .sql(
            DATABASE,
            "SELECT extract(epoch FROM clock_timestamp() - min(backend_start)) FROM pg_stat_replication",
        )?
        .parse()
        .context("the stream ended before the backlog was drained")?;
    let sender = meter.used_by(&pair.senders()?)?;
    let applier = meter.used_by(&pair.appliers()?)?;
    let (sender_memory, applier_memory) = memory.peaks();
    step.erase();
    pair.check(backlog.question())?;
    Ok(Measure(vec![
        rows / seconds,
        sender / rows * 1e6,
        applier / rows * 1e6,
        sender_memory,
        applier_memory,
    ]))
}
