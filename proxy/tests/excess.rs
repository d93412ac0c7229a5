//! Too much of everything: bodies, half requests, names, and peers that vanish.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod sidecars;

use sidecars::{BIN, identity};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use weft_testkit::backend::{self, Backend, Options, Reply, echo};
use weft_testkit::ca::Ca;
use weft_testkit::client::{self, http1};
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::netns::Netns;
use weft_testkit::proxy::{Proxy, Start, samples};
use weft_testkit::raw_backend::TcpPeer;
use weft_testkit::wait;

const LIMIT: Duration = Duration::from_secs(20);

/// A fifth in CI.
fn whole() -> u64 {
    if std::env::var_os("WEFT_FULL").is_some() { 5 } else { 1 }
}

fn hop(endpoint: SocketAddr, listener: &str) -> (Proxy, SocketAddr) {
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\ntelemetry: {{names: [istio, linkerd]}}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http, {listener}}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [{endpoint}]}}\n"
    );
    (Proxy::start(BIN, &yaml, admin), address)
}

/// PI-28: what a head says of its body's length reserves nothing, and a body is in memory by the window, not by its length.
#[test]
fn bodies_of_any_length_pass_through() {
    const CHUNK: usize = 256 * 1024;
    let swallow = TcpPeer::at(([127, 0, 0, 1], 0).into(), |mut stream, _| {
        // Reads whatever comes for as long as it comes, and answers nothing.
        let mut bytes = vec![0; CHUNK];
        while stream.read(&mut bytes).is_ok_and(|n| n > 0) {}
    });
    let (proxy, front) = hop(swallow.addr(), "to: app");
    let rss = proxy.rss_kib();
    // A tebibyte is promised by each of many; a little of it comes.
    let promised: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(front).unwrap();
            stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\nbegun").unwrap();
            stream
        })
        .collect();
    let mut stream = TcpStream::connect(front).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\n").unwrap();
    let (chunk, total, mut peak) = (vec![b'x'; CHUNK], whole() * (1 << 30), 0);
    for _ in 0..total / CHUNK as u64 {
        stream.write_all(&chunk).expect("the body is taken");
        peak = peak.max(proxy.rss_kib());
    }
    println!("{} GiB of 1 TiB, beside {} others: RSS {rss} -> {peak} KiB", total >> 30, promised.len());
    assert!(peak < rss + 16 * 1024, "{rss} -> {peak} KiB");
    // Whoever breaks off has sent what it has sent.
    drop((stream, promised));
    wait::until("counted", LIMIT, || proxy.metric("weft_http_request_bytes_total", &[]) >= total as f64);
}

/// PI-26: thousands of clients that never finish what they began hold up nobody, and are gone when their time is.
#[test]
fn a_crowd_of_slow_clients_delays_nobody() {
    let backend = Backend::with(Options { keep: 0, ..Options::default() }, backend::always(Reply::text(200, "ok")));
    let (proxy, front) = hop(backend.addr(), "to: app, limits: {headerTimeout: 3s}");
    let before = proxy.fds();
    let count = 1000 * whole() as usize;
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let held = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: held.maximum, ..held }).expect("descriptors");
    }
    let crowd: Vec<TcpStream> = (0..count)
        .map(|i| {
            let mut stream = TcpStream::connect(front).unwrap_or_else(|e| panic!("connection {i}: {e}"));
            // Silence, half a head, half a preface.
            let begun: &[u8] = [&b""[..], b"GET / HTTP/1.1\r\nHos", b"PRI * HTTP/2.0\r\n"][i % 3];
            stream.write_all(begun).expect("send");
            stream
        })
        .collect();
    assert!(proxy.fds() >= before + count / 2, "{} descriptors", proxy.fds());
    let (mut client, mut slowest) = (http1(front), Duration::ZERO);
    for _ in 0..500 {
        let begun = Instant::now();
        assert_eq!(client.get("/").status, 200);
        slowest = slowest.max(begun.elapsed());
    }
    println!("beside {count} slow clients the slowest of 500 answers took {slowest:?}");
    assert!(slowest < LIMIT / 4, "{slowest:?}");
    wait::until("the crowd is gone", LIMIT, || proxy.fds() <= before + count / 3 + 8);
    drop(crowd);
    wait::until("all of it", LIMIT, || proxy.fds() <= before + 8);
}

