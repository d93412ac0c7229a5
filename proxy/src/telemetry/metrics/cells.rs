//! A worker's own counts: one cell per (route, backend, parties, outcome), found by pointers and small numbers.
//!
//! A single writer and no atomics: counting a request costs a hash look-up, and allocates only when its cell is new. Every second
//! the changes move to the process-wide [`Series`](super::series::Series); a cell that stays quiet is dropped, its series stands.

use super::histogram::{Durations, Sizes};
use super::labels::{MethodClass, Party, Subject, is_inbound};
use super::series::{RequestAt, Series};
use crate::telemetry::record::{Attempt, Peer, Proto, Record, TcpRecord};
use rustc_hash::FxHashMap;
use slab::Slab;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_policy::endpoint::Endpoint;
use weft_policy::id::BackendId;
use weft_policy::listener::Role;
use weft_policy::reason::Flags;

/// Quiet cells are looked for this often, and dropped when they were quiet all that time.
const SWEEP: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    service: usize,
    route: usize,
    backend: [usize; 3],
    /// Source and destination.
    parties: u64,
    outcome: u64,
    /// Port, and the attempt's status.
    rest: u64,
}

/// Of what found no room.
const NO_KEY: Key = Key { service: 0, route: 0, backend: [0; 3], parties: u64::MAX, outcome: 0, rest: 0 };

fn backend_key(backend: Option<&BackendId>) -> ([usize; 3], u16) {
    let at = |text: &Arc<str>| Arc::as_ptr(text).cast::<u8>() as usize;
    backend.map_or(([0; 3], 0), |b| {
        ([at(&b.service.name), at(&b.service.namespace), b.subset.as_ref().map_or(0, at)], b.port)
    })
}

fn flag_bits(flags: Flags) -> u64 {
    let reason = flags.reason.map_or(0, |r| r as u64 + 1);
    reason << 2 | u64::from(flags.delay_injected) << 1 | u64::from(flags.retries_exhausted)
}

/// Parties by number, so that thousands of connections of one workload share cells.
#[derive(Debug)]
struct Parties {
    all: Slab<Arc<Party>>,
    numbers: FxHashMap<Arc<Party>, u32>,
    cap: usize,
    overflow: u32,
    unknown: u32,
    own: u32,
    own_inbound: Arc<Party>,
    peers: FxHashMap<usize, (Arc<Peer>, u32)>,
    endpoints: FxHashMap<usize, (Arc<Endpoint>, u32)>,
    with_addr: bool,
}

impl Parties {
    fn new(own: Arc<Party>, cap: usize, with_addr: bool) -> Self {
        let mut all = Slab::new();
        let mut put = |party: Arc<Party>| all.insert(party) as u32;
        let (overflow, unknown, own_number) =
            (put(Arc::new(Party::overflow())), put(Arc::new(Party::default())), put(own.clone()));
        Self {
            all,
            numbers: FxHashMap::default(),
            cap,
            overflow,
            unknown,
            own: own_number,
            own_inbound: own,
            peers: FxHashMap::default(),
            endpoints: FxHashMap::default(),
            with_addr,
        }
    }

    fn number(&mut self, party: Party) -> u32 {
        if party == Party::default() {
            return self.unknown;
        }
        if let Some(number) = self.numbers.get(&party) {
            return *number;
        }
        if self.all.len() >= self.cap {
            return self.overflow;
        }
        let party = Arc::new(party);
        let number = self.all.insert(party.clone()) as u32;
        self.numbers.insert(party, number);
        number
    }

    fn peer(&mut self, peer: &Arc<Peer>) -> u32 {
        if peer.identity.is_none() {
            return self.unknown;
        }
        let at = Arc::as_ptr(peer) as usize;
        if let Some((_, number)) = self.peers.get(&at) {
            return *number;
        }
        let number = self.number(Party::of_peer(peer));
        self.peers.insert(at, (peer.clone(), number));
        number
    }

    fn endpoint(&mut self, endpoint: Option<&Arc<Endpoint>>) -> u32 {
        let Some(endpoint) = endpoint else { return self.unknown };
        let at = Arc::as_ptr(endpoint) as usize;
        if let Some((_, number)) = self.endpoints.get(&at) {
            return *number;
        }
        let mut workload = endpoint.workload.clone();
        if !self.with_addr {
            workload.pod = Arc::default();
        }
        let party = Party {
            workload,
            identity: endpoint.identity.as_ref().map(|id| id.shared()),
            addr: self.with_addr.then(|| endpoint.address.socket()),
        };
        let number = self.number(party);
        self.endpoints.insert(at, (endpoint.clone(), number));
        number
    }

    fn get(&self, number: u32) -> Arc<Party> {
        self.all.get(number as usize).unwrap_or(&self.own_inbound).clone()
    }

    /// Source and destination of an edge.
    fn of(&mut self, role: Role, peer: &Arc<Peer>, endpoint: Option<&Arc<Endpoint>>) -> (u32, u32) {
        if is_inbound(role) {
            return (self.peer(peer), self.own);
        }
        // A hop speaks for whoever is proven to be behind it, an outbound listener for its own app.
        let source = if role == Role::Hop && peer.identity.is_some() { self.peer(peer) } else { self.own };
        (source, self.endpoint(endpoint))
    }

