//! Where the pod is in an object that has one.

use crate::text;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Kinds that have pods, with their group and the way to the template.
const KINDS: [(&str, &str, &str); 8] = [
    ("", "Pod", ""),
    ("", "ReplicationController", "/spec/template"),
    ("apps", "Deployment", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("apps", "ReplicaSet", "/spec/template"),
    ("batch", "Job", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
];

/// The way to the pod in an object; None if it has none.
pub fn pointer(object: &Value) -> Option<&'static str> {
    let (version, kind) = (object.get("apiVersion")?.as_str()?, object.get("kind")?.as_str()?);
    let group = version.split_once('/').map_or("", |(group, _)| group);
    KINDS.iter().find(|(g, k, _)| *g == group && *k == kind).map(|(.., pointer)| *pointer)
}

pub fn is_workload(object: &Value) -> bool {
    pointer(object).is_some()
}

/// A pod, or what pods are made after.
#[derive(Clone, Copy, Debug)]
pub struct Template<'a> {
    pub pod: &'a Value,
    pub spec: &'a Map<String, Value>,
}

/// `shape::check` has seen it.
pub fn template(object: &Value) -> Option<Template<'_>> {
    let pod = object.pointer(pointer(object)?)?;
    Some(Template { pod, spec: pod.get("spec")?.as_object()? })
}

impl<'a> Template<'a> {
    pub fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        self.meta("labels").and_then(|m| text(m.get(name)?))
    }

    pub fn annotation(&self, name: &str) -> Option<Cow<'a, str>> {
        self.meta("annotations").and_then(|m| text(m.get(name)?))
    }

    pub fn meta(&self, name: &str) -> Option<&'a Map<String, Value>> {
        self.pod.get("metadata")?.get(name)?.as_object()
    }

    pub fn list(&self, name: &str) -> &'a [Value] {
        self.spec.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// All that run in it, in the order in which they start.
    pub fn containers(&self) -> impl Iterator<Item = &'a Value> {
        self.list("initContainers").iter().chain(self.list("containers"))
    }
}

pub fn name(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// What made a pod, or the object that will: `("deployment", "web")`.
pub fn owner(object: &Value) -> Option<(String, String)> {
    let kind = object.get("kind")?.as_str()?;
    let meta = object.get("metadata")?;
    if kind != "Pod" {
        return Some((kind.to_ascii_lowercase(), meta.get("name")?.as_str()?.into()));
    }
    let first = meta.get("ownerReferences").and_then(|o| o.get(0));
    let Some(first) = first else { return Some(("pod".into(), meta.get("name")?.as_str()?.into())) };
    let (kind, name) = (first.get("kind")?.as_str()?, first.get("name")?.as_str()?);
    // A ReplicaSet's name is its Deployment's and the hash of the template.
    let hash = meta.get("labels").and_then(|l| l.get("pod-template-hash")?.as_str());
    let deployment = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
    match deployment.filter(|_| kind == "ReplicaSet") {
        Some(deployment) => Some(("deployment".into(), deployment.into())),
        None => Some((kind.to_ascii_lowercase(), name.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn owners() {
        let owned = |labels: Value| {
            json!({"kind": "Pod", "metadata": {"name": "web-5f-x", "labels": labels,
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5f"}]}})
        };
        let of = |v: Value| owner(&v).unwrap_or_default();
        assert_eq!(of(owned(json!({"pod-template-hash": "5f"}))), ("deployment".into(), "web".into()));
        assert_eq!(of(owned(json!({}))), ("replicaset".into(), "web-5f".into()));
        assert_eq!(of(json!({"kind": "Pod", "metadata": {"name": "web"}})), ("pod".into(), "web".into()));
        assert_eq!(of(json!({"kind": "Job", "metadata": {"name": "once"}})), ("job".into(), "once".into()));
    }
}
