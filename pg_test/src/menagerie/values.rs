//! Random values, as SQL literals.

/// What a column holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// The row's number itself.
    Number,
    /// The number in other clothes, for keys of other types.
    Word,
    Uid,
    Day,
    /// A range that touches that of no other number of another writer.
    Span,
    /// Another number of the same writer, or NULL.
    Other,
    Int,
    /// NULL now and then.
    Text,
    /// From a few bytes to some 20 kB that do not compress, so that TOAST has work; NULL now and then.
    Long,
    /// One of these literals.
    OneOf(&'static [&'static str]),
    /// Always given by the server; never written.
    Given,
}

impl Kind {
    /// Part of what says which row it is: changed only together.
    pub(super) fn is_identity(self) -> bool {
        matches!(
            self,
            Self::Number | Self::Word | Self::Uid | Self::Day | Self::Span
        )
    }

    pub(super) fn is_written(self) -> bool {
        !matches!(self, Self::Given)
    }

    /// `numbers` are those of the writer.
    pub(super) fn literal(
        self,
        number: u64,
        numbers: &std::ops::Range<u64>,
        random: &mut fastrand::Rng,
    ) -> String {
        match self {
            Self::Number => number.to_string(),
            Self::Word => format!("'k{number}'"),
            Self::Uid => format!("'00000000-0000-4000-8000-{number:012}'"),
            Self::Day => format!("(date '2000-01-01' + {number})"),
            Self::Span => {
                // Those of neighbouring numbers overlap, so that an exclusion constraint has work too.
                format!("int4range({}, {})", number * 4, number * 4 + random.u64(1..7))
            }
            Self::Other if random.u8(0..4) == 0 => "NULL".to_owned(),
            Self::Other => random.u64(numbers.clone()).to_string(),
            Self::Int => random.i32(-1000..1000).to_string(),
            Self::Text => match random.u8(0..10) {
                0 => "NULL".to_owned(),
                1 => "''".to_owned(),
                2 => "'it''s \"snow\" ☃, tab\t, and \\ back'".to_owned(),
                _ => format!("'{:x}'", random.u64(..)),
            },
            Self::Long => match random.u8(0..10) {
                0 => "NULL".to_owned(),
                1..=4 => format!("'{:x}'", random.u32(..)),
                _ => format!("'{}'", noise(random)),
            },
            Self::OneOf(literals) => random
                .choice(literals)
                .map_or_else(|| "NULL".to_owned(), |literal| (*literal).to_owned()),
            Self::Given => "DEFAULT".to_owned(),
        }
    }
}

fn noise(random: &mut fastrand::Rng) -> String {
    let length = if random.u8(0..5) == 0 {
        random.usize(5_000..20_000)
    } else {
        random.usize(1_500..4_000)
    };
    std::iter::repeat_with(|| random.alphanumeric())
        .take(length)
        .collect()
}
