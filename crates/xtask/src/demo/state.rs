//! The way back to a cluster that `--keep` left running.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::{cleanup, layout};

fn file() -> Result<PathBuf> {
    Ok(layout::cache()?.join("demo.json"))
}

pub(super) fn remember(directory: &Path, cluster: &Cluster) -> Result<PathBuf> {
    let servers: Vec<String> = cluster
        .nodes()
        .iter()
        .map(|node| node.data.display().to_string())
        .collect();
    let state = json!({ "directory": directory.display().to_string(), "servers": servers });
    let path = file()?;
    fs::write(&path, format!("{state:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn read() -> Result<Option<(PathBuf, Vec<PathBuf>)>> {
    let Ok(text) = fs::read_to_string(file()?) else {
        return Ok(None);
    };
    let state: Value = serde_json::from_str(&text).context("the demo's state file is damaged; remove it")?;
    let directory = PathBuf::from(
        state["directory"]
            .as_str()
            .context("the demo's state file names no directory")?,
    );
    let servers = state["servers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(PathBuf::from)
        .collect();
    Ok(Some((directory, servers)))
}

/// The directory of a kept cluster of which a server is alive. What is left of a dead one is removed.
pub(super) fn running() -> Result<Option<PathBuf>> {
    let Some((directory, servers)) = read()? else {
        return Ok(None);
    };
    if servers.iter().any(|data| cleanup::postmaster(data).is_some()) {
        return Ok(Some(directory));
    }
    remove(&directory, &servers)?;
    Ok(None)
}

pub(super) fn down() -> Result<()> {
    let Some((directory, servers)) = read()? else {
        say!("no demo cluster is running");
        return Ok(());
    };
    remove(&directory, &servers)?;
    say!("demo cluster removed");
    Ok(())
}

fn remove(directory: &Path, servers: &[PathBuf]) -> Result<()> {
    // The file lies in a directory that others may write to where the cache was moved: be sure what is removed.
    let ours = directory
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("pg_ha-demo-"));
    if !ours || !servers.iter().all(|data| data.starts_with(directory)) {
        bail!(
            "the demo's state file {} names a directory that is not a demo's",
            file()?.display()
        );
    }
    for data in servers {
        cleanup::stop_server(data);
    }
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    fs::remove_file(file()?)?;
    Ok(())
}
