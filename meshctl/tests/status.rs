//! A lab looked into: status, the sidecars' own pages, versions, and explain of what runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{LIMIT, Lab, meshctl};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;
use weft_testkit::dir::TempDir;

fn run(lab: &Lab, args: &[&str]) -> (Option<i32>, String, String) {
    let output = meshctl(&lab.home.join("labs"), args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn get(lab: &Lab, args: &[&str]) -> String {
    let (code, out, errors) = run(lab, args);
    assert_eq!(code, Some(0), "{args:?}: {out}{errors}");
    out
}

fn json(lab: &Lab, args: &[&str]) -> Value {
    serde_json::from_str(&get(lab, &[args, &["-o", "json"]].concat())).unwrap()
}

#[test]
fn a_lab_looked_into() {
    let (dir, example) = (TempDir::new(), Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/tutorial-5.9"));
    for name in ["app.yaml", "virtual-service.yaml", "peer-authentication.yaml"] {
        dir.write(name, std::fs::read(example.join(name)).unwrap());
    }
    let mut lab = Lab::start(dir.path(), &[]);
    let pods: Vec<Value> =
        [("hello-v1", 2), ("hello-v2", 1), ("client", 1)].iter().flat_map(|(w, n)| lab.ready(w, *n)).collect();

    // Everybody has what he should, after a while.
    let end = Instant::now() + LIMIT;
    let synced = loop {
        let (code, text, errors) = run(&lab, &["status"]);
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{text}");
        if text.matches("in sync").count() == pods.len() {
            break text;
        }
        assert!(Instant::now() < end, "{text}");
    };
    for pod in &pods {
        let line = synced.lines().find(|l| l.contains(pod["name"].as_str().unwrap())).unwrap();
        assert!(line.contains(env!("CARGO_PKG_VERSION")) && !line.contains("unknown"), "{line}");
    }
    assert!(!synced.contains("stranger"), "{synced}");
    let wide = get(&lab, &["status", "-o", "wide"]);
    assert!(wide.contains("spiffe://cluster.local/ns/default/sa/default"), "{wide}");
    assert_eq!(json(&lab, &["status"])["proxies"].as_array().unwrap().len(), pods.len());
    let version = get(&lab, &["version"]);
    assert!(version.contains("control plane  0.") && version.contains("(4)"), "{version}");

    // What a sidecar says of itself.
    let page = get(&lab, &["explain", "GET", "http://hello:8080/", "--from", "client", "--live"]);
    assert!(page.contains("Now          hello.default:8080/v1: not called yet"), "{page}");
    lab.get(&["exec", "client", "--", "curl", "-sf", "http://hello:8080/"]);
    let config = get(&lab, &["proxy", "config", "client"]);
    assert!(
        config.contains("hello.default") && config.contains("hello.0,hello.1") && config.contains("v1,v2"),
        "{config}"
    );
    let clusters = get(&lab, &["proxy", "clusters", "client"]);
    assert!(clusters.contains("hello.default:8080/v1") && clusters.contains("healthy"), "{clusters}");
    let certs = get(&lab, &["proxy", "certs", "hello-v1"]);
    assert_eq!(certs.matches("spiffe://cluster.local/ns/default/sa/default").count(), 2, "{certs}");
    assert!(certs.contains("--- hello-v1-") && certs.contains("root"), "{certs}");
    let level = get(&lab, &["proxy", "log-level", "client", "weft_proxy=debug"]);
    assert!(level.starts_with("client-"), "{level}");
    assert!(get(&lab, &["proxy", "log-level", "client"]).contains("weft_proxy=debug"));
    let (code, _, errors) = run(&lab, &["proxy", "clusters", "stranger"]);
    assert!(code == Some(1) && errors.contains("has no sidecar"), "{errors}");
    let (code, _, errors) = run(&lab, &["proxy", "log-level", "client", "not a filter"]);
    assert!(code == Some(1) && errors.contains("answered POST"), "{errors}");

    // Explained with the pods that run, and their present state.
    let said = json(&lab, &["explain", "GET", "http://hello:8080/", "--from", "client", "--live"]);
    let addresses = |value: &Value, of: &str| -> BTreeSet<String> {
        let all = value[of].as_array().unwrap().iter().flat_map(|b| b["endpoints"].as_array().unwrap().clone());
        all.map(|e| e["address"].as_str().unwrap().to_string()).collect()
    };
    let hello = pods.iter().filter(|p| p["workload"] != "client");
    let expected: BTreeSet<String> = hello.map(|p| format!("{}:8080", p["address"].as_str().unwrap())).collect();
    assert_eq!(addresses(&said, "backends"), expected, "{said:#}");
    assert_eq!(addresses(&said, "live"), expected, "{said:#}");
    let page = get(&lab, &["explain", "GET", "http://hello:8080/", "--from", "client", "--live"]);
    assert!(page.contains("Now          hello.default:8080/v1:"), "{page}");

    // A slip of the pen is told with its place, and by the exit code.
    let text = std::fs::read_to_string(dir.join("virtual-service.yaml")).unwrap();
    let line = 1 + text.lines().position(|l| l.contains("weight: 90")).unwrap();
    dir.write("virtual-service.yaml", text.replace("weight: 90", "weight: much"));
    let end = Instant::now() + LIMIT;
    loop {
        let (code, text, _) = run(&lab, &["status"]);
        if code == Some(1) {
            let place = format!("virtual-service.yaml:{line}: error: virtualservice/hello.default");
            assert!(text.contains(&place), "{text}");
            break;
        }
        assert!(Instant::now() < end, "{text}");
    }
}
