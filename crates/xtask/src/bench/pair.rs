//! A provider and a subscriber, connected by one kind of replication; everything else is the same.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::kind::{self, Kind};
use super::{DATABASE, MARKER};
use crate::console::Step;
use crate::instance::Instance;
use crate::process::{self, ServerUser};
use crate::server::Prefix;

const SCALE: &str = "10";

/// fsync and synchronous_commit keep their defaults: on. What happens now and then of itself must not happen to one
/// of them only.
const SETTINGS: &str = "autovacuum = off\nmax_wal_size = 16GB\ncheckpoint_timeout = 1h\n";

pub(super) struct Pair {
    pub(super) kind: Kind,
    pub(super) provider: Instance,
    pub(super) subscriber: Instance,
}

impl Pair {
    /// Two servers; the subscriber without a database of its own.
    pub(super) fn start(
        kind: Kind,
        purpose: &str,
        prefix: &Prefix,
        user: &ServerUser,
        directory: &Path,
    ) -> Result<Self> {
        let make = |number: usize| -> Result<Instance> {
            // The number it ends in becomes the node's.
            let name = format!("{}_{purpose}{number}", kind.name());
            let settings = format!("{SETTINGS}{}", kind.settings());
            let mut server = Instance::create(prefix, user, directory, &name, &settings)?;
            if let Some(plugin) = kind.output_plugin()
                && server.knows("output_plugin_libraries")
            {
                server.configure(&format!("output_plugin_libraries = 'pgoutput, {plugin}'\n"))?;
            }
            server.start(7700)?;
            Ok(server)
        };
        Ok(Self {
            kind,
            provider: make(1)?,
            subscriber: make(2)?,
        })
    }

    /// A pair that streams, with the tables of all workloads.
    pub(super) fn streaming(
        kind: Kind,
        prefix: &Prefix,
        user: &ServerUser,
        directory: &Path,
    ) -> Result<Self> {
        let mut step = Step::begin(&format!("preparing a pair of servers for {}", kind.name()));
        let pair = Self::start(kind, "stream", prefix, user, directory)?;
        for server in [&pair.provider, &pair.subscriber] {
            step.progress(&server.name);
            server.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
            process::answer(server.client("pgbench").args(["-i", "-q", "-s", SCALE, DATABASE]))?;
            // The marker is the last change of each backlog: when it is visible, all is.
            server.sql(
                DATABASE,
                &format!(
                    "CREATE TABLE {MARKER} (id integer PRIMARY KEY); \
                     CREATE TABLE bench_inserts (id bigint PRIMARY KEY, part integer NOT NULL, filler text); \
                     CREATE TABLE bench_big (LIKE bench_inserts INCLUDING ALL); \
                     CREATE TABLE bench_latency (id integer PRIMARY KEY); \
                     CREATE TABLE bench_updates (LIKE bench_inserts INCLUDING ALL); \
                     INSERT INTO bench_updates SELECT i, 0, repeat('x', 40) FROM generate_series(1, {}) i",
                    super::drain::ROWS
                ),
            )?;
            server.sql(DATABASE, "VACUUM ANALYZE")?;
            kind.join(server, DATABASE)?;
        }
        kind.publish(&pair.provider, DATABASE, "bench", &kind::stream_tables())?;
        kind.publish_inserts(&pair.provider, "pgbench_history")?;
        kind.subscribe(&pair.subscriber, &pair.provider.dsn(DATABASE), "bench")?;
        pair.wait_for_stream(true)?;
        step.done("");
        Ok(pair)
    }

    /// Until the provider sends, or no longer sends.
    pub(super) fn wait_for_stream(&self, flowing: bool) -> Result<()> {
        let (compared, what) = if flowing {
            (">", "the stream to start")
        } else {
            ("=", "the stream to stop")
        };
        self.provider.wait_for(
            DATABASE,
            what,
            &format!("SELECT count(*) {compared} 0 FROM pg_stat_replication"),
            Duration::from_secs(60),
        )
    }

    pub(super) fn enable(&self, on: bool) -> Result<()> {
        self.subscriber.sql(DATABASE, self.kind.enable(on)).map(drop)
    }

    pub(super) fn senders(&self) -> Result<Vec<i32>> {
        pids(
            &self
                .provider
                .sql(DATABASE, "SELECT pid FROM pg_stat_replication")?,
        )
    }

    pub(super) fn appliers(&self) -> Result<Vec<i32>> {
        pids(&self.subscriber.sql(DATABASE, self.kind.appliers())?)
    }

    /// A fast replication that loses rows is no result.
    pub(super) fn check(&self, question: &str) -> Result<()> {
        let (sent, applied) = (
            self.provider.sql(DATABASE, question)?,
            self.subscriber.sql(DATABASE, question)?,
        );
        if sent != applied {
            bail!(
                "{}: the subscriber has {applied}, the provider {sent} ({question})",
                self.kind.name()
            );
        }
        Ok(())
    }
}

pub(super) fn pids(text: &str) -> Result<Vec<i32>> {
    text.lines()
        .map(|line| {
            line.parse()
                .with_context(|| format!("{line:?} is not a process id"))
        })
        .collect()
}
