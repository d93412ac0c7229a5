//! Headless Services: clients dial the pods themselves, so each pod is a service of its own, called by its address and by
//! `POD.SERVICE`. Without it they would be strangers, and called without mTLS.
//!
//! Where routes are attached to the Service it is called by Host, as one: who routes does not mean single pods.

use crate::builder::{PolicySet, Port, Service};
use crate::kubernetes::service::hosts;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use weft_policy::id::ServiceId;

pub fn expand(services: &mut BTreeMap<ServiceId, Service>, domain: &str) {
    let mut made: BTreeMap<ServiceId, Service> = BTreeMap::new();
    let one_by_one = |s: &&Service| s.headless && s.routes.is_empty() && s.splits.is_empty();
    for (id, service) in services.iter().filter(|(_, s)| one_by_one(s)) {
        for (number, port) in &service.ports {
            for endpoint in &port.endpoints {
                let Some((name, at)) = place(endpoint) else { continue };
                let pod_id = ServiceId::new(&id.namespace, &format!("{name}.{}", id.name));
                let pod = made.entry(pod_id.clone()).or_insert_with(|| {
                    let mut hosts = hosts(&pod_id, domain);
                    // `a.b` is also what a Service of namespace `b` is called.
                    hosts
                        .retain(|h| h.what != *pod_id.name || !services.contains_key(&ServiceId::new(&id.name, &name)));
                    let (object, labels) = (service.object.clone(), service.labels.clone());
                    Service {
                        hosts,
                        addresses: vec![at.ip().to_string()],
                        object,
                        labels,
                        headless: true,
                        ..Service::default()
                    }
                });
                let endpoints = vec![endpoint.clone()];
                let own =
                    Port { name: port.name.clone(), target: at.port().to_string(), protocol: port.protocol, endpoints };
                if pod.ports.insert(at.port(), own).is_none() {
                    let of = |set: &&PolicySet| set.port == *number;
                    let here = |set: &PolicySet| PolicySet { port: at.port(), subsets: Vec::new(), ..set.clone() };
                    pod.policies.extend(service.policies.iter().filter(of).map(here));
                }
            }
        }
    }
    for (id, pod) in made {
        services.entry(id).or_insert(pod);
    }
}

/// A pod's name, or one made of its address, and where it listens.
fn place(endpoint: &Value) -> Option<(String, SocketAddr)> {
    let at: SocketAddr = endpoint.get("address")?.as_str()?.parse().ok()?;
    let pod = endpoint.get("workload").and_then(|w| w.get("pod")?.as_str()).map(String::from);
    Some((pod.unwrap_or_else(|| at.ip().to_string().replace(['.', ':'], "-")), at))
}
