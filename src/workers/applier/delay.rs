//! `apply_delay`: a transaction waits until so long after its commit.
//!
//! The wait comes before anything of the transaction is applied, in the applier's own loop, which goes on doing
//! everything else meanwhile. What comes behind it waits in the queue, and then on the provider.

use std::time::Duration;

use pg_ha_replication::codec::{CommitPrepared, Decoder, Message, StreamCommit, is_chunk};

use crate::postgres;
use crate::shared_state::layout;

/// A wait that is worth telling.
const TOLD: Duration = Duration::from_millis(100);

/// The delay of one subscription.
pub(super) struct Delay {
    place: &'static layout::Subscription,
    delay: Duration,
    told: bool,
}

impl Delay {
    pub(super) fn new(place: &'static layout::Subscription, delay: Duration) -> Delay {
        Delay {
            place,
            delay,
            told: false,
        }
    }

    /// When the transaction that begins in this frame may be applied (TimestampTz); None if at once. By the provider's
    /// clock at its commit and this server's now. What cannot be read is for others to complain of.
    pub(super) fn due(&self, frame: &[u8]) -> Option<i64> {
        if self.delay.is_zero() {
            return None;
        }
        if is_chunk(frame) {
            return None;
        }
        let mut decoder = Decoder::new(frame);
        while let Ok(Some(message)) = decoder.next() {
            // What is only prepared does not wait: it shows when it commits.
            if let Message::Begin(begin)
            | Message::StreamCommit(StreamCommit { begin, .. })
            | Message::CommitPrepared(CommitPrepared { begin, .. }) = message
            {
                let delay = i64::try_from(self.delay.as_micros()).unwrap_or(i64::MAX);
                return Some(begin.commit_ts.0.saturating_add(delay));
            }
        }
        None
    }

    /// How long to wait until then, and says so; None once it is time.
    pub(super) fn left(&mut self, due: i64) -> Option<Duration> {
        let left = u64::try_from(due.saturating_sub(postgres::now()))
            .ok()
            .filter(|left| *left > 0)
            .map(Duration::from_micros)?;
        if left >= TOLD && !self.told {
            self.told = true;
            self.place.set_action(&format!(
                "waiting for apply_delay until {}",
                postgres::time_text(due)
            ));
        }
        Some(left)
    }

    /// The wait is over.
    pub(super) fn over(&mut self) {
        if core::mem::take(&mut self.told) {
            self.place.set_action("streaming");
        }
    }
}
