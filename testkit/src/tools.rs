//! Programs of others that judge us, installed by `.ci/tools`: h2spec, gRPC's interop pair, Helm, Prometheus and promtool.
//!
//! Facts, measured with the versions that `.ci/tools` pins:
//! h2spec v2.2.1 runs 145 cases in under 2 s. It knows no client certificate: for an mTLS port put `relay::TlsWrap` in
//! between and run it in plaintext. Its case 3.5/2 sends `INVALID CONNECTION PREFACE` and fails a server that answers
//! with an HTTP/1.1 400: such a line has to be met by closing without a word. gRPC's interop client ends with status 0,
//! or with status 1 and what went wrong; each case takes about 20 ms.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::dir::{TempDir, free_port};

/// Those of gRPC's interop cases that need no credentials of a cloud: 14 that a proxy has to let through.
pub const GRPC_CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];

/// Where `.ci/tools` puts what it builds.
fn built(name: &str) -> PathBuf {
    let folder = match std::env::var_os("WEFT_TOOLS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools"),
    };
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run .ci/tools", path.display());
    path
}

/// Kubernetes' package manager, which renders our chart.
pub fn helm() -> PathBuf {
    built("helm")
}

fn installed(name: &str) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")])
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is missing: run .ci/tools"))
}

#[derive(Clone, Debug)]
pub struct Report {
    pub executed: u32,
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
    pub text: String,
}

/// Runs h2spec against `addr`; asserts nothing.
pub fn h2spec(addr: SocketAddr, tls: bool) -> Report {
    h2spec_path(addr, tls, "/")
}

pub fn h2spec_path(addr: SocketAddr, tls: bool, path: &str) -> Report {
    let mut command = Command::new(built("h2spec"));
    command.args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string(), "-P", path, "-o", "2"]);
    if tls {
        command.args(["-t", "-k"]);
    }
    let output = command.output().expect("h2spec");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let [executed, passed, skipped, failed] = h2spec_totals(&text).unwrap_or_default();
    Report { executed, passed, failed, skipped, text }
}

/// `145 tests, 143 passed, 1 skipped, 1 failed`
fn h2spec_totals(text: &str) -> Option<[u32; 4]> {
    let line = text.lines().rev().find(|l| l.contains(" tests, ") && l.contains(" passed"))?;
    let number = |word: &str| line.split(", ").find(|p| p.contains(word))?.split_whitespace().next()?.parse().ok();
    Some([number("tests")?, number("passed")?, number("skipped")?, number("failed")?])
}

/// The gRPC project's interop server, plaintext.
pub struct GrpcServer {
    child: Child,
    addr: SocketAddr,
}

