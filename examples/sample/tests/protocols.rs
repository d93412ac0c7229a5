//! The sample app as others see it: curl, raw frames, plain sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prost::Message;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use weft_testkit::backend::grpc_frame;
use weft_testkit::client::{Http2, collect, send_all};
use weft_testkit::wait::block_on;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mesh-sample");

/// A running app and its ports, in the order of its lines.
struct App {
    child: Child,
    ports: Vec<u16>,
}

impl App {
    fn start(ports: usize, env: &[(&str, String)]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.env_clear().env("BACKEND_PORT", "0").env("SERVICE_NAME", "echo").env("VERSION", "v1");
        command.env("HOSTNAME", "echo-1").envs(env.iter().map(|(k, v)| (k, v))).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, said) = std::sync::mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // To the end, so that it never waits for a reader.
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let mut app = Self { child, ports: Vec::new() };
        while app.ports.len() < ports {
            let line = said.recv_timeout(Duration::from_secs(60)).expect("a line that says where it listens");
            let Some((_, address)) = line.split_once("listens on 0.0.0.0:") else { continue };
            app.ports.push(address.split(' ').next().unwrap().parse().unwrap());
        }
        app
    }

    fn addr(&self, nth: usize) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[nth]).into()
    }

    fn curl(&self, args: &[&str], path: &str) -> String {
        let url = format!("http://{}{path}", self.addr(0));
        let output = Command::new("curl").args(["-sS", "-m", "20"]).args(args).arg(url).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.curl(&[], path)).unwrap()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn url(scheme: &str, addr: SocketAddr, path: &str) -> String {
    format!("{scheme}://{addr}{path}")
}

#[test]
fn json_over_both_versions_on_one_port() {
    let app = App::start(1, &[("FAILURE_RATE", "0.5".into())]);
    let id = "By=spiffe://a/ns/x/sa/y;Hash=1;URI=spiffe://a/ns/shop/sa/web";
    let xfcc = format!("x-forwarded-client-cert: {id}");
    let first: Value = serde_json::from_str(&app.curl(&["-H", &xfcc, "-d", "12345"], "/a?b=c")).unwrap();
    let want = ["echo", "v1", "echo-1", "spiffe://a/ns/shop/sa/web", "HTTP/1.1", "POST", "/a?b=c"];
    let got = ["service", "version", "instance", "caller", "protocol", "method", "path"];
    assert_eq!(got.map(|f| first[f].as_str().unwrap()), want);
    assert_eq!((&first["bodyBytes"], &first["headers"]["x-forwarded-client-cert"]), (&5.into(), &id.into()));
    // Every second one fails, over whatever version.
    let h2 = ["--http2-prior-knowledge", "-w", " %{http_code} %{http_version}", "-o", "/dev/null"];
    assert_eq!(app.curl(&h2, "/"), " 500 2");
    assert_eq!(app.curl(&h2, "/?status=201"), " 201 2");
    assert_eq!(app.curl(&["-w", "%{http_code}", "-o", "/dev/null"], "/"), "500");
    let large: Value = serde_json::from_str(&app.curl(&["--http2-prior-knowledge"], "/?size=200000")).unwrap();
    assert_eq!(large["protocol"], "HTTP/2.0");
    assert_eq!(app.curl(&["-w", "%{size_download}", "-o", "/dev/null"], "/?size=200000&delay=1"), "200000");
}

