//! The chain of SQL scripts: from every version that a user may have, one way leads to the current one; and what
//! was released never changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

pub(crate) fn check(repository: &Path) -> Result<Vec<String>> {
    let control =
        fs::read_to_string(repository.join("pg_ha.control")).context("cannot read pg_ha.control")?;
    let current = default_version(&control).context("pg_ha.control names no default_version")?;
    let scripts: Vec<String> = fs::read_dir(repository.join("sql"))
        .context("cannot read sql/")?
        .filter_map(|entry| {
            entry
                .ok()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
        })
        .filter(|name| name.ends_with(".sql"))
        .collect();
    let mut found = chain(&scripts, &current);
    let changelog = fs::read_to_string(repository.join("CHANGELOG.md")).unwrap_or_default();
    for (version, heading) in released(&changelog) {
        found.extend(unchanged(repository, &scripts, &version, &heading)?);
    }
    Ok(found)
}

fn default_version(control: &str) -> Option<String> {
    control.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "default_version").then(|| value.trim().trim_matches('\'').to_owned())
    })
}

/// What is wrong with a set of script names.
fn chain(scripts: &[String], current: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut install = BTreeSet::new();
    let mut upgrade: BTreeMap<&str, &str> = BTreeMap::new();
    for script in scripts {
        let Some(versions) = script
            .strip_prefix("pg_ha--")
            .and_then(|rest| rest.strip_suffix(".sql"))
        else {
            found.push(format!(
                "sql/{script}: not named pg_ha--VERSION.sql or pg_ha--FROM--TO.sql"
            ));
            continue;
        };
        match versions.split("--").collect::<Vec<_>>().as_slice() {
            [version] => {
                install.insert(*version);
            }
            [from, to] => {
                if let Some(other) = upgrade.insert(from, to) {
                    found.push(format!(
                        "sql/{script}: {from} already leads to {other}; the chain is one line"
                    ));
                }
            }
            _ => found.push(format!("sql/{script}: too many versions in the name")),
        }
    }
    if install.is_empty() {
        found.push(format!(
            "sql/: no script installs anything (pg_ha--{current}.sql)"
        ));
    }
    let starts: BTreeSet<&str> = install.iter().copied().chain(upgrade.keys().copied()).collect();
    for start in starts {
        let mut at = start;
        let mut steps = 0;
        while let Some(next) = upgrade
            .get(at)
            .filter(|_| at != current && steps <= upgrade.len())
        {
            at = next;
            steps += 1;
        }
        if at != current {
            found.push(format!(
                "sql/: from version {start} no chain of scripts leads to {current} (ends at {at})"
            ));
        }
    }
    let reachable: BTreeSet<&str> = install.iter().copied().chain(upgrade.values().copied()).collect();
    for from in upgrade.keys().filter(|from| !reachable.contains(*from)) {
        found.push(format!(
            "sql/: nothing leads to {from}, from which an upgrade script starts"
        ));
    }
    found
}

/// Versions under a dated heading, such as `## 0.1.0 - 2027-01-31`.
fn released(changelog: &str) -> Vec<(String, String)> {
    changelog
        .lines()
        .filter(|line| {
            line.starts_with("## ") && line.split(|c: char| !c.is_ascii_digit() && c != '-').any(is_date)
        })
        .filter_map(|line| {
            let version = line.split_whitespace().nth(1)?.trim_matches(['[', ']', 'v']);
            version
                .starts_with(|c: char| c.is_ascii_digit())
                .then(|| (version.to_owned(), line.to_owned()))
        })
        .collect()
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([4, 2, 2])
        && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_digit()))
}

/// Compares the scripts that lead to a version with what they were in the commit that dated it.
fn unchanged(repository: &Path, scripts: &[String], version: &str, heading: &str) -> Result<Vec<String>> {
    let git = |words: &[&str]| process::answer(Command::new("git").args(words).current_dir(repository));
    if git(&["rev-parse", "--verify", "--quiet", "HEAD"]).is_err() {
        // An unpacked archive: nothing to compare with.
        return Ok(Vec::new());
    }
    let pick = format!("-S{heading}");
    let commits = git(&["log", "--reverse", "--format=%H", &pick, "--", "CHANGELOG.md"])?;
    // Not committed yet: this is the commit that will date it.
    let Some(commit) = commits.lines().next() else {
        return Ok(Vec::new());
    };
    let names = git(&["ls-tree", "--name-only", commit, "sql/"])?;
    let end = format!("--{version}.sql");
    let mut found = Vec::new();
    for name in names.lines().filter(|name| name.ends_with(&end)) {
        if !scripts.iter().any(|script| name == format!("sql/{script}")) {
            found.push(format!(
                "{name}: belongs to released version {version} and is gone"
            ));
        } else if !process::succeeds(
            Command::new("git")
                .args(["diff", "--quiet", commit, "--", name])
                .current_dir(repository),
        ) {
            found.push(format!(
                "{name}: belongs to released version {version} and was changed since"
            ));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(names: &[&str], current: &str) -> usize {
        chain(
            &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
            current,
        )
        .len()
    }

    #[test]
    fn one_chain_leads_to_the_current_version() {
        assert_eq!(faults(&["pg_ha--0.1.0.sql"], "0.1.0"), 0);
        assert_eq!(
            faults(&["pg_ha--0.1.0.sql", "pg_ha--0.1.0--0.2.0.sql"], "0.2.0"),
            0
        );
        let three = [
            "pg_ha--0.1.0.sql",
            "pg_ha--0.1.0--0.2.0.sql",
            "pg_ha--0.2.0--0.3.0.sql",
        ];
        assert_eq!(faults(&three, "0.3.0"), 0);
    }

    #[test]
    fn breaks_are_found() {
        assert_eq!(faults(&[], "0.1.0"), 1);
        assert_eq!(faults(&["pg_ha--0.1.0.sql"], "0.2.0"), 1);
        assert_eq!(
            faults(&["pg_ha--0.1.0.sql", "pg_ha--0.2.0--0.3.0.sql"], "0.3.0"),
            2
        );
        let forked = [
            "pg_ha--0.1.0.sql",
            "pg_ha--0.1.0--0.2.0.sql",
            "pg_ha--0.1.0--0.3.0.sql",
        ];
        assert!(faults(&forked, "0.3.0") >= 1);
        assert_eq!(faults(&["pg_ha--0.1.0.sql", "tables.sql"], "0.1.0"), 1);
        let loops = [
            "pg_ha--0.1.0.sql",
            "pg_ha--0.1.0--0.2.0.sql",
            "pg_ha--0.2.0--0.1.0.sql",
        ];
        assert!(faults(&loops, "0.3.0") >= 1);
    }

    #[test]
    fn only_dated_headings_are_releases() {
        let changelog =
            "# Changes\n## Unreleased\n## [0.2.0] - 2027-03-01\n- x\n## 0.1.0 (2027-01-31)\n## 0.0.1\n";
        let versions: Vec<String> = released(changelog)
            .into_iter()
            .map(|(version, _)| version)
            .collect();
        assert_eq!(versions, ["0.2.0", "0.1.0"]);
    }

    #[test]
    fn reads_the_control_file() {
        assert_eq!(
            default_version("comment = 'x'\ndefault_version = '0.1.0'\n").as_deref(),
            Some("0.1.0")
        );
    }
}
