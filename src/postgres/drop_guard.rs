//! Refuses to drop what a node stands on: its database, and the extension.
//!
//! Through `object_access_hook` rather than by reading statements: it sees every way to drop something (DROP OWNED,
//! CASCADE, inside DO blocks), after the permission checks and before anything is removed.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use pgrx::{pg_guard, pg_sys};

use super::error::answer;
use super::server;
use crate::sql_api::drop_checks;

static PREVIOUS: OnceLock<pg_sys::object_access_hook_type> = OnceLock::new();

/// Sets the hook. Called once, in `_PG_init`.
pub(crate) fn register() {
    // SAFETY: in _PG_init, in a process with one thread; the hook is a function of a library that is never unloaded.
    unsafe {
        let previous = pg_sys::object_access_hook;
        if PREVIOUS.set(previous).is_ok() {
            pg_sys::object_access_hook = Some(on_object_access);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    part: c_int,
    arg: *mut c_void,
) {
    if let Some(Some(previous)) = PREVIOUS.get() {
        // SAFETY: the hook that was there before us, with the arguments that are meant for it.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| previous(access, class, object, part, arg)) };
    }
    if access != pg_sys::ObjectAccessType::OAT_DROP {
        return;
    }
    if class == pg_sys::DatabaseRelationId {
        answer(drop_checks::database(object.to_u32()));
    } else if class == pg_sys::RelationRelationId && part == 0 && announces_end_of_extension(object) {
        answer(drop_checks::extension());
    }
}

/// What an extension consists of goes before the extension itself, and a view before the tables it is made from: when
/// the view `ha.subscriptions` is to go, all tables are still there to be looked at. It belongs to the extension and
/// so cannot be dropped alone, except by the extension's own upgrade scripts.
fn announces_end_of_extension(relation: pg_sys::Oid) -> bool {
    !server::runs_extension_script()
        && server::relation_name(relation)
            .is_some_and(|(schema, name)| schema == "ha" && name == "subscriptions")
}
