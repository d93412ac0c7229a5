//! What one request costs, counted: system calls, wake-ups, allocations. A change that adds one says why, here.
//!
//! One client, one request after the other, so that the counts are the same on every machine; under load batches only make
//! them fewer. Times are not counted here: those are the benchmark's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use weft_testkit::backend::{Backend, Reply, always};
use weft_testkit::ca::{Ca, LeafOpts};
use weft_testkit::client::http1;
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::Proxy;
use weft_testkit::wait;

/// Calls per request of one proxy, with a little room for what happens once a second.
struct Budget {
    read: f64,
    write: f64,
    wait: f64,
    /// Anything else: epoll_ctl, eventfd, futex, timers, clocks that are real calls.
    other: f64,
    allocations: f64,
}

/// Plain HTTP/1.1 on both sides: two reads, two writes, two waits, nothing else.
const HOP: Budget = Budget { read: 2.1, write: 2.1, wait: 2.2, other: 0.1, allocations: 16.0 };
/// HTTP/1.1 from the app, HTTP/2 in mTLS to the other sidecar.
const OUTBOUND: Budget = Budget { read: 2.1, write: 2.1, wait: 2.2, other: 0.1, allocations: 22.0 };
const INBOUND: Budget = Budget { read: 2.1, write: 2.1, wait: 2.2, other: 0.1, allocations: 17.0 };

const REQUESTS: usize = 2000;
/// How often a worker reports its allocations, and some.
const REPORT: Duration = Duration::from_millis(1100);

fn hop(admin: SocketAddr, listen: SocketAddr, to: SocketAddr) -> String {
    format!(
        "workload: {{name: hop}}\nadmin: {admin}\nlisteners:\n- {{name: main, role: hop, address: {listen}, protocol: http1, to: app}}\n\
         services:\n- name: app\n  port: 80\n  endpoints: [\"{to}\"]\n"
    )
}

/// System calls per request by name, as strace counts them.
fn system_calls(pid: u32, load: impl FnOnce()) -> BTreeMap<String, f64> {
    let dir = TempDir::new();
    let out = dir.join("calls");
    let mut tracer: Child = Command::new("strace")
        .args(["-f", "-c", "-o", out.to_str().unwrap(), "-p", &pid.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace runs (install it with .ci/tools)");
    let traced = || {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .unwrap()
            .contains(&format!("TracerPid:\t{}", tracer.id()))
    };
    wait::until("strace is attached", Duration::from_secs(20), traced);
    load();
    Command::new("kill").args(["-INT", &tracer.id().to_string()]).status().unwrap();
    tracer.wait().unwrap();
    let text = std::fs::read_to_string(&out).expect("strace wrote its table");
    let counts = text.lines().skip(2).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.last()?;
        let calls: f64 = words.get(3)?.parse().ok()?;
        (*name != "total").then(|| (name.to_string(), calls / REQUESTS as f64))
    });
    counts.collect()
}

fn check(who: &str, budget: &Budget, calls: &BTreeMap<String, f64>, allocations: f64) {
    let mut sums = [0.0; 4];
    for (name, count) in calls {
        let kind = match name.as_str() {
            "read" | "recvfrom" | "recvmsg" | "readv" => 0,
            "write" | "sendto" | "sendmsg" | "writev" => 1,
            "epoll_wait" | "epoll_pwait" | "epoll_pwait2" => 2,
            _ => 3,
        };
        sums[kind] += count;
    }
    println!(
        "{who}: read {:.2}, write {:.2}, wait {:.2}, other {:.2}; allocations {allocations:.1}",
        sums[0], sums[1], sums[2], sums[3]
    );
    let limits = [budget.read, budget.write, budget.wait, budget.other];
    for (i, what) in ["reads", "writes", "waits", "other calls"].iter().enumerate() {
        assert!(sums[i] <= limits[i], "{who}: {:.2} {what} a request, {} are allowed: {calls:?}", sums[i], limits[i]);
    }
    assert!(
        allocations <= budget.allocations,
        "{who}: {allocations:.1} allocations a request, {} are allowed",
        budget.allocations
    );
    assert!(sums[0] > 0.9 && sums[1] > 0.9, "{who}: strace saw the requests");
}

fn load(addr: SocketAddr) {
    let mut client = http1(addr);
    for _ in 0..REQUESTS {
        assert_eq!(client.get("/").status, 200);
    }
}

fn allocations(proxy: &Proxy, addr: SocketAddr) -> f64 {
    // Workers report once a second what they allocated. Asking in between would count as well.
    let counted = |requests: f64| {
        let from = Instant::now();
        wait::until("every worker has reported", Duration::from_secs(20), || from.elapsed() > 2 * REPORT);
        assert!(proxy.metric("weft_http_requests_total", &[]) >= requests);
        proxy.metric("weft_memory_allocations_total", &[])
    };
    let already = proxy.metric("weft_http_requests_total", &[]);
    load(addr);
    let before = counted(already + REQUESTS as f64);
    load(addr);
    (counted(already + 2.0 * REQUESTS as f64) - before) / REQUESTS as f64
}

#[test]
fn one_hop() {
    let app = Backend::start(always(Reply::text(200, "x".repeat(1024))));
    let (admin, listen) = (free_addr(), free_addr());
    let proxy = Proxy::start(env!("CARGO_BIN_EXE_weft-proxy"), &hop(admin, listen, app.addr()), admin);
    let allocations = allocations(&proxy, listen);
    let calls = system_calls(proxy.pid(), || load(listen));
    check("hop", &HOP, &calls, allocations);
}

#[test]
fn a_pair() {
    let app = Backend::start(always(Reply::text(200, "x".repeat(1024))));
    let dir = TempDir::new();
    let ca = Ca::new("cluster.local");
    for name in ["web", "app"] {
        ca.leaf(&ca.id("demo", name), &LeafOpts::default()).write(&dir, name, &[&ca]);
    }
    let (out_admin, in_admin, out, inn) = (free_addr(), free_addr(), free_addr(), free_addr());
    let identity = |name: &str| {
        let at = dir.path().display();
        format!(
            "identity: {{certificate: {at}/{name}.crt, key: {at}/{name}.key, trust: [{{domain: cluster.local, roots: [{at}/{name}.roots]}}]}}"
        )
    };
    let inbound = format!(
        "workload: {{name: app}}\n{}\nadmin: {in_admin}\nlisteners:\n- {{name: in, role: inbound, address: {inn}, app: {}, mtls: strict}}\n",
        identity("app"),
        app.addr()
    );
    let outbound = format!(
        "workload: {{name: web}}\n{}\nadmin: {out_admin}\nlisteners:\n- {{name: out, role: outbound, protocol: http1, address: {out}, to: app}}\n\
         services:\n- name: app\n  port: 80\n  identity: {}\n  endpoints: [\"{inn}\"]\n",
        identity("web"),
        ca.id("demo", "app")
    );
    let bin = env!("CARGO_BIN_EXE_weft-proxy");
    let inbound = Proxy::start(bin, &inbound, in_admin);
    let outbound = Proxy::start(bin, &outbound, out_admin);
    for (who, budget, proxy) in [("outbound", &OUTBOUND, &outbound), ("inbound", &INBOUND, &inbound)] {
        let allocations = allocations(proxy, out);
        let calls = system_calls(proxy.pid(), || load(out));
        check(who, budget, &calls, allocations);
    }
}
