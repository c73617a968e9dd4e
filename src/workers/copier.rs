//! The copier: brings one table of a subscription from its provider, or several small ones, and ends. Started by the
//! supervisor, up to `ha.sync_workers` at once for each subscription.
//!
//! Everything happens in one local transaction: the rows that were here go, those of the provider come, as of the
//! snapshot of a temporary slot, the indexes of a larger table are built once its rows are there, then come the changes
//! of these tables that the provider committed since, up to where the applier is; and the catalog notes the position. So
//! a crash of any process on either side, at any moment, leaves the tables as they were and their copy still due. How
//! the applier takes over is told in [`crate::shared_state::copies`].
//!
//! The rows bear the replication origin of copies from that provider, and the time of the conflict horizon as of the
//! snapshot. The true versions of younger rows come along, into `ha.row_versions`: a change that the provider had, and
//! overwritten, before the copy does not win here when it arrives late from a third node.

mod catch_up;
mod others;
mod provider;

use std::cell::Cell;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

use pg_ha_model::{Lsn, NodeId};
use pg_ha_replication::codec::CodecError;
use pg_ha_replication::stream::StreamError as OrderError;
use pgrx::prelude::*;

use super::applier::complete::CompleteError;
use crate::catalog::plan::{self, PlannedSubscription};
use crate::catalog::subscription_tables::{self as catalog, ExistingRows, PendingTable};
use crate::catalog::{self as catalogs, copied_progress, deferred_indexes, origins, row_versions};
use crate::durable::events::{self, Severity};
use crate::postgres::apply::context::take_place;
use crate::postgres::apply::target::Target;
use crate::postgres::apply::{self, ApplyError, versions};
use crate::postgres::copy::{self as copy_in, Format};
use crate::postgres::origin::{self, Origin};
use crate::postgres::walreceiver::{Connection, StreamError};
use crate::postgres::{latch, server, worker};
use crate::settings;
use crate::shared_state::copies::Phase;
use crate::shared_state::{self, copies, layout, subscription};
use catch_up::CatchUp;
use provider::{Described, Moment};

