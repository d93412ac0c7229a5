//! What proxies count, added up: who calls whom, how often, how well.
//!
//! Of an edge's two ends, the one that reports is who its certificate says, whatever it says; of the other end it is believed,
//! and `inbound` tells which one it was. Sums are since the edge was first heard of, so that whoever wants rates takes two looks.

use crate::identity::Caller;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use weft_dialects::world::PodId;
use weft_policy::telemetry::DURATIONS;
use weft_proto::v1::Edge;

const EDGES: usize = 20_000;
/// All replicas of a workload have one identity, and the same edges.
const EDGES_PER_IDENTITY: usize = 1000;
/// Of one message; a proxy that has more sends several.
const EDGES_PER_MESSAGE: usize = 2000;
/// Of all names of an edge together.
const MAX_TEXT: usize = 1024;
const MAX_BUCKETS: usize = 64;
/// What nobody has added to for as long is forgotten.
const IDLE: Duration = Duration::from_secs(300);
const SWEEP: Duration = Duration::from_secs(10);
/// Of one pod at a time; a proxy that reconnects may overlap with itself.
const CALLS_PER_POD: u32 = 2;
/// A proxy reports once a second.
const BETWEEN: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Edges(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    edges: BTreeMap<Key, Counts>,
    /// How many of them an identity has.
    owned: BTreeMap<String, usize>,
    /// Edges there was no room for, or that made no sense.
    dropped: u64,
    pods: BTreeMap<PodId, Reporting>,
    swept: Instant,
}

#[derive(Debug)]
struct Reporting {
    open: u32,
    last: Instant,
}

const NAMES: [&str; 8] = [
    "source",
    "sourceNamespace",
    "sourceIdentity",
    "destination",
    "destinationNamespace",
    "destinationIdentity",
    "destinationService",
    "route",
];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// As `NAMES` has them.
    texts: [String; 8],
    inbound: bool,
    mtls: bool,
}

impl Key {
    /// The identity that reports it.
    fn owner(&self) -> &str {
        &self.texts[if self.inbound { 5 } else { 2 }]
    }

    /// Names are for logs and terminals: nothing in them that either would act on.
    fn is_sane(&self) -> bool {
        self.texts.iter().map(String::len).sum::<usize>() <= MAX_TEXT
            && self.texts.iter().flat_map(|t| t.bytes()).all(|b| matches!(b, b' '..=b'~'))
    }
}

#[derive(Clone, Debug)]
struct Counts {
    requests: u64,
    failures: u64,
    retries: u64,
    durations: Vec<u64>,
    connections: u64,
    sent: u64,
    received: u64,
    touched: Instant,
}

impl Counts {
    fn new(now: Instant) -> Self {
        let (requests, failures, retries, connections, sent, received) = Default::default();
        Self { requests, failures, retries, durations: Vec::new(), connections, sent, received, touched: now }
    }

    fn add(&mut self, edge: &Edge, now: Instant) {
        for (sum, n) in [
            (&mut self.requests, edge.requests),
            (&mut self.failures, edge.failures),
            (&mut self.retries, edge.retries),
            (&mut self.connections, edge.connections),
            (&mut self.sent, edge.bytes_sent),
            (&mut self.received, edge.bytes_received),
        ] {
            *sum = sum.saturating_add(n);
        }
        self.durations.resize(self.durations.len().max(edge.durations.len()), 0);
        for (sum, n) in self.durations.iter_mut().zip(&edge.durations) {
            *sum = sum.saturating_add(*n);
        }
        self.touched = now;
    }
}

impl Default for Edges {
    fn default() -> Self {
        let (edges, owned, pods) = Default::default();
        Self(Mutex::new(Kept { edges, owned, dropped: 0, pods, swept: Instant::now() }))
    }
}

/// A report being taken; leaves when dropped.
#[derive(Debug)]
pub struct Seat {
    edges: Arc<Edges>,
    pod: PodId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(reporting) = self.edges.kept().pods.get_mut(&self.pod) {
            reporting.open = reporting.open.saturating_sub(1);
        }
    }
}

