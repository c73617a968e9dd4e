//! Every setting (GUC) of the extension, with its limits.

use std::ffi::CString;
use std::time::Duration;

use crate::shared_state::layout;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

static NODE_NAME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static DATABASE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static STATE_DIRECTORY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static SLOT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(300_000);
static MAX_NODES: GucSetting<i32> = GucSetting::<i32>::new(64);
static MAX_SUBSCRIPTIONS: GucSetting<i32> = GucSetting::<i32>::new(32);
static MAX_TRACKED_TABLES: GucSetting<i32> = GucSetting::<i32>::new(4096);
static RETRY_MIN: GucSetting<i32> = GucSetting::<i32>::new(500);
static RETRY_MAX: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static SYNC_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(2);
static SPOOL_MEM: GucSetting<i32> = GucSetting::<i32>::new(65_536);
static SPOOL_MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(65_536);
static DUPLICATE_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(24 * 60);
static CONFLICT_HORIZON: GucSetting<i32> = GucSetting::<i32>::new(3600);
static MAX_ROW_VERSIONS: GucSetting<i32> = GucSetting::<i32>::new(500_000);
static CONFLICT_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(30 * 24 * 3600);
static MAX_CONFLICTS: GucSetting<i32> = GucSetting::<i32>::new(1_000_000);
static CONFLICT_MAX_ROW_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);
static SEQUENCE_BUFFER: GucSetting<i32> = GucSetting::<i32>::new(1000);
static MAX_SLOT_RETAINED: GucSetting<i32> = GucSetting::<i32>::new(0);
static EVENTS_MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1024);

/// `ha.node_name`, if set.
pub(crate) fn node_name() -> Option<String> {
    text(&NODE_NAME)
}

/// `ha.database`, if set.
pub(crate) fn database() -> Option<String> {
    text(&DATABASE)
}

/// `ha.state_directory`, if set.
pub(crate) fn state_directory() -> Option<String> {
    text(&STATE_DIRECTORY)
}

/// `ha.connect_timeout`.
pub(crate) fn connect_timeout() -> Duration {
    milliseconds(&CONNECT_TIMEOUT)
}

/// `ha.slot_timeout`.
pub(crate) fn slot_timeout() -> Duration {
    milliseconds(&SLOT_TIMEOUT)
}

/// `ha.max_nodes`.
pub(crate) fn max_nodes() -> i32 {
    MAX_NODES.get()
}

/// `ha.max_subscriptions`.
pub(crate) fn max_subscriptions() -> i32 {
    MAX_SUBSCRIPTIONS.get()
}

/// `ha.duplicate_retention`.
pub(crate) fn duplicate_retention() -> Duration {
    Duration::from_secs(60 * u64::from(DUPLICATE_RETENTION.get().unsigned_abs()))
}

/// `ha.events_max_size` in bytes.
pub(crate) fn events_max_bytes() -> u64 {
    u64::from(EVENTS_MAX_SIZE.get().unsigned_abs()) * 1024
}

fn text(setting: &GucSetting<Option<CString>>) -> Option<String> {
    let value = setting.get()?.to_string_lossy().trim().to_owned();
    (!value.is_empty()).then_some(value)
}

fn milliseconds(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(u64::from(setting.get().unsigned_abs()))
}

