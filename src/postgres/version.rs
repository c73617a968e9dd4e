//! The one place that knows how PostgreSQL 15 to 18 differ. Everything here has the same signature on all of them.

use pgrx::pg_sys;

/// Column `index` (from 0) of a tuple descriptor.
///
/// # Safety
/// `desc` is a valid descriptor with more than `index` columns.
pub(crate) unsafe fn attribute<'a>(
    desc: pg_sys::TupleDesc,
    index: usize,
) -> &'a pg_sys::FormData_pg_attribute {
    #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
    // SAFETY: the flexible array at the end of the descriptor has natts members.
    unsafe {
        let natts = (*desc).natts as usize;
        &(*desc).attrs.as_slice(natts)[index]
    }
    #[cfg(feature = "pg18")]
    // SAFETY: TupleDescAttr computes the address of a member that exists.
    unsafe {
        &*pg_sys::TupleDescAttr(desc, index as i32)
    }
}

/// The old and the new row of a decoded change; null where the change has none.
///
/// # Safety
/// `change` is an insert, update or delete of the reorder buffer.
pub(crate) unsafe fn change_rows(
    change: *mut pg_sys::ReorderBufferChange,
) -> (pg_sys::HeapTuple, pg_sys::HeapTuple) {
    // SAFETY: for these actions the union holds `tp`.
    let tp = unsafe { (*change).data.tp };
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    {
        let row = |buffer: *mut pg_sys::ReorderBufferTupleBuf| {
            if buffer.is_null() {
                core::ptr::null_mut()
            } else {
                // SAFETY: a non-null buffer is alive for as long as its change.
                unsafe { &raw mut (*buffer).tuple }
            }
        };
        (row(tp.oldtuple), row(tp.newtuple))
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    {
        (tp.oldtuple, tp.newtuple)
    }
}

/// Makes the current process the user of a replication origin.
///
/// # Safety
/// Not within a replication origin session already; in a transaction or with no need of one.
pub(crate) unsafe fn origin_session_setup(origin: pg_sys::RepOriginId) {
    #[cfg(feature = "pg15")]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::replorigin_session_setup(origin);
    }
    #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
    // SAFETY: the caller's promise; 0 = nobody else's session is joined.
    unsafe {
        pg_sys::replorigin_session_setup(origin, 0);
    }
}

/// Opens a replication connection for logical streaming with the server's libpqwalreceiver.
///
/// # Safety
/// libpqwalreceiver is loaded and the arguments are nul-terminated; `error` receives a palloc'd message.
pub(crate) unsafe fn walrcv_connect(
    functions: &pg_sys::WalReceiverFunctionsType,
    conninfo: *const core::ffi::c_char,
    application_name: *const core::ffi::c_char,
    error: *mut *mut core::ffi::c_char,
) -> *mut pg_sys::WalReceiverConn {
    let Some(connect) = functions.walrcv_connect else {
        return core::ptr::null_mut();
    };
    #[cfg(feature = "pg15")]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| connect(conninfo, true, application_name, error))
    }
    #[cfg(feature = "pg16")]
    // SAFETY: the caller's promise. must_use_password=false: the DSN was given by a superuser.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| connect(conninfo, true, false, application_name, error))
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: the caller's promise. must_use_password=false: the DSN was given by a superuser.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| connect(conninfo, true, true, false, application_name, error))
    }
}

/// Starts an index scan for a fixed set of keys.
///
/// # Safety
/// Both relations are open and locked, the snapshot lives as long as the scan.
pub(crate) unsafe fn index_beginscan(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: i32,
) -> pg_sys::IndexScanDesc {
    #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::index_beginscan(heap, index, snapshot, keys, 0)
    }
    #[cfg(feature = "pg18")]
    // SAFETY: the caller's promise; no instrumentation wanted.
    unsafe {
        pg_sys::index_beginscan(heap, index, snapshot, core::ptr::null_mut(), keys, 0)
    }
}

/// An executor state with a one-entry range table for `relation`, as PostgreSQL's own apply worker makes it.
///
/// # Safety
/// In a transaction, with the relation open; the state is freed by FreeExecutorState.
pub(crate) unsafe fn executor_state(relation: pg_sys::Relation) -> *mut pg_sys::EState {
    // SAFETY: nodes are made in the current memory context and owned by the state.
    unsafe {
        let estate = pg_sys::CreateExecutorState();
        let previous = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
        let entry =
            pgrx::PgBox::<pg_sys::RangeTblEntry>::alloc_node(pg_sys::NodeTag::T_RangeTblEntry).into_pg();
        (*entry).rtekind = pg_sys::RTEKind::RTE_RELATION;
        (*entry).relid = (*relation).rd_id;
        (*entry).relkind = (*(*relation).rd_rel).relkind;
        (*entry).rellockmode = pg_sys::AccessShareLock as i32;
        let table = pg_sys::lappend(core::ptr::null_mut(), entry.cast());
        #[cfg(feature = "pg15")]
        pg_sys::ExecInitRangeTable(estate, table);
        #[cfg(any(feature = "pg16", feature = "pg17"))]
        {
            let mut permissions = core::ptr::null_mut();
            pg_sys::addRTEPermissionInfo(&mut permissions, entry);
            pg_sys::ExecInitRangeTable(estate, table, permissions);
        }
        #[cfg(feature = "pg18")]
        {
            let mut permissions = core::ptr::null_mut();
            pg_sys::addRTEPermissionInfo(&mut permissions, entry);
            pg_sys::ExecInitRangeTable(estate, table, permissions, pg_sys::bms_make_singleton(1));
        }
        pg_sys::MemoryContextSwitchTo(previous);
        estate
    }
}

