//! The change stream between groups, as pure rules: its binary form, the order of its messages, what the two ends
//! agree on, who wins a conflict, what may be reported as flushed, when
//! subscribers are told of sequences, and name patterns.
//!
//! Nothing here knows PostgreSQL, sockets or clocks, and nothing here panics on any input.
#![forbid(unsafe_code)]

pub mod codec;
pub mod conflict;
pub mod convergence;
pub mod forwarding;
pub mod once;
pub mod options;
pub mod origin_name;
pub mod pattern;
pub mod progress;
pub mod retention;
pub mod sequence;
pub mod skip;
pub mod spool;
pub mod stream;
pub mod subscription_options;