    /// Lets go of connections that ended and endpoints that left.
    fn release(&mut self) {
        self.peers.retain(|_, (peer, _)| Arc::strong_count(peer) > 1);
        self.endpoints.retain(|_, (endpoint, _)| Arc::strong_count(endpoint) > 1);
    }

    /// Forgets the numbers that neither a cell nor a connection uses.
    fn sweep(&mut self, mut used: Vec<u32>) {
        used.extend([self.overflow, self.unknown, self.own]);
        used.extend(self.peers.values().map(|(_, number)| *number));
        used.extend(self.endpoints.values().map(|(_, number)| *number));
        used.sort_unstable();
        self.all.retain(|number, _| used.binary_search(&(number as u32)).is_ok());
        self.numbers.retain(|_, number| used.binary_search(number).is_ok());
    }
}

#[derive(Debug, Default)]
pub struct Numbers {
    pub count: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub durations: Durations,
    /// Request and response sizes; Istio's names only.
    pub sizes: Option<Box<(Sizes, Sizes)>>,
}

#[derive(Debug)]
struct Cell {
    key: Key,
    /// `None`: what found no room.
    subject: Option<Box<Subject>>,
    numbers: Numbers,
    at: RequestAt,
    touched: Instant,
}

/// Counts that are rare enough to be looked up by text at each flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Attempt { status: u16 },
    Retry { result: &'static str },
    Tcp,
}

#[derive(Debug, Default, Clone, Copy)]
pub struct Tcp {
    pub opened: u64,
    pub closed: u64,
    pub sent: u64,
    pub received: u64,
}

#[derive(Debug)]
pub struct Cells {
    cells: Slab<Cell>,
    index: FxHashMap<Key, usize>,
    dirty: Vec<usize>,
    overflow: usize,
    parties: Parties,
    side: FxHashMap<(Key, Side), (Option<Subject>, Tcp)>,
    cap: usize,
    istio: bool,
    linkerd: bool,
    swept: Instant,
}

