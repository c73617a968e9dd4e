//! The server's own libpqwalreceiver: a replication connection that streams our output plugin's frames.

use std::ffi::{CStr, CString};
use std::rc::Rc;
use std::time::Duration;

use pg_ha_model::conninfo::Conninfo;
use pgrx::{FromDatum, pg_sys};

use super::version;

/// A message of the replication protocol, as far as the receiver cares.
pub(crate) enum Received<'a> {
    /// Changes: where they stand in the provider's WAL, how far the provider's WAL went when they were sent.
    Data {
        start: u64,
        wal_end: u64,
        sent_at: i64,
        payload: &'a [u8],
    },
    /// A sign of life; the provider may want one back at once.
    Keepalive {
        wal_end: u64,
        sent_at: i64,
        reply_requested: bool,
    },
    /// Nothing has arrived; wait for the socket.
    Nothing,
    /// The provider ended the stream.
    End,
}

/// What went wrong on the connection, in the words of libpq or of the provider.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{0}")]
    Connect(String),
    #[error("{message}")]
    Provider { sqlstate: i32, message: String },
    #[error("the provider sent a message of the replication protocol that is not known here: {0:#04x}")]
    Protocol(u8),
}

/// A replication connection; closed when it and its [`StatusSender`] are dropped.
pub(crate) struct Connection {
    link: Rc<Link>,
    socket: pg_sys::pgsocket,
}

/// The way back to the provider, usable while a received payload is still held.
pub(crate) struct StatusSender {
    link: Rc<Link>,
}

struct Link {
    functions: &'static pg_sys::WalReceiverFunctionsType,
    connection: *mut pg_sys::WalReceiverConn,
}

/// The connection string with what makes the operating system notice that the other side is gone, within about
/// wal_receiver_timeout. A stream notices by itself; but while rows are copied the provider may be silent for as long
/// as it reads, and nothing but its system tells a provider that works from one that cannot be reached. What the string
/// says about these options itself counts.
fn watched(dsn: &str) -> String {
    let (Some(limit), Ok(mut parameters)) = (super::wal_receiver_timeout(), Conninfo::parse(dsn)) else {
        return dsn.to_owned();
    };
    let seconds = limit.as_secs();
    let options = [
        ("keepalives_idle", (seconds / 2).max(1)),
        ("keepalives_interval", (seconds / 6).max(1)),
        ("keepalives_count", 3),
        ("tcp_user_timeout", u64::try_from(limit.as_millis()).unwrap_or(0)),
    ];
    for (keyword, value) in options {
        if parameters.set_default(keyword, &value.to_string()).is_err() {
            return dsn.to_owned();
        }
    }
    parameters.to_conninfo()
}

impl Connection {
    /// Connects. Waits as long as the network does, interruptibly: only for workers that serve one provider.
    pub(crate) fn open(dsn: &str, application_name: &str) -> Result<Connection, StreamError> {
        let functions = functions()?;
        let text = |text: &str| {
            CString::new(text)
                .map_err(|_| StreamError::Connect("the connection string holds a zero byte".to_owned()))
        };
        let (dsn, name) = (text(&watched(dsn))?, text(application_name)?);
        let mut error = core::ptr::null_mut();
        // SAFETY: the library is loaded; both strings are nul-terminated and live through the call.
        let connection =
            unsafe { version::walrcv_connect(functions, dsn.as_ptr(), name.as_ptr(), &mut error) };
        if connection.is_null() {
            // SAFETY: on failure the library leaves a palloc'd message.
            return Err(StreamError::Connect(unsafe { message(error) }));
        }
        let link = Rc::new(Link {
            functions,
            connection,
        });
        Ok(Connection {
            link,
            socket: pg_sys::PGINVALID_SOCKET as pg_sys::pgsocket,
        })
    }

