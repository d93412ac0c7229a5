//! A pair of sidecars as real processes: `out` beside the client, `inn` beside the app, mesh mTLS between them.
#![allow(dead_code)] // each suite uses its part of it

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use weft_testkit::ca::{Ca, Files, Leaf};
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::Proxy;

pub const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
pub const HOST: &str = "app.test";
pub const DOMAIN: &str = "cluster.local";
/// Generous: the machine may be busy with other suites.
pub const SOON: Duration = Duration::from_secs(20);

pub fn id(account: &str) -> String {
    format!("spiffe://{DOMAIN}/ns/demo/sa/{account}")
}

pub fn identity(files: &Files) -> String {
    identity_of(&files.cert, &files.key, &[(DOMAIN, &files.roots)])
}

pub fn identity_of(cert: &Path, key: &Path, trust: &[(&str, &Path)]) -> String {
    let trust: Vec<String> =
        trust.iter().map(|(domain, roots)| format!("{{domain: {domain}, roots: [{}]}}", roots.display())).collect();
    format!("identity: {{certificate: {}, key: {}, trust: [{}]}}\n", cert.display(), key.display(), trust.join(", "))
}

/// One process: what its file says, so that a test can change a part of it.
#[derive(Clone)]
pub struct Side {
    pub name: &'static str,
    pub admin: SocketAddr,
    pub identity: String,
    pub listeners: Vec<String>,
    pub services: Vec<String>,
    pub workers: usize,
}

impl Side {
    pub fn yaml(&self) -> String {
        let list = |name: &str, items: &[String]| match items {
            [] => String::new(),
            items => format!("{name}:\n{}", items.iter().map(|i| format!("- {i}\n")).collect::<String>()),
        };
        format!(
            "workload: {{name: {}, namespace: demo}}\nadmin: {}\nworkers: {}\ntelemetry: {{accessLog: json}}\n{}{}{}",
            self.name,
            self.admin,
            self.workers,
            self.identity,
            list("listeners", &self.listeners),
            list("services", &self.services),
        )
    }

    #[track_caller]
    pub fn start(&self) -> Proxy {
        Proxy::start(BIN, &self.yaml(), self.admin)
    }

    /// Changes the file and waits until it is in force.
    #[track_caller]
    pub fn apply(&self, proxy: &Proxy) {
        let from = proxy.log_lines().len();
        proxy.reconfigure(&self.yaml());
        proxy.sighup();
        proxy.wait_log_from(from, |l| l.contains("configuration taken"), SOON);
    }
}

/// Beside the app; `more` are further fields of the listener.
pub fn inbound(identity: String, addr: SocketAddr, app: SocketAddr, more: &str) -> Side {
    Side {
        name: "app",
        admin: free_addr(),
        identity,
        listeners: vec![inbound_listener("in", addr, app, more)],
        services: Vec::new(),
        workers: 1,
    }
}

pub fn inbound_listener(name: &str, addr: SocketAddr, app: SocketAddr, more: &str) -> String {
    let comma = if more.is_empty() { "" } else { ", " };
    format!("{{name: {name}, role: inbound, address: {addr}, app: {app}{comma}{more}}}")
}

/// Beside the client; whoever answers at `endpoints` must be `expected`.
pub fn outbound(identity: String, addr: SocketAddr, expected: &str, endpoints: &[SocketAddr]) -> Side {
    Side {
        name: "client",
        admin: free_addr(),
        identity,
        listeners: vec![format!("{{name: out, role: outbound, address: {addr}}}")],
        services: vec![service(expected, endpoints, "")],
        workers: 1,
    }
}

pub fn service(expected: &str, endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|e| format!("{{address: \"{e}\"}}")).collect();
    let comma = if more.is_empty() { "" } else { ", " };
    let identity = if expected.is_empty() { String::new() } else { format!(", identity: {expected}") };
    format!("{{name: app, hosts: [{HOST}], port: 80{identity}, endpoints: [{}]{comma}{more}}}", endpoints.join(", "))
}

/// Certificates of both sides from one CA, in files.
pub struct Certs {
    pub dir: TempDir,
    pub ca: Ca,
    pub client: Files,
    pub app: Files,
}

impl Certs {
    pub fn new() -> Self {
        let (dir, ca) = (TempDir::new(), Ca::new(DOMAIN));
        let client = ca.workload("demo", "client").write(&dir, "client", &[&ca]);
        let app = ca.workload("demo", "app").write(&dir, "app", &[&ca]);
        Self { dir, ca, client, app }
    }

    pub fn rotate(&self, name: &str, leaf: &Leaf, roots: &[&Ca]) {
        leaf.write(&self.dir, name, roots);
    }
}

/// The access log's lines of requests, as JSON.
pub fn requests(proxy: &Proxy) -> Vec<serde_json::Value> {
    let lines = proxy.log_lines();
    let json = lines.iter().filter(|l| l.starts_with("{\"ts\""));
    json.map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .filter(|j: &serde_json::Value| j["method"].is_string())
        .collect()
}

/// The access log's line for `path`, once it is there.
#[track_caller]
pub fn logged(proxy: &Proxy, path: &str) -> serde_json::Value {
    weft_testkit::wait::poll(SOON, || requests(proxy).into_iter().find(|r| r["path"] == path))
        .unwrap_or_else(|| panic!("{path} is not in the access log"))
}