impl Cells {
    pub fn new(own: Arc<Party>, cap: usize, istio: bool, linkerd: bool, now: Instant) -> Self {
        let mut cells = Slab::new();
        let numbers = Numbers { sizes: istio.then(Box::default), ..Numbers::default() };
        let overflow =
            cells.insert(Cell { key: NO_KEY, subject: None, numbers, at: RequestAt::default(), touched: now });
        Self {
            cells,
            index: FxHashMap::default(),
            dirty: Vec::new(),
            overflow,
            parties: Parties::new(own, cap, linkerd),
            side: FxHashMap::default(),
            cap,
            istio,
            linkerd,
            swept: now,
        }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn finish(&mut self, record: &Record, now: Instant) {
        let last = record.attempts.last();
        let inbound = is_inbound(record.role);
        let tls = if inbound { record.peer.identity.is_some() } else { last.is_some_and(|a| a.tls) };
        let (source, destination) = self.parties.of(record.role, &record.peer, last.map(|a| &a.endpoint));
        let (backend, backend_port) = backend_key(record.backend.as_ref());
        let method = MethodClass::of(&record.method);
        let status = record.status.as_u16();
        let port = if self.linkerd { record.destination.port() } else { 0 };
        let attempt = match record.attempts.as_slice() {
            [only] => answer(only),
            _ => 0,
        };
        let key = Key {
            service: record.service.as_ref().map_or(0, |s| Arc::as_ptr(s) as usize),
            route: record.route.as_ref().map_or(0, |r| Arc::as_ptr(r) as usize),
            backend,
            parties: u64::from(source) << 32 | u64::from(destination),
            outcome: u64::from(status) << 48
                | u64::from(record.grpc_status.map_or(0xffff, u16::from)) << 32
                | flag_bits(record.flags) << 16
                | (method as u64) << 8
                | (record.proto as u64) << 4
                | (record.role as u64) << 1
                | u64::from(tls),
            rest: u64::from(port) << 32 | u64::from(backend_port) << 16 | u64::from(attempt),
        };
        let subject = |parties: &Parties| Subject {
            role: record.role,
            service: record.service.clone(),
            route: record.route.clone(),
            backend: record.backend.clone(),
            source: parties.get(source),
            destination: parties.get(destination),
            port,
            proto: record.proto,
            method,
            status,
            grpc: record.grpc_status,
            flags: record.flags,
            tls,
            attempt,
        };
        let at = match self.index.get(&key) {
            Some(at) => *at,
            None if self.index.len() >= self.cap => self.overflow,
            None => {
                let at = self.cells.insert(Cell {
                    key,
                    subject: Some(Box::new(subject(&self.parties))),
                    numbers: Numbers { sizes: self.istio.then(Box::default), ..Numbers::default() },
                    at: RequestAt::default(),
                    touched: now,
                });
                self.index.insert(key, at);
                at
            }
        };
        let Some(cell) = self.cells.get_mut(at) else { return };
        let numbers = &mut cell.numbers;
        if numbers.count == 0 {
            self.dirty.push(at);
        }
        numbers.count += 1;
        numbers.request_bytes += record.request_bytes;
        numbers.response_bytes += record.response_bytes;
        numbers.durations.observe(now.saturating_duration_since(record.started));
        if let Some(sizes) = &mut numbers.sizes {
            sizes.0.observe(record.request_bytes);
            sizes.1.observe(record.response_bytes);
        }
        if record.attempts.len() > 1 || record.note.is_some() {
            self.retries(record, key, subject(&self.parties));
        }
    }

    /// Requests with several attempts, or with one that had to be left out.
    fn retries(&mut self, record: &Record, key: Key, subject: Subject) {
        if record.attempts.len() > 1 {
            for attempt in &record.attempts {
                let (_, destination) = self.parties.of(record.role, &record.peer, Some(&attempt.endpoint));
                let key = Key {
                    parties: key.parties >> 32 << 32 | u64::from(destination),
                    outcome: u64::from(attempt.tls),
                    ..key
                };
                let (destination, tls) = (self.parties.get(destination), attempt.tls);
                let subject = || Subject { destination, tls, ..subject.clone() };
                self.count(key, Side::Attempt { status: answer(attempt) }, subject, |n| n.opened += 1);
            }
        }
        let key = Key { outcome: 0, rest: key.rest >> 16 << 16, ..key };
        let failed = record.flags.reason.is_some() || record.status.is_server_error();
        for i in 1..record.attempts.len() {
            let won = i + 1 == record.attempts.len() && !failed;
            let result = if won { "success" } else { "failure" };
            self.count(key, Side::Retry { result }, || subject.clone(), |n| n.opened += 1);
        }
        if record.note.is_some() {
            self.count(key, Side::Retry { result: "not_retried" }, || subject.clone(), |n| n.opened += 1);
        }
    }

    fn count(&mut self, key: Key, side: Side, subject: impl FnOnce() -> Subject, add: impl FnOnce(&mut Tcp)) {
        if let Some((_, numbers)) = self.side.get_mut(&(key, side)) {
            return add(numbers);
        }
        let room = self.side.len() < self.cap;
        let key = if room { key } else { NO_KEY };
        let (_, numbers) = self.side.entry((key, side)).or_insert_with(|| (room.then(subject), Tcp::default()));
        add(numbers);
    }

    pub fn tcp(&mut self, record: &TcpRecord, add: impl FnOnce(&mut Tcp)) {
        let inbound = is_inbound(record.role);
        let tls = if inbound { record.peer.identity.is_some() } else { record.tls_upstream };
        let (source, destination) = self.parties.of(record.role, &record.peer, record.endpoint.as_ref());
        let (backend, backend_port) = backend_key(record.backend.as_ref());
        let port = if self.linkerd { record.destination.port() } else { 0 };
        let key = Key {
            service: 0,
            route: 0,
            backend,
            parties: u64::from(source) << 32 | u64::from(destination),
            outcome: flag_bits(record.flags) << 16 | (record.role as u64) << 1 | u64::from(tls),
            rest: u64::from(port) << 32 | u64::from(backend_port) << 16,
        };
        let (source, destination) = (self.parties.get(source), self.parties.get(destination));
        let subject = || Subject {
            role: record.role,
            service: None,
            route: None,
            backend: record.backend.clone(),
            source,
            destination,
            port,
            proto: Proto::Tcp,
            method: MethodClass::Other,
            status: 0,
            grpc: None,
            flags: record.flags,
            tls,
            attempt: 0,
        };
        self.count(key, Side::Tcp, subject, add);
    }

    /// Before the last flush into series that were made anew.
    pub fn forget_series(&mut self) {
        self.cells.iter_mut().for_each(|(_, cell)| cell.at = RequestAt::default());
    }

    /// Moves everything counted since the last time.
    pub fn flush(&mut self, series: &mut Series, now: Instant) {
        for at in self.dirty.drain(..) {
            let Some(cell) = self.cells.get_mut(at) else { continue };
            let sizes = cell.numbers.sizes.is_some().then(Box::default);
            let numbers = std::mem::replace(&mut cell.numbers, Numbers { sizes, ..Numbers::default() });
            series.add_request(&mut cell.at, cell.subject.as_deref(), &numbers, now);
            cell.touched = now;
        }
        for ((_, side), (subject, numbers)) in self.side.drain() {
            series.add_side(side, subject.as_ref(), &numbers, now);
        }
        self.parties.release();
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let (index, overflow) = (&mut self.index, self.overflow);
        self.cells.retain(|at, cell| {
            let keep = at == overflow || now.saturating_duration_since(cell.touched) < SWEEP;
            if !keep {
                index.remove(&cell.key);
            }
            keep
        });
        let used = self.index.keys().flat_map(|key| [(key.parties >> 32) as u32, key.parties as u32]).collect();
        self.parties.sweep(used);
        self.cells.shrink_to_fit();
    }
}

fn answer(attempt: &Attempt) -> u16 {
    attempt.status.map_or(1, |s| s.as_u16())
}