impl Edges {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: the pod reports too much at a time, or too often.
    pub fn enter(self: &Arc<Self>, pod: &PodId) -> Option<Seat> {
        let now = Instant::now();
        let mut kept = self.kept();
        match kept.pods.get_mut(pod) {
            Some(of) if of.open >= CALLS_PER_POD || now.saturating_duration_since(of.last) < BETWEEN => return None,
            Some(of) => (of.open, of.last) = (of.open + 1, now),
            None => drop(kept.pods.insert(pod.clone(), Reporting { open: 1, last: now })),
        }
        Some(Seat { edges: self.clone(), pod: pod.clone() })
    }

    /// `workload` is what the caller's pod belongs to. How many edges were not taken.
    pub fn add(&self, caller: &Caller, workload: &str, edges: Vec<Edge>) -> usize {
        self.add_at(caller, workload, edges, Instant::now())
    }

    fn add_at(&self, caller: &Caller, workload: &str, edges: Vec<Edge>, now: Instant) -> usize {
        let mut kept = self.kept();
        kept.sweep(now);
        let mut dropped = edges.len().saturating_sub(EDGES_PER_MESSAGE);
        for mut edge in edges.into_iter().take(EDGES_PER_MESSAGE) {
            let (name, namespace, identity) = match edge.inbound {
                true => (&mut edge.destination, &mut edge.destination_namespace, &mut edge.destination_identity),
                false => (&mut edge.source, &mut edge.source_namespace, &mut edge.source_identity),
            };
            (*name, *namespace, *identity) = (workload.into(), caller.pod.namespace.clone(), caller.id.to_string());
            if !kept.take(edge, now) {
                dropped += 1;
            }
        }
        kept.dropped = kept.dropped.saturating_add(dropped as u64);
        dropped
    }

    pub fn count(&self) -> usize {
        self.kept().edges.len()
    }

    pub fn json(&self) -> Value {
        let mut kept = self.kept();
        kept.sweep(Instant::now());
        let edges = kept.edges.iter().map(|(key, counts)| {
            let texts = NAMES.iter().zip(&key.texts).map(|(name, text)| ((*name).to_string(), json!(text)));
            let mut edge: serde_json::Map<String, Value> = texts.collect();
            for (name, value) in [
                ("inbound", json!(key.inbound)),
                ("mtls", json!(key.mtls)),
                ("requests", json!(counts.requests)),
                ("failures", json!(counts.failures)),
                ("retries", json!(counts.retries)),
                ("durations", json!(counts.durations)),
                ("connections", json!(counts.connections)),
                ("bytesSent", json!(counts.sent)),
                ("bytesReceived", json!(counts.received)),
            ] {
                edge.insert(name.into(), value);
            }
            Value::Object(edge)
        });
        let bounds = DURATIONS.map(|micros| micros as f64 / 1e6);
        json!({"edges": edges.collect::<Vec<Value>>(), "dropped": kept.dropped, "durationBounds": bounds})
    }
}

impl Kept {
    fn take(&mut self, mut edge: Edge, now: Instant) -> bool {
        let (inbound, mtls) = (edge.inbound, edge.mtls);
        let texts = [
            &mut edge.source,
            &mut edge.source_namespace,
            &mut edge.source_identity,
            &mut edge.destination,
            &mut edge.destination_namespace,
            &mut edge.destination_identity,
            &mut edge.destination_service,
            &mut edge.route,
        ];
        let key = Key { texts: texts.map(std::mem::take), inbound, mtls };
        if !key.is_sane() || edge.durations.len() > MAX_BUCKETS {
            return false;
        }
        if !self.edges.contains_key(&key) {
            let owned = self.owned.get(key.owner()).copied().unwrap_or(0);
            if self.edges.len() >= EDGES || owned >= EDGES_PER_IDENTITY {
                return false;
            }
            self.owned.insert(key.owner().to_string(), owned + 1);
        }
        self.edges.entry(key).or_insert_with(|| Counts::new(now)).add(&edge, now);
        true
    }

