//! Files that this process opens past the server's own bookkeeping.

use pgrx::pg_sys;

/// One such file: while the value lives, the server counts it among those that the process may have open, and closes
/// others of its own for it.
pub(crate) struct FileSlot(());

impl FileSlot {
    pub(crate) fn take() -> FileSlot {
        // SAFETY: counts, and closes files that the server can open again.
        unsafe { pg_sys::ReserveExternalFD() };
        FileSlot(())
    }
}

impl Drop for FileSlot {
    fn drop(&mut self) {
        // SAFETY: pairs with `take`.
        unsafe { pg_sys::ReleaseExternalFD() };
    }
}
