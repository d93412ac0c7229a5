//! Who gets a sidecar, in every world's words.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod kit;

use kit::{namespace, pod, verdict, verdict_with, yaml};
use serde_json::{Value, json};
use weft_injector::{Dialect, Outcome, Request, Settings, inject};

type Pairs = &'static [(&'static str, &'static str)];

/// `Ok` with the dialect that asked, or `Err` with a piece of the reason.
type Row = (Pairs, Pairs, Pairs, Pairs, Result<Dialect, &'static str>);

const ISTIO: Result<Dialect, &str> = Ok(Dialect::Istio);
const LINKERD: Result<Dialect, &str> = Ok(Dialect::Linkerd);
const WEFT: Result<Dialect, &str> = Ok(Dialect::Weft);
const ON: Pairs = &[("istio-injection", "enabled")];
const OFF: Pairs = &[("istio-injection", "disabled")];
const L5D: Pairs = &[("linkerd.io/inject", "enabled")];

/// The namespace's labels and annotations, the pod's labels and annotations.
const ROWS: &[Row] = &[
    (&[], &[], &[], &[], Err("nothing asks")),
    (ON, &[], &[], &[], ISTIO),
    (OFF, &[], &[], &[], Err("istio-injection=disabled on the namespace")),
    (ON, &[], &[("sidecar.istio.io/inject", "false")], &[], Err("sidecar.istio.io/inject=false on the pod")),
    (ON, &[], &[], &[("sidecar.istio.io/inject", "false")], Err("sidecar.istio.io/inject=false")),
    // The label outweighs the annotation of its name.
    (ON, &[], &[("sidecar.istio.io/inject", "true")], &[("sidecar.istio.io/inject", "false")], ISTIO),
    (&[], &[], &[("sidecar.istio.io/inject", "true")], &[], ISTIO),
    // As Istio documents it: either one's no is a no.
    (OFF, &[], &[("sidecar.istio.io/inject", "true")], &[], Err("outweighs")),
    // A word for namespaces only, and one for pods only.
    (&[], &[], ON, &[], Err("nothing asks")),
    (&[("sidecar.istio.io/inject", "true")], &[], &[], &[], Err("nothing asks")),
    (&[("istio.io/rev", "default")], &[], &[], &[], ISTIO),
    (&[("istio.io/rev", "canary")], &[], &[], &[], Err("another control plane")),
    (&[], &[], &[("istio.io/rev", "default")], &[], ISTIO),
    (ON, &[], &[("istio.io/rev", "canary")], &[], Err("another control plane")),
    // The namespace's revision says nothing beside its switch.
    (&[("istio-injection", "enabled"), ("istio.io/rev", "canary")], &[], &[], &[], ISTIO),
    (&[], L5D, &[], &[], LINKERD),
    (&[], L5D, &[], &[("linkerd.io/inject", "disabled")], Err("linkerd.io/inject=disabled on the pod")),
    (&[], &[("linkerd.io/inject", "disabled")], &[], &[("linkerd.io/inject", "enabled")], LINKERD),
    (&[], &[], &[], &[("linkerd.io/inject", "ingress")], LINKERD),
    (&[], &[("linkerd.io/inject", "disabled")], &[], &[], Err("linkerd.io/inject=disabled on the namespace")),
    // An annotation, and no label.
    (L5D, &[], &[], &[], Err("nothing asks")),
    (&[], &[], &[], &[("weft.dev/inject", "true")], WEFT),
    (&[], &[], &[("weft.dev/inject", "enabled")], &[], WEFT),
    (&[("weft.dev/inject", "enabled")], &[], &[], &[], WEFT),
    (&[], &[("weft.dev/inject", "true")], &[], &[], WEFT),
    (ON, &[], &[], &[("weft.dev/inject", "false")], Err("weft.dev/inject=false")),
    (
        &[("istio-injection", "enabled"), ("weft.dev/inject", "disabled")],
        &[],
        &[],
        &[],
        Err("weft.dev/inject=disabled"),
    ),
    (OFF, &[], &[], &[("weft.dev/inject", "true")], WEFT),
    // Two worlds in one place.
    (ON, L5D, &[], &[], ISTIO),
    (OFF, L5D, &[], &[], LINKERD),
    (ON, &[], &[], &[("linkerd.io/inject", "disabled")], Err("linkerd.io/inject=disabled")),
    (
        ON,
        &[],
        &[("sidecar.istio.io/inject", "false")],
        &[("linkerd.io/inject", "enabled")],
        Err("sidecar.istio.io/inject=false"),
    ),
    (OFF, &[], &[("sidecar.istio.io/inject", "true")], &[("linkerd.io/inject", "enabled")], LINKERD),
    // What is not understood says nothing.
    (ON, &[], &[("sidecar.istio.io/inject", "maybe")], &[], ISTIO),
    (&[("istio-injection", "yes; reboot")], &[], &[], &[], Err("nothing asks")),
];

fn labelled(labels: Pairs, annotations: Pairs) -> Value {
    let mut pod = pod(annotations);
    for (key, value) in labels {
        pod["metadata"]["labels"][key] = Value::from(*value);
    }
    pod
}

fn outcome(outcome: &Outcome) -> Result<Dialect, String> {
    match outcome {
        Outcome::Injected(injected) => Ok(injected.dialect),
        Outcome::Skipped(why) => Err(why.clone()),
        Outcome::Refused(why) => Err(format!("refused: {why}")),
    }
}

#[test]
fn switches() {
    for (i, (labels, annotations, pod_labels, pod_annotations, expected)) in ROWS.iter().enumerate() {
        let object = labelled(pod_labels, pod_annotations);
        let found = verdict(&object, &namespace("shop", labels, annotations));
        match (outcome(&found.outcome), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, *expected, "row {i}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "row {i}: {found}"),
            (found, expected) => panic!("row {i}: {found:?} and not {expected:?}"),
        }
        // Wherever Weft runs itself, and Kubernetes does, no switch counts.
        for never in ["kube-system", "kube-public", "kube-node-lease", "weft-system"] {
            let found = verdict(&object, &namespace(never, labels, annotations));
            assert!(matches!(found.outcome, Outcome::Skipped(why) if why.contains(never)), "row {i}");
        }
    }
    assert_eq!(ROWS.len(), 35);
}

#[test]
fn words_that_are_not_understood_are_told() {
    let found = verdict(&labelled(&[("sidecar.istio.io/inject", "maybe")], &[]), &kit::shop());
    assert_eq!(found.warnings, ["sidecar.istio.io/inject on the pod: \"maybe\" is not understood (true or false)"]);
    let found = verdict(&pod(&[("linkerd.io/inject", "ingress")]), &namespace("shop", &[], &[]));
    assert!(found.warnings[0].starts_with("linkerd.io/inject=ingress on the pod: taken as enabled"), "{found:?}");
}

#[test]
fn settings_and_whoever_runs_it_ask_last() {
    let (plain, off) = (namespace("shop", &[], &[]), namespace("shop", OFF, &[]));
    let settings = Settings { by_default: true, revisions: vec!["1-20".into()], ..Settings::default() };
    let by_default = |ns| outcome(&verdict_with(&settings, &pod(&[]), ns).outcome);
    assert_eq!(by_default(&plain), Ok(Dialect::Weft));
    assert!(by_default(&off).is_err());
    assert_eq!(by_default(&namespace("shop", &[("istio.io/rev", "1-20")], &[])), Ok(Dialect::Istio));
    let asked = |ns| {
        let object = pod(&[]);
        let request = Request { object: &object, namespace: ns, asked: Some(Dialect::Linkerd) };
        outcome(&inject(&Settings::default(), &request).expect("a workload").outcome)
    };
    assert_eq!(asked(&plain), Ok(Dialect::Linkerd));
    assert!(asked(&off).is_err());
}

#[test]
fn pods_that_cannot_have_one() {
    let rows = [
        ("/spec/hostNetwork", json!(true), "skipped: it uses the host's network"),
        ("/spec/os", json!({"name": "windows"}), "skipped: it is a Windows pod"),
        ("/metadata/annotations", json!({"kubernetes.io/config.mirror": "x"}), "skipped: it is a static pod"),
        ("/spec/initContainers", json!([{"name": "istio-proxy"}]), "skipped: it has a sidecar already: istio-proxy"),
        ("/spec/initContainers", json!([{"name": "weft-init"}]), "skipped: it has a container weft-init of its own"),
        ("/spec/volumes", json!([{"name": "weft-token"}]), "skipped: it has a volume weft-token of its own"),
        ("/spec/containers", json!([]), "skipped: it has no containers"),
        (
            "/spec/containers",
            json!([{"name": "a"}, {"name": "linkerd-proxy"}]),
            "skipped: it has a sidecar already: linkerd-proxy",
        ),
        ("/spec/containers", json!("x"), "refused: containers is no list of maps"),
        ("/spec/containers", json!(["x"]), "refused: containers is no list of maps"),
        ("/spec/initContainers", json!({}), "refused: initContainers is no list of maps"),
        ("/metadata/labels", json!([]), "refused: labels is no map"),
        ("/metadata", json!("x"), "refused: metadata is no map"),
        ("/spec", json!([]), "refused: the pod's spec is no map"),
        ("/spec/securityContext", json!({"runAsUser": 1337}), "refused: container app has runAsUser 1337"),
        ("/spec/securityContext", json!({"runAsGroup": 1337}), "refused: container app has runAsGroup 1337"),
        (
            "/spec/initContainers",
            json!([{"name": "setup", "securityContext": {"runAsUser": 1337}}]),
            "refused: container setup has runAsUser 1337",
        ),
    ];
    for (at, value, expected) in rows {
        let mut object = pod(&[]);
        let (parent, key) = at.rsplit_once('/').expect("a pointer");
        object.pointer_mut(parent).expect("there")[key] = value;
        let found = match verdict(&object, &kit::shop()).outcome {
            Outcome::Injected(_) => "injected".into(),
            Outcome::Skipped(why) => format!("skipped: {why}"),
            Outcome::Refused(why) => format!("refused: {why}"),
        };
        assert!(found.starts_with(expected), "{at}: {found}");
    }
    // A container's own user outweighs the pod's.
    let mut object = pod(&[]);
    object["spec"]["securityContext"] = json!({"runAsUser": 1337, "runAsGroup": 1337});
    object["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1, "runAsGroup": 1});
    assert!(matches!(verdict(&object, &kit::shop()).outcome, Outcome::Injected(_)));
}

#[test]
fn what_has_no_pods_is_none_of_ours() {
    for text in [
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n",
        "apiVersion: example.com/v1\nkind: Deployment\nspec: {template: {spec: {containers: []}}}\n",
        "kind: Pod\n",
        "apiVersion: 1\nkind: [Pod]\n",
    ] {
        let object = yaml(text);
        let request = Request { object: &object, namespace: &kit::shop(), asked: Some(Dialect::Weft) };
        assert_eq!(inject(&Settings::default(), &request), None, "{text}");
    }
    let object = yaml("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 1}\n");
    assert_eq!(verdict(&object, &kit::shop()).outcome, Outcome::Skipped("it has no pod template".into()));
}
