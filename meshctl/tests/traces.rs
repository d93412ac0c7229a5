//! Requests as traces, and traffic made on demand: a whole lab. Needs root, and says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{LIMIT, Lab};
use serde_json::Value;
use std::time::Instant;
use weft_testkit::dir::TempDir;
use weft_testkit::otlp::Receiver;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers:
      - name: main
        image: weft/sample
        ports: [{containerPort: 8080}]
        env:
        - {name: USERS_SERVICE_URL, value: "http://users:80"}
        - {name: H2_SERVICE_URL, value: "h2c://users:80"}
        - {name: SAY_SERVICE_URL, value: "grpc://users:81"}
        - {name: CHAT_SERVICE_URL, value: "grpc://users:81/Chat"}
        - {name: SOCKET_SERVICE_URL, value: "ws://users:80"}
        - {name: TCP_SERVICE_URL, value: "tcp://users:9000"}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080, name: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: users, namespace: shop}
spec:
  selector: {matchLabels: {app: users}}
  template:
    metadata: {labels: {app: users, version: v1}}
    spec:
      serviceAccountName: users
      containers:
      - name: main
        image: weft/sample
        ports: [{containerPort: 8080}, {containerPort: 9000}]
        env: [{name: TCP_PORT, value: "9000"}, {name: VERSION, value: v1}]
