//! Every series of the process, in three dialects, and the text of a scrape.

use super::cells::{Numbers, Side, Tcp};
use super::histogram::{self, Durations, Sizes};
use super::labels::Subject;
use super::table::{At, Table};
use super::text::{Kind, Labels, Text};
use crate::telemetry::edges::Edges;
use std::time::{Duration, Instant};

const IDLE: Duration = Duration::from_secs(600);
/// Lines per histogram series: the cap is on lines, so histograms have fewer label sets.
const LINES: usize = 20;

impl super::table::Numbers for Tcp {
    fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.sent += other.sent;
        self.received += other.received;
    }
}

impl super::table::Numbers for Durations {
    fn add(&mut self, other: &Self) {
        Durations::add(self, other);
    }
}

#[derive(Debug, Default)]
struct Requests {
    count: u64,
    request_bytes: u64,
    response_bytes: u64,
}

impl super::table::Numbers for Requests {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
    }
}

#[derive(Debug, Default)]
struct IstioSizes {
    durations: Durations,
    request: Sizes,
    response: Sizes,
}

impl super::table::Numbers for IstioSizes {
    fn add(&mut self, other: &Self) {
        self.durations.add(&other.durations);
        self.request.add(&other.request);
        self.response.add(&other.response);
    }
}

/// Where a cell's series are, so that labels are made once per cell.
#[derive(Debug, Default)]
pub struct RequestAt {
    requests: Option<At>,
    durations: Option<At>,
    attempts: Option<At>,
    istio: Option<At>,
    istio_sizes: Option<At>,
    linkerd_requests: Option<At>,
    linkerd_responses: Option<At>,
    linkerd_latency: Option<At>,
}

#[derive(Debug)]
pub struct Series {
    requests: Table<Requests>,
    durations: Table<Durations>,
    attempts: Table<u64>,
    retries: Table<u64>,
    tcp: Table<Tcp>,
    istio: Option<Istio>,
    linkerd: Option<Linkerd>,
    /// Only where there is somebody to tell.
    pub edges: Option<Edges>,
    expired: Instant,
}

#[derive(Debug)]
struct Istio {
    requests: Table<u64>,
    sizes: Table<IstioSizes>,
    tcp: Table<Tcp>,
}

#[derive(Debug)]
struct Linkerd {
    requests: Table<u64>,
    responses: Table<u64>,
    latency: Table<Durations>,
    tcp: Table<Tcp>,
}

impl Istio {
    fn new(cap: usize) -> Self {
        Self { requests: Table::new(cap), sizes: Table::new(few(cap)), tcp: Table::new(cap) }
    }

    fn set_cap(&mut self, cap: usize) {
        self.requests.set_cap(cap);
        self.sizes.set_cap(few(cap));
        self.tcp.set_cap(cap);
    }
}

impl Linkerd {
    fn new(cap: usize) -> Self {
        Self {
            requests: Table::new(cap),
            responses: Table::new(cap),
            latency: Table::new(few(cap)),
            tcp: Table::new(cap),
        }
    }

    fn set_cap(&mut self, cap: usize) {
        self.requests.set_cap(cap);
        self.responses.set_cap(cap);
        self.latency.set_cap(few(cap));
        self.tcp.set_cap(cap);
    }
}

fn few(cap: usize) -> usize {
    (cap / LINES).max(10)
}

impl Series {
    pub fn new(cap: usize, istio: bool, linkerd: bool, now: Instant) -> Self {
        Self {
            requests: Table::new(cap),
            durations: Table::new(few(cap)),
            attempts: Table::new(cap),
            retries: Table::new(cap),
            tcp: Table::new(cap),
            istio: istio.then(|| Istio::new(cap)),
            linkerd: linkerd.then(|| Linkerd::new(cap)),
            edges: None,
            expired: now,
        }
    }

    /// New bounds and names. A lowered bound forgets nothing at once.
    pub fn reshape(&mut self, cap: usize, istio: bool, linkerd: bool) {
        self.requests.set_cap(cap);
        self.durations.set_cap(few(cap));
        self.attempts.set_cap(cap);
        self.retries.set_cap(cap);
        self.tcp.set_cap(cap);
        self.istio = istio.then(|| self.istio.take().unwrap_or_else(|| Istio::new(cap)));
        self.linkerd = linkerd.then(|| self.linkerd.take().unwrap_or_else(|| Linkerd::new(cap)));
        self.istio.iter_mut().for_each(|t| t.set_cap(cap));
        self.linkerd.iter_mut().for_each(|t| t.set_cap(cap));
    }

