//! Bytes that two parsers could read differently: a corpus against the proxy in front of a recorder that reads strictly, and
//! the rows of the threat model that a generator does not reach. Every case is followed by a sentinel on its connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "smuggling/corpus.rs"]
mod corpus;
#[path = "smuggling/oracle.rs"]
mod oracle;
#[path = "smuggling/recorder.rs"]
mod recorder;

use oracle::End;
use recorder::Recorder;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use weft_testkit::backend::{self, Action, Backend, Reply};
use weft_testkit::ca::Ca;
use weft_testkit::client::{self, ReadError, Response, read_response};
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::Proxy;
use weft_testkit::raw_backend::{RawBackend, Step};

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
const LIMIT: Duration = Duration::from_secs(10);

/// A plain hop in front of `endpoint`.
fn hop(endpoint: SocketAddr, listener: &str, service: &str) -> (Proxy, SocketAddr) {
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http, to: app{listener}}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [{endpoint}]{service}}}\n"
    );
    (Proxy::start(BIN, &yaml, admin), address)
}

/// Two sidecars in front of `app`: HTTP/1.1 in, HTTP/2 in mesh TLS between them, HTTP/1.1 out.
struct Pair {
    outbound: Proxy,
    _inbound: Proxy,
    address: SocketAddr,
    mesh: SocketAddr,
    ca: Ca,
    _dir: TempDir,
}

fn pair(app: SocketAddr) -> Pair {
    let ca = Ca::new("cluster.local");
    let dir = TempDir::new();
    let identity = |name: &str| {
        let files = ca.workload("demo", name).write(&dir, name, &[&ca]);
        format!(
            "identity: {{certificate: {:?}, key: {:?}, trust: [{{domain: cluster.local, roots: [{:?}]}}]}}\n",
            files.cert, files.key, files.roots
        )
    };
    let (mesh, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\n{}listeners:\n- {{name: in, role: inbound, address: {mesh}, app: {app}, mtls: strict}}\n",
        identity("server")
    );
    let inbound = Proxy::start(BIN, &yaml, admin);
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\n{}listeners:\n- {{name: out, role: outbound, address: {address}, protocol: http, to: app}}\n\
         services:\n- {{name: app, port: 80, protocol: http, identity: {:?}, endpoints: [{mesh}]}}\n",
        identity("client"),
        ca.id("demo", "server"),
    );
    let outbound = Proxy::start(BIN, &yaml, admin);
    Pair { outbound, _inbound: inbound, address, mesh, ca, _dir: dir }
}

/// What became of a case: `Err` says what is wrong.
#[derive(Debug, PartialEq, Clone, Copy)]
enum Outcome {
    Served,
    Refused,
}

fn dial(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream.set_read_timeout(Some(LIMIT)).expect("timeout");
    stream
}

