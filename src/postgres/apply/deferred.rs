//! Deferred triggers of tables whose owner must not have the worker's rights.
//!
//! The server refuses to defer a trigger within a security-restricted operation. Their events are therefore queued
//! apart from all others: the code that may run while they are made (conditions of triggers) runs as the owner, and
//! only the step that moves them to the end of the transaction is taken unrestricted; it runs no code. They are fired by
//! [`super::acting::fire_deferred`].

use pgrx::pg_sys;

use super::acting;
use super::table::OpenTable;

/// The deferred triggers of a table.
pub(super) struct Deferred {
    /// The table's triggers, of which none but these fire.
    triggers: *mut pg_sys::TriggerDesc,
    /// The unique indexes that are checked by them, by oid.
    unique: *mut pg_sys::List,
}

/// The change whose events are queued.
#[derive(Clone, Copy)]
pub(super) enum Queued {
    Insert,
    Update,
    Delete,
}

fn fires(trigger: &pg_sys::Trigger) -> bool {
    let enabled = trigger.tgenabled as u8;
    enabled == pg_sys::TRIGGER_FIRES_ALWAYS || enabled == pg_sys::TRIGGER_FIRES_ON_REPLICA
}

/// Makes sure that what is not deferred cannot become so, and tells whether any trigger is.
///
/// # Safety
/// `triggers` is null or a copy that nobody else uses.
pub(super) unsafe fn settle(triggers: *mut pg_sys::TriggerDesc) -> bool {
    let mut any = false;
    // SAFETY: the caller's promise; the array has as many members as the descriptor says.
    unsafe {
        if triggers.is_null() {
            return false;
        }
        for index in 0..(*triggers).numtriggers as usize {
            let trigger = &mut *(*triggers).triggers.add(index);
            if trigger.tginitdeferred {
                any |= fires(trigger);
            } else {
                trigger.tgdeferrable = false;
            }
        }
    }
    any
}

impl Deferred {
    /// Takes the deferred triggers out of a table's own copy of its triggers.
    ///
    /// # Safety
    /// As [`settle`], which has been called; not null. In the memory of the open table.
    pub(super) unsafe fn take_from(triggers: *mut pg_sys::TriggerDesc) -> Deferred {
        // SAFETY: the copy has as many triggers as the original, in the same order.
        unsafe {
            let copy = pg_sys::CopyTriggerDesc(triggers);
            let mut unique = core::ptr::null_mut();
            for index in 0..(*triggers).numtriggers as usize {
                let trigger = &mut *(*triggers).triggers.add(index);
                if trigger.tginitdeferred {
                    trigger.tgenabled = pg_sys::TRIGGER_DISABLED as core::ffi::c_char;
                    if trigger.tgfoid.to_u32() == pg_sys::F_UNIQUE_KEY_RECHECK {
                        unique = pg_sys::lappend_oid(unique, trigger.tgconstrindid);
                    }
                } else {
                    (*(*copy).triggers.add(index)).tgenabled = pg_sys::TRIGGER_DISABLED as core::ffi::c_char;
                }
            }
            Deferred {
                triggers: copy,
                unique,
            }
        }
    }
}

impl OpenTable {
    /// Queues the deferred triggers of a row that was just written; does nothing where a trigger prevented that.
    ///
    /// # Safety
    /// Within [`OpenTable::apply`]. `new_row` holds the row that was written, `local_row` the one that was there.
    pub(super) unsafe fn queue_deferred(&mut self, change: Queued) {
        let Some(deferred) = &self.deferred else { return };
        // SAFETY: the slots belong to the open table; the triggers are put back before anything else can look.
        unsafe {
            let mut place = (*self.local_row).tts_tid;
            let old = &raw mut place;
            let written = match change {
                Queued::Insert | Queued::Update => (*self.new_row).tts_tid.ip_posid != 0,
                Queued::Delete => !pg_sys::table_tuple_fetch_row_version(
                    self.relation,
                    old,
                    &raw mut pg_sys::SnapshotSelfData,
                    self.local_row,
                ),
            };
            if !written {
                return;
            }
            let (estate, result) = (self.estate, self.result);
            let none: *mut core::ffi::c_void = core::ptr::null_mut();
            pg_sys::AfterTriggerBeginQuery();
            let own = core::mem::replace(&mut (*result).ri_TrigDesc, deferred.triggers);
            match change {
                Queued::Insert => {
                    pg_sys::ExecARInsertTriggers(estate, result, self.new_row, deferred.unique, none.cast());
                }
                Queued::Update => pg_sys::ExecARUpdateTriggers(
                    estate,
                    result,
                    none.cast(),
                    none.cast(),
                    old,
                    none.cast(),
                    self.new_row,
                    deferred.unique,
                    none.cast(),
                    false,
                ),
                Queued::Delete => {
                    pg_sys::ExecARDeleteTriggers(estate, result, old, none.cast(), none.cast(), false);
                }
            }
            (*result).ri_TrigDesc = own;
            acting::unrestricted(|| {
                // Code that ran before may have said SET CONSTRAINTS IMMEDIATE, which would fire them here.
                let mut all = pg_sys::ConstraintsSetStmt {
                    type_: pg_sys::NodeTag::T_ConstraintsSetStmt,
                    constraints: core::ptr::null_mut(),
                    deferred: true,
                };
                pg_sys::AfterTriggerSetState(&mut all);
                pg_sys::AfterTriggerEndQuery(estate);
            });
        }
    }
}
