//! A client that does random things to the tables, in transactions of all sizes.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use super::{NUMBERS_OF_A_NODE, Table};
use crate::node::Node;
use crate::sql::{self, Session};
use crate::wait::{self, PATIENCE, Probe};

/// The numbers of one writer: few, so that it meets its own rows again and again.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(Range<u64>);

impl Numbers {
    const OF_A_WRITER: u64 = 1_000;
    const USED: u64 = 60;

    /// Of the writer of that number, from 0, of a node.
    pub(crate) fn of(node: &Node, writer: u64) -> Self {
        let node = u64::try_from(node.number).unwrap_or(0);
        let from = node * NUMBERS_OF_A_NODE + writer * Self::OF_A_WRITER;
        Self(from..from + Self::USED)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) committed: u64,
    pub(crate) rolled_back: u64,
    /// Statements that no constraint explains.
    errors: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
    resting: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    thread: JoinHandle<Outcome>,
    pub(crate) label: String,
}

struct Job {
    socket_directory: PathBuf,
    port: u16,
    database: String,
    label: String,
    tables: Vec<Table>,
    numbers: Range<u64>,
    alone: bool,
    limit: Option<u64>,
    random: fastrand::Rng,
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
    resting: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

/// How a transaction ended.
enum End {
    Committed,
    RolledBack,
    /// With its connection.
    Lost,
    Wrong(String),
}

impl Writer {
    /// Writes until stopped, or until `limit` transactions are committed. `alone`: no other node writes to these
    /// tables, so that they may also be truncated.
    pub(crate) fn start(
        node: &Node,
        database: &str,
        tables: &[Table],
        numbers: Numbers,
        alone: bool,
        seed: u64,
        limit: Option<u64>,
    ) -> Self {
        let flag = || Arc::new(AtomicBool::new(false));
        let (stop, pause, resting) = (flag(), flag(), flag());
        let committed = Arc::new(AtomicU64::new(0));
        let job = Job {
            socket_directory: node.directory.clone(),
            port: node.port,
            database: database.to_owned(),
            label: node.name.clone(),
            tables: tables.to_vec(),
            random: fastrand::Rng::with_seed(seed ^ numbers.0.start),
            numbers: numbers.0,
            alone,
            limit,
            stop: Arc::clone(&stop),
            pause: Arc::clone(&pause),
            resting: Arc::clone(&resting),
            committed: Arc::clone(&committed),
        };
        Self {
            stop,
            pause,
            resting,
            committed,
            thread: thread::spawn(move || job.run()),
            label: node.name.clone(),
        }
    }

