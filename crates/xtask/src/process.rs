//! Running other programs: to read their answer, or with their output in a log file while their progress shows.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cleanup::{self, Debt};

/// Who runs servers: `postgres` when we are root, which PostgreSQL refuses; else ourselves.
#[derive(Debug, Clone)]
pub(crate) struct ServerUser(Option<(u32, u32)>);

impl ServerUser {
    pub(crate) fn find() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Self(None));
        }
        let user = nix::unistd::User::from_name("postgres")
            .context("cannot read the user database")?
            .context("there is no user postgres to run servers (root may not run PostgreSQL)")?;
        Ok(Self(Some((user.uid.as_raw(), user.gid.as_raw()))))
    }

    pub(crate) fn ids(&self) -> Option<(u32, u32)> {
        self.0
    }

    /// A command run by that user, in a directory it can enter, with nothing of ours in its environment that
    /// would change what a server prints.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir("/")
            .env_remove("RUST_BACKTRACE")
            // libpq in a server would look for certificates in the caller's home, which it may not enter.
            .env_remove("HOME")
            .stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("PG") && !name.starts_with("PG_HA"))
            {
                command.env_remove(name);
            }
        }
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid).env("HOME", "/nonexistent");
        }
        command
    }
}

/// Standard output without its last line feed; an error that carries what the program said.
pub(crate) fn answer(command: &mut Command) -> Result<String> {
    let name = described(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = if said.trim().is_empty() {
            String::from_utf8_lossy(&output.stdout)
        } else {
            said
        };
        bail!("{name} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end_matches('\n')
        .to_owned())
}

/// The same for a program that may be missing or say no.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn described(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    crate::console::clipped(&words.join(" "), 200)
}

/// Runs to the end with both outputs in `log`, each line also shown to `on_line`. The program gets a process
/// group of its own, which is ended if we are interrupted or `limit` passes. True if it succeeded.
pub(crate) fn logged(
    mut command: Command,
    log: &Path,
    limit: Duration,
    on_line: &mut dyn FnMut(Option<&str>),
) -> Result<bool> {
    cleanup::refuse_if_interrupted()?;
    let name = described(&command);
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(file, "$ {name}")?;
    let (reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    // It holds the writing ends; the reader sees the end only when all are gone.
    drop(command);
    let owed = cleanup::owe(Debt::Group(child.id().cast_signed()));
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + limit;
    let mut ended = None;
    loop {
        if ended.is_none() && Instant::now() > deadline {
            writeln!(file, "[ended after {} s]", limit.as_secs())?;
            drop(owed);
            child.wait()?;
            bail!("{name} did not end within {} s", limit.as_secs());
        }
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                on_line(Some(&line));
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                on_line(None);
                // Something it started may hold the pipe open after its end: do not wait for that.
                if ended.is_some() {
                    break;
                }
                ended = child.try_wait()?;
            }
        }
    }
    let status = child.wait()?;
    owed.forgive();
    Ok(status.success())
}

/// The last lines of a log, for a failure message.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}
