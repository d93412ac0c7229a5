//! The doors of a worker: sockets that are opened, kept and closed as configuration says, and the loops that accept.
//!
//! Every worker binds its own socket to the same port (SO_REUSEPORT), so the kernel spreads connections and workers share
//! nothing. A door that a new configuration keeps is not touched; its connections find the newest settings in it. An accept
//! loop never ends because of an error: where the system has no descriptors or memory left, it waits and tries again.

use super::connection;
use super::counters::{self, Rejected};
use super::tls::Terminator;
use crate::config::snapshot::Snapshot;
use crate::worker::Worker;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use weft_policy::listener::{Config, Role};

const BACKOFF: Duration = Duration::from_millis(10);
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// Connections that are accepted before others get a turn.
const BATCH: usize = 32;

/// What all connections of a listener share on one worker.
pub struct Door {
    config: RefCell<Arc<Config>>,
    pub tls: Terminator,
    /// Over all workers.
    open: Arc<AtomicUsize>,
}

impl Door {
    pub fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Counts a connection in, unless there are too many.
    fn enter(&self) -> Option<Entered> {
        let max = self.config.borrow().limits.max_connections as usize;
        let entered = Entered(self.open.clone());
        (self.open.fetch_add(1, Ordering::Relaxed) < max).then_some(entered)
    }
}

struct Entered(Arc<AtomicUsize>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Closed {
    worker: Rc<Worker>,
    role: Role,
    _entered: Entered,
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.worker.recorder.connection_closed(self.role);
    }
}

/// What workers must agree on: the port that a listener on port 0 got, and how many connections it has.
#[derive(Default)]
pub struct Ports(Mutex<FxHashMap<(Arc<str>, SocketAddr), Port>>);

#[derive(Clone)]
struct Port {
    bound: SocketAddr,
    open: Arc<AtomicUsize>,
    holders: usize,
}

impl Ports {
    fn bind(&self, config: &Config) -> io::Result<(std::net::TcpListener, Arc<AtomicUsize>)> {
        let key = (config.name.clone(), config.address);
        let mut ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ports.get(&key).map(|p| p.bound);
        let socket = crate::sys::sockopt::listen(known.unwrap_or(config.address))?;
        let bound = socket.local_addr()?;
        let port = ports.entry(key).or_insert_with(|| Port { bound, open: Arc::default(), holders: 0 });
        port.holders += 1;
        Ok((socket, port.open.clone()))
    }

    fn release(&self, config: &Config) {
        let key = (config.name.clone(), config.address);
        let mut ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = ports.get_mut(&key) {
            port.holders -= 1;
            if port.holders == 0 {
                ports.remove(&key);
            }
        }
    }

    /// Where a listener is really bound.
    pub fn bound(&self, config: &Config) -> Option<SocketAddr> {
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ports.get(&(config.name.clone(), config.address)).map(|p| p.bound)
    }
}

struct Open {
    door: Rc<Door>,
    socket: Rc<TcpListener>,
    accepting: AbortHandle,
}

/// The doors of one worker.
#[derive(Default)]
pub struct Listeners {
    open: FxHashMap<(Arc<str>, SocketAddr), Open>,
    /// Those that could not be bound, to say so once.
    failed: FxHashMap<(Arc<str>, SocketAddr), String>,
}

impl Listeners {
    /// Opens, updates and closes doors; what could not be opened is tried again the next time. New ones first, so that
    /// nothing is closed before its successor stands.
    pub fn apply(&mut self, worker: &Rc<Worker>, snapshot: &Snapshot) -> Result<(), String> {
        let mut first_error = Ok(());
        for config in snapshot.listeners() {
            let key = (config.name.clone(), config.address);
            if let Some(open) = self.open.get(&key) {
                if !Arc::ptr_eq(&open.door.config.borrow(), config) {
                    open.door.config.replace(config.clone());
                }
                continue;
            }
            match self.bind(worker, config) {
                Ok(open) => {
                    self.failed.remove(&key);
                    self.open.insert(key, open);
                }
                Err(error) => {
                    let text = format!("listener {}: {} cannot be bound: {error}", config.name, config.address);
                    if self.failed.insert(key, text.clone()).as_ref() != Some(&text) {
                        tracing::error!(worker = worker.id, "{text}");
                    }
                    first_error = first_error.and(Err(text));
                }
            }
        }
        let kept = |key: &(Arc<str>, SocketAddr)| snapshot.listener(&key.0).is_some_and(|l| l.address == key.1);
        self.failed.retain(|key, _| kept(key));
        let gone: Vec<_> = self.open.keys().filter(|key| !kept(key)).cloned().collect();
        for key in gone {
            if let Some(open) = self.open.remove(&key) {
                close(worker, open);
            }
        }
        first_error
    }

