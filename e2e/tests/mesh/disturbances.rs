//! Not one request fails while parts are replaced, killed or away. Rows run at a fifth of their length here; `WEFT_FULL=1` runs them whole.

use serde_json::Value;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;
use weft_e2e::{Mesh, Result, ensure};

const NS: &str = "calm";

const APPS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: calm, labels: {istio-injection: enabled}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: calm}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: calm}
spec: {selector: {app: echo}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: calm}
spec:
  replicas: 3
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec: {containers: [{name: app, image: "weft/sample:0.1.0", ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]}
---
# A second hop, so that a request passes four sidecars.
apiVersion: v1
kind: Service
metadata: {name: front, namespace: calm}
spec: {selector: {app: front}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: front, namespace: calm}
spec:
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      containers:
      - name: app
        image: weft/sample:0.1.0
        env: [{name: ECHO_SERVICE_URL, value: "http://echo:8080"}, {name: GRPC_SERVICE_URL, value: "grpc://echo:8080"}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: load, namespace: calm}
spec:
  selector: {matchLabels: {app: load}}
  template:
    metadata: {labels: {app: load}}
    spec: {containers: [{name: app, image: "weft/sample:0.1.0", command: [sleep, infinity]}]}
"#;

/// Whole, or a fifth in CI.
fn length(seconds: u64) -> Duration {
    Duration::from_secs(if std::env::var_os("WEFT_FULL").is_some() { seconds } else { (seconds / 5).max(8) })
}

pub fn set_up(mesh: &mut Mesh) -> Result {
    mesh.apply(APPS)?;
    mesh.rolled_out(NS)?;
    mesh.until("the first answers", || {
        let (code, said) = mesh.curl(NS, "deploy/load -c app", &["-w", " %{http_code}", "http://front:8080/"])?;
        ensure!(code == 0 && said.ends_with("200") && !said.contains("\"error\""), "{said}");
        Ok(())
    })
}

/// Three kinds of requests at 300 a second in all, from a pod of the mesh.
struct Traffic(Vec<Child>);

impl Traffic {
    fn begin(mesh: &Mesh, lasts: Duration) -> Result<Self> {
        // In the pod's network and not by `kubectl exec`, which would end with the API server.
        let pod = mesh.pods(NS, "app=load")?.pop().ok_or("no pod")?;
        let beside = mesh.process(NS, &pod, "weft-proxy")?;
        let address =
            |name: &str| mesh.kubectl(&["-n", NS, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}"]);
        let (echo, front) = (address("echo")?, address("front")?);
        let lasts = format!("{}s", lasts.as_secs());
        let kinds = [
            (format!("http://{echo}:8080/"), "180", "GET"),
            (format!("http://{echo}:8080/?size=20000"), "80", "POST"),
            (format!("http://{front}:8080/"), "40", "GET"),
        ];
        let mut children = Vec::new();
        for (url, rps, method) in kinds {
            let mut command = beside.beside(&mesh.programs.join("mesh-sample").to_string_lossy());
            command.args(["load", &url, "--rps", rps, "--method", method, "--duration", &lasts, "-o", "json"]);
            children.push(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        }
        // What disturbs comes when there is something to disturb.
        sleep(Duration::from_secs(1));
        Ok(Self(children))
    }

    fn none_failed(self, expected: u64) -> Result {
        let mut sent = 0;
        for child in self.0 {
            let output = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let said: Value = serde_json::from_str(&text)
                .map_err(|e| format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
            ensure!(said["failed"] == 0, "{said:#}");
            sent += said["requests"].as_u64().unwrap_or(0);
            println!(
                "    {} {} requests, p99 {} ms, max {} ms",
                said["url"], said["requests"], said["milliseconds"]["p99"], said["milliseconds"]["max"]
            );
        }
        ensure!(sent >= expected, "{sent} requests, not {expected}");
        Ok(())
    }
}

/// Traffic all the while that something is done, and for a while after.
fn during(mesh: &mut Mesh, seconds: u64, disturb: impl FnOnce(&mut Mesh) -> Result) -> Result {
    let lasts = length(seconds);
    let traffic = Traffic::begin(mesh, lasts)?;
    let outcome = disturb(mesh);
    let told = traffic.none_failed(lasts.as_secs() * 300 * 9 / 10);
    outcome.and(told)
}

pub fn rolling_restart(mesh: &mut Mesh) -> Result {
    let times = if std::env::var_os("WEFT_FULL").is_some() { 5 } else { 1 };
    during(mesh, 100, |mesh| {
        for _ in 0..times {
            mesh.kubectl(&["-n", NS, "rollout", "restart", "deploy/echo"])?;
            mesh.kubectl(&["-n", NS, "rollout", "status", "deploy/echo", "--timeout=120s"])?;
        }
        Ok(())
    })
}

pub fn control_plane_rolls(mesh: &mut Mesh) -> Result {
    during(mesh, 60, |mesh| {
        mesh.kubectl(&["-n", "weft-system", "rollout", "restart", "deploy/weft-control"])?;
        mesh.kubectl(&["-n", "weft-system", "rollout", "status", "deploy/weft-control", "--timeout=120s"]).map(drop)
    })
}

pub fn control_plane_is_killed(mesh: &mut Mesh) -> Result {
    during(mesh, 60, |mesh| {
        let pids = mesh.cluster.processes()?;
        let is_it = |pid: &&i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "weft-control"
        };
        let found: Vec<&i32> = pids.iter().filter(is_it).collect();
        ensure!(!found.is_empty(), "no weft-control among {} processes", pids.len());
        for pid in found {
            let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
            ensure!(killed.success(), "kill {pid}");
        }
        Ok(())
    })
}

pub fn api_server_is_away(mesh: &mut Mesh) -> Result {
    let away = length(60);
    during(mesh, 90, |mesh| {
        mesh.cluster.kill_part("kube-apiserver")?;
        sleep(away.saturating_sub(Duration::from_secs(3)));
        mesh.cluster.start_part("kube-apiserver")?;
        mesh.until("the API server", || mesh.kubectl(&["get", "--raw", "/readyz"]).map(drop))
    })
}

/// New pods come as the policy says (`Ignore` in the default profile: without a sidecar), and `check` tells of them.
pub fn injector_is_away(mesh: &mut Mesh) -> Result {
    mesh.kubectl(&["-n", "weft-system", "scale", "deploy/weft-injector", "--replicas=0"])?;
    mesh.until("it is gone", || {
        let pods = mesh.kubectl(&[
            "-n",
            "weft-system",
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=weft-injector",
            "-o",
            "name",
        ])?;
        ensure!(pods.trim().is_empty(), "{pods}");
        Ok(())
    })?;
    during(mesh, 40, |mesh| {
        mesh.kubectl(&["-n", NS, "run", "bare", "--image=curlimages/curl:8.10.1"])?;
        mesh.kubectl(&["-n", NS, "wait", "--for=condition=Ready", "pod/bare", "--timeout=60s"])?;
        let containers = mesh.kubectl(&[
            "-n",
            NS,
            "get",
            "pod",
            "bare",
            "-o",
            "jsonpath={.spec.containers[*].name} {.spec.initContainers[*].name}",
        ])?;
        ensure!(containers.trim() == "bare", "{containers}");
        Ok(())
    })?;
    mesh.kubectl(&["-n", "weft-system", "scale", "deploy/weft-injector", "--replicas=1"])?;
    mesh.rolled_out("weft-system")?;
    let said = mesh.meshctl(&["check", "--proxy"]).unwrap_or_else(|e| e.to_string());
    ensure!(said.contains("bare"), "check --proxy tells of the pod without a sidecar: {said}");
    mesh.kubectl(&["-n", NS, "delete", "pod", "bare", "--wait=false"]).map(drop)
}

/// Three steps, each taken as soon as it is allowed.
pub fn root_rotates(mesh: &mut Mesh) -> Result {
    during(mesh, 100, |mesh| {
        let control = mesh.programs.join("weft-control");
        for _ in 0..2 {
            mesh.until("a step of the rotation", || {
                let mut command = mesh.cluster.command(&control.to_string_lossy());
                let output = command.args(["rotate-root", "--kube"]).stdin(Stdio::null()).output()?;
                weft_e2e::mesh::said("rotate-root", output).map(|said| print!("    {said}"))
            })?;
        }
        Ok(())
    })
}