fn run(front: SocketAddr, recorder: &Recorder, case: &corpus::Case) -> Result<Outcome, String> {
    let bytes = [&case.bytes[..], &corpus::sentinel(&case.id)].concat();
    let want = oracle::read(&bytes);
    let mut stream = dial(front);
    // A refusal may come, and with it the end, before everything is written.
    let _ = stream.write_all(&bytes);
    if want.end != End::Clean {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answers: Vec<Response> = Vec::new();
    let mut refusal = None;
    while answers.len() <= want.requests.len() {
        if answers.len() == want.requests.len()
            && want.end == End::Clean
            && !want.requests.last().is_some_and(|r| r.last)
        {
            break;
        }
        let head_only = want.requests.get(answers.len()).is_some_and(|r| r.method == "HEAD");
        match read_response(&mut stream, head_only) {
            Ok(answer) if answer.header("x-nonce").is_some() => answers.push(answer),
            Ok(answer) => {
                refusal = Some(answer.status);
                break;
            }
            Err(ReadError::NoAnswer) => break,
            Err(e) => return Err(format!("after {} answers: {e}", answers.len())),
        }
    }
    let served = answers.len();
    if let Some(status) = refusal
        && !matches!(status, 400 | 404 | 408 | 414 | 417 | 431 | 501 | 505)
    {
        return Err(format!("status {status}"));
    }
    if served > want.requests.len() {
        return Err(format!("{served} answers to {} requests", want.requests.len()));
    }
    let ended = refusal.is_some() || served < want.requests.len() || want.end != End::Clean;
    if ended {
        let mut rest = Vec::new();
        // A reset is an end as well: our bytes lay unread.
        match stream.read_to_end(&mut rest) {
            Err(e) if client::is_timeout(&e) => return Err("refused, and the connection stays".into()),
            _ if !rest.is_empty() => return Err(format!("bytes after the end: {:?}", String::from_utf8_lossy(&rest))),
            _ => {}
        }
    }
    // Everything that was answered was seen once, as sent.
    for (answer, sent) in answers.iter().zip(&want.requests) {
        let id = String::from_utf8_lossy(sent.field(recorder::CASE).unwrap_or_default()).into_owned();
        if answer.header("x-nonce") != Some(id.as_str()) || answer.status != 200 {
            return Err(format!("the answer of {:?} for {id}", answer.header("x-nonce")));
        }
        let seen = recorder.whole(&id);
        let [seen] = &seen[..] else { return Err(format!("{id} was seen {} times", seen.len())) };
        let plain = sent.target.starts_with('/') && !sent.odd;
        if seen.method != sent.method || seen.body != sent.body || (plain && seen.target != sent.target) {
            return Err(format!("sent {sent:?}, seen {seen:?}"));
        }
        for field in ["transfer_encoding", "connection", "http2-settings", "keep-alive", "te"] {
            if field != "transfer_encoding" && seen.field(field).is_some() {
                return Err(format!("{field} was passed on"));
            }
        }
        for trailer in ["content-length", "transfer-encoding", "host", "x-forwarded-client-cert"] {
            if seen.trailers.iter().any(|(n, _)| n == trailer) {
                return Err(format!("{trailer} was passed on in trailers"));
            }
        }
        let nominated = sent.field("connection").is_some_and(|v| v.ends_with(b"x-z"));
        if nominated && seen.field("x-z").is_some() {
            return Err("a nominated field was passed on".into());
        }
    }
    // And nothing else was.
    for sent in &want.requests[served..] {
        let id = String::from_utf8_lossy(sent.field(recorder::CASE).unwrap_or_default()).into_owned();
        if !recorder.whole(&id).is_empty() {
            return Err(format!("{id} was seen and not answered"));
        }
    }
    if served < want.requests.len() {
        // Only what is odd may be refused, and what stands behind it.
        let odd = want.requests[..=served].iter().any(|r| r.odd);
        if !odd {
            return Err(format!("refused ({refusal:?}) though valid; the oracle ends with {:?}", want.end));
        }
        return Ok(Outcome::Refused);
    }
    Ok(if want.end == End::Clean { Outcome::Served } else { Outcome::Refused })
}

/// Cases in the corpus; a change of the grammar changes it on purpose.
const CASES: usize = 1508;

fn run_corpus(front: SocketAddr, recorder: &Recorder) {
    let cases = corpus::all();
    let ids: std::collections::HashSet<&str> = cases.iter().map(|c| c.id.as_str()).collect();
    assert_eq!((cases.len(), ids.len()), (CASES, CASES));
    let (next, served, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match run(front, recorder, case) {
                        Ok(Outcome::Served) => served.fetch_add(1, Ordering::SeqCst),
                        Ok(Outcome::Refused) => refused.fetch_add(1, Ordering::SeqCst),
                        Err(why) => {
                            wrong.lock().expect("wrong").push(format!("{}: {why}", case.id));
                            0
                        }
                    };
                }
            });
        }
    });
    let (served, refused) = (served.into_inner(), refused.into_inner());
    println!(
        "{} cases: {served} served, {refused} refused; the backend saw {} requests",
        cases.len(),
        recorder.requests()
    );
    let wrong = wrong.into_inner().expect("wrong");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(recorder.faults(), Vec::<String>::new());
    assert_eq!(served + refused, CASES);
    // The corpus has both kinds in earnest.
    assert!(served > 200 && refused > 600, "{served} served, {refused} refused");
}

#[test]
fn corpus_through_a_hop() {
    let recorder = Recorder::start();
    let (_proxy, front) = hop(recorder.addr(), "", "");
    run_corpus(front, &recorder);
}

#[test]
fn corpus_through_a_pair() {
    let recorder = Recorder::start();
    let pair = pair(recorder.addr());
    run_corpus(pair.address, &recorder);
}

// --- What a generator does not reach ---

