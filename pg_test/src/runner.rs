//! Runs scenarios, as many at once as the machine bears, and tells how each ended.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cleanup;
use crate::install::Install;
use crate::report;
use crate::scenario::{Scenario, Stage};

/// A scenario that takes longer hangs in a call to a server: its servers are killed, so that the call returns.
const TIME_LIMIT: Duration = Duration::from_secs(15 * 60);
const TIME_LIMIT_LONG: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) long: bool,
    pub(crate) jobs: usize,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

enum Outcome {
    Passed,
    Skipped(&'static str),
    Failed(String),
}

struct Queue {
    waiting: VecDeque<Scenario>,
    free_jobs: usize,
    running: Vec<(&'static str, Instant)>,
    totals: Totals,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn run(install: &Arc<Install>, scenarios: Vec<Scenario>, options: Options) -> Totals {
    let queue = Queue {
        waiting: scenarios.into(),
        free_jobs: options.jobs,
        running: Vec::new(),
        totals: Totals::default(),
    };
    let shared = Shared {
        queue: Mutex::new(queue),
        changed: Condvar::new(),
    };
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| work(&shared, install, options));
        }
        scope.spawn(|| watch(&shared, if options.long { TIME_LIMIT_LONG } else { TIME_LIMIT }));
    });
    shared.queue().totals
}

fn work(shared: &Shared, install: &Arc<Install>, options: Options) {
    while let Some((scenario, weight)) = next(shared, options.jobs) {
        let started = Instant::now();
        let outcome = play(&scenario, install, options);
        let mut queue = shared.queue();
        match &outcome {
            Outcome::Passed => queue.totals.passed += 1,
            Outcome::Skipped(_) => queue.totals.skipped += 1,
            Outcome::Failed(_) => queue.totals.failed += 1,
        }
        queue.free_jobs += weight;
        queue.running.retain(|(name, _)| *name != scenario.name);
        // Still holding the lock: lines of different scenarios never mix.
        tell(&scenario, &outcome, started.elapsed(), options);
        drop(queue);
        shared.changed.notify_all();
    }
}

/// The first waiting scenario that fits beside those that run; None when nothing waits any more.
fn next(shared: &Shared, jobs: usize) -> Option<(Scenario, usize)> {
    let mut queue = shared.queue();
    loop {
        if queue.waiting.is_empty() || cleanup::interrupted() {
            return None;
        }
        let free = queue.free_jobs;
        if let Some(at) = queue
            .waiting
            .iter()
            .position(|scenario| scenario.weight.min(jobs) <= free)
        {
            let scenario = queue.waiting.remove(at)?;
            let weight = scenario.weight.min(jobs);
            queue.free_jobs -= weight;
            queue.running.push((scenario.name, Instant::now()));
            return Some((scenario, weight));
        }
        queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

fn watch(shared: &Shared, limit: Duration) {
    loop {
        let queue = shared.queue();
        if queue.running.is_empty() && (queue.waiting.is_empty() || cleanup::interrupted()) {
            return;
        }
        let late: Vec<&str> = queue
            .running
            .iter()
            .filter(|(_, since)| since.elapsed() > limit)
            .map(|(name, _)| *name)
            .collect();
        for name in late {
            cleanup::end_processes_of(name);
        }
        let waited = shared.changed.wait_timeout(queue, Duration::from_secs(1));
        drop(waited);
    }
}

fn play(scenario: &Scenario, install: &Arc<Install>, options: Options) -> Outcome {
    if let Some(reason) = scenario.needs.iter().find_map(|need| need.missing(install)) {
        return Outcome::Skipped(reason);
    }
    if !scenario.stock && !install.has_extension {
        return Outcome::Failed(
            "pg_ha is not installed there: set PG_HA_INSTALL to a server that has it\n".to_owned(),
        );
    }
    let stage = Stage::new(scenario, install, options.seed, options.long);
    match catch_unwind(AssertUnwindSafe(|| (scenario.run)(&stage))) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(error)) => Outcome::Failed(report::indent(&format!("{error:#}")) + &stage.describe()),
        Err(_) => {
            Outcome::Failed("    the scenario itself panicked (see above)\n".to_owned() + &stage.describe())
        }
    }
}

#[expect(clippy::print_stdout, reason = "the run's report is this program's output")]
fn tell(scenario: &Scenario, outcome: &Outcome, time: Duration, options: Options) {
    let (name, seconds) = (scenario.name, time.as_secs_f64());
    match outcome {
        Outcome::Passed => println!("ok {name} {seconds:.1}s"),
        Outcome::Skipped(reason) => println!("skipped {name}: {reason}"),
        Outcome::Failed(story) => {
            println!("FAILED {name} {seconds:.1}s");
            println!("  guards against: {}", scenario.story);
            print!("{story}");
            let long = if options.long { " --long" } else { "" };
            println!(
                "  seed {}; replay: {}pg_ha_test run --only {name} --seed {}{long}",
                options.seed,
                environment(),
                options.seed
            );
        }
    }
}

fn environment() -> String {
    let set = |name: &str| std::env::var(name).ok().map(|value| format!("{name}={value} "));
    ["PG_HA_INSTALL", "PG_HA_INSTALL_OTHER", "PG_HA_CHROOT"]
        .into_iter()
        .filter_map(set)
        .collect()
}
