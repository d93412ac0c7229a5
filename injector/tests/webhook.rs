//! The webhook, called by a real API server: who gets a sidecar, what people are told, and what happens when things go wrong.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use serde_json::{Value, json};
use std::io::Write;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weft_cluster::{Cluster, Options};
use weft_testkit::dir::TempDir;

const MANIFEST: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: weft-system}}
- {apiVersion: v1, kind: Namespace, metadata: {name: plain}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio-injection: enabled}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: books, annotations: {linkerd.io/inject: enabled}}}
- apiVersion: v1
  kind: Namespace
  metadata: {name: strict, labels: {istio-injection: enabled, pod-security.kubernetes.io/enforce: restricted}}
- apiVersion: admissionregistration.k8s.io/v1
  kind: MutatingWebhookConfiguration
  metadata: {name: weft-injector}
  webhooks:
  - name: inject.weft.dev
    clientConfig: {url: 'https://127.0.0.1:15017/inject'}
    rules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
    admissionReviewVersions: [v1]
    sideEffects: None
    timeoutSeconds: 5
    failurePolicy: Fail
    reinvocationPolicy: IfNeeded
    namespaceSelector:
      matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-public, kube-node-lease, weft-system]}
- apiVersion: admissionregistration.k8s.io/v1
  kind: ValidatingWebhookConfiguration
  metadata: {name: weft-injector}
  webhooks:
  - name: advise.weft.dev
    clientConfig: {url: 'https://127.0.0.1:15017/inject'}
    rules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}]
    admissionReviewVersions: [v1]
    sideEffects: None
    timeoutSeconds: 2
    failurePolicy: Ignore
";

/// Rotated after 27 s.
const LIFETIME: &str = "40s";

struct Rig {
    cluster: Cluster,
    folder: TempDir,
    injector: Child,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.injector.kill();
        let _ = self.injector.wait();
    }
}

impl Rig {
    fn start() -> Self {
        let cluster = Cluster::start(Options::default()).unwrap();
        let folder = TempDir::new();
        let settings = folder.write("settings.yaml", "image: weft/proxy:test\n");
        let mut command = cluster.command(env!("CARGO_BIN_EXE_weft-injector"));
        command.arg("--settings").arg(settings).args(["--listen", "127.0.0.1:15017", "--status", "127.0.0.1:15021"]);
        command.args(["--name", "127.0.0.1", "--certificate-lifetime", LIFETIME]);
        // Before there is anything it needs: it waits.
        let injector = command.spawn().unwrap();
        let rig = Self { cluster, folder, injector };
        rig.kubectl(&["apply", "-f", "-"], MANIFEST).unwrap();
        until("the injector is ready", || rig.http("ready", "http://127.0.0.1:15021/ready").starts_with("200"));
        until("the API server trusts it", || rig.apply("shop", &pod("first", &[]), true).is_ok());
        rig
    }

    /// Both streams, whatever comes of it.
    fn output(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.cluster.command("kubectl");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_string();
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// What it printed and what it warned of.
    fn kubectl(&self, args: &[&str], input: impl AsRef<str>) -> Result<(String, String), String> {
        let output = self.output(args, input.as_ref());
        let (out, err) = (text(output.stdout), text(output.stderr));
        if output.status.success() { Ok((out, err)) } else { Err(err) }
    }

    /// The object as the API server would keep it, and the warnings.
    fn apply(&self, namespace: &str, object: &Value, dry: bool) -> Result<(Value, String), String> {
        let mut args = vec!["create", "-n", namespace, "-o", "json", "-f", "-"];
        if dry {
            args.push("--dry-run=server");
        }
        let (out, err) = self.kubectl(&args, object.to_string())?;
        Ok((serde_json::from_str(&out).unwrap(), err))
    }

    /// Status and page.
    fn http(&self, what: &str, url: &str) -> String {
        self.curl(&["--max-time", "10", url], what, "")
    }

    fn curl(&self, args: &[&str], what: &str, body: &str) -> String {
        let file = self.folder.write(&format!("{what}.body"), body);
        let mut command = self.cluster.command("curl");
        command.args(["-sk", "-o", "-", "-w", "\n%{http_code}"]).args(args);
        if !body.is_empty() || what.starts_with("post") {
            command.arg("--data-binary").arg(format!("@{}", file.display()));
        }
        let out = text(command.output().unwrap().stdout);
        let (page, code) = out.rsplit_once('\n').unwrap_or(("", &out));
        format!("{code} {page}")
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn pod(name: &str, annotations: &[(&str, &str)]) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": {}},
        "spec": {"containers": [{"name": "app", "image": "busybox:1", "command": ["sleep", "1000"]}]}});
    for (key, value) in annotations {
        pod["metadata"]["annotations"][key] = Value::from(*value);
    }
    pod
}

