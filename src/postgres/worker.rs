//! Background workers: how they are registered, started, connected, told to end, and how errors in them are caught.

use std::cell::RefCell;
use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime, DynamicBackgroundWorker};
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::version;
use crate::workers;

/// An ERROR that was caught, after the transaction it happened in was given up.
#[derive(Debug, Clone)]
pub(crate) struct Caught {
    pub(crate) sqlstate: PgSqlErrorCode,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
}

impl Caught {
    /// One line: message, detail and SQLSTATE.
    pub(crate) fn describe(&self) -> String {
        let state = self.sqlstate_text();
        match &self.detail {
            Some(detail) => format!("{} ({detail}) [SQLSTATE {state}]", self.message),
            None => format!("{} [SQLSTATE {state}]", self.message),
        }
    }

    pub(crate) fn sqlstate_text(&self) -> String {
        // SAFETY: returns a static buffer with the five characters.
        unsafe {
            CStr::from_ptr(pg_sys::unpack_sql_state(self.sqlstate as i32))
                .to_string_lossy()
                .into_owned()
        }
    }
}

/// Registers the supervisor. Called once, in the postmaster, while libraries are preloaded.
pub(crate) fn register_supervisor() {
    let mut builder = BackgroundWorkerBuilder::new("pg_ha supervisor")
        .set_type("pg_ha supervisor")
        .set_library("pg_ha")
        .set_function("pg_ha_supervisor_main")
        .enable_spi_access()
        .set_restart_time(Some(Duration::from_secs(1)));
    // After enable_spi_access, which resets the start time.
    builder = builder.set_start_time(BgWorkerStartTime::RecoveryFinished);
    builder.load();
}

/// Starts a receiver for the subscription at this place; this process is told when it starts and ends.
pub(crate) fn start_receiver(place: usize) -> Option<DynamicBackgroundWorker> {
    start("pg_ha receiver", "pg_ha_receiver_main", place, 0)
}

/// Starts an applier fed by the queue with this number.
pub(crate) fn start_applier(place: usize, queue: u32) -> Option<DynamicBackgroundWorker> {
    start("pg_ha applier", "pg_ha_applier_main", place, queue)
}

/// Starts a copier for the table whose copy has this place.
pub(crate) fn start_copier(place: usize) -> Option<DynamicBackgroundWorker> {
    start("pg_ha copier", "pg_ha_copier_main", place, 0)
}

/// Starts a worker that drops what ended subscriptions left on other nodes, and ends.
pub(crate) fn start_cleaner() -> Option<DynamicBackgroundWorker> {
    start("pg_ha cleaner", "pg_ha_cleaner_main", 0, 0)
}

