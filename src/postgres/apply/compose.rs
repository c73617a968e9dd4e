//! Composing local rows from what came, and the datums of single values.

use pg_ha_replication::codec::{Column as Value, OldKind, Tuple};
use pgrx::pg_sys;

use super::ApplyError;
use super::context::{During, shown};
use super::table::{OpenTable, per_tuple_context};
use super::target::{LocalColumn, Target};
use crate::postgres::values::identifier;

impl OpenTable {
    /// Composes the new row; over the local one where there is one, so that columns the provider does not send, and
    /// values it left out because they did not change, stay.
    ///
    /// # Safety
    /// Within [`Self::apply`].
    pub(super) unsafe fn fill_from_remote(
        &mut self,
        target: &Target,
        row: &Tuple<'_>,
        over: bool,
    ) -> Result<(), ApplyError> {
        // SAFETY: the slots belong to the open table.
        unsafe {
            self.fill(target, row, self.new_row, over)?;
            if !over {
                let context = per_tuple_context(self.estate);
                for (column, expression) in &self.defaults {
                    let mut null = true;
                    let value = pg_sys::ExecEvalExpr(*expression, context, &mut null);
                    *(*self.new_row).tts_values.add(*column) = value;
                    *(*self.new_row).tts_isnull.add(*column) = null;
                }
            }
            Ok(())
        }
    }

    /// Composes a row of which only the key is known.
    ///
    /// # Safety
    /// Within [`Self::apply`].
    pub(super) unsafe fn fill_key(
        &mut self,
        target: &Target,
        kind: OldKind,
        row: &Tuple<'_>,
    ) -> Result<(), ApplyError> {
        // SAFETY: the slot has as many columns as the table.
        unsafe {
            let slot = self.new_row;
            clear(slot);
            for (position, value) in row.columns().enumerate() {
                let position = match kind {
                    OldKind::Full => position,
                    OldKind::Key => target.key_columns.get(position).copied().unwrap_or(usize::MAX),
                };
                if let Some(column) = target.columns.get(position) {
                    let datum = datum_of(target, column, &value)?;
                    *(*slot).tts_isnull.add(column.index) = datum.is_none();
                    *(*slot).tts_values.add(column.index) = datum.unwrap_or(pg_sys::Datum::from(0));
                }
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            Ok(())
        }
    }

    /// # Safety
    /// `slot` is a virtual slot of this table; with `over`, `local_row` holds a row.
    pub(super) unsafe fn fill(
        &mut self,
        target: &Target,
        row: &Tuple<'_>,
        slot: *mut pg_sys::TupleTableSlot,
        over: bool,
    ) -> Result<(), ApplyError> {
        // SAFETY: both arrays have as many members as the table has columns; by-reference values copied from the
        // local row stay pinned with it.
        unsafe {
            let natts = (*(*slot).tts_tupleDescriptor).natts as usize;
            let (values, nulls) = ((*slot).tts_values, (*slot).tts_isnull);
            if over {
                pg_sys::ExecClearTuple(slot);
                pg_sys::slot_getallattrs(self.local_row);
                core::ptr::copy_nonoverlapping((*self.local_row).tts_values, values, natts);
                core::ptr::copy_nonoverlapping((*self.local_row).tts_isnull, nulls, natts);
            } else {
                clear(slot);
            }
            for (place, (column, value)) in target.columns.iter().zip(row.columns()).enumerate() {
                if matches!(value, Value::Unchanged) {
                    if !over {
                        self.lacks = Some(place);
                    }
                    continue;
                }
                let datum = datum_of(target, column, &value)?;
                *nulls.add(column.index) = datum.is_none();
                *values.add(column.index) = datum.unwrap_or(pg_sys::Datum::from(0));
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            Ok(())
        }
    }
}

/// Makes all columns of a virtual slot null; ExecStoreVirtualTuple is still to come.
///
/// # Safety
/// `slot` is a virtual slot.
pub(super) unsafe fn clear(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: both arrays have as many members as the descriptor has columns.
    unsafe {
        pg_sys::ExecClearTuple(slot);
        for index in 0..(*(*slot).tts_tupleDescriptor).natts as usize {
            *(*slot).tts_values.add(index) = pg_sys::Datum::from(0);
            *(*slot).tts_isnull.add(index) = true;
        }
    }
}

/// The datum of a value that came; None is null. Allocated in the current memory context.
///
/// # Safety
/// In a transaction, with an active snapshot (input functions may need one).
pub(super) unsafe fn datum_of(
    target: &Target,
    column: &LocalColumn,
    value: &Value<'_>,
) -> Result<Option<pg_sys::Datum>, ApplyError> {
    let bad = |length| ApplyError::BadValue {
        table: target.name.clone(),
        column: column.name.clone(),
        length,
    };
    // SAFETY: text is copied and nul-terminated before the input function sees it; the receive function gets a
    // buffer of its own.
    unsafe {
        match value {
            Value::Null | Value::Unchanged => Ok(None),
            Value::Plain(bytes) => {
                if let Some(plain) = column.plain {
                    return plain.decode(bytes).map(Some).ok_or_else(|| bad(bytes.len()));
                }
                let Some((plain, foreign)) = column.foreign.as_ref().and_then(|foreign| {
                    let plain = foreign.plain?;
                    Some((plain, foreign))
                }) else {
                    return Err(bad(bytes.len()));
                };
                let datum = plain.decode(bytes).ok_or_else(|| bad(bytes.len()))?;
                let text = written(foreign.output, datum);
                Ok(Some(input(target, column, text)))
            }
            Value::Text(bytes) => {
                let text: *mut core::ffi::c_char = pg_sys::palloc(bytes.len() + 1).cast();
                core::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), text, bytes.len());
                *text.add(bytes.len()) = 0;
                Ok(Some(input(target, column, text)))
            }
            Value::Binary(bytes) => {
                let _during = During(|| {
                    let length = bytes.len();
                    format!(
                        "{}, a value of {length} bytes in binary form",
                        place(target, column)
                    )
                });
                if let Some(receive) = column.receive {
                    let datum = received(receive, column.io_param, column.typmod, bytes);
                    return datum.map(Some).ok_or_else(|| bad(bytes.len()));
                }
                let Some((receive, foreign)) = column.foreign.as_ref().and_then(|foreign| {
                    let receive = foreign.receive?;
                    Some((receive, foreign))
                }) else {
                    return Err(bad(bytes.len()));
                };
                let datum = received(receive, foreign.io_param, -1, bytes).ok_or_else(|| bad(bytes.len()))?;
                let text = written(foreign.output, datum);
                Ok(Some(input(target, column, text)))
            }
        }
    }
}

