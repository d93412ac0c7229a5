//! Istio: `networking.istio.io` and `security.istio.io`.

pub mod destination_rule;
pub mod peer_authentication;
pub mod virtual_service;

use crate::builder::Builder;
use crate::reader::Field;
use crate::world::Clients;
use std::collections::{BTreeMap, BTreeSet};
use weft_policy::id::ServiceId;

/// Whose clients see an object, by its `exportTo`.
fn exported(spec: &Field<'_>, namespace: &str) -> Clients {
    let to: Vec<String> = spec.list("exportTo").iter().filter_map(|f| f.text()).collect();
    match to.is_empty() || to.iter().any(|t| t == "*") {
        true => Clients::default(),
        false => {
            let namespaces = to.into_iter().map(|t| if t == "." { namespace.to_string() } else { t }).collect();
            Clients { namespaces, labels: BTreeMap::new() }
        }
    }
}

/// Clients of both conditions; `None` if there can be none.
fn and(clients: &Clients, namespace: Option<String>, labels: BTreeMap<String, String>) -> Option<Clients> {
    let mut out = clients.clone();
    if let Some(namespace) = namespace {
        if !out.namespaces.is_empty() && !out.namespaces.contains(&namespace) {
            return None;
        }
        out.namespaces = BTreeSet::from([namespace]);
    }
    out.labels.extend(labels);
    Some(out)
}

/// The Services that a host means, and how specific it is about them: a name more than any wildcard, and a longer wildcard
/// more than a shorter one.
fn targets(b: &Builder<'_>, host: &str, namespace: &str) -> Vec<(ServiceId, u32)> {
    let Some(suffix) = host.strip_prefix('*') else {
        return b.resolve(host, namespace).map(|id| (id, 1000)).into_iter().collect();
    };
    let domain = &b.options.cluster_domain;
    let of = |id: &ServiceId| suffix.is_empty() || format!("{id}.svc.{domain}").ends_with(suffix);
    let real = b.services.iter().filter(|(id, s)| s.object.is_some() && of(id));
    real.map(|(id, _)| (id.clone(), suffix.len().min(999) as u32)).collect()
}
