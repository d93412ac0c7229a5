//! Who calls whom: counted by sidecars, added up by the control plane, asked for and watched on a terminal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{LIMIT, Lab, meshctl, programs};
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use weft_testkit::dir::TempDir;

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec: {selector: {app: users}, ports: [{name: http, port: 80, targetPort: http}]}
---
";

fn deployment(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}{labels}}}}}\n    spec:\n      \
         serviceAccountName: {name}\n      containers:\n      - name: main\n        image: weft/sample\n        \
         ports: [{{name: http, containerPort: 8080}}]\n---\n"
    )
}

fn shop() -> TempDir {
    let dir = TempDir::new();
    let outside = deployment("outside", ", sidecar.istio.io/inject: \"false\"");
    dir.write("shop.yaml", SHOP.to_string() + &deployment("web", "") + &deployment("users", "") + &outside);
    dir
}

fn stat(lab: &Lab, window: &str, args: &[&str]) -> String {
    let output = meshctl(&lab.home.join("labs"), &["stat", "--window", window]).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Requests and failures since the start from one workload to another, over all routes.
fn sums(edges: &[&Value]) -> (u64, u64) {
    let sum = |field: &str| edges.iter().map(|e| e["total"][field].as_u64().unwrap()).sum();
    (sum("requests"), sum("failures"))
}

fn calls(lab: &Lab, from: &str, path: &str, count: usize) {
    let script = format!(
        "for i in $(seq {count}); do curl -s -o /dev/null -w '%{{http_code}}\\n' -m 10 'http://users/{path}'; done"
    );
    let answers = lab.get(&["exec", from, "--", "sh", "-c", &script]);
    assert_eq!(answers.lines().filter(|l| *l != "000").count(), count, "{answers}");
}

#[test]
fn every_request_is_on_its_edge() {
    let dir = shop();
    let mut lab = Lab::start(dir.path(), &[]);
    for workload in ["web", "users", "outside"] {
        lab.ready(workload, 1);
    }
    calls(&lab, "web", "", 30);
    calls(&lab, "web", "?status=500", 10);
    calls(&lab, "outside", "", 7);

    let end = Instant::now() + LIMIT;
    let (web, outside) = loop {
        let document: Value = serde_json::from_str(&stat(&lab, "1s", &["-o", "json"])).unwrap();
        let edges = document["edges"].as_array().unwrap();
        let of = |from: Value| -> Vec<&Value> {
            edges.iter().filter(|e| e["from"]["workload"] == from && e["to"]["workload"] == "users").collect()
        };
        let (web, outside) = (of("web".into()), of(Value::Null));
        if sums(&web).0 >= 40 && sums(&outside).0 >= 7 {
            assert_eq!((sums(&web), sums(&outside)), ((40, 10), (7, 0)), "{document:#}");
            assert_eq!(edges.len(), web.len() + outside.len(), "nobody else has called anybody: {document:#}");
            break (web[0].clone(), outside[0].clone());
        }
        assert!(Instant::now() < end, "not counted within {LIMIT:?}: {document:#}");
    };
    assert_eq!((&web["mtls"], &outside["mtls"]), (&true.into(), &false.into()));
    assert_eq!((&web["countedBy"], &outside["countedBy"]), (&"client".into(), &"server".into()));
    assert_eq!(web["from"]["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(web["service"], "users");

    // What happens in a window, as a person sees it.
    let lab_calls = || calls(&lab, "web", "", 40);
    let text = std::thread::scope(|scope| {
        scope.spawn(lab_calls);
        stat(&lab, "3s", &["--from", "web"])
    });
    let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((text.lines().count(), &row[..2]), (2, &["web", "users"][..]), "{text}");
    assert!(row[2].parse::<f64>().unwrap() > 0.0 && row[3] == "100%" && row[7] == "yes", "{text}");
    assert!(row[4].ends_with("ms") && row[8] == "shop/web", "{text}");
    let none = stat(&lab, "1s", &["--from", "outside"]);
    assert!(none.starts_with("no such calls") && none.contains("(unmeshed) -> users.shop\n"), "{none}");
    let wide = stat(&lab, "1s", &["--to", "svc/users", "-o", "wide"]);
    assert!(wide.contains("web.shop") && wide.contains("spiffe://cluster.local/ns/shop/sa/web"), "{wide}");
}

/// On a terminal that `script` makes; a person types `q`, and the terminal is as it was.
#[test]
fn a_live_table_on_a_terminal() {
    programs();
    let dir = shop();
    let home = TempDir::new();
    let log = home.join("typescript");
    let labs = home.join("labs");
    let command =
        format!("stty cols 100 rows 30; stty -g; {} lab {}; echo exit=$?; stty -g", kit::MESHCTL, dir.path().display());
    let mut script = Command::new("script");
    script.args(["-q", "-f", "-c", &command]).arg(&log);
    script.env("WEFT_LAB_HOME", &labs).env("SHELL", "/bin/sh").env_remove("NO_COLOR").env("TERM", "xterm");
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("script, of Debian's bsdutils");
    let mut keys = child.stdin.take().unwrap();
    let text = || String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    let until = |what: &str, wanted: &dyn Fn(&str) -> bool| {
        let end = Instant::now() + LIMIT;
        while !wanted(&text()) {
            assert!(Instant::now() < end, "no {what} within {LIMIT:?}:\n{}", text());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until("table", &|t| t.contains("Nobody has called anybody yet."));
    let run = |args: &[&str]| {
        let output = meshctl(&labs, &["lab"]).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run(&["exec", "web", "--", "sh", "-c", "for i in 1 2 3 4 5; do curl -s http://users/; done"]);
    until("row", &|t| t.contains("shop/web"));
    // News go above it: it is taken away, and drawn again.
    run(&["scale", "users", "2"]);
    let above = |t: &str| {
        let last = t.rfind(" is ready after ").filter(|_| t.matches(" is ready after ").count() == 4)?;
        Some(t[..last].contains("\x1b[3A\x1b[J") && t[last..].contains("who calls whom"))
    };
    until("news above the table", &|t| above(t) == Some(true));
    keys.write_all(b"q").unwrap();
    until("end", &|t| t.contains("exit="));
    let _ = child.wait();
    let seen = text();
    assert!(seen.contains("exit=0") && seen.contains("nothing of it is left"), "{seen}");
    let settings: Vec<&str> = seen
        .lines()
        .map(str::trim)
        .filter(|l| l.split(':').count() > 20 && l.split(':').all(|w| u64::from_str_radix(w, 16).is_ok()))
        .collect();
    assert_eq!(settings.len(), 2, "{seen}");
    assert_eq!(settings[0], settings[1], "the terminal is as it was");
}
