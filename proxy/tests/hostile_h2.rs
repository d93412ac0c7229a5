//! HTTP/2 from clients and servers that do what no library would: malformed messages, floods, windows that never open. Beside
//! each flood a client that behaves must not notice it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "smuggling/oracle.rs"]
#[allow(dead_code)]
mod oracle;
#[path = "smuggling/recorder.rs"]
#[allow(dead_code)]
mod recorder;

use recorder::Recorder;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weft_testkit::backend::{Action, Backend, Reply};
use weft_testkit::ca::Ca;
use weft_testkit::client::{self, Stream};
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::Proxy;
use weft_testkit::raw_backend::TcpPeer;
use weft_testkit::raw_h2::{
    self, Frame, Outcome, RawH2, code, data, flag, headers, kind, literals, ping, request, settings,
};
use weft_testkit::wait;

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
const LIMIT: Duration = Duration::from_secs(10);

fn hop(endpoint: SocketAddr, limits: &str, policy: &str) -> (Proxy, SocketAddr) {
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http, to: app, limits: {{{limits}}}}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [{endpoint}], policy: {{{policy}}}}}\n"
    );
    (Proxy::start(BIN, &yaml, admin), address)
}

/// A client that behaves, for as long as it lives; each failure is remembered.
struct Neighbour {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<(u64, Vec<String>)>>,
}