#[test]
fn tcp_speaks_first() {
    let app = App::start(2, &[("TCP_PORT", "0".into())]);
    let stream = TcpStream::connect(app.addr(1)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "echo v1 echo-1\n");
    let bytes: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    let writer = std::thread::spawn({
        let (mut stream, bytes) = (stream.try_clone().unwrap(), bytes.clone());
        move || {
            stream.write_all(&bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
    });
    let mut back = Vec::new();
    lines.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(back == bytes, "{} bytes came back", back.len());
}

#[test]
fn websocket_by_hand() {
    let app = App::start(1, &[]);
    let mut stream = TcpStream::connect(app.addr(0)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\
                sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{answer}");
    assert!(answer.contains("x-answered-by: echo v1 echo-1"), "{answer}");
    let mut exchange = |first: u8, text: &[u8], back: &[u8]| {
        let mask = [9, 8, 7, 6];
        let mut frame = vec![first, 0x80 | text.len() as u8];
        frame.extend(mask);
        frame.extend(text.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        stream.write_all(&frame).unwrap();
        let mut got = vec![0; back.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, back);
    };
    exchange(0x81, b"hello", b"\x81\x05hello");
    // A message in two parts, a ping in between.
    exchange(0x02, b"ab", b"\x02\x02ab");
    exchange(0x89, b"?", b"\x8a\x01?");
    exchange(0x80, b"cd", b"\x80\x02cd");
    exchange(0x88, &[3, 232], &[0x88, 2, 3, 232]);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed");
    // What is no WebSocket of version 13 is told so.
    let args = ["-H", "connection: upgrade", "-H", "upgrade: websocket", "-H", "sec-websocket-key: eA==", "-i"];
    assert!(app.curl(&args, "/").starts_with("HTTP/1.1 426"));
}

#[derive(Clone, PartialEq, Message)]
struct Said {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    count: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(string, tag = "2")]
    service: String,
    #[prost(string, tag = "5")]
    caller: String,
}

fn message(text: &str, count: u32) -> bytes::Bytes {
    grpc_frame(&Said { text: text.into(), count }.encode_to_vec())
}

fn replies(mut body: &[u8]) -> Vec<Reply> {
    let mut all = Vec::new();
    while !body.is_empty() {
        let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
        all.push(Reply::decode(&body[5..5 + length]).unwrap());
        body = &body[5 + length..];
    }
    all
}

#[test]
fn grpc_unary_and_streams() {
    let app = App::start(2, &[("GRPC_PORT", "0".into())]);
    block_on(async {
        let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-forwarded-client-cert", "URI=me")];
        for port in 0..2 {
            let client = Http2::connect(app.addr(port)).await.unwrap();
            let ask = async |method: &str, body: &[u8]| {
                client.request("POST", &format!("/weft.sample.Echo/{method}"), &headers, body).await.unwrap()
            };
            let answer = ask("Say", &message("hi", 7)).await;
            assert_eq!((answer.status, answer.grpc_status()), (200, Some("0")));
            let [reply] = &replies(&answer.body)[..] else { panic!("one answer: {answer:?}") };
            assert_eq!((reply.text.as_str(), reply.service.as_str(), reply.caller.as_str()), ("hi", "echo", "me"));
            let answer = ask("Repeat", &message("again", 500)).await;
            assert_eq!((replies(&answer.body).len(), answer.grpc_status()), (500, Some("0")));
            assert_eq!(ask("Nothing", &message("", 0)).await.grpc_status(), Some("12"));
            assert_eq!(ask("Say", b"\0\0\0\0\x05hi").await.grpc_status(), Some("3"), "the message has no end");
            assert_eq!(ask("Say", b"\0\xff\xff\xff\xff").await.grpc_status(), Some("8"), "4 GiB");
        }
        // Both sides of a stream talk in turns.
        let client = Http2::connect(app.addr(0)).await.unwrap();
        let head = client.head("POST", "/weft.sample.Echo/Chat", &headers);
        let (response, mut send) = client.open(head, false).await.unwrap();
        let mut response = response.await.unwrap();
        for text in ["one", "two"] {
            send_all(&mut send, message(text, 0), false).await.unwrap();
            let data = response.body_mut().data().await.unwrap().unwrap();
            let _ = response.body_mut().flow_control().release_capacity(data.len());
            assert_eq!(replies(&data)[0].text, text);
        }
        send_all(&mut send, message("last", 0), true).await.unwrap();
        let mut rest = Vec::new();
        while let Some(data) = response.body_mut().data().await {
            rest.extend_from_slice(&data.unwrap());
        }
        assert_eq!(replies(&rest)[0].text, "last");
        assert_eq!(response.body_mut().trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });
    let failing = App::start(1, &[("FAILURE_RATE", "1".into())]);
    block_on(async {
        let client = Http2::connect(failing.addr(0)).await.unwrap();
        let head = client.head("POST", "/weft.sample.Echo/Say", &[("content-type", "application/grpc")]);
        let (response, mut send) = client.open(head, false).await.unwrap();
        let _ = send_all(&mut send, message("hi", 0), true).await;
        assert_eq!(collect(response).await.unwrap().grpc_status(), Some("14"));
    });
}

#[test]
fn further_services_in_every_protocol_with_the_trace() {
    let echo = App::start(2, &[("TCP_PORT", "0".into())]);
    let (http, tcp) = (echo.addr(0), echo.addr(1));
    let app = App::start(
        1,
        &[
            ("ONE_SERVICE_URL", url("http", http, "")),
            ("TWO_SERVICE_URL", url("h2c", http, "/own?x=y")),
            ("SAY_SERVICE_URL", url("grpc", http, "")),
            ("CHAT_SERVICE_URL", url("grpc", http, "/Chat")),
            ("SOCKET_SERVICE_URL", url("ws", http, "/")),
            ("TCP_SERVICE_URL", url("tcp", tcp, "")),
            ("GONE_SERVICE_URL", url("http", ([127, 0, 0, 1], 1).into(), "")),
            ("ODD_SERVICE_URL", "gopher://x:1".into()),
        ],
    );
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = ["-H".to_string(), format!("traceparent: {trace}"), "-H".into(), "x-other: 1".into()];
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let answer: Value = serde_json::from_str(&app.curl(&headers, "/path")).unwrap();
    let calls = &answer["calls"];
    assert_eq!(calls.as_object().unwrap().len(), 7, "{calls:#}");
    for (name, protocol, path) in [("one", "HTTP/1.1", "/path"), ("two", "HTTP/2.0", "/own?x=y")] {
        let body = &calls[name]["body"];
        assert_eq!((&body["protocol"], &body["path"]), (&protocol.into(), &path.into()), "{calls:#}");
        assert_eq!(body["headers"]["traceparent"], trace);
        assert!(body["headers"]["x-other"].is_null(), "only what belongs to the trace is passed on");
    }
    assert_eq!((&calls["say"]["grpcStatus"], &calls["say"]["replies"][0]["text"]), (&0.into(), &"hello".into()));
    assert_eq!(calls["say"]["replies"][0]["headers"]["traceparent"], trace);
    let texts: Vec<&Value> = calls["chat"]["replies"].as_array().unwrap().iter().map(|r| &r["text"]).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    assert_eq!((&calls["socket"]["echo"], &calls["socket"]["answeredBy"]), (&"hello".into(), &"echo v1 echo-1".into()));
    assert_eq!((&calls["tcp"]["greeting"], &calls["tcp"]["echo"]), (&"echo v1 echo-1".into(), &"hello".into()));
    assert!(calls["gone"]["error"].as_str().unwrap().contains("refused"), "{calls:#}");
}

#[test]
fn through_a_proxy() {
    let echo = App::start(1, &[]);
    // It answers for any host, as a sidecar that is asked for whole URLs does.
    let env = [("http_proxy", url("http", echo.addr(0), "")), ("FAR_SERVICE_URL", "http://far.test:81/a".into())];
    let app = App::start(1, &[&env[..], &[("SAY_SERVICE_URL", "grpc://far.test:82".into())]].concat());
    let calls = &app.get("/")["calls"];
    assert_eq!(
        (&calls["far"]["body"]["path"], &calls["far"]["body"]["headers"]["host"]),
        (&"/a".into(), &"far.test:81".into())
    );
    assert_eq!(calls["say"]["grpcStatus"], 0, "{calls:#}");
}

fn load(addr: SocketAddr, args: &[&str]) -> (Output, Value) {
    let output = Command::new(PROGRAM)
        .env_remove("http_proxy")
        .args(["load", &url("http", addr, "/x"), "-o", "json"])
        .args(args)
        .output()
        .unwrap();
    let counts = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output, counts)
}

#[test]
fn load_keeps_its_schedule_and_counts() {
    let app = App::start(1, &[("FAILURE_RATE", "0.1".into())]);
    let (output, counts) = load(app.addr(0), &["--rps", "100", "--duration", "2s", "-c", "5", "--fail-on-error"]);
    assert_eq!((&counts["requests"], &counts["failed"]), (&200.into(), &20.into()), "{counts:#}");
    assert_eq!((&counts["statuses"]["200"], &counts["statuses"]["500"]), (&180.into(), &20.into()));
    assert_eq!(output.status.code(), Some(1));
    // The app has seen each once, and nobody waits for slow answers before sending more: 20 at a time take 300 ms each.
    assert_eq!(app.get("/")["path"], "/");
    let slow = App::start(1, &[("DELAY_MS", "300".into())]);
    let (output, counts) = load(slow.addr(0), &["--rps", "40", "--duration", "1s", "--method", "PUT", "-H", "a: b"]);
    assert_eq!((&counts["requests"], &counts["failed"]), (&40.into(), &0.into()), "{counts:#}");
    assert!(counts["milliseconds"]["p50"].as_f64().unwrap() >= 290.0 && output.status.success(), "{counts:#}");
    // With one connection they queue, and the time in the queue counts.
    let (_, counts) = load(slow.addr(0), &["--rps", "20", "--duration", "500ms", "-c", "1"]);
    assert!(counts["milliseconds"]["max"].as_f64().unwrap() >= 2000.0, "{counts:#}");
    let (output, counts) = load(([127, 0, 0, 1], 1).into(), &["--rps", "10", "--duration", "500ms"]);
    assert_eq!((&counts["requests"], &counts["failed"], output.status.code()), (&5.into(), &5.into(), Some(0)));
    let words = Command::new(PROGRAM)
        .env_remove("http_proxy")
        .args(["load", &url("http", app.addr(0), "/"), "--duration", "1500ms"])
        .output();
    let text = String::from_utf8(words.unwrap().stdout).unwrap();
    assert!(text.contains("1 s") && text.contains("75 requests in") && text.contains("p99"), "{text}");
}

#[test]
fn what_is_under_way_is_finished() {
    let mut app = App::start(1, &[]);
    let addr = app.addr(0);
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /?delay=1000 HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    // It has begun to work on it when a request that came later has been answered.
    app.get("/");
    assert!(Command::new("kill").args(["-TERM", &app.child.id().to_string()]).status().unwrap().success());
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(app.child.wait().unwrap().success());
}
