//! Install, check, upgrade and uninstall in a real cluster. What the programs do once they run is shown elsewhere: here their
//! images are not there, so every check of what they do has something to find.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant, SystemTime};
use weft_cluster::{Cluster, Options};
use weft_policy::diag::Diags;
use weft_policy::yaml;

fn meshctl(cluster: &Cluster, args: &[&str]) -> Output {
    cluster.command(env!("CARGO_BIN_EXE_meshctl")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn out(output: &Output) -> String {
    let (told, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{wrong}");
    told.into_owned()
}

fn kubectl(cluster: &Cluster, args: &str) -> String {
    cluster.kubectl(&args.split(' ').collect::<Vec<_>>()).unwrap()
}

fn fed(cluster: &Cluster, args: &[&str], text: &str) -> String {
    let mut command = cluster.command("kubectl");
    let command = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    out(&child.wait_with_output().unwrap())
}

/// What `check` says: its exit code, and each check's result and what it found.
struct Answer {
    code: Option<i32>,
    checks: Vec<(String, String, String)>,
}

impl Answer {
    fn of(cluster: &Cluster, args: &[&str]) -> Self {
        let output = meshctl(cluster, &[&["check", "-o", "json"], args].concat());
        let document: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        let sections = document["sections"].as_array().unwrap().iter();
        let text = |v: &Value| v.as_str().unwrap().to_string();
        let checks = sections.flat_map(|s| s["checks"].as_array().unwrap()).map(|c| {
            assert!(c["result"] == "ok" || c["hint"] != "", "{c}");
            (text(&c["check"]), text(&c["result"]), c["found"].to_string())
        });
        Self { code: output.status.code(), checks: checks.collect() }
    }

    /// The check whose name has `name` ended so, and found something with `word`.
    fn says(&self, name: &str, result: &str, word: &str) {
        let own = self.checks.iter().find(|(what, ..)| what.contains(name));
        let (_, is, found) = own.unwrap_or_else(|| panic!("no check {name}: {:#?}", self.checks));
        assert!(is == result && found.contains(word), "{name}: {is} {found}");
    }
}

#[test]
fn from_nothing_to_nothing() {
    let cluster = Cluster::start(Options::default()).unwrap();
    before(&cluster);
    kinds(&cluster);
    installed(&cluster);
    checked(&cluster);
    upgraded(&cluster);
    removed(&cluster);
}

fn before(cluster: &Cluster) {
    let fine = Answer::of(cluster, &["--pre"]);
    assert_eq!(fine.code, Some(0), "{:#?}", fine.checks);
    assert!(fine.checks.iter().all(|(_, result, _)| result == "ok"), "{:#?}", fine.checks);
    Answer::of(cluster, &[]).says("the mesh is installed", "error", "no Deployment weft-control");
    assert!(out(&meshctl(cluster, &["uninstall", "-y"])).contains("nothing of the mesh"));

    // What is wrong with a cluster, one of each.
    cluster
        .apply(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: strict, labels: {pod-security.kubernetes.io/enforce: \
             restricted}}\n---\napiVersion: v1\nkind: ResourceQuota\nmetadata: {name: few, namespace: strict}\nspec: \
             {hard: {limits.cpu: '2'}}\n---\napiVersion: admissionregistration.k8s.io/v1\nkind: \
             MutatingWebhookConfiguration\nmetadata: {name: istio-sidecar-injector}\nwebhooks: []\n---\napiVersion: \
             apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: \
             trafficsplits.split.smi-spec.io}\nspec:\n  group: split.smi-spec.io\n  scope: Namespaced\n  names: {kind: \
             TrafficSplit, plural: trafficsplits}\n  versions:\n  - {name: v2, served: true, storage: true, schema: \
             {openAPIV3Schema: {type: object}}}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: other}\n",
        )
        .unwrap();
    let node = r#"{"status":{"nodeInfo":{"operatingSystem":"windows","architecture":"amd64","bootID":"","containerRuntimeVersion":"","kernelVersion":"","kubeProxyVersion":"","kubeletVersion":"","machineID":"","osImage":"","systemUUID":""}}}"#;
    cluster.kubectl(&["patch", "node", "other", "--subresource=status", "-p", node]).unwrap();
    let bad = Answer::of(cluster, &["--pre"]);
    bad.says("nodes run Linux", "warning", "other: windows");
    bad.says("no other mesh", "warning", "istio-sidecar-injector");
    bad.says("kinds that are there already", "warning", "trafficsplits.split.smi-spec.io serves v2");
    bad.says("pod security", "warning", "strict enforces restricted");
    bad.says("no quota", "warning", "strict/few");
    assert_eq!(bad.code, Some(0), "what is doubtful does not fail");
    // Somebody who may nothing.
    let file = cluster.place().kubeconfig().with_file_name("nobody.kubeconfig");
    std::fs::copy(cluster.kubeconfig(), &file).unwrap();
    let token = kubectl(cluster, "create token default");
    let with = |args: &str| {
        let mut command = cluster.command("kubectl");
        command.args(args.split(' ')).env("KUBECONFIG", &file);
        out(&command.output().unwrap())
    };
    with(&format!("config set-credentials nobody --token={}", token.trim()));
    with("config set-context --current --user=nobody");
    let nobody = Answer::of(cluster, &["--pre", "--kubeconfig", file.to_str().unwrap()]);
    nobody.says("you may create", "error", "create deployments.apps");
    nobody.says("nodes run Linux", "error", "forbidden");
    assert_eq!(nobody.code, Some(1));
    let away = cluster.kubeconfig().with_file_name("away.kubeconfig");
    std::fs::copy(cluster.kubeconfig(), &away).unwrap();
    let name = kubectl(cluster, "config view -o jsonpath={.clusters[0].name}");
    let mut command = cluster.command("kubectl");
    command.args(["config", "set-cluster", &name, "--server=https://127.0.0.1:1"]).env("KUBECONFIG", &away);
    out(&command.output().unwrap());
    let away = Answer::of(cluster, &["--kubeconfig", away.to_str().unwrap()]);
    away.says("the API server answers", "error", "not reached");
    assert_eq!(away.code, Some(1));
    kubectl(cluster, "delete mutatingwebhookconfiguration/istio-sidecar-injector node/other namespace/strict");
    kubectl(cluster, "delete crd/trafficsplits.split.smi-spec.io");
}