impl GrpcServer {
    pub fn start() -> Self {
        let port = free_port();
        let child = Command::new(built("grpc-interop-server"))
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("interop server");
        let addr = ([127, 0, 0, 1], port).into();
        let server = Self { child, addr };
        crate::wait::until("the interop server listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect(addr).is_ok()
        });
        server
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs one interop case against `server` in plaintext; Err has what the client said.
pub fn grpc_interop(server: SocketAddr, case: &str) -> Result<(), String> {
    let output = Command::new("timeout")
        .arg("60")
        .arg(built("grpc-interop-client"))
        .arg(format!("--server_host={}", server.ip()))
        .arg(format!("--server_port={}", server.port()))
        .arg(format!("--test_case={case}"))
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{case}: {}: {text}", output.status)) }
}

/// `promtool check metrics`: Err has its complaints.
pub fn promtool_check(metrics: &str) -> Result<(), String> {
    let mut child = Command::new(installed("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    let mut stdin = child.stdin.take().expect("stdin");
    let metrics = metrics.to_string();
    let writer = std::thread::spawn(move || stdin.write_all(metrics.as_bytes()));
    let output = child.wait_with_output().expect("promtool");
    let _ = writer.join();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // Lint findings do not always change its status; silence is what "clean" means.
    if output.status.success() && text.trim().is_empty() { Ok(()) } else { Err(text) }
}

/// A Prometheus of our own that scrapes `targets` every second.
pub struct Prometheus {
    child: Child,
    addr: SocketAddr,
    _dir: TempDir,
}

impl Prometheus {
    pub fn start(targets: &[SocketAddr], metrics_path: &str) -> Self {
        let dir = TempDir::new();
        let list: Vec<String> = targets.iter().map(|t| format!("'{t}'")).collect();
        let config = dir.write(
            "prometheus.yml",
            format!(
                "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: weft\n  \
                 metrics_path: {metrics_path}\n  static_configs: [{{targets: [{}]}}]\n",
                list.join(", ")
            ),
        );
        let addr: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let log = std::fs::File::create(dir.join("log")).expect("log");
        let child = Command::new(installed("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus");
        let prometheus = Self { child, addr, _dir: dir };
        crate::wait::until("Prometheus is ready", Duration::from_secs(30), || {
            prometheus.get("/-/ready").is_some_and(|(status, _)| status == 200)
        });
        prometheus
    }

    fn get(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        let stream = crate::client::Stream::connect(self.addr).ok()?;
        let mut client = crate::client::Http1::new(stream, &self.addr.to_string());
        let answer = client.request("GET", path, &[("connection", "close")], b"").ok()?;
        Some((answer.status, answer.body))
    }

    /// The samples of an instant query: labels and value of each. `expr` must be URL-safe but for what is encoded here.
    pub fn query(&self, expr: &str) -> Vec<(serde_json::Value, f64)> {
        let encoded: String = expr
            .bytes()
            .map(|b| match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => (b as char).to_string(),
                _ => format!("%{b:02X}"),
            })
            .collect();
        let (status, body) = self.get(&format!("/api/v1/query?query={encoded}")).expect("Prometheus answers");
        assert_eq!(status, 200, "{expr}: {}", String::from_utf8_lossy(&body));
        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let result = json["data"]["result"].as_array().cloned().unwrap_or_default();
        result
            .into_iter()
            .map(|s| (s["metric"].clone(), s["value"][1].as_str().and_then(|v| v.parse().ok()).unwrap_or(f64::NAN)))
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interop_pair_agrees_with_itself() {
        let server = GrpcServer::start();
        for case in GRPC_CASES {
            let begun = std::time::Instant::now();
            grpc_interop(server.addr(), case).expect("interop");
            println!("{case}: {:?}", begun.elapsed());
        }
        assert!(grpc_interop(server.addr(), "no_such_case").is_err());
    }

    #[test]
    fn h2spec_counts() {
        let backend = crate::backend::Backend::named("plain hyper");
        let report = h2spec(backend.addr(), false);
        println!("{} executed, {} failed, {} skipped", report.executed, report.failed, report.skipped);
        assert!(
            report.executed > 0 && report.executed == report.passed + report.failed + report.skipped,
            "{}",
            report.text
        );
    }

    #[test]
    fn promtool_judges() {
        promtool_check("# HELP a_total Things.\n# TYPE a_total counter\na_total 1\n").expect("clean");
        promtool_check("nonsense {").expect_err("not metrics");
        promtool_check("# TYPE a counter\na 1\n").expect_err("lint");
    }

    #[test]
    fn prometheus_scrapes() {
        let page = "# HELP kit_total Things.\n# TYPE kit_total counter\nkit_total{a=\"b\"} 7\n";
        let reply = crate::backend::Reply::text(200, page).header("content-type", "text/plain; version=0.0.4");
        let backend = crate::backend::Backend::start(crate::backend::always(reply));
        let prometheus = Prometheus::start(&[backend.addr()], "/stats/prometheus");
        let found = crate::wait::poll(Duration::from_secs(20), || {
            let samples = prometheus.query("kit_total{a=\"b\"}");
            (!samples.is_empty()).then_some(samples)
        });
        assert_eq!(found.expect("a sample")[0].1, 7.0);
    }
}
