//! The error contract: `docs/errors.md` is `Reason`'s own table, and each reason that a client can bring about is brought about,
//! by a plain caller and by one that speaks gRPC, and looked at whole: status, body, fields, flag and reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use rig::{Hop, SOON, hop, hop_with, id};
use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use weft_policy::reason::Reason;
use weft_testkit::backend::{Action, Backend, Reply, always, grpc_frame};
use weft_testkit::ca::Ca;
use weft_testkit::client::{Answer, Http2, Response, Stream, http1, read_response};
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::raw_backend::{RawBackend, TcpPeer};
use weft_testkit::wait::{block_on, until};

const ERRORS: &str = include_str!("../../docs/errors.md");

/// The rows of a table of the document, by the word in its first column.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let section =
        ERRORS.split("\n## ").find(|s| s.starts_with(heading)).unwrap_or_else(|| panic!("no section {heading}"));
    let table = section.lines().filter(|l| l.starts_with("| ")).skip(1);
    let cell = |c: &str| c.trim().trim_matches('`').replace("\\|", "|");
    table
        .map(|l| l.trim_matches('|').split(" | ").map(cell).collect::<Vec<_>>())
        .filter(|r| !r[0].starts_with("---"))
        .collect()
}

#[test]
fn the_document_is_the_table() {
    let rows = rows("The table");
    let words: Vec<&str> = rows.iter().map(|r| r[0].as_str()).collect();
    assert_eq!(words, Reason::ALL.map(Reason::word), "one row for each reason, in the order of the code");
    for (row, reason) in rows.iter().zip(Reason::ALL) {
        let [word, situation, status, grpc, flag, body, fields] = &row[..] else { panic!("{row:?}") };
        assert!(!situation.is_empty(), "{word}");
        assert_eq!(*status, reason.status().to_string(), "{word}: status");
        assert_eq!(*grpc, reason.grpc_status().to_string(), "{word}: gRPC status");
        assert_eq!(flag, reason.flag(), "{word}: flag");
        let written = match body.strip_prefix("RESET ") {
            Some(why) => format!("upstream connect error or disconnect/reset before headers. reset reason: {why}"),
            None if body == "empty" => String::new(),
            None => body.clone(),
        };
        assert_eq!(written, reason.body(false), "{word}: body");
        let again = match body.strip_prefix("RESET ") {
            Some(why) => format!(
                "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: {why}"
            ),
            None => written,
        };
        assert_eq!(again, reason.body(true), "{word}: body after a retry");
        assert_eq!(fields.contains("connection: close"), reason.closes(), "{word}: {fields}");
        assert_eq!(fields.contains("x-envoy-overloaded: true"), reason == Reason::Overflow, "{word}: {fields}");
        assert_eq!(fields.contains("retry-after: 1"), reason == Reason::Overload, "{word}: {fields}");
    }
    // Every reason is either brought about by a test, or it is said why it cannot be.
    let shown: BTreeSet<&str> = SHOWN.iter().map(|r| r.word()).collect();
    let untold: BTreeSet<&str> = UNTOLD.iter().map(|(r, _)| r.word()).collect();
    let all: BTreeSet<&str> = Reason::ALL.iter().map(|r| r.word()).collect();
    assert!(shown.is_disjoint(&untold));
    assert_eq!(shown.union(&untold).copied().collect::<BTreeSet<_>>(), all);
}

/// Reasons that the tests below bring about.
const SHOWN: [Reason; 23] = [
    Reason::Malformed,
    Reason::UriTooLong,
    Reason::HeadersTooLarge,
    Reason::ClientTimeout,
    Reason::ClientGone,
    Reason::NoRoute,
    Reason::InvalidBackend,
    Reason::NotAllowed,
    Reason::NoHealthyUpstream,
    Reason::ConnectFailed,
    Reason::ConnectTimeout,
    Reason::TlsFailed,
    Reason::UpstreamClosed,
    Reason::UpstreamReset,
    Reason::RefusedStream,
    Reason::UpstreamProtocol,
    Reason::UpstreamBroken,
    Reason::Overflow,
    Reason::RequestTimeout,
    Reason::PerTryTimeout,
    Reason::StreamIdle,
    Reason::FaultAbort,
    Reason::Loop,
];

