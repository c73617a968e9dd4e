//! A slow link: a TCP proxy with latency and limited bandwidth, for kernels without netem.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::wait;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// One way.
    pub(crate) latency: Duration,
    pub(crate) bytes_per_second: u64,
}

/// Listens on loopback until dropped; connections it carried are closed then.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    closing: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    acceptor: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(target_port: u16, link: Link) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("binding the slow link's port")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let closing = Arc::new(AtomicBool::new(false));
        let carried = Arc::new(AtomicU64::new(0));
        let (its_closing, its_carried) = (Arc::clone(&closing), Arc::clone(&carried));
        let acceptor =
            thread::spawn(move || accept_loop(&listener, target_port, link, &its_closing, &its_carried));
        Ok(Self {
            port,
            closing,
            carried,
            acceptor: Some(acceptor),
        })
    }

    /// Bytes that went through, both ways.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

const GLANCE: Duration = Duration::from_millis(10);

fn accept_loop(
    listener: &TcpListener,
    target_port: u16,
    link: Link,
    closing: &Arc<AtomicBool>,
    carried: &Arc<AtomicU64>,
) {
    while !closing.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)) {
                    for (from, to) in [(&client, &server), (&server, &client)] {
                        if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                            carry(from, to, link, closing, carried);
                        }
                    }
                }
            }
            Err(_) => wait::pause(GLANCE),
        }
    }
}

type Piece = (Instant, Vec<u8>);

/// One direction: a thread that reads and notes when each piece is due, and one that delivers them.
fn carry(
    mut from: TcpStream,
    to: TcpStream,
    link: Link,
    closing: &Arc<AtomicBool>,
    carried: &Arc<AtomicU64>,
) {
    let (sender, receiver) = sync_channel::<Piece>(64);
    let carried = Arc::clone(carried);
    let reading_closing = Arc::clone(closing);
    thread::spawn(move || {
        read_pieces(&mut from, &sender, link, &reading_closing);
        let _closed_already = from.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        deliver(&to, &receiver, link, &carried);
        let _closed_already = to.shutdown(Shutdown::Both);
    });
}

fn read_pieces(from: &mut TcpStream, sender: &SyncSender<Piece>, link: Link, closing: &AtomicBool) {
    let _default_is_to_block = from.set_nonblocking(false);
    if from.set_read_timeout(Some(Duration::from_millis(100))).is_err() {
        return;
    }
    let mut buffer = vec![0_u8; 16 * 1024];
    while !closing.load(Ordering::Relaxed) {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if sender
                    .send((Instant::now() + link.latency, buffer[..length].to_vec()))
                    .is_err()
                {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

fn deliver(mut to: &TcpStream, receiver: &Receiver<Piece>, link: Link, carried: &AtomicU64) {
    while let Ok((due, bytes)) = receiver.recv() {
        wait::pause(due.saturating_duration_since(Instant::now()));
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        // Before they arrive: whoever has received them may look at the count at once.
        carried.fetch_add(length, Ordering::Relaxed);
        if to.write_all(&bytes).is_err() {
            return;
        }
        wait::pause(Duration::from_nanos(
            length * 1_000_000_000 / link.bytes_per_second.max(1),
        ));
    }
}
