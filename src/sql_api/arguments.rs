//! Checking arguments: null where a value is needed, names, and what is not supported yet.

use pg_ha_model::NodeId;
use pg_ha_model::node::validate_node_name;
use pgrx::pg_sys::errcodes::PgSqlErrorCode as Code;

use crate::postgres::error::{Answer, Report};

/// The value of an argument that cannot be null.
pub(crate) fn required<T>(argument: &str, value: Option<T>) -> Answer<T> {
    value.ok_or_else(|| {
        Report::new(
            Code::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("argument \"{argument}\" must not be null"),
        )
        .detail("Null was given.")
        .hint("Give it a value, or leave it out where it has a default.")
    })
}

/// A name that is not empty.
pub(crate) fn required_name(argument: &str, value: Option<String>) -> Answer<String> {
    let name = required(argument, value)?;
    if name.trim().is_empty() {
        return Err(Report::new(
            Code::ERRCODE_INVALID_NAME,
            format!("argument \"{argument}\" must not be empty"),
        )
        .detail("An empty name was given.")
        .hint("Give it a name of 1 to 63 bytes."));
    }
    Ok(name)
}

/// A name that a node can have.
pub(crate) fn node_name(argument: &str, value: Option<String>) -> Answer<String> {
    let name = required_name(argument, value)?;
    validate_node_name(&name).map_err(|error| {
        Report::new(Code::ERRCODE_INVALID_NAME, format!("invalid node name: {error}"))
            .detail(format!("The name given is {name:?}."))
            .hint("Use letters, digits and underscores.")
    })?;
    Ok(name)
}

/// A node id that was given.
pub(crate) fn node_id(value: i32) -> Answer<i32> {
    let id = u32::try_from(value).ok().and_then(|id| NodeId::new(id).ok());
    match id {
        Some(id) => Ok(i32::from(id.get())),
        None => Err(Report::new(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "node_id must be between {} and {}",
                NodeId::MIN.get(),
                NodeId::MAX.get()
            ),
        )
        .detail(format!("The number given is {value}."))
        .hint("Pass another number, or leave it out to have one chosen.")),
    }
}

/// A list of names without nulls, empty names and repetitions.
pub(crate) fn names(argument: &str, value: Option<Vec<Option<String>>>) -> Answer<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for element in required(argument, value)? {
        let name = element.filter(|name| !name.is_empty()).ok_or_else(|| {
            Report::new(
                Code::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                format!("argument \"{argument}\" must not have null or empty elements"),
            )
            .detail("One of the names in the array is null or empty.")
            .hint("Leave that element out.")
        })?;
        if names.contains(&name) {
            return Err(Report::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("argument \"{argument}\" names \"{name}\" twice"),
            )
            .detail("Every name may be given once.")
            .hint("Leave the repetition out."));
        }
        names.push(name);
    }
    Ok(names)
}

/// The refusal of an argument whose feature does not exist yet.
pub(crate) fn not_supported(argument: &str, found: impl std::fmt::Display) -> Report {
    Report::new(
        Code::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("argument \"{argument}\" is not supported yet"),
    )
    .detail(format!("The value given is {found}."))
    .hint("Leave the argument out.")
}
