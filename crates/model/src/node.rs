//! Who a node is: its number and its name.

use std::fmt;

use thiserror::Error;

/// The longest node name in bytes: PostgreSQL's `name` holds 63 bytes and a terminating zero.
pub const NODE_NAME_MAX_BYTES: usize = 63;

/// A number that no node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("node id {found} is not between {min} and {max}", min = NodeId::MIN.get(), max = NodeId::MAX.get())]
pub struct NodeIdError {
    /// The number that was given.
    pub found: i64,
}

/// A node's number, 1..=1023, unique among all nodes known to one another.
///
/// Ten bits, because a snowflake identifier has room for ten. The number of a group's founding node is also the
/// number of the group as an *origin*, and the higher number wins between equal commit timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u16);

impl NodeId {
    /// The lowest number, 1.
    pub const MIN: NodeId = NodeId(1);
    /// The highest number, 1023.
    pub const MAX: NodeId = NodeId(1023);

    /// The node with this number; an error outside 1..=1023.
    pub const fn new(number: u32) -> Result<NodeId, NodeIdError> {
        if number < Self::MIN.0 as u32 || number > Self::MAX.0 as u32 {
            return Err(NodeIdError { found: number as i64 });
        }
        Ok(NodeId(number as u16))
    }

    /// The number, 1..=1023.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The number that a name suggests by its trailing digits: `n12` gives 12, `berlin` and `n0` give none.
    pub fn suggested_by(name: &str) -> Option<NodeId> {
        trailing_number(name).and_then(|number| NodeId::new(number).ok())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<i32> for NodeId {
    type Error = NodeIdError;

    /// From SQL's `integer`.
    fn try_from(number: i32) -> Result<NodeId, NodeIdError> {
        u32::try_from(number)
            .map_err(|_| NodeIdError {
                found: i64::from(number),
            })
            .and_then(NodeId::new)
    }
}

impl From<NodeId> for i32 {
    fn from(id: NodeId) -> i32 {
        i32::from(id.0)
    }
}

/// Why a text cannot be a node's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NodeNameError {
    /// The name is the empty string.
    #[error("a node name cannot be empty")]
    Empty,
    /// The name does not fit into PostgreSQL's type `name`.
    #[error("a node name can have {max} bytes, this one has {found}", max = NODE_NAME_MAX_BYTES)]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// The name has a line break, a tab or another control character, which would garble logs and slot names.
    #[error("a node name cannot have control characters, this one has U+{code:04X} at byte {position}")]
    ControlCharacter {
        /// The character's code point.
        code: u32,
        /// Its byte offset in the name.
        position: usize,
    },
}

/// Checks that `name` can be a node's name: 1..=63 bytes, without control characters.
pub fn validate_node_name(name: &str) -> Result<(), NodeNameError> {
    if name.is_empty() {
        return Err(NodeNameError::Empty);
    }
    if name.len() > NODE_NAME_MAX_BYTES {
        return Err(NodeNameError::TooLong { found: name.len() });
    }
    match name.char_indices().find(|(_, c)| c.is_control()) {
        Some((position, c)) => Err(NodeNameError::ControlCharacter {
            code: u32::from(c),
            position,
        }),
        None => Ok(()),
    }
}

/// The number that a name ends in: `n12` gives 12, `n007` gives 7; none where there are no trailing ASCII digits or
/// where they are too many for a `u32`.
pub fn trailing_number(name: &str) -> Option<u32> {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    name.get(stem.len()..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_have_bounds() {
        assert_eq!(NodeId::new(1), Ok(NodeId::MIN));
        assert_eq!(NodeId::new(1023), Ok(NodeId::MAX));
        assert_eq!(NodeId::new(0), Err(NodeIdError { found: 0 }));
        assert_eq!(NodeId::try_from(-3), Err(NodeIdError { found: -3 }));
        assert_eq!(
            NodeId::new(1024).unwrap_err().to_string(),
            "node id 1024 is not between 1 and 1023"
        );
        assert!(NodeId::new(2).unwrap() > NodeId::MIN);
    }

    #[test]
    fn names_suggest_ids() {
        assert_eq!(trailing_number("n12"), Some(12));
        assert_eq!(trailing_number("n007"), Some(7));
        assert_eq!(trailing_number("12"), Some(12));
        assert_eq!(trailing_number("n"), None);
        assert_eq!(trailing_number(""), None);
        assert_eq!(trailing_number("n99999999999"), None);
        assert_eq!(NodeId::suggested_by("eu-3"), NodeId::new(3).ok());
        assert_eq!(NodeId::suggested_by("n0"), None);
        assert_eq!(NodeId::suggested_by("n2024"), None);
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(validate_node_name("München-1"), Ok(()));
        assert_eq!(validate_node_name(&"x".repeat(63)), Ok(()));
        assert_eq!(validate_node_name(""), Err(NodeNameError::Empty));
        assert_eq!(
            validate_node_name(&"ü".repeat(32)),
            Err(NodeNameError::TooLong { found: 64 })
        );
        assert_eq!(
            validate_node_name("a\nb"),
            Err(NodeNameError::ControlCharacter {
                code: 10,
                position: 1
            })
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_name_is_judged(name in any::<String>()) {
            let _ = validate_node_name(&name);
            let _ = trailing_number(&name);
        }
    }
}
