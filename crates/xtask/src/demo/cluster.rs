//! The three nodes: made, connected, loaded, compared.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cleanup::{self, Debt, Owed};
use crate::console::Step;
use crate::instance::Instance;
use crate::layout;
use crate::process::{self, ServerUser};
use crate::server::Prefix;

pub(super) const DATABASE: &str = "demo";
const NODES: usize = 3;
const SCALE: usize = 10;
const FIRST_PORT: u16 = 5501;
/// Transactions per second and node: enough to see, and bearable where all three share two cores.
const RATE: usize = 250;

/// TPC-B, on the branches whose turn it is: with three nodes, every third one.
const SCRIPT: &str = "\
\\set bid random(0, :branches - 1) * 3 + :node
\\set tid (:bid - 1) * 10 + random(1, 10)
\\set aid (:bid - 1) * 100000 + random(1, 100000)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
";

const TABLES: [&str; 4] = [
    "pgbench_accounts",
    "pgbench_branches",
    "pgbench_history",
    "pgbench_tellers",
];

pub(super) struct Cluster {
    nodes: Vec<Instance>,
    directory: PathBuf,
    psql: PathBuf,
}

impl Cluster {
    pub(super) fn start(prefix: &Prefix, user: &ServerUser, directory: &Path) -> Result<Self> {
        let mut step = Step::begin("starting three servers");
        let mut nodes = Vec::new();
        let mut port = FIRST_PORT;
        for number in 1..=NODES {
            step.progress(&format!("n{number}"));
            let settings = "shared_preload_libraries = 'pg_ha'\n";
            let mut node = Instance::create(prefix, user, directory, &format!("n{number}"), settings)?;
            node.start(port)?;
            port = node.port + 1;
            nodes.push(node);
        }
        let ports: Vec<String> = nodes
            .iter()
            .map(|node| format!("{} on {}", node.name, node.port))
            .collect();
        step.done(&ports.join(", "));
        Ok(Self {
            nodes,
            directory: directory.to_owned(),
            psql: prefix.program("psql"),
        })
    }

    pub(super) fn nodes(&self) -> &[Instance] {
        &self.nodes
    }

    pub(super) fn psql(&self) -> String {
        format!("{} -h 127.0.0.1 -U postgres", self.psql.display())
    }

    pub(super) fn create_nodes(&self) -> Result<()> {
        let step = Step::begin("creating the nodes");
        for node in &self.nodes {
            node.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
            node.sql(DATABASE, "CREATE EXTENSION pg_ha")?;
            node.sql(
                DATABASE,
                &format!("SELECT ha.node_create('{}', '{}')", node.name, node.dsn(DATABASE)),
            )?;
        }
        step.done("CREATE EXTENSION pg_ha; SELECT ha.node_create('n1', 'host=… dbname=demo')");
        Ok(())
    }

