//! What `kubectl apply` says when an object cannot come into force, with a real API server that asks a real control plane.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use serde_json::{Value, json};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use weft_cluster::{Cluster, Options};
use weft_testkit::dir::TempDir;

const BASE: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: weft-system}}
- {apiVersion: v1, kind: Namespace, metadata: {name: demo}}
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: demo}
  spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
- apiVersion: apiextensions.k8s.io/v1
  kind: CustomResourceDefinition
  metadata: {name: virtualservices.networking.istio.io}
  spec:
    group: networking.istio.io
    scope: Namespaced
    names: {kind: VirtualService, listKind: VirtualServiceList, plural: virtualservices, singular: virtualservice}
    versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
- apiVersion: apiextensions.k8s.io/v1
  kind: CustomResourceDefinition
  metadata: {name: authorizationpolicies.security.istio.io}
  spec:
    group: security.istio.io
    scope: Namespaced
    names: {kind: AuthorizationPolicy, plural: authorizationpolicies, singular: authorizationpolicy}
    versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

const CONFIGURATION: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: weft-control}
webhooks:
- name: validate.weft.dev
  clientConfig: {url: 'https://127.0.0.1:15017/validate'}
  rules: [{apiGroups: [networking.istio.io, security.istio.io], apiVersions: ['*'], operations: [CREATE, UPDATE], resources: ['*']}]
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 5
  failurePolicy: Fail
";

struct Rig {
    cluster: Cluster,
    control: Child,
    _state: TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.control.kill();
        let _ = self.control.wait();
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Rig {
    fn start() -> Self {
        let cluster = Cluster::start(Options::default()).unwrap();
        cluster.apply(BASE).unwrap();
        let state = TempDir::new();
        let mut command = cluster.command(env!("CARGO_BIN_EXE_weft-control"));
        command.arg("--kube").arg("--kubeconfig").arg(cluster.kubeconfig()).arg("--state").arg(state.path());
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:15014"]);
        command.args(["--webhook", "127.0.0.1:15017", "--webhook-name", "127.0.0.1"]);
        let control = command.spawn().unwrap();
        let rig = Self { cluster, control, _state: state };
        until("weft-control has read the cluster", || {
            let mut ask = rig.cluster.command("busybox");
            let page = ask.args(["wget", "-qO-", "http://127.0.0.1:15014/objects"]).stderr(Stdio::null()).output();
            String::from_utf8_lossy(&page.unwrap().stdout).contains("service/web.demo")
        });
        rig.cluster.apply(CONFIGURATION).unwrap();
        until("the API server trusts it", || rig.apply(&route(json!({"timeout": "1s"})), true).is_ok());
        rig
    }

    /// What kubectl warned of, or the error.
    fn apply(&self, object: &Value, dry: bool) -> Result<String, String> {
        let file = self._state.write("applied.json", object.to_string());
        let mut command = self.cluster.command("kubectl");
        command.args(["apply", "-f"]).arg(file);
        if dry {
            command.arg("--dry-run=server");
        }
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(told) } else { Err(told) }
    }
}

/// A VirtualService for `web`, with more in its rule.
fn route(more: Value) -> Value {
    let mut rule = json!({"route": [{"destination": {"host": "web"}}]});
    for (key, value) in more.as_object().unwrap() {
        rule[key] = value.clone();
    }
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "web", "namespace": "demo"}, "spec": {"hosts": ["web"], "http": [rule]}})
}

#[test]
fn kubectl_apply_is_told() {
    let mut rig = Rig::start();

    let refused = rig.apply(&route(json!({"timeout": "soon"})), false).unwrap_err();
    assert!(refused.contains("validate.weft.dev") && refused.contains("denied the request"), "{refused}");
    assert!(refused.contains("spec.http[0].timeout") && refused.contains("soon"), "{refused}");

    let unknown = rig.apply(&route(json!({"tiemout": "1s"})), true).unwrap();
    assert!(unknown.contains("Warning: ") && unknown.contains("tiemout"), "{unknown}");

    // A subset whose DestinationRule comes in the next line.
    let subset = json!({"route": [{"destination": {"host": "web", "subset": "v2"}}]});
    let missing = rig.apply(&route(subset), true).unwrap();
    assert!(missing.contains("Warning: ") && missing.contains("v2"), "{missing}");

    rig.apply(&route(json!({"timeout": "1s"})), false).unwrap();
    let worse = rig.apply(&route(json!({"timeout": "soon"})), false).unwrap_err();
    assert!(worse.contains("spec.http[0].timeout"), "{worse}");
    rig.cluster.kubectl(&["label", "virtualservice", "web", "-n", "demo", "a=b"]).unwrap();

    // One that came while nobody was asked may be touched, and repaired.
    rig.cluster.kubectl(&["delete", "validatingwebhookconfiguration", "weft-control"]).unwrap();
    until("nobody is asked", || rig.apply(&route(json!({"timeout": "soon"})), false).is_ok());
    until("weft-control has seen it", || {
        let mut ask = rig.cluster.command("busybox");
        let page = ask.args(["wget", "-qO-", "http://127.0.0.1:15014/errors"]).output().unwrap();
        String::from_utf8_lossy(&page.stdout).contains("soon")
    });
    rig.cluster.apply(CONFIGURATION).unwrap();
    until("it is asked again", || {
        rig.apply(&route(json!({"timeout": "sooner"})), true).is_err_and(|e| e.contains("denied"))
    });
    let told = rig.apply(&route(json!({"timeout": "soon", "retries": {"attempts": 1}})), false).unwrap();
    assert!(told.contains("Warning: ") && told.contains("soon"), "{told}");
    rig.apply(&route(json!({"timeout": "2s"})), false).unwrap();
    rig.cluster.kubectl(&["delete", "virtualservice", "web", "-n", "demo"]).unwrap();

    // Who believes to have locked the door hears that it is open.
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny", "namespace": "demo"}, "spec": {"action": "DENY", "rules": [{}]}});
    let told = rig.apply(&policy, true).unwrap();
    assert!(told.contains("Warning: ") && told.contains("nothing is enforced"), "{told}");

    let began = Instant::now();
    for _ in 0..10 {
        rig.apply(&route(json!({"timeout": "1s"})), true).unwrap();
    }
    let mut ask = rig.cluster.command("busybox");
    let page = ask.args(["wget", "-qO-", "http://127.0.0.1:15014/metrics"]).output().unwrap();
    let metrics = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(metrics.contains("weft_control_admission_calls_total{outcome=\"denied\"} "), "{metrics}");
    assert!(metrics.contains("weft_control_admission_call_seconds_bucket{le=\"0.05\"} "), "{metrics}");
    println!("kubectl apply with admission, its own start included: {:?}", began.elapsed() / 10);
    assert!(rig.control.try_wait().unwrap().is_none(), "weft-control has lived through it");
}
