//! The copier: brings one table of a subscription from its provider, and ends. Started by the supervisor, up to
//! `ha.sync_workers` at once for each subscription.
//!
//! Everything happens in one local transaction: the rows that were here go, those of the provider come, as of the
//! snapshot of a temporary slot, then the changes of this table that the provider committed since, up to where the
//! applier is; and the catalog notes the position. So a crash of any process on either side, at any moment, leaves the
//! table as it was and its copy still due. How the applier takes over is told in [`crate::shared_state::copies`].
//!
//! The rows bear the replication origin of copies from that provider, and a time just before the subscription was
//! made: whatever is changed anywhere from then on wins over them. (Their exact versions are not known: a change by a
//! third node that the provider had and overwritten before the copy can win here when it arrives late.)

mod catch_up;
mod provider;

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

use pg_ha_model::{Lsn, NodeId};
use pg_ha_replication::codec::CodecError;
use pg_ha_replication::stream::StreamError as OrderError;
use pgrx::prelude::*;

use super::applier::complete::CompleteError;
use crate::catalog::plan::{self, PlannedSubscription};
use crate::catalog::subscription_tables::{self as catalog, ExistingRows, PendingTable};
use crate::catalog::{self as catalogs, origins};
use crate::durable::events::{self, Severity};
use crate::postgres::apply::context::take_place;
use crate::postgres::apply::target::Target;
use crate::postgres::apply::{self, ApplyError};
use crate::postgres::copy::{self as copy_in, Format};
use crate::postgres::origin::{self, Origin};
use crate::postgres::walreceiver::{Connection, StreamError};
use crate::postgres::{latch, server, worker};
use crate::shared_state::copies::Phase;
use crate::shared_state::{self, layout, subscription};
use catch_up::CatchUp;

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
    /// Whether somebody has to look. Otherwise the next attempt may well succeed.
    fn is_lasting(&self) -> bool {
        !matches!(
            self,
            Failure::Unreachable(_) | Failure::Lost(_) | Failure::InTheWay | Failure::Unwanted
        )
    }
}

/// What a copier works on.
struct Work {
    place: &'static layout::Subscription,
    copy: &'static layout::RunningCopy,
    subscription: PlannedSubscription,
    table: PendingTable,
    here: NodeId,
    provider: NodeId,
    origin: Origin,
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
    match prepare(place, copy) {
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
        let copy = &area.copies[index];
        let place = subscription::find(copy.subscription_id());
        // Whatever was committed, the applier looks at it before it goes on.
        area.catalog_generation.fetch_add(1, AcqRel);
        copy.release();
        if let Some(place) = place {
            latch::wake(place.applier_pid.load(Acquire));
        }
        latch::wake(area.supervisor_pid.load(Acquire));
    }
}

/// Reads what there is to do; None when there is nothing (any more).
fn prepare(
    place: &'static layout::Subscription,
    copy: &'static layout::RunningCopy,
) -> Result<Option<Work>, String> {
    let (subscription_id, table_id) = (copy.subscription_id(), copy.table_id());
    let subscription = super::read(|| plan::subscriptions(Some(subscription_id)))?.pop();
    let table = super::read(|| catalog::pending_one(table_id))?;
    let (Some(subscription), Some(table)) = (subscription, table) else {
        return Ok(None);
    };
    let local = shared_state::local_node().ok_or_else(|| "this server is no node".to_owned())?;
    let here = NodeId::new(local.node_id).map_err(|error| error.to_string())?;
    let provider = NodeId::new(subscription.provider_node as u32).map_err(|error| error.to_string())?;
    apply::acting::run_as(subscription.options.run_as());
    wait_for_applier(place);
    let origin = super::read(|| origins::ensure_for_copies(provider, &subscription.provider_uid))?
        .ok_or_else(|| "the replication origin of copies could not be made".to_owned())?;
    Ok(Some(Work {
        place,
        copy,
        subscription,
        table,
        here,
        provider,
        origin,
    }))
}

