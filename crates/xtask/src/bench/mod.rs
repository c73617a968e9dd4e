//! `cargo bench-peers`: what replication costs and how fast it is, by native logical replication, by pglogical and by
//! pg_ha, in turn and on the same machine. Ratios are what counts; seconds differ from machine to machine.
//!
//! `--parts drain,inserts,…` runs some of the workloads, `--only native,pg_ha` compares some of the kinds, `--rounds N`,
//! `--write` puts the tables into docs/benchmarks.md.

mod copy;
mod cpu;
mod drain;
mod kind;
mod large;
mod latency;
mod memory;
mod pair;
mod report;
mod session;

use std::time::Duration;

use anyhow::{Result, bail};

use crate::arguments::Arguments;
use crate::console::{self, bold};
use crate::layout::RunDirectory;
use crate::process::ServerUser;
use crate::{extension, prerequisites, server};
use copy::What;
use drain::Backlog;
use kind::Kind;
use pair::Pair;

const DATABASE: &str = "bench";
const MARKER: &str = "bench_marker";
const ROUNDS: usize = 3;
const TRANSACTIONS: usize = 60_000;
/// After so long without the rows something is broken.
const LIMIT: Duration = Duration::from_secs(900);

/// What one run of a workload found, in the order of the workload's columns.
#[derive(Debug, Clone, PartialEq)]
struct Measure(Vec<f64>);

/// One column of a table.
#[derive(Debug, Clone, Copy)]
struct Column {
    name: &'static str,
    digits: usize,
}

