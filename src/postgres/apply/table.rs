//! A target table, opened for the current transaction, and the three changes of a row.

use pg_ha_replication::codec::{OldKind, Tuple};
use pg_ha_replication::conflict::{Action, Decision};
use pgrx::pg_sys;

use super::acting::{Acting, Actor, Operation};
use super::compose::datum_of;
use super::deferred::{self, Deferred};
use super::find::{self, OpenIndex};
use super::partitioned::Routed;
use super::target::{Key, Target};
use super::{ApplyError, Found};
use crate::postgres::version;

/// Everything here is allocated in the transaction's memory and released by [`OpenTable::close`], or by the abort of
/// the transaction.
pub(crate) struct OpenTable {
    pub(super) relation: pg_sys::Relation,
    pub(super) estate: *mut pg_sys::EState,
    pub(super) result: *mut pg_sys::ResultRelInfo,
    pub(super) epq: *mut pg_sys::EPQState,
    /// The row as it will be.
    pub(super) new_row: *mut pg_sys::TupleTableSlot,
    /// The row as it stands here.
    pub(super) local_row: *mut pg_sys::TupleTableSlot,
    /// What to look for, when whole rows are compared.
    pub(super) search_row: *mut pg_sys::TupleTableSlot,
    /// What rows are found by, from the first search on.
    index: Option<OpenIndex>,
    pub(super) defaults: Vec<(usize, *mut pg_sys::ExprState)>,
    /// A column whose value neither came nor stood here, by its place among those that come; for who wants to know.
    pub(super) lacks: Option<usize>,
    /// As whom its rows are changed.
    actor: Actor,
    has_triggers: bool,
    /// Those of them that are kept apart.
    pub(super) deferred: Option<Deferred>,
    /// Updates may go straight to the table: nothing of the table's definition wants to see them first.
    direct_updates: bool,
    pub(super) indexes_open: bool,
}

/// Whether an insert looks for the row that it may collide with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    First,
    /// It does not, which saves two scans of the index: a unique violation then says that the row is there, and the
    /// transaction has to be tried again with a look.
    Never,
}

/// A change of one row, as it came.
pub(crate) enum RowChange<'t, 'a> {
    Insert(&'t Tuple<'a>, Look),
    Update(Option<(OldKind, &'t Tuple<'a>)>, &'t Tuple<'a>),
    Delete(OldKind, &'t Tuple<'a>),
}

impl<'t, 'a> RowChange<'t, 'a> {
    /// For messages: "INSERT into" and the like.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            RowChange::Insert(..) => "INSERT into",
            RowChange::Update(..) => "UPDATE of",
            RowChange::Delete(..) => "DELETE from",
        }
    }

    /// The old and the new row, as far as they came.
    pub(crate) fn rows(&self) -> (Option<(OldKind, &'t Tuple<'a>)>, Option<&'t Tuple<'a>>) {
        match *self {
            RowChange::Insert(new, _) => (None, Some(new)),
            RowChange::Update(old, new) => (old, Some(new)),
            RowChange::Delete(kind, old) => (Some((kind, old)), None),
        }
    }
}

/// What became of an update.
pub(super) enum Updated {
    Done(Decision),
    /// The row is missing and to be inserted, in a partition that has to be found.
    ToInsert(Decision),
    /// The row was deleted here, and what it becomes stands in the slot of the table above.
    Moves(Decision),
}

/// To be given back to [`OpenTable::leave`].
#[must_use]
pub(super) struct Entered {
    memory: pg_sys::MemoryContext,
    acting: Acting,
}

impl OpenTable {
    /// Opens the table and an executor state, in the current transaction. `locked`: it has been locked already
    /// ([`super::lock_table`]).
    ///
    /// # Errors
    /// Its deferred triggers and those of another owner cannot be told apart.
    pub(crate) fn open(target: &Target, locked: bool) -> Result<OpenTable, ApplyError> {
        let acting = target.actor.begin();
        let opened = Self::open_as_owner(target, locked);
        acting.end();
        opened
    }

