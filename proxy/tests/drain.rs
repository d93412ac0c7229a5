//! The end of a proxy: what is in flight is finished, who comes too early or too late is told, and what cannot end is cut and
//! counted. And what must not be its end: no descriptors left, a second signal, an admin's word.

mod pair;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pair::{Certs, HOST, SOON, id, identity, inbound, outbound, requests};
use weft_testkit::backend::{Action, Backend, Reply, echo, fnv, grpc_frame};
use weft_testkit::client::{End, Http2, Stream, http1};
use weft_testkit::dir::free_addr;
use weft_testkit::proxy::Proxy;
use weft_testkit::raw_h2::{Frame, RawH2, flag, kind};
use weft_testkit::wait::{block_on, until};

const BODY: usize = 16 * 1024;

fn in_flight(app: &Backend) -> u64 {
    app.counts().in_flight.load(std::sync::atomic::Ordering::SeqCst)
}

/// Nobody listens there any more.
fn refused(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_err()
}

/// An app whose bodies take a while; gRPC streams are echoed as they come.
fn slow_app() -> Backend {
    Backend::start(std::sync::Arc::new(|seen| {
        if seen.is_grpc() {
            return Action::EchoStream;
        }
        let mut reply = Reply::new(200);
        reply.chunks = (0..8u8).map(|n| vec![n; BODY / 8].into()).collect();
        reply.delay_chunk = Duration::from_millis(150);
        Action::Reply(reply)
    }))
}

fn whole_body() -> u64 {
    fnv(&(0..8u8).flat_map(|n| vec![n; BODY / 8]).collect::<Vec<u8>>())
}

/// 50 bodies of 16 KiB and 10 streams are in flight at SIGTERM: all of them end as if nothing had happened.
fn finishes(drain_client_side: bool) {
    let certs = Certs::new();
    let app = slow_app();
    let (in_addr, out_addr) = (free_addr(), free_addr());
    let limits = "limits: {drainDelay: 500ms, drain: 20s}";
    let inn = inbound(identity(&certs.app), in_addr, app.addr(), &format!("mtls: strict, {limits}")).start();
    let mut side = outbound(identity(&certs.client), out_addr, &id("app"), &[in_addr]);
    side.listeners = vec![format!("{{name: out, role: outbound, address: {out_addr}, {limits}}}")];
    let out = side.start();
    let (mut ending, other) = if drain_client_side { (out, inn) } else { (inn, out) };
    let bodies: Vec<_> = (0..50)
        .map(|n| {
            std::thread::spawn(move || {
                let answer = http1(out_addr).host(HOST).request("GET", &format!("/body/{n}"), &[], b"");
                answer.map(|a| (a.status, a.body.len(), fnv(&a.body))).map_err(|e| e.to_string())
            })
        })
        .collect();
    block_on(async {
        let mut streams = Vec::new();
        for n in 0..10 {
            let client = Http2::connect(out_addr).await.expect("h2c").authority(HOST);
            let head = client.head(
                "POST",
                &format!("/stream/{n}"),
                &[("content-type", "application/grpc"), ("te", "trailers")],
            );
            let (response, mut send) = client.open(head, false).await.expect("open");
            send.send_data(grpc_frame(b"before"), false).expect("send");
            let mut recv = response.await.expect("head").into_body();
            assert_eq!(recv.data().await.expect("data").expect("data").len(), 5 + 6);
            streams.push((client, send, recv));
        }
        until("everything is in flight", SOON, || in_flight(&app) == 60);
        ending.sigterm();
        let said = Instant::now();
        ending.wait_log(|l| l.contains("draining"), SOON);
        // Streams go on, long after nobody listens any more, and end when they end.
        until("nobody listens", SOON, || refused(if drain_client_side { out_addr } else { in_addr }));
        assert!(said.elapsed() >= Duration::from_millis(400), "listened for {:?}", said.elapsed());
        for (_, send, recv) in &mut streams {
            send.send_data(grpc_frame(b"after"), true).expect("send");
            let mut got = 0;
            while let Some(data) = recv.data().await {
                let data = data.expect("the stream goes on");
                let _ = recv.flow_control().release_capacity(data.len());
                got += data.len();
            }
            let trailers = recv.trailers().await.expect("trailers").expect("trailers");
            assert_eq!((got, trailers.get("grpc-status").map(|v| v.as_bytes())), (5 + 5, Some(&b"0"[..])));
        }
    });
    let want = whole_body();
    let mut done = 0;
    for body in bodies {
        assert_eq!(body.join().expect("thread"), Ok((200, BODY, want)));
        done += 1;
    }
    assert_eq!(done, 50);
    assert_eq!(ending.wait_exit(SOON).code(), Some(0));
    ending.wait_log(|l| l.contains("drained") && l.contains("cut=0"), SOON);
    for proxy in [&ending, &other] {
        until("all are logged", SOON, || requests(proxy).len() == 60);
        assert!(requests(proxy).iter().all(|r| r["status"] == 200 && r["flags"] == "-"));
    }
}