fn kinds(cluster: &Cluster) {
    // One that is there already, as others may have brought it.
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft/crds");
    kubectl(cluster, &format!("apply -f {}", chart.join("linkerd-serviceprofiles.yaml").display()));
    let text = out(&meshctl(cluster, &["install", "--crds"]));
    fed(cluster, &["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"], &text);
    let told = out(&meshctl(cluster, &["install", "--crds", "-y"]));
    assert!(told.contains("19 kinds are defined") && told.contains("1 kinds are there already"), "{told}");
    assert!(out(&meshctl(cluster, &["install", "--crds", "-y"])).contains("nothing to do"));
    // Discovery follows a moment after a kind is established.
    let end = Instant::now() + Duration::from_secs(30);
    let short = "get vs,dr,pa,ap,ra,se,sp,ts,htr,tp,httproute,grpcroute,gateways.networking.istio.io -A";
    while let Err(error) = cluster.kubectl(&short.split(' ').collect::<Vec<_>>()) {
        assert!(Instant::now() < end, "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for folder in ["lab-8", "lab-9.5", "tutorial-5.9"] {
        let folder = examples.join(folder);
        let mut objects = Vec::new();
        for file in std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "yaml") {
                let text = std::fs::read_to_string(&file).unwrap();
                objects.extend(yaml::documents(&text, &mut Diags::default()).unwrap().iter().map(yaml::json));
            }
        }
        // Only what these kinds define: the rest is Kubernetes' own, and would start.
        objects.retain(|o| o["apiVersion"].as_str().is_some_and(|v| v.contains('.')));
        assert!(!objects.is_empty(), "{}", folder.display());
        for name in objects.iter().filter_map(|o| o["metadata"]["namespace"].as_str()) {
            // It may be there already.
            let _ = cluster.kubectl(&["create", "namespace", name]);
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        fed(cluster, &["apply", "--dry-run=server", "--validate=strict", "-f", "-"], &list);
    }
    // What is of a wrong shape is refused by the kind itself.
    let wrong = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a}\nspec: {targetRefs: []}\n";
    assert!(cluster.apply(wrong).unwrap_err().to_string().contains("targetRefs"));
}

