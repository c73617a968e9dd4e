//! Small facts about the server this process belongs to, and small requests to it.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::time::Duration;

use pgrx::pg_sys;

/// Whether the postmaster is loading `shared_preload_libraries` right now.
pub(crate) fn is_preloading() -> bool {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// What `shared_preload_libraries` should be so that `library` is in it too.
pub(crate) fn preload_list_with(library: &str) -> String {
    match setting("shared_preload_libraries") {
        Some(list) if !list.trim().is_empty() => format!("{}, {library}", list.trim()),
        _ => library.to_owned(),
    }
}

/// Makes the server complain about settings named `ha.…` that do not exist.
pub(crate) fn reserve_setting_prefix() {
    // SAFETY: called in _PG_init, after all settings were defined.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"ha".as_ptr()) }
}

/// The value of a setting as `SHOW` would say it for enums, booleans and text; `None` where the server has no such
/// setting.
pub(crate) fn setting(name: &str) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is zero-terminated; the result is null or points to the setting's text, copied at once.
    unsafe { owned(pg_sys::GetConfigOption(name.as_ptr(), true, false)) }
}

/// The data directory's absolute path.
pub(crate) fn data_directory() -> PathBuf {
    // SAFETY: set before any library is loaded and never changed.
    PathBuf::from(unsafe { owned(pg_sys::DataDir) }.unwrap_or_default())
}

/// The number that all copies of one `initdb` share.
pub(crate) fn system_identifier() -> u64 {
    // SAFETY: reads shared memory that is set up before sessions start.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// Whether the server replays WAL and refuses writes.
pub(crate) fn in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// `server_version_num`.
pub(crate) fn version_number() -> u32 {
    pg_sys::PG_VERSION_NUM
}

/// The database of this session; zero outside of one.
pub(crate) fn database_oid() -> u32 {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// The name of a database, if there is one with this oid. Needs a transaction.
pub(crate) fn database_name(oid: u32) -> Option<String> {
    // SAFETY: a catalog lookup; returns null or a palloc'ed text, copied at once.
    unsafe { owned(pg_sys::get_database_name(pg_sys::Oid::from(oid))) }
}

/// Schema and name of a relation of this database. Needs a transaction.
pub(crate) fn relation_name(relation: pg_sys::Oid) -> Option<(String, String)> {
    // SAFETY: catalog lookups; each returns null or a palloc'ed text, copied at once.
    unsafe {
        let name = owned(pg_sys::get_rel_name(relation))?;
        let schema = owned(pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation)))?;
        Some((schema, name))
    }
}

/// Whether CREATE EXTENSION or ALTER EXTENSION UPDATE is running a script.
pub(crate) fn runs_extension_script() -> bool {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::creating_extension }
}

/// The encoding of this database, as `client_encoding` takes it.
pub(crate) fn encoding() -> String {
    // SAFETY: returns a static text.
    unsafe { owned(pg_sys::GetDatabaseEncodingName()) }.unwrap_or_default()
}

/// `wal_receiver_timeout`: how long a provider may be silent. Zero there means for ever, which is a day here.
pub(crate) fn replication_timeout() -> Duration {
    // SAFETY: the value of a setting.
    match unsafe { pg_sys::wal_receiver_timeout } {
        0 => Duration::from_secs(86_400),
        milliseconds => Duration::from_millis(u64::from(milliseconds.unsigned_abs())),
    }
}

/// Where a program of this PostgreSQL installation is: beside the server's own.
pub(crate) fn program(name: &str) -> PathBuf {
    unsafe extern "C" {
        /// miscadmin.h: a zero-terminated path.
        static my_exec_path: [c_char; pg_sys::MAXPGPATH as usize];
    }
    // SAFETY: set by the postmaster and inherited; never changed.
    let server = unsafe { owned(my_exec_path.as_ptr()) }.unwrap_or_default();
    PathBuf::from(server).with_file_name(name)
}

/// This process.
pub(crate) fn process_id() -> i32 {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::MyProcPid }
}

/// When the postmaster started: tells one run of the server from another.
pub(crate) fn started_at() -> i64 {
    // SAFETY: set by the postmaster and inherited.
    unsafe { pg_sys::PgStartTime }
}

/// Whether a process of this number is one of the server's with access to its data.
pub(crate) fn is_backend(process_id: i32) -> bool {
    // SAFETY: looks through shared memory under its lock.
    unsafe { !pg_sys::BackendPidGetProc(process_id).is_null() }
}

/// Waits until the WAL up to `lsn` is on disk.
pub(crate) fn flush_wal(lsn: u64) {
    // SAFETY: `lsn` was returned by an insertion of this process.
    unsafe { pg_sys::XLogFlush(lsn) }
}

/// Waits until nobody writes to the table, and keeps writers out until the transaction ends, which gets no number by it.
pub(crate) fn lock_against_writers(relation: pg_sys::Oid) {
    // SAFETY: called inside a transaction; a number that is no relation's (any more) is locked for nothing.
    unsafe { pg_sys::LockRelationOid(relation, pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE) }
}

/// Makes every process, and with the commit every running decoding session at the same WAL position, look at the
/// table's definition again. The relation must exist.
pub(crate) fn invalidate_relation(relation: pg_sys::Oid) {
    // SAFETY: called inside a transaction with an existing relation; raises if it is not.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) }
}

/// The schemas that the current `search_path` names, in order, as far as they exist and may be used.
pub(crate) fn search_path() -> Vec<u32> {
    let mut schemas = [pg_sys::InvalidOid; 64];
    // SAFETY: the array has the length that is passed; the function fills at most that many and returns how many
    // there would be.
    let found = unsafe { pg_sys::fetch_search_path_array(schemas.as_mut_ptr(), schemas.len() as i32) };
    let found = usize::try_from(found).unwrap_or(0).min(schemas.len());
    schemas.iter().take(found).map(|oid| oid.to_u32()).collect()
}

/// Runs `work` under `search_path = pg_catalog, pg_temp`, as `SET search_path` on the function would.
pub(crate) fn with_fixed_search_path<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: opens a nest level that is closed below; if `work` unwinds, the transaction's abort closes it.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    // SAFETY: zero-terminated literals; the enum values are what function SET clauses use.
    unsafe {
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
    let result = work();
    // SAFETY: the level opened above.
    unsafe { pg_sys::AtEOXact_GUC(true, level) };
    result
}

/// Runs `work`; settings that it changes are as before when it is through.
pub(crate) fn with_settings_restored<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: opens a nest level that is closed below; if `work` unwinds, the transaction's abort closes it.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    let result = work();
    // SAFETY: the level opened above; false gives back what was, as the server does after functions of indexes.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    result
}

/// Raises if the user asked to cancel or the server is stopping.
pub(crate) fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}

/// Whether the user asked to cancel or the server is stopping, for where nothing may be raised.
pub(crate) fn interrupt_requested() -> bool {
    // SAFETY: plain globals of this process, set by its signal handlers.
    unsafe { pg_sys::QueryCancelPending != 0 || pg_sys::ProcDiePending != 0 }
}

/// Copies a C string; `None` for null.
///
/// # Safety
/// `text` is null or zero-terminated and valid during the call.
unsafe fn owned(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
