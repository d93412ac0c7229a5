//! Retries, their budget, and time limits, counted at the backend. The rows of `istio_rows` are what a real Istio was seen to do
//! with the same policy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use bytes::Bytes;
use rig::{Hop, SOON, app, at_once, hop, id, timed};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use weft_testkit::backend::{Action, Backend, Reply, always, echo, fail_with};
use weft_testkit::client::{Http2, ReadError};
use weft_testkit::dir::free_addr;
use weft_testkit::raw_backend::TcpPeer;
use weft_testkit::raw_h2::{Frame, PREFACE, headers, kind, literals, rst, settings};
use weft_testkit::wait::{block_on, until};

fn web(endpoints: &[SocketAddr], routes: &str, policy: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|a| format!("'{a}'")).collect();
    let routes = if routes.is_empty() { String::new() } else { format!(", routes: [{routes}]") };
    format!("- {{name: web, port: 80, endpoints: [{}], policy: {{{policy}}}{routes}}}", endpoints.join(", "))
}

#[test]
fn success_is_what_statistics_say() {
    let backend = Backend::start(fail_with(0.9, 7, Reply::text(503, "no")));
    let route = "{retry: {attempts: 3, on: '5xx', backoff: {base: 1ms, max: 2ms}}}";
    let hop = hop(&web(&[backend.addr()], route, ""));
    let good: usize = at_once(4, |_| {
        let mut client = hop.client();
        (0..500).filter(|_| client.get("/").status == 200).count()
    })
    .into_iter()
    .sum();
    let attempts = backend.requests();
    println!("success {good} of 2000 (expected 688), attempts {attempts} (expected 6878)");
    // Four standard deviations: 2000 * 0.3439 +- 85, 2000 * 3.439 +- 190.
    assert!(good.abs_diff(688) <= 85, "{good}");
    assert!(attempts.abs_diff(6878) <= 200, "{attempts}");
    // What the proxy counted is what the backend saw, and each request was tried at most four times.
    hop.proxy.wait_metric("weft_upstream_attempts_total", &[], attempts as f64, SOON);
    assert_eq!(hop.proxy.metric("weft_upstream_attempts_total", &[]), attempts as f64);
    assert_eq!(hop.proxy.metric("weft_retries_total", &[("result", "not_retried")]), 0.0);
    assert!(backend.seen().iter().all(|s| s.attempt <= 4));
    let counted = |s: &weft_testkit::backend::Seen| s.header("x-envoy-attempt-count") == Some(&s.attempt.to_string());
    assert!(backend.seen().iter().all(counted), "each attempt says which it is");
    hop.wait_released();
}

#[test]
fn budgets_cap_amplification() {
    let backend = Backend::start(always(Reply::new(503)));
    let route = "{retry: {attempts: 3, on: '5xx', backoff: {base: 1ms, max: 2ms}}}";
    let hop = hop(&web(&[backend.addr()], route, ""));
    let load = |n: usize| {
        backend.clear();
        let ((), took) = timed(|| {
            at_once(4, |_| {
                let mut client = hop.client();
                (0..n / 4).for_each(|_| assert_eq!(client.get("/").status, 503));
            });
        });
        (backend.requests() as usize, took.as_secs() as usize)
    };
    assert_eq!(load(200).0, 800, "without a budget everything is tried four times");
    hop.change(&web(&[backend.addr()], route, "retryBudget: {percent: 20, minPerSecond: 1, window: 10s}"));
    let (attempts, secs) = load(800);
    println!("budget of 20 percent and 1/s: {attempts} attempts for 800 requests in {secs} s");
    // A fifth, and the reserve of one window and of what time passes meanwhile.
    assert!((800 + 150..=800 + 160 + 12 + secs).contains(&attempts), "{attempts}");
    let id = id();
    assert_eq!(hop.send("GET", "/", &[("x-request-id", &id)], b"").status, 503);
    assert_eq!(hop.line(&id)["note"], "not retried: the retry budget is spent");
    // Istio's form: of the requests in flight, but at least so many at once.
    hop.change(&web(&[backend.addr()], route, "retryBudget: {percent: 0, minConcurrency: 0}"));
    assert_eq!(load(100).0, 100);
    hop.change(&web(&[backend.addr()], route, "retryBudget: {percent: 0, minConcurrency: 100}"));
    assert_eq!(load(100).0, 400);
    // The breaker's own cap.
    hop.change(&web(&[backend.addr()], route, "breaker: {maxRetries: 0}"));
    assert_eq!(load(100).0, 100);
    let id = rig::id();
    hop.send("GET", "/", &[("x-request-id", &id)], b"");
    assert_eq!(hop.line(&id)["note"], "not retried: the breaker allows no more retries");
    hop.wait_released();
}

