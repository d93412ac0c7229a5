//! Nothing fails while things change: configuration, certificates, endpoints, whole proxies.
//!
//! Each row runs mixed load (GET and POST over HTTP/1.1, gRPC unary and streams) from an open loop through a pair of
//! sidecars while something changes. Failed is what `rulings.md` calls failed, and the client's count must equal the access
//! logs' and the app's. A fifth of the full length; `WEFT_FULL=1` runs the whole 30 s.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pair;
mod rows;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pair::{Certs, DOMAIN, HOST, SOON, Side, id, identity, inbound, inbound_listener, outbound, service};
use rows::{Load, alone, books_balance, length, logged};
use weft_testkit::backend::{Backend, echo};
use weft_testkit::ca::Ca;
use weft_testkit::client::{Http1, http1};
use weft_testkit::dir::free_addr;
use weft_testkit::proxy::Proxy;
use weft_testkit::wait::until;

struct Pair {
    certs: Certs,
    app: Backend,
    in_addr: SocketAddr,
    out_addr: SocketAddr,
    in_side: Side,
    out_side: Side,
    inn: Proxy,
    out: Proxy,
}

impl Pair {
    /// `more` are further fields of the client's service, `limits` of the inbound listener.
    fn start(more: &str, limits: &str) -> Self {
        let certs = Certs::new();
        let app = Backend::start(echo());
        let (in_addr, out_addr) = (free_addr(), free_addr());
        let in_side = inbound(identity(&certs.app), in_addr, app.addr(), &format!("mtls: strict{limits}"));
        let mut out_side = outbound(identity(&certs.client), out_addr, &id("app"), &[in_addr]);
        out_side.services = vec![service(&id("app"), &[in_addr], more)];
        // More than one, so that what workers share is shared.
        out_side.workers = 2;
        let (inn, out) = (in_side.start(), out_side.start());
        Self { certs, app, in_addr, out_addr, in_side, out_side, inn, out }
    }

    /// What is rotated was used.
    #[track_caller]
    fn expect_handshakes(&self, least: u64) {
        let made = self.inn.wait_metric("weft_connections_total", &[("role", "inbound")], least as f64, SOON);
        println!("{made} handshakes");
    }
}

#[test]
fn fifty_config_changes() {
    let _alone = alone();
    let mut pair = Pair::start("", "");
    let load = Load::start(pair.out_addr, HOST);
    let extra = free_addr();
    let connections = pair.app.connections();
    let pause = length() / 50;
    for n in 0..50u32 {
        let at = Instant::now();
        // Something else each time; every one of them is a new snapshot on its proxy.
        let policy = match n % 5 {
            0 => "policy: {balance: {algorithm: roundRobin}}",
            1 => "policy: {breaker: {maxConnections: 100000, maxRequests: 100000}, balance: {algorithm: leastRequest}}",
            2 => "policy: {outlier: {ejection: {consecutive5xx: 5}}}",
            3 => "policy: {retryBudget: {percent: 20, minPerSecond: 10}}",
            _ => "policy: {connections: {idleTimeout: 5m}}",
        };
        let routes = format!(
            "routes: [{{name: r{n}, requestHeaders: {{set: {{x-config: \"{n}\"}}}}, timeout: {{request: {}s}}}}]",
            20 + n
        );
        pair.out_side.services = vec![service(&id("app"), &[pair.in_addr], &format!("{routes}, {policy}"))];
        if n % 3 == 0 {
            pair.out_side.services.push("{name: other, port: 80, endpoints: [\"127.0.0.1:9\"]}".into());
        }
        pair.out_side.apply(&pair.out);
        if n % 2 == 0 {
            let mut listeners = vec![inbound_listener(
                "in",
                pair.in_addr,
                pair.app.addr(),
                &format!("mtls: strict, limits: {{idle: {}m}}", 10 + n),
            )];
            if n % 4 == 0 {
                listeners.push(inbound_listener("more", extra, pair.app.addr(), ""));
            }
            pair.in_side.listeners = listeners;
            pair.in_side.apply(&pair.inn);
        }
        std::thread::sleep(pause.saturating_sub(at.elapsed()));
    }
    assert_eq!(http1(pair.out_addr).host(HOST).get("/last").json()["headers"]["x-config"], "49");
    let totals = load.stop("50 config changes");
    books_balance("50 config changes", totals.sent + 1, &[&pair.out]);
    books_balance("50 config changes", totals.sent + 1, &[&pair.inn]);
    assert_eq!(pair.app.requests(), totals.sent + 1);
    // Changes of policy cost no connection: as many as the load itself needs.
    println!("connections to the app: {connections} at first, {} in all", pair.app.connections());
}

