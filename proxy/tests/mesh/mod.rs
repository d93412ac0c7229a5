//! A mesh of real processes: `weft-control` with a folder of manifests, and the sidecars of a client and of an app, joined with
//! tokens and behind redirect rules, each in a namespace of its own.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use weft_testkit::backend::{Backend, Options, echo};
use weft_testkit::dir::TempDir;
use weft_testkit::netns::Netns;
use weft_testkit::program;
use weft_testkit::proxy::{Proxy, Start, sum_metric};
use weft_testkit::wait::until;

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
/// Generous: the machine may be busy with other suites.
pub const SOON: Duration = Duration::from_secs(120);

const CONTROL: &str = "10.88.0.1:15012";
const CONTROL_ADMIN: &str = "127.0.0.1:15014";
/// What the client calls.
pub const SERVICE: &str = "10.99.0.10:80";

const MANIFESTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: app, namespace: demo}
spec: {clusterIP: 10.99.0.10, selector: {app: app}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: demo}
spec: {mtls: {mode: STRICT}}
";

/// Its connections live a second, so that handshakes meet every state of certificates and roots.
pub const SHORT_LIVED: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: app, namespace: demo}
spec: {host: app, trafficPolicy: {connectionPool: {tcp: {maxConnectionDuration: 1s}}}}
";

pub struct Mesh {
    pub manifests: TempDir,
    folder: TempDir,
    pub near: Netns,
    pub far: Netns,
    pub control: Proxy,
    program: PathBuf,
    more: Vec<String>,
    /// The client's sidecar.
    pub client: Proxy,
    /// The sidecar of all of the app's replicas.
    pub app: Proxy,
    /// The replica that stays.
    pub first: Backend,
}

impl Mesh {
    /// `more` are arguments of the control plane, `files` manifests beside the app's.
    pub fn start(more: &[&str], files: &[(&str, &str)]) -> Self {
        let (near, far) = (Netns::new("n"), Netns::new("f"));
        Netns::join(&near, &["10.88.0.1/24"], &far, &["10.88.0.2/24"]);
        near.ip("route add default via 10.88.0.2");
        near.redirect(Some(15001), None, &[]);
        far.redirect(None, Some(15006), &[]);
        let (manifests, folder) = (TempDir::new(), TempDir::new());
        manifests.write("app.yaml", MANIFESTS);
        manifests.write("client.yaml", pod("web-0", "web", "10.88.0.1"));
        for (name, text) in files {
            manifests.write(name, text);
        }
        let first = replica(&manifests, &far, 0);
        let program = program::beside(BIN, "weft-control", "control-plane");
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        let control = start_control(&program, &near, &manifests, &folder, &more);
        let sidecar = |ns: &Netns, pod: &str, account: &str| {
            let path = |name: &str| folder.join(name).display().to_string();
            let token = token(&program, &path("control"), pod, account);
            folder.write(&format!("{pod}.token"), token);
            let args = [
                ("--control", CONTROL.to_string()),
                ("--trust-root", path("control/root.pem")),
                ("--token-file", path(&format!("{pod}.token"))),
                ("--pod", format!("demo/{pod}")),
                ("--state", path(pod)),
            ];
            let args = args.into_iter().flat_map(|(flag, value)| [flag.to_string(), value]).collect();
            let admin = Some(SocketAddr::from(([127, 0, 0, 1], 15000)));
            let start =
                Start { bin: BIN, admin, args, fileless: true, no_wait: true, ns: Some(ns), ..Start::default() };
            let mut proxy = Proxy::with(start);
            proxy.wait_ready(SOON);
            proxy
        };
        let (client, app) = (sidecar(&near, "web-0", "web"), sidecar(&far, "app-0", "app"));
        Self { manifests, folder, near, far, control, program, more, client, app, first }
    }

    /// As a crash does, and a supervisor after it.
    pub fn kill_control(&mut self) {
        self.control.signal(9);
        self.control.wait_exit(SOON);
    }

    pub fn restart_control(&mut self) {
        self.control = start_control(&self.program, &self.near, &self.manifests, &self.folder, &self.more);
    }

    /// A replica of the app, running and known to the control plane.
    pub fn replica(&self, n: usize) -> Backend {
        replica(&self.manifests, &self.far, n)
    }

    /// Until the client's sidecar has something in force, or has it no more.
    #[track_caller]
    pub fn until_client(&self, has: bool, what: &str) {
        let told = || self.client.admin_get("/config_dump").1.contains(what);
        until(&format!("{what} in force: {has}"), SOON, || told() == has);
    }

    pub fn rotate_root(&self) -> Output {
        let state = self.folder.join("control");
        Command::new(&self.program).args(["rotate-root", "--state"]).arg(state).output().expect("weft-control")
    }

    pub fn root_pem(&self) -> PathBuf {
        self.folder.join("control/root.pem")
    }

    pub fn roots(&self) -> usize {
        std::fs::read_to_string(self.root_pem()).expect("root.pem").matches("BEGIN").count()
    }

    pub fn control_metric(&self, name: &str) -> f64 {
        sum_metric(&self.control.admin_get("/metrics").1, name, &[])
    }
}

fn start_control(
    program: &std::path::Path,
    ns: &Netns,
    manifests: &TempDir,
    folder: &TempDir,
    more: &[String],
) -> Proxy {
    let mut args: Vec<String> = ["--listen", CONTROL, "--admin", CONTROL_ADMIN].map(String::from).into();
    args.extend(["--mesh-range".into(), "10.99.0.0/16".into()]);
    args.extend(["--dir".into(), manifests.path().display().to_string()]);
    args.extend(["--state".into(), folder.join("control").display().to_string()]);
    args.extend_from_slice(more);
    let bin = program.to_str().expect("a path");
    let admin = Some(CONTROL_ADMIN.parse().expect("an address"));
    let mut control =
        Proxy::with(Start { bin, admin, args, fileless: true, no_wait: true, ns: Some(ns), ..Start::default() });
    control.wait_ready(SOON);
    control
}

fn token(program: &std::path::Path, state: &str, pod: &str, account: &str) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(["token", "--state", state, "--namespace", "demo", "--service-account", account, "--pod", pod]);
    let output = command.output().expect("weft-control");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

pub fn address(n: usize) -> String {
    format!("10.88.0.{}", 10 + n)
}

fn replica(manifests: &TempDir, far: &Netns, n: usize) -> Backend {
    let ip = address(n);
    let devices = far.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").expect("devices"));
    let cable = devices.split_whitespace().find_map(|w| w.strip_suffix(':').filter(|w| w.starts_with("wr")));
    far.ip(&format!("addr add {ip}/24 dev {}", cable.expect("the cable")));
    let addr = format!("{ip}:8080").parse().expect("an address");
    let backend = far.run(|| Backend::with(Options { name: format!("app-{n}"), addr, ..Options::default() }, echo()));
    manifests.write(&format!("pod-{n}.yaml"), pod(&format!("app-{n}"), "app", &ip));
    backend
}

pub fn pod(name: &str, app: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: demo, labels: {{app: {app}}}, annotations: {{weft.dev/sidecar: 'true'}}}}\n\
         spec: {{serviceAccountName: {app}, containers: [{{name: {app}, ports: [{{containerPort: 8080}}]}}]}}\n\
         status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

/// A route that says in a header which one it is.
pub fn route(n: usize) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: app, namespace: demo}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: app, port: 80}}]\n  rules:\n  \
         - filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-config, value: c{n}-}}]}}}}]\n    \
         timeouts: {{request: {}s}}\n    backendRefs: [{{name: app, port: 80}}]\n",
        20 + n
    )
}
