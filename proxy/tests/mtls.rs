//! Mesh mTLS from end to end, through real proxies: who gets in, who does not, and that nothing ever goes in the clear instead.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pair;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pair::{Certs, DOMAIN, HOST, SOON, id, identity, inbound, inbound_listener, logged, outbound};
use weft_testkit::backend::{Backend, echo};
use weft_testkit::ca::{Ca, Leaf, LeafOpts};
use weft_testkit::client::{End, Http1, Http2, Stream, http1};
use weft_testkit::dir::free_addr;
use weft_testkit::wait::{block_on, until};

fn get(addr: SocketAddr, path: &str) -> weft_testkit::client::Response {
    http1(addr).host(HOST).get(path)
}

/// Every kind of plaintext is cut with a reset and counted; the app sees none of it.
#[test]
fn strict_refuses_plaintext() {
    let certs = Certs::new();
    let app = Backend::start(echo());
    let addr = free_addr();
    let proxy = inbound(identity(&certs.app), addr, app.addr(), "mtls: strict").start();
    let kinds: [(&str, &[u8]); 5] = [
        ("http/1.1", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("h2c", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
        ("an opaque protocol", b"\0\0\0\x0bhello world"),
        ("proxy protocol", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n"),
        ("almost TLS", b"\x16\x03\x07garbage that is no hello"),
    ];
    for (n, (kind, bytes)) in kinds.iter().enumerate() {
        let mut client = Stream::connect(addr).expect("connect");
        client.write_all(bytes).expect("write");
        let (answer, end) = client.read_all();
        assert!(answer.is_empty(), "{kind}: {answer:?}");
        assert_eq!(end, End::Reset, "{kind}");
        proxy.wait_metric("weft_tcp_rejected_total", &[("reason", "plaintext")], n as f64 + 1.0, SOON);
    }
    // TLS without a certificate is not mesh TLS either.
    let config = weft_testkit::tls::client(None, &["h2"]);
    let refused = match Stream::connect_tls(addr, &config, "app") {
        Ok(mut stream) => stream.read(&mut [0; 16]).is_err(),
        Err(_) => true,
    };
    assert!(refused, "TLS without a client certificate");
    let labels = [("side", "server"), ("reason", "no_certificate")];
    proxy.wait_metric("weft_tls_handshake_failed_total", &labels, 1.0, SOON);
    assert_eq!((app.connections(), app.requests()), (0, 0));
}

/// What a verified peer says of itself is hostile input too: bounded, well-formed, in time, or the connection ends.
#[test]
fn introductions_are_checked() {
    let certs = Certs::new();
    let app = Backend::start(echo());
    let addr = free_addr();
    let limits = "mtls: strict, limits: {handshakeTimeout: 700ms}";
    let proxy = inbound(identity(&certs.app), addr, app.addr(), limits).start();
    let config = weft_testkit::tls::client(Some(&certs.ca.workload("demo", "client")), &["weft/http1"]);
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let cases: [(&str, &[u8]); 5] = [
        ("longer than any", &[0xff, 0xff]),
        ("of no text", &[0, 6, 1, 0xff, 0, 0, 0, 0]),
        ("that breaks off inside", &[0, 6, 200, 0, 0, 0, 0, 0]),
        ("left out", b""),
        ("never finished", &[0, 6, 0]),
    ];
    for (n, (kind, introduction)) in cases.iter().enumerate() {
        let mut client = Stream::connect_tls(addr, &config, "app").expect("handshake");
        // "GE" would be a length that is never reached.
        let rest: &[u8] = if introduction.len() == 3 { b"" } else { request };
        client.write_all(&[introduction, rest].concat()).expect("write");
        let (answer, _) = client.read_all();
        assert!(answer.is_empty(), "{kind}: {answer:?}");
        let labels = [("side", "server"), ("reason", "closed")];
        proxy.wait_metric("weft_tls_handshake_failed_total", &labels, n as f64 + 1.0, SOON);
    }
    assert_eq!(app.requests(), 0);
    // And from the next one, one that says its name.
    let mut client = Stream::connect_tls(addr, &config, "app").expect("handshake");
    client.write_all(&[&[0, 9, 3][..], b"web", &[0, 0, 0, 0, 0], request].concat()).expect("write");
    let mut head = [0; 12];
    client.read_exact(&mut head).expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200");
    proxy.wait_metric("weft_http_requests_total", &[("source_workload", "web")], 1.0, SOON);
}

/// PERMISSIVE takes both, DISABLE hands TLS to the app untouched, and ports may differ from their listener's mode.
#[test]
fn permissive_disable_and_ports() {
    let certs = Certs::new();
    let app = Backend::start(echo());
    let modes = [
        "permissive",
        "disable",
        "{mode: strict, ports: {PORT: permissive}}",
        "{mode: permissive, ports: {PORT: strict}}",
    ];
    let addrs: Vec<SocketAddr> = modes.iter().map(|_| free_addr()).collect();
    let mut side = inbound(identity(&certs.app), addrs[0], app.addr(), "");
    side.listeners = (modes.iter().zip(&addrs).enumerate())
        .map(|(i, (mode, addr))| {
            let mode = mode.replace("PORT", &addr.port().to_string());
            inbound_listener(&format!("in{i}"), *addr, app.addr(), &format!("mtls: {mode}"))
        })
        .collect();
    let proxy = side.start();
    let client = certs.ca.workload("demo", "client");
    let mesh = weft_testkit::tls::client(Some(&client), &["weft/http1"]);
    let (mut plain_ok, mut mesh_ok) = (Vec::new(), Vec::new());
    for addr in &addrs {
        let mut plain = http1(*addr);
        plain_ok.push(plain.request("GET", "/plain", &[], b"").is_ok_and(|r| r.status == 200));
        let secured = Http1::tls(*addr, &mesh, "app.test");
        mesh_ok.push(secured.is_ok_and(|mut c| c.request("GET", "/mesh", &[], b"").is_ok_and(|r| r.status == 200)));
    }
    assert_eq!(plain_ok, [true, true, true, false]);
    // Under DISABLE the hello went to the app, which speaks no TLS.
    assert_eq!(mesh_ok, [true, false, true, true]);
    assert_eq!(proxy.metric("weft_tcp_rejected_total", &[("reason", "plaintext")]), 1.0);
}

/// An app with TLS of its own is reached untouched under PERMISSIVE and DISABLE; under STRICT it is not.
#[test]
fn the_apps_own_tls() {
    let certs = Certs::new();
    let own = certs.ca.leaf("", &LeafOpts::dns(&["own.example"]));
    let app = Backend::with(
        weft_testkit::backend::Options {
            tls: Some(weft_testkit::tls::server(&own, &[], &["http/1.1"])),
            ..Default::default()
        },
        echo(),
    );
    for (mode, passes) in [("permissive", true), ("disable", true), ("strict", false)] {
        let addr = free_addr();
        let _proxy = inbound(identity(&certs.app), addr, app.addr(), &format!("mtls: {mode}")).start();
        let config = weft_testkit::tls::verifying_client(&[&certs.ca], None, &["http/1.1"]);
        let answer =
            Http1::tls(addr, &config, "own.example").ok().and_then(|mut c| c.request("GET", "/", &[], b"").ok());
        assert_eq!(answer.is_some_and(|a| a.status == 200), passes, "{mode}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    TrustDomain,
    Identity,
    Expired,
    NotYetValid,
    /// A CA that nobody knows signs for the right trust domain.
    UnknownCa,
    /// The CA that signed was taken out of the bundle while both run.
    RemovedRoot,
}

/// Each wrong certificate on either side: 503 with UF and its reason, a counter that says why, and no byte for the app.
#[test]
fn wrong_certificates_are_refused_on_either_side() {
    let mut cases = 0;
    for wrong in
        [Wrong::TrustDomain, Wrong::Identity, Wrong::Expired, Wrong::NotYetValid, Wrong::UnknownCa, Wrong::RemovedRoot]
    {
        for client_is_wrong in [false, true] {
            refuse(wrong, client_is_wrong);
            cases += 1;
        }
    }
    assert_eq!(cases, 12);
}

fn refuse(wrong: Wrong, client_is_wrong: bool) {
    let case = format!("{wrong:?}, {} is wrong", if client_is_wrong { "the client" } else { "the server" });
    let certs = Certs::new();
    let other = Ca::new(if wrong == Wrong::TrustDomain { "other.example" } else { DOMAIN });
    let account = if client_is_wrong { "client" } else { "app" };
    let name = certs.ca.id("demo", account);
    let bad: Leaf = match wrong {
        Wrong::TrustDomain => other.workload("demo", account),
        Wrong::UnknownCa | Wrong::RemovedRoot => other.leaf(&name, &LeafOpts::default()),
        Wrong::Identity => certs.ca.workload("demo", "somebody"),
        Wrong::Expired => certs.ca.leaf(&name, &LeafOpts::expired()),
        Wrong::NotYetValid => certs.ca.leaf(&name, &LeafOpts::not_yet_valid()),
    };
    // The wrong side trusts the right one, so that only the right one's judgement is seen.
    let bad = identity(&bad.write(&certs.dir, "wrong", &[&certs.ca]));
    let right = if client_is_wrong { "app" } else { "client" };
    if wrong == Wrong::RemovedRoot {
        // Known at first.
        certs.dir.write(&format!("{right}.roots"), certs.ca.root_pem().to_string() + other.root_pem());
    }
    let app = Backend::start(echo());
    let (in_addr, out_addr) = (free_addr(), free_addr());
    let of_app = if client_is_wrong { identity(&certs.app) } else { bad.clone() };
    let of_client = if client_is_wrong { bad } else { identity(&certs.client) };
    let more = format!("clients: {{ids: [{}]}}, mtls: permissive", id("client"));
    let inn = inbound(of_app, in_addr, app.addr(), &more).start();
    let out = outbound(of_client, out_addr, &id("app"), &[in_addr]).start();
    let judge = if client_is_wrong { &inn } else { &out };
    let mut known = 0;
    if wrong == Wrong::RemovedRoot {
        assert_eq!(get(out_addr, "/before").status, 200, "{case}");
        known = app.requests();
        let from = judge.log_lines().len();
        certs.dir.write(&format!("{right}.roots"), certs.ca.root_pem());
        // The connection from before carries nothing more either.
        judge.wait_log_from(from, |l| l.contains("a root is not trusted any more"), SOON);
    }
    let why = match wrong {
        Wrong::TrustDomain => "wrong_trust_domain",
        Wrong::Identity => "wrong_identity",
        Wrong::Expired => "expired",
        Wrong::NotYetValid => "not_yet_valid",
        Wrong::UnknownCa | Wrong::RemovedRoot => "unknown_ca",
    };
    for (method, body) in [("GET", &b""[..]), ("POST", b"a secret")] {
        let path = format!("/{}", method.to_lowercase());
        let answer = http1(out_addr).host(HOST).request(method, &path, &[], body).expect("an answer");
        assert_eq!(answer.status, 503, "{case}: {}", answer.text());
        let line = logged(&out, &path);
        let seen = (line["status"].as_u64(), line["flags"].as_str(), line["reason"].as_str());
        let flags = seen.1.unwrap_or_default().split(',').any(|f| f == "UF");
        assert!(flags && (seen.0, seen.2) == (Some(503), Some("tls_failure")), "{case}: {line}");
    }
    let side = if client_is_wrong { "server" } else { "client" };
    let labels = [("side", side), ("reason", why)];
    let counted = judge.wait_metric("weft_tls_handshake_failed_total", &labels, 2.0, SOON);
    // PERMISSIVE would have taken plaintext: none was tried.
    assert_eq!(app.requests(), known, "{case}");
    let plaintext = inn
        .metrics()
        .lines()
        .filter(|l| l.starts_with("weft_http_requests_total") && l.contains("tls=\"none\""))
        .count();
    assert_eq!(plaintext, 0, "{case}");
    println!("{case}: {why}, {counted} handshakes");
}

/// Who called is told to the app, the log and the metrics; what a client says of itself is not.
#[test]
fn the_peer_is_known_and_cannot_be_forged() {
    let certs = Certs::new();
    let app = Backend::start(echo());
    let (in_addr, out_addr) = (free_addr(), free_addr());
    let inn = inbound(identity(&certs.app), in_addr, app.addr(), "mtls: permissive").start();
    let out = outbound(identity(&certs.client), out_addr, &id("app"), &[in_addr]).start();
    let forged = [
        ("x-forwarded-client-cert", "By=spiffe://a/b;URI=spiffe://evil/ns/a/sa/b"),
        ("X-Forwarded-Client-Cert", "URI=spiffe://evil/ns/a/sa/c"),
        ("l5d-client-id", "evil"),
        ("x-envoy-peer-metadata", "evil"),
        ("x-mesh-error", "evil"),
        ("x-envoy-attempt-count", "77"),
    ];
    let evil = |headers: &http::HeaderMap| headers.values().any(|v| v.as_bytes().windows(4).any(|w| w == b"evil"));

    let answer = http1(out_addr).host(HOST).request("GET", "/mesh", &forged, b"").expect("an answer");
    assert_eq!(answer.status, 200);
    let seen = app.last();
    assert!(!evil(&seen.headers), "{:?}", seen.headers);
    let xfcc: Vec<_> = seen.headers.get_all("x-forwarded-client-cert").iter().collect();
    assert_eq!(xfcc.len(), 1, "{:?}", seen.headers);
    let xfcc = xfcc[0].to_str().expect("text");
    let by = format!("By={};Hash=", id("app"));
    let uri = format!(";URI={}", id("client"));
    assert!(xfcc.starts_with(&by) && xfcc.ends_with(&uri), "{xfcc}");
    assert_eq!(seen.headers.get_all("x-envoy-attempt-count").iter().count(), 1);
    assert_ne!(seen.header("x-envoy-attempt-count"), Some("77"));

    // The same over HTTP/2.
    block_on(async {
        let client = Http2::connect(out_addr).await.expect("h2c").authority(HOST);
        let lower: Vec<_> = forged.iter().filter(|(n, _)| *n == n.to_lowercase()).copied().collect();
        let answer = client.request("GET", "/mesh2", &lower, b"").await.expect("an answer");
        assert_eq!(answer.status, 200);
    });
    assert!(!evil(&app.last().headers) && app.last().header("x-forwarded-client-cert").is_some_and(|x| x == xfcc));

    // Plaintext at a PERMISSIVE port, past the client's sidecar: nobody is proven, nothing is told.
    assert_eq!(http1(in_addr).request("GET", "/plain", &forged, b"").expect("an answer").status, 200);
    let seen = app.last();
    assert!(!evil(&seen.headers) && seen.header("x-forwarded-client-cert").is_none(), "{:?}", seen.headers);

    assert_eq!(logged(&inn, "/mesh")["peer_identity"], id("client"));
    assert!(logged(&inn, "/plain").get("peer_identity").is_none());
    assert_eq!(logged(&out, "/mesh")["upstream_identity"], id("app"));
    let (client_id, app_id) = (id("client"), id("app"));
    let at_app = |labels: &[(&str, &str)], n| inn.wait_metric("weft_http_requests_total", labels, n, SOON);
    assert_eq!(at_app(&[("source_identity", &client_id), ("tls", "mutual_tls")], 2.0), 2.0);
    assert_eq!(at_app(&[("source_identity", "unknown"), ("tls", "none")], 1.0), 1.0);
    let labels = [("destination_identity", app_id.as_str()), ("tls", "mutual_tls")];
    assert_eq!(out.wait_metric("weft_http_requests_total", &labels, 2.0, SOON), 2.0);
}

/// How long until the peer ends a quiet connection.
fn ends_after(stream: &mut Stream, since: Instant) -> Duration {
    stream.set_timeout(SOON);
    let (_, end) = stream.read_all();
    assert_ne!(end, End::Timeout);
    since.elapsed()
}

/// What a new policy does not allow is cut, also in the middle of a stream; what it allows goes on.
#[test]
fn live_connections_are_cut_when_strict_is_switched_on() {
    let certs = Certs::new();
    let app = Backend::start(echo());
    let (in_addr, out_addr) = (free_addr(), free_addr());
    let mut side = inbound(identity(&certs.app), in_addr, app.addr(), "mtls: permissive");
    let inn = side.start();
    let _out = outbound(identity(&certs.client), out_addr, &id("app"), &[in_addr]).start();

    let mut kept = http1(in_addr);
    assert_eq!(kept.get("/kept").status, 200);
    let mut tunnel = Stream::connect(in_addr).expect("connect");
    // Bytes that are not HTTP go to the app as they are, which answers them with 400 and stays as it is: still a connection.
    tunnel.write_all(b"\x01\x02\x03\x04").expect("write");
    let mut silent = Stream::connect(in_addr).expect("connect");
    let mut meshed = http1(out_addr).host(HOST);
    assert_eq!(meshed.get("/mesh").status, 200);

    block_on(async {
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        let open = async |addr| {
            let client = Http2::connect(addr).await.expect("h2c").authority(HOST);
            let (response, mut send) = client.open(client.head("POST", "/stream", &grpc), false).await.expect("open");
            send.send_data(weft_testkit::backend::grpc_frame(b"one"), false).expect("send");
            let mut recv = response.await.expect("head").into_body();
            assert!(recv.data().await.expect("data").is_ok());
            (client, send, recv)
        };
        let (_plain, _plain_send, mut plain_recv) = open(in_addr).await;
        let (_mesh, mut mesh_send, mut mesh_recv) = open(out_addr).await;

        let connections = app.connections();
        side.listeners = vec![inbound_listener("in", in_addr, app.addr(), "mtls: strict")];
        let switched = Instant::now();
        // By the file's change alone, without SIGHUP.
        inn.reconfigure(&side.yaml());
        let cut = tokio::time::timeout(SOON, plain_recv.data()).await.expect("cut in time");
        assert!(cut.is_none_or(|data| data.is_err()));
        let stream_cut = switched.elapsed();
        let kept_cut = ends_after(&mut kept.stream, switched);
        let _ = ends_after(&mut tunnel, switched);
        println!("cut after {stream_cut:?} (stream), {kept_cut:?} (kept)");
        assert!(stream_cut < Duration::from_secs(5), "{stream_cut:?}");

        // Nobody knew yet what this one is; now it may not be plaintext.
        let _ = silent.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let (answer, _) = silent.read_all();
        assert!(answer.is_empty());

        mesh_send.send_data(weft_testkit::backend::grpc_frame(b"two"), true).expect("send");
        let mut got = 0;
        while let Some(data) = mesh_recv.data().await {
            let data = data.expect("the mesh's stream goes on");
            let _ = mesh_recv.flow_control().release_capacity(data.len());
            got += data.len();
        }
        assert_eq!(got, 5 + 3);
        let trailers = mesh_recv.trailers().await.expect("trailers").expect("trailers");
        assert_eq!(trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"0"[..]));
        assert_eq!(app.connections(), connections, "no connection of the mesh was made again");
    });
    assert_eq!(meshed.get("/after").status, 200);
    inn.wait_metric("weft_tcp_rejected_total", &[("reason", "policy")], 2.0, SOON);
}

/// The same for a client that is not on the list any more.
#[test]
fn live_connections_are_cut_when_clients_change() {
    let certs = Certs::new();
    let app = Backend::start(echo());
    let (in_addr, out_addr) = (free_addr(), free_addr());
    let clients = |account: &str| format!("mtls: strict, clients: {{ids: [{}]}}", id(account));
    let mut side = inbound(identity(&certs.app), in_addr, app.addr(), &clients("client"));
    let inn = side.start();
    let _out = outbound(identity(&certs.client), out_addr, &id("app"), &[in_addr]).start();
    assert_eq!(get(out_addr, "/one").status, 200);
    side.listeners = vec![inbound_listener("in", in_addr, app.addr(), &clients("other"))];
    side.apply(&inn);
    inn.wait_metric("weft_tcp_rejected_total", &[("reason", "policy")], 1.0, SOON);
    assert_eq!(get(out_addr, "/two").status, 503);
    side.listeners = vec![inbound_listener("in", in_addr, app.addr(), &clients("client"))];
    side.apply(&inn);
    until("let in again", SOON, || get(out_addr, "/three").status == 200);
    assert!(app.seen().iter().all(|s| s.path() != "/two"));
}