    fn open_as_owner(target: &Target, locked: bool) -> Result<OpenTable, ApplyError> {
        // SAFETY: in a transaction; the objects belong to the state's memory context, which lives as long as the
        // transaction does.
        unsafe {
            let lock = if locked {
                pg_sys::NoLock
            } else {
                pg_sys::RowExclusiveLock
            };
            let relation = pg_sys::table_open(target.oid, lock as i32);
            // Planning a default may run a function that reads.
            let plans = !target.defaulted.is_empty();
            if plans {
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            }
            let estate = version::executor_state(relation);
            let previous = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
            let result: *mut pg_sys::ResultRelInfo =
                pg_sys::palloc0(core::mem::size_of::<pg_sys::ResultRelInfo>()).cast();
            (*result).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            pg_sys::InitResultRelInfo(result, relation, 1, core::ptr::null_mut(), 0);
            fire_as_replica((*result).ri_TrigDesc);
            let defers = !target.partitioned && deferred::settle((*result).ri_TrigDesc);
            let deferred =
                (defers && target.actor.restricted).then(|| Deferred::take_from((*result).ri_TrigDesc));
            if defers {
                target.actor.may_defer(&target.name)?;
            }
            // Triggers that fire at the end of the statement find the table here instead of opening it again.
            (*estate).es_opened_result_relations =
                pg_sys::lappend((*estate).es_opened_result_relations, result.cast());
            let epq: *mut pg_sys::EPQState = pg_sys::palloc0(core::mem::size_of::<pg_sys::EPQState>()).cast();
            version::eval_plan_qual_init(epq, estate);
            let desc = (*relation).rd_att;
            let virtual_row =
                || pg_sys::ExecInitExtraTupleSlot(estate, desc, &raw const pg_sys::TTSOpsVirtual);
            let new_row = virtual_row();
            let search_row = if matches!(target.key, Key::Full) {
                virtual_row()
            } else {
                core::ptr::null_mut()
            };
            let local_row = pg_sys::table_slot_create(relation, &raw mut (*estate).es_tupleTable);
            let defaults = target
                .defaulted
                .iter()
                .filter_map(|column| {
                    let expression = pg_sys::build_column_default(relation, *column as i32 + 1);
                    (!expression.is_null()).then(|| {
                        let planned = pg_sys::expression_planner(expression.cast());
                        (*column, pg_sys::ExecInitExpr(planned, core::ptr::null_mut()))
                    })
                })
                .collect();
            pg_sys::MemoryContextSwitchTo(previous);
            if plans {
                pg_sys::PopActiveSnapshot();
            }
            // Those of a partitioned table fire for its partitions, which have copies of their own.
            let has_triggers = !target.partitioned && !(*relation).trigdesc.is_null();
            let constraints = (*desc).constr;
            let generates = !constraints.is_null() && (*constraints).has_generated_stored;
            Ok(OpenTable {
                relation,
                estate,
                result,
                epq,
                new_row,
                local_row,
                search_row,
                index: None,
                defaults,
                lacks: None,
                actor: target.actor,
                has_triggers,
                deferred,
                direct_updates: !has_triggers
                    && !generates
                    && !target.partitioned
                    && matches!(target.key, Key::Index { .. }),
                indexes_open: false,
            })
        }
    }

    /// Closes everything; the lock on the table stays until the end of the transaction.
    pub(crate) fn close(self) {
        // SAFETY: each object is closed once, in the order PostgreSQL's own worker does it.
        unsafe {
            if let Some(index) = self.index {
                index.close();
            }
            pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
            if self.indexes_open {
                pg_sys::ExecCloseIndices(self.result);
            }
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::FreeExecutorState(self.estate);
        }
    }

    /// Applies one change. `judge` is told what stands where it goes and decides; it may be asked again when that
    /// changed meanwhile.
    ///
    /// # Errors
    /// What the change cannot be applied to; PostgreSQL's own errors come as panics.
    pub(crate) fn apply(
        &mut self,
        target: &Target,
        change: &RowChange<'_, '_>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
        // SAFETY: in a transaction; the snapshot is popped and the per-tuple memory reset before return. On an
        // error both are released by the abort.
        unsafe {
            let entered = self.enter();
            let outcome = match change {
                RowChange::Insert(new, look) => self.insert(target, new, *look, None, judge),
                RowChange::Update(old, new) => match self.update(target, *old, new, None, judge) {
                    Ok(Updated::Done(decision) | Updated::ToInsert(decision) | Updated::Moves(decision)) => {
                        Ok(decision)
                    }
                    Err(error) => Err(error),
                },
                RowChange::Delete(kind, old) => self.delete(target, *kind, old, judge),
            };
            self.leave(entered);
            outcome
        }
    }

