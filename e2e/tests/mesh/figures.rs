//! What the mesh costs and how fast it is in pods. Figures are printed beside what a real Istio and a real Linkerd showed; only what is
//! ten times over what it should be fails. `WEFT_FULL=1` measures longer; docs/kubernetes.md has the table.

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use weft_e2e::process::Process;
use weft_e2e::{Mesh, Result, ensure};

const NS: &str = "figures";

const APPS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: figures, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: figures}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-v1, namespace: figures, labels: {app: web, version: v1}}
spec: {containers: [{name: app, image: "hashicorp/http-echo:1.0", args: ["-listen=:8080", "-text=one BODY"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-v2, namespace: figures, labels: {app: web, version: v2}}
spec: {containers: [{name: app, image: "hashicorp/http-echo:1.0", args: ["-listen=:8080", "-text=two BODY"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: figures, labels: {app: client}}
spec: {containers: [{name: app, image: "curlimages/curl:8.10.1"}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: figures}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: figures}
spec: {hosts: [web], http: [{route: [{destination: {host: web, subset: v1}}]}]}
"#;

fn full() -> bool {
    std::env::var_os("WEFT_FULL").is_some()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Printed, and far from what would be a mistake.
fn figure(what: &str, got: f64, unit: &str, must: f64, others: &str) -> Result {
    println!("    figure: {what}: {got:.1} {unit} (must <= {must}; {others})");
    ensure!(got <= must * 10.0, "{what}: {got} {unit}");
    Ok(())
}

pub fn pods_are_ready_soon(mesh: &mut Mesh) -> Result {
    mesh.apply(&APPS.replace("BODY", &"x".repeat(1020)))?;
    for pod in ["web-v1", "web-v2", "client"] {
        mesh.kubectl(&["-n", NS, "wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=90s"])?;
    }
    let ready = |name: &str, annotations: &str| -> Result<f64> {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NS}, annotations: {{{annotations}}}}}\nspec: {{containers: [{{name: app, image: \"curlimages/curl:8.10.1\"}}]}}\n"
        );
        let begun = Instant::now();
        mesh.apply(&pod)?;
        mesh.kubectl(&["-n", NS, "wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let (mut took, mut bare) = (Vec::new(), Vec::new());
    for n in 0..if full() { 7 } else { 3 } {
        bare.push(ready(&format!("bare-{n}"), "sidecar.istio.io/inject: \"false\"")?);
        took.push(ready(&format!("soon-{n}"), "")?);
    }
    println!("    without a sidecar {:.1} s", median(bare));
    figure("injected pod ready after apply", median(took), "s", 4.0, "Istio 7, Linkerd 5")
}

pub fn memory(mesh: &mut Mesh) -> Result {
    let mut sidecars = Vec::new();
    for n in 0..3 {
        let pod = mesh.process(NS, &format!("pod/soon-{n}"), "weft-proxy")?;
        sidecars.push(pod.rss()? as f64 / 1024.0);
    }
    figure("sidecar, idle, RSS", median(sidecars), "MiB", 14.0, "Istio 69 + 38, Linkerd 23-27")?;
    let (mut sum, mut parts) = (0.0, Vec::new());
    for name in ["weft-control", "weft-injector"] {
        for pod in mesh.pods("weft-system", &format!("app.kubernetes.io/name={name}"))? {
            let rss = mesh.process("weft-system", &pod, name)?.rss()? as f64 / 1024.0;
            parts.push(format!("{name} {rss:.1}"));
            sum += rss;
        }
    }
    figure(&format!("control plane, RSS ({})", parts.join(", ")), sum, "MiB", 60.0, "Istio 156, Linkerd about 240")
}

/// CPU of both sidecars per request: wrk in the client's network, the app behind the other sidecar, 64 connections.
pub fn cpu_per_request(mesh: &mut Mesh) -> Result {
    let client = mesh.process(NS, "pod/client", "weft-proxy")?;
    let server = mesh.process(NS, "pod/web-v1", "weft-proxy")?;
    let ip = mesh.kubectl(&["-n", NS, "get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let run = |seconds: u64| -> Result<f64> {
        let output = client
            .beside("wrk")
            .args(["-t1", "-c64", &format!("-d{seconds}s"), &format!("http://{ip}:8080/"), "-H", "Host: web:8080"])
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let count = said
            .lines()
            .find_map(|l| l.trim().split_once(" requests in "))
            .ok_or_else(|| format!("wrk: {said}{}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(!said.contains("Non-2xx"), "{said}");
        Ok(count.0.parse()?)
    };
    run(2)?;
    let mut took = Vec::new();
    for _ in 0..if full() { 5 } else { 3 } {
        let used = |p: &Process| p.cpu();
        let before = used(&client)? + used(&server)?;
        let requests = run(if full() { 15 } else { 4 })?;
        let spent = (used(&client)? + used(&server)? - before) as f64;
        println!("    {requests} requests, {:.1} us each", spent / requests);
        took.push(spent / requests);
    }
    figure("CPU per request of both sidecars", median(took), "us", 60.0, "Istio 150-240, Linkerd 97-130")
}

/// From when `kubectl` has returned to the first answer of the other version, over a connection that is open all the while.
pub fn routes_take_effect(mesh: &mut Mesh) -> Result {
    let ip = mesh.kubectl(&["-n", NS, "get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let client = mesh.process(NS, "pod/client", "weft-proxy")?;
    let mut took = Vec::new();
    for n in 0..if full() { 15 } else { 7 } {
        let (subset, word) = if n % 2 == 0 { ("v2", "two ") } else { ("v1", "one ") };
        let patch =
            format!(r#"[{{"op":"replace","path":"/spec/http/0/route/0/destination/subset","value":"{subset}"}}]"#);
        let over = AtomicBool::new(false);
        let (returned, seen) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| first_answer(&client, &ip, word, &over));
            let patched = mesh.kubectl(&["-n", NS, "patch", "virtualservice", "web", "--type", "json", "-p", &patch]);
            let returned = Instant::now();
            let seen = watcher.join().map_err(|_| "the watcher panicked".to_string());
            over.store(true, Ordering::Relaxed);
            (patched.map(|_| returned), seen)
        });
        let (returned, seen) = (returned?, seen?.map_err(|e| format!("{word}: {e}"))?);
        let late = seen.saturating_duration_since(returned).as_secs_f64() * 1000.0;
        took.push(late);
    }
    println!("    each, ms: {took:.1?}");
    figure("a route in effect after kubectl returned, median", median(took), "ms", 30.0, "Istio 132, Linkerd about 0")
}

/// Asks without a pause until an answer begins with the word; when that was.
fn first_answer(client: &Process, ip: &str, word: &str, over: &AtomicBool) -> std::result::Result<Instant, String> {
    let wrong = |e: std::io::Error| e.to_string();
    // A relay inside of the pod's network: what it sends goes through the sidecar.
    let mut relay = client
        .beside("busybox")
        .args(["nc", ip, "8080"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(wrong)?;
    let (mut to, mut from) = (relay.stdin.take().ok_or("stdin")?, relay.stdout.take().ok_or("stdout")?);
    let end = Instant::now() + Duration::from_secs(30);
    let mut buffer = vec![0; 16 * 1024];
    let outcome = loop {
        if Instant::now() > end || over.load(Ordering::Relaxed) {
            break Err("never".to_string());
        }
        to.write_all(b"GET / HTTP/1.1\r\nhost: web:8080\r\n\r\n").map_err(wrong)?;
        let mut text = String::new();
        let body = loop {
            let n = from.read(&mut buffer).map_err(wrong)?;
            if n == 0 {
                break None;
            }
            text += &String::from_utf8_lossy(&buffer[..n]);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|l| {
                    l.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse::<usize>())
                });
                if let Some(Ok(length)) = length
                    && body.len() >= length
                {
                    break Some(body.to_string());
                }
            }
        };
        match body {
            Some(body) if body.starts_with(word) => break Ok(Instant::now()),
            Some(_) => {}
            None => break Err("the connection ended".into()),
        }
    };
    let _ = relay.kill();
    let _ = relay.wait();
    outcome
}

/// What `/inject` took, from the injector's own histogram.
pub fn webhook_latency(mesh: &mut Mesh) -> Result {
    let ip = mesh.kubectl(&[
        "-n",
        "weft-system",
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=weft-injector",
        "-o",
        "jsonpath={.items[0].status.podIP}",
    ])?;
    let output =
        mesh.cluster.command("curl").args(["-sS", "-m", "10", &format!("http://{ip}:15021/metrics")]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows: Vec<(f64, f64)> = text
        .lines()
        .filter(|l| l.starts_with("weft_injector_call_seconds_bucket"))
        .filter_map(|l| {
            let bound = l.split("le=\"").nth(1)?.split('"').next()?;
            Some((bound.parse().unwrap_or(f64::INFINITY), l.rsplit(' ').next()?.parse().ok()?))
        })
        .collect();
    let total = rows.iter().map(|(_, n)| *n).fold(0.0, f64::max);
    ensure!(total > 0.0, "no reviews counted: {text:.500}");
    let quantile =
        |q: f64| rows.iter().filter(|(_, n)| *n >= q * total).map(|(le, _)| *le).fold(f64::INFINITY, f64::min);
    // Of a hundred reviews the slowest is the 99th: on a machine that compiles it says nothing, so it is printed alone.
    println!("    webhook, p99 of {total} reviews: at most {:.1} ms (must <= 50)", quantile(0.99) * 1000.0);
    figure("webhook, median, at most", quantile(0.5) * 1000.0, "ms", 50.0, "the API server waits 10 s")
}
