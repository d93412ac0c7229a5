//! The worker's side of batching: which sockets have something to send, and when they send it.
//!
//! `run` sleeps until the first socket of a turn becomes dirty, goes once more behind whatever else is ready, then flushes
//! every dirty socket once. (The runtime's own yield would come back only after another look at the reactor: a system call
//! for every turn.) A socket that the kernel has no
//! room for waits under a waker of its own, so any number of stuck peers cost nothing until one becomes writable.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Wake, Waker};

use super::inner::Inner;
use super::session::Out;

const READ_SIZE: usize = 128 * 1024;
/// Before the read buffer, for the part of a record that the last read ended with.
pub(super) const HEADROOM: usize = 20 * 1024;
const SPARE: usize = 16;
const SPARE_BYTES: usize = 96 * 1024;
const FRESH_BYTES: usize = 8 * 1024;

/// One worker's. Cloning shares it.
#[derive(Clone, Default)]
pub struct Flusher(Rc<Worker>);

/// Counts of a worker since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads that returned something.
    pub reads: u64,
    pub bytes_read: u64,
    /// Write calls that took something.
    pub writes: u64,
    pub bytes_written: u64,
    /// TLS records made of application data.
    pub records: u64,
    /// Turns in which the flusher had something to do.
    pub turns: u64,
    /// Times a socket had to wait for its peer.
    pub blocked: u64,
    /// The most any socket had waiting to be sent, in bytes.
    pub most_buffered: usize,
    /// Open streams.
    pub streams: usize,
}

#[derive(Default)]
pub(super) struct Worker {
    dirty: RefCell<Vec<Rc<RefCell<Inner>>>>,
    streams: RefCell<HashMap<u64, Weak<RefCell<Inner>>>>,
    last_id: Cell<u64>,
    writable: Arc<Writable>,
    waker: RefCell<Option<Waker>>,
    read: RefCell<Vec<u8>>,
    out: RefCell<Out>,
    spare: RefCell<Vec<Vec<u8>>>,
    stats: Cell<Stats>,
}

/// Sockets the kernel has room for again. Wakers must be `Send`, hence a mutex that only one thread ever takes.
#[derive(Default)]
struct Writable(Mutex<(Vec<u64>, Option<Waker>)>);

struct SocketWaker {
    id: u64,
    writable: Arc<Writable>,
}

impl Wake for SocketWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waker = {
            let mut writable = self.writable.0.lock().unwrap_or_else(PoisonError::into_inner);
            writable.0.push(self.id);
            writable.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Flusher {
    pub fn new() -> Self {
        Self::default()
    }

    /// Must be polled on the streams' thread for as long as they live; spawn it once per worker. It never ends.
    pub async fn run(&self) {
        // Its work is bounded by what is buffered, and a socket cut off by the cooperative budget would look blocked.
        tokio::task::unconstrained(self.0.run()).await;
    }

    pub fn stats(&self) -> Stats {
        Stats { streams: self.0.streams.borrow().len(), ..self.0.stats.get() }
    }

    pub(super) fn worker(&self) -> &Worker {
        &self.0
    }
}

/// Lets the tasks that are ready run first, those included that they make ready meanwhile.
async fn behind_the_others() {
    let mut gone = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut gone, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Worker {
    async fn run(&self) {
        let mut turn = Vec::new();
        let mut writable = Vec::new();
        loop {
            poll_fn(|cx| {
                let mut shared = self.writable.0.lock().unwrap_or_else(PoisonError::into_inner);
                if !self.dirty.borrow().is_empty() || !shared.0.is_empty() {
                    return Poll::Ready(());
                }
                shared.1 = Some(cx.waker().clone());
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            // A wake-up from here on would only cut the yield short.
            self.waker.borrow_mut().take();
            self.writable.0.lock().unwrap_or_else(PoisonError::into_inner).1.take();
            behind_the_others().await;
            self.count(|s| s.turns += 1);
            std::mem::swap(&mut writable, &mut self.writable.0.lock().unwrap_or_else(PoisonError::into_inner).0);
            for id in writable.drain(..) {
                let inner = self.streams.borrow().get(&id).and_then(Weak::upgrade);
                if let Some(inner) = inner {
                    inner.borrow_mut().unblocked();
                    self.flush(&inner);
                }
            }
            std::mem::swap(&mut turn, &mut *self.dirty.borrow_mut());
            for inner in turn.drain(..) {
                inner.borrow_mut().scheduled = false;
                self.flush(&inner);
            }
        }
    }

    fn flush(&self, inner: &Rc<RefCell<Inner>>) {
        let waker = {
            let mut inner = inner.borrow_mut();
            inner.flush(self);
            inner.take_writer()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn mark_if_needed(&self, inner: &Rc<RefCell<Inner>>) {
        {
            let mut inner = inner.borrow_mut();
            if inner.scheduled || !inner.wants_flush() {
                return;
            }
            inner.scheduled = true;
        }
        self.dirty.borrow_mut().push(inner.clone());
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn next_id(&self) -> u64 {
        self.last_id.set(self.last_id.get() + 1);
        self.last_id.get()
    }

    pub(super) fn waker_of(&self, id: u64) -> Waker {
        Arc::new(SocketWaker { id, writable: self.writable.clone() }).into()
    }

    pub(super) fn register(&self, id: u64, inner: &Rc<RefCell<Inner>>) {
        self.streams.borrow_mut().insert(id, Rc::downgrade(inner));
    }

    pub(super) fn forget(&self, id: u64) {
        let mut streams = self.streams.borrow_mut();
        streams.remove(&id);
        // A crowd that has left takes its room along.
        if streams.capacity() > 1024 && streams.len() < streams.capacity() / 8 {
            streams.shrink_to_fit();
        }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// The buffer all reads of this worker go through; give it back.
    pub(super) fn take_read(&self) -> Vec<u8> {
        let mut buffer = self.read.take();
        buffer.resize(HEADROOM + READ_SIZE, 0);
        buffer
    }

    pub(super) fn give_read(&self, buffer: Vec<u8>) {
        self.read.replace(buffer);
    }

    pub(super) fn take_out(&self) -> Out {
        let mut out = self.out.take();
        out.clear();
        out
    }

    pub(super) fn give_out(&self, out: Out) {
        self.out.replace(out);
    }

    /// An empty buffer for plaintext that waits for the turn's end.
    pub(super) fn take_spare(&self) -> Vec<u8> {
        self.spare.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(FRESH_BYTES))
    }

    pub(super) fn give_spare(&self, mut buffer: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if buffer.capacity() > 0 && buffer.capacity() <= SPARE_BYTES && spare.len() < SPARE {
            buffer.clear();
            spare.push(buffer);
        }
    }
}