/// The rest, and why no client of a proxy from a file can bring it about here.
const UNTOLD: [(Reason, &str); 7] = [
    (Reason::BodyTooLarge, "nothing from a file buffers a body with a limit"),
    (Reason::NotDiscovered, "shown where a control plane is away"),
    (Reason::NoCluster, "the file's reader refuses a route to what it does not define"),
    (Reason::Overload, "needs thousands of unknown destinations behind a redirect"),
    (Reason::UpgradeRefused, "an upstream's refusal is passed on as it is"),
    (Reason::Draining, "shown where drains are tested"),
    (Reason::Internal, "is a bug"),
];

/// What a caller sees of one reason.
fn look(hop: &Hop, path: &str, reason: Reason, retried: bool, flags: &str, fields: &[(&str, &str)]) {
    let what = format!("{reason} at {path}");
    let id = id();
    let mut sent = fields.to_vec();
    sent.push(("x-request-id", &id));
    let plain: Response = hop.send("GET", path, &sent, b"");
    assert_eq!((plain.status, plain.text().as_str()), (reason.status(), reason.body(retried)), "{what}");
    let kind = if reason.body(retried).is_empty() { None } else { Some("text/plain") };
    assert_eq!(plain.header("content-type"), kind, "{what}");
    assert_eq!(plain.header("content-length"), Some(reason.body(retried).len().to_string().as_str()), "{what}");
    let overloaded = (reason == Reason::Overflow).then_some("true");
    assert_eq!(plain.header("x-envoy-overloaded"), overloaded, "{what}");
    assert_eq!(plain.header("connection").is_some_and(|c| c == "close"), reason.closes(), "{what}");
    // Nothing of our insides is told to who is no peer, and nothing is pretended about an upstream.
    for name in ["x-mesh-error", "x-envoy-upstream-service-time", "x-envoy-attempt-count", "grpc-status"] {
        assert_eq!(plain.header(name), None, "{what}: {name}");
    }
    assert_eq!(hop.flags(&id), (flags.into(), reason.word().into()), "{what}");
    let line = hop.line(&id);
    assert_eq!(line["status"], reason.status(), "{what}");
    assert_eq!(line["authority"], "web", "{what}");
    assert!(line["why"].as_str().is_some_and(|w| w.ends_with('.')), "{what}: {line}");

    // The same, told to a caller that speaks gRPC: in the head, without a body, with HTTP's 200.
    let id = rig::id();
    let grpc: Answer = block_on(async {
        let client = Http2::connect(hop.addr).await.unwrap().authority("web");
        let sent =
            [fields, &[("content-type", "application/grpc"), ("te", "trailers"), ("x-request-id", &id)]].concat();
        client.request("POST", path, &sent, &grpc_frame(b"m")).await.unwrap()
    });
    assert_eq!((grpc.status, grpc.body.len(), grpc.trailers.is_none()), (200, 0, true), "{what}, gRPC");
    assert_eq!(grpc.header("content-type"), Some("application/grpc"), "{what}, gRPC");
    assert_eq!(grpc.header("grpc-status"), Some(reason.grpc_status().to_string().as_str()), "{what}, gRPC");
    let message = Some(reason.body(retried)).filter(|b| !b.is_empty());
    assert_eq!(grpc.header("grpc-message"), message, "{what}, gRPC");
    assert_eq!(grpc.header("x-envoy-overloaded"), overloaded, "{what}, gRPC");
    assert_eq!(hop.flags(&id), (flags.into(), reason.word().into()), "{what}, gRPC");
    assert_eq!(hop.line(&id)["grpc_status"], reason.grpc_status(), "{what}, gRPC");
}

