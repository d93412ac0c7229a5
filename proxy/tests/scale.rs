//! Many proxies at one control plane, and one proxy in a large mesh: `weft-control` as a process, with manifests as people write
//! them. Small in CI; `WEFT_FULL=1` runs it whole. Figures are printed, and asserted ten times looser than they are meant to be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod mesh;
mod rows;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh::Mesh;
use rows::alone;
use weft_proxy::config::control::{self, Demand, Links, Options};
use weft_testkit::client::http1;
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::program;
use weft_testkit::proxy::{Proxy, Start};
use weft_testkit::wait::runtime;

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
const SOON: Duration = Duration::from_secs(120);

fn full() -> bool {
    std::env::var_os("WEFT_FULL").is_some()
}

/// Proxies (`WEFT_PROXIES` overrides) and services.
fn sizes() -> (usize, usize) {
    let (proxies, services) = if full() { (1000, 100) } else { (40, 20) };
    let given = std::env::var("WEFT_PROXIES").ok().and_then(|n| n.parse().ok());
    (given.unwrap_or(proxies), services)
}

/// Every service has one pod for its endpoint; `last` is the last number of all their addresses.
fn endpoints(services: usize, last: u8) -> String {
    (0..services)
        .map(|n| mesh::pod(&format!("s{n}-0"), &format!("s{n}"), &format!("10.1.{n}.{last}")) + "---\n")
        .collect()
}

fn services(n: usize) -> String {
    let one = |n| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: demo}}\n\
             spec: {{selector: {{app: s{n}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n"
        )
    };
    (0..n).map(one).collect()
}

/// One route for each, all of them changed by another `timeout`.
fn routes(n: usize, timeout: u32) -> String {
    let one = |n| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{n}, namespace: demo}}\n\
             spec:\n  hosts: [s{n}]\n  http:\n  - match: [{{uri: {{prefix: /a}}}}]\n    timeout: {timeout}s\n    \
             route: [{{destination: {{host: s{n}}}}}]\n    retries: {{attempts: 2, retryOn: 5xx}}\n  \
             - route: [{{destination: {{host: s{n}}}}}]\n---\n"
        )
    };
    (0..n).map(one).collect()
}

struct Control {
    manifests: TempDir,
    folder: TempDir,
    program: std::path::PathBuf,
    address: SocketAddr,
    admin: SocketAddr,
    process: Proxy,
}

impl Control {
    fn start(files: &[(&str, String)]) -> Self {
        let (manifests, folder) = (TempDir::new(), TempDir::new());
        files.iter().for_each(|(name, text)| drop(manifests.write(name, text)));
        let program = program::beside(BIN, "weft-control", "control-plane");
        let (address, admin) = (free_addr(), free_addr());
        let process = Self::run(&program, &manifests, &folder, address, admin);
        Self { manifests, folder, program, address, admin, process }
    }

    fn run(
        program: &std::path::Path,
        manifests: &TempDir,
        folder: &TempDir,
        listen: SocketAddr,
        admin: SocketAddr,
    ) -> Proxy {
        let path = |dir: &TempDir| dir.path().display().to_string();
        let args = [
            ("--dir", path(manifests)),
            ("--state", folder.join("control").display().to_string()),
            ("--listen", listen.to_string()),
            ("--admin", admin.to_string()),
            ("--log", "warn".to_string()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_string(), value]).collect();
        let bin = program.to_str().expect("a path");
        let mut process =
            Proxy::with(Start { bin, args, fileless: true, admin: Some(admin), no_wait: true, ..Start::default() });
        process.wait_ready(SOON);
        process
    }

    /// Killed, and started again at once.
    fn restart(&mut self) {
        self.process.signal(9);
        self.process.wait_exit(SOON);
        self.process = Self::run(&self.program, &self.manifests, &self.folder, self.address, self.admin);
    }

    fn token(&self, n: usize) {
        let state = self.folder.join("control");
        let pod = format!("web-{n}");
        let mut command = Command::new(&self.program);
        command.args(["token", "--namespace", "demo", "--service-account", "web", "--pod", &pod, "--state"]).arg(state);
        self.folder.write(&format!("{pod}.token"), command.output().expect("weft-control").stdout);
    }
}