/// A file that is wrong changes nothing, and the process says so; SIGHUP and a change of the file both take a right one.
#[test]
fn a_bad_file_keeps_the_last_good_configuration() {
    let _alone = alone();
    let mut pair = Pair::start("", "");
    let load = Load::start(pair.out_addr, HOST);
    let good = pair.out_side.yaml();
    let bad = [
        ("listeners: [", "not YAML"),
        ("listeners: []\n", "no listener"),
        (&*good.replace("role: outbound", "role: outbond"), "a wrong word"),
        (&*good.replace("port: 80", "prot: 80"), "an unknown field"),
        ("", "empty"),
    ];
    for (n, (text, what)) in bad.iter().enumerate() {
        let from = pair.out.log_lines().len();
        pair.out.reconfigure(text);
        if n % 2 == 0 {
            pair.out.sighup();
        }
        pair.out.wait_log_from(from, |l| l.contains("the last good configuration stays"), SOON);
        assert_eq!(pair.out.metric("weft_config_refused", &[]), 1.0, "{what}");
        assert!(pair.out.admin_get("/config_dump").1.contains("fileErrors"), "{what}");
        assert_eq!(http1(pair.out_addr).host(HOST).get("/still").status, 200, "{what}");
    }
    let routes = "routes: [{name: new, requestHeaders: {set: {x-config: \"good\"}}}]";
    pair.out_side.services = vec![service(&id("app"), &[pair.in_addr], routes)];
    // Without SIGHUP.
    pair.out.reconfigure(&pair.out_side.yaml());
    let now = |name: &str| {
        let json = http1(pair.out_addr).host(HOST).get("/which").json();
        json["headers"]["x-config"] == name
    };
    until("the new file is in force", SOON, || now("good"));
    assert_eq!(pair.out.metric("weft_config_refused", &[]), 0.0);
    load.stop("bad files");
}

/// Connections live a second, so that handshakes meet every state of the files.
const SHORT_LIVED: &str = "policy: {connections: {maxAge: 1s}}";

#[test]
fn leaf_rotated_every_two_seconds() {
    let _alone = alone();
    let pair = Pair::start(SHORT_LIVED, "");
    let load = Load::start(pair.out_addr, HOST);
    let rounds = (length().as_secs() / 2).max(3);
    for _ in 0..rounds {
        let at = Instant::now();
        for (name, proxy) in [("client", &pair.out), ("app", &pair.inn)] {
            let from = proxy.log_lines().len();
            let leaf = pair.certs.ca.workload("demo", name);
            pair.certs.rotate(name, &leaf, &[&pair.certs.ca]);
            proxy.wait_log_from(from, |l| l.contains("identity taken from rotated files"), SOON);
        }
        std::thread::sleep(Duration::from_secs(2).saturating_sub(at.elapsed()));
    }
    // What cannot be used changes nothing.
    let serial = |p: &Proxy| p.admin_get("/certs").1;
    let held = serial(&pair.out);
    pair.certs.dir.write("client.crt", "not a certificate");
    pair.out.wait_log(|l| l.contains("identity files refused"), SOON);
    assert_eq!(serial(&pair.out), held);
    let totals = load.stop("leaf rotated every 2 s");
    books_balance("leaf", totals.sent, &[&pair.out]);
    books_balance("leaf", totals.sent, &[&pair.inn]);
    pair.expect_handshakes(rounds);
    let failed = [&pair.out, &pair.inn].map(|p| p.metric("weft_tls_handshake_failed_total", &[]));
    assert_eq!(failed, [0.0, 0.0]);
}

/// Add the new root on both sides, sign with it one side after the other, drop the old one.
#[test]
fn root_rotated() {
    let _alone = alone();
    let pair = Pair::start(SHORT_LIVED, "");
    let load = Load::start(pair.out_addr, HOST);
    let (old, new) = (&pair.certs.ca, Ca::new(DOMAIN));
    let old_leaf = old.workload("demo", "client");
    let pause = length() / 7;
    let step = |name: &str, signer: Option<&Ca>, roots: &[&Ca]| {
        let proxy = if name == "client" { &pair.out } else { &pair.inn };
        let from = proxy.log_lines().len();
        match signer {
            Some(ca) => pair.certs.rotate(name, &ca.workload("demo", name), roots),
            None => {
                let roots: String = roots.iter().map(|ca| ca.root_pem()).collect();
                pair.certs.dir.write(&format!("{name}.roots"), roots);
            }
        }
        proxy.wait_log_from(from, |l| l.contains("identity taken from rotated files"), SOON);
        std::thread::sleep(pause);
    };
    for name in ["client", "app"] {
        step(name, None, &[old, &new]);
    }
    for name in ["app", "client"] {
        step(name, Some(&new), &[old, &new]);
    }
    for name in ["client", "app"] {
        step(name, None, &[&new]);
    }
    let totals = load.stop("root rotated");
    books_balance("root", totals.sent, &[&pair.out]);
    pair.expect_handshakes(5);
    let failed = [&pair.out, &pair.inn].map(|p| p.metric("weft_tls_handshake_failed_total", &[]));
    assert_eq!(failed, [0.0, 0.0]);
    // The old root is really gone.
    let config = weft_testkit::tls::client(Some(&old_leaf), &["weft/http1"]);
    let answer = Http1::tls(pair.in_addr, &config, "app").ok().and_then(|mut c| c.request("GET", "/", &[], b"").ok());
    assert!(answer.is_none(), "{answer:?}");
}

