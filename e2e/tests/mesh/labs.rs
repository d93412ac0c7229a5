//! The three example labs, from the same YAML as in lab mode, with the commands of the texts they come from.

use weft_e2e::{Mesh, Result, ensure};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

pub fn installed(mesh: &mut Mesh) -> Result {
    let said = mesh.meshctl(&["check"])?;
    ensure!(said.contains('√') && !said.contains('×'), "{said}");
    for name in ["weft-control", "weft-injector"] {
        mesh.kubectl(&["-n", "weft-system", "rollout", "status", &format!("deploy/{name}"), "--timeout=60s"])?;
    }
    Ok(())
}

/// Every pod of a namespace that has a sidecar is ready with it: `2/2`.
fn two_of_two(mesh: &Mesh, namespace: &str, prefix: &str, pods: usize) -> Result {
    mesh.until(&format!("{pods} pods {prefix}* 2/2 in {namespace}"), || {
        let all = mesh.ready(namespace)?;
        let good = all.iter().filter(|(name, ready)| name.starts_with(prefix) && ready == "2/2").count();
        ensure!(good == pods, "{all:?}");
        Ok(())
    })
}

fn apply(mesh: &Mesh, file: &str) -> Result {
    mesh.kubectl(&["apply", "-f", &format!("{ROOT}/{file}")]).map(drop)
}

/// Of `times` calls each answer's body, and last its status.
fn calls(mesh: &Mesh, namespace: &str, from: &str, url: &str, times: usize, more: &[&str]) -> Result<Vec<String>> {
    let url = format!("{url}{}n=[1-{times}]", if url.contains('?') { '&' } else { '?' });
    let mut args = vec!["-w", "\n%{http_code}#end#"];
    args.extend(more);
    args.push(&url);
    let (_, said) = mesh.curl(namespace, from, &args)?;
    Ok(said.split("#end#").map(str::trim).filter(|answer| !answer.is_empty()).map(String::from).collect())
}

/// As the tutorial goes: the apps first, then the label and a restart, then the routes.
pub fn tutorial(mesh: &mut Mesh) -> Result {
    let yaml = std::fs::read_to_string(format!("{ROOT}/tutorial-5.9/app.yaml"))?;
    // The namespace comes labelled in the example; here the label is typed.
    let apps = yaml.split_once("---").ok_or("app.yaml begins with its namespace")?.1;
    mesh.apply(apps)?;
    mesh.rolled_out("default")?;
    mesh.until("1/1 without the mesh", || {
        let all = mesh.ready("default")?;
        ensure!(all.len() == 5 && all.iter().all(|(_, ready)| ready == "1/1"), "{all:?}");
        Ok(())
    })?;
    mesh.kubectl(&["label", "namespace", "default", "istio-injection=enabled"])?;
    mesh.kubectl(&["rollout", "restart", "deployment"])?;
    mesh.rolled_out("default")?;
    two_of_two(mesh, "default", "hello-v1-", 2)?;
    two_of_two(mesh, "default", "hello-v2-", 1)?;

    let stats = mesh.exec("default", "deploy/hello-v1 -c istio-proxy", &["curl", "-s", "localhost:15000/stats"])?;
    ensure!(stats.contains("downstream_rq_total"), "{stats:.300}");
    let dump =
        mesh.exec("default", "deploy/hello-v1 -c istio-proxy", &["pilot-agent", "request", "GET", "config_dump"])?;
    ensure!(dump.contains("15006"), "{dump:.300}");

    apply(mesh, "tutorial-5.9/virtual-service.yaml")?;
    mesh.until("90/10", || {
        let all = calls(mesh, "default", "deploy/client", "http://hello:8080/", 400, &[])?;
        let v2 = all.iter().filter(|l| l.contains("Hello from v2")).count();
        let good = all.iter().filter(|l| l.contains("Hello from v")).count();
        ensure!(good >= 400 && (16..=64).contains(&v2), "v2: {v2} of {good}: {:?}", all.first());
        Ok(())
    })?;
    let chrome = calls(mesh, "default", "deploy/client", "http://hello:8080/", 20, &["-A", "Chrome"])?;
    ensure!(chrome.iter().filter(|l| l.contains("Hello from v2")).count() == 20, "{chrome:?}");

    // Permissive until told otherwise.
    let (code, said) = mesh.curl("default", "stranger", &["http://hello:8080/"])?;
    ensure!(code == 0, "a pod without a sidecar is served under PERMISSIVE: {said}");
    apply(mesh, "tutorial-5.9/peer-authentication.yaml")?;
    mesh.until("STRICT refuses who has no certificate", || {
        let (code, said) = mesh.curl("default", "stranger", &["http://hello:8080/"])?;
        ensure!(code == 56 || code == 52, "{code}: {said}");
        Ok(())
    })?;
    let (code, said) = mesh.curl("default", "deploy/client", &["http://hello:8080/"])?;
    ensure!(code == 0 && said.contains("Hello from"), "{said}");

    for file in ["retry", "timeout", "circuit-breaker"] {
        apply(mesh, &format!("tutorial-5.9/{file}.yaml"))?;
    }
    mesh.rolled_out("default")?;
    mesh.until("504 after 3 s", || {
        let url = "http://slow-service:8080/?delay=8000";
        let (_, said) =
            mesh.curl("default", "deploy/client", &["-o", "/dev/null", "-w", "%{http_code} %{time_total}", url])?;
        ensure!(said.starts_with("504 3."), "{said}");
        Ok(())
    })?;
    mesh.until("one call is four tries", || {
        let before = tries(mesh)?;
        let (_, said) = mesh.curl(
            "default",
            "deploy/client",
            &["-o", "/dev/null", "-w", "%{http_code}", "http://api:8080/?status=503"],
        )?;
        let after = tries(mesh)?;
        ensure!(said == "503" && after - before == 4, "{said}: {before} and then {after} requests came");
        Ok(())
    })?;
    mesh.until("an ejected endpoint", || {
        calls(mesh, "default", "deploy/client", "http://backend:8080/?status=503", 10, &["-o", "/dev/null"])?;
        let clusters =
            mesh.exec("default", "deploy/client -c istio-proxy", &["curl", "-s", "localhost:15000/clusters"])?;
        ensure!(clusters.contains("failed_outlier_check"), "{clusters:.600}");
        Ok(())
    })
}

