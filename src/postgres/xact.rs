//! What shall happen when the current transaction ends, as closures registered from safe code.
//!
//! Three moments: *before commit* may still refuse (an `Err` becomes the ERROR that aborts the transaction); *after
//! commit* and *on abort* may not, whatever they meet: an ERROR there would take the server down or leave the
//! transaction half ended, so that panics and ERRORs are caught and logged. Both run with interrupts held: what they
//! wait for must be bounded.
//!
//! A closure belongs to the subtransaction that registered it: rolling back to a savepoint runs its abort closure
//! right then and forgets the others; releasing the savepoint hands them to the parent. PREPARE TRANSACTION is
//! refused, since what follows could not run in another session.

use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use pgrx::{PgTryBuilder, pg_guard, pg_sys};

use super::error::{Answer, Report};

type Closure = Box<dyn FnOnce()>;
type Check = Box<dyn FnOnce() -> Answer<()>>;

enum Moment {
    BeforeCommit(Check),
    AfterCommit(Closure),
    OnAbort(Closure),
}

struct Entry {
    subtransaction: pg_sys::SubTransactionId,
    moment: Moment,
}

thread_local! {
    // The server's processes have one thread; no closure runs while the list is borrowed.
    static ENTRIES: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

/// Runs before the commit becomes durable and may refuse it. In order of registration.
pub(crate) fn before_commit(check: impl FnOnce() -> Answer<()> + 'static) {
    add(Moment::BeforeCommit(Box::new(check)));
}

/// Runs once the commit is durable and visible. In order of registration.
pub(crate) fn after_commit(closure: impl FnOnce() + 'static) {
    add(Moment::AfterCommit(Box::new(closure)));
}

/// Runs when the transaction, or the subtransaction that registered it, rolls back. Last registered first.
pub(crate) fn on_abort(closure: impl FnOnce() + 'static) {
    add(Moment::OnAbort(Box::new(closure)));
}

fn add(moment: Moment) {
    // SAFETY: callable at any time; reads this process's transaction state.
    let subtransaction = unsafe { pg_sys::GetCurrentSubTransactionId() };
    ENTRIES.with_borrow_mut(|entries| {
        entries.push(Entry {
            subtransaction,
            moment,
        });
    });
}

fn take(wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
    ENTRIES.with_borrow_mut(|entries| {
        let (taken, kept) = std::mem::take(entries).into_iter().partition(wanted);
        *entries = kept;
        taken
    })
}

/// Hooks the registry into the server. Called once, in `_PG_init`.
pub(crate) fn register() {
    // SAFETY: both callbacks are `pg_guard`ed functions of a library that is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(on_transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_subtransaction_event), std::ptr::null_mut());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_transaction_event(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    if ENTRIES.with_borrow(Vec::is_empty) {
        return;
    }
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT => before_commit_now(),
        pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => Report::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "cannot PREPARE a transaction that has changed nodes or subscriptions",
        )
        .detail("What must follow the commit can only run in this session.")
        .hint("Use COMMIT.")
        .raise(),
        pg_sys::XactEvent::XACT_EVENT_COMMIT => {
            for entry in take(|_| true) {
                if let Moment::AfterCommit(closure) = entry.moment {
                    contained(closure);
                }
            }
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT => abort_now(take(|_| true)),
        _ => {}
    }
}

fn before_commit_now() {
    for entry in take(|entry| matches!(entry.moment, Moment::BeforeCommit(_))) {
        if let Moment::BeforeCommit(check) = entry.moment
            && let Err(report) = check()
        {
            report.raise();
        }
    }
}

fn abort_now(entries: Vec<Entry>) {
    for entry in entries.into_iter().rev() {
        if let Moment::OnAbort(closure) = entry.moment {
            contained(closure);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => ENTRIES.with_borrow_mut(|entries| {
            for entry in entries
                .iter_mut()
                .filter(|entry| entry.subtransaction == subtransaction)
            {
                entry.subtransaction = parent;
            }
        }),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            abort_now(take(|entry| entry.subtransaction == subtransaction));
        }
        _ => {}
    }
}

/// Runs a closure that must not disturb the end of a transaction.
fn contained(closure: Closure) {
    let closure = AssertUnwindSafe(RefCell::new(Some(closure)));
    PgTryBuilder::new(AssertUnwindSafe(|| {
        let closure = closure.borrow_mut().take();
        if let Some(closure) = closure {
            closure();
        }
    }))
    .catch_others(|_| pg_log("an ERROR"))
    .catch_rust_panic(|_| pg_log("a panic"))
    .execute();
}

fn pg_log(what: &str) {
    Report::new(
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("pg_ha: {what} while a transaction ended was contained"),
    )
    .log();
}
