//! What several families of scenarios ask of a cluster.

use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::sql::{self, Refusal, literal};
use crate::wait::{self, PATIENCE, Probe};

/// A password that a scenario uses in connection strings: it must never come back, not in an answer, not in a
/// view, not in the server's log.
pub(crate) const SECRET: &str = "s3cret-Pa55word";

/// Columns of ha.status_subscriptions.
pub(crate) const ROWS_APPLIED: &str = "rows_applied";
pub(crate) const CONFLICTS: &str = "conflicts";

pub(crate) fn counter(cluster: &Cluster, node: &Node, subscription: &str, column: &str) -> Result<u64> {
    let text = cluster.status_of(node, subscription, column)?;
    let text = text.ok_or_else(|| anyhow!("{column} of {subscription} on {} is NULL", node.name))?;
    Ok(text.parse()?)
}

/// Everything applied, nothing waiting, by the word of every node's status view.
pub(crate) fn wait_no_lag(cluster: &Cluster) -> Result<()> {
    let lagging = "SELECT subscription_name, status, lag_bytes FROM ha.status_subscriptions
                    WHERE status <> 'replicating' OR lag_bytes IS DISTINCT FROM 0";
    for node in &cluster.nodes {
        let mut polling = node.polling(&cluster.database);
        wait::until(
            &format!("ha.status_subscriptions of {} shows no lag", node.name),
            PATIENCE,
            || {
                let rows = polling.rows(lagging)?;
                Ok(Probe::when(rows.is_empty(), sql::show(&rows)))
            },
        )?;
    }
    Ok(())
}

/// Adds tables to a set on every node.
pub(crate) fn add_everywhere(cluster: &Cluster, set: &str, tables: &[&str]) -> Result<()> {
    for table in tables {
        cluster.everywhere(&format!(
            "SELECT ha.repset_add_table({}, {})",
            literal(set),
            literal(table)
        ))?;
    }
    Ok(())
}

/// Switches a subscription off and waits until its workers are gone, so that what is committed from now on
/// waits on the provider.
pub(crate) fn disable(cluster: &Cluster, from: &Node, to: &Node) -> Result<()> {
    let name = Cluster::subscription_name(from, to);
    to.exec(
        &cluster.database,
        &format!("SELECT ha.sub_disable({})", literal(&name)),
    )?;
    cluster.wait_status(to, &name, "disabled")?;
    let slot = slot_name(cluster, to, &name)?;
    let active = format!(
        "SELECT active FROM pg_replication_slots WHERE slot_name = {}",
        literal(&slot)
    );
    wait::until(
        &format!("the disabled {name} has let go of its slot on {}", from.name),
        PATIENCE,
        || {
            let rows = from.rows(&cluster.database, &active)?;
            Ok(Probe::when(
                sql::show(&rows) == "f",
                format!("active: {}", sql::show(&rows)),
            ))
        },
    )
}

pub(crate) fn enable(cluster: &Cluster, from: &Node, to: &Node) -> Result<()> {
    let name = Cluster::subscription_name(from, to);
    to.exec(
        &cluster.database,
        &format!("SELECT ha.sub_enable({})", literal(&name)),
    )
}

pub(crate) fn slot_name(cluster: &Cluster, node: &Node, subscription: &str) -> Result<String> {
    let sql = format!(
        "SELECT slot_name FROM ha.subscriptions WHERE subscription_name = {}",
        literal(subscription)
    );
    node.text(&cluster.database, &sql)
}