/// As a rollout does it: the new one runs, configuration moves, the old one finishes and goes.
#[test]
fn one_of_two_backends_replaced_ten_times() {
    let _alone = alone();
    let mut pair = Pair::start("", "");
    let local = |a: &Backend, b: &Backend| {
        format!("{{name: local, port: 80, endpoints: [\"{}\", \"{}\"]}}", a.addr(), b.addr())
    };
    let stays = Backend::named("stays");
    let mut goes = Backend::named("goes");
    pair.in_side.listeners =
        vec![format!("{{name: in, role: inbound, address: {}, to: local, mtls: strict}}", pair.in_addr)];
    pair.in_side.services = vec![local(&stays, &goes)];
    pair.in_side.apply(&pair.inn);
    let load = Load::start(pair.out_addr, HOST);
    let pause = length() / 10;
    let (mut used, mut served) = (0, 0);
    for n in 0..10 {
        let at = Instant::now();
        let next = Backend::named(&format!("next{n}"));
        pair.in_side.services = vec![local(&stays, &next)];
        pair.in_side.apply(&pair.inn);
        let old = std::mem::replace(&mut goes, next);
        // It goes when nobody speaks to it any more; HTTP/1 has no other safe moment. (Requests count when they come in.)
        until("connections to the old one end", SOON, || old.open_connections() == 0);
        used += usize::from(old.requests() > 0);
        served += old.requests();
        old.shutdown();
        std::thread::sleep(pause.saturating_sub(at.elapsed()));
    }
    let totals = load.stop("one of two backends replaced 10 times");
    books_balance("backends", totals.sent, &[&pair.out]);
    books_balance("backends", totals.sent, &[&pair.inn]);
    assert_eq!(used, 10, "each of them had its share");
    assert_eq!(served + goes.requests() + stays.requests(), totals.sent);
    println!("the last one had {} of them, the one that stays {}", goes.requests(), stays.requests());
}

/// The next inbound proxy listens beside the old one on the same port, then the old one drains.
#[test]
fn inbound_proxy_drained_and_replaced_ten_times() {
    let _alone = alone();
    let mut pair = Pair::start("", ", limits: {drainDelay: 300ms, drain: 10s}");
    let load = Load::start(pair.out_addr, HOST);
    let pause = length() / 10;
    let mut gone = Vec::new();
    for n in 0..10 {
        let at = Instant::now();
        pair.in_side.admin = free_addr();
        let next = pair.in_side.start();
        let mut old = std::mem::replace(&mut pair.inn, next);
        old.sigterm();
        let status = old.wait_exit(SOON);
        assert_eq!(status.code(), Some(0), "number {n}");
        gone.push(old);
        std::thread::sleep(pause.saturating_sub(at.elapsed()));
    }
    let totals = load.stop("inbound proxy drained and replaced 10 times");
    books_balance("inbound replaced", totals.sent, &[&pair.out]);
    let mut all: Vec<&Proxy> = gone.iter().collect();
    all.push(&pair.inn);
    books_balance("inbound replaced", totals.sent, &all);
    assert_eq!(pair.app.requests(), totals.sent);
    let shares: Vec<u64> = all.iter().map(|p| logged(&[p])).collect();
    println!("requests by proxy: {shares:?}");
}

/// The same where each instance has an address of its own and configuration follows.
#[test]
fn inbound_proxy_replaced_behind_a_new_endpoint() {
    let _alone = alone();
    let mut pair = Pair::start("", ", limits: {drainDelay: 200ms, drain: 10s}");
    let load = Load::start(pair.out_addr, HOST);
    for n in 0..4 {
        let addr = free_addr();
        pair.in_side.admin = free_addr();
        pair.in_side.listeners = vec![inbound_listener(
            "in",
            addr,
            pair.app.addr(),
            "mtls: strict, limits: {drainDelay: 200ms, drain: 10s}",
        )];
        let mut old = std::mem::replace(&mut pair.inn, pair.in_side.start());
        // Both for a while, the old one already on its way out when the configuration says so.
        old.sigterm();
        pair.out_side.services = vec![service(&id("app"), &[addr], "")];
        pair.out_side.apply(&pair.out);
        assert_eq!(old.wait_exit(SOON).code(), Some(0), "number {n}");
    }
    let totals = load.stop("inbound proxy replaced behind new endpoints");
    books_balance("new endpoints", totals.sent, &[&pair.out]);
    assert_eq!(pair.app.requests(), totals.sent);
}
