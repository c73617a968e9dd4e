//! The background workers. Each wires what it observes to a pure step and performs what comes out.

pub(crate) mod applier;
pub(crate) mod cleaner;
pub(crate) mod copier;
pub(crate) mod receiver;
pub(crate) mod supervisor;

use std::fmt::Display;

use crate::postgres::worker::{self, Caught};

/// Reads the catalogs in a transaction of its own.
fn read<R, E: Display>(work: impl FnOnce() -> Result<R, E>) -> Result<R, String> {
    match worker::in_transaction(work) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(error.to_string()),
        Err(caught) => Err(Caught::describe(&caught)),
    }
}