impl Neighbour {
    fn start(front: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, count) = (stop.clone(), Arc::new(AtomicU64::new(0)));
        let counted = count.clone();
        let thread = std::thread::spawn(move || {
            let (mut sent, mut failed) = (0, Vec::new());
            wait::block_on(async {
                let h2 = client::Http2::connect(front).await.expect("h2");
                let mut h1 = client::http1(front);
                while !stopped.load(Ordering::SeqCst) {
                    sent += 2;
                    counted.fetch_add(2, Ordering::SeqCst);
                    match h2.request("GET", "/neighbour", &[], b"").await {
                        Ok(answer) if answer.status == 200 => {}
                        other => failed.push(format!("h2: {other:?}")),
                    }
                    match h1.request("GET", "/neighbour", &[], b"") {
                        Ok(answer) if answer.status == 200 => {}
                        other => failed.push(format!("h1: {other:?}")),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            (sent, failed)
        });
        Self { stop, sent: count, thread: Some(thread) }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Requests sent; all of them succeeded.
    #[track_caller]
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let (sent, failed) = self.thread.take().expect("thread").join().expect("neighbour");
        assert!(
            failed.is_empty(),
            "{} of {sent} failed beside the flood: {:?}",
            failed.len(),
            &failed[..failed.len().min(3)]
        );
        assert!(sent > 0);
        sent
    }
}

// --- Malformed messages: PI-07 ---

type Fields = Vec<(&'static [u8], &'static [u8])>;

fn usual() -> Fields {
    vec![(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/bad"), (b":authority", b"a.test")]
}

fn with(more: &[(&'static [u8], &'static [u8])]) -> Fields {
    [usual(), more.to_vec()].concat()
}

fn replaced(name: &'static [u8], value: &'static [u8]) -> Fields {
    usual().into_iter().map(|(n, v)| if n == name { (n, value) } else { (n, v) }).collect()
}

fn without(name: &'static [u8]) -> Fields {
    usual().into_iter().filter(|(n, _)| *n != name).collect()
}

fn malformed() -> Vec<(&'static str, Fields, Vec<Frame>)> {
    let plain = |name, fields| (name, fields, Vec::new());
    vec![
        plain("CR in a value", with(&[(b"x-a", b"b\rc")])),
        plain("LF in a value", with(&[(b"x-a", b"b\nc")])),
        plain("CRLF and a field in a value", with(&[(b"x-a", b"b\r\nx-injected: 1")])),
        plain("a request in a value", with(&[(b"x-a", b"b\r\n\r\nGET /injected HTTP/1.1\r\nHost: a\r\n\r\n")])),
        plain("NUL in a value", with(&[(b"x-a", b"b\x00c")])),
        plain("CR in a name", with(&[(b"x-a\rb", b"c")])),
        plain("LF in a name", with(&[(b"x-a\nb", b"c")])),
        plain("CRLF in a name", with(&[(b"x-a: b\r\nx-injected", b"c")])),
        plain("NUL in a name", with(&[(b"x\x00a", b"b")])),
        plain("blank in a name", with(&[(b"x a", b"b")])),
        plain("colon in a name", with(&[(b"x:a", b"b")])),
        plain("an empty name", with(&[(b"", b"b")])),
        plain("an upper-case name", with(&[(b"X-A", b"b")])),
        plain("upper-case transfer-encoding", with(&[(b"Transfer-Encoding", b"chunked")])),
        plain("transfer-encoding", with(&[(b"transfer-encoding", b"chunked")])),
        plain("transfer-encoding identity", with(&[(b"transfer-encoding", b"identity")])),
        plain("connection", with(&[(b"connection", b"close")])),
        plain("connection upgrade", with(&[(b"connection", b"upgrade"), (b"upgrade", b"websocket")])),
        plain("keep-alive", with(&[(b"keep-alive", b"5")])),
        plain("proxy-connection", with(&[(b"proxy-connection", b"x")])),
        plain("upgrade", with(&[(b"upgrade", b"h2c")])),
        plain("te", with(&[(b"te", b"gzip")])),
        plain(":path without a slash", replaced(b":path", b"bad")),
        plain(":path with a blank", replaced(b":path", b"/bad x")),
        plain(":path with a version", replaced(b":path", b"/bad HTTP/1.1\r\nx-injected: 1\r\n\r\n")),
        plain(":path with CR", replaced(b":path", b"/bad\rx")),
        plain(":path with NUL", replaced(b":path", b"/bad\x00")),
        plain(":path empty", replaced(b":path", b"")),
        plain(":path absolute", replaced(b":path", b"http://other.test/bad")),
        plain(":path asterisk", replaced(b":path", b"*")),
        plain(":method with a blank", replaced(b":method", b"GET /x")),
        plain(":method with CRLF", replaced(b":method", b"GET / HTTP/1.1\r\nx-injected: 1\r\n\r\nGET")),
        plain(":method empty", replaced(b":method", b"")),
        plain(":authority with userinfo", replaced(b":authority", b"u@a.test")),
        plain(":authority with CRLF", replaced(b":authority", b"a.test\r\nx-injected: 1")),
        plain(":authority with a path", replaced(b":authority", b"a.test/x")),
        plain(":authority and another host", with(&[(b"host", b"b.test")])),
        plain("two hosts", [without(b":authority"), vec![(b"host", b"a"), (b"host", b"b")]].concat()),
        plain("no :method", without(b":method")),
        plain("no :path", without(b":path")),
        plain("no :scheme", without(b":scheme")),
        plain("no authority at all", without(b":authority")),
        plain(":path twice", with(&[(b":path", b"/other")])),
        plain(":method twice", with(&[(b":method", b"GET")])),
        plain(":authority twice", with(&[(b":authority", b"b.test")])),
        plain("an unknown pseudo-field", with(&[(b":frob", b"x")])),
        plain(":status", with(&[(b":status", b"200")])),
        plain(
            "a late pseudo-field",
            vec![
                (b":method", b"GET"),
                (b":scheme", b"http"),
                (b"x-a", b"b"),
                (b":path", b"/bad"),
                (b":authority", b"a"),
            ],
        ),
        plain("two content-lengths", with(&[(b"content-length", b"0"), (b"content-length", b"5")])),
        plain("content-length with a sign", with(&[(b"content-length", b"+0")])),
        plain("content-length list", with(&[(b"content-length", b"0, 0")])),
        plain("content-length of a body that never comes", with(&[(b"content-length", b"5")])),
        ("less DATA than content-length", with(&[(b"content-length", b"5")]), vec![data(0, b"hel".to_vec(), true)]),
        ("more DATA than content-length", with(&[(b"content-length", b"3")]), vec![data(0, b"hello".to_vec(), true)]),
        ("DATA of content-length 0", with(&[(b"content-length", b"0")]), vec![data(0, b"hello".to_vec(), true)]),
        (
            "pseudo-fields in trailers",
            usual(),
            vec![data(0, b"x".to_vec(), false), headers(0, literals(&[(b":path", b"/other")]), true)],
        ),
        (
            "connection in trailers",
            usual(),
            vec![data(0, b"x".to_vec(), false), headers(0, literals(&[(b"connection", b"close")]), true)],
        ),
        (
            "CRLF in trailers",
            usual(),
            vec![data(0, b"x".to_vec(), false), headers(0, literals(&[(b"x-a", b"b\r\nx-injected: 1")]), true)],
        ),
        (
            "trailers that end nothing",
            usual(),
            vec![data(0, b"x".to_vec(), false), headers(0, literals(&[(b"x-a", b"b")]), false)],
        ),
    ]
}

/// PI-07: every fault ends its stream (or the connection) and no whole request of it reaches an HTTP/1 backend; the sentinel
/// on the same connection, where that lives on, is served as itself.
#[test]
fn malformed_requests_do_not_reach_an_http1_backend() {
    let recorder = Recorder::start();
    let (_proxy, front) = hop(recorder.addr(), "", "http: http1");
    let cases = malformed();
    assert_eq!(cases.len(), 59);
    for (name, fields, rest) in cases {
        let (case, sentinel_case) = (format!("bad {name}"), format!("sentinel of {name}"));
        let mut h2 = RawH2::connect(front).expect("connect");
        let id = h2.next_stream();
        let mut block: Vec<(&[u8], &[u8])> = fields.iter().map(|(n, v)| (*n, *v)).collect();
        block.push((b"x-case", case.as_bytes()));
        let mut frames = vec![headers(id, literals(&block), rest.is_empty())];
        frames.extend(rest.into_iter().map(|f| Frame { stream: id, ..f }));
        let sentinel = h2.next_stream();
        frames.push(headers(sentinel, request("GET", "/sentinel", "a.test", &[("x-case", &sentinel_case)]), true));
        let _ = h2.send_all(&frames);
        let (mut reset, mut goaway, mut served, mut refused) = (false, false, false, false);
        while let Some(frame) = h2.wait(LIMIT, |f| matches!(f.kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY)) {
            match frame.kind {
                kind::GOAWAY => goaway = true,
                kind::RST_STREAM if frame.stream == id => reset = true,
                // `:status` 400 and 200 by HPACK's static table.
                kind::HEADERS if frame.stream == id => refused |= frame.payload.first() == Some(&0x8c),
                kind::HEADERS if frame.stream == sentinel => served |= frame.payload.first() == Some(&0x88),
                _ => {}
            }
            if ((reset || refused || name == "pseudo-fields in trailers") && served) || goaway {
                break;
            }
        }
        assert!(served || goaway, "{name}: the sentinel was lost");
        if name == "pseudo-fields in trailers" && !reset && !goaway {
            // The codec drops them without a word: then they must be gone.
            assert!(recorder.whole(&case).iter().all(|r| r.trailers.is_empty()), "{name}");
            continue;
        }
        assert!(reset || goaway || refused, "{name}: the fault was taken");
        assert_eq!(recorder.whole(&case), Vec::new(), "{name}");
    }
    assert_eq!(recorder.faults(), Vec::<String>::new());
    let after = client::http1(front).request("GET", "/after", &[("x-case", "after")], b"").expect("answer");
    assert_eq!(after.status, 200);
}

// --- Floods: PI-20 to PI-25 ---

/// Runs a flood beside a neighbour, again and again until that has asked often enough, with the backend's load and the proxy's
/// memory watched. What is returned is of the first time.
#[track_caller]
fn flooded(name: &str, limits: &str, flood: impl Fn(SocketAddr) -> Outcome) -> (Outcome, Proxy, u64) {
    let backend = Backend::named("b");
    let (proxy, front) = hop(backend.addr(), limits, "");
    // Warm, so that what grows is the flood's.
    assert_eq!(client::http1(front).get("/").status, 200);
    let before = proxy.rss_kib();
    let neighbour = Neighbour::start(front);
    let begun = Instant::now();
    let cpu = proxy.cpu();
    let outcome = flood(front);
    let mut peak = proxy.rss_kib();
    let reached = |backend: &Backend| backend.seen().iter().filter(|s| s.path() != "/neighbour").count() as u64 - 1;
    let first = reached(&backend);
    let mut rounds = 1;
    while neighbour.sent() < 100 {
        let again = flood(front);
        assert_eq!(
            again.closed || again.goaway.is_some(),
            outcome.closed || outcome.goaway.is_some(),
            "{name}: {again:?}"
        );
        peak = peak.max(proxy.rss_kib());
        rounds += 1;
    }
    let took = begun.elapsed();
    let sent = neighbour.end();
    let reached = first;
    println!(
        "{name}: {rounds} times, {} frames sent, goaway {:?}, {} resets, closed {}, backend {reached}, RSS {before} -> {peak} KiB, CPU {:?} of {took:?}, {sent} requests beside",
        outcome.sent,
        outcome.goaway,
        outcome.resets.len(),
        outcome.closed,
        proxy.cpu() - cpu,
    );
    assert!(peak < before + 16 * 1024, "{name}: RSS {before} -> {peak} KiB");
    assert_eq!(proxy.metric("weft_panics_total", &[]), 0.0);
    (outcome, proxy, reached)
}

#[track_caller]
fn ended(name: &str, outcome: &Outcome) {
    assert!(outcome.closed || outcome.goaway.is_some(), "{name}: it goes on: {outcome:?}");
    if let Some(error) = outcome.goaway {
        assert!([code::ENHANCE_YOUR_CALM, code::PROTOCOL_ERROR].contains(&error), "{name}: {error}");
    }
}

const FLOOD: Duration = Duration::from_secs(8);

fn connect(front: SocketAddr) -> RawH2 {
    RawH2::connect(front).expect("connect")
}

#[test]
fn rapid_reset() {
    let (outcome, proxy, reached) = flooded("rapid reset", "", |f| connect(f).rapid_reset("a.test", 100_000, FLOOD));
    ended("rapid reset", &outcome);
    assert!(outcome.sent < 20_000 && reached <= 500, "{} frames, {reached} requests", outcome.sent);
    drop(proxy);
}

#[test]
fn continuation_without_end() {
    let (outcome, ..) = flooded("continuation", "", |f| connect(f).continuation_flood("a.test", 10_000, 8000, FLOOD));
    ended("continuation", &outcome);
    assert!(outcome.sent < 200, "{}", outcome.sent);
}

#[test]
fn made_you_reset() {
    let (outcome, ..) = flooded("made you reset", "", |f| connect(f).made_you_reset("a.test", 100_000, FLOOD));
    ended("made you reset", &outcome);
    assert!(outcome.resets.len() <= 600, "{}", outcome.resets.len());
}

#[test]
fn compression_bombs() {
    for (name, size, references) in [("one large field", 4000, 5000), ("many small ones", 10, 20_000)] {
        let (outcome, _, reached) =
            flooded(name, "", |f| connect(f).hpack_bomb("a.test", size, references, 500, FLOOD));
        // 431, a reset or the end: what matters is that nothing of it is passed on, or kept.
        assert_eq!(reached, 0, "{name}");
        assert!(
            outcome.closed || outcome.goaway.is_some() || outcome.responses + outcome.resets.len() as u64 > 0,
            "{name}"
        );
    }
    let (_, _, reached) = flooded("cookie crumbs", "", |f| {
        let mut h2 = connect(f);
        let crumbs: Vec<(&str, &str)> = (0..10_000).map(|_| ("cookie", "a=b")).collect();
        let block = request("GET", "/", "a.test", &crumbs);
        let id = h2.next_stream();
        let mut parts = block.chunks(16_000);
        let mut frames = vec![Frame::new(kind::HEADERS, flag::END_STREAM, id, parts.next().unwrap_or_default())];
        frames.extend(parts.map(|p| Frame::new(kind::CONTINUATION, 0, id, p)));
        frames.last_mut().expect("a frame").flags |= flag::END_HEADERS;
        let mut frames = Some(frames);
        h2.flood(FLOOD, Duration::from_secs(1), |_, _| frames.take().unwrap_or_default())
    });
    assert_eq!(reached, 0);
}

#[test]
fn control_frames() {
    let priority = Frame::new(kind::PRIORITY, 0, 1, [0, 0, 0, 0, 16]);
    for (name, frame) in [
        ("ping", ping(1)),
        ("settings", settings(&[])),
        ("priority", priority),
        ("window update", raw_h2::window_update(0, 1)),
    ] {
        let (outcome, proxy, _) = flooded(name, "", |f| connect(f).control_flood(&frame, 500_000, FLOOD));
        ended(name, &outcome);
        assert!(proxy.metric("weft_h2_flood_total", &[]) >= 1.0, "{name}");
    }
    let (outcome, ..) = flooded("empty data", "", |f| connect(f).empty_data_flood("a.test", 500_000, FLOOD));
    ended("empty data", &outcome);
}

/// The answers of a flood are not kept for one who does not read them.
#[test]
fn a_flooder_that_never_reads() {
    let (_, proxy, _) = flooded("pings unread", "", |front| {
        let mut stream = Stream::connect(front).expect("connect");
        stream.tcp().set_write_timeout(Some(Duration::from_secs(1))).expect("timeout");
        let mut bytes = raw_h2::PREFACE.to_vec();
        settings(&[]).encode(&mut bytes);
        (0..90).for_each(|_| ping(1).encode(&mut bytes));
        let mut outcome = Outcome::default();
        let _ = stream.write_all(&bytes);
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            let mut pings = Vec::new();
            (0..50).for_each(|_| ping(1).encode(&mut pings));
            if stream.write_all(&pings).is_err() {
                outcome.closed = true;
                break;
            }
            outcome.sent += 50;
            std::thread::sleep(Duration::from_millis(600));
        }
        outcome
    });
    drop(proxy);
}

/// A flood at one sidecar must not end the connection that it shares with others towards the next.
#[test]
fn floods_do_not_pass_through_a_pair() {
    let ca = Ca::new("cluster.local");
    let dir = TempDir::new();
    let backend = Backend::named("b");
    let identity = |name: &str| {
        let files = ca.workload("demo", name).write(&dir, name, &[&ca]);
        format!(
            "identity: {{certificate: {:?}, key: {:?}, trust: [{{domain: cluster.local, roots: [{:?}]}}]}}\n",
            files.cert, files.key, files.roots
        )
    };
    let (mesh, admin) = (free_addr(), free_addr());
    let app = backend.addr();
    let yaml = format!(
        "admin: {admin}\n{}listeners:\n- {{name: in, role: inbound, address: {mesh}, app: {app}, mtls: strict}}\n",
        identity("server")
    );
    let _inbound = Proxy::start(BIN, &yaml, admin);
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\n{}listeners:\n- {{name: out, role: outbound, address: {address}, protocol: http, to: app}}\n\
         services:\n- {{name: app, port: 80, protocol: http, identity: {:?}, endpoints: [{mesh}]}}\n",
        identity("client"),
        ca.id("demo", "server"),
    );
    let _outbound = Proxy::start(BIN, &yaml, admin);
    let neighbour = Neighbour::start(address);
    let mut floods = 0;
    while floods < 20 || neighbour.sent() < 50 {
        // What is shown is isolation, not how much CPU a flood may cost.
        std::thread::sleep(Duration::from_millis(100));
        let outcome = connect(address).rapid_reset("a.test", 2000, Duration::from_secs(2));
        ended("rapid reset", &outcome);
        floods += 1;
    }
    println!("{} requests beside {floods} floods", neighbour.end());
}

// --- Slow clients: PI-24, PI-26 ---

fn large() -> Backend {
    Backend::start(Arc::new(|seen| match seen.path() {
        "/large" => Action::Reply(Reply { chunks: vec![vec![b'x'; 4096].into(); 6400], ..Reply::new(200) }),
        "/quiet" => Action::Reply(Reply {
            chunks: vec!["a".into(), "b".into()],
            chunked: true,
            delay_chunk: Duration::from_secs(5),
            ..Reply::new(200)
        }),
        _ => Action::Echo,
    }))
}

/// PI-24: windows that stay shut end their streams, and nothing but their streams.
#[test]
fn stalled_streams_are_reset_and_quiet_ones_are_not() {
    let backend = large();
    let (proxy, front) = hop(backend.addr(), "bodyIdle: 2s", "");
    let neighbour = Neighbour::start(front);
    let mut h2 = RawH2::start(Stream::connect(front).expect("connect"), &[(4, 0)]).expect("h2");
    let stalled = h2.stall("a.test", "/large", 6).expect("streams");
    // On the same connection: an answer that is quiet for longer than the limit, with a window.
    let quiet = h2.next_stream();
    h2.send(&headers(quiet, request("GET", "/quiet", "a.test", &[]), true)).expect("send");
    h2.send(&raw_h2::window_update(quiet, 1000)).expect("window");
    let begun = Instant::now();
    let mut resets = Vec::new();
    while resets.len() < stalled.len() {
        let Some(frame) = h2.wait(Duration::from_secs(30), |f| f.kind == kind::RST_STREAM) else {
            panic!("{} of {} streams were reset: {resets:?}", resets.len(), stalled.len())
        };
        resets.push(frame.stream);
    }
    println!("6 stalled streams were reset within {:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_secs(2), "too early: {:?}", begun.elapsed());
    resets.sort_unstable();
    assert_eq!(resets, stalled);
    let end = h2.wait(Duration::from_secs(20), |f| {
        f.stream == quiet && (f.flags & flag::END_STREAM != 0 || f.kind == kind::RST_STREAM)
    });
    assert_eq!(end.expect("the quiet stream ends").kind, kind::DATA);
    assert!(begun.elapsed() >= Duration::from_secs(8), "the quiet stream was quiet");
    assert!(h2.alive(LIMIT));
    assert_eq!(proxy.metric("weft_client_stalled_total", &[("what", "stream")]), 6.0);
    neighbour.end();
}

/// PI-24: a byte now and then is not taking it.
#[test]
fn windows_that_open_by_one_do_not_keep_a_stream() {
    let backend = large();
    let (_proxy, front) = hop(backend.addr(), "bodyIdle: 2s", "");
    let mut h2 = RawH2::start(Stream::connect(front).expect("connect"), &[(4, 1)]).expect("h2");
    let id = h2.stall("a.test", "/large", 1).expect("stream")[0];
    let begun = Instant::now();
    let reset = loop {
        if let Some(frame) = h2.wait(Duration::from_millis(500), |f| f.kind == kind::RST_STREAM) {
            break frame;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "it goes on for ever");
        h2.send(&raw_h2::window_update(id, 1)).expect("the connection lives");
    };
    println!("ended after {:?}", begun.elapsed());
    assert_eq!(reset.stream, id);
}

/// A client that reads nothing at all loses its connection, by either protocol; one that reads slowly does not.
#[test]
fn sockets_that_take_nothing_are_cut() {
    let backend = large();
    let (proxy, front) = hop(backend.addr(), "bodyIdle: 2s", "");
    let small_buffer = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        socket.set_recv_buffer_size(64 * 1024).expect("buffer");
        socket.connect(&front.into()).expect("connect");
        std::net::TcpStream::from(socket)
    };
    let mut h1 = small_buffer();
    h1.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    let mut slow = small_buffer();
    slow.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("send");
    slow.set_read_timeout(Some(LIMIT)).expect("timeout");
    let h2 = small_buffer();
    let mut h2 = RawH2::start(Stream::Plain(h2), &[(4, 0x7fff_ffff)]).expect("h2");
    h2.send(&raw_h2::window_update(0, 0x7fff_0000)).expect("window");
    h2.stall("a.test", "/large", 3).expect("streams");
    // The slow one takes 64 KiB every now and then, through its small buffer.
    let mut taken = 0;
    let begun = Instant::now();
    let mut chunk = vec![0; 64 * 1024];
    while begun.elapsed() < Duration::from_secs(8) {
        taken += slow.read(&mut chunk).expect("the slow reader is served");
        std::thread::sleep(Duration::from_millis(200));
    }
    proxy.wait_metric("weft_client_stalled_total", &[("what", "socket")], 2.0, LIMIT);
    loop {
        match slow.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => taken += n,
            Err(e) => panic!("after {taken} bytes: {e}"),
        }
    }
    assert!(taken > 6400 * 4096, "{taken}");
    assert_eq!(proxy.metric("weft_client_stalled_total", &[("what", "socket")]), 2.0);
    wait::until("the backend is let go", LIMIT, || backend.counts().in_flight.load(Ordering::SeqCst) == 0);
}

/// PI-26
#[test]
fn slow_heads_and_bodies_end_in_time() {
    let backend = Backend::named("b");
    let (_proxy, front) = hop(backend.addr(), "headerTimeout: 2s, bodyIdle: 2s", "");
    let neighbour = Neighbour::start(front);
    // A byte of a head every 300 ms: each is progress, all together are too late.
    let mut drip = client::http1(front);
    let begun = Instant::now();
    for byte in b"GET / HTTP/1.1\r\nHost: a.test\r\nX-A: bbbbbbbbbbbbbbbbbbbbbbb" {
        if drip.send([*byte]).is_err() || begun.elapsed() > Duration::from_secs(4) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(drip.read().expect("answer").status, 408);
    // A body that stops.
    let mut body = client::http1(front);
    body.send("POST /stalled HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").expect("send");
    let answer = body.read().expect("answer");
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    let _ = body.send("world");
    assert!(body.send("GET /sentinel HTTP/1.1\r\nHost: a\r\n\r\n").is_err() || body.read().is_err());
    // The same in HTTP/2, for a body and for a head that never ends.
    let mut h2 = connect(front);
    let id = h2.next_stream();
    h2.send(&headers(id, request("POST", "/stalled", "a", &[("content-length", "10")]), false)).expect("send");
    h2.send(&data(id, b"hello".to_vec(), false)).expect("send");
    assert!(h2.wait(LIMIT, |f| f.stream == id && matches!(f.kind, kind::HEADERS | kind::RST_STREAM)).is_some());
    let mut h2 = connect(front);
    let id = h2.next_stream();
    h2.send(&Frame::new(kind::HEADERS, 0, id, request("GET", "/never", "a", &[]))).expect("send");
    let begun = Instant::now();
    let goaway = h2.wait(LIMIT, |f| f.kind == kind::GOAWAY);
    assert!(goaway.is_some() || h2.read().map_or(true, |f| f.is_none()), "a head that never ends");
    assert!(begun.elapsed() < Duration::from_secs(8));
    assert!(backend.seen().iter().all(|s| s.path() != "/sentinel" && s.path() != "/never"));
    neighbour.end();
}

// --- Hostile servers: PO-07 ---

/// A server of raw frames: `f(connection, stream)` gets each HEADERS.
fn server(f: impl Fn(u64, &mut dyn Write, u32) + Send + Sync + 'static, first: Vec<Frame>) -> TcpPeer {
    TcpPeer::at(([127, 0, 0, 1], 0).into(), move |mut stream, n| {
        let _ = stream.set_read_timeout(None);
        let mut out = Vec::new();
        first.iter().for_each(|frame| frame.encode(&mut out));
        if stream.write_all(&out).is_err() {
            return;
        }
        let mut bytes = Vec::new();
        let mut chunk = [0; 16 * 1024];
        let mut preface = 24;
        while let Ok(read @ 1..) = stream.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..read]);
            let skip = preface.min(bytes.len());
            bytes.drain(..skip);
            preface -= skip;
            while bytes.len() >= 9 {
                let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
                if bytes.len() < 9 + length {
                    break;
                }
                let id = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
                let (what, flags) = (bytes[3], bytes[4]);
                bytes.drain(..9 + length);
                let mut ack = Vec::new();
                match what {
                    kind::SETTINGS if flags & flag::ACK == 0 => {
                        Frame::new(kind::SETTINGS, flag::ACK, 0, []).encode(&mut ack)
                    }
                    kind::HEADERS => f(n, &mut stream, id),
                    _ => {}
                }
                if stream.write_all(&ack).is_err() {
                    return;
                }
            }
        }
    })
}