    /// Starts streaming from a slot with the output plugin's options.
    pub(crate) fn start(
        &mut self,
        slot: &str,
        from: u64,
        options: &[(String, String)],
    ) -> Result<(), StreamError> {
        let options: Vec<String> = options
            .iter()
            .map(|(name, value)| format!("\"{name}\" '{}'", value.replace('\'', "''")))
            .collect();
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {:X}/{:X} ({})",
            from >> 32,
            from & 0xFFFF_FFFF,
            options.join(", ")
        );
        // Going through walrcv_exec rather than walrcv_startstreaming lets the plugin have options of its own.
        self.execute(
            &command,
            &[],
            pg_sys::WalRcvExecStatus::WALRCV_OK_COPY_BOTH,
            |_| (),
        )
    }

    /// Runs a statement or a replication command whose answer has `columns` columns; returns it as text. In a
    /// transaction, since types are looked up.
    pub(crate) fn query(
        &mut self,
        command: &str,
        columns: usize,
    ) -> Result<Vec<Vec<Option<String>>>, StreamError> {
        let types = vec![pg_sys::TEXTOID; columns];
        // SAFETY: the status says that there are rows of as many columns as there are types.
        self.execute(
            command,
            &types,
            pg_sys::WalRcvExecStatus::WALRCV_OK_TUPLES,
            |result| unsafe { rows(result, columns) },
        )
    }

    /// Runs a statement that answers with nothing but its success.
    pub(crate) fn command(&mut self, command: &str) -> Result<(), StreamError> {
        let status = pg_sys::WalRcvExecStatus::WALRCV_OK_COMMAND;
        self.execute(command, &[], status, |_| ())
    }

    /// Starts `COPY … TO STDOUT`; [`Connection::copied`] then brings it.
    pub(crate) fn start_copy(&mut self, command: &str) -> Result<(), StreamError> {
        let status = pg_sys::WalRcvExecStatus::WALRCV_OK_COPY_OUT;
        self.execute(command, &[], status, |_| ())
    }

    fn execute<R>(
        &mut self,
        command: &str,
        types: &[pg_sys::Oid],
        wanted: pg_sys::WalRcvExecStatus::Type,
        read: impl FnOnce(&pg_sys::WalRcvExecResult) -> R,
    ) -> Result<R, StreamError> {
        let command = CString::new(command)
            .map_err(|_| StreamError::Connect("a command holds a zero byte".to_owned()))?;
        let Some(exec) = self.link.functions.walrcv_exec else {
            return Err(missing("walrcv_exec"));
        };
        // SAFETY: the connection is open and not streaming; the result is freed below, after it was read.
        unsafe {
            let result = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                exec(
                    self.link.connection,
                    command.as_ptr(),
                    types.len() as i32,
                    types.as_ptr(),
                )
            });
            let outcome = if (*result).status == wanted {
                Ok(read(&*result))
            } else {
                Err(StreamError::Provider {
                    sqlstate: (*result).sqlstate,
                    message: message((*result).err),
                })
            };
            pg_sys::walrcv_clear_result(result);
            outcome
        }
    }

    /// The next piece of a copy, once it has arrived: its address and length, valid until the next call. None at the
    /// end. Raises what the provider or the connection went wrong with.
    pub(crate) fn copied(&mut self) -> Result<Option<(*const u8, usize)>, StreamError> {
        let Some(receive) = self.link.functions.walrcv_receive else {
            return Err(missing("walrcv_receive"));
        };
        loop {
            let mut buffer = core::ptr::null_mut();
            // SAFETY: the connection is open and copying; the buffer belongs to it until the next call.
            let length = unsafe {
                pg_sys::ffi::pg_guard_ffi_boundary(|| {
                    receive(self.link.connection, &mut buffer, &mut self.socket)
                })
            };
            match usize::try_from(length) {
                Ok(0) => self.wait(Duration::from_secs(10)),
                Ok(length) => return Ok(Some((buffer.cast_const().cast(), length))),
                Err(_) => return Ok(None),
            }
        }
    }

    /// The next message, if one has arrived. Its payload is valid until the next call.
    pub(crate) fn receive(&mut self) -> Result<Received<'_>, StreamError> {
        let Some(receive) = self.link.functions.walrcv_receive else {
            return Err(missing("walrcv_receive"));
        };
        let mut buffer = core::ptr::null_mut();
        // SAFETY: the connection is open and streaming; the buffer belongs to it until the next call.
        let bytes = unsafe {
            let length = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                receive(self.link.connection, &mut buffer, &mut self.socket)
            });
            match length {
                0 => return Ok(Received::Nothing),
                length if length < 0 => return Ok(Received::End),
                length => core::slice::from_raw_parts(buffer.cast_const().cast::<u8>(), length as usize),
            }
        };
        parse(bytes)
    }

    /// Waits until something arrives, the latch is set or the time is over.
    pub(crate) fn wait(&self, timeout: Duration) {
        let socket = (self.socket >= 0).then_some(self.socket);
        super::latch::wait_for(socket, timeout);
    }

    /// The way back to the provider.
    pub(crate) fn status_sender(&self) -> StatusSender {
        StatusSender {
            link: Rc::clone(&self.link),
        }
    }
}

