//! `ha.node_create`, `ha.node_drop`, `ha.node_set`, `ha.node_info`.

use pg_ha_model::NodeId;
use pgrx::JsonB;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;
use serde_json::json;

use super::{
    arguments, checks, connection_checks, local_node, quoted_list, refuse_in_recovery, require_local_node,
    slots,
};
use crate::catalog::nodes::{self, Node};
use crate::catalog::{self, subscriptions};
use crate::durable::events::{self, Severity};
use crate::durable::identity::{self, Identity};
use crate::durable::subscription_names;
use crate::network::peer::{Peer, Purpose, parse_dsn};
use crate::postgres::error::{Answer, Report};
use crate::postgres::libpq::Patience;
use crate::postgres::{server, xact};
use crate::{settings, shared_state};

/// The arguments of `ha.node_create`.
pub(crate) struct NewNode {
    pub(crate) node_name: Option<String>,
    pub(crate) dsn: Option<String>,
    pub(crate) group_name: Option<String>,
    pub(crate) node_id: Option<i32>,
    pub(crate) region: Option<String>,
    pub(crate) info: Option<JsonB>,
}

/// Makes this server and database a node.
pub(crate) fn node_create(new: NewNode) -> Answer<i32> {
    let name = arguments::node_name("node_name", new.node_name)?;
    let dsn = arguments::required("dsn", new.dsn)?;
    if let Some(group) = new.group_name.filter(|group| *group != name) {
        return Err(arguments::not_supported("group_name", format!("\"{group}\"")));
    }
    let wanted_id = new.node_id.map(arguments::node_id).transpose()?;
    parse_dsn(&dsn)?;
    refuse_in_recovery("create a node")?;
    let load = checks::Load {
        subscriptions: 0,
        subscribers: 0,
    };
    checks::require(checks::server_checks(load), None)?;
    require_configured(&name)?;

    if identity::is_pending() {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this transaction has created or dropped the local node already",
        )
        .detail("A server's identity can change once in a transaction.")
        .hint("Commit first."));
    }
    let lock = identity::lock_for_change()?;
    require_no_node()?;
    choose_id(&name, wanted_id)?;
    connection_checks::leads_here(&dsn)?;

    nodes::lock()?;
    let node_id = choose_id(&name, wanted_id)?;
    let database_oid = server::database_oid();
    let node = Node {
        node_id,
        node_name: name.clone(),
        group_name: name.clone(),
        kind: "data".to_owned(),
        dsn,
        region: new.region,
        priority: 100,
        options: json!({}),
        info: new.info.map(|JsonB(info)| info),
        created_at: catalog::now_text()?,
        node_uid: catalog::new_uid()?,
        system_identifier: server::system_identifier().to_string(),
    };
    nodes::insert(&node)?;
    let identity = Identity {
        format: identity::FORMAT,
        node_name: name.clone(),
        node_id,
        node_uid: node.node_uid,
        group_id: node_id,
        group_name: name.clone(),
        database: server::database_name(database_oid).unwrap_or_default(),
        database_oid,
        system_identifier: node.system_identifier,
        created_at: node.created_at,
    };
    identity::create_at_commit(identity, lock);
    xact::after_commit(move || {
        subscription_names::clear();
        events::record_for(
            Some(name.clone()),
            "node_created",
            Severity::Info,
            &format!("node \"{name}\" was created"),
            json!({"node_id": node_id}),
        );
        shared_state::catalog_changed();
    });
    Ok(node_id)
}

/// The configuration may say which node and which database this is to be.
fn require_configured(name: &str) -> Answer<()> {
    if let Some(configured) = settings::node_name().filter(|configured| configured != name) {
        return Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("this server is configured to be node \"{configured}\""),
        )
        .detail(format!(
            "ha.node_name is \"{configured}\", the name given is \"{name}\"."
        ))
        .hint("Pass that name, or change ha.node_name in postgresql.conf and restart the server."));
    }
    let database = server::database_name(server::database_oid()).unwrap_or_default();
    if let Some(configured) = settings::database().filter(|configured| *configured != database) {
        return Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("this server is configured to replicate database \"{configured}\""),
        )
        .detail(format!(
            "ha.database is \"{configured}\", this is database \"{database}\"."
        ))
        .hint("Run it there, or change ha.database in postgresql.conf and restart the server."));
    }
    Ok(())
}

