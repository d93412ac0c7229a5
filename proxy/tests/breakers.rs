//! Circuit breaker and outlier detection as tables, counted at the backend: with one worker and with two, and across changes of
//! the configuration, which alter neither an open breaker nor a standing ejection and cost no connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use rig::{Hop, SOON, at_once, hop_with, id, timed};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weft_testkit::backend::{Action, Backend, Handler, Reply, always, echo};
use weft_testkit::client::Response;
use weft_testkit::dir::free_addr;
use weft_testkit::wait::until;

fn web(endpoints: &[SocketAddr], policy: &str, route: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|a| format!("'{a}'")).collect();
    let routes = if route.is_empty() { String::new() } else { format!(", routes: [{route}]") };
    format!("- {{name: web, port: 80, endpoints: [{}], policy: {{{policy}}}{routes}}}", endpoints.join(", "))
}

const OVERFLOW: &str = "upstream connect error or disconnect/reset before headers. reset reason: overflow";

fn slow(ms: u64) -> Handler {
    always(Reply::text(200, "slow").delayed(Duration::from_millis(ms)))
}

fn in_flight(backend: &Backend) -> u64 {
    backend.counts().in_flight.load(Ordering::SeqCst)
}

/// Asserts that it is the answer of an open breaker, given at once.
fn overflowed(answer: &Response) -> bool {
    if answer.status == 200 {
        return false;
    }
    assert_eq!((answer.status, answer.text().as_str(), answer.body.len()), (503, OVERFLOW, 81));
    assert_eq!(answer.header("x-envoy-overloaded"), Some("true"));
    true
}

#[test]
fn caps() {
    struct Row {
        policy: &'static str,
        /// At once, and how many of them get through.
        requests: usize,
        pass: usize,
        /// The most that the backend works on at one time.
        most: u64,
    }
    let rows = [
        Row { policy: "breaker: {maxConnections: 4, maxPending: 3}", requests: 12, pass: 7, most: 4 },
        Row { policy: "breaker: {maxConnections: 4, maxPending: 0}", requests: 12, pass: 4, most: 4 },
        // Istio's demonstration: one connection, one that waits.
        Row {
            policy: "breaker: {maxConnections: 1, maxPending: 1, maxRequestsPerConnection: 2}",
            requests: 6,
            pass: 2,
            most: 1,
        },
        Row { policy: "breaker: {maxRequests: 5}", requests: 12, pass: 5, most: 5 },
        Row { policy: "http: http2, breaker: {maxRequests: 5}", requests: 12, pass: 5, most: 5 },
        Row { policy: "breaker: {maxRequests: 0}", requests: 4, pass: 0, most: 0 },
        Row { policy: "breaker: {maxConnections: 4}", requests: 10, pass: 10, most: 4 },
        // HTTP/2 shares its connection, so a cap on connections is none on requests.
        Row { policy: "http: http2, breaker: {maxConnections: 1}", requests: 12, pass: 12, most: 12 },
        Row { policy: "", requests: 12, pass: 12, most: 12 },
    ];
    let mut ran = 0;
    for workers in [1, 2] {
        for row in &rows {
            let what = format!("{}, {workers} workers", row.policy);
            let backend = Backend::start(slow(700));
            let hop = hop_with("", workers, &web(&[backend.addr()], row.policy, ""));
            let refused = || {
                ["pending", "requests"]
                    .map(|r| hop.proxy.metric("weft_backend_breaker_overflows_total", &[("resource", r)]))
                    .iter()
                    .sum::<f64>()
            };
            let answers = at_once(row.requests, |_| {
                let (answer, took) = timed(|| hop.get("/"));
                if overflowed(&answer) {
                    assert!(took < Duration::from_millis(600), "{what}: a refusal took {took:?}");
                }
                answer.status
            });
            let passed = answers.iter().filter(|s| **s == 200).count();
            assert_eq!(passed, row.pass, "{what}: {answers:?}");
            assert_eq!(backend.requests(), row.pass as u64, "{what}");
            assert_eq!(backend.max_in_flight(), row.most, "{what}");
            assert_eq!(refused(), (row.requests - row.pass) as f64, "{what}");
            hop.wait_released();
            ran += 1;
        }
        let id = id();
        let hop = hop_with(
            "",
            workers,
            &web(&[free_addr()], "breaker: {maxRequests: 0}", "{retry: {attempts: 3, on: '5xx'}}"),
        );
        let answer = hop.send("GET", "/", &[("x-request-id", &id)], b"");
        assert!(overflowed(&answer), "an own overflow is not retried");
        assert_eq!(hop.flags(&id), ("UO".into(), "overflow".into()));
    }
    assert_eq!(ran, 18);
}

