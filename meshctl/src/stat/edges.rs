//! From looks at the control plane's sums to rows: what happened between two of them, and whose word counts.
//!
//! Where both ends of an edge report, the client's side counts: it knows what was asked for, and what its retries made of it. The
//! server's side counts where no client reports, as of those without a sidecar.

use super::quantile::quantile;
use clap::Args;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Texts are empty where nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    pub workload: String,
    pub namespace: String,
    pub identity: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: End,
    to: End,
    service: String,
    route: String,
    mtls: bool,
    inbound: bool,
    /// Which replica of the control plane has added it up: one that begins anew has nothing to do with the others.
    replica: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub failures: u64,
    pub retries: u64,
    pub durations: Vec<u64>,
    pub connections: u64,
    pub sent: u64,
    pub received: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.retries += other.retries;
        self.connections += other.connections;
        self.sent += other.sent;
        self.received += other.received;
        self.durations.resize(self.durations.len().max(other.durations.len()), 0);
        self.durations.iter_mut().zip(&other.durations).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// What came after `before`; everything, where the control plane has begun anew since.
    fn since(&self, before: Option<&Self>) -> Self {
        let Some(before) = before.filter(|b| b.requests <= self.requests && b.connections <= self.connections) else {
            return self.clone();
        };
        let old = before.durations.iter().copied().chain(std::iter::repeat(0));
        Self {
            requests: self.requests - before.requests,
            failures: self.failures.saturating_sub(before.failures),
            retries: self.retries.saturating_sub(before.retries),
            durations: self.durations.iter().zip(old).map(|(now, old)| now.saturating_sub(old)).collect(),
            connections: self.connections - before.connections,
            sent: self.sent.saturating_sub(before.sent),
            received: self.received.saturating_sub(before.received),
        }
    }

    /// From 0 to 1.
    pub fn success(&self) -> Option<f64> {
        let good = self.requests.saturating_sub(self.failures);
        (self.requests > 0).then(|| good as f64 / self.requests as f64)
    }

    /// In seconds.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        quantile(q, &self.durations)
    }
}

/// `/edges` of every replica of the control plane at one moment.
pub struct Snapshot {
    at: Instant,
    edges: BTreeMap<Key, Counts>,
}

impl Snapshot {
    pub fn of(document: &Value) -> Self {
        Self::of_all(&[(String::new(), document.clone())])
    }

    /// Each with the replica's name.
    pub fn of_all(documents: &[(String, Value)]) -> Self {
        let mut edges: BTreeMap<Key, Counts> = BTreeMap::new();
        let all = documents.iter().flat_map(|(r, d)| d["edges"].as_array().into_iter().flatten().map(move |e| (r, e)));
        for (replica, edge) in all {
            let text = |field: &str| edge[field].as_str().unwrap_or_default().to_string();
            let end = |of: &str| End {
                workload: text(of),
                namespace: text(&format!("{of}Namespace")),
                identity: text(&format!("{of}Identity")),
            };
            let number = |field: &str| edge[field].as_u64().unwrap_or(0);
            let key = Key {
                from: end("source"),
                to: end("destination"),
                service: text("destinationService"),
                route: text("route"),
                mtls: edge["mtls"] == true,
                inbound: edge["inbound"] == true,
                replica: replica.clone(),
            };
            let counts = Counts {
                requests: number("requests"),
                failures: number("failures"),
                retries: number("retries"),
                durations: edge["durations"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|n| n.as_u64().unwrap_or(0))
                    .collect(),
                connections: number("connections"),
                sent: number("bytesSent"),
                received: number("bytesReceived"),
            };
            edges.entry(key).or_default().add(&counts);
        }
        Self { at: Instant::now(), edges }
    }

    /// Those that count: of an edge that both its ends report, the client's.
    fn heard(&self) -> impl Iterator<Item = (&Key, &Counts)> {
        fn pair(key: &Key) -> [&str; 4] {
            [&key.from.namespace, &key.from.workload, &key.to.namespace, &key.to.workload]
        }
        let clients: BTreeSet<[&str; 4]> = self.edges.keys().filter(|k| !k.inbound).map(pair).collect();
        let counts = move |key: &Key| !key.inbound || key.from.workload.is_empty() || !clients.contains(&pair(key));
        self.edges.iter().filter(move |(key, _)| counts(key))
    }
}