fn raw(front: SocketAddr, bytes: impl AsRef<[u8]>) -> client::Http1 {
    let mut client = client::http1(front);
    let _ = client.send(bytes);
    client
}

/// PI-09
#[test]
fn a_thousand_pipelined_requests_are_answered_in_order_and_none_after_close() {
    let recorder = Recorder::start();
    let (_proxy, front) = hop(recorder.addr(), "", "");
    let mut all = Vec::new();
    for i in 0..1000 {
        all.extend_from_slice(format!("GET /p HTTP/1.1\r\nHost: a\r\nX-Case: pipe-{i}\r\n\r\n").as_bytes());
    }
    all.extend_from_slice(b"GET /p HTTP/1.1\r\nHost: a\r\nX-Case: pipe-last\r\nConnection: close\r\n\r\n");
    all.extend_from_slice(&corpus::sentinel("pipe"));
    let stream = dial(front);
    let mut writer = stream.try_clone().expect("clone");
    let writing = std::thread::spawn(move || writer.write_all(&all));
    let mut stream = stream;
    for i in 0..1000 {
        let answer = read_response(&mut stream, false).expect("answer");
        assert_eq!(answer.header("x-nonce"), Some(format!("pipe-{i}").as_str()));
    }
    let answer = read_response(&mut stream, false).expect("answer");
    assert_eq!(answer.header("x-nonce"), Some("pipe-last"));
    assert!(matches!(read_response(&mut stream, false), Err(ReadError::NoAnswer)));
    let _ = writing.join();
    assert_eq!(recorder.requests(), 1001);
    assert!(recorder.whole("pipe.sentinel").is_empty());
}

/// PI-08: the answer comes while the client still has its body.
#[test]
fn an_unread_body_is_never_the_next_request() {
    let backend = Backend::start(std::sync::Arc::new(|seen| match seen.path() {
        "/early" => Action::Early(Reply::text(413, "no")),
        _ => Action::Echo,
    }));
    let (_proxy, front) = hop(backend.addr(), "", "");
    let inner = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    for expect in ["", "Expect: 100-continue\r\n"] {
        for (length, body) in [(inner.len(), inner), (0, ""), (200_000, inner)] {
            let mut client =
                raw(front, format!("POST /early HTTP/1.1\r\nHost: a\r\n{expect}Content-Length: {length}\r\n\r\n"));
            assert_eq!(client.read().expect("answer").status, 413, "{expect:?} {length}");
            let _ = client.send(format!("{body}GET /sentinel HTTP/1.1\r\nHost: a\r\n\r\n"));
            match client.read() {
                Ok(answer) => assert_eq!((answer.status, length < 1000), (200, true)),
                Err(ReadError::NoAnswer) => {}
                Err(e) => panic!("{e}"),
            }
        }
    }
    assert!(backend.seen().iter().all(|s| s.path() == "/early" || s.path() == "/sentinel"), "{:?}", backend.seen());
}

