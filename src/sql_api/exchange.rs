//! `ha.node_exchange`: nodes tell each other which nodes they know, so that an id or a name never stands for two.
//!
//! The caller first asks with an empty list, which changes nothing, checks the answer against what it knows itself,
//! and only then sends its own list; a conflict seen by either side thus leaves both as they were. Every call is one
//! short transaction on the callee, made while the caller holds no lock on its own catalog: two nodes that subscribe
//! to each other at the same time cannot wait for one another.

use std::collections::HashSet;

use pg_ha_replication::codec::{PROTOCOL_MAX, PROTOCOL_MIN};
use pgrx::JsonB;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{local_node, refuse_in_recovery};
use crate::catalog::nodes::{self, Node};
use crate::catalog::subscriptions;
use crate::durable::events::{self, Severity};
use crate::network::peer::Peer;
use crate::postgres::error::{Answer, Report};
use crate::postgres::{server, xact};
use crate::{settings, shared_state};

/// The version of what is exchanged.
const FORMAT: u32 = 1;

/// What the caller sends.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) format: u32,
    /// The calling node's uid: what it says about itself replaces what was known.
    #[serde(default)]
    pub(crate) from: Option<String>,
    #[serde(default)]
    pub(crate) nodes: Vec<Node>,
    /// Uids of nodes that an earlier call added and that are to be forgotten, since the caller gave up.
    #[serde(default)]
    pub(crate) forget: Vec<String>,
}

/// What it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Response {
    pub(crate) format: u32,
    pub(crate) protocol_min: u16,
    pub(crate) protocol_max: u16,
    pub(crate) extension_version: String,
    pub(crate) server_version_num: u32,
    pub(crate) encoding: String,
    /// The answering node, if there is one.
    pub(crate) node: Option<Node>,
    pub(crate) nodes: Vec<Node>,
    /// Uids of the nodes that this call added.
    pub(crate) added: Vec<String>,
}

/// The SQL function.
pub(crate) fn node_exchange(request: JsonB) -> Answer<JsonB> {
    let request: Request = serde_json::from_value(request.0).map_err(|error| invalid("request", &error))?;
    if request.format != FORMAT {
        return Err(Report::new(
            Code::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("node exchange of format {} is not supported", request.format),
        )
        .detail(format!("This node knows format {FORMAT}."))
        .hint("Install the same version of pg_ha on both nodes."));
    }
    let local = local_node()?;
    let mut added = Vec::new();
    if !request.nodes.is_empty() || !request.forget.is_empty() {
        refuse_in_recovery("exchange nodes")?;
        let Some(local) = &local else {
            return Err(Report::new(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "this database is not a node",
            )
            .detail("Nodes can only be made known to a node.")
            .hint("Create it first: SELECT ha.node_create('<name>', '<dsn>')"));
        };
        added = merge(&request.nodes, request.from.as_deref(), local, "the calling node")?;
        forget(&request.forget, local)?;
    }
    let response = Response {
        format: FORMAT,
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        extension_version: nodes::extension_version()?.unwrap_or_default(),
        server_version_num: server::version_number(),
        encoding: server::encoding(),
        node: local,
        nodes: nodes::all()?,
        added,
    };
    serde_json::to_value(response)
        .map(JsonB)
        .map_err(|error| invalid("answer", &error))
}

/// Calls the function on a peer.
pub(crate) fn ask(peer: &mut Peer, request: &Request) -> Answer<Response> {
    let text = serde_json::to_string(&Request {
        format: FORMAT,
        from: request.from.clone(),
        nodes: request.nodes.clone(),
        forget: request.forget.clone(),
    })
    .map_err(|error| invalid("request", &error))?;
    let rows = peer.query("SELECT ha.node_exchange($1::jsonb)::text", &[&text])?;
    let answer = rows.into_iter().flatten().flatten().next().unwrap_or_default();
    serde_json::from_str(&answer).map_err(|error| invalid("answer", &error))
}

fn invalid(what: &str, error: &serde_json::Error) -> Report {
    Report::new(
        Code::ERRCODE_INVALID_PARAMETER_VALUE,
        format!("invalid node exchange {what}"),
    )
    .detail(super::error::sentence(&error.to_string()))
    .hint("This function is called by other nodes; install the same version of pg_ha on all of them.")
}

/// What to do with the nodes that another node knows.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    insert: Vec<Node>,
    update: Vec<Node>,
}