    /// Some door could not be opened.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    fn bind(&self, worker: &Rc<Worker>, config: &Arc<Config>) -> io::Result<Open> {
        let (socket, connections) = worker.shared.ports.bind(config)?;
        let address = socket.local_addr()?;
        let socket = Rc::new(TcpListener::from_std(socket)?);
        let door =
            Rc::new(Door { config: RefCell::new(config.clone()), tls: Terminator::default(), open: connections });
        let accepting =
            tokio::task::spawn_local(accept_loop(worker.clone(), socket.clone(), door.clone())).abort_handle();
        tracing::info!(listener = %config.name, role = config.role.word(), %address, worker = worker.id, "listening");
        Ok(Open { door, socket, accepting })
    }

    /// No new connections from here on. What the kernel has queued already is still served.
    pub fn close_all(&mut self, worker: &Rc<Worker>) {
        for (_, open) in self.open.drain() {
            close(worker, open);
        }
    }
}

fn close(worker: &Rc<Worker>, open: Open) {
    open.accepting.abort();
    let config = open.door.config();
    // Connections in the kernel's queue would be reset with the socket.
    let waker = std::task::Waker::noop();
    let mut cx = std::task::Context::from_waker(waker);
    for _ in 0..config.limits.max_connections {
        match open.socket.poll_accept(&mut cx) {
            std::task::Poll::Ready(Ok((tcp, peer))) => take(worker, &open.door, tcp, peer),
            std::task::Poll::Ready(Err(error)) if is_of_one(&error) => {}
            _ => break,
        }
    }
    worker.shared.ports.release(&config);
    tracing::info!(listener = %config.name, worker = worker.id, "no longer listening");
}

async fn accept_loop(worker: Rc<Worker>, socket: Rc<TcpListener>, door: Rc<Door>) {
    let mut backoff = BACKOFF;
    let mut batch = 0;
    loop {
        match socket.accept().await {
            Ok((tcp, peer)) => {
                backoff = BACKOFF;
                take(&worker, &door, tcp, peer);
                batch += 1;
                if batch % BATCH == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if is_of_one(&error) => {}
            Err(error) => {
                counters::accept_failed();
                if backoff == BACKOFF {
                    tracing::warn!(listener = %door.config().name, %error, "cannot accept, waiting");
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }
}

/// Errors of the connection that would have been accepted, not of accepting.
fn is_of_one(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionAborted
            | K::ConnectionReset
            | K::Interrupted
            | K::NetworkUnreachable
            | K::HostUnreachable
            | K::NetworkDown
    ) || matches!(error.raw_os_error(), Some(libc::EPROTO | libc::EPERM))
}

/// The process or the system is out of descriptors or memory.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn take(worker: &Rc<Worker>, door: &Rc<Door>, tcp: TcpStream, peer: SocketAddr) {
    let Some(entered) = door.enter() else {
        counters::rejected(Rejected::MaxConnections);
        crate::sys::sockopt::reset_on_close(&tcp);
        return;
    };
    let (of, door) = (worker.clone(), door.clone());
    worker.live.spawn(|ticket| async move {
        let role = door.config().role;
        of.recorder.connection_opened(role);
        let _closed = Closed { worker: of.clone(), role, _entered: entered };
        connection::run(of, door, tcp, peer, ticket).await;
    });
}