---
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec:
  selector: {app: users}
  ports:
  - {port: 80, targetPort: 8080, name: http}
  - {port: 81, targetPort: 8080, name: grpc}
  - {port: 9000, name: tcp-echo}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: probe, namespace: shop}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      serviceAccountName: probe
      containers: [{name: main, image: curlimages/curl}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"#;

const PROBE: &str = "spiffe://cluster.local/ns/shop/sa/probe";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const USERS: &str = "spiffe://cluster.local/ns/shop/sa/users";

/// As `lab traces` has it.
struct Spans(Vec<Value>);

impl Spans {
    /// The one child of a span, with its kind and role, by whom and to what.
    fn child(&self, of: &Value, kind: &str, service: &str, path: &str) -> Value {
        let is = |s: &&Value| {
            s["parentId"] == of["spanId"]
                && s["kind"] == kind
                && s["service"] == service
                && s["attributes"]["url.path"] == path
        };
        let found: Vec<&Value> = self.0.iter().filter(is).collect();
        assert!(!found.is_empty(), "no {kind} span of {service} for {path} below {of:#} in {:#?}", self.0);
        found[0].clone()
    }
}

#[test]
fn a_request_is_one_trace_and_load_is_counted() {
    let outside = Receiver::start();
    let dir = TempDir::new();
    dir.write("all.yaml", MANIFESTS);
    let url = format!("http://{}", outside.addr());
    let mut lab = Lab::start(dir.path(), &["--otlp", &url]);
    for workload in ["web", "users", "probe"] {
        lab.ready(workload, 1);
    }
    let none = lab.run(&["traces"]);
    assert!(
        none.status.code() == Some(1) && String::from_utf8_lossy(&none.stderr).contains("no trace yet"),
        "{none:?}"
    );

    // One request to web, which calls users in every protocol there is.
    let answer = lab.ask("probe", "http://web/page?secret=1");
    assert_eq!(answer["caller"], PROBE, "{answer:#}");
    let calls = &answer["calls"];
    for (name, protocol) in [("users", "HTTP/1.1"), ("h2", "HTTP/2.0")] {
        let body = &calls[name]["body"];
        assert_eq!((&body["caller"], &body["protocol"]), (&WEB.into(), &protocol.into()), "{calls:#}");
    }
    for (name, texts) in [("say", &["hello"][..]), ("chat", &["one", "two", "three"])] {
        let replies = calls[name]["replies"].as_array().unwrap_or_else(|| panic!("{calls:#}"));
        assert_eq!(replies.iter().map(|r| r["text"].as_str().unwrap()).collect::<Vec<_>>(), texts, "{calls:#}");
        assert!(replies.iter().all(|r| r["caller"] == WEB) && calls[name]["grpcStatus"] == 0, "{calls:#}");
    }
    assert_eq!(calls["socket"]["echo"], "hello", "{calls:#}");
    assert!(calls["socket"]["answeredBy"].as_str().unwrap().starts_with("users v1 users-"), "{calls:#}");
    assert!(calls["tcp"]["greeting"].as_str().unwrap().starts_with("users v1 users-"), "{calls:#}");
    assert_eq!(calls["tcp"]["echo"], "hello", "{calls:#}");

    // It is one trace: client's span, server's span, and those of the next hop below it.
    let traces: Value = serde_json::from_str(&lab.get(&["traces", "-o", "json"])).unwrap();
    let trace = &traces["traces"][0];
    let spans = Spans(trace["spans"].as_array().unwrap().clone());
    let roots: Vec<&Value> = spans.0.iter().filter(|s| s["parentId"] == "").collect();
    let [root] = roots[..] else { panic!("one root: {:#?}", spans.0) };
    assert_eq!((&root["service"], &root["kind"]), (&"probe".into(), &"server".into()));
    assert_eq!(root["attributes"]["weft.role"], "outbound");
    let sent = spans.child(root, "client", "probe", "/page");
    let taken = spans.child(&sent, "server", "web", "/page");
    assert_eq!(taken["attributes"]["weft.peer.identity"], PROBE);
    let app = spans.child(&taken, "client", "web", "/page");
    for path in ["/page", "/weft.sample.Echo/Say", "/weft.sample.Echo/Chat"] {
        let out = spans.child(&app, "server", "web", path);
        let sent = spans.child(&out, "client", "web", path);
        assert_eq!(sent["attributes"]["weft.peer.identity"], USERS, "{sent:#}");
        let taken = spans.child(&sent, "server", "users", path);
        assert_eq!((&taken["version"], &taken["attributes"]["weft.peer.identity"]), (&"v1".into(), &WEB.into()));
    }
    // Three hops of four spans are one call; web calls users five times over HTTP.
    assert_eq!(spans.0.len(), 4 + 5 * 4, "{:#?}", spans.0);
    assert!(!trace.to_string().contains("secret"));

    let id = trace["traceId"].as_str().unwrap();
    let text = lab.get(&["traces", &id[..8], "--service", "users.shop"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with(&format!("trace {id}: ")) && lines[0].ends_with("3 services, 24 spans"), "{text}");
    assert!(lines[2].starts_with("probe -> GET web/page"), "{text}");
    assert!(lines[3].starts_with("└─ web: GET /page") && lines[3].contains("mTLS from shop/probe"), "{text}");
    assert!(lines[4].starts_with("   ├─ web -> ") && lines[4].contains("mTLS to shop/users"), "{text}");
    assert!(lines[5].starts_with("   │  └─ users v1: "), "{text}");
    assert_eq!(lines.len(), 2 + 2 + 5 * 2, "{text}");

    // The same went to the person's own collector.
    let got = outside.wait(24, |s| s.trace_id() == id, LIMIT);
    assert_eq!(got.len(), 24);

    // Load is as much as the app has seen, and its sidecar counted.
    let load =
        ["load", "users:80", "--from", "web", "--rps", "50", "--duration", "2s", "--path", "/load", "-o", "json"];
    let counts: Value = serde_json::from_str(&lab.get(&load)).unwrap();
    assert_eq!((&counts["requests"], &counts["statuses"]["200"]), (&100.into(), &100.into()), "{counts:#}");
    let loaded =
        outside.wait(100, |s| s.attribute("weft.role").as_deref() == Some("inbound") && path(s) == "/load", LIMIT);
    assert_eq!(loaded.len(), 100);
    assert!(loaded.iter().all(|s| s.service().as_deref() == Some("users")));
    let mut failing = load;
    failing[9] = "/?status=503";
    assert_eq!(lab.run(&failing).status.code(), Some(0));
    let failed = lab.run(&[&failing[..], &["--fail-on-error"]].concat());
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let lines = lab.get(&["load", "web", "--from", "probe", "--duration", "1100ms", "--rps", "20"]);
    assert!(lines.contains("1 s ") && lines.contains("22 requests in"), "{lines}");
    let wrong = lab.run(&["load", "users", "--from", "web"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("users.shop:80, users.shop:81"), "{wrong:?}");

    // A collector that has gone is a warning, and everything else goes on.
    drop(outside);
    lab.ask("probe", "http://web/after");
    lab.wait("a word about the collector", |text, _| text.contains("takes no spans").then_some(()));
    assert!(lab.get(&["traces"]).contains("/after"));
}

fn path(span: &weft_testkit::otlp::Received) -> String {
    span.attribute("url.path").unwrap_or_default()
}

#[test]
fn traffic_that_was_asked_for() {
    let dir = TempDir::new();
    dir.write("all.yaml", MANIFESTS);
    // Half of the traces, so that both kinds are there.
    let mut lab = Lab::start(dir.path(), &["--load=20", "--sampling", "50"]);
    lab.wait("both calls", |text, _| {
        let http = ["probe calls users.shop:80 20 times", "probe calls web.shop:80 20 times"];
        (http.iter().all(|line| text.contains(line)) && !text.contains("shop:9000 20")).then_some(())
    });
    let caller = |lab: &mut Lab| lab.ready("probe", 1)[0]["name"].as_str().unwrap().to_string();
    // Spans of calls that this pod made, and whether all came from it.
    let calls_of = |lab: &Lab, pod: &str| {
        let end = Instant::now() + LIMIT;
        loop {
            let output = lab.run(&["traces", "--last", "1000", "--service", "probe", "-o", "json"]);
            let traces: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let all = traces["traces"].as_array().cloned().unwrap_or_default();
            let is = |s: &Value| s["instance"] == pod && s["attributes"]["weft.role"] == "outbound";
            if all.iter().filter(|t| t["spans"].as_array().unwrap().iter().any(is)).count() >= 20 {
                return;
            }
            assert!(Instant::now() < end, "no calls by {pod}:\n{}", lab.out());
        }
    };
    let first = caller(&mut lab);
    calls_of(&lab, &first);
    // The caller goes; another takes its place.
    lab.get(&["restart", "probe"]);
    lab.wait("another pod of probe", |_, status| {
        let mut pods = status["pods"].as_array().unwrap().iter().filter(|p| p["workload"] == "probe");
        pods.all(|p| p["name"] != first.as_str() && p["ready"] == true).then_some(())
    });
    let second = caller(&mut lab);
    calls_of(&lab, &second);
    let pids = lab.pids();
    lab.signal("-INT");
    assert!(lab.wait_exit().success(), "{}", lab.out());
    lab.assert_gone(&pids);
}
