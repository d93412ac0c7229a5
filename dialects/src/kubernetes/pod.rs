//! Pod: who runs where. With the annotation `weft.dev/sidecar: "true"` it has a sidecar, and so an identity.

use crate::builder::Builder;
use crate::istio::peer_authentication;
use crate::kubernetes::node;
use crate::ledger::{Document, Ledger};
use crate::object::{ObjectRef, field};
use crate::reader::{Field, Reader};
use crate::world::{self, PodId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use weft_policy::diag::Severity;
use weft_policy::doc;
use weft_policy::id::SpiffeId;
use weft_policy::meta::Workload;
use weft_policy::telemetry::Tracing;

pub const SIDECAR: &str = "weft.dev/sidecar";
/// Of a pod in a network that redirects nothing, as in a lab without namespaces: `8080=127.0.0.1:18001` says where its app
/// listens in the place of each port. Its sidecar listens at the pod's address itself.
pub const LISTENS: &str = "weft.dev/listens";
/// Where a sidecar's app finds it.
const OUTBOUND: u16 = 15001;

#[derive(Clone, Debug)]
pub struct Pod {
    pub object: ObjectRef,
    /// Outlives nothing: a pod of the same name made anew has another.
    pub id: String,
    pub labels: BTreeMap<String, String>,
    /// Empty while it waits for one.
    pub node: String,
    pub ips: Vec<IpAddr>,
    pub ready: bool,
    /// It is being deleted: serves what it has begun.
    pub terminating: bool,
    /// Container ports by name, and all by number.
    pub named: BTreeMap<String, u16>,
    pub ports: Vec<u16>,
    pub workload: Workload,
    /// Of pods with a sidecar.
    pub identity: Option<SpiffeId>,
    /// Where its apps listen, if nothing is redirected to its sidecar.
    pub listens: Option<Vec<(u16, SocketAddr)>>,
}

impl Pod {
    /// The port that a Service's target means here.
    pub fn target(&self, target: &str) -> Option<u16> {
        target.parse().ok().filter(|p| *p > 0).or_else(|| self.named.get(target).copied())
    }

    pub fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(k, v)| self.labels.get(k) == Some(v))
    }
}

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, spec) = (reader.object, reader.spec());
    let meta = field(&object.node, "metadata");
    let status = field(&object.node, "status");
    let uid = meta.and_then(|m| text(field(m, "uid")?));
    let account = spec.get("serviceAccountName").and_then(|f| f.text()).unwrap_or_else(|| "default".into());
    let node = spec.get("nodeName").and_then(|f| f.text()).unwrap_or_default();
    let (mut named, mut ports) = (BTreeMap::new(), Vec::new());
    let containers = |name: &str| spec.get(name).into_iter().flat_map(|list: Field<'_>| list.items());
    for container in containers("initContainers").chain(containers("containers")) {
        for port in container.list("ports") {
            let number = port.get("containerPort").and_then(|f| f.port());
            let name = port.get("name").and_then(|f| f.text());
            ports.extend(number);
            if name.is_none() {
                port.ignored("only ports with a name are referred to");
            }
            named.extend(name.zip(number));
        }
    }

    spec.rest_ignored("Kubernetes' own");

    let ip = status.and_then(|s| text(field(s, "podIP")?));
    let more = match status.and_then(|s| field(s, "podIPs")).map(|n| &n.value) {
        Some(doc::Value::List(list)) => list.iter().filter_map(|n| text(field(n, "ip")?)).collect(),
        _ => Vec::new(),
    };
    let mut ips: Vec<IpAddr> = ip.into_iter().chain(more).filter_map(|ip| ip.parse().ok()).collect();
    ips.dedup();
    let phase = status.and_then(|s| text(field(s, "phase")?)).unwrap_or_default();
    let over = ["Succeeded", "Failed"].contains(&phase.as_str());
    let workload = workload(reader);
    let name = format!("spiffe://{}/ns/{}/sa/{account}", b.options.trust_domain, object.namespace);
    let identity = match object.annotations.get(SIDECAR).map(String::as_str) {
        Some("true") => match SpiffeId::parse(&name) {
            Ok(id) => Some(id),
            Err(why) => {
                reader.finding(Severity::Error, None, "spec.serviceAccountName", format!("{name}: {why}"), "");
                None
            }
        },
        _ => None,
    };
    let listens = object.annotations.get(LISTENS).map(|text| {
        let words = text.split(',').filter(|word| !word.is_empty());
        let read = |word: &str| {
            let (port, app) = word.split_once('=')?;
            Some((port.trim().parse().ok()?, app.trim().parse().ok()?))
        };
        let apps: Vec<Option<(u16, SocketAddr)>> = words.map(read).collect();
        if apps.contains(&None) {
            let message = format!("{LISTENS}: {text:?} is not PORT=ADDRESS:PORT,..., as in 8080=127.0.0.1:18001");
            reader.finding(Severity::Error, None, "metadata.annotations", message, "");
        }
        apps.into_iter().flatten().collect()
    });
    let pod = Pod {
        object: object.reference(),
        id: uid.unwrap_or_else(|| format!("{}/{}", object.namespace, object.name)),
        labels: object.labels.clone(),
        node,
        ips,
        ready: !over && status.is_some_and(is_ready),
        terminating: !over && meta.is_some_and(|m| field(m, "deletionTimestamp").is_some()),
        named,
        ports,
        workload,
        identity,
        listens,
    };
    b.pods.insert(PodId { namespace: object.namespace.clone(), name: object.name.clone() }, pod);
}

