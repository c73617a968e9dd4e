//! Which transactions of other origins a session sends on, by the numbers that the WAL has of their origins.
//!
//! The number is all that is known while records are decoded. Names can be read at the beginning of a transaction alone,
//! so that a transaction of an origin that was not met before is decoded first and looked at then; from there on the
//! number tells. What is withheld for good is filtered as it is decoded.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pg_ha_model::NodeId;
use pg_ha_replication::forwarding::{self, Route, Wanted};
use pg_ha_replication::origin_name::OriginName;

/// PostgreSQL's mark for what is never to be replicated (DoNotReplicateId): rows of a copy under way.
const UNSENT: u16 = u16::MAX;

/// Shortest time between two transactions that are sent although nothing of them is wanted, to tell how far the
/// provider is with other origins.
const SIGN_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Forward {
    wanted: Wanted,
    subscriber: NodeId,
    /// Of origins made by pg_ha, whose numbers are never used again.
    routes: HashMap<u16, Rc<Route>>,
    last_sign: Option<Instant>,
}

impl Forward {
    pub(super) fn new(wanted: Wanted, subscriber: NodeId) -> Forward {
        Forward {
            wanted,
            subscriber,
            routes: HashMap::new(),
            last_sign: None,
        }
    }

    /// Whether everything that the provider has is wanted.
    pub(super) fn wants_all(&self) -> bool {
        self.wanted == Wanted::All
    }

    /// Whether a record with this origin is left out without another look.
    pub(super) fn withholds(&self, origin: u16) -> bool {
        origin == UNSENT
            || origin != 0
                && (self.wanted.is_nothing()
                    || self
                        .routes
                        .get(&origin)
                        .is_some_and(|route| **route == Route::Withheld))
    }

    /// The route of a transaction that begins; `name` reads an origin's name from the catalog.
    pub(super) fn route(&mut self, origin: u16, name: impl Fn(u16) -> Option<String>) -> Rc<Route> {
        if let Some(known) = self.routes.get(&origin) {
            return Rc::clone(known);
        }
        let name = name(origin);
        let route = Rc::new(forwarding::route(&self.wanted, self.subscriber, name.as_deref()));
        // The numbers of others' origins may be used again, by ours.
        if name.as_deref().and_then(OriginName::parse).is_some() {
            self.routes.insert(origin, Rc::clone(&route));
        }
        route
    }

    /// Whether a forwarded transaction of which nothing is wanted is to be sent all the same.
    pub(super) fn is_sign_due(&mut self) -> bool {
        let due = self.last_sign.is_none_or(|at| at.elapsed() >= SIGN_PAUSE);
        if due {
            self.last_sign = Some(Instant::now());
        }
        due
    }
}
