//! What the proxy says about its traffic, heard by those it is said to: an OTLP receiver, Prometheus, promtool, a reader of
//! the access log, an operator with curl.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod sidecars;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use sidecars::{Front, Setup, fronts, hop, pair};
use weft_testkit::backend::{Action, Backend, Reply, always, echo, grpc_frame};
use weft_testkit::client::{Http2, http1};
use weft_testkit::otlp::{Received, Receiver};
use weft_testkit::proxy::{Proxy, samples, sum_metric};
use weft_testkit::raw_backend::TcpPeer;
use weft_testkit::tools::{Prometheus, promtool_check};
use weft_testkit::wait::{block_on, poll, until};

const LIMIT: Duration = Duration::from_secs(20);
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

fn tracing(receiver: &Receiver, percent: f64, b3: bool) -> String {
    format!("tracing: {{otlp: \"http://{}\", samplingPercent: {percent}, b3: {b3}}}", receiver.addr())
}

fn by(spans: &[Received], service: &str, kind: i32) -> Vec<Received> {
    let mut found: Vec<_> =
        spans.iter().filter(|s| s.service().as_deref() == Some(service) && s.span.kind == kind).cloned().collect();
    found.sort_by_key(|s| s.span.start_time_unix_nano);
    found
}

/// One request through a pair, its first attempt a failure: one trace, every span under the one that caused it.
#[test]
fn one_request_is_one_trace() {
    let receiver = Receiver::start();
    let telemetry = tracing(&receiver, 0.0, true);
    let app = Backend::start(Arc::new(|seen| {
        if seen.attempt == 1 { Action::Reply(Reply::text(503, "not yet")) } else { Action::Echo }
    }));
    let service = "  routes:\n  - {name: all, retry: {attempts: 2, on: 5xx, backoff: {base: 1ms, max: 2ms}}}";
    let front = pair(app.addr(), Setup { telemetry: &telemetry, service, ..Setup::default() });
    let (trace, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let parent = format!("00-{trace}-{caller}-01");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "vendor=kept"), ("x-request-id", "one")];
    let got = http1(front.addr).request("GET", "/path?secret=1", &headers, b"").unwrap();
    assert_eq!((got.status, got.json()["attempt"].as_u64()), (200, Some(2)));
    let spans = receiver.wait(7, |_| true, LIMIT);
    assert_eq!(spans.len(), 7, "{spans:#?}");
    assert!(spans.iter().all(|s| s.trace_id() == trace));
    let out = by(&spans, "web", SERVER);
    assert_eq!((out.len(), out[0].parent_id().as_str()), (1, caller));
    assert_eq!(out[0].span.trace_state, "vendor=kept");
    let attempts = by(&spans, "web", CLIENT);
    assert_eq!(attempts.len(), 2, "one client span per attempt");
    assert!(attempts.iter().all(|s| s.parent_id() == out[0].span_id()));
    assert_eq!(attempts[0].attribute("http.response.status_code").as_deref(), Some("503"));
    assert_eq!(attempts[1].attribute("http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attempts[1].attribute("http.request.resend_count").as_deref(), Some("1"));
    let inbound = by(&spans, "app", SERVER);
    assert_eq!(inbound.len(), 2);
    let to_app = by(&spans, "app", CLIENT);
    assert_eq!(to_app.len(), 2);
    for (n, server) in inbound.iter().enumerate() {
        assert_eq!(server.parent_id(), attempts[n].span_id(), "attempt {n}");
        assert_eq!(to_app[n].parent_id(), server.span_id(), "attempt {n}");
        assert_eq!(server.attribute("weft.peer.identity").as_deref(), Some("spiffe://cluster.local/ns/demo/sa/web"));
    }
    // What the app is told is the span that reached it.
    let told: Vec<_> = app.seen().iter().map(|s| s.header("traceparent").unwrap().to_string()).collect();
    assert_eq!(told, to_app.iter().map(|s| format!("00-{trace}-{}-01", s.span_id())).collect::<Vec<_>>());
    assert!(app.seen().iter().all(|s| s.header("tracestate") == Some("vendor=kept")));
    // Names have few values, and queries stay here.
    assert_eq!(out[0].span.name, "GET all");
    assert_eq!(out[0].attribute("url.path").as_deref(), Some("/path"));
    assert!(!format!("{spans:?}").contains("secret"));
    for s in &spans {
        assert!(s.span.start_time_unix_nano <= s.span.end_time_unix_nano);
    }
    assert!(out[0].span.start_time_unix_nano <= attempts[0].span.start_time_unix_nano);
    for proxy in &front.proxies {
        assert_eq!(proxy.metric("weft_spans_dropped_total", &[]), 0.0);
    }
}

/// Who asked first decides; only requests without a decision are drawn.
#[test]
fn sampling_follows_the_parent() {
    let receiver = Receiver::start();
    let app = Backend::start(echo());
    let parent = |n: u32, sampled: &str| format!("00-{:032x}-{:016x}-{sampled}", n + 1, n + 1);
    let mut ran = 0;
    for (percent, roots) in [(0.0, 0), (100.0, 20)] {
        let telemetry = tracing(&receiver, percent, true);
        let front = pair(app.addr(), Setup { telemetry: &telemetry, ..Setup::default() });
        receiver.clear();
        let mut client = http1(front.addr);
        for n in 0..20 {
            for sampled in ["01", "00"] {
                assert_eq!(
                    client.request("GET", "/", &[("traceparent", &parent(n, sampled))], b"").unwrap().status,
                    200
                );
            }
            assert_eq!(client.get("/root").status, 200);
            // No context to take over: a root like any other.
            assert_eq!(client.request("GET", "/broken", &[("traceparent", "00-zz-1-01")], b"").unwrap().status, 200);
        }
        // Four spans each: both proxies' server and client sides.
        let want = 4 * (20 + 2 * roots);
        until("the spans are there", LIMIT, || receiver.spans().len() >= want);
        assert_eq!(receiver.spans().len(), want, "{percent}");
        let mut sizes: HashMap<String, usize> = HashMap::new();
        receiver.spans().iter().for_each(|s| *sizes.entry(s.trace_id()).or_default() += 1);
        assert!(sizes.values().all(|n| *n == 4), "{sizes:?}");
        ran += 1;
    }
    // One percent of many, drawn.
    let telemetry = tracing(&receiver, 10.0, true);
    let front = hop(app.addr(), Setup { telemetry: &telemetry, ..Setup::default() });
    receiver.clear();
    let mut client = http1(front.addr);
    for _ in 0..1000 {
        assert_eq!(client.get("/").status, 200);
    }
    let exported = || front.near().metric("weft_spans_exported_total", &[]);
    until("spans of some", LIMIT, || exported() > 100.0);
    let spans = poll(Duration::from_secs(3), || (exported() > 300.0).then(exported)).unwrap_or_else(exported);
    println!("10 % of 1,000 requests: {} sampled", spans / 2.0);
    assert!((50.0..=160.0).contains(&(spans / 2.0)), "{spans}");
    assert_eq!(ran, 2);
}

#[test]
fn b3_goes_on_as_it_came() {
    let receiver = Receiver::start();
    let app = Backend::start(echo());
    let telemetry = tracing(&receiver, 0.0, true);
    let front = pair(app.addr(), Setup { telemetry: &telemetry, ..Setup::default() });
    let mut client = http1(front.addr);
    let (trace, span) = ("463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312");
    let single = format!("{trace}-{span}-1");
    client.request("GET", "/", &[("b3", &single)], b"").unwrap();
    let spans = receiver.wait(4, |s| s.trace_id() == trace, LIMIT);
    let (out, to_app) = (by(&spans, "web", SERVER), by(&spans, "app", CLIENT));
    assert_eq!(out[0].parent_id(), span);
    let seen = app.last();
    let parts: Vec<&str> = seen.header("b3").unwrap().split('-').collect();
    assert_eq!(parts[..3], [trace, &to_app[0].span_id(), "1"]);
    assert!(seen.header("traceparent").unwrap().starts_with(&format!("00-{trace}-")));
    // Several headers, 64 bits, upper case.
    let multi = [("x-b3-traceid", "48485A3953BB6124"), ("x-b3-spanid", "A2FB4A1D1A96D312"), ("x-b3-sampled", "1")];
    client.request("GET", "/", &multi, b"").unwrap();
    let wide = "000000000000000048485a3953bb6124";
    let spans = receiver.wait(4, |s| s.trace_id() == wide, LIMIT);
    assert_eq!(by(&spans, "web", SERVER)[0].parent_id(), span);
    let seen = app.last();
    assert_eq!(seen.header("x-b3-traceid"), Some(wide));
    assert_eq!(seen.header("x-b3-spanid"), Some(by(&spans, "app", CLIENT)[0].span_id().as_str()));
    assert_eq!(seen.header("x-b3-sampled"), Some("1"));
    assert!(seen.header("b3").is_none());
    // A decision alone, and none; and those who speak W3C are not bothered with B3.
    receiver.clear();
    client.request("GET", "/", &[("b3", "0")], b"").unwrap();
    assert_eq!(app.last().header("b3").unwrap().split('-').nth(2), Some("0"));
    client.request("GET", "/", &[("b3", "1")], b"").unwrap();
    receiver.wait(4, |_| true, LIMIT);
    client.get("/");
    assert!(app.last().header("b3").is_none() && app.last().header("traceparent").is_some());
    assert_eq!(receiver.spans().len(), 4);
    // Switched off, it is the app's own business.
    let telemetry = tracing(&receiver, 0.0, false);
    let front = hop(app.addr(), Setup { telemetry: &telemetry, ..Setup::default() });
    http1(front.addr).request("GET", "/", &[("b3", &single)], b"").unwrap();
    assert_eq!(app.last().header("b3"), Some(single.as_str()));
}

/// A collector that is gone, or hangs, costs spans and nothing else.
#[test]
fn no_request_waits_for_a_collector() {
    let app = Backend::start(echo());
    let silent = TcpPeer::at(([127, 0, 0, 1], 0).into(), |mut stream, _| drop(stream.read(&mut [0; 1])));
    for collector in [weft_testkit::dir::free_addr(), silent.addr()] {
        let telemetry = format!("tracing: {{otlp: \"http://{collector}\", samplingPercent: 100}}");
        let front = hop(app.addr(), Setup { telemetry: &telemetry, ..Setup::default() });
        let begun = std::time::Instant::now();
        let mut client = http1(front.addr);
        for _ in 0..2000 {
            assert_eq!(client.get("/").status, 200);
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        // 4,000 spans into a queue of 2,048.
        front.near().wait_metric("weft_spans_dropped_total", &[], 1.0, LIMIT);
    }
}

/// Traffic of every kind, and of every ending.
fn traffic(front: &Front, app: &Backend) {
    let mut client = http1(front.addr);
    for path in ["/", "/a", "/b?c=d"] {
        assert_eq!(client.get(path).status, 200);
    }
    client.request("POST", "/up", &[("user-agent", "quo\"te\n".trim())], &[b'x'; 10_000]).unwrap();
    client.request("PURGE", "/", &[], b"").unwrap();
    app.set(Arc::new(|seen| match seen.path() {
        "/404" => Action::Reply(Reply::text(404, "no")),
        "/500" => Action::Reply(Reply::text(500, "no")),
        "/reset" => Action::ResetConnection,
        "/cut" => Action::Reply(Reply { cut_after: Some(3), ..Reply::text(200, "abcdef") }),
        "/hang" => Action::Hang,
        "/forever" => {
            Action::Reply(Reply { forever: true, delay_chunk: Duration::from_millis(5), ..Reply::text(200, "more ") })
        }
        _ if seen.is_grpc() => Action::Reply(Reply::grpc(5, b"not here")),
        _ => Action::Echo,
    }));
    for (path, status) in [("/404", 404), ("/500", 500), ("/reset", 503)] {
        assert_eq!(http1(front.addr).get(path).status, status, "{} {path}", front.name);
    }
    assert!(http1(front.addr).request("GET", "/cut", &[], b"").is_err());
    // Clients that leave: before the answer, within it.
    for path in ["/hang", "/forever"] {
        let before = app.requests();
        let mut client = http1(front.addr);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n")).unwrap();
        until("it is in flight", LIMIT, || app.requests() > before);
        if path == "/forever" {
            client.stream.read_exact(&mut [0; 500]).unwrap();
        }
        client.stream.reset();
    }
    // No HTTP at all, and no HTTP that anybody should pass on.
    let mut client = http1(front.addr);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").unwrap();
    assert_eq!(client.read().unwrap().status, 400);
    let mut client = http1(front.addr);
    client.send("GET /x HTTP/1.1\r\nHost: a@b\r\n\r\n").unwrap();
    assert_eq!(client.read().unwrap().status, 400);
    block_on(async {
        let client = Http2::connect(front.addr).await.unwrap();
        assert_eq!(client.request("GET", "/h2", &[], b"").await.unwrap().status, 200);
        let got =
            client.request("POST", "/t.S/M", &[("content-type", "application/grpc")], &grpc_frame(b"x")).await.unwrap();
        assert_eq!(got.grpc_status(), Some("5"));
        let (response, _send) = client.open(client.head("GET", "/hang", &[]), true).await.unwrap();
        let before = app.requests();
        tokio::time::timeout(Duration::from_millis(100), response).await.expect_err("hangs");
        drop(_send);
        until("it came through", LIMIT, || app.requests() >= before);
    });
}

/// Requests that `traffic` starts and whose heads were good enough to be requests.
const TRAFFIC: u64 = 5 + 3 + 1 + 2 + 1 + 3;
/// Those that go no further than the first proxy.
const REFUSED: u64 = 1;

/// Of one page, so that they belong together.
fn stats(proxy: &Proxy, names: &[&str]) -> Vec<u64> {
    let (status, text) = proxy.admin_get("/stats");
    assert_eq!(status, 200);
    let value = |name: &&str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    };
    names.iter().map(value).collect()
}

/// Started, in flight, completed.
fn requests(proxy: &Proxy) -> [u64; 3] {
    let names = ["server.downstream_rq_total", "server.downstream_rq_active", "server.downstream_rq_completed"];
    stats(proxy, &names).try_into().unwrap()
}

fn lines(proxy: &Proxy) -> Vec<serde_json::Value> {
    proxy
        .log_lines()
        .iter()
        .filter(|l| l.starts_with("{\"ts\""))
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect()
}

/// Each request that began is counted once and logged once, whatever became of it.
#[test]
fn each_request_is_told_once() {
    for workers in [1, 2] {
        let app = Backend::start(echo());
        for front in fronts(app.addr(), Setup { telemetry: "accessLog: json", workers, ..Setup::default() }) {
            app.set(echo());
            traffic(&front, &app);
            // One stays in flight while we look.
            let mut waiting = http1(front.addr);
            waiting.send("GET /hang HTTP/1.1\r\nHost: app.test\r\n\r\n").unwrap();
            for (proxy, done) in front.proxies.iter().zip([TRAFFIC, TRAFFIC - REFUSED]) {
                // A worker that is busy reports with the next page.
                let seen = poll(LIMIT, || Some(requests(proxy)).filter(|r| *r == [done + 1, 1, done]));
                assert!(seen.is_some(), "{}: {:?}, not {:?}", front.name, requests(proxy), [done + 1, 1, done]);
                assert_eq!(proxy.metric("weft_active_requests", &[]), 1.0);
            }
            waiting.stream.reset();
            for proxy in &front.proxies {
                until("none is in flight", LIMIT, || requests(proxy)[1..] == [0, requests(proxy)[0]]);
                let all = requests(proxy)[0];
                assert_eq!(proxy.wait_metric("weft_http_requests_total", &[], all as f64, LIMIT), all as f64);
                assert_eq!(sum_metric(&proxy.metrics(), "weft_http_request_duration_seconds_count", &[]), all as f64);
                until("each has its line", LIMIT, || lines(proxy).len() as u64 >= all);
                let lines = lines(proxy);
                assert_eq!(lines.len() as u64, all, "{lines:#?}");
                let ids: std::collections::HashSet<_> = lines.iter().map(|l| l["request_id"].to_string()).collect();
                assert!(ids.len() + 1 >= lines.len(), "a request was logged twice: {lines:#?}");
                for line in &lines {
                    for key in [
                        "ts",
                        "app",
                        "component",
                        "listener",
                        "role",
                        "method",
                        "path",
                        "protocol",
                        "status",
                        "flags",
                        "reason",
                        "duration_ms",
                        "request_bytes",
                        "response_bytes",
                        "attempts",
                        "peer",
                        "destination",
                        "trace_id",
                    ] {
                        assert!(!line[key].is_null(), "no {key} in {line}");
                    }
                    assert_eq!(line["reason"] == "none", line["why"].is_null(), "{line}");
                }
            }
            let lines = lines(front.near());
            let of = |path: &str| lines.iter().filter(|l| l["path"] == path).collect::<Vec<_>>();
            let up = of("/up")[0];
            assert_eq!(
                (up["method"].as_str(), up["request_bytes"].as_u64(), up["user_agent"].as_str()),
                (Some("POST"), Some(10_000), Some("quo\"te"))
            );
            assert_eq!(
                (up["status"].as_u64(), up["reason"].as_str(), up["backend"].as_str()),
                (Some(200), Some("none"), Some("app.demo:80"))
            );
            assert_eq!((of("/500")[0]["status"].as_u64(), of("/404")[0]["status"].as_u64()), (Some(500), Some(404)));
            let reset = of("/reset")[0];
            assert_eq!(reset["status"], 503, "{reset}");
            let cut = of("/cut")[0];
            assert_eq!(
                (cut["status"].as_u64(), cut["reason"].as_str()),
                (Some(200), Some("upstream_broke_off")),
                "{cut}"
            );
            let hangs = of("/hang");
            assert_eq!(hangs.len(), 3, "{hangs:?}");
            for hang in hangs {
                assert_eq!(
                    (hang["status"].as_u64(), hang["reason"].as_str()),
                    (Some(499), Some("downstream_remote_disconnect")),
                    "{hang}"
                );
            }
            let forever = of("/forever")[0];
            assert_eq!(
                (forever["status"].as_u64(), forever["reason"].as_str()),
                (Some(200), Some("downstream_remote_disconnect")),
                "{forever}"
            );
            assert!(forever["response_bytes"].as_u64() > Some(4), "{forever}");
            let grpc = of("/t.S/M")[0];
            assert_eq!(
                (grpc["protocol"].as_str(), grpc["grpc_status"].as_u64(), grpc["status"].as_u64()),
                (Some("grpc"), Some(5), Some(200)),
                "{grpc}"
            );
            if front.name == "pair" {
                let far = self::lines(front.far());
                assert!(far.iter().all(|l| l["peer_identity"] == "spiffe://cluster.local/ns/demo/sa/web"), "{far:#?}");
                assert_eq!(up["upstream_identity"], "spiffe://cluster.local/ns/demo/sa/app");
                let same = far.iter().find(|l| l["path"] == "/up").unwrap();
                assert_eq!((&same["request_id"], &same["trace_id"]), (&up["request_id"], &up["trace_id"]));
            }
            assert_eq!(front.near().metric("weft_log_dropped_total", &[]), 0.0);
        }
    }
}

/// A client that goes with a clean end might be half-closing and still listen: it is believed for a while, not for ever.
#[test]
fn clients_that_leave_politely_are_missed() {
    let app = Backend::start(Arc::new(|_| Action::Hang));
    let front = hop(app.addr(), Setup { telemetry: "accessLog: json", ..Setup::default() });
    let mut client = http1(front.addr);
    client.send("GET /hang HTTP/1.1\r\nHost: app.test\r\n\r\n").unwrap();
    until("it is in flight", LIMIT, || app.requests() == 1);
    drop(client);
    let line = front.near().wait_log(|l| l.contains("\"path\":\"/hang\""), 2 * LIMIT);
    assert!(line.contains("\"status\":499") && line.contains("\"flags\":\"DC\""), "{line}");
    let (requests, connections) = ("weft_backend_active_requests", "weft_backend_active_connections");
    until("the app is left alone", LIMIT, || {
        front.near().metric(requests, &[]) + front.near().metric(connections, &[]) == 0.0
    });
}

#[test]
fn the_text_log_is_istios() {
    let app = Backend::start(echo());
    let front = pair(app.addr(), Setup { telemetry: "accessLog: text", ..Setup::default() });
    http1(front.addr)
        .request("POST", "/a?b", &[("user-agent", "me"), ("host", "shop.test"), ("x-request-id", "id-1")], b"hello")
        .unwrap();
    let line = front.near().wait_log(|l| l.starts_with("[20"), LIMIT);
    let far = front.far().wait_log(|l| l.starts_with("[20"), LIMIT);
    assert!(line.contains("] \"POST /a?b HTTP/1.1\" 200 - via_upstream - \"-\" 5 "), "{line}");
    assert!(line.contains(" \"-\" \"me\" \"id-1\" \"shop.test\" \"127.0.0.1:"), "{line}");
    assert!(line.contains(" outbound|80||app.demo.svc.cluster.local - 127.0.0.1:"), "{line}");
    assert!(far.contains(" inbound|") && far.contains("\"id-1\" \"shop.test\""), "{far}");
}

#[test]
fn prometheus_reads_it_and_promtool_has_nothing_to_say() {
    let app = Backend::start(echo());
    let bytes = TcpPeer::echo();
    let telemetry = "names: [istio, linkerd], labels: {team: shop}";
    let front = pair(app.addr(), Setup { telemetry, ..Setup::default() });
    traffic(&front, &app);
    let tcp = pair(bytes.addr(), Setup { telemetry, tcp: true, ..Setup::default() });
    let mut client = TcpStream::connect(tcp.addr).unwrap();
    client.write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    drop(client);
    // The server's side knows the client by its own word, within what the certificate proves.
    for (name, labels) in [
        ("weft_http_requests_total", [("source_workload", "web"), ("source_namespace", "demo")]),
        ("istio_requests_total", [("source_workload", "web"), ("source_app", "web")]),
    ] {
        assert!(front.far().metric(name, &labels) > 0.0, "{name}: {}", front.far().metrics());
    }
    let all: Vec<&Proxy> = front.proxies.iter().chain(&tcp.proxies).collect();
    // Something for the rare families: plaintext where STRICT reigns.
    let inside = std::fs::read_to_string(front.far().config_path()).unwrap();
    let inside: std::net::SocketAddr =
        inside.split("role: inbound, address: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(http1(inside).request("GET", "/", &[], b"").is_err());
    front.far().wait_metric("weft_tcp_rejected_total", &[("reason", "plaintext")], 1.0, LIMIT);
    let mut families = std::collections::BTreeSet::new();
    for proxy in &all {
        proxy.wait_metric(
            "weft_tcp_connections_closed_total",
            &[],
            if tcp.proxies.iter().any(|p| p.pid() == proxy.pid()) { 1.0 } else { 0.0 },
            LIMIT,
        );
        let page = proxy.metrics();
        // Their names are as those meshes chose them; promtool would have chosen others. Beyond that it has nothing to say.
        let said = promtool_check(&page).err().unwrap_or_default();
        let ours: Vec<&str> = said
            .lines()
            .filter(|l| !l.is_empty() && !l.starts_with("istio_request_duration_milliseconds use base unit"))
            .filter(|l| !l.starts_with("response_latency_ms metric names should not contain abbreviated units"))
            .collect();
        assert!(ours.is_empty(), "promtool: {ours:#?}");
        families.extend(samples(&page).map(|s| s.name));
    }
    for name in [
        "weft_http_requests_total",
        "weft_http_request_bytes_total",
        "weft_http_response_bytes_total",
        "weft_http_request_duration_seconds_bucket",
        "weft_upstream_attempts_total",
        "weft_tcp_connections_opened_total",
        "weft_tcp_sent_bytes_total",
        "weft_connections_total",
        "weft_active_connections",
        "weft_active_requests",
        "weft_backend_active_connections",
        "weft_backend_endpoints",
        "weft_cert_expiration_timestamp_seconds",
        "weft_spans_dropped_total",
        "weft_log_dropped_total",
        "weft_scrapes_total",
        "weft_panics_total",
        "weft_proxy_info",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
        "istio_requests_total",
        "istio_request_duration_milliseconds_bucket",
        "istio_request_bytes_bucket",
        "istio_response_bytes_bucket",
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
        "request_total",
        "response_total",
        "response_latency_ms_bucket",
        "tcp_open_total",
        "tcp_close_total",
        "tcp_read_bytes_total",
        "tcp_write_bytes_total",
    ] {
        assert!(families.contains(name), "no {name} in {families:#?}");
    }
    let plain = hop(app.addr(), Setup::default());
    assert_eq!(http1(plain.addr).get("/").status, 200);
    promtool_check(&plain.near().metrics()).unwrap_or_else(|e| panic!("promtool: {e}"));
    // The same requests under every name.
    let page = front.far().metrics();
    let weft = sum_metric(&page, "weft_http_requests_total", &[]);
    assert!(weft > 5.0);
    assert_eq!(sum_metric(&page, "istio_requests_total", &[("reporter", "destination")]), weft, "{page}");
    assert_eq!(sum_metric(&page, "request_total", &[("direction", "inbound")]), weft, "{page}");
    let labels =
        [("source_principal", "spiffe://cluster.local/ns/demo/sa/web"), ("connection_security_policy", "mutual_tls")];
    assert_eq!(sum_metric(&page, "istio_requests_total", &labels), weft, "{page}");
    // No text of a client's becomes a label.
    assert!(!page.contains("/b?c=d") && !page.contains("quo"), "{page}");
    assert!(page.contains("label_team=\"shop\""));

    let targets: Vec<_> = all.iter().map(|p| admin_of(p)).collect();
    let prometheus = Prometheus::start(&targets, "/stats/prometheus");
    let up = || prometheus.query("up").iter().filter(|(_, v)| *v == 1.0).count();
    until("Prometheus has scraped all four", Duration::from_secs(30), || up() == 4);
    let of_far = prometheus.query(&format!("sum(istio_requests_total{{instance=\"{}\"}})", targets[1]));
    assert_eq!(of_far[0].1, weft);
    let durations =
        prometheus.query("histogram_quantile(0.5, sum by (le) (weft_http_request_duration_seconds_bucket))");
    assert!(durations[0].1 > 0.0 && durations[0].1 < 60.0, "{durations:?}");
    assert_eq!(prometheus.query("count(weft_proxy_info)")[0].1, 4.0);
}

/// What the sources count by name is described for whoever scrapes, and documented.
#[test]
fn every_family_is_documented() {
    fn sources(folder: &std::path::Path, found: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, found),
                false if path.ends_with("tests.rs") => {}
                false => found.push_str(&std::fs::read_to_string(path).unwrap()),
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut code, docs) = (String::new(), std::fs::read_to_string(root.join("../docs/telemetry.md")).unwrap());
    sources(&root.join("src"), &mut code);
    let names = |text: &str| -> std::collections::BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|w| w.starts_with("weft_") && !w.starts_with("weft_test")).map(String::from).collect()
    };
    let quoted = |text: &str| -> std::collections::BTreeSet<String> {
        names(text).into_iter().filter(|n| text.contains(&format!("\"{n}\""))).collect()
    };
    let families: Vec<_> =
        quoted(&code).into_iter().filter(|n| !n.ends_with("_count") && !n.ends_with("_bucket")).collect();
    assert!(families.len() > 30, "{families:?}");
    let documented = names(&docs);
    let missing: Vec<_> = families.iter().filter(|n| !documented.contains(*n)).collect();
    assert!(missing.is_empty(), "not in docs/telemetry.md: {missing:?}");
    let gone: Vec<_> = documented.iter().filter(|n| !code.contains(*n)).collect();
    assert!(gone.is_empty(), "only in docs/telemetry.md: {gone:?}");
    for rare in code.split("counter!(\"").skip(1).chain(code.split("gauge!(\"").skip(1)) {
        let name = rare.split('"').next().unwrap();
        assert!(code.contains(&format!("(\"{name}\", \"")), "{name} has no description");
    }
}

