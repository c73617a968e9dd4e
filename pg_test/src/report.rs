//! What a person at three in the morning wants to see when a scenario has failed.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::node::Node;

const LOG_LINES: usize = 30;
/// Of each view; a schema of hundreds of tables would bury what matters.
const ROWS: usize = 20;
const VIEWS: [&str; 3] = ["ha.status", "ha.status_subscriptions", "ha.status_tables"];

pub(crate) fn describe(cluster: &Cluster) -> String {
    let mut text = String::new();
    for node in &cluster.nodes {
        text.push_str(&format!(
            "  ---- {} ({}:{})\n",
            node.name, node.address, node.port
        ));
        if node.is_frozen() {
            text.push_str("  frozen, so it is not asked for its status\n");
        } else if !node.is_running() {
            text.push_str("  not running\n");
        } else {
            for view in VIEWS {
                let (answered, told) = status(node, &cluster.database, view);
                text.push_str(&indent(&told));
                if !answered {
                    break;
                }
            }
        }
        text.push_str(&format!("  the last {LOG_LINES} lines of its log:\n"));
        text.push_str(&indent(&node.log_tail(LOG_LINES)));
    }
    text
}

/// Whether to go on asking, and the rows. Asked from a thread of its own: a server that is stuck must not keep us from telling what went wrong.
fn status(node: &Node, database: &str, view: &str) -> (bool, String) {
    let (sender, receiver) = mpsc::channel();
    let (directory, port, name) = (node.directory.clone(), node.port, node.name.clone());
    let (database, sql) = (
        database.to_owned(),
        format!("SELECT to_jsonb(t) FROM {view} AS t"),
    );
    thread::spawn(move || {
        let answer = crate::sql::Session::connect(&directory, port, &database, &name)
            .and_then(|mut session| session.rows(&sql));
        let _nobody_waits_any_more = sender.send(answer);
    });
    match receiver.recv_timeout(Duration::from_secs(5)) {
        Ok(Ok(rows)) => {
            let lines: Vec<&str> = rows.iter().filter_map(|row| row.first()?.as_deref()).collect();
            (
                true,
                format!(
                    "{view}: {} rows\n{}",
                    lines.len(),
                    lines[..lines.len().min(ROWS)].join("\n")
                ),
            )
        }
        Ok(Err(error)) => (
            crate::sql::refusal(&error).is_none_or(|r| r.sqlstate != "3D000"),
            format!("{view}: {error:#}"),
        ),
        Err(_) => (false, format!("{view}: no answer within 5 s")),
    }
}

pub(crate) fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