fn start(kind: &str, function: &str, place: usize, queue: u32) -> Option<DynamicBackgroundWorker> {
    // The argument packs both numbers: the place is far below 2^16.
    let argument = ((u64::from(queue)) << 16) | place as u64;
    BackgroundWorkerBuilder::new(kind)
        .set_type(kind)
        .set_library("pg_ha")
        .set_function(function)
        .set_argument(Some(pg_sys::Datum::from(argument)))
        .enable_spi_access()
        .set_restart_time(None)
        .set_notify_pid(process_id())
        .load_dynamic()
        .ok()
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_ha_supervisor_main(_argument: pg_sys::Datum) {
    initialise();
    workers::supervisor::run();
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_ha_receiver_main(argument: pg_sys::Datum) {
    initialise();
    workers::receiver::run(argument.value() & 0xFFFF);
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_ha_applier_main(argument: pg_sys::Datum) {
    initialise();
    workers::applier::run(argument.value() & 0xFFFF, (argument.value() as u64 >> 16) as u32);
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_ha_copier_main(argument: pg_sys::Datum) {
    initialise();
    workers::copier::run(argument.value() & 0xFFFF);
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_ha_cleaner_main(_argument: pg_sys::Datum) {
    initialise();
    workers::cleaner::run();
}

fn initialise() {
    // SAFETY: at the start of a worker, with signals still blocked; `die` and the reload handler only set flags and
    // the latch.
    unsafe {
        super::version::install_worker_signals();
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Connects to the database as the bootstrap superuser.
pub(crate) fn connect(database: u32) {
    // SAFETY: once per worker, after its signals are set up.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::Oid::from_u32(database),
            pg_sys::InvalidOid,
            0,
        );
    }
}

/// This process's id.
pub(crate) fn process_id() -> i32 {
    // SAFETY: a variable set when the process started.
    unsafe { pg_sys::MyProcPid }
}

/// Ends this worker if it was told to (with `code`, see [`exit`]), reads changed configuration files, and raises
/// pending interrupts.
pub(crate) fn heed_signals(code: i32) {
    // SAFETY: flags of this process; proc_exit runs the exit callbacks.
    unsafe {
        if pg_sys::ProcDiePending != 0 {
            pg_sys::proc_exit(code);
        }
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
    pgrx::check_for_interrupts!();
}

/// Ends this worker. 0: for good; 1: to be started again (the supervisor only).
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: runs the exit callbacks and ends the process.
    unsafe { version::exit_process(code) }
}

/// Runs at the end of this process, however it ends short of a crash (which resets shared memory). What was registered
/// last runs first.
pub(crate) fn at_exit(callback: fn(usize), argument: usize) {
    AT_EXIT.with_borrow_mut(|callbacks| callbacks.push((callback, argument)));
    // SAFETY: one registration per callback; the thunk needs no argument.
    unsafe { pg_sys::before_shmem_exit(Some(run_at_exit), pg_sys::Datum::from(0)) };
}

/// What to do at the end of this process, and with what.
type ExitCallback = (fn(usize), usize);

thread_local! {
    static AT_EXIT: RefCell<Vec<ExitCallback>> = const { RefCell::new(Vec::new()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn run_at_exit(_code: i32, _argument: pg_sys::Datum) {
    if let Some((callback, argument)) = AT_EXIT.with_borrow_mut(Vec::pop) {
        callback(argument);
    }
}

/// Runs work that may raise a PostgreSQL ERROR; on one, whatever transaction is open is given up.
pub(crate) fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Caught> {
    let work = std::panic::AssertUnwindSafe(work);
    let outcome = PgTryBuilder::new(move || Ok({ work }.0()))
        .catch_others(|error| Err(caught(error)))
        .catch_rust_panic(|error| Err(caught(error)))
        .execute();
    if outcome.is_err() {
        super::apply::abort();
    }
    outcome
}

fn caught(error: pg_sys::panic::CaughtError) -> Caught {
    use pg_sys::panic::CaughtError;
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = error;
    Caught {
        sqlstate: report.sql_error_code(),
        message: report.message().to_owned(),
        detail: report.detail().map(str::to_owned),
    }
}

/// Runs read or write work in a transaction of its own; on an error it is rolled back.
pub(crate) fn in_transaction<R>(work: impl FnOnce() -> R) -> Result<R, Caught> {
    catch(|| {
        // SAFETY: outside a transaction (workers' loops); committed below or given up by `catch`.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let result = work();
        // SAFETY: pairs with the above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        result
    })
}

/// Runs work with a snapshot taken now: it sees what has been committed so far, whatever the transaction around it
/// began with.
pub(crate) fn with_latest_snapshot<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: in a transaction; popped below, or by the abort that an error leads to.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let result = work();
    // SAFETY: pairs with the above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

/// Sets a setting for this process.
pub(crate) fn set(name: &CStr, value: &CStr) {
    // SAFETY: nul-terminated text; an override in this process only.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Runs work with another value of a setting of this process.
pub(crate) fn with_setting<R>(name: &CStr, value: &CStr, work: impl FnOnce() -> R) -> R {
    // SAFETY: the value is copied before anything can change it.
    let before = unsafe {
        let before = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!before.is_null()).then(|| CStr::from_ptr(before).to_owned())
    };
    set(name, value);
    let result = work();
    if let Some(before) = before {
        set(name, &before);
    }
    result
}

/// What this process counts for pg_stat_user_tables and the like.
pub(crate) struct Statistics {
    written: Instant,
}

impl Statistics {
    /// As rarely as ordinary sessions write theirs.
    const PAUSE: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Statistics {
        Statistics {
            written: Instant::now(),
        }
    }

    /// Writes what has gathered, if it is time to; otherwise returns how long it may wait. To be called outside a
    /// transaction, also where nothing happens any more: the server's own clock for this is the end of the last
    /// transaction, which stands still in an idle process.
    pub(crate) fn write(&mut self) -> Option<Duration> {
        let left = Self::PAUSE.saturating_sub(self.written.elapsed());
        // SAFETY: outside a transaction. What comes back is 0 if nothing is left to write.
        let rest = unsafe { pg_sys::pgstat_report_stat(left.is_zero()) };
        if left.is_zero() {
            self.written = Instant::now();
        }
        (rest > 0).then(|| left.max(Duration::from_millis(1)))
    }
}
