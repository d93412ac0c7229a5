//! A mesh that runs, in a lab or in a cluster: its pods, and the ways to what they say of themselves.

use crate::cluster::Cluster;
use crate::door::Door;
use crate::error::Result;
use crate::lab::record::Lab;
use crate::lab::verbs;
use serde_json::{Value as Json, json};

pub enum Running {
    Lab(Lab),
    Cluster(Cluster),
}

impl Running {
    /// For people.
    pub fn name(&self) -> String {
        match self {
            Self::Lab(lab) => format!("lab {}", lab.id),
            Self::Cluster(cluster) => cluster.to_string(),
        }
    }

    /// Each with `name`, `namespace`, `workload`, `sidecar` and `address`, of all namespaces or one.
    pub async fn pods(&self, namespace: Option<&str>) -> Result<Vec<Json>> {
        let mut all = match self {
            Self::Lab(lab) => lab.status()?["pods"].as_array().cloned().unwrap_or_default(),
            Self::Cluster(cluster) => return cluster.pods(namespace).await,
        };
        all.retain(|pod| namespace.is_none_or(|n| pod["namespace"] == n));
        Ok(all)
    }

    /// A pod by its name, or all of a workload: `web`, `shop/web`, `web.shop`, `deploy/web`.
    pub async fn pods_named(&self, wanted: &str, namespace: Option<&str>) -> Result<Vec<Json>> {
        let (wanted, namespace) = match (self, namespace, wanted.rsplit_once('.')) {
            // Names of pods have no dots in a lab; where they have some, -n says that it is all a name.
            (Self::Cluster(_), None, Some((name, ns))) if !wanted.contains('/') => (name, Some(ns)),
            _ => (wanted, namespace),
        };
        let given = match (self, namespace, wanted.split_once('/')) {
            (Self::Cluster(cluster), None, None) => Some(cluster.namespace.as_str()),
            (Self::Cluster(cluster), None, Some((kind, _))) if verbs::KINDS.contains(&kind) => {
                Some(&*cluster.namespace)
            }
            (Self::Cluster(_), None, Some((namespace, _))) => Some(namespace),
            _ => namespace,
        };
        let status = json!({"pods": self.pods(given).await?});
        let place = match given {
            Some(namespace) => format!("namespace {namespace} of {}", self.name()),
            None => self.name(),
        };
        let found = verbs::pods(&status, wanted, &place)?;
        Ok(found.into_iter().cloned().collect())
    }

    /// Each replica of the control plane.
    pub async fn controls(&self) -> Result<Vec<Door>> {
        match self {
            Self::Lab(lab) => Ok(vec![Door::control(lab)]),
            Self::Cluster(cluster) => cluster.controls().await,
        }
    }

    /// What each replica answers to a question.
    pub async fn ask_controls(&self, path: &str) -> Result<Vec<Json>> {
        let mut out = Vec::new();
        for door in self.controls().await? {
            out.push(door.json(path).await?);
        }
        Ok(out)
    }

    /// Of a pod as `pods` has it.
    pub fn sidecar(&self, pod: &Json) -> Result<Door> {
        match self {
            Self::Lab(_) => Door::sidecar(pod),
            Self::Cluster(cluster) => cluster.sidecar(pod),
        }
    }
}

/// The sidecars that replicas of the control plane tell of in their `/status`. Of one that has moved from one to another both
/// know: whom it is connected to counts, and then who heard of it last.
pub fn proxies(answers: &[Json]) -> Vec<Json> {
    let mut out: Vec<Json> = Vec::new();
    for proxy in answers.iter().flat_map(|answer| answer["proxies"].as_array().into_iter().flatten()) {
        let rank = |p: &Json| (p["connected"] == true, p["since"].as_u64());
        match out.iter_mut().find(|known| known["pod"] == proxy["pod"] && known["namespace"] == proxy["namespace"]) {
            Some(known) if rank(proxy) > rank(known) => *known = proxy.clone(),
            Some(_) => {}
            None => out.push(proxy.clone()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_that_two_replicas_know() {
        let proxy = |pod: &str, connected: bool, since: u64| json!({"pod": pod, "namespace": "shop", "connected": connected, "since": since});
        let one = json!({"proxies": [proxy("a", false, 9), proxy("b", true, 1), proxy("c", false, 1)]});
        let two = json!({"proxies": [proxy("a", true, 2), proxy("c", false, 3), proxy("d", true, 1)]});
        let all = proxies(&[one, two]);
        assert_eq!(all, [proxy("a", true, 2), proxy("b", true, 1), proxy("c", false, 3), proxy("d", true, 1)]);
    }
}
