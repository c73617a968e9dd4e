//! `cargo bench-peers`: how fast, and for how much processor time, a backlog of TPC-B transactions drains into a
//! subscriber, by native logical replication and by pg_ha, in turn and on the same machine. Ratios between the two
//! are what counts; seconds differ from machine to machine.

mod contender;
mod cpu;
mod report;
mod session;

use std::time::Duration;

use anyhow::{Result, bail};

use crate::arguments::Arguments;
use crate::console::{self, bold};
use crate::layout::RunDirectory;
use crate::process::ServerUser;
use crate::{extension, server};
use contender::{Contender, Kind};

const ROUNDS: usize = 3;
const TRANSACTIONS: usize = 60_000;
/// Three updates and an insert.
const ROWS_PER_TRANSACTION: usize = 4;

/// One drain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measure {
    pub(crate) seconds: f64,
    pub(crate) rows: f64,
    pub(crate) sender_cpu: f64,
    pub(crate) applier_cpu: f64,
}

impl Measure {
    pub(crate) fn rows_per_second(&self) -> f64 {
        self.rows / self.seconds
    }

    /// CPU seconds per million rows, which are microseconds per row.
    pub(crate) fn sender(&self) -> f64 {
        self.sender_cpu / self.rows * 1e6
    }

    pub(crate) fn applier(&self) -> f64 {
        self.applier_cpu / self.rows * 1e6
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let rounds = arguments.rounds.unwrap_or(ROUNDS);
    let transactions = arguments.transactions.unwrap_or(TRANSACTIONS);
    if rounds == 0 || transactions < 100 {
        bail!("at least one round of at least a hundred transactions");
    }
    let server = server::prepare(server::chosen(arguments)?)?;
    let user = ServerUser::find()?;
    let library = extension::build(&server, true)?;
    let directory = RunDirectory::create("bench", &user)?;
    let prefix = extension::private_copy(&server, &library, &directory.path.join("server"))?;

    let kinds = match arguments.only.as_deref() {
        None => vec![Kind::Native, Kind::PgHa],
        Some(name) => vec![Kind::named(name)?],
    };
    let mut contenders = Vec::new();
    for kind in kinds {
        contenders.push((
            Contender::prepare(kind, &prefix, &user, &directory.path)?,
            Vec::new(),
        ));
    }
    say!(
        "{}",
        bold(&format!(
            "drain of {transactions} TPC-B transactions, {rounds} rounds in turn"
        ))
    );
    for round in 1..=rounds {
        for (contender, measures) in &mut contenders {
            let measure = contender.drain(round, transactions, Duration::from_secs(900))?;
            say!(
                "  round {round}  {:7} {:>8.0} rows/s   sender {:5.2} us/row   applier {:5.2} us/row",
                contender.kind.name(),
                measure.rows_per_second(),
                measure.sender(),
                measure.applier()
            );
            measures.push(measure);
        }
    }
    let results: Vec<(Kind, Vec<Measure>)> = contenders
        .into_iter()
        .map(|(contender, measures)| (contender.kind, measures))
        .collect();
    let (header, rows) = report::table(&results);
    say!("");
    for line in console::table(&header, &rows, &[1, 2, 3, 4]) {
        say!("{line}");
    }
    let machine = report::machine(&server.version)?;
    say!("\n{machine}");
    if arguments.write {
        let path = report::write(&header, &rows, &machine, rounds, transactions)?;
        say!("written to {}", path.display());
    }
    Ok(())
}