fn is_ready(status: &doc::Node) -> bool {
    let Some(doc::Value::List(conditions)) = field(status, "conditions").map(|n| &n.value) else { return false };
    let is = |c: &doc::Node, name: &str, value: &str| field(c, name).and_then(text).as_deref() == Some(value);
    conditions.iter().any(|c| is(c, "type", "Ready") && is(c, "status", "True"))
}

fn text(node: &doc::Node) -> Option<String> {
    match &node.value {
        doc::Value::Text(text) => Some(text.clone()),
        _ => None,
    }
}

/// Who a pod is in metrics, named as Istio does.
fn workload(reader: &Reader<'_>) -> Workload {
    let object = reader.object;
    let label = |name: &str| object.labels.get(name).filter(|v| !v.is_empty()).cloned();
    let first = |names: &[&str]| names.iter().find_map(|n| label(n));
    let owner = field(&object.node, "metadata").and_then(|m| match &field(m, "ownerReferences")?.value {
        doc::Value::List(owners) => text(field(owners.first()?, "name")?),
        _ => None,
    });
    // A ReplicaSet's name is its Deployment's and the hash of the template.
    let owner = owner.map(|name| match label("pod-template-hash") {
        Some(hash) => name.strip_suffix(&format!("-{hash}")).map(String::from).unwrap_or(name),
        None => name,
    });
    let canonical = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let name = owner.or_else(|| label("app")).unwrap_or_else(|| object.name.clone());
    let version = first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    Workload {
        app: canonical.unwrap_or_else(|| name.clone()).into(),
        name: name.into(),
        namespace: object.namespace.as_str().into(),
        version: version.unwrap_or_default().into(),
        pod: object.name.as_str().into(),
        cluster: "".into(),
    }
}

/// As in the documents.
pub fn workload_document(w: &Workload) -> Value {
    let mut out = json!({});
    let fields =
        [("name", &w.name), ("namespace", &w.namespace), ("app", &w.app), ("version", &w.version), ("pod", &w.pod)];
    for (field, value) in fields.into_iter().filter(|(_, v)| !v.is_empty()) {
        out[field] = json!(&**value);
    }
    out
}

/// Pods by a label, so that nobody looks at all of them for each Service.
pub struct ByLabel<'p>(BTreeMap<(&'p str, &'p str, &'p str), Vec<(&'p PodId, &'p Pod)>>);

impl<'p> ByLabel<'p> {
    pub fn new(pods: &'p BTreeMap<PodId, Pod>) -> Self {
        let mut out: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (id, pod) in pods {
            for (key, value) in &pod.labels {
                out.entry((id.namespace.as_str(), key.as_str(), value.as_str())).or_default().push((id, pod));
            }
        }
        Self(out)
    }

