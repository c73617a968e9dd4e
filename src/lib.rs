//! pg_ha: PostgreSQL high availability and multi-master replication inside the server.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod postgres;
