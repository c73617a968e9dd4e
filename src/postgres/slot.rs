//! Replication slots of this server, beyond what SQL can do with them.

use std::cell::Cell;
use std::ffi::CString;

use pgrx::pg_sys;

use super::{version, worker};

/// Ends a slot as the server itself does when `max_slot_wal_keep_size` is exceeded: it keeps no WAL and no dead rows any
/// more and stays as "lost", durably, so that whoever comes for it gets an error and nothing else. Raises when somebody
/// reads from it, or when it is gone. The error is returned; the slot is then as it was.
pub(crate) fn end(name: &str) -> Result<(), String> {
    let c_name = CString::new(name).map_err(|error| error.to_string())?;
    let before = Cell::new(None);
    let ended = worker::catch(|| {
        // SAFETY: a worker without a slot of its own takes this one, so that nobody else changes it meanwhile, and lets
        // go of it; what is kept because of slots is then computed anew. The fields are those that
        // InvalidatePossiblyObsoleteSlot (slot.c) sets. Without the spinlock, which takes an inline function: each
        // field is one word, and readers see the slot ended at the second at the latest.
        unsafe {
            version::slot_acquire(c_name.as_ptr());
            before.set(Some((*pg_sys::MyReplicationSlot).data));
            version::mark_slot_lost(pg_sys::MyReplicationSlot);
            pg_sys::ReplicationSlotMarkDirty();
            pg_sys::ReplicationSlotSave();
            pg_sys::ReplicationSlotRelease();
            pg_sys::ReplicationSlotsComputeRequiredXmin(false);
            pg_sys::ReplicationSlotsComputeRequiredLSN();
        }
    });
    ended.map_err(|caught| {
        // SAFETY: a slot that was taken before the error is as it was again, as on disk (where there may have been no
        // room for it), and given back.
        unsafe {
            if let Some(slot) = pg_sys::MyReplicationSlot.as_mut() {
                if let Some(before) = before.get() {
                    slot.data = before;
                }
                pg_sys::ReplicationSlotRelease();
            }
        }
        caught.describe()
    })
}

/// What the slot that this walsender reads from has had confirmed.
pub(crate) fn own_confirmed() -> Option<u64> {
    // SAFETY: the slot of this process, whose position only this process changes.
    unsafe { pg_sys::MyReplicationSlot.as_ref() }.map(|slot| slot.data.confirmed_flush)
}

/// The name of the slot that this walsender reads from.
pub(crate) fn own_name() -> String {
    // SAFETY: as above; the name is zero-terminated.
    unsafe { pg_sys::MyReplicationSlot.as_ref() }
        .map(|slot| {
            // SAFETY: as above.
            unsafe { core::ffi::CStr::from_ptr(slot.data.name.data.as_ptr()) }
                .to_string_lossy()
                .into_owned()
        })
        .unwrap_or_default()
}
