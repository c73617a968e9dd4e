//! Several nodes, and how they are wired: databases, the extension, nodes, subscriptions.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::faults::Network;
use crate::install::Install;
use crate::node::{Node, NodeSpec};
use crate::sql::{self, literal};
use crate::wait::{self, PATIENCE, Probe};

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Option<Network>,
    pub(crate) database: String,
    _directory: PathBuf,
}

/// What to build. Nodes are numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    nodes: Vec<NodeSpec>,
    namespaces: bool,
}

impl Plan {
    pub(crate) fn nodes(count: usize) -> Self {
        let node = NodeSpec {
            address: "127.0.0.1".to_owned(),
            ..NodeSpec::default()
        };
        Self {
            nodes: vec![node; count],
            namespaces: false,
        }
    }

    /// Each node in a network namespace of its own, plugged into one switch.
    pub(crate) fn in_namespaces(mut self) -> Self {
        self.namespaces = true;
        self
    }

    /// Settings for all nodes.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        for node in &mut self.nodes {
            node.settings.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Changes one node's plan.
    pub(crate) fn node(mut self, number: usize, change: impl FnOnce(&mut NodeSpec)) -> Self {
        if let Some(node) = number.checked_sub(1).and_then(|index| self.nodes.get_mut(index)) {
            change(node);
        }
        self
    }
}

impl Cluster {
    /// Creates the nodes and starts them, all at once.
    pub(crate) fn start(
        install: &Arc<Install>,
        scenario: &str,
        directory: PathBuf,
        plan: Plan,
    ) -> Result<Self> {
        std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let network = if plan.namespaces {
            Some(Network::create(scenario, plan.nodes.len())?)
        } else {
            None
        };
        let mut nodes = Vec::new();
        for (number, mut spec) in (1..).zip(plan.nodes) {
            if let Some(network) = &network {
                spec.namespace = Some(network.namespace(number)?.to_owned());
                spec.address = Network::address(number);
            }
            nodes.push(Node::create(
                install,
                scenario,
                &directory.join(format!("n{number}")),
                number,
                spec,
            )?);
        }
        let cluster = Self {
            nodes,
            network,
            database: "demo".to_owned(),
            _directory: directory,
        };
        cluster.on_all(Node::start)?;
        Ok(cluster)
    }

    pub(crate) fn node(&self, number: usize) -> Result<&Node> {
        let node = number.checked_sub(1).and_then(|index| self.nodes.get(index));
        node.ok_or_else(|| anyhow!("this cluster has no node {number}"))
    }

    pub(crate) fn network(&self) -> Result<&Network> {
        self.network
            .as_ref()
            .ok_or_else(|| anyhow!("this cluster was not planned with namespaces"))
    }

