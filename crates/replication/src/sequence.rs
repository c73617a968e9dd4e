//! When a provider tells its subscribers of a sequence, and what they make of it.
//!
//! Values are not in the change stream one by one. The provider tells a value ahead of its own by a buffer, and tells
//! again before the buffer is used up; a subscriber sets its sequence to at least that. So whenever the subscriber takes
//! over, its sequence gives values that the provider has not given, unless the provider used half a buffer or more since
//! it last looked.

/// How a sequence counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Never 0; negative where it counts downwards.
    pub increment: i64,
    /// Its smallest value.
    pub min: i64,
    /// Its greatest value.
    pub max: i64,
}

/// What subscribers have been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// They may use what lies beyond it.
    pub value: i64,
    /// How many values it was ahead.
    pub buffer: i64,
}

/// The most values that a buffer grows to where a sequence is used quickly.
pub const MAX_BUFFER: i64 = 1_000_000;

/// Provider and subscriber count in different directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it counts in the other direction here")]
pub struct OtherDirection;

impl Shape {
    fn is_ascending(self) -> bool {
        self.increment > 0
    }

    /// The value so many values after `last`, within the bounds.
    fn ahead(self, last: i64, values: i64) -> i64 {
        last.saturating_add(self.increment.saturating_mul(values))
            .clamp(self.min, self.max)
    }

    /// How many values there are from `last` to `to`; negative where that lies behind.
    fn values_between(self, last: i64, to: i64) -> i128 {
        (i128::from(to) - i128::from(last)) / i128::from(self.increment)
    }

    /// Whether `a` comes after `b`, or is `b`.
    fn reaches(self, a: i64, b: i64) -> bool {
        if self.is_ascending() { a >= b } else { a <= b }
    }
}

/// What to tell now: always something if `now` is set and a value has been used, else only if the buffer needs it.
///
/// `last`: the value given last, if any was. `received`: the value that another node made this sequence have; while
/// nothing was taken from it since, there is nothing to tell. `buffer`: the smallest buffer, at least 1.
pub fn to_tell(
    shape: Shape,
    last: Option<i64>,
    told: Option<Told>,
    received: Option<i64>,
    buffer: i64,
    now: bool,
) -> Option<Told> {
    let last = last?;
    let fresh = |buffer: i64| Told {
        value: shape.ahead(last, buffer),
        buffer,
    };
    let known = match told {
        None => return (now || received != Some(last)).then(|| fresh(buffer)),
        Some(known) => Told {
            buffer: known.buffer.max(buffer),
            ..known
        },
    };
    if now {
        return Some(fresh(known.buffer));
    }
    if received == Some(last) {
        return None;
    }
    let left = shape.values_between(last, known.value);
    let went_back = left > i128::from(known.buffer);
    let next = if went_back {
        fresh(buffer)
    } else if left <= 0 {
        // All of it was used before this look: the next one shall last longer.
        fresh(known.buffer.saturating_mul(2).min(MAX_BUFFER.max(buffer)))
    } else if left < i128::from(known.buffer / 2).max(1) {
        fresh(known.buffer)
    } else {
        return None;
    };
    // At its bound a sequence has nothing more to tell.
    (next.value != known.value).then_some(next)
}

