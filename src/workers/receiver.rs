//! The receiver: one per enabled subscription, started by the supervisor.
//!
//! It connects to the provider, starts the stream where this node's progress of the provider's origin ends, starts an
//! applier and feeds it through a queue in dynamic shared memory, and reports to the provider how far the applier is.
//! When the queue is full it stops reading (the provider then waits too) but goes on reporting, so that a slow applier
//! is not taken for a dead subscriber. It blocks on its latch and its socket only; connecting waits for the network,
//! interruptibly. It ends when it is told to, when the provider ends the stream, or when its applier is gone; the
//! supervisor starts a new one. Nothing of it survives a crash and nothing needs to: progress is kept with the data.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use pg_ha_model::conninfo::is_secret;
use pg_ha_model::{Conninfo, Lsn, NodeId};
use pg_ha_replication::codec::{PROTOCOL_MAX, PROTOCOL_MIN};
use pg_ha_replication::options::PluginOptions;
use pgrx::prelude::*;

use crate::catalog::plan::PlannedSubscription;
use crate::catalog::{origins, plan};
use crate::durable::events::{self, Severity};
use crate::network::peer::literal;
use crate::postgres::origin::Origin;
use crate::postgres::queue::{Sender, Sent};
use crate::postgres::walreceiver::{Connection, Received, StatusSender, StreamError};
use crate::postgres::{self, worker};
use crate::shared_state::{self, Status, layout};

/// Bytes of the queue to the applier: enough to keep it busy while this process waits for the network, small enough to
/// count.
const QUEUE_SIZE: usize = 4 * 1024 * 1024;

/// Time between two reports while messages keep coming: an answer to each would cost both sides more than it tells.
const BUSY_REPORT: Duration = Duration::from_millis(50);

/// How long an applier may take to start.
const APPLIER_START: Duration = Duration::from_secs(10);

/// Head of a message to the applier: its kind, and where the provider's WAL was.
pub(crate) const HEADER: usize = 25;
pub(crate) const KIND_DATA: u8 = b'd';
pub(crate) const KIND_POSITION: u8 = b'p';
/// A position, and the provider waits to hear that it is durable here (when it shuts down, for one).
pub(crate) const KIND_ASKED: u8 = b'a';

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("could not connect to the provider: {0}")]
    Unreachable(String),
    #[error("the provider refused to stream: {0}")]
    Refused(String),
    #[error(
        "replication slot \"{0}\" is gone from the provider, and with it what was to be sent: drop this subscription and \
         make it again with ha.sub_create, then copy its tables anew with ha.sub_resync_table"
    )]
    SlotMissing(String),
    #[error(
        "the provider has ended replication slot \"{0}\", which held back more WAL than ha.max_slot_retained or \
         max_slot_wal_keep_size allows there: drop this subscription and make it again with ha.sub_create, then copy \
         its tables anew with ha.sub_resync_table"
    )]
    LostSlot(String),
    #[error("the connection to the provider was lost: {0}")]
    Lost(String),
    #[error("the provider ended the stream")]
    Closed,
    #[error("the provider has been silent for {0} s (wal_receiver_timeout)")]
    Silent(u64),
    #[error(
        "the provider is stopping and waits to hear that everything is applied here, which will not be soon: its \
         changes wait here for apply_delay or for a lock"
    )]
    ProviderStopping,
    #[error("the applier ended")]
    ApplierGone,
    #[error("all max_worker_processes are in use, so no applier can be started")]
    NoWorker,
    #[error("reading the subscription failed: {0}")]
    Catalog(String),
}

impl Ended {
    /// What the subscription shows.
    fn status(&self, place: &layout::Subscription) -> Option<Status> {
        match self {
            Ended::Unreachable(_)
            | Ended::Lost(_)
            | Ended::Closed
            | Ended::Silent(_)
            | Ended::ProviderStopping
            | Ended::NoWorker => Some(Status::Down),
            Ended::Refused(_) | Ended::SlotMissing(_) | Ended::LostSlot(_) | Ended::Catalog(_) => {
                Some(Status::Failed)
            }
            // The applier has said why, if it could.
            Ended::ApplierGone => (place.failed_in_applier.load(Acquire) == 0).then_some(Status::Down),
        }
    }
}