    /// Forgets what was not heard of for long.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        self.edges.retain(|_, counts| now.saturating_duration_since(counts.touched) < IDLE);
        self.owned.clear();
        for key in self.edges.keys() {
            *self.owned.entry(key.owner().to_string()).or_default() += 1;
        }
        self.pods.retain(|_, of| of.open > 0 || now.saturating_duration_since(of.last) < IDLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;
    use weft_policy::id::SpiffeId;

    fn caller(account: &str) -> Caller {
        let id = SpiffeId::parse(&format!("spiffe://cluster.local/ns/demo/sa/{account}")).unwrap();
        Caller {
            id,
            pod: PodId { namespace: "demo".into(), name: format!("{account}-1") },
            uid: String::new(),
            not_after: SystemTime::now(),
        }
    }

    fn edge(route: usize) -> Edge {
        Edge {
            source: "bank".into(),
            destination: "db".into(),
            route: route.to_string(),
            requests: 1,
            ..Edge::default()
        }
    }

    #[test]
    fn who_reports_is_who_the_certificate_says() {
        let edges = Edges::default();
        let lie = |inbound| Edge {
            source: "bank".into(),
            source_namespace: "vault".into(),
            source_identity: "spiffe://cluster.local/ns/vault/sa/bank".into(),
            destination: "bank".into(),
            destination_identity: "spiffe://cluster.local/ns/vault/sa/bank".into(),
            destination_namespace: "vault".into(),
            inbound,
            ..Edge::default()
        };
        assert_eq!(edges.add(&caller("web"), "web", vec![lie(false), lie(true)]), 0);
        let json = edges.json();
        let of = |inbound: bool, end: &str| {
            let edge = json["edges"].as_array().unwrap().iter().find(|e| e["inbound"] == inbound).unwrap();
            let text = |name: String| edge[name].as_str().unwrap().to_string();
            (text(end.into()), text(format!("{end}Namespace")), text(format!("{end}Identity")))
        };
        let web = ("web".into(), "demo".into(), "spiffe://cluster.local/ns/demo/sa/web".into());
        assert_eq!(of(false, "source"), web);
        assert_eq!(of(true, "destination"), web);
        assert_eq!(of(true, "source").0, "bank", "what a server says of its clients is its word");
    }

    #[test]
    fn bounded_whoever_reports_what() {
        let edges = Edges::default();
        let now = Instant::now();
        let many = |n: usize| (0..n).map(edge).collect::<Vec<_>>();
        assert_eq!(edges.add_at(&caller("web"), "web", many(EDGES_PER_IDENTITY + 7), now), 7);
        assert_eq!(edges.add_at(&caller("web"), "web", many(EDGES_PER_MESSAGE + 1), now), 1 + EDGES_PER_IDENTITY);
        assert_eq!(edges.add_at(&caller("db"), "db", many(1), now), 0, "others have room");
        for bad in [
            Edge { route: "x".repeat(MAX_TEXT), ..edge(0) },
            Edge { route: "\x1b[2J".into(), ..edge(0) },
            Edge { durations: vec![0; MAX_BUCKETS + 1], ..edge(0) },
        ] {
            assert_eq!(edges.add_at(&caller("db"), "db", vec![bad], now), 1);
        }
        for n in 0..EDGES / EDGES_PER_IDENTITY + 5 {
            edges.add_at(&caller(&format!("a{n}")), "a", many(EDGES_PER_IDENTITY), now);
        }
        assert_eq!(edges.count(), EDGES);
        let huge = Edge { requests: u64::MAX, ..edge(0) };
        assert_eq!(edges.add_at(&caller("db"), "db", vec![huge], now), 0, "and does not wrap");

        let later = now + IDLE;
        assert_eq!(edges.add_at(&caller("new"), "new", many(1), later), 0, "there is room again");
        assert_eq!(edges.count(), 1);
    }

    #[test]
    fn a_few_reports_of_a_pod_at_a_time() {
        let edges = Arc::new(Edges::default());
        let pod = caller("web").pod;
        let seat = edges.enter(&pod).unwrap();
        assert!(edges.enter(&pod).is_none(), "too soon");
        assert!(edges.enter(&caller("db").pod).is_some());
        let back = |edges: &Edges| edges.kept().pods.get_mut(&pod).unwrap().last -= BETWEEN;
        back(&edges);
        let second = edges.enter(&pod).unwrap();
        back(&edges);
        assert!(edges.enter(&pod).is_none(), "two at a time");
        drop((seat, second));
        back(&edges);
        assert!(edges.enter(&pod).is_some());
    }
}