#[test]
fn plain_and_grpc() {
    let ca = Ca::new("outside");
    let dir = TempDir::new();
    let files = ca.workload("a", "b").write(&dir, "b", &[&ca]);
    let hang = Backend::start(Arc::new(|_| Action::Hang));
    let refuse = Backend::start(Arc::new(|_| Action::ResetStream(7)));
    let reset = Backend::start(Arc::new(|_| Action::ResetStream(2)));
    let close = Backend::start(Arc::new(|_| Action::CloseConnection));
    let garbage = RawBackend::answering_once("NONSENSE\r\n\r\n");
    let plain = TcpPeer::at(([127, 0, 0, 1], 0).into(), |mut stream, _| {
        drop(std::io::Write::write_all(&mut stream, b"220 not TLS\r\n"))
    });
    // Takes no connection: its queue is full.
    let (_queue, full) = full_queue();
    let service = |name: &str, at: &str, policy: &str| {
        format!("- {{name: {name}, port: 80, endpoints: [{at}], policy: {{{policy}}}}}\n")
    };
    let at = |addr: std::net::SocketAddr| format!("'{addr}'");
    let services = format!(
        "- name: web\n  port: 80\n  order: firstMatch\n  endpoints: []\n  routes:\n\
         {routes}\n{nobody}{dead}{deaf}{notls}{closes}{resets}{refuses}{speaks}{breaker}{hangs}",
        routes = [
            "{match: {path: {exact: /invalid}}, to: {service: web, invalid: true}}",
            "{match: {path: {exact: /empty}}, to: nobody}",
            "{match: {path: {exact: /dead}}, to: dead}",
            "{match: {path: {exact: /dead-once}}, to: dead, retry: {attempts: 0}}",
            "{match: {path: {exact: /full}}, to: full, retry: {attempts: 0}}",
            "{match: {path: {exact: /tls}}, to: notls, retry: {attempts: 0}}",
            "{match: {path: {exact: /close}}, to: closes}",
            "{match: {path: {exact: /close-again}}, to: closes, retry: {attempts: 1, on: reset}}",
            "{match: {path: {exact: /reset}}, to: resets}",
            "{match: {path: {exact: /refuse}}, to: refuses}",
            "{match: {path: {exact: /garbage}}, to: speaks}",
            "{match: {path: {exact: /overflow}}, to: breaker}",
            "{match: {path: {exact: /timeout}}, to: hangs, timeout: {request: 200ms}}",
            "{match: {path: {exact: /per-try}}, to: hangs, retry: {attempts: 1, on: '5xx', perTryTimeout: 150ms}}",
            "{match: {path: {exact: /idle}}, to: hangs, timeout: {idle: 200ms}}",
            "{match: {path: {exact: /fault}}, to: hangs, fault: {abort: {percent: 100, status: 503}}}",
        ]
        .map(|r| format!("  - {r}"))
        .join("\n"),
        nobody = service("nobody", "", ""),
        dead = service("dead", &at(free_addr()), ""),
        deaf = service("full", &at(full), "connections: {connectTimeout: 300ms}"),
        notls =
            service("notls", &at(plain.addr()), &format!("tls: {{mode: originate, roots: {}}}", files.roots.display())),
        closes = service("closes", &at(close.addr()), ""),
        resets = service("resets", &at(reset.addr()), "http: http2"),
        refuses = service("refuses", &at(refuse.addr()), "http: http2"),
        speaks = service("speaks", &at(garbage.addr()), "http: http1"),
        breaker = service("breaker", &at(hang.addr()), "breaker: {maxRequests: 0}"),
        hangs = service("hangs", &at(hang.addr()), ""),
    );
    let hop = hop(&services);
    let rows = [
        ("/nowhere", Reason::NoRoute, false, "NR"),
        ("/invalid", Reason::InvalidBackend, false, "-"),
        ("/empty", Reason::NoHealthyUpstream, false, "UH"),
        ("/dead", Reason::ConnectFailed, true, "URX,UF"),
        ("/dead-once", Reason::ConnectFailed, false, "UF"),
        ("/full", Reason::ConnectTimeout, false, "UF"),
        ("/tls", Reason::TlsFailed, false, "UF"),
        ("/close", Reason::UpstreamClosed, false, "UC"),
        ("/close-again", Reason::UpstreamClosed, true, "URX,UC"),
        ("/reset", Reason::UpstreamReset, false, "UR"),
        ("/refuse", Reason::RefusedStream, true, "URX,UR"),
        ("/garbage", Reason::UpstreamProtocol, false, "UPE"),
        ("/overflow", Reason::Overflow, false, "UO"),
        ("/timeout", Reason::RequestTimeout, false, "UT"),
        ("/per-try", Reason::PerTryTimeout, true, "URX,UT"),
        ("/idle", Reason::StreamIdle, false, "SI"),
        ("/fault", Reason::FaultAbort, false, "FI"),
    ];
    for (path, reason, retried, flags) in rows {
        look(&hop, path, reason, retried, flags, &[]);
        assert!(SHOWN.contains(&reason));
    }
    hop.wait_released();
    assert_eq!(rows.len(), 17);
}