/// The seeds' own settings: 100 connections, 50 that wait, 2 requests per connection.
#[test]
fn po_14_connections() {
    for workers in [1, 2] {
        let backend = Backend::start(slow(3000));
        let policy = "breaker: {maxConnections: 100, maxPending: 50, maxRequestsPerConnection: 2}";
        let hop = hop_with("", workers, &web(&[backend.addr()], policy, ""));
        std::thread::scope(|scope| {
            let first: Vec<_> = (0..150).map(|_| scope.spawn(|| hop.get("/").status)).collect();
            until("100 are there", SOON, || in_flight(&backend) == 100);
            until("50 wait", SOON, || hop.held("pending_requests") == 50.0);
            assert_eq!(hop.held("active_connections"), 100.0);
            // Connection 101 and waiter 51.
            let late = at_once(5, |_| timed(|| hop.get("/")));
            assert!(late.iter().all(|(answer, took)| overflowed(answer) && *took < Duration::from_secs(2)));
            assert!(first.into_iter().all(|t| t.join().unwrap() == 200));
        });
        assert_eq!((backend.requests(), backend.max_in_flight()), (150, 100), "{workers} workers");
        assert!(backend.counts().max_open.load(Ordering::SeqCst) <= 101, "one may still be closing");
        hop.wait_released();
    }
}

#[test]
fn requests_per_connection() {
    let mut ran = 0;
    for http in ["http1", "http2"] {
        for (max, connections) in [(2, 9), (1, 18), (6, 3)] {
            let backend = Backend::named("b");
            let policy = format!("http: {http}, breaker: {{maxRequestsPerConnection: {max}}}");
            let hop = hop_with("", 1, &web(&[backend.addr()], &policy, ""));
            let mut client = hop.client();
            (0..18).for_each(|i| assert_eq!(client.request("POST", "/", &[], b"x").unwrap().status, 200, "{i}"));
            assert_eq!(backend.connections(), connections, "{http}, {max}");
            until("those that are spent are closed", SOON, || backend.open_connections() <= 1);
            ran += 1;
        }
    }
    assert_eq!(ran, 6);
}