/// Retries at every hop of a chain multiply; budgets keep the product small.
#[test]
fn a_chain_does_not_amplify() {
    let backend = Backend::start(always(Reply::new(503)));
    let route = "{retry: {attempts: 3, on: '5xx', backoff: {base: 1ms, max: 2ms}}}";
    let chain = |budget: &str| {
        let mut hops: Vec<Hop> = Vec::new();
        for _ in 0..4 {
            let next = hops.last().map_or(backend.addr(), |h| h.addr);
            hops.push(hop(&web(&[next], route, budget)));
        }
        backend.clear();
        let ((), took) = timed(|| {
            let mut client = hops.last().unwrap().client();
            (0..60).for_each(|_| assert_eq!(client.get("/").status, 503));
        });
        (backend.requests(), took)
    };
    // Each hop passes on at most a fifth more than it was asked, and one retry of reserve per second: 1.2 to the fourth.
    let (attempts, took) = chain("retryBudget: {percent: 20, minPerSecond: 0, window: 10s}");
    println!(
        "a chain of 4 hops with 3 retries each: {attempts} attempts for 60 requests (without a budget 15360), {took:?}"
    );
    assert!((60..=125).contains(&attempts), "{attempts}");
}

/// How many retries may be under way at one time.
#[test]
fn concurrent_retries() {
    let backend = Backend::start(always(Reply::new(503).delayed(Duration::from_millis(500))));
    let route = "{retry: {attempts: 1, on: '5xx', backoff: {base: 1ms, max: 1ms}}}";
    let mut ran = 0;
    for (policy, retries) in [
        ("breaker: {maxRetries: 2}", 2),
        ("retryBudget: {percent: 20, minConcurrency: 3}", 3),
        ("retryBudget: {percent: 50, minConcurrency: 3}", 5),
        ("breaker: {maxRetries: 2}, retryBudget: {percent: 0, minPerSecond: 0, window: 1s}", 0),
        ("", 10),
    ] {
        let hop = hop(&web(&[backend.addr()], route, policy));
        backend.clear();
        // Ten first attempts end at about one time, and whoever may retry holds the place for half a second.
        let statuses = at_once(10, |_| hop.get("/").status);
        assert!(statuses.iter().all(|s| *s == 503));
        assert_eq!(backend.requests(), 10 + retries, "{policy}");
        hop.wait_released();
        ran += 1;
    }
    assert_eq!(ran, 5);
}

/// The seeds' settings at a fifth: 3 tries, 400 ms per try, 2 s in all.
#[test]
fn po_14_times() {
    let backend = Backend::start(app());
    for (tries, in_all, attempts, least, flags) in [(3, 2000, 3, 1200, "URX,UT"), (9, 2000, 5, 2000, "UT")] {
        let route = format!(
            "{{timeout: {{request: {in_all}ms}}, retry: {{attempts: {}, on: '5xx', perTryTimeout: 400ms, backoff: {{base: 1ms, max: 2ms}}}}}}",
            tries - 1
        );
        let hop = hop(&web(&[backend.addr()], &route, ""));
        let id = id();
        let (answer, took) = timed(|| hop.send("GET", "/slow/9000", &[("x-request-id", &id)], b""));
        assert_eq!((answer.status, answer.text().as_str(), backend.attempts(&id)), (504, TIMEOUT, attempts));
        assert!((least..least + 1500).contains(&(took.as_millis() as u64)), "{took:?}");
        assert_eq!(hop.flags(&id).0, flags);
        hop.wait_released();
    }
}

