//! ERROR, WARNING and LOG from safe code: one value that carries SQLSTATE, message, detail and hint.

use std::panic::AssertUnwindSafe;

use pgrx::PgTryBuilder;
use pgrx::pg_sys::elog::PgLogLevel;
use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};

/// What the user is told. Build it with [`Report::new`], then return it as the error of a `Result`; the thunk that
/// PostgreSQL called raises it once every destructor on the way has run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    code: PgSqlErrorCode,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// The result of everything that may refuse.
pub(crate) type Answer<T> = Result<T, Report>;

impl Report {
    pub(crate) fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Report {
        Report {
            code,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// What was found.
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Report {
        self.detail = Some(detail.into());
        self
    }

    /// What to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Report {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn detail_text(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    pub(crate) fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Ends the statement with an ERROR.
    pub(crate) fn raise(self) -> ! {
        self.report(PgLogLevel::ERROR);
        unreachable!("an ERROR never returns")
    }

    /// Tells the client, and goes on.
    pub(crate) fn warn(self) {
        self.report(PgLogLevel::WARNING);
    }

    /// Tells the client, and goes on.
    pub(crate) fn notice(self) {
        self.report(PgLogLevel::NOTICE);
    }

    /// Tells the server's log alone.
    pub(crate) fn log(self) {
        self.report(PgLogLevel::LOG);
    }

    fn report(self, level: PgLogLevel) {
        let mut report = ErrorReport::new(self.code, self.message, "pg_ha");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report.report(level);
    }
}

/// The value, or an ERROR. For thunks only: call it with nothing left on the stack that must be dropped.
pub(crate) fn answer<T>(result: Answer<T>) -> T {
    match result {
        Ok(value) => value,
        Err(report) => report.raise(),
    }
}

/// Runs `work`; where it raises an ERROR of this code, the user gets `instead` of it.
pub(crate) fn rephrasing<T>(code: PgSqlErrorCode, instead: &Report, work: impl FnOnce() -> T) -> T {
    let mut work = Some(work);
    PgTryBuilder::new(AssertUnwindSafe(|| match work.take() {
        Some(work) => work(),
        None => unreachable!("run once"),
    }))
    .catch_when(code, |_| instead.clone().raise())
    .execute()
}

/// Runs `work`; what it raises becomes a refusal, made from the error's code and its words. The transaction must still
/// be given up afterwards: answer the user with the refusal.
pub(crate) fn explaining<T>(
    refusal: impl Fn(PgSqlErrorCode, String) -> Report,
    work: impl FnOnce() -> T,
) -> Answer<T> {
    let mut work = Some(work);
    let refusal = AssertUnwindSafe(refusal);
    PgTryBuilder::new(AssertUnwindSafe(|| match work.take() {
        Some(work) => Ok(work()),
        None => unreachable!("run once"),
    }))
    .catch_others(move |caught| match caught {
        CaughtError::PostgresError(error) | CaughtError::ErrorReport(error) => {
            let mut words = error.message().to_owned();
            if let Some(first) = words.get(..1).map(str::to_uppercase) {
                words.replace_range(..1, &first);
            }
            Err(refusal(error.sql_error_code(), format!("{words}.")))
        }
        panic @ CaughtError::RustPanic { .. } => panic.rethrow(),
    })
    .execute()
}

/// PostgreSQL's error code for the five characters of a SQLSTATE that another server sent; an internal error if the
/// text is none.
pub(crate) fn code_of_sqlstate(sqlstate: &str) -> PgSqlErrorCode {
    let bytes = sqlstate.as_bytes();
    if bytes.len() != 5 || !bytes.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) {
        return PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
    }
    let packed = bytes.iter().enumerate().fold(0i32, |packed, (at, byte)| {
        packed | (i32::from((byte - b'0') & 0x3F) << (6 * at))
    });
    PgSqlErrorCode::from(packed)
}
