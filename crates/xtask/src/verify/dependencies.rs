//! What we depend on, against the policy in `deny.toml`: licences, banned crates, sources. The file has cargo-deny's
//! format, so that cargo-deny can be run on it too; reading it here spares a fresh machine several minutes of
//! building cargo-deny. Advisories need a database from the network and are left to cargo-deny.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

struct Policy {
    licences: Vec<String>,
    /// (crate, licence)
    exceptions: Vec<(String, String)>,
    banned: Vec<Ban>,
    sources: Vec<String>,
}

struct Ban {
    name: String,
    reason: String,
    /// Crates that may depend on it all the same.
    wrappers: Vec<String>,
}

struct Dependency {
    name: String,
    /// Who depends on it directly.
    dependents: Vec<String>,
    version: String,
    licence: Option<String>,
    source: Option<String>,
}

/// Breaches, and a sentence on what was looked at.
pub(crate) fn check(repository: &Path) -> Result<(Vec<String>, String)> {
    let text = fs::read_to_string(repository.join("deny.toml")).context("cannot read deny.toml")?;
    let policy = Policy::read(&text)?;
    let dependencies = resolve(repository)?;
    let found = dependencies
        .iter()
        .flat_map(|dependency| policy.judge(dependency))
        .collect();
    let outside = dependencies
        .iter()
        .filter(|dependency| dependency.source.is_some())
        .count();
    Ok((
        found,
        format!("{outside} crates: licences, bans, sources; no advisories"),
    ))
}

/// Every package of the lock file that is built on Linux.
fn resolve(repository: &Path) -> Result<Vec<Dependency>> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let text = process::answer(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--filter-platform",
                &triple,
            ])
            .current_dir(repository),
    )?;
    let metadata: Value = serde_json::from_str(&text)?;
    let nodes = metadata["resolve"]["nodes"]
        .as_array()
        .context("cargo metadata resolves nothing")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    let names: BTreeMap<&str, &str> = packages
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
        .collect();
    let mut dependents: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in nodes {
        let id = node["id"].as_str().unwrap_or_default();
        dependents.entry(id).or_default();
        for dependency in node["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            let name = names.get(id).copied().unwrap_or_default();
            dependents.entry(dependency).or_default().push(name.to_owned());
        }
    }
    Ok(packages
        .iter()
        .filter_map(|package| {
            Some(Dependency {
                name: package["name"].as_str()?.to_owned(),
                dependents: dependents.get(package["id"].as_str()?)?.clone(),
                version: package["version"].as_str().unwrap_or_default().to_owned(),
                licence: package["license"].as_str().map(str::to_owned),
                source: package["source"].as_str().map(str::to_owned),
            })
        })
        .collect())
}

