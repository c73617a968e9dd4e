//! Peak memory of running processes: their anonymous pages, which leave shared buffers out. The kernel keeps no peak of
//! those, so they are looked at every 20 ms.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

pub(super) struct Sampler {
    done: Arc<AtomicBool>,
    thread: JoinHandle<(f64, f64)>,
}

impl Sampler {
    pub(super) fn start(senders: Vec<i32>, appliers: Vec<i32>) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&done);
        let thread = spawn(move || {
            let mut peaks = (0.0_f64, 0.0_f64);
            loop {
                peaks = (peaks.0.max(total(&senders)), peaks.1.max(total(&appliers)));
                if told.load(Relaxed) {
                    return peaks;
                }
                sleep(Duration::from_millis(20));
            }
        });
        Self { done, thread }
    }

    /// Megabytes: of the senders, of the appliers.
    pub(super) fn peaks(self) -> (f64, f64) {
        self.done.store(true, Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn total(pids: &[i32]) -> f64 {
    pids.iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter_map(|status| anonymous(&status))
        .sum()
}

fn anonymous(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_anonymous_pages() {
        assert_eq!(anonymous("VmRSS:\t 9 kB\nRssAnon:\t    2048 kB\n"), Some(2.0));
        assert_eq!(anonymous("VmRSS:\t 9 kB\n"), None);
    }
}