fn containers(pod: &Value) -> Vec<&str> {
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    lists.flatten().map(|c| c["name"].as_str().unwrap()).collect()
}

#[test]
fn a_real_api_server_calls() {
    let mut rig = Rig::start();
    who_gets_a_sidecar(&rig);
    what_makes_pods(&rig);
    what_people_are_told(&rig);
    hostile_annotations(&rig);
    sizes(&rig);
    no_reviews(&rig);
    bundle(&rig);
    settings(&rig);
    rotation(&rig);
    latency(&rig);
    assert!(rig.injector.try_wait().unwrap().is_none(), "the injector has lived through it");
}

fn who_gets_a_sidecar(rig: &Rig) {
    let of = |namespace: &str, pod: &Value| {
        let (kept, _) = rig.apply(namespace, pod, true).unwrap();
        containers(&kept).join(" ")
    };
    assert_eq!(of("shop", &pod("a", &[])), "weft-init istio-proxy app");
    assert_eq!(of("books", &pod("a", &[])), "weft-init linkerd-proxy app");
    assert_eq!(of("plain", &pod("a", &[])), "app");
    assert_eq!(of("plain", &pod("a", &[("weft.dev/inject", "true")])), "weft-init weft-proxy app");
    assert_eq!(of("shop", &pod("a", &[("sidecar.istio.io/inject", "false")])), "app");
    // The webhook of this test is asked; it says no.
    assert_eq!(of("kube-system", &pod("a", &[("weft.dev/inject", "true")])), "app");
    let fresh = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "fresh", "labels": {"istio-injection": "enabled"}}});
    rig.kubectl(&["create", "-f", "-"], fresh.to_string()).unwrap();
    assert_eq!(of("fresh", &pod("a", &[])), "weft-init istio-proxy app", "known at once");
    rig.kubectl(&["label", "namespace", "fresh", "istio-injection-"], "").unwrap();
    until("the label is gone", || of("fresh", &pod("a", &[])) == "app");
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": pod(name, &[])["spec"]}}})
}

fn what_makes_pods(rig: &Rig) {
    rig.apply("shop", &deployment("web"), false).unwrap();
    let mut found = Value::Null;
    until("the Deployment's pod", || {
        let (out, _) = rig.kubectl(&["get", "pods", "-n", "shop", "-l", "app=web", "-o", "json"], "").unwrap();
        found = serde_json::from_str::<Value>(&out).unwrap()["items"][0].take();
        !found.is_null()
    });
    assert_eq!(containers(&found), ["weft-init", "istio-proxy", "app"]);
    assert_eq!(found["spec"]["initContainers"][1]["image"], "weft/proxy:test");
    assert_eq!(found["metadata"]["labels"]["service.istio.io/canonical-name"], "web");
    rig.kubectl(&["delete", "deployment", "web", "-n", "shop", "--wait=false"], "").unwrap();

    // Its pods would never be made: whoever applies it reads why.
    let (kept, told) = rig.apply("strict", &deployment("web"), true).unwrap();
    assert!(told.contains("Warning: the namespace enforces pod security restricted"), "{told}");
    assert_eq!(containers(&kept["spec"]["template"]), ["app"]);
}

