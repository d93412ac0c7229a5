//! The live connections of a worker, and what they were admitted as.
//!
//! Each runs in a task of its own, so a panic or a slow peer concerns nobody else. The list exists for three questions: how
//! many are left at the end of a drain, which no longer stand under a changed policy, and which task to cut. An idle
//! connection pays one entry for it and no wake-up.

use super::counters::{self, Rejected};
use crate::config::snapshot::Snapshot;
use crate::sys::sockopt;
use crate::telemetry::record::TcpRecord;
use crate::worker::Conn;
use rustc_hash::FxHashMap;
use slab::Slab;
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use weft_policy::listener::{self, Clients};
use weft_policy::mtls::Mode;
use weft_tls::{PeerIdentity, Taking, TrustBundle};

#[derive(Clone, Default)]
pub struct Live(Rc<Inner>);

#[derive(Default)]
struct Inner {
    entries: RefCell<Slab<Entry>>,
    emptied: Notify,
}

#[derive(Default)]
struct Entry {
    task: Option<AbortHandle>,
    /// Once it is known what the connection is. Before that, it is judged by the listener's newest config anyway.
    conn: Option<Rc<Conn>>,
    record: Option<Rc<TcpRecord>>,
    /// Of bytes that go to a peer of the mesh: who that is.
    upstream: Option<Arc<PeerIdentity>>,
    patience: Option<Patience>,
}

/// How long a client may leave unread what waits for it.
struct Patience {
    taking: Taking,
    limit: Duration,
    /// Bytes it had taken, and when that was new.
    seen: Option<(u64, Instant)>,
}

impl Patience {
    fn is_over(&mut self, now: Instant) -> bool {
        let Some(taken) = self.taking.taken(sockopt::unsent) else {
            self.seen = None;
            return false;
        };
        match self.seen {
            Some((before, since)) if before == taken => now - since >= self.limit,
            _ => {
                self.seen = Some((taken, now));
                false
            }
        }
    }
}

/// A connection's place in the list, held by its task.
pub struct Ticket {
    live: Live,
    key: usize,
}

