//! Who calls whom: what was counted since the control plane was last told (`config::control`'s report).
//!
//! Coarser than the metrics, so that a mesh's worth of it fits on a screen: no status, no method, no pods. Filled when the workers'
//! counts are gathered, and only where there is a control plane.

use super::metrics::cells::{Numbers, Side, Tcp};
use super::metrics::histogram::Durations;
use super::metrics::labels::{Party, Subject, is_inbound};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Of edges that wait to be told; what finds no room is counted under one name.
const MAX: usize = 2000;
const OVERFLOW: &str = "overflow";

/// Empty texts are what is not known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct End {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub identity: Option<Arc<str>>,
}

impl End {
    fn of(party: &Party) -> Self {
        let workload = &party.workload;
        let (name, namespace) = (workload.name.clone(), workload.namespace.clone());
        Self { workload: name, namespace, identity: party.identity.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Edge {
    pub source: End,
    pub destination: End,
    pub service: Arc<str>,
    pub route: Arc<str>,
    pub inbound: bool,
    pub mtls: bool,
}

impl Edge {
    fn of(subject: &Subject) -> Self {
        let inbound = is_inbound(subject.role);
        let mut edge = Self {
            source: End::of(&subject.source),
            destination: End::of(&subject.destination),
            inbound,
            mtls: subject.tls,
            ..Self::default()
        };
        // What stands for the own app is nothing that anybody asked for.
        if !inbound {
            edge.route = subject.route.as_ref().map(|r| r.name.clone()).unwrap_or_default();
            if let Some(id) = subject.service_id() {
                edge.service = id.name.clone();
                if edge.destination.namespace.is_empty() {
                    edge.destination.namespace = id.namespace.clone();
                }
            }
        }
        edge
    }

    fn overflow(inbound: bool) -> Self {
        let end = End { workload: OVERFLOW.into(), ..End::default() };
        let (source, destination) = if inbound { (end, End::default()) } else { (End::default(), end) };
        Self { source, destination, inbound, ..Self::default() }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub requests: u64,
    pub failures: u64,
    pub retries: u64,
    pub durations: Durations,
    pub connections: u64,
    pub sent: u64,
    pub received: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.retries += other.retries;
        self.durations.add(&other.durations);
        self.connections += other.connections;
        self.sent += other.sent;
        self.received += other.received;
    }
}

#[derive(Debug, Default)]
pub struct Edges(FxHashMap<Edge, Counts>);

impl Edges {
    /// `None` is what a worker had no room for.
    pub fn requests(&mut self, subject: Option<&Subject>, n: &Numbers) {
        let counts = self.of(subject);
        counts.requests += n.count;
        counts.durations.add(&n.durations);
        if subject.is_some_and(Subject::failed) {
            counts.failures += n.count;
        }
    }

    pub fn side(&mut self, side: Side, subject: Option<&Subject>, n: &Tcp) {
        match side {
            Side::Retry { result: "not_retried" } | Side::Attempt { .. } => {}
            Side::Retry { .. } => self.of(subject).retries += n.opened,
            Side::Tcp => {
                let counts = self.of(subject);
                counts.connections += n.opened;
                counts.sent += n.sent;
                counts.received += n.received;
            }
        }
    }

    /// Everything, which is forgotten here.
    pub fn take(&mut self) -> Vec<(Edge, Counts)> {
        std::mem::take(&mut self.0).into_iter().collect()
    }

    /// What could not be told after all.
    pub fn put_back(&mut self, edges: Vec<(Edge, Counts)>) {
        for (edge, counts) in edges {
            self.at(edge).add(&counts);
        }
    }

    fn of(&mut self, subject: Option<&Subject>) -> &mut Counts {
        self.at(subject.map_or_else(|| Edge::overflow(false), Edge::of))
    }

    fn at(&mut self, edge: Edge) -> &mut Counts {
        let room = self.0.len() < MAX || self.0.contains_key(&edge);
        let edge = if room { edge } else { Edge::overflow(edge.inbound) };
        self.0.entry(edge).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_nothing_is_lost() {
        let mut edges = Edges::default();
        let edge = |n: usize| Edge { route: n.to_string().into(), ..Edge::default() };
        let one = || Counts { requests: 1, failures: 1, ..Counts::default() };
        for _ in 0..2 {
            edges.put_back((0..2 * MAX).map(|n| (edge(n), one())).collect());
        }
        let taken = edges.take();
        assert_eq!(taken.len(), MAX + 1);
        assert_eq!(taken.iter().map(|(_, c)| c.requests).sum::<u64>(), 4 * MAX as u64);
        assert!(edges.take().is_empty());
        edges.put_back(taken);
        edges.put_back(vec![(edge(0), one())]);
        let again = edges.take();
        assert!(again.len() <= MAX + 1);
        assert_eq!(again.iter().map(|(_, c)| c.failures).sum::<u64>(), 4 * MAX as u64 + 1);
    }
}