/// Who waits for a connection waits no longer than the request may take, and gives its place back when its client leaves.
#[test]
fn waiting_has_limits() {
    let hung = weft_testkit::raw_backend::TcpPeer::at(([127, 0, 0, 1], 0).into(), |mut stream, _| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    for workers in [1, 2] {
        let policy = "http: http1, breaker: {maxConnections: 1, maxPending: 5}";
        let hop = hop_with("", workers, &web(&[hung.addr()], policy, "{timeout: {request: 500ms}}"));
        let statuses = at_once(6, |_| hop.get("/").status);
        assert!(statuses.iter().all(|s| *s == 504), "{statuses:?}");
        hop.wait_released();
        until("the connection is given back", SOON, || hop.held("active_connections") == 0.0);
        hop.change(&web(&[hung.addr()], policy, ""));
        weft_testkit::wait::block_on(async {
            let client = weft_testkit::client::Http2::connect(hop.addr).await.unwrap();
            let mut streams = Vec::new();
            for _ in 0..6 {
                streams.push(client.open(client.head("GET", "/", &[]), true).await.unwrap());
            }
            while hop.held("pending_requests") != 5.0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // Dropped, they are reset.
            drop(streams);
            tokio::time::sleep(Duration::from_millis(200)).await;
        });
        hop.wait_released();
    }
}

/// Many who want few connections: nobody is forgotten, whichever worker and endpoint a permit comes back from.
#[test]
fn nobody_waits_for_ever() {
    for workers in [1, 2] {
        let (a, b) = (Backend::named("a"), Backend::named("b"));
        let hop = hop_with("", workers, &web(&[a.addr(), b.addr()], "http: http1, breaker: {maxConnections: 2}", ""));
        let ((), took) = timed(|| {
            at_once(24, |_| {
                let mut client = hop.client();
                for _ in 0..40 {
                    assert_eq!(client.request("POST", "/", &[], b"x").unwrap().status, 200);
                }
            });
        });
        println!(
            "{workers} workers: 960 requests over 2 connections in {took:?}, {} dialled",
            a.connections() + b.connections()
        );
        assert!(a.max_in_flight() + b.max_in_flight() <= 4 && a.max_in_flight() <= 2 && b.max_in_flight() <= 2);
        hop.wait_released();
    }
}

/// Changes of everything but what is under test: another route, another policy beside, a further endpoint, other weights.
fn changes(endpoints: &[SocketAddr], policy: &str, further: SocketAddr) -> Vec<String> {
    let mut more = endpoints.to_vec();
    more.push(further);
    let mut heavier = web(endpoints, policy, "");
    for addr in endpoints {
        heavier = heavier.replace(&format!("'{addr}'"), &format!("{{address: '{addr}', weight: 3}}"));
    }
    vec![
        web(endpoints, policy, "{name: other, responseHeaders: {set: {x-changed: '1'}}}"),
        web(endpoints, &format!("{policy}, connections: {{connectTimeout: 3s}}, retryBudget: {{percent: 30}}"), ""),
        web(&more, policy, ""),
        heavier,
        web(endpoints, policy, ""),
    ]
}

#[test]
fn an_open_breaker_survives_changes() {
    for workers in [1, 2] {
        let backend = Backend::start(slow(4000));
        let never = Backend::named("never");
        let addr = [backend.addr()];
        let hop = hop_with("", workers, &web(&addr, "breaker: {maxRequests: 3}", ""));
        std::thread::scope(|scope| {
            let mut held: Vec<_> = (0..3).map(|_| scope.spawn(|| hop.get("/").status)).collect();
            until("three are held", SOON, || in_flight(&backend) == 3);
            assert!(overflowed(&hop.get("/")));
            for services in changes(&addr, "breaker: {maxRequests: 3}", never.addr()) {
                hop.change(&services);
                assert!(overflowed(&hop.get("/")), "{services}");
                assert_eq!(hop.held("active_requests"), 3.0);
            }
            // Another cap, and the count stands: lowered it closes nothing, raised by one it lets exactly one more through.
            hop.change(&web(&addr, "breaker: {maxRequests: 1}", ""));
            assert!(overflowed(&hop.get("/")));
            hop.change(&web(&addr, "breaker: {maxRequests: 4}", ""));
            held.push(scope.spawn(|| hop.get("/").status));
            until("the fourth is held", SOON, || in_flight(&backend) == 4);
            assert!(overflowed(&hop.get("/")));
            assert_eq!(hop.proxy.metric("weft_backend_breaker_open", &[("resource", "requests")]), 1.0);
            assert!(held.into_iter().all(|t| t.join().unwrap() == 200));
        });
        // Four requests at once, four connections, none closed by any change.
        assert_eq!(
            (backend.requests(), backend.connections(), backend.open_connections()),
            (4, 4, 4),
            "{workers} workers"
        );
        assert_eq!(never.requests(), 0);
        hop.wait_released();
        assert_eq!(hop.proxy.metric("weft_backend_breaker_open", &[("resource", "requests")]), 0.0);
    }
}

// --- outlier detection ---

/// Round robin, so that each endpoint gets its turn exactly.
fn ejection(fields: &str) -> String {
    format!("balance: {{algorithm: roundRobin}}, outlier: {{ejection: {{{fields}}}}}")
}

fn failing(status: u16) -> Backend {
    Backend::start(always(Reply::text(status, "bad")))
}

/// So many requests, each on its own connection, so that they come to any worker; how many had this status.
fn ask(hop: &Hop, n: usize, status: u16) -> usize {
    (0..n).filter(|_| hop.get("/").status == status).count()
}

fn ejected(hop: &Hop) -> f64 {
    hop.held("ejected_endpoints")
}

#[test]
fn ejections() {
    struct Row {
        fields: &'static str,
        /// What the bad endpoint answers; 0 closes the connection, 1 hangs past the time of one try.
        answers: u16,
        /// How often it is asked in 40 requests to two endpoints.
        asked: u64,
    }
    let rows = [
        // The seeds': the 5th error ejects, the 6th request goes elsewhere.
        Row {
            fields: "consecutive5xx: 5, interval: 30s, baseEjectionTime: 60s, maxEjectionPercent: 50",
            answers: 503,
            asked: 5,
        },
        Row {
            fields: "consecutive5xx: 5, interval: 30s, baseEjectionTime: 60s, maxEjectionPercent: 50",
            answers: 500,
            asked: 5,
        },
        // The defaults.
        Row { fields: "", answers: 500, asked: 5 },
        Row { fields: "consecutive5xx: 3", answers: 500, asked: 3 },
        Row { fields: "consecutive5xx: 1", answers: 599, asked: 1 },
        Row { fields: "consecutive5xx: 3", answers: 404, asked: 20 },
        Row { fields: "consecutive5xx: 3", answers: 429, asked: 20 },
        Row { fields: "consecutive5xx: 0", answers: 500, asked: 20 },
        Row { fields: "consecutive5xx: 0, consecutiveGatewayErrors: 2", answers: 500, asked: 20 },
        Row { fields: "consecutive5xx: 0, consecutiveGatewayErrors: 2", answers: 502, asked: 2 },
        Row { fields: "consecutive5xx: 0, consecutiveGatewayErrors: 2", answers: 503, asked: 2 },
        Row { fields: "consecutive5xx: 0, consecutiveGatewayErrors: 2", answers: 504, asked: 2 },
        // A broken connection and a try without an answer are what they would become: 503 and 504.
        Row { fields: "consecutive5xx: 3", answers: 0, asked: 3 },
        Row { fields: "consecutive5xx: 0, consecutiveGatewayErrors: 3", answers: 0, asked: 3 },
        Row { fields: "consecutive5xx: 3", answers: 1, asked: 3 },
        // Or a kind of their own.
        Row {
            fields: "consecutive5xx: 3, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4",
            answers: 0,
            asked: 4,
        },
        Row {
            fields: "consecutive5xx: 3, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4",
            answers: 503,
            asked: 3,
        },
        Row {
            fields: "consecutive5xx: 1, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 0",
            answers: 0,
            asked: 20,
        },
    ];
    let mut ran = 0;
    for workers in [1, 2] {
        for row in &rows {
            let what = format!("{} by {}, {workers} workers", row.fields, row.answers);
            let good = Backend::named("good");
            let bad = Backend::start(match row.answers {
                0 => Arc::new(|_| Action::CloseConnection),
                1 => slow(5000),
                status => always(Reply::new(status)),
            });
            let services = web(
                &[bad.addr(), good.addr()],
                &ejection(row.fields),
                "{retry: {attempts: 1, on: '418', perTryTimeout: 250ms}}",
            );
            let hop = hop_with("", workers, &services);
            let fine = ask(&hop, 40, 200) as u64;
            assert_eq!((bad.requests(), good.requests(), fine), (row.asked, 40 - row.asked, 40 - row.asked), "{what}");
            let out = if row.asked < 20 { 1.0 } else { 0.0 };
            assert_eq!(ejected(&hop), out, "{what}");
            ran += 1;
        }
    }
    assert_eq!(ran, 36);
}

#[test]
fn failures_in_a_row_only() {
    let n = Arc::new(AtomicU64::new(0));
    let count = n.clone();
    // Two failures, then a success: never three in a row.
    let moody = Backend::start(Arc::new(move |_| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Action::Reply(Reply::new(if n % 3 == 2 { 200 } else { 500 }))
    }));
    let good = Backend::named("good");
    let hop = hop_with("", 1, &web(&[moody.addr(), good.addr()], &ejection("consecutive5xx: 3"), ""));
    ask(&hop, 60, 200);
    assert_eq!((moody.requests(), ejected(&hop)), (30, 0.0));
    // Nobody is blamed for our own caps, nor for clients that leave.
    moody.set(slow(1500));
    hop.change(&web(&[moody.addr()], &format!("{}, breaker: {{maxRequests: 1}}", ejection("consecutive5xx: 1")), ""));
    std::thread::scope(|scope| {
        let one = scope.spawn(|| hop.get("/").status);
        until("one is held", SOON, || in_flight(&moody) == 1);
        assert_eq!(ask(&hop, 5, 503), 5);
        assert_eq!(one.join().unwrap(), 200);
    });
    assert_eq!(ejected(&hop), 0.0);
}