fn installed(cluster: &Cluster) {
    let told = out(&meshctl(cluster, &["install", "-y", "--no-wait"]));
    assert!(told.contains("Deployment weft-system/weft-control") && told.contains("meshctl check"), "{told}");
    let text = out(&meshctl(cluster, &["install", "--dry-run"]));
    fed(cluster, &["get", "-f", "-"], &text);
    for profile in ["default", "demo", "minimal", "ha"] {
        let text = out(&meshctl(cluster, &["install", "--dry-run", "--profile", profile, "--compat", "linkerd"]));
        let args = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"];
        fed(cluster, &args, &text);
    }
    // Pods are what the namespace's own level demands: the first is made, whatever its image.
    let end = Instant::now() + Duration::from_secs(30);
    while kubectl(cluster, "-n weft-system get pods -o name").lines().count() < 2 {
        assert!(Instant::now() < end, "{}", kubectl(cluster, "-n weft-system get events"));
        std::thread::sleep(Duration::from_millis(100));
    }
    let waited = meshctl(cluster, &["install", "-y", "--timeout", "1s"]);
    assert_eq!(waited.status.code(), Some(1));
    let told = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(told.contains("0 of 1 pods ready") && told.contains("try:"), "{told}");
}

fn checked(cluster: &Cluster) {
    let answer = Answer::of(cluster, &["--proxy"]);
    assert_eq!(answer.code, Some(1));
    answer.says("the mesh is installed", "ok", "");
    answer.says("every kind is defined", "ok", "");
    answer.says("weft-control runs", "error", "0 of 1");
    answer.says("weft-injector runs", "error", "0 of 1");
    answer.says("everything is of version", "ok", "");
    answer.says("knows weft-injector's certificate", "error", "no caBundle");
    answer.says("a pod that asks for a sidecar gets one", "error", "");
    answer.says("where weft-injector only advises", "error", "advise.weft.dev has no caBundle");
    answer.says("knows weft-control's certificate", "error", "no caBundle");
    answer.says("the CA is kept", "error", "no Secret weft-ca");
    answer.says("the root of trust", "error", "no root in ConfigMap");
    answer.says("every namespace has the root", "error", "default has no ConfigMap");
    answer.says("pods have sidecars", "warning", "none has one");

    // By hand what the programs would do, as far as it can be: then these are well, and others are not.
    let key = rcgen::KeyPair::generate().unwrap();
    let root = |days: i64| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_after = time_from_now(days).into();
        params.self_signed(&key).unwrap().pem()
    };
    let file = cluster.kubeconfig().with_file_name("root.pem");
    let write_root = |days: i64| {
        std::fs::write(&file, root(days)).unwrap();
        let made = kubectl(
            cluster,
            &format!(
                "-n weft-system create configmap weft-root --from-file={} --dry-run=client -o yaml",
                file.display()
            ),
        );
        cluster.apply(&made).unwrap();
    };
    kubectl(cluster, "-n weft-system create secret generic weft-ca --from-literal=ca.json={}");
    write_root(10);
    kubectl(cluster, &format!("-n default create configmap weft-root --from-file={}", file.display()));
    kubectl(cluster, "create namespace shop");
    kubectl(cluster, "label namespace shop istio-injection=enabled");
    cluster
        .apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: shop}\nspec: {containers: [{name: app, image: \
             'busybox:1', command: [sleep, infinity]}], terminationGracePeriodSeconds: 0}\n---\napiVersion: v1\nkind: \
             Pod\nmetadata: {name: old, namespace: shop, annotations: {weft.dev/sidecar: 'true'}}\nspec: {containers: \
             [{name: istio-proxy, image: 'weft/proxy:0.0.1'}], terminationGracePeriodSeconds: 0}\n",
        )
        .unwrap();
    let bundle = |kind: &str, name: &str| {
        let patch =
            format!(r#"[{{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"{}"}}]"#, base64(&root(90)));
        cluster.kubectl(&["patch", kind, name, "--type=json", "-p", &patch]).unwrap();
    };
    bundle("validatingwebhookconfiguration", "weft-control");
    bundle("mutatingwebhookconfiguration", "weft-injector");
    bundle("validatingwebhookconfiguration", "weft-injector");
    kubectl(cluster, "delete crd telemetries.telemetry.istio.io");
    kubectl(cluster, "-n weft-system set image deployment/weft-injector weft-injector=weft/injector:0.0.9");
    let answer = Answer::of(cluster, &["--proxy"]);
    answer.says("every kind is defined", "error", "telemetries");
    answer.says("everything is of version", "warning", "weft/injector:0.0.9");
    answer.says("knows weft-injector's certificate", "ok", "");
    answer.says("where weft-injector only advises", "ok", "");
    answer.says("knows weft-control's certificate", "ok", "");
    answer.says("the CA is kept", "ok", "");
    answer.says("the root of trust", "warning", "it ends in");
    answer.says("every namespace has the root", "error", "shop has no ConfigMap");
    answer.says("1 of", "ok", "");
    answer.says("every pod that should have", "error", "shop/bare: istio-injection");
    answer.says("every sidecar is weft/proxy", "warning", "shop/old has weft/proxy:0.0.1");
    answer.says("every sidecar is ready", "error", "shop/old");
    write_root(300);
    Answer::of(cluster, &[]).says("the root of trust", "ok", "");
    write_root(-3);
    Answer::of(cluster, &[]).says("the root of trust", "error", "has ended");
    let page = meshctl(cluster, &["check", "--proxy"]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("√ the mesh is installed") && page.ends_with("Status check results are ×\n"), "{page}");
}

