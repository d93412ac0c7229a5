//! Memory comes back. Leaks are looked for in what the allocator counts (`weft_memory_allocated_bytes`), not in RSS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weft_testkit::backend::{self, Backend, Reply};
use weft_testkit::client;
use weft_testkit::dir::free_addr;
use weft_testkit::proxy::Proxy;
use weft_testkit::raw_h2::{RawH2, headers, request};
use weft_testkit::wait;

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
/// A rise that a flood may cause, and what may be left of it.
const RISE_KIB: u64 = 16 * 1024;
const BACK: Duration = Duration::from_secs(10);

fn hop(endpoint: SocketAddr) -> (Proxy, SocketAddr) {
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http, to: app}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [{endpoint}]}}\n"
    );
    (Proxy::start(BIN, &yaml, admin), address)
}

fn allocated(proxy: &Proxy) -> f64 {
    proxy.metric("weft_memory_allocated_bytes", &[])
}

/// The lowest of what is allocated within `limit`: connections' ends take a moment to be noticed.
fn settled(proxy: &Proxy, limit: Duration, goal: f64) -> f64 {
    let mut least = f64::MAX;
    let _ = wait::poll(limit, || {
        least = least.min(allocated(proxy));
        std::thread::sleep(Duration::from_millis(100));
        (least <= goal).then_some(())
    });
    least
}

/// `requests` over keep-alive connections, in `threads`, by both protocols.
fn traffic(front: SocketAddr, requests: u64) {
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut stream = TcpStream::connect(front).expect("connect");
                stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
                // Pipelined, so that the client costs little.
                let batch =
                    "GET /some/path?with=query HTTP/1.1\r\nHost: a.test\r\nUser-Agent: memory\r\n\r\n".repeat(50);
                while done.fetch_add(50, Ordering::SeqCst) < requests / 2 {
                    stream.write_all(batch.as_bytes()).expect("send");
                    for _ in 0..50 {
                        assert_eq!(client::read_response(&mut stream, false).expect("answer").status, 200);
                    }
                }
            });
        }
        scope.spawn(|| {
            wait::block_on(async {
                let client = client::Http2::connect(front).await.expect("h2");
                let mut left = requests / 2;
                while left > 0 {
                    let batch: Vec<_> = (0..50)
                        .map(|_| {
                            let client = client.clone();
                            tokio::spawn(async move { client.request("GET", "/other/path", &[], b"").await })
                        })
                        .collect();
                    for answer in batch {
                        assert_eq!(answer.await.expect("task").expect("answer").status, 200);
                    }
                    left = left.saturating_sub(50);
                }
            });
        });
    });
}

/// Requests of a fifth of the row's length unless WEFT_FULL is set, as the long rows run in CI.
fn scale() -> u64 {
    if std::env::var_os("WEFT_FULL").is_some() { 5 } else { 1 }
}

#[test]
fn requests_leave_nothing_behind() {
    let backend = Backend::with(
        backend::Options { keep: 0, ..Default::default() },
        backend::always(Reply::text(200, "some answer")),
    );
    let (proxy, front) = hop(backend.addr());
    let requests = 40_000 * scale();
    // What the first ones leave are pools, buffers and series.
    traffic(front, requests / 4);
    let before = settled(&proxy, Duration::from_secs(5), 0.0);
    let begun = Instant::now();
    traffic(front, requests);
    let after = settled(&proxy, BACK, before * 1.01);
    println!("{requests} requests in {:?}: {before} -> {after} bytes allocated", begun.elapsed());
    // A byte per request would show.
    assert!(after < before + 256.0 * 1024.0, "{before} -> {after}");
}

#[test]
fn connections_leave_nothing_behind() {
    let backend = Backend::with(
        backend::Options { keep: 0, ..Default::default() },
        backend::always(Reply::text(200, "some answer")),
    );
    let (proxy, front) = hop(backend.addr());
    let round = |n: u64| {
        for i in 0..n {
            match i % 4 {
                // Used and closed, cut with a request in flight, never used, HTTP/2.
                0 => assert_eq!(client::http1(front).get("/").status, 200),
                1 => {
                    let mut client = client::http1(front);
                    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhe").expect("send");
                    client.stream.reset();
                }
                2 => drop(TcpStream::connect(front).expect("connect")),
                _ => {
                    let mut h2 = RawH2::connect(front).expect("h2");
                    let id = h2.next_stream();
                    h2.send(&headers(id, request("GET", "/", "a.test", &[]), true)).expect("send");
                    assert!(h2.wait(Duration::from_secs(10), |f| f.stream == id).is_some());
                }
            }
        }
    };
    round(200);
    let fds = proxy.fds();
    let before = settled(&proxy, Duration::from_secs(5), 0.0);
    let connections = 2000;
    round(connections);
    let after = settled(&proxy, BACK, before * 1.01);
    println!("{connections} connections: {before} -> {after} bytes allocated, {fds} -> {} descriptors", proxy.fds());
    assert!(after < before + 256.0 * 1024.0, "{before} -> {after}");
    wait::until("descriptors are back", BACK, || proxy.fds() <= fds + 8);
}

