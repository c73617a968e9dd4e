//! Which of the transactions that a provider applied, rather than wrote, it sends on to a subscriber.

use std::collections::BTreeSet;

use pg_ha_model::NodeId;

use crate::origin_name::{OriginKind, OriginName};

/// In `forward_origins`: every origin.
pub const ALL: &str = "all";

/// The origins whose transactions a subscriber asked for besides the provider's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Those of these groups.
    Only(BTreeSet<NodeId>),
    /// Whatever the provider has, also what it got by other means of replication.
    All,
}

impl Wanted {
    /// From `forward_origins`; `id_of` knows nodes by their names.
    ///
    /// # Errors
    /// The name that stands for no known node.
    pub fn from_names(names: &[String], id_of: impl Fn(&str) -> Option<NodeId>) -> Result<Wanted, &str> {
        if names.iter().any(|name| name == ALL) {
            return Ok(Wanted::All);
        }
        let ids = names.iter().map(|name| id_of(name).ok_or(name.as_str()));
        ids.collect::<Result<_, _>>().map(Wanted::Only)
    }

    /// Whether nothing but the provider's own transactions is wanted.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Wanted::Only(ids) if ids.is_empty())
    }

    /// Whether transactions of this origin are wanted.
    pub fn includes(&self, origin: NodeId) -> bool {
        match self {
            Wanted::All => true,
            Wanted::Only(ids) => ids.contains(&origin),
        }
    }
}

/// What becomes of a transaction that bears a replication origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// It is not sent.
    Withheld,
    /// It is sent as the provider's own: what came by other means of replication is the provider's to everybody else,
    /// and so is the news that a table was copied.
    AsOwn,
    /// It is sent as what it is.
    Forwarded {
        /// Where it was first committed.
        origin: NodeId,
        /// The nodes that it passed before it came to the provider.
        via: Vec<NodeId>,
    },
}

/// Decides by the name of the replication origin; none: there is no such origin (any more).
///
/// Nothing goes back to where it has been: the subscriber has it, and whoever it was who passed it on. That alone keeps
/// changes from circling, and it keeps the number of ways finite.
pub fn route(wanted: &Wanted, subscriber: NodeId, name: Option<&str>) -> Route {
    match name.and_then(OriginName::parse) {
        None if *wanted == Wanted::All => Route::AsOwn,
        None => Route::Withheld,
        Some(name) if !wanted.includes(name.node) || name.has_passed(subscriber) => Route::Withheld,
        Some(OriginName { kind, node }) => match kind {
            OriginKind::Copy => Route::AsOwn,
            OriginKind::Direct(_) => Route::Forwarded {
                origin: node,
                via: Vec::new(),
            },
            OriginKind::Via(via, _) => Route::Forwarded { origin: node, via },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn names_become_nodes() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let id_of = |name: &str| {
            name.strip_prefix('n')
                .and_then(|id| NodeId::new(id.parse().ok()?).ok())
        };
        assert!(Wanted::from_names(&[], id_of).unwrap().is_nothing());
        assert_eq!(
            Wanted::from_names(&names(&["n2", "n1", "n2"]), id_of),
            Ok(Wanted::Only([node(1), node(2)].into()))
        );
        assert_eq!(Wanted::from_names(&names(&["n1", "all"]), id_of), Ok(Wanted::All));
        assert_eq!(Wanted::from_names(&names(&["n1", "m"]), id_of), Err("m"));
    }

    #[test]
    fn every_route() {
        let some = Wanted::Only([node(1)].into());
        let forwarded = |origin, via: &[u32]| Route::Forwarded {
            origin: node(origin),
            via: via.iter().map(|id| node(*id)).collect(),
        };
        for (wanted, name, route_to_3) in [
            (&some, Some("pg_ha_1"), forwarded(1, &[])),
            (&some, Some("pg_ha_1_4"), forwarded(1, &[])),
            (&some, Some("pg_ha_1_via_5.6_0"), forwarded(1, &[5, 6])),
            (&some, Some("pg_ha_1_via_5.3_0"), Route::Withheld),
            (&some, Some("pg_ha_2"), Route::Withheld),
            (&some, Some("pg_ha_2_via_1_0"), Route::Withheld),
            (&some, Some("pg_ha_1_copy"), Route::AsOwn),
            (&some, Some("pg_ha_2_copy"), Route::Withheld),
            (&some, Some("pg_16389"), Route::Withheld),
            (&some, None, Route::Withheld),
            (&Wanted::All, Some("pg_ha_2"), forwarded(2, &[])),
            (&Wanted::All, Some("pg_ha_3"), Route::Withheld),
            (&Wanted::All, Some("pg_ha_3_copy"), Route::Withheld),
            (&Wanted::All, Some("pg_ha_1_via_3_0"), Route::Withheld),
            (&Wanted::All, Some("pg_16389"), Route::AsOwn),
            (&Wanted::All, None, Route::AsOwn),
        ] {
            assert_eq!(route(wanted, node(3), name), route_to_3, "{name:?} of {wanted:?}");
        }
    }
}
