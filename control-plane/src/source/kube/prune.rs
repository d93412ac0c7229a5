//! An object as the API server sends it, and what of it is kept: the fields that somebody reads. What changes all the time and says
//! nothing here (other conditions of a pod, heartbeats, managers, a status) is not there to be different.
//!
//! A pod costs about 3 KiB, where the API server sends 6 to 10 KiB of JSON.

use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_dialects::Object;
use weft_dialects::kinds::Kind;
use weft_policy::diag::Pos;
use weft_policy::doc::{Node, Value};

/// What findings say of where an object stands.
pub const PLACE: &str = "cluster";

/// Kinds whose fields are too many; of the others `spec` is kept as it is. A path leads through lists, and what it ends at is whole.
const FIELDS: &[(&str, &[&str])] = &[
    ("Namespace", &[]),
    ("Node", &["spec.podCIDR", "spec.podCIDRs"]),
    ("ServiceCIDR", &["spec.cidrs"]),
    (
        "Service",
        &[
            "spec.type",
            "spec.externalName",
            "spec.clusterIP",
            "spec.clusterIPs",
            "spec.selector",
            "spec.ports.name",
            "spec.ports.port",
            "spec.ports.targetPort",
            "spec.ports.protocol",
            "spec.ports.appProtocol",
            "spec.publishNotReadyAddresses",
        ],
    ),
    (
        "Pod",
        &[
            "metadata.uid",
            "metadata.deletionTimestamp",
            "metadata.ownerReferences.name",
            "metadata.ownerReferences.kind",
            "spec.serviceAccountName",
            "spec.nodeName",
            "spec.initContainers.ports",
            "spec.containers.ports",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.conditions.type",
            "status.conditions.status",
        ],
    ),
    (
        "EndpointSlice",
        &[
            "ports.name",
            "ports.port",
            "ports.protocol",
            "endpoints.addresses",
            "endpoints.conditions",
            "endpoints.zone",
            "endpoints.targetRef.kind",
            "endpoints.targetRef.namespace",
            "endpoints.targetRef.name",
        ],
    ),
    ("Deployment", WORKLOAD),
    ("StatefulSet", WORKLOAD),
    ("DaemonSet", WORKLOAD),
];
const WORKLOAD: &[&str] = &[
    "spec.template.metadata.labels",
    "spec.template.spec.containers.image",
    "spec.template.spec.containers.args",
    "spec.template.spec.containers.command",
    "spec.template.spec.containers.ports",
];
/// Their `metadata.generation` is what a status tells of.
const OTHERS: &[&str] = &["metadata.uid", "metadata.generation", "spec"];
/// Of everything. Names, labels and the time it was made are fields of `Object`, and nobody looks for them elsewhere.
const ALWAYS: &[&str] = &["metadata.annotations"];
/// Annotations that somebody reads are of these domains.
const DOMAINS: &[&str] = &["weft.dev/", "istio.io/", "linkerd.io/"];

/// `None`: it has no name, which no API server sends.
pub fn object(kind: &Kind, api_version: &str, mut json: Json) -> Option<Object> {
    let meta = json.get_mut("metadata")?.as_object_mut()?;
    let text = |meta: &serde_json::Map<String, Json>, name: &str| Some(meta.get(name)?.as_str()?.to_string());
    let name = text(meta, "name")?;
    let namespace = text(meta, "namespace").unwrap_or_default();
    let created = text(meta, "creationTimestamp");
    if let Some(Json::Object(annotations)) = meta.get_mut("annotations") {
        annotations.retain(|name, _| DOMAINS.iter().any(|domain| name.contains(domain)));
    }
    let texts = |name: &str| -> BTreeMap<String, String> {
        let items = meta.get(name).and_then(Json::as_object).into_iter().flatten();
        items.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect()
    };
    let (labels, annotations) = (texts("labels"), texts("annotations"));
    if let Some(Json::Array(conditions)) = json.pointer_mut("/status/conditions") {
        conditions.retain(|c| c["type"] == "Ready");
    }
    let fields = FIELDS.iter().find(|(k, _)| *k == kind.kind).map_or(OTHERS, |(_, fields)| *fields);
    let kept: Vec<&str> = ALWAYS.iter().chain(fields).copied().collect();
    Some(Object {
        file: Arc::from(PLACE),
        api_version: api_version.into(),
        kind: kind.kind.into(),
        namespace,
        name,
        labels,
        annotations,
        created,
        node: some(json, &kept),
    })
}

/// What the paths lead to.
fn some(json: Json, kept: &[&str]) -> Node {
    let value = match json {
        Json::Object(items) => {
            let mut out = Vec::new();
            for (name, value) in items {
                if kept.contains(&name.as_str()) {
                    out.push((name, Pos::default(), whole(value)));
                    continue;
                }
                let below: Vec<&str> =
                    kept.iter().filter_map(|path| path.strip_prefix(name.as_str())?.strip_prefix('.')).collect();
                let node = if below.is_empty() { continue } else { some(value, &below) };
                if node.value != Value::Map(Vec::new()) {
                    out.push((name, Pos::default(), node));
                }
            }
            out.shrink_to_fit();
            Value::Map(out)
        }
        Json::Array(items) => Value::List(items.into_iter().map(|item| some(item, kept)).collect()),
        other => return whole(other),
    };
    Node { at: Pos::default(), value }
}

