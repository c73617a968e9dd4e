//! The rules of the house that neither rustc nor clippy can check: where `unsafe` and version differences live,
//! what pure crates may see, who may call whom, and how long a file may be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::source_text::{has_word, mask};

/// A newcomer should not have to scroll for minutes.
const LONGEST_FILE: usize = 700;

/// What would give a pure crate a socket, a clock, a thread, a file or randomness.
const IMPURE: &[&str] = &[
    "std::net",
    "std::thread",
    "std::fs",
    "std::process",
    "std::env",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "RandomState",
];

/// Layers of the extension. A module never names one of the modules beside it here.
const NEVER_CALLS: &[(&str, &[&str])] = &[
    ("shared_state", &["workers", "decoding", "sql_api"]),
    ("catalog", &["workers", "decoding", "sql_api"]),
    ("durable", &["workers", "decoding", "sql_api"]),
    ("network", &["workers", "decoding", "sql_api"]),
    ("workers", &["sql_api"]),
    ("decoding", &["workers", "sql_api"]),
    ("sql_api", &["workers", "decoding"]),
];

/// Every breach, as `path:line: sentence`.
pub(crate) fn scan(repository: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for directory in ["src", "crates", "pg_test"] {
        for path in rust_files(&repository.join(directory))? {
            let name = path
                .strip_prefix(repository)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
            found.extend(scan_file(&name, &text));
        }
    }
    Ok(found)
}

fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(files);
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn scan_file(name: &str, text: &str) -> Vec<String> {
    let masked = mask(text);
    let original: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut report = |line: usize, sentence: &str| found.push(format!("{name}:{}: {sentence}", line + 1));

    let may_be_unsafe = name.starts_with("src/postgres/");
    let version_file = Path::new(name)
        .file_name()
        .is_some_and(|file| file.to_string_lossy().starts_with("version"))
        && may_be_unsafe
        || name.starts_with("src/postgres/version/");
    let layer = name
        .strip_prefix("src/")
        .and_then(|rest| rest.split(['/', '.']).next())
        .unwrap_or_default();
    let forbidden_calls = NEVER_CALLS
        .iter()
        .find(|(module, _)| *module == layer)
        .map(|(_, never)| *never)
        .unwrap_or_default();
    let pure = is_pure(name);
    let mut in_tests = name.contains("/tests/") || name.contains("/benches/");

    for (number, code) in masked.code.iter().enumerate() {
        let with_strings = masked.without_comments.get(number).map_or("", String::as_str);
        if code.trim_start().starts_with("#[cfg(test)]") {
            // By custom the tests are the last thing in a file.
            in_tests = true;
        }
        if has_word(code, "unsafe") {
            if !may_be_unsafe {
                report(number, "`unsafe` outside src/postgres/");
            } else if needs_safety_comment(code) && !has_safety_comment(&original, number) {
                report(number, "an unsafe block without a SAFETY comment");
            }
        }
        if code.contains("allow(unsafe_code)") && name != "src/lib.rs" {
            report(number, "only src/lib.rs allows unsafe code, for `mod postgres`");
        }
        if !version_file && mentions_version(with_strings) {
            report(
                number,
                "a PostgreSQL version's cfg outside src/postgres/version*.rs",
            );
        }
        for module in forbidden_calls {
            if has_word(code, &format!("crate::{module}")) {
                report(
                    number,
                    &format!("{layer} never calls {module}: they speak through shared state"),
                );
            }
        }
        if pure && !in_tests {
            for impurity in IMPURE.iter().filter(|impurity| has_word(code, impurity)) {
                report(number, &format!("a pure crate uses {impurity}"));
            }
        }
    }
    if pure && name.ends_with("/src/lib.rs") && !text.contains("#![forbid(unsafe_code)]") {
        report(0, "a pure crate starts with #![forbid(unsafe_code)]");
    }
    if original.len() > LONGEST_FILE {
        report(
            original.len() - 1,
            &format!("longer than {LONGEST_FILE} lines; split it by what it is about"),
        );
    }
    found
}

fn is_pure(name: &str) -> bool {
    name.starts_with("crates/")
        && !name.starts_with("crates/xtask/")
        && !name.starts_with("crates/simulation/")
}

/// `feature = "pgNN"`, in whatever form of cfg.
fn mentions_version(line: &str) -> bool {
    let dense: String = line.split_whitespace().collect();
    dense.match_indices("feature=\"pg").any(|(start, found)| {
        dense
            .get(start + found.len()..)
            .is_some_and(|rest| rest.starts_with(['1', '2']))
    })
}

