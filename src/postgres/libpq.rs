//! libpq's asynchronous interface, declared by hand: connect and query with a deadline, awake to the latch.
//!
//! libpq's own blocking calls would ignore cancel requests and, when a peer falls silent, block for as long as TCP
//! does. Here every wait is on latch and socket together and ends at the deadline. (Resolving a host name is libpq's
//! and may take as long as the system's resolver does; sessions accept that, workers pass `hostaddr`.)

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

/// How a wait treats requests to cancel or terminate this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// They end the statement as they should: an ERROR or FATAL unwinds from the wait.
    Interruptible,
    /// The transaction is ending and nothing may be raised: the wait fails with [`Error::Interrupted`].
    Held,
}

/// What the other server said went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

/// Why there is no connection or no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Connect(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the connection broke: {0}")]
    Lost(String),
    #[error("{}", .0.message)]
    Server(ServerError),
    #[error("interrupted")]
    Interrupted,
    #[error("too many open files in this session")]
    NoFile,
    #[error("a text has a zero byte in it")]
    ZeroByte,
}

/// The rows of an answer, every value as text.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// An open connection; closed when dropped.
pub(crate) struct Connection {
    raw: NonNull<PgConn>,
    patience: Patience,
}

impl Connection {
    /// Connects with these parameters, in at most `timeout`.
    pub(crate) fn open(
        parameters: &[(&str, &str)],
        timeout: Duration,
        patience: Patience,
    ) -> Result<Connection, Error> {
        let owned = parameters
            .iter()
            .map(|(keyword, value)| Ok((c_string(keyword)?, c_string(value)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        let mut keywords: Vec<*const c_char> = owned.iter().map(|(keyword, _)| keyword.as_ptr()).collect();
        let mut values: Vec<*const c_char> = owned.iter().map(|(_, value)| value.as_ptr()).collect();
        keywords.push(std::ptr::null());
        values.push(std::ptr::null());

        // SAFETY: counts this process's descriptors; given back in `drop` (or just below).
        if !unsafe { pg_sys::AcquireExternalFD() } {
            return Err(Error::NoFile);
        }
        // SAFETY: both arrays end with null and their strings outlive the call, which copies them.
        let raw = unsafe { PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 0) };
        let Some(raw) = NonNull::new(raw) else {
            // SAFETY: acquired above.
            unsafe { pg_sys::ReleaseExternalFD() };
            return Err(Error::Connect("out of memory".to_owned()));
        };
        let connection = Connection { raw, patience };
        connection.finish_opening(timeout)?;
        // SAFETY: an open connection; the processor is a static function that touches nothing.
        unsafe { PQsetNoticeProcessor(raw.as_ptr(), Some(ignore_notice), std::ptr::null_mut()) };
        Ok(connection)
    }

    fn finish_opening(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        // SAFETY: `raw` is a live connection, as in every call below.
        if unsafe { PQstatus(self.raw.as_ptr()) } == CONNECTION_BAD {
            return Err(Error::Connect(self.message()));
        }
        let mut direction = pg_sys::WL_SOCKET_WRITEABLE;
        loop {
            self.wait(direction, deadline, timeout)?;
            // SAFETY: the socket is ready, or polling again does no harm.
            direction = match unsafe { PQconnectPoll(self.raw.as_ptr()) } {
                PGRES_POLLING_OK => return Ok(()),
                PGRES_POLLING_READING => pg_sys::WL_SOCKET_READABLE,
                PGRES_POLLING_WRITING => pg_sys::WL_SOCKET_WRITEABLE,
                _ => return Err(Error::Connect(self.message())),
            };
        }
    }

    /// Sends SQL, which may be several statements or a replication command; returns the last statement's rows.
    pub(crate) fn simple(&mut self, sql: &str, timeout: Duration) -> Result<Rows, Error> {
        let sql = c_string(sql)?;
        // SAFETY: a live connection without a query under way (each call below reads to the end).
        let sent = unsafe { PQsendQuery(self.raw.as_ptr(), sql.as_ptr()) };
        self.collect(sent, timeout)
    }

    /// Runs one statement with text parameters.
    pub(crate) fn query(&mut self, sql: &str, parameters: &[&str], timeout: Duration) -> Result<Rows, Error> {
        let sql = c_string(sql)?;
        let owned = parameters
            .iter()
            .map(|value| c_string(value))
            .collect::<Result<Vec<_>, Error>>()?;
        let values: Vec<*const c_char> = owned.iter().map(|value| value.as_ptr()).collect();
        // SAFETY: `values` has as many elements as is said; null arrays mean text format and inferred types; all of
        // it is copied by the call.
        let sent = unsafe {
            PQsendQueryParams(
                self.raw.as_ptr(),
                sql.as_ptr(),
                values.len() as c_int,
                std::ptr::null(),
                values.as_ptr(),
                std::ptr::null(),
                std::ptr::null(),
                0,
            )
        };
        self.collect(sent, timeout)
    }

    fn collect(&mut self, sent: c_int, timeout: Duration) -> Result<Rows, Error> {
        if sent == 0 {
            return Err(Error::Lost(self.message()));
        }
        let deadline = Instant::now() + timeout;
        let mut rows = Rows::new();
        let mut failure = None;
        loop {
            // SAFETY: a live connection.
            while unsafe { PQisBusy(self.raw.as_ptr()) } != 0 {
                self.wait(pg_sys::WL_SOCKET_READABLE, deadline, timeout)?;
                // SAFETY: as above.
                if unsafe { PQconsumeInput(self.raw.as_ptr()) } == 0 {
                    return Err(Error::Lost(self.message()));
                }
            }
            // SAFETY: not busy, so that this does not block.
            let Some(result) = QueryResult::new(unsafe { PQgetResult(self.raw.as_ptr()) }) else {
                break;
            };
            match result.status() {
                PGRES_TUPLES_OK => rows = result.rows(),
                PGRES_COMMAND_OK | PGRES_EMPTY_QUERY => {}
                PGRES_COPY_IN | PGRES_COPY_OUT | PGRES_COPY_BOTH => {
                    return Err(Error::Lost("the server started a copy".to_owned()));
                }
                _ => failure = Some(result.error(|| self.message())),
            }
        }
        failure.map_or(Ok(rows), Err)
    }

    fn wait(&self, direction: u32, deadline: Instant, timeout: Duration) -> Result<(), Error> {
        loop {
            let left = deadline
                .checked_duration_since(Instant::now())
                .ok_or(Error::Timeout(timeout))?;
            let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH | direction;
            // SAFETY: MyLatch is this process's; the socket belongs to the live connection.
            let ready = unsafe {
                pg_sys::WaitLatchOrSocket(
                    pg_sys::MyLatch,
                    events as c_int,
                    PQsocket(self.raw.as_ptr()),
                    left.as_millis().min(60_000) as _,
                    pg_sys::PG_WAIT_EXTENSION,
                )
            } as u32;
            if ready & pg_sys::WL_LATCH_SET != 0 {
                // SAFETY: this process's latch.
                unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
            }
            match self.patience {
                Patience::Interruptible => super::server::check_for_interrupts(),
                Patience::Held if super::server::interrupt_requested() => return Err(Error::Interrupted),
                Patience::Held => {}
            }
            if ready & direction != 0 {
                return Ok(());
            }
        }
    }

    fn message(&self) -> String {
        // SAFETY: a live connection; the text is copied at once.
        let text = unsafe { text_at(PQerrorMessage(self.raw.as_ptr())) }.unwrap_or_default();
        let lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(". ")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: `raw` came from PQconnectStartParams and is finished once, here; the descriptor was acquired in
        // `open`.
        unsafe {
            PQfinish(self.raw.as_ptr());
            pg_sys::ReleaseExternalFD();
        }
    }
}

struct QueryResult(NonNull<PgResult>);

impl QueryResult {
    fn new(raw: *mut PgResult) -> Option<QueryResult> {
        NonNull::new(raw).map(QueryResult)
    }

    fn status(&self) -> c_int {
        // SAFETY: a live result, as in every call below.
        unsafe { PQresultStatus(self.0.as_ptr()) }
    }

    fn rows(&self) -> Rows {
        // SAFETY: a live result.
        let (rows, columns) = unsafe { (PQntuples(self.0.as_ptr()), PQnfields(self.0.as_ptr())) };
        (0..rows)
            .map(|row| (0..columns).map(|column| self.value(row, column)).collect())
            .collect()
    }

    fn value(&self, row: c_int, column: c_int) -> Option<String> {
        // SAFETY: row and column are within the result's bounds; the text is copied at once.
        unsafe {
            if PQgetisnull(self.0.as_ptr(), row, column) != 0 {
                return None;
            }
            text_at(PQgetvalue(self.0.as_ptr(), row, column))
        }
    }

    fn error(&self, connection_message: impl Fn() -> String) -> Error {
        // SAFETY: a live result; the texts are copied at once.
        let field = |code: u8| unsafe { text_at(PQresultErrorField(self.0.as_ptr(), c_int::from(code))) };
        match (field(b'C'), field(b'M')) {
            (Some(sqlstate), Some(message)) => Error::Server(ServerError {
                sqlstate,
                message,
                detail: field(b'D'),
                hint: field(b'H'),
            }),
            _ => Error::Lost(connection_message()),
        }
    }
}

impl Drop for QueryResult {
    fn drop(&mut self) {
        // SAFETY: cleared once, here.
        unsafe { PQclear(self.0.as_ptr()) }
    }
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::ZeroByte)
}

/// # Safety
/// `text` is null or zero-terminated and valid during the call.
unsafe fn text_at(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

extern "C" fn ignore_notice(_arg: *mut c_void, _message: *const c_char) {}

#[repr(C)]
struct PgConn {
    _opaque: [u8; 0],
}

#[repr(C)]
struct PgResult {
    _opaque: [u8; 0],
}

type NoticeProcessor = Option<extern "C" fn(*mut c_void, *const c_char)>;

const CONNECTION_BAD: c_int = 1;
const PGRES_POLLING_READING: c_int = 1;
const PGRES_POLLING_WRITING: c_int = 2;
const PGRES_POLLING_OK: c_int = 3;
const PGRES_EMPTY_QUERY: c_int = 0;
const PGRES_COMMAND_OK: c_int = 1;
const PGRES_TUPLES_OK: c_int = 2;
const PGRES_COPY_OUT: c_int = 3;
const PGRES_COPY_IN: c_int = 4;
const PGRES_COPY_BOTH: c_int = 8;

#[link(name = "pq")]
unsafe extern "C" {
    fn PQconnectStartParams(
        keywords: *const *const c_char,
        values: *const *const c_char,
        expand_dbname: c_int,
    ) -> *mut PgConn;
    fn PQconnectPoll(conn: *mut PgConn) -> c_int;
    fn PQstatus(conn: *const PgConn) -> c_int;
    fn PQsocket(conn: *const PgConn) -> c_int;
    fn PQfinish(conn: *mut PgConn);
    fn PQerrorMessage(conn: *const PgConn) -> *const c_char;
    fn PQsetNoticeProcessor(
        conn: *mut PgConn,
        processor: NoticeProcessor,
        arg: *mut c_void,
    ) -> NoticeProcessor;
    fn PQsendQuery(conn: *mut PgConn, query: *const c_char) -> c_int;
    fn PQsendQueryParams(
        conn: *mut PgConn,
        command: *const c_char,
        count: c_int,
        types: *const u32,
        values: *const *const c_char,
        lengths: *const c_int,
        formats: *const c_int,
        result_format: c_int,
    ) -> c_int;
    fn PQconsumeInput(conn: *mut PgConn) -> c_int;
    fn PQisBusy(conn: *mut PgConn) -> c_int;
    fn PQgetResult(conn: *mut PgConn) -> *mut PgResult;
    fn PQresultStatus(result: *const PgResult) -> c_int;
    fn PQresultErrorField(result: *const PgResult, field: c_int) -> *const c_char;
    fn PQclear(result: *mut PgResult);
    fn PQntuples(result: *const PgResult) -> c_int;
    fn PQnfields(result: *const PgResult) -> c_int;
    fn PQgetvalue(result: *const PgResult, row: c_int, column: c_int) -> *const c_char;
    fn PQgetisnull(result: *const PgResult, row: c_int, column: c_int) -> c_int;
}
