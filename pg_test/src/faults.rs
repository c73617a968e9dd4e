//! Faults that belong to no single server: the network between them, the disk under them, the clock beside them.
//! (Killing and freezing processes is in `node`, the slow link in `proxy`.)

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, bail};

use crate::cleanup::{self, Registration, Resource};
use crate::install::{Install, run};

/// A switch, and one network namespace per node plugged into it. Everything lives in namespaces of its own,
/// so that clusters of several scenarios (and the machine's own network) don't see one another.
#[derive(Debug)]
pub(crate) struct Network {
    switch: String,
    members: Vec<String>,
    has_nft: bool,
    _registrations: Vec<Registration>,
}

/// Which way packets are lost.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    OneWay,
    BothWays,
}

impl Network {
    pub(crate) fn create(scenario: &str, nodes: usize) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!(
            "pgha-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let has_nft = Command::new("nft")
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success());
        let mut network = Self {
            switch: format!("{tag}-sw"),
            members: Vec::new(),
            has_nft,
            _registrations: Vec::new(),
        };
        network.add_namespace(scenario, &network.switch.clone())?;
        ip(&["-n", &network.switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &network.switch, "link", "set", "br0", "up"])?;
        for number in 1..=nodes {
            let name = format!("{tag}-n{number}");
            network.add_namespace(scenario, &name)?;
            let port = format!("p{number}");
            let switch = network.switch.clone();
            ip(&[
                "-n", &name, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &switch,
            ])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            ip(&[
                "-n",
                &name,
                "addr",
                "add",
                &format!("{}/24", Self::address(number)),
                "dev",
                "eth0",
            ])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            if network.has_nft {
                network.nft(number, "add table inet pgha")?;
                network.nft(
                    number,
                    "add chain inet pgha in { type filter hook input priority 0; }",
                )?;
            }
            network.members.push(name);
        }
        Ok(network)
    }

    fn add_namespace(&mut self, scenario: &str, name: &str) -> Result<()> {
        ip(&["netns", "add", name])?;
        self._registrations
            .push(cleanup::register(scenario, Resource::Namespace(name.to_owned())));
        Ok(())
    }

    pub(crate) fn address(number: usize) -> String {
        format!("10.77.0.{number}")
    }

    pub(crate) fn namespace(&self, number: usize) -> Result<&str> {
        let name = number.checked_sub(1).and_then(|index| self.members.get(index));
        name.map(String::as_str)
            .ok_or_else(|| anyhow!("this network has no node {number}"))
    }

    /// Packets from one node to another vanish (with `BothWays` also the other way round).
    pub(crate) fn cut(&self, from: usize, to: usize, direction: Direction) -> Result<()> {
        self.drop_packets(from, to)?;
        match direction {
            Direction::OneWay => Ok(()),
            Direction::BothWays => self.drop_packets(to, from),
        }
    }

    /// One node loses sight of all the others.
    pub(crate) fn isolate(&self, number: usize) -> Result<()> {
        (1..=self.members.len())
            .filter(|other| *other != number)
            .try_for_each(|other| self.cut(number, other, Direction::BothWays))
    }

    pub(crate) fn heal(&self) -> Result<()> {
        for number in 1..=self.members.len() {
            if self.has_nft {
                self.nft(number, "flush chain inet pgha in")?;
            } else {
                self.execute(number, &["iptables", "-F", "INPUT"])?;
            }
        }
        Ok(())
    }

    fn drop_packets(&self, from: usize, to: usize) -> Result<()> {
        let source = Self::address(from);
        if self.has_nft {
            self.nft(to, &format!("add rule inet pgha in ip saddr {source} drop"))
        } else {
            self.execute(to, &["iptables", "-A", "INPUT", "-s", &source, "-j", "DROP"])
        }
    }

    fn nft(&self, number: usize, rule: &str) -> Result<()> {
        self.execute(number, &["nft", rule])
    }

    fn execute(&self, number: usize, words: &[&str]) -> Result<()> {
        let prefix = self.switch.trim_end_matches("-sw");
        let name = format!("{prefix}-n{number}");
        run(Command::new("ip").args(["netns", "exec", &name]).args(words)).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.members.iter().chain([&self.switch]) {
            cleanup::release(&Resource::Namespace(name.clone()), false);
        }
    }
}

fn ip(words: &[&str]) -> Result<()> {
    run(Command::new("ip").args(words)).map(drop)
}

/// A file that takes all the room a file system has left, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
}

impl Ballast {
    pub(crate) fn fill(directory: &Path) -> Result<Self> {
        let path = directory.join("ballast");
        let mut file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let ballast = Self { path };
        // Ever smaller pieces, so that not even a single page is left.
        for size in [1 << 20, 8192, 512, 1] {
            let piece = vec![0_u8; size];
            let mut pieces = 0_u64;
            while let Ok(()) = file.write_all(&piece) {
                pieces += 1;
                if pieces > 100_000 {
                    bail!(
                        "{} takes more than 100 GB: that is no small disk",
                        directory.display()
                    );
                }
            }
        }
        Ok(ballast)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _already_gone = fs::remove_file(&self.path);
    }
}

const FAKETIME_PLACES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// libfaketime, as the servers see it. It keeps a semaphore in /dev/shm, which a bare chroot does not have.
pub(crate) fn faketime_library(install: &Install) -> Option<&'static str> {
    use std::os::unix::fs::PermissionsExt;
    let shared = fs::metadata(install.outside(Path::new("/dev/shm"))).ok()?;
    if shared.permissions().mode() & 0o002 == 0 {
        return None;
    }
    FAKETIME_PLACES
        .into_iter()
        .find(|path| install.outside(Path::new(path)).exists())
}

/// A server environment whose wall clock is off by this much. Sleeps and time-outs keep their length.
pub(crate) fn wrong_clock(install: &Install, offset: &str) -> Result<Vec<(String, String)>> {
    let library = faketime_library(install).ok_or_else(|| anyhow!("libfaketime is not installed"))?;
    let variables = [
        ("LD_PRELOAD", library),
        ("FAKETIME", offset),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
    ];
    Ok(variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec())
}