/// PI-10
#[test]
fn nominated_fields_go_and_the_proxys_own_stay() {
    let backend = Backend::named("b");
    let (_proxy, front) = hop(backend.addr(), "", "");
    let fields = "Connection: close, authorization, x-request-id, x-mesh-hops, x-envoy-attempt-count, traceparent, host\r\n\
                  Authorization: secret\r\nX-Request-Id: mine\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip, trailers\r\n";
    let mut client = raw(front, format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n"));
    assert_eq!(client.read().expect("answer").status, 200);
    let seen = backend.last();
    for gone in ["authorization", "connection", "keep-alive", "proxy-connection"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert_ne!(seen.header("x-request-id"), Some("mine"));
    for stays in ["x-request-id", "x-mesh-hops", "x-envoy-attempt-count", "traceparent"] {
        assert!(seen.header(stays).is_some(), "{stays}");
    }
    assert_eq!(seen.header("host"), Some("a.test"));
    assert_eq!(seen.header("te"), Some("trailers"));
}

/// PI-11
#[test]
fn tunnels_open_only_by_a_matching_101() {
    let websocket = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let plain = "GET /ws HTTP/1.1\r\nHost: a\r\n\r\n";
    let yes = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let other = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: frob\r\n\r\n";
    let none = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let inner = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    for (request, answer, status, tunnel) in [
        (websocket, yes, 101, true),
        (websocket, ok, 200, false),
        (websocket, other, 502, false),
        (websocket, none, 502, false),
        (plain, yes, 502, false),
    ] {
        let backend = RawBackend::start(move |_| vec![Step::Until(b"\r\n\r\n"), Step::Send(answer.into())]);
        let (_proxy, front) = hop(backend.addr(), "", "");
        // What comes behind the request before its answer is nobody's request.
        let mut client = raw(front, format!("{request}{inner}"));
        let got = client.read().expect("answer").status;
        assert_eq!(got, status, "{request:?} {answer:?}");
        let _ = client.stream.tcp().shutdown(Shutdown::Write);
        let _ = client.stream.read_all();
        let through = backend.all().contains("GET /inner");
        // To a plain request the inner one is an honest neighbour, and this backend answers only once.
        assert!(through == tunnel || request == plain, "{request:?} {answer:?}: {}", backend.all());
    }
    // Nobody upgrades to h2c here: the request is served as it is.
    let backend = Backend::named("b");
    let (_proxy, front) = hop(backend.addr(), "", "");
    let upgrade = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    let mut client = raw(front, format!("{upgrade}GET /sentinel HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!(client.read().expect("answer").status, 200);
    assert_eq!(client.read().expect("sentinel").status, 200);
    let seen = backend.seen();
    assert_eq!(seen.len(), 2);
    assert!(["upgrade", "http2-settings", "connection"].iter().all(|n| seen[0].header(n).is_none()), "{:?}", seen[0]);
}

/// PI-30, as rulings.md has it: one canonical form, which is also what is forwarded.
#[test]
fn paths_are_forwarded_in_one_form() {
    let backend = Backend::named("b");
    let (_proxy, front) = hop(backend.addr(), "", "");
    let table: [(&str, Option<&str>); 24] = [
        ("/a/./b", Some("/a/b")),
        ("/a/../b", Some("/b")),
        ("/../../a", Some("/a")),
        ("/a/%2e%2e/b", Some("/b")),
        ("/a/%2E./b", Some("/b")),
        ("/a/.%2e/", Some("/")),
        ("/%61dmin", Some("/admin")),
        ("/a%2fb", Some("/a%2fb")),
        ("/a%2Fb", Some("/a%2Fb")),
        ("/a%5cb", Some("/a%5cb")),
        ("/a\\..\\b", Some("/b")),
        ("//a//b", Some("//a//b")),
        ("/a;x=y/b", Some("/a;x=y/b")),
        ("/a/..;x=y/b", Some("/a/..;x=y/b")),
        ("/%252e%252e/a", Some("/%252e%252e/a")),
        ("/A/b.", Some("/A/b.")),
        ("/a/b/", Some("/a/b/")),
        ("/a?b=../c&d=%2e", Some("/a?b=../c&d=%2e")),
        ("/a%00b", None),
        ("/a%", None),
        ("/a%zz", None),
        ("/a%2", None),
        ("/\x7f", None),
        ("/a\x01", None),
    ];
    for (sent, want) in table {
        backend.clear();
        let sentinel = "GET /sentinel HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut client = raw(front, format!("GET {sent} HTTP/1.1\r\nHost: a\r\n\r\n{sentinel}"));
        let answer = client.read().expect("answer");
        match want {
            Some(want) => {
                assert_eq!((answer.status, backend.seen()[0].target.as_str()), (200, want), "{sent}");
                assert_eq!(client.read().expect("sentinel").status, 200);
            }
            None => {
                assert_eq!((answer.status, answer.header("connection")), (400, Some("close")), "{sent}");
                assert!(client.read().is_err());
                assert_eq!(backend.requests(), 0, "{sent}");
            }
        }
    }
}

/// PI-36
#[test]
fn a_loop_ends() {
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http, to: self}}\n\
         services:\n- {{name: self, port: 80, protocol: http, endpoints: [{address}]}}\n"
    );
    let proxy = Proxy::start(BIN, &yaml, admin);
    let mut client = client::http1(address);
    assert_eq!(client.get("/").status, 508);
    assert_eq!(client.get("/sentinel").status, 508);
    assert!(proxy.fds() < 400, "{} descriptors", proxy.fds());
}

const FORGED: &[(&str, &str)] = &[
    ("x-forwarded-client-cert", "By=spiffe://evil"),
    ("X-Forwarded-Client-Cert", "By=spiffe://evil"),
    ("x_forwarded_client_cert", "By=spiffe://evil"),
    ("x-forwarded_client-cert", "By=spiffe://evil"),
    ("x-envoy-upstream-rq-timeout-ms", "1"),
    ("X-Envoy-Retry-On", "5xx"),
    ("x_envoy_max_retries", "9"),
    ("x-mesh-error", "forged"),
    ("x-mesh-http2", "1"),
    ("l5d-client-id", "evil"),
    ("l5d_dst_override", "evil"),
];

/// PI-40: what only the mesh may say is not believed from anybody else, by either protocol, in heads or in trailers.
#[test]
fn forged_fields_are_removed() {
    let backend = Backend::named("b");
    let pair = pair(backend.addr());
    let check = |what: &str| {
        let seen = backend.last();
        for (name, value) in &seen.headers {
            let text = String::from_utf8_lossy(value.as_bytes());
            assert!(!text.contains("evil") && !text.contains("forged"), "{what}: {name}: {text}");
            let odd = name.as_str().contains('_') && (name.as_str().contains("envoy") || name.as_str().contains("l5d"));
            assert!(!odd, "{what}: {name}");
        }
        let xfcc = seen.header("x-forwarded-client-cert").expect("the app is told who calls");
        assert!(xfcc.contains("spiffe://cluster.local/ns/demo/sa/client"), "{what}: {xfcc}");
        assert_eq!(seen.headers.get_all("x-forwarded-client-cert").iter().count(), 1);
    };
    let mut client = client::http1(pair.address);
    let answer = client.request("GET", "/", FORGED, b"").expect("answer");
    assert_eq!(answer.status, 200);
    check("HTTP/1.1");
    weft_testkit::wait::block_on(async {
        let client = client::Http2::connect(pair.address).await.expect("h2");
        let lower: Vec<(String, &str)> = FORGED.iter().map(|(n, v)| (n.to_lowercase(), *v)).collect();
        let lower: Vec<(&str, &str)> = lower.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        assert_eq!(client.request("GET", "/", &lower, b"").await.expect("answer").status, 200);
    });
    check("HTTP/2");
    // Trailers.
    let recorder = Recorder::start();
    let (_proxy, front) = hop(recorder.addr(), "", "");
    let trailers: String = FORGED.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    let head =
        "POST /t HTTP/1.1\r\nHost: a\r\nX-Case: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-fine\r\n\r\n";
    let mut client = raw(front, format!("{head}2\r\nhi\r\n0\r\nx-fine: 1\r\n{trailers}\r\n"));
    assert_eq!(client.read().expect("answer").status, 200);
    let seen = recorder.whole("trailers").pop().expect("seen");
    assert!(seen.trailers.iter().all(|(n, _)| n == "x-fine"), "{:?}", seen.trailers);
}

/// PI-43: whatever a client writes, one request is one line of JSON.
#[test]
fn the_access_log_cannot_be_forged() {
    let backend = Backend::named("b");
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\ntelemetry: {{accessLog: json}}\n\
         listeners:\n- {{name: front, role: hop, address: {address}, protocol: http, to: app}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [{}]}}\n",
        backend.addr()
    );
    let proxy = Proxy::start(BIN, &yaml, admin);
    let agents: [&[u8]; 5] = [
        b"quote\" and \\ backslash",
        "bidi \u{202e}evil\u{2066}".as_bytes(),
        b"\xff\xfe latin \xe9",
        b"tab\tinside {\"status\":200}",
        "\u{2028}line\u{85}s".as_bytes(),
    ];
    for (i, agent) in agents.iter().enumerate() {
        let head = format!("GET /{i}%0a%1b[31m HTTP/1.1\r\nHost: a\r\nX-Request-Id: log-{i}\r\nUser-Agent: ");
        let mut client = raw(address, [head.as_bytes(), agent, b"\r\n\r\n"].concat());
        assert_eq!(client.read().expect("answer").status, 200);
    }
    for i in 0..agents.len() {
        let id = format!("log-{i}");
        let line = proxy.wait_log(|l| l.contains(&id), LIMIT);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!((json["status"].as_u64(), json["request_id"].as_str()), (Some(200), Some(id.as_str())));
        let bad = |c: char| c.is_control() || "\u{202e}\u{2066}\u{2028}\u{85}".contains(c);
        assert!(!line.contains(bad), "{line:?}");
        assert_eq!(proxy.log_lines().iter().filter(|l| l.contains(&id)).count(), 1);
    }
}

