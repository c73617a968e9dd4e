//! One PostgreSQL server: its directory, its processes, its log.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::cleanup::{self, Registration, Resource};
use crate::install::{Install, run};
use crate::sql::{Row, Session};
use crate::wait::{self, PATIENCE, Probe};
use crate::{process, template};

/// What a scenario may choose before a node is made.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeSpec {
    pub(crate) namespace: Option<String>,
    /// Runs the other major version (`Need::OtherVersion`).
    pub(crate) other_version: bool,
    /// The address that other nodes reach it at.
    pub(crate) address: String,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) environment: Vec<(String, String)>,
    /// Replaces pg_hba.conf.
    pub(crate) hba: Option<String>,
    /// Further files of the data directory, readable by the server alone.
    pub(crate) files: Vec<(String, String)>,
    /// Put the data directory on a file system of its own, of this many megabytes.
    pub(crate) disk_megabytes: Option<u32>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    pid: u32,
    _registration: Registration,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    frozen: bool,
    settings: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(crate) struct Node {
    /// Number in the cluster, from 1; also the node id that pg_ha gives it.
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) directory: PathBuf,
    pub(crate) namespace: Option<String>,
    pub(crate) install: Arc<Install>,
    scenario: String,
    environment: Vec<(String, String)>,
    state: Mutex<State>,
    mounts: Mutex<Vec<(PathBuf, Registration)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Fast,
    Immediate,
}

impl Node {
    pub(crate) fn create(
        install: &Arc<Install>,
        scenario: &str,
        directory: &Path,
        number: usize,
        spec: NodeSpec,
    ) -> Result<Self> {
        let install = match &install.other {
            Some(other) if spec.other_version => other,
            None if spec.other_version => bail!("there is no server of another version"),
            _ => install,
        };
        let node = Self {
            number,
            name: format!("n{number}"),
            address: spec.address,
            port: free_port()?,
            directory: directory.to_owned(),
            namespace: spec.namespace,
            install: Arc::clone(install),
            scenario: scenario.to_owned(),
            environment: spec.environment,
            state: Mutex::default(),
            mounts: Mutex::new(Vec::new()),
        };
        install.private_directory(&node.directory)?;
        if node.socket_file_length() > 107 {
            bail!(
                "{} is too long a path for a unix socket: set TMPDIR to a shorter one",
                node.directory.display()
            );
        }
        if let Some(megabytes) = spec.disk_megabytes {
            node.mount_small_disk(&node.data(), megabytes)?;
        }
        template::copy_to(install, &node.data())?;
        node.write_file("pg_hba.conf", spec.hba.as_deref().unwrap_or(TRUST_EVERYBODY))?;
        for (name, text) in &spec.files {
            node.write_file(name, text)?;
        }
        let own = "include 'pg_ha_test.conf'\n";
        let main = node.data().join("postgresql.conf");
        let text = fs::read_to_string(&main)? + own;
        node.write_file("postgresql.conf", &text)?;
        node.configure(&node.usual_settings())?;
        let chosen: Vec<(&str, &str)> = spec
            .settings
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        node.configure(&chosen)?;
        Ok(node)
    }

    fn usual_settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("port", self.port.to_string()),
            (
                "listen_addresses",
                if self.namespace.is_some() {
                    "*"
                } else {
                    "127.0.0.1"
                }
                .to_owned(),
            ),
            (
                "unix_socket_directories",
                self.install.inside(&self.directory).display().to_string(),
            ),
            ("shared_buffers", "32MB".to_owned()),
            ("max_connections", "60".to_owned()),
            ("wal_level", "logical".to_owned()),
            ("track_commit_timestamp", "on".to_owned()),
            ("max_wal_senders", "20".to_owned()),
            ("max_replication_slots", "20".to_owned()),
            ("max_worker_processes", "40".to_owned()),
            ("log_line_prefix", "%m [%p] %b ".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("timezone", "UTC".to_owned()),
        ];
        if self.install.knows("output_plugin_libraries") {
            settings.push((
                "output_plugin_libraries",
                "pgoutput, test_decoding, pg_ha".to_owned(),
            ));
        }
        if self.install.knows("max_active_replication_origins") {
            settings.push(("max_active_replication_origins", "20".to_owned()));
        }
        if self.install.has_extension {
            settings.push(("shared_preload_libraries", "pg_ha".to_owned()));
        }
        settings
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn socket_file_length(&self) -> usize {
        self.directory
            .join(format!(".s.PGSQL.{}", self.port))
            .as_os_str()
            .len()
    }