    /// Before a change.
    ///
    /// # Safety
    /// In a transaction; every call is followed by [`Self::leave`], or by the abort.
    pub(super) unsafe fn enter(&mut self) -> Entered {
        // SAFETY: the state lives as long as the open table.
        unsafe {
            let acting = self.actor.begin();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            (*self.estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
            let memory = (*per_tuple_context(self.estate)).ecxt_per_tuple_memory;
            let previous = pg_sys::MemoryContextSwitchTo(memory);
            if self.has_triggers {
                pg_sys::AfterTriggerBeginQuery();
            }
            Entered {
                memory: previous,
                acting,
            }
        }
    }

    /// After a change.
    ///
    /// # Safety
    /// Once after each [`Self::enter`].
    pub(super) unsafe fn leave(&mut self, entered: Entered) {
        // SAFETY: undoes what `enter` did, in reverse.
        unsafe {
            if self.has_triggers {
                pg_sys::AfterTriggerEndQuery(self.estate);
            }
            pg_sys::ExecClearTuple(self.local_row);
            pg_sys::ExecClearTuple(self.new_row);
            pg_sys::PopActiveSnapshot();
            pg_sys::MemoryContextSwitchTo(entered.memory);
            pg_sys::MemoryContextReset((*per_tuple_context(self.estate)).ecxt_per_tuple_memory);
            pg_sys::CommandCounterIncrement();
        }
        entered.acting.end();
    }

    /// Inserts a row; `routed`: as it stands composed for the table above.
    ///
    /// # Safety
    /// Within [`Self::apply`].
    pub(super) unsafe fn insert(
        &mut self,
        target: &Target,
        new: &Tuple<'_>,
        look: Look,
        routed: Option<&Routed<'_>>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
        target.check(Operation::Insert)?;
        // SAFETY: the slots belong to the open table.
        unsafe {
            let found = match target.key {
                Key::Index { .. } if look == Look::First => self.find(target, OldKind::Full, new, true)?,
                // Without a key there is nothing that an insert could collide with.
                Key::Index { .. } | Key::Full | Key::None => Found::Missing,
            };
            let decision = judge(found);
            let stands = !matches!(found, Found::Missing);
            self.tell(target, &decision, stands, (OldKind::Full, new), Some(new));
            match decision.action {
                Action::Skip => {}
                Action::Insert => {
                    let lacks = match routed {
                        Some(routed) => routed.lacks,
                        None => {
                            self.lacks = None;
                            self.fill_from_remote(target, new, false)?;
                            self.lacks
                        }
                    };
                    if let Some(column) = lacks {
                        return Err(target.incomplete(column));
                    }
                    match routed {
                        Some(routed) => self.insert_routed(routed),
                        None => self.insert_new_row(),
                    }
                }
                Action::Update => {
                    self.fill_from_remote(target, new, true)?;
                    self.update_locked_row();
                }
                Action::Delete => self.delete_locked_row(),
            }
            Ok(decision)
        }
    }

    /// Updates a row. In a partition, with the slot of the table above: a row that does not belong here any more is
    /// deleted, and what it becomes is put there.
    ///
    /// # Safety
    /// Within [`Self::apply`].
    pub(super) unsafe fn update(
        &mut self,
        target: &Target,
        old: Option<(OldKind, &Tuple<'_>)>,
        new: &Tuple<'_>,
        routed: Option<&Routed<'_>>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Updated, ApplyError> {
        let (kind, key_row) = old.unwrap_or((OldKind::Full, new));
        let mut direct = self.direct_updates;
        target.check(Operation::Update)?;
        // SAFETY: the slots belong to the open table.
        unsafe {
            loop {
                let found = self.find(target, kind, key_row, !direct)?;
                let decision = judge(found);
                let stands = !matches!(found, Found::Missing);
                self.tell(target, &decision, stands, (kind, key_row), Some(new));
                match decision.action {
                    Action::Skip | Action::Delete => {}
                    Action::Insert if routed.is_some() => return Ok(Updated::ToInsert(decision)),
                    Action::Insert => {
                        self.lacks = None;
                        self.fill_from_remote(target, new, false)?;
                        if let Some(column) = self.lacks {
                            return Err(target.incomplete(column));
                        }
                        self.insert_new_row();
                    }
                    Action::Update => {
                        self.fill_from_remote(target, new, true)?;
                        if let Some(routed) = routed
                            && !pg_sys::ExecPartitionCheck(self.result, self.new_row, self.estate, false)
                        {
                            if direct {
                                // It has to be locked to be moved: look and judge again.
                                direct = false;
                                continue;
                            }
                            routed.take(self.new_row);
                            self.delete_locked_row();
                            return Ok(Updated::Moves(decision));
                        }
                        if !direct {
                            self.update_locked_row();
                        } else if !self.update_row() {
                            // Somebody changed the row since it was found: look and judge again.
                            continue;
                        }
                    }
                }
                return Ok(Updated::Done(decision));
            }
        }
    }

    /// # Safety
    /// Within [`Self::apply`].
    pub(super) unsafe fn delete(
        &mut self,
        target: &Target,
        kind: OldKind,
        old: &Tuple<'_>,
        judge: &mut dyn FnMut(Found) -> Decision,
    ) -> Result<Decision, ApplyError> {
        target.check(Operation::Delete)?;
        // SAFETY: the slots belong to the open table.
        unsafe {
            let found = self.find(target, kind, old, true)?;
            let decision = judge(found);
            let stands = !matches!(found, Found::Missing);
            self.tell(target, &decision, stands, (kind, old), None);
            if decision.action == Action::Delete {
                self.delete_locked_row();
            }
            Ok(decision)
        }
    }

    /// Finds the row with the key of `row`, and locks it if wanted; it then stands in `local_row`.
    ///
    /// # Safety
    /// Within [`Self::apply`].
    pub(super) unsafe fn find(
        &mut self,
        target: &Target,
        kind: OldKind,
        row: &Tuple<'_>,
        lock: bool,
    ) -> Result<Found, ApplyError> {
        // SAFETY: keys are decoded into the per-tuple memory, which outlives the search.
        unsafe {
            let found = match &target.key {
                Key::Index {
                    oid,
                    columns,
                    scan_keys,
                } if !target.partitioned => {
                    let index = match &mut self.index {
                        Some(index) => index,
                        none => {
                            let previous = pg_sys::MemoryContextSwitchTo((*self.estate).es_query_cxt);
                            let opened = OpenIndex::open(self.relation, *oid, *scan_keys, columns.len());
                            pg_sys::MemoryContextSwitchTo(previous);
                            none.insert(opened)
                        }
                    };
                    index.clear_keys();
                    for (position, value) in row.columns().enumerate() {
                        // A key row has the key columns alone.
                        let position = match kind {
                            OldKind::Full => position,
                            OldKind::Key => target.key_columns.get(position).copied().unwrap_or(usize::MAX),
                        };
                        if let Some(place) = columns.iter().position(|remote| *remote == position) {
                            index.set_key(place, datum_of(target, &target.columns[position], &value)?);
                        }
                    }
                    // The scan keeps what it allocates from row to row.
                    let previous = pg_sys::MemoryContextSwitchTo((*self.estate).es_query_cxt);
                    let found = find::by_index(self.relation, index, self.local_row, lock);
                    pg_sys::MemoryContextSwitchTo(previous);
                    found
                }
                Key::Full => {
                    self.fill(target, row, self.search_row, false)?;
                    find::by_whole_row(self.relation, self.search_row, self.local_row, &target.columns)
                }
                _ => return Err(target.no_key()),
            };
            Ok(if found {
                find::version_of(self.local_row)
            } else {
                Found::Missing
            })
        }
    }
}

/// Adapts a table's own copy of its triggers to changes that come from elsewhere: which columns an update set is not
/// known, so that triggers of certain columns fire at every update; and deferrable unique constraints are checked also
/// under `session_replication_role = replica`, or duplicates would stand in a unique index.
///
/// # Safety
/// `triggers` is null or a copy that nobody else uses (InitResultRelInfo makes one).
pub(super) unsafe fn fire_as_replica(triggers: *mut pg_sys::TriggerDesc) {
    // SAFETY: the caller's promise; the array has as many members as the descriptor says.
    unsafe {
        if triggers.is_null() {
            return;
        }
        for index in 0..(*triggers).numtriggers as usize {
            let trigger = &mut *(*triggers).triggers.add(index);
            trigger.tgnattr = 0;
            if trigger.tgfoid.to_u32() == pg_sys::F_UNIQUE_KEY_RECHECK {
                trigger.tgenabled = pg_sys::TRIGGER_FIRES_ALWAYS as core::ffi::c_char;
            }
        }
    }
}

/// # Safety
/// `estate` is valid.
pub(super) unsafe fn per_tuple_context(estate: *mut pg_sys::EState) -> *mut pg_sys::ExprContext {
    // SAFETY: made at the first call, then kept in the state.
    unsafe {
        let context = (*estate).es_per_tuple_exprcontext;
        if context.is_null() {
            pg_sys::MakePerTupleExprContext(estate)
        } else {
            context
        }
    }
}
