//! A server from another Debian release than the host's, without a chroot: that release's packages are fetched
//! with apt under a private root (signatures checked with the host's archive keys), unpacked, and their programs
//! told to use the C library and the other libraries that were unpacked with them. They then run on the host
//! like any program, see the same network and files, and need neither root nor mounts.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Major, Server, debian_layout};
use crate::cleanup::{self, Debt};
use crate::console::Step;
use crate::{layout, prerequisites, process};

/// The Debian release whose archive has this version.
pub(super) fn codename(major: Major) -> Option<&'static str> {
    match major.number() {
        15 => Some("bookworm"),
        17 => Some("trixie"),
        // In testing, which moves; its Release file may be expired where a snapshot of it is served.
        18 => Some("forky"),
        _ => None,
    }
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(super) fn prepare(major: Major, codename: &str) -> Result<Server> {
    let origin = format!("Debian {codename} packages");
    let root = layout::cache()?.join(format!("servers/{major}-{codename}"));
    if let Ok(server) = debian_layout(&root, major, &origin) {
        return Ok(server);
    }
    prerequisites::install(prerequisites::OTHER_RELEASE)?;
    let mut step = Step::begin(&format!("fetching PostgreSQL {major} ({origin})"));
    layout::make_readable(&layout::cache()?.join("servers"))?;
    // Built beside its place and renamed, so that an interrupted run leaves nothing that looks finished.
    let partial = layout::cache()?.join(format!(
        "servers/{major}-{codename}.partial-{}",
        std::process::id()
    ));
    layout::make_readable(&partial)?;
    let owed = cleanup::owe(Debt::Directory(partial.clone()));
    let log = layout::cache()?.join(format!("servers/{major}-{codename}.log"));
    let _ = fs::remove_file(&log);
    let packages = fetch(major, codename, &partial, &log, &mut step)?;
    step.progress("unpacking");
    let tree = partial.join("tree");
    layout::make_readable(&tree)?;
    for package in &packages {
        process::answer(Command::new("dpkg-deb").arg("-x").arg(package).arg(&tree))?;
    }
    step.progress("telling programs where their libraries are");
    adopt_libraries(&tree, &root, major)?;
    let _ = fs::remove_dir_all(&root);
    if fs::rename(&tree, &root).is_err() && debian_layout(&root, major, &origin).is_err() {
        bail!("cannot move the unpacked packages to {}", root.display());
    }
    drop(owed);
    let server = debian_layout(&root, major, &origin)?;
    step.done(&server.version);
    Ok(server)
}

/// Downloads the server, its headers and all they depend on; returns the package files worth unpacking.
fn fetch(major: Major, codename: &str, partial: &Path, log: &Path, step: &mut Step) -> Result<Vec<PathBuf>> {
    let archives = partial.join("apt/cache/archives");
    fs::create_dir_all(archives.join("partial"))?;
    fs::create_dir_all(partial.join("apt/state/lists/partial"))?;
    // apt believes that nothing is installed, and so fetches the C library too.
    fs::write(partial.join("apt/state/status"), "")?;
    let sources = partial.join("apt/sources.list");
    fs::write(
        &sources,
        format!("deb [signed-by={KEYRING}] {} {codename} main\n", mirror()?),
    )?;
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        let state = partial.join("apt/state");
        for (option, value) in [
            ("Dir::Etc::sourcelist", sources.as_path()),
            ("Dir::Etc::sourceparts", Path::new("/dev/null")),
            ("Dir::Etc::preferences", Path::new("/dev/null")),
            ("Dir::Etc::preferencesparts", Path::new("/dev/null")),
            ("Dir::State", &state),
            ("Dir::State::status", &state.join("status")),
            ("Dir::Cache", &partial.join("apt/cache")),
            ("APT::Install-Recommends", Path::new("false")),
            ("Acquire::Check-Valid-Until", Path::new("false")),
            ("Acquire::Languages", Path::new("none")),
            ("Acquire::Retries", Path::new("3")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        if nix::unistd::geteuid().is_root() {
            // Its sandbox user cannot write to our directories.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command.args(["-q", "-y"]).args(words).current_dir(&archives);
        command
    };
    for words in [
        vec!["update".to_owned()],
        vec![
            "install".to_owned(),
            "--download-only".to_owned(),
            format!("postgresql-{major}"),
        ],
        // Its dependencies are compilers; ours are on the host.
        vec!["download".to_owned(), format!("postgresql-server-dev-{major}")],
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let succeeded = process::logged(apt(&words), log, Duration::from_secs(900), &mut |line| {
            step.progress(line.unwrap_or_default());
        })?;
        if !succeeded {
            bail!("apt-get {} failed:\n{}", words.join(" "), process::tail(log, 8));
        }
    }
    // Nothing that a running server opens is in these.
    let useless = [
        "perl",
        "locales",
        "libc-l10n",
        "debconf",
        "adduser",
        "passwd",
        "login",
    ];
    let mut packages: Vec<PathBuf> = fs::read_dir(&archives)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .filter(|path| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            !useless.iter().any(|start| name.starts_with(start))
        })
        .collect();
    packages.sort();
    Ok(packages)
}

/// The Debian mirror that the host itself uses, so that its proxies and local mirrors are respected.
fn mirror() -> Result<String> {
    if let Ok(chosen) = std::env::var("PG_HA_DEBIAN_MIRROR") {
        return Ok(chosen);
    }
    let targets = process::answer(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian "))
        .map(str::to_owned)
        .context("apt knows no Debian mirror on this machine; name one in PG_HA_DEBIAN_MIRROR")
}

/// Points every program at its own release's dynamic loader and libraries. DT_RPATH, not DT_RUNPATH: it also
/// holds for what the libraries and the modules that the server loads depend on.
fn adopt_libraries(tree: &Path, final_root: &Path, major: Major) -> Result<()> {
    let machine = std::env::consts::ARCH;
    let loader = fs::read_dir(tree.join(format!("usr/lib/{machine}-linux-gnu")))?
        .filter_map(|entry| {
            entry
                .ok()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
        })
        .find(|name| name.starts_with("ld-linux"))
        .context("the unpacked C library has no dynamic loader")?;
    let libraries = final_root.join(format!("usr/lib/{machine}-linux-gnu"));
    let bin = tree.join(format!("usr/lib/postgresql/{major}/bin"));
    for entry in fs::read_dir(&bin)? {
        let program = entry?.path();
        if !is_elf(&program) || program.is_symlink() {
            continue;
        }
        process::answer(
            Command::new("patchelf")
                .arg("--set-interpreter")
                .arg(libraries.join(&loader))
                .arg("--force-rpath")
                .arg("--set-rpath")
                .arg(&libraries)
                .arg(&program),
        )?;
    }
    Ok(())
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok()
        && magic == *b"\x7fELF"
}
