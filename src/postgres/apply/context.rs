//! Where an error was raised: which table, column and value.
//!
//! PostgreSQL's own errors know nothing of the change that led to them, and what the server keeps as an error's context
//! does not come along with it. So what is being done is noted as the error passes: while nothing fails, that costs
//! nothing.

use std::cell::RefCell;

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Longest part of a value that is shown, in characters.
const SHOWN: usize = 100;

/// What is being done, for as long as this lives.
pub(super) struct During<F: Fn() -> String>(pub(super) F);

impl<F: Fn() -> String> Drop for During<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            PLACE.with_borrow_mut(|place| {
                // The innermost knows best.
                if place.is_none() {
                    *place = Some((self.0)());
                }
            });
        }
    }
}

/// Where the error that was just caught had been raised, if a change was being applied.
pub(crate) fn take_place() -> Option<String> {
    PLACE.take()
}

/// The beginning of a value, for messages.
pub(super) fn shown(text: &str) -> String {
    let mut characters = text.chars();
    let mut shown: String = characters.by_ref().take(SHOWN).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}