/// Looks back as far as a window reaches.
pub struct History {
    window: Duration,
    looks: VecDeque<Snapshot>,
}

impl History {
    pub fn new(window: Duration) -> Self {
        Self { window, looks: VecDeque::new() }
    }

    pub fn push(&mut self, look: Snapshot) {
        // Half a look more or less: the clock that asks is not that exact.
        let slack = Duration::from_millis(500);
        while self.looks.get(1).is_some_and(|next| look.at - next.at + slack > self.window) {
            self.looks.pop_front();
        }
        self.looks.push_back(look);
    }

    /// From the first look to the last.
    pub fn seconds(&self) -> f64 {
        let ends = self.looks.front().zip(self.looks.back());
        ends.map_or(0.0, |(first, last)| (last.at - first.at).as_secs_f64())
    }

    /// Busiest first. `coarse`: a row for all routes and Services between two workloads.
    pub fn rows(&self, coarse: bool, wanted: &Wanted) -> Vec<Row> {
        let (Some(before), Some(after)) = (self.looks.front(), self.looks.back()) else { return Vec::new() };
        let mut rows: BTreeMap<Key, (Counts, Counts)> = BTreeMap::new();
        for (key, total) in after.heard().filter(|(key, _)| wanted.fits(key)) {
            let mut merged = Key { replica: String::new(), ..key.clone() };
            if coarse {
                merged.route.clear();
                if !key.to.workload.is_empty() {
                    merged.service.clear();
                }
            }
            let (now, all) = rows.entry(merged).or_default();
            now.add(&total.since(before.edges.get(key)));
            all.add(total);
        }
        let seconds = self.seconds();
        let row = |(key, (now, total))| {
            let Key { from, to, service, route, mtls, inbound, .. } = key;
            Row { from, to, service, route, mtls, inbound, now, total, seconds }
        };
        let mut rows: Vec<Row> = rows.into_iter().map(row).collect();
        let busy = |row: &Row| std::cmp::Reverse((row.now.requests + row.now.connections, row.total.requests));
        rows.sort_by_key(busy);
        rows
    }
}

#[derive(Clone, Debug)]
pub struct Row {
    pub from: End,
    pub to: End,
    pub service: String,
    pub route: String,
    pub mtls: bool,
    /// The server's side has counted it.
    pub inbound: bool,
    pub now: Counts,
    pub total: Counts,
    seconds: f64,
}

impl Row {
    /// Per second.
    pub fn rate(&self, n: u64) -> f64 {
        if self.seconds > 0.0 { n as f64 / self.seconds } else { 0.0 }
    }
}

/// Which edges are asked for.
#[derive(Args, Clone, Debug, Default)]
pub struct Wanted {
    /// Only calls of this workload or namespace
    #[arg(long, value_name = "WHO")]
    from: Option<Filter>,
    /// Only calls to this workload, Service or namespace
    #[arg(long, value_name = "WHO")]
    to: Option<Filter>,
}

impl Wanted {
    fn fits(&self, key: &Key) -> bool {
        self.from.as_ref().is_none_or(|f| f.fits(&key.from, ""))
            && self.to.as_ref().is_none_or(|f| f.fits(&key.to, &key.service))
    }
}

/// NAME, NAMESPACE/NAME, or KIND/NAME as kubectl has it.
#[derive(Clone, Debug)]
pub struct Filter {
    kind: Kind,
    namespace: Option<String>,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    Workload,
    Service,
    Namespace,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, name) = text.split_once('/').map_or((None, text), |(first, name)| (Some(first), name));
        let (kind, namespace) = match first {
            None => (Kind::Any, None),
            Some("ns" | "namespace") => (Kind::Namespace, None),
            Some("svc" | "service") => (Kind::Service, None),
            Some("deploy" | "deployment" | "sts" | "statefulset" | "ds" | "daemonset" | "job" | "pod") => {
                (Kind::Workload, None)
            }
            Some(namespace) => (Kind::Any, Some(namespace.to_string())),
        };
        if name.is_empty() || name.contains('/') {
            return Err("NAME, NAMESPACE/NAME, svc/NAME, deploy/NAME or ns/NAME".into());
        }
        Ok(Self { kind, namespace, name: name.into() })
    }
}