pub(crate) fn run(index: usize) {
    let Some(area) = shared_state::area() else {
        worker::exit(0)
    };
    let Some(place) = area.subscriptions.get(index) else {
        worker::exit(0)
    };
    if place
        .receiver_pid
        .compare_exchange(0, worker::process_id(), AcqRel, Acquire)
        .is_err()
    {
        worker::exit(0);
    }
    worker::at_exit(forget, index);
    if !place.is_wanted() {
        worker::exit(0);
    }
    worker::connect(area.local.read(|local| local.database_oid));
    let (name, ended) = serve(index, place);
    if let Some(status) = ended.status(place) {
        let text = ended.to_string();
        let changed = place.set_status(status);
        if place.set_error(&text) || changed {
            log!("pg_ha subscription \"{name}\" is {}: {text}", status.as_str());
            record(&name, Severity::Warning, status.as_str(), &text);
        }
        place.set_action("waiting to try again");
    }
    worker::exit(0);
}

fn forget(index: usize) {
    if let Some(area) = shared_state::area() {
        area.subscriptions[index].receiver_pid.store(0, Release);
        postgres::latch::wake(area.supervisor_pid.load(Acquire));
    }
}

fn record(name: &str, severity: Severity, status: &str, text: &str) {
    events::record(
        "subscription",
        severity,
        &format!("subscription \"{name}\" is {status}: {text}"),
        serde_json::json!({ "subscription": name, "status": status }),
    );
}

/// Streams until that ends; returns the subscription's name and why.
fn serve(index: usize, place: &'static layout::Subscription) -> (String, Ended) {
    let id = place.id.load(Acquire);
    let shown = place.text.read(|text| text.name.as_str().to_owned());
    let (subscription, origin) = match prepare(id) {
        Ok(prepared) => prepared,
        Err(error) => return (shown, Ended::Catalog(error)),
    };
    place.set_action("connecting");
    let ended = match worker::catch(|| stream(index, place, &subscription, origin)) {
        Ok(Ok(never)) => match never {},
        Ok(Err(ended)) => ended,
        Err(caught) => Ended::Lost(caught.describe()),
    };
    (subscription.name, ended)
}

/// Reads the subscription and sees that its origin exists.
fn prepare(id: i32) -> Result<(PlannedSubscription, Origin), String> {
    let subscription = super::read(|| plan::subscriptions(Some(id)))?
        .pop()
        .ok_or_else(|| "it is not in the catalog any more".to_owned())?;
    let node = NodeId::new(subscription.provider_node as u32).map_err(|error| error.to_string())?;
    let origin = super::read(|| origins::ensure(node, &subscription.provider_uid))?
        .ok_or_else(|| "its replication origin could not be made".to_owned())?;
    Ok((subscription, origin))
}

/// There is no good end of a stream.
enum Never {}

fn stream(
    index: usize,
    place: &'static layout::Subscription,
    subscription: &PlannedSubscription,
    origin: Origin,
) -> Result<Never, Ended> {
    let local =
        shared_state::local_node().ok_or_else(|| Ended::Catalog("this server is no node".to_owned()))?;
    // As native logical replication does: it is what synchronous_standby_names knows the subscription by, unless the
    // connection string says otherwise.
    let mut connection = Connection::open(&subscription.dsn, &subscription.name)
        .map_err(|error| Ended::Unreachable(hide(&subscription.dsn, &error)))?;
    let start = subscription.start_after(origin.durable_progress());
    let options = PluginOptions {
        proto_min: PROTOCOL_MIN,
        proto_max: PROTOCOL_MAX,
        server_version_num: postgres::server::version_number(),
        extension_version: env!("CARGO_PKG_VERSION").to_owned(),
        node_id: NodeId::new(local.node_id).map_err(|error| Ended::Catalog(error.to_string()))?,
        node_name: local.node_name.as_str().to_owned(),
        provider_uid: subscription.provider_uid.clone(),
        applied_lsn: Lsn(start),
        encoding: postgres::server::encoding(),
        replication_sets: subscription.replication_sets.clone(),
        forward_origins: subscription.forward_origins.clone(),
        streaming: subscription.options.streaming(),
        two_phase: subscription.options.two_phase(),
    };
    if let Err(error) = connection.start(&subscription.slot_name, start, &options.to_pairs()) {
        return Err(why_refused(&mut connection, subscription, &error));
    }
    let (mut queue, number) = Sender::create(QUEUE_SIZE);
    layout::Subscription::raise(&place.received_lsn, start);
    layout::Subscription::raise(&place.applied_lsn, start);
    worker::start_applier(index, number).ok_or(Ended::NoWorker)?;
    place.set_action("streaming");
    // After a change that could not be applied it is for the applier to say that it could now.
    if place.failed_in_applier.load(Acquire) == 0 && place.set_status(Status::Replicating) {
        place.clear_error();
        log!(
            "pg_ha subscription \"{}\" replicates from node \"{}\"",
            subscription.name,
            subscription.provider_name
        );
        record(
            &subscription.name,
            Severity::Info,
            "replicating",
            "the stream has started",
        );
    }
    pump(place, subscription, &mut connection, &mut queue)
}

