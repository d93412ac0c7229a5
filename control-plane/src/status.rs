//! What is known about the proxies, and what is counted. Sessions write, the admin interface reads.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use weft_dialects::world::PodId;
use weft_policy::id::SpiffeId;

use crate::identity::ca::seconds;
use crate::push::delta::Delta;

/// Of one pod at a time; a proxy that reconnects may overlap with itself.
const STREAMS_PER_POD: usize = 4;
/// Of proxies that went away, so many are remembered.
const GONE: usize = 1000;
const MAX_ERROR: usize = 1024;

#[derive(Debug, Default)]
pub struct Status {
    proxies: Mutex<BTreeMap<PodId, Proxy>>,
    sessions: AtomicU64,
    pub counters: Counters,
}

#[derive(Debug)]
struct Proxy {
    identity: SpiffeId,
    version: String,
    address: Option<SocketAddr>,
    since: SystemTime,
    /// The sessions that are open; the highest one is what the rest is about.
    open: Vec<u64>,
    placed: bool,
    resources: BTreeMap<Arc<str>, (Arc<str>, Outcome)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Sent,
    Applied,
    Refused(String),
}

macro_rules! counters {
    ($($name:ident: $help:literal),* $(,)?) => {
        #[derive(Debug, Default)]
        pub struct Counters { $(pub $name: AtomicU64),* }

        impl Counters {
            fn each(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $help, self.$name.load(Ordering::Relaxed))),*]
            }
        }
    };
}

counters! {
    accepted: "Connections accepted.",
    accept_errors: "Accepts that failed, as when descriptors run out.",
    turned_away: "Connections closed because there were too many.",
    handshake_errors: "TLS handshakes that failed.",
    pushes: "Differences sent to proxies.",
    resources_sent: "Resources sent, changed or removed.",
    nacks: "Resources that proxies refused.",
    signed: "Certificates signed.",
    unproven: "Calls without a certificate of a pod, where one is needed.",
    sign_refused: "Requests for a certificate that were refused.",
    translations: "Worlds made from objects.",
    reports: "Reports of proxies.",
    edges_dropped: "What reports told that made no sense or found no room.",
}

pub fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// One stream of one proxy; leaves when dropped.
#[derive(Debug)]
pub struct Seat {
    status: Arc<Status>,
    pod: PodId,
    session: u64,
}

impl Status {
    fn proxies(&self) -> MutexGuard<'_, BTreeMap<PodId, Proxy>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: the pod has too many streams already.
    pub fn enter(self: &Arc<Self>, pod: &PodId, identity: &SpiffeId, address: Option<SocketAddr>) -> Option<Seat> {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut proxies = self.proxies();
        let gone = proxies.values().filter(|p| p.open.is_empty()).count();
        if gone > GONE {
            let oldest = proxies.iter().filter(|(_, p)| p.open.is_empty()).min_by_key(|(_, p)| p.since);
            if let Some(pod) = oldest.map(|(pod, _)| pod.clone()) {
                proxies.remove(&pod);
            }
        }
        let fresh = |open| Proxy {
            identity: identity.clone(),
            version: String::new(),
            address,
            since: SystemTime::now(),
            open,
            placed: false,
            resources: BTreeMap::new(),
        };
        let proxy = proxies.entry(pod.clone()).or_insert_with(|| fresh(Vec::new()));
        if proxy.open.len() >= STREAMS_PER_POD {
            return None;
        }
        let mut open = std::mem::take(&mut proxy.open);
        open.push(session);
        *proxy = fresh(open);
        Some(Seat { status: self.clone(), pod: pod.clone(), session })
    }

    pub fn connected(&self) -> usize {
        self.proxies().values().filter(|p| !p.open.is_empty()).count()
    }

    /// Pods with an open stream.
    pub fn present(&self) -> BTreeSet<PodId> {
        self.proxies().iter().filter(|(_, p)| !p.open.is_empty()).map(|(pod, _)| pod.clone()).collect()
    }

    /// Pods that have taken a resource into force in this version.
    pub fn have(&self, name: &str, version: &str) -> BTreeSet<PodId> {
        let proxies = self.proxies();
        let has = |proxy: &Proxy| {
            proxy.resources.get(name).is_some_and(|(v, outcome)| **v == *version && *outcome == Outcome::Applied)
        };
        proxies.iter().filter(|(_, proxy)| has(proxy)).map(|(pod, _)| pod.clone()).collect()
    }

