//! Connections to endpoints, kept per worker, endpoint and what travels on them.
//!
//! HTTP/1: a stack of idle connections, the warmest on top. HTTP/2: one connection for everybody, another only when the
//! peer's streams are used up. Who needs a new connection asks the backend's breaker; who may not have one waits, within the
//! breaker's pending cap, for whichever comes first: a connection given back here or a permit given back anywhere.

use super::dial::{Configs, Inside, dial, security};
use crate::http::sender::Sender;
use crate::http::{http1, http2};
use crate::worker::Worker;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use weft_policy::backend::{self, Backend};
use weft_policy::breaker::{ConnectionPermit, PendingPermit};
use weft_policy::endpoint::Endpoint;
use weft_policy::listener::Limits;
use weft_policy::mtls::UpstreamTls;
use weft_policy::reason::Reason;

/// Streams on one HTTP/2 connection, whatever the peer allows: past this a second connection shares better than it costs.
const STREAMS: usize = 1000;

#[derive(Default)]
pub struct Pools {
    pools: RefCell<FxHashMap<Key, Rc<Pool>>>,
    pub(super) configs: Configs,
}

/// The endpoint's address in memory is its name here: the pool holds the endpoint, so it is not reused while the pool lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    endpoint: usize,
    inside: Inside,
}

struct Pool {
    backend: Arc<Backend>,
    endpoint: Arc<Endpoint>,
    /// What its connections were secured as.
    tls: UpstreamTls,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    /// A connection that many may wait for is being made.
    dialling: Cell<bool>,
    waiters: RefCell<VecDeque<oneshot::Sender<Handed>>>,
    open: Rc<Cell<usize>>,
    /// Connections that are older carry no new request.
    since: Cell<Option<Instant>>,
}

struct Idle {
    sender: Sender,
    since: Instant,
    born: Instant,
    uses: u32,
}

/// An HTTP/2 connection.
struct Shared {
    sender: RefCell<Sender>,
    in_flight: Cell<usize>,
    uses: Cell<u32>,
    born: Instant,
    idle_since: Cell<Instant>,
    retired: Cell<bool>,
}

enum Handed {
    One(Idle),
    /// Look again: a shared connection is there, or its dial failed.
    Again(Option<Reason>),
}

/// A connection to send one request on. Dropped, it closes what it alone used; `reuse` gives it back.
pub struct Lease {
    pub sender: Sender,
    kind: Kind,
    pool: Rc<Pool>,
}

enum Kind {
    One { born: Instant, uses: u32 },
    Shared(Rc<Shared>),
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Kind::Shared(shared) = &self.kind {
            let left = shared.in_flight.get() - 1;
            shared.in_flight.set(left);
            if left == 0 {
                shared.idle_since.set(Instant::now());
                if shared.retired.get() || self.pool.endpoint.is_gone() {
                    self.pool.shared.borrow_mut().retain(|s| !Rc::ptr_eq(s, shared));
                }
            }
        }
    }
}

impl Lease {
    pub fn is_shared(&self) -> bool {
        matches!(self.kind, Kind::Shared(_))
    }

    /// The exchange ended cleanly on both sides: another request may use the connection.
    pub fn reuse(self, now: Instant) {
        let Kind::One { born, uses } = self.kind else { return };
        let spent = self.pool.backend.breaker.max_requests_per_connection().is_some_and(|max| uses >= max);
        let old = self.pool.since.get().is_some_and(|since| born < since);
        if spent || old || self.sender.is_closed() || self.pool.endpoint.is_gone() {
            return;
        }
        let idle = Idle { sender: self.sender.clone(), since: now, born, uses };
        self.pool.give(idle);
    }
}

impl Pool {
    fn give(&self, mut idle: Idle) {
        loop {
            let Some(waiter) = self.waiters.borrow_mut().pop_front() else { break };
            match waiter.send(Handed::One(idle)) {
                Ok(()) => return,
                Err(Handed::One(back)) => idle = back,
                Err(Handed::Again(_)) => return,
            }
        }
        // Somebody waits for a permit on another worker or for another endpoint: a kept connection would starve them.
        if self.backend.breaker.waiting() == 0 {
            self.idle.borrow_mut().push(idle);
        }
    }