#[test]
fn the_servers_side_finishes_what_is_in_flight() {
    finishes(false);
}

#[test]
fn the_clients_side_finishes_what_is_in_flight() {
    finishes(true);
}

/// While peers do not know yet they are served: with `connection: close`, with GOAWAY. Idle connections go at the end.
#[test]
fn goodbye_is_said_before_the_door_closes() {
    let app = Backend::start(echo());
    let (addr, certs) = (free_addr(), Certs::new());
    let more = "mtls: permissive, limits: {drainDelay: 1500ms, drain: 15s}";
    let mut proxy = inbound(identity(&certs.app), addr, app.addr(), more).start();
    let mut kept = http1(addr);
    assert_eq!(kept.get("/one").header("connection"), None);
    let mut idle = http1(addr);
    assert_eq!(idle.get("/one").status, 200);
    let mut silent = Stream::connect(addr).expect("connect");
    let mut h2 = RawH2::connect(addr).expect("h2c");
    assert!(h2.alive(SOON));
    let ready = |p: &Proxy| p.admin_get("/ready").0;
    assert_eq!(ready(&proxy), 200);
    proxy.sigterm();
    until("not ready", SOON, || ready(&proxy) == 503);
    let goaway = h2.wait(SOON, |f| f.kind == kind::GOAWAY).expect("GOAWAY");
    assert_eq!(goaway.error(), Some(0));
    // The first goodbye takes every stream there may be, so that none on its way is lost.
    assert_eq!(goaway.payload.get(..4), Some(&0x7fff_ffffu32.to_be_bytes()[..]));
    // When the peer has heard it, the second says which stream was the last, and the connection ends.
    let ping = h2.wait(SOON, |f| f.kind == kind::PING && f.flags & flag::ACK == 0).expect("PING");
    h2.send(&Frame::new(kind::PING, flag::ACK, 0, ping.payload)).expect("send");
    let last = h2.wait(SOON, |f| f.kind == kind::GOAWAY).expect("the second GOAWAY");
    assert_eq!((last.error(), last.payload.get(..4)), (Some(0), Some(&[0u8; 4][..])));
    assert!(h2.stream.read_all().1 != End::Timeout);
    // A kept connection is still good for one request, and so is a new one.
    assert_eq!(kept.get("/two").header("connection"), Some("close"));
    assert_eq!(kept.stream.read_all(), (Vec::new(), End::Closed));
    assert_eq!(http1(addr).get("/three").header("connection"), Some("close"));
    block_on(async {
        let late = Http2::connect(addr).await.expect("h2c");
        assert_eq!(late.request("GET", "/four", &[], b"").await.expect("answer").status, 200);
    });
    // Who was quiet all the time ends cleanly with the rest.
    idle.stream.set_timeout(SOON);
    assert_eq!(idle.stream.read_all(), (Vec::new(), End::Closed));
    silent.set_timeout(SOON);
    assert!(silent.read_all().0.is_empty());
    assert_eq!(proxy.wait_exit(SOON).code(), Some(0));
    assert!(refused(addr));
    assert_eq!(requests(&proxy).len(), 5);
}

