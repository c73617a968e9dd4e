//! Everything a run owes the machine: processes to end, servers to stop, directories to remove. A debt is paid
//! when its guard is dropped, or all at once when the run is interrupted.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

#[derive(Debug, Clone)]
pub(crate) enum Debt {
    /// A process group that we started, by its leader.
    Group(i32),
    /// A PostgreSQL server, by its data directory.
    Server(PathBuf),
    Directory(PathBuf),
}

static DEBTS: Mutex<Vec<(u64, Debt)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(1);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn debts() -> MutexGuard<'static, Vec<(u64, Debt)>> {
    DEBTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pays its debt when dropped.
#[derive(Debug)]
#[must_use = "the debt is paid at once when the guard is dropped"]
pub(crate) struct Owed(u64);

pub(crate) fn owe(debt: Debt) -> Owed {
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    debts().push((id, debt));
    Owed(id)
}

impl Owed {
    /// The debt no longer exists (the process has ended), or is handed to the user.
    pub(crate) fn forgive(self) {
        debts().retain(|(id, _)| *id != self.0);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let debt = debts()
            .iter()
            .find(|(id, _)| *id == self.0)
            .map(|(_, debt)| debt.clone());
        if let Some(debt) = debt {
            pay(&debt);
            debts().retain(|(id, _)| *id != self.0);
        }
    }
}

/// Arranges for Ctrl-C, SIGTERM and SIGHUP to pay all debts, the newest first, before the run ends.
pub(crate) fn on_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            return;
        }
        eprintln!("\ninterrupted: cleaning up");
        // The main thread may add a debt meanwhile: go on until none is left.
        loop {
            let last = debts().pop();
            match last {
                Some((_, debt)) => pay(&debt),
                None => std::process::exit(130),
            }
        }
    })
    .context("cannot install a signal handler")
}

/// Nothing is started any more once the handler is at work.
pub(crate) fn refuse_if_interrupted() -> Result<()> {
    anyhow::ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
    Ok(())
}

/// Whatever the main thread met after an interruption is its echo: leave the end to the handler.
pub(crate) fn finish_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(100));
    }
}

fn pay(debt: &Debt) {
    match debt {
        Debt::Group(leader) => end_group(*leader),
        Debt::Server(data) => stop_server(data),
        Debt::Directory(path) => {
            // A process that is just ending may still create files: a second attempt sees the last of it.
            for _ in 0..20 {
                if fs::remove_dir_all(path).is_ok() || !path.exists() {
                    break;
                }
                sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Asks first, so that what the group started is cleaned up by those who started it.
fn end_group(leader: i32) {
    let group = Pid::from_raw(leader);
    for (signal, patience) in [(Signal::SIGINT, 20), (Signal::SIGTERM, 2), (Signal::SIGKILL, 1)] {
        if killpg(group, signal).is_err() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(patience);
        while Instant::now() < deadline {
            if killpg(group, None).is_err() || !running(leader) {
                return;
            }
            sleep(Duration::from_millis(50));
        }
    }
}

/// False also for a process that has ended and was not yet waited for.
fn running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z')
    })
}

/// The process that runs on this data directory, if its `postmaster.pid` tells the truth.
pub(crate) fn postmaster(data: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(data.join("postmaster.pid"))
        .ok()?
        .lines()
        .next()?
        .trim()
        .parse()
        .ok()?;
    let directory = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (directory == fs::canonicalize(data).ok()?).then_some(pid)
}

/// Stops a server whose data will not be needed any more.
pub(crate) fn stop_server(data: &Path) {
    let Some(pid) = postmaster(data) else { return };
    let process = Pid::from_raw(pid);
    for (signal, patience) in [(Signal::SIGQUIT, 8), (Signal::SIGKILL, 2)] {
        if kill(process, signal).is_err() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(patience);
        while Instant::now() < deadline {
            if !running(pid) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
}