    fn take_idle(&self, config: &backend::Config) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        while let Some(one) = idle.pop() {
            let aged = config.connect.max_age.is_some_and(|age| one.born.elapsed() > age);
            if !one.sender.is_closed() && !aged && !self.endpoint.is_gone() {
                return Some(one);
            }
        }
        None
    }

    fn take_shared(&self) -> Option<Rc<Shared>> {
        let shared = self.shared.borrow();
        // A connection that has heard goodbye is closed to new streams while its last ones go on.
        let free = |s: &&Rc<Shared>| {
            let sender = s.sender.borrow();
            !s.retired.get() && !sender.is_closed() && s.in_flight.get() < sender.max_streams().min(STREAMS)
        };
        shared.iter().find(free).cloned()
    }

    fn wake_all(&self, why: Option<Reason>) {
        for waiter in self.waiters.take() {
            let _ = waiter.send(Handed::Again(why));
        }
    }
}

impl Pools {
    fn pool(
        &self,
        backend: &Arc<Backend>,
        config: &backend::Config,
        endpoint: &Arc<Endpoint>,
        inside: Inside,
    ) -> Rc<Pool> {
        let key = Key { endpoint: Arc::as_ptr(endpoint) as usize, inside };
        let mut pools = self.pools.borrow_mut();
        if let Some(pool) = pools.get(&key).filter(|pool| pool.tls == config.tls) {
            return pool.clone();
        }
        // Nothing travels on connections that were secured otherwise than configured now: those of a pool that is replaced
        // here end with the requests they carry.
        let pool = Rc::new(Pool {
            backend: backend.clone(),
            endpoint: endpoint.clone(),
            tls: config.tls.clone(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            dialling: Cell::new(false),
            waiters: RefCell::default(),
            open: Rc::default(),
            since: Cell::default(),
        });
        pools.insert(key, pool.clone());
        pool
    }

    /// Connections open towards an endpoint, for the admin's eyes.
    pub fn open_to(&self, endpoint: &Arc<Endpoint>) -> usize {
        let pools = self.pools.borrow();
        pools.values().filter(|p| Arc::ptr_eq(&p.endpoint, endpoint)).map(|p| p.open.get()).sum()
    }

    /// Our certificate, or what we trust, has changed: what was proven by others carries what it carries now, and nothing more.
    pub fn renew(&self, now: Instant) {
        for pool in self.pools.borrow().values().filter(|p| !matches!(p.tls, UpstreamTls::Originate(_))) {
            pool.since.set(Some(now));
            pool.idle.borrow_mut().clear();
            pool.shared.borrow_mut().retain(|shared| {
                shared.retired.set(true);
                shared.in_flight.get() > 0
            });
        }
    }

    /// Once a second: what is too old or belongs to nobody goes.
    pub fn tick(&self, now: Instant) {
        self.pools.borrow_mut().retain(|_, pool| {
            let config = pool.backend.config.load();
            let gone = pool.endpoint.is_gone();
            let limit = config.connect.idle_timeout.unwrap_or(Duration::MAX);
            let age = config.connect.max_age.unwrap_or(Duration::MAX);
            let starving = pool.backend.breaker.waiting() > 0;
            pool.idle.borrow_mut().retain(|idle| {
                !gone && !starving && !idle.sender.is_closed() && now - idle.since < limit && now - idle.born < age
            });
            pool.shared.borrow_mut().retain(|shared| {
                let idle = shared.in_flight.get() == 0;
                if gone || now - shared.born >= age || shared.sender.borrow().is_closed() {
                    shared.retired.set(true);
                }
                !(idle && (shared.retired.get() || now - shared.idle_since.get() >= limit))
            });
            let empty = pool.idle.borrow().is_empty() && pool.shared.borrow().is_empty();
            !(empty && pool.open.get() == 0 && Rc::strong_count(pool) == 1)
        });
    }

    /// Makes room under a connection cap: one idle connection of the backend goes, if there is one.
    fn evict_idle(&self, backend: &Arc<Backend>) {
        for pool in self.pools.borrow().values().filter(|p| Arc::ptr_eq(&p.backend, backend)) {
            if pool.idle.borrow_mut().pop().is_some() {
                return;
            }
        }
    }
}

/// A connection to the endpoint: a kept one, a shared one, or a new one.
pub async fn lease(
    worker: &Rc<Worker>,
    backend: &Arc<Backend>,
    config: &backend::Config,
    endpoint: &Arc<Endpoint>,
    inside: Inside,
    limits: &Limits,
) -> Result<Lease, Reason> {
    // Refused before a connection is looked for: one made under other settings must not serve.
    security(worker, config, endpoint)?;
    let pool = worker.pools.pool(backend, config, endpoint, inside);
    if inside == Inside::Http2 {
        if let Some(shared) = pool.take_shared() {
            return Ok(share(&pool, shared));
        }
    } else {
        while let Some(idle) = pool.take_idle(config) {
            if let Some(lease) = take_up(&pool, idle).await {
                return Ok(lease);
            }
        }
    }
    // Whoever finds a connection does not carry along the room that making one takes.
    Box::pin(make(worker, pool, inside, limits)).await
}

/// Makes a connection, or waits for one, as the breaker allows.
async fn make(worker: &Rc<Worker>, pool: Rc<Pool>, inside: Inside, limits: &Limits) -> Result<Lease, Reason> {
    let backend = &pool.backend;
    // Bounded: each turn either ends or waits for another to have failed.
    for _ in 0..8 {
        if inside == Inside::Http2 {
            if let Some(shared) = pool.take_shared() {
                return Ok(share(&pool, shared));
            }
            if pool.dialling.get() {
                match wait_for_dial(&pool, backend).await? {
                    None => continue,
                    Some(reason) => return Err(reason),
                }
            }
            // Sharing is what HTTP/2 is for, so a worker may always have its first connection (as Envoy's pools do).
            let permit = match ConnectionPermit::take(backend) {
                Some(permit) => Some(permit),
                None if pool.shared.borrow().is_empty() => None,
                None => match wait(&pool, backend, worker).await? {
                    Waited::Permit(permit) => Some(permit),
                    Waited::Handed(_) => continue,
                },
            };
            let shared = dial_shared(worker, &pool, permit, limits).await?;
            return Ok(share(&pool, shared));
        }
        let permit = match ConnectionPermit::take(backend) {
            Some(permit) => permit,
            None => match wait(&pool, backend, worker).await? {
                Waited::Permit(permit) => permit,
                Waited::Handed(Handed::Again(_)) => continue,
                Waited::Handed(Handed::One(idle)) => match take_up(&pool, idle).await {
                    Some(lease) => return Ok(lease),
                    None => continue,
                },
            },
        };
        let io = dial(worker, &backend.config.load_full(), &pool.endpoint, inside).await?;
        let closed = count_open(&pool, permit);
        let mut sender = http1::client::connect(io, limits, closed);
        if !sender.ready().await {
            return Err(Reason::ConnectFailed);
        }
        let kind = Kind::One { born: Instant::now(), uses: 1 };
        return Ok(Lease { sender, kind, pool: pool.clone() });
    }
    Err(Reason::UpstreamClosed)
}

/// A kept HTTP/1 connection, once it has finished its last exchange; `None` if it ended instead.
async fn take_up(pool: &Rc<Pool>, idle: Idle) -> Option<Lease> {
    let mut sender = idle.sender;
    let kind = Kind::One { born: idle.born, uses: idle.uses + 1 };
    sender.ready().await.then(|| Lease { sender, kind, pool: pool.clone() })
}

fn share(pool: &Rc<Pool>, shared: Rc<Shared>) -> Lease {
    shared.in_flight.set(shared.in_flight.get() + 1);
    let uses = shared.uses.get() + 1;
    shared.uses.set(uses);
    if pool.backend.breaker.max_requests_per_connection().is_some_and(|max| uses >= max) {
        shared.retired.set(true);
        pool.shared.borrow_mut().retain(|s| !Rc::ptr_eq(s, &shared));
    }
    let sender = shared.sender.borrow().clone();
    Lease { sender, kind: Kind::Shared(shared), pool: pool.clone() }
}

/// Runs when a connection has ended: its permit goes back.
fn count_open<P: 'static>(pool: &Rc<Pool>, permit: P) -> impl FnOnce() + 'static + use<P> {
    let open = pool.open.clone();
    open.set(open.get() + 1);
    move || {
        open.set(open.get() - 1);
        drop(permit);
    }
}

async fn dial_shared(
    worker: &Rc<Worker>,
    pool: &Rc<Pool>,
    permit: Option<ConnectionPermit>,
    limits: &Limits,
) -> Result<Rc<Shared>, Reason> {
    /// Whoever waits for this dial is told how it ended, also when the dialler is cancelled.
    struct Dialling<'a>(&'a Pool, Option<Reason>);
    impl Drop for Dialling<'_> {
        fn drop(&mut self) {
            self.0.dialling.set(false);
            self.0.wake_all(self.1);
        }
    }
    pool.dialling.set(true);
    let mut dialling = Dialling(pool, None);
    let made = async {
        let io = dial(worker, &pool.backend.config.load_full(), &pool.endpoint, Inside::Http2).await?;
        let closed = count_open(pool, permit);
        let (weak, retire) = (Rc::downgrade(pool), Rc::new(Cell::new(None::<std::rc::Weak<Shared>>)));
        let retired = retire.clone();
        let client = http2::connect(io, limits, move || {
            closed();
            let shared = retired.take().and_then(|s| s.upgrade());
            if let (Some(pool), Some(shared)) = (weak.upgrade(), shared) {
                shared.retired.set(true);
                pool.shared.borrow_mut().retain(|s| !Rc::ptr_eq(s, &shared));
            }
        })
        .await?;
        let now = Instant::now();
        let shared = Rc::new(Shared {
            sender: RefCell::new(Sender::Http2(client)),
            in_flight: Cell::new(0),
            uses: Cell::new(0),
            born: now,
            idle_since: Cell::new(now),
            retired: Cell::new(false),
        });
        retire.set(Some(Rc::downgrade(&shared)));
        pool.shared.borrow_mut().push(shared.clone());
        Ok(shared)
    }
    .await;
    dialling.1 = made.as_ref().err().copied();
    made
}