/// Makes the settings known to the server. Called while it preloads the library.
pub(crate) fn register() {
    let plain = GucFlags::default();
    GucRegistry::define_string_guc(
        c"ha.node_name",
        c"The name of the node that this server is.",
        c"On a member of a group it says which one; elsewhere it is optional, and ha.node_create checks against it.",
        &NODE_NAME,
        GucContext::Postmaster,
        plain,
    );
    GucRegistry::define_string_guc(
        c"ha.database",
        c"The database that replicates.",
        c"Empty: the one in which the node was created.",
        &DATABASE,
        GucContext::Postmaster,
        plain,
    );
    GucRegistry::define_string_guc(
        c"ha.state_directory",
        c"Where the node's identity and events are kept.",
        c"Must lie outside the data directory, so that copying or rewinding that does not carry them along. \
          Empty: the data directory's path with .ha appended.",
        &STATE_DIRECTORY,
        GucContext::Postmaster,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_int_guc(
        c"ha.connect_timeout",
        c"How long to wait for another node to connect or to answer.",
        c"",
        &CONNECT_TIMEOUT,
        100,
        600_000,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"ha.slot_timeout",
        c"How long ha.sub_create waits for the provider to make a slot.",
        c"The provider first waits for the transactions that are running on it.",
        &SLOT_TIMEOUT,
        1_000,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"ha.max_nodes",
        c"How many nodes this one can know, itself included.",
        c"",
        &MAX_NODES,
        1,
        1023,
        GucContext::Postmaster,
        plain,
    );
    GucRegistry::define_int_guc(
        c"ha.max_subscriptions",
        c"How many subscriptions this node can have.",
        c"",
        &MAX_SUBSCRIPTIONS,
        1,
        layout::MAX_SUBSCRIPTIONS as i32,
        GucContext::Postmaster,
        plain,
    );
    GucRegistry::define_int_guc(
        c"ha.max_tracked_tables",
        c"For how many tables counters are kept in shared memory.",
        c"Further tables replicate as well; only their counters are missing.",
        &MAX_TRACKED_TABLES,
        16,
        layout::MAX_TABLES as i32,
        GucContext::Postmaster,
        plain,
    );
    GucRegistry::define_int_guc(
        c"ha.retry_min",
        c"How long a worker waits before its first retry.",
        c"The wait doubles with every failure in a row, up to ha.retry_max.",
        &RETRY_MIN,
        10,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"ha.retry_max",
        c"The longest wait between two retries.",
        c"",
        &RETRY_MAX,
        10,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"ha.sync_workers",
        c"How many tables of a subscription are copied at once.",
        c"Each takes a background worker here, and a replication connection and a slot on the provider, while it runs.",
        &SYNC_WORKERS,
        1,
        64,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_int_guc(
        c"ha.spool_mem",
        c"How much memory a subscription may take for transactions that are in progress on the provider.",
        c"Above it, the largest are kept in files of the state directory until they commit.",
        &SPOOL_MEM,
        64,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"ha.spool_max_size",
        c"How much disk a subscription may take for transactions that are in progress on the provider.",
        c"A subscription that needs more fails, and goes on once it may have more or its option streaming is off.",
        &SPOOL_MAX_SIZE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"ha.duplicate_retention",
        c"How long it is remembered which changes were applied that may come again by another subscription.",
        c"They are forgotten earlier once every subscription that can bring them has passed them.",
        &DUPLICATE_RETENTION,
        1,
        525_600,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"ha.conflict_horizon",
        c"How long after its commit a change may still meet a concurrent one.",
        c"A copy brings the exact versions of rows changed within it; older rows share one version. 0: none is exact.",
        &CONFLICT_HORIZON,
        0,
        2_592_000,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"ha.max_row_versions",
        c"Of how many rows of a table a copy brings the exact versions.",
        c"The youngest rows are taken; the others count as older than ha.conflict_horizon.",
        &MAX_ROW_VERSIONS,
        0,
        100_000_000,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_int_guc(
        c"ha.conflict_retention",
        c"How long a conflict stays in ha.conflicts.",
        c"",
        &CONFLICT_RETENTION,
        60,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"ha.max_conflicts",
        c"How many conflicts ha.conflicts holds at most; the oldest make way.",
        c"0: none are written there.",
        &MAX_CONFLICTS,
        0,
        1_000_000_000,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_int_guc(
        c"ha.conflict_max_row_size",
        c"How large a row may be, as JSON, that is kept in ha.conflicts.",
        c"Values for which there is no room are left out and named in the column omitted.",
        &CONFLICT_MAX_ROW_SIZE,
        1,
        128 * 1024,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"ha.sequence_buffer",
        c"How many values of a sequence subscribers are told ahead.",
        c"It grows by itself for a sequence that uses it up between two looks, which are five seconds apart.",
        &SEQUENCE_BUFFER,
        1,
        1_000_000,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_int_guc(
        c"ha.max_slot_retained",
        c"How much WAL the slot of a subscriber may hold back on this server before it is ended.",
        c"0: without limit. A subscriber whose slot was ended has to be made again.",
        &MAX_SLOT_RETAINED,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"ha.events_max_size",
        c"How large the file behind ha.events may grow before it is rotated.",
        c"One older file is kept beside it.",
        &EVENTS_MAX_SIZE,
        16,
        1_048_576,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
}

/// How long a worker waits before its first retry.
pub(crate) fn retry_min() -> Duration {
    Duration::from_millis(RETRY_MIN.get() as u64)
}

/// The longest wait between two retries.
pub(crate) fn retry_max() -> Duration {
    Duration::from_millis(RETRY_MAX.get() as u64)
}

/// `ha.max_slot_retained` in bytes; None: no limit.
pub(crate) fn max_slot_retained() -> Option<u64> {
    let megabytes = u64::from(MAX_SLOT_RETAINED.get().unsigned_abs());
    (megabytes > 0).then_some(megabytes << 20)
}

/// For how many tables counters are kept.
pub(crate) fn max_tracked_tables() -> usize {
    usize::try_from(MAX_TRACKED_TABLES.get()).unwrap_or_default()
}

/// How long after its commit a change may still meet a concurrent one.
pub(crate) fn conflict_horizon() -> Duration {
    Duration::from_secs(u64::from(CONFLICT_HORIZON.get().unsigned_abs()))
}

/// Of how many rows of a table a copy brings the exact versions.
pub(crate) fn max_row_versions() -> i32 {
    MAX_ROW_VERSIONS.get()
}

/// How long a conflict stays in the history.
pub(crate) fn conflict_retention() -> Duration {
    Duration::from_secs(u64::from(CONFLICT_RETENTION.get().unsigned_abs()))
}

/// How many conflicts the history holds; 0: it is not written.
pub(crate) fn max_conflicts() -> i64 {
    i64::from(MAX_CONFLICTS.get())
}

/// `ha.conflict_max_row_size` in bytes.
pub(crate) fn conflict_max_row_size() -> usize {
    1024 * usize::try_from(CONFLICT_MAX_ROW_SIZE.get()).unwrap_or(1)
}

/// How many values of a sequence subscribers are told ahead.
pub(crate) fn sequence_buffer() -> i64 {
    i64::from(SEQUENCE_BUFFER.get().max(1))
}

/// How many tables of a subscription are copied at once.
pub(crate) fn sync_workers() -> usize {
    usize::try_from(SYNC_WORKERS.get()).unwrap_or(1)
}

/// `ha.spool_mem` in bytes.
pub(crate) fn spool_mem() -> u64 {
    u64::from(SPOOL_MEM.get().unsigned_abs()) * 1024
}

/// `ha.spool_max_size` in bytes.
pub(crate) fn spool_max_size() -> u64 {
    u64::from(SPOOL_MAX_SIZE.get().unsigned_abs()) * 1024 * 1024
}
