//! Records in, text, lines and spans out.

use super::access_log::Log;
use super::record::{Attempt, Peer, Proto, Record, TcpRecord};
use super::trace::Trace;
use super::{Hub, Recorder};
use crate::http::exchange::FieldMap;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use weft_policy::endpoint::{self, Address, Endpoint};
use weft_policy::id::{BackendId, EndpointId, ServiceId};
use weft_policy::listener::Role;
use weft_policy::meta::Workload;
use weft_policy::reason::{Flags, Reason};
use weft_policy::route::RoutePlan;
use weft_policy::telemetry::{Config, LogFormat, Tracing};

fn own() -> Workload {
    Workload { name: "web-v1".into(), namespace: "demo".into(), app: "web".into(), ..Workload::default() }
}

fn endpoint(i: u8) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(&endpoint::Config {
        id: EndpointId(format!("e{i}").into()),
        address: Address::Direct(([10, 0, 0, i], 8080).into()),
        identity: None,
        labels: BTreeMap::new(),
        weight: 1,
        draining: false,
        workload: Workload { name: format!("be-v{i}").into(), namespace: "demo".into(), ..Workload::default() },
    }))
}

fn peer() -> Arc<Peer> {
    Arc::new(Peer { addr: ([127, 0, 0, 1], 4000).into(), identity: None, workload: None })
}

fn attempt(endpoint: &Arc<Endpoint>, status: Option<u16>) -> Attempt {
    let now = Instant::now();
    let status = status.map(|s| StatusCode::from_u16(s).unwrap());
    Attempt { endpoint: endpoint.clone(), started: now, ended: now, status, span: [7; 8], tls: false }
}

fn backend() -> BackendId {
    BackendId { service: ServiceId::new("demo", "be"), port: 80, subset: None }
}

fn record() -> Record {
    let now = Instant::now();
    Record {
        role: Role::Outbound,
        listener: "out".into(),
        peer: peer(),
        destination: ([10, 96, 0, 1], 80).into(),
        proto: Proto::Http1,
        method: Method::GET,
        authority: Some("be".parse().unwrap()),
        path: PathAndQuery::from_static("/x?y=z"),
        request_id: Some(HeaderValue::from_static("id-1")),
        user_agent: None,
        trace: Trace::start(&FieldMap::default(), || 0x1234_5678_9abc_def0, 0),
        service: None,
        route: None,
        backend: Some(backend()),
        attempts: Default::default(),
        started: now,
        head_sent: Some(now),
        status: StatusCode::OK,
        grpc_status: None,
        flags: Flags::default(),
        note: None,
        request_bytes: 10,
        response_bytes: 1000,
        upgraded: false,
    }
}

fn route(name: &str) -> Arc<RoutePlan> {
    let mut plan = RoutePlan::default_to(0);
    plan.name = name.into();
    Arc::new(plan)
}

fn hub(config: Config) -> Arc<Hub> {
    Hub::new(config, own(), None)
}

fn all_names() -> Config {
    Config { istio_names: true, linkerd_names: true, ..Config::default() }
}

/// Checks the format, and gives series with their values.
fn parse(text: &str) -> HashMap<String, f64> {
    let mut families = HashSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let mut all = HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, k) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_string()), "{name} twice");
            (family, kind) = (name.to_string(), k.to_string());
            assert!(kind != "counter" || name.ends_with("_total"), "{name}");
            continue;
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let base = match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name),
            _ => name,
        };
        assert_eq!(base, family, "{line}");
        assert!(all.insert(series.to_string(), value.parse().unwrap()).is_none(), "{series} twice");
    }
    all
}

/// The sum over the series of a family whose labels hold all of `with`.
fn sum(series: &HashMap<String, f64>, family: &str, with: &[&str]) -> f64 {
    let of = |s: &&String| s.split('{').next() == Some(family) && with.iter().all(|w| s.contains(w));
    series.iter().filter(|(s, _)| of(s)).map(|(_, v)| v).sum()
}

