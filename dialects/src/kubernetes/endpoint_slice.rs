//! EndpointSlice: where a Service's endpoints are. A Service without any slice has the pods that its selector means.

use crate::builder::Builder;
use crate::kubernetes::node::ZONE;
use crate::kubernetes::pod::{ByLabel, Pod, workload_document};
use crate::reader::Reader;
use crate::world::PodId;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use weft_policy::id::ServiceId;

type Labels = BTreeMap<String, String>;

const SERVICE: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug)]
pub struct Slice {
    pub service: ServiceId,
    /// By name, as the Service's.
    pub ports: BTreeMap<String, u16>,
    pub endpoints: Vec<Place>,
}

#[derive(Clone, Debug)]
pub struct Place {
    pub ips: Vec<IpAddr>,
    pub ready: bool,
    pub terminating: bool,
    pub pod: Option<PodId>,
    /// Of what is no pod that is known; a pod's is its node's.
    pub zone: Option<String>,
}

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, root) = (reader.object, reader.root());
    let Some(service) = object.labels.get(SERVICE) else {
        crate::kubernetes::without_effect(reader, b);
        return;
    };
    root.ignore("addressType", "the addresses say it");
    let mut ports = BTreeMap::new();
    for port in root.list("ports") {
        port.ignore("appProtocol", "as the Service says");
        let name = port.get("name").and_then(|f| f.text()).unwrap_or_default();
        let tcp = port.get("protocol").is_none_or(|f| f.text().as_deref() == Some("TCP"));
        if let Some(number) = port.get("port").and_then(|f| f.port()).filter(|_| tcp) {
            ports.insert(name, number);
        }
    }
    let place = |field: crate::reader::Field<'_>| {
        for (name, why) in [
            ("hostname", "names of single endpoints are the DNS's"),
            ("nodeName", "the pod says it"),
            ("hints", "near and far endpoints are called alike"),
            ("deprecatedTopology", "zone says it"),
        ] {
            field.ignore(name, why);
        }
        let conditions = field.get("conditions");
        let is = |name: &str| conditions.as_ref().and_then(|c| c.get(name)?.bool());
        let (ready, serving, terminating) = (is("ready"), is("serving"), is("terminating").unwrap_or(false));
        let pod = field.get("targetRef").and_then(|target| {
            target.ignore("uid", "pods are known by their names");
            target.ignore("apiVersion", "pods are known by their names");
            let namespace = target.get("namespace").and_then(|f| f.text()).unwrap_or(object.namespace.clone());
            let pod = target.get("kind").and_then(|f| f.text()).as_deref() == Some("Pod");
            let name = target.get("name").and_then(|f| f.text()).filter(|_| pod)?;
            Some(PodId { namespace, name })
        });
        let zone = field.get("zone").and_then(|f| f.text());
        let ips = field.list("addresses").iter().filter_map(|f| f.text()?.parse().ok()).collect();
        // What nobody says is so, as in Kubernetes.
        let ready = ready.unwrap_or(true) || (terminating && serving.unwrap_or(true));
        Place { ips, ready, terminating, pod, zone }
    };
    let endpoints = root.list("endpoints").into_iter().map(place).collect();
    let service = ServiceId::new(&object.namespace, service);
    b.slices.push(Slice { service, ports, endpoints });
}

/// Gives each Service's ports their endpoints.
pub fn fill(b: &mut Builder<'_>) {
    let sliced: BTreeSet<ServiceId> = b.slices.iter().map(|s| s.service.clone()).collect();
    for slice in &b.slices {
        let Some(service) = b.services.get_mut(&slice.service) else { continue };
        for port in service.ports.values_mut() {
            let Some(target) = slice.ports.get(&port.name) else { continue };
            for place in slice.endpoints.iter().filter(|p| p.ready || service.not_ready_too) {
                let pod = place.pod.as_ref().and_then(|id| b.pods.get(id));
                let terminating = place.terminating || pod.is_some_and(|p| p.terminating);
                let labels = labels(pod, &b.nodes, place.zone.as_deref());
                let made = place.ips.first().map(|ip| endpoint(*ip, *target, pod, labels, terminating));
                port.endpoints.extend(made);
            }
        }
    }
    let by_label = ByLabel::new(&b.pods);
    for (id, service) in b.services.iter_mut().filter(|(id, _)| !sliced.contains(*id)) {
        let serves = |p: &Pod| p.ready || p.terminating || service.not_ready_too;
        for (_, pod) in by_label.of(&id.namespace, &service.selector).filter(|(_, pod)| serves(pod)) {
            let Some(ip) = pod.ips.first() else { continue };
            for port in service.ports.values_mut() {
                let made =
                    |target| endpoint(*ip, target, Some(pod), labels(Some(pod), &b.nodes, None), pod.terminating);
                let made = pod.target(&port.target).map(made);
                port.endpoints.extend(made);
            }
        }
    }
    for port in b.services.values_mut().flat_map(|s| s.ports.values_mut()) {
        // Two slices may tell of one pod while it moves from one to the other.
        let mut seen = BTreeSet::new();
        port.endpoints.retain(|e| seen.insert(e.get("id").or(e.get("address")).map(Value::to_string)));
    }
}

/// A pod's own, and where it is: a subset may be a zone.
fn labels(pod: Option<&Pod>, nodes: &BTreeMap<String, Labels>, zone: Option<&str>) -> Labels {
    let mut out = pod.and_then(|pod| nodes.get(&pod.node)).cloned().unwrap_or_default();
    if let Some(zone) = zone.filter(|zone| !zone.is_empty()) {
        out.entry(ZONE.into()).or_insert_with(|| zone.into());
    }
    out.extend(pod.iter().flat_map(|pod| pod.labels.clone()));
    out
}

fn endpoint(ip: IpAddr, port: u16, pod: Option<&Pod>, labels: Labels, terminating: bool) -> Value {
    let mut out = json!({"address": SocketAddr::new(ip, port).to_string()});
    if let Some(pod) = pod {
        out["id"] = json!(pod.id);
        out["workload"] = workload_document(&pod.workload);
        if let Some(identity) = &pod.identity {
            out["identity"] = json!(identity.as_str());
        }
    }
    if !labels.is_empty() {
        out["labels"] = json!(labels);
    }
    if terminating {
        out["draining"] = json!(true);
    }
    out
}
