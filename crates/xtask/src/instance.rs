//! One running PostgreSQL server of ours, in a run directory, on a free loopback port. psql is how we talk to it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cleanup::{self, Debt, Owed};
use crate::process::{self, ServerUser};
use crate::server::Prefix;

/// What a node needs, and what makes three servers bearable on one small machine.
const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
wal_level = logical
track_commit_timestamp = on
max_replication_slots = 20
max_wal_senders = 20
max_worker_processes = 40
max_connections = 100
shared_buffers = 128MB
max_wal_size = 2GB
hot_standby = on
log_line_prefix = '%m [%p] %b '
log_checkpoints = off
lc_messages = 'C'
timezone = 'UTC'
";

pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) data: PathBuf,
    directory: PathBuf,
    prefix: Prefix,
    user: ServerUser,
    running: Option<Owed>,
}

impl Instance {
    /// Makes a new server under `directory`; `settings` are added to what every node needs.
    pub(crate) fn create(
        prefix: &Prefix,
        user: &ServerUser,
        directory: &Path,
        name: &str,
        settings: &str,
    ) -> Result<Self> {
        let data = directory.join(name);
        process::answer(
            user.command(prefix.program("initdb"))
                .args([
                    "--no-sync",
                    "--auth=trust",
                    "--username=postgres",
                    "--encoding=UTF8",
                    "--locale=C",
                    "-D",
                ])
                .arg(&data),
        )?;
        let mut instance = Self {
            name: name.to_owned(),
            port: 0,
            data,
            directory: directory.to_owned(),
            prefix: prefix.clone(),
            user: user.clone(),
            running: None,
        };
        let mut all = format!("{SETTINGS}unix_socket_directories = '{}'\n", directory.display());
        // A security setting of recent minor releases; unknown to older ones, which then would not start.
        if instance.knows("output_plugin_libraries") {
            all.push_str("output_plugin_libraries = 'pgoutput, test_decoding, pg_ha'\n");
        }
        all.push_str(settings);
        instance.configure(&all)?;
        Ok(instance)
    }

    /// Whether this server has a setting of that name.
    pub(crate) fn knows(&self, setting: &str) -> bool {
        process::succeeds(
            self.user
                .command(self.prefix.program("postgres"))
                .arg("-C")
                .arg(setting)
                .arg("-D")
                .arg(&self.data),
        )
    }

    pub(crate) fn configure(&mut self, settings: &str) -> Result<()> {
        let path = self.data.join("postgresql.conf");
        let text = fs::read_to_string(&path)?;
        fs::write(&path, format!("{text}\n{settings}"))?;
        Ok(())
    }

    /// Starts on the first free port from `from` on, and on another one when somebody was faster.
    pub(crate) fn start(&mut self, from: u16) -> Result<()> {
        let log = self.log();
        let mut from = from;
        let mut last = None;
        for _ in 0..4 {
            self.port = free_port(from)?;
            from = self.port + 1;
            // Owed before it runs: an interrupted start leaves a server too.
            let owed = cleanup::owe(Debt::Server(self.data.clone()));
            let started = process::answer(
                self.user
                    .command(self.prefix.program("pg_ctl"))
                    .args(["start", "--wait", "--timeout=60", "--silent"])
                    .arg("--options")
                    .arg(format!("-p {}", self.port))
                    .arg("--log")
                    .arg(&log)
                    .arg("-D")
                    .arg(&self.data),
            );
            match started {
                Ok(_) => {
                    self.running = Some(owed);
                    return Ok(());
                }
                Err(error) if process::tail(&log, 20).contains("Address already in use") => {
                    last = Some(error)
                }
                Err(error) => {
                    return Err(error.context(format!(
                        "server {} did not start; the end of its log:\n{}",
                        self.name,
                        process::tail(&log, 20)
                    )));
                }
            }
        }
        Err(last
            .context("no attempt was made")?
            .context(format!("server {} found no free port", self.name)))
    }

    /// Leaves the server running after us.
    pub(crate) fn keep(mut self) {
        if let Some(owed) = self.running.take() {
            owed.forgive();
        }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    /// A client program with this server as its target.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = self.user.command(self.prefix.program(program));
        command
            .env("PGHOST", &self.directory)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGAPPNAME", "xtask");
        command
    }

    /// Runs SQL and returns its rows, `|` between columns.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> Result<String> {
        process::answer(self.client("psql").args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
            "-c",
            sql,
        ]))
        .with_context(|| format!("on {}", self.name))
    }

    /// Asks until the answer is `t`.
    pub(crate) fn wait_for(&self, database: &str, what: &str, question: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.sql(database, question);
            if answer.as_ref().is_ok_and(|text| text == "t") {
                return Ok(());
            }
            if Instant::now() > deadline {
                let found = answer.map_or_else(|error| format!("{error:#}"), |text| format!("{text:?}"));
                bail!(
                    "waited {} s on {} for {what}; last answer: {found}\n{}",
                    limit.as_secs(),
                    self.name,
                    process::tail(&self.log(), 10)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn dsn(&self, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} dbname={database} user=postgres",
            self.port
        )
    }
}

/// The first port from `from` on that nobody listens on, on any address.
pub(crate) fn free_port(from: u16) -> Result<u16> {
    (from..from.saturating_add(500))
        .find(|port| {
            TcpListener::bind(("127.0.0.1", *port)).is_ok() && TcpListener::bind(("0.0.0.0", *port)).is_ok()
        })
        .with_context(|| format!("no free port from {from} on"))
}
