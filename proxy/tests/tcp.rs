//! Connections for bytes: opaque TCP in mesh mTLS, TLS passed on by server name, and telling apart what is HTTP and what is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod sidecars;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sidecars::{Front, Setup, fronts, hop, pair, start};
use weft_testkit::backend::{Backend, echo};
use weft_testkit::ca::{Ca, LeafOpts};
use weft_testkit::client::{End, Http2, Stream, http1};
use weft_testkit::dir::free_addr;
use weft_testkit::raw_backend::{RawBackend, Step, TcpPeer};
use weft_testkit::wait::{block_on, poll, until};

const LIMIT: Duration = Duration::from_secs(20);

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn read_n(stream: &mut impl Read, n: usize) -> String {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn rest(stream: TcpStream) -> (Vec<u8>, End) {
    Stream::Plain(stream).read_all()
}

/// The ways bytes can take: declared ones through listeners for nothing else, and sniffed ones.
fn ways(app: SocketAddr) -> Vec<Front> {
    let bytes = Setup { tcp: true, ..Setup::default() };
    let declared = Setup { service: "  protocol: tcp", inbound: ", protocol: tcp", ..Setup::default() };
    [fronts(app, bytes), fronts(app, declared), fronts(app, Setup::default())].into_iter().flatten().collect()
}

/// A port declared as bytes goes where its first route without a match says, connection by connection.
#[test]
fn bytes_are_split_by_weight() {
    let (app, other) = (TcpPeer::echo(), TcpPeer::echo());
    let service = |weights: [u32; 2]| {
        format!(
            "  protocol: tcp\n  order: firstMatch\n  routes:\n  - {{match: {{port: 1}}, to: other}}\n  \
             - {{to: [{{weight: {}}}, {{service: other, weight: {}}}]}}\n\
             - {{name: other, port: 80, endpoints: [\"{}\"]}}",
            weights[0],
            weights[1],
            other.addr()
        )
    };
    let ask = |weights| {
        let before = [app.connections(), other.connections()];
        let front = hop(app.addr(), Setup { service: &service(weights), ..Setup::default() });
        for _ in 0..40 {
            let mut client = connect(front.addr);
            client.write_all(b"bytes").unwrap();
            assert_eq!(read_n(&mut client, 5), "bytes");
        }
        [app.connections() - before[0], other.connections() - before[1]]
    };
    assert_eq!(ask([1, 0]), [40, 0]);
    assert_eq!(ask([0, 1]), [0, 40]);
    let both = ask([1, 1]);
    assert!(both.iter().all(|n| *n > 0), "{both:?}");
}

#[test]
fn bytes_go_both_ways() {
    let app = TcpPeer::echo();
    let ways = ways(app.addr());
    assert_eq!(ways.len(), 6);
    for front in ways {
        let mut client = connect(front.addr);
        // Nothing that HTTP or TLS would begin with.
        let data: Vec<u8> = (0..8u32 << 20).map(|n| 0x80 | (n ^ n >> 9) as u8).collect();
        let (mut writer, sent) = (client.try_clone().unwrap(), data.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let (back, end) = rest(client.try_clone().unwrap());
        writing.join().unwrap();
        assert_eq!((back == data, end), (true, End::Closed), "{}: {} bytes", front.name, back.len());
        let _ = client.write(b"x");
        for proxy in &front.proxies {
            proxy.wait_metric("weft_tcp_connections_closed_total", &[("reason", "none")], 1.0, LIMIT);
            for name in ["weft_tcp_sent_bytes_total", "weft_tcp_received_bytes_total"] {
                assert_eq!(proxy.metric(name, &[]), data.len() as f64, "{} {name}", front.name);
            }
        }
        if front.name == "pair" {
            let identity = ("source_identity", "spiffe://cluster.local/ns/demo/sa/web");
            let labels = [identity, ("source_workload", "web"), ("tls", "mutual_tls")];
            assert_eq!(
                front.far().metric("weft_tcp_connections_opened_total", &labels),
                1.0,
                "{}",
                front.far().metrics()
            );
        }
    }
}

/// Each direction ends by itself, whoever begins (F-20).
#[test]
fn half_closes() {
    // Answers with how much it heard, only once it has heard all.
    let counts = TcpPeer::at(([127, 0, 0, 1], 0).into(), |mut stream, _| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).unwrap();
    });
    // Says all it has to say, ends, and goes on listening: what it hears comes back on the second connection.
    let (heard, hearing) = std::sync::mpsc::channel();
    let heard = std::sync::Mutex::new(heard);
    let ends_first = TcpPeer::at(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
        let mut first = [0; 2];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(b"goodbye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        heard.lock().unwrap().send(all).unwrap();
    });
    let mut ran = 0;
    for front in ways(counts.addr()) {
        let mut client = connect(front.addr);
        client.write_all(&[0xff; 100_000]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (answer, end) = rest(client);
        assert_eq!((String::from_utf8_lossy(&answer).as_ref(), end), ("100000 bytes", End::Closed), "{}", front.name);
        ran += 1;
    }
    for front in ways(ends_first.addr()) {
        let mut client = connect(front.addr);
        client.write_all(b"\xff\xff").unwrap();
        let (answer, end) = rest(client.try_clone().unwrap());
        assert_eq!((&answer[..], end), (&b"goodbye"[..], End::Closed), "{}", front.name);
        client.write_all(b"still here").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(hearing.recv_timeout(LIMIT).unwrap(), b"still here", "{}", front.name);
        ran += 1;
    }
    assert_eq!(ran, 12);
}

/// A break is passed on as a break, never as a clean end.
#[test]
fn resets() {
    let app =
        RawBackend::start(|_| vec![Step::Take(1), Step::Send(b"half an ans".to_vec()), Step::Take(1), Step::Reset]);
    for front in ways(app.addr()) {
        let mut client = connect(front.addr);
        client.write_all(b"\xff").unwrap();
        assert_eq!(read_n(&mut client, 11), "half an ans");
        client.write_all(b"\xff").unwrap();
        let (more, end) = rest(client);
        assert_eq!((more.len(), end), (0, End::Reset), "{}", front.name);
    }
    let gone = Arc::new(AtomicBool::new(false));
    let told = gone.clone();
    let app = TcpPeer::at(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
        let end = std::io::copy(&mut stream, &mut std::io::sink());
        told.store(end.is_err(), Ordering::SeqCst);
    });
    for front in ways(app.addr()) {
        gone.store(false, Ordering::SeqCst);
        let mut client = connect(front.addr);
        client.write_all(b"\xff").unwrap();
        front.far().wait_metric("weft_tcp_connections_opened_total", &[], 1.0, LIMIT);
        Stream::Plain(client).reset();
        until("the app hears the reset", LIMIT, || gone.load(Ordering::SeqCst));
    }
}

