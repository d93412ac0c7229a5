//! Pods with their sidecars, whole: goldens, patches, and the way back.
//!
//! `WEFT_BLESS=1 cargo test -p weft-injector` writes the goldens anew.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod kit;

use kit::{apply, container, documents, injected, namespace, pod, shop, sidecar, variable, verdict, yaml};
use serde_json::{Value, json};
use std::path::Path;
use weft_injector::{Mode, Namespace, Outcome, Settings, uninject};

fn linkerd() -> Namespace {
    namespace("shop", &[], &[("linkerd.io/inject", "enabled")])
}

fn weft() -> Namespace {
    namespace("shop", &[("weft.dev/inject", "enabled")], &[])
}

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  unknownField: {kept: [1, 2.5, null, true]}
  template:
    metadata:
      labels: {app: web, version: v2}
      annotations: {prometheus.io/scrape: 'true', prometheus.io/port: '9095', ANNOTATION: 'x'}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 20
      initContainers:
      - {name: migrate, image: web:1, command: [migrate]}
      containers:
      - name: app
        image: web:1
        ports: [{name: http, containerPort: 8080}, {name: grpc, containerPort: 7070}]
        livenessProbe: {httpGet: {path: '/live?a=$(B)', port: http, scheme: HTTPS}, timeoutSeconds: 2}
        readinessProbe: {grpc: {port: 7070, service: web}, periodSeconds: 2}
        startupProbe: {exec: {command: ['true']}}
      - name: helper
        image: helper:1
        livenessProbe: {tcpSocket: {port: 9000}}
      volumes: [{name: data, emptyDir: {}}]
";

/// Hooks that a sidecar can ask, and some that nobody can.
const HOOKS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  containers:
  - name: app
    image: web:1
    ports: [{name: http, containerPort: 8080}]
    lifecycle:
      postStart: {httpGet: {path: /warm, port: http}}
      preStop: {httpGet: {path: /drain, port: 8080, scheme: HTTPS, httpHeaders: [{name: x-why, value: end}]}}
  - name: helper
    image: helper:1
    lifecycle: {preStop: {tcpSocket: {port: 9000}}}
  - name: other
    image: other:1
    lifecycle: {postStart: {exec: {command: ['true']}}, preStop: {sleep: {seconds: 3}}}
";

const BARE: &str = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, image: b, futureField: {x: 1}}]}\n";

fn deployment(annotation: &str) -> Value {
    yaml(&DEPLOYMENT.replace("ANNOTATION: 'x'", annotation))
}

fn goldens() -> Vec<(&'static str, Value, Namespace)> {
    vec![
        ("istio-native", deployment("sidecar.istio.io/logLevel: debug"), shop()),
        ("istio-hooks", yaml(HOOKS), shop()),
        ("istio-classic", deployment("sidecar.istio.io/nativeSidecar: 'false'"), shop()),
        ("linkerd-native", deployment("config.linkerd.io/skip-outbound-ports: '25,3306'"), linkerd()),
        ("weft-bare-pod", yaml(BARE), weft()),
        (
            "weft-job",
            yaml(
                "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: nightly}\nspec: {schedule: '0 1 * * *', jobTemplate: \
                 {spec: {template: {spec: {restartPolicy: Never, containers: [{name: job, image: job:1}]}}}}}\n",
            ),
            weft(),
        ),
    ]
}

#[test]
fn goldens_are_what_is_made() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bless = std::env::var_os("WEFT_BLESS").is_some();
    for (name, object, namespace) in goldens() {
        let found = verdict(&object, &namespace);
        let whole = json!({"warnings": found.warnings, "object": injected(found).object});
        // What is shipped must not change the goldens.
        let text = format!("{whole:#}\n").replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let file = folder.join(format!("{name}.json"));
        if bless {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&file, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(golden == text, "{} is not what is made now; WEFT_BLESS=1 writes it anew:\n{text}", file.display());
    }
}