/// What a subscriber sets its sequence to when it is told a value, within the bounds of its own; None where it is there
/// already.
///
/// # Errors
/// Its own sequence counts the other way: no value of it would be safe.
pub fn to_set(
    shape: Shape,
    last: Option<i64>,
    ascending: bool,
    value: i64,
) -> Result<Option<i64>, OtherDirection> {
    if shape.is_ascending() != ascending {
        return Err(OtherDirection);
    }
    let value = value.clamp(shape.min, shape.max);
    Ok(match last {
        Some(last) if shape.reaches(last, value) => None,
        _ => Some(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Shape = Shape {
        increment: 1,
        min: 1,
        max: i64::MAX,
    };
    const DOWN: Shape = Shape {
        increment: -5,
        min: i64::MIN,
        max: -1,
    };

    fn told(value: i64, buffer: i64) -> Option<Told> {
        Some(Told { value, buffer })
    }

    #[test]
    fn an_unused_sequence_has_nothing_to_tell() {
        assert_eq!(to_tell(UP, None, None, None, 1000, true), None);
        assert_eq!(to_tell(UP, None, told(1001, 1000), None, 1000, false), None);
    }

    #[test]
    fn a_used_one_is_told_with_a_buffer() {
        assert_eq!(to_tell(UP, Some(1), None, None, 1000, false), told(1001, 1000));
        assert_eq!(to_tell(DOWN, Some(-1), None, None, 100, false), told(-501, 100));
    }

    #[test]
    fn it_is_told_again_before_half_of_the_buffer_is_used() {
        let known = told(1001, 1000);
        assert_eq!(to_tell(UP, Some(501), known, None, 1000, false), None);
        assert_eq!(to_tell(UP, Some(502), known, None, 1000, false), told(1502, 1000));
        let known = told(-501, 100);
        assert_eq!(to_tell(DOWN, Some(-251), known, None, 100, false), None);
        assert_eq!(
            to_tell(DOWN, Some(-256), known, None, 100, false),
            told(-756, 100)
        );
    }

    #[test]
    fn a_buffer_that_was_used_up_grows_to_its_limit() {
        assert_eq!(
            to_tell(UP, Some(5000), told(1001, 1000), None, 1000, false),
            told(7000, 2000)
        );
        let grown = to_tell(UP, Some(9_000_000), told(8_000_000, 900_000), None, 1000, false);
        assert_eq!(grown, told(10_000_000, MAX_BUFFER));
    }

    #[test]
    fn a_sequence_that_was_set_back_is_told_again() {
        assert_eq!(
            to_tell(UP, Some(1), told(9001, 1000), None, 1000, false),
            told(1001, 1000)
        );
    }

    #[test]
    fn when_asked_for_it_is_told_at_once() {
        assert_eq!(
            to_tell(UP, Some(2), told(1001, 1000), None, 1000, true),
            told(1002, 1000)
        );
        assert_eq!(to_tell(UP, Some(7), None, Some(7), 1000, true), told(1007, 1000));
    }

    #[test]
    fn nodes_do_not_drive_each_other_on() {
        assert_eq!(to_tell(UP, Some(1001), None, Some(1001), 1000, false), None);
        assert_eq!(
            to_tell(UP, Some(1001), told(5, 1000), Some(1001), 1000, false),
            None
        );
        assert!(to_tell(UP, Some(1002), None, Some(1001), 1000, false).is_some());
    }

    #[test]
    fn bounds_are_kept_and_end_the_telling() {
        let small = Shape {
            increment: 1,
            min: 1,
            max: 32_767,
        };
        assert_eq!(
            to_tell(small, Some(32_000), None, None, 1000, false),
            told(32_767, 1000)
        );
        let known = told(32_767, 1000);
        assert_eq!(to_tell(small, Some(32_700), known, None, 1000, false), None);
        assert_eq!(to_tell(small, Some(32_767), known, None, 1000, false), None);
        let far = Shape {
            increment: i64::MAX,
            ..UP
        };
        assert_eq!(
            to_tell(far, Some(5), None, None, 1000, false),
            told(i64::MAX, 1000)
        );
    }

    #[test]
    fn subscribers_only_go_forward_and_within_their_bounds() {
        assert_eq!(to_set(UP, None, true, 1001), Ok(Some(1001)));
        assert_eq!(to_set(UP, Some(7), true, 1001), Ok(Some(1001)));
        assert_eq!(to_set(UP, Some(1001), true, 1001), Ok(None));
        assert_eq!(to_set(UP, Some(5000), true, 1001), Ok(None));
        assert_eq!(to_set(DOWN, Some(-2), false, -501), Ok(Some(-501)));
        assert_eq!(to_set(DOWN, Some(-900), false, -501), Ok(None));
        let small = Shape { max: 100, ..UP };
        assert_eq!(to_set(small, Some(7), true, 1001), Ok(Some(100)));
        assert_eq!(to_set(UP, Some(7), false, -501), Err(OtherDirection));
    }
}
