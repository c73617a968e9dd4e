//! Positions in a group's history: WAL positions, timelines, epochs.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A text that is no WAL position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a WAL position is written as two hexadecimal numbers of 1 to 8 digits, like 16/B374D848")]
pub struct ParseLsnError;

/// A position in the WAL, in bytes from its beginning. Shown as PostgreSQL does: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// PostgreSQL's InvalidXLogRecPtr: no position. Lower than every valid one.
    pub const INVALID: Lsn = Lsn(0);

    /// Whether this is a position at all.
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Bytes from `earlier` to this position, 0 where `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        Ok(Lsn(u64::from(hex_half(high)?) << 32 | u64::from(hex_half(low)?)))
    }
}

fn hex_half(digits: &str) -> Result<u32, ParseLsnError> {
    // from_str_radix alone would take a sign.
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ParseLsnError);
    }
    u32::from_str_radix(digits, 16).map_err(|_| ParseLsnError)
}

/// A timeline number: one branch of a cluster's WAL history, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A group's reign: which primary, the how-manieth. Ordered by generation, then number. Shown as `generation.number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch {
    /// Grows by one with every forced promotion without quorum; members of another generation are refused.
    pub generation: u32,
    /// Grows by one with every change of primary.
    pub number: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lsn_reads_what_postgresql_writes() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!("0/0".parse(), Ok(Lsn::INVALID));
        assert_eq!("ffffffff/FFFFFFFF".parse(), Ok(Lsn(u64::MAX)));
        for wrong in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "1/2/3",
            "+1/2",
            "123456789/0",
            "0/123456789",
            "g/0",
            " 1/2",
            "1/2 ",
        ] {
            assert_eq!(wrong.parse::<Lsn>(), Err(ParseLsnError), "{wrong:?}");
        }
    }

    #[test]
    fn lsn_distance() {
        assert_eq!(Lsn(10).bytes_since(Lsn(4)), 6);
        assert_eq!(Lsn(4).bytes_since(Lsn(10)), 0);
    }

    #[test]
    fn a_generation_outranks_any_number() {
        let old = Epoch {
            generation: 1,
            number: 900,
        };
        let forced = Epoch {
            generation: 2,
            number: 1,
        };
        assert!(forced > old);
        assert_eq!(old.to_string(), "1.900");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn lsn_round_trip(position in any::<u64>()) {
            prop_assert_eq!(Lsn(position).to_string().parse::<Lsn>(), Ok(Lsn(position)));
        }

        #[test]
        fn any_text_is_judged(text in any::<String>()) {
            let _ = text.parse::<Lsn>();
        }
    }
}
