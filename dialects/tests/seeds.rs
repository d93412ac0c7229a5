//! The YAML of lessons that people follow: all of it translates, mistakes and all, and each known mistake is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trial;

use std::path::Path;

fn seed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds").join(name);
    std::fs::read_to_string(&path).unwrap()
}

/// What has to be told of each lesson: the trap, and a part of what is said.
const TOLD: &[(&str, &str, &str)] = &[
    ("orchestration.yaml", "G5", "spec.trafficPolicy.outlierDetection.consecutiveErrors"),
    ("orchestration.yaml", "G14", "closes every connection after 2 requests"),
    ("linkerd.yaml", "G2", "spec.routes[0].retries"),
    ("linkerd.yaml", "G6", "there is no Service user-service-v2"),
    ("linkerd.yaml", "G18", "spec.routes[0].retries"),
    ("tutorials.yaml", "G7", "subset v2: no pod of hello.default has version=v2"),
    ("tutorials.yaml", "G7", "there is no Service reviews"),
    ("tutorials.yaml", "G7", "hashicorp/http-echo listens on 5678"),
    ("tutorials.yaml", "G18", "repeats every method on 5xx, reset, POST too"),
    ("tutorials.yaml", "G21", "is for namespace production only"),
    ("decision.yaml", "G8", "without retryOn"),
];

#[test]
fn every_lesson_translates() {
    for name in ["orchestration.yaml", "linkerd.yaml", "tutorials.yaml", "decision.yaml"] {
        let (_, ledger) = trial::world(&seed(name));
        assert!(ledger.entries.len() > 10, "{name}");
        let said = trial::findings(&ledger);
        for (_, reference, part) in TOLD.iter().filter(|(of, ..)| *of == name) {
            let told = said.lines().any(|line| line.contains(&format!(" {reference}: ")) && line.contains(part));
            assert!(told, "{name}: {reference} {part}:\n{said}");
        }
    }
}

/// The canary of the tutorials: nine of ten to the subset that is there.
#[test]
fn a_canary_as_the_tutorials_have_it() {
    let (world, _) = trial::world(&seed("tutorials.yaml"));
    let id = weft_policy::id::ServiceId::new("default", "hello");
    let document = &world.services[&id].variants[0].document;
    let route = &document["ports"][0]["routes"][0];
    assert_eq!(route["to"], serde_json::json!([{"subset": "v1", "weight": 90}, {"subset": "v2", "weight": 10}]));
    assert_eq!(document["ports"][0]["subsets"][1], serde_json::json!({"name": "v2", "labels": {"version": "v2"}}));
}