/// PI-29: what clients make up becomes no label, and no series of its own.
#[test]
fn invented_names_make_no_series() {
    let backend = Backend::with(Options { keep: 0, ..Options::default() }, backend::always(Reply::text(200, "ok")));
    // The service is found by Host here; what it does not know passes on, or has nowhere to go.
    let (proxy, front) = hop(backend.addr(), "unknown: deny");
    let (known, known_front) = hop(backend.addr(), "to: app");
    let series = |proxy: &Proxy| samples(&proxy.metrics()).count();
    for (proxy, front) in [(&proxy, front), (&known, known_front)] {
        let send = |from: u64, to: u64| {
            let mut stream = TcpStream::connect(front).unwrap();
            for i in from..to {
                let request = format!(
                    "XQ{i} /path{i}?q{i} HTTP/1.1\r\nHost: invented{i}.test\r\nUser-Agent: agent{i}\r\nX-Request-Id: id{i}\r\n\
                     x-envoy-peer-metadata-id: peer{i}\r\ncontent-type: type/{i}\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).expect("send");
                let answer = client::read_response(&mut stream, false).expect("answer");
                if answer.header("connection") == Some("close") {
                    stream = TcpStream::connect(front).unwrap();
                }
            }
        };
        send(0, 100);
        wait::until("counted", LIMIT, || proxy.metric("weft_http_requests_total", &[]) >= 100.0);
        let few = series(proxy);
        let many = 100 + 4_000 * whole();
        send(100, many);
        wait::until("counted", LIMIT, || proxy.metric("weft_http_requests_total", &[]) >= many as f64);
        let text = proxy.metrics();
        println!("{few} series after 100 requests, {} after {many}", series(proxy));
        // Histograms grow by buckets that were empty before, and by nothing else.
        assert!(series(proxy) <= few + 64, "{few} -> {}", series(proxy));
        for word in ["invented", "path1", "XQ1", "agent1", "peer1", "type/1"] {
            assert!(!text.contains(word), "{word} in {}", text.lines().find(|l| l.contains(word)).unwrap_or_default());
        }
    }
}

/// PI-41: what a client says of who it is called for is the app's to read. Nothing here believes it: a hash of the source is
/// that of the peer, and so is the address in the log.
#[test]
fn forwarded_for_is_passed_on_and_not_believed() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\ntelemetry: {{accessLog: json}}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http, to: app}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [\"{}\", \"{}\"], policy: {{balance: {{algorithm: ringHash, hash: [{{sourceIp: true}}]}}}}}}\n",
        a.addr(),
        b.addr()
    );
    let proxy = Proxy::start(BIN, &yaml, admin);
    let mut client = http1(address);
    for i in 0..40 {
        let spoofed = format!("203.0.113.{i}, 198.51.100.{i}");
        let answer = client.request("GET", "/", &[("X-Forwarded-For", &spoofed)], b"").expect("answer");
        assert_eq!(answer.status, 200);
    }
    let asked = (a.requests(), b.requests());
    assert!(asked == (40, 0) || asked == (0, 40), "{asked:?}: all come from one client");
    let seen = if asked.0 == 40 { a.last() } else { b.last() };
    assert_eq!(seen.header("x-forwarded-for"), Some("203.0.113.39, 198.51.100.39"));
    let log = proxy.wait_log(|l| l.contains("\"path\":\"/\""), LIMIT);
    let line: serde_json::Value = serde_json::from_str(&log).expect("JSON");
    assert!(!log.contains("203.0.113") || line["forwarded_for"].is_string(), "{log}");
}

