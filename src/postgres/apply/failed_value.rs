//! Which value an ERROR of PostgreSQL is about: its input functions know neither the table nor the column.

use std::cell::RefCell;

use pg_ha_replication::codec::Column as Value;

use super::target::{LocalColumn, Target};

/// Longer values are cut, in bytes.
const SHOWN: usize = 100;

thread_local! {
    static FAILED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A value that is being converted. Costs nothing unless the conversion raises.
pub(super) struct Converting<'a> {
    target: &'a Target,
    column: &'a LocalColumn,
    value: &'a Value<'a>,
}

impl<'a> Converting<'a> {
    pub(super) fn new(target: &'a Target, column: &'a LocalColumn, value: &'a Value<'a>) -> Converting<'a> {
        Converting {
            target,
            column,
            value,
        }
    }
}

impl Drop for Converting<'_> {
    fn drop(&mut self) {
        // An ERROR travels as a panic.
        if std::thread::panicking() {
            let value = match self.value {
                Value::Text(bytes) => shown(bytes),
                Value::Plain(_) | Value::Binary(_) => "in binary form".to_owned(),
                Value::Null | Value::Unchanged => String::new(),
            };
            let what = format!(
                "table {}, column \"{}\", value {value}",
                self.target.name, self.column.name
            );
            FAILED.with_borrow_mut(|failed| *failed = Some(what));
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..SHOWN).unwrap_or(bytes));
    let more = if bytes.len() > SHOWN { " ..." } else { "" };
    format!("\"{text}\"{more}")
}

/// The table, the column and the value whose conversion raised, if one did since the last call.
pub(crate) fn take() -> Option<String> {
    FAILED.with_borrow_mut(Option::take)
}
