//! Circuit breaker: how much of a backend one proxy may use at a time.
//!
//! ```yaml
//! breaker:
//!   maxConnections: 100
//!   maxPending: 50                  # requests waiting for a connection
//!   maxRequests: 200
//!   maxRetries: 3
//!   maxRequestsPerConnection: 2
//! ```
//!
//! A missing field is no limit; 0 lets nothing through. The caps hold for all workers of the process together and are
//! exact: a count is raised by compare-and-swap, never past its cap. Whoever takes holds a [`Permit`] that can travel into
//! a response body and gives back on drop.
//!
//! Over a cap there is no wait, but 503 with `UO` at once (an own overflow says nothing about an endpoint: it is never an
//! outlier signal, and never retried). The exception is a request that needs a connection: while it holds a
//! [`PendingPermit`] it may wait for a [`ConnectionPermit`]. Waiters are served in order, across workers; newcomers do not
//! pass them. The cap counts idle connections too, so a pool with idle connections to other endpoints has to close one
//! when [`State::waiting`] says that somebody waits.
//!
//! A config change swaps caps; counts, permits and waiters stand. A lowered cap closes nothing, it lets counts sink.

use crate::backend::Backend;
use crate::doc::Cursor;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub max_connections: Option<u32>,
    pub max_pending: Option<u32>,
    pub max_requests: Option<u32>,
    pub max_retries: Option<u32>,
    pub max_requests_per_connection: Option<u32>,
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            Some(Self {
                max_connections: f.opt("maxConnections", |c| c.u32()),
                max_pending: f.opt("maxPending", |c| c.u32()),
                max_requests: f.opt("maxRequests", |c| c.u32()),
                max_retries: f.opt("maxRetries", |c| c.u32()),
                max_requests_per_connection: f
                    .opt("maxRequestsPerConnection", |c| c.int(1, u32::MAX.into()).map(|n| n as u32)),
            })
        })
    }

    fn cap(&self, of: Resource) -> Option<u32> {
        match of {
            Resource::Connection => self.max_connections,
            Resource::Pending => self.max_pending,
            Resource::Request => self.max_requests,
            Resource::Retry => self.max_retries,
        }
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    Connection,
    /// Requests that wait for a connection.
    Pending,
    Request,
    Retry,
}

impl Resource {
    pub const ALL: [Resource; 4] = [Resource::Connection, Resource::Pending, Resource::Request, Resource::Retry];

    pub const fn word(self) -> &'static str {
        match self {
            Resource::Connection => "connections",
            Resource::Pending => "pending",
            Resource::Request => "requests",
            Resource::Retry => "retries",
        }
    }
}

const UNLIMITED: u32 = u32::MAX;

/// On a cache line of its own: every worker writes the request count.
#[derive(Debug)]
#[repr(align(64))]
struct Gauge {
    count: AtomicU32,
    cap: AtomicU32,
    overflows: AtomicU64,
}

impl Gauge {
    fn new(cap: Option<u32>) -> Self {
        let cap = AtomicU32::new(cap.unwrap_or(UNLIMITED));
        Self { count: AtomicU32::new(0), cap, overflows: AtomicU64::new(0) }
    }

    /// Sequentially consistent, as is `release`: who waits must see a count given back, or be seen by who gives it.
    fn take_within(&self, cap: u32) -> bool {
        self.count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < cap).then(|| n + 1)).is_ok()
    }

    fn take(&self) -> bool {
        self.take_within(self.cap.load(Ordering::Relaxed))
    }

    fn refused(&self) -> bool {
        self.overflows.fetch_add(1, Ordering::Relaxed);
        false
    }
}

#[derive(Debug)]
pub struct State {
    gauges: [Gauge; 4],
    per_connection: AtomicU32,
    /// How many are in `queue`; lets everyone else pass without the lock.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
}

impl State {
    pub fn new(config: &Config) -> Self {
        Self {
            gauges: Resource::ALL.map(|of| Gauge::new(config.cap(of))),
            per_connection: AtomicU32::new(config.max_requests_per_connection.unwrap_or(UNLIMITED)),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
        }
    }

    /// New caps; counts and waiters stand.
    pub fn adopt(&self, config: &Config) {
        for of in Resource::ALL {
            self.gauge(of).cap.store(config.cap(of).unwrap_or(UNLIMITED), Ordering::SeqCst);
        }
        self.per_connection.store(config.max_requests_per_connection.unwrap_or(UNLIMITED), Ordering::Relaxed);
        self.serve();
    }

    /// Raises a count unless its cap is reached. Prefer a [`Permit`], which cannot be forgotten.
    pub fn try_take(&self, of: Resource) -> bool {
        let gauge = self.gauge(of);
        // Who waits for a connection goes first.
        let free = of != Resource::Connection || self.waiting.load(Ordering::SeqCst) == 0;
        (free && gauge.take()) || gauge.refused()
    }

    /// A retry, under a cap that comes from elsewhere (a budget in proportion to requests).
    pub fn try_retry_within(&self, cap: u32) -> bool {
        let gauge = self.gauge(Resource::Retry);
        gauge.take_within(cap) || gauge.refused()
    }

    pub fn release(&self, of: Resource) {
        self.gauge(of).count.fetch_sub(1, Ordering::SeqCst);
        if of == Resource::Connection {
            self.serve();
        }
    }