/// One node per server. An identity without a row in the catalog is what a crash left, and counts for nothing.
fn require_no_node() -> Answer<()> {
    let Some(identity) = identity::on_disk()? else {
        return Ok(());
    };
    if identity.system_identifier != server::system_identifier().to_string() {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the state directory belongs to another server",
        )
        .detail(format!(
            "The identity in it is that of node \"{}\" with system identifier {}.",
            identity.node_name, identity.system_identifier
        ))
        .hint("Give every server a state directory of its own (ha.state_directory), or remove this one."));
    }
    if identity.database_oid == server::database_oid() {
        return match nodes::local(Some(&identity))? {
            None => Ok(()),
            Some(node) => Err(Report::new(
                Code::ERRCODE_DUPLICATE_OBJECT,
                format!("this database is node \"{}\" already", node.node_name),
            )
            .detail(format!("Its id is {}.", node.node_id))
            .hint("To make another node of it, drop that one first with ha.node_drop.")),
        };
    }
    match server::database_name(identity.database_oid) {
        None => Ok(()),
        Some(database) => Err(Report::new(
            Code::ERRCODE_DUPLICATE_OBJECT,
            format!("this server is node \"{}\" already", identity.node_name),
        )
        .detail(format!(
            "The node is database \"{database}\"; a server can be one node, with one database."
        ))
        .hint("Use that database, or drop the node there with ha.node_drop.")),
    }
}

/// The id that was asked for, or a free one; refuses what is taken.
fn choose_id(name: &str, wanted: Option<i32>) -> Answer<i32> {
    let known = nodes::all()?;
    if known.len() >= usize::try_from(settings::max_nodes()).unwrap_or_default() {
        return Err(
            Report::new(Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "too many nodes")
                .detail(format!(
                    "{} are known, ha.max_nodes is {}.",
                    known.len(),
                    settings::max_nodes()
                ))
                .hint("Raise ha.max_nodes in postgresql.conf and restart the server."),
        );
    }
    if let Some(node) = known.iter().find(|node| node.node_name == name) {
        return Err(Report::new(
            Code::ERRCODE_DUPLICATE_OBJECT,
            format!("node name \"{name}\" is taken"),
        )
        .detail(format!(
            "A node of that name with id {} is known here.",
            node.node_id
        ))
        .hint("Pass another name, or make this database forget that node with ha.node_drop."));
    }
    let taken = |id: i32| known.iter().find(|node| node.node_id == id);
    if let Some(id) = wanted {
        return match taken(id) {
            None => Ok(id),
            Some(node) => Err(
                Report::new(Code::ERRCODE_DUPLICATE_OBJECT, format!("node id {id} is taken"))
                    .detail(format!("It is the id of node \"{}\".", node.node_name))
                    .hint("Pass another node_id, or leave it out to have one chosen."),
            ),
        };
    }
    let suggested = NodeId::suggested_by(name).map(|id| i32::from(id.get()));
    let (first, last) = (i32::from(NodeId::MIN.get()), i32::from(NodeId::MAX.get()));
    suggested
        .into_iter()
        .chain(first..=last)
        .find(|id| taken(*id).is_none())
        .ok_or_else(|| Report::new(Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "all node ids are taken"))
}

/// A physical standby of the local group: not yet.
pub(crate) fn standby_create(node_name: Option<String>, dsn: Option<String>) -> Answer<i32> {
    member_create("ha.standby_create", node_name, dsn)
}

/// A witness of the local group: not yet.
pub(crate) fn witness_create(node_name: Option<String>, dsn: Option<String>) -> Answer<i32> {
    member_create("ha.witness_create", node_name, dsn)
}

fn member_create(function: &str, node_name: Option<String>, dsn: Option<String>) -> Answer<i32> {
    let name = arguments::node_name("node_name", node_name)?;
    parse_dsn(&arguments::required("dsn", dsn)?)?;
    require_local_node()?;
    Err(Report::new(
        Code::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("{function} is not supported yet"),
    )
    .detail(format!("Node \"{name}\" was not registered."))
    .hint("This version knows groups of one node."))
}

