//! One worker: a current-thread runtime on a core, with its own listeners, pools and telemetry cells. What workers share is
//! read-only or a few atomics.

use crate::accept::detect::Learned;
use crate::accept::listener::{Listeners, Ports};
use crate::accept::live::Live;
use crate::accept::stream::Buffers;
use crate::config::file::ProxyConfig;
use crate::config::snapshot::Snapshot;
use crate::ending::Ending;
use crate::telemetry::Recorder;
use crate::upstream::Pools;
use crate::upstream::implied::Implied;
use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;
use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use weft_policy::id::BackendId;
use weft_policy::{listener, mirror, retry};
use weft_tls::{Flusher, Material};

/// Also what keeps the runtime's timer near: far deadlines alone would cost it more.
const TICK: Duration = Duration::from_secs(1);
/// Between the end of a drain and the process's: what was cut says so to its peer, and is recorded.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What the whole process shares.
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The file in force; tells that the snapshot has changed.
    pub config: watch::Receiver<Arc<ProxyConfig>>,
    /// Certificate, key and trust bundle; `None` where the file names no identity.
    pub identity: Option<weft_tls::Live>,
    /// Asked for destinations that nobody has configured yet; `None`: there is nobody to ask.
    pub demand: Option<crate::config::control::Demand>,
    /// What we say of ourselves to other sidecars.
    pub introduction: Arc<[u8]>,
    pub telemetry: Arc<crate::telemetry::Hub>,
    /// Only ever goes on to the next.
    pub phase: watch::Receiver<Phase>,
    pub ready: AtomicBool,
    pub ports: Ports,
    /// Connections cut at the end of a drain.
    pub cut: AtomicU64,
    /// Of our own connections, where rules tell them from the app's by it.
    pub mark: Option<u32>,
}

impl Shared {
    /// Of root requests, in hundredths of a percent.
    pub fn sampling(&self) -> u32 {
        self.telemetry.sampling_per_10k()
    }

    pub fn b3(&self) -> bool {
        self.telemetry.b3()
    }

    /// Where a listener is really bound; another address than configured for port 0.
    pub fn bound(&self, listener: &listener::Config) -> Option<SocketAddr> {
        self.ports.bound(listener)
    }
}

/// The steps of a drain, as the control thread makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Phase {
    #[default]
    Running,
    /// Not ready any more. Goodbye is said on every connection, and new ones are still served: peers do not know yet.
    Draining,
    /// Nobody listens.
    Closed,
    /// Connections without a request in flight close.
    Ending,
    /// What is left is cut.
    Over,
}

pub struct Worker {
    pub id: usize,
    pub shared: Arc<Shared>,
    pub flusher: Flusher,
    pub recorder: Recorder,
    pub pools: Pools,
    /// Backends nobody configured.
    pub implied: Implied,
    /// Clients' connections: who they are, to re-check and to cut them.
    pub live: Live,
    /// HTTP connections, to say goodbye on them.
    pub ending: Ending,
    /// For bytes on their way through.
    pub buffers: Buffers,
    /// What destinations spoke before, for those whose protocol is not declared.
    pub learned: Learned,
    pub mirrors: RefCell<FxHashMap<BackendId, Arc<mirror::State>>>,
    /// Retries where no policy says anything.
    pub retry_unasked: retry::Config,
    pub retry_inbound: retry::Config,
    rng: Cell<u64>,
}

impl Worker {
    pub fn new(id: usize, shared: Arc<Shared>) -> Self {
        let seed = u64::from_le_bytes(rand_seed()) | 1;
        Self {
            id,
            recorder: Recorder::new(&shared.telemetry),
            shared,
            flusher: Flusher::new(),
            pools: Pools::default(),
            implied: Implied::default(),
            live: Live::default(),
            ending: Ending::default(),
            buffers: Buffers::default(),
            learned: Learned::default(),
            mirrors: RefCell::default(),
            retry_unasked: retry::Config::unasked(),
            retry_inbound: retry::Config::inbound(),
            rng: Cell::new(seed),
        }
    }