/// Waits until an applier runs that knows that this table is to be left alone: from now on it applies no change of it,
/// so that none can come both by the stream and by the copy.
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
        work.table.qualified_name()
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
        work.table.subscription_id,
        work.table.table_id,
        worker::process_id()
    );
    let start = provider::open_snapshot(connection, &slot)?;
    let described = provider::describe(connection, &work.table, &work.subscription.replication_sets)?;
    let target = Target::resolve(&described.table)?;
    prepare_table(work)?;
    work.copy.set_phase(Phase::Copying);
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
        work.copy.rows.fetch_add(1, Relaxed);
        work.copy.bytes.fetch_add(bytes as u64, Relaxed);
    })?;
    drop(target);
    work.copy.rows.store(rows, Relaxed);
    connection.command("COMMIT").map_err(Failure::Refused)?;

    work.copy.set_phase(Phase::CatchingUp);
    let end = CatchUp::new(work, start).run(connection, &slot)?;
    let bytes = work.copy.bytes.load(Relaxed);
    // The applier waits from here on: rather start over than wait for a session that holds on to the catalog's row.
    worker::set(c"lock_timeout", c"2s");
    let noted = worker::with_latest_snapshot(|| catalog::set_copied(work.table.table_id, end, rows, bytes))?;
    if !noted {
        return Err(Failure::Unwanted);
    }
    worker::set(c"lock_timeout", c"0");
    commit(work)?;
    log!(
        "pg_ha copied table {} of subscription \"{}\": {rows} rows as of {}, with changes up to {}",
        work.table.qualified_name(),
        work.subscription.name,
        Lsn(start),
        Lsn(end)
    );
    Ok(())
}

/// Sees to the rows that the table holds already.
fn prepare_table(work: &Work) -> Result<(), Failure> {
    let name = work.table.qualified_name();
    worker::with_latest_snapshot(|| match work.table.existing_rows {
        ExistingRows::Refuse => match catalog::holds_rows(&name)? {
            true => Err(Failure::NotEmpty),
            false => Ok(()),
        },
        ExistingRows::Truncate => Ok(catalog::empty(&name)?),
        ExistingRows::Keep => Ok(()),
    })
}

/// Commits under the origin of copies from this provider. Copiers take turns, since a replication origin can be set up
/// by one process at a time.
fn commit(work: &Work) -> Result<(), Failure> {
    let number = work.origin.0;
    worker::with_latest_snapshot(|| catalog::lock_origin(number))?;
    work.origin
        .commit_once(work.subscription.created_at.saturating_sub(1));
    // It goes with this process as well.
    let _ = super::read(|| catalog::unlock_origin(number));
    Ok(())
}

/// Notes and logs why the copy did not work out.
fn complain(work: &Work, failure: &Failure) {
    if matches!(failure, Failure::Unwanted) {
        return;
    }
    let (table, subscription) = (work.table.qualified_name(), &work.subscription.name);
    let reason = format!(
        "copy of table {table} failed: {}",
        hide(&work.subscription.dsn, &failure.to_string())
    );
    let lasting = failure.is_lasting();
    let changed = super::read(|| catalog::set_error(work.table.table_id, &reason, lasting)).unwrap_or(true);
    if changed {
        log!("pg_ha subscription \"{subscription}\": {reason}");
        let severity = if lasting {
            Severity::Error
        } else {
            Severity::Warning
        };
        events::record(
            "subscription",
            severity,
            &format!("subscription \"{subscription}\": {reason}"),
            serde_json::json!({ "subscription": subscription, "table": table }),
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
    /// Asks the applier to say where it is.
    fn ask_for_position(&self) {
        self.copy.set_phase(Phase::Waiting);
        self.place.handover.store(1, Release);
        latch::wake(self.place.applier_pid.load(Acquire));
    }
}