fn what_people_are_told(rig: &Rig) {
    let mut host = pod("a", &[]);
    host["spec"]["hostNetwork"] = true.into();
    let (kept, told) = rig.apply("shop", &host, true).unwrap();
    assert_eq!(containers(&kept), ["app"]);
    assert!(
        told.contains("Warning: no sidecar, though istio-injection=enabled on the namespace asks for one"),
        "{told}"
    );
    let note = kept["metadata"]["annotations"]["weft.dev/not-injected"].as_str().unwrap();
    assert!(note.contains("host's network"), "{note}");

    let mut same = pod("a", &[]);
    same["spec"]["securityContext"] = json!({"runAsUser": 1337});
    let refused = rig.apply("shop", &same, true).unwrap_err();
    assert!(refused.contains("inject.weft.dev") && refused.contains("runAsUser 1337"), "{refused}");
}

fn hostile_annotations(rig: &Rig) {
    const VALUES: [&str; 8] = [
        "$(touch /tmp/weft-hostile)",
        "`id`; rm -rf / #",
        "1\n- name: evil\n  image: evil:1",
        "{{.Values.evil}} evil",
        "\u{1b}[2Jevil\u{7}",
        "' -- \" evil",
        "-1",
        "evil\u{202e}x",
    ];
    const KEYS: [&str; 5] = [
        "weft.dev/skip-inbound-ports",
        "sidecar.istio.io/proxyCPU",
        "config.linkerd.io/proxy-log-level",
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        "proxy.istio.io/config",
    ];
    for (i, value) in VALUES.iter().enumerate() {
        let all: Vec<(&str, &str)> = KEYS.iter().map(|key| (*key, *value)).collect();
        let (kept, told) = rig.apply("shop", &pod("a", &all), true).unwrap();
        assert_eq!(containers(&kept), ["weft-init", "istio-proxy", "app"], "{value:?}");
        assert!(!kept["spec"].to_string().contains("evil") && !kept["spec"].to_string().contains("touch"), "{value:?}");
        assert!(told.matches("Warning: ").count() >= 3, "value {i}: {told}");
        assert!(!told.contains('\u{1b}') && !told.contains('\u{7}'), "value {i}: {told:?}");
    }
    let unknown = pod("a", &[("sidecar.istio.io/unheardOf", "1"), ("sidecar.istio.io/inject", "perhaps")]);
    let (_, told) = rig.apply("shop", &unknown, true).unwrap();
    assert!(told.contains("unheardOf") && told.contains("perhaps"), "{told}");
    // The API server's own limit is 256 KiB for all of them, which it looks at after us.
    let large = rig.apply("shop", &pod("a", &[("weft.dev/skip-inbound-ports", &"8".repeat(1 << 20))]), true);
    let why = large.unwrap_err();
    assert!(why.contains("Too long") || why.contains("must have at most"), "{:.500}", why);
    assert!(!why.contains("failed calling webhook"), "{:.500}", why);
}

fn sizes(rig: &Rig) {
    let mut huge = pod("huge", &[]);
    let env = (0..6000).map(|i| json!({"name": format!("V{i}"), "value": "x".repeat(150)}));
    huge["spec"]["containers"][0]["env"] = env.collect();
    assert!(huge.to_string().len() > 1 << 20);
    std::thread::scope(|scope| {
        let large = scope.spawn(|| rig.apply("shop", &huge, true));
        for _ in 0..5 {
            rig.apply("shop", &pod("small", &[]), true).unwrap();
        }
        let (kept, _) = large.join().unwrap().unwrap();
        assert_eq!(containers(&kept), ["weft-init", "istio-proxy", "app"]);
    });
}

fn no_reviews(rig: &Rig) {
    let url = "https://127.0.0.1:15017/inject";
    let deep = "[".repeat(100_000);
    let large = " ".repeat(8 << 20);
    let nothing = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}).to_string();
    let strange = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": 7}});
    for (body, code) in [
        ("", "400"),
        ("{}", "400"),
        ("[1, 2", "400"),
        (deep.as_str(), "400"),
        (&nothing, "400"),
        (&strange.to_string(), "400"),
    ] {
        let answer = rig.curl(&[url], "post", body);
        assert!(answer.starts_with(code), "{:.60}: {answer}", body);
    }
    // Answered before all of it has come: some clients see the answer, others that nobody listens any more.
    let answer = rig.curl(&[url], "post", &large);
    assert!(answer.starts_with("413") || answer.starts_with("000"), "{answer}");
    assert!(rig.curl(&[url], "get", "").starts_with("405"));
    assert!(rig.curl(&["https://127.0.0.1:15017/"], "post", "{}").starts_with("404"));
    // A pod whose parts are not what they should be.
    let odd = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "shop", "operation": "CREATE",
        "object": {"apiVersion": "v1", "kind": "Pod", "metadata": 7, "spec": {"containers": "many"}}}});
    let answer = rig.curl(&[url], "post", &odd.to_string());
    assert!(answer.starts_with("200") && answer.contains("\"allowed\":false"), "{answer}");
    rig.apply("shop", &pod("a", &[]), true).unwrap();
}

