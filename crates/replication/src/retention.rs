//! When a slot may no longer keep WAL from being removed.

/// A slot of a subscriber, as the provider sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Bytes of WAL that it keeps from being removed.
    pub retained: u64,
    /// The process that reads from it.
    pub reader: Option<i32>,
    /// It goes away with its reader by itself.
    pub temporary: bool,
}

/// What is to be done about a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Its reader has to end first (or is all that has to, where the slot is temporary): this process.
    EndReader(i32),
    /// Nobody reads from it: it is to be ended now.
    End,
}

/// Judges a slot. `limit`: the most bytes that one may retain; None for any amount.
pub fn judge(slot: Slot, limit: Option<u64>) -> Verdict {
    if limit.is_none_or(|limit| slot.retained <= limit) {
        return Verdict::Keep;
    }
    match (slot.reader, slot.temporary) {
        (Some(process), _) => Verdict::EndReader(process),
        (None, false) => Verdict::End,
        // On its way out.
        (None, true) => Verdict::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot {
        retained: 101,
        reader: None,
        temporary: false,
    };

    #[test]
    fn only_what_retains_too_much_is_ended() {
        assert_eq!(judge(SLOT, Some(100)), Verdict::End);
        assert_eq!(judge(SLOT, Some(101)), Verdict::Keep);
        assert_eq!(judge(SLOT, None), Verdict::Keep);
        let huge = Slot {
            retained: u64::MAX,
            ..SLOT
        };
        assert_eq!(judge(huge, None), Verdict::Keep, "no limit is no limit");
        assert_eq!(judge(huge, Some(0)), Verdict::End);
    }

    #[test]
    fn readers_go_first() {
        let read = Slot {
            reader: Some(42),
            ..SLOT
        };
        assert_eq!(judge(read, Some(100)), Verdict::EndReader(42));
        assert_eq!(judge(read, Some(200)), Verdict::Keep);
        let copy = Slot {
            temporary: true,
            ..read
        };
        assert_eq!(judge(copy, Some(100)), Verdict::EndReader(42));
        let left = Slot { reader: None, ..copy };
        assert_eq!(judge(left, Some(100)), Verdict::Keep, "it goes with its reader");
    }
}