/// Pods of all shapes, with the namespace that injects them.
fn all() -> Vec<(String, Value, Namespace)> {
    let mut all: Vec<(String, Value, Namespace)> = goldens().into_iter().map(|(n, o, ns)| (n.into(), o, ns)).collect();
    let template = yaml(DEPLOYMENT)["spec"]["template"].clone();
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("v1", "ReplicationController"),
        ("batch/v1", "Job"),
        ("batch/v1", "CronJob"),
        ("v1", "Pod"),
    ] {
        for (which, namespace) in [("istio", shop()), ("linkerd", linkerd()), ("weft", weft())] {
            for mode in ["native", "classic"] {
                let mut template = template.clone();
                template["metadata"]["annotations"]["weft.dev/sidecar-mode"] = mode.into();
                let spec = match kind {
                    "CronJob" => json!({"jobTemplate": {"spec": {"template": template}}}),
                    _ => json!({"template": template}),
                };
                let mut object =
                    json!({"apiVersion": version, "kind": kind, "metadata": {"name": "web"}, "spec": spec});
                if kind == "Pod" {
                    object = template;
                    object["apiVersion"] = version.into();
                    object["kind"] = kind.into();
                }
                all.push((format!("{kind} {which} {mode}"), object, namespace.clone()));
            }
        }
    }
    let odd = [
        (
            "null lists",
            json!({"containers": [{"name": "a"}], "initContainers": null, "volumes": null, "imagePullSecrets": null}),
        ),
        ("empty lists", json!({"containers": [{"name": "a"}], "initContainers": [], "volumes": []})),
        (
            "two of a name",
            json!({"containers": [{"name": "a"}, {"name": "a", "livenessProbe": {"grpc": {"port": 1}}}]}),
        ),
        ("no names", json!({"containers": [{"image": "x"}], "initContainers": [{}]})),
    ];
    for (name, spec) in odd {
        for (meta, metadata) in
            [("none", Value::Null), ("empty", json!({})), ("nulls", json!({"annotations": null, "labels": null}))]
        {
            let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
            all.push((format!("{name}, metadata {meta}"), object, shop()));
        }
    }
    let kept = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a"}]}, "metadata": {
        "labels": {"security.istio.io/tlsMode": "disabled", "service.istio.io/canonical-name": "own"},
        "annotations": {"weft.dev/injected": "not ours", "weft.dev/sidecar": "false", "prometheus.io/port": null,
            "a/b~c": "d", "kubectl.kubernetes.io/default-container": "a"},
    }});
    all.push(("words of its own".into(), kept, shop()));
    all
}

#[test]
fn the_patch_makes_the_pod_and_uninject_unmakes_it() {
    let all = all();
    let settings = Settings { pull_secrets: vec!["registry".into()], ..Settings::default() };
    for (name, object, namespace) in &all {
        let injected = injected(kit::verdict_with(&settings, object, namespace));
        assert_eq!(apply(&injected.patch, object), injected.object, "{name}");
        assert!(!injected.patch.is_empty() && injected.patch.iter().all(|op| op["path"] != ""), "{name}");
        // A second time there is nothing to do.
        let again = kit::verdict_with(&settings, &injected.object, namespace);
        assert!(matches!(again.outcome, Outcome::Skipped(why) if why.contains("has a sidecar already")), "{name}");
        assert_eq!(uninject(&injected.object), Ok(Some(object.clone())), "{name}");
        assert_eq!(uninject(object).unwrap_or(None), None, "{name}");
    }
    assert_eq!(all.len(), 6 + 8 * 6 + 12 + 1);
}

#[test]
fn examples_come_back_as_they_were() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut count = 0;
    for folder in std::fs::read_dir(&examples).unwrap().flatten().filter(|f| f.path().is_dir()) {
        for file in std::fs::read_dir(folder.path()).unwrap().flatten().map(|f| f.path()) {
            if file.extension().is_none_or(|e| e != "yaml") {
                continue;
            }
            for object in documents(&std::fs::read_to_string(&file).unwrap()) {
                if !weft_injector::is_workload(&object) {
                    continue;
                }
                let found = verdict(&object, &shop());
                let Outcome::Injected(injected) = found.outcome else { continue };
                assert_eq!(uninject(&injected.object), Ok(Some(object.clone())), "{}", file.display());
                assert_eq!(apply(&injected.patch, &object), injected.object, "{}", file.display());
                count += 1;
            }
        }
    }
    assert!(count >= 15, "{count} workloads");
}