/// A statement that must be refused: with one of these SQLSTATEs, a DETAIL, a HINT, these words somewhere, and
/// without the password.
pub(crate) fn refused(
    node: &Node,
    database: &str,
    statement: &str,
    states: &[&str],
    words: &[&str],
) -> Result<Refusal> {
    let error = match node.rows(database, statement) {
        Ok(rows) => bail!(
            "{} accepted what it must refuse: {statement}\nand answered: {}",
            node.name,
            sql::show(&rows)
        ),
        Err(error) => error,
    };
    let Some(refusal) = sql::refusal(&error) else {
        bail!("{}: not an answer of the server: {error:#}", node.name);
    };
    let complaint = if !states.contains(&refusal.sqlstate.as_str()) {
        Some(format!("the SQLSTATE should be one of {states:?}"))
    } else if refusal.detail.trim().is_empty() {
        Some("the DETAIL (what was found) is empty".to_owned())
    } else if refusal.hint.trim().is_empty() {
        Some("the HINT (what to do) is empty".to_owned())
    } else if refusal.everything().contains(SECRET) {
        Some("the answer contains the password".to_owned())
    } else {
        let told = refusal.everything().to_lowercase();
        words
            .iter()
            .find(|word| !told.contains(&word.to_lowercase()))
            .map(|word| format!("the answer does not mention {word:?}"))
    };
    match complaint {
        Some(complaint) => bail!(
            "{complaint}; {} answered {refusal}\n      to: {statement}",
            node.name
        ),
        None => Ok(refusal),
    }
}

/// Everything that a refused call could have left behind on a server.
const LEFTOVERS: &str = "SELECT
    (SELECT count(*) FROM pg_replication_slots) AS slots,
    (SELECT count(*) FROM pg_replication_origin) AS origins,
    (SELECT count(*) FROM ha.nodes) AS nodes,
    (SELECT count(*) FROM ha.subscriptions) AS subscriptions,
    (SELECT count(*) FROM ha.replication_sets) AS sets,
    (SELECT count(*) FROM ha.replication_set_tables) AS set_tables";

/// What is there now; `left_nothing` compares with it later.
pub(crate) fn inventory(node: &Node, database: &str) -> Result<String> {
    Ok(sql::show(&node.rows(database, LEFTOVERS)?))
}

pub(crate) fn left_nothing(node: &Node, database: &str, before: &str) -> Result<()> {
    // A slot goes away with the connection that made it, which may take the other server a moment.
    left_nothing_within(node, database, before, Duration::from_secs(10))
}

pub(crate) fn left_nothing_within(node: &Node, database: &str, before: &str, limit: Duration) -> Result<()> {
    let what = format!(
        "{} is as it was (slots | origins | nodes | subscriptions | sets | set tables)",
        node.name
    );
    wait::until(&what, limit, || {
        let now = inventory(node, database)?;
        Ok(Probe::when(now == before, format!("{now}, it was {before}")))
    })
}

/// The password is nowhere in the servers' logs.
pub(crate) fn no_secret_in_logs(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let log = node.log_since(0)?;
        // What a client sends is logged by PostgreSQL itself as STATEMENT (and continuation lines), not by us.
        let mut in_statement = false;
        for line in log.lines() {
            if !line.starts_with(['\t', ' ']) {
                in_statement = line.contains("STATEMENT:") || line.contains("CONTEXT:  SQL statement");
            }
            ensure!(
                in_statement || !line.contains(SECRET),
                "the log of {} contains the password: {line}",
                node.name
            );
        }
    }
    Ok(())
}

/// Lines that pg_ha's own processes wrote to the log since a position. The harness's log_line_prefix names the
/// process, so this is exact.
pub(crate) fn worker_lines(node: &Node, since: u64) -> Result<Vec<String>> {
    let log = node.log_since(since)?;
    let ours =
        |line: &&str| line.contains("] pg_ha ") && !line.contains(" DETAIL:  ") && !line.contains(" HINT:  ");
    Ok(log.lines().filter(ours).map(str::to_owned).collect())
}

/// A local user notices nothing: this write and read return at once.
pub(crate) fn local_users_are_fine(cluster: &Cluster, node: &Node, statement: &str) -> Result<()> {
    let started = std::time::Instant::now();
    node.exec(&cluster.database, statement)?;
    let took = started.elapsed();
    ensure!(
        took < Duration::from_secs(5),
        "a local write on {} took {took:?} while another node was gone",
        node.name
    );
    Ok(())
}
