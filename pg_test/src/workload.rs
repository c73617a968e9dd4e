//! Load: TPC-B in the pgbench schema, by pgbench where there is one and by a Rust writer that remembers what the
//! server acknowledged.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::cluster::Cluster;
use crate::install::{Install, run};
use crate::node::Node;
use crate::sql::Session;
use crate::wait;

pub(crate) const TABLES: [&str; 4] = [
    "pgbench_accounts",
    "pgbench_branches",
    "pgbench_tellers",
    "pgbench_history",
];

const TELLERS_PER_BRANCH: u64 = 10;
const ACCOUNTS_PER_BRANCH: u64 = 100_000;

/// A contiguous range of branches, with their tellers and accounts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Branches {
    pub(crate) first: u64,
    pub(crate) last: u64,
    accounts_per_branch: u64,
}

impl Branches {
    /// The share of node `number` of `nodes`, as equal as the scale allows.
    pub(crate) fn share(number: usize, nodes: usize, schema: Schema) -> Result<Self> {
        let (number, nodes) = (u64::try_from(number)?, u64::try_from(nodes)?);
        if schema.scale < nodes {
            bail!(
                "scale {} does not give each of {nodes} nodes a branch of its own",
                schema.scale
            );
        }
        let first = (number - 1) * schema.scale / nodes + 1;
        let last = number * schema.scale / nodes;
        Ok(Self {
            first,
            last,
            accounts_per_branch: schema.accounts_per_branch,
        })
    }

    fn tellers(self) -> (u64, u64) {
        (
            (self.first - 1) * TELLERS_PER_BRANCH + 1,
            self.last * TELLERS_PER_BRANCH,
        )
    }

    fn accounts(self) -> (u64, u64) {
        (
            (self.first - 1) * self.accounts_per_branch + 1,
            self.last * self.accounts_per_branch,
        )
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Schema {
    pub(crate) scale: u64,
    pub(crate) accounts_per_branch: u64,
}

impl Schema {
    /// What `pgbench -i` makes.
    pub(crate) fn pgbench(scale: u64) -> Self {
        Self {
            scale,
            accounts_per_branch: ACCOUNTS_PER_BRANCH,
        }
    }

    /// Fewer accounts, where a scenario is about anything but volume.
    pub(crate) fn small(scale: u64) -> Self {
        Self {
            scale,
            accounts_per_branch: 1000,
        }
    }
}

/// Creates and fills the four tables on every node: by pgbench where the schema is pgbench's own and there is
/// one, else by the same statements from here.
pub(crate) fn initialise(cluster: &Cluster, install: &Install, schema: Schema) -> Result<()> {
    cluster.on_all(|node| match &install.pgbench {
        Some(pgbench) if schema.accounts_per_branch == ACCOUNTS_PER_BRANCH => {
            let scale = schema.scale.to_string();
            run(pgbench_command(pgbench, node, &cluster.database).args(["-i", "-q", "-s", &scale])).map(drop)
        }
        _ => node.exec(&cluster.database, &initial_sql(schema)),
    })
}

fn initial_sql(schema: Schema) -> String {
    let scale = schema.scale;
    let (tellers, accounts) = (scale * TELLERS_PER_BRANCH, scale * schema.accounts_per_branch);
    let per_branch = schema.accounts_per_branch;
    format!(
        "CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
         CREATE TABLE pgbench_tellers (tid int NOT NULL, bid int, tbalance int, filler char(84)) WITH (fillfactor = 100);
         CREATE TABLE pgbench_accounts (aid int NOT NULL, bid int, abalance int, filler char(84)) WITH (fillfactor = 100);
         CREATE TABLE pgbench_branches (bid int NOT NULL, bbalance int, filler char(88)) WITH (fillfactor = 100);
         INSERT INTO pgbench_branches (bid, bbalance) SELECT g, 0 FROM generate_series(1, {scale}) AS g;
         INSERT INTO pgbench_tellers (tid, bid, tbalance)
             SELECT g, (g - 1) / {TELLERS_PER_BRANCH} + 1, 0 FROM generate_series(1, {tellers}) AS g;
         INSERT INTO pgbench_accounts (aid, bid, abalance, filler)
             SELECT g, (g - 1) / {per_branch} + 1, 0, '' FROM generate_series(1, {accounts}) AS g;
         ALTER TABLE pgbench_branches ADD PRIMARY KEY (bid);
         ALTER TABLE pgbench_tellers ADD PRIMARY KEY (tid);
         ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid);
         ANALYZE;"
    )
}

fn pgbench_command(pgbench: &Path, node: &Node, database: &str) -> Command {
    let mut command = Command::new(pgbench);
    command
        .arg("-h")
        .arg(&node.directory)
        .args(["-p", &node.port.to_string(), "-U", "postgres"])
        .arg(database);
    command.current_dir("/").env_remove("PGOPTIONS");
    command
}

/// TPC-B on a share of the branches; runs to its end and returns the number of committed transactions.
pub(crate) fn pgbench(
    pgbench: &Path,
    node: &Node,
    database: &str,
    share: Branches,
    clients: u32,
    transactions_each: u32,
) -> Result<u64> {
    let (first_teller, last_teller) = share.tellers();
    let (first_account, last_account) = share.accounts();
    let script = format!(
        "\\set bid random({}, {})
         \\set tid random({first_teller}, {last_teller})
         \\set aid random({first_account}, {last_account})
         \\set delta random(-5000, 5000)
         BEGIN;
         UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
         SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
         UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
         UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
         INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
             VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
         END;",
        share.first, share.last
    );
    let file = node.directory.join("tpcb.sql");
    std::fs::write(&file, script.replace("\n         ", "\n"))?;
    let output = run(pgbench_command(pgbench, node, database)
        .args([
            "-n",
            "-c",
            &clients.to_string(),
            "-t",
            &transactions_each.to_string(),
            "-f",
        ])
        .arg(&file))?;
    let line = "number of transactions actually processed:";
    let number = output
        .lines()
        .find_map(|text| text.strip_prefix(line)?.trim().split('/').next());
    number
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| anyhow!("no count of transactions in: {output}"))
}

