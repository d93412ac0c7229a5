//! Nothing fails while a control plane changes things, comes and goes: the rows of `changes.rs` with `weft-control` in the loop.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod mesh;
mod rows;

use std::time::{Duration, Instant};

use mesh::{Mesh, SERVICE, SHORT_LIVED, SOON, address, route};
use rows::{Load, alone, books_balance, length};
use weft_testkit::client::http1;
use weft_testkit::proxy::Proxy;
use weft_testkit::wait::{poll, until};

/// Of how often something happens in a whole row, so much in this one.
fn times(whole: usize) -> usize {
    (whole * length().as_secs() as usize / 30).max(2)
}

fn load(mesh: &Mesh) -> Load {
    mesh.near.run(|| Load::start(SERVICE.parse().unwrap(), "app.demo"))
}

#[track_caller]
fn all_arrived(row: &str, mesh: &Mesh, sent: u64) {
    books_balance(row, sent, &[&mesh.client]);
    books_balance(row, sent, &[&mesh.app]);
    for proxy in [&mesh.client, &mesh.app] {
        assert_eq!(proxy.metric("weft_tls_handshake_failed_total", &[]), 0.0, "{row}");
        assert_eq!(proxy.metric("weft_panics_total", &[]), 0.0, "{row}");
    }
}

fn connected(proxy: &Proxy) -> bool {
    proxy.metric("weft_control_connected", &[]) == 1.0
}

#[test]
fn fifty_pushes() {
    let _alone = alone();
    let mesh = Mesh::start(&[], &[("route.yaml", &route(0))]);
    let load = load(&mesh);
    for n in 1..=times(50) {
        mesh.manifests.write("route.yaml", route(n));
        if n % 3 == 0 {
            mesh.manifests.write("rule.yaml", SHORT_LIVED.replace("1s", &format!("{n}m")));
        }
        mesh.until_client(true, &format!("c{n}-"));
    }
    let totals = load.stop("config pushes");
    let last = mesh.near.run(|| http1(SERVICE.parse().unwrap()).host("app").get("/last").json());
    assert_eq!(last["headers"]["x-config"], format!("c{}-", times(50)));
    all_arrived("config pushes", &mesh, totals.sent + 1);
    assert_eq!(mesh.first.requests(), totals.sent + 1);
}

#[test]
fn control_plane_killed_ten_times() {
    let _alone = alone();
    let mut mesh = Mesh::start(&[], &[("route.yaml", &route(0))]);
    let load = load(&mesh);
    let pause = length() / times(10) as u32;
    for n in 1..=times(10) {
        let at = Instant::now();
        mesh.kill_control();
        for proxy in [&mesh.client, &mesh.app] {
            until("it is noticed", SOON, || !connected(proxy));
        }
        // What changes while it is away is in force when it is back.
        mesh.manifests.write("route.yaml", route(n));
        mesh.restart_control();
        mesh.until_client(true, &format!("c{n}-"));
        until("both are back", SOON, || connected(&mesh.client) && connected(&mesh.app));
        std::thread::sleep(pause.saturating_sub(at.elapsed()));
    }
    let totals = load.stop("control plane killed");
    all_arrived("control plane killed", &mesh, totals.sent);
}

#[test]
fn a_replica_replaced_ten_times() {
    let _alone = alone();
    let mesh = Mesh::start(&[], &[]);
    let mut old = mesh.replica(1);
    let load = load(&mesh);
    let pause = length() / times(10) as u32;
    let mut served = 0;
    for n in 1..=times(10) {
        let at = Instant::now();
        let next = mesh.replica(n + 1);
        mesh.until_client(true, &format!("{}:8080", address(n + 1)));
        // No new work for the one that goes, and time for what it has begun.
        std::fs::remove_file(mesh.manifests.join(&format!("pod-{n}.yaml"))).unwrap();
        mesh.until_client(false, &format!("{}:8080", address(n)));
        let old = std::mem::replace(&mut old, next);
        let mut last = (old.requests(), Instant::now());
        let quiet = poll(SOON, || {
            if old.requests() != last.0 {
                last = (old.requests(), Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(300)).then_some(())
        });
        assert!(quiet.is_some(), "it is still called");
        assert!(old.requests() > 0, "number {n} had no share");
        served += old.requests();
        old.shutdown();
        std::thread::sleep(pause.saturating_sub(at.elapsed()));
    }
    let totals = load.stop("a replica replaced");
    all_arrived("a replica replaced", &mesh, totals.sent);
    assert_eq!(served + old.requests() + mesh.first.requests(), totals.sent);
}

/// As many lives of a leaf as fit.
#[test]
fn leaves_of_twenty_seconds() {
    let _alone = alone();
    let lifetime = format!("{}s", length().as_secs() * 2 / 3);
    let mesh = Mesh::start(&["--leaf-lifetime", &lifetime], &[("rule.yaml", SHORT_LIVED)]);
    let before = mesh.control_metric("weft_control_signed_total");
    let load = load(&mesh);
    // Both have renewed, and what they had at first has ended.
    let begun = Instant::now();
    until("leaves are renewed", SOON, || mesh.control_metric("weft_control_signed_total") >= before + 4.0);
    std::thread::sleep(length().saturating_sub(begun.elapsed()));
    let totals = load.stop("short leaves");
    all_arrived("short leaves", &mesh, totals.sent);
    for proxy in [&mesh.client, &mesh.app] {
        assert_eq!(proxy.metric("weft_control_renewal_failures_total", &[]), 0.0);
    }
}

/// Every step when it allows itself, none of them forced.
#[test]
fn root_rotated() {
    let _alone = alone();
    let lifetime = format!("{}s", length().as_secs() * 2 / 3);
    let mesh = Mesh::start(&["--leaf-lifetime", &lifetime], &[("rule.yaml", SHORT_LIVED)]);
    let load = load(&mesh);
    let old = std::fs::read(mesh.root_pem()).unwrap();
    for roots in [2, 2, 1] {
        until("the next step", SOON, || mesh.rotate_root().status.success());
        assert_eq!(mesh.roots(), roots);
    }
    assert_ne!(std::fs::read(mesh.root_pem()).unwrap(), old);
    // Everybody has put the old one away, and goes on.
    let trusted = |p: &Proxy| {
        let certs: serde_json::Value = serde_json::from_str(&p.admin_get("/certs").1).unwrap();
        certs["certificates"][0]["ca_cert"].as_array().map_or(0, Vec::len)
    };
    until("one root", SOON, || trusted(&mesh.client) == 1 && trusted(&mesh.app) == 1);
    let totals = load.stop("root rotated");
    all_arrived("root rotated", &mesh, totals.sent);
}
