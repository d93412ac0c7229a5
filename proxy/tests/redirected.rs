//! Two hosts with a cable between them, an app on each that knows of no mesh, and a sidecar beside each that the kernel
//! redirects their connections to: IPv4 and IPv6, known and unknown destinations, ports left alone, STRICT, loops.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod sidecars;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use sidecars::{BIN, identity};
use weft_testkit::backend::{Backend, Options, echo, grpc_frame};
use weft_testkit::ca::Ca;
use weft_testkit::client::{End, Http2, Stream, http1};
use weft_testkit::dir::TempDir;
use weft_testkit::netns::Netns;
use weft_testkit::proxy::{Proxy, Start};
use weft_testkit::raw_backend::TcpPeer;
use weft_testkit::wait::block_on;

const LIMIT: Duration = Duration::from_secs(20);
const ADMIN: &str = "127.0.0.1:15000";

/// Addresses that exist nowhere: only the client's sidecar knows what they mean.
const SERVICE: [&str; 2] = ["10.99.0.1", "fd99::1"];
const CLIENT: [&str; 2] = ["10.88.0.1", "fd88::1"];
const SERVER: [&str; 2] = ["10.88.0.2", "fd88::2"];
const PEER: &str = "spiffe://cluster.local/ns/demo/sa/web";

