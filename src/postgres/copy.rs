//! Copying a table from the provider: its COPY TO feeds this server's own COPY FROM.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::apply::ApplyError;
use super::apply::acting::Operation;
use super::apply::target::Target;
use super::error::Report;
use super::version;
use super::walreceiver::{Connection, StreamError};

/// How the values travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    Text,
    Binary,
}

impl Format {
    /// For COPY's option `FORMAT`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Binary => "binary",
        }
    }
}

/// What feeds the copy of this process, there being one at a time.
struct Source<'a> {
    connection: &'a mut Connection,
    /// The part of the last piece that has not been taken yet.
    rest: (*const u8, usize),
    /// Told of each piece: a row, or the end mark of a binary copy.
    arrived: &'a mut dyn FnMut(usize),
}

thread_local! {
    // Set while `into` runs; the callback has no argument that could carry it.
    static SOURCE: Cell<*mut Source<'static>> = const { Cell::new(core::ptr::null_mut()) };
}

thread_local! {
    static CONTEXT: RefCell<Option<String>> = const { RefCell::new(None) };
    static READING_CONTEXT: Cell<bool> = const { Cell::new(false) };
}

/// Where in the data the last copy failed, in the server's words: line, column and value. They are the context of the
/// error, which does not come along with it.
pub(crate) fn take_error_context() -> Option<String> {
    CONTEXT.take()
}

/// The server's stack of error contexts with [`note_context`] on it; as it was before once this is dropped, also when
/// an error unwinds.
struct ContextNoted {
    // The server keeps its address.
    callback: Box<pg_sys::ErrorContextCallback>,
}

impl ContextNoted {
    fn new() -> ContextNoted {
        CONTEXT.take();
        // SAFETY: the callback stays where it is until `drop` takes it off the stack.
        unsafe {
            let mut callback = Box::new(pg_sys::ErrorContextCallback {
                previous: pg_sys::error_context_stack,
                callback: Some(note_context),
                arg: core::ptr::null_mut(),
            });
            pg_sys::error_context_stack = &raw mut *callback;
            ContextNoted { callback }
        }
    }
}

impl Drop for ContextNoted {
    fn drop(&mut self) {
        // SAFETY: nothing that was pushed later is in use any more.
        unsafe { pg_sys::error_context_stack = self.callback.previous };
    }
}