    /// Committed so far.
    pub(crate) fn progress(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Returns when no transaction is running; none begins until `resume`.
    pub(crate) fn pause(&self) -> Result<()> {
        self.pause.store(true, Ordering::Relaxed);
        wait::until(&format!("the writer on {} rests", self.label), PATIENCE, || {
            let rests = self.resting.load(Ordering::Relaxed) || self.is_done();
            Ok(Probe::when(rests, "it is in a transaction"))
        })
    }

    pub(crate) fn resume(&self) {
        self.pause.store(false, Ordering::Relaxed);
    }

    pub(crate) fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    pub(crate) fn stop(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits for the limit given at the start.
    pub(crate) fn finish(self) -> Result<Outcome> {
        let label = self.label;
        let outcome = self
            .thread
            .join()
            .map_err(|_| anyhow!("the writer on {label} panicked"))?;
        match outcome.errors.first() {
            Some(error) => bail!(
                "the writer on {label} got {} errors that no constraint explains, the first: {error}",
                outcome.errors.len()
            ),
            None => Ok(outcome),
        }
    }
}

const RECONNECT_AFTER: Duration = Duration::from_millis(50);

impl Job {
    fn run(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let mut session: Option<Session> = None;
        while !self.stop.load(Ordering::Relaxed) && !crate::cleanup::interrupted() {
            if self.limit.is_some_and(|limit| outcome.committed >= limit) || outcome.errors.len() >= 5 {
                break;
            }
            if self.pause.load(Ordering::Relaxed) {
                self.resting.store(true, Ordering::Relaxed);
                wait::pause(Duration::from_millis(5));
                continue;
            }
            self.resting.store(false, Ordering::Relaxed);
            let Some(open) = &mut session else {
                session = self.connect().ok();
                if session.is_none() {
                    wait::pause(RECONNECT_AFTER);
                }
                continue;
            };
            match self.transaction(open) {
                End::Committed => {
                    outcome.committed += 1;
                    self.committed.store(outcome.committed, Ordering::Relaxed);
                }
                End::RolledBack => outcome.rolled_back += 1,
                End::Lost => session = None,
                End::Wrong(error) => {
                    outcome.errors.push(error);
                    session = None;
                }
            }
        }
        outcome
    }

    /// What is lost with the server is lost to everybody, so that nothing needs to wait for its disk.
    fn connect(&self) -> Result<Session> {
        let mut session = Session::connect(&self.socket_directory, self.port, &self.database, &self.label)?;
        session.exec("SET synchronous_commit = off")?;
        Ok(session)
    }

    fn transaction(&mut self, session: &mut Session) -> End {
        let statements = match self.random.u8(0..60) {
            0 => self.random.usize(60..150),
            1..=9 => self.random.usize(5..20),
            _ => self.random.usize(1..5),
        };
        if let Err(error) = session.exec("BEGIN") {
            return judge(&error).unwrap_or(End::RolledBack);
        }
        let mut savepoints = 0_u32;
        for _ in 0..statements {
            if self.random.u8(0..5) == 0 {
                savepoints += 1;
                if let Err(error) = session.exec(&format!("SAVEPOINT s{savepoints}")) {
                    return self.give_up(session, &error);
                }
            }
            let statement = self.statement();
            let mut next = session.exec(&statement);
            if savepoints > 0 {
                if let Err(error) = &next
                    && judge(error).is_none()
                {
                    next = session.exec(&format!("ROLLBACK TO s{savepoints}"));
                } else if next.is_ok() {
                    let end = match self.random.u8(0..6) {
                        0 => format!("ROLLBACK TO s{savepoints}"),
                        1 => format!("RELEASE s{savepoints}"),
                        _ => String::new(),
                    };
                    savepoints -= u32::from(end.starts_with("RELEASE"));
                    next = session.exec(&end);
                }
            }
            if let Err(error) = next {
                return self.give_up(session, &error);
            }
        }
        let ending = if self.random.u8(0..12) == 0 {
            "ROLLBACK"
        } else {
            "COMMIT"
        };
        match session.exec(ending) {
            Ok(()) if ending == "COMMIT" => End::Committed,
            Ok(()) => End::RolledBack,
            Err(error) => judge(&error).unwrap_or(End::RolledBack),
        }
    }

    fn give_up(&self, session: &mut Session, error: &anyhow::Error) -> End {
        let end = judge(error);
        match session.exec("ROLLBACK") {
            Ok(()) => end.unwrap_or(End::RolledBack),
            Err(_) => match end {
                Some(End::Wrong(error)) => End::Wrong(error),
                _ => End::Lost,
            },
        }
    }

    fn number(&mut self) -> u64 {
        self.random.u64(self.numbers.clone())
    }

    fn statement(&mut self) -> String {
        let place = self.random.usize(0..self.tables.len());
        let table = self.tables[place];
        let does = table.does;
        let special: Vec<&str> = table
            .special
            .iter()
            .copied()
            .filter(|statement| self.alone || !statement.starts_with("TRUNCATE"))
            .collect();
        match self.random.u8(0..100) {
            0..=29 if does.update => self.update(&table),
            30..=44 if does.delete => self.delete(&table),
            45..=54 if does.rekey => self.rekey(&table),
            55..=69 => match self.random.choice(&special) {
                Some(statement) => {
                    let (a, b) = (self.number(), self.number());
                    statement
                        .replace("{a}", &a.to_string())
                        .replace("{b}", &b.to_string())
                        .replace("{from}", &self.numbers.start.to_string())
                        .replace("{to}", &(self.numbers.end - 1).to_string())
                }
                None => self.insert(&table),
            },
            70 if does.truncate && self.alone && self.random.u8(0..4) == 0 => {
                format!("TRUNCATE {}", table.name)
            }
            _ => self.insert(&table),
        }
    }

    fn insert(&mut self, table: &Table) -> String {
        let written: Vec<_> = table
            .columns
            .iter()
            .filter(|(_, kind)| kind.is_written())
            .collect();
        let names: Vec<&str> = written.iter().map(|(name, _)| *name).collect();
        let rows: Vec<String> = (0..self.random.usize(1..4))
            .map(|_| {
                let number = self.number();
                let values: Vec<String> = written
                    .iter()
                    .map(|(_, kind)| kind.literal(number, &self.numbers, &mut self.random))
                    .collect();
                format!("({})", values.join(", "))
            })
            .collect();
        format!(
            "INSERT INTO {} ({}) VALUES {}{}",
            table.name,
            names.join(", "),
            rows.join(", "),
            if table.does.on_conflict {
                " ON CONFLICT DO NOTHING"
            } else {
                ""
            }
        )
    }

    /// One row, now and then all of the writer's.
    fn which(&mut self, table: &Table) -> String {
        let number = table.number;
        if self.random.u8(0..20) == 0 {
            let (from, to) = (self.numbers.start, self.numbers.end - 1);
            return format!("{number} BETWEEN {from} AND {to}");
        }
        format!("{number} = {}", self.number())
    }

    fn update(&mut self, table: &Table) -> String {
        let mut free: Vec<_> = table
            .columns
            .iter()
            .filter(|(_, kind)| kind.is_written() && !kind.is_identity())
            .collect();
        self.random.shuffle(&mut free);
        let count = self.random.usize(0..=free.len());
        free.truncate(count.max(1));
        if free.is_empty() {
            return self.insert(table);
        }
        let number = self.number();
        let set: Vec<String> = free
            .iter()
            .map(|(name, kind)| {
                format!(
                    "{name} = {}",
                    kind.literal(number, &self.numbers, &mut self.random)
                )
            })
            .collect();
        format!(
            "UPDATE {} SET {} WHERE {}",
            table.name,
            set.join(", "),
            self.which(table)
        )
    }

    fn delete(&mut self, table: &Table) -> String {
        format!("DELETE FROM {} WHERE {}", table.name, self.which(table))
    }

    fn rekey(&mut self, table: &Table) -> String {
        let (old, new) = (self.number(), self.number());
        let set: Vec<String> = table
            .columns
            .iter()
            .filter(|(_, kind)| kind.is_identity())
            .map(|(name, kind)| format!("{name} = {}", kind.literal(new, &self.numbers, &mut self.random)))
            .collect();
        if set.is_empty() {
            return self.update(table);
        }
        let (name, number) = (table.name, table.number);
        format!(
            "UPDATE {name} SET {} WHERE {number} = {old} AND NOT EXISTS (SELECT FROM {name} WHERE {number} = {new})",
            set.join(", ")
        )
    }
}

/// None: a constraint was violated, or writers met in a deadlock: the transaction is over, and that is all.
fn judge(error: &anyhow::Error) -> Option<End> {
    let Some(refusal) = sql::refusal(error) else {
        return Some(End::Lost);
    };
    if refusal.sqlstate == "55006" && refusal.message.contains("pending trigger events") {
        return None;
    }
    match refusal.sqlstate.get(..2) {
        Some("23" | "40") => None,
        _ if refusal.sqlstate.starts_with("57P") || refusal.sqlstate.starts_with("08") => Some(End::Lost),
        _ => Some(End::Wrong(
            format!("{refusal}\n{error:#}").chars().take(2000).collect(),
        )),
    }
}
