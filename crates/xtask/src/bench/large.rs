//! One large transaction: from its first statement until its rows are visible on the subscriber.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cpu::Meter;
use super::memory::Sampler;
use super::pair::Pair;
use super::session::Session;
use super::{DATABASE, LIMIT, Measure};
use crate::console::Step;

const ROWS: usize = 1_000_000;

pub(super) fn run(pair: &Pair, round: usize) -> Result<Measure> {
    let mut step = Step::begin(&format!("{}: a transaction of {ROWS} rows", pair.kind.name()));
    for server in [&pair.provider, &pair.subscriber] {
        server.sql(DATABASE, "CHECKPOINT")?;
    }
    step.progress("");
    let mut session = Session::open(&pair.subscriber, DATABASE)?;
    let (senders, appliers) = (pair.senders()?, pair.appliers()?);
    let meter = Meter::start(&[senders.clone(), appliers.clone()].concat());
    let memory = Sampler::start(senders.clone(), appliers.clone());
    let started = Instant::now();
    let first = round * 10_000_000;
    pair.provider.sql(
        DATABASE,
        &format!(
            "INSERT INTO bench_big SELECT i, {round}, repeat('x', 40) \
               FROM generate_series({first} + 1, {first} + {ROWS}) i"
        ),
    )?;
    session
        .wait_for(
            &format!("SELECT EXISTS (SELECT FROM bench_big WHERE id = {first} + {ROWS})"),
            Duration::from_millis(10),
            LIMIT,
        )
        .context("the transaction did not arrive")?;
    let seconds = started.elapsed().as_secs_f64();
    let sender = meter.used_by(&senders)?;
    let applier = meter.used_by(&appliers)?;
    let (sender_memory, applier_memory) = memory.peaks();
    step.erase();
    pair.check("SELECT count(*), sum(id) FROM bench_big")?;
    Ok(Measure(vec![
        seconds,
        sender / ROWS as f64 * 1e6,
        applier / ROWS as f64 * 1e6,
        sender_memory,
        applier_memory,
    ]))
}
