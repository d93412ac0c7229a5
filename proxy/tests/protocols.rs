//! HTTP as apps speak it, through one proxy and through a pair of sidecars: upgrades, CONNECT, framing, versions, gRPC,
//! bodies that are large or answered early, and how few connections the mesh needs for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod sidecars;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sidecars::{Front, Setup, fronts, hop, pair};
use weft_testkit::backend::{Action, Backend, Reply, always, echo, fnv, grpc_frame};
use weft_testkit::client::{End, Http2, ReadError, Stream, collect, http1, send_all};
use weft_testkit::raw_backend::{RawBackend, Step, TcpPeer};
use weft_testkit::wait::{block_on, until};

const LIMIT: Duration = Duration::from_secs(20);

/// Reads up to and with the empty line behind a head.
fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            other => panic!("{other:?} within a head: {}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8(head).unwrap()
}

fn has(head: &str, line: &str) -> bool {
    head.to_ascii_lowercase().lines().any(|l| l == line)
}

/// An app that leaves HTTP: answers a head with `answer`, says `banner` at once, then echoes until the end.
fn leaver(answer: &'static str, banner: &'static str) -> TcpPeer {
    TcpPeer::at(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
        let head = read_head(&mut stream);
        let mut first = answer.replace("HEAD", &head.len().to_string()).into_bytes();
        first.extend_from_slice(banner.as_bytes());
        stream.write_all(&first).unwrap();
        let mut chunk = [0; 16 * 1024];
        while let Ok(n) = stream.read(&mut chunk) {
            if n == 0 || stream.write_all(&chunk[..n]).is_err() {
                break;
            }
        }
        let _ = stream.write_all(b"bye");
        let _ = stream.shutdown(std::net::Shutdown::Write);
    })
}

/// Sends and receives a lot in both directions at once, then ends its own direction and hears the other's end.
fn converse(stream: &mut Stream) {
    let Stream::Plain(tcp) = stream else { panic!("plain") };
    let data: Vec<u8> = (0..1u32 << 20).map(|n| (n * 7 + n / 251) as u8).collect();
    let mut writer = tcp.try_clone().unwrap();
    let sent = data.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let (back, end) = stream.read_all();
    writing.join().unwrap();
    assert!(matches!(end, End::Closed), "{end:?}");
    assert!(back.strip_suffix(b"bye").is_some_and(|b| b == data), "{} of {} bytes", back.len(), data.len());
}

const WEBSOCKET: &str = "GET /chat?room=1 HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Head: HEAD\r\n\r\n";

#[test]
fn websockets() {
    let app = leaver(SWITCHING, "welcome");
    let mut ran = 0;
    for front in fronts(app.addr(), Setup::default()) {
        // The client's first frame waits for the answer, or comes right behind the question.
        for early in ["", "early"] {
            let mut client = http1(front.addr);
            client.send(format!("{WEBSOCKET}{early}")).unwrap();
            let head = read_head(&mut client.stream);
            assert!(head.starts_with("HTTP/1.1 101 "), "{}: {head}", front.name);
            for line in
                ["upgrade: websocket", "connection: upgrade", "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="]
            {
                assert!(has(&head, line), "{}: no {line} in {head}", front.name);
            }
            let mut banner = vec![0; 7 + early.len()];
            client.stream.read_exact(&mut banner).unwrap();
            assert_eq!(String::from_utf8(banner).unwrap(), format!("welcome{early}"), "{}", front.name);
            converse(&mut client.stream);
            ran += 1;
        }
    }
    assert_eq!(ran, 4);
}

