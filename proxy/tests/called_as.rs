//! The executable called by other names, as in a sidecar's container: `curl` and `pilot-agent`, against a running sidecar.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::Proxy;

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");

struct Container {
    folder: TempDir,
    proxy: Proxy,
    /// Its admin pages'.
    port: u16,
}

impl Container {
    fn start() -> Self {
        let folder = TempDir::new();
        for name in ["curl", "pilot-agent"] {
            std::os::unix::fs::symlink(BIN, folder.join(name)).unwrap();
        }
        let admin = free_addr();
        let yaml = format!(
            "admin: {admin}\nlisteners: [{{name: front, role: hop, address: \"127.0.0.1:0\", to: web}}]\n\
             services: [{{name: web, port: 80, endpoints: [\"127.0.0.1:9\"]}}]\n"
        );
        Self { folder, proxy: Proxy::start(BIN, &yaml, admin), port: admin.port() }
    }

    fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Exit code, standard output, standard error.
    fn run(&self, name: &str, words: &[&str]) -> (i32, String, String) {
        let output = Command::new(self.program(name)).args(words).output().expect(name);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

#[test]
fn curl() {
    let c = Container::start();
    let url = |path: &str| format!("localhost:{}{path}", c.port);
    let run = |words: &[&str]| c.run("curl", words);
    let (code, out, err) = run(&[&url("/stats")]);
    assert_eq!((code, err.as_str()), (0, ""));
    // What the seeds grep for.
    for word in ["request_duration", "circuit_breaker", "active", "error", "downstream_cx_active"] {
        assert!(out.lines().any(|l| l.contains(word)), "{word} in\n{out}");
    }
    let (code, out, _) = run(&["-s", &format!("http://127.0.0.1:{}/config_dump", c.port)]);
    assert!(code == 0 && serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out}");
    let file = c.folder.join("out").display().to_string();
    assert_eq!(run(&["-sS", "-o", &file, "-w", r"%{http_code}\n", &url("/ready")]), (0, "200\n".into(), String::new()));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "LIVE\n");
    let (code, out, err) = run(&["-i", "-v", &url("/nothing")]);
    assert!(
        code == 0 && out.starts_with("HTTP/1.1 404 Not Found\r\n") && out.contains("\r\n\r\nno such page"),
        "{out}"
    );
    assert!(err.contains("> GET /nothing HTTP/1.1") && err.contains("< HTTP/1.1 404"), "{err}");
    let (code, out, err) = run(&["-sSf", &url("/nothing")]);
    assert!((code, out.as_str()) == (22, "") && err.contains("(22) The requested URL returned error: 404"), "{err}");
    assert_eq!(run(&["-X", "POST", &url("/logging?level=debug")]), (0, "debug\n".into(), String::new()));
    let (code, _, err) = run(&["-H", "Host: evil.example", "-f", &url("/stats")]);
    assert!(code == 22 && err.contains("421"), "{err}");
    // Not a way out of the pod.
    for host in ["http://example.com/", "10.0.0.1:80", "169.254.169.254", "localhost.example.com"] {
        let (code, out, err) = run(&[host]);
        assert!((code, out.as_str()) == (6, "") && err.contains("is not this pod"), "{host}: {err}");
    }
    let (code, out, err) = run(&["--proxy", "x", &url("/stats")]);
    assert!((code, out.as_str()) == (2, "") && err.contains("--proxy"), "{err}");
    // By the executable's first argument too.
    let output = Command::new(BIN).args(["curl", "-s", &url("/ready")]).output().unwrap();
    assert_eq!(output.stdout, b"LIVE\n");
    // A reader that had enough.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let code = Command::new(c.program("curl")).args(["-s", &url("/stats")]).stdout(writer).status().unwrap().code();
    assert_eq!(code, Some(23));
}

#[test]
fn curl_and_those_who_do_not_answer() {
    let c = Container::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("localhost:{port}");
    let (code, _, err) = c.run("curl", &["-m", "0.3", &url]);
    assert!(code == 28 && err.contains("timed out after 300 milliseconds"), "{err}");
    let server = std::thread::spawn(move || {
        // The first is the one above.
        let (silent, _) = listener.accept().unwrap();
        drop(silent);
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap();
            assert!(n > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    assert_eq!(c.run("curl", &["-s", &url]), (52, String::new(), String::new()));
    let (code, out, _) = c.run("curl", &["-s", &url]);
    assert_eq!((code, out.as_str()), (18, "short"));
    server.join().unwrap();
    let (code, _, err) = c.run("curl", &[&url]);
    assert!(code == 7 && err.contains("Failed to connect to localhost port"), "{err}");
}

#[test]
fn pilot_agent() {
    let mut c = Container::start();
    let debug = format!("--debug-port={}", c.port);
    let run = |words: &[&str]| c.run("pilot-agent", words);
    let (code, out, err) = run(&["request", &debug, "GET", "config_dump"]);
    assert!(code == 0 && serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{err}");
    assert_eq!(run(&["request", &debug, "GET", "/ready"]).1, "LIVE\n");
    assert_eq!(run(&["request", &debug, "POST", "logging?level=warn"]).1, "warn\n");
    let (code, out, err) = run(&["request", &debug, "GET", "nothing"]);
    assert!(code == 1 && out.contains("no such page") && err.contains("404"), "{err}");
    let (code, _, err) = run(&["request", &debug, "DELETE", "stats"]);
    assert!(code == 1 && err.contains("GET or POST"), "{err}");
    assert_eq!(run(&["proxy", "sidecar"]).0, 2);

    let ready = format!("--url=http://localhost:{}/healthz/ready", c.port);
    assert_eq!(run(&["wait", &ready]), (0, String::new(), String::new()));
    let (code, _, err) = run(&["wait", "--url=http://example.com/"]);
    assert!(code == 1 && err.contains("is not this pod"), "{err}");
    assert_eq!(run(&["request", &debug, "POST", "quitquitquit"]), (0, "OK\n".into(), String::new()));
    c.proxy.wait_exit(Duration::from_secs(60));
    let (code, _, err) = c.run("pilot-agent", &["wait", &ready, "--timeoutSeconds", "0", "--periodMillis=50"]);
    assert!(code == 1 && err.contains("not ready after 0 s"), "{err}");
}