    /// What proxies refuse, and why.
    pub fn refused(&self) -> Vec<Value> {
        let proxies = self.proxies();
        let of = |(pod, proxy): (&PodId, &Proxy)| {
            let refused = proxy.resources.iter().filter_map(|(name, (version, outcome))| match outcome {
                Outcome::Refused(why) => {
                    let pod = format!("{}/{}", pod.namespace, pod.name);
                    Some(json!({"pod": pod, "name": &**name, "version": &**version, "why": why}))
                }
                Outcome::Sent | Outcome::Applied => None,
            });
            refused.collect::<Vec<_>>()
        };
        proxies.iter().flat_map(of).collect()
    }

    pub fn json(&self) -> Value {
        let proxies = self.proxies();
        let all = proxies.iter().map(|(pod, proxy)| {
            let (mut refused, mut pending) = (Vec::new(), Vec::new());
            for (name, (version, outcome)) in &proxy.resources {
                match outcome {
                    Outcome::Applied => {}
                    Outcome::Sent => pending.push(&**name),
                    Outcome::Refused(why) => refused.push(json!({"name": &**name, "version": &**version, "why": why})),
                }
            }
            let resources: BTreeMap<&str, &str> =
                proxy.resources.iter().map(|(name, (version, _))| (&**name, &**version)).collect();
            json!({
                "pod": pod.name,
                "namespace": pod.namespace,
                "identity": proxy.identity.as_str(),
                "version": proxy.version,
                "address": proxy.address.map(|a| a.to_string()),
                "connected": !proxy.open.is_empty(),
                "since": seconds(proxy.since),
                "known": proxy.placed,
                "inSync": refused.is_empty() && pending.is_empty() && proxy.placed,
                "refused": refused,
                "pending": pending,
                "resources": resources,
            })
        });
        json!({ "version": env!("CARGO_PKG_VERSION"), "proxies": all.collect::<Vec<Value>>() })
    }

    /// Prometheus' text format; `gauges` are what others know.
    pub fn metrics(&self, gauges: &[(&str, &str, u64)]) -> String {
        use std::fmt::Write;
        let mut out = String::new();
        let connected = ("proxies_connected", "Proxies with an open stream.", self.connected() as u64);
        for (name, help, value) in gauges.iter().copied().chain([connected]) {
            let _ = write!(out, "# HELP weft_control_{name} {help}\n# TYPE weft_control_{name} gauge\n");
            let _ = writeln!(out, "weft_control_{name} {value}");
        }
        for (name, help, value) in self.counters.each() {
            let _ = write!(out, "# HELP weft_control_{name}_total {help}\n# TYPE weft_control_{name}_total counter\n");
            let _ = writeln!(out, "weft_control_{name}_total {value}");
        }
        out
    }
}

impl Seat {
    /// Only the newest session of a pod speaks for it.
    fn change(&self, change: impl FnOnce(&mut Proxy)) {
        let mut proxies = self.status.proxies();
        if let Some(proxy) = proxies.get_mut(&self.pod).filter(|p| p.open.iter().max() == Some(&self.session)) {
            change(proxy);
        }
    }

    pub fn hello(&self, version: &str, have: &std::collections::HashMap<String, String>) {
        self.change(|proxy| {
            proxy.version = version.chars().take(64).collect();
            let had = have.iter().map(|(n, v)| (Arc::from(n.as_str()), (Arc::from(v.as_str()), Outcome::Applied)));
            proxy.resources = had.collect();
        });
    }

    pub fn sent(&self, delta: &Delta, placed: bool) {
        let counters = &self.status.counters;
        count(&counters.pushes);
        add(&counters.resources_sent, delta.changed().count() + delta.removed().len());
        self.change(|proxy| {
            proxy.placed = placed;
            for piece in delta.changed() {
                proxy.resources.insert(piece.name.clone(), (piece.version.clone(), Outcome::Sent));
            }
            for name in delta.removed() {
                proxy.resources.remove(name.as_str());
            }
        });
    }

    /// What became of a resource; what is said of another version than the last one sent is out of date.
    pub fn applied(&self, name: &str, version: &str, error: &str) {
        if !error.is_empty() {
            count(&self.status.counters.nacks);
            tracing::warn!(pod = %self.pod.name, namespace = %self.pod.namespace, name, error, "a proxy refuses a resource");
        }
        self.change(|proxy| {
            if let Some((_, outcome)) = proxy.resources.get_mut(name).filter(|(v, _)| **v == *version) {
                *outcome = match error {
                    "" => Outcome::Applied,
                    why => Outcome::Refused(why.chars().take(MAX_ERROR).collect()),
                };
            }
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut proxies = self.status.proxies();
        if let Some(proxy) = proxies.get_mut(&self.pod) {
            proxy.open.retain(|s| *s != self.session);
            if proxy.open.is_empty() {
                proxy.since = SystemTime::now();
            }
        }
    }
}
