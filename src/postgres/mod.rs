//! The only home of `unsafe`, and of every C entry point and callback.

::pgrx::pg_module_magic!(name, version);

pub(crate) mod drop_guard;
mod entry;
pub(crate) mod error;
mod init;
pub(crate) mod libpq;
pub(crate) mod name;
pub(crate) mod server;
pub(crate) mod xact;
