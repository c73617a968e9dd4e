//! How long after its commit was acknowledged a row is visible on the subscriber, at a hundred transactions a second.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::pair::Pair;
use super::session::Session;
use super::{DATABASE, LIMIT, Measure};
use crate::console::Step;

const TRANSACTIONS: usize = 1000;
const PAUSE: Duration = Duration::from_millis(10);

pub(super) fn run(pair: &Pair, round: usize) -> Result<Measure> {
    let mut step = Step::begin(&format!("{}: latency", pair.kind.name()));
    let mut writer = Session::open(&pair.provider, DATABASE)?;
    let mut reader = Session::open(&pair.subscriber, DATABASE)?;
    let mut latencies = Vec::with_capacity(TRANSACTIONS);
    let mut next = Instant::now();
    for number in 0..TRANSACTIONS {
        let id = round * 1_000_000 + number;
        writer.ask(&format!("INSERT INTO bench_latency VALUES ({id}) RETURNING id"))?;
        let acknowledged = Instant::now();
        reader.wait_for(
            &format!("SELECT EXISTS (SELECT FROM bench_latency WHERE id = {id})"),
            Duration::ZERO,
            LIMIT,
        )?;
        latencies.push(acknowledged.elapsed().as_secs_f64() * 1e3);
        next += PAUSE;
        sleep(next.saturating_duration_since(Instant::now()));
        step.progress("");
    }
    step.erase();
    latencies.sort_by(f64::total_cmp);
    let at = |share: usize| {
        latencies
            .get(TRANSACTIONS * share / 100)
            .copied()
            .unwrap_or(f64::NAN)
    };
    Ok(Measure(vec![at(50), at(99)]))
}