/// Blocks and impls do; declarations of unsafe functions carry `# Safety` documentation instead, and blocks of
/// foreign declarations promise nothing.
fn needs_safety_comment(code: &str) -> bool {
    code.match_indices("unsafe").any(|(start, word)| {
        let rest = code.get(start + word.len()..).unwrap_or_default().trim_start();
        rest.is_empty() || rest.starts_with('{') || rest.starts_with("impl")
    })
}

/// On the same line, or above it: over comments and attributes, and up to the start of the statement.
fn has_safety_comment(lines: &[&str], number: usize) -> bool {
    let mentions = |line: &str| line.to_ascii_uppercase().contains("SAFETY:");
    if lines.get(number).is_some_and(|line| mentions(line)) {
        return true;
    }
    for line in lines.get(..number).unwrap_or_default().iter().rev() {
        let trimmed = line.trim();
        if trimmed.starts_with("//") {
            if mentions(trimmed) {
                return true;
            }
        } else if !trimmed.starts_with("#[") && (trimmed.is_empty() || trimmed.ends_with([';', '{', '}'])) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(name: &str, text: &str) -> Vec<String> {
        scan_file(name, text)
    }

    #[test]
    fn unsafe_has_one_home() {
        assert_eq!(
            sentences("src/workers/applier.rs", "fn f() { unsafe { g() } }").len(),
            1
        );
        assert!(sentences("src/workers/applier.rs", "// unsafe\nlet x = \"unsafe\";").is_empty());
        assert!(sentences("src/lib.rs", "#[allow(unsafe_code)]\nmod postgres;").is_empty());
        assert_eq!(sentences("src/workers/mod.rs", "#![allow(unsafe_code)]").len(), 1);
    }

    #[test]
    fn unsafe_blocks_say_why() {
        let name = "src/postgres/latch.rs";
        assert_eq!(
            sentences(name, "fn f() {\n    let x = unsafe { g() };\n}").len(),
            1
        );
        assert!(
            sentences(
                name,
                "fn f() {\n    // SAFETY: g is sound.\n    let x = unsafe { g() };\n}"
            )
            .is_empty()
        );
        let long =
            "fn f() {\n    // SAFETY: g is sound,\n    // always.\n    let x =\n        unsafe { g() };\n}";
        assert!(sentences(name, long).is_empty());
        let other = "// SAFETY: of something else.\nfoo();\nunsafe { g() };";
        assert_eq!(sentences(name, other).len(), 1);
        assert!(sentences(name, "pub(crate) unsafe fn f() {}\nunsafe extern \"C\" {}").is_empty());
        assert_eq!(sentences(name, "unsafe impl Send for X {}").len(), 1);
    }

    #[test]
    fn versions_differ_in_one_place() {
        // Put together here, so that this file does not break the rule it tests.
        let cfg = format!("#[cfg({} = \"pg{}\")]", "feature", 16);
        assert_eq!(sentences("src/postgres/walreceiver.rs", &cfg).len(), 1);
        assert_eq!(sentences("src/workers/version.rs", &cfg).len(), 1);
        assert!(sentences("src/postgres/version_walreceiver.rs", &cfg).is_empty());
        assert!(sentences("src/postgres/version/walreceiver.rs", &cfg).is_empty());
        assert!(sentences("src/lib.rs", &format!("// {cfg}")).is_empty());
    }

    #[test]
    fn pure_crates_stay_pure() {
        let name = "crates/replication/src/codec.rs";
        assert_eq!(sentences(name, "let now = std::time::Instant::now();").len(), 2);
        assert!(sentences(name, "fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; }").is_empty());
        assert_eq!(sentences("crates/model/src/lib.rs", "//! Words.").len(), 1);
        assert!(sentences("crates/xtask/src/main.rs", "use std::fs;").is_empty());
    }

    #[test]
    fn layers_hold() {
        assert_eq!(
            sentences("src/sql_api/nodes.rs", "use crate::workers::supervisor;").len(),
            1
        );
        assert!(sentences("src/sql_api/nodes.rs", "use crate::catalog::nodes;").is_empty());
        assert_eq!(sentences("src/catalog/nodes.rs", "crate::sql_api::f();").len(), 1);
    }

    #[test]
    fn files_end_before_readers_tire() {
        assert_eq!(
            sentences("src/long.rs", &"fn f() {}\n".repeat(LONGEST_FILE + 1)).len(),
            1
        );
    }
}
