//! A sidecar as it is shipped: one static program in its image, and nothing that it could load. The other tests' programs are linked
//! to this machine's libraries, so that nothing is built twice; this one is built for it, without optimisation.

use weft_e2e::{Mesh, Result, ensure};

const NS: &str = "shipped";
const IMAGE: &str = "weft/proxy:static";

const APPS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shipped, labels: {istio-injection: enabled}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shipped}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shipped}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
---
# A name that the sidecar itself has to look up, of somebody who is not in the mesh.
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shipped}
spec: {type: ExternalName, externalName: kube-dns.kube-system.svc.cluster.local, ports: [{name: http, port: 9153}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shipped, labels: {app: web}}
spec: {containers: [{name: app, image: "hashicorp/http-echo:1.0", args: ["-listen=:8080", "-text=shipped"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shipped, labels: {app: client}}
spec: {containers: [{name: app, image: "curlimages/curl:8.10.1"}]}
"#;

/// The pods get the static sidecar from `meshctl inject`, which the webhook leaves as it is.
pub fn static_sidecar(mesh: &mut Mesh) -> Result {
    let folder = mesh.programs.join("static");
    weft_cluster::static_programs(&folder, "dev", &["weft-proxy"])?;
    mesh.cluster.import(&weft_cluster::proxy_image(&folder)?.named(IMAGE))?;
    let file = folder.join("apps.yaml");
    std::fs::write(&file, APPS)?;
    let file = file.to_string_lossy();
    mesh.apply(&mesh.meshctl(&["inject", &file, "--as", "istio", "--image", IMAGE])?)?;

    // Ready: it has found the control plane by its name, and has its identity.
    for pod in ["pod/web", "pod/client"] {
        mesh.kubectl(&["-n", NS, "wait", "--for=condition=Ready", pod, "--timeout=90s"])?;
        let sidecar = mesh.process(NS, pod, "weft-proxy")?;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", sidecar.pid))?;
        ensure!(maps.contains("weft-proxy") && !maps.contains(".so"), "{pod} has loaded libraries:\n{maps}");
    }
    mesh.until("through two static sidecars", || {
        let (code, said) = mesh.curl(NS, "client -c app", &["http://web:8080/"])?;
        ensure!(code == 0 && said.trim() == "shipped", "{code}: {said}");
        Ok(())
    })?;
    let (code, said) = mesh.curl(NS, "client -c app", &["http://elsewhere:9153/metrics"])?;
    ensure!(code == 0 && said.contains("coredns_"), "{code}: {}", said.lines().next().unwrap_or_default());
    for tool in [&["curl", "-s", "localhost:15000/stats"][..], &["pilot-agent", "request", "GET", "stats"]] {
        let stats = mesh.exec(NS, "client -c istio-proxy", tool)?;
        ensure!(stats.contains("request_duration"), "{tool:?}: {stats}");
    }
    mesh.kubectl(&["delete", "namespace", NS, "--wait=false"]).map(drop)
}