/// What a writer knows at its end.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Numbers of the transactions whose commit the server acknowledged.
    pub(crate) acknowledged: Vec<u64>,
    /// Transactions of unknown fate: the connection broke before the answer.
    pub(crate) unknown: Vec<u64>,
    /// Errors that the server reported for a statement, apart from lost connections.
    pub(crate) errors: Vec<String>,
}

/// A TPC-B client on a share of the branches that survives its server. Each transaction has a number, which
/// stands in the history row's filler as `<node>:<number>`.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Account>,
    pub(crate) label: String,
}

struct Job {
    socket_directory: std::path::PathBuf,
    port: u16,
    database: String,
    label: String,
    share: Branches,
    limit: Option<u64>,
    random: fastrand::Rng,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Writer {
    /// Writes until stopped, or until `limit` transactions are acknowledged.
    pub(crate) fn start(node: &Node, database: &str, share: Branches, seed: u64, limit: Option<u64>) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let job = Job {
            socket_directory: node.directory.clone(),
            port: node.port,
            database: database.to_owned(),
            label: node.name.clone(),
            share,
            limit,
            random: fastrand::Rng::with_seed(seed ^ u64::from(node.port)),
            stop: Arc::clone(&stop),
            done: Arc::clone(&done),
        };
        Self {
            stop,
            done,
            thread: thread::spawn(move || job.run()),
            label: node.name.clone(),
        }
    }