    /// Carries traffic until a drain is over. `bound` is told once what became of the listeners; the rest of this runs only if
    /// all of them stand.
    pub async fn run(self: Rc<Self>, bound: impl FnOnce(Result<(), String>)) {
        let flusher = self.flusher.clone();
        tokio::task::spawn_local(async move { flusher.run().await });
        let recording = self.clone();
        tokio::task::spawn_local(async move { recording.recorder.keep_flushed().await });

        let mut config = self.shared.config.clone();
        let mut phase = self.shared.phase.clone();
        let mut renewed = self.shared.identity.as_ref().map(weft_tls::Live::renewed);
        let mut material = self.shared.identity.as_ref().map(weft_tls::Live::load);
        let mut listeners = Listeners::default();
        config.mark_unchanged();
        let mut applied = self.shared.snapshot.load_full();
        let opened = listeners.apply(&self, &applied);
        let failed = opened.is_err();
        bound(opened);
        if failed {
            return;
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let open = self.ending.phase() < Phase::Closed;
            tokio::select! {
                biased;
                Ok(()) = phase.changed() => {
                    let reached = *phase.borrow_and_update();
                    if reached >= Phase::Closed {
                        listeners.close_all(&self);
                    }
                    self.ending.set(reached);
                    if reached == Phase::Over {
                        break;
                    }
                }
                // Nothing is kept to endpoints that are gone: what goes next may be the endpoint itself.
                Ok(()) = config.changed() => self.pools.tick(Instant::now()),
                () = next(&mut renewed) => {
                    let before = std::mem::replace(&mut material, self.shared.identity.as_ref().map(weft_tls::Live::load));
                    if let (Some(before), Some(now)) = (before, &material) {
                        self.renew(&before, now);
                    }
                }
                now = tick.tick() => self.tick(now.into_std()),
                () = self.live.emptied(), if !open => break,
            }
            let newest = self.shared.snapshot.load_full();
            let changed = !Arc::ptr_eq(&newest, &applied);
            if self.ending.phase() < Phase::Closed && (changed || listeners.has_failed()) {
                // What failed has been logged; the next tick tries again.
                let _ = listeners.apply(&self, &newest);
            }
            if changed {
                applied = newest;
                self.live.recheck(&applied);
            }
        }
        let cut = self.live.cut_all();
        self.shared.cut.fetch_add(cut as u64, Ordering::Relaxed);
        let _ = tokio::time::timeout(LAST_WORDS, self.live.emptied()).await;
        // The flusher's turn comes after the tasks that have just written their last.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        self.recorder.flush();
    }

    /// Other certificates than ours were proven by roots that may be gone.
    fn renew(&self, before: &Material, now: &Material) {
        self.pools.renew(Instant::now());
        if !now.bundle.has_all_of(&before.bundle) {
            let cut = self.live.distrust(&now.bundle);
            tracing::info!(worker = self.id, cut, "a root is not trusted any more");
        }
    }

    fn tick(&self, now: Instant) {
        self.pools.tick(now);
        self.implied.tick(now);
        self.live.end_stalled(now);
        self.live.each_record(|record| self.recorder.tcp_progress(record));
        crate::sys::malloc::empty_cache();
        let snapshot = self.shared.snapshot.load();
        let mirrors = &mut *self.mirrors.borrow_mut();
        // The policies of backends that are gone; bounded by what configuration has ever named at once.
        if mirrors.len() > 64 {
            mirrors.retain(|id, state| state.in_flight() > 0 || snapshot.each().any(|b| b.plan.backends.contains(id)));
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
}

/// When there is new material; never, where there is none at all.
async fn next(renewed: &mut Option<watch::Receiver<()>>) {
    if let Some(renewed) = renewed
        && renewed.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
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
    pub destination: SocketAddr,
    /// The connection came over mesh mTLS.
    pub mesh: bool,
    /// TLS server name, where there was one.
    pub server_name: Option<String>,
    /// The peer's identity as a header's value, made once.
    pub xfcc: OnceCell<Option<http::HeaderValue>>,
}
