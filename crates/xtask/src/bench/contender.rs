//! A provider and a subscriber, connected by one of the two kinds of replication; everything else is the same.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cpu::Meter;
use super::session::Session;
use super::{Measure, ROWS_PER_TRANSACTION};
use crate::console::Step;
use crate::instance::Instance;
use crate::process::{self, ServerUser};
use crate::server::Prefix;

const DATABASE: &str = "bench";
const SCALE: &str = "10";

/// fsync and synchronous_commit keep their defaults: on.
const SETTINGS: &str = "autovacuum = off\nmax_wal_size = 4GB\ncheckpoint_timeout = 1h\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Native,
    PgHa,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::PgHa => "pg_ha",
        }
    }

    pub(super) fn named(name: &str) -> Result<Self> {
        match name {
            "native" => Ok(Self::Native),
            "pg_ha" => Ok(Self::PgHa),
            other => bail!("bench-peers knows native and pg_ha, not {other:?}"),
        }
    }
}

pub(super) struct Contender {
    pub(super) kind: Kind,
    provider: Instance,
    subscriber: Instance,
}

impl Contender {
    pub(super) fn prepare(kind: Kind, prefix: &Prefix, user: &ServerUser, directory: &Path) -> Result<Self> {
        let mut step = Step::begin(&format!("preparing a pair of servers for {}", kind.name()));
        let preload = match kind {
            Kind::Native => "",
            Kind::PgHa => "shared_preload_libraries = 'pg_ha'\n",
        };
        let mut make = |role: &str| -> Result<Instance> {
            step.progress(role);
            // The number it ends in becomes the node's.
            let number = if role == "provider" { 1 } else { 2 };
            let name = format!("{}_{role}{number}", kind.name());
            let mut server =
                Instance::create(prefix, user, directory, &name, &format!("{SETTINGS}{preload}"))?;
            server.start(7700)?;
            server.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
            process::answer(server.client("pgbench").args(["-i", "-q", "-s", SCALE, DATABASE]))?;
            // The last change of each backlog: when it is visible, all is.
            server.sql(DATABASE, "CREATE TABLE bench_marker (round integer PRIMARY KEY)")?;
            Ok(server)
        };
        let contender = Self {
            kind,
            provider: make("provider")?,
            subscriber: make("subscriber")?,
        };
        contender.connect()?;
        step.done("");
        Ok(contender)
    }

    fn connect(&self) -> Result<()> {
        let dsn = self.provider.dsn(DATABASE);
        match self.kind {
            Kind::Native => {
                self.provider.sql(
                    DATABASE,
                    "CREATE PUBLICATION bench FOR TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, \
                     pgbench_history, bench_marker",
                )?;
                self.subscriber.sql(
                    DATABASE,
                    &format!("CREATE SUBSCRIPTION bench CONNECTION '{dsn}' PUBLICATION bench WITH (copy_data = false)"),
                )?;
            }
            Kind::PgHa => {
                for server in [&self.provider, &self.subscriber] {
                    server.sql(DATABASE, "CREATE EXTENSION pg_ha")?;
                    server.sql(
                        DATABASE,
                        &format!(
                            "SELECT ha.node_create('{}', '{}')",
                            server.name,
                            server.dsn(DATABASE)
                        ),
                    )?;
                    server.sql(DATABASE, "SELECT ha.repset_add_tables('default', 'pgbench_*')")?;
                    server.sql(DATABASE, "SELECT ha.repset_add_table('default', 'bench_marker')")?;
                }
                self.subscriber
                    .sql(DATABASE, &format!("SELECT ha.sub_create('bench', '{dsn}')"))?;
            }
        }
        self.wait_for_stream(true)
    }

    /// Until the provider sends, or no longer sends.
    fn wait_for_stream(&self, flowing: bool) -> Result<()> {
        let compared = if flowing { ">" } else { "=" };
        self.provider.wait_for(
            DATABASE,
            if flowing {
                "the stream to start"
            } else {
                "the stream to stop"
            },
            &format!("SELECT count(*) {compared} 0 FROM pg_stat_replication"),
            Duration::from_secs(60),
        )
    }

