//! The live table while the writers run: redrawn in place on a terminal, a line now and then elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::cluster::{Cluster, DATABASE};
use crate::console;

/// What one look at a node shows. History rows tell who wrote them by their branch.
struct Look {
    at: Instant,
    state: String,
    written: i64,
    received: i64,
    waiting_bytes: i64,
}

pub(super) fn watch(cluster: &Cluster, length: Duration) -> Result<()> {
    let mut writers = cluster.start_writers(length)?;
    let deadline = Instant::now() + length + Duration::from_secs(60);
    let every = if console::is_terminal() {
        Duration::from_secs(1)
    } else {
        Duration::from_secs(5)
    };
    let started = Instant::now();
    let mut before: Vec<Look> = looks(cluster)?;
    let mut drawn = 0;
    loop {
        let next = Instant::now() + every;
        let mut ended = false;
        while !ended && Instant::now() < next {
            std::thread::sleep(Duration::from_millis(100));
            ended = writers
                .iter_mut()
                .map(|writer| writer.ended(deadline))
                .collect::<Result<Vec<_>>>()?
                .iter()
                .all(|e| *e);
        }
        let now = looks(cluster)?;
        let names = cluster.nodes().iter().map(|node| node.name.clone());
        let rows: Vec<Vec<String>> = names
            .zip(before.iter().zip(&now))
            .map(|(name, (before, now))| row(name, before, now))
            .collect();
        if console::is_terminal() {
            let header = [
                "node", "state", "written", "per s", "received", "per s", "waiting",
            ];
            let mut lines = console::table(&header, &rows, &[2, 3, 4, 5, 6]);
            if let Some(first) = lines.first_mut() {
                *first = console::dim(first);
            }
            lines.push(console::dim(&format!("{:.0} s", started.elapsed().as_secs_f64())));
            if drawn > 0 {
                print!("\x1b[{drawn}A");
            }
            for line in &lines {
                say!("\x1b[K  {line}");
            }
            drawn = lines.len();
            std::io::stdout().flush()?;
        } else {
            let parts: Vec<String> = rows.iter().map(|row| plain(row)).collect();
            say!(
                "  {:3.0} s  {}",
                started.elapsed().as_secs_f64(),
                parts.join("; ")
            );
        }
        before = now;
        if ended {
            return Ok(());
        }
    }
}

fn row(name: String, before: &Look, now: &Look) -> Vec<String> {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let rate = |from: i64, to: i64| format!("{:.0}", (to - from) as f64 / seconds);
    vec![
        name,
        now.state.clone(),
        now.written.to_string(),
        rate(before.written, now.written),
        now.received.to_string(),
        rate(before.received, now.received),
        bytes(now.waiting_bytes),
    ]
}

fn plain(row: &[String]) -> String {
    match row {
        [name, state, written, write_rate, received, receive_rate, waiting] => format!(
            "{name} {state}: {written} written ({write_rate}/s), {received} received ({receive_rate}/s), {waiting} waiting"
        ),
        _ => String::new(),
    }
}

fn looks(cluster: &Cluster) -> Result<Vec<Look>> {
    cluster
        .nodes()
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let answer = node.sql(
                DATABASE,
                &format!(
                    "SELECT json_build_object(\
                       'state', (SELECT concat_ws(', ', role, state) FROM ha.status WHERE is_local), \
                       'written', count(*) FILTER (WHERE (bid - 1) % 3 = {index}), \
                       'received', count(*) FILTER (WHERE (bid - 1) % 3 <> {index}), \
                       'waiting', (SELECT coalesce(sum(lag_bytes), 0)::bigint FROM ha.status_subscriptions)) \
                     FROM pgbench_history"
                ),
            )?;
            let seen: Value = serde_json::from_str(&answer).context("a node's answer is not JSON")?;
            let number = |key: &str| seen[key].as_i64().unwrap_or_default();
            Ok(Look {
                at: Instant::now(),
                state: seen["state"].as_str().unwrap_or("?").to_owned(),
                written: number("written"),
                received: number("received"),
                waiting_bytes: number("waiting"),
            })
        })
        .collect()
}

fn bytes(count: i64) -> String {
    match count {
        ..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} kB", count / 1000),
        _ => format!("{} MB", count / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(
            [bytes(0), bytes(9_999), bytes(12_345), bytes(25_000_000)],
            ["0 B", "9999 B", "12 kB", "25 MB"]
        );
    }
}