#[test]
fn upgrades_that_are_refused() {
    let mut ran = 0;
    let table: &[(&str, u16, &str)] = &[
        // The app does not want to: its answer is the answer.
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", 200, "no"),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nnever", 403, "never"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", 200, "no"),
    ];
    for (answer, status, body) in table {
        let app = RawBackend::answering(*answer);
        for front in fronts(app.addr(), Setup::default()) {
            let mut client = http1(front.addr);
            client.send(WEBSOCKET).unwrap();
            let got = client.read().unwrap_or_else(|e| panic!("{}: {e}", front.name));
            assert_eq!((got.status, got.text().as_str()), (*status, *body), "{}", front.name);
            assert!(got.header("upgrade").is_none(), "{got:?}");
            let seen = app.all().to_ascii_lowercase();
            assert!(seen.contains("upgrade: websocket\r\n") && seen.contains("connection: upgrade\r\n"), "{seen}");
            ran += 1;
        }
    }
    // A 101 that nobody asked for leads nowhere good.
    let app = RawBackend::answering(SWITCHING);
    for front in fronts(app.addr(), Setup::default()) {
        for fields in
            ["", "Upgrade: websocket\r\n", "Connection: upgrade\r\n", "Upgrade: h2c\r\nConnection: upgrade\r\n"]
        {
            let mut client = http1(front.addr);
            client.send(format!("GET / HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n")).unwrap();
            assert_eq!(client.read().unwrap().status, 502, "{} {fields}", front.name);
            ran += 1;
        }
    }
    assert_eq!(ran, 14);
}

#[test]
fn connect() {
    let app = leaver("HTTP/1.1 200 Connection established\r\n\r\n", "welcome");
    let refuser = RawBackend::answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nnever");
    let ask = "CONNECT far.test:8443 HTTP/1.1\r\nHost: far.test:8443\r\n\r\n";
    for front in fronts(app.addr(), Setup::default()) {
        let mut client = http1(front.addr);
        client.send(ask).unwrap();
        let head = read_head(&mut client.stream);
        assert!(head.starts_with("HTTP/1.1 200 "), "{}: {head}", front.name);
        assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
        let mut banner = [0; 7];
        client.stream.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"welcome");
        converse(&mut client.stream);
    }
    for front in fronts(refuser.addr(), Setup::default()) {
        let mut client = http1(front.addr);
        client.send(ask).unwrap();
        let got = client.read().unwrap();
        assert_eq!((got.status, got.text().as_str()), (403, "never"), "{}", front.name);
        assert!(refuser.all().contains("CONNECT far.test:8443 HTTP/1.1\r\n"), "{}", refuser.all());
    }
}

