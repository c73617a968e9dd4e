//! The only home of `unsafe`, and of every C entry point and callback.

::pgrx::pg_module_magic!(name, version);

pub(crate) mod apply;
pub(crate) mod conflict_history;
pub(crate) mod copy;
pub(crate) mod drop_guard;
mod entry;
mod entry_status;
pub(crate) mod error;
pub(crate) mod file_slot;
mod init;
pub(crate) mod invalidation;
pub(crate) mod latch;
pub(crate) mod libpq;
pub(crate) mod name;
pub(crate) mod origin;
mod output_plugin;
mod publication;
pub(crate) mod queue;
pub(crate) mod row_filter;
pub(crate) mod server;
pub(crate) mod shmem;
pub(crate) mod slot;
pub(crate) mod two_phase;
pub(crate) mod values;
pub(crate) mod version;
pub(crate) mod walreceiver;
pub(crate) mod worker;
pub(crate) mod xact;

use pgrx::pg_sys;

/// The time of day as PostgreSQL counts it: microseconds since 2000-01-01 UTC.
pub(crate) fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// A time (TimestampTz) for people, in the log's time zone.
pub(crate) fn time_text(time: i64) -> String {
    // SAFETY: returns a static buffer with a zero-terminated text, copied at once.
    unsafe { core::ffi::CStr::from_ptr(pg_sys::timestamptz_to_str(time)) }
        .to_string_lossy()
        .into_owned()
}

/// How long a provider may be silent; None for any time.
pub(crate) fn wal_receiver_timeout() -> Option<std::time::Duration> {
    // SAFETY: reads a setting.
    let milliseconds = unsafe { pg_sys::wal_receiver_timeout };
    u64::try_from(milliseconds)
        .ok()
        .filter(|limit| *limit > 0)
        .map(std::time::Duration::from_millis)
}

/// How often a subscriber tells its provider how far it is, at least (wal_receiver_status_interval; 0 counts as the
/// default of 10 s, since a provider would give the subscriber up).
pub(crate) fn status_interval() -> std::time::Duration {
    // SAFETY: reads a setting, in seconds.
    let seconds = unsafe { pg_sys::wal_receiver_status_interval };
    std::time::Duration::from_secs(
        u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .unwrap_or(10),
    )
}

/// The end of the WAL that is durable on this server.
pub(crate) fn flushed_wal() -> u64 {
    // SAFETY: reads shared memory; not during recovery.
    unsafe { pg_sys::GetFlushRecPtr(core::ptr::null_mut()) }
}

/// The end of the WAL as this server has it: written on a primary, replayed on a standby.
pub(crate) fn current_wal() -> u64 {
    // SAFETY: reads shared memory.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            pg_sys::GetXLogReplayRecPtr(core::ptr::null_mut())
        } else {
            pg_sys::GetXLogWriteRecPtr()
        }
    }
}

/// The timeline that this server writes or replays.
pub(crate) fn timeline() -> Option<i32> {
    // SAFETY: reads shared memory.
    let timeline = unsafe {
        if pg_sys::RecoveryInProgress() {
            let mut timeline = 0;
            pg_sys::GetXLogReplayRecPtr(&mut timeline);
            timeline
        } else {
            pg_sys::GetWALInsertionTimeLine()
        }
    };
    i32::try_from(timeline).ok()
}
