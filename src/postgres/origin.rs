//! Replication origins: the server's own bookkeeping of how far each origin has been applied, atomic with the data.

use std::ffi::CString;

use pgrx::pg_sys;

use super::version;

/// A replication origin of this server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Origin(pub(crate) u16);

impl Origin {
    /// Looks an origin up by name. In a transaction.
    pub(crate) fn find(name: &str) -> Option<Origin> {
        let name = CString::new(name).ok()?;
        // SAFETY: a catalog look-up by a nul-terminated name.
        let number = unsafe { pg_sys::replorigin_by_name(name.as_ptr(), true) };
        (number != 0).then_some(Origin(number))
    }

    /// Makes one. In a transaction; needs no superuser in a worker.
    pub(crate) fn create(name: &str) -> Option<Origin> {
        let name = CString::new(name).ok()?;
        // SAFETY: nul-terminated name; raises where it exists.
        Some(Origin(unsafe { pg_sys::replorigin_create(name.as_ptr()) }))
    }

    /// Its name; None when there is no such origin. In a transaction.
    pub(crate) fn name(self) -> Option<String> {
        let mut name = core::ptr::null_mut();
        // SAFETY: a catalog look-up; the name is palloc'd text.
        unsafe {
            pg_sys::replorigin_by_oid(self.0, true, &mut name)
                .then(|| core::ffi::CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    /// How far it has been applied, as far as this server knows without a flush of its own WAL.
    pub(crate) fn progress(self) -> u64 {
        // SAFETY: reads shared memory.
        unsafe { pg_sys::replorigin_get_progress(self.0, false) }
    }

    /// Makes this process the one that advances the origin: its commits carry it. Raises when another process does.
    pub(crate) fn use_in_session(self) {
        // SAFETY: at most once in a worker's life; what is stamped on commits is exactly what is set up.
        unsafe {
            version::origin_session_setup(self.0);
            pg_sys::replorigin_session_origin = self.0;
        }
    }
}