impl Live {
    /// Runs a connection. A panic ends it alone, is counted, and is told by the panic hook.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, make: impl FnOnce(Ticket) -> F) {
        let key = self.0.entries.borrow_mut().insert(Entry::default());
        let connection = make(Ticket { live: self.clone(), key });
        let task = tokio::task::spawn_local(connection).abort_handle();
        if let Some(entry) = self.0.entries.borrow_mut().get_mut(key) {
            entry.task = Some(task);
        }
    }

    pub fn len(&self) -> usize {
        self.0.entries.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resolves when no connection is left.
    pub async fn emptied(&self) {
        loop {
            let emptied = self.0.emptied.notified();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Cuts what a new configuration does not allow any more.
    pub fn recheck(&self, snapshot: &Snapshot) -> usize {
        let cut = self.cut(|conn| conn.is_some_and(|conn| !stands(conn, snapshot)));
        for _ in 0..cut {
            counters::rejected(Rejected::Policy);
        }
        cut
    }

    /// Cuts what these roots do not prove any more.
    pub fn distrust(&self, bundle: &TrustBundle) -> usize {
        // Many connections are of one peer.
        let mut known: FxHashMap<*const PeerIdentity, bool> = FxHashMap::default();
        let mut proven = |peer: &Option<Arc<PeerIdentity>>| {
            let Some(peer) = peer else { return true };
            *known.entry(Arc::as_ptr(peer)).or_insert_with(|| peer.is_proven_by(bundle))
        };
        let mut tasks = Vec::new();
        for (_, entry) in &*self.0.entries.borrow() {
            let client = entry.conn.as_ref().is_none_or(|conn| proven(&conn.peer.identity));
            if !client || !proven(&entry.upstream) {
                tasks.extend(entry.task.clone());
            }
        }
        tasks.iter().for_each(AbortHandle::abort);
        for _ in &tasks {
            counters::rejected(Rejected::Policy);
        }
        tasks.len()
    }

    pub fn cut_all(&self) -> usize {
        self.cut(|_| true)
    }

    /// Cuts clients that do not take what waits for them; called about once a second.
    pub fn end_stalled(&self, now: Instant) {
        let mut tasks = Vec::new();
        for (_, entry) in &mut *self.0.entries.borrow_mut() {
            if let Some(patience) = &mut entry.patience
                && patience.is_over(now)
            {
                patience.taking.reset_on_close();
                counters::stalled("socket");
                tasks.extend(entry.task.clone());
            }
        }
        tasks.iter().for_each(AbortHandle::abort);
    }

    fn cut(&self, doomed: impl Fn(Option<&Conn>) -> bool) -> usize {
        let mut tasks = Vec::new();
        for (_, entry) in &*self.0.entries.borrow() {
            if doomed(entry.conn.as_deref()) {
                tasks.extend(entry.task.clone());
            }
        }
        // A task that is cut leaves the list; not while it is being walked.
        tasks.iter().for_each(AbortHandle::abort);
        tasks.len()
    }

    /// Byte connections, whose counts must not wait for their end.
    pub fn each_record(&self, mut visit: impl FnMut(&TcpRecord)) {
        for (_, entry) in &*self.0.entries.borrow() {
            if let Some(record) = &entry.record {
                visit(record);
            }
        }
    }
}

impl Ticket {
    /// From now on the connection is re-checked when configuration changes.
    pub fn admit(&self, conn: Rc<Conn>) {
        if let Some(entry) = self.live.0.entries.borrow_mut().get_mut(self.key) {
            entry.conn = Some(conn);
        }
    }

    /// From now on the client must take what is sent to it.
    pub fn limit_stall(&self, taking: Taking, limit: Duration) {
        if limit.is_zero() {
            return;
        }
        if let Some(entry) = self.live.0.entries.borrow_mut().get_mut(self.key) {
            entry.patience = Some(Patience { taking, limit, seen: None });
        }
    }

    /// The bytes go to this peer of the mesh.
    pub fn towards(&self, peer: Option<Arc<PeerIdentity>>) {
        if let Some(entry) = self.live.0.entries.borrow_mut().get_mut(self.key) {
            entry.upstream = peer;
        }
    }

    /// Bytes are counted here while the connection lasts.
    pub fn watch(&self, record: &Rc<TcpRecord>) {
        if let Some(entry) = self.live.0.entries.borrow_mut().get_mut(self.key) {
            entry.record = Some(record.clone());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if std::thread::panicking() {
            counters::panicked();
        }
        // Dropped after the borrow: the last holder of a connection may have more to do.
        let entry = self.live.0.entries.borrow_mut().try_remove(self.key);
        drop(entry);
        if self.live.is_empty() {
            self.live.0.emptied.notify_waiters();
        }
    }
}

/// Whether a connection would be let in today.
pub fn stands(conn: &Conn, snapshot: &Snapshot) -> bool {
    let Some(today) = snapshot.listener(&conn.listener.name) else { return false };
    if today.address != conn.listener.address || today.role != conn.listener.role {
        return false;
    }
    if !today.role.is_inbound() {
        return true;
    }
    if conn.mesh { allowed(conn, today) } else { today.mtls.mode_of(conn.destination.port()) != Mode::Strict }
}

fn allowed(conn: &Conn, listener: &listener::Config) -> bool {
    let Some(identity) = &conn.peer.identity else { return matches!(listener.clients, Clients::Any) };
    match &listener.clients {
        Clients::Any => true,
        Clients::Ids(ids) => identity.spiffe.as_ref().is_some_and(|id| ids.contains(id)),
        // Proven at the handshake by the rules of certificates; here only a change of the name counts.
        name @ Clients::DnsName(_) => *name == conn.listener.clients,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A panic costs the connection it happens in, and nobody else; the list forgets it.
    #[tokio::test]
    async fn a_panic_is_one_connections_end() {
        tokio::task::LocalSet::new().run_until(panics()).await;
    }

    async fn panics() {
        let live = Live::default();
        let (go, done) = (Rc::new(Notify::new()), Rc::new(Cell::new(0)));
        for n in 0..10 {
            let (go, done) = (go.clone(), done.clone());
            live.spawn(|ticket| async move {
                let _ticket = ticket;
                go.notified().await;
                assert!(n % 2 == 0, "number {n} breaks");
                tokio::task::yield_now().await;
                done.set(done.get() + 1);
            });
        }
        tokio::task::yield_now().await;
        assert_eq!(live.len(), 10);
        go.notify_waiters();
        live.emptied().await;
        assert_eq!((done.get(), live.len()), (5, 0));
    }
}