/// Initialises an EvalPlanQual state that is never used for rechecks.
///
/// # Safety
/// `epq` points to writable memory that outlives its use, `estate` is valid.
pub(crate) unsafe fn eval_plan_qual_init(epq: *mut pg_sys::EPQState, estate: *mut pg_sys::EState) {
    #[cfg(feature = "pg15")]
    // SAFETY: the caller's promise; no plan, no auxiliary row marks.
    unsafe {
        pg_sys::EvalPlanQualInit(epq, estate, core::ptr::null_mut(), core::ptr::null_mut(), -1);
    }
    #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
    // SAFETY: the caller's promise; no plan, no auxiliary row marks, no result relations to track.
    unsafe {
        pg_sys::EvalPlanQualInit(
            epq,
            estate,
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            -1,
            core::ptr::null_mut(),
        );
    }
}

/// When a decoded transaction committed (TimestampTz).
///
/// # Safety
/// `txn` is a transaction whose commit is being replayed.
pub(crate) unsafe fn commit_time(txn: *mut pg_sys::ReorderBufferTXN) -> i64 {
    // SAFETY: for a commit the union holds `commit_time`.
    #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17", feature = "pg18"))]
    unsafe {
        (*txn).xact_time.commit_time
    }
}

/// The primary key's index, if rows can be found by it; InvalidOid if not (none, deferrable, invalid).
///
/// # Safety
/// `relation` is open.
pub(crate) unsafe fn primary_key_index(relation: pg_sys::Relation) -> pg_sys::Oid {
    #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::RelationGetPrimaryKeyIndex(relation)
    }
    #[cfg(feature = "pg18")]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::RelationGetPrimaryKeyIndex(relation, false)
    }
}

/// Whether [`truncate`] can run triggers as the tables' owners by itself.
pub(crate) const TRUNCATES_AS_OWNER: bool = cfg!(not(feature = "pg15"));

/// Truncates open relations (ExecuteTruncateGuts); `as_owner`: their triggers run as their owners, from 16 on.
///
/// # Safety
/// Matching lists of open relations and their oids, in a transaction.
pub(crate) unsafe fn truncate(
    relations: *mut pg_sys::List,
    oids: *mut pg_sys::List,
    logged: *mut pg_sys::List,
    behavior: pg_sys::DropBehavior::Type,
    restart_sequences: bool,
    as_owner: bool,
) {
    #[cfg(feature = "pg15")]
    // SAFETY: the caller's promise.
    unsafe {
        let _ = as_owner;
        pg_sys::ExecuteTruncateGuts(relations, oids, logged, behavior, restart_sequences);
    }
    #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::ExecuteTruncateGuts(relations, oids, logged, behavior, restart_sequences, as_owner);
    }
}

/// Whether changes of the table carry what logical decoding needs (RelationIsLogicallyLogged).
///
/// # Safety
/// `relation` is open and no system catalog.
pub(crate) unsafe fn is_logically_logged(relation: pg_sys::Relation) -> bool {
    // SAFETY: reads a setting and the relation's own row.
    unsafe {
        pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_LOGICAL as i32
            && (*(*relation).rd_rel).relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
    }
}

/// The signal handlers of a worker: SIGTERM asks it to end (at the next check for interrupts), SIGHUP to read its
/// configuration again.
///
/// # Safety
/// At the start of a worker, with signals blocked.
pub(crate) unsafe fn install_worker_signals() {
    // pgrx wraps these in functions that guard against errors, which cannot be handlers.
    unsafe extern "C-unwind" {
        fn die(signal: core::ffi::c_int);
        fn SignalHandlerForConfigReload(signal: core::ffi::c_int);
    }
    // SAFETY: both handlers only set flags and the latch.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        {
            pg_sys::pqsignal(libc::SIGTERM, Some(die));
            pg_sys::pqsignal(libc::SIGHUP, Some(SignalHandlerForConfigReload));
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::pqsignal_be(libc::SIGTERM, Some(die));
            pg_sys::pqsignal_be(libc::SIGHUP, Some(SignalHandlerForConfigReload));
        }
    }
}

/// What a successful update wants done to the indexes.
#[derive(Clone, Copy)]
pub(crate) struct Updated {
    /// None: the new row version needs no entries of its own (heap-only tuple).
    pub(crate) new_index_entries: Option<IndexEntries>,
}