    /// A file system of a few megabytes that belongs to the server and lives as long as the node.
    pub(crate) fn mount_small_disk(&self, path: &Path, megabytes: u32) -> Result<()> {
        self.install.private_directory(path)?;
        let options = format!("size={megabytes}m,{}", self.install.mount_owner());
        run(std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "pgha"])
            .arg(path))?;
        let registration = cleanup::register(&self.scenario, Resource::Mount(path.to_owned()));
        self.mounts().push((path.to_owned(), registration));
        Ok(())
    }

    fn mounts(&self) -> MutexGuard<'_, Vec<(PathBuf, Registration)>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a file of the data directory, readable by the server and by nobody else.
    pub(crate) fn write_file(&self, name: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.data().join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        self.install.hand_over(&path)
    }

    /// Sets configuration parameters; they take effect at the next start or reload.
    pub(crate) fn configure<K: AsRef<str>, V: AsRef<str>>(&self, settings: &[(K, V)]) -> Result<()> {
        let mut text = String::new();
        {
            let mut state = self.state();
            for (name, value) in settings {
                state
                    .settings
                    .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
            }
            for (name, value) in &state.settings {
                text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
            }
        }
        self.write_file("pg_ha_test.conf", &text)
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        match &self.state().running {
            Some(running) => Ok(running.pid),
            None => bail!("{} does not run", self.name),
        }
    }

    /// What the server has used of the processors since it started.
    pub(crate) fn processor_time(&self) -> Result<std::time::Duration> {
        Ok(process::processor_time(self.pid()?))
    }

    /// What its walsenders and pg_ha's workers that run now have used.
    pub(crate) fn replication_time(&self) -> Result<std::time::Duration> {
        Ok(process::replication_time(self.pid()?))
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.state().frozen
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state().running.is_some()
    }

    /// Starts the server and waits until it accepts sessions.
    pub(crate) fn start(&self) -> Result<()> {
        self.launch()?;
        self.wait_accepting()
    }

    /// Starts the server's process without waiting for it.
    pub(crate) fn launch(&self) -> Result<()> {
        let mut state = self.state();
        if state.running.is_some() {
            bail!("{} runs already", self.name);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut command = self.install.command("postgres", self.namespace.as_deref());
        command.arg("-D").arg(self.install.inside(&self.data()));
        command.envs(self.environment.iter().cloned());
        let child = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}: {command:?}", self.name))?;
        let pid = child.id();
        let registration = cleanup::register(&self.scenario, Resource::Process(pid));
        state.running = Some(Running {
            child,
            pid,
            _registration: registration,
        });
        state.frozen = false;
        Ok(())
    }

    pub(crate) fn wait_accepting(&self) -> Result<()> {
        wait::until(&format!("{} accepts sessions", self.name), PATIENCE, || {
            if let Some(status) = self.exit_status()? {
                return Ok(Probe::Ready(Err(anyhow::anyhow!(
                    "{} ended while starting ({status}); its log:\n{}",
                    self.name,
                    self.log_tail(15)
                ))));
            }
            self.session("postgres")?.value("SELECT 1")?;
            Ok(Probe::Ready(Ok(())))
        })?
    }

    /// How the server ended by itself, if it did; it counts as stopped from then on.
    pub(crate) fn exit_status(&self) -> Result<Option<String>> {
        let mut state = self.state();
        let Some(running) = &mut state.running else {
            return Ok(Some("not running".to_owned()));
        };
        match running.child.try_wait()? {
            Some(status) => {
                state.running = None;
                Ok(Some(status.to_string()))
            }
            None => Ok(None),
        }
    }

    pub(crate) fn stop(&self, how: Stop) -> Result<()> {
        let signal = match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        process::signal(self.pid()?, signal);
        wait::until(&format!("{} has stopped ({how:?})", self.name), PATIENCE, || {
            Ok(Probe::when(
                self.exit_status()?.is_some(),
                "its postmaster still runs",
            ))
        })
    }

    pub(crate) fn restart(&self) -> Result<()> {
        self.stop(Stop::Fast)?;
        self.start()
    }

    /// What a power cut does to it: SIGKILL for the postmaster and everything it started.
    pub(crate) fn kill_server(&self) -> Result<()> {
        let pid = self.pid()?;
        let tree = process::kill_tree(pid);
        if let Some(mut running) = self.state().running.take() {
            running.child.wait()?;
        }
        self.state().frozen = false;
        // Shared memory is free only once the last of them is gone.
        wait::until(
            &format!("the killed processes of {} are gone", self.name),
            PATIENCE,
            || {
                let left: Vec<&u32> = tree.iter().filter(|pid| process::is_alive(**pid)).collect();
                Ok(Probe::when(left.is_empty(), format!("{left:?} still there")))
            },
        )
    }

    /// SIGKILL for one backend, chosen by its type as pg_stat_activity shows it. The server answers by
    /// restarting the whole instance.
    pub(crate) fn kill_backend(&self, backend_type: &str) -> Result<()> {
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE backend_type = '{backend_type}' LIMIT 1");
        let pid = wait::until(
            &format!("{} has a process {backend_type:?}", self.name),
            PATIENCE,
            || {
                Ok(
                    match self
                        .rows("postgres", &sql)?
                        .first()
                        .and_then(|row| row.first().cloned().flatten())
                    {
                        Some(pid) => Probe::Ready(pid),
                        None => Probe::NotYet("none in pg_stat_activity".to_owned()),
                    },
                )
            },
        )?;
        process::signal(pid.parse()?, Signal::SIGKILL);
        Ok(())
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        process::freeze_tree(self.pid()?);
        self.state().frozen = true;
        Ok(())
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        process::thaw_tree(self.pid()?);
        self.state().frozen = false;
        Ok(())
    }

    pub(crate) fn session(&self, database: &str) -> Result<Session> {
        Session::connect(&self.directory, self.port, database, &self.name)
    }

    /// For asking the same thing again and again.
    pub(crate) fn polling<'a>(&'a self, database: &'a str) -> Polling<'a> {
        Polling {
            node: self,
            database,
            session: None,
        }
    }

    pub(crate) fn exec(&self, database: &str, sql: &str) -> Result<()> {
        self.session(database)?.exec(sql)
    }

    pub(crate) fn rows(&self, database: &str, sql: &str) -> Result<Vec<Row>> {
        self.session(database)?.rows(sql)
    }

    pub(crate) fn value(&self, database: &str, sql: &str) -> Result<Option<String>> {
        self.session(database)?.value(sql)
    }

    pub(crate) fn text(&self, database: &str, sql: &str) -> Result<String> {
        self.session(database)?.text(sql)
    }

    pub(crate) fn number(&self, database: &str, sql: &str) -> Result<i64> {
        self.session(database)?.number(sql)
    }

    /// How another node reaches this one.
    pub(crate) fn dsn(&self, database: &str) -> String {
        format!(
            "host={} port={} dbname={database} user=postgres",
            self.address, self.port
        )
    }

    /// Where the log ends now, for `log_since`.
    pub(crate) fn log_position(&self) -> u64 {
        fs::metadata(self.log_file()).map(|meta| meta.len()).unwrap_or(0)
    }

    pub(crate) fn log_since(&self, position: u64) -> Result<String> {
        let mut file = File::open(self.log_file())?;
        file.seek(SeekFrom::Start(position))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let start = self.log_position().saturating_sub(64 * 1024);
        let text = self
            .log_since(start)
            .unwrap_or_else(|error| format!("(no log: {error})"));
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Keeps one connection for as long as it works: a new one for every glance would cost the server more than the
/// answer.
#[derive(Debug)]
pub(crate) struct Polling<'a> {
    node: &'a Node,
    database: &'a str,
    session: Option<Session>,
}

impl Polling<'_> {
    pub(crate) fn rows(&mut self, sql: &str) -> Result<Vec<Row>> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.node.session(self.database)?,
        };
        let rows = session.rows(sql)?;
        self.session = Some(session);
        Ok(rows)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _already_gone = self.kill_server();
        for (path, _registration) in self.mounts().drain(..) {
            cleanup::release(&Resource::Mount(path), false);
        }
        cleanup::release(&Resource::Directory(self.directory.clone()), self.install.keep);
    }
}

const TRUST_EVERYBODY: &str = "local all all trust\nhost all all 0.0.0.0/0 trust\n\
    local replication all trust\nhost replication all 0.0.0.0/0 trust\n";

/// A port below the range that outgoing connections use: a stopped server must find its port free again.
pub(crate) fn free_port() -> Result<u16> {
    static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = fastrand::u16(15_000..32_000);
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.push(port);
            return Ok(port);
        }
    }
    bail!("no free port between 15000 and 32000 after 1000 tries")
}