    pub(super) fn load(&self) -> Result<()> {
        let mut step = Step::begin(&format!(
            "loading a million accounts on each (pgbench -i -s {SCALE})"
        ));
        let loaders: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                let mut command = node.client("pgbench");
                command.args(["-i", "-q", "-s", &SCALE.to_string(), DATABASE]);
                thread::spawn(move || process::answer(&mut command))
            })
            .collect();
        while loaders.iter().any(|loader| !loader.is_finished()) {
            let loaded = loaders.iter().filter(|loader| loader.is_finished()).count();
            step.progress(&format!("{loaded} of {NODES}, {:.0} s", step.seconds()));
            thread::sleep(Duration::from_millis(100));
        }
        for loader in loaders {
            loader
                .join()
                .map_err(|_| anyhow::anyhow!("a loading thread panicked"))??;
        }
        step.done("");
        Ok(())
    }

    pub(super) fn replicate_tables(&self) -> Result<()> {
        let step = Step::begin("choosing what to replicate");
        let mut answer = String::new();
        for node in &self.nodes {
            answer = node.sql(
                DATABASE,
                "SELECT relation || ' -> ' || set_name || coalesce('  (' || nullif(reason, '') || ')', '') \
                 FROM ha.repset_add_tables('default', 'pgbench_*')",
            )?;
        }
        step.done("SELECT * FROM ha.repset_add_tables('default', 'pgbench_*')");
        for line in answer.lines() {
            say!("    {line}");
        }
        Ok(())
    }

    pub(super) fn subscribe(&self) -> Result<()> {
        let mut step = Step::begin("subscribing each node to the two others");
        for (subscriber, provider) in self.pairs() {
            step.progress(&format!("{} from {}", subscriber.name, provider.name));
            subscriber.sql(
                DATABASE,
                &format!(
                    "SELECT ha.sub_create('{}_from_{}', '{}')",
                    subscriber.name,
                    provider.name,
                    provider.dsn(DATABASE)
                ),
            )?;
        }
        for node in &self.nodes {
            step.progress(&format!("waiting for {}", node.name));
            node.wait_for(
                DATABASE,
                "both subscriptions to replicate",
                "SELECT count(*) = 2 FROM ha.sub_show_status() WHERE status = 'replicating'",
                Duration::from_secs(60),
            )?;
        }
        step.done("six subscriptions, SELECT ha.sub_create('n1_from_n2', 'host=… dbname=demo')");
        Ok(())
    }

    /// Every (subscriber, provider).
    fn pairs(&self) -> impl Iterator<Item = (&Instance, &Instance)> {
        self.nodes.iter().flat_map(|subscriber| {
            self.nodes
                .iter()
                .filter(move |provider| provider.name != subscriber.name)
                .map(move |provider| (subscriber, provider))
        })
    }

    pub(super) fn start_writers(&self, length: Duration) -> Result<Vec<Writer>> {
        let script = self.directory.join("writer.sql");
        std::fs::write(&script, SCRIPT)?;
        self.nodes
            .iter()
            .enumerate()
            .map(|(index, node)| {
                let log = self.directory.join(format!("writer-{}.log", node.name));
                let output = std::fs::File::create(&log)?;
                let mut command = node.client("pgbench");
                command
                    .args([
                        "-n",
                        "-c",
                        "2",
                        "-M",
                        "prepared",
                        "--random-seed",
                        &(index + 1).to_string(),
                    ])
                    .args(["-T", &length.as_secs().to_string(), "-R", &RATE.to_string()])
                    .args(["-D", &format!("node={}", index + 1)])
                    .args(["-D", &format!("branches={}", branches_of(index))])
                    .arg("-f")
                    .arg(&script)
                    .arg(DATABASE)
                    .stdout(output.try_clone()?)
                    .stderr(output);
                std::os::unix::process::CommandExt::process_group(&mut command, 0);
                let child = command.spawn().context("cannot run pgbench")?;
                let owed = cleanup::owe(Debt::Group(child.id().cast_signed()));
                Ok(Writer {
                    node: node.name.clone(),
                    child,
                    log,
                    owed: Some(owed),
                })
            })
            .collect()
    }

    /// A marker from every node, awaited on every other.
    pub(super) fn wait_until_applied(&self) -> Result<()> {
        let mut step = Step::begin("waiting until everything has arrived everywhere");
        let markers: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.sql(DATABASE, "SELECT ha.sync_event()"))
            .collect::<Result<_>>()?;
        for (subscriber, provider) in self.pairs() {
            step.progress(&format!("{} from {}", subscriber.name, provider.name));
            let position = self
                .nodes
                .iter()
                .zip(&markers)
                .find(|(node, _)| node.name == provider.name);
            let (_, marker) = position.context("every provider has a marker")?;
            let applied = subscriber.sql(
                DATABASE,
                &format!(
                    "SELECT ha.wait_for_sync_event('{}', '{marker}', '300 s')",
                    provider.name
                ),
            )?;
            if applied != "t" {
                bail!(
                    "{} had not applied all of {} after 300 s",
                    subscriber.name,
                    provider.name
                );
            }
        }
        step.done("SELECT ha.sync_event(); SELECT ha.wait_for_sync_event('n2', lsn)");
        Ok(())
    }

    /// Compares the tables' contents, whatever the order of their rows.
    pub(super) fn compare(&self) -> Result<Vec<String>> {
        let mut step = Step::begin("comparing the four tables");
        let mut lines = Vec::new();
        let mut differing = Vec::new();
        for table in TABLES {
            step.progress(table);
            let question = format!(
                "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t"
            );
            let askers: Vec<_> = self
                .nodes
                .iter()
                .map(|node| {
                    let mut command = node.client("psql");
                    command.args(["-X", "-q", "-A", "-t", "-d", DATABASE, "-c", &question]);
                    thread::spawn(move || process::answer(&mut command))
                })
                .collect();
            let mut answers = Vec::new();
            for asker in askers {
                answers.push(
                    asker
                        .join()
                        .map_err(|_| anyhow::anyhow!("a comparing thread panicked"))??,
                );
            }
            let same = answers.windows(2).all(|pair| pair.first() == pair.last());
            let first = answers.first().context("there is at least one node")?;
            let (rows, sum) = first.split_once(' ').unwrap_or((first, ""));
            if same {
                lines.push(format!("{table:17} {rows:>9} rows on each, checksum {sum}"));
            } else {
                differing.push(format!("{table}: {}", answers.join(" | ")));
            }
        }
        if !differing.is_empty() {
            bail!(
                "the nodes differ (rows and checksum of n1 | n2 | n3):\n  {}",
                differing.join("\n  ")
            );
        }
        step.done("identical");
        Ok(lines)
    }

    /// Copies the servers' logs out of the directory that is about to be removed.
    pub(super) fn save_logs(&self) -> Result<PathBuf> {
        let directory = layout::target(Some("logs"));
        std::fs::create_dir_all(&directory)?;
        for node in &self.nodes {
            std::fs::copy(node.log(), directory.join(format!("demo-{}.log", node.name)))?;
        }
        Ok(directory)
    }

    pub(super) fn keep(self) {
        for node in self.nodes {
            node.keep();
        }
    }
}

/// How many branches a node writes to.
fn branches_of(index: usize) -> usize {
    (0..SCALE).filter(|branch| branch % NODES == index).count()
}

pub(super) struct Writer {
    node: String,
    child: Child,
    log: PathBuf,
    owed: Option<Owed>,
}

impl Writer {
    /// True once it has ended; an error if it did not end well.
    pub(super) fn ended(&mut self, deadline: Instant) -> Result<bool> {
        match self.child.try_wait()? {
            Some(status) => {
                if let Some(owed) = self.owed.take() {
                    owed.forgive();
                }
                if !status.success() {
                    bail!(
                        "the writer on {} failed:\n{}",
                        self.node,
                        process::tail(&self.log, 10)
                    );
                }
                Ok(true)
            }
            None if Instant::now() > deadline => {
                bail!(
                    "the writer on {} does not end:\n{}",
                    self.node,
                    process::tail(&self.log, 10)
                )
            }
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_branch_has_one_writer() {
        assert_eq!((0..NODES).map(branches_of).collect::<Vec<_>>(), [4, 3, 3]);
        let highest = (0..NODES)
            .map(|index| (branches_of(index) - 1) * NODES + index + 1)
            .max();
        assert_eq!(highest, Some(SCALE));
    }
}