#[test]
fn chunks_and_trailers() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n";
    let app = RawBackend::start(move |_| {
        let ends: [&'static [u8]; 2] = [b"0\r\nx-check: 11\r\n\r\n", b"\r\n0\r\n\r\n"];
        ends.iter().flat_map(|end| [Step::Until(end), Step::Send(answer.into())]).collect()
    });
    for front in fronts(app.addr(), Setup::default()) {
        let mut client = http1(front.addr);
        let head = "POST /up HTTP/1.1\r\nHost: app.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n";
        client.send(head).unwrap();
        for piece in ["5\r\nhello\r\n", "6\r\n world\r\n", "0\r\nX-Check: 11\r\nX-Envoy-Forged: 1\r\n\r\n"] {
            client.send(piece).unwrap();
        }
        let got = client.read().unwrap_or_else(|e| panic!("{}: {e}\n{}", front.name, app.all()));
        assert_eq!((got.text().as_str(), got.trailer("x-sum")), ("abcdefg", Some("7")), "{}: {got:?}", front.name);
        let seen = app.all().to_ascii_lowercase();
        assert!(seen.contains("hello") && seen.contains(" world") && seen.contains("x-check: 11\r\n"), "{seen}");
        assert!(!seen.contains("forged"), "{seen}");
        assert!(!seen.contains("content-length"), "{seen}");
        // Without `te: trailers` a client is not bothered with them; its body is whole all the same.
        client
            .send("POST /up HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
            .unwrap();
        assert_eq!(client.read().unwrap().text(), "abcdefg", "{}", front.name);
    }
}

#[test]
fn http_1_0() {
    let app = Backend::start(Arc::new(|seen| match seen.path() {
        "/chunked" => Action::Reply(Reply { chunked: true, ..Reply::text(200, "in pieces") }),
        _ => Action::Echo,
    }));
    for front in fronts(app.addr(), Setup::default()) {
        // One request, then the end; no Host needed.
        let mut client = http1(front.addr);
        client.send("GET /one HTTP/1.0\r\n\r\n").unwrap();
        let got = client.read().unwrap();
        assert_eq!((got.status, got.version.as_str()), (200, "HTTP/1.0"), "{}: {got:?}", front.name);
        assert_eq!(got.json()["target"], "/one");
        assert_eq!(got.json()["headers"]["host"], front.addr.to_string(), "{}", front.name);
        assert!(matches!(client.read(), Err(ReadError::NoAnswer)), "{}: stayed open", front.name);
        // Kept, when both say so.
        let mut client = http1(front.addr);
        for n in 0..3 {
            client.send(format!("GET /{n} HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\n\r\n")).unwrap();
            let got = client.read().unwrap_or_else(|e| panic!("{} {n}: {e}", front.name));
            assert_eq!(got.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("keep-alive"), "{got:?}");
            assert_eq!(got.json()["target"], format!("/{n}"));
        }
        // It knows no chunks: the end of the connection is the end of the body.
        let mut client = http1(front.addr);
        client.send("GET /chunked HTTP/1.0\r\nHost: app.test\r\n\r\n").unwrap();
        let got = client.read().unwrap();
        assert!(got.until_close && got.text() == "in pieces", "{}: {got:?}", front.name);
        // A body with a length.
        let mut client = http1(front.addr);
        client.send("POST /up HTTP/1.0\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        assert_eq!(client.read().unwrap().json()["body"], "hello", "{}", front.name);
    }
}

#[test]
fn expect_continue() {
    let app = Backend::start(echo());
    for front in fronts(app.addr(), Setup::default()) {
        let mut client = http1(front.addr);
        client.send("POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").unwrap();
        // Nothing of the body is sent before the proxy asks for it.
        assert!(read_head(&mut client.stream).starts_with("HTTP/1.1 100 "), "{}", front.name);
        client.send("hello").unwrap();
        let got = client.read().unwrap();
        assert_eq!((got.status, got.json()["body"].as_str()), (200, Some("hello")), "{}", front.name);
        assert_eq!(client.get("/next").status, 200);
    }
    // Refused before the body: the client learns it without having sent a byte.
    for front in fronts(closed(), Setup::default()) {
        let mut client = http1(front.addr);
        client.send("POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").unwrap();
        let got = client.read().unwrap();
        assert_eq!(got.status, 503, "{}", front.name);
        // Behind a second sidecar the first one cannot know.
        assert!(got.interim.is_empty() || front.name == "pair", "{got:?}");
    }
}

/// An address where nobody listens.
fn closed() -> SocketAddr {
    weft_testkit::dir::free_addr()
}

#[test]
fn heads_without_bodies() {
    let app = RawBackend::start(|_| {
        let answers: [&[u8]; 4] = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: \"x\"\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ];
        answers.iter().flat_map(|a| [Step::Until(b"\r\n\r\n"), Step::Send(a.to_vec())]).collect()
    });
    for front in fronts(app.addr(), Setup::default()) {
        let mut client = http1(front.addr);
        let got = client.request("HEAD", "/", &[], b"").unwrap();
        assert_eq!((got.status, got.header("content-length")), (200, Some("1000")), "{}", front.name);
        let got = client.get("/");
        assert_eq!((got.status, got.header("content-length"), got.header("transfer-encoding")), (204, None, None));
        let got = client.get("/");
        assert_eq!((got.status, got.header("etag"), got.body.len()), (304, Some("\"x\""), 0), "{}", front.name);
        assert_eq!(client.get("/").text(), "ok", "{}", front.name);
    }
}

#[test]
fn http2_by_prior_knowledge() {
    let app = Backend::start(echo());
    for front in fronts(app.addr(), Setup::default()) {
        block_on(async {
            let client = Http2::connect(front.addr).await.unwrap().authority("app.test");
            let all: Vec<_> = (0..200)
                .map(|n| {
                    let client = client.clone();
                    tokio::spawn(async move {
                        client.request("POST", &format!("/{n}"), &[], format!("body {n}").as_bytes()).await
                    })
                })
                .collect();
            for (n, one) in all.into_iter().enumerate() {
                let answer = one.await.unwrap().unwrap_or_else(|e| panic!("{} {n}: {e}", front.name));
                let json = answer.json();
                assert_eq!((answer.status, json["target"].as_str()), (200, Some(format!("/{n}").as_str())));
                // The app is spoken to as the client spoke, also behind a hop that is always HTTP/2.
                assert_eq!(
                    (json["version"].as_str(), json["body"].as_str()),
                    (Some("HTTP/2.0"), Some(format!("body {n}").as_str()))
                );
                assert_eq!(json["headers"]["host"], "app.test", "{}", front.name);
                assert!(json["headers"]["x-mesh-http2"].is_null(), "{json}");
            }
        });
        let json = http1(front.addr).get("/x").json();
        assert_eq!(json["version"], "HTTP/1.1", "{}", front.name);
        assert!(json["headers"]["x-mesh-http2"].is_null(), "{json}");
    }
}

#[test]
fn grpc() {
    let app = Backend::start(Arc::new(|seen| match seen.path() {
        "/t.S/Echo" => Action::EchoStream,
        "/t.S/Server" => Action::Reply(Reply {
            chunks: (0..20).map(|n| grpc_frame(format!("part {n}").as_bytes())).collect(),
            delay_chunk: Duration::from_millis(2),
            ..Reply::grpc(0, b"")
        }),
        "/t.S/Client" => Action::WithBody(Box::new(|_, body| Reply::grpc(0, body.len().to_string().as_bytes()))),
        "/t.S/Fails" => Action::Reply(Reply::grpc(9, b"half an answer").trailer("grpc-message", "not%20now")),
        // Trailers only: everything in one head.
        _ => Action::Reply(
            Reply::new(200)
                .header("content-type", "application/grpc")
                .header("grpc-status", "12")
                .header("grpc-message", "no such method"),
        ),
    }));
    for front in fronts(app.addr(), Setup::default()) {
        block_on(async {
            let client = Http2::connect(front.addr).await.unwrap().authority("app.test");
            let fields = [("content-type", "application/grpc"), ("te", "trailers")];
            let name = front.name;
            let one = grpc_frame(b"hello");
            // Unary.
            let got = client.request("POST", "/t.S/Echo", &fields, &one).await.unwrap();
            assert_eq!((got.status, got.grpc_status(), &got.body[..]), (200, Some("0"), &one[..]), "{name}");
            assert_eq!(got.header("content-type"), Some("application/grpc"));
            // From the server.
            let got = client.request("POST", "/t.S/Server", &fields, &one).await.unwrap();
            let want: Vec<u8> = (0..20).flat_map(|n| grpc_frame(format!("part {n}").as_bytes())).collect();
            assert_eq!((got.grpc_status(), got.body == want), (Some("0"), true), "{name}");
            // From the client.
            let (response, mut send) = client.open(client.head("POST", "/t.S/Client", &fields), false).await.unwrap();
            for n in 0..20 {
                send_all(&mut send, one.clone(), n == 19).await.unwrap();
            }
            let got = collect(response).await.unwrap();
            assert_eq!(
                (got.grpc_status(), &got.body[5..]),
                (Some("0"), (20 * one.len()).to_string().as_bytes()),
                "{name}"
            );
            // Both at once: each answer before the next question.
            let (response, mut send) = client.open(client.head("POST", "/t.S/Echo", &fields), false).await.unwrap();
            send_all(&mut send, one.clone(), false).await.unwrap();
            let mut answer = response.await.unwrap().into_body();
            for n in 0..20 {
                let mut got = Vec::new();
                while got.len() < one.len() {
                    let data = answer.data().await.unwrap().unwrap();
                    answer.flow_control().release_capacity(data.len()).unwrap();
                    got.extend_from_slice(&data);
                }
                assert_eq!(got, one, "{name} {n}");
                send_all(&mut send, if n < 19 { one.clone() } else { Bytes::new() }, false).await.unwrap();
            }
            send.send_data(Bytes::new(), true).unwrap();
            assert!(answer.data().await.is_none());
            assert_eq!(answer.trailers().await.unwrap().unwrap()["grpc-status"], "0", "{name}");
            // Failures keep their shape.
            let got = client.request("POST", "/t.S/Fails", &fields, &one).await.unwrap();
            let trailers = got.trailers.as_ref().unwrap();
            assert_eq!(
                (got.grpc_status(), trailers["grpc-message"].to_str().unwrap()),
                (Some("9"), "not%20now"),
                "{name}"
            );
            assert_eq!(got.body, grpc_frame(b"half an answer"));
            let got = client.request("POST", "/t.S/Nothing", &fields, &one).await.unwrap();
            assert!(got.trailers.is_none() && got.body.is_empty(), "{name}: {got:?}");
            assert_eq!(
                (got.status, got.grpc_status(), got.header("grpc-message")),
                (200, Some("12"), Some("no such method")),
                "{name}"
            );
        });
    }
    // What the proxy says itself it says in gRPC's words.
    for front in fronts(closed(), Setup::default()) {
        block_on(async {
            let client = Http2::connect(front.addr).await.unwrap();
            let got = client
                .request("POST", "/t.S/Echo", &[("content-type", "application/grpc")], &grpc_frame(b"x"))
                .await
                .unwrap();
            assert_eq!((got.status, got.grpc_status()), (200, Some("14")), "{}: {got:?}", front.name);
            assert!(got.trailers.is_none(), "{got:?}");
        });
    }
}

/// The answer is there while the client still sends, and is relayed at once (F-18).
#[test]
fn early_answers() {
    let app = Backend::start(Arc::new(|_| Action::Early(Reply::text(413, "too much"))));
    let mut ran = 0;
    for front in fronts(app.addr(), Setup::default()) {
        for chunked in [false, true] {
            let framing = if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 268435456" };
            let mut client = http1(front.addr);
            client.send(format!("POST / HTTP/1.1\r\nHost: app.test\r\n{framing}\r\n\r\n")).unwrap();
            let Stream::Plain(tcp) = &client.stream else { panic!("plain") };
            let mut writer = tcp.try_clone().unwrap();
            let writing = std::thread::spawn(move || {
                let data = [b'x'; 0x10000];
                for _ in 0..4096 {
                    let head = if chunked { "10000\r\n" } else { "" };
                    let end = if chunked { "\r\n" } else { "" };
                    if writer
                        .write_all(head.as_bytes())
                        .and_then(|()| writer.write_all(&data))
                        .and_then(|()| writer.write_all(end.as_bytes()))
                        .is_err()
                    {
                        return false;
                    }
                }
                true
            });
            let begun = Instant::now();
            let got = client.read().unwrap_or_else(|e| panic!("{} chunked={chunked}: {e}", front.name));
            assert_eq!((got.status, got.text().as_str()), (413, "too much"), "{}", front.name);
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            // The rest was read and thrown away, or refused; either way its sender is not left hanging.
            writing.join().unwrap();
            ran += 1;
        }
        block_on(async {
            let client = Http2::connect(front.addr).await.unwrap();
            for _ in 0..3 {
                let (response, mut send) = client.open(client.head("POST", "/", &[]), false).await.unwrap();
                let sending = tokio::spawn(async move {
                    for _ in 0..4096 {
                        if send_all(&mut send, Bytes::from_static(&[b'x'; 0x4000]), false).await.is_err() {
                            break;
                        }
                    }
                });
                let got = tokio::time::timeout(LIMIT, collect(response)).await.expect("in time").unwrap();
                assert_eq!((got.status, &got.body[..]), (413, &b"too much"[..]), "{}", front.name);
                let _ = tokio::time::timeout(LIMIT, sending).await.expect("the upload ends");
                ran += 1;
            }
        });
        // Whoever comes next is served as ever.
        app.set(echo());
        for n in 0..20 {
            assert_eq!(http1(front.addr).get("/after").status, 200, "{} {n}", front.name);
        }
        app.set(Arc::new(|_| Action::Early(Reply::text(413, "too much"))));
    }
    assert_eq!(ran, 10);
}

#[test]
fn large_bodies() {
    const SIZE: usize = 64 << 20;
    let data: Bytes = (0..SIZE as u32).map(|n| (n ^ n >> 8 ^ n >> 16) as u8).collect::<Vec<_>>().into();
    let hash = fnv(&data);
    let down = data.clone();
    let app = Backend::start(Arc::new(move |seen| match seen.path() {
        "/down" => Action::Reply(Reply::text(200, down.clone())),
        "/pieces" => Action::Reply(Reply {
            chunked: true,
            chunks: down.chunks(50_000).map(|c| down.slice_ref(c)).collect(),
            ..Reply::new(200)
        }),
        _ => Action::Echo,
    }));
    let front = pair(app.addr(), Setup::default());
    let mut client = http1(front.addr);
    client.stream.set_timeout(Duration::from_secs(120));
    let got = client.request("POST", "/up", &[], &data).unwrap().json();
    assert_eq!((got["body_len"].as_u64(), got["body_fnv"].as_u64()), (Some(SIZE as u64), Some(hash)));
    for path in ["/down", "/pieces"] {
        let got = client.get(path);
        assert_eq!((got.body.len(), fnv(&got.body)), (SIZE, hash), "{path}");
    }
    block_on(async {
        let client = Http2::connect(front.addr).await.unwrap();
        let got = client.request("POST", "/up", &[], &data).await.unwrap().json();
        assert_eq!((got["body_len"].as_u64(), got["body_fnv"].as_u64()), (Some(SIZE as u64), Some(hash)));
        let got = client.request("GET", "/down", &[], b"").await.unwrap();
        assert_eq!((got.body.len(), fnv(&got.body)), (SIZE, hash));
    });
    // Nobody kept any of it.
    for proxy in &front.proxies {
        assert!(proxy.rss_kib() < 128 * 1024, "{} KiB", proxy.rss_kib());
    }
}

/// Many small answers at once, of every length around frames' and records' ends, each compared byte by byte: what is
/// wrong once in a hundred thousand answers is wrong.
#[test]
fn bodies_are_exact_under_load() {
    const CLIENTS: usize = 48;
    const REQUESTS: usize = 1500;
    let text: Bytes = (0..40_000u32).map(|n| b'a' + ((n ^ n >> 7 ^ n >> 13) % 26) as u8).collect::<Vec<_>>().into();
    let length = |n: usize| if n.is_multiple_of(64) { 16_000 + n * 7 % 20_000 } else { n * 31 % 1500 };
    let of = text.clone();
    let app = Backend::start(Arc::new(move |seen| {
        let n = seen.path()[1..].parse().unwrap_or(0);
        Action::Reply(Reply { chunked: n % 3 == 0, ..Reply::text(200, of.slice(n % 1000..n % 1000 + length(n))) })
    }));
    let front = pair(app.addr(), Setup::default());
    let checked = std::thread::scope(|scope| {
        let (text, front) = (&text, &front);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|c| {
                scope.spawn(move || {
                    let mut client = http1(front.addr);
                    for i in 0..REQUESTS {
                        let n = c * 7919 + i;
                        let got = client.get(&format!("/{n}"));
                        let wants = &text[n % 1000..n % 1000 + length(n)];
                        assert_eq!((got.status, got.body.len()), (200, wants.len()), "client {c}, request {i}");
                        assert!(got.body == wants, "client {c}, request {i}: other bytes");
                    }
                    REQUESTS
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    assert_eq!(checked, CLIENTS * REQUESTS);
    // Nothing was hidden by a second try.
    assert_eq!(app.requests(), checked as u64);
}

#[test]
fn a_thousand_in_one_go() {
    let app = Backend::start(echo());
    for front in fronts(app.addr(), Setup::default()) {
        let mut client = http1(front.addr);
        let Stream::Plain(tcp) = &client.stream else { panic!("plain") };
        let mut writer = tcp.try_clone().unwrap();
        let all: String = (0..1000).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: app.test\r\n\r\n")).collect();
        let writing = std::thread::spawn(move || writer.write_all(all.as_bytes()).unwrap());
        for n in 0..1000 {
            let got = client.read().unwrap_or_else(|e| panic!("{} {n}: {e}", front.name));
            assert_eq!(got.json()["target"], format!("/{n}"), "{}", front.name);
        }
        writing.join().unwrap();
    }
    assert_eq!(app.requests(), 2000);
}

/// A client that has said all it will say still gets its answer (F-20).
#[test]
fn half_closed_clients_are_answered() {
    let app = Backend::start(always(Reply::text(200, "late").delayed(Duration::from_millis(200))));
    for front in fronts(app.addr(), Setup::default()) {
        let mut client = http1(front.addr);
        client.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").unwrap();
        client.stream.finish().unwrap();
        assert_eq!(client.read().unwrap_or_else(|e| panic!("{}: {e}", front.name)).text(), "late");
        assert!(matches!(client.read(), Err(ReadError::NoAnswer)), "{}: stayed open", front.name);
    }
}

#[test]
fn many_clients_share_few_mesh_connections() {
    let app = Backend::start(always(Reply::text(200, "ok").delayed(Duration::from_millis(20))));
    let front = pair(app.addr(), Setup::default());
    let mut clients: Vec<_> = (0..100).map(|_| http1(front.addr)).collect();
    for _ in 0..5 {
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").unwrap();
        }
        for client in &mut clients {
            assert_eq!(client.read().unwrap().status, 200);
        }
    }
    block_on(async {
        let h2 = Http2::connect(front.addr).await.unwrap();
        for _ in 0..50 {
            assert_eq!(h2.request("GET", "/", &[], b"").await.unwrap().status, 200);
        }
    });
    let (near, far) = (front.near(), front.far());
    assert_eq!(far.wait_metric("weft_http_requests_total", &[("role", "inbound")], 550.0, LIMIT), 550.0);
    assert_eq!(near.metric("weft_connections_total", &[("role", "outbound")]), 101.0);
    let carried = far.metric("weft_connections_total", &[("role", "inbound")]);
    println!("550 requests of 101 client connections on {carried} mesh connection(s)");
    assert_eq!(carried, 1.0);
}

/// A connection that the app closed while it was idle costs nobody a request.
#[test]
fn kept_connections_may_go_stale() {
    let app = Backend::start(echo());
    let front: Front = hop(app.addr(), Setup::default());
    let addr = app.addr();
    let mut client = http1(front.addr).host("shop.test:8080");
    assert_eq!(client.get("/1").status, 200);
    drop(app);
    let app = Backend::with(weft_testkit::backend::Options { addr, ..Default::default() }, echo());
    let again = client.request("POST", "/2", &[], b"hello").unwrap();
    assert_eq!((again.status, again.json()["body"].as_str()), (200, Some("hello")));
    assert_eq!(again.json()["headers"]["host"], "shop.test:8080");
    until("the app has one connection", LIMIT, || app.open_connections() == 1);
}
