//! Waiting for conditions, and the only place where anything sleeps.
//!
//! A scenario never guesses how long something takes: it says what must become true and by when. When it does
//! not, the error says what was waited for and what was seen last; the runner adds the status rows and the last
//! log lines of every node, taken at that moment.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{cleanup, sql};

/// Long enough for a busy two-core machine; a test that waits this long has failed, it is not slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const POLLING_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) enum Probe<T> {
    Ready(T),
    /// What was seen instead.
    NotYet(String),
}

impl Probe<()> {
    pub(crate) fn when(condition: bool, seen: impl Into<String>) -> Self {
        if condition {
            Probe::Ready(())
        } else {
            Probe::NotYet(seen.into())
        }
    }
}

/// Polls until the probe is ready. An error from the probe counts as "not yet" (servers restart under test) and
/// is what was seen last.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Probe<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let seen = match probe() {
            Ok(Probe::Ready(value)) => return Ok(value),
            Ok(Probe::NotYet(seen)) => seen,
            Err(error) if is_hopeless(&error) => {
                return Err(error.context(format!("while waiting until {what}")));
            }
            Err(error) => format!("an error: {error:#}"),
        };
        if cleanup::interrupted() {
            bail!("interrupted while waiting until {what}");
        }
        if started.elapsed() >= limit {
            bail!(
                "waited {:.0} s until {what}; last seen: {seen}",
                limit.as_secs_f64()
            );
        }
        pause(POLLING_INTERVAL);
    }
}

/// A statement that is wrong in itself, or names what does not exist (class 42), will not come right by waiting.
fn is_hopeless(error: &anyhow::Error) -> bool {
    sql::refusal(error).is_some_and(|refusal| refusal.sqlstate.starts_with("42"))
}

/// Something must stay true for a while: the opposite of `until`, for "this must not happen".
pub(crate) fn holds(what: &str, time: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        if let Err(error) = check() {
            bail!(
                "this had to hold for {:.1} s: {what}; but: {error:#}",
                time.as_secs_f64()
            );
        }
        if cleanup::interrupted() {
            bail!("interrupted while checking that {what}");
        }
        if Instant::now() >= end {
            return Ok(());
        }
        pause(POLLING_INTERVAL);
    }
}

/// Lets load run on for a (random) time before the next fault. This is the length of an exposure, never a guess
/// about when something will be finished.
pub(crate) fn let_run(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if cleanup::interrupted() {
            bail!("interrupted");
        }
        pause(POLLING_INTERVAL.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// For devices that delay on purpose (the slow link) and for loops that retry.
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
