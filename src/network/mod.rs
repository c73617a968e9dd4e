//! Speaking to other nodes over their PostgreSQL port.

pub(crate) mod peer;