impl Policy {
    fn read(text: &str) -> Result<Self> {
        let file: toml::Table = text.parse().context("deny.toml is not TOML")?;
        let list = |section: &str, key: &str| -> Vec<toml::Value> {
            file.get(section)
                .and_then(|section| section.get(key))
                .and_then(toml::Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let text_of =
            |value: &toml::Value, key: &str| value.get(key).and_then(toml::Value::as_str).map(str::to_owned);
        let strings = |section: &str, key: &str| -> Vec<String> {
            list(section, key)
                .iter()
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect()
        };
        let exceptions = list("licenses", "exceptions")
            .iter()
            .flat_map(|exception| {
                let name = text_of(exception, "crate").unwrap_or_default();
                let allowed = exception
                    .get("allow")
                    .and_then(toml::Value::as_array)
                    .cloned()
                    .unwrap_or_default();
                allowed
                    .iter()
                    .filter_map(|licence| licence.as_str().map(|licence| (name.clone(), licence.to_owned())))
                    .collect::<Vec<_>>()
            })
            .collect();
        let banned = list("bans", "deny")
            .iter()
            .filter_map(|ban| {
                let wrappers = ban.get("wrappers").and_then(toml::Value::as_array);
                Some(Ban {
                    name: text_of(ban, "crate")?,
                    reason: text_of(ban, "reason").unwrap_or_default(),
                    wrappers: wrappers
                        .into_iter()
                        .flatten()
                        .filter_map(|name| name.as_str().map(str::to_owned))
                        .collect(),
                })
            })
            .collect();
        Ok(Self {
            licences: strings("licenses", "allow"),
            exceptions,
            banned,
            sources: strings("sources", "allow-registry"),
        })
    }

    fn judge(&self, dependency: &Dependency) -> Vec<String> {
        let Dependency {
            name,
            dependents,
            version,
            licence,
            source,
        } = dependency;
        let mut found = Vec::new();
        // Without a source it is one of our own.
        let Some(source) = source else { return found };
        if !self
            .sources
            .iter()
            .any(|allowed| source.strip_prefix("registry+") == Some(allowed))
        {
            found.push(format!(
                "{name} {version}: comes from {source}, which deny.toml does not list"
            ));
        }
        if let Some(ban) = self.banned.iter().find(|ban| ban.name == *name) {
            for dependent in dependents
                .iter()
                .filter(|dependent| !ban.wrappers.contains(dependent))
            {
                found.push(format!(
                    "{name} {version}: banned, but {dependent} depends on it: {}",
                    ban.reason
                ));
            }
        }
        let allowed = |id: &str| {
            self.licences.iter().any(|licence| licence == id)
                || self
                    .exceptions
                    .iter()
                    .any(|(package, licence)| package == name && licence == id)
        };
        match licence {
            None => found.push(format!("{name} {version}: declares no licence")),
            Some(expression) if !satisfied(expression, &allowed) => {
                found.push(format!(
                    "{name} {version}: licence {expression} is not allowed by deny.toml"
                ));
            }
            Some(_) => {}
        }
        found
    }
}

/// Whether an SPDX expression can be met with allowed licences. `/` is an old way to write OR.
fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    any_of(&words, &mut at, allowed) && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut met = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at, allowed);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    match words.get(*at) {
        Some(&"(") => {
            *at += 1;
            let met = any_of(words, at, allowed);
            *at += 1;
            met
        }
        Some(id) => {
            *at += 1;
            let mut id = (*id).to_owned();
            if words.get(*at) == Some(&"WITH") {
                id = format!("{id} WITH {}", words.get(*at + 1).unwrap_or(&""));
                *at += 2;
            }
            allowed(&id)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions() {
        let allowed = |id: &str| ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].contains(&id);
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR GPL-3.0) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR GPL-3.0) AND Zlib",
            "",
            "MIT WITH oddity",
            "MIT GPL-3.0",
        ] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn policy_is_read_and_applied() {
        let policy = Policy::read(
            "[licenses]\nallow = [\"MIT\"]\nexceptions = [{ crate = \"odd\", allow = [\"Zlib\"] }]\n\
             [bans]\ndeny = [{ crate = \"openssl\", reason = \"two TLS libraries in one process\", \
             wrappers = [\"tester\"] }]\n\
             [sources]\nallow-registry = [\"https://index\"]\n",
        )
        .unwrap();
        let judged_under = |dependent: &str, name: &str, licence: &str, source: &str| {
            policy
                .judge(&Dependency {
                    name: name.to_owned(),
                    dependents: vec![dependent.to_owned()],
                    version: "1.0.0".to_owned(),
                    licence: Some(licence.to_owned()),
                    source: Some(source.to_owned()),
                })
                .len()
        };
        let judged = |name, licence, source| judged_under("pg_ha", name, licence, source);
        assert_eq!(judged("good", "MIT", "registry+https://index"), 0);
        assert_eq!(judged("odd", "Zlib", "registry+https://index"), 0);
        assert_eq!(judged("good", "Zlib", "registry+https://index"), 1);
        assert_eq!(judged("openssl", "MIT", "registry+https://index"), 1);
        assert_eq!(
            judged_under("tester", "openssl", "MIT", "registry+https://index"),
            0
        );
        assert_eq!(judged("good", "MIT", "git+https://elsewhere"), 1);
    }
}