    /// Acknowledged so far.
    pub(crate) fn progress(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(self) -> Result<Account> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits for the limit given at the start.
    pub(crate) fn finish(self) -> Result<Account> {
        let account = self
            .thread
            .join()
            .map_err(|_| anyhow!("the writer on {} panicked", self.label))?;
        match account.errors.first() {
            Some(error) => bail!(
                "the writer on {} got {} errors, the first: {error}",
                self.label,
                account.errors.len()
            ),
            None => Ok(account),
        }
    }
}

const RECONNECT_AFTER: Duration = Duration::from_millis(50);

impl Job {
    fn run(mut self) -> Account {
        let mut account = Account::default();
        let mut session: Option<Session> = None;
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) && !crate::cleanup::interrupted() {
            if self
                .limit
                .is_some_and(|limit| self.done.load(Ordering::Relaxed) >= limit)
            {
                break;
            }
            let Some(open) = &mut session else {
                session =
                    Session::connect(&self.socket_directory, self.port, &self.database, &self.label).ok();
                if session.is_none() {
                    wait::pause(RECONNECT_AFTER);
                }
                continue;
            };
            number += 1;
            match open.exec(&self.transaction(number)) {
                Ok(()) => {
                    account.acknowledged.push(number);
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    account.unknown.push(number);
                    session = None;
                    if let Some(refusal) = crate::sql::refusal(&error)
                        && !is_shutdown(&refusal.sqlstate)
                    {
                        account.errors.push(refusal.to_string());
                        if account.errors.len() >= 10 {
                            break;
                        }
                    }
                }
            }
        }
        account
    }

    fn transaction(&mut self, number: u64) -> String {
        let mut between = |(low, high): (u64, u64)| self.random.u64(low..=high);
        let bid = between((self.share.first, self.share.last));
        let tid = between(self.share.tellers());
        let aid = between(self.share.accounts());
        let delta = self.random.i64(-5000..=5000);
        format!(
            "BEGIN;
             UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {aid};
             UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {tid};
             UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = {bid};
             INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler)
                 VALUES ({tid}, {bid}, {aid}, {delta}, CURRENT_TIMESTAMP, '{}:{number}');
             COMMIT",
            self.label
        )
    }
}

/// The server went away under us (57P01 … 57P05, connection exceptions): no fault of the statement.
fn is_shutdown(sqlstate: &str) -> bool {
    sqlstate.starts_with("57P") || sqlstate.starts_with("08")
}

/// Every acknowledged transaction is on this node exactly once, none exists that nobody sent, and the balances
/// add up to the history.
pub(crate) fn audit(node: &Node, database: &str, label: &str, account: &Account) -> Result<()> {
    let sql = format!(
        "SELECT split_part(filler, ':', 2)::bigint FROM pgbench_history WHERE filler LIKE '{label}:%'"
    );
    let mut found: Vec<u64> = Vec::new();
    for row in node.rows(database, &sql)? {
        let text = row.first().cloned().flatten().unwrap_or_default();
        found.push(
            text.trim()
                .parse()
                .with_context(|| format!("history row of {label}:{text}"))?,
        );
    }
    found.sort_unstable();
    if let Some(twice) = found.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("{} has transaction {label}:{} twice", node.name, twice[0]);
    }
    let lost: Vec<&u64> = account
        .acknowledged
        .iter()
        .filter(|number| found.binary_search(number).is_err())
        .collect();
    if let Some(first) = lost.first() {
        bail!(
            "{} acknowledged transactions of {label} are missing on {}, the first is {label}:{first} of {}",
            lost.len(),
            node.name,
            account.acknowledged.len()
        );
    }
    let sent = |number: &u64| account.acknowledged.contains(number) || account.unknown.contains(number);
    if found.len() > account.acknowledged.len()
        && let Some(stranger) = found.iter().find(|number| !sent(number))
    {
        bail!(
            "{} has transaction {label}:{stranger}, which the writer never sent",
            node.name
        );
    }
    Ok(())
}

/// The sums of balances and of the history's deltas agree, as every TPC-B transaction leaves them.
pub(crate) fn balanced(node: &Node, database: &str) -> Result<()> {
    let sql = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
                      (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
    let rows = node.rows(database, sql)?;
    let Some(sums) = rows.first() else {
        bail!("{}: no sums", node.name)
    };
    if sums.iter().any(|sum| sum != &sums[0]) {
        bail!(
            "{}: the sums of accounts, tellers, branches and history differ: {sums:?}",
            node.name
        );
    }
    Ok(())
}