    /// `None` is what a worker had no room for.
    pub fn add_request(&mut self, at: &mut RequestAt, subject: Option<&Subject>, n: &Numbers, now: Instant) {
        let text = |labels: fn(&Subject) -> Labels| move || subject.map(|s| labels(s).into_string());
        let requests = Requests { count: n.count, request_bytes: n.request_bytes, response_bytes: n.response_bytes };
        self.requests.add(&mut at.requests, text(Subject::weft_request), &requests, now);
        self.durations.add(&mut at.durations, text(Subject::weft_duration), &n.durations, now);
        if let Some(subject) = subject.filter(|s| s.attempt > 0) {
            let labels = || Some(subject.weft_attempt(subject.attempt).into_string());
            self.attempts.add(&mut at.attempts, labels, &n.count, now);
        }
        if let Some(istio) = &mut self.istio {
            istio.requests.add(&mut at.istio, text(Subject::istio), &n.count, now);
            let mut sizes = IstioSizes { durations: n.durations.clone(), ..IstioSizes::default() };
            if let Some(of) = &n.sizes {
                (sizes.request, sizes.response) = (of.0.clone(), of.1.clone());
            }
            istio.sizes.add(&mut at.istio_sizes, text(Subject::istio), &sizes, now);
        }
        if let Some(linkerd) = &mut self.linkerd {
            linkerd.requests.add(&mut at.linkerd_requests, text(Subject::linkerd_request), &n.count, now);
            linkerd.responses.add(&mut at.linkerd_responses, text(Subject::linkerd_response), &n.count, now);
            linkerd.latency.add(&mut at.linkerd_latency, text(Subject::linkerd_latency), &n.durations, now);
        }
        if let Some(edges) = &mut self.edges {
            edges.requests(subject, n);
        }
    }

    pub fn add_side(&mut self, side: Side, subject: Option<&Subject>, n: &Tcp, now: Instant) {
        if let Some(edges) = &mut self.edges {
            edges.side(side, subject, n);
        }
        match side {
            Side::Attempt { status } => {
                let labels = || subject.map(|s| s.weft_attempt(status).into_string());
                self.attempts.add(&mut None, labels, &n.opened, now);
            }
            Side::Retry { result } => {
                let labels = || subject.map(|s| s.weft_retry(result).into_string());
                self.retries.add(&mut None, labels, &n.opened, now);
            }
            Side::Tcp => {
                self.tcp.add(&mut None, || subject.map(|s| s.weft_tcp().into_string()), n, now);
                if let Some(istio) = &mut self.istio {
                    istio.tcp.add(&mut None, || subject.map(|s| s.istio().into_string()), n, now);
                }
                if let Some(linkerd) = &mut self.linkerd {
                    linkerd.tcp.add(&mut None, || subject.map(|s| s.linkerd_tcp().into_string()), n, now);
                }
            }
        }
    }

    pub fn expire(&mut self, now: Instant) {
        if now.saturating_duration_since(self.expired) < IDLE / 20 {
            return;
        }
        self.expired = now;
        self.requests.expire(now, IDLE);
        self.durations.expire(now, IDLE);
        self.attempts.expire(now, IDLE);
        self.retries.expire(now, IDLE);
        self.tcp.expire(now, IDLE);
        if let Some(istio) = &mut self.istio {
            istio.requests.expire(now, IDLE);
            istio.sizes.expire(now, IDLE);
            istio.tcp.expire(now, IDLE);
        }
        if let Some(linkerd) = &mut self.linkerd {
            linkerd.requests.expire(now, IDLE);
            linkerd.responses.expire(now, IDLE);
            linkerd.latency.expire(now, IDLE);
            linkerd.tcp.expire(now, IDLE);
        }
    }

    pub fn write(&self, out: &mut Text) {
        self.write_weft(out);
        if let Some(istio) = &self.istio {
            istio.write(out);
        }
        if let Some(linkerd) = &self.linkerd {
            linkerd.write(out);
        }
    }

    fn write_weft(&self, out: &mut Text) {
        let t = &self.requests;
        counter(out, "weft_http_requests_total", "Requests, by edge and outcome.", t, |n| n.count);
        counter(out, "weft_http_request_bytes_total", "Bytes of request bodies.", t, |n| n.request_bytes);
        counter(out, "weft_http_response_bytes_total", "Bytes of response bodies.", t, |n| n.response_bytes);
        let (name, help) =
            ("weft_http_request_duration_seconds", "From a request's first byte to its response's last.");
        durations(out, name, help, &self.durations, &histogram::WEFT, 1_000_000);
        counter(out, "weft_upstream_attempts_total", "Attempts at endpoints, by answer.", &self.attempts, |n| *n);
        counter(out, "weft_retries_total", "Retries made, and retries that were left out.", &self.retries, |n| *n);
        let t = &self.tcp;
        counter(out, "weft_tcp_connections_opened_total", "Opaque connections opened.", t, |n| n.opened);
        counter(out, "weft_tcp_connections_closed_total", "Opaque connections closed.", t, |n| n.closed);
        counter(out, "weft_tcp_sent_bytes_total", "Bytes sent to clients of opaque connections.", t, |n| n.sent);
        counter(out, "weft_tcp_received_bytes_total", "Bytes received from clients of opaque connections.", t, |n| {
            n.received
        });
        let name = "weft_metrics_overflow_total";
        out.family(name, Kind::Counter, "Additions to series that found no room, by family.");
        for (family, n) in self.overflowed() {
            out.sample(name, Labels::default().with("family", family).as_str(), n);
        }
        let name = "weft_metrics_series";
        out.family(name, Kind::Gauge, "Label sets held, by family.");
        for (family, n) in [
            ("weft_http_requests_total", self.requests.len()),
            ("weft_http_request_duration_seconds", self.durations.len()),
            ("weft_tcp_connections_opened_total", self.tcp.len()),
        ] {
            out.sample(name, Labels::default().with("family", family).as_str(), n);
        }
    }

