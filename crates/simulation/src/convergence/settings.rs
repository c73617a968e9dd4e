//! What a history is like.

use pg_ha_replication::convergence::MergeRule;

use crate::random::Random;

/// What a history is like; drawn from the seed, or made up by a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// 3..=5
    pub nodes: usize,
    /// How many primary keys there are.
    pub keys: usize,
    /// How many things happen.
    pub events: usize,
    /// The rule of the column `bound`; the column `count` then has the rule `delta`.
    pub merges: Option<MergeRule>,
    /// How many values each unique column has; 0: they are always NULL.
    pub unique: usize,
    /// Whether changes leave the large column out.
    pub unchanged: bool,
    /// Parts of 100 of the changes.
    pub deletes: usize,
    /// Parts of 100.
    pub moves: usize,
    /// Parts of 100.
    pub truncates: usize,
    /// Clocks are at most this far from true time.
    pub clock_error: i64,
    /// `ha.max_clock_skew`.
    pub max_clock_skew: i64,
    /// The longest time between two events; 0 lets many versions have the same time.
    pub tick: i64,
    /// Parts of 100 of the events that are crashes.
    pub crashes: usize,
    /// Parts of 100 of the events that forget what may be forgotten.
    pub vacuums: usize,
    /// Nodes write only when they have applied everything: nothing is concurrent.
    pub in_turn: bool,
    /// At most this many deletes are remembered.
    pub death_limit: Option<usize>,
}

impl Settings {
    /// Those of a seed.
    pub fn draw(random: &mut Random) -> Settings {
        let merges = match random.below(4) {
            0 | 1 => None,
            2 => Some(MergeRule::Max),
            _ => Some(MergeRule::Min),
        };
        let clock_error = *random.choose(&[0, 0, 20, 500]).unwrap_or(&0);
        Settings {
            nodes: 3 + random.below(3),
            keys: 1 + random.below(4),
            events: 20 + random.below(100),
            merges,
            unique: random.below(2) * (1 + random.below(3)),
            unchanged: random.percent(60),
            deletes: *random.choose(&[0, 10, 30]).unwrap_or(&0),
            moves: *random.choose(&[0, 0, 15]).unwrap_or(&0),
            truncates: *random.choose(&[0, 0, 5]).unwrap_or(&0),
            clock_error,
            max_clock_skew: *random.choose(&[0, 50, 100_000]).unwrap_or(&0),
            tick: *random.choose(&[0, 1, 10]).unwrap_or(&0),
            crashes: *random.choose(&[0, 5]).unwrap_or(&0),
            vacuums: *random.choose(&[0, 5, 20]).unwrap_or(&0),
            in_turn: random.percent(10),
            // With merge columns a writer that forgot a delete early cannot be told from one that never knew it.
            death_limit: (merges.is_none() && random.percent(10)).then(|| random.below(3)),
        }
    }
}