#[test]
fn bodies() {
    let backend = Backend::start(Arc::new(|seen| {
        if seen.attempt == 1 { Action::WithBody(Box::new(|_, _| Reply::text(503, "first"))) } else { Action::Echo }
    }));
    let route = "{retry: {attempts: 2, on: '5xx', backoff: {base: 1ms}}}";
    let hop = hop(&web(&[backend.addr()], route, ""));
    const CAP: usize = 64 * 1024;
    let mut ran = 0;
    for (size, chunked, retried) in [
        (0, false, true),
        (10, false, true),
        (10, true, true),
        (CAP, false, true),
        (CAP, true, true),
        (CAP + 1, false, false),
        (CAP + 1, true, false),
        (1 << 20, false, false),
    ] {
        let (body, id) = (vec![b'x'; size], id());
        let answer = if chunked {
            let mut client = hop.client();
            let mut bytes =
                format!("POST / HTTP/1.1\r\nhost: web\r\nx-request-id: {id}\r\ntransfer-encoding: chunked\r\n\r\n")
                    .into_bytes();
            for part in body.chunks(10_000) {
                bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                bytes.extend_from_slice(part);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            client.send(bytes).unwrap();
            client.read().unwrap()
        } else {
            hop.send("POST", "/", &[("x-request-id", &id)], &body)
        };
        let what = format!("{size} bytes, chunked {chunked}");
        let (status, attempts) = if retried { (200, 2) } else { (503, 1) };
        assert_eq!((answer.status, backend.attempts(&id)), (status, attempts), "{what}");
        let line = hop.line(&id);
        assert_eq!(line["request_bytes"], size, "{what}");
        if retried {
            assert_eq!(answer.json()["body_len"], size, "{what}");
            assert!(line["note"].is_null(), "{what}");
        } else {
            assert_eq!(answer.text(), "first", "{what}");
            assert_eq!(line["note"], "not retried: the body is larger than the replay buffer", "{what}");
        }
        ran += 1;
    }
    assert_eq!(ran, 8);
    // An endpoint that answers before it has read: what it did not read is sent to the next one all the same.
    backend
        .set(Arc::new(|seen| if seen.attempt == 1 { Action::Early(Reply::text(503, "early")) } else { Action::Echo }));
    for i in 0..10 {
        let id = id();
        let answer = hop.send("POST", "/", &[("x-request-id", &id)], &vec![b'z'; 60_000]);
        assert_eq!((answer.status, backend.attempts(&id)), (200, 2), "{i}: {}", answer.text());
        assert_eq!(answer.json()["body_len"], 60_000);
    }
    // Where nothing of it was sent, a body of any size may be tried elsewhere.
    let dead = free_addr();
    hop.change(&web(&[dead, backend.addr()], "", "balance: {algorithm: roundRobin}"));
    for _ in 0..6 {
        backend.set(echo());
        let answer = hop.send("POST", "/", &[], &vec![b'y'; 300_000]);
        assert_eq!((answer.status, &answer.json()["body_len"]), (200, &300_000.into()));
    }
    hop.wait_released();
}

#[test]
fn an_answer_that_broke_off_is_neither_repeated_nor_ended() {
    let backend = Backend::start(Arc::new(|seen| {
        let whole = Reply::text(200, Bytes::from(vec![b'x'; 50_000]));
        Action::Reply(match seen.path() {
            "/length" => Reply { cut_after: Some(20_000), ..whole },
            "/chunked" => Reply { cut_after: Some(20_000), chunked: true, ..whole },
            _ => Reply { cut_after: Some(20_000), reset: true, chunked: true, ..whole },
        })
    }));
    let route = "{retry: {attempts: 3, on: '5xx,reset,connect-failure,refused-stream'}}";
    let mut ran = 0;
    let hop = hop(&web(&[backend.addr()], route, ""));
    for upstream in ["http1", "http2"] {
        hop.change(&web(&[backend.addr()], route, &format!("http: {upstream}")));
        for path in ["/length", "/chunked", "/reset"] {
            for downstream in ["http1", "http2"] {
                let (id, what) = (id(), format!("{path}, {downstream} from {upstream}"));
                let header = [("x-request-id", id.as_str())];
                if downstream == "http1" {
                    match hop.client().request("GET", path, &header, b"") {
                        Err(ReadError::Short(part)) => assert_eq!(part.status, 200, "{what}"),
                        // The end came in one piece with the head, which was not on its way yet.
                        Err(ReadError::NoAnswer) => {}
                        other => panic!("{what}: {other:?}"),
                    }
                } else {
                    block_on(async {
                        let client = Http2::connect(hop.addr).await.unwrap();
                        let error = client.request("GET", path, &header, b"").await.expect_err(&what);
                        assert!(error.is_reset(), "{what}: {error}");
                        assert_ne!(error.reason(), Some(h2::Reason::NO_ERROR), "{what}");
                        // Only the stream: the connection goes on.
                        assert!(client.usable().await, "{what}");
                    });
                }
                assert_eq!(backend.attempts(&id), 1, "{what}");
                assert_eq!(hop.flags(&id), ("UR".into(), "upstream_broke_off".into()), "{what}");
                ran += 1;
            }
        }
    }
    assert_eq!(ran, 12);
    hop.wait_released();
}

/// What one request comes to.
struct Row {
    route: &'static str,
    ask: (&'static str, &'static str),
    status: u16,
    body: &'static str,
    attempts: u64,
    flags: &'static str,
    reason: &'static str,
    /// Milliseconds it takes at least.
    least: u64,
}

const TIMEOUT: &str = "upstream request timeout";

#[test]
fn istio_rows() {
    // Seconds of the observation are tenths and a bit here.
    const ALL: &str = "{retry: {attempts: 3, perTryTimeout: 300ms, on: '5xx,connect-failure,refused-stream'}}";
    const GATEWAY: &str = "{retry: {attempts: 2, perTryTimeout: 300ms, on: 'gateway-error,reset'}}";
    const UNNAMED: &str = "{retry: {attempts: 3}}";
    const CODES: &str = "{retry: {attempts: 2, on: '503,418'}}";
    const NONE: &str = "{}";
    const OFF: &str = "{retry: {attempts: 0, on: '5xx'}}";
    const LIMIT: &str = "{timeout: {request: 500ms}}";
    const BOTH: &str = "{timeout: {request: 500ms}, retry: {attempts: 3, perTryTimeout: 300ms, on: '5xx'}}";
    let row = |route, ask, status, body, attempts, flags, reason, least| Row {
        route,
        ask,
        status,
        body,
        attempts,
        flags,
        reason,
        least,
    };
    let rows = [
        row(ALL, ("GET", "/status/500"), 500, "the app's own 500", 4, "URX", "none", 0),
        row(ALL, ("GET", "/status/503"), 503, "the app's own 503", 4, "URX", "none", 0),
        row(ALL, ("POST", "/status/503"), 503, "the app's own 503", 4, "URX", "none", 0),
        row(ALL, ("GET", "/status/429"), 429, "the app's own 429", 1, "-", "none", 0),
        row(ALL, ("GET", "/status/404"), 404, "the app's own 404", 1, "-", "none", 0),
        row(ALL, ("GET", "/slow/5000"), 504, TIMEOUT, 4, "URX,UT", "upstream_per_try_timeout", 1200),
        row(GATEWAY, ("GET", "/slow/5000"), 504, TIMEOUT, 3, "URX,UT", "upstream_per_try_timeout", 900),
        row(GATEWAY, ("GET", "/status/500"), 500, "the app's own 500", 1, "-", "none", 0),
        row(GATEWAY, ("GET", "/status/502"), 502, "the app's own 502", 3, "URX", "none", 0),
        row(UNNAMED, ("GET", "/status/500"), 500, "the app's own 500", 1, "-", "none", 0),
        row(UNNAMED, ("GET", "/status/503"), 503, "the app's own 503", 1, "-", "none", 0),
        row(NONE, ("GET", "/status/500"), 500, "the app's own 500", 1, "-", "none", 0),
        row(NONE, ("GET", "/status/503"), 503, "the app's own 503", 1, "-", "none", 0),
        row(NONE, ("GET", "/status/504"), 504, "the app's own 504", 1, "-", "none", 0),
        row(NONE, ("POST", "/status/503"), 503, "the app's own 503", 1, "-", "none", 0),
        row(OFF, ("GET", "/status/503"), 503, "the app's own 503", 1, "-", "none", 0),
        row(CODES, ("GET", "/status/418"), 418, "the app's own 418", 3, "URX", "none", 0),
        row(CODES, ("GET", "/status/503"), 503, "the app's own 503", 3, "URX", "none", 0),
        row(LIMIT, ("GET", "/slow/5000"), 504, TIMEOUT, 1, "UT", "response_timeout", 500),
        row(BOTH, ("GET", "/slow/5000"), 504, TIMEOUT, 2, "UT", "response_timeout", 500),
    ];
    let (a, b) = (Backend::start(app()), Backend::start(app()));
    let hop = hop(&web(&[a.addr(), b.addr()], NONE, ""));
    let mut ran = 0;
    for row in &rows {
        hop.change(&web(&[a.addr(), b.addr()], row.route, ""));
        let (id, (method, path)) = (id(), row.ask);
        // The app's wish to retry is not asked for.
        let wishes = [
            ("x-request-id", id.as_str()),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-max-retries", "9"),
            ("x-envoy-upstream-rq-timeout-ms", "1"),
        ];
        let (answer, took) = timed(|| hop.send(method, path, &wishes, b""));
        let what = format!("{} {method} {path}", row.route);
        assert_eq!((answer.status, answer.text().as_str()), (row.status, row.body), "{what}");
        assert_eq!(a.attempts(&id) + b.attempts(&id), row.attempts, "{what}");
        if row.attempts > 1 && row.attempts.is_multiple_of(2) {
            // Endpoints that were tried are avoided while there is another; then it begins anew.
            assert!(a.attempts(&id) >= 1 && b.attempts(&id) >= 1, "{what}");
        }
        assert_eq!(hop.flags(&id), (row.flags.into(), row.reason.into()), "{what}");
        assert_eq!(hop.line(&id)["attempts"], row.attempts, "{what}");
        let least = Duration::from_millis(row.least);
        assert!(took >= least && took < least + Duration::from_secs(4), "{what}: {took:?}");
        if row.body == TIMEOUT {
            assert_eq!(answer.header("content-type"), Some("text/plain"), "{what}");
            assert!(!answer.headers.iter().any(|(n, _)| n.starts_with("x-envoy")), "{what}: {:?}", answer.headers);
        }
        ran += 1;
    }
    assert_eq!(ran, 20);
    // The attempts that were given up are gone at the backends too.
    let left = || a.counts().in_flight.load(Ordering::SeqCst) + b.counts().in_flight.load(Ordering::SeqCst);
    until("the backends have let go", SOON, || left() == 0);
    hop.wait_released();
}

/// Takes requests, never answers, and counts who went away.
fn hung() -> (TcpPeer, Arc<AtomicU64>) {
    let gone = Arc::new(AtomicU64::new(0));
    let count = gone.clone();
    let peer = TcpPeer::at(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        count.fetch_add(1, Ordering::SeqCst);
    });
    (peer, gone)
}