/// A listener whose queue is full, so that a further connection gets no answer.
fn full_queue() -> (Vec<std::net::TcpStream>, std::net::SocketAddr) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    // A second listen(2) shortens the queue.
    socket2::SockRef::from(&socket).listen(0).unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        held.push(stream);
        assert!(held.len() < 100, "the queue does not fill");
    }
    // The listener itself lives as long as the process: it is nobody's to close.
    std::mem::forget(socket);
    (held, addr)
}

#[test]
fn unknown_destinations() {
    let mut ran = 0;
    for (unknown, reason, flags) in [("deny", Reason::NotAllowed, "-"), ("allow", Reason::NoRoute, "NR")] {
        let (addr, admin) = (free_addr(), free_addr());
        let yaml = format!(
            "admin: {admin}\ntelemetry: {{accessLog: json}}\nlisteners: [{{name: front, role: outbound, address: '{addr}', unknown: {unknown}}}]\n"
        );
        let proxy = weft_testkit::proxy::Proxy::start(env!("CARGO_BIN_EXE_weft-proxy"), &yaml, admin);
        let answer = http1(addr).host("nowhere.example").request("GET", "/", &[("x-request-id", "u")], b"").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (reason.status(), reason.body(false)));
        let line = proxy.wait_log(|l| l.contains("\"request_id\":\"u\""), SOON);
        assert!(line.contains(&format!("\"flags\":\"{flags}\"")) && line.contains(reason.word()), "{line}");
        ran += 1;
    }
    assert_eq!(ran, 2);
}

#[test]
fn before_a_request() {
    let backend = Backend::named("b");
    let hop = hop_with("", 1, &format!("- {{name: web, port: 80, endpoints: ['{}']}}", backend.addr()));
    let raw = |bytes: &[u8]| {
        let mut client = hop.client();
        client.send(bytes).unwrap();
        let answer = client.read().unwrap();
        let mut rest = Vec::new();
        client.stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "it is the last word on this connection");
        answer
    };
    let long = format!("GET /{} HTTP/1.1\r\nhost: web\r\n\r\n", "x".repeat(20_000));
    let large = format!("GET / HTTP/1.1\r\nhost: web\r\nx-large: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\nhost: web\r\n{}\r\n", "x-many: 1\r\n".repeat(101));
    let rows: [(&[u8], Reason); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", Reason::Malformed),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", Reason::Malformed),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", Reason::Malformed),
        (long.as_bytes(), Reason::UriTooLong),
        (large.as_bytes(), Reason::HeadersTooLarge),
        (many.as_bytes(), Reason::HeadersTooLarge),
    ];
    for (bytes, reason) in rows {
        let answer = raw(bytes);
        assert_eq!((answer.status, answer.text().as_str()), (reason.status(), reason.body(false)));
        assert_eq!((answer.header("connection"), answer.header("content-type")), (Some("close"), Some("text/plain")));
        assert!(SHOWN.contains(&reason));
    }
    assert_eq!((rows.len(), backend.requests()), (6, 0));
}

