//! The rows of a conflict as JSON, for its history.
//!
//! They are taken while the local row still stands in its slot, as the owner of the table: output functions, and casts
//! to json, of types that are not built in are the owner's code. What such code raises must not stop a stream that goes
//! on without a history, so it runs in a subtransaction, and a value that cannot be shown as JSON is shown as text, or
//! left out and named. Values of built-in types cost no more than their text.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::panic::AssertUnwindSafe;

use pg_ha_replication::codec::{Column as Value, OldKind, Tuple};
use pg_ha_replication::conflict::Decision;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

use super::compose::datum_of;
use super::context;
use super::table::OpenTable;
use super::target::{Key, LocalColumn, Target};
use crate::postgres::version;

/// The rows of a conflict: JSON objects in the server's encoding, by the names of the local columns.
pub(crate) struct Rows {
    /// By what the row was looked for.
    pub(crate) key: Vec<u8>,
    /// As it stood here; None: it did not.
    pub(crate) local: Option<Vec<u8>>,
    /// As it came; None for a delete.
    pub(crate) remote: Option<Vec<u8>>,
    /// Which columns these lack, and why; None: none.
    pub(crate) omitted: Option<Vec<u8>>,
}

thread_local! {
    // An applier has one thread.
    /// The largest row that is wanted, in bytes; None: none is.
    static LIMIT: Cell<Option<usize>> = const { Cell::new(None) };
    static TOLD: RefCell<Option<Rows>> = const { RefCell::new(None) };
}

/// A value that does not fit `ha.conflict_max_row_size`.
const TOO_LARGE: &str = "too large";
/// A value stored out of line that the update left alone, so that it did not come.
const UNCHANGED: &str = "unchanged";
/// A value that its own type's functions refuse to read or to show.
const UNREADABLE: &str = "unreadable";

/// Sets whether the rows of conflicts are wanted in this process, and how large they may be.
pub(crate) fn want(limit: Option<usize>) {
    LIMIT.set(limit);
}

/// The rows of the conflict that the last change met.
pub(crate) fn take() -> Option<Rows> {
    TOLD.take()
}

/// One column of a row.
struct Member<'m, 'a> {
    attribute: &'m pg_sys::FormData_pg_attribute,
    value: Source<'m, 'a>,
}

enum Source<'m, 'a> {
    Null,
    Here(pg_sys::Datum),
    Came(&'m LocalColumn, Value<'a>),
}

