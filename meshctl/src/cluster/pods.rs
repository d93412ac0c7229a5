//! Pods, in the words in which a lab tells of its own.

use super::forward::Forward;
use super::{Cluster, SYSTEM};
use crate::door::{Door, SIDECAR};
use crate::error::{Error, Result};
use crate::lab::control::ADMIN;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value as Json, json};
use weft_dialects::kubernetes::pod;

const CONTROL: &str = "app.kubernetes.io/name=weft-control";

impl Cluster {
    /// Of one namespace, or all.
    pub async fn pods(&self, namespace: Option<&str>) -> Result<Vec<Json>> {
        let found = self.list(namespace, &ListParams::default()).await?;
        Ok(found.iter().filter(|pod| !is_over(pod)).map(told).collect())
    }

    async fn list(&self, namespace: Option<&str>, which: &ListParams) -> Result<Vec<Pod>> {
        let api = match namespace {
            Some(namespace) => Api::<Pod>::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let found = api.list(which).await.map_err(|e| self.failed("pods cannot be listed", &e))?;
        Ok(found.items)
    }

    pub async fn controls(&self) -> Result<Vec<Door>> {
        let mut found = self.list(Some(SYSTEM), &ListParams::default().labels(CONTROL)).await?;
        found.retain(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
        if found.is_empty() {
            let message = format!("no control plane is ready in namespace {SYSTEM} of {self}");
            return Err(Error::new(message, format!("kubectl -n {SYSTEM} get pods; meshctl install makes one")));
        }
        let door = |pod: Pod| {
            let name = pod.metadata.name.unwrap_or_default();
            let said = format!("the control plane ({name})");
            self.door(said, SYSTEM, &name, ADMIN, "weft-control")
        };
        Ok(found.into_iter().map(door).collect())
    }

    /// Of a pod as `pods` has it.
    pub fn sidecar(&self, pod: &Json) -> Result<Door> {
        let (name, namespace) = (word(pod, "name"), word(pod, "namespace"));
        if pod["sidecar"] != true {
            let workload = word(pod, "workload");
            let hint = format!(
                "kubectl label namespace {namespace} weft.dev/inject=enabled, then kubectl -n {namespace} rollout restart deployment {workload}"
            );
            return Err(Error::new(format!("{name}.{namespace} has no sidecar"), hint));
        }
        let said = format!("the sidecar of {name}.{namespace}");
        Ok(self.door(said, namespace, name, SIDECAR, word(pod, "container")))
    }

    fn door(&self, said: String, namespace: &str, pod: &str, port: u16, container: &str) -> Door {
        let pods = Api::namespaced(self.client.clone(), namespace);
        let hint = format!("kubectl -n {namespace} logs {pod} -c {container}");
        Door::in_cluster(said, port, Forward { pods, pod: pod.into() }, hint)
    }
}

fn word<'j>(value: &'j Json, field: &str) -> &'j str {
    value[field].as_str().unwrap_or_default()
}

/// What has ended has nothing to say.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn told(pod: &Pod) -> Json {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let annotations = pod.metadata.annotations.as_ref();
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    // What the injector calls it differs by dialect.
    let container =
        containers.map(|c| &*c.name).find(|name| ["istio-proxy", "linkerd-proxy", "weft-proxy"].contains(name));
    let owner = pod.metadata.owner_references.as_ref().and_then(|owners| owners.first()).map(|owner| &*owner.name);
    let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    json!({
        "name": name,
        "namespace": pod.metadata.namespace,
        "workload": workload(owner.unwrap_or(name), hash.map(String::as_str)),
        "sidecar": annotations.and_then(|a| a.get(pod::SIDECAR)).is_some_and(|value| value == "true"),
        "container": container.unwrap_or("weft-proxy"),
        "ready": is_ready(pod),
        "address": pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()),
    })
}

/// A ReplicaSet's name is its Deployment's and the hash of the template.
pub fn workload<'o>(owner: &'o str, hash: Option<&str>) -> &'o str {
    hash.and_then(|hash| owner.strip_suffix(hash)?.strip_suffix('-')).unwrap_or(owner)
}
