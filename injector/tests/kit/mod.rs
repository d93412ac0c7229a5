//! What the tests share: YAML to JSON, an applier of JSON patches, and words about verdicts.

#![allow(dead_code, clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use serde_json::Value;
use std::collections::BTreeMap;
use weft_injector::{Injected, Namespace, Outcome, Request, Settings, Verdict, inject};
use weft_policy::diag::Diags;
use weft_policy::yaml;

pub fn documents(text: &str) -> Vec<Value> {
    let mut diags = Diags::default();
    let nodes = yaml::documents(text, &mut diags);
    nodes.unwrap_or_else(|| panic!("{:?}", diags.0)).iter().map(yaml::json).collect()
}

pub fn yaml(text: &str) -> Value {
    documents(text).pop().expect("a document")
}

pub fn namespace(name: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Namespace {
    let map =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>();
    Namespace { name: name.into(), labels: map(labels), annotations: map(annotations) }
}

/// One that Istio's users have.
pub fn shop() -> Namespace {
    namespace("shop", &[("istio-injection", "enabled")], &[])
}

pub fn pod(annotations: &[(&str, &str)]) -> Value {
    let mut pod = yaml(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec:\n  containers:\n  - name: app\n    \
         image: web:1\n    ports: [{name: http, containerPort: 8080}]\n    livenessProbe: {httpGet: {path: /live, port: \
         http}}\n    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 2}\n",
    );
    for (key, value) in annotations {
        pod["metadata"]["annotations"][key] = Value::from(*value);
    }
    pod
}

pub fn verdict_with(settings: &Settings, object: &Value, namespace: &Namespace) -> Verdict {
    inject(settings, &Request { object, namespace, asked: None }).expect("a workload")
}

pub fn verdict(object: &Value, namespace: &Namespace) -> Verdict {
    verdict_with(&Settings::default(), object, namespace)
}

pub fn injected(verdict: Verdict) -> Injected {
    match verdict.outcome {
        Outcome::Injected(injected) => *injected,
        other => panic!("{other:?}"),
    }
}

/// The sidecar of a pod or a pod template.
pub fn sidecar(pod: &Value) -> &Value {
    container(pod, &["istio-proxy", "linkerd-proxy", "weft-proxy"])
}

pub fn container<'v>(pod: &'v Value, names: &[&str]) -> &'v Value {
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    let mut all = lists.flatten();
    all.find(|c| names.contains(&c["name"].as_str().unwrap_or_default())).expect("the container")
}

/// What follows a flag in a container's arguments.
pub fn flag(container: &Value, name: &str) -> Option<String> {
    let args: Vec<&str> = container["args"].as_array().expect("args").iter().filter_map(Value::as_str).collect();
    let at = args.iter().position(|a| *a == format!("--{name}"))?;
    args.get(at + 1).map(|v| v.to_string())
}

pub fn variable(container: &Value, name: &str) -> Option<String> {
    let env = container["env"].as_array().expect("env");
    env.iter().find(|v| v["name"] == name)?["value"].as_str().map(String::from)
}

/// RFC 6902, as far as there is any: add, remove, replace.
pub fn apply(patch: &[Value], document: &Value) -> Value {
    let mut out = document.clone();
    for op in patch {
        let path = op["path"].as_str().expect("a path");
        let value = op.get("value").cloned();
        if path.is_empty() {
            out = value.expect("a value");
            continue;
        }
        let (parent, last) = path.rsplit_once('/').expect("a pointer");
        let key = last.replace("~1", "/").replace("~0", "~");
        match (op["op"].as_str().expect("an op"), out.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"))) {
            ("add", Value::Array(list)) => list.insert(key.parse().expect("an index"), value.expect("a value")),
            ("replace", Value::Array(list)) => list[key.parse::<usize>().expect("an index")] = value.expect("a value"),
            ("remove", Value::Array(list)) => drop(list.remove(key.parse().expect("an index"))),
            ("add", Value::Object(map)) => drop(map.insert(key, value.expect("a value"))),
            ("replace", Value::Object(map)) => *map.get_mut(&key).expect("there") = value.expect("a value"),
            ("remove", Value::Object(map)) => drop(map.remove(&key).expect("there")),
            (op, at) => panic!("{op} on {at}"),
        }
    }
    out
}
