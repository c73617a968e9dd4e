//! Waking other workers, and waiting without blocking signals or interrupts.

use std::time::Duration;

use pgrx::pg_sys;

/// Wakes the worker with this process id: SIGUSR1's handler sets its latch. 0 is nobody.
pub(crate) fn wake(pid: i32) {
    signal(pid, libc::SIGUSR1);
}

/// Asks the worker with this process id to end (SIGTERM). 0 is nobody.
pub(crate) fn terminate(pid: i32) {
    signal(pid, libc::SIGTERM);
}

fn signal(pid: i32, signal: i32) {
    if pid > 0 {
        // SAFETY: kill has no memory effects; the id comes from shared memory, where its owner clears it before it
        // exits, and the server resets that memory when a process dies without doing so.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Waits for this process's latch, at most `timeout`, and resets it. Exits the process if the postmaster died;
/// raises what CHECK_FOR_INTERRUPTS raises.
pub(crate) fn wait(timeout: Duration) {
    wait_for(None, timeout);
}

/// The same, and also until `socket` is readable.
pub(crate) fn wait_for(socket: Option<pg_sys::pgsocket>, timeout: Duration) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    if socket.is_some() {
        events |= pg_sys::WL_SOCKET_READABLE;
    }
    let milliseconds = i64::try_from(timeout.as_millis())
        .unwrap_or(i64::MAX)
        .min(i64::from(i32::MAX));
    // SAFETY: MyLatch is this process's own latch, valid for its life; the socket, if any, is open (the caller's).
    unsafe {
        let occurred = pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            socket.unwrap_or(-1),
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        ) as u32;
        if occurred & pg_sys::WL_LATCH_SET != 0 {
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
    }
    pgrx::check_for_interrupts!();
}

/// A pause in a retry loop of an ordinary session: interruptible, and ends early when the latch is set.
pub(crate) fn pause(timeout: Duration) {
    wait(timeout);
}
