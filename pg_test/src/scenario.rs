//! What a scenario is, and what it gets to work with.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::Result;

use crate::cluster::{Cluster, Plan};
use crate::faults;
use crate::install::Install;
use crate::report;

/// What a scenario cannot do without. Where it is missing the scenario is skipped, and says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Namespaces or mounts.
    Root,
    Faketime,
    Openssl,
    /// A second server, of another major version.
    OtherVersion,
}

impl Need {
    pub(crate) fn missing(self, install: &Install) -> Option<&'static str> {
        let there = match self {
            Need::Root => install.is_root(),
            Need::Faketime => faults::faketime_library(install).is_some(),
            Need::Openssl => std::process::Command::new("openssl")
                .arg("version")
                .output()
                .is_ok(),
            Need::OtherVersion => install.other.is_some(),
        };
        let reason = match self {
            Need::Root => "needs root (network namespaces or mounts)",
            Need::Faketime => {
                "needs libfaketime (Debian package: faketime) and a writable /dev/shm where the servers run"
            }
            Need::Openssl => "needs the openssl command to make certificates",
            Need::OtherVersion => "needs a second server, of another major version, in PG_HA_INSTALL_OTHER",
        };
        (!there).then_some(reason)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// The failure that a user would suffer if this did not hold.
    pub(crate) story: &'static str,
    pub(crate) run: fn(&Stage) -> Result<()>,
    pub(crate) needs: &'static [Need],
    /// Works on a server without pg_ha (checks of the harness itself).
    pub(crate) stock: bool,
    /// How many jobs' worth of machine it takes.
    pub(crate) weight: usize,
}

/// What a scenario plays on. Clusters live until the runner has told how it ended.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) install: Arc<Install>,
    pub(crate) seed: u64,
    pub(crate) long: bool,
    clusters: RefCell<Vec<Arc<Cluster>>>,
    random: RefCell<fastrand::Rng>,
}

impl Stage {
    pub(crate) fn new(scenario: &Scenario, install: &Arc<Install>, seed: u64, long: bool) -> Self {
        // The same seed gives every scenario a stream of its own, whichever others run beside it.
        let own = scenario.name.bytes().fold(seed, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        Self {
            name: scenario.name,
            install: Arc::clone(install),
            seed,
            long,
            clusters: RefCell::new(Vec::new()),
            random: RefCell::new(fastrand::Rng::with_seed(own)),
        }
    }

    pub(crate) fn cluster(&self, plan: Plan) -> Result<Arc<Cluster>> {
        let number = self.clusters.borrow().len();
        let directory = self.install.base.join(self.name).join(number.to_string());
        let cluster = Arc::new(Cluster::start(&self.install, self.name, directory, plan)?);
        self.clusters.borrow_mut().push(Arc::clone(&cluster));
        Ok(cluster)
    }

    /// Servers, extension, nodes and a mesh of subscriptions on tables that `schema` creates everywhere.
    pub(crate) fn mesh(&self, plan: Plan, schema: &str) -> Result<Arc<Cluster>> {
        let cluster = self.cluster(plan)?;
        cluster.create_nodes()?;
        cluster.everywhere(schema)?;
        cluster.mesh()?;
        Ok(cluster)
    }

    pub(crate) fn repetitions(&self, verify: usize, long: usize) -> usize {
        if self.long { long } else { verify }
    }

    pub(crate) fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.random.borrow_mut().u64(range)
    }

    pub(crate) fn pick<'a, T>(&self, from: &'a [T]) -> Option<&'a T> {
        self.random.borrow_mut().choice(from)
    }

    pub(crate) fn shuffle<T>(&self, all: &mut [T]) {
        self.random.borrow_mut().shuffle(all);
    }

    /// Status rows and log tails of all nodes, for a failure.
    pub(crate) fn describe(&self) -> String {
        self.clusters
            .borrow()
            .iter()
            .map(|cluster| report::describe(cluster))
            .collect()
    }
}