/// Requests that have come to the pod `api`, by its own sidecar's count.
fn tries(mesh: &Mesh) -> Result<u64> {
    let text =
        mesh.exec("default", "deploy/api -c istio-proxy", &["curl", "-s", "localhost:15000/stats/prometheus"])?;
    let rows =
        text.lines().filter(|l| l.starts_with("istio_requests_total{") && l.contains("reporter=\"destination\""));
    Ok(rows.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
}

/// Linkerd's way: annotation, container `linkerd-proxy`, TrafficSplit, ServiceProfile.
pub fn lab_9_5(mesh: &mut Mesh) -> Result {
    mesh.kubectl(&["apply", "-f", &format!("{ROOT}/lab-9.5/01-namespace.yaml")])?;
    for file in ["02-services", "03-api-gateway", "04-canary", "05-flaky", "06-payment-profile", "07-unmeshed"] {
        apply(mesh, &format!("lab-9.5/{file}.yaml"))?;
    }
    mesh.rolled_out("microservices")?;
    two_of_two(mesh, "microservices", "user-service-", 4)?;
    let pods = mesh.json(&["-n", "microservices", "get", "pods", "-l", "app=auth-service"])?;
    let text = pods.to_string();
    ensure!(text.contains("\"linkerd-proxy\""), "the sidecar is called linkerd-proxy: {text:.500}");
    mesh.until("the split", || {
        let all = calls(mesh, "microservices", "deploy/api-gateway", "http://user-service:8080/", 300, &[])?;
        let v2 = all.iter().filter(|l| l.contains("\"service\": \"user-service-v2\"")).count();
        ensure!((12..=60).contains(&v2), "v2: {v2} of {}: {:?}", all.len(), all.first());
        Ok(())
    })?;
    mesh.kubectl(&["-n", "microservices", "patch", "trafficsplit", "user-service-split", "--type", "json", "-p",
        r#"[{"op":"replace","path":"/spec/backends/0/weight","value":1000},{"op":"replace","path":"/spec/backends/1/weight","value":0}]"#])?;
    mesh.until("no traffic for v2", || {
        let all = calls(mesh, "microservices", "deploy/api-gateway", "http://user-service:8080/", 100, &[])?;
        let bad: Vec<&String> =
            all.iter().filter(|l| l.contains("\"service\": \"user-service-v2\"") || !l.ends_with("200")).collect();
        ensure!(bad.is_empty() && all.len() >= 100, "{} of {}: {:.300?}", bad.len(), all.len(), bad.first());
        Ok(())
    })?;
    let (_, plain) = mesh.curl(
        "microservices",
        "curl-test",
        &["-o", "/dev/null", "-w", "%{http_code}", "http://user-service:8080/api/users"],
    )?;
    ensure!(plain == "200", "plaintext still gets in: {plain}");
    mesh.kubectl(&["delete", "namespace", "microservices", "--wait=false"]).map(drop)
}

pub fn lab_8(mesh: &mut Mesh) -> Result {
    mesh.kubectl(&["apply", "-f", &format!("{ROOT}/lab-8/namespace.yaml")])?;
    for file in ["educational", "social", "destination-rule", "canary", "fault-injection", "ab-testing"] {
        apply(mesh, &format!("lab-8/{file}.yaml"))?;
    }
    mesh.rolled_out("platform")?;
    let all = mesh.ready("platform")?;
    ensure!(all.len() >= 4 && all.iter().all(|(_, ready)| ready == "2/2"), "{all:?}");
    mesh.until("a call through two sidecars", || {
        let url = "http://educational-frontend:3000/";
        let (code, said) = mesh.curl("platform", "deploy/social-backend", &["-w", " %{http_code}", url])?;
        ensure!(code == 0 && said.ends_with("200") && said.contains("spiffe://cluster.local/ns/platform/"), "{said}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "namespace", "platform", "--wait=false"]).map(drop)
}

/// Injection switched off gives the pods as they were.
pub fn off_again(mesh: &mut Mesh) -> Result {
    mesh.kubectl(&["label", "namespace", "default", "istio-injection-"])?;
    mesh.kubectl(&["delete", "peerauthentication", "--all", "-n", "default"])?;
    mesh.kubectl(&["rollout", "restart", "deployment"])?;
    mesh.rolled_out("default")?;
    mesh.until("1/1 again", || {
        let all = mesh.ready("default")?;
        ensure!(all.iter().all(|(_, ready)| ready == "1/1"), "{all:?}");
        Ok(())
    })?;
    // Pods on their way out are called until kube-proxy has heard of them, with and without a mesh.
    mesh.until("the Service answers a stranger", || {
        let (code, said) = mesh.curl("default", "stranger", &["http://hello:8080/"])?;
        ensure!(code == 0 && said.contains("Hello from"), "{said}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "deploy,vs,dr,pod", "--all", "--wait=false"])?;
    mesh.kubectl(&["delete", "service", "hello", "api", "slow-service", "backend"]).map(drop)
}