#[test]
fn an_endpoint_that_does_not_listen_is_ejected() {
    for (fields, tries) in [
        ("consecutive5xx: 3", 3),
        ("consecutive5xx: 1, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4", 4),
    ] {
        let good = Backend::named("good");
        let hop = hop_with("", 1, &web(&[free_addr(), good.addr()], &ejection(fields), "{retry: {attempts: 0}}"));
        assert_eq!((ask(&hop, 30, 503), ejected(&hop)), (tries, 1.0), "{fields}");
    }
}

#[test]
fn how_many_may_be_out() {
    let mut ran = 0;
    for workers in [1, 2] {
        // Of four bad endpoints; the first may always go.
        for (percent, out) in [(0, 1), (10, 1), (25, 1), (50, 2), (75, 3), (99, 3), (100, 4)] {
            let bad: Vec<_> = (0..4).map(|_| failing(500)).collect();
            let addrs: Vec<_> = bad.iter().map(Backend::addr).collect();
            let policy = ejection(&format!("consecutive5xx: 2, maxEjectionPercent: {percent}"));
            let hop = hop_with("", workers, &web(&addrs, &policy, ""));
            ask(&hop, 40, 500);
            assert_eq!(ejected(&hop) as usize, out, "{percent} percent, {workers} workers");
            let spared = bad.iter().filter(|b| b.requests() > 2).count();
            assert_eq!(
                spared,
                4 - out,
                "{percent} percent: {:?}",
                bad.iter().map(Backend::requests).collect::<Vec<_>>()
            );
            if out == 4 {
                let id = id();
                let answer = hop.send("GET", "/", &[("x-request-id", &id)], b"");
                assert_eq!((answer.status, answer.text().as_str()), (503, "no healthy upstream"));
                assert_eq!(hop.flags(&id), ("UH".into(), "no_healthy_upstream".into()));
                // Too few are left: all are used again (panic).
                hop.change(&web(
                    &addrs,
                    &ejection("consecutive5xx: 2, maxEjectionPercent: 100, minHealthPercent: 25"),
                    "",
                ));
                assert_eq!(ask(&hop, 8, 500), 8);
                assert_eq!(ejected(&hop), 4.0, "which ends no ejection");
            }
            ran += 1;
        }
    }
    assert_eq!(ran, 14);
}