/// Runs while an error (or a notice) is being made: notes what the innermost context, COPY's, says.
#[pg_guard]
unsafe extern "C-unwind" fn note_context(_argument: *mut core::ffi::c_void) {
    if READING_CONTEXT.replace(true) {
        return;
    }
    // SAFETY: asks all contexts anew, this one (which then does nothing) included; the text is copied at once.
    let text = unsafe {
        let text = pg_sys::GetErrorContextStack();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    READING_CONTEXT.set(false);
    let line = text.and_then(|text| text.lines().next().map(str::to_owned));
    CONTEXT.set(line.filter(|line| !line.is_empty()));
}

/// Copies what the connection brings (its COPY has been started) into the target's columns, as its owner, in the current
/// transaction; returns the number of rows.
///
/// # Errors
/// What the acting user may not do; PostgreSQL's own, as panics: a value that does not convert, a constraint, a lost
/// connection.
pub(crate) fn into(
    target: &Target,
    format: Format,
    connection: &mut Connection,
    arrived: &mut dyn FnMut(usize),
) -> Result<u64, ApplyError> {
    target.check(Operation::Insert)?;
    let columns: Vec<usize> = target.columns.iter().map(|column| column.index).collect();
    // The table's own code runs as its owner.
    let acting = target.act();
    let rows = into_columns(target.oid, &columns, format, connection, arrived);
    acting.end();
    Ok(rows)
}

/// The same into these columns (from 0) of any table, as the worker itself.
///
/// # Errors
/// PostgreSQL's own, as panics.
pub(crate) fn into_columns(
    table: pg_sys::Oid,
    columns: &[usize],
    format: Format,
    connection: &mut Connection,
    arrived: &mut dyn FnMut(usize),
) -> u64 {
    let mut source = Source {
        connection,
        rest: (core::ptr::null(), 0),
        arrived,
    };
    // On an error the pointer stays behind, but the callback that would use it runs within this function only.
    SOURCE.set((&raw mut source).cast());
    // SAFETY: in a transaction; the lists and nodes live in its memory. The relation is closed with its lock kept until
    // the end of the transaction, after the copy that uses it.
    let rows = unsafe {
        let relation = pg_sys::table_open(table, pg_sys::RowExclusiveLock as i32);
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let state = pg_sys::make_parsestate(core::ptr::null_mut());
        pg_sys::addRangeTableEntryForRelation(
            state,
            relation,
            pg_sys::RowExclusiveLock as i32,
            core::ptr::null_mut(),
            false,
            false,
        );
        let mut names = core::ptr::null_mut();
        for column in columns {
            // The name as this database has it, in its own encoding.
            let attribute = version::attribute((*relation).rd_att, *column);
            let name = pg_sys::pstrdup(attribute.attname.data.as_ptr());
            names = pg_sys::lappend(names, pg_sys::makeString(name).cast());
        }
        let options = [
            ("format", format.as_str().to_owned()),
            ("encoding", super::server::encoding()),
        ];
        let mut list = core::ptr::null_mut();
        for (name, value) in options {
            let name = CString::new(name).unwrap_or_default();
            let option = pg_sys::makeDefElem(pg_sys::pstrdup(name.as_ptr()), string_node(&value).cast(), -1);
            list = pg_sys::lappend(list, option.cast());
        }
        let copy = pg_sys::BeginCopyFrom(
            state,
            relation,
            core::ptr::null_mut(),
            core::ptr::null(),
            false,
            Some(read),
            names,
            list,
        );
        let noted = ContextNoted::new();
        let rows = pg_sys::CopyFrom(copy);
        drop(noted);
        pg_sys::EndCopyFrom(copy);
        pg_sys::free_parsestate(state);
        pg_sys::PopActiveSnapshot();
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        pg_sys::CommandCounterIncrement();
        rows
    };
    SOURCE.set(core::ptr::null_mut());
    rows
}

/// A String node, of text without zero bytes.
///
/// # Safety
/// In a memory context that outlives its use.
unsafe fn string_node(text: &str) -> *mut pg_sys::String {
    let text = CString::new(text).unwrap_or_default();
    // SAFETY: copies the text.
    unsafe { pg_sys::makeString(pg_sys::pstrdup(text.as_ptr())) }
}

/// Fills COPY FROM's buffer with at least `least` bytes, fewer only at the end.
#[pg_guard]
unsafe extern "C-unwind" fn read(buffer: *mut core::ffi::c_void, least: i32, most: i32) -> i32 {
    // SAFETY: set by `into`, whose frame is still there while the server calls this.
    let Some(source) = (unsafe { SOURCE.get().as_mut() }) else {
        return 0;
    };
    let (least, most) = (least.max(0) as usize, most.max(0) as usize);
    let mut filled = 0;
    while filled < least {
        if source.rest.1 == 0 {
            match source.connection.copied() {
                Ok(Some(piece)) => {
                    (source.arrived)(piece.1);
                    source.rest = piece;
                }
                Ok(None) => break,
                Err(error) => raise(&error),
            }
        }
        let take = source.rest.1.min(most - filled);
        // SAFETY: the buffer has room for `most` bytes; the piece is valid until the next one is asked for.
        unsafe {
            core::ptr::copy_nonoverlapping(source.rest.0, buffer.cast::<u8>().add(filled), take);
            source.rest = (source.rest.0.add(take), source.rest.1 - take);
        }
        filled += take;
    }
    filled as i32
}

fn raise(error: &StreamError) -> ! {
    Report::new(PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE, error.to_string()).raise()
}
