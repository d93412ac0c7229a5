//! What makes pods: Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob. Pods are what counts in the world; of what
//! makes them the template's labels and ports are read, for findings.

use crate::builder::Builder;
use crate::object::{ObjectRef, field};
use crate::reader::{Field, Reader};
use crate::world::PodId;
use std::collections::BTreeMap;
use weft_policy::doc::Value;
use weft_policy::id::ServiceId;

#[derive(Clone, Debug)]
pub struct Workload {
    pub object: ObjectRef,
    pub namespace: String,
    /// Its own, which are not its pods'.
    pub object_labels: BTreeMap<String, String>,
    pub pod_labels: BTreeMap<String, String>,
    /// By name, empty where they have none.
    pub ports: Vec<(String, u16)>,
    /// Images that are known to listen elsewhere than they are told.
    pub listens: Option<(String, u16)>,
}

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, spec) = (reader.object, reader.spec());
    let outer = match object.kind.as_str() {
        "CronJob" => spec.get("jobTemplate").and_then(|j| j.get("spec")),
        _ => Some(spec.clone()),
    };
    let template = outer.and_then(|s| s.get("template"));
    let labels = template.as_ref().and_then(|t| t.get("metadata")?.get("labels"));
    let containers = template.as_ref().and_then(|t| t.get("spec")?.get("containers"));
    let port = |p: &Field<'_>| {
        Some((p.get("name").and_then(|f| f.text()).unwrap_or_default(), p.get("containerPort")?.port()?))
    };
    let containers = containers.map(|c| c.items()).unwrap_or_default();
    let listens = containers.iter().find_map(listens);
    let workload = Workload {
        object: object.reference(),
        namespace: object.namespace.clone(),
        object_labels: object.labels.clone(),
        pod_labels: labels.map(|f| f.texts()).unwrap_or_default(),
        listens,
        ports: containers.iter().flat_map(|c| c.list("ports")).filter_map(|p| port(&p)).collect(),
    };
    // Read, and without effect on the world.
    spec.ignored("pods are read as they are, not as they are made");
    b.workloads.push(workload);
}

/// Where an image of lessons listens, unless its arguments say otherwise.
fn listens(container: &Field<'_>) -> Option<(String, u16)> {
    const KNOWN: &[(&str, &str, u16)] = &[("hashicorp/http-echo", "-listen", 5678)];
    let image = container.get("image")?.text()?;
    let name = image.split(':').next().unwrap_or_default();
    let (_, flag, port) = KNOWN.iter().find(|(known, ..)| name.ends_with(known))?;
    let args = container.list("args").into_iter().chain(container.list("command"));
    let told = args.filter_map(|a| a.text()).any(|a| a.contains(flag));
    (!told).then_some((image, *port))
}

/// Ports of a Service that lead nowhere, as far as pods and what makes them say.
pub fn check_targets(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let id = ServiceId::new(&reader.object.namespace, &reader.object.name);
    let Some(service) = b.services.get(&id).filter(|s| !s.selector.is_empty()) else { return };
    let has = |labels: &BTreeMap<String, String>| service.selector.iter().all(|(k, v)| labels.get(k) == Some(v));
    let makers: Vec<&Workload> =
        b.workloads.iter().filter(|w| w.namespace == *id.namespace && has(&w.pod_labels)).collect();
    for (i, port) in reader.spec().list("ports").iter().enumerate() {
        // Looked at, and not read: what became of it is said already.
        let Some(Value::Int(number)) = field(port.node, "port").map(|n| &n.value) else { continue };
        let Some(own) = u16::try_from(*number).ok().and_then(|n| service.ports.get(&n)) else { continue };
        let place = format!("spec.ports[{i}]");
        for maker in &makers {
            let number = own.target.parse::<u16>().ok();
            let declared = match number {
                Some(number) => maker.ports.iter().any(|(_, p)| *p == number),
                None => maker.ports.iter().any(|(name, _)| *name == own.target),
            };
            // Ports need not be declared, but names are looked for among those that are.
            let undeclared = maker.ports.is_empty() && number.is_some();
            if !declared && !undeclared {
                let message =
                    format!("leads to port {} of the pods, and {} declares none such", own.target, maker.object);
                reader.warn("G7", &place, message, "targetPort: the port that the app listens on");
            }
            if let Some((image, real)) = maker.listens.as_ref().filter(|(_, real)| number.is_some_and(|n| n != *real)) {
                let message = format!("leads to port {} of the pods, and {image} listens on {real}", own.target);
                reader.warn("G7", &place, message, &format!("targetPort: {real}"));
            }
        }
    }
}

/// The labels of pods that a selector means, there already or to be made.
pub fn labels_of<'b>(
    b: &'b Builder<'_>,
    namespace: &'b str,
    selector: &'b BTreeMap<String, String>,
) -> impl Iterator<Item = &'b BTreeMap<String, String>> {
    // Pods are sorted by namespace.
    let first = PodId { namespace: namespace.to_string(), name: String::new() };
    let pods = b.pods.range(first..).take_while(move |(id, _)| id.namespace == namespace).map(|(_, pod)| &pod.labels);
    let made = b.workloads.iter().filter(move |w| w.namespace == namespace).map(|w| &w.pod_labels);
    pods.chain(made).filter(move |labels| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
}