/// The provider does not start the stream: is it for want of the slot?
fn why_refused(
    connection: &mut Connection,
    subscription: &PlannedSubscription,
    error: &StreamError,
) -> Ended {
    let slot = &subscription.slot_name;
    let query = format!(
        "SELECT wal_status FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    let found = super::read(|| connection.query(&query, 1)).ok();
    match found
        .as_ref()
        .map(|rows| rows.first().and_then(|row| row.first()))
    {
        Some(None) => Ended::SlotMissing(slot.clone()),
        Some(Some(Some(status))) if status == "lost" => Ended::LostSlot(slot.clone()),
        _ => Ended::Refused(format!("{} (slot \"{slot}\")", hide(&subscription.dsn, error))),
    }
}

/// Moves messages from the provider to the applier, and positions back.
fn pump(
    place: &'static layout::Subscription,
    subscription: &PlannedSubscription,
    connection: &mut Connection,
    queue: &mut Sender,
) -> Result<Never, Ended> {
    let lost = |error: StreamError| Ended::Lost(hide(&subscription.dsn, &error));
    let mut reporter = Reporter::new(connection.status_sender());
    let mut silence = Silence::new();
    let mut applier = ApplierWatch::new();
    let mut urgency = Urgency::default();
    loop {
        worker::heed_signals(0);
        if !place.is_wanted() {
            worker::exit(0);
        }
        loop {
            let (kind, position, wal_end, sent_at, payload, reply) =
                match connection.receive().map_err(lost)? {
                    Received::Nothing => break,
                    Received::End => return Err(Ended::Closed),
                    Received::Data {
                        start,
                        wal_end,
                        sent_at,
                        payload,
                    } => (KIND_DATA, start, wal_end, sent_at, payload, false),
                    Received::Keepalive {
                        wal_end,
                        sent_at,
                        reply_requested,
                    } => {
                        let kind = if reply_requested {
                            KIND_ASKED
                        } else {
                            KIND_POSITION
                        };
                        (kind, wal_end, wal_end, sent_at, &[][..], reply_requested)
                    }
                };
            silence.heard();
            layout::Subscription::raise(&place.provider_lsn, wal_end);
            place.last_message.store(postgres::now(), Relaxed);
            let head = header(kind, position, wal_end, sent_at);
            let mut sent = queue.send(&head, payload);
            while sent == Sent::Full {
                // Nothing is received before the queue has taken this; an applier that waits for a lock must not
                // look like a dead subscriber meanwhile, nor we take the provider, which we do not hear, for one.
                let until = reporter.report(place, false).map_err(lost)?;
                postgres::latch::wait(until.min(Duration::from_secs(1)));
                worker::heed_signals(0);
                if !place.is_wanted() {
                    worker::exit(0);
                }
                if applier.is_gone(place) {
                    return Err(Ended::ApplierGone);
                }
                sent = queue.send(&head, payload);
                silence.heard();
            }
            if sent == Sent::Detached {
                return Err(Ended::ApplierGone);
            }
            layout::Subscription::raise(&place.received_lsn, position);
            if reply && urgency.is_hopeless(place.applied_lsn.load(Acquire)) {
                return Err(Ended::ProviderStopping);
            }
            // A stream that never pauses must not keep the provider waiting for an answer.
            if reply || reporter.is_due() || place.synchronous.load(Acquire) != 0 {
                reporter.report(place, reply).map_err(lost)?;
                worker::heed_signals(0);
            }
        }
        if applier.is_gone(place) {
            return Err(Ended::ApplierGone);
        }
        let until = match silence.verdict() {
            Verdict::Alive => reporter.report(place, false).map_err(lost)?,
            Verdict::Ask => reporter.ask(place).map_err(lost)?,
            Verdict::Gone(seconds) => return Err(Ended::Silent(seconds)),
        };
        connection.wait(until.min(Duration::from_secs(1)));
    }
}

/// Notices an applier that ended, or never started.
struct ApplierWatch {
    since: Instant,
    seen: bool,
}

impl ApplierWatch {
    fn new() -> ApplierWatch {
        ApplierWatch {
            since: Instant::now(),
            seen: false,
        }
    }

    fn is_gone(&mut self, place: &layout::Subscription) -> bool {
        let runs = place.applier_pid.load(Acquire) != 0;
        self.seen |= runs;
        !runs && (self.seen || self.since.elapsed() > APPLIER_START)
    }
}

/// A provider that stops asks again and again how far we are, and does not end before we have everything. That would be
/// for ever while the applier waits for something else; what it has not applied is sent again.
#[derive(Default)]
struct Urgency {
    /// When it began to ask without a pause, when it asked last, and how far the applier was at the beginning.
    asked: Option<(Instant, Instant, u64)>,
}

impl Urgency {
    /// A provider that runs does not ask twice in this time.
    const PAUSE: Duration = Duration::from_millis(500);
    /// How long nothing may be applied while it asks.
    const PATIENCE: Duration = Duration::from_secs(3);

    /// The provider asks; `applied`: how far the applier is.
    fn is_hopeless(&mut self, applied: u64) -> bool {
        let now = Instant::now();
        let since = match self.asked {
            Some((since, last, then)) if last.elapsed() < Self::PAUSE && then == applied => since,
            _ => now,
        };
        self.asked = Some((since, now, applied));
        now.duration_since(since) >= Self::PATIENCE
    }
}

/// How long the provider has said nothing.
struct Silence {
    heard: Instant,
    asked: bool,
}

enum Verdict {
    Alive,
    /// Half of the time is over: it should say that it is there.
    Ask,
    /// It has not said anything for so many seconds.
    Gone(u64),
}

impl Silence {
    fn new() -> Silence {
        Silence {
            heard: Instant::now(),
            asked: false,
        }
    }

    fn heard(&mut self) {
        self.heard = Instant::now();
        self.asked = false;
    }

    fn verdict(&mut self) -> Verdict {
        let Some(limit) = postgres::wal_receiver_timeout() else {
            return Verdict::Alive;
        };
        let silent = self.heard.elapsed();
        if silent >= limit {
            Verdict::Gone(silent.as_secs())
        } else if silent >= limit / 2 && !self.asked {
            self.asked = true;
            Verdict::Ask
        } else {
            Verdict::Alive
        }
    }
}

/// What the provider has been told.
struct Reporter {
    sender: StatusSender,
    told: (u64, u64, u64),
    at: Instant,
}

impl Reporter {
    fn new(sender: StatusSender) -> Reporter {
        Reporter {
            sender,
            told: (0, 0, 0),
            at: Instant::now(),
        }
    }

    /// Whether the provider has not heard of us for a while, although messages keep coming.
    fn is_due(&self) -> bool {
        self.at.elapsed() >= BUSY_REPORT
    }

    /// Reports, and wants a sign of life back.
    fn ask(&mut self, place: &layout::Subscription) -> Result<Duration, StreamError> {
        self.send(place, true)?;
        Ok(postgres::status_interval())
    }

    /// Reports if there is news of what is done here, if the provider asked or if it is time
    /// (wal_receiver_status_interval); returns how long until the next time.
    fn report(&mut self, place: &layout::Subscription, now: bool) -> Result<Duration, StreamError> {
        let (received, flushed, applied) = self.news(place);
        let interval = postgres::status_interval();
        let synchronous = place.synchronous.load(Acquire) != 0;
        let news = (flushed, applied) != (self.told.1, self.told.2) || synchronous && received != self.told.0;
        if now || news || self.at.elapsed() >= interval {
            self.send(place, false)?;
        }
        Ok(interval.saturating_sub(self.at.elapsed()))
    }

    /// Received, flushed, applied.
    fn news(&self, place: &layout::Subscription) -> (u64, u64, u64) {
        let flushed = place.flushed_lsn.load(Acquire);
        let applied = place.applied_lsn.load(Acquire).max(flushed);
        (place.received_lsn.load(Acquire).max(applied), flushed, applied)
    }

    fn send(&mut self, place: &layout::Subscription, answer: bool) -> Result<(), StreamError> {
        let (received, flushed, applied) = self.news(place);
        self.sender.send(received, flushed, applied, answer)?;
        self.told = (received, flushed, applied);
        self.at = Instant::now();
        Ok(())
    }
}

fn header(kind: u8, position: u64, wal_end: u64, sent_at: i64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = kind;
    header[1..9].copy_from_slice(&position.to_le_bytes());
    header[9..17].copy_from_slice(&wal_end.to_le_bytes());
    header[17..25].copy_from_slice(&sent_at.to_le_bytes());
    header
}

/// An error's text, without the secrets that libpq might have repeated from the connection string.
fn hide(dsn: &str, error: &StreamError) -> String {
    let text = error.to_string();
    let Ok(parsed) = Conninfo::parse(dsn) else {
        return text;
    };
    parsed
        .iter()
        .filter(|(keyword, value)| is_secret(keyword) && !value.is_empty())
        .fold(text, |text, (_, secret)| text.replace(secret, "********"))
}