impl Filter {
    fn fits(&self, end: &End, service: &str) -> bool {
        let named = match self.kind {
            Kind::Workload => end.workload == self.name,
            Kind::Service => service == self.name,
            Kind::Namespace => end.namespace == self.name,
            Kind::Any => {
                let namespace = self.namespace.is_none() && end.namespace == self.name;
                end.workload == self.name || service == self.name || namespace
            }
        };
        named && self.namespace.as_ref().is_none_or(|n| end.namespace == *n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn edge(from: &str, to: &str, inbound: bool, requests: u64) -> Value {
        json!({
            "source": from, "sourceNamespace": "shop", "sourceIdentity": format!("spiffe://cluster.local/ns/shop/sa/{from}"),
            "destination": to, "destinationNamespace": "shop", "destinationService": if inbound { "" } else { "web" },
            "route": "r", "mtls": !from.is_empty(), "inbound": inbound, "requests": requests, "failures": requests / 10,
            "durations": [0, requests],
        })
    }

    fn history(looks: &[Vec<Value>]) -> History {
        let mut history = History::new(Duration::from_secs(10));
        for (i, look) in looks.iter().enumerate() {
            let at = Instant::now() + Duration::from_secs(5 * i as u64);
            history.push(Snapshot { at, ..Snapshot::of(&json!({"edges": look})) });
        }
        history
    }

    fn seen(rows: &[Row]) -> Vec<(&str, &str, u64, u64)> {
        rows.iter().map(|r| (&*r.from.workload, &*r.to.workload, r.now.requests, r.total.requests)).collect()
    }

    #[test]
    fn the_clients_word_counts_and_the_servers_where_there_is_none() {
        let all = Wanted::default();
        let before = vec![edge("a", "b", false, 10), edge("a", "b", true, 14), edge("", "b", true, 1)];
        let after = vec![
            edge("a", "b", false, 40),
            edge("a", "b", true, 60),
            edge("", "b", true, 2),
            edge("gateway", "b", true, 5),
        ];
        let history = history(&[before, after]);
        let rows = history.rows(true, &all);
        assert_eq!(seen(&rows), [("a", "b", 30, 40), ("gateway", "b", 5, 5), ("", "b", 1, 2)]);
        assert!((rows[0].rate(rows[0].now.requests) - 6.0).abs() < 0.1);
        assert_eq!((rows[0].now.success(), rows[0].now.durations.clone()), (Some(0.9), vec![0, 30]));
    }

    #[test]
    fn a_window_and_a_control_plane_that_begins_anew() {
        let all = Wanted::default();
        let looks: Vec<Vec<Value>> = [10, 20, 30, 40].map(|n| vec![edge("a", "b", false, n)]).into();
        let rows = history(&looks).rows(true, &all);
        assert_eq!(seen(&rows), [("a", "b", 20, 40)], "of the last ten seconds");
        let again = history(&[vec![edge("a", "b", false, 100)], vec![edge("a", "b", false, 7)]]);
        assert_eq!(seen(&again.rows(true, &all)), [("a", "b", 7, 7)]);
    }

    #[test]
    fn filters() {
        let look = vec![edge("a", "b", false, 1), edge("c", "d", false, 2)];
        let history = history(&[look]);
        let rows = |from: Option<&str>, to: Option<&str>| {
            let filter = |t: Option<&str>| t.map(|t| t.parse().unwrap());
            seen(&history.rows(true, &Wanted { from: filter(from), to: filter(to) })).len()
        };
        assert_eq!(rows(None, None), 2);
        for (from, to, found) in [
            (Some("a"), None, 1),
            (Some("shop/a"), None, 1),
            (Some("bank/a"), None, 0),
            (Some("deploy/c"), Some("svc/web"), 1),
            (Some("svc/a"), None, 0),
            (None, Some("ns/shop"), 2),
            (None, Some("shop"), 2),
            (None, Some("web"), 2),
            (None, Some("deploy/web"), 0),
        ] {
            assert_eq!(rows(from, to), found, "{from:?} {to:?}");
        }
        for bad in ["", "a/b/c", "ns/"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}
