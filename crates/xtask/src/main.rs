//! The project's own tool, reached through the aliases in `.cargo/config.toml`. It builds in seconds, without
//! pgrx or PostgreSQL, because it is what installs them.
#![forbid(unsafe_code)]
// A command-line tool: its output is its purpose.
#![allow(clippy::print_stdout, clippy::print_stderr)]

/// A line on standard output. Unlike `println!` it does not panic when nobody reads any more.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

mod arguments;
mod bench;
mod cleanup;
mod console;
mod demo;
mod extension;
mod instance;
mod layout;
mod prerequisites;
mod process;
mod server;
mod verify;

use std::process::ExitCode;

use anyhow::{Result, bail};
use arguments::Arguments;

const USAGE: &str = "\
usage: cargo demo         [--pg N] [--keep] [--seconds S]   a three-node cluster on loopback, and a tour of it
       cargo demo down                                      remove a cluster that --keep left running
       cargo verify       [--pg N] [--long] [--only NAME [--seed N]] [--parts LIST]
       cargo pure                                           the tests of the pure crates alone
       cargo bench-peers  [--pg N] [--rounds N] [--transactions N] [--write]
       cargo xtask stage  [--pg N] [--release]              build, and install into a private copy of the server; prints its prefix
       cargo xtask install --pg N [--release]               build, and install into the system's PostgreSQL
       cargo xtask regress [--pg N] [--only NAME] [--accept]  the SQL regression files; --accept takes the output as expected
       cargo xtask rules                                    the house rules alone
       cargo xtask prerequisites                            install what is missing";

fn main() -> ExitCode {
    let result = run();
    cleanup::finish_if_interrupted();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{} {error}", console::red("error:"));
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

/// True when the command did what it was asked and nothing it checked had failed.
fn run() -> Result<bool> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let arguments = Arguments::parse(words)?;
    cleanup::on_interrupt()?;
    match command.as_str() {
        "verify" => verify::run(&arguments),
        "pure" => verify::pure_alone(),
        "rules" => verify::rules_alone(),
        "regress" => verify::regress_alone(&arguments),
        "demo" => demo::run(&arguments).map(|()| true),
        "bench-peers" => bench::run(&arguments).map(|()| true),
        "stage" => {
            let server = server::prepare(server::chosen(&arguments)?)?;
            let prefix = extension::stage(&server, arguments.release)?;
            say!("{}", prefix.root.display());
            Ok(true)
        }
        "install" => {
            let server = server::prepare(server::chosen(&arguments)?)?;
            extension::install_into_system(&server, arguments.release)?;
            Ok(true)
        }
        "prerequisites" => prerequisites::ensure(server::chosen(&arguments)?).map(|()| true),
        "" | "help" | "--help" | "-h" => {
            say!("{USAGE}");
            Ok(true)
        }
        other => bail!("there is no command {other:?}\n{USAGE}"),
    }
}