    /// Those of a namespace that a selector means; an empty one means none.
    pub fn of<'s>(
        &'s self,
        namespace: &'s str,
        selector: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = (&'p PodId, &'p Pod)> {
        let some = |(key, value): (&'s String, &'s String)| {
            self.0.get(&(namespace, key.as_str(), value.as_str())).map(Vec::as_slice).unwrap_or_default()
        };
        let fewest = selector.iter().map(some).min_by_key(|pods| pods.len()).unwrap_or_default();
        fewest.iter().copied().filter(|(_, pod)| pod.has(selector))
    }
}

fn telemetry(tracing: &Tracing, access_log: &str) -> Value {
    let mut out = json!({"accessLog": access_log, "names": ["istio", "linkerd"]});
    if let Some(otlp) = &tracing.otlp {
        out["tracing"] = json!({"otlp": otlp, "samplingPercent": f64::from(tracing.sampling_per_10k) / 100.0});
    }
    out
}

/// What each pod's own sidecar is told.
pub fn documents(b: &Builder<'_>, ledger: &mut Ledger) -> BTreeMap<PodId, world::Pod> {
    let by_label = ByLabel::new(&b.pods);
    let mesh_ranges = node::mesh_ranges(b);
    let mut protocols: BTreeMap<&PodId, BTreeMap<String, &str>> = BTreeMap::new();
    for (id, service) in &b.services {
        for (pod_id, pod) in by_label.of(&id.namespace, &service.selector) {
            for port in service.ports.values().filter(|p| p.protocol != "detect") {
                let declared = pod.target(&port.target).map(|target| (target.to_string(), port.protocol));
                protocols.entry(pod_id).or_default().extend(declared);
            }
        }
    }
    let meshed = b.pods.iter().filter_map(|(id, pod)| Some((id, pod, pod.identity.clone()?)));
    meshed
        .map(|(id, pod, identity)| {
            let (mtls, from) = peer_authentication::of(b, &id.namespace, pod);
            let origins = from.map(|from| BTreeMap::from([("inbound.mtls".to_string(), from)]));
            ledger.origins.extend(origins.map(|origins| (Document::Pod(id.clone()), origins)));
            let mut inbound = json!({
                "name": "in", "role": "inbound", "address": "[::]:15006", "originalDst": true,
                "mtls": mtls,
            });
            if let Some(protocols) = protocols.get(id).filter(|p| !p.is_empty()) {
                inbound["ports"] = json!(protocols);
            }
            let mut outbound = json!({"name": "out", "role": "outbound", "address": format!("[::]:{OUTBOUND}")});
            if !mesh_ranges.is_empty() {
                outbound["meshRanges"] = json!(mesh_ranges);
            }
            let mut listeners = Vec::new();
            match pod.listens.as_ref().zip(pod.ips.first()) {
                None => {
                    outbound["originalDst"] = json!(true);
                    listeners.extend([outbound, inbound]);
                }
                Some((apps, ip)) => {
                    outbound["address"] = json!(SocketAddr::new(*ip, OUTBOUND).to_string());
                    listeners.push(outbound);
                    for (port, app) in apps {
                        let mut own = inbound.clone();
                        own["name"] = json!(format!("in-{port}"));
                        own["address"] = json!(SocketAddr::new(*ip, *port).to_string());
                        own["app"] = json!(app.to_string());
                        if let Some(own) = own.as_object_mut() {
                            own.remove("originalDst");
                        }
                        listeners.push(own);
                    }
                }
            }
            let document = json!({
                "workload": workload_document(&pod.workload),
                "telemetry": telemetry(&b.options.tracing, &b.options.access_log),
                "listeners": listeners,
            });
            let pod = world::Pod { identity, workload: pod.workload.clone(), labels: pod.labels.clone(), document };
            (id.clone(), pod)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_made_where_somebody_takes_them() {
        assert!(telemetry(&Tracing::default(), "json").get("tracing").is_none());
        let tracing = Tracing { otlp: Some("http://a:4317".into()), sampling_per_10k: 50, ..Tracing::default() };
        assert_eq!(telemetry(&tracing, "json")["tracing"], json!({"otlp": "http://a:4317", "samplingPercent": 0.5}));
    }
}
