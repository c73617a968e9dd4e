//! Failure story: it only works as superuser with trust. With SCRAM, TLS and a role that has no more than it needs,
//! links are refused, run unencrypted, or the password shows up where others read it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::support::{SECRET, add_everywhere, no_secret_in_logs, refused, wait_no_lag};
use crate::cluster::{Cluster, Plan};
use crate::compare;
use crate::install::run;
use crate::node::Node;
use crate::scenario::{Need, Scenario, Stage};
use crate::sql::{self, literal};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "least_privilege_tls",
    story: "with SCRAM, TLS and a role that only has ha_replication, links fail, run in clear text, or leak the password",
    run: scenario,
    needs: &[Need::Openssl],
    stock: false,
    weight: 1,
}];

const HBA: &str =
    "local all postgres trust\nhostssl demo link 127.0.0.1/32 scram-sha-256\nhost all all 0.0.0.0/0 reject\n";

fn scenario(stage: &Stage) -> Result<()> {
    let (certificate, key) = make_certificate(stage)?;
    let mut plan = Plan::nodes(2)
        .with("ssl", "on")
        .with("password_encryption", "scram-sha-256");
    for number in 1..=2 {
        plan = plan.node(number, |spec| {
            spec.hba = Some(HBA.to_owned());
            spec.files = vec![
                ("server.crt".to_owned(), certificate.clone()),
                ("server.key".to_owned(), key.clone()),
            ];
        });
    }
    let cluster = stage.cluster(plan)?;
    cluster.create_database()?;
    cluster.everywhere("CREATE EXTENSION pg_ha")?;
    cluster.everywhere(&format!(
        "CREATE ROLE link LOGIN REPLICATION PASSWORD '{SECRET}' IN ROLE ha_replication;
         REVOKE ALL ON DATABASE {0} FROM PUBLIC; GRANT CONNECT ON DATABASE {0} TO link;
         REVOKE ALL ON SCHEMA public FROM PUBLIC; CREATE TABLE t (id int PRIMARY KEY, v text);
         CREATE ROLE monitor IN ROLE pg_monitor; CREATE ROLE nobody",
        cluster.database
    ))?;
    for node in &cluster.nodes {
        let dsn = literal(&dsn(stage, &cluster, node, SECRET));
        node.exec(
            &cluster.database,
            &format!("SELECT ha.node_create('{}', {dsn})", node.name),
        )?;
    }
    add_everywhere(&cluster, "default", &["t"])?;

    let two = cluster.node(2)?;
    let wrong = literal(&dsn(stage, &cluster, cluster.node(1)?, "not-the-password"));
    let statement = format!("SELECT ha.sub_create('sub_n2_n1', {wrong})");
    let denied = ["28P01", "28000", "08001", "08006"];
    refused(two, &cluster.database, &statement, &denied, &["authentication"])?;
    for (from, to) in cluster.pairs() {
        cluster.subscribe_through(&dsn(stage, &cluster, from, SECRET), from.number, to.number)?;
    }
    cluster.wait_replicating()?;
    for (number, node) in (1..).zip(&cluster.nodes) {
        node.exec(
            &cluster.database,
            &format!("INSERT INTO t VALUES ({number}, 'from {}')", node.name),
        )?;
        node.exec(
            &cluster.database,
            &format!("UPDATE t SET v = v || '!' WHERE id = {number}"),
        )?;
    }
    cluster.sync_all()?;
    compare::identical(&cluster, &["t"])?;
    wait_no_lag(&cluster)?;
    cluster.on_all(|node| encrypted(node).and_then(|()| nothing_shown(&cluster, node)))?;
    cluster.on_all(|node| no_more_than_needed(&cluster, node))?;

    // After a restart the links find their passwords again.
    cluster.on_all(Node::restart)?;
    cluster.wait_replicating()?;
    cluster
        .node(1)?
        .exec(&cluster.database, "DELETE FROM t WHERE id = 2")?;
    cluster.sync(1, 2)?;
    compare::identical(&cluster, &["t"])?;
    a_new_password(stage, &cluster)?;
    no_secret_in_logs(&cluster)
}

