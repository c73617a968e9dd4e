//! Names of the replication origins that pg_ha makes: `pg_ha_<id>`, `pg_ha_<id>_<n>`, `pg_ha_<id>_copy`,
//! `pg_ha_<id>_via_<id>.<id>…_<n>`.
//!
//! A walsender meets transactions of the node it runs on, and can learn of each nothing but the name of its replication
//! origin. So the name says everything that deciding over it takes: in which group it was first committed, and over
//! which nodes it came.

use std::fmt;

use pg_ha_model::NodeId;

/// What a replication origin of pg_ha stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginName {
    /// The group in which its transactions were first committed.
    pub node: NodeId,
    /// How they came here.
    pub kind: OriginKind,
}

/// How transactions of an origin came to the node that bears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginKind {
    /// From the origin itself. The number tells the nodes apart that have had this id, one after the other.
    Direct(u32),
    /// Forwarded by these nodes, in the order in which it passed them; the last one is the provider. The number tells
    /// lanes of one path apart.
    Via(Vec<NodeId>, u32),
    /// As rows of a copied table.
    Copy,
}

const PREFIX: &str = "pg_ha_";

impl OriginName {
    /// Reads a name; none if it is not one of pg_ha's.
    pub fn parse(name: &str) -> Option<OriginName> {
        let rest = name.strip_prefix(PREFIX)?;
        let (number, rest) = match rest.split_once('_') {
            Some((number, rest)) => (number, Some(rest)),
            None => (rest, None),
        };
        let kind = match rest {
            None => OriginKind::Direct(0),
            Some("copy") => OriginKind::Copy,
            Some(rest) => match rest.strip_prefix("via_") {
                Some(rest) => {
                    let (path, ordinal) = rest.split_once('_')?;
                    let path = path.split('.').map(id).collect::<Option<Vec<_>>>()?;
                    OriginKind::Via(path, digits(ordinal)?)
                }
                None => OriginKind::Direct(digits(rest)?),
            },
        };
        let node = id(number)?;
        Some(OriginName { node, kind })
    }

    /// Whether its transactions have been on this node before.
    pub fn has_passed(&self, node: NodeId) -> bool {
        self.node == node || matches!(&self.kind, OriginKind::Via(path, _) if path.contains(&node))
    }
}

impl fmt::Display for OriginName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PREFIX}{}", self.node)?;
        match &self.kind {
            OriginKind::Direct(0) => Ok(()),
            OriginKind::Direct(ordinal) => write!(out, "_{ordinal}"),
            OriginKind::Copy => write!(out, "_copy"),
            OriginKind::Via(path, ordinal) => {
                for (index, node) in path.iter().enumerate() {
                    write!(out, "{}{node}", if index == 0 { "_via_" } else { "." })?;
                }
                write!(out, "_{ordinal}")
            }
        }
    }
}

fn digits(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty();
    plain.then(|| text.parse().ok()).flatten()
}

fn id(text: &str) -> Option<NodeId> {
    NodeId::new(digits(text)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn names() {
        for (name, id, kind) in [
            ("pg_ha_7", 7, OriginKind::Direct(0)),
            ("pg_ha_7_2", 7, OriginKind::Direct(2)),
            ("pg_ha_1023_copy", 1023, OriginKind::Copy),
            ("pg_ha_1_via_2_0", 1, OriginKind::Via(vec![node(2)], 0)),
            ("pg_ha_1_via_2.3_5", 1, OriginKind::Via(vec![node(2), node(3)], 5)),
        ] {
            let parsed = OriginName { node: node(id), kind };
            assert_eq!(OriginName::parse(name), Some(parsed.clone()));
            assert_eq!(parsed.to_string(), name);
        }
        for name in [
            "",
            "pg_16389",
            "pg_ha_",
            "pg_ha_0",
            "pg_ha_1024",
            "pg_ha_x",
            "pg_ha_1_",
            "pg_ha_1_x",
            "pg_ha_1_via_",
            "pg_ha_1_via_2",
            "pg_ha_1_via__0",
            "pg_ha_1_via_2._0",
            "pg_ha_1_via_2_",
            "pg_ha_+1",
        ] {
            assert_eq!(OriginName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn where_a_transaction_has_been() {
        let name = OriginName::parse("pg_ha_1_via_2.3_0").unwrap();
        assert!([1, 2, 3].iter().all(|id| name.has_passed(node(*id))));
        assert!(!name.has_passed(node(4)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(
            id in 1..1024u32,
            path in prop::collection::vec(1..1024u32, 0..5),
            ordinal: u32,
        ) {
            let kind = match path.is_empty() {
                true => OriginKind::Direct(ordinal),
                false => OriginKind::Via(path.into_iter().map(node).collect(), ordinal),
            };
            let name = OriginName { node: node(id), kind };
            prop_assert_eq!(OriginName::parse(&name.to_string()), Some(name));
        }

        #[test]
        fn anything_may_be_asked(name: String) {
            let _ = OriginName::parse(&name);
            let _ = OriginName::parse(&format!("pg_ha_{name}"));
        }
    }
}
