//! Composing local rows from what came, and the datums of single values.

use pg_ha_replication::codec::{Column as Value, OldKind, Tuple};
use pgrx::pg_sys;

use super::ApplyError;
use super::failed_value::Converting;
use super::table::{OpenTable, per_tuple_context};
use super::target::{LocalColumn, Target};

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
    let _told_if_it_raises = Converting::new(target, column, value);
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
            Value::Plain(bytes) => match (column.plain, column.foreign) {
                (Some(plain), _) => plain.decode(bytes).map(Some).ok_or_else(|| bad(bytes.len())),
                (None, Some((plain, output))) => {
                    let foreign = plain.decode(bytes).ok_or_else(|| bad(bytes.len()))?;
                    let text = pg_sys::OidOutputFunctionCall(output, foreign);
                    Ok(Some(input(column, text)))
                }
                (None, None) => Err(bad(bytes.len())),
            },
            Value::Text(bytes) => {
                let text: *mut core::ffi::c_char = pg_sys::palloc(bytes.len() + 1).cast();
                core::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), text, bytes.len());
                *text.add(bytes.len()) = 0;
                Ok(Some(input(column, text)))
            }
            Value::Binary(bytes) => {
                let Some(receive) = column.receive else {
                    return Err(bad(bytes.len()));
                };
                let mut buffer = pg_sys::StringInfoData::default();
                pg_sys::initStringInfo(&mut buffer);
                pg_sys::appendBinaryStringInfo(&mut buffer, bytes.as_ptr().cast(), bytes.len() as i32);
                let datum = pg_sys::ReceiveFunctionCall(receive, &mut buffer, column.io_param, column.typmod);
                if buffer.cursor != buffer.len {
                    return Err(bad(bytes.len()));
                }
                Ok(Some(datum))
            }
        }
    }
}

/// # Safety
/// `text` is nul-terminated.
unsafe fn input(column: &LocalColumn, text: *mut core::ffi::c_char) -> pg_sys::Datum {
    // SAFETY: the type's own input function with its own parameters, kept in the target's memory.
    unsafe { pg_sys::InputFunctionCall(column.input, text, column.io_param, column.typmod) }
}