impl OpenTable {
    /// Keeps the rows of a conflict. `search`: what the row was looked for by; `new`: what came, if it was not a delete.
    ///
    /// # Safety
    /// Within `apply`; with `found`, `local_row` holds the row.
    pub(super) unsafe fn tell(
        &self,
        target: &Target,
        judged: &Decision,
        found: bool,
        search: (OldKind, &Tuple<'_>),
        new: Option<&Tuple<'_>>,
    ) {
        if judged.conflict.is_none() {
            return;
        }
        let Some(limit) = LIMIT.get() else { return };
        // SAFETY: the descriptor is the open relation's; slots have as many values as it has columns.
        unsafe {
            let desc = (*self.relation).rd_att;
            let mut omitted = Vec::new();
            let mut write =
                |row, members: Vec<Member<'_, '_>>| object(target, row, members, limit, &mut omitted);
            let key = write("key", key_members(target, desc, search));
            let local = found.then(|| write("local_row", self.local_members(desc)));
            let remote = new.map(|new| write("remote_row", remote_members(target, desc, search, new)));
            let told = Rows {
                key,
                local,
                remote,
                omitted: names(&omitted),
            };
            TOLD.set(Some(told));
        }
    }

    /// # Safety
    /// As [`Self::tell`].
    unsafe fn local_members(&self, desc: pg_sys::TupleDesc) -> Vec<Member<'_, '_>> {
        // SAFETY: as above.
        unsafe {
            pg_sys::slot_getallattrs(self.local_row);
            (0..(*desc).natts as usize)
                .map(|index| (index, version::attribute(desc, index)))
                .filter(|(_, attribute)| !attribute.attisdropped)
                .map(|(index, attribute)| Member {
                    attribute,
                    value: match *(*self.local_row).tts_isnull.add(index) {
                        true => Source::Null,
                        false => Source::Here(*(*self.local_row).tts_values.add(index)),
                    },
                })
                .collect()
        }
    }
}

/// # Safety
/// The descriptor is the target's.
unsafe fn key_members<'m, 'a>(
    target: &'m Target,
    desc: pg_sys::TupleDesc,
    (kind, search): (OldKind, &Tuple<'a>),
) -> Vec<Member<'m, 'a>> {
    let is_key = |place: usize| match &target.key {
        Key::Index { columns, .. } => columns.contains(&place),
        Key::Full | Key::None => true,
    };
    search
        .columns()
        .enumerate()
        .filter_map(|(position, value)| {
            // A key row has the key columns alone.
            let place = match kind {
                OldKind::Full => position,
                OldKind::Key => *target.key_columns.get(position)?,
            };
            let column = target.columns.get(place).filter(|_| is_key(place))?;
            Some(Member {
                // SAFETY: the caller's promise.
                attribute: unsafe { version::attribute(desc, column.index) },
                value: Source::Came(column, value),
            })
        })
        .collect()
}

/// # Safety
/// The descriptor is the target's.
unsafe fn remote_members<'m, 'a>(
    target: &'m Target,
    desc: pg_sys::TupleDesc,
    (kind, search): (OldKind, &Tuple<'a>),
    new: &Tuple<'a>,
) -> Vec<Member<'m, 'a>> {
    target
        .columns
        .iter()
        .zip(new.columns())
        .enumerate()
        .map(|(place, (column, value))| Member {
            // SAFETY: the caller's promise.
            attribute: unsafe { version::attribute(desc, column.index) },
            value: Source::Came(
                column,
                match value {
                    // What did not change is in the old row, where that came as a whole.
                    Value::Unchanged if kind == OldKind::Full => {
                        search.columns().nth(place).unwrap_or(Value::Unchanged)
                    }
                    value => value,
                },
            ),
        })
        .collect()
}

type Omitted = (&'static str, Vec<u8>, &'static str);

/// # Safety
/// In a transaction with an active snapshot, in memory that is soon reset; members are the target's.
unsafe fn object(
    target: &Target,
    row: &'static str,
    members: Vec<Member<'_, '_>>,
    limit: usize,
    omitted: &mut Vec<Omitted>,
) -> Vec<u8> {
    let mut text = vec![b'{'];
    for member in &members {
        // SAFETY: a name is nul-terminated.
        let name = unsafe { CStr::from_ptr(member.attribute.attname.data.as_ptr()) }.to_bytes();
        let start = text.len();
        if start > 1 {
            text.push(b',');
        }
        append_string(name, &mut text);
        text.push(b':');
        // SAFETY: the caller's promise.
        let mut written = unsafe { member.write(target, limit, &mut text) };
        if text.len() > limit {
            written = Err(TOO_LARGE);
        }
        if let Err(reason) = written {
            text.truncate(start);
            omitted.push((row, name.to_vec(), reason));
        }
    }
    text.push(b'}');
    text
}

/// What was left out, as JSON: for each row the columns, with the reason.
fn names(omitted: &[Omitted]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut open = "";
    for (row, column, reason) in omitted {
        if open == *row {
            text.push(b',');
        } else {
            let between: &[u8] = if open.is_empty() { b"{" } else { b"}," };
            text.extend_from_slice(between);
            append_string(row.as_bytes(), &mut text);
            text.extend_from_slice(b":{");
            open = row;
        }
        append_string(column, &mut text);
        text.push(b':');
        append_string(reason.as_bytes(), &mut text);
    }
    if text.is_empty() {
        return None;
    }
    text.extend_from_slice(b"}}");
    Some(text)
}

impl Member<'_, '_> {
    /// # Safety
    /// As [`object`].
    unsafe fn write(&self, target: &Target, limit: usize, text: &mut Vec<u8>) -> Result<(), &'static str> {
        if matches!(self.value, Source::Came(_, Value::Unchanged)) {
            return Err(UNCHANGED);
        }
        let start = text.len();
        // SAFETY: the caller's promise.
        unsafe {
            if self.is_safe() {
                return self.write_as(target, limit, false, text);
            }
            for plainly in [false, true] {
                let mut value = Vec::new();
                let written = guarded(|| self.write_as(target, limit, plainly, &mut value));
                if let Some(written) = written {
                    text.truncate(start);
                    text.extend_from_slice(&value);
                    return written;
                }
            }
        }
        Err(UNREADABLE)
    }

    /// Whether nothing is run for it that could raise.
    fn is_safe(&self) -> bool {
        let type_oid = self.attribute.atttypid;
        let shows = type_oid.to_u32() < pg_sys::FirstNormalObjectId
            // A json that jsonb does not take: numbers out of its range, characters that text has not.
            && type_oid != pg_sys::JSONOID
            && type_oid != pg_sys::JSONARRAYOID;
        let reads = match &self.value {
            Source::Null | Source::Here(_) | Source::Came(_, Value::Null) => true,
            Source::Came(column, value) => matches!(value, Value::Plain(_)) && column.plain.is_some(),
        };
        shows && reads
    }

    /// # Safety
    /// As [`object`].
    unsafe fn write_as(
        &self,
        target: &Target,
        limit: usize,
        plainly: bool,
        text: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        // SAFETY: values are of the column's type.
        unsafe {
            let datum = match &self.value {
                Source::Null => None,
                Source::Here(datum) => Some(*datum),
                Source::Came(column, value) => datum_of(target, column, value).map_err(|_| UNREADABLE)?,
            };
            let Some(datum) = datum else {
                text.extend_from_slice(b"null");
                return Ok(());
            };
            if self.attribute.attlen == -1 && pg_sys::toast_raw_datum_size(datum) as usize > limit {
                return Err(TOO_LARGE);
            }
            if plainly {
                append_string(printed(self.attribute.atttypid, datum), text);
            } else {
                append_value(self.attribute.atttypid, datum, text);
            }
            Ok(())
        }
    }
}

/// Writes a value as the server's `to_jsonb` does.
///
/// # Safety
/// As [`object`].
unsafe fn append_value(type_oid: pg_sys::Oid, datum: pg_sys::Datum, text: &mut Vec<u8>) {
    // SAFETY: the datum is of that type.
    unsafe {
        match type_oid {
            pg_sys::BOOLOID => {
                let value: &[u8] = if datum.value() as u8 != 0 {
                    b"true"
                } else {
                    b"false"
                };
                text.extend_from_slice(value);
            }
            pg_sys::INT2OID => text.extend_from_slice((datum.value() as i16).to_string().as_bytes()),
            pg_sys::INT4OID => text.extend_from_slice((datum.value() as i32).to_string().as_bytes()),
            pg_sys::INT8OID => text.extend_from_slice((datum.value() as i64).to_string().as_bytes()),
            pg_sys::FLOAT4OID | pg_sys::FLOAT8OID | pg_sys::NUMERICOID => {
                let number = printed(type_oid, datum);
                let is_number = number.iter().all(|byte| b"0123456789+-.eE".contains(byte));
                if is_number {
                    text.extend_from_slice(number);
                } else {
                    append_string(number, text);
                }
            }
            pg_sys::TEXTOID | pg_sys::VARCHAROID => append_string(printed(type_oid, datum), text),
            _ => {
                // The function wants to know what it is called with.
                let argument = pg_sys::makeNullConst(type_oid, -1, pg_sys::InvalidOid);
                let mut function = pg_sys::FmgrInfo::default();
                let to_jsonb = pg_sys::Oid::from_u32(pg_sys::F_TO_JSONB);
                pg_sys::fmgr_info(to_jsonb, &mut function);
                let call = pg_sys::makeFuncExpr(
                    to_jsonb,
                    pg_sys::JSONBOID,
                    pg_sys::lappend(core::ptr::null_mut(), argument.cast()),
                    pg_sys::InvalidOid,
                    pg_sys::InvalidOid,
                    pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
                );
                function.fn_expr = call.cast();
                let value = pg_sys::FunctionCall1Coll(&mut function, pg_sys::InvalidOid, datum);
                text.extend_from_slice(printed(pg_sys::JSONBOID, value));
            }
        }
    }
}

/// A value as its type's output function writes it.
///
/// # Safety
/// The datum is of that type; the text lives as long as the current memory context.
unsafe fn printed<'t>(type_oid: pg_sys::Oid, datum: pg_sys::Datum) -> &'t [u8] {
    let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
    // SAFETY: the caller's promise; output functions return nul-terminated text.
    unsafe {
        pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut varlena);
        CStr::from_ptr(pg_sys::OidOutputFunctionCall(output, datum)).to_bytes()
    }
}

/// Writes a JSON string. In every encoding of a server, bytes of ASCII stand for themselves alone.
fn append_string(bytes: &[u8], text: &mut Vec<u8>) {
    text.push(b'"');
    for byte in bytes {
        match byte {
            b'"' | b'\\' => text.extend_from_slice(&[b'\\', *byte]),
            0..0x20 => text.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => text.push(*byte),
        }
    }
    text.push(b'"');
}

/// Runs work in a subtransaction; None: it raised something, and left nothing behind.
///
/// # Safety
/// In a transaction; what the work opens it closes.
unsafe fn guarded<R>(work: impl FnOnce() -> R) -> Option<R> {
    // SAFETY: as PL/pgSQL's blocks with EXCEPTION do it: memory context and resource owner are the caller's again.
    unsafe {
        let (memory, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(core::ptr::null());
        pg_sys::MemoryContextSwitchTo(memory);
        let result = PgTryBuilder::new(AssertUnwindSafe(|| Some(work())))
            .catch_others(|error| {
                if concerns_the_worker(&error) {
                    error.rethrow()
                }
                None
            })
            .execute();
        if result.is_some() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
            // Nobody is to be told of it.
            context::take_place();
        }
        pg_sys::MemoryContextSwitchTo(memory);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}

/// Whether an error is not about the value: the transaction was chosen to end, or the process is to.
fn concerns_the_worker(error: &pg_sys::panic::CaughtError) -> bool {
    use pg_sys::panic::CaughtError;
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = error;
    matches!(
        report.sql_error_code(),
        PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED
            | PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE
            | PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
            | PgSqlErrorCode::ERRCODE_QUERY_CANCELED
            | PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN
            | PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY
    )
}