/// As many clients of one process as its limit of descriptors lets it have; the proxy is another process.
#[test]
fn ten_thousand_idle_connections() {
    let backend =
        Backend::with(backend::Options { keep: 0, ..Default::default() }, backend::always(Reply::text(200, "ok")));
    let (proxy, front) = hop(backend.addr());
    raise_descriptors();
    assert_eq!(client::http1(front).get("/").status, 200);
    let (rss, before) = (proxy.rss_kib(), settled(&proxy, Duration::from_secs(3), 0.0));
    let mut held = Vec::with_capacity(10_000);
    for i in 0..10_000 {
        let mut stream = TcpStream::connect(front).unwrap_or_else(|e| panic!("connection {i}: {e}"));
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        // Each was used once, as idle connections of a pool were.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
        let mut head = [0; 512];
        let n = stream.read(&mut head).expect("answer");
        assert!(head[..n].starts_with(b"HTTP/1.1 200"), "connection {i}");
        held.push(stream);
    }
    let (full, used) = (proxy.rss_kib(), allocated(&proxy));
    assert!(proxy.fds() >= 10_000);
    // All of them live, and others are served.
    for stream in held.iter_mut().step_by(100) {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
        let mut head = [0; 512];
        assert!(stream.read(&mut head).expect("answer") > 0);
    }
    assert_eq!(client::http1(front).get("/").status, 200);
    let per = (full - rss) as f64 * 1024.0 / 10_000.0;
    println!("10000 idle: RSS {rss} -> {full} KiB ({per:.0} bytes each), allocated {before} -> {used}");
    assert!(per < 64.0 * 1024.0, "{per} bytes for an idle connection");
    drop(held);
    let after = settled(&proxy, BACK, before * 1.1);
    // The ratio to an idle process is the benchmark's to measure (S7); here it must not stay in proportion to the crowd.
    wait::until("RSS is back", BACK, || proxy.rss_kib() <= rss + 9 * 1024);
    println!("closed: RSS {} KiB, allocated {after}", proxy.rss_kib());
    // The tables of connections keep the room they grew to: some 200 bytes for each that there ever was at once.
    assert!(after < before + 4.0 * 1024.0 * 1024.0, "{before} -> {after}");
}

fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let held = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: held.maximum, ..held }).expect("limit");
    assert!(held.maximum.is_none_or(|n| n >= 12_000), "{:?} descriptors", held.maximum);
}

/// Each flood ten times over, one after another: no more than one flood's rise, and all of it given back.
#[test]
fn floods_are_forgotten() {
    let backend = Backend::with(
        backend::Options { keep: 0, ..Default::default() },
        Arc::new(|_| backend::Action::Reply(Reply::text(200, vec![b'x'; 60_000]))),
    );
    let (proxy, front) = hop(backend.addr());
    assert_eq!(client::http1(front).get("/").status, 200);
    wait::block_on(async {
        let client = client::Http2::connect(front).await.expect("h2");
        assert_eq!(client.request("GET", "/", &[], b"").await.expect("answer").status, 200);
    });
    let limit = Duration::from_secs(3);
    type Flood = fn(&mut RawH2, Duration);
    let floods: [(&str, Flood); 7] = [
        ("rapid reset", |h2, limit| drop(h2.rapid_reset("a", 20_000, limit))),
        ("made you reset", |h2, limit| drop(h2.made_you_reset("a", 20_000, limit))),
        ("continuation", |h2, limit| drop(h2.continuation_flood("a", 2000, 8000, limit))),
        ("large fields", |h2, limit| drop(h2.hpack_bomb("a", 4000, 5000, 200, limit))),
        ("small fields", |h2, limit| drop(h2.hpack_bomb("a", 10, 15_000, 200, limit))),
        ("empty data", |h2, limit| drop(h2.empty_data_flood("a", 100_000, limit))),
        ("ping", |h2, limit| drop(h2.control_flood(&weft_testkit::raw_h2::ping(1), 100_000, limit))),
    ];
    let mut ran = 0;
    for (name, flood) in floods {
        // RSS from the process's start is not its working set yet: a flood's first run may still add to that.
        let rss = proxy.rss_kib();
        let mut peak = rss;
        for _ in 0..10 {
            let mut h2 = RawH2::connect(front).expect("connect");
            flood(&mut h2, limit);
            peak = peak.max(proxy.rss_kib());
        }
        let back = wait::poll(BACK, || Some(proxy.rss_kib()).filter(|now| now * 10 <= rss * 11));
        println!("{name}: RSS {rss} -> {peak} -> {} KiB", proxy.rss_kib());
        assert!(peak <= rss + RISE_KIB, "{name}: {rss} -> {peak} KiB");
        assert!(back.is_some(), "{name}: {rss} -> {peak} -> {} KiB after 10 s", proxy.rss_kib());
        ran += 1;
    }
    assert_eq!(ran, 7);
    // Streams whose windows stay shut: what the answers hold is bounded, and goes with the connection.
    let rss = proxy.rss_kib();
    let stream = client::Stream::connect(front).expect("connect");
    let mut h2 = RawH2::start(stream, &[(4, 0)]).expect("h2");
    h2.stall("a", "/", 200).expect("streams");
    std::thread::sleep(Duration::from_secs(2));
    let peak = proxy.rss_kib();
    drop(h2);
    let back = wait::poll(BACK, || Some(proxy.rss_kib()).filter(|now| now * 10 <= rss * 11));
    println!("200 shut windows: RSS {rss} -> {peak} -> {} KiB", proxy.rss_kib());
    assert!(peak <= rss + RISE_KIB, "{rss} -> {peak} KiB");
    assert!(back.is_some(), "{rss} -> {peak} -> {} KiB after 10 s", proxy.rss_kib());
}