#[test]
fn the_sidecar_passes_the_restricted_level() {
    let mut count = 0;
    for (name, object, namespace) in all() {
        let Outcome::Injected(injected) = verdict(&object, &namespace).outcome else { continue };
        let template =
            ["/spec/template", "/spec/jobTemplate/spec/template"].into_iter().find_map(|p| injected.object.pointer(p));
        let sidecar = sidecar(template.unwrap_or(&injected.object)).clone();
        let security = &sidecar["securityContext"];
        for (field, value) in [
            ("allowPrivilegeEscalation", json!(false)),
            ("runAsNonRoot", json!(true)),
            ("runAsUser", json!(1337)),
            ("readOnlyRootFilesystem", json!(true)),
            ("capabilities", json!({"drop": ["ALL"]})),
            ("seccompProfile", json!({"type": "RuntimeDefault"})),
            ("privileged", json!(false)),
        ] {
            assert_eq!(security[field], value, "{name}: {field}");
        }
        assert!(sidecar.get("ports").is_none_or(|p| p[0].get("hostPort").is_none()));
        count += 1;
    }
    assert!(count > 60);
    let restricted =
        namespace("shop", &[("istio-injection", "enabled"), ("pod-security.kubernetes.io/enforce", "restricted")], &[]);
    let found = verdict(&pod(&[]), &restricted);
    assert!(found.warnings[0].contains("refuses weft-init"), "{:?}", found.warnings);
}

#[test]
fn order_is_what_makes_it_work() {
    let names = |object: &Value, list: &str| -> Vec<String> {
        let list = object["spec"]["template"]["spec"][list].as_array().into_iter().flatten();
        list.map(|c| c["name"].as_str().unwrap().to_string()).collect()
    };
    let native = injected(verdict(&deployment("a: b"), &shop())).object;
    assert_eq!(names(&native, "initContainers"), ["weft-init", "istio-proxy", "migrate"]);
    assert_eq!(names(&native, "containers"), ["app", "helper"]);
    let found = verdict(&deployment("weft.dev/sidecar-mode: classic"), &shop());
    assert!(found.warnings.iter().any(|w| w.contains("goes past the mesh")), "{:?}", found.warnings);
    let classic = injected(found);
    assert_eq!((classic.mode, classic.container.as_str()), (Mode::Classic, "istio-proxy"));
    assert_eq!(names(&classic.object, "initContainers"), ["migrate", "weft-init"]);
    assert_eq!(names(&classic.object, "containers"), ["istio-proxy", "app", "helper"]);
    let lax = "weft.dev/sidecar-mode: classic, weft.dev/hold-application: 'false'";
    assert_eq!(
        names(&injected(verdict(&deployment(lax), &shop())).object, "containers"),
        ["app", "helper", "istio-proxy"]
    );
}