    fn overflowed(&self) -> Vec<(&'static str, u64)> {
        let mut all = vec![
            ("weft_http_requests_total", self.requests.overflowed()),
            ("weft_http_request_duration_seconds", self.durations.overflowed()),
            ("weft_upstream_attempts_total", self.attempts.overflowed()),
            ("weft_retries_total", self.retries.overflowed()),
            ("weft_tcp_connections_opened_total", self.tcp.overflowed()),
        ];
        if let Some(istio) = &self.istio {
            all.push(("istio_requests_total", istio.requests.overflowed()));
            all.push(("istio_request_duration_milliseconds", istio.sizes.overflowed()));
        }
        if let Some(linkerd) = &self.linkerd {
            all.push(("response_total", linkerd.responses.overflowed()));
            all.push(("response_latency_ms", linkerd.latency.overflowed()));
        }
        all
    }

    /// Requests and 5xx since the start, durations of all: for `/stats`.
    pub fn totals(&self) -> (u64, u64, Durations) {
        let (mut requests, mut errors, mut all) = (0, 0, Durations::default());
        for (labels, n) in self.requests.each() {
            requests += n.count;
            if labels.contains("status=\"5") {
                errors += n.count;
            }
        }
        self.durations.each().for_each(|(_, d)| all.add(d));
        (requests, errors, all)
    }
}

impl Istio {
    fn write(&self, out: &mut Text) {
        counter(out, "istio_requests_total", "Requests, as Istio counts them.", &self.requests, |n| *n);
        let name = "istio_request_duration_milliseconds";
        out.family(name, Kind::Histogram, "Duration of requests, as Istio has it.");
        for (labels, n) in self.sizes.each() {
            let d = &n.durations;
            out.histogram(name, labels, d.at(&histogram::ISTIO, 1000), d.count(), d.sum(1000));
        }
        type Of = fn(&IstioSizes) -> &Sizes;
        let (request, response): (Of, Of) = (|n| &n.request, |n| &n.response);
        for (name, help, of) in [
            ("istio_request_bytes", "Request body sizes, as Istio has them.", request),
            ("istio_response_bytes", "Response body sizes, as Istio has them.", response),
        ] {
            out.family(name, Kind::Histogram, help);
            for (labels, n) in self.sizes.each() {
                let sizes = of(n);
                out.histogram(name, labels, sizes.at(), sizes.count(), sizes.sum() as f64);
            }
        }
        let t = &self.tcp;
        counter(out, "istio_tcp_connections_opened_total", "Connections opened, as Istio counts them.", t, |n| {
            n.opened
        });
        counter(out, "istio_tcp_connections_closed_total", "Connections closed, as Istio counts them.", t, |n| {
            n.closed
        });
        counter(out, "istio_tcp_sent_bytes_total", "Bytes of responses, as Istio counts them.", t, |n| n.sent);
        counter(out, "istio_tcp_received_bytes_total", "Bytes of requests, as Istio counts them.", t, |n| n.received);
    }
}

impl Linkerd {
    fn write(&self, out: &mut Text) {
        counter(out, "request_total", "Requests, as Linkerd counts them.", &self.requests, |n| *n);
        counter(out, "response_total", "Responses, as Linkerd counts them.", &self.responses, |n| *n);
        let (name, help) = ("response_latency_ms", "Time to the end of responses, as Linkerd has it.");
        durations(out, name, help, &self.latency, &histogram::LINKERD, 1000);
        let t = &self.tcp;
        counter(out, "tcp_open_total", "Connections opened, as Linkerd counts them.", t, |n| n.opened);
        counter(out, "tcp_close_total", "Connections closed, as Linkerd counts them.", t, |n| n.closed);
        counter(out, "tcp_write_bytes_total", "Bytes written to peers, as Linkerd counts them.", t, |n| n.sent);
        counter(out, "tcp_read_bytes_total", "Bytes read from peers, as Linkerd counts them.", t, |n| n.received);
    }
}

fn counter<N: super::table::Numbers>(out: &mut Text, name: &str, help: &str, table: &Table<N>, of: fn(&N) -> u64) {
    out.family(name, Kind::Counter, help);
    for (labels, n) in table.each() {
        out.sample(name, labels, of(n));
    }
}

fn durations(out: &mut Text, name: &str, help: &str, table: &Table<Durations>, bounds: &[u64], unit: u64) {
    out.family(name, Kind::Histogram, help);
    for (labels, d) in table.each() {
        out.histogram(name, labels, d.at(bounds, unit), d.count(), d.sum(unit));
    }
}