fn bundle(rig: &Rig) {
    let held = |kind: &str| {
        let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
        rig.kubectl(&["get", kind, "weft-injector", "-o", path], "").unwrap().0
    };
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        assert!(held(kind).len() > 100);
        let empty = "[{\"op\": \"remove\", \"path\": \"/webhooks/0/clientConfig/caBundle\"}]";
        rig.kubectl(&["patch", kind, "weft-injector", "--type=json", "-p", empty], "").unwrap();
        let began = Instant::now();
        until("the bundle is healed", || held(kind).len() > 100);
        println!("caBundle of the {kind} healed within {:?}", began.elapsed());
    }
    until("the API server trusts it again", || rig.apply("shop", &pod("a", &[]), true).is_ok());
}

/// From before the certificate is due until it is another one and the old authority is forgotten.
fn rotation(rig: &Rig) {
    let secret = |field: &str| {
        let path = format!("jsonpath={{.data.{field}}}");
        rig.kubectl(&["get", "secret", "weft-injector-webhook", "-n", "weft-system", "-o", &path], "").unwrap().0
    };
    let first = secret("tls\\.crt");
    let (done, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (kept, _) = rig.apply("shop", &pod("a", &[]), true).unwrap();
                assert_eq!(containers(&kept).len(), 3);
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        let rotated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("a new certificate", || secret("tls\\.crt") != first || caller.is_finished());
            let both = secret("ca\\.crt").len();
            until("the old authority is forgotten", || secret("ca\\.crt").len() < both || caller.is_finished());
        }));
        done.store(true, Ordering::Relaxed);
        caller.join().unwrap();
        rotated.unwrap();
    });
    let calls = calls.load(Ordering::Relaxed);
    println!("{calls} calls while the certificate was rotated, none failed");
    // Each is a kubectl of its own, which takes its time.
    assert!(calls > 5, "{calls}");
}

fn settings(rig: &Rig) {
    let image = || {
        let (kept, _) = rig.apply("shop", &pod("a", &[]), true).unwrap();
        kept["spec"]["initContainers"][1]["image"].as_str().unwrap().to_string()
    };
    rig.folder.write("settings.yaml", "image: weft/proxy:next\n");
    until("the new image", || image() == "weft/proxy:next");
    rig.folder.write("settings.yaml", "image: [\n");
    let seen = Instant::now();
    until("two looks at the file", || {
        assert_eq!(image(), "weft/proxy:next");
        seen.elapsed() > Duration::from_secs(3)
    });
    rig.folder.write("settings.yaml", "image: weft/proxy:test\n");
    until("the first image again", || image() == "weft/proxy:test");
}

/// Of all calls of this test, most by the API server, the huge pod among them.
fn latency(rig: &Rig) {
    let metrics = rig.http("metrics", "http://127.0.0.1:15021/metrics");
    let buckets: Vec<(f64, f64)> = metrics
        .lines()
        .filter_map(|l| l.strip_prefix("weft_injector_call_seconds_bucket{le=\"")?.split_once("\"} "))
        .map(|(le, n)| (le.parse().unwrap_or(f64::INFINITY), n.parse().unwrap()))
        .collect();
    let all = buckets.last().unwrap().1;
    let below = |share: f64| buckets.iter().find(|(_, n)| *n >= all * share).unwrap().0 * 1000.0;
    println!("{all} calls of /inject: p50 <= {} ms, p99 <= {} ms", below(0.5), below(0.99));
    assert!(all > 100.0 && below(0.5) <= 50.0, "{metrics}");
    assert!(metrics.contains("weft_injector_pods_total{outcome=\"refused\"} "), "{metrics}");
}
