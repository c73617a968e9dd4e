//! Passing over the one transaction that somebody named.

use pg_ha_model::Lsn;

/// What is to be done with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Apply it.
    Apply,
    /// Pass over it.
    PassOver,
    /// Apply it, and forget what was to be passed over: the stream is beyond it, so no transaction ended there.
    ApplyAndForget,
}

/// Judges a transaction by the positions of its commit, start and end; each names it. `wanted`: the position of the
/// transaction that is to be passed over, if one is.
pub fn judge(wanted: Option<Lsn>, commit_lsn: Lsn, end_lsn: Lsn) -> Verdict {
    match wanted {
        None => Verdict::Apply,
        Some(wanted) if wanted == end_lsn || wanted == commit_lsn => Verdict::PassOver,
        Some(wanted) if wanted < end_lsn => Verdict::ApplyAndForget,
        Some(_) => Verdict::Apply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_named_transaction_is_passed_over() {
        let judged = |wanted: u64| judge(Some(Lsn(wanted)), Lsn(100), Lsn(110));
        assert_eq!(judged(110), Verdict::PassOver);
        assert_eq!(judged(100), Verdict::PassOver);
        for between in [1, 99, 101, 109] {
            assert_eq!(
                judged(between),
                Verdict::ApplyAndForget,
                "{between} is no transaction"
            );
        }
        assert_eq!(judged(111), Verdict::Apply, "it is still to come");
        assert_eq!(judge(None, Lsn(100), Lsn(110)), Verdict::Apply);
    }
}