/// What does not end in time is cut, counted and told by the exit status; nobody takes a cut for an end.
#[test]
fn what_does_not_end_is_cut_and_counted() {
    let app = Backend::start(std::sync::Arc::new(|seen| match seen.path() {
        "/half" => {
            let mut reply = Reply::text(200, vec![1; 1000]);
            reply.forever = true;
            reply.delay_chunk = Duration::from_millis(50);
            Action::Reply(reply)
        }
        _ => Action::Hang,
    }));
    let (addr, certs) = (free_addr(), Certs::new());
    let more = "mtls: permissive, limits: {drainDelay: 100ms, drain: 700ms}";
    let mut proxy = inbound(identity(&certs.app), addr, app.addr(), more).start();
    let mut hangs = http1(addr);
    hangs.send(format!("GET /hang HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).expect("send");
    let mut half = http1(addr);
    half.send(format!("GET /half HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).expect("send");
    until("both in flight", SOON, || in_flight(&app) == 2);
    proxy.sigterm();
    let (bytes, _) = hangs.stream.read_all();
    assert!(!bytes.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&bytes));
    let (bytes, _) = half.stream.read_all();
    assert!(bytes.starts_with(b"HTTP/1.1 200") && !bytes.ends_with(b"0\r\n\r\n"));
    assert_eq!(proxy.wait_exit(SOON).code(), Some(3));
    proxy.wait_log(|l| l.contains("cut=2"), SOON);
    assert_eq!(requests(&proxy).len(), 2);
}

/// Signals, and the admin's word, in all spellings.
#[test]
fn ways_to_go() {
    let app =
        Backend::start(std::sync::Arc::new(|seen| if seen.path() == "/hang" { Action::Hang } else { Action::Echo }));
    let certs = Certs::new();
    let mut ways = 0;
    let start = |delay: &str| {
        let addr = free_addr();
        let more = format!("limits: {{drainDelay: {delay}, drain: 30s}}");
        (inbound(identity(&certs.app), addr, app.addr(), &more).start(), addr)
    };
    for way in ["SIGTERM", "SIGINT", "/quitquitquit", "/drain"] {
        let (mut proxy, addr) = start("100ms");
        assert_eq!(http1(addr).get("/").status, 200);
        match way {
            "SIGTERM" => proxy.sigterm(),
            "SIGINT" => proxy.signal(libc::SIGINT),
            path => {
                assert_eq!(proxy.admin_get(path).0, 405, "GET changes nothing");
                assert_eq!(http1(addr).get("/").status, 200);
                assert_eq!(proxy.admin_post(path).0, 200);
            }
        }
        assert_eq!(proxy.wait_exit(SOON).code(), Some(0), "{way}");
        ways += 1;
    }
    // A second signal does not wait for what hangs.
    let (mut proxy, addr) = start("20s");
    let mut hangs = http1(addr);
    hangs.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").expect("send");
    until("in flight", SOON, || in_flight(&app) == 1);
    proxy.sigterm();
    proxy.wait_log(|l| l.contains("draining"), SOON);
    proxy.sigterm();
    assert_eq!(proxy.wait_exit(Duration::from_secs(8)).code(), Some(3));
    proxy.wait_log(|l| l.contains("cut=1"), SOON);
    assert_eq!(ways, 4);
}

/// No descriptors left: who is served stays served, new upstreams get 503 `OM`, accepting rests without spinning, and
/// everything is well again as soon as there is room.
#[test]
fn no_descriptors_left() {
    let app = Backend::start(echo());
    let (addr, certs) = (free_addr(), Certs::new());
    let proxy = inbound(identity(&certs.app), addr, app.addr(), "mtls: permissive").start();
    let mut kept = http1(addr);
    assert_eq!(kept.get("/first").status, 200);
    // Keeps the only upstream connection busy, so that the next request needs a new one.
    let mut clients: Vec<Stream> = Vec::new();
    let room = 20;
    proxy.limit_fds(proxy.fds() as u64 + room);
    for _ in 0..room + 30 {
        clients.push(Stream::connect(addr).expect("the kernel still takes it"));
    }
    until("accepting fails", SOON, || proxy_fds_full(&proxy));
    assert_eq!(kept.get("/kept").status, 200);
    // Two at once on kept connections: one gets the kept upstream, the other would need a descriptor.
    let mut second = clients.remove(0);
    second.set_timeout(SOON);
    let slow = std::thread::spawn(move || {
        // Its head comes in two pieces; the upstream is taken from the first byte of its body on.
        let _ = second.write_all(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab");
        std::thread::sleep(Duration::from_millis(700));
        let _ = second.write_all(b"cd");
        let mut answer = [0; 12];
        let _ = second.read_exact(&mut answer);
        answer
    });
    until("the upstream is taken", SOON, || in_flight(&app) == 1);
    let answer = kept.get("/more");
    assert_eq!(answer.status, 503, "{}", answer.text());
    let line = pair::logged(&proxy, "/more");
    assert_eq!((line["reason"].as_str(), line["flags"].as_str()), (Some("overload"), Some("OM")), "{line}");
    assert_eq!(&slow.join().expect("thread"), b"HTTP/1.1 200");

    let (cpu, at) = (proxy.cpu(), Instant::now());
    std::thread::sleep(Duration::from_millis(1500));
    let used = (proxy.cpu() - cpu).as_secs_f64() / at.elapsed().as_secs_f64();
    println!("{:.1} % of a core while it cannot accept", used * 100.0);
    assert!(used < 0.2, "{used}");

    drop(clients);
    let freed = Instant::now();
    let mut after = http1(addr);
    after.stream.set_timeout(SOON);
    assert_eq!(after.get("/after").status, 200);
    println!("served again after {:?}", freed.elapsed());
    assert!(freed.elapsed() < Duration::from_secs(10));
    assert!(proxy.metric("weft_accept_errors_total", &[]) > 0.0);
}

/// The admin port needs descriptors too, so this looks from outside.
fn proxy_fds_full(proxy: &Proxy) -> bool {
    proxy.log_lines().iter().any(|l| l.contains("cannot accept"))
}
