//! Durations and instants as numbers; the clocks themselves belong to the caller.

use std::fmt;

/// Milliseconds: a duration, or an instant on whatever clock the caller uses for all of its instants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// This and `other` together, at most `u64::MAX`.
    pub const fn saturating_add(self, other: Millis) -> Millis {
        Millis(self.0.saturating_add(other.0))
    }

    /// The time from `earlier` to this, 0 where `earlier` is not earlier.
    pub const fn since(self, earlier: Millis) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// PostgreSQL's TimestampTz: microseconds since 2000-01-01 00:00 UTC, negative before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PgTimestamp(pub i64);

impl PgTimestamp {
    /// PostgreSQL's `-infinity`: older than every commit.
    pub const BEGIN: PgTimestamp = PgTimestamp(i64::MIN);
    /// Seconds from the Unix epoch to 2000-01-01.
    pub const UNIX_EPOCH_OFFSET_SECONDS: i64 = 946_684_800;

    /// Microseconds since 1970-01-01 00:00 UTC, saturating at the ends of the range.
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(Self::UNIX_EPOCH_OFFSET_SECONDS * 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Millis(u64::MAX).saturating_add(Millis(1)), Millis(u64::MAX));
        assert_eq!(Millis(3).since(Millis(5)), Millis(0));
        assert_eq!(PgTimestamp(i64::MAX).unix_micros(), i64::MAX);
        assert_eq!(PgTimestamp(0).unix_micros(), 946_684_800_000_000);
        assert!(PgTimestamp::BEGIN < PgTimestamp(-1));
    }
}
