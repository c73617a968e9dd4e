//! Speaking to other nodes over their PostgreSQL port.

pub(crate) mod leftovers;
pub(crate) mod peer;
pub(crate) mod structure;
