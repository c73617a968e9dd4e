//! Acting as the owner of the table whose rows change.
//!
//! A table's triggers, defaults, constraints, index expressions and types' functions are its owner's code. The worker
//! is a superuser, so that whoever owns a replicated table would be one too, if that code ran as the worker. So it runs
//! as the owner, as in native replication from PostgreSQL 16 on: the user is switched for each row (two assignments),
//! and unless the owner could become the worker's user by SET ROLE anyway, within a *security-restricted operation*,
//! in which no role can be taken on and nothing left behind that would run later (temporary tables, cursors WITH HOLD).
//! Settings that such code changes are taken back after each row. An error's abort undoes all of it.
//!
//! One thing would be lost that way: the server queues no deferred trigger in a restricted operation, since it would
//! fire in the commit, as the worker. `deferred.rs` queues those of replicated tables all the same, and they are fired
//! here, before the commit, as the owner.
//!
//! Policies of row security cannot be applied to changes that come row by row; where they apply to the acting user, the
//! change is refused, as native replication does.

use std::cell::Cell;
use std::ffi::c_int;

use pg_ha_replication::subscription_options::RunAs;
use pgrx::pg_sys;

use super::ApplyError;
use crate::postgres::{values, version};

// Assignments that cannot fail: declared here to be called without the guard that pgrx puts around each call, which
// costs more than they do, once for each row.
unsafe extern "C-unwind" {
    fn GetUserIdAndSecContext(user: *mut pg_sys::Oid, context: *mut c_int);
    fn SetUserIdAndSecContext(user: pg_sys::Oid, context: c_int);
    fn NewGUCNestLevel() -> c_int;
}

thread_local! {
    // A worker serves one subscription, in one thread.
    static RUN_AS: Cell<RunAs> = const { Cell::new(RunAs::TableOwner) };
    /// For whom the open transaction may have queued deferred triggers.
    static DEFERRED: Cell<Deferred> = const { Cell::new(Deferred::Nothing) };
}

#[derive(Clone, Copy)]
enum Deferred {
    Nothing,
    Of(Actor),
    /// Of several, among them restricted ones; only where the server notes for whom it queues.
    Mixed(Actor),
}

/// As whom the changes of a table are applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Actor {
    user: pg_sys::Oid,
    /// Its code must be kept from the worker's rights.
    pub(super) restricted: bool,
}

/// What is done to a table, always by somebody who may read it too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
}

/// What the acting user may do with a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    held: pg_sys::AclMode,
    /// Policies apply to it.
    row_security: bool,
}

/// What was before, to be given back by [`Acting::end`] (an abort does it too).
#[must_use]
pub(crate) struct Acting {
    user: pg_sys::Oid,
    context: c_int,
    settings: c_int,
}

/// Sets as whom this worker applies changes.
pub(crate) fn run_as(role: RunAs) {
    RUN_AS.set(role);
}

impl Actor {
    /// The worker itself.
    fn worker() -> Actor {
        Actor {
            // SAFETY: a variable of this process.
            user: unsafe { pg_sys::GetSessionUserId() },
            restricted: false,
        }
    }

    /// For tables of this owner. In a transaction.
    pub(super) fn for_owner(owner: pg_sys::Oid) -> Actor {
        let worker = Actor::worker();
        if RUN_AS.get() == RunAs::SubscriptionOwner || owner == worker.user {
            return worker;
        }
        Actor {
            user: owner,
            // SAFETY: catalog look-ups.
            restricted: !unsafe { version::can_set_role(owner, worker.user) },
        }
    }

    /// Whether owners are acted as at all.
    pub(super) fn switches() -> bool {
        RUN_AS.get() == RunAs::TableOwner
    }

    /// Begins to act. Code of the user must not be run before.
    pub(super) fn begin(self) -> Acting {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: in a transaction, whose abort takes back both the user and the level of settings.
        unsafe {
            GetUserIdAndSecContext(&mut user, &mut context);
            let restriction = if self.restricted {
                pg_sys::SECURITY_RESTRICTED_OPERATION as c_int
            } else {
                0
            };
            SetUserIdAndSecContext(self.user, restriction);
            Acting {
                user,
                context,
                settings: NewGUCNestLevel(),
            }
        }
    }

    /// What it may do with a relation. In a transaction.
    pub(super) fn rights(self, relation: pg_sys::Oid) -> Rights {
        let all = pg_sys::ACL_SELECT
            | pg_sys::ACL_INSERT
            | pg_sys::ACL_UPDATE
            | pg_sys::ACL_DELETE
            | pg_sys::ACL_TRUNCATE;
        // SAFETY: catalog look-ups.
        unsafe {
            Rights {
                held: pg_sys::pg_class_aclmask(
                    relation,
                    self.user,
                    pg_sys::AclMode::from(all),
                    pg_sys::AclMaskHow::ACLMASK_ALL,
                ),
                row_security: pg_sys::check_enable_rls(relation, self.user, true)
                    == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32,
            }
        }
    }