/// Waits for another request's dial. `Some(reason)`: it failed, and this one would too.
async fn wait_for_dial(pool: &Rc<Pool>, backend: &Arc<Backend>) -> Result<Option<Reason>, Reason> {
    let _pending = PendingPermit::take(backend).ok_or(Reason::Overflow)?;
    let (tell, told) = oneshot::channel();
    pool.waiters.borrow_mut().push_back(tell);
    match told.await {
        Ok(Handed::Again(why)) => Ok(why),
        _ => Ok(None),
    }
}

enum Waited {
    Handed(Handed),
    Permit(ConnectionPermit),
}

async fn wait(pool: &Rc<Pool>, backend: &Arc<Backend>, worker: &Worker) -> Result<Waited, Reason> {
    let _pending = PendingPermit::take(backend).ok_or(Reason::Overflow)?;
    let (tell, mut told) = oneshot::channel();
    pool.waiters.borrow_mut().push_back(tell);
    let mut permit = pin!(ConnectionPermit::wait(backend));
    worker.pools.evict_idle(backend);
    poll_fn(|cx| {
        if let Poll::Ready(handed) = std::pin::Pin::new(&mut told).poll(cx) {
            return Poll::Ready(Ok(Waited::Handed(handed.unwrap_or(Handed::Again(None)))));
        }
        permit.as_mut().poll(cx).map(|permit| Ok(Waited::Permit(permit)))
    })
    .await
}
