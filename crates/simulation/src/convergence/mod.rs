//! Several nodes that write one table at once, and whether they end alike.
//!
//! [`run`] makes a history from a seed, lets everything arrive, and compares all nodes with each other and with what
//! [`expect`](mod@expect) computes from the changes alone, whatever the order in which they arrived: rows, waiting rows
//! and true versions.

mod apply;
mod breakage;
mod expect;
mod history;
mod node;
mod settings;
mod write;

use pg_ha_model::{NodeId, PgTimestamp};
use pg_ha_replication::conflict::Version;
use pg_ha_replication::convergence::{Death, Kind};

pub use breakage::Breakage;
pub use history::{Summary, World, run};
pub use node::{Candidate, Node};
pub use settings::Settings;

/// A primary key.
pub type Key = u8;

/// A row without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// A plain column.
    pub plain: u32,
    /// A column whose value is stored out of line, so that changes may leave it out.
    pub large: u32,
    /// Two columns, each with a unique constraint of its own.
    pub unique: [Option<u8>; 2],
    /// A column with the rule `delta`, in histories with merge columns.
    pub count: Option<i64>,
    /// A column with the rule `max` or `min`, in histories with merge columns.
    pub bound: Option<i64>,
}

impl Row {
    /// Whether a unique constraint keeps these rows apart.
    pub fn rivals(&self, other: &Row) -> bool {
        self.unique
            .iter()
            .zip(&other.unique)
            .any(|(one, another)| one.is_some() && one == another)
    }
}

/// One change in the stream.
#[derive(Debug, Clone)]
pub enum Step {
    /// Of one key.
    Row(RowStep),
    /// TRUNCATE.
    Truncate,
}

/// A change of one key.
#[derive(Debug, Clone)]
pub struct RowStep {
    /// The key.
    pub key: Key,
    /// What is done to it.
    pub kind: Kind,
    /// Which delete of the key in its transaction.
    pub step: u32,
    /// What the writer's node remembered of deletes of the key.
    pub after: Option<Death>,
    /// The newest delete of the key that the writer's node ever knew: for the expectation, not in the stream.
    pub true_after: Option<Death>,
    /// The whole row after the change.
    pub new: Row,
    /// The value of `count` before the change.
    pub old_count: Option<i64>,
    /// `large` is not in the stream.
    pub unchanged: bool,
}

/// A transaction in the stream.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// When it committed, and where.
    pub version: Version,
    /// How many transactions of each node its writer's node had applied.
    pub seen: Vec<usize>,
    /// When the newest of them committed.
    pub seen_times: Vec<i64>,
    /// Up to here its writer's node had applied everything.
    pub settled: i64,
    /// What its writer's node had asked for is not newer than this; `i64::MIN` where `seen` covers it.
    pub ahead: i64,
    /// What it did.
    pub steps: Vec<Step>,
}

/// The number of the node at a place.
fn node_id(place: usize) -> NodeId {
    NodeId::new(place as u32 + 1).unwrap_or(NodeId::MAX)
}

/// The place of the node with a number.
fn place_of(node: NodeId) -> usize {
    usize::from(node.get()) - 1
}

fn version(timestamp: i64, node: NodeId) -> Version {
    Version {
        timestamp: PgTimestamp(timestamp),
        origin: node,
    }
}
