//! What these suites put their traffic through: one proxy, or a pair of sidecars with mesh mTLS between them.

#![allow(dead_code)]

use std::net::SocketAddr;

use weft_testkit::ca::{Ca, Files};
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::{Proxy, Start};

pub const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");

/// The differences between two suites' configurations, as pieces of YAML.
#[derive(Clone, Copy, Default)]
pub struct Setup<'a> {
    /// The inside of `telemetry: {}`; `NAME` becomes the workload's.
    pub telemetry: &'a str,
    /// More fields of the client's listener, each with its comma in front.
    pub outbound: &'a str,
    /// More fields of the server's listener.
    pub inbound: &'a str,
    /// More lines of the service, two spaces deep.
    pub service: &'a str,
    /// `tcp-out` and `tcp-in` in place of `outbound` and `inbound`; `tcp-out` in place of `hop`.
    pub tcp: bool,
    pub workers: u16,
}

/// A way from a client to an app.
pub struct Front {
    pub name: &'static str,
    pub addr: SocketAddr,
    /// In the order of a request's way.
    pub proxies: Vec<Proxy>,
    _files: Option<TempDir>,
}

impl Front {
    /// The proxy beside the client, or the only one.
    pub fn near(&self) -> &Proxy {
        &self.proxies[0]
    }

    /// The proxy beside the app, or the only one.
    pub fn far(&self) -> &Proxy {
        &self.proxies[self.proxies.len() - 1]
    }
}

/// One plain proxy.
pub fn hop(app: SocketAddr, setup: Setup<'_>) -> Front {
    let (addr, admin) = (free_addr(), free_addr());
    let role = if setup.tcp { "tcp-out" } else { "hop" };
    let yaml = format!(
        "admin: {admin}\nworkers: {}\nworkload: {{name: hop, namespace: demo}}\ntelemetry: {{{}}}\n\
         listeners:\n- {{name: front, role: {role}, address: {addr}, to: app{}}}\n\
         services:\n- name: app\n  port: 80\n  endpoints: [\"{app}\"]\n{}\n",
        setup.workers.max(1),
        setup.telemetry.replace("NAME", "hop"),
        setup.outbound,
        setup.service
    );
    Front { name: "hop", addr, proxies: vec![start(&yaml, admin)], _files: None }
}

/// Two sidecars: the client's has the identity `web`, the app's `app`.
pub fn pair(app: SocketAddr, setup: Setup<'_>) -> Front {
    let files = TempDir::new();
    let ca = Ca::new("cluster.local");
    let inside = free_addr();
    let (roles, workers) =
        (if setup.tcp { ["tcp-out", "tcp-in"] } else { ["outbound", "inbound"] }, setup.workers.max(1));
    let far_admin = free_addr();
    let yaml = format!(
        "admin: {far_admin}\nworkers: {workers}\nworkload: {{name: app, namespace: demo}}\n{}\
         telemetry: {{{}}}\nlisteners:\n- {{name: in, role: {}, address: {inside}, app: {app}, mtls: strict{}}}\n",
        identity(&ca, &files, "app"),
        setup.telemetry.replace("NAME", "app"),
        roles[1],
        setup.inbound
    );
    let far = start(&yaml, far_admin);
    let (addr, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\nworkers: {workers}\nworkload: {{name: web, namespace: demo}}\n{}\
         telemetry: {{{}}}\nlisteners:\n- {{name: out, role: {}, address: {addr}, to: app{}}}\n\
         services:\n- name: app\n  port: 80\n  identity: spiffe://cluster.local/ns/demo/sa/app\n  endpoints: [\"{inside}\"]\n{}\n",
        identity(&ca, &files, "web"),
        setup.telemetry.replace("NAME", "web"),
        roles[0],
        setup.outbound,
        setup.service
    );
    Front { name: "pair", addr, proxies: vec![start(&yaml, admin), far], _files: Some(files) }
}

/// Both ways.
pub fn fronts(app: SocketAddr, setup: Setup<'_>) -> [Front; 2] {
    [hop(app, setup), pair(app, setup)]
}

/// A workload's certificate files, and the YAML that names them.
pub fn identity(ca: &Ca, files: &TempDir, name: &str) -> String {
    let Files { cert, key, roots } = ca.workload("demo", name).write(files, name, &[ca]);
    format!(
        "identity: {{certificate: {}, key: {}, trust: [{{domain: cluster.local, roots: [{}]}}]}}\n",
        cert.display(),
        key.display(),
        roots.display()
    )
}

#[track_caller]
pub fn start(yaml: &str, admin: SocketAddr) -> Proxy {
    Proxy::with(Start { bin: BIN, yaml, admin: Some(admin), ..Start::default() })
}
