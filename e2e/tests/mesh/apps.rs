//! Apps that sidecars usually break, in a namespace with STRICT mTLS.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};
use weft_e2e::{Mesh, Result, ensure};

const NS: &str = "usual";

const APPS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: usual, labels: {istio-injection: enabled}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: usual}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: usual}
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 8080}
  - {name: tcp-echo, port: 9000}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: usual}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers:
      - name: app
        image: weft/sample:0.1.0
        env: [{name: TCP_PORT, value: "9000"}]
        ports: [{containerPort: 8080}, {containerPort: 9000}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: 9000}, periodSeconds: 5}
---
# Calls echo in every way that the sample knows.
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller, namespace: usual}
spec:
  selector: {matchLabels: {app: caller}}
  template:
    metadata: {labels: {app: caller}}
    spec:
      initContainers:
      - name: fetch
        image: curlimages/curl:8.10.1
        command: [curl, -sS, --fail, --retry, "30", --retry-all-errors, --retry-delay, "1", "http://echo:8080/"]
      containers:
      - name: app
        image: weft/sample:0.1.0
        env:
        - {name: GRPC_SERVICE_URL, value: "grpc://echo:8080"}
        - {name: WS_SERVICE_URL, value: "ws://echo:8080"}
        - {name: TCP_SERVICE_URL, value: "tcp://echo:9000"}
        - {name: H2_SERVICE_URL, value: "h2c://echo:8080"}