fn addr(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

struct World {
    client: Netns,
    server: Netns,
    near: Proxy,
    far: Proxy,
    web: Backend,
    plain: Backend,
    _tcp: [TcpPeer; 2],
    _files: TempDir,
}

fn client_config(identity: &str, unknown: &str) -> String {
    let mut services = String::new();
    for (i, name) in ["four", "six"].iter().enumerate() {
        let (vip, server) = (SERVICE[i], SERVER[i]);
        let to = |port: u16| addr(server, port).to_string();
        services += &format!(
            "- name: {name}\n  identity: spiffe://cluster.local/ns/demo/sa/app\n  addresses: [\"{vip}\"]\n  hosts: [{name}.shop]\n  ports:\n  \
             - {{port: 80, endpoints: [\"{}\"]}}\n  - {{port: 5432, protocol: tcp, endpoints: [\"{}\"]}}\n  \
             - {{port: 25, endpoints: [\"{}\"]}}\n",
            to(8080),
            to(5432),
            to(2525)
        );
    }
    format!(
        "admin: {ADMIN}\nworkload: {{name: web, namespace: demo}}\n{identity}telemetry: {{accessLog: json}}\nlisteners:\n\
         - {{name: out, role: outbound, address: \"[::]:15001\", originalDst: true, unknown: {unknown}}}\nservices:\n{services}"
    )
}

fn world() -> World {
    let (client, server) = (Netns::new("c"), Netns::new("s"));
    Netns::join(
        &client,
        &[&format!("{}/24", CLIENT[0]), &format!("{}/64", CLIENT[1])],
        &server,
        &[&format!("{}/24", SERVER[0]), &format!("{}/64", SERVER[1])],
    );
    // Connections to a service's address set out somewhere before they are redirected.
    client.ip(&format!("route add default via {}", SERVER[0]));
    client.ip(&format!("-6 route add default via {}", SERVER[1]));
    client.redirect(Some(15001), None, &[]);
    server.redirect(None, Some(15006), &[9999]);
    let backend = |name: &str, port: u16| {
        let options = Options { addr: addr("::", port), name: name.into(), ..Options::default() };
        server.run(|| Backend::with(options, echo()))
    };
    let (web, plain) = (backend("web", 8080), backend("plain", 9999));
    let banner = |mut stream: TcpStream, _| {
        stream.write_all(b"220 ready\r\n").unwrap();
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    };
    let tcp = server.run(|| [TcpPeer::echo_at(addr("::", 5432)), TcpPeer::at(addr("::", 2525), banner)]);
    let (ca, files) = (Ca::new("cluster.local"), TempDir::new());
    let start = |ns: &Netns, yaml: &str| {
        Proxy::with(Start { bin: BIN, yaml, admin: Some(ADMIN.parse().unwrap()), ns: Some(ns), ..Start::default() })
    };
    let far = start(
        &server,
        &format!(
            "admin: {ADMIN}\nworkload: {{name: app, namespace: demo}}\n{}telemetry: {{accessLog: json}}\nlisteners:\n\
             - {{name: in, role: inbound, address: \"[::]:15006\", originalDst: true, mtls: {{mode: strict, ports: {{8081: permissive}}}}}}\n",
            identity(&ca, &files, "app")
        ),
    );
    let near = start(&client, &client_config(&identity(&ca, &files, "web"), "allow"));
    World { client, server, near, far, web, plain, _tcp: tcp, _files: files }
}

impl World {
    /// As an app in the client's namespace would connect.
    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.client.run(|| TcpStream::connect_timeout(&to, LIMIT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// What becomes of a connection that nobody should answer.
    fn end(&self, to: SocketAddr, first: &[u8]) -> End {
        let Ok(mut stream) = self.connect(to) else { return End::Reset };
        // A reset that came first is told to whoever asks first.
        if stream.write_all(first).is_err() {
            return End::Reset;
        }
        let (bytes, end) = Stream::Plain(stream).read_all();
        assert!(bytes.is_empty(), "{to}: {}", String::from_utf8_lossy(&bytes));
        end
    }

    fn get(&self, to: SocketAddr, host: &str) -> weft_testkit::client::Response {
        let mut client = self.client.run(|| http1(to)).host(host);
        client.stream.set_timeout(LIMIT);
        client.get("/")
    }
}

#[test]
fn apps_need_not_know() {
    let w = world();
    let mut ran = 0;
    for (i, vip) in SERVICE.iter().enumerate() {
        // HTTP/1.1, told apart by its bytes, to an address that is a service's.
        let got = w.get(addr(vip, 80), "shop.test").json();
        assert_eq!((got["backend"].as_str(), got["version"].as_str()), (Some("web"), Some("HTTP/1.1")), "{vip}: {got}");
        assert_eq!(got["headers"]["host"], "shop.test");
        let xfcc = got["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default();
        assert!(xfcc.contains(&format!("URI={PEER}")), "{got}");
        // The server's address, where only the Host says which service is meant.
        let got = w.get(addr(SERVER[i], 80), ["four.shop", "six.shop"][i]).json();
        assert_eq!(got["backend"], "web", "{vip}");
        assert!(got["headers"]["x-forwarded-client-cert"].is_string(), "{got}");
        // HTTP/2 and gRPC.
        w.client.run(|| {
            block_on(async {
                let client = Http2::connect(addr(vip, 80)).await.unwrap().authority("shop.test");
                assert_eq!(client.request("GET", "/", &[], b"").await.unwrap().json()["version"], "HTTP/2.0");
                let fields = [("content-type", "application/grpc"), ("te", "trailers")];
                let got = client.request("POST", "/t.S/M", &fields, &grpc_frame(b"hello")).await.unwrap();
                assert_eq!((got.grpc_status(), &got.body[..]), (Some("0"), &grpc_frame(b"hello")[..]), "{vip}");
            });
        });
        // Bytes, half-closed.
        let mut stream = w.connect(addr(vip, 5432)).unwrap();
        let data = vec![0xfe; 500_000];
        let (mut writer, sent) = (stream.try_clone().unwrap(), data.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        writing.join().unwrap();
        assert!(back == data, "{vip}: {} bytes", back.len());
        // A server that speaks first, on a port nobody declared.
        let begun = Instant::now();
        let mut stream = w.connect(addr(vip, 25)).unwrap();
        let mut banner = [0; 11];
        stream.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"220 ready\r\n");
        assert!(begun.elapsed() < Duration::from_secs(3), "{vip}: {:?}", begun.elapsed());
        ran += 6;
    }
    assert_eq!((ran, w.web.requests()), (12, 8));
    // All of it in mesh mTLS, as the server's sidecar saw it.
    w.far.wait_metric("weft_tcp_connections_opened_total", &[], 4.0, LIMIT);
    for name in ["weft_http_requests_total", "weft_tcp_connections_opened_total"] {
        let all = w.far.metric(name, &[]);
        assert_eq!(
            w.far.metric(name, &[("source_identity", PEER), ("tls", "mutual_tls")]),
            all,
            "{name}: {}",
            w.far.metrics()
        );
    }
    assert_eq!(w.far.metric("weft_http_requests_total", &[]), 8.0);
    // The log has the address that was dialled, in its own family.
    for vip in SERVICE {
        let text = format!("\"destination\":\"{}\"", addr(vip, 80));
        w.near.wait_log(|l| l.contains(&text), LIMIT);
    }
    for server in SERVER {
        let text = format!("\"destination\":\"{}\"", addr(server, 8080));
        w.far.wait_log(|l| l.contains(&text), LIMIT);
    }
}

#[test]
fn unknown_destinations_and_ports_left_alone() {
    let w = world();
    let mut ran = 0;
    for (client, server) in CLIENT.iter().zip(SERVER) {
        // No service has this address: it is passed on as it is, to a port that the server's rules leave alone.
        let got = w.get(addr(server, 9999), "nobody.test").json();
        assert_eq!(got["backend"], "plain", "{got}");
        assert!(got["headers"]["x-forwarded-client-cert"].is_null(), "{got}");
        assert!(got["headers"]["x-mesh-hops"] == "1", "one sidecar, not two: {got}");
        // Passed on as it is to a port under STRICT, it is refused there; the app never hears of it.
        let before = w.web.connections();
        let mut refused = w.client.run(|| http1(addr(server, 8080)));
        assert_eq!(refused.get("/").status, 503, "{server}");
        // Without any sidecar at the client's side: reset.
        let probe = w.client.command_as("bash", 1337);
        assert_eq!(outside(probe, server, 8080), "", "{server}");
        assert_eq!(w.web.connections(), before, "plaintext got through STRICT");
        // Nobody listens there.
        assert_eq!(w.end(addr(server, 8085), b"\xff\xff"), End::Reset, "{server}");
        // Those who dial the proxy itself would go in circles.
        for (proxy, port) in
            [(*client, 15001), (if client.contains(':') { "::1" } else { "127.0.0.1" }, 15001), (server, 15006)]
        {
            assert_eq!(w.end(addr(proxy, port), b"\xff\xff"), End::Reset, "{proxy}:{port}");
        }
        ran += 7;
    }
    assert_eq!(ran, 14);
    assert!(w.near.metric("weft_tcp_rejected_total", &[("reason", "loop")]) >= 2.0, "{}", w.near.metrics());
    assert!(w.far.metric("weft_tcp_rejected_total", &[("reason", "plaintext")]) >= 4.0, "{}", w.far.metrics());
    assert_eq!(w.far.metric("weft_http_requests_total", &[]), 0.0);
    assert!(w.near.fds() < 100 && w.far.fds() < 100, "{} {}", w.near.fds(), w.far.fds());

    // From now on what no service has is refused.
    let yaml = std::fs::read_to_string(w.near.config_path()).unwrap();
    let seen = w.plain.connections();
    w.near.reconfigure(&yaml.replace("unknown: allow", "unknown: deny"));
    w.near.sighup();
    for server in SERVER {
        let refused = weft_testkit::wait::poll(LIMIT, || {
            Some(w.get(addr(server, 9999), "nobody.test").status).filter(|s| *s != 200)
        });
        assert_eq!(refused, Some(502), "{server}");
        assert_eq!(w.end(addr(server, 9999), b"\xff\xff"), End::Reset, "{server}");
    }
    let after = w.plain.connections();
    assert_eq!(w.get(addr(SERVER[0], 9999), "nobody.test").status, 502);
    assert_eq!(w.plain.connections(), after, "{seen}");
    for vip in SERVICE {
        assert_eq!(w.get(addr(vip, 80), "shop.test").status, 200, "{vip}");
    }
}

/// What a process whose traffic is not redirected gets for an answer.
fn outside(mut bash: std::process::Command, host: &str, port: u16) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/{host}/{port} && printf 'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' >&3 && timeout 5 cat <&3"
    );
    let output = bash.args(["-c", &script]).output().expect("bash");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A port where both are taken: plaintext is served and has no identity, mTLS has one.
#[test]
fn permissive_ports() {
    let w = world();
    let options = Options { addr: addr("::", 8081), name: "both".into(), ..Options::default() };
    let _both = w.server.run(|| Backend::with(options, echo()));
    for server in SERVER {
        let got = w.get(addr(server, 8081), "both.test").json();
        assert_eq!(got["backend"], "both", "{server}: {got}");
        assert!(got["headers"]["x-forwarded-client-cert"].is_null(), "{got}");
        assert_eq!(got["headers"]["x-mesh-hops"], "2", "{server}: both sidecars saw it: {got}");
        let text = outside(w.client.command_as("bash", 1337), server, 8081);
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("\"backend\":\"both\""), "{server}: {text}");
    }
    assert_eq!(w.far.metric("weft_http_requests_total", &[("tls", "none")]), 4.0, "{}", w.far.metrics());
}