/// Which indexes need an entry for a new row version.
#[derive(Clone, Copy)]
pub(crate) enum IndexEntries {
    All,
    /// Only block-range ones and the like (16 and later).
    #[cfg_attr(
        feature = "pg15",
        allow(dead_code, reason = "15 knows no summarizing indexes")
    )]
    Summarizing,
}

/// Updates the row in `old`; None when that version is no longer current. Waits for whoever is changing it.
///
/// # Safety
/// In a transaction with an active snapshot; both slots belong to the open table.
pub(crate) unsafe fn update_tuple(
    relation: pg_sys::Relation,
    old: *mut pg_sys::TupleTableSlot,
    new: *mut pg_sys::TupleTableSlot,
) -> Option<Updated> {
    let mut failure = pg_sys::TM_FailureData::default();
    let mut lock_mode = pg_sys::LockTupleMode::LockTupleExclusive;
    // SAFETY: the caller's promise; the access method was checked to offer updates by being a table's.
    unsafe {
        #[cfg(feature = "pg15")]
        let mut indexes = false;
        #[cfg(not(feature = "pg15"))]
        let mut indexes = pg_sys::TU_UpdateIndexes::TU_None;
        let result = pg_sys::table_tuple_update(
            relation,
            &raw mut (*old).tts_tid,
            new,
            pg_sys::GetCurrentCommandId(true),
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            true,
            &mut failure,
            &mut lock_mode,
            &mut indexes,
        );
        #[cfg(feature = "pg15")]
        let new_index_entries = indexes.then_some(IndexEntries::All);
        #[cfg(not(feature = "pg15"))]
        let new_index_entries = match indexes {
            pg_sys::TU_UpdateIndexes::TU_None => None,
            pg_sys::TU_UpdateIndexes::TU_Summarizing => Some(IndexEntries::Summarizing),
            _ => Some(IndexEntries::All),
        };
        (result == pg_sys::TM_Result::TM_Ok).then_some(Updated { new_index_entries })
    }
}

/// Makes index entries for an updated row.
///
/// # Safety
/// The indexes of `result` are open, `row` is its new version.
pub(crate) unsafe fn insert_index_entries(
    result: *mut pg_sys::ResultRelInfo,
    row: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
    which: IndexEntries,
) {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            let IndexEntries::All = which else { return };
            pg_sys::ExecInsertIndexTuples(
                result,
                row,
                estate,
                true,
                false,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
            );
        }
        #[cfg(not(feature = "pg15"))]
        pg_sys::ExecInsertIndexTuples(
            result,
            row,
            estate,
            true,
            false,
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            matches!(which, IndexEntries::Summarizing),
        );
    }
}

/// Time-outs that only some versions know and that must not end a worker's work.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub(crate) const OTHER_TIMEOUTS: &[&core::ffi::CStr] = &[];
#[cfg(any(feature = "pg17", feature = "pg18"))]
pub(crate) const OTHER_TIMEOUTS: &[&core::ffi::CStr] = &[c"transaction_timeout"];

/// Ends this process. (The bindings of 18 do not say that the server's function never returns.)
///
/// # Safety
/// In a process of the server, with nothing left that must be dropped.
pub(crate) unsafe fn exit_process(code: i32) -> ! {
    #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::proc_exit(code)
    }
    #[cfg(feature = "pg18")]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::proc_exit(code);
        unreachable!("proc_exit never returns")
    }
}

/// Takes a replication slot that nobody reads from; raises when somebody does.
///
/// # Safety
/// The name is nul-terminated; this process holds no slot.
pub(crate) unsafe fn slot_acquire(name: *const core::ffi::c_char) {
    #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::ReplicationSlotAcquire(name, true);
    }
    #[cfg(feature = "pg18")]
    // SAFETY: the caller's promise; an invalid slot is no error here.
    unsafe {
        pg_sys::ReplicationSlotAcquire(name, true, false);
    }
}

/// Marks a slot as one whose WAL was removed.
///
/// # Safety
/// This process holds the slot.
pub(crate) unsafe fn mark_slot_lost(slot: *mut pg_sys::ReplicationSlot) {
    // SAFETY: the caller's promise.
    let data = unsafe { &mut (*slot).data };
    #[cfg(feature = "pg15")]
    {
        data.invalidated_at = data.restart_lsn;
    }
    #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
    {
        data.invalidated = pg_sys::ReplicationSlotInvalidationCause::RS_INVAL_WAL_REMOVED;
    }
    data.restart_lsn = 0;
}

/// Whether the server notes with a deferred trigger as whom it is to be fired.
pub(crate) const NOTES_WHO_DEFERS: bool = cfg!(feature = "pg18");

/// Whether a role could take on another by SET ROLE.
///
/// # Safety
/// In a transaction; both roles exist.
pub(crate) unsafe fn can_set_role(member: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::is_member_of_role(member, role)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::member_can_set_role(member, role)
    }
}
