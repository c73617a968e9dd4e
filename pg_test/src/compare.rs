//! Are these tables the same on these nodes? If not, which rows differ?

use anyhow::{Result, bail};

use crate::cluster::Cluster;
use crate::node::Node;

/// Row count and a checksum that does not depend on the order of rows.
fn checksum(node: &Node, database: &str, table: &str) -> Result<(String, String)> {
    let sql =
        format!("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} AS t");
    let rows = node.rows(database, &sql)?;
    match rows.first().map(Vec::as_slice) {
        Some([Some(count), Some(sum)]) => Ok((count.clone(), sum.clone())),
        _ => bail!("{}: no checksum of {table}: {rows:?}", node.name),
    }
}

/// Fails with the first rows that differ.
pub(crate) fn identical(cluster: &Cluster, tables: &[&str]) -> Result<()> {
    let Some((first, others)) = cluster.nodes.split_first() else {
        bail!("a cluster without nodes")
    };
    let database = &cluster.database;
    for table in tables {
        let expected = checksum(first, database, table)?;
        for other in others {
            let found = checksum(other, database, table)?;
            if found != expected {
                bail!(
                    "table {table} differs: {} has {} rows, {} has {} rows\n{}",
                    first.name,
                    expected.0,
                    other.name,
                    found.0,
                    differing_rows(first, other, database, table)?
                );
            }
        }
    }
    Ok(())
}

const SHOWN: usize = 5;

/// Both tables in the order of their text, side by side like `comm`.
fn differing_rows(left: &Node, right: &Node, database: &str, table: &str) -> Result<String> {
    let sql = format!("SELECT t::text FROM {table} AS t ORDER BY t::text COLLATE \"C\"");
    let text = |node: &Node| -> Result<Vec<String>> {
        let rows = node.rows(database, &sql)?;
        Ok(rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect())
    };
    let (left_rows, right_rows) = (text(left)?, text(right)?);
    let (mut only_left, mut only_right) = (Vec::new(), Vec::new());
    let (mut i, mut j) = (0, 0);
    while i < left_rows.len() || j < right_rows.len() {
        match (left_rows.get(i), right_rows.get(j)) {
            (Some(a), Some(b)) if a == b => (i, j) = (i + 1, j + 1),
            (Some(a), other) if other.is_none_or(|b| a < b) => {
                only_left.push(a.as_str());
                i += 1;
            }
            (_, Some(b)) => {
                only_right.push(b.as_str());
                j += 1;
            }
            _ => break,
        }
    }
    let side = |node: &Node, rows: &[&str]| {
        let shown: Vec<String> = rows
            .iter()
            .take(SHOWN)
            .map(|row| format!("      {row}"))
            .collect();
        format!(
            "    {} rows only on {}:\n{}",
            rows.len(),
            node.name,
            shown.join("\n")
        )
    };
    Ok(format!(
        "{}\n{}",
        side(left, &only_left),
        side(right, &only_right)
    ))
}
