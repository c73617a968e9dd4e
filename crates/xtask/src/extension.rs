//! Building the extension for a version of the server, and installing it: a shared library, a control file and
//! SQL scripts, all of them handwritten or plain `cargo build` output.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::console::Step;
use crate::server::{self, Major, Prefix, Server};
use crate::{layout, process};

/// The environment and the options that select a version of the server, for any cargo command on the root
/// package.
pub(crate) fn cargo(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(words)
        .arg("--locked")
        .args([
            "--no-default-features",
            "--features",
            &format!("pg{}", server.major),
        ])
        .arg("--target-dir")
        .arg(target(server.major))
        .current_dir(layout::repository())
        .env("PGRX_PG_CONFIG_PATH", &server.pg_config);
    without_our_own(&mut command);
    command
}

/// `cargo run` describes the package it runs in the environment; a nested cargo must not see that.
pub(crate) fn without_our_own(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST"))
        {
            command.env_remove(name);
        }
    }
}

fn target(major: Major) -> PathBuf {
    layout::target((major != Major::FULL).then(|| format!("pg{major}")).as_deref())
}

/// Where the output of a part is kept.
pub(crate) fn log(part: &str) -> Result<PathBuf> {
    let directory = layout::target(Some("logs"));
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{part}.log"));
    let _ = fs::remove_file(&path);
    Ok(path)
}

/// Builds the library and returns its path.
pub(crate) fn build(server: &Server, release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    let mut step = Step::begin(&format!(
        "building pg_ha for PostgreSQL {} ({profile}, {})",
        server.version, server.origin
    ));
    let mut words = vec!["build", "--package", "pg_ha"];
    if release {
        words.push("--release");
    }
    let log = log(&format!("build-pg{}-{profile}", server.major))?;
    let mut crates = 0;
    let succeeded = process::logged(
        cargo(server, &words),
        &log,
        Duration::from_secs(3600),
        &mut |line| {
            if let Some(name) = line.and_then(|line| line.trim_start().strip_prefix("Compiling ")) {
                crates += 1;
                step.progress(&format!("{crates} crates, {name}"));
            } else {
                step.progress(&format!("{crates} crates"));
            }
        },
    )?;
    if !succeeded {
        step.end(&crate::console::red("✗"), "failed");
        bail!(
            "the build failed; all of it is in {}\n{}",
            log.display(),
            process::tail(&log, 40)
        );
    }
    step.done("");
    Ok(target(server.major).join(profile).join("libpg_ha.so"))
}

/// Builds, and installs into a copy of the server that this checkout keeps in the cache.
pub(crate) fn stage(server: &Server, release: bool) -> Result<Prefix> {
    let library = build(server, release)?;
    let profile = if release { "-release" } else { "" };
    let root = layout::cache()?
        .join("stage")
        .join(layout::checkout_name())
        .join(format!("pg{}{profile}", server.major));
    private_copy(server, &library, &root)
}

/// Installs a built library into a copy of the server under `root`.
pub(crate) fn private_copy(server: &Server, library: &Path, root: &Path) -> Result<Prefix> {
    let prefix = server::copy_to(server, root)?;
    install(&prefix.program("pg_config"), library)?;
    // Whatever the layout of the build, the library is found where Debian has it.
    let usual = root.join(format!("lib/postgresql/{}/lib/pg_ha.so", server.major));
    if !usual.exists() {
        std::os::unix::fs::symlink("postgresql/pg_ha.so", &usual)?;
    }
    Ok(prefix)
}

pub(crate) fn install_into_system(server: &Server, release: bool) -> Result<()> {
    if server::on_host(server.major).is_none() {
        bail!("the system has no PostgreSQL {} to install into", server.major);
    }
    let library = build(server, release)?;
    install(&server.pg_config, &library)?;
    say!(
        "installed. Add to postgresql.conf:\n\n  shared_preload_libraries = 'pg_ha'\n  wal_level = logical\n  \
         track_commit_timestamp = on\n\nrestart the server, and in your database: CREATE EXTENSION pg_ha;"
    );
    Ok(())
}

/// Each file is written beside its place and renamed: a running server goes on with the old one.
fn install(pg_config: &Path, library: &Path) -> Result<()> {
    let ask = |option: &str| process::answer(Command::new(pg_config).arg(option)).map(PathBuf::from);
    let libraries = ask("--pkglibdir")?;
    let scripts = ask("--sharedir")?.join("extension");
    let repository = layout::repository();
    put(library, &libraries.join("pg_ha.so"))?;
    put(&repository.join("pg_ha.control"), &scripts.join("pg_ha.control"))?;
    let sql = repository.join("sql");
    let entries = fs::read_dir(&sql).with_context(|| format!("cannot read {}", sql.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql")
            && let Some(name) = path.file_name()
        {
            put(&path, &scripts.join(name))?;
        }
    }
    Ok(())
}

fn put(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let name = to
        .file_name()
        .context("a file needs a name")?
        .to_string_lossy()
        .into_owned();
    let beside = to.with_file_name(format!(".{name}.new"));
    let copied = fs::copy(from, &beside)
        .and_then(|_| fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&beside, to));
    copied.with_context(|| format!("cannot install {} as {}", from.display(), to.display()))
}
