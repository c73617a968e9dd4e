//! Who decides a conflict, by table and type.

use crate::conflict::ConflictType;

/// Who wins a conflict. Only [`Resolver::LastUpdateWins`] makes all nodes end alike in every case; see
/// [`Resolver::converges`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Resolver {
    /// The newer version.
    #[default]
    LastUpdateWins,
    /// The older of two concurrent versions.
    FirstUpdateWins,
    /// The change that arrives.
    ApplyRemote,
    /// What is here.
    KeepLocal,
    /// What is here; the change is not even merged.
    Skip,
    /// Nobody: the change is set aside.
    Error,
    /// A function of the user's.
    Function,
}

impl Resolver {
    /// The name, as in `ha.table_set_conflict`; a function has its own.
    pub fn as_str(self) -> &'static str {
        match self {
            Resolver::LastUpdateWins => "last_update_wins",
            Resolver::FirstUpdateWins => "first_update_wins",
            Resolver::ApplyRemote => "apply_remote",
            Resolver::KeepLocal => "keep_local",
            Resolver::Skip => "skip",
            Resolver::Error => "error",
            Resolver::Function => "function",
        }
    }

    /// The built-in resolver of this name.
    pub fn from_name(name: &str) -> Option<Resolver> {
        [
            Resolver::LastUpdateWins,
            Resolver::FirstUpdateWins,
            Resolver::ApplyRemote,
            Resolver::KeepLocal,
            Resolver::Skip,
            Resolver::Error,
        ]
        .into_iter()
        .find(|resolver| resolver.as_str() == name)
    }

    /// Whether all nodes end alike with this resolver for this type. None: it depends on how the table is used, which
    /// `docs/convergence.md` tells.
    pub fn converges(self, conflict: ConflictType) -> Option<bool> {
        match (self, conflict) {
            (Resolver::LastUpdateWins, _) => Some(true),
            // Of rows that are inserted and never changed, the oldest is the same everywhere.
            (Resolver::FirstUpdateWins, ConflictType::InsertExists) => None,
            // It may be symmetric, or not.
            (Resolver::Function, _) => None,
            // Where each row is written by one node alone there is nothing to decide; where not, nodes differ.
            _ => Some(false),
        }
    }
}

/// A resolver for each type of conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resolvers([Resolver; ConflictType::ALL.len()]);

impl Resolvers {
    /// What every table begins with.
    pub const LAST_UPDATE_WINS: Resolvers = Resolvers([Resolver::LastUpdateWins; ConflictType::ALL.len()]);

    /// The same for every type.
    pub fn all(resolver: Resolver) -> Resolvers {
        Resolvers([resolver; ConflictType::ALL.len()])
    }

    /// Sets the one for a type.
    pub fn set(&mut self, conflict: ConflictType, resolver: Resolver) {
        if let Some(place) = self.0.get_mut(conflict as usize) {
            *place = resolver;
        }
    }

    /// The one for a type.
    pub fn of(&self, conflict: ConflictType) -> Resolver {
        self.0.get(conflict as usize).copied().unwrap_or_default()
    }
}