/// PI-46, PI-49
#[test]
fn hellos_in_pieces_and_alpn_that_lies() {
    use weft_testkit::relay::{Plan, Relay};
    let backend = Backend::named("b");
    let pair = pair(backend.addr());
    let leaf = pair.ca.workload("demo", "other");
    let config = |alpn: &[&str]| weft_testkit::tls::client(Some(&leaf), alpn);
    // Every byte in a segment of its own.
    let relay = Relay::start(pair.mesh, Plan { slice: Some(1), ..Plan::default() });
    let mut client = client::Http1::tls(relay.addr(), &config(&["http/1.1"]), "a.test").expect("handshake");
    assert_eq!(client.get("/pieces").status, 200);
    // A hello in records of one byte each, and one that never goes on.
    let mut slow = dial(pair.mesh);
    slow.write_all(&[22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 1, 0]).expect("send");
    let mut rude = dial(pair.mesh);
    rude.write_all(&[[22, 3, 1, 0x40, 0].as_slice(), &[0xff; 16384]].concat()).expect("send");
    rude.shutdown(Shutdown::Write).expect("end");
    let mut rest = Vec::new();
    let _ = rude.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("HTTP/"), "a TLS peer is told in TLS");
    // What ALPN settled on is what is spoken.
    backend.clear();
    for (alpn, bytes) in
        [("h2", &b"GET /lie HTTP/1.1\r\nHost: a\r\n\r\n"[..]), ("http/1.1", weft_testkit::raw_h2::PREFACE)]
    {
        let mut stream = client::Stream::connect_tls(pair.mesh, &config(&[alpn]), "a.test").expect("handshake");
        assert_eq!(stream.alpn().as_deref(), Some(alpn.as_bytes()));
        stream.write_all(bytes).and_then(|()| stream.flush()).expect("send");
        let (answer, end) = stream.read_all();
        assert_ne!(end, client::End::Timeout, "{alpn}");
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{alpn}");
    }
    assert_eq!(backend.requests(), 0);
    assert!(client.get("/still").status == 200 && client::http1(pair.address).get("/still").status == 200);
    assert_eq!(pair.outbound.metric("weft_panics_total", &[]), 0.0);
}

