//! The cleaner: started by the supervisor while there are notes of things to undo on other nodes, gone when it has
//! tried each of them once.
//!
//! It is a process of its own because it waits for other nodes, each for a few times `ha.connect_timeout` at worst,
//! and the supervisor must not. What it could not undo stays noted in the state directory for the next one, so that
//! nothing depends on its end.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use crate::catalog::plan;
use crate::network::leftovers;
use crate::postgres::{latch, worker};
use crate::shared_state;

pub(crate) fn run() {
    let Some(area) = shared_state::area() else {
        worker::exit(0)
    };
    if area
        .cleaner_pid
        .compare_exchange(0, worker::process_id(), AcqRel, Acquire)
        .is_err()
    {
        worker::exit(0);
    }
    worker::at_exit(forget, 0);
    let Some(local) = shared_state::local_node() else {
        worker::exit(0)
    };
    worker::connect(local.database_oid);
    if let Ok(subscriptions) = super::read(|| plan::subscriptions(None)) {
        let in_use: Vec<String> = subscriptions
            .into_iter()
            .map(|subscription| subscription.slot_name)
            .collect();
        leftovers::clean_up(&in_use);
    }
    worker::exit(0);
}

fn forget(_: usize) {
    if let Some(area) = shared_state::area() {
        area.cleaner_pid.store(0, Release);
        latch::wake(area.supervisor_pid.load(Acquire));
    }
}