    /// Runs something on all nodes at once; the first error wins.
    pub(crate) fn on_all(&self, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        let outcomes: Vec<Result<()>> = thread::scope(|scope| {
            let running: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| work(node))).collect();
            let ended = running.into_iter().map(|thread| thread.join());
            ended
                .map(|outcome| outcome.unwrap_or_else(|_| Err(anyhow!("a thread of the harness panicked"))))
                .collect()
        });
        outcomes.into_iter().collect()
    }

    /// The same SQL in the cluster's database on every node.
    pub(crate) fn everywhere(&self, sql: &str) -> Result<()> {
        self.on_all(|node| node.exec(&self.database, sql))
    }

    pub(crate) fn create_database(&self) -> Result<()> {
        self.on_all(|node| node.exec("postgres", &format!("CREATE DATABASE {}", self.database)))
    }

    /// Database, extension and node, on every server.
    pub(crate) fn create_nodes(&self) -> Result<()> {
        self.create_database()?;
        self.everywhere("CREATE EXTENSION pg_ha")?;
        self.on_all(|node| self.create_node(node))
    }

    pub(crate) fn create_node(&self, node: &Node) -> Result<()> {
        let dsn = literal(&node.dsn(&self.database));
        let id = node.number(
            &self.database,
            &format!("SELECT ha.node_create({}, {dsn})", literal(&node.name)),
        )?;
        if usize::try_from(id) != Ok(node.number) {
            bail!(
                "ha.node_create({}) gave id {id}; the number its name ends in was free",
                node.name
            );
        }
        Ok(())
    }

    /// The name of the subscription by which `to` receives what happens on `from`.
    pub(crate) fn subscription_name(from: &Node, to: &Node) -> String {
        format!("sub_{}_{}", to.name, from.name)
    }

    pub(crate) fn subscribe(&self, from: usize, to: usize) -> Result<String> {
        let dsn = self.node(from)?.dsn(&self.database);
        self.subscribe_through(&dsn, from, to)
    }

    /// With a connection string of the scenario's own.
    pub(crate) fn subscribe_through(&self, dsn: &str, from: usize, to: usize) -> Result<String> {
        let (from, to) = (self.node(from)?, self.node(to)?);
        let name = Self::subscription_name(from, to);
        to.rows(
            &self.database,
            &format!("SELECT ha.sub_create({}, {})", literal(&name), literal(dsn)),
        )?;
        Ok(name)
    }

    /// Every node subscribes to every other.
    pub(crate) fn mesh(&self) -> Result<()> {
        for (from, to) in self.pairs() {
            self.subscribe(from.number, to.number)?;
        }
        self.wait_replicating()
    }

    /// All ordered pairs (provider, subscriber).
    pub(crate) fn pairs(&self) -> Vec<(&Node, &Node)> {
        let all = self
            .nodes
            .iter()
            .flat_map(|from| self.nodes.iter().map(move |to| (from, to)));
        all.filter(|(from, to)| from.number != to.number).collect()
    }

    /// Every subscription that exists, on every node, says that it replicates.
    pub(crate) fn wait_replicating(&self) -> Result<()> {
        let others =
            "SELECT subscription_name, status FROM ha.sub_show_status() WHERE status <> 'replicating'";
        for node in &self.nodes {
            let mut polling = node.polling(&self.database);
            wait::until(
                &format!("all subscriptions of {} replicate", node.name),
                PATIENCE,
                || {
                    let rows = polling.rows(others)?;
                    Ok(Probe::when(rows.is_empty(), sql::show(&rows)))
                },
            )?;
        }
        Ok(())
    }

    /// Everything that was committed on `from` before this call is applied on `to` after it.
    pub(crate) fn sync(&self, from: usize, to: usize) -> Result<()> {
        let (from, to) = (self.node(from)?, self.node(to)?);
        let lsn = from.text(&self.database, "SELECT ha.sync_event()")?;
        let waiting = format!(
            "SELECT ha.wait_for_sync_event({}, '{lsn}', '{} s')",
            literal(&from.name),
            PATIENCE.as_secs()
        );
        if to.text(&self.database, &waiting)? == "t" {
            return Ok(());
        }
        let why = format!(
            "SELECT subscription_name, status, applied_lsn, last_error FROM ha.status_subscriptions WHERE provider_node = {}",
            literal(&from.name)
        );
        bail!(
            "{} had not applied what {} sent before {lsn} within {} s; its subscription: {}",
            to.name,
            from.name,
            PATIENCE.as_secs(),
            sql::show(&to.rows(&self.database, &why)?)
        )
    }

    /// `sync` over all pairs.
    pub(crate) fn sync_all(&self) -> Result<()> {
        self.pairs()
            .into_iter()
            .try_for_each(|(from, to)| self.sync(from.number, to.number))
    }

    /// One column of one subscription's row in ha.status_subscriptions.
    pub(crate) fn status_of(&self, node: &Node, subscription: &str, column: &str) -> Result<Option<String>> {
        let sql = format!(
            "SELECT {column} FROM ha.status_subscriptions WHERE subscription_name = {}",
            literal(subscription)
        );
        node.value(&self.database, &sql)
    }

    pub(crate) fn wait_status(&self, node: &Node, subscription: &str, wanted: &str) -> Result<()> {
        let what = format!("subscription {subscription} on {} has status {wanted}", node.name);
        let sql = format!(
            "SELECT status FROM ha.status_subscriptions WHERE subscription_name = {}",
            literal(subscription)
        );
        let mut polling = node.polling(&self.database);
        wait::until(&what, PATIENCE, || {
            let seen = sql::show(&polling.rows(&sql)?);
            Ok(Probe::when(seen == wanted, seen))
        })
    }
}