/// F-19: a host that vanishes says nothing, not even goodbye. It is found out, and what waited for it is told.
#[test]
fn a_peer_that_vanishes_is_found_out() {
    const NEAR: &str = "10.89.0.1";
    const FAR: &str = "10.89.0.2";
    let (near, far) = (Netns::new("n"), Netns::new("f"));
    Netns::join(&near, &[&format!("{NEAR}/24")], &far, &[&format!("{FAR}/24")]);
    let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port);
    let slow = backend::always(Reply::text(200, "late").delayed(Duration::from_secs(600)));
    let listen = |port: u16, handler| {
        let options = Options { addr: at(FAR, port), ..Options::default() };
        far.run(|| Backend::with(options, handler))
    };
    let (app, stuck) = (listen(8080, echo()), listen(8081, slow));
    let (ca, files) = (Ca::new("cluster.local"), TempDir::new());
    let admin = at("127.0.0.1", 15000);
    let start = |ns: &Netns, yaml: &str| {
        Proxy::with(Start { bin: BIN, yaml, admin: Some(admin), ns: Some(ns), ..Start::default() })
    };
    let inbound = format!(
        "admin: {admin}\nworkload: {{name: app, namespace: demo}}\n{}listeners:\n\
         - {{name: quick, role: inbound, address: \"{FAR}:9080\", app: \"{FAR}:8080\", mtls: strict}}\n\
         - {{name: stuck, role: inbound, address: \"{FAR}:9081\", app: \"{FAR}:8081\", mtls: strict}}\n",
        identity(&ca, &files, "app")
    );
    let _server = start(&far, &inbound);
    let service = |name: &str, port: u16| {
        format!(
            "- {{name: {name}, port: 80, protocol: http, hosts: [{name}], identity: spiffe://cluster.local/ns/demo/sa/app, endpoints: [\"{FAR}:{port}\"]}}\n"
        )
    };
    let outbound = format!(
        "admin: {admin}\nworkload: {{name: web, namespace: demo}}\n{}listeners:\n\
         - {{name: out, role: outbound, address: \"{NEAR}:9000\", protocol: http}}\nservices:\n{}{}",
        identity(&ca, &files, "web"),
        service("app", 9080),
        service("stuck", 9081),
    );
    let client_side = start(&near, &outbound);
    let front = at(NEAR, 9000);
    let mut good = near.run(|| http1(front)).host("app");
    assert_eq!(good.get("/").status, 200);
    let waiting = near.run(|| http1(front)).host("stuck");
    let waiter = std::thread::spawn(move || {
        let mut waiting = waiting;
        waiting.stream.set_timeout(Duration::from_secs(90));
        waiting.request("GET", "/", &[], b"").expect("an answer of some kind").status
    });
    wait::until("the request is there", LIMIT, || stuck.requests() == 1);
    let connections = client_side.fds();
    // The cable is cut without a word.
    far.nft(
        "table ip gone {\nchain in {\ntype filter hook input priority 0\nip saddr 10.89.0.1 drop\n}\n\
         chain out {\ntype filter hook output priority 0\nip daddr 10.89.0.1 drop\n}\n}\n",
    );
    let begun = Instant::now();
    let told = waiter.join().expect("the waiting client");
    println!("told {told} after {:?}", begun.elapsed());
    assert!(matches!(told, 503 | 504), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    wait::until("the connections are let go", Duration::from_secs(60), || client_side.fds() < connections);
    // Back again, and served again.
    far.nft("delete table ip gone");
    wait::until("served again", Duration::from_secs(60), || {
        let mut again = near.run(|| http1(front)).host("app");
        again.stream.set_timeout(LIMIT);
        again.request("GET", "/", &[], b"").is_ok_and(|r| r.status == 200)
    });
    assert!(app.requests() >= 2);
}