---
apiVersion: v1
kind: Service
metadata: {name: caller, namespace: usual}
spec: {selector: {app: caller}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: usual}
spec: {clusterIP: None, selector: {app: peers}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: peer, namespace: usual}
spec:
  serviceName: peers
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: peers}}
  template:
    metadata: {labels: {app: peers}}
    spec: {containers: [{name: app, image: "weft/sample:0.1.0", env: [{name: SERVICE_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: usual}
spec: {type: ExternalName, externalName: echo.usual.svc.cluster.local, ports: [{name: http, port: 8080}]}
---
# One app that listens on loopback alone and one that listens on its pod's address alone.
apiVersion: apps/v1
kind: Deployment
metadata: {name: narrow, namespace: usual}
spec:
  selector: {matchLabels: {app: narrow}}
  template:
    metadata: {labels: {app: narrow}}
    spec:
      containers:
      - name: local
        image: busybox:1
        command: [sh, -c, "mkdir -p /tmp/w; echo on loopback > /tmp/w/index.html; exec httpd -f -p 127.0.0.1:8081 -h /tmp/w"]
      - name: six
        image: busybox:1
        command: [sh, -c, "mkdir -p /tmp/w; echo on IPv6 > /tmp/w/index.html; exec httpd -f -p '[::1]:8083' -h /tmp/w"]
      - name: own
        image: busybox:1
        env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
        command: [sh, -c, "mkdir -p /tmp/w; echo on its address > /tmp/w/index.html; exec httpd -f -p $IP:8082 -h /tmp/w"]
---
apiVersion: v1
kind: Service
metadata: {name: narrow, namespace: usual}
spec: {selector: {app: narrow}, ports: [{name: http-local, port: 8081}, {name: http-own, port: 8082}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: usual}
spec:
  backoffLimit: 3
  template:
    spec:
      restartPolicy: OnFailure
      containers:
      - {name: app, image: "curlimages/curl:8.10.1", command: [curl, -sS, --fail, --retry, "30", --retry-all-errors, "http://echo:8080/"]}
---
# No selector: somebody else says where it is.
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: usual}
spec: {ports: [{name: http, port: 8080}]}
---
# One of two has an app that does not listen.
apiVersion: v1
kind: Service
metadata: {name: half, namespace: usual}
spec: {selector: {app: half}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: half-good, namespace: usual, labels: {app: half}}
spec: {containers: [{name: app, image: "weft/sample:0.1.0"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: half-deaf, namespace: usual, labels: {app: half}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: app, image: "busybox:1", command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: outside, namespace: usual, labels: {app: outside, sidecar.istio.io/inject: "false"}}
spec: {containers: [{name: app, image: "weft/sample:0.1.0"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: usual}
spec: {hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, containers: [{name: app, image: "curlimages/curl:8.10.1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: usual, labels: {app: client}}
spec: {containers: [{name: app, image: "curlimages/curl:8.10.1"}]}
"#;

pub fn set_up(mesh: &mut Mesh) -> Result {
    mesh.apply(APPS)?;
    mesh.rolled_out(NS)?;
    for pod in ["outside", "host", "client", "half-good", "half-deaf"] {
        mesh.kubectl(&["-n", NS, "wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"])?;
    }
    let outside = mesh.kubectl(&["-n", NS, "get", "pod", "outside", "-o", "jsonpath={.status.podIP}"])?;
    mesh.apply(&format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: elsewhere-1, namespace: {NS}, labels: \
         {{kubernetes.io/service-name: elsewhere}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
         endpoints: [{{addresses: [{outside:?}], conditions: {{ready: true}}}}]\n"
    ))?;
    Ok(())
}

/// From a pod with a sidecar until the answer is there.
fn answers(mesh: &Mesh, from: &str, url: &str, word: &str) -> Result {
    mesh.until(&format!("{url} from {from}"), || {
        let (code, said) = mesh.curl(NS, from, &["-w", " %{http_code}", url])?;
        ensure!(code == 0 && said.ends_with("200") && said.contains(word), "{code}: {said:.600}");
        Ok(())
    })
}

pub fn job_completes(mesh: &mut Mesh) -> Result {
    mesh.kubectl(&["-n", NS, "wait", "--for=condition=complete", "job/once", "--timeout=60s"])?;
    mesh.until("its pod ends, sidecar and all", || {
        let phase =
            mesh.kubectl(&["-n", NS, "get", "pods", "-l", "job-name=once", "-o", "jsonpath={.items[*].status.phase}"])?;
        ensure!(phase == "Succeeded", "{phase}");
        Ok(())
    })
}

/// An init container that needs the network: `caller` would not be ready without.
pub fn every_protocol(mesh: &mut Mesh) -> Result {
    for path in ["/", "/Chat"] {
        mesh.until("gRPC, WebSocket, TCP that speaks first, HTTP/2", || {
            let (code, said) =
                mesh.curl(NS, "client", &["-w", " %{http_code}", &format!("http://caller:8080{path}")])?;
            ensure!(code == 0 && said.ends_with("200") && !said.contains("\"error\""), "{code}: {said}");
            ensure!(said.contains("spiffe://cluster.local/ns/usual/sa/default"), "who called is told: {said}");
            Ok(())
        })?;
    }
    let greeting = mesh.exec(NS, "client", &["sh", "-c", "sleep 1 | timeout 5 nc echo 9000"])?;
    ensure!(!greeting.is_empty(), "a server that speaks first was not heard");
    Ok(())
}

pub fn calls_itself(mesh: &mut Mesh) -> Result {
    answers(mesh, "deploy/echo -c app", "http://echo:8080/", "echo")?;
    answers(mesh, "deploy/echo -c app", "http://localhost:8080/", "echo")?;
    let six = mesh.exec(NS, "deploy/narrow -c six", &["timeout", "5", "wget", "-qO-", "http://[::1]:8083/"])?;
    ensure!(six.contains("on IPv6"), "{six}");
    Ok(())
}

pub fn peers_by_name(mesh: &mut Mesh) -> Result {
    answers(mesh, "peer-0 -c app", "http://peer-1.peers:8080/", "peer-1")?;
    answers(mesh, "peer-1 -c app", "http://peer-0.peers:8080/", "peer-0")
}

pub fn names_of_elsewhere(mesh: &mut Mesh) -> Result {
    answers(mesh, "client", "http://alias:8080/", "echo")?;
    answers(mesh, "client", "http://elsewhere:8080/", "\"service\"")
}

/// What listens on its pod's address is reached; what listens on loopback alone is its own, as it is without a mesh.
pub fn narrow_listeners(mesh: &mut Mesh) -> Result {
    answers(mesh, "client", "http://narrow:8082/", "on its address")?;
    let (code, said) = mesh.curl(NS, "client", &["-w", " %{http_code}", "http://narrow:8081/"])?;
    ensure!(code == 0 && said.ends_with("503") && !said.contains("on loopback"), "{code}: {said}");
    let own = mesh.exec(NS, "deploy/narrow -c local", &["timeout", "5", "wget", "-qO-", "http://127.0.0.1:8081/"])?;
    ensure!(own.contains("on loopback"), "{own}");
    Ok(())
}

/// What has no certificate: the kubelet's probes, `exec` and `port-forward` get through, others do not.
pub fn without_a_certificate(mesh: &mut Mesh) -> Result {
    for from in ["outside", "host"] {
        mesh.until("STRICT", || {
            let (code, said) = mesh.curl(NS, from, &["http://echo:8080/"])?;
            ensure!(code == 56 || code == 52, "from {from}: {code}: {said}");
            Ok(())
        })?;
    }
    let host = mesh.kubectl(&[
        "-n",
        NS,
        "get",
        "pod",
        "host",
        "-o",
        "jsonpath={.spec.containers[*].name}{.spec.initContainers[*].name}",
    ])?;
    ensure!(host == "app", "host-network pods stay as they are: {host}");
    let pod = mesh.kubectl(&["-n", NS, "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[0].metadata.name}"])?;
    let mut forward = mesh
        .cluster
        .command("kubectl")
        .args(["-n", NS, "port-forward", &format!("pod/{pod}"), "18888:8080"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let outcome = mesh.until("port-forward", || {
        let output = mesh.cluster.command("curl").args(["-sS", "-m", "5", "http://127.0.0.1:18888/"]).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.contains("echo"), "{said} {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    });
    forward.kill()?;
    forward.wait()?;
    outcome?;
    let restarts = mesh.kubectl(&[
        "-n",
        NS,
        "get",
        "pods",
        "-l",
        "app=echo",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    ])?;
    ensure!(restarts.split(' ').all(|n| n == "0"), "probes fail: {restarts} restarts");
    Ok(())
}

/// The API server, and TLS of the app's own to an address that no Service has.
pub fn out_of_the_mesh(mesh: &mut Mesh) -> Result {
    let version = mesh.exec(NS, "client", &["curl", "-sSk", "-m", "10", "https://kubernetes.default/version"])?;
    ensure!(version.contains("gitVersion"), "{version}");
    let node = mesh.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.addresses[0].address}"])?;
    let port =
        mesh.kubectl(&["get", "endpointslice", "kubernetes", "-n", "default", "-o", "jsonpath={.ports[0].port}"])?;
    let direct = mesh.exec(NS, "client", &["curl", "-sSk", "-m", "10", &format!("https://{node}:{port}/version")])?;
    ensure!(direct.contains("gitVersion"), "{direct}");
    let looked = mesh.exec(NS, "client", &["nslookup", "echo.usual.svc.cluster.local"])?;
    ensure!(looked.contains("Address"), "UDP is left alone: {looked}");
    Ok(())
}

/// Scrapers have no certificate either.
pub fn metrics_under_strict(mesh: &mut Mesh) -> Result {
    let ip = mesh.kubectl(&["-n", NS, "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[0].status.podIP}"])?;
    for port in [15020, 15090] {
        let path = if port == 15020 { "/stats/prometheus" } else { "/metrics" };
        let (code, said) = mesh.curl(NS, "outside", &[&format!("http://{ip}:{port}{path}")])?;
        ensure!(code == 0 && said.contains("istio_requests_total"), "{port}: {code}: {said:.300}");
    }
    Ok(())
}

/// A pod that is told to end finishes what it has begun, and so do its callers' requests.
pub fn ends_after_its_app(mesh: &mut Mesh) -> Result {
    let client = mesh.cluster.command("kubectl");
    let mut client = client;
    let child = client
        .args([
            "-n",
            NS,
            "exec",
            "client",
            "--",
            "curl",
            "-sS",
            "-m",
            "20",
            "-w",
            " %{http_code}",
            "http://echo:8080/?delay=4000",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    mesh.kubectl(&["-n", NS, "rollout", "restart", "deploy/echo"])?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.ends_with("200"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    mesh.rolled_out(NS)
}

/// A sidecar that cannot reach its app has given it nothing, so the caller's tries elsewhere: with a POST as with a GET.
pub fn a_post_is_tried_elsewhere(mesh: &mut Mesh) -> Result {
    mesh.until("both were tried", || {
        let args = ["-d", "an order", "-o", "/dev/null", "-w", "%{http_code}\n", "http://half:8080/?n=[1-40]"];
        let (code, said) = mesh.curl(NS, "client", &args)?;
        ensure!(code == 0 && said.lines().filter(|l| *l == "200").count() == 40, "{code}: {said}");
        let stats = ["curl", "-s", "localhost:15000/stats/prometheus"];
        let stats = mesh.exec(NS, "half-deaf -c istio-proxy", &stats)?;
        let refused = |l: &&str| l.starts_with("istio_requests_total") && l.contains("response_code=\"503\"");
        ensure!(stats.lines().any(|l| refused(&l)), "the deaf one was not tried");
        Ok(())
    })
}

/// Messages all the time through two sidecars; `WEFT_FULL=1`: for five minutes.
pub fn a_long_stream(mesh: &mut Mesh) -> Result {
    let seconds: u32 = if std::env::var_os("WEFT_FULL").is_some() { 300 } else { 30 };
    let count = seconds * 10;
    // weft.sample.Request: text, count, pause_ms.
    let mut message = vec![0x0a, 1, b'x', 0x10];
    let mut rest = count;
    while rest >= 0x80 {
        message.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    message.extend([rest as u8, 0x18, 100]);
    let length = message.len() as u8;
    message.splice(0..0, [0, 0, 0, 0, length]);

    let ip = mesh.kubectl(&["-n", NS, "get", "service", "echo", "-o", "jsonpath={.spec.clusterIP}"])?;
    let mut curl = mesh.process(NS, "pod/client", "weft-proxy")?.beside("curl");
    curl.args(["-sS", "-N", "--http2-prior-knowledge", "-m", &(seconds + 60).to_string(), "--data-binary", "@-"]);
    curl.args(["-D", "/dev/stderr", "-H", "Host: echo:8080", "-H", "content-type: application/grpc"]);
    curl.args(["-H", "te: trailers", &format!("http://{ip}:8080/weft.sample.Echo/Repeat")]);
    let mut child = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("stdin")?.write_all(&message)?;
    let (mut from, mut frames, mut buffer) = (child.stdout.take().ok_or("stdout")?, Vec::new(), [0; 8192]);
    let (mut last, mut longest, mut seen) = (Instant::now(), Duration::ZERO, 0);
    loop {
        let n = from.read(&mut buffer)?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if n == 0 {
            break;
        }
        frames.extend_from_slice(&buffer[..n]);
        while frames.len() >= 5 {
            let end = 5 + u32::from_be_bytes([frames[1], frames[2], frames[3], frames[4]]) as usize;
            if frames.len() < end {
                break;
            }
            frames.drain(..end);
            seen += 1;
        }
    }
    let said = String::from_utf8_lossy(&child.wait_with_output()?.stderr).into_owned();
    ensure!(seen == count && said.contains("grpc-status: 0"), "{seen} of {count} messages: {said}");
    ensure!(longest < Duration::from_secs(5), "{longest:?} without a message");
    println!("    {seen} messages in {seconds} s, at most {longest:.1?} without one");
    Ok(())
}
