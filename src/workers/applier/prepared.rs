//! Transactions that are prepared on the provider.
//!
//! One is prepared here too, under a name made of the subscription's number, its number on the provider and its name
//! there. But who wins a conflict depends on when it commits, which nobody knows yet. So nothing is prepared that meets
//! a row which it would have to be compared with, or a table that is being copied: its changes are kept in the
//! catalog, durably, and applied when it commits. Either way the provider need not send them again.

use std::collections::HashSet;

use pg_ha_model::PgTimestamp;
use pg_ha_replication::codec::{Begin, CommitPrepared, List, Message, Prepare, RollbackPrepared};

use super::spool::{Held, Spool, chunk};
use super::transaction::{Apply, Failure};
use super::{Leaps, Positions, attempt};
use crate::catalog::prepared::{self as catalog, Found};
use crate::postgres::two_phase::gid_prefix;
use crate::postgres::worker;
use crate::workers::read;

/// Longest name of a prepared transaction, in bytes (GIDSIZE without the final zero).
const MAX_GID: usize = 199;

impl Spool {
    /// The name here.
    fn local_gid(&self, xid: u32, gid: &str) -> String {
        let mut name = format!("{}{xid}_", gid_prefix(self.subscription_id));
        // Other characters may not exist in this database's encoding.
        name.extend(
            gid.chars()
                .map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }),
        );
        name.truncate(MAX_GID);
        name
    }

    pub(super) fn prepared(
        &mut self,
        prepare: &Prepare<'_>,
        apply: &mut Apply,
        positions: &mut Positions,
        leaps: &mut Leaps,
    ) -> Result<(), String> {
        let (id, xid) = (self.subscription_id, prepare.begin.xid);
        let local_gid = self.local_gid(xid, prepare.gid);
        let (held, aborted) = self.take(xid).unwrap_or_default();
        if read(|| catalog::find(id, xid, &local_gid))? != Found::Nothing {
            // Before a restart. It is durable already.
            return attempt(apply, positions, leaps, |apply, _, _, positions| {
                apply.instead_of(&prepare.begin, positions, || Ok(()))
            });
        }
        if apply.passes_over(&prepare.begin)? {
            // Nothing of it is to come when it commits.
            return attempt(apply, positions, leaps, |apply, _, _, positions| {
                apply.pass_over(&prepare.begin, positions, || {
                    let (nothing, none) = (Held::default(), HashSet::new());
                    keep(id, prepare, "ha.sub_skip_lsn named it", &nothing, &none)
                })
            });
        }
        let reason = if held.is_empty() {
            Some("nothing of it is replicated".to_owned())
        } else if apply.shares(&prepare.begin) {
            // Which of them brings it first shows at the commit.
            Some("it may come by another subscription too".to_owned())
        } else {
            tentatively(prepare, &local_gid, &held, &aborted, apply, positions, leaps)?
        };
        let Some(reason) = reason else { return Ok(()) };
        attempt(apply, positions, leaps, |apply, _, _, positions| {
            apply.instead_of(&prepare.begin, positions, || {
                keep(id, prepare, &reason, &held, &aborted)
            })
        })
    }

    pub(super) fn commit_prepared(
        &mut self,
        commit: &CommitPrepared<'_>,
        apply: &mut Apply,
        positions: &mut Positions,
        leaps: &mut Leaps,
    ) -> Result<(), String> {
        let (id, xid) = (self.subscription_id, commit.begin.xid);
        let local_gid = self.local_gid(xid, commit.gid);
        let found = read(|| catalog::find(id, xid, &local_gid))?;
        let passes_over = found != Found::Nothing && apply.passes_over(&commit.begin)?;
        match found {
            Found::Prepared if passes_over => attempt(apply, positions, leaps, |apply, _, _, positions| {
                apply.finish(&local_gid, &commit.begin, false, positions)?;
                apply.pass_over(&commit.begin, positions, || Ok(()))
            }),
            Found::Kept(_) if passes_over => attempt(apply, positions, leaps, |apply, _, _, positions| {
                apply.pass_over(&commit.begin, positions, || forget(id, xid))
            }),
            Found::Prepared => attempt(apply, positions, leaps, |apply, _, _, positions| {
                apply.finish(&local_gid, &commit.begin, true, positions)
            }),
            Found::Kept(aborted) => {
                let aborted: HashSet<u32> = aborted.into_iter().collect();
                attempt(apply, positions, leaps, |apply, again, look, positions| {
                    apply.start_frame(again, look);
                    apply.next(&Message::Begin(commit.begin), positions)?;
                    if !apply.was_applied() {
                        play_kept(id, xid, &aborted, apply, positions)?;
                        forget(id, xid)?;
                    }
                    let commit = commit.begin.commit(commit.wal_end);
                    apply.next(&Message::Commit(commit), positions)
                })
            }
            // Before a restart.
            Found::Nothing if apply.is_behind(&commit.begin) => Ok(()),
            Found::Nothing => Err(format!(
                "transaction {xid} of the provider, \"{}\", has committed, but what was prepared of it here, \
                 \"{local_gid}\", is gone: somebody has ended it by hand. Drop the subscription, make the tables \
                 equal and create it again",
                commit.gid
            )),
        }
    }

    pub(super) fn rollback_prepared(
        &mut self,
        rollback: &RollbackPrepared<'_>,
        apply: &mut Apply,
        positions: &mut Positions,
        leaps: &mut Leaps,
    ) -> Result<(), String> {
        let (id, xid) = (self.subscription_id, rollback.xid);
        let local_gid = self.local_gid(xid, rollback.gid);
        let found = read(|| catalog::find(id, xid, &local_gid))?;
        let end = Begin {
            xid,
            commit_lsn: rollback.end_lsn,
            end_lsn: rollback.end_lsn,
            commit_ts: PgTimestamp(crate::postgres::now()),
            origin: apply.provider(),
            origin_lsn: rollback.end_lsn,
            lane: 0,
            via: List::from(&[][..]),
            seen: List::from(&[][..]),
        };
        attempt(apply, positions, leaps, |apply, _, _, positions| match found {
            Found::Prepared => apply.finish(&local_gid, &end, false, positions),
            Found::Kept(_) => apply.instead_of(&end, positions, || forget(id, xid)),
            // It was never sent, or that was before a restart.
            Found::Nothing => apply.instead_of(&end, positions, || Ok(())),
        })
    }
}