    fn name(self) -> String {
        // SAFETY: a catalog look-up; the result is null or nul-terminated.
        unsafe {
            let name = pg_sys::GetUserNameFromId(self.user, true);
            if name.is_null() {
                self.user.to_u32().to_string()
            } else {
                values::identifier(name)
            }
        }
    }

    /// A table with deferred triggers that fire is about to change.
    ///
    /// # Errors
    /// The server could not tell afterwards for whom they are to be fired.
    pub(super) fn may_defer(self, table: &str) -> Result<(), ApplyError> {
        let now = match DEFERRED.get() {
            Deferred::Nothing => Deferred::Of(self),
            Deferred::Of(other) if other == self => return Ok(()),
            Deferred::Of(other) | Deferred::Mixed(other) if other.restricted || self.restricted => {
                if !version::NOTES_WHO_DEFERS {
                    return Err(ApplyError::DeferredOwners {
                        table: table.to_owned(),
                        user: self.name(),
                        other: other.name(),
                    });
                }
                Deferred::Mixed(if other.restricted { other } else { self })
            }
            other => other,
        };
        DEFERRED.set(now);
        Ok(())
    }
}

impl Acting {
    /// Is again who it was before, with the settings of before.
    pub(crate) fn end(self) {
        // SAFETY: pairs with `Actor::begin`, in the same transaction.
        unsafe {
            pg_sys::AtEOXact_GUC(false, self.settings);
            SetUserIdAndSecContext(self.user, self.context);
        }
    }
}

impl Rights {
    /// Whether the actor may do this to the table, without policies in the way.
    pub(super) fn check(self, actor: Actor, table: &str, operation: Operation) -> Result<(), ApplyError> {
        let (wanted, what) = match operation {
            Operation::Insert => (pg_sys::ACL_INSERT | pg_sys::ACL_SELECT, "INSERT and SELECT"),
            Operation::Update => (pg_sys::ACL_UPDATE | pg_sys::ACL_SELECT, "UPDATE and SELECT"),
            Operation::Delete => (pg_sys::ACL_DELETE | pg_sys::ACL_SELECT, "DELETE and SELECT"),
            Operation::Truncate => (pg_sys::ACL_TRUNCATE, "TRUNCATE"),
        };
        let wanted = pg_sys::AclMode::from(wanted);
        if self.held & wanted != wanted {
            return Err(ApplyError::NotAllowed {
                table: table.to_owned(),
                user: actor.name(),
                what,
            });
        }
        if self.row_security {
            return Err(ApplyError::RowSecurity {
                table: table.to_owned(),
                user: actor.name(),
            });
        }
        Ok(())
    }
}

/// Runs something as the owner of a table that is there, or as the worker where the subscription is set so. In a
/// transaction.
pub(crate) fn as_owner_of<T>(
    relation: pg_sys::Oid,
    table: &str,
    operation: Operation,
    work: impl FnOnce() -> T,
) -> Result<T, ApplyError> {
    // SAFETY: a catalog look-up.
    let owner = unsafe { owner_of(relation) }.ok_or_else(|| ApplyError::MissingTable(table.to_owned()))?;
    let actor = Actor::for_owner(owner);
    actor.rights(relation).check(actor, table, operation)?;
    let acting = actor.begin();
    let result = work();
    acting.end();
    Ok(result)
}

/// # Safety
/// In a transaction.
unsafe fn owner_of(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up, released again.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID as i32,
            pg_sys::Datum::from(relation),
        );
        if tuple.is_null() {
            return None;
        }
        let form: *const pg_sys::FormData_pg_class = pg_sys::GETSTRUCT(tuple).cast();
        let owner = (*form).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}

/// With every new transaction.
pub(super) fn forget_deferred() {
    DEFERRED.set(Deferred::Nothing);
}

/// Fires the deferred triggers: those of owners that must not have the worker's rights as the owner, all others as the
/// commit would. Just before every commit (or PREPARE) of applied changes, and before the position of the origin is set:
/// from 16 on a subtransaction that a trigger rolls back would advance the origin there, whatever became of the rest.
/// What they raise ends the transaction.
pub(crate) fn fire_deferred() {
    let acting = match DEFERRED.replace(Deferred::Nothing) {
        Deferred::Of(actor) | Deferred::Mixed(actor) if actor.restricted => Some(actor.begin()),
        _ => None,
    };
    // SAFETY: in a transaction, outside of any query, as in the commit that follows.
    unsafe { pg_sys::AfterTriggerFireDeferred() };
    if let Some(acting) = acting {
        acting.end();
    }
}

/// Runs something as nobody's code could be run: as the worker, without restriction.
///
/// # Safety
/// Within [`Actor::begin`] and [`Acting::end`]; the work must run no code of users.
pub(super) unsafe fn unrestricted(work: impl FnOnce()) {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: given back right after; an abort would do it too.
    unsafe {
        GetUserIdAndSecContext(&mut user, &mut context);
        SetUserIdAndSecContext(pg_sys::GetSessionUserId(), 0);
        work();
        SetUserIdAndSecContext(user, context);
    }
}