#[test]
fn counted_in_every_dialect() {
    let hub = hub(all_names());
    let (a, b) = (Recorder::new(&hub), Recorder::new(&hub));
    let (e1, e2) = (endpoint(1), endpoint(2));
    let route = route("main");
    for recorder in [&a, &b] {
        recorder.request_started(Role::Outbound);
        let mut r = record();
        r.route = Some(route.clone());
        r.attempts.push(attempt(&e1, Some(200)));
        recorder.finish(&r, Instant::now());
        recorder.finish(&r, Instant::now());
        // Retried, and given up.
        r.attempts = [attempt(&e1, None), attempt(&e2, Some(503)), attempt(&e1, Some(503))].into_iter().collect();
        r.status = StatusCode::SERVICE_UNAVAILABLE;
        r.flags = Flags { retries_exhausted: true, ..Flags::default() };
        recorder.finish(&r, Instant::now());
        assert!(recorder.flush());
        r.note = Some("retry budget");
        recorder.finish(&r, Instant::now());
        assert!(recorder.flush());
    }
    let series = parse(&hub.render());
    let edge = ["source_workload=\"web-v1\"", "destination_service=\"be\"", "backend=\"be.demo:80\"", "route=\"main\""];
    let ok = ["status=\"200\"", "destination_workload=\"be-v1\"", "method=\"GET\"", "reason=\"none\""];
    let of = |more: &[&'static str]| [edge.as_slice(), more].concat();
    assert_eq!(sum(&series, "weft_http_requests_total", &of(&ok)), 4.0);
    assert_eq!(sum(&series, "weft_http_requests_total", &of(&["status=\"503\"", "flags=\"URX\""])), 4.0);
    assert_eq!(sum(&series, "weft_http_response_bytes_total", &[]), 8000.0);
    assert_eq!(sum(&series, "weft_http_request_duration_seconds_count", &["status_class=\"5xx\""]), 4.0);
    assert_eq!(sum(&series, "weft_upstream_attempts_total", &["status=\"200\""]), 4.0);
    assert_eq!(sum(&series, "weft_upstream_attempts_total", &["status=\"503\""]), 8.0);
    assert_eq!(
        sum(&series, "weft_upstream_attempts_total", &["status=\"503\"", "destination_workload=\"be-v2\""]),
        4.0
    );
    assert_eq!(sum(&series, "weft_upstream_attempts_total", &["status=\"none\""]), 4.0);
    assert_eq!(sum(&series, "weft_retries_total", &["result=\"failure\""]), 8.0);
    assert_eq!(sum(&series, "weft_retries_total", &["result=\"not_retried\""]), 2.0);
    let istio =
        ["reporter=\"source\"", "destination_service=\"be.demo.svc.cluster.local\"", "request_protocol=\"http\""];
    assert_eq!(sum(&series, "istio_requests_total", &istio), 8.0);
    assert_eq!(sum(&series, "istio_requests_total", &["response_code=\"503\"", "response_flags=\"URX\""]), 4.0);
    assert_eq!(sum(&series, "istio_request_duration_milliseconds_bucket", &["le=\"+Inf\""]), 8.0);
    assert_eq!(sum(&series, "istio_response_bytes_sum", &[]), 8000.0);
    assert_eq!(sum(&series, "request_total", &["direction=\"outbound\"", "target_addr=\"10.0.0.1:8080\""]), 8.0);
    assert_eq!(sum(&series, "response_total", &["classification=\"failure\"", "status_code=\"503\""]), 4.0);
    assert_eq!(sum(&series, "response_latency_ms_count", &["status_code=\"200\""]), 4.0);
    assert!(sum(&series, "process_resident_memory_bytes", &[]) > 0.0);
    assert!(series.contains_key("weft_panics_total"));

    // Counts stand when a worker ends.
    a.finish(&record(), Instant::now());
    drop(a);
    let series = parse(&hub.render());
    assert_eq!(sum(&series, "weft_http_requests_total", &[]), 9.0);
}

#[test]
fn who_calls_whom() {
    let hub = hub(all_names());
    let (a, b) = (Recorder::new(&hub), Recorder::new(&hub));
    let (e1, e2) = (endpoint(1), endpoint(2));
    let route = route("main");
    let finish = |recorder: &Recorder, change: &dyn Fn(&mut Record)| {
        let mut r = record();
        r.route = Some(route.clone());
        r.attempts.push(attempt(&e1, Some(200)));
        change(&mut r);
        recorder.finish(&r, Instant::now());
    };
    finish(&a, &|_| {});
    assert!(a.flush() && hub.take_edges().is_empty(), "nobody has asked");
    hub.count_edges();
    for recorder in [&a, &b] {
        finish(recorder, &|_| {});
        // A client's mistake, and a client that left, are not the server's failures.
        finish(recorder, &|r| r.status = StatusCode::NOT_FOUND);
        finish(recorder, &|r| r.flags.reason = Some(Reason::ClientGone));
        finish(recorder, &|r| r.flags.reason = Some(Reason::UpstreamBroken));
        finish(recorder, &|r| (r.proto, r.grpc_status) = (Proto::Grpc, Some(14)));
        finish(recorder, &|r| {
            r.status = StatusCode::SERVICE_UNAVAILABLE;
            r.attempts = [attempt(&e1, None), attempt(&e1, Some(503)), attempt(&e2, Some(503))].into_iter().collect();
        });
        // Nobody was reached.
        finish(recorder, &|r| {
            r.attempts.clear();
            r.status = StatusCode::SERVICE_UNAVAILABLE;
        });
        assert!(recorder.flush());
    }
    let by_destination = |edges: &[(super::edges::Edge, super::edges::Counts)]| {
        let row = |(e, c): &(super::edges::Edge, super::edges::Counts)| {
            assert_eq!((&*e.source.workload, &*e.service, &*e.route, e.inbound), ("web-v1", "be", "main", false));
            assert_eq!(&*e.destination.namespace, "demo");
            (e.destination.workload.to_string(), (c.requests, c.failures, c.retries, c.durations.count()))
        };
        edges.iter().map(row).collect::<BTreeMap<_, _>>()
    };
    let wanted: BTreeMap<String, (u64, u64, u64, u64)> =
        [("be-v1".into(), (10, 4, 0, 10)), ("be-v2".into(), (2, 2, 4, 2)), (String::new(), (2, 2, 0, 2))].into();
    let edges = hub.take_edges();
    assert_eq!(by_destination(&edges), wanted);
    assert!(hub.take_edges().is_empty());
    hub.put_back_edges(edges);
    assert_eq!(by_destination(&hub.take_edges()), wanted);
}

#[test]
fn names_on_and_off() {
    let hub = hub(Config::default());
    let recorder = Recorder::new(&hub);
    recorder.finish(&record(), Instant::now());
    recorder.flush();
    assert!(!hub.render().contains("istio_requests_total{"));
    hub.configure(all_names());
    recorder.finish(&record(), Instant::now());
    recorder.flush();
    recorder.finish(&record(), Instant::now());
    recorder.flush();
    let series = parse(&hub.render());
    assert_eq!(sum(&series, "weft_http_requests_total", &[]), 3.0);
    assert_eq!(sum(&series, "istio_requests_total", &[]), 2.0);
    assert_eq!(sum(&series, "istio_request_bytes_count", &[]) as u64, 1, "sizes from the second flush on");
}

#[test]
fn opaque_connections() {
    let hub = hub(all_names());
    hub.count_edges();
    let recorder = Recorder::new(&hub);
    let tcp = TcpRecord {
        role: Role::TcpOut,
        listener: "tcp".into(),
        peer: peer(),
        destination: ([10, 0, 0, 9], 5432).into(),
        backend: Some(backend()),
        endpoint: Some(endpoint(1)),
        tls_upstream: true,
        server_name: None,
        started: Instant::now(),
        sent: Cell::new(5),
        received: Cell::new(7),
        counted: Cell::default(),
        flags: Flags::default(),
    };
    recorder.tcp_open(&tcp);
    recorder.tcp_progress(&tcp);
    recorder.flush();
    tcp.sent.set(50);
    recorder.tcp_close(&tcp);
    recorder.flush();
    let edges = hub.take_edges();
    let of = |(edge, n): &(super::edges::Edge, super::edges::Counts)| {
        (edge.destination.workload.to_string(), edge.mtls, n.connections, n.sent, n.received, n.requests)
    };
    assert_eq!(edges.iter().map(of).collect::<Vec<_>>(), [("be-v1".to_string(), true, 1, 50, 7, 0)]);
    let series = parse(&hub.render());
    for name in ["weft_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "tcp_open_total"] {
        assert_eq!(sum(&series, name, &[]), 1.0, "{name}");
    }
    assert_eq!(sum(&series, "weft_tcp_sent_bytes_total", &["tls=\"mutual_tls\""]), 50.0);
    assert_eq!(sum(&series, "istio_tcp_received_bytes_total", &["request_protocol=\"tcp\""]), 7.0);
    assert_eq!(sum(&series, "tcp_write_bytes_total", &["peer=\"dst\"", "tls=\"true\""]), 50.0);
}

/// CVE-2025-43915: what clients send must not become series.
#[test]
fn a_million_hosts_are_one_series() {
    let hub = hub(all_names());
    let recorder = Recorder::new(&hub);
    let mut r = record();
    for i in 0..1_000_000u32 {
        if i % 100 == 0 {
            r.authority = Some(format!("h{i}.example").parse().unwrap());
            r.path = format!("/p{i}").parse().unwrap();
            r.user_agent = Some(i.into());
            r.request_id = Some(i.into());
            r.method = Method::from_bytes(format!("M{i}").as_bytes()).unwrap();
            r.peer = Arc::new(Peer { addr: ([10, 0, 0, 1], i as u16).into(), identity: None, workload: own().into() });
        }
        recorder.finish(&r, Instant::now());
    }
    recorder.flush();
    let series = parse(&hub.render());
    let requests: Vec<_> = series.keys().filter(|s| s.starts_with("weft_http_requests_total{")).collect();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].contains("method=\"other\""));
    assert_eq!(sum(&series, "weft_http_requests_total", &[]), 1_000_000.0);
}

