//! Which relations changed, as told by the relation cache.
//!
//! The callback can run in the middle of any catalog read, so it only notes; whoever caches something asks before
//! using it.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use pgrx::pg_sys;
use pgrx::prelude::*;

thread_local! {
    // A backend is single-threaded, and nothing that holds one of these reads a catalog.
    static NOTED: RefCell<HashSet<pg_sys::Oid>> = RefCell::new(HashSet::new());
    static ALL: Cell<bool> = const { Cell::new(false) };
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Past so many noted relations everything counts as changed.
const LIMIT: usize = 10_000;

/// What changed since the last call.
pub(crate) enum Invalidated {
    Nothing,
    All,
    Relations(HashSet<pg_sys::Oid>),
}

/// Starts noting in this process.
pub(crate) fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: registered once, since callbacks cannot be taken back; they need no argument.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(noted), pg_sys::Datum::from(0));
            // A renamed schema renames its tables without touching them; what a role is and what it is a member of
            // decides what may be done with tables.
            for cache in [
                pg_sys::SysCacheIdentifier::NAMESPACEOID,
                pg_sys::SysCacheIdentifier::AUTHOID,
                pg_sys::SysCacheIdentifier::AUTHMEMROLEMEM,
            ] {
                pg_sys::CacheRegisterSyscacheCallback(
                    cache as i32,
                    Some(all_changed),
                    pg_sys::Datum::from(0),
                );
            }
        }
    }
}

/// Takes what was noted.
pub(crate) fn take() -> Invalidated {
    let noted = NOTED.take();
    if ALL.replace(false) {
        Invalidated::All
    } else if noted.is_empty() {
        Invalidated::Nothing
    } else {
        Invalidated::Relations(noted)
    }
}

/// A number that grows with every change of any relation.
pub(crate) fn generation() -> u64 {
    GENERATION.get()
}

#[pg_guard]
unsafe extern "C-unwind" fn noted(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    GENERATION.set(GENERATION.get() + 1);
    NOTED.with_borrow_mut(|noted| {
        if relation == pg_sys::InvalidOid || noted.len() >= LIMIT {
            ALL.set(true);
        } else {
            noted.insert(relation);
        }
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn all_changed(
    _argument: pg_sys::Datum,
    _cache: core::ffi::c_int,
    _hash: pg_sys::uint32,
) {
    GENERATION.set(GENERATION.get() + 1);
    ALL.set(true);
}
