//! The pods that a lab would run from a folder, without running any: for verbs that ask what would happen.

use super::inject::{self, Mesh};
use super::manifest::json;
use super::net::Network;
use super::pod::{Phase, Plan, Status};
use super::workload::{Kind, Workload, workloads};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_dialects::object::{self, Object, Objects};
use weft_injector::Namespace;
use weft_policy::diag::Diags;

const MOST: u16 = 30_000;

/// The same objects and a Pod for each replica, ready and with an address. Workloads whose pods are in the folder already, as
/// in one that was taken from a cluster, have those.
pub fn with_pods(objects: &Objects, mesh_all: bool) -> Objects {
    let mesh = if mesh_all { Mesh::All } else { Mesh::AsLabelled };
    let mut all: Vec<Arc<Object>> = objects.0.clone();
    let mut n = 0;
    for workload in workloads(objects, &mut Vec::new()) {
        if objects.of("", "Pod").any(|pod| is_of(&workload, pod)) {
            continue;
        }
        let namespace = objects.of("", "Namespace").find(|o| o.name == workload.namespace);
        let namespace = namespace.map_or_else(Namespace::default, |o| Namespace {
            name: o.name.clone(),
            labels: o.labels.clone(),
            annotations: o.annotations.clone(),
        });
        let meshed = inject::is_meshed(mesh, &namespace, &workload.template);
        for replica in 0..workload.replicas {
            // As many as there are addresses.
            if n == MOST {
                break;
            }
            n += 1;
            all.extend(pod(&workload, replica, n, meshed).map(Arc::new));
        }
    }
    Objects(all)
}

/// A pod that runs somewhere.
fn is_of(workload: &Workload, pod: &Object) -> bool {
    let whole = json(&pod.node);
    let placed = whole["status"]["podIP"].is_string();
    let own = workload.kind == Kind::Pod && pod.name == workload.name;
    let labels: &BTreeMap<String, String> = &workload.template.labels;
    let replica = !labels.is_empty() && labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    placed && pod.namespace == workload.namespace && (own || replica)
}

fn pod(workload: &Workload, replica: u32, n: u16, meshed: bool) -> Option<Object> {
    let name = format!("{}-{replica}", workload.name);
    let plan = Plan {
        workload: workload.clone(),
        version: String::new(),
        uid: format!("{}/{name}", workload.namespace),
        name,
        n,
        address: Network::PODS.address(n),
        host_address: Network::PODS.hub(),
        ports: Vec::new(),
        meshed,
        programs: Vec::new(),
        environment: Vec::new(),
    };
    let status = Status { phase: Phase::Running, ready: true, ..Status::default() };
    let text = plan.object(&status, false).to_string();
    let file: Arc<str> = workload.at.as_str().into();
    object::read(&file, &text, &workload.namespace, &mut Diags::default())?.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_for_each_replica() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n---\n\
                    apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec: {replicas: 2, template: \
                    {metadata: {labels: {app: web}}, spec: {containers: [{name: a, image: b, ports: [{containerPort: 80}]}]}}}\n---\n\
                    apiVersion: v1\nkind: Pod\nmetadata: {name: own, namespace: shop}\nspec: {containers: [{name: a, image: b}]}\n\
                    status: {podIP: 10.0.0.9}\n";
        let read = object::read(&"a.yaml".into(), text, "default", &mut Diags::default()).unwrap();
        let objects = Objects(read.into_iter().map(Arc::new).collect());
        let all = with_pods(&objects, false);
        let pods: Vec<(&str, &str)> = all.of("", "Pod").map(|p| (p.name.as_str(), &*p.file)).collect();
        assert_eq!(pods, [("own", "a.yaml"), ("web-0", "a.yaml:5"), ("web-1", "a.yaml:5")]);
        let web = all.of("", "Pod").nth(1).unwrap();
        assert_eq!(web.annotations["weft.dev/sidecar"], "true");
        assert_eq!(json(&web.node)["status"]["podIP"], "10.244.1.2");
        assert_eq!(with_pods(&all, false).0.len(), all.0.len());
    }
}