/// Ends the local node, or forgets another one.
pub(crate) fn node_drop(node_name: Option<String>, if_exists: Option<bool>) -> Answer<bool> {
    let name = arguments::required("node_name", node_name)?;
    let if_exists = arguments::required("if_exists", if_exists)?;
    refuse_in_recovery("drop a node")?;
    let local = local_node()?;
    if local.as_ref().is_some_and(|local| local.node_name == name) {
        return drop_local(name);
    }
    let Some(node) = nodes::by_name(&name)? else {
        if drop_stale_identity(&name)? {
            return Ok(true);
        }
        let report = Report::new(
            Code::ERRCODE_UNDEFINED_OBJECT,
            format!("node \"{name}\" does not exist"),
        )
        .detail("No node of that name is known in this database.");
        if if_exists {
            report.notice();
            return Ok(false);
        }
        return Err(report.hint("SELECT node_name FROM ha.nodes shows the nodes that are known."));
    };
    drop_other(&node)
}

fn drop_local(name: String) -> Answer<bool> {
    if identity::is_pending() {
        return Err(Report::new(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this transaction has created the local node",
        )
        .detail("A server's identity can change once in a transaction.")
        .hint("Commit or roll back first."));
    }
    let lock = identity::lock_for_change()?;
    nodes::lock()?;
    let subscriptions = subscriptions::all()?;
    if let Some(first) = subscriptions.first() {
        return Err(Report::new(
            Code::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("node \"{name}\" still has subscriptions"),
        )
        .detail(format!(
            "Subscriptions: {}.",
            quoted_list(
                subscriptions
                    .iter()
                    .map(|subscription| subscription.name.as_str())
            )
        ))
        .hint(format!(
            "Drop them first: SELECT ha.sub_drop({})",
            pgrx::spi::quote_literal(&first.name)
        )));
    }
    refuse_slots(
        &format!("other nodes still subscribe to node \"{name}\""),
        nodes::provider_slots()?
            .into_iter()
            .map(|(slot, _)| slot)
            .collect(),
    )?;
    nodes::delete_all()?;
    identity::drop_at_commit(lock);
    xact::after_commit(move || {
        subscription_names::clear();
        events::record_for(
            Some(name.clone()),
            "node_dropped",
            Severity::Info,
            &format!("node \"{name}\" was dropped"),
            json!({}),
        );
        shared_state::catalog_changed();
        if !shared_state::stop_all(settings::connect_timeout()) {
            Report::new(
                Code::ERRCODE_WARNING,
                "workers of the dropped node are still stopping",
            )
            .warn();
        }
    });
    Ok(true)
}

fn refuse_slots(message: &str, slots: Vec<String>) -> Answer<()> {
    let Some(first) = slots.first() else {
        return Ok(());
    };
    Err(Report::new(Code::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST, message)
        .detail(format!(
            "Their slots here: {}.",
            quoted_list(slots.iter().map(String::as_str))
        ))
        .hint(format!(
            "Drop the subscriptions on those nodes with ha.sub_drop; if such a node is gone for good, drop its \
             slot here: SELECT pg_drop_replication_slot({})",
            pgrx::spi::quote_literal(first)
        )))
}

/// What a crash in the middle of `node_create` may leave: an identity that no row stands for.
fn drop_stale_identity(name: &str) -> Answer<bool> {
    if identity::is_pending() {
        return Ok(false);
    }
    let stale = identity::on_disk()?.is_some_and(|identity| {
        identity.node_name == name && identity.database_oid == server::database_oid()
    });
    if stale {
        identity::drop_at_commit(identity::lock_for_change()?);
    }
    Ok(stale)
}