#[test]
fn a_loop_ends() {
    let backend = Backend::named("b");
    let hop = hop(&format!("- {{name: web, port: 80, endpoints: ['{}']}}", backend.addr()));
    look(&hop, "/", Reason::Loop, false, "LD", &[("x-mesh-hops", "64")]);
    assert_eq!((hop.send("GET", "/", &[("x-mesh-hops", "63")], b"").status, backend.requests()), (200, 1));
    assert_eq!(backend.last().header("x-mesh-hops"), Some("64"));
}

#[test]
fn without_an_answer() {
    let cut = Backend::start(always(Reply { cut_after: Some(3), chunked: true, ..Reply::text(200, "abcdef") }));
    let hang =
        TcpPeer::at(([127, 0, 0, 1], 0).into(), |mut stream, _| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let services = |at: std::net::SocketAddr| format!("- {{name: web, port: 80, endpoints: ['{at}']}}");
    let hop = hop(&services(cut.addr()));
    // What breaks off is not ended: neither for plain callers nor for gRPC, whose trailers nobody makes up.
    assert!(hop.client().request("GET", "/", &[("x-request-id", "cut")], b"").is_err());
    assert_eq!(hop.flags("cut"), ("UR".into(), "upstream_broke_off".into()));
    block_on(async {
        let client = Http2::connect(hop.addr).await.unwrap();
        let sent = [("content-type", "application/grpc"), ("x-request-id", "cut-grpc")];
        let error = client.request("POST", "/", &sent, &grpc_frame(b"m")).await.expect_err("cut");
        assert!(error.is_reset(), "{error}");
    });
    assert_eq!(hop.flags("cut-grpc"), ("UR".into(), "upstream_broke_off".into()));
    // A client that resets what it asked for is logged as 499, and blames nobody.
    hop.change(&services(hang.addr()));
    block_on(async {
        let client = Http2::connect(hop.addr).await.unwrap();
        let (response, mut send) =
            client.open(client.head("GET", "/", &[("x-request-id", "gone")]), true).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        send.send_reset(h2::Reason::CANCEL);
        drop(response);
        tokio::time::sleep(Duration::from_millis(100)).await;
    });
    assert_eq!(hop.flags("gone"), ("DC".into(), "downstream_remote_disconnect".into()));
    assert_eq!(hop.line("gone")["status"], 499);
    // In the middle of a body, and by a reset of its connection.
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nhost: web\r\nx-request-id: half\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
    until("it is under way", SOON, || hop.held("active_requests") == 1.0);
    client.stream.reset();
    assert_eq!(hop.flags("half").0, "DC");
    hop.wait_released();
}

#[test]
fn a_slow_client_is_told() {
    let backend = Backend::named("b");
    let (addr, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\ntelemetry: {{accessLog: json}}\nlisteners: [{{name: front, role: hop, address: '{addr}', to: web, limits: {{headerTimeout: 400ms, bodyIdle: 400ms}}}}]\n\
         services: [{{name: web, port: 80, endpoints: ['{}']}}]\n",
        backend.addr()
    );
    let _proxy = weft_testkit::proxy::Proxy::start(env!("CARGO_BIN_EXE_weft-proxy"), &yaml, admin);
    for bytes in
        ["GET / HTTP/1.1\r\nhost: web\r\nx-sl", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 10\r\n\r\nhalf"]
    {
        let mut stream = Stream::connect(addr).unwrap();
        std::io::Write::write_all(&mut stream, bytes.as_bytes()).unwrap();
        let answer = read_response(&mut stream, false).unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str(), answer.header("connection")),
            (408, "request timeout", Some("close")),
            "{bytes:?}"
        );
    }
}

