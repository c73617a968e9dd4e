//! What a run leaves on the machine while it works, and how it goes away again.
//!
//! Every server process, mount, namespace and directory is registered here for as long as it exists. Normally
//! its owner removes it (`Drop`) and forgets the entry. Ctrl-C, and a scenario that hangs in a call to a server,
//! are handled from other threads: they find the entries here. Processes are ended by their id only, together
//! with the children they have at that moment.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::process;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Resource {
    /// A postmaster (or a load generator), with whatever children it has.
    Process(u32),
    Mount(PathBuf),
    Namespace(String),
    Directory(PathBuf),
}

struct Entry {
    ticket: u64,
    scenario: String,
    resource: Resource,
}

static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Forgets its entry when dropped; removing the resource itself is the owner's work.
#[derive(Debug)]
pub(crate) struct Registration(u64);

impl Drop for Registration {
    fn drop(&mut self) {
        entries().retain(|entry| entry.ticket != self.0);
    }
}

fn entries() -> MutexGuard<'static, Vec<Entry>> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn register(scenario: &str, resource: Resource) -> Registration {
    let ticket = NEXT_TICKET.fetch_add(1, Ordering::Relaxed);
    entries().push(Entry {
        ticket,
        scenario: scenario.to_owned(),
        resource,
    });
    Registration(ticket)
}

pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

pub(crate) fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Ends the processes of one scenario, so that calls which wait for them return with an error.
pub(crate) fn end_processes_of(scenario: &str) {
    let doomed: Vec<u32> = entries()
        .iter()
        .filter(|entry| entry.scenario == scenario)
        .filter_map(|entry| match entry.resource {
            Resource::Process(pid) => Some(pid),
            _ => None,
        })
        .collect();
    for pid in doomed {
        process::kill_tree(pid);
    }
}

/// Removes everything that is still registered: processes first, then what they held.
pub(crate) fn release_everything(keep_directories: bool) {
    let mut left: Vec<Resource> = entries().drain(..).map(|entry| entry.resource).collect();
    left.sort();
    for resource in left {
        release(&resource, keep_directories);
    }
}

pub(crate) fn release(resource: &Resource, keep_directories: bool) {
    match resource {
        Resource::Process(pid) => drop(process::kill_tree(*pid)),
        Resource::Mount(path) => quietly(Command::new("umount").arg("-l").arg(path)),
        Resource::Namespace(name) => quietly(Command::new("ip").args(["netns", "del", name])),
        Resource::Directory(path) if !keep_directories => remove_directory(path),
        Resource::Directory(_) => {}
    }
}

/// A server that was killed leaves its segment of shared memory, and a machine has room for a few thousand only.
fn remove_shared_memory(path: &Path, depth: u8) {
    if let Ok(text) = std::fs::read_to_string(path.join("postmaster.pid")) {
        // The last number of the line with the key.
        let id = text
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1));
        if let Some(id) = id.filter(|id| id.bytes().all(|byte| byte.is_ascii_digit())) {
            quietly(Command::new("ipcrm").args(["-m", id]));
        }
        return;
    }
    if depth > 0 && !path.join("PG_VERSION").exists() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_shared_memory(&entry.path(), depth - 1);
            }
        }
    }
}

/// Best effort: there is nobody left who could do anything about a failure here.
fn remove_directory(path: &Path) {
    remove_shared_memory(path, 4);
    if let Err(error) = std::fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        quietly(Command::new("rm").arg("-rf").arg(path));
    }
}

fn quietly(command: &mut Command) {
    use std::process::Stdio;
    let _outcome = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}