#[test]
fn upstreams_that_are_not_there() {
    for front in ways(free_addr()) {
        let mut client = connect(front.addr);
        // A reset that came first is told to whoever asks first.
        if client.write_all(b"\xff").is_ok() {
            let (answer, end) = rest(client);
            assert_eq!((answer.len(), end), (0, End::Reset), "{}", front.name);
        }
    }
}

#[test]
fn tls_is_passed_on_by_its_server_name() {
    let ca = Ca::new("apps.test");
    let app = |name: &str| {
        let leaf = ca.leaf("", &LeafOpts::dns(&[name]));
        let tls = Some(weft_testkit::tls::server(&leaf, &[], &["h2", "http/1.1"]));
        Backend::with(weft_testkit::backend::Options { name: name.into(), tls, ..Default::default() }, echo())
    };
    let (a, b) = (app("a.test"), app("b.test"));
    let mut ran = 0;
    for protocol in ["tls", "detect"] {
        let (addr, admin) = (free_addr(), free_addr());
        let service = |name: &str, names: &str, to: SocketAddr| {
            format!(
                "- {{name: {name}, port: {}, protocol: tls, serverNames: [{names}], endpoints: [\"{to}\"]}}\n",
                addr.port()
            )
        };
        let yaml = format!(
            "admin: {admin}\nlisteners:\n- {{name: out, role: outbound, address: {addr}, protocol: {protocol}, unknown: deny}}\nservices:\n{}{}",
            service("a", "a.test", a.addr()),
            service("b", "b.test, '*.b.test'", b.addr())
        );
        let proxy = start(&yaml, admin);
        for (name, expected) in
            [("a.test", Some("a.test")), ("b.test", Some("b.test")), ("A.Test", Some("a.test")), ("c.test", None)]
        {
            // Verified end to end: the proxy has no key that could have answered.
            let config = weft_testkit::tls::verifying_client(&[&ca], None, &["http/1.1"]);
            let got = weft_testkit::client::Http1::tls(addr, &config, name)
                .ok()
                .and_then(|mut c| c.request("GET", "/", &[], b"").ok());
            let backend = got.map(|g| g.json()["backend"].as_str().unwrap_or_default().to_string());
            assert_eq!(backend.as_deref(), expected, "{protocol} {name}");
            ran += 1;
        }
        block_on(async {
            let config = weft_testkit::tls::verifying_client(&[&ca], None, &["h2"]);
            let client = Http2::connect_tls(addr, &config, "b.test").await.unwrap();
            assert_eq!(client.request("GET", "/", &[], b"").await.unwrap().json()["version"], "HTTP/2.0");
        });
        assert!(
            proxy.metric("weft_tcp_connections_opened_total", &[("destination_service", "a")]) >= 2.0,
            "{}",
            proxy.metrics()
        );
    }
    assert_eq!(ran, 8);
}