#[test]
fn bounded_with_an_overflow_series() {
    let hub = hub(Config { max_series: 50, ..all_names() });
    let recorder = Recorder::new(&hub);
    for i in 0..500 {
        let mut r = record();
        r.route = Some(route(&format!("r{i}")));
        r.backend = Some(BackendId { service: ServiceId::new("demo", &format!("s{i}")), ..backend() });
        r.attempts.push(attempt(&endpoint((i % 250) as u8), Some(200)));
        recorder.finish(&r, Instant::now());
        if i % 100 == 99 {
            recorder.flush();
        }
    }
    assert!(recorder.cells.borrow().len() <= 50);
    let text = hub.render();
    let series = parse(&text);
    let held = series.keys().filter(|s| s.starts_with("weft_http_requests_total{")).count();
    assert_eq!(held, 51);
    assert_eq!(sum(&series, "weft_http_requests_total", &[]), 500.0);
    assert!(sum(&series, "weft_http_requests_total", &["overflow=\"true\""]) >= 400.0);
    assert!(sum(&series, "weft_metrics_overflow_total", &["family=\"weft_http_requests_total\""]) > 0.0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_scrape_is_fresh() {
    let hub = hub(Config::default());
    let recorder = std::rc::Rc::new(Recorder::new(&hub));
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let kept = recorder.clone();
            tokio::task::spawn_local(async move { kept.keep_flushed().await });
            tokio::task::yield_now().await;
            recorder.connection_opened(Role::Outbound);
            recorder.finish(&record(), Instant::now());
            let series = parse(std::str::from_utf8(&hub.metrics_text().await).unwrap());
            assert_eq!(sum(&series, "weft_http_requests_total", &[]), 1.0);
            assert_eq!(sum(&series, "weft_active_connections", &["role=\"outbound\""]), 1.0);
            // A second scrape at once is the same text.
            recorder.finish(&record(), Instant::now());
            let again = hub.metrics_text().await;
            assert_eq!(sum(&parse(std::str::from_utf8(&again).unwrap()), "weft_scrapes_total", &[]), 1.0);
            // A worker that does not answer only delays.
            let _busy = Recorder::new(&hub);
            hub.fresh().await;
        })
        .await;
}