#[test]
fn attempts_and_permits_end_with_the_time() {
    let (one, gone) = hung();
    let two = Backend::start(Arc::new(|_| Action::Hang));
    let route = "{timeout: {request: 700ms}}";
    let good = Backend::named("good");
    let hop = hop(&web(&[good.addr()], route, ""));
    for (upstream, at) in [("http1", one.addr()), ("http2", two.addr())] {
        hop.change(&web(&[at], route, &format!("http: {upstream}")));
        let took = at_once(8, |_| {
            let (answer, took) = timed(|| hop.get("/"));
            assert_eq!((answer.status, answer.text().as_str()), (504, TIMEOUT));
            took
        });
        println!("{upstream}: 504 after {:?} to {:?}", took.iter().min().unwrap(), took.iter().max().unwrap());
        assert!(took.iter().all(|t| (700..4000).contains(&t.as_millis())), "{took:?}");
        let mut client = hop.client();
        assert_eq!(client.get("/").status, 504);
        hop.wait_released();
        if upstream == "http1" {
            // An exchange that was given up leaves no connection behind; under HTTP/2 only its stream goes.
            until("the backend sees the ends", SOON, || gone.load(Ordering::SeqCst) == 9);
            until("permits are given back", SOON, || hop.held("active_connections") == 0.0);
        } else {
            assert_eq!((two.requests(), two.connections()), (9, 1));
            until("the backend sees the resets", SOON, || two.counts().in_flight.load(Ordering::SeqCst) == 0);
        }
        // The client's connection is none the worse.
        hop.change(&web(&[good.addr()], route, ""));
        assert_eq!((client.get("/").status, client.get("/").status), (200, 200));
    }
    // The time of one try, with a retry that succeeds elsewhere.
    hop.change(&web(
        &[one.addr(), good.addr()],
        "{retry: {attempts: 1, on: '5xx', perTryTimeout: 300ms}}",
        "balance: {algorithm: roundRobin}",
    ));
    let slow =
        (0..6).filter(|_| timed(|| assert_eq!(hop.get("/").status, 200)).1 >= Duration::from_millis(300)).count();
    assert!((1..=6).contains(&slow), "{slow}");
    hop.wait_released();
}

