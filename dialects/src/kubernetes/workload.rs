//! What makes pods: Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob. Pods are what counts in the world; of what
//! makes them the template's labels and ports are read, for findings.

use crate::builder::Builder;
use crate::object::ObjectRef;
use crate::reader::{Field, Reader};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct Workload {
    pub object: ObjectRef,
    pub namespace: String,
    /// Its own, which are not its pods'.
    pub object_labels: BTreeMap<String, String>,
    pub pod_labels: BTreeMap<String, String>,
    /// By name, empty where they have none.
    pub ports: Vec<(String, u16)>,
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
    let workload = Workload {
        object: object.reference(),
        namespace: object.namespace.clone(),
        object_labels: object.labels.clone(),
        pod_labels: labels.map(|f| f.texts()).unwrap_or_default(),
        ports: containers.iter().flat_map(|c| c.list("ports")).filter_map(|p| port(&p)).collect(),
    };
    // Read, and without effect on the world.
    spec.ignored("pods are read as they are, not as they are made");
    b.workloads.push(workload);
}

/// The labels of pods that a selector means, there already or to be made.
pub fn labels_of<'b>(
    b: &'b Builder<'_>,
    namespace: &'b str,
    selector: &'b BTreeMap<String, String>,
) -> impl Iterator<Item = &'b BTreeMap<String, String>> {
    let pods = b.pods.iter().filter(move |(id, _)| id.namespace == namespace).map(|(_, pod)| &pod.labels);
    let made = b.workloads.iter().filter(move |w| w.namespace == namespace).map(|w| &w.pod_labels);
    pods.chain(made).filter(move |labels| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
}
