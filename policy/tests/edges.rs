//! The house's walls: which crate may use which, as `cargo metadata` sees it. A new edge is a decision, made here.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Direct edges between our crates, without those of tests.
const ALLOWED: &[(&str, &[&str])] = &[
    ("weft-policy", &[]),
    ("weft-proto", &[]),
    ("weft-dialects", &["weft-policy"]),
    ("weft-tls", &["weft-policy"]),
    ("weft-proxy", &["weft-policy", "weft-tls", "weft-proto"]),
    ("weft-kubernetes", &["weft-tls"]),
    ("weft-control", &["weft-policy", "weft-tls", "weft-dialects", "weft-proto", "weft-kubernetes"]),
    ("weft-injector", &["weft-policy", "weft-tls", "weft-dialects", "weft-kubernetes"]),
    ("meshctl", &["weft-policy", "weft-dialects", "weft-control", "weft-injector", "weft-tls", "weft-kubernetes"]),
    ("weft-sample", &[]),
    ("weft-testkit", &["weft-proto"]),
    ("weft-cluster", &[]),
    ("weft-e2e", &["weft-cluster"]),
];

/// Crates that only some of ours may use directly.
const RESERVED: &[(&str, &[&str])] = &[
    ("hyper", &["weft-proxy", "weft-testkit", "weft-sample"]),
    ("h2", &["weft-proxy", "weft-testkit"]),
    ("tonic", &["weft-proto", "weft-proxy", "weft-control", "meshctl", "weft-testkit"]),
    ("rustls", &["weft-tls", "weft-proxy", "weft-control", "weft-testkit", "weft-kubernetes"]),
    (
        "rcgen",
        &["weft-tls", "weft-control", "weft-sample", "weft-testkit", "weft-cluster", "weft-kubernetes", "weft-e2e"],
    ),
    ("kube", &["weft-kubernetes", "weft-control", "weft-injector", "meshctl"]),
];

/// What the pure crates never reach, however far.
const IMPURE: &[&str] = &["tokio", "hyper", "tonic", "kube", "mio", "rustls", "h2"];

struct Metadata {
    /// Name by package id.
    names: BTreeMap<String, String>,
    ours: BTreeSet<String>,
    /// Dependencies by package id: id, and whether only tests have it.
    edges: BTreeMap<String, Vec<(String, bool)>>,
}

fn metadata() -> Metadata {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo metadata runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let doc: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let text = |v: &Value| v.as_str().expect("text").to_string();
    let packages = doc["packages"].as_array().expect("packages");
    let names = packages.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let ours = doc["workspace_members"].as_array().expect("members").iter().map(text).collect();
    let nodes = doc["resolve"]["nodes"].as_array().expect("nodes");
    let edges = nodes
        .iter()
        .map(|node| {
            let deps = node["deps"].as_array().expect("deps").iter().map(|dep| {
                let kinds = dep["dep_kinds"].as_array().expect("kinds");
                (text(&dep["pkg"]), kinds.iter().all(|k| k["kind"] == "dev"))
            });
            (text(&node["id"]), deps.collect())
        })
        .collect();
    Metadata { names, ours, edges }
}

#[test]
fn edges_are_the_allowed_ones() {
    let m = metadata();
    let mut seen = 0;
    for id in &m.ours {
        let name = &m.names[id];
        let allowed = ALLOWED.iter().find(|(n, _)| n == name);
        let (_, allowed) =
            allowed.unwrap_or_else(|| panic!("{name} has no place in the house: say here what it may use"));
        seen += 1;
        for (dep, dev) in &m.edges[id] {
            let dep_name = &m.names[dep];
            if m.ours.contains(dep) && !dev {
                assert!(allowed.contains(&dep_name.as_str()), "{name} uses {dep_name}, which is not an allowed edge");
            }
            if m.ours.contains(dep) && *dev {
                assert!(["weft-testkit", "weft-cluster"].contains(&dep_name.as_str()), "{name}'s tests use {dep_name}");
                assert_ne!(name, "weft-policy", "the pure crates test themselves");
            }
            if let Some((_, users)) = RESERVED.iter().find(|(n, _)| n == dep_name)
                && !dev
            {
                assert!(users.contains(&name.as_str()), "{name} uses {dep_name} directly");
            }
        }
    }
    assert_eq!(seen, ALLOWED.len(), "every crate of the table exists");
}

#[test]
fn pure_crates_stay_pure() {
    let m = metadata();
    let pure = |id: &&String| ["weft-policy", "weft-dialects"].contains(&m.names[*id].as_str());
    let mut next: Vec<String> = m.ours.iter().filter(pure).cloned().collect();
    assert_eq!(next.len(), 2, "the pure crates");
    let mut reached = BTreeSet::new();
    while let Some(id) = next.pop() {
        for (dep, dev) in &m.edges[&id] {
            if !dev && reached.insert(dep.clone()) {
                next.push(dep.clone());
            }
        }
    }
    assert!(reached.len() > 5, "the walk saw something");
    for id in reached {
        let name = &m.names[&id];
        assert!(!IMPURE.contains(&name.as_str()), "weft-policy reaches {name}");
    }
}