/// One proxy's client, real but for its workers: what it puts into force is looked at here.
struct Client {
    links: Links,
    demand: Demand,
    /// The newest configuration, and since when it is in force.
    newest: Rc<RefCell<Option<(String, Instant)>>>,
}

impl Client {
    fn start(control: &Control, n: usize) -> Self {
        let options = Options {
            target: control.address.to_string().into(),
            trust_root: control.folder.join("control/root.pem"),
            token_file: control.folder.join(&format!("web-{n}.token")),
            namespace: "demo".into(),
            pod: format!("web-{n}"),
            state: control.folder.join(&format!("web-{n}")),
            everything: false,
            trust_domain: None,
        };
        let links = Links::new(&options.target);
        let (mut updates, demand, _reporter, following) = control::follow(options, links.clone());
        tokio::task::spawn_local(following);
        let newest = Rc::new(RefCell::new(None));
        let kept = newest.clone();
        tokio::task::spawn_local(async move {
            while let Some(update) = updates.recv().await {
                *kept.borrow_mut() = Some((update.config.document.to_string(), Instant::now()));
                let _ = update.done.send(());
            }
        });
        Self { links, demand: demand.expect("on demand"), newest }
    }

    fn has(&self, what: &str) -> Option<Instant> {
        self.newest.borrow().as_ref().filter(|(text, _)| text.contains(what)).map(|(_, at)| *at)
    }

    fn connected(&self) -> bool {
        self.links.json()["connected"] == true
    }
}

async fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !ready() {
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// From `begun` until each of them has it in force.
async fn spread(name: &str, clients: &[Client], begun: Instant, what: &str, bound: Duration) {
    until(name, || clients.iter().all(|c| c.has(what).is_some())).await;
    let mut times: Vec<Duration> = clients.iter().map(|c| c.has(what).unwrap() - begun).collect();
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    println!("{name}, {} proxies: p50 {:?} p99 {:?} max {:?}", times.len(), at(0.5), at(0.99), at(1.0));
    // A program that is not optimized says nothing about speed.
    assert!(cfg!(debug_assertions) || at(0.99) <= 10 * bound, "{name}: {:?}", at(0.99));
}

#[test]
fn many_proxies() {
    let _alone = alone();
    let (proxies, count) = sizes();
    let web: String = (0..proxies)
        .map(|n| mesh::pod(&format!("web-{n}"), "web", &format!("10.2.{}.{}", n / 250, n % 250 + 1)) + "---\n")
        .collect();
    let mut control = Control::start(&[
        ("services.yaml", services(count)),
        ("endpoints.yaml", endpoints(count, 1)),
        ("routes.yaml", routes(count, 1)),
        ("web.yaml", web),
    ]);
    (0..proxies).for_each(|n| control.token(n));
    let before = control.process.rss_kib();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime(), async {
        let begun = Instant::now();
        let clients: Vec<Client> = (0..proxies).map(|n| Client::start(&control, n)).collect();
        until("all have joined", || clients.iter().all(Client::connected)).await;
        println!("{proxies} proxies joined and connected in {:?}", begun.elapsed());
        // Each calls the first service and four others.
        let begun = Instant::now();
        let calls = clients.iter().enumerate().flat_map(|(n, client)| {
            let hosts = [0, n * 7 + 1, n * 11 + 2, n * 13 + 3, n * 17 + 4].map(|h| format!("s{}", h % count));
            hosts.into_iter().map(move |host| async move { client.demand.host(&host, 80).await })
        });
        let answered = futures(calls.collect()).await;
        println!("{} destinations on demand in {:?}", answered.len(), begun.elapsed());
        until("all have what they call", || clients.iter().all(|c| c.has("10.1.0.1:8080").is_some())).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let each = control.process.rss_kib().saturating_sub(before) as f64 / proxies as f64;
        println!("memory of the control plane for each connected proxy: {each:.0} KiB");
        // A few proxies pay for what all share.
        assert!(!full() || each <= 2500.0, "{each} KiB");

        // One endpoint of a service that all of them call.
        let changed = endpoints(count, 1).replace("podIP: 10.1.0.1,", "podIP: 10.1.0.77,");
        control.manifests.write("endpoints.yaml", changed);
        spread("endpoint changed", &clients, Instant::now(), "10.1.0.77:8080", Duration::from_secs(1)).await;
        // Every route of the mesh.
        control.manifests.write("routes.yaml", routes(count, 47));
        spread("all routes changed", &clients, Instant::now(), "\"47s\"", Duration::from_secs(3)).await;

        let begun = Instant::now();
        control.process.signal(9);
        until("all have noticed", || !clients.iter().any(Client::connected)).await;
        let noticed = begun.elapsed();
        control.restart();
        let begun = Instant::now();
        until("all are back", || clients.iter().all(Client::connected)).await;
        println!("gone noticed by all in {noticed:?}; all reconnected {:?} after it was ready again", begun.elapsed());
        assert!(cfg!(debug_assertions) || begun.elapsed() <= Duration::from_secs(100));
    });
}

