//! DestinationRule: how a host is called, and its subsets.
//!
//! Of several for one Service the one of the client's namespace counts, then the Service's, then the mesh's; among equals the
//! oldest gives the policy, and new subsets are added. Blocks are replaced whole, by subsets and by ports.

mod traffic_policy;

use crate::builder::{Builder, PolicySet, Subset};
use crate::conflict::Policies;
use crate::istio::{and, exported, targets};
use crate::kubernetes::node;
use crate::kubernetes::workload::labels_of;
use crate::reader::{Field, Reader, Source};
use std::collections::BTreeMap;
use traffic_policy::TrafficPolicy;
use weft_policy::id::ServiceId;

struct Part {
    field: String,
    from: Source,
    name: String,
    labels: BTreeMap<String, String>,
    policy: TrafficPolicy,
}

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let spec = reader.spec();
    let namespace = reader.object.namespace.clone();
    let Some(host) = spec.get("host") else {
        reader.root().find(weft_policy::diag::Severity::Error, None, "names no host", "spec: {host: NAME}");
        return;
    };
    let clients = exported(&spec, &namespace);
    let selector = spec.get("workloadSelector").and_then(|s| s.get("matchLabels")).map(|f| f.texts());
    let policy = spec.get("trafficPolicy").map(|f| traffic_policy::read(&f)).unwrap_or_default();
    let parts: Vec<Part> = spec.list("subsets").iter().filter_map(part).collect();
    let Some(name) = host.text() else { return };
    let found = targets(b, &name.to_ascii_lowercase(), &namespace);
    if found.is_empty() {
        let hint = "a Service of the rule's own namespace, or NAME.NAMESPACE";
        host.warn(Some("G7"), format!("has no effect: there is no Service {name}"), hint);
    }
    for (id, specific) in found {
        // Whose rule it is: the client's namespace, the Service's, or the whole mesh's.
        let level = match &*id.namespace == namespace.as_str() {
            true => 2,
            false if namespace == b.options.root_namespace => 1,
            false => 3,
        };
        let own = (level == 3 || selector.is_some()).then(|| namespace.clone());
        let Some(clients) = and(&clients, own, selector.clone().unwrap_or_default()) else { continue };
        let specific = level * 10_000 + if selector.is_some() { 5000 } else { 0 } + specific;
        for part in &parts {
            check_subset(reader, part, &id, b);
        }
        let Some(service) = b.services.get_mut(&id) else { continue };
        let ports: Vec<u16> = service.ports.keys().copied().collect();
        for port in ports {
            let subset = |p: &Part| Subset {
                name: p.name.clone(),
                labels: p.labels.clone(),
                policy: p.policy.of_subset(port),
                from: p.from.clone(),
            };
            let set = |name: &str, policy, subsets| {
                Some(PolicySet {
                    from: spec.get(name)?.source(),
                    kind: Policies::DestinationRule,
                    specific,
                    clients: clients.clone(),
                    port,
                    policy,
                    subsets,
                })
            };
            // Another rule may win over the one and not over the other.
            let whole = set("trafficPolicy", policy.of(port), Vec::new());
            let subsets = set("subsets", Default::default(), parts.iter().map(subset).collect());
            whole.into_iter().chain(subsets).for_each(|s| service.add_policy(s));
        }
    }
}

fn part(field: &Field<'_>) -> Option<Part> {
    let name = field.get("name").and_then(|f| f.text());
    let labels = field.get("labels").map(|f| f.texts()).unwrap_or_default();
    let policy = field.get("trafficPolicy").map(|f| traffic_policy::read(&f)).unwrap_or_default();
    match name {
        Some(name) => Some(Part { field: field.path.clone(), from: field.source(), name, labels, policy }),
        None => field.fail("a subset has no name", "name: NAME"),
    }
}

/// A subset that nobody is in answers its share with 503, without falling back to others.
fn check_subset(reader: &Reader<'_>, part: &Part, id: &ServiceId, b: &Builder<'_>) {
    let Some(service) = b.services.get(id) else { return };
    let mut seen = labels_of(b, &id.namespace, &service.selector).peekable();
    if service.selector.is_empty() || part.labels.is_empty() {
        return;
    }
    let name = &part.name;
    if seen.peek().is_none() {
        return;
    }
    type Labels = BTreeMap<String, String>;
    let has = |labels: &Labels, wanted: &Labels| wanted.iter().all(|(k, v)| labels.get(k) == Some(v));
    // Where a pod is says its node; manifests without nodes do not say it.
    let (place, own): (Labels, Labels) =
        part.labels.clone().into_iter().partition(|(label, _)| node::TOPOLOGY.contains(&label.as_str()));
    let there = b.nodes.is_empty() || b.nodes.values().any(|node| has(node, &place));
    if seen.any(|labels| has(labels, &part.labels) || (there && has(labels, &own))) {
        return;
    }
    let wanted: Vec<String> = part.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let wanted = wanted.join(", ");
    // Labels on a Deployment are not those of its pods.
    let outside = b
        .workloads
        .iter()
        .find(|w| w.namespace == *id.namespace && part.labels.iter().all(|(k, v)| w.object_labels.get(k) == Some(v)));
    match outside {
        Some(workload) => reader.warn(
            "G10",
            &part.field,
            format!("no pod of {id} has {wanted}; {} has it, and not its pods: 503 UH", workload.object),
            "label the pod template: spec.template.metadata.labels",
        ),
        None => {
            let hint = "labels that pods of the Service have";
            reader.warn("G7", &part.field, format!("subset {name}: no pod of {id} has {wanted}: 503 UH"), hint);
        }
    }
}