impl StatusSender {
    /// Tells the provider how far this side is (a standby status update), and may ask for a sign of life.
    pub(crate) fn send(
        &self,
        written: u64,
        flushed: u64,
        applied: u64,
        reply: bool,
    ) -> Result<(), StreamError> {
        let Some(send) = self.link.functions.walrcv_send else {
            return Err(missing("walrcv_send"));
        };
        let mut status = [0u8; 34];
        status[0] = b'r';
        status[1..9].copy_from_slice(&written.to_be_bytes());
        status[9..17].copy_from_slice(&flushed.to_be_bytes());
        status[17..25].copy_from_slice(&applied.to_be_bytes());
        status[25..33].copy_from_slice(&super::now().to_be_bytes());
        status[33] = u8::from(reply);
        // SAFETY: the connection is open; the bytes are copied before the call returns.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                send(self.link.connection, status.as_ptr().cast(), status.len() as i32);
            });
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(disconnect) = self.functions.walrcv_disconnect {
            // SAFETY: closed once; the pointer is not used again.
            unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| disconnect(self.connection)) };
        }
    }
}

/// Splits a message of the streaming replication protocol.
fn parse(bytes: &[u8]) -> Result<Received<'_>, StreamError> {
    let number = |at: usize| {
        bytes
            .get(at..at + 8)
            .and_then(|part| part.try_into().ok())
            .map(u64::from_be_bytes)
    };
    match bytes[0] {
        b'w' => match (number(1), number(9), number(17)) {
            (Some(start), Some(wal_end), Some(sent_at)) => Ok(Received::Data {
                start,
                wal_end,
                sent_at: sent_at as i64,
                payload: &bytes[25..],
            }),
            _ => Err(StreamError::Protocol(b'w')),
        },
        b'k' => match (number(1), number(9), bytes.get(17)) {
            (Some(wal_end), Some(sent_at), Some(reply)) => Ok(Received::Keepalive {
                wal_end,
                sent_at: sent_at as i64,
                reply_requested: *reply != 0,
            }),
            _ => Err(StreamError::Protocol(b'k')),
        },
        other => Err(StreamError::Protocol(other)),
    }
}

fn functions() -> Result<&'static pg_sys::WalReceiverFunctionsType, StreamError> {
    // SAFETY: loading the library fills the global table of functions, which then never changes.
    unsafe {
        if pg_sys::WalReceiverFunctions.is_null() {
            pg_sys::load_file(c"libpqwalreceiver".as_ptr(), false);
        }
        pg_sys::WalReceiverFunctions
            .as_ref()
            .ok_or_else(|| missing("libpqwalreceiver"))
    }
}

fn missing(what: &str) -> StreamError {
    StreamError::Connect(format!("the server's libpqwalreceiver does not offer {what}"))
}

/// All rows of an answer whose columns are text.
///
/// # Safety
/// The result holds tuples of `columns` columns of type text.
unsafe fn rows(result: &pg_sys::WalRcvExecResult, columns: usize) -> Vec<Vec<Option<String>>> {
    let mut rows = Vec::new();
    // SAFETY: the store is read once, from its beginning; values are copied before the slot moves on.
    unsafe {
        let slot = pg_sys::MakeSingleTupleTableSlot(result.tupledesc, &raw const pg_sys::TTSOpsMinimalTuple);
        while pg_sys::tuplestore_gettupleslot(result.tuplestore, true, false, slot) {
            let row = (1..=columns).map(|column| {
                let mut null = true;
                let value = pg_sys::slot_getattr(slot, column as i32, &mut null);
                String::from_datum(value, null)
            });
            rows.push(row.collect());
        }
        pg_sys::ExecDropSingleTupleTableSlot(slot);
    }
    rows
}

/// # Safety
/// `text` is null or nul-terminated.
unsafe fn message(text: *const core::ffi::c_char) -> String {
    if text.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text).to_string_lossy().trim().to_owned() }
}
