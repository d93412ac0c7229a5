//! The examples do what their pages say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{LIMIT, Lab, MESHCTL};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use weft_testkit::dir::TempDir;

/// A copy that may be edited.
fn example(name: &str) -> TempDir {
    let copy = TempDir::new();
    for entry in std::fs::read_dir(original(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            std::fs::copy(&path, copy.join(path.file_name().unwrap().to_str().unwrap())).unwrap();
        }
    }
    copy
}

fn original(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

fn edit(dir: &TempDir, file: &str, changes: &[(&str, &str)]) {
    let mut text = std::fs::read_to_string(dir.join(file)).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{file} has no {from:?}");
        text = text.replace(from, to);
    }
    dir.write(file, text);
}

/// What `count` calls of curl printed, a line each, counted.
fn counted(lab: &Lab, from: &str, curl: &str, count: usize) -> BTreeMap<String, usize> {
    let script = format!("for i in $(seq {count}); do curl -s -m 10 {curl}; echo; done");
    let mut seen = BTreeMap::new();
    for line in lab.get(&["exec", from, "--", "sh", "-c", &script]).lines().filter(|l| !l.is_empty()) {
        *seen.entry(line.to_string()).or_default() += 1;
    }
    assert_eq!(seen.values().sum::<usize>(), count, "{seen:?}");
    seen
}

fn of(seen: &BTreeMap<String, usize>, line: &str) -> usize {
    seen.get(line).copied().unwrap_or(0)
}

/// Calls until what is seen is as wanted; how long that took since the edit is printed.
fn until(lab: &Lab, what: &str, call: (&str, &str, usize), wanted: impl Fn(&BTreeMap<String, usize>) -> bool) {
    let begun = Instant::now();
    loop {
        let seen = counted(lab, call.0, call.1, call.2);
        if wanted(&seen) {
            println!("{what} after {:?}", begun.elapsed());
            return;
        }
        assert!(begun.elapsed() < LIMIT, "not {what}: {seen:?}");
    }
}

const STATUS: &str = "-o /dev/null -w '%{http_code}'";

#[test]
fn tutorial_5_9() {
    let dir = example("tutorial-5.9");
    let mut lab = Lab::start(dir.path(), &[]);
    for (workload, pods) in [("hello-v1", 2), ("hello-v2", 1), ("client", 1), ("stranger", 1)] {
        lab.ready(workload, pods);
    }
    let seen = counted(&lab, "client", "http://hello:8080/", 400);
    // Four standard deviations around a tenth.
    assert!((16..=64).contains(&of(&seen, "Hello from v2")), "{seen:?}");
    assert_eq!(seen.len(), 2, "{seen:?}");
    let seen = counted(&lab, "client", "-A 'Mozilla/5.0 Chrome/1' http://hello:8080/", 20);
    assert_eq!(of(&seen, "Hello from v2"), 20, "{seen:?}");
    // STRICT: nobody without an identity.
    let refused = lab.run(&["exec", "stranger", "--", "curl", "-s", "-m", "10", "http://hello:8080/"]);
    assert!(!refused.status.success(), "{refused:?}");
    edit(&dir, "virtual-service.yaml", &[("weight: 90", "weight: 0"), ("weight: 10", "weight: 100")]);
    until(&lab, "all to v2", ("client", "http://hello:8080/", 20), |seen| of(seen, "Hello from v2") == 20);
    edit(&dir, "peer-authentication.yaml", &[("STRICT", "PERMISSIVE")]);
    let end = Instant::now() + LIMIT;
    while !lab.run(&["exec", "stranger", "--", "curl", "-s", "-m", "5", "http://hello:8080/"]).status.success() {
        assert!(Instant::now() < end, "PERMISSIVE does not let plaintext in");
    }
}

#[test]
fn lab_9_5() {
    let dir = example("lab-9.5");
    let mut lab = Lab::start(dir.path(), &[]);
    for (workload, pods) in [("user-service", 2), ("user-service-v2", 2), ("product-service", 3), ("api-gateway", 2)] {
        let ready = lab.ready(workload, pods);
        assert!(ready.iter().all(|p| p["sidecar"] == true), "{ready:?}");
    }
    lab.ready("auth-service", 2);
    lab.ready("flaky-service", 2);
    lab.ready("payment-service", 2);
    let users = format!("{STATUS} http://user-service:8080/");
    let seen = counted(&lab, "api-gateway", &users, 400);
    // A tenth goes to the canary, which fails half of it: 20 of 400, give or take four standard deviations.
    assert!((3..=38).contains(&of(&seen, "500")), "{seen:?}");
    assert_eq!(of(&seen, "200") + of(&seen, "500"), 400, "{seen:?}");
    // Nine of ten answers fail; with three retries a third succeeds.
    let seen = counted(&lab, "api-gateway", &format!("{STATUS} http://flaky-service:8080/api/data"), 200);
    assert!((40..=98).contains(&of(&seen, "200")), "{seen:?}");
    // Another path is no route of the profile: no retries, a tenth.
    let seen = counted(&lab, "api-gateway", &format!("{STATUS} http://flaky-service:8080/other"), 100);
    assert!(of(&seen, "200") <= 24, "{seen:?}");
    // Without a sidecar, in plaintext.
    let seen = counted(&lab, "curl-test", &format!("{STATUS} http://product-service:8080/api"), 5);
    assert_eq!(of(&seen, "200"), 5, "{seen:?}");
    // The gateway asks four services, and they know who asks.
    let answer = lab.ask("auth-service", "http://api-gateway:8080/");
    for service in ["auth", "user", "product", "payment"] {
        let called = &answer["calls"][service];
        let caller = &called["body"]["caller"];
        let failed = called["status"] == 500;
        assert!(failed || caller == "spiffe://cluster.local/ns/microservices/sa/default", "{service}: {called:#}");
    }
    edit(&dir, "04-canary.yaml", &[("weight: 900", "weight: 1000"), ("weight: 100}", "weight: 0}")]);
    until(&lab, "nothing to the canary", ("api-gateway", &users, 100), |seen| of(seen, "200") == 100);
    let seen = counted(&lab, "api-gateway", &users, 200);
    assert_eq!(of(&seen, "200"), 200, "{seen:?}");
}

/// `analyze` names the traps of these labs' own texts, and fails only for errors.
#[test]
fn analyzed() {
    let analyze = |folder: &Path, more: &[&str]| {
        let mut command = Command::new(MESHCTL);
        command.arg("analyze").arg(folder).args(more).env("NO_COLOR", "1");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = analyze(&original("lab-9.5"), &[]);
    assert_eq!(code, Some(0), "{text}");
    for known in ["[G2]", "[G18]", " honoured, ", "0 errors"] {
        assert!(text.contains(known), "no {known}: {text}");
    }
    let (code, text) = analyze(&original("tutorial-5.9"), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, json["problems"].as_array().map(Vec::len)), (Some(0), Some(0)), "{text}");
    let weight = |f: &&serde_json::Value| f["field"] == "spec.http[1].route[0].weight";
    assert_eq!(json["fields"].as_array().unwrap().iter().find(weight).unwrap()["verdict"], "honoured");
    let broken = example("tutorial-5.9");
    edit(&broken, "virtual-service.yaml", &[("weight: 90", "weight: much")]);
    let (code, text) = analyze(broken.path(), &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("virtual-service.yaml:") && text.contains("weight"), "{text}");
    let (code, _) = analyze(Path::new("/nowhere"), &[]);
    assert_eq!(code, Some(1));
}
