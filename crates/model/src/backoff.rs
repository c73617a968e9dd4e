//! How long to wait before trying again.

use crate::time::Millis;

/// Exponential backoff: the first delay is the minimum, each further one twice as long, up to a maximum.
///
/// There is no jitter: randomness is the caller's, who may add it to what `next` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    min: Millis,
    max: Millis,
    upcoming: Millis,
}

impl Backoff {
    /// Delays from `min` to `max`. A `min` of 0 counts as 1 ms, so that nothing spins; a `max` below `min` as `min`.
    pub fn new(min: Millis, max: Millis) -> Backoff {
        let min = min.max(Millis(1));
        Backoff {
            min,
            max: max.max(min),
            upcoming: min,
        }
    }

    /// The delay to wait now; the following one will be twice as long, up to the maximum.
    #[allow(
        clippy::should_implement_trait,
        reason = "a delay always follows: no Option to unwrap at each call"
    )]
    pub fn next(&mut self) -> Millis {
        let delay = self.upcoming;
        self.upcoming = delay.saturating_add(delay).min(self.max);
        delay
    }

    /// Starts over at the minimum: call it after a success.
    pub fn reset(&mut self) {
        self.upcoming = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_starts_over() {
        let mut backoff = Backoff::new(Millis(100), Millis(1000));
        let delays: Vec<u64> = (0..6).map(|_| backoff.next().0).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(), Millis(100));
    }

    #[test]
    fn odd_bounds_are_mended() {
        let mut none = Backoff::new(Millis(0), Millis(0));
        assert_eq!((none.next(), none.next()), (Millis(1), Millis(1)));
        let mut huge = Backoff::new(Millis(u64::MAX - 1), Millis(u64::MAX));
        assert_eq!(
            (huge.next(), huge.next()),
            (Millis(u64::MAX - 1), Millis(u64::MAX))
        );
    }
}