/// One port, every protocol: each connection is what its bytes say.
#[test]
fn sniffed() {
    let app = Backend::start(echo());
    let bytes = RawBackend::start(|_| vec![Step::Take(4), Step::Send(b"pong".to_vec()), Step::Finish]);
    for front in fronts(app.addr(), Setup::default()) {
        assert_eq!(http1(front.addr).get("/").json()["version"], "HTTP/1.1", "{}", front.name);
        block_on(async {
            let client = Http2::connect(front.addr).await.unwrap();
            assert_eq!(
                client.request("GET", "/", &[], b"").await.unwrap().json()["version"],
                "HTTP/2.0",
                "{}",
                front.name
            );
        });
        // One byte at a time, methods nobody has heard of, an empty line in front.
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "FROBNICATE / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            let mut client = http1(front.addr);
            for byte in request.bytes() {
                client.send([byte]).unwrap();
            }
            assert_eq!(client.read().unwrap_or_else(|e| panic!("{} {request}: {e}", front.name)).status, 200);
        }
        // Bytes that look like HTTP for a while are HTTP's to refuse.
        let mut client = http1(front.addr);
        client.send("GET / HTTP/1.1\r\nno colon\r\n\r\n").unwrap();
        assert_eq!(client.read().unwrap().status, 400);
    }
    for front in fronts(bytes.addr(), Setup::default()) {
        for ping in ["ping", "\r\n\r\n", "EHLO", "\x16\x03\x09\x00", "GET\t"] {
            let mut client = connect(front.addr);
            client.write_all(ping.as_bytes()).unwrap();
            if ping == "EHLO" {
                // Could still be a method; what follows settles it.
                client.write_all(b" me\r\n").unwrap();
            }
            let (answer, _) = rest(client);
            assert_eq!(String::from_utf8_lossy(&answer), "pong", "{} {ping:?}", front.name);
        }
        assert!(bytes.all().contains("EHLO me\r\n"), "{}", bytes.all());
    }
}

/// What was declared is not sniffed.
#[test]
fn declared() {
    let app = RawBackend::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let odd = "GET / HTTP/1.1\r\nHoSt: a\r\nX-ODD:1\r\n\r\n";
    for setup in [
        Setup { service: "  protocol: tcp", inbound: ", protocol: tcp", ..Setup::default() },
        Setup { outbound: ", protocol: tcp", inbound: ", protocol: tcp", ..Setup::default() },
        Setup { tcp: true, ..Setup::default() },
    ] {
        for front in fronts(app.addr(), setup) {
            let mut client = http1(front.addr);
            client.send(odd).unwrap();
            assert_eq!(client.read().unwrap().text(), "ok");
            assert!(app.received().iter().any(|r| r == odd.as_bytes()), "{}: touched: {}", front.name, app.all());
            assert_eq!(front.near().metric("weft_http_requests_total", &[]), 0.0, "{}", front.name);
        }
    }
    let seen = app.connections();
    for (protocol, bytes) in
        [("http", "EHLO me\r\n\r\n"), ("http1", "EHLO me\r\n\r\n"), ("http", "\x01\x02\x03\r\n\r\n")]
    {
        let service = format!("  protocol: {protocol}");
        for front in fronts(app.addr(), Setup { service: &service, ..Setup::default() }) {
            let mut client = http1(front.addr);
            client.send(bytes).unwrap();
            assert_eq!(client.read().unwrap_or_else(|e| panic!("{} {protocol}: {e}", front.name)).status, 400);
        }
    }
    assert_eq!(app.connections(), seen, "the app saw what is no HTTP");
    // The port's own declaration stands above the service's.
    let addr = free_addr();
    let (admin, port) = (free_addr(), addr.port());
    let yaml = format!(
        "admin: {admin}\nlisteners:\n- {{name: out, role: outbound, address: {addr}, to: app, ports: {{{port}: tcp}}}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [\"{}\"]}}\n",
        app.addr()
    );
    let _proxy = start(&yaml, admin);
    let mut client = http1(addr);
    client.send(odd).unwrap();
    assert_eq!(client.read().unwrap().text(), "ok");
    assert_eq!(app.received().iter().filter(|r| *r == odd.as_bytes()).count(), 7);
}