#[test]
fn the_way_back() {
    for workers in [1, 2] {
        let (bad, good) = (failing(503), Backend::named("good"));
        let fields = "consecutive5xx: 3, interval: 400ms, baseEjectionTime: 1s, maxEjectionPercent: 100";
        let hop = hop_with("", workers, &web(&[bad.addr(), good.addr()], &ejection(fields), ""));
        // Exactly three, then 27 of 27 are good.
        assert_eq!(ask(&hop, 6, 503), 3);
        let begun = Instant::now();
        assert_eq!((ask(&hop, 27, 200), bad.requests()), (27, 3));
        let (_, first) = timed(|| until("it is back", SOON, || ask(&hop, 2, 503) > 0));
        let first = first + (Instant::now() - begun).saturating_sub(first);
        assert!((1000..4000).contains(&first.as_millis()), "{first:?}");
        // Out again after three in all, and for twice as long.
        until("it is out again", SOON, || {
            ask(&hop, 2, 503);
            ejected(&hop) == 1.0
        });
        let begun = Instant::now();
        assert_eq!(bad.requests(), 6);
        bad.set(echo());
        until("it is back again", SOON, || ask(&hop, 2, 200) == 2 && bad.requests() > 6);
        let second = begun.elapsed();
        println!("{workers} workers: out for {first:?}, then for {second:?}");
        assert!((1600..6000).contains(&second.as_millis()), "{second:?}");
        assert_eq!(hop.proxy.metric("weft_backend_ejections_total", &[]), 2.0);
    }
}