/// Where lines go, and a gate that can hold the writer.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged(format: LogFormat, records: &[Record]) -> String {
    let sink = Sink::default();
    let config = Config { access_log: format, ..Config::default() };
    let hub = Hub::logging_to(config, own(), None, Log::to(Box::new(sink.clone())));
    let recorder = Recorder::new(&hub);
    records.iter().for_each(|r| recorder.finish(r, Instant::now()));
    assert!(hub.log.settle(Duration::from_secs(10)));
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn json_lines() {
    let mut r = record();
    r.route = Some(route("main"));
    r.attempts.push(attempt(&endpoint(3), None));
    r.status = StatusCode::SERVICE_UNAVAILABLE;
    r.flags.reason = Some(Reason::Overflow);
    r.note = Some("retry budget");
    r.user_agent = Some(HeaderValue::from_bytes("a\"b\\\u{202e}\u{1f600}\t".as_bytes()).unwrap());
    let text = logged(LogFormat::Json, &[r]);
    assert_eq!(text.lines().count(), 1);
    assert!(text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{text:?}");
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("namespace", "demo"),
        ("app", "web"),
        ("role", "outbound"),
        ("method", "GET"),
        ("path", "/x?y=z"),
        ("authority", "be"),
        ("flags", "UO"),
        ("reason", "overflow"),
        ("upstream", "10.0.0.3:8080"),
        ("route", "main"),
        ("backend", "be.demo:80"),
        ("peer", "127.0.0.1:4000"),
        ("request_id", "id-1"),
        ("note", "retry budget"),
        ("user_agent", "a\"b\\\u{202e}\u{1f600}\t"),
        ("why", "A circuit breaker's limit is reached; backend be.demo:80, endpoint 10.0.0.3:8080."),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert_eq!(line["status"], 503);
    assert_eq!(line["attempts"], 1);
    assert_eq!(line["trace_id"].as_str().unwrap().len(), 32);
}

#[test]
fn every_line_stays_one_line() {
    let evil = "a\u{1b}[31m\u{85}\u{2028}\u{202e}\u{0}\"".as_bytes();
    for format in [LogFormat::Json, LogFormat::Text] {
        let mut r = record();
        // A header value may hold what is not ASCII; control characters are refused by `http`, so ESC comes by other ways.
        r.user_agent = HeaderValue::from_bytes(&evil[6..10]).ok();
        r.path = PathAndQuery::try_from(format!("/{}", "x".repeat(60_000))).unwrap();
        let text = logged(format, &[r]);
        assert_eq!(text.lines().count(), 1);
        assert!(text.len() < 8192, "{}", text.len());
        assert!(text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{text:?}");
    }
    let mut out = String::new();
    super::access_log::escape(&mut out, std::str::from_utf8(evil).unwrap());
    assert_eq!(out, r#"a\u001b[31m\u0085\u2028\u202e\u0000\""#);
}

#[test]
fn istios_text() {
    let mut r = record();
    r.attempts.push(attempt(&endpoint(3), Some(200)));
    let text = logged(LogFormat::Text, &[r]);
    let (time, rest) = text.split_once("] ").unwrap();
    assert_eq!(time.len(), "[2026-11-21T07:56:58.123Z".len());
    let want = "\"GET /x?y=z HTTP/1.1\" 200 - via_upstream - \"-\" 10 1000 0 0 \"-\" \"-\" \"id-1\" \"be\" \"10.0.0.3:8080\" \
                outbound|80||be.demo.svc.cluster.local - 10.96.0.1:80 127.0.0.1:4000 - -\n";
    assert_eq!(rest, want);
    let mut r = record();
    r.flags.reason = Some(Reason::UpstreamClosed);
    let text = logged(LogFormat::Text, &[r]);
    assert!(text.contains(" UC upstream_reset_before_response_started{connection_termination} "), "{text}");
}

#[test]
fn time_stamps() {
    use super::access_log::Timestamp;
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (1_709_251_199, "2024-02-29T23:59:59.000Z"),
        (1_798_761_599, "2026-12-31T23:59:59.000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000Z"),
    ] {
        assert_eq!(Timestamp(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), text);
    }
}

/// F-43: a reader that stops must not stop a request.
#[test]
fn a_blocked_reader_costs_lines_not_requests() {
    struct Blocked(mpsc::Receiver<()>, Sink);
    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (open, gate) = mpsc::channel();
    let sink = Sink::default();
    let config = Config { access_log: LogFormat::Json, ..Config::default() };
    let hub = Hub::logging_to(config, own(), None, Log::to(Box::new(Blocked(gate, sink.clone()))));
    let recorder = Recorder::new(&hub);
    const LINES: u64 = 20_000;
    for _ in 0..LINES {
        recorder.finish(&record(), Instant::now());
    }
    assert!(!hub.log.settle(Duration::from_millis(1)));
    let dropped = hub.log.dropped();
    assert!(dropped > 0);
    drop(open);
    assert!(hub.log.settle(Duration::from_secs(10)));
    let lines = sink.0.lock().unwrap().iter().filter(|b| **b == b'\n').count() as u64;
    assert_eq!(lines + dropped, LINES);
    assert!(parse(&hub.render())["weft_log_dropped_total"] == dropped as f64);
}

mod spans {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message;
    use tokio::net::TcpListener;

    fn sampled() -> Record {
        let mut n = 7u64;
        let random = move || {
            n = n.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            n
        };
        let mut r = record();
        r.trace = Trace::start(&FieldMap::default(), random, 10_000);
        r.route = Some(route("main"));
        r.attempts = [attempt(&endpoint(1), None), attempt(&endpoint(2), Some(200))].into_iter().collect();
        r
    }

    fn config(port: u16) -> Config {
        let otlp = Some(format!("http://127.0.0.1:{port}"));
        Config { tracing: Tracing { otlp, ..Tracing::default() }, ..Config::default() }
    }

    /// A collector: one gRPC method over bare HTTP/2.
    async fn collect(listener: TcpListener, spans: tokio::sync::mpsc::UnboundedSender<(String, Span)>) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let spans = spans.clone();
            tokio::spawn(async move {
                let path = request.uri().path().to_string();
                let mut body = request.into_body();
                let mut message = Vec::new();
                while let Some(Ok(data)) = body.data().await {
                    message.extend_from_slice(&data);
                    let _ = body.flow_control().release_capacity(data.len());
                }
                let request = ExportTraceServiceRequest::decode(&message[5..]).unwrap();
                let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let mut sending = respond.send_response(head, false).unwrap();
                sending.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                sending.send_trailers(trailers).unwrap();
                for resource in request.resource_spans {
                    let name = format!("{path} {:?}", resource.resource.unwrap().attributes[0].value);
                    for span in resource.scope_spans.into_iter().flat_map(|s| s.spans) {
                        spans.send((name.clone(), span)).unwrap();
                    }
                }
            });
        }
    }

    #[tokio::test]
    async fn reach_a_collector() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hub = hub(config(listener.local_addr().unwrap().port()));
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(collect(listener, tell));
        let exporting = hub.clone();
        tokio::spawn(async move { exporting.export_spans().await });
        let r = sampled();
        Recorder::new(&hub).finish(&r, Instant::now());
        let mut spans = Vec::new();
        while spans.len() < 3 {
            let (name, span) = tokio::time::timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap();
            assert!(name.starts_with("/opentelemetry.proto.collector.trace.v1.TraceService/Export"), "{name}");
            assert!(name.contains("web"), "{name}");
            spans.push(span);
        }
        assert!(spans.iter().all(|s| s.trace_id == r.trace.trace_id && s.name == "GET main"));
        let [server, first, second] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!(server.span_id, r.trace.span_id);
        assert_eq!((server.kind, first.kind), (2, 3));
        assert_eq!(first.parent_span_id, server.span_id);
        assert!(first.status.is_some() && second.status.is_none());
        let path = server.attributes.iter().find(|a| a.key == "url.path").unwrap();
        assert!(format!("{path:?}").contains("\"/x\""), "without its query: {path:?}");
    }

    /// F-42: a dead collector costs spans, never a request.
    #[tokio::test]
    async fn are_dropped_when_nobody_takes_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hub = hub(config(listener.local_addr().unwrap().port()));
        let recorder = Recorder::new(&hub);
        let r = sampled();
        // Nobody sends: the queue fills, and stays at its bound.
        for _ in 0..3000 {
            recorder.finish(&r, Instant::now());
        }
        assert_eq!(hub.spans.dropped(), 9000 - 2048);
        drop(listener);
        let exporting = hub.clone();
        tokio::spawn(async move { exporting.export_spans().await });
        let limit = Instant::now() + Duration::from_secs(30);
        while hub.spans.dropped() < 9000 {
            assert!(Instant::now() < limit, "{}", hub.spans.dropped());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Not sampled, or switched off: nothing is made at all.
        recorder.finish(&record(), Instant::now());
        hub.configure(Config::default());
        recorder.finish(&r, Instant::now());
        assert_eq!(hub.spans.dropped() + hub.spans.exported(), 9000);
    }
}
