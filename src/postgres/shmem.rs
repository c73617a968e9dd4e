//! Shared memory: one named area, laid out by [`crate::shared_state`], reserved in the request hook and found again
//! in the startup hook of every process (fork or EXEC_BACKEND).

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::shared_state::layout::Area;

const AREA_NAME: &core::ffi::CStr = c"pg_ha shared state";
const TRANCHE: &core::ffi::CStr = c"pg_ha";

static AREA: AtomicPtr<Area> = AtomicPtr::new(core::ptr::null_mut());

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// A value in shared memory guarded by a lightweight lock of our tranche.
///
/// The closures run with the lock held and interrupts held off: no SPI, no network, no error may be raised in them.
#[repr(C)]
pub(crate) struct Guarded<T> {
    lock: AtomicPtr<pg_sys::LWLock>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through the lightweight lock; T is plain data that lives in shared memory.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    /// Reads under the shared lock.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let _held = self.acquire(pg_sys::LWLockMode::LW_SHARED);
        // SAFETY: the shared lock excludes writers for as long as `_held` lives.
        f(unsafe { &*self.value.get() })
    }

    /// Changes under the exclusive lock.
    pub(crate) fn write<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let _held = self.acquire(pg_sys::LWLockMode::LW_EXCLUSIVE);
        // SAFETY: the exclusive lock excludes every other reader and writer for as long as `_held` lives.
        f(unsafe { &mut *self.value.get() })
    }

    fn acquire(&self, mode: pg_sys::LWLockMode::Type) -> Held {
        let lock = self.lock.load(Ordering::Relaxed);
        // SAFETY: `lock` was set from GetNamedLWLockTranche before any process could see the area.
        unsafe { pg_sys::LWLockAcquire(lock, mode) };
        Held(lock)
    }
}

struct Held(*mut pg_sys::LWLock);

impl Drop for Held {
    fn drop(&mut self) {
        // An ERROR that unwinds through here was raised by someone else's code, and AbortTransaction releases all
        // lightweight locks after us: releasing twice would be an error of its own.
        // SAFETY: plain counters of this process; the lock is released only if this process holds it.
        unsafe {
            if pg_sys::InterruptHoldoffCount > 0 && pg_sys::LWLockHeldByMe(self.0) {
                pg_sys::LWLockRelease(self.0);
            }
        }
    }
}

/// Installs the two hooks. Called once, from `_PG_init` in the postmaster.
pub(crate) fn install() {
    // SAFETY: _PG_init of a preloaded library runs in the postmaster, single-threaded, before any child exists.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

/// The shared area, or None in a process that never attached (a library loaded without preloading).
pub(crate) fn area() -> Option<&'static Area> {
    let area = AREA.load(Ordering::Acquire);
    // SAFETY: set once in the startup hook to memory that lives as long as the server.
    (!area.is_null()).then(|| unsafe { &*area })
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster in the only phase where reserving is allowed; the previous hook is C code.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        pg_sys::RequestAddinShmemSpace(core::mem::size_of::<Area>());
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), Area::LOCKS as i32);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: ShmemInitStruct under AddinShmemInitLock is the documented way to create or find an area; a new one is
    // zeroed before anyone else can see it, and zero is a valid value of every field of `Area`.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let addin_lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(addin_lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let mut found = false;
        let area: *mut Area =
            pg_sys::ShmemInitStruct(AREA_NAME.as_ptr(), core::mem::size_of::<Area>(), &mut found).cast();
        if !found {
            core::ptr::write_bytes(area, 0, 1);
            let locks = pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr());
            (*area).attach_locks(|index, slot: &AtomicPtr<pg_sys::LWLock>| {
                slot.store(&raw mut (*locks.add(index)).lock, Ordering::Relaxed);
            });
        }
        pg_sys::LWLockRelease(addin_lock);
        AREA.store(area, Ordering::Release);
    }
}

/// Index of AddinShmemInitLock in the main array (lwlocknames.h; the same in 15 to 18).
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

impl<T> Guarded<T> {
    /// For [`Area::attach_locks`]: where the lock's address is kept.
    pub(crate) fn lock_slot(&self) -> &AtomicPtr<pg_sys::LWLock> {
        &self.lock
    }
}