#[test]
fn servers_that_speak_first() {
    let app = TcpPeer::server_first("220 mail.test ESMTP\r\n");
    // The limit is what a client without the 50 ms head start would have to wait.
    let limits = ", limits: {detectTimeout: 4s}";
    let sniffing = Setup { outbound: limits, inbound: limits, ..Setup::default() };
    for front in ways(app.addr()).into_iter().chain(fronts(app.addr(), sniffing)) {
        for n in 0..3 {
            let begun = Instant::now();
            let mut client = connect(front.addr);
            assert_eq!(read_n(&mut client, 21), "220 mail.test ESMTP\r\n", "{} {n}", front.name);
            assert!(begun.elapsed() < Duration::from_secs(3), "{} {n}: {:?}", front.name, begun.elapsed());
            client.write_all(b"EHLO me\r\n").unwrap();
            assert_eq!(read_n(&mut client, 9), "EHLO me\r\n", "{} {n}", front.name);
        }
    }
}

/// What a destination spoke decides what silence means there.
#[test]
fn learned() {
    let app = Backend::start(echo());
    let limits = ", limits: {detectTimeout: 5s}";
    let front = hop(app.addr(), Setup { outbound: limits, ..Setup::default() });
    // Nothing is known: a silent client might be waiting for its server, so that is dialled.
    let silent = connect(front.addr);
    until("the app is dialled", LIMIT, || app.connections() == 1);
    drop(silent);
    until("and left", LIMIT, || app.open_connections() == 0);
    assert_eq!(http1(front.addr).get("/").status, 200);
    let known = app.connections();
    // HTTP is known: a client that takes its time costs the app nothing.
    let mut slow = http1(front.addr);
    assert!(poll(Duration::from_millis(500), || (app.connections() > known).then_some(())).is_none());
    assert_eq!(slow.get("/slow").status, 200);
    // Memory never overrules bytes.
    let bytes = TcpPeer::echo();
    let front = hop(bytes.addr(), Setup::default());
    for word in ["\u{1}one", "\u{1}two"] {
        let mut client = connect(front.addr);
        client.write_all(word.as_bytes()).unwrap();
        assert_eq!(read_n(&mut client, 4), word);
        let mut client = http1(front.addr);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        // The echo answers with the request: no HTTP.
        assert_eq!(client.read().unwrap().status, 502);
    }
}

/// Clients that say nothing, or nothing more, hold up nobody but themselves.
#[test]
fn slow_first_bytes() {
    let app = Backend::start(echo());
    for front in fronts(app.addr(), Setup::default()) {
        let silent: Vec<_> = (0..30).map(|_| connect(front.addr)).collect();
        let half: Vec<_> = (0..30)
            .map(|_| {
                let mut client = connect(front.addr);
                client.write_all(b"GE").unwrap();
                client
            })
            .collect();
        let mut slowest = Duration::ZERO;
        for n in 0..50 {
            let begun = Instant::now();
            assert_eq!(http1(front.addr).get("/").status, 200, "{} {n}", front.name);
            slowest = slowest.max(begun.elapsed());
        }
        println!("{}: the slowest of 50 beside 60 slow clients: {slowest:?}", front.name);
        // Those others never finish; what is left to wait for is the CPU that their servers' handshakes take.
        assert!(slowest < Duration::from_secs(8), "{slowest:?}");
        // They are served as well, when they come to it.
        for (mut client, rest) in silent.into_iter().take(5).map(|c| (c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")) {
            client.write_all(rest.as_bytes()).unwrap();
            assert!(read_n(&mut client, 12).ends_with("200"), "{}", front.name);
        }
        drop(half);
    }
}

/// Many at once, each with its own bytes, over one and two workers.
#[test]
fn many_at_once() {
    let app = TcpPeer::echo();
    for workers in [1, 2] {
        let front = pair(app.addr(), Setup { tcp: true, workers, ..Setup::default() });
        let addr = front.addr;
        let clients: Vec<_> = (0..64u8)
            .map(|n| {
                std::thread::spawn(move || {
                    let mut client = connect(addr);
                    for round in 0..20u8 {
                        let words = vec![0x80 | n ^ round; 10_000];
                        client.write_all(&words).unwrap();
                        let mut back = vec![0; words.len()];
                        client.read_exact(&mut back).unwrap();
                        assert_eq!(back, words);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        for proxy in &front.proxies {
            assert_eq!(proxy.wait_metric("weft_tcp_connections_closed_total", &[], 64.0, LIMIT), 64.0);
            assert_eq!(proxy.metric("weft_tcp_sent_bytes_total", &[]), 64.0 * 200_000.0);
        }
    }
}