fn admin_of(proxy: &Proxy) -> std::net::SocketAddr {
    let yaml = std::fs::read_to_string(proxy.config_path()).unwrap();
    yaml.lines().find_map(|l| l.strip_prefix("admin: ")).unwrap().parse().unwrap()
}

/// A question asked by hand: head and body as they came.
fn ask(proxy: &Proxy, text: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(admin_of(proxy)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0), answer)
}

#[test]
fn operators_are_answered() {
    let app = Backend::start(echo());
    let service = "  policy: {breaker: {maxConnections: 7}}\n  routes:\n  - {name: all, requestHeaders: {set: {authorization: Bearer hush}}}";
    let front = pair(app.addr(), Setup { telemetry: "names: [istio]", service, ..Setup::default() });
    for _ in 0..3 {
        assert_eq!(http1(front.addr).get("/").status, 200);
    }
    let (near, far) = (front.near(), front.far());
    assert_eq!(near.admin_get("/ready"), (200, "LIVE\n".into()));
    assert_eq!(near.admin_get("/live").0, 200);
    near.wait_metric("weft_http_requests_total", &[], 3.0, LIMIT);
    let connections = "cluster.outbound|80||app.demo.svc.cluster.local.upstream_cx_active";
    assert_eq!(stats(near, &["server.downstream_rq_total", "server.live", connections]), [3, 1, 1]);
    let clusters = near.admin_get("/clusters").1;
    for line in [
        "outbound|80||app.demo.svc.cluster.local::default_priority::max_connections::7",
        "::health_flags::healthy",
        "::rq_active::0",
    ] {
        assert!(clusters.contains(line), "no {line} in {clusters}");
    }
    let json = |path: &str| -> serde_json::Value {
        let (status, text) = near.admin_get(path);
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    };
    let dump = json("/config_dump");
    assert!(
        dump["resources"].as_array().is_some_and(|r| !r.is_empty() && r.iter().all(|r| r["state"] == "applied")),
        "{dump}"
    );
    assert!(
        dump["config"].to_string().contains("maxConnections") || dump["config"].to_string().contains("max_connections"),
        "{dump}"
    );
    let certs = json("/certs");
    let chain = &certs["certificates"][0]["cert_chain"][0];
    assert_eq!(chain["subject_alt_names"][0]["uri"], "spiffe://cluster.local/ns/demo/sa/web", "{certs}");
    assert!(!certs["certificates"][0]["ca_cert"].as_array().unwrap().is_empty());
    let info = json("/server_info");
    assert_eq!(
        (info["state"].as_str(), info["node"]["metadata"]["IDENTITY"].as_str()),
        (Some("LIVE"), Some("spiffe://cluster.local/ns/demo/sa/web")),
        "{info}"
    );
    assert!(near.admin_get("/listeners").1.contains(&format!("out::{}", front.addr)));

    // Log levels: seen, changed, refused.
    assert_eq!(near.admin_get("/logging"), (200, "info\n".into()));
    assert_eq!(near.admin_post("/logging?level=debug"), (200, "debug\n".into()));
    assert_eq!(near.admin_post("/logging?level=info").0, 429);
    let wrong = poll(LIMIT, || Some(near.admin_post("/logging?level=a%3Db%3Dc")).filter(|a| a.0 != 429)).unwrap();
    assert_eq!(wrong.0, 400, "{}", wrong.1);
    assert_eq!(near.admin_post("/logging").0, 400);

    // Changes are asked for by POST, from here, and by no browser; the name in Host must be ours.
    for path in ["/drain", "/drain_listeners", "/quitquitquit"] {
        assert_eq!(near.admin_get(path).0, 405, "{path}");
        for (fields, status) in
            [("host: localhost\r\norigin: http://evil.example\r\n", 403), ("host: evil.example\r\n", 421), ("", 400)]
        {
            let got = ask(near, &format!("POST {path} HTTP/1.1\r\n{fields}content-length: 0\r\n\r\n")).0;
            assert!(got == status || (status == 400 && got == 421), "{path} {fields}: {got}");
        }
    }
    for path in ["/ready", "/stats", "/clusters", "/certs", "/server_info", "/config_dump"] {
        assert_eq!(near.admin_post(path).0, 405, "{path}");
        assert_eq!(ask(near, &format!("GET {path} HTTP/1.1\r\nhost: rebound.example\r\n\r\n")).0, 421, "{path}");
    }
    assert_eq!(near.admin_get("/no-such").0, 404);
    let (_, whole) = ask(near, "GET /stats HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(whole.contains("x-content-type-options: nosniff"), "{whole}");

    // Whatever is asked, no key and no credential leaves.
    let mut pages = 0;
    for proxy in [near, far] {
        let yaml = std::fs::read_to_string(proxy.config_path()).unwrap();
        let path = yaml.split("key: ").nth(1).unwrap().split(',').next().unwrap();
        let key = std::fs::read_to_string(path).unwrap();
        let secret: Vec<&str> = key.lines().filter(|l| !l.starts_with("---")).collect();
        for page in [
            "/",
            "/help",
            "/ready",
            "/live",
            "/stats",
            "/stats/prometheus",
            "/metrics",
            "/config_dump",
            "/clusters",
            "/certs",
            "/server_info",
            "/listeners",
            "/logging",
        ] {
            let (status, text) = poll(LIMIT, || Some(proxy.admin_get(page)).filter(|a| a.0 != 503)).unwrap();
            assert_eq!(status, 200, "{page}: {text}");
            assert!(!text.contains("PRIVATE") && secret.iter().all(|l| !text.contains(l)), "{page}: {text}");
            assert!(!text.contains("hush"), "{page}: {text}");
            pages += 1;
        }
        assert!(proxy.log_lines().iter().all(|l| !l.contains("PRIVATE") && !l.contains("hush")));
    }
    assert_eq!(pages, 26);
    assert_eq!(app.last().header("authorization"), Some("Bearer hush"), "redacted where it is used, too");
}

/// Draining and leaving, as an operator asks for them.
#[test]
fn drained_by_the_operator() {
    for path in ["/drain", "/quitquitquit"] {
        let app = Backend::start(always(Reply::text(200, "done").delayed(Duration::from_millis(400))));
        let mut front = hop(app.addr(), Setup::default());
        let mut kept = http1(front.addr);
        kept.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        until("it is in flight", LIMIT, || app.requests() == 1);
        assert_eq!(front.near().admin_post(path), (200, "OK\n".into()));
        let got = kept.read().unwrap();
        assert_eq!((got.text().as_str(), got.header("connection")), ("done", Some("close")), "{path}");
        assert_eq!(front.proxies[0].wait_exit(LIMIT).code(), Some(0), "{path}");
        assert!(TcpStream::connect(front.addr).is_err());
    }
}

/// What the last request left behind is told before the process ends.
#[test]
fn the_last_spans_are_sent() {
    let receiver = Receiver::start();
    let app = Backend::start(echo());
    let telemetry = tracing(&receiver, 100.0, false);
    let mut front = hop(app.addr(), Setup { telemetry: &telemetry, ..Setup::default() });
    assert_eq!(http1(front.addr).get("/last").status, 200);
    front.near().signal(libc::SIGTERM);
    assert_eq!(front.proxies[0].wait_exit(LIMIT).code(), Some(0));
    let spans = receiver.wait(2, |_| true, LIMIT);
    assert_eq!(by(&spans, "hop", SERVER)[0].attribute("url.path").as_deref(), Some("/last"));
}
