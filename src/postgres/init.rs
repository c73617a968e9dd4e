//! `_PG_init`: what happens when the library is loaded, in order.

use pgrx::pg_guard;
use pgrx::pg_sys::errcodes::PgSqlErrorCode;

use super::error::Report;
use super::{drop_guard, server, shmem, worker, xact};
use crate::settings;

/// Called by the server once per process that loads the library (under fork, once in the postmaster).
#[pg_guard]
extern "C-unwind" fn _PG_init() {
    if !server::is_preloading() {
        Report::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "pg_ha must be loaded when the server starts",
        )
        .detail("The library is not in shared_preload_libraries.")
        .hint(format!(
            "Add this line to postgresql.conf and restart the server: shared_preload_libraries = '{}'",
            server::preload_list_with("pg_ha")
        ))
        .raise();
    }
    settings::register();
    xact::register();
    drop_guard::register();
    shmem::install();
    worker::register_supervisor();
    server::reserve_setting_prefix();
}