/// Compares what another node knows with what is known here. Pure. `theirs` says whose knowledge `incoming` is.
pub(crate) fn plan(known: &[Node], incoming: &[Node], from: Option<&str>, theirs: &str) -> Answer<Plan> {
    let mut plan = Plan::default();
    for node in incoming {
        if let Some(same) = known.iter().find(|known| known.node_uid == node.node_uid) {
            if same.node_id != node.node_id || same.node_name != node.node_name {
                return Err(duplicate(same, node, "node", &node.node_name, theirs));
            }
            if from == Some(node.node_uid.as_str()) && same != node {
                plan.update.push(node.clone());
            }
            continue;
        }
        let others = || known.iter().chain(&plan.insert);
        if let Some(other) = others().find(|other| other.node_name == node.node_name) {
            return Err(duplicate(other, node, "node name", &node.node_name, theirs));
        }
        if let Some(other) = others().find(|other| other.node_id == node.node_id) {
            return Err(duplicate(
                other,
                node,
                "node id",
                &node.node_id.to_string(),
                theirs,
            ));
        }
        plan.insert.push(node.clone());
    }
    Ok(plan)
}

fn duplicate(here: &Node, there: &Node, what: &str, value: &str, theirs: &str) -> Report {
    let describe = |node: &Node| {
        format!(
            "node \"{}\" with id {} (uid {})",
            node.node_name, node.node_id, node.node_uid
        )
    };
    let value = if what == "node id" {
        value.to_owned()
    } else {
        format!("\"{value}\"")
    };
    Report::new(
        Code::ERRCODE_DUPLICATE_OBJECT,
        format!("{what} {value} is taken by two nodes"),
    )
    .detail(format!(
        "Known here is {}, known to {theirs} is {}.",
        describe(here),
        describe(there)
    ))
    .hint(
        "Ids and names must be unique among all nodes that know one another: drop one of the two with \
         ha.node_drop and create it again with another name or with node_id => <a free number>. \
         If one of them no longer exists, ha.node_drop makes the nodes that still know it forget it.",
    )
}

/// Takes over what another node knows; returns the uids of the nodes that were new. Locks the table.
pub(crate) fn merge(
    incoming: &[Node],
    from: Option<&str>,
    local: &Node,
    theirs: &str,
) -> Answer<Vec<String>> {
    nodes::lock()?;
    let known = nodes::all()?;
    // Nobody knows the local node better than itself.
    let from = from.filter(|uid| *uid != local.node_uid);
    let plan = plan(&known, incoming, from, theirs)?;
    let total = known.len() + plan.insert.len();
    if total > usize::try_from(settings::max_nodes()).unwrap_or_default() {
        return Err(Report::new(
            Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("too many nodes for node \"{}\"", local.node_name),
        )
        .detail(format!(
            "There would be {total}, ha.max_nodes is {}.",
            settings::max_nodes()
        ))
        .hint("Raise ha.max_nodes in postgresql.conf there and restart the server."));
    }
    for node in &plan.insert {
        nodes::insert(node)?;
        announce(node);
    }
    for node in &plan.update {
        nodes::update_settings(node)?;
    }
    if !plan.insert.is_empty() || !plan.update.is_empty() {
        xact::after_commit(shared_state::catalog_changed);
    }
    Ok(plan.insert.into_iter().map(|node| node.node_uid).collect())
}

fn announce(node: &Node) {
    let (id, name) = (node.node_id, node.node_name.clone());
    xact::after_commit(move || {
        events::record(
            "node_known",
            Severity::Info,
            &format!("node \"{name}\" became known"),
            json!({"node_id": id, "node_name": name}),
        );
    });
}

/// Undoes what an earlier call added, as far as nothing relies on it by now.
fn forget(uids: &[String], local: &Node) -> Answer<()> {
    if uids.is_empty() {
        return Ok(());
    }
    nodes::lock()?;
    let providers: HashSet<i32> = subscriptions::all()?
        .into_iter()
        .map(|subscription| subscription.provider_node_id)
        .collect();
    let slots = nodes::provider_slots()?;
    for node in nodes::all()? {
        let prefix = super::slots::prefix(node.node_id);
        if uids.contains(&node.node_uid)
            && node.node_uid != local.node_uid
            && !providers.contains(&node.node_id)
            && !slots.iter().any(|(slot, _)| slot.starts_with(&prefix))
        {
            nodes::delete(node.node_id)?;
            xact::after_commit(shared_state::catalog_changed);
        }
    }
    Ok(())
}
