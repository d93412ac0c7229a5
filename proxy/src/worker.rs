//! One worker: a current-thread runtime on a core, with its own listeners, pools and telemetry cells. What workers share is
//! read-only or a few atomics.

use crate::accept::detect::Learned;
use crate::config::snapshot::Snapshot;
use crate::telemetry::Recorder;
use crate::ending::Ending;
use crate::upstream::Pools;
use crate::upstream::implied::Implied;
use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;
use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use tokio::sync::watch;
use weft_policy::id::BackendId;
use weft_policy::{listener, mirror, retry};
use weft_policy::meta::Workload;
use weft_tls::{Flusher, Live};

/// What the whole process shares.
pub struct Shared {
    pub snapshot: ArcSwap<Snapshot>,
    /// Certificate, key and trust bundle; `None` where the file names no identity.
    pub identity: Option<Arc<Live>>,
    pub workload: Workload,
    pub telemetry: Arc<crate::telemetry::Hub>,
    /// Turns to draining once, and never back.
    pub phase: watch::Receiver<Phase>,
    pub ready: AtomicBool,
    /// Connections cut at the end of a drain.
    pub cut: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    /// New connections are refused, kept ones say goodbye after what is in flight.
    Draining,
}

pub struct Worker {
    pub id: usize,
    pub shared: Arc<Shared>,
    pub flusher: Flusher,
    pub recorder: Recorder,
    pub pools: Pools,
    /// What destinations spoke before, for those whose protocol is not declared.
    pub learned: Learned,
    /// Says goodbye to this worker's connections.
    pub ending: Ending,
    pub implied: Implied,
    pub mirrors: RefCell<FxHashMap<BackendId, Arc<mirror::State>>>,
    /// What is retried where no policy says.
    pub retry_unasked: retry::Config,
    pub retry_inbound: retry::Config,
    rng: Cell<u64>,
}

impl Worker {
    pub fn new(id: usize, shared: Arc<Shared>, flusher: Flusher) -> Self {
        let seed = u64::from_le_bytes(rand_seed()) | 1;
        Self {
            id,
            recorder: Recorder::new(&shared.telemetry),
            shared,
            flusher,
            pools: Pools::default(),
            learned: Learned::default(),
            ending: Ending::default(),
            implied: Implied::default(),
            mirrors: RefCell::default(),
            retry_unasked: retry::Config::unasked(),
            retry_inbound: retry::Config::inbound(),
            rng: Cell::new(seed),
        }
    }

    /// Random enough for balancing, weights, jitter and trace ids; never for keys.
    pub fn random(&self) -> u64 {
        // splitmix64
        let next = self.rng.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.rng.set(next);
        let mut z = next;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn is_draining(&self) -> bool {
        *self.shared.phase.borrow() == Phase::Draining
    }
}

fn rand_seed() -> [u8; 8] {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(0);
    hasher.finish().to_le_bytes()
}

/// A client's connection, as every request on it sees it.
pub struct Conn {
    pub listener: Arc<listener::Config>,
    pub peer: Arc<crate::telemetry::record::Peer>,
    /// Where it was going before it was redirected, or the listener's own address.
    pub destination: std::net::SocketAddr,
    /// The connection came over mesh mTLS.
    pub mesh: bool,
    /// TLS server name, where there was one.
    pub server_name: Option<String>,
    /// The peer's identity as a header's value, made once.
    pub xfcc: OnceCell<Option<http::HeaderValue>>,
}