#[test]
fn probes_are_asked_by_the_sidecar() {
    let object = injected(verdict(&deployment("a: b"), &shop())).object["spec"]["template"].clone();
    let app = container(&object, &["app"]);
    assert_eq!(
        app["livenessProbe"],
        json!({"httpGet": {"path": "/app-health/app/livez", "port": 15020, "scheme": "HTTP"}, "timeoutSeconds": 2}),
    );
    assert_eq!(app["startupProbe"], json!({"exec": {"command": ["true"]}}));
    let text = variable(sidecar(&object), "WEFT_APP_PROBES").unwrap();
    // The kubelet makes one dollar of two, and would put a variable in otherwise.
    assert!(text.contains("$$(B)"), "{text}");
    let asked: Value = serde_json::from_str(&text.replace("$$", "$")).unwrap();
    assert_eq!(
        asked,
        json!({
            "/app-health/app/livez":
                {"httpGet": {"path": "/live?a=$(B)", "port": 8080, "scheme": "HTTPS"}, "timeoutSeconds": 2},
            "/app-health/app/readyz": {"grpc": {"port": 7070, "service": "web"}},
            "/app-health/helper/livez": {"tcpSocket": {"port": 9000}},
        }),
    );
    assert_eq!(variable(sidecar(&object), "WEFT_APP_METRICS").unwrap(), r#"{"path":"/metrics","port":9095}"#);
    assert_eq!(object["metadata"]["annotations"]["prometheus.io/port"], "15020");

    let stays = [
        (json!({"httpGet": {"port": "nope"}}), "no port"),
        (json!({"httpGet": {"port": 0}}), "no port"),
        (json!({"httpGet": {"port": 99999}}), "no port"),
        (json!({"httpGet": {"port": 80, "host": "example.com"}}), "names a host"),
        (json!({"tcpSocket": {}}), "names no port"),
        (json!({"grpc": 7}), "no map"),
        (json!({"httpGet": {"port": 80, "path": "x".repeat(70_000)}}), "too many bytes"),
    ];
    for (probe, why) in stays {
        let mut pod = pod(&[]);
        pod["spec"]["containers"][0]["livenessProbe"] = probe.clone();
        let found = verdict(&pod, &shop());
        assert!(found.warnings.len() == 1 && found.warnings[0].contains(why), "{why}: {:?}", found.warnings);
        assert_eq!(container(&injected(found).object, &["app"])["livenessProbe"], probe);
    }
}

/// The kubelet asks at the start once: a sidecar that is not there yet would end the app.
#[test]
fn hooks_at_the_start_wait_for_a_sidecar() {
    let hooks = |annotations: &str| {
        let found =
            verdict(&yaml(&HOOKS.replace("namespace: shop", &format!("annotations: {{{annotations}}}"))), &shop());
        let warnings = found.warnings.join("\n");
        (container(&injected(found).object, &["app"])["lifecycle"].clone(), warnings)
    };
    let ours = |hook: &Value| hook["httpGet"]["port"] == 15020;
    let (both, warnings) = hooks("");
    assert!(ours(&both["postStart"]) && ours(&both["preStop"]) && warnings.is_empty(), "{both} {warnings}");
    let (one, warnings) = hooks("weft.dev/hold-application: 'false'");
    assert!(!ours(&one["postStart"]) && ours(&one["preStop"]), "{one}");
    assert!(warnings.contains("postStart of container \"app\" stays as it is"), "{warnings}");
    let (none, warnings) = hooks("weft.dev/rewrite-probes: 'false'");
    assert!(!ours(&none["postStart"]) && !ours(&none["preStop"]), "{none}");
    assert_eq!(warnings.matches("without mTLS").count(), 2, "{warnings}");
}

#[test]
fn sizes_and_depths_are_bounded() {
    let mut deep = json!(1);
    (0..70).for_each(|_| deep = json!([deep]));
    let mut object = pod(&[]);
    object["spec"]["x"] = deep;
    let refused = |object: &Value| match verdict(object, &shop()).outcome {
        Outcome::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&object), "it is nested more than 64 levels deep");
    assert!(uninject(&object).is_err());
    object["spec"]["x"] = "x".repeat(3 << 20).into();
    assert_eq!(refused(&object), "it has more than 3145728 bytes");
    // As big as an API server takes: done, and soon.
    let mut object = pod(&[]);
    let one = object["spec"]["containers"][0].clone();
    object["spec"]["containers"] = (0..5000)
        .map(|i| {
            let mut container = one.clone();
            container["name"] = format!("c{i}").into();
            container
        })
        .collect();
    let started = std::time::Instant::now();
    let found = verdict(&object, &shop());
    assert!(found.warnings.iter().any(|w| w.contains("too many bytes")), "{:?}", found.warnings);
    let injected = injected(found);
    assert_eq!(apply(&injected.patch, &object), injected.object);
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn a_record_that_is_not_ours_takes_nothing_away() {
    for text in ["", "[]", "{}", r#"{"version": 2}"#, r#"{"version": 1}"#, &"[".repeat(100_000)] {
        let object = pod(&[("weft.dev/injected", text)]);
        assert!(uninject(&object).is_err(), "{text:.20}");
    }
}
