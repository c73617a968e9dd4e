//! Emptied tables.

use pg_ha_replication::codec::Truncate;
use pg_ha_replication::once::{Change, Kind, Verdict};

use super::prepared::being_copied;
use super::{Apply, Failure};
use crate::catalog::subscription_tables;
use crate::postgres::apply;
use crate::postgres::worker;

impl Apply {
    pub(super) fn truncate(&mut self, truncate: &Truncate<'_>) -> Result<(), Failure> {
        self.count_passed();
        let Some(open) = self.open.as_ref().filter(|open| !open.skip) else {
            return Ok(());
        };
        // Without the tables that are being copied, or were, with what followed this: a CASCADE must not reach them
        // through foreign keys, and without it the server would refuse to truncate what they refer to.
        let all = truncate.relations.iter().count();
        let (end_lsn, tentative, time) = (open.end_lsn, open.tentative, open.version.timestamp);
        self.tables.close();
        let (mut ids, mut late) = (Vec::with_capacity(all), Vec::new());
        for id in truncate.relations.iter() {
            if self.tables.may_truncate(id, end_lsn)? {
                match self.meet_truncate(id)? {
                    Verdict::Skip => {}
                    Verdict::Apply => ids.push(id),
                    // What another way brought of later transactions is not to be lost: it does not come again. What
                    // follows in this one does, where rows have keys.
                    Verdict::Late | Verdict::Again | Verdict::Remains => late.push(id),
                }
            }
        }
        if tentative && ids.len() < all {
            return Err(being_copied());
        }
        for id in late {
            self.tables.resolve(id)?;
            let keyed = self.tables.shape(id)?.is_keyed();
            let name = &self.tables.target(id)?.name;
            worker::with_latest_snapshot(|| subscription_tables::empty_of_older(name, time.0, keyed))?;
        }
        if ids.is_empty() {
            return Ok(());
        }
        for id in &ids {
            self.tables.resolve(*id)?;
        }
        let targets = ids
            .iter()
            .map(|id| self.tables.target(*id))
            .collect::<Result<Vec<_>, _>>()?;
        if ids.len() < all {
            for target in targets {
                worker::with_latest_snapshot(|| subscription_tables::empty(&target.name))?;
            }
            return Ok(());
        }
        apply::truncate(
            &targets,
            truncate.flags & Truncate::CASCADE != 0,
            truncate.flags & Truncate::RESTART_SEQS != 0,
        )?;
        Ok(())
    }

    /// Whether the emptying of a table in the open transaction has come by another way.
    fn meet_truncate(&mut self, relation: u32) -> Result<Verdict, Failure> {
        let Some(arrival) = self.open.as_mut().and_then(|open| open.arrival.as_mut()) else {
            return Ok(Verdict::Apply);
        };
        let shape = self.tables.shape(relation)?;
        Ok(arrival.meet(Change {
            digest: self.rivals.since_copy(&shape, shape.truncate()),
            relation,
            keyed: shape.is_keyed(),
            kind: Kind::Truncate,
        }))
    }
}