/// A value that came, as its local column's type writes it.
///
/// # Safety
/// As [`datum_of`].
pub(super) unsafe fn text_of(
    target: &Target,
    column: &LocalColumn,
    value: &Value<'_>,
) -> Result<Option<String>, ApplyError> {
    // SAFETY: the caller's promise; the output function is the type's own.
    unsafe {
        let datum = datum_of(target, column, value)?;
        Ok(datum.map(|datum| identifier(written(column.output, datum))))
    }
}

/// A value of the provider's type as the provider would write it: points in time with the offset of Greenwich, as a copy
/// brings them.
///
/// # Safety
/// The function is the type's output function.
unsafe fn written(output: pg_sys::Oid, datum: pg_sys::Datum) -> *mut core::ffi::c_char {
    /// The session's time zone, put back when an error unwinds too.
    struct Local(*mut pg_sys::pg_tz);
    impl Drop for Local {
        fn drop(&mut self) {
            // SAFETY: a variable of this process; time zones live as long as it does.
            unsafe { pg_sys::session_timezone = self.0 };
        }
    }
    // SAFETY: as above.
    unsafe {
        let greenwich = pg_sys::pg_tzset(c"GMT".as_ptr());
        let _local = Local(pg_sys::session_timezone);
        if !greenwich.is_null() {
            pg_sys::session_timezone = greenwich;
        }
        pg_sys::OidOutputFunctionCall(output, datum)
    }
}

/// A value in its binary form; None if the type's function leaves something of it unread.
///
/// # Safety
/// The function is a type's receive function, with its own parameter.
unsafe fn received(
    receive: *mut pg_sys::FmgrInfo,
    io_param: pg_sys::Oid,
    typmod: i32,
    bytes: &[u8],
) -> Option<pg_sys::Datum> {
    let mut buffer = pg_sys::StringInfoData::default();
    // SAFETY: the function gets a buffer of its own.
    unsafe {
        pg_sys::initStringInfo(&mut buffer);
        pg_sys::appendBinaryStringInfo(&mut buffer, bytes.as_ptr().cast(), bytes.len() as i32);
        let datum = pg_sys::ReceiveFunctionCall(receive, &mut buffer, io_param, typmod);
        (buffer.cursor == buffer.len).then_some(datum)
    }
}

/// For messages.
fn place(target: &Target, column: &LocalColumn) -> String {
    format!("column \"{}\" of table {}", column.name, target.name)
}

/// # Safety
/// `text` is nul-terminated.
unsafe fn input(target: &Target, column: &LocalColumn, text: *mut core::ffi::c_char) -> pg_sys::Datum {
    let _during = During(|| {
        // SAFETY: the text is there for as long as it is read.
        let value = unsafe { core::ffi::CStr::from_ptr(text) }.to_string_lossy();
        format!("{}, value \"{}\"", place(target, column), shown(&value))
    });
    // SAFETY: the type's own input function with its own parameters, kept in the target's memory.
    unsafe { pg_sys::InputFunctionCall(column.input, text, column.io_param, column.typmod) }
}