#[test]
fn limits_after_the_head() {
    // A head and the first bytes, then silence.
    let quiet = Reply {
        chunks: vec!["some".into(), "more".into()],
        delay_chunk: Duration::from_millis(50),
        chunked: true,
        ..Reply::new(200)
    };
    let stalling = Arc::new(move |seen: &weft_testkit::backend::Seen| {
        if seen.path() == "/never" {
            return Action::Hang;
        }
        let delay = if seen.path() == "/steady" { 150 } else { 20_000 };
        Action::Reply(Reply {
            delay_chunk: Duration::from_millis(delay),
            chunks: vec!["x".into(); 6],
            delay_head: Duration::ZERO,
            ..quiet.clone()
        })
    });
    let backend = Backend::start(stalling);
    let hop = hop(&web(&[backend.addr()], "{timeout: {request: 600ms}}", ""));
    let ask = |path: &str| {
        let id = id();
        let (result, took) = timed(|| hop.client().request("GET", path, &[("x-request-id", &id)], b""));
        (result, took, hop.flags(&id))
    };
    // The whole answer has to be there in time; its head is out, so all that is left is not to end it cleanly.
    for path in ["/stall", "/steady"] {
        let (result, took, flags) = ask(path);
        assert!(matches!(result, Err(ReadError::Short(_))), "{path}: {result:?}");
        assert!((600..5000).contains(&took.as_millis()), "{path}: {took:?}");
        assert_eq!(flags, ("UT".into(), "response_timeout".into()), "{path}");
    }
    hop.change(&web(&[backend.addr()], "{timeout: {idle: 600ms}}", ""));
    let (result, took, flags) = ask("/stall");
    assert!(matches!(result, Err(ReadError::Short(_))), "{result:?}");
    assert!((600..5000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(flags, ("SI".into(), "stream_idle_timeout".into()));
    // Six times a byte, never idle for long.
    let (result, took, _) = ask("/steady");
    assert_eq!(result.unwrap().text(), "xxxxxx");
    assert!(took >= Duration::from_millis(900), "{took:?}");
    // No head at all.
    let (result, took, flags) = ask("/never");
    let answer = result.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (504, "stream timeout"));
    assert!((600..5000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(flags, ("SI".into(), "stream_idle_timeout".into()));
    // A client that is still sending is not idle.
    let mut client = hop.client();
    client.send("POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: 6\r\n\r\n").unwrap();
    backend.set(echo());
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(200));
        client.send("x").unwrap();
    }
    assert_eq!(client.read().unwrap().json()["body_len"], 6);
    hop.wait_released();
}

#[test]
fn what_no_app_has_seen_is_repeated_without_being_asked() {
    let good = Backend::named("good");
    let hop = hop(&web(&[free_addr(), good.addr()], "", "balance: {algorithm: roundRobin}"));
    // One of two endpoints does not listen: nobody notices.
    let mut client = hop.client();
    assert!((0..40).all(|_| client.request("POST", "/", &[], b"x").unwrap().status == 200));
    assert_eq!(good.requests(), 40);
    // None listens: three tries, and the word of the last.
    hop.change(&web(&[free_addr()], "", ""));
    let id = id();
    let (answer, _) = timed(|| hop.send("GET", "/", &[("x-request-id", &id)], b""));
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.text(),
        "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote connection failure"
    );
    assert_eq!(answer.body.len(), 121);
    assert_eq!(hop.flags(&id), ("URX,UF".into(), "remote_connection_failure".into()));
    assert_eq!(hop.line(&id)["attempts"], 3);

    // A closed connection before the head is not repeated unless somebody asked; the app may have acted.
    let rude = Backend::start(Arc::new(|_| Action::CloseConnection));
    let mut ran = 0;
    for (route, attempts, body, flags) in [
        (
            "",
            1,
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            "UC",
        ),
        (
            "{retry: {attempts: 2, on: reset}}",
            3,
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: connection termination",
            "URX,UC",
        ),
        (
            "{retry: {attempts: 2, on: connect-failure}}",
            1,
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            "UC",
        ),
    ] {
        for rst in [false, true] {
            if rst {
                rude.set(Arc::new(|_| Action::ResetConnection));
            } else {
                rude.set(Arc::new(|_| Action::CloseConnection));
            }
            hop.change(&web(&[rude.addr()], route, ""));
            let id = rig::id();
            let answer = hop.send("GET", "/", &[("x-request-id", &id)], b"");
            assert_eq!((answer.status, answer.text().as_str()), (503, body), "{route} rst {rst}");
            assert_eq!((rude.attempts(&id), hop.flags(&id).0.as_str()), (attempts, flags), "{route} rst {rst}");
            ran += 1;
        }
    }
    assert_eq!(ran, 6);
    hop.wait_released();
}