const fn column(name: &'static str, digits: usize) -> Column {
    Column { name, digits }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Workload {
    Drain(Backlog),
    Large,
    Latency,
    Copy(What),
}

impl Workload {
    fn all(transactions: usize) -> [(&'static str, Workload); 7] {
        [
            ("drain", Workload::Drain(Backlog::Tpcb { transactions })),
            ("inserts", Workload::Drain(Backlog::Inserts)),
            ("updates", Workload::Drain(Backlog::Updates)),
            ("large", Workload::Large),
            ("latency", Workload::Latency),
            ("copy", Workload::Copy(What::Big)),
            ("copy_many", Workload::Copy(What::Many)),
        ]
    }

    fn title(self) -> String {
        match self {
            Workload::Drain(Backlog::Tpcb { transactions }) => {
                format!("Draining {transactions} TPC-B transactions (4 row changes each)")
            }
            Workload::Drain(Backlog::Inserts) => {
                "Draining 200,000 inserts, each a transaction of its own".to_owned()
            }
            Workload::Drain(Backlog::Updates) => {
                "Draining 200,000 updates, each a transaction of its own".to_owned()
            }
            Workload::Large => "One transaction of 1,000,000 inserts, from its begin to visible".to_owned(),
            Workload::Latency => {
                "From an acknowledged commit to visible, at 100 transactions a second".to_owned()
            }
            Workload::Copy(What::Big) => "Initial copy of one table of 5,000,000 rows".to_owned(),
            Workload::Copy(What::Many) => "Initial copy of 200 tables of 1,000 rows".to_owned(),
        }
    }

    fn columns(self) -> &'static [Column] {
        const DRAIN: &[Column] = &[
            column("rows/s", 0),
            column("sender us/row", 2),
            column("applier us/row", 2),
            column("sender MB", 1),
            column("applier MB", 1),
        ];
        const LARGE: &[Column] = &[
            column("seconds", 2),
            column("sender us/row", 2),
            column("applier us/row", 2),
            column("sender MB", 1),
            column("applier MB", 1),
        ];
        const LATENCY: &[Column] = &[column("p50 ms", 3), column("p99 ms", 3)];
        const COPY: &[Column] = &[
            column("seconds", 2),
            column("rows/s", 0),
            column("both servers us/row", 2),
        ];
        match self {
            Workload::Drain(_) => DRAIN,
            Workload::Large => LARGE,
            Workload::Latency => LATENCY,
            Workload::Copy(_) => COPY,
        }
    }

    fn run(self, pair: &Pair, round: usize) -> Result<Measure> {
        match self {
            Workload::Drain(backlog) => drain::run(pair, backlog, round),
            Workload::Large => large::run(pair, round),
            Workload::Latency => latency::run(pair, round),
            Workload::Copy(what) => copy::run(pair, what, round),
        }
    }
}

/// The results of one workload: for each kind its rounds.
struct Results {
    workload: Workload,
    of: Vec<(Kind, Vec<Measure>)>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let rounds = arguments.rounds.unwrap_or(ROUNDS);
    let transactions = arguments.transactions.unwrap_or(TRANSACTIONS);
    if rounds == 0 || transactions < 100 {
        bail!("at least one round of at least a hundred transactions");
    }
    let workloads = chosen(arguments.parts.as_deref(), transactions)?;
    let server = server::prepare(server::chosen(arguments)?)?;
    let kinds = kind::chosen(arguments.only.as_deref(), server.major.number())?;
    if kinds.contains(&Kind::Pglogical) {
        prerequisites::install(&[format!("postgresql-{}-pglogical", server.major)])?;
    }
    let user = ServerUser::find()?;
    let library = extension::build(&server, true)?;
    let directory = RunDirectory::create("bench", &user)?;
    let prefix = extension::private_copy(&server, &library, &directory.path.join("server"))?;

    let mut all = Vec::new();
    let (copies, streams): (Vec<Workload>, Vec<Workload>) = workloads
        .into_iter()
        .partition(|workload| matches!(workload, Workload::Copy(_)));
    if !streams.is_empty() {
        let pairs = pairs(&kinds, |kind| {
            Pair::streaming(kind, &prefix, &user, &directory.path)
        })?;
        for workload in streams {
            all.push(compare(workload, &pairs, rounds)?);
        }
    }
    for workload in copies {
        if let Workload::Copy(what) = workload {
            let pairs = pairs(&kinds, |kind| {
                copy::prepare(kind, what, &prefix, &user, &directory.path)
            })?;
            all.push(compare(workload, &pairs, rounds)?);
        }
    }
    let machine = report::machine(&server.version)?;
    say!("\n{machine}");
    if arguments.write {
        let path = report::write(&all, &machine)?;
        say!("written to {}", path.display());
    }
    Ok(())
}

fn chosen(names: Option<&[String]>, transactions: usize) -> Result<Vec<Workload>> {
    let all = Workload::all(transactions);
    let Some(names) = names else {
        return Ok(all.into_iter().map(|(_, workload)| workload).collect());
    };
    names
        .iter()
        .map(|name| match all.iter().find(|(known, _)| known == name) {
            Some((_, workload)) => Ok(*workload),
            None => bail!(
                "no workload {name:?}; there are {}",
                all.map(|(known, _)| known).join(", ")
            ),
        })
        .collect()
}

fn pairs(kinds: &[Kind], make: impl Fn(Kind) -> Result<Pair>) -> Result<Vec<Pair>> {
    kinds.iter().map(|kind| make(*kind)).collect()
}

/// All kinds in turn, so that what happens to the machine meanwhile happens to all of them.
fn compare(workload: Workload, pairs: &[Pair], rounds: usize) -> Result<Results> {
    say!(
        "{}",
        bold(&format!("{}, {rounds} rounds in turn", workload.title()))
    );
    let mut of: Vec<(Kind, Vec<Measure>)> = pairs.iter().map(|pair| (pair.kind, Vec::new())).collect();
    for round in 1..=rounds {
        for (pair, (kind, measures)) in pairs.iter().zip(&mut of) {
            let measure = workload.run(pair, round)?;
            let cells: Vec<String> = workload
                .columns()
                .iter()
                .zip(&measure.0)
                .map(|(column, value)| format!("{} {value:.*}", column.name, column.digits))
                .collect();
            say!("  round {round}  {:9} {}", kind.name(), cells.join("   "));
            measures.push(measure);
        }
    }
    let results = Results { workload, of };
    let (header, rows) = report::table(&results);
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let right: Vec<usize> = (1..header.len()).collect();
    for line in console::table(&header, &rows, &right) {
        say!("{line}");
    }
    say!("");
    Ok(results)
}