/// Prepares it here; or says why it cannot be before it commits, with nothing done.
fn tentatively(
    prepare: &Prepare<'_>,
    local_gid: &str,
    held: &Held,
    aborted: &HashSet<u32>,
    apply: &mut Apply,
    positions: &mut Positions,
    leaps: &mut Leaps,
) -> Result<Option<String>, String> {
    let mut refused = None;
    attempt(apply, positions, leaps, |apply, again, look, positions| {
        apply.begin_tentative(&prepare.begin, again, look)?;
        let played = held.play(aborted, apply, positions);
        match played.and_then(|()| apply.prepare(local_gid, positions)) {
            Ok(()) => {}
            Err(Failure::NotBeforeCommit(reason)) => {
                apply.give_up();
                refused = Some(reason);
            }
            Err(other) => return Err(other),
        }
        Ok(())
    })?;
    Ok(refused)
}

/// Writes it to the catalog, in the open transaction.
fn keep(
    subscription_id: i32,
    prepare: &Prepare<'_>,
    reason: &str,
    held: &Held,
    aborted: &HashSet<u32>,
) -> Result<(), Failure> {
    let xid = prepare.begin.xid;
    let aborted: Vec<i64> = aborted.iter().map(|subxid| i64::from(*subxid)).collect();
    worker::with_latest_snapshot(|| {
        catalog::keep(
            subscription_id,
            xid,
            prepare.gid,
            prepare.begin.commit_ts.0,
            reason,
            aborted,
        )
    })?;
    let mut number = 0;
    held.each(|frame| {
        worker::heed_signals(0);
        worker::with_latest_snapshot(|| catalog::keep_frame(subscription_id, xid, number, frame))?;
        number += 1;
        Ok(())
    })
}

/// Takes it out of the catalog, in the open transaction.
fn forget(subscription_id: i32, xid: u32) -> Result<(), Failure> {
    Ok(worker::with_latest_snapshot(|| {
        catalog::forget(subscription_id, xid)
    })?)
}

/// Applies what was kept, in the open transaction.
fn play_kept(
    subscription_id: i32,
    xid: u32,
    aborted: &HashSet<u32>,
    apply: &mut Apply,
    positions: &mut Positions,
) -> Result<(), Failure> {
    let mut number = 0;
    while let Some(frame) = worker::with_latest_snapshot(|| catalog::frame(subscription_id, xid, number))? {
        chunk(&frame, aborted, apply, positions)?;
        worker::heed_signals(0);
        number += 1;
    }
    Ok(())
}