#[test]
fn refused_streams() {
    let backend =
        Backend::start(Arc::new(|seen| if seen.attempt == 1 { Action::ResetStream(7) } else { Action::Echo }));
    let hop = hop(&web(&[backend.addr()], "", "http: http2"));
    let ask = |path: &str, body: &[u8]| {
        let id = id();
        let answer = hop.send("POST", path, &[("x-request-id", &id)], body);
        (answer, id)
    };
    for _ in 0..10 {
        let (answer, id) = ask("/", b"hello");
        assert_eq!((answer.status, &answer.json()["body_len"], backend.attempts(&id)), (200, &5.into(), 2));
    }
    // Any other reset is not: the app may have acted.
    backend.set(Arc::new(|_| Action::ResetStream(2)));
    let (answer, id) = ask("/", b"");
    assert_eq!((answer.status, backend.attempts(&id)), (503, 1));
    assert_eq!(answer.text(), "upstream connect error or disconnect/reset before headers. reset reason: remote reset");
    assert_eq!(hop.flags(&id), ("UR".into(), "remote_reset".into()));
    // Refused for ever.
    backend.set(Arc::new(|_| Action::ResetStream(7)));
    let (answer, id) = ask("/", b"");
    assert_eq!((answer.status, backend.attempts(&id)), (503, 3));
    assert_eq!(hop.flags(&id), ("URX,UR".into(), "remote_refused_stream".into()));
    hop.wait_released();
}

