//! What is forbidden is forbidden soon, also to connections that are open and in use: from when `kubectl` has returned to the first
//! refusal. The figures are printed; only ten times what they should be fails.

use std::process::Stdio;
use std::time::Duration;
use weft_e2e::mesh::said;
use weft_e2e::process::Process;
use weft_e2e::warm::Warm;
use weft_e2e::{Mesh, Result, ensure};

const NS: &str = "secure";
/// Milliseconds.
const MUST: f64 = 500.0;
const OTHERS: &str = "Istio up to 45 s, Linkerd about 0.1 s";

const APPS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: secure, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: secure}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: secure}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 8080}
  - {name: tcp-echo, port: 9000}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: secure, labels: {app: web}}
spec:
  serviceAccountName: web
  containers: [{name: app, image: "weft/sample:0.1.0", env: [{name: TCP_PORT, value: "9000"}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: secure, labels: {app: client}}
spec: {containers: [{name: app, image: "curlimages/curl:8.10.1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: secure, labels: {app: stranger, sidecar.istio.io/inject: "false"}}
spec: {containers: [{name: app, image: "curlimages/curl:8.10.1"}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: secure}
spec:
  host: web
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: ["spiffe://cluster.local/ns/secure/sa/web"]}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: secure}
spec: {mtls: {mode: PERMISSIVE}}
"#;

pub fn set_up(mesh: &mut Mesh) -> Result {
    mesh.apply(APPS)?;
    for pod in ["web", "client", "stranger"] {
        mesh.kubectl(&["-n", NS, "wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"])?;
    }
    for from in ["client", "stranger"] {
        answers(mesh, from)?;
    }
    Ok(())
}

fn answers(mesh: &Mesh, from: &str) -> Result {
    mesh.until(&format!("an answer for {from}"), || {
        let (code, said) =
            mesh.curl(NS, from, &["-o", "/dev/null", "-w", "%{http_code}", "http://web.secure:8080/"])?;
        ensure!(code == 0 && said == "200", "{code}: {said}");
        Ok(())
    })
}

fn address(mesh: &Mesh) -> Result<String> {
    mesh.kubectl(&["-n", NS, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])
}

/// Whose network the pod's is.
fn of(mesh: &Mesh, pod: &str) -> Result<Process> {
    Ok(mesh.processes(NS, &format!("pod/{pod}"), "")?.pop().ok_or("no process")?)
}

fn figure(what: &str, mut took: Vec<Duration>) -> Result {
    took.sort();
    let ms: Vec<f64> = took.iter().map(|t| t.as_secs_f64() * 1000.0).collect();
    let worst = ms.last().copied().unwrap_or(f64::NAN);
    println!("    figure: {what}, the longest of {ms:.0?}: {worst:.0} ms (must < {MUST}; {OTHERS})");
    ensure!(worst <= MUST * 10.0, "{what}: {worst} ms");
    Ok(())
}

fn ok(warm: &mut Warm) -> bool {
    warm.get("web.secure:8080").is_ok_and(|status| status == 200)
}

fn expect(mesh: &Mesh, account: &str) -> Result {
    let patch = format!(
        r#"{{"spec": {{"trafficPolicy": {{"tls": {{"subjectAltNames": ["spiffe://cluster.local/ns/secure/sa/{account}"]}}}}}}}}"#
    );
    mesh.kubectl(&["-n", NS, "patch", "destinationrule", "web", "--type=merge", "-p", &patch]).map(drop)
}

pub fn another_identity_is_expected(mesh: &mut Mesh) -> Result {
    let (ip, client) = (address(mesh)?, of(mesh, "client")?);
    let mut took = Vec::new();
    for _ in 0..3 {
        let warm = Warm::open(&client, &ip, 8080)?;
        took.push(warm.refused_after(ok, || expect(mesh, "other"))?);
        expect(mesh, "web")?;
        answers(mesh, "client")?;
    }
    figure("a changed expected identity, on a warm connection", took)
}

fn mode(mesh: &Mesh, mode: &str) -> Result {
    let patch = format!(r#"{{"spec": {{"mtls": {{"mode": "{mode}"}}}}}}"#);
    mesh.kubectl(&["-n", NS, "patch", "peerauthentication", "default", "--type=merge", "-p", &patch]).map(drop)
}

pub fn strict_ends_plaintext(mesh: &mut Mesh) -> Result {
    let (ip, stranger) = (address(mesh)?, of(mesh, "stranger")?);
    let mut took = Vec::new();
    for _ in 0..3 {
        let warm = Warm::open(&stranger, &ip, 8080)?;
        took.push(warm.refused_after(ok, || mode(mesh, "STRICT"))?);
        answers(mesh, "client")?;
        mode(mesh, "PERMISSIVE")?;
        answers(mesh, "stranger")?;
    }
    figure("STRICT, on a warm connection in plaintext", took)
}

fn rotate(mesh: &Mesh, more: &[&str]) -> Result<String> {
    let mut command = mesh.cluster.command(&mesh.programs.join("weft-control").to_string_lossy());
    said("rotate-root", command.args(["rotate-root", "--kube"]).args(more).stdin(Stdio::null()).output()?)
}

/// The last step of a rotation, taken before certificates are renewed, as one does whose old root is known to others: what was
/// proven by it ends, and sidecars join anew.
pub fn a_root_is_removed(mesh: &mut Mesh) -> Result {
    let (ip, client) = (address(mesh)?, of(mesh, "client")?);
    for step in ["is trusted beside", "signs"] {
        let done = mesh.until("a step of the rotation", || rotate(mesh, &[]))?;
        ensure!(done.contains(step), "{step}: {done}");
    }
    mesh.until("it is known whose certificates the old root has signed", || {
        let why = rotate(mesh, &[]).err().ok_or("it is gone")?.to_string();
        ensure!(why.contains("still in use"), "{why}");
        Ok(())
    })?;
    let warm = Warm::open(&client, &ip, 9000)?;
    let took = warm.refused_after(|warm| warm.echo().is_ok(), || rotate(mesh, &["--force"]).map(drop))?;
    figure("a removed trust root, on a warm connection", vec![took])?;
    answers(mesh, "client").map_err(|why| {
        let log = |pod: &str| {
            let log = mesh.kubectl(&["-n", NS, "logs", pod, "-c", "istio-proxy", "--tail=12"]);
            format!("{pod}:\n{}", log.unwrap_or_else(|e| e.to_string()))
        };
        let pods = mesh.pods(NS, "app").unwrap_or_default();
        format!("{why}\n{}\n{}", log("client"), pods.iter().map(|pod| log(pod)).collect::<String>()).into()
    })
}

/// Somebody deletes the CA: the replicas have it, go on, and write it down again.
pub fn the_ca_is_deleted(mesh: &mut Mesh) -> Result {
    let root =
        |mesh: &Mesh| mesh.kubectl(&["-n", NS, "get", "configmap", "weft-root", "-o", "jsonpath={.data.root\\.pem}"]);
    let before = root(mesh)?;
    mesh.kubectl(&["-n", "weft-system", "delete", "secret", "weft-ca"])?;
    // One that has no certificate yet.
    mesh.kubectl(&["-n", NS, "run", "late", "--image=curlimages/curl:8.10.1"])?;
    mesh.kubectl(&["-n", NS, "wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
    answers(mesh, "late")?;
    mesh.until("Secret weft-ca", || {
        mesh.kubectl(&["-n", "weft-system", "get", "secret", "weft-ca", "-o", "name"]).map(drop)
    })?;
    ensure!(root(mesh)? == before, "the root is another one");
    answers(mesh, "client")?;
    let said = mesh.meshctl(&["check"])?;
    ensure!(!said.contains('×'), "{said}");
    Ok(())
}