/// The password on n1 changes: n2 is told once, and its subscription connects with the new one.
fn a_new_password(stage: &Stage, cluster: &Cluster) -> Result<()> {
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    let password = format!("{SECRET}-2");
    one.exec("postgres", &format!("ALTER ROLE link PASSWORD '{password}'"))?;
    let new = literal(&dsn(stage, cluster, one, &password));
    for node in [one, two] {
        node.exec(
            &cluster.database,
            &format!("SELECT ha.node_set('n1', 'dsn', {new})"),
        )?;
    }
    one.restart()?;
    cluster.wait_replicating()?;
    one.exec(
        &cluster.database,
        "INSERT INTO t VALUES (3, 'with the new password')",
    )?;
    cluster.sync(1, 2)?;
    compare::identical(cluster, &["t"])
}

fn make_certificate(stage: &Stage) -> Result<(String, String)> {
    let directory = stage.install.base.join(stage.name);
    fs::create_dir_all(&directory)?;
    let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
    let subject = [
        "-subj",
        "/CN=pg_ha test",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ];
    run(Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(subject)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate))?;
    let read =
        |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    Ok((read(&certificate)?, read(&key)?))
}

fn dsn(stage: &Stage, cluster: &Cluster, node: &Node, password: &str) -> String {
    // Servers verify one another: each certificate is self-signed, so it is its own authority.
    let authority = stage.install.inside(&node.data().join("server.crt"));
    format!(
        "host={} port={} dbname={} user=link password={password} sslmode=verify-full sslrootcert={}",
        node.address,
        node.port,
        cluster.database,
        authority.display()
    )
}

fn encrypted(node: &Node) -> Result<()> {
    let sql = "SELECT usename, ssl FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)";
    let shown = sql::show(&node.rows("postgres", sql)?);
    ensure!(
        shown == "link | t",
        "the stream from {} should run as link with TLS, it is: {shown}",
        node.name
    );
    Ok(())
}

fn nothing_shown(cluster: &Cluster, node: &Node) -> Result<()> {
    let views = [
        "ha.nodes",
        "ha.subscriptions",
        "ha.status",
        "ha.status_subscriptions",
        "ha.events",
        "ha.sub_show_status()",
        "ha.doctor()",
    ];
    for view in views {
        for role in ["postgres", "monitor"] {
            let sql = format!("SET ROLE {role}; SELECT to_jsonb(t) FROM {view} AS t");
            let shown = sql::show(&node.rows(&cluster.database, &sql)?);
            ensure!(
                !shown.contains(SECRET),
                "{view} on {} shows {role} the password: {shown}",
                node.name
            );
        }
    }
    Ok(())
}

fn no_more_than_needed(cluster: &Cluster, node: &Node) -> Result<()> {
    let forbidden = [
        ("link", "SELECT * FROM public.t"),
        ("link", "SELECT ha.sub_drop('sub_n2_n1')"),
        ("monitor", "SELECT ha.sub_disable('sub_n2_n1')"),
        ("nobody", "SELECT ha.node_drop('n1')"),
        ("nobody", "SELECT * FROM ha.nodes"),
    ];
    for (role, statement) in forbidden {
        let Err(error) = node.rows(&cluster.database, &format!("SET ROLE {role}; {statement}")) else {
            anyhow::bail!("{}: role {role} may run {statement}", node.name);
        };
        let state = sql::refusal(&error).map(|refusal| refusal.sqlstate);
        ensure!(
            state.as_deref() == Some("42501"),
            "{}: {role}, {statement}: {error:#}",
            node.name
        );
    }
    // Whatever tables hold connection strings in full, only the owner reads them.
    let readable = "SELECT c.oid::regclass FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
                     WHERE c.relnamespace = 'ha'::regnamespace AND c.relkind = 'r' AND a.attname LIKE '%dsn%'
                       AND (has_table_privilege('monitor', c.oid, 'SELECT') OR has_table_privilege('link', c.oid, 'SELECT'))";
    let rows = node.rows(&cluster.database, readable)?;
    ensure!(
        rows.is_empty(),
        "{}: tables with passwords are readable: {}",
        node.name,
        sql::show(&rows)
    );
    Ok(())
}