fn upgraded(cluster: &Cluster) {
    // What was changed by hand is seen, and what others filled in is left alone.
    let told = out(&meshctl(cluster, &["upgrade", "--dry-run"]));
    assert!(
        told.contains("-        image: weft/injector:0.0.9")
            && told.contains("Telemetry") | told.contains("telemetries"),
        "{told}"
    );
    assert!(!told.contains("caBundle"), "{told}");
    out(&meshctl(cluster, &["upgrade", "-y", "--no-wait"]));
    assert!(out(&meshctl(cluster, &["upgrade", "--dry-run"])).contains("Nothing changes."));
    let told = out(&meshctl(cluster, &["upgrade", "--dry-run", "--set", "control.replicas=2"]));
    assert!(told.contains("-  replicas: 1\n+  replicas: 2"), "{told}");
    // What other values do not want goes.
    let told = out(&meshctl(cluster, &["upgrade", "--profile", "minimal", "-y", "--no-wait"]));
    assert!(told.contains("ValidatingWebhookConfiguration weft-control is gone"), "{told}");
    Answer::of(cluster, &[]).says("knows weft-control's certificate", "warning", "nobody proves");
    kubectl(cluster, "delete mutatingwebhookconfiguration weft-injector");
    let answer = Answer::of(cluster, &[]);
    answer.says("knows weft-injector's certificate", "error", "no pod gets a sidecar");
    out(&meshctl(cluster, &["upgrade", "--profile", "ha", "-y", "--no-wait"]));
    kubectl(cluster, "-n weft-system get pdb weft-control weft-injector");
}

fn removed(cluster: &Cluster) {
    let tp = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a, namespace: default}\nspec: \
              {targetRefs: [{kind: Service, name: a}]}\n";
    // The webhooks fail closed now, and nobody answers.
    assert!(cluster.apply(tp).is_err());
    let told = out(&meshctl(cluster, &["uninstall", "-y"]));
    let at = |word: &str| told.find(word).unwrap_or_else(|| panic!("{word}: {told}"));
    assert!(at("WebhookConfiguration weft-injector is removed") < at("Deployment weft-system/weft-control is removed"));
    cluster.apply(tp).unwrap();
    kubectl(cluster, "-n weft-system get secret weft-ca");
    kubectl(cluster, "-n default get configmap weft-root");
    assert_eq!(kubectl(cluster, "-n weft-system get deploy,svc,sa,role -l app.kubernetes.io/part-of=weft -o name"), "");

    let told = out(&meshctl(cluster, &["uninstall", "--purge", "-y"]));
    assert!(told.contains("trafficpolicies.weft.dev with 1 objects"), "{told}");
    let kinds = kubectl(cluster, "api-resources --verbs=list -o name");
    let kinds: Vec<&str> = kinds.lines().filter(|k| !k.starts_with("componentstatuses")).collect();
    let all = kinds.join(",");
    let left = kubectl(cluster, &format!("get {all} -A -l app.kubernetes.io/part-of=weft -o name"));
    assert_eq!(left, "");
    let left = kubectl(cluster, &format!("get {all} -A -o name"));
    let ours: Vec<&str> = left
        .lines()
        .filter(|l| l.contains("weft") && !l.contains("event") && !l.starts_with("node") && !l.contains("/weft-test"))
        .collect();
    assert!(ours.iter().all(|l| l.contains(cluster.place().name())), "{ours:?}");
    // What others brought is theirs.
    kubectl(cluster, "get crd serviceprofiles.linkerd.io");
    assert!(out(&meshctl(cluster, &["uninstall", "--purge", "-y"])).contains("nothing of the mesh"));
}

/// Days from now, or ago.
fn time_from_now(days: i64) -> SystemTime {
    let day = Duration::from_secs(24 * 3600);
    let length = day * u32::try_from(days.unsigned_abs()).unwrap();
    // An hour more: what is asked a moment later is still within the last day.
    let hour = Duration::from_secs(3600);
    if days < 0 { SystemTime::now() - length } else { SystemTime::now() + length + hour }
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
