//! The verbs against a real Kubernetes: objects by its API server, and the control plane and a sidecar by port-forward. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use weft_cluster::{Cluster, Image, Options};
use weft_testkit::dir::TempDir;
use weft_testkit::wait::until;

/// Of the kinds used here, without their schemas.
fn kinds() -> String {
    let kinds = [
        ("networking.istio.io", "v1", "VirtualService", "virtualservices"),
        ("networking.istio.io", "v1", "DestinationRule", "destinationrules"),
        ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
        ("weft.dev", "v1alpha1", "TrafficPolicy", "trafficpolicies"),
    ];
    let one = |(group, version, kind, plural): (&str, &str, &str, &str)| {
        format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: {plural}.{group}\n  \
             annotations: {{api-approved.kubernetes.io: unapproved, for a test}}\nspec:\n  group: {group}\n  scope: Namespaced\n  \
             names: {{kind: {kind}, plural: {plural}, singular: {}}}\n  versions:\n  - name: {version}\n    served: true\n    \
             storage: true\n    subresources: {{status: {{}}}}\n    schema: {{openAPIV3Schema: {{type: object, \
             x-kubernetes-preserve-unknown-fields: true}}}}\n",
            kind.to_lowercase()
        )
        .replace("unapproved, for a test", "\"unapproved, for a test\"")
    };
    kinds.map(one).join("---\n")
}

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client-1, namespace: shop, labels: {app: client}, annotations: {weft.dev/sidecar: 'true'}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: weft-proxy, image: 'meshctl-test/programs:1', command: [/weft-proxy, --config, /etc/proxy.yaml, --admin, '127.0.0.1:15000']}]
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: shop, labels: {app: plain}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:1', command: [sleep, infinity]}]
---
apiVersion: v1
kind: Namespace
metadata: {name: weft-system}
---
apiVersion: v1
kind: Pod
metadata: {name: weft-control-1, namespace: weft-system, labels: {app.kubernetes.io/name: weft-control}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: weft-control
    image: meshctl-test/programs:1
    command: [/weft-control, --dir, /manifests, --listen, '127.0.0.1:15012', --admin, '127.0.0.1:15014', --state, /state]
";

const ROUTE: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - route:
    - {destination: {host: web, subset: v1}, weight: 100}
    - {destination: {host: web, subset: v2}, weight: 0}
";

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// As somebody would on the cluster's node.
fn meshctl(cluster: &Cluster, args: &[&str], input: &str) -> Said {
    let mut command = cluster.command(kit::MESHCTL);
    // Labs of other tests are none of its business.
    command.args(args).env("NO_COLOR", "1").env("WEFT_LAB_HOME", "/nonexistent").env_remove("WEFT_LAB");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

fn ok(cluster: &Cluster, args: &[&str]) -> String {
    given(cluster, args, "")
}

fn given(cluster: &Cluster, args: &[&str], input: &str) -> String {
    let said = meshctl(cluster, args, input);
    assert_eq!(said.code, Some(0), "{args:?}\n{}\n{}", said.out, said.err);
    said.out
}

fn fails(cluster: &Cluster, args: &[&str], input: &str) -> String {
    let said = meshctl(cluster, args, input);
    assert_eq!(said.code, Some(1), "{args:?}\n{}\n{}", said.out, said.err);
    said.err
}

fn programs() -> Image {
    kit::programs();
    let folder = Path::new(kit::MESHCTL).parent().unwrap();
    let program = |image: Image, name: &str| image.linked_program(name, &folder.join(name)).unwrap();
    let image = program(program(Image::new("meshctl-test/programs:1"), "weft-control"), "weft-proxy");
    let proxy = "listeners:\n- {name: front, role: hop, address: 127.0.0.1:15001, to: web}\n\
                 services:\n- {name: web, port: 80, endpoints: [127.0.0.1:9001]}\n";
    image.text("etc/proxy.yaml", proxy).folder("manifests", 0o755).folder("state", 0o700)
}

#[test]
fn a_cluster_is_as_good_as_a_lab() {
    let cluster = Cluster::start(Options { images: vec![programs()], ..Options::default() }).unwrap();
    cluster.apply(&kinds()).unwrap();
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).unwrap();
    cluster.apply(SHOP).unwrap();
    objects(&cluster);
    routes(&cluster);
    pods(&cluster);
    root(&cluster);
    doors(&cluster);
    cluster.stop().unwrap();
}

fn objects(cluster: &Cluster) {
    assert_eq!(given(cluster, &["apply", "-n", "shop", "-f", "-"], ROUTE), "virtualservice/web.shop created\n");
    assert_eq!(given(cluster, &["apply", "-n", "shop", "-f", "-"], ROUTE), "virtualservice/web.shop unchanged\n");
    assert_eq!(ok(cluster, &["get", "vs", "-A"]), "NAME   WHAT\nweb    web\n");
    // Without -n it is the context's namespace, and who looks there is told of the others.
    let none = meshctl(cluster, &["get", "vs"], "");
    assert_eq!(none.code, Some(0));
    assert!(none.err.contains("no vs in namespace default of the cluster") && none.err.contains("-A"), "{}", none.err);
    let yaml = ok(cluster, &["get", "vs", "web", "-n", "shop", "-o", "yaml"]);
    assert!(yaml.contains("subset: v2") && !yaml.contains("resourceVersion"), "{yaml}");
    // What came out can go in.
    assert_eq!(given(cluster, &["apply", "-f", "-"], &yaml), "virtualservice/web.shop unchanged\n");

    let bad = ROUTE.replace("web}\nspec", "bad}\nspec").replace("weight: 100", "weight: -1");
    let refused = fails(cluster, &["apply", "-n", "shop", "-f", "-"], &bad);
    assert!(refused.contains("refused") && refused.contains("virtualservice/bad.shop: spec.http[0]"), "{refused}");
    assert!(fails(cluster, &["get", "vs", "bad", "-n", "shop"], "").contains("no vs bad in namespace shop"));
    let unknown = "apiVersion: example.com/v1\nkind: Nothing\nmetadata: {name: a}\n";
    assert!(fails(cluster, &["apply", "-f", "-"], unknown).contains("serves no Nothing (example.com/v1)"));

    // A namespace and what is in it, in one go.
    let both = "apiVersion: v1\nkind: Namespace\nmetadata: {name: new}\n---\napiVersion: v1\nkind: ConfigMap\n\
                metadata: {name: c, namespace: new}\ndata: {a: b}\n";
    assert_eq!(given(cluster, &["apply", "-f", "-"], both), "namespace/new created\nconfigmap/c.new created\n");
    let dry = meshctl(cluster, &["delete", "cm", "c", "-n", "new", "--dry-run"], "");
    assert!(dry.code == Some(0) && dry.out.contains("-kind: ConfigMap"), "{}{}", dry.out, dry.err);
    assert_eq!(ok(cluster, &["delete", "cm", "c", "-n", "new"]), "configmap/c.new deleted\n");
    assert!(fails(cluster, &["delete", "cm", "c", "-n", "new"], "").contains("no cm c in namespace new"));

    let said = ok(cluster, &["analyze", "-A"]);
    assert!(said.contains(" honoured, ") && said.contains("0 errors"), "{said}");
    let nowhere = meshctl(cluster, &["get", "vs", "--context", "nowhere"], "");
    assert!(nowhere.code == Some(1) && nowhere.err.contains("try: kubectl config get-contexts"), "{}", nowhere.err);
}

fn routes(cluster: &Cluster) {
    let spec = || cluster.kubectl(&["get", "virtualservice", "web", "-n", "shop", "-o", "json"]).unwrap();
    let weights = || -> Vec<u64> {
        let json: Value = serde_json::from_str(&spec()).unwrap();
        json["spec"]["http"][0]["route"].as_array().unwrap().iter().map(|r| r["weight"].as_u64().unwrap()).collect()
    };
    let dry = ok(cluster, &["route", "split", "web", "v1=90", "v2=10", "-n", "shop", "--dry-run"]);
    assert!(dry.contains("--- virtualservice.networking.istio.io/web.shop") && dry.contains("+"), "{dry}");
    assert_eq!(weights(), [100, 0]);
    let said = ok(cluster, &["route", "split", "web", "v1=90", "v2=10", "-n", "shop"]);
    assert!(said.starts_with("virtualservice/web.shop changed\n"), "{said}");
    assert_eq!(weights(), [90, 10]);
    ok(cluster, &["route", "split", "web.shop", "v1=50", "v2=50"]);
    assert_eq!(weights(), [50, 50]);
    ok(cluster, &["route", "set", "web.shop", "--timeout", "3s"]);
    let shown = ok(cluster, &["route", "show", "web.shop"]);
    assert!(shown.contains("3s") && shown.contains("virtualservice/web.shop") && !shown.contains(":0"), "{shown}");
    let lost = fails(cluster, &["route", "split", "web", "v1=1"], "");
    assert!(lost.contains("no Service web in namespace default") && lost.contains("-n shop"), "{lost}");
    let gone = ok(cluster, &["route", "delete", "web.shop"]);
    assert!(gone.starts_with("virtualservice/web.shop deleted\n"), "{gone}");
    // Nobody routes it any more, so the next split makes a route of its own.
    let limits = ok(cluster, &["route", "set", "web.shop", "--timeout", "2s"]);
    assert!(limits.contains("httproute/web.shop created"), "{limits}");
    assert!(cluster.kubectl(&["get", "httproute", "web", "-n", "shop", "-o", "yaml"]).unwrap().contains("request: 2s"));
}

fn pods(cluster: &Cluster) {
    for pod in ["client-1", "plain"] {
        let pod = format!("pod/{pod}");
        cluster.kubectl(&["wait", "--for=condition=Ready", &pod, "-n", "shop", "--timeout=60s"]).unwrap();
    }
    let said = ok(cluster, &["explain", "GET", "http://web/", "--from", "client-1", "-n", "shop"]);
    assert!(said.contains("httproute/web.shop") && !said.contains(":0 "), "{said}");
    let json: Value =
        serde_json::from_str(&ok(cluster, &["explain", "GET", "http://web/", "--from", "shop/client-1", "-o", "json"]))
            .unwrap();
    assert_eq!(json["from"]["namespace"], "shop", "{json:#}");

    let level = ok(cluster, &["proxy", "log-level", "client-1.shop"]);
    assert!(level.starts_with("client-1: "), "{level}");
    let config = ok(cluster, &["proxy", "config", "client-1", "-n", "shop"]);
    assert!(config.contains("127.0.0.1:15001"), "{config}");
    let none = fails(cluster, &["proxy", "config", "plain.shop"], "");
    assert!(none.contains("plain.shop has no sidecar") && none.contains("rollout restart"), "{none}");
    assert!(fails(cluster, &["proxy", "config", "nobody", "-n", "shop"], "").contains("one of client-1, plain"));
}

/// A control plane that stands for the pod: its Secret, and what it writes down of a rotation. No sidecar has a certificate, so nobody is
/// waited for.
fn root(cluster: &Cluster) {
    let none = fails(cluster, &["ca", "status"], "");
    assert!(none.contains("Secret weft-ca") && none.contains("meshctl check"), "{none}");
    let state = TempDir::new();
    let program = Path::new(kit::MESHCTL).with_file_name("weft-control");
    let mut command = cluster.command(program.to_str().unwrap());
    command.args(["--kube", "--listen", "127.0.0.1:0", "--log", "error", "--state"]).arg(state.path());
    let mut control = command.env("POD_NAME", "weft-control-1").env("POD_NAMESPACE", "weft-system").spawn().unwrap();
    let status = |wanted: &str| {
        until("the Secret", Duration::from_secs(60), || meshctl(cluster, &["ca", "status"], "").code == Some(0));
        let json: Value = serde_json::from_str(&ok(cluster, &["ca", "status", "-o", "json"])).unwrap();
        assert_eq!(json["stage"], wanted, "{json:#}");
        json
    };
    let before = status("single");
    let first = ok(cluster, &["ca", "rotate"]);
    assert!(first.contains("is trusted beside") && first.contains("next: the second root signs"), "{first}");
    assert_eq!(status("introduced")["roots"].as_array().unwrap().len(), 2);
    let rest: Value =
        serde_json::from_str(&ok(cluster, &["ca", "rotate", "--wait", "--timeout", "60s", "-o", "json"])).unwrap();
    assert_eq!(rest["steps"].as_array().unwrap().len(), 2, "{rest:#}");
    assert_ne!(status("single")["roots"], before["roots"]);
    control.kill().unwrap();
    control.wait().unwrap();
}

fn doors(cluster: &Cluster) {
    let pod = "pod/weft-control-1";
    cluster.kubectl(&["wait", "--for=condition=Ready", pod, "-n", "weft-system", "--timeout=60s"]).unwrap();
    let status: Value = serde_json::from_str(&ok(cluster, &["status", "-o", "json"])).unwrap();
    assert_eq!((&status["replicas"], status["silent"][0]["pod"].as_str()), (&1.into(), Some("client-1")), "{status:#}");
    let version = ok(cluster, &["version"]);
    assert!(version.contains("control plane  0.1.0 (cluster "), "{version}");
    let stat = ok(cluster, &["stat", "-w", "1s"]);
    assert!(stat.contains("nobody has called anybody"), "{stat}");
    cluster.kubectl(&["delete", "pod", "weft-control-1", "-n", "weft-system"]).unwrap();
    let away = fails(cluster, &["stat", "-w", "1s"], "");
    assert!(away.contains("no control plane is ready in namespace weft-system"), "{away}");
}