/// An HTTP/2 server by hand: what `answer` makes of each stream's head.
fn raw_h2(answer: impl Fn(u64, u32) -> (Vec<Frame>, bool) + Send + Sync + 'static) -> TcpPeer {
    TcpPeer::at(([127, 0, 0, 1], 0).into(), move |mut stream, connection| {
        let mut preface = [0; PREFACE.len()];
        if stream.read_exact(&mut preface).is_err() {
            return;
        }
        let mut out = Vec::new();
        settings(&[]).encode(&mut out);
        Frame::new(kind::SETTINGS, 1, 0, []).encode(&mut out);
        let _ = stream.write_all(&out);
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).is_err() {
                return;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            if stream.read_exact(&mut payload).is_err() {
                return;
            }
            if head[3] == kind::HEADERS {
                let id = u32::from_be_bytes(head[5..9].try_into().unwrap());
                let (frames, close) = answer(connection, id);
                let mut out = Vec::new();
                frames.iter().for_each(|f| f.encode(&mut out));
                let _ = stream.write_all(&out);
                if close {
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                    return;
                }
            }
        }
    })
}

fn goaway(last: u32, code: u32) -> Frame {
    let mut payload = last.to_be_bytes().to_vec();
    payload.extend_from_slice(&code.to_be_bytes());
    Frame::new(kind::GOAWAY, 0, 0, payload)
}

fn ok(stream: u32) -> Frame {
    headers(stream, literals(&[(b":status", b"200")]), true)
}

#[test]
fn goodbyes() {
    // The first connection says goodbye to its first stream without looking at it; others to their third.
    let polite = raw_h2(|connection, stream| match (connection, stream) {
        (1, _) => (vec![goaway(0, 0)], true),
        (_, 5) => (vec![goaway(3, 0)], true),
        (_, stream) => (vec![ok(stream)], false),
    });
    let hop = hop(&web(&[polite.addr()], "", "http: http2"));
    let mut client = hop.client();
    for i in 0..30 {
        let answer = client.request("POST", "/", &[], b"a body").unwrap();
        assert_eq!(answer.status, 200, "request {i}: {}", answer.text());
    }
    assert!(polite.connections() >= 15, "{}", polite.connections());
    // Below the last stream that was looked at, it may have acted: not repeated.
    let gone = raw_h2(|_, stream| (vec![goaway(stream, 0)], true));
    hop.change(&web(&[gone.addr()], "", "http: http2"));
    let answer = hop.get("/");
    assert_eq!((answer.status, gone.connections()), (503, 1), "{}", answer.text());
    // A goodbye that ends what is in flight at once, and an answer that is none.
    let angry = raw_h2(|_, stream| (vec![rst(stream, 11)], false));
    hop.change(&web(&[angry.addr()], "", "http: http2"));
    assert_eq!(
        hop.get("/").text(),
        "upstream connect error or disconnect/reset before headers. reset reason: remote reset"
    );
    hop.wait_released();
}

