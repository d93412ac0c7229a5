//! What proxies count, added up: who calls whom, how often, how well. Of the two ends of an edge, the one that reports is who its
//! certificate says.

use crate::identity::Caller;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use weft_proto::v1::Edge;

const EDGES: usize = 10_000;
const MAX_TEXT: usize = 256;
const MAX_BUCKETS: usize = 64;

#[derive(Debug, Default)]
pub struct Edges(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    edges: BTreeMap<Key, Counts>,
    /// Reports there was no room for, or that made no sense.
    dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    texts: [String; 7],
    inbound: bool,
    mtls: bool,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    requests: u64,
    failures: u64,
    durations: Vec<u64>,
}

const NAMES: [&str; 7] = [
    "source",
    "sourceNamespace",
    "sourceIdentity",
    "destination",
    "destinationNamespace",
    "destinationService",
    "route",
];

impl Edges {
    pub fn add(&self, caller: &Caller, edges: Vec<Edge>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for mut edge in edges {
            match edge.inbound {
                true => edge.destination_namespace = caller.pod.namespace.clone(),
                false => {
                    edge.source_namespace = caller.pod.namespace.clone();
                    edge.source_identity = caller.id.to_string();
                }
            }
            let texts = [
                edge.source,
                edge.source_namespace,
                edge.source_identity,
                edge.destination,
                edge.destination_namespace,
                edge.destination_service,
                edge.route,
            ];
            let sane = texts.iter().all(|t| t.len() <= MAX_TEXT) && edge.durations.len() <= MAX_BUCKETS;
            let key = Key { texts, inbound: edge.inbound, mtls: edge.mtls };
            if !sane || (kept.edges.len() >= EDGES && !kept.edges.contains_key(&key)) {
                kept.dropped = kept.dropped.saturating_add(1);
                continue;
            }
            let counts = kept.edges.entry(key).or_default();
            counts.requests = counts.requests.saturating_add(edge.requests);
            counts.failures = counts.failures.saturating_add(edge.failures);
            counts.durations.resize(counts.durations.len().max(edge.durations.len()), 0);
            for (sum, n) in counts.durations.iter_mut().zip(edge.durations) {
                *sum = sum.saturating_add(n);
            }
        }
    }

    pub fn json(&self) -> Value {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let edges = kept.edges.iter().map(|(key, counts)| {
            let texts = NAMES.iter().zip(&key.texts).map(|(name, text)| ((*name).to_string(), json!(text)));
            let mut edge: serde_json::Map<String, Value> = texts.collect();
            edge.extend([
                ("inbound".to_string(), json!(key.inbound)),
                ("mtls".to_string(), json!(key.mtls)),
                ("requests".to_string(), json!(counts.requests)),
                ("failures".to_string(), json!(counts.failures)),
                ("durations".to_string(), json!(counts.durations)),
            ]);
            Value::Object(edge)
        });
        json!({"edges": edges.collect::<Vec<Value>>(), "dropped": kept.dropped})
    }
}