/// Why a copy ended without success.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("could not connect to the provider: {0}")]
    Unreachable(StreamError),
    #[error("the connection to the provider was lost: {0}")]
    Lost(String),
    #[error("the provider refused: {0}")]
    Refused(StreamError),
    #[error("the provider has no table of that name")]
    NotThere,
    #[error("the provider publishes it in none of the subscription's replication sets")]
    NotPublished,
    #[error("on the provider it is neither a table nor a partitioned table")]
    NoTable,
    #[error("the provider sends it as part of {0}")]
    PartOf(String),
    #[error("the provider's answer cannot be understood: {0}")]
    Answer(String),
    #[error(transparent)]
    Row(#[from] ApplyError),
    #[error(transparent)]
    Complete(#[from] CompleteError),
    #[error(transparent)]
    Empty(#[from] catalog::EmptyError),
    #[error("the stream cannot be read: {0}")]
    Codec(#[from] CodecError),
    #[error("the stream is out of order: {0}")]
    Order(#[from] OrderError),
    #[error(
        "the table holds rows here already; empty it, or let ha.sub_resync_table() replace what it holds"
    )]
    NotEmpty,
    #[error("the applier waits for this table, so that the copy made way and starts over")]
    InTheWay,
    #[error("the table was renamed or dropped on the provider during the copy")]
    Renamed,
    #[error("{0}")]
    Raised(String),
    #[error("reading the catalogs failed: {0}")]
    Catalog(String),
    /// The subscription was disabled or dropped, or nobody wants the copy any more.
    #[error("the copy is not wanted any more")]
    Unwanted,
}

impl From<catalogs::Error> for Failure {
    fn from(error: catalogs::Error) -> Self {
        Failure::Catalog(error.to_string())
    }
}

impl Failure {
    /// Whether the next attempt may well succeed. Otherwise somebody has to look.
    fn is_passing(&self) -> bool {
        matches!(
            self,
            Failure::Unreachable(_) | Failure::Lost(_) | Failure::InTheWay | Failure::Unwanted
        )
    }
}

/// Indexes of a table with at least this many bytes are built after its rows have come.
const WORTH_DEFERRING: i64 = 1 << 20;

/// What a copier works on.
struct Work {
    place: &'static layout::Subscription,
    subscription: PlannedSubscription,
    /// At least one.
    pieces: Vec<Piece>,
    /// The one that is being worked on, while it is one alone.
    at: Cell<Option<usize>>,
    here: NodeId,
    provider: NodeId,
    origin: Origin,
    /// This node knows of others beside the provider.
    others: bool,
}

/// One of the tables.
struct Piece {
    copy: &'static layout::RunningCopy,
    table: PendingTable,
}

pub(crate) fn run(index: usize) {
    let Some(area) = shared_state::area() else {
        worker::exit(0)
    };
    let Some(copy) = area.copies.get(index) else {
        worker::exit(0)
    };
    if copy
        .pid
        .compare_exchange(0, worker::process_id(), AcqRel, Acquire)
        .is_err()
    {
        worker::exit(0);
    }
    for copy in copies::led_by(index) {
        copy.pid.store(worker::process_id(), Release);
    }
    worker::at_exit(forget, index);
    let Some(place) = subscription::find(copy.subscription_id()).filter(|_| copy.subscription_id() != 0)
    else {
        worker::exit(0)
    };
    if !place.is_wanted() {
        worker::exit(0);
    }
    worker::connect(area.local.read(|local| local.database_oid));
    super::applier::settle();
    match prepare(place, index) {
        Ok(None) => {}
        Ok(Some(work)) => {
            if let Err(failure) = perform(&work) {
                apply::abort();
                complain(&work, &failure);
            }
        }
        Err(error) => log!("pg_ha copier cannot start: {error}"),
    }
    worker::exit(0);
}

fn forget(index: usize) {
    if let Some(area) = shared_state::area() {
        let place = subscription::find(area.copies[index].subscription_id());
        // Whatever was committed, the applier looks at it before it goes on.
        area.catalog_generation.fetch_add(1, AcqRel);
        // That for which this process was started last, since the applier waits for that one.
        for copy in copies::led_by(index).iter().rev() {
            copy.release();
        }
        if let Some(place) = place {
            latch::wake(place.applier_pid.load(Acquire));
        }
        latch::wake(area.supervisor_pid.load(Acquire));
    }
}

/// Reads what there is to do; None when there is nothing (any more).
fn prepare(place: &'static layout::Subscription, index: usize) -> Result<Option<Work>, String> {
    let copies = copies::led_by(index);
    let Some(subscription_id) = copies.first().map(|copy| copy.subscription_id()) else {
        return Ok(None);
    };
    let ids: Vec<i32> = copies.iter().map(|copy| copy.table_id()).collect();
    let subscription = super::read(|| plan::subscriptions(Some(subscription_id)))?.pop();
    let mut tables = super::read(|| catalog::pending_among(&ids))?;
    let pieces: Vec<Piece> = copies
        .into_iter()
        .filter_map(|copy| {
            let found = tables
                .iter()
                .position(|table| table.table_id == copy.table_id())?;
            Some(Piece {
                copy,
                table: tables.swap_remove(found),
            })
        })
        .collect();
    // The applier is met in the place of the table that this process was started for.
    let (Some(subscription), true) = (
        subscription,
        pieces.first().is_some_and(|piece| piece.copy.leads()),
    ) else {
        return Ok(None);
    };
    let local = shared_state::local_node().ok_or_else(|| "this server is no node".to_owned())?;
    let here = NodeId::new(local.node_id).map_err(|error| error.to_string())?;
    let provider = NodeId::new(subscription.provider_node as u32).map_err(|error| error.to_string())?;
    apply::acting::run_as(subscription.options.run_as());
    wait_for_applier(place);
    let origin = super::read(|| origins::ensure_for_copies(provider, &subscription.provider_uid))?
        .ok_or_else(|| "the replication origin of copies could not be made".to_owned())?;
    let nodes = super::read(plan::nodes)?;
    let ours = [here, provider].map(|node| i32::from(node.get()));
    let others = nodes
        .iter()
        .any(|node| node.kind == "data" && !ours.contains(&node.node_id));
    Ok(Some(Work {
        others,
        place,
        subscription,
        pieces,
        at: Cell::new(None),
        here,
        provider,
        origin,
    }))
}

/// Waits until an applier runs that knows that these tables are to be left alone: from now on it applies no change of
/// them, so that none can come both by the stream and by the copy.
fn wait_for_applier(place: &layout::Subscription) {
    let Some(area) = shared_state::area() else { return };
    // What was read of the catalog just now is older than this.
    let wanted = area.catalog_generation.fetch_add(1, AcqRel) + 1;
    while place.gates_generation.load(Acquire) < wanted {
        latch::wake(place.applier_pid.load(Acquire));
        worker::heed_signals(0);
        if !place.is_wanted() {
            worker::exit(0);
        }
        latch::wait(Duration::from_millis(200));
    }
}

fn perform(work: &Work) -> Result<(), Failure> {
    let application_name = format!(
        "pg_ha {} {} copy {}",
        work.here,
        work.subscription.name,
        work.describe()
    );
    let outcome = worker::catch(|| {
        let mut connection =
            Connection::open(&work.subscription.dsn, &application_name).map_err(Failure::Unreachable)?;
        bring(work, &mut connection)
    });
    match outcome {
        Ok(outcome) => outcome,
        Err(caught) => Err(match caught.sqlstate {
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE | PgSqlErrorCode::ERRCODE_PROTOCOL_VIOLATION => {
                Failure::Lost(caught.message)
            }
            _ => Failure::Raised(match copy_in::take_error_context() {
                Some(context) => format!("{}; {context}", caught.describe()),
                None => match take_place() {
                    Some(place) => format!("{place}: {}", caught.describe()),
                    None => caught.describe(),
                },
            }),
        }),
    }
}

/// The whole copy, in one local transaction.
fn bring(work: &Work, connection: &mut Connection) -> Result<(), Failure> {
    apply::begin();
    origin::mark_unsent();
    let slot = format!(
        "pg_ha_{}_copy_{}_{}_{}",
        work.here,
        work.subscription.id,
        work.pieces[0].table.table_id,
        worker::process_id()
    );
    let progress = others::wait_for_provider(work, connection)?;
    let mut moment = provider::open_snapshot(
        connection,
        &slot,
        settings::conflict_horizon(),
        work.here,
        work.provider,
    )?;
    moment.others |= work.others;
    let start = moment.start;
    for (number, piece) in work.pieces.iter().enumerate() {
        work.at.set(Some(number));
        bring_rows(work, piece, connection, &moment)?;
    }
    work.at.set(None);
    connection.command("COMMIT").map_err(Failure::Refused)?;

    let end = CatchUp::new(work, start, moment.others).run(connection, &slot)?;
    // The applier waits from here on: rather start over than wait for a session that holds on to the catalog's row.
    worker::set(c"lock_timeout", c"2s");
    for piece in &work.pieces {
        let (rows, bytes) = (piece.copy.rows.load(Relaxed), piece.copy.bytes.load(Relaxed));
        let noted =
            worker::with_latest_snapshot(|| catalog::set_copied(piece.table.table_id, end, rows, bytes))?;
        if !noted {
            return Err(Failure::Unwanted);
        }
        worker::with_latest_snapshot(|| copied_progress::note(piece.table.table_id, &progress))?;
    }
    worker::set(c"lock_timeout", c"0");
    commit(work, moment.horizon)?;
    let rows: u64 = work
        .pieces
        .iter()
        .map(|piece| piece.copy.rows.load(Relaxed))
        .sum();
    log!(
        "pg_ha copied {} of subscription \"{}\": {rows} rows as of {}, with changes up to {}",
        work.describe(),
        work.subscription.name,
        Lsn(start),
        Lsn(end)
    );
    Ok(())
}

/// The rows of one table, as of the snapshot.
fn bring_rows(
    work: &Work,
    piece: &Piece,
    connection: &mut Connection,
    moment: &Moment,
) -> Result<(), Failure> {
    let described = provider::describe(connection, &piece.table, &work.subscription.replication_sets)?;
    let target = Target::resolve(&described.table)?;
    prepare_table(&piece.table)?;
    let deferred = if piece.table.expected_bytes >= WORTH_DEFERRING {
        worker::with_latest_snapshot(|| deferred_indexes::defer(target.oid))?
    } else {
        Vec::new()
    };
    piece.copy.set_phase(Phase::Copying);
    let format = if described.server_version / 10_000 == server::version_number() / 10_000
        && target.columns.iter().all(|column| column.receive.is_some())
    {
        Format::Binary
    } else {
        Format::Text
    };
    connection
        .start_copy(&described.copy_command(format))
        .map_err(Failure::Refused)?;
    let rows = copy_in::into(&target, format, connection, &mut |bytes| {
        piece.copy.rows.fetch_add(1, Relaxed);
        piece.copy.bytes.fetch_add(bytes as u64, Relaxed);
    })?;
    piece.copy.rows.store(rows, Relaxed);
    bring_versions(work, piece, &described, &target, connection, moment)?;
    drop(target);
    if !deferred.is_empty() {
        piece.copy.set_phase(Phase::Indexing);
        for index in &deferred {
            worker::with_latest_snapshot(|| deferred_indexes::build(*index))?;
        }
    }
    piece.copy.set_phase(Phase::CatchingUp);
    Ok(())
}

/// The versions of those rows of a table that may still meet concurrent changes. Of two nodes alone, neither has changes
/// of the other's rows that the other does not know.
fn bring_versions(
    work: &Work,
    piece: &Piece,
    described: &Described,
    target: &Target,
    connection: &mut Connection,
    moment: &Moment,
) -> Result<(), Failure> {
    let Some(key) = versions::key_expression(target) else {
        return Ok(());
    };
    if piece.table.existing_rows != ExistingRows::Keep {
        worker::with_latest_snapshot(|| row_versions::forget(key.relation))?;
    }
    let most = settings::max_row_versions();
    if most == 0 || !moment.others {
        return Ok(());
    }
    let command = described.versions_command(&key, moment.horizon, most, work.provider, moment.copied);
    connection.start_copy(&command).map_err(Failure::Refused)?;
    let table = worker::with_latest_snapshot(row_versions::table)?;
    let brought = copy_in::into_columns(table, &[0, 1, 2, 3], Format::Text, connection, &mut |_| ());
    if brought >= most.unsigned_abs().into() {
        log!(
            "pg_ha copied only {brought} versions of rows of table {}, as ha.max_row_versions says; its other rows count as \
             older than ha.conflict_horizon",
            piece.table.qualified_name()
        );
    }
    Ok(())
}

/// Sees to the rows that the table holds already.
fn prepare_table(table: &PendingTable) -> Result<(), Failure> {
    let name = table.qualified_name();
    worker::with_latest_snapshot(|| match table.existing_rows {
        ExistingRows::Refuse if catalog::holds_rows(&name)? || !catalog::shrink(&name)? => {
            Err(Failure::NotEmpty)
        }
        ExistingRows::Refuse => Ok(()),
        ExistingRows::Truncate => Ok(catalog::empty(&name)?),
        ExistingRows::Keep => Ok(()),
    })
}

/// Commits under the origin of copies from this provider, as of the conflict horizon: rows whose version is not noted are
/// older. Copiers take turns, since a replication origin can be set up
/// by one process at a time.
fn commit(work: &Work, horizon: i64) -> Result<(), Failure> {
    for piece in &work.pieces {
        origin::unmarked(|| worker::with_latest_snapshot(|| catalog::tell_of_copy(&piece.table)))?;
    }
    let number = work.origin.0;
    worker::with_latest_snapshot(|| catalog::lock_origin(number))?;
    work.origin.commit_once(horizon);
    // It goes with this process as well.
    let _ = super::read(|| catalog::unlock_origin(number));
    Ok(())
}

/// Notes and logs why the copy did not work out: for the table that was worked on, or for all of them.
fn complain(work: &Work, failure: &Failure) {
    if matches!(failure, Failure::Unwanted) {
        return;
    }
    let failed: Vec<&PendingTable> = match work.at.get() {
        Some(number) if !failure.is_passing() => vec![&work.pieces[number].table],
        _ => work.pieces.iter().map(|piece| &piece.table).collect(),
    };
    let subscription = &work.subscription.name;
    let why = hide(&work.subscription.dsn, &failure.to_string());
    let reason = |table: &PendingTable| format!("copy of table {} failed: {why}", table.qualified_name());
    let lasting = !failure.is_passing();
    let changed = super::read(|| {
        failed.iter().try_fold(false, |changed, table| {
            Ok::<_, catalogs::Error>(catalog::set_error(table.table_id, &reason(table), lasting)? || changed)
        })
    });
    if let (true, Some(first)) = (changed.unwrap_or(true), failed.first()) {
        let others = match failed.len() - 1 {
            0 => String::new(),
            others => format!(" (and with it that of {others} others)"),
        };
        let message = format!("subscription \"{subscription}\": {}{others}", reason(first));
        log!("pg_ha {message}");
        let severity = if lasting {
            Severity::Error
        } else {
            Severity::Warning
        };
        events::record(
            "subscription",
            severity,
            &message,
            serde_json::json!({ "subscription": subscription, "table": first.qualified_name() }),
        );
    }
}

/// Without the secrets that libpq might have repeated from the connection string.
fn hide(dsn: &str, text: &str) -> String {
    match pg_ha_model::Conninfo::parse(dsn) {
        Ok(parsed) => parsed
            .iter()
            .filter(|(keyword, value)| pg_ha_model::conninfo::is_secret(keyword) && value.len() > 2)
            .fold(text.to_owned(), |text, (_, secret)| {
                text.replace(secret, pg_ha_model::conninfo::MASK)
            }),
        Err(_) => text.to_owned(),
    }
}

impl Work {
    /// For messages: the table, or the first one and how many others.
    fn describe(&self) -> String {
        let first = self.pieces[0].table.qualified_name();
        match self.pieces.len() {
            1 => format!("table {first}"),
            count => format!("table {first} and {} others", count - 1),
        }
    }

    /// The place in which the applier is met.
    fn meeting(&self) -> &'static layout::RunningCopy {
        self.pieces[0].copy
    }

    /// Asks the applier to say where it is.
    fn ask_for_position(&self) {
        self.meeting().set_phase(Phase::Waiting);
        self.place.handover.store(1, Release);
        latch::wake(self.place.applier_pid.load(Acquire));
    }
}