    pub fn count(&self, of: Resource) -> u32 {
        self.gauge(of).count.load(Ordering::Relaxed)
    }

    /// `None`: no limit.
    pub fn cap(&self, of: Resource) -> Option<u32> {
        Some(self.gauge(of).cap.load(Ordering::Relaxed)).filter(|cap| *cap != UNLIMITED)
    }

    /// How often the cap refused.
    pub fn overflows(&self, of: Resource) -> u64 {
        self.gauge(of).overflows.load(Ordering::Relaxed)
    }

    pub fn max_requests_per_connection(&self) -> Option<u32> {
        Some(self.per_connection.load(Ordering::Relaxed)).filter(|n| *n != UNLIMITED)
    }

    /// How many wait for a connection permit.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn gauge(&self, of: Resource) -> &Gauge {
        &self.gauges[of as usize]
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands free permits to whoever waits. Wakes outside the lock: a waker runs foreign code.
    fn serve(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let woken = self.queue().grant(self.gauge(Resource::Connection), None);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// Waiters for a connection, oldest first; those who have been granted one and do not know it yet are a prefix.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    granted: usize,
    waiters: VecDeque<(u64, Waker)>,
}

impl Queue {
    /// Grants what is free, and says whom to wake; `awake` needs no waking.
    fn grant(&mut self, gauge: &Gauge, awake: Option<u64>) -> SmallVec<[Waker; 4]> {
        let mut woken = SmallVec::new();
        while let Some((key, waker)) = self.waiters.get(self.granted) {
            if !gauge.take() {
                break;
            }
            if Some(*key) != awake {
                woken.push(waker.clone());
            }
            self.granted += 1;
        }
        woken
    }

    fn find(&self, key: u64) -> Option<usize> {
        self.waiters.binary_search_by_key(&key, |(k, _)| *k).ok()
    }

    /// Takes a waiter out; whether it held a grant.
    fn remove(&mut self, at: usize) -> bool {
        self.waiters.remove(at);
        let granted = at < self.granted;
        self.granted -= granted as usize;
        granted
    }
}

/// One count of a backend's breaker, given back on drop.
pub struct Permit<const OF: usize> {
    backend: Arc<Backend>,
}

pub type ConnectionPermit = Permit<{ Resource::Connection as usize }>;
pub type PendingPermit = Permit<{ Resource::Pending as usize }>;
pub type RequestPermit = Permit<{ Resource::Request as usize }>;
pub type RetryPermit = Permit<{ Resource::Retry as usize }>;

impl<const OF: usize> Permit<OF> {
    /// `None`: the cap is reached. (Retries are asked for at the budget, [`crate::budget::retry`].)
    pub fn take(backend: &Arc<Backend>) -> Option<Self> {
        backend.breaker.try_take(Resource::ALL[OF]).then(|| Self::hold(backend))
    }

    /// For a count that has been raised already.
    pub(crate) fn hold(backend: &Arc<Backend>) -> Self {
        Self { backend: backend.clone() }
    }

    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl<const OF: usize> Drop for Permit<OF> {
    fn drop(&mut self) {
        self.backend.breaker.release(Resource::ALL[OF]);
    }
}

impl<const OF: usize> fmt::Debug for Permit<OF> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({} of {})", Resource::ALL[OF].word(), self.backend.id)
    }
}

impl ConnectionPermit {
    /// Waits in line for a permit. Dropping the future leaves the line, and passes on what it was granted meanwhile.
    pub fn wait(backend: &Arc<Backend>) -> Wait {
        Wait { backend: backend.clone(), key: None }
    }
}

/// A place in the line for a connection; see [`ConnectionPermit::wait`].
#[derive(Debug)]
#[must_use = "a future does nothing unless polled"]
pub struct Wait {
    backend: Arc<Backend>,
    key: Option<u64>,
}

impl Future for Wait {
    type Output = ConnectionPermit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ConnectionPermit> {
        let this = &mut *self;
        let state = &this.backend.breaker;
        let gauge = state.gauge(Resource::Connection);
        let mut queue = state.queue();
        let key = match this.key {
            Some(key) => key,
            None => {
                let key = queue.next;
                queue.next += 1;
                queue.waiters.push_back((key, cx.waker().clone()));
                this.key = Some(key);
                // Seen by whoever gives back from here on; what was given back before, `grant` finds.
                state.waiting.fetch_add(1, Ordering::SeqCst);
                key
            }
        };
        // Those ahead are served first, so this may wake others.
        let woken = queue.grant(gauge, Some(key));
        let ready = match queue.find(key) {
            Some(at) if at < queue.granted => {
                queue.remove(at);
                state.waiting.fetch_sub(1, Ordering::SeqCst);
                this.key = None;
                true
            }
            Some(at) => {
                if let Some((_, waker)) = queue.waiters.get_mut(at) {
                    waker.clone_from(cx.waker());
                }
                false
            }
            None => false,
        };
        drop(queue);
        woken.into_iter().for_each(Waker::wake);
        if ready { Poll::Ready(Permit::hold(&this.backend)) } else { Poll::Pending }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let state = &self.backend.breaker;
        let mut queue = state.queue();
        let granted = queue.find(key).is_some_and(|at| queue.remove(at));
        state.waiting.fetch_sub(1, Ordering::SeqCst);
        drop(queue);
        if granted {
            state.release(Resource::Connection);
        }
    }
}

#[cfg(test)]
mod tests;
