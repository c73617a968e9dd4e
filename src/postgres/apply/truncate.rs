//! TRUNCATE, as one command and as the tables' owners.

use std::collections::HashSet;

use pgrx::pg_sys;

use super::ApplyError;
use super::acting::{Actor, Operation};
use super::partitioned::inheritors;
use super::target::Target;
use crate::postgres::version;

/// Truncates tables as one command.
///
/// # Errors
/// What the acting user may not do; PostgreSQL's own errors come as panics.
pub(crate) fn truncate(tables: &[&Target], cascade: bool, restart_sequences: bool) -> Result<(), ApplyError> {
    for table in tables {
        table.check(Operation::Truncate)?;
    }
    // SAFETY: in a transaction; relations are locked as TRUNCATE locks them, until the transaction ends.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let lock = pg_sys::AccessExclusiveLock as i32;
        let mut wanted: Vec<pg_sys::Oid> = Vec::new();
        let mut met = HashSet::new();
        for table in tables {
            // A partitioned table means all that is below it.
            let below = if table.partitioned {
                inheritors(table.oid, lock)
            } else {
                vec![table.oid]
            };
            for oid in below {
                if met.insert(oid) {
                    wanted.push(oid);
                }
            }
        }
        for (actor, oids) in groups(wanted, cascade, lock) {
            let acting = actor.map(Actor::begin);
            command(&oids, cascade, restart_sequences, lock);
            if let Some(acting) = acting {
                acting.end();
            }
        }
        pg_sys::PopActiveSnapshot();
    }
    Ok(())
}

/// Which relations are truncated together, and as whom. Where the server itself switches to their owners (from 16 on),
/// and where no trigger of theirs fires, all of them as the worker: nothing else of theirs is run.
///
/// # Safety
/// In a transaction.
unsafe fn groups(
    mut oids: Vec<pg_sys::Oid>,
    cascade: bool,
    lock: pg_sys::LOCKMODE,
) -> Vec<(Option<Actor>, Vec<pg_sys::Oid>)> {
    if version::TRUNCATES_AS_OWNER {
        return vec![(None, oids)];
    }
    // SAFETY: each relation is opened with its lock and closed again; lists hold oids.
    unsafe {
        let mut place = 0;
        let mut owned = Vec::new();
        let mut fires = false;
        while place < oids.len() {
            let relation = pg_sys::table_open(oids[place], lock);
            owned.push((Actor::for_owner((*(*relation).rd_rel).relowner), oids[place]));
            let triggers = (*relation).trigdesc;
            fires |= !triggers.is_null()
                && ((*triggers).trig_truncate_before_statement || (*triggers).trig_truncate_after_statement);
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
            place += 1;
            if cascade && place == oids.len() {
                // Also what the command would find by itself, and truncate as whoever runs it.
                let list = oids
                    .iter()
                    .fold(core::ptr::null_mut(), |list, oid| pg_sys::lappend_oid(list, *oid));
                let found = pg_sys::heap_truncate_find_FKs(list);
                let count = if found.is_null() { 0 } else { (*found).length };
                for place in 0..count {
                    let oid = pg_sys::list_nth_oid(found, place);
                    if !oids.contains(&oid) {
                        oids.push(oid);
                    }
                }
            }
        }
        if !fires {
            return vec![(None, oids)];
        }
        let mut groups: Vec<(Option<Actor>, Vec<pg_sys::Oid>)> = Vec::new();
        for (actor, oid) in owned {
            match groups.iter_mut().find(|(other, _)| *other == Some(actor)) {
                Some((_, members)) => members.push(oid),
                None => groups.push((Some(actor), vec![oid])),
            }
        }
        groups
    }
}

/// # Safety
/// In a transaction with an active snapshot.
unsafe fn command(oids: &[pg_sys::Oid], cascade: bool, restart_sequences: bool, lock: pg_sys::LOCKMODE) {
    // SAFETY: the relations are opened with the lock that TRUNCATE takes, and closed again with the locks kept.
    unsafe {
        let (mut relations, mut list, mut logged) = (
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            core::ptr::null_mut(),
        );
        for oid in oids {
            let relation = pg_sys::table_open(*oid, lock);
            relations = pg_sys::lappend(relations, relation.cast());
            list = pg_sys::lappend_oid(list, *oid);
            if version::is_logically_logged(relation) {
                logged = pg_sys::lappend_oid(logged, *oid);
            }
        }
        let behavior = if cascade {
            pg_sys::DropBehavior::DROP_CASCADE
        } else {
            pg_sys::DropBehavior::DROP_RESTRICT
        };
        let opened: Vec<pg_sys::Relation> = (0..oids.len())
            .map(|index| pg_sys::list_nth(relations, index as i32).cast())
            .collect();
        version::truncate(
            relations,
            list,
            logged,
            behavior,
            restart_sequences,
            Actor::switches(),
        );
        for relation in opened {
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
        }
        pg_sys::CommandCounterIncrement();
    }
}