#[test]
fn a_standing_ejection_survives_changes() {
    for workers in [1, 2] {
        for kind in [
            "ejection: {consecutive5xx: 3, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 50}",
            "accrual: {maxFailures: 3, minPenalty: 60s, jitter: 0}",
        ] {
            let (bad, good, third) = (failing(500), Backend::named("good"), Backend::named("third"));
            let addrs = [bad.addr(), good.addr()];
            let policy = format!("balance: {{algorithm: roundRobin}}, outlier: {{{kind}}}");
            let hop = hop_with("", workers, &web(&addrs, &policy, ""));
            let mut client = hop.client();
            (0..12).for_each(|_| drop(client.get("/")));
            assert_eq!((bad.requests(), ejected(&hop)), (3, 1.0));
            let connections = good.connections();
            // A count that has begun stands as well: two more errors of another would be three. (Covered by the state.)
            for services in changes(&addrs, &policy, third.addr()) {
                hop.change(&services);
                for _ in 0..6 {
                    assert_eq!(client.get("/").status, 200, "{services}");
                }
                assert_eq!((bad.requests(), ejected(&hop)), (3, 1.0), "{services}");
            }
            // Another number, another time: the one that stands keeps its end.
            hop.change(&web(&addrs, &policy.replace("3,", "50,").replace("60s", "1s"), ""));
            std::thread::sleep(Duration::from_millis(1500));
            for _ in 0..6 {
                assert_eq!(client.get("/").status, 200);
            }
            assert_eq!((bad.requests(), ejected(&hop)), (3, 1.0), "{kind}");
            assert_eq!(good.connections(), connections, "no change costs a connection");
            assert_eq!(good.open_connections(), connections);
            // It is gone with the policy itself.
            hop.change(&web(&addrs, "balance: {algorithm: roundRobin}", ""));
            assert!(ask(&hop, 4, 500) == 2, "{kind}");
        }
    }
}

#[test]
fn a_count_survives_changes() {
    let (bad, good) = (failing(500), Backend::named("good"));
    let addrs = [bad.addr(), good.addr()];
    let policy = ejection("consecutive5xx: 5");
    let hop = hop_with("", 1, &web(&addrs, &policy, ""));
    // Each change finds one or two failures counted; the fifth ejects all the same.
    for services in changes(&addrs, &policy, good.addr()).into_iter().take(2) {
        ask(&hop, 4, 500);
        hop.change(&services);
    }
    ask(&hop, 20, 500);
    assert_eq!((bad.requests(), ejected(&hop)), (5, 1.0));
}