/// Two sidecars, the app behind the second not there or rude: what the first one's client sees is what Istio's sees.
#[test]
fn through_a_pair() {
    let ca = Ca::new("cluster.local");
    let dir = TempDir::new();
    let [web, app] = ["web", "app"].map(|name| ca.workload("demo", name).write(&dir, name, &[&ca]));
    let start = |name: &str, files: &weft_testkit::ca::Files, rest: &str| {
        let admin = free_addr();
        let yaml = format!(
            "admin: {admin}\nworkload: {{name: {name}, namespace: demo}}\ntelemetry: {{accessLog: json}}\nidentity: {{certificate: {}, key: {}, \
             trust: [{{domain: cluster.local, roots: [{}]}}]}}\n{rest}",
            files.cert.display(),
            files.key.display(),
            files.roots.display()
        );
        weft_testkit::proxy::Proxy::start(env!("CARGO_BIN_EXE_weft-proxy"), &yaml, admin)
    };
    let line = |proxy: &weft_testkit::proxy::Proxy, id: &str| -> serde_json::Value {
        let wanted = format!("\"request_id\":\"{id}\"");
        serde_json::from_str(&proxy.wait_log(|l| l.contains(&wanted), SOON)).unwrap()
    };
    let (outbound, inbound, dead) = (free_addr(), free_addr(), free_addr());
    let server = |at: std::net::SocketAddr| {
        format!("listeners: [{{name: in, role: inbound, address: '{inbound}', app: '{at}', mtls: strict}}]\n")
    };
    let client = |tls: &str| {
        format!(
            "listeners: [{{name: out, role: hop, address: '{outbound}', to: app}}]\nservices:\n- {{name: app, port: 80, identity: {}, \
             endpoints: ['{inbound}'], policy: {{tls: {tls}}}}}\n",
            ca.id("demo", "app")
        )
    };
    let theirs = start("app", &app, &server(dead));
    let ours = start("web", &web, &client("auto"));
    let answer = http1(outbound).request("GET", "/", &[("x-request-id", "dead")], b"").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (503, Reason::ConnectFailed.body(true)));
    assert_eq!(answer.header("x-mesh-error"), None, "no plain caller is told");
    // The server's side says why and how often. The client's knows by it that no app has seen the request, and tries again: another
    // pod, if there is one.
    let (server_line, client_line) = (line(&theirs, "dead"), line(&ours, "dead"));
    assert_eq!((&server_line["flags"], &server_line["attempts"]), (&"URX,UF".into(), &3.into()));
    assert_eq!((&client_line["flags"], &client_line["attempts"]), (&"URX".into(), &3.into()));
    assert_eq!(client_line["status"], 503);
    // A verified peer is told.
    let tls = weft_testkit::tls::client(Some(&ca.workload("demo", "web")), &["http/1.1"]);
    let mut peer = weft_testkit::client::Http1::tls(inbound, &tls, "weft.mesh").unwrap();
    assert_eq!(peer.get("/").header("x-mesh-error"), Some("remote_connection_failure"));
    drop((ours, theirs));

    // Plaintext to a strict listener.
    let backend = Backend::start(always(Reply::text(200, "app").header("x-mesh-error", "forged")));
    let theirs = start("app", &app, &server(backend.addr()));
    let ours = start("web", &web, &client("disable"));
    let answer = http1(outbound).request("GET", "/", &[("x-request-id", "plain")], b"").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (503, Reason::UpstreamClosed.body(false)));
    assert_eq!((answer.body.len(), line(&ours, "plain")["flags"].as_str()), (95, Some("UC")));
    assert_eq!(backend.requests(), 0);
    drop(ours);
    // What the app says of the mesh is not believed.
    let _ours = start("web", &web, &client("auto"));
    let answer = http1(outbound).get("/");
    assert_eq!((answer.status, answer.header("x-mesh-error")), (200, None));
    let mut peer = weft_testkit::client::Http1::tls(inbound, &tls, "weft.mesh").unwrap();
    assert_eq!(peer.get("/").header("x-mesh-error"), None);
    drop(theirs);
}