fn drop_other(node: &Node) -> Answer<bool> {
    nodes::lock()?;
    let name = &node.node_name;
    if let Some(subscription) = subscriptions::all()?
        .into_iter()
        .find(|subscription| subscription.provider_node_id == node.node_id)
    {
        return Err(Report::new(
            Code::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("node \"{name}\" is the provider of a subscription"),
        )
        .detail(format!("Subscription: \"{}\".", subscription.name))
        .hint(format!(
            "Drop it first: SELECT ha.sub_drop({})",
            pgrx::spi::quote_literal(&subscription.name)
        )));
    }
    let prefix = slots::prefix(node.node_id);
    refuse_slots(
        &format!("node \"{name}\" still subscribes to this one"),
        nodes::provider_slots()?
            .into_iter()
            .map(|(slot, _)| slot)
            .filter(|slot| slot.starts_with(&prefix))
            .collect(),
    )?;
    nodes::delete(node.node_id)?;
    let (id, name) = (node.node_id, name.clone());
    xact::after_commit(move || {
        events::record(
            "node_forgotten",
            Severity::Info,
            &format!("node \"{name}\" was forgotten"),
            json!({"node_id": id, "node_name": name}),
        );
        shared_state::catalog_changed();
    });
    Ok(true)
}

/// Changes one option of a node.
pub(crate) fn node_set(
    node_name: Option<String>,
    option: Option<String>,
    value: Option<String>,
) -> Answer<()> {
    let name = arguments::required("node_name", node_name)?;
    let option = arguments::required("option", option)?;
    refuse_in_recovery("change a node")?;
    let local = require_local_node()?;
    let mut node = nodes::by_name(&name)?.ok_or_else(|| {
        Report::new(
            Code::ERRCODE_UNDEFINED_OBJECT,
            format!("node \"{name}\" does not exist"),
        )
        .detail("No node of that name is known in this database.")
        .hint("SELECT node_name FROM ha.nodes shows the nodes that are known.")
    })?;
    let mut moved_from = None;
    match option.as_str() {
        "dsn" => {
            let dsn = arguments::required("value", value)?;
            if node.node_uid == local.node_uid {
                connection_checks::leads_here(&dsn)?;
            } else {
                require_leads_to(&dsn, &node)?;
            }
            moved_from = Some(std::mem::replace(&mut node.dsn, dsn));
        }
        "region" => node.region = value,
        "priority" | "nofailover" | "noloadbalance" | "nosync" => {
            return Err(Report::new(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("option \"{option}\" is not supported yet"),
            )
            .detail(format!("Node \"{name}\" was not changed."))
            .hint("Supported options: dsn, region."));
        }
        _ => {
            return Err(Report::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("unknown node option \"{option}\""),
            )
            .detail(format!("Node \"{name}\" was not changed."))
            .hint("Options: dsn, region, priority, nofailover, noloadbalance, nosync."));
        }
    }
    nodes::lock()?;
    nodes::update_settings(&node)?;
    if let Some(old) = moved_from {
        subscriptions::follow_node(node.node_id, &old, &node.dsn)?;
    }
    xact::after_commit(move || {
        events::record(
            "node_changed",
            Severity::Info,
            &format!("{option} of node \"{name}\" was changed"),
            json!({"node_name": name, "option": option}),
        );
        shared_state::catalog_changed();
    });
    Ok(())
}

fn require_leads_to(dsn: &str, node: &Node) -> Answer<()> {
    let mut peer = Peer::connect(dsn, Purpose::Sql, Patience::Interruptible)?;
    let answer = super::exchange::ask(&mut peer, &super::exchange::Request::default())?;
    match answer.node {
        Some(found) if found.node_uid == node.node_uid => Ok(()),
        found => Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("the DSN does not lead to node \"{}\"", node.node_name),
        )
        .detail(match found {
            Some(found) => format!("{} is node \"{}\".", peer.name(), found.node_name),
            None => format!("{} is no node.", peer.name()),
        })
        .hint("Pass the connection string by which this server reaches that node.")),
    }
}

/// What `ha.node_info` says.
pub(crate) struct NodeInfo {
    pub(crate) node: Node,
    pub(crate) dbname: String,
    pub(crate) extension_version: String,
    pub(crate) protocol_version: i32,
}

/// Who the local node is.
pub(crate) fn node_info() -> Answer<NodeInfo> {
    Ok(NodeInfo {
        node: require_local_node()?,
        dbname: server::database_name(server::database_oid()).unwrap_or_default(),
        extension_version: nodes::extension_version()?.unwrap_or_default(),
        protocol_version: i32::from(pg_ha_replication::codec::PROTOCOL_MAX),
    })
}
