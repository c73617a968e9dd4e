//! pg_ha: PostgreSQL high availability and multi-master replication inside the server.
#![deny(unsafe_code)]

mod catalog;
mod decoding;
mod durable;
mod network;
#[allow(unsafe_code)]
mod postgres;
mod settings;
mod shared_state;
mod sql_api;
mod workers;
