//! `cargo demo`: three nodes on loopback that all take writes, and a tour that shows them agreeing.

mod cluster;
mod live;
mod state;

use std::time::Duration;

use anyhow::{Result, bail};

use crate::arguments::Arguments;
use crate::console::{self, bold, dim, green};
use crate::layout::RunDirectory;
use crate::process::ServerUser;
use crate::{extension, server};
use cluster::Cluster;

const SECONDS: u64 = 20;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match arguments.words.first().map(String::as_str) {
        Some("down") => return state::down(),
        Some(other) => bail!("`cargo demo` knows `down`, not {other:?}"),
        None => {}
    }
    if let Some(running) = state::running()? {
        bail!(
            "a demo cluster is already running in {}; `cargo demo down` removes it",
            running.display()
        );
    }
    say!(
        "{}",
        bold("pg_ha: three PostgreSQL servers, all taking writes, one content")
    );
    let server = server::prepare(server::chosen(arguments)?)?;
    let user = ServerUser::find()?;
    let library = extension::build(&server, true)?;
    let directory = RunDirectory::create("demo", &user)?;
    let prefix = extension::private_copy(&server, &library, &directory.path.join("server"))?;

    let cluster = Cluster::start(&prefix, &user, &directory.path)?;
    let told = tour(
        &cluster,
        Duration::from_secs(arguments.seconds.unwrap_or(SECONDS)),
    );
    if let Err(error) = told {
        let logs = cluster.save_logs()?;
        return Err(error.context(format!(
            "the demo did not come to its end; server logs are in {}",
            logs.display()
        )));
    }
    say!("");
    if arguments.keep {
        look_around(&cluster);
        let state = state::remember(&directory.path, &cluster)?;
        cluster.keep();
        let kept = directory.keep();
        say!(
            "\nThe cluster stays, in {}. `cargo demo down` removes it.",
            kept.display()
        );
        // From here on the file is the only way back to it.
        debug_assert!(state.exists());
    } else {
        say!(
            "Servers stopped, everything removed. {} keeps the cluster to look around.",
            bold("cargo demo --keep")
        );
    }
    Ok(())
}

fn tour(cluster: &Cluster, length: Duration) -> Result<()> {
    cluster.create_nodes()?;
    cluster.load()?;
    cluster.replicate_tables()?;
    cluster.subscribe()?;

    say!(
        "\n{}",
        bold(&format!(
            "Writers on all three nodes for {} seconds",
            length.as_secs()
        ))
    );
    say!(
        "{}",
        dim("each one pgbench's TPC-B, on branches of its own; every row goes to the two others")
    );
    live::watch(cluster, length)?;

    cluster.wait_until_applied()?;
    let agreed = cluster.compare()?;
    say!("");
    for line in agreed {
        say!("  {line}");
    }
    say!("\n{}", green(&bold("Four tables, three nodes, one content.")));
    Ok(())
}

fn look_around(cluster: &Cluster) {
    say!("{}", bold("Look around:"));
    let program = cluster.psql();
    for node in cluster.nodes() {
        say!(
            "  {program} -p {} demo    {}",
            node.port,
            dim(&format!("# {}", node.name))
        );
    }
    say!("\n{}", bold("and there:"));
    for (sql, what) in [
        ("SELECT * FROM ha.status;", "the nodes as this one sees them"),
        (
            "SELECT * FROM ha.status_subscriptions;",
            "what it receives, and how far behind it is",
        ),
        ("SELECT * FROM ha.status_tables;", "rows applied, table by table"),
        (
            "SELECT * FROM ha.events ORDER BY at DESC LIMIT 20;",
            "what happened here",
        ),
        (
            "UPDATE pgbench_branches SET filler = 'hello' WHERE bid = 1;",
            "change a row, and read it elsewhere",
        ),
    ] {
        say!("  {sql:62} {}", dim(what));
    }
    if !console::is_terminal() {
        say!("");
    }
}
