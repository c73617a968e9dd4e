//! What the workspace's packages may depend on: the pure ones on almost nothing, those that look from outside on
//! nothing of the extension's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// What a pure crate may depend on: data structures, error enums, codecs. Nothing that reaches outside.
const PURE_MAY_USE: &[&str] = &[
    "pg_ha_model",
    "thiserror",
    "serde",
    "serde_json",
    "bytes",
    "crc32fast",
    "raft",
    "postgres-protocol",
    "smallvec",
];

/// The names of the pure packages, for `cargo test`.
pub(crate) fn pure(repository: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = packages(repository)?
        .iter()
        .filter(|package| package.directory.starts_with("crates") && package.name != "xtask")
        .map(|package| package.name.clone())
        .collect();
    names.sort();
    Ok(names)
}

struct Package {
    name: String,
    directory: PathBuf,
    /// Without those for tests only.
    dependencies: Vec<String>,
    published: bool,
}

fn packages(repository: &Path) -> Result<Vec<Package>> {
    let text = process::answer(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([
                "metadata",
                "--format-version=1",
                "--no-deps",
                "--locked",
                "--offline",
            ])
            .current_dir(repository),
    )?;
    let metadata: Value = serde_json::from_str(&text)?;
    let list = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    Ok(list
        .iter()
        .map(|package| Package {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            directory: Path::new(package["manifest_path"].as_str().unwrap_or_default())
                .parent()
                .and_then(|path| path.strip_prefix(repository).ok())
                .unwrap_or(Path::new(""))
                .to_owned(),
            dependencies: package["dependencies"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
                .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
                .collect(),
            published: !package["publish"].as_array().is_some_and(Vec::is_empty),
        })
        .collect())
}

/// Every breach, as `manifest: sentence`.
pub(crate) fn check(repository: &Path) -> Result<Vec<String>> {
    Ok(packages(repository)?.iter().flat_map(check_package).collect())
}

fn check_package(package: &Package) -> Vec<String> {
    let Package {
        name,
        directory,
        dependencies,
        published,
    } = package;
    let manifest = directory.join("Cargo.toml").display().to_string();
    let mut found = Vec::new();
    if *published {
        found.push(format!("{manifest}: publish = false is missing"));
    }
    let short = directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    if directory.starts_with("crates") && short != "xtask" {
        if *name != format!("pg_ha_{short}") {
            found.push(format!("{manifest}: the package is named pg_ha_{short}"));
        }
        let simulation = short == "simulation";
        for dependency in dependencies {
            let allowed = PURE_MAY_USE.contains(&dependency.as_str())
                || (simulation && dependency.starts_with("pg_ha_"));
            if !allowed {
                found.push(format!(
                    "{manifest}: a pure crate does not depend on {dependency}"
                ));
            }
        }
    }
    if name == "pg_ha_test" || name == "xtask" {
        for dependency in dependencies
            .iter()
            .filter(|dependency| dependency.starts_with("pg_ha"))
        {
            found.push(format!(
                "{manifest}: {name} knows the extension only from outside, not {dependency}"
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_depend_on_what_they_may() {
        let package = |name: &str, directory: &str, dependencies: &[&str]| Package {
            name: name.to_owned(),
            directory: PathBuf::from(directory),
            dependencies: dependencies.iter().map(|name| (*name).to_owned()).collect(),
            published: false,
        };
        let faults = |dependencies: &[&str]| {
            check_package(&package("pg_ha_routing", "crates/routing", dependencies)).len()
        };
        assert_eq!(faults(&["pg_ha_model", "thiserror"]), 0);
        assert_eq!(faults(&["pg_ha_replication"]), 1);
        assert_eq!(faults(&["libc", "pgrx"]), 2);
        assert_eq!(check_package(&package("routing", "crates/routing", &[])).len(), 1);
        assert_eq!(
            check_package(&package("pg_ha_test", "pg_test", &["pg_ha_model"])).len(),
            1
        );
        assert_eq!(check_package(&package("pg_ha", "", &["pgrx", "libc"])).len(), 0);
    }
}