// --- The other direction: PO-05, PO-06, PO-10, F-15 to F-20 ---

/// Answers that no careful client takes: 502 (or 503 where the server just went away), and their connection is not used again.
#[test]
fn hostile_responses_are_not_passed_on() {
    let storm = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(200) + "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let huge = format!("HTTP/1.1 200 OK\r\nx-a: {}\r\ncontent-length: 2\r\n\r\nok", "a".repeat(4 << 20));
    let many = format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", "x-a: b\r\n".repeat(5000));
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nx-poison: 1\r\n\r\npoison";
    let bad: Vec<(&str, String)> = vec![
        ("no HTTP", "NONSENSE\r\n\r\n".into()),
        ("HTTP/0.9", "hello there".into()),
        ("HTTP/2.0", "HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok".into()),
        ("status 99", "HTTP/1.1 99 X\r\ncontent-length: 2\r\n\r\nok".into()),
        ("status 20", "HTTP/1.1 20 X\r\ncontent-length: 2\r\n\r\nok".into()),
        ("status text", "HTTP/1.1 abc X\r\ncontent-length: 2\r\n\r\nok".into()),
        (
            "CL and TE",
            format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{poison}"),
        ),
        (
            "TE and CL",
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{poison}"),
        ),
        ("two CLs", format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 70\r\n\r\nok{poison}")),
        ("CL list", "HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nok".into()),
        ("CL plus", "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok".into()),
        ("CL minus", "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok".into()),
        ("CL text", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nok".into()),
        ("CL too large", "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nok".into()),
        (
            "TE twice",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n".into(),
        ),
        ("NUL in a value", "HTTP/1.1 200 OK\r\nx-a: b\0c\r\ncontent-length: 2\r\n\r\nok".into()),
        ("CR in a value", "HTTP/1.1 200 OK\r\nx-a: b\rc\r\ncontent-length: 2\r\n\r\nok".into()),
        ("no colon", "HTTP/1.1 200 OK\r\nnonsense\r\ncontent-length: 2\r\n\r\nok".into()),
        ("blank before the colon", "HTTP/1.1 200 OK\r\nx-a : b\r\ncontent-length: 2\r\n\r\nok".into()),
        ("folded", "HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\ncontent-length: 2\r\n\r\nok".into()),
        ("huge head", huge),
        ("too many fields", many),
        ("101 unasked", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".into()),
        ("head cut off", "HTTP/1.1 200 OK\r\nx-a: b".into()),
        ("nothing", String::new()),
        ("1xx storm", storm),
    ];
    let count = bad.len();
    let mut wrong = Vec::new();
    for (name, bytes) in bad {
        let (sent, cut) = (bytes.clone().into_bytes(), matches!(name, "nothing" | "head cut off" | "HTTP/0.9"));
        let backend = RawBackend::start(move |n| match n {
            1 => {
                let mut steps = vec![Step::Until(b"\r\n\r\n"), Step::Send(sent.clone())];
                steps.extend(cut.then_some(Step::Finish));
                steps
            }
            _ => {
                vec![Step::Until(b"\r\n\r\n"), Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".to_vec())]
            }
        });
        let (proxy, front) = hop(backend.addr(), "", "");
        let mut client = client::http1(front);
        match client.request("GET", "/", &[], b"") {
            Ok(answer) if name == "1xx storm" => {
                // Either way is safe; what counts is that none of them is taken for the answer, and memory.
                if !matches!(answer.status, 200 | 502) {
                    wrong.push(format!("{name}: {}", answer.status));
                }
                continue;
            }
            Ok(answer) if matches!(answer.status, 502 | 503) => {}
            Ok(answer) => wrong.push(format!("{name}: {} {:?}", answer.status, answer.text())),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
        // The next one gets its own answer.
        match client::http1(front).request("GET", "/sentinel", &[], b"") {
            Ok(answer) if answer.text() == "fine" => {}
            other => wrong.push(format!("{name}: the sentinel got {:?}", other.map(|a| (a.status, a.text())))),
        }
        if proxy.rss_kib() > 64 * 1024 {
            wrong.push(format!("{name}: {} KiB", proxy.rss_kib()));
        }
    }
    assert_eq!(count, 26);
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Bytes behind an answer, bodies where there can be none: never the next answer.
#[test]
fn late_bytes_are_nobodys_answer() {
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let cases = [
        ("GET", format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{poison}"), 200),
        ("GET", format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{poison}"), 200),
        ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{poison}"), 204),
        ("GET", format!("HTTP/1.1 204 No Content\r\ncontent-length: 49\r\n\r\n{poison}"), 204),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 49\r\n\r\n{poison}"), 304),
        ("HEAD", format!("HTTP/1.1 200 OK\r\ncontent-length: 49\r\n\r\n{poison}"), 200),
    ];
    let mut ran = 0;
    for (method, bytes, status) in cases {
        let backend = RawBackend::start(move |n| match n {
            1 => vec![Step::Until(b"\r\n\r\n"), Step::Send(bytes.clone().into_bytes())],
            _ => {
                vec![Step::Until(b"\r\n\r\n"), Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".to_vec())]
            }
        });
        let (_proxy, front) = hop(backend.addr(), "", "");
        let mut client = client::http1(front);
        match client.request(method, "/", &[], b"") {
            Ok(answer) => {
                assert!(answer.status == status || answer.status == 502, "{method} {status}: {}", answer.status);
                assert!(!answer.text().contains("poison"));
            }
            Err(e) => panic!("{method} {status}: {e}"),
        }
        let next = client::http1(front).request("GET", "/next", &[], b"").expect("answer");
        assert_eq!(next.text(), "fine", "{method} {status}");
        ran += 1;
    }
    assert_eq!(ran, 6);
}

/// PO-06: answer i belongs to request i, whoever went away in the middle.
#[test]
fn answers_belong_to_their_requests_under_aborts() {
    let backend = Backend::start(backend::echo());
    let (_proxy, front) = hop(backend.addr(), "", "");
    let whole = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let whole = &whole;
            scope.spawn(move || {
                let mut rng = weft_testkit::rng::Rng::new(thread + 1);
                let mut client = client::http1(front);
                for i in 0..500 {
                    let nonce = format!("{thread}-{i}");
                    let body = vec![b'a'; rng.below(3000) as usize];
                    let head = format!(
                        "POST /n HTTP/1.1\r\nHost: a\r\nX-Weft-Nonce: {nonce}\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    );
                    let bytes = [head.as_bytes(), &body].concat();
                    match rng.below(4) {
                        // Gone within the request, within the answer, or before it.
                        0 => {
                            let _ = client.send(&bytes[..rng.below(bytes.len() as u64) as usize]);
                            client.stream.reset();
                            client = client::http1(front);
                        }
                        1 => {
                            let _ = client.send(&bytes);
                            let mut some = [0; 40];
                            if rng.below(2) == 0 {
                                let _ = client.stream.read(&mut some);
                            }
                            client.stream.reset();
                            client = client::http1(front);
                        }
                        _ => {
                            client.send(&bytes).expect("send");
                            let answer = client.read().expect("answer");
                            assert_eq!(answer.status, 200);
                            let json = answer.json();
                            assert_eq!(
                                (json["nonce"].as_str(), json["body_len"].as_u64()),
                                (Some(nonce.as_str()), Some(body.len() as u64))
                            );
                            whole.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    println!("{} of 2000 were whole", whole.load(Ordering::SeqCst));
    assert!(whole.load(Ordering::SeqCst) > 800);
}

/// PO-10, F-15 to F-18: what died, when, and who is told what.
#[test]
fn servers_that_die_at_every_stage() {
    // After the request was sent: not repeated.
    let backend = RawBackend::start(|_| vec![Step::Until(b"hello"), Step::Reset]);
    let (_proxy, front) = hop(backend.addr(), "", "");
    assert_eq!(client::http1(front).request("POST", "/", &[], b"hello").expect("answer").status, 503);
    assert_eq!(backend.connections(), 1);
    // Within the answer's body: never a clean end, by either framing.
    for head in ["content-length: 100\r\n", "transfer-encoding: chunked\r\n"] {
        let part = if head.starts_with('c') { "some" } else { "4\r\nsome\r\n" };
        let bytes = format!("HTTP/1.1 200 OK\r\n{head}\r\n{part}").into_bytes();
        let backend =
            RawBackend::start(move |_| vec![Step::Until(b"\r\n\r\n"), Step::Send(bytes.clone()), Step::Finish]);
        let (_proxy, front) = hop(backend.addr(), "", ", policy: {http: http1}");
        match client::http1(front).request("GET", "/", &[], b"") {
            Err(ReadError::Short(answer)) => assert_eq!(answer.body, b"some"),
            other => panic!("{head}: {other:?}"),
        }
        weft_testkit::wait::block_on(async {
            let h2 = client::Http2::connect(front).await.expect("h2");
            assert!(h2.request("GET", "/", &[], b"").await.is_err(), "{head}");
        });
    }
    // Within the request's body: the client learns at once, though it still sends.
    let backend = RawBackend::start(|_| vec![Step::Until(b"\r\n\r\n"), Step::Take(1000), Step::Reset]);
    let (_proxy, front) = hop(backend.addr(), "", "");
    let mut client = client::http1(front);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").expect("send");
    client.send(vec![b'x'; 200_000]).expect("send");
    let answer = client.read().expect("answer");
    assert_eq!(answer.status, 503);
    // An early refusal is relayed while the upload goes on, which is then cut or discarded, not waited for.
    let backend = RawBackend::start(|_| {
        vec![
            Step::Until(b"\r\n\r\n"),
            Step::Send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno".to_vec()),
            Step::Finish,
        ]
    });
    let (_proxy, front) = hop(backend.addr(), "", "");
    let mut client = client::http1(front);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nsome").expect("send");
    let answer = client.read().expect("answer");
    assert_eq!((answer.status, answer.text().as_str()), (413, "no"));
}

/// F-20: a client that has said everything may end its direction and still gets its answer.
#[test]
fn half_closed_clients_are_answered() {
    let backend = Backend::start(backend::always(Reply::text(200, "late").delayed(Duration::from_millis(500))));
    let (_proxy, front) = hop(backend.addr(), "", "");
    let mut client = raw(front, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.stream.finish().expect("FIN");
    assert_eq!(client.read().expect("answer").text(), "late");
}