#[test]
fn kept_connections_that_were_closed_cost_nobody_an_error() {
    // Closes each connection after one answer, without a word of it.
    let curt = weft_testkit::raw_backend::RawBackend::answering_once("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let hop = hop(&web(&[curt.addr()], "", ""));
    let mut client = hop.client();
    for i in 0..100 {
        let answer = client.request("POST", "/", &[], b"x").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "request {i}");
        // Long enough for the close to arrive: what races with it may have been acted on.
        std::thread::sleep(Duration::from_millis(25));
    }
    assert_eq!(curt.connections(), 100);
    hop.wait_released();
}

fn grpc(hop: &Hop, path: &str, id: &str) -> weft_testkit::client::Answer {
    block_on(async {
        let client = Http2::connect(hop.addr).await.unwrap();
        client
            .request(
                "POST",
                path,
                &[("content-type", "application/grpc"), ("te", "trailers"), ("x-request-id", id)],
                b"",
            )
            .await
            .unwrap()
    })
}

#[test]
fn grpc_statuses() {
    let backend = Backend::start(Arc::new(|seen| {
        let only =
            |status: &str| Reply::new(200).header("content-type", "application/grpc").header("grpc-status", status);
        Action::Reply(match (seen.path(), seen.attempt) {
            (_, 3..) => Reply::grpc(0, b"done"),
            ("/unavailable", _) => only("14"),
            ("/cancelled", _) => only("1"),
            ("/resource", _) => only("8"),
            // Not in the head: the answer has begun, it cannot be taken back.
            ("/late", _) => Reply::grpc(14, b"begun"),
            _ => only("13"),
        })
    }));
    let hop =
        hop(&web(&[backend.addr()], "{retry: {attempts: 2, on: 'unavailable,cancelled', backoff: {base: 1ms}}}", ""));
    let mut ran = 0;
    for (path, status, attempts) in [
        ("/unavailable", "0", 3),
        ("/cancelled", "0", 3),
        ("/resource", "8", 1),
        ("/late", "14", 1),
        ("/internal", "13", 1),
    ] {
        let id = id();
        let answer = grpc(&hop, path, &id);
        assert_eq!(
            (answer.status, answer.grpc_status(), backend.attempts(&id)),
            (200, Some(status), attempts),
            "{path}"
        );
        ran += 1;
    }
    assert_eq!(ran, 5);
    // A time limit is DEADLINE_EXCEEDED, in the trailers' place.
    backend.set(Arc::new(|_| Action::Hang));
    hop.change(&web(&[backend.addr()], "{timeout: {request: 300ms}}", ""));
    let answer = grpc(&hop, "/", &id());
    assert_eq!(
        (answer.status, answer.header("grpc-status"), answer.header("grpc-message")),
        (200, Some("4"), Some(TIMEOUT))
    );
    hop.wait_released();
}

#[test]
fn tried_endpoints_are_avoided() {
    let (bad, good) = (Backend::start(always(Reply::new(500))), Backend::named("good"));
    let hop = hop(&web(
        &[bad.addr(), good.addr()],
        "{retry: {attempts: 1, on: '5xx', backoff: {base: 1ms}}}",
        "balance: {algorithm: random}",
    ));
    let mut client = hop.client();
    assert!((0..60).all(|_| client.get("/").status == 200));
    println!("tried in vain: {} of 60", bad.requests());
    // Without it, half of the retries come back to where they were.
    let again = "{retry: {attempts: 1, on: '5xx', avoidPreviousHosts: false, backoff: {base: 1ms}}}";
    hop.change(&web(&[bad.addr(), good.addr()], again, "balance: {algorithm: random}"));
    let failed = (0..200).filter(|_| client.get("/").status == 500).count();
    println!("without avoiding: {failed} of 200 failed");
    assert!((20..=85).contains(&failed), "{failed}");
    // Consistent hashing overrules it: who asked for one endpoint gets it.
    hop.change(&web(
        &[bad.addr(), good.addr()],
        "{retry: {attempts: 3, on: '5xx', backoff: {base: 1ms}}}",
        "balance: {algorithm: ringHash, hash: [{header: x-user}]}",
    ));
    let pinned = (0..40)
        .map(|i| {
            client
                .request("GET", "/", &[("x-user", &format!("u{i}")), ("x-request-id", &format!("pin-{i}"))], b"")
                .unwrap()
                .status
        })
        .enumerate()
        .filter(|(_, status)| *status == 500)
        .map(|(i, _)| assert_eq!(bad.attempts(&format!("pin-{i}")), 4))
        .count();
    assert!((5..=35).contains(&pinned), "{pinned}");
    hop.wait_released();
}