/// Linkerd's: after the penalty one request is let through.
#[test]
fn accrual_lets_one_probe_through() {
    let mut ran = 0;
    for workers in [1, 2] {
        let (bad, good) = (failing(500), Backend::named("good"));
        let policy = "balance: {algorithm: roundRobin}, outlier: {accrual: {maxFailures: 7, minPenalty: 1s, maxPenalty: 2s, jitter: 0}}";
        let hop = hop_with("", workers, &web(&[bad.addr(), good.addr()], policy, ""));
        assert_eq!((ask(&hop, 40, 500), bad.requests(), ejected(&hop)), (7, 7, 1.0));
        // The probe is slow and fails; while it is under way many ask, and all go elsewhere.
        bad.set(always(Reply::new(500).delayed(Duration::from_millis(600))));
        let opened = Instant::now();
        until("the probe", SOON, || {
            if bad.requests() == 7 {
                // One of them may be the probe.
                at_once(4, |_| hop.get("/").status);
            }
            bad.requests() > 7
        });
        let waited = opened.elapsed();
        assert!(waited >= Duration::from_millis(700) && waited < Duration::from_secs(5), "{waited:?}");
        at_once(12, |_| hop.get("/").status);
        assert_eq!(bad.requests(), 8, "one probe, {workers} workers");
        until("the probe has failed", SOON, || in_flight(&bad) == 0);
        // Twice the penalty now. The next probe succeeds, and that is that.
        bad.set(echo());
        let failed = Instant::now();
        until("the next probe", SOON, || {
            assert_eq!(ask(&hop, 2, 200), 2);
            bad.requests() > 8
        });
        let waited = failed.elapsed();
        println!("{workers} workers: second penalty {waited:?}");
        assert!(waited >= Duration::from_millis(1500) && waited < Duration::from_secs(6), "{waited:?}");
        until("closed", SOON, || ejected(&hop) == 0.0);
        let before = bad.requests();
        ask(&hop, 20, 200);
        assert_eq!(bad.requests() - before, 10);
        ran += 1;
    }
    // A single endpoint: a request waits for the probe, for a while.
    let bad = failing(503);
    let accrual = |penalty: &str| format!("outlier: {{accrual: {{maxFailures: 2, minPenalty: {penalty}, jitter: 0}}}}");
    let hop = hop_with("", 1, &web(&[bad.addr()], &accrual("1s"), ""));
    assert_eq!(ask(&hop, 2, 503), 2);
    bad.set(echo());
    let (answer, took) = timed(|| hop.get("/"));
    assert!(answer.status == 200 && took >= Duration::from_millis(700), "{} {took:?}", answer.status);
    bad.set(always(Reply::new(503)));
    hop.change(&web(&[bad.addr()], &accrual("30s"), ""));
    assert_eq!(ask(&hop, 2, 503), 2);
    let before = bad.requests();
    let (answer, took) = timed(|| hop.get("/"));
    assert_eq!((answer.status, answer.text().as_str()), (503, "no healthy upstream"));
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!((bad.requests(), ran), (before, 2));
}

/// Failures to connect count for bytes that are not HTTP as well.
#[test]
fn tcp_connections_eject_too() {
    use std::io::{Read, Write};
    let echo = weft_testkit::raw_backend::TcpPeer::echo();
    let services = web(&[free_addr(), echo.addr()], &ejection("consecutive5xx: 2"), "")
        .replace("port: 80", "port: 80, protocol: tcp");
    let hop = hop_with("", 1, &services);
    for _ in 0..12 {
        let mut stream = std::net::TcpStream::connect(hop.addr).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(b"bytes").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"bytes");
    }
    assert_eq!((echo.connections(), ejected(&hop)), (12, 1.0));
}