fn write(out: &mut dyn Write, frames: &[Frame]) {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    let _ = out.write_all(&bytes);
}

fn ok(id: u32) -> Frame {
    headers(id, literals(&[(b":status", b"200")]), true)
}

fn goaway(last: u32, error: u32) -> Frame {
    Frame::new(kind::GOAWAY, 0, 0, [last.to_be_bytes(), error.to_be_bytes()].concat())
}

#[test]
fn hostile_http2_servers() {
    let get = |front| client::http1(front).request("GET", "/", &[], b"").expect("answer");
    // GOAWAY that says the request was not processed: sent again on a new connection, without being asked.
    let peer = server(
        |n, out, id| if n == 1 { write(out, &[goaway(0, 0)]) } else { write(out, &[ok(id)]) },
        vec![settings(&[])],
    );
    let (_proxy, front) = hop(peer.addr(), "", "http: http2");
    assert_eq!(get(front).status, 200);
    assert!(peer.connections() >= 2);
    // One that says it was: never sent again.
    let seen = Arc::new(AtomicU64::new(0));
    let count = seen.clone();
    let peer = server(
        move |_, out, id| {
            count.fetch_add(1, Ordering::SeqCst);
            write(out, &[raw_h2::rst(id, code::CANCEL)]);
        },
        vec![settings(&[])],
    );
    let (_proxy, front) = hop(peer.addr(), "", "http: http2");
    assert_eq!(get(front).status, 503);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    // A stream that was refused was not processed: at most two more tries.
    let seen = Arc::new(AtomicU64::new(0));
    let count = seen.clone();
    let peer = server(
        move |_, out, id| {
            count.fetch_add(1, Ordering::SeqCst);
            write(out, &[raw_h2::rst(id, code::REFUSED_STREAM)]);
        },
        vec![settings(&[])],
    );
    let (_proxy, front) = hop(peer.addr(), "", "http: http2");
    assert_eq!(get(front).status, 503);
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    // Pushes are refused: the connection ends, and the proxy lives.
    let peer = server(
        |_, out, id| {
            let promise = [2u32.to_be_bytes().to_vec(), request("GET", "/pushed", "a", &[])].concat();
            write(out, &[Frame::new(kind::PUSH_PROMISE, flag::END_HEADERS, id, promise), ok(id)]);
        },
        vec![settings(&[])],
    );
    let (proxy, front) = hop(peer.addr(), "", "http: http2");
    let answer = get(front);
    assert!(matches!(answer.status, 502 | 503), "{}", answer.status);
    assert_eq!(proxy.metric("weft_panics_total", &[]), 0.0);
    // A hundred thousand SETTINGS, and another hundred thousand PINGs: the neighbour on the other service is served.
    for frame in [settings(&[(4, 65_535)]), ping(7)] {
        let peer = server(
            move |_, out, _| {
                let flood = vec![frame.clone(); 1000];
                (0..100).for_each(|_| write(out, &flood));
            },
            vec![settings(&[])],
        );
        let backend = Backend::named("b");
        let (address, admin) = (free_addr(), free_addr());
        let yaml = format!(
            "admin: {admin}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http}}\n\
             services:\n- {{name: bad, hosts: [bad.test], port: 80, protocol: http, endpoints: [{}], policy: {{http: http2}},\n\
             \x20  routes: [{{name: all, timeout: {{request: 4s}}}}]}}\n\
             - {{name: good, hosts: [\"*\", \"*:*\"], port: 80, protocol: http, endpoints: [{}]}}\n",
            peer.addr(),
            backend.addr()
        );
        let proxy = Proxy::start(BIN, &yaml, admin);
        let before = proxy.rss_kib();
        let neighbour = Neighbour::start(address);
        let bad = client::http1(address).host("bad.test").request("GET", "/", &[], b"").expect("answer");
        assert!(matches!(bad.status, 502..=504), "{}", bad.status);
        neighbour.end();
        assert!(proxy.rss_kib() < before + 16 * 1024, "{before} -> {}", proxy.rss_kib());
    }
    // No streams allowed at all: the request waits for its own time, not for ever.
    let peer = server(|_, _, _| {}, vec![settings(&[(3, 0)])]);
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http, to: app}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [{}], policy: {{http: http2}},\n\
         \x20  routes: [{{name: all, timeout: {{request: 1s}}}}]}}\n",
        peer.addr()
    );
    let _proxy = Proxy::start(BIN, &yaml, admin);
    assert_eq!(get(address).status, 504);
}
