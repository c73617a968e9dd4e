//! The cluster view in shared memory, and how sessions speak to the workers.

use std::time::Duration;

/// Tells the supervisor that nodes or subscriptions changed. Called after commit.
pub(crate) fn catalog_changed() {}

/// Asks the workers of a subscription to stop and waits until they are gone; false if they were not in time.
pub(crate) fn stop_subscription(_subscription_id: i32, _timeout: Duration) -> bool {
    true
}

/// Asks all workers of the local node to stop and waits until they are gone; false if they were not in time.
pub(crate) fn stop_all(_timeout: Duration) -> bool {
    true
}