    fn enable(&self, on: bool) -> Result<()> {
        let sql = match (self.kind, on) {
            (Kind::Native, true) => "ALTER SUBSCRIPTION bench ENABLE",
            (Kind::Native, false) => "ALTER SUBSCRIPTION bench DISABLE",
            (Kind::PgHa, true) => "SELECT ha.sub_enable('bench')",
            (Kind::PgHa, false) => "SELECT ha.sub_disable('bench')",
        };
        self.subscriber.sql(DATABASE, sql).map(drop)
    }

    pub(super) fn drain(&mut self, round: usize, transactions: usize, limit: Duration) -> Result<Measure> {
        let mut step = Step::begin(&format!("{}: making the backlog", self.kind.name()));
        self.enable(false)?;
        self.wait_for_stream(false)?;
        let clients = 4;
        let mut pgbench = self.provider.client("pgbench");
        // Only to have it sooner: what lands in the WAL is the same.
        pgbench.env("PGOPTIONS", "-c synchronous_commit=off");
        process::answer(pgbench.args([
            "-n",
            "-M",
            "prepared",
            "-c",
            &clients.to_string(),
            "-t",
            &(transactions / clients).to_string(),
            DATABASE,
        ]))?;
        self.provider
            .sql(DATABASE, &format!("INSERT INTO bench_marker VALUES ({round})"))?;
        // Neither shall write the other's dirty pages while it is measured.
        for server in [&self.provider, &self.subscriber] {
            server.sql(DATABASE, "CHECKPOINT")?;
        }
        step.progress("draining");
        let mut session = Session::open(&self.subscriber, DATABASE)?;
        let meter = Meter::start(&self.workers()?);
        self.enable(true)?;
        session
            .wait_for(
                &format!("SELECT EXISTS (SELECT FROM bench_marker WHERE round = {round})"),
                limit,
            )
            .context("the backlog did not drain")?;
        // From the sender's birth: how long a launcher idles before it starts a worker (up to five seconds for
        // native replication) is not the speed of the drain.
        let seconds = self
            .provider
            .sql(
                DATABASE,
                "SELECT extract(epoch FROM clock_timestamp() - min(backend_start)) FROM pg_stat_replication",
            )?
            .parse()
            .context("the stream ended before the backlog was drained")?;
        let sender_cpu = meter.used_by(&self.senders()?)?;
        let applier_cpu = meter.used_by(&self.appliers()?)?;
        step.erase();
        self.check()?;
        // The last feedback goes out before the next round's backlog is made.
        sleep(Duration::from_millis(500));
        let rows = (transactions / clients * clients * ROWS_PER_TRANSACTION) as f64;
        Ok(Measure {
            seconds,
            rows,
            sender_cpu,
            applier_cpu,
        })
    }

    fn workers(&self) -> Result<Vec<i32>> {
        let mut pids = self.senders()?;
        pids.extend(self.appliers()?);
        Ok(pids)
    }

    fn senders(&self) -> Result<Vec<i32>> {
        pids(
            &self
                .provider
                .sql(DATABASE, "SELECT pid FROM pg_stat_replication")?,
        )
    }

    fn appliers(&self) -> Result<Vec<i32>> {
        let sql = match self.kind {
            Kind::Native => "SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL",
            Kind::PgHa => {
                "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('pg_ha receiver', 'pg_ha applier')"
            }
        };
        pids(&self.subscriber.sql(DATABASE, sql)?)
    }

    /// A fast drain that loses rows is no result.
    fn check(&self) -> Result<()> {
        let question =
            "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts)";
        let (sent, applied) = (
            self.provider.sql(DATABASE, question)?,
            self.subscriber.sql(DATABASE, question)?,
        );
        if sent != applied {
            bail!(
                "{}: the subscriber has {applied}, the provider {sent}",
                self.kind.name()
            );
        }
        Ok(())
    }
}

fn pids(text: &str) -> Result<Vec<i32>> {
    text.lines()
        .map(|line| {
            line.parse()
                .with_context(|| format!("{line:?} is not a process id"))
        })
        .collect()
}