fn whole(json: Json) -> Node {
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(b),
        Json::Number(n) => match n.as_i64() {
            Some(n) => Value::Int(n),
            None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Text(text),
        Json::Array(items) => Value::List(items.into_iter().map(whole).collect()),
        Json::Object(items) => Value::Map(items.into_iter().map(|(k, v)| (k, Pos::default(), whole(v))).collect()),
    };
    Node { at: Pos::default(), value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_dialects::kinds;
    use weft_policy::yaml;

    fn kind(name: &str) -> &'static Kind {
        kinds::watched().into_iter().find(|k| k.kind == name).unwrap()
    }

    fn pod(name: &str) -> Json {
        json!({
            "metadata": {
                "name": name, "namespace": "demo", "uid": "4a1c6f0e-1111-2222-3333-444455556666", "resourceVersion": "812", "generation": 1,
                "creationTimestamp": "2026-11-22T03:00:00Z",
                "labels": {"app": "web", "version": "v1", "pod-template-hash": "5d9c7b8f4d"},
                "annotations": {"weft.dev/sidecar": "true", "kubectl.kubernetes.io/restartedAt": "2026-11-22T03:00:00Z"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d9c7b8f4d", "uid": "x", "controller": true}],
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {
                "serviceAccountName": "web", "nodeName": "node-1", "volumes": [{"name": "token"}],
                "containers": [
                    {"name": "web", "image": "web:1", "env": [{"name": "A", "value": "b"}], "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]},
                    {"name": "istio-proxy", "image": "weft/proxy:0.1.0", "resources": {}},
                ],
            },
            "status": {
                "phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}], "hostIP": "10.0.0.1",
                "conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-22T03:00:00Z"},
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T03:00:02Z"},
                ],
                "containerStatuses": [{"name": "web", "restartCount": 0}],
            },
        })
    }

    #[test]
    fn a_pod_is_what_is_read_of_it() {
        let made = object(kind("Pod"), "v1", pod("web-1")).unwrap();
        assert_eq!((made.reference().to_string().as_str(), made.labels.len()), ("pod/web-1.demo", 3));
        let expected = json!({
            "metadata": {
                "uid": "4a1c6f0e-1111-2222-3333-444455556666",
                "annotations": {"weft.dev/sidecar": "true"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d9c7b8f4d"}],
            },
            "spec": {
                "serviceAccountName": "web", "nodeName": "node-1",
                "containers": [
                    {"ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]},
                    {},
                ],
            },
            "status": {
                "phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        assert_eq!(yaml::json(&made.node), expected);
        // What is no news is no difference.
        let mut later = pod("web-1");
        later["metadata"]["resourceVersion"] = json!("999");
        later["status"]["containerStatuses"][0]["restartCount"] = json!(3);
        later["status"]["conditions"][0]["lastTransitionTime"] = json!("2027-01-01T00:00:00Z");
        assert_eq!(object(kind("Pod"), "v1", later), Some(made));
    }

    #[test]
    fn routes_keep_what_they_say_and_no_status() {
        let route = json!({
            "metadata": {"name": "web", "namespace": "demo", "uid": "u", "generation": 3, "resourceVersion": "9"},
            "spec": {"parentRefs": [{"name": "web"}], "rules": [{"timeouts": {"request": "1s"}, "weight": 1.5}]},
            "status": {"parents": []},
        });
        let made = object(kind("HTTPRoute"), "gateway.networking.k8s.io/v1", route.clone()).unwrap();
        let out = yaml::json(&made.node);
        assert_eq!((&out["spec"], &out["metadata"]["generation"]), (&route["spec"], &json!(3)));
        assert_eq!((out.get("status"), out["metadata"].get("resourceVersion")), (None, None));
        assert_eq!(object(kind("HTTPRoute"), "v1", json!({"metadata": {}})), None);
        assert_eq!(object(kind("HTTPRoute"), "v1", json!([])), None);
    }

    /// About what the head of this file says: the allocations, and 16 bytes for each.
    #[test]
    fn a_pod_in_memory() {
        fn text(text: &String) -> usize {
            text.capacity() + 16
        }
        fn below(node: &Node) -> usize {
            match &node.value {
                Value::Text(t) => text(t),
                Value::List(items) => {
                    16 + items.capacity() * size_of::<Node>() + items.iter().map(below).sum::<usize>()
                }
                Value::Map(items) => {
                    let each = items.iter().map(|(k, _, v)| text(k) + below(v));
                    16 + items.capacity() * size_of::<(String, Pos, Node)>() + each.sum::<usize>()
                }
                _ => 0,
            }
        }
        // A tree's leaf has room for eleven.
        let tree = |map: &BTreeMap<String, String>| {
            let leaves = if map.is_empty() { 0 } else { map.len().div_ceil(11) };
            leaves * (11 * 2 * size_of::<String>() + 32) + map.iter().map(|(k, v)| text(k) + text(v)).sum::<usize>()
        };
        let pod = object(kind("Pod"), "v1", pod("web-5d9c7b8f4d-x7x2z")).unwrap();
        let bytes = size_of::<Object>() + tree(&pod.labels) + tree(&pod.annotations) + below(&pod.node);
        println!("{bytes} bytes per pod");
        assert!(bytes < 5 << 10, "{bytes}");
    }
}
