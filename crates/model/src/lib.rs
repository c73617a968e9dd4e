//! The words that every part of pg_ha shares: nodes, positions in the WAL, epochs, time, connection strings,
//! checksummed records and retry delays.
//!
//! Everything here is pure: no PostgreSQL, no operating system, no clock. Whoever needs the time passes it in.
#![forbid(unsafe_code)]

pub mod backoff;
pub mod conninfo;
pub mod node;
pub mod position;
pub mod record;
pub mod slot_name;
pub mod time;

pub use backoff::Backoff;
pub use conninfo::{Conninfo, ConninfoError};
pub use node::{NodeId, NodeIdError, NodeNameError, trailing_number, validate_node_name};
pub use position::{Epoch, Lsn, ParseLsnError, Timeline};
pub use time::{Millis, PgTimestamp};