async fn futures<F: Future<Output = bool>>(all: Vec<F>) -> Vec<bool> {
    let mut all: Vec<_> = all.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, answer) in all.iter_mut().filter(|(_, answer)| answer.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
                *answer = Some(value);
            }
        }
        if all.iter().all(|(_, a)| a.is_some()) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|(_, answer)| answer).collect()
}

/// What a sidecar holds depends on what its workload calls, not on the mesh.
#[test]
fn one_sidecar_in_a_large_mesh() {
    let _alone = alone();
    let count = if full() { 10_000 } else { 300 };
    let allocated = |more: usize| {
        let mut files = Vec::new();
        for (i, from) in (0..more).step_by(2000).enumerate() {
            let mut text = String::new();
            for n in from..more.min(from + 2000) {
                let addresses = (1..=5).map(|k| format!("10.{}.{}.{k}", 100 + n / 250, n % 250)).collect::<Vec<_>>();
                let _ = write!(
                    text,
                    "apiVersion: v1\nkind: Service\nmetadata: {{name: m{n}, namespace: large}}\n\
                     spec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
                     apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: m{n}, namespace: large, \
                     labels: {{kubernetes.io/service-name: m{n}}}}}\naddressType: IPv4\n\
                     ports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [{}]}}]\n---\n",
                    addresses.join("]}, {addresses: [")
                );
            }
            files.push((format!("large-{i}.yaml"), text));
        }
        let called: String = (0..5)
            .map(|n| {
                format!(
                    "apiVersion: v1\nkind: Service\nmetadata: {{name: c{n}, namespace: demo}}\n\
                     spec: {{clusterIP: 10.99.0.{}, selector: {{app: app}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n",
                    20 + n
                )
            })
            .collect();
        files.push(("called.yaml".into(), called));
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let begun = Instant::now();
        let mesh = Mesh::start(&[], &files);
        println!("{more} further services: all is ready after {:?}", begun.elapsed());
        for n in 0..5 {
            let at: SocketAddr = format!("10.99.0.{}:80", 20 + n).parse().unwrap();
            assert_eq!(mesh.near.run(|| http1(at).host("c").get("/")).status, 200);
        }
        let services = mesh.control_metric("weft_control_services");
        assert!(services >= (more + 6) as f64, "{services} services");
        // The lowest of a while: what a start needs for a moment is not held.
        let looks = (0..30).map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            mesh.client.metric("weft_memory_allocated_bytes", &[])
        });
        looks.fold(f64::MAX, f64::min)
    };
    let (empty, large) = (allocated(0), allocated(count));
    let more = (large - empty) / 1024.0;
    println!(
        "a sidecar that calls 5 services holds {:.0} KiB in an empty mesh and {more:+.0} KiB in one of {count} services",
        empty / 1024.0
    );
    assert!(more <= 1024.0, "{more} KiB more");
}
