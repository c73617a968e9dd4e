//! The background workers. Each wires what it observes to a pure step and performs what comes out.

pub(crate) mod applier;
pub(crate) mod cleaner;
pub(crate) mod receiver;
pub(crate) mod supervisor;

use pgrx::spi;

use crate::postgres::worker::{self, Caught};

/// Reads the catalogs in a transaction of its own.
fn read<R>(work: impl FnOnce() -> Result<R, spi::Error>) -> Result<R, String> {
    match worker::in_transaction(work) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(error.to_string()),
        Err(caught) => Err(Caught::describe(&caught)),
    }
}
