//! TrafficSplit: what goes to a Service goes to others, by weight. A share whose Service is not there is taken by the rest.
//!
//! Backends are called at the port that was dialled. The root may be one of them; then its own pods get a share, and if it
//! selects the others' pods too, those get more than their weight says.

use super::http_route_group::HttpRouteGroup;
use crate::builder::{Builder, Order, Route, RouteSet, Service, Split};
use crate::conflict;
use crate::kubernetes::pod::Pod;
use crate::quantity;
use crate::reader::{Field, Reader};
use crate::world::{Clients, PodId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use weft_policy::doc;
use weft_policy::id::ServiceId;

struct Leaf<'r> {
    id: ServiceId,
    weight: u32,
    field: Field<'r>,
}

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, spec) = (reader.object, reader.spec());
    let backends = spec.list("backends");
    let matches = spec.get("matches").map(|m| matches(&m, &object.namespace, &b.route_groups));
    let Some(root) = root(&spec, &object.namespace, b) else {
        return spec.ignored("there is nothing to split");
    };
    let leaves = leaves(&backends, &object.namespace, b);
    overlaps(&leaves, b);
    let Some(service) = b.services.get(&root) else { return };
    let mut splits: Vec<(u16, Vec<Value>)> = Vec::new();
    for port in service.ports.keys().copied() {
        let mut to = Vec::new();
        for leaf in &leaves {
            match b.services.get(&leaf.id).is_some_and(|s| s.ports.contains_key(&port)) {
                true => to.push(json!({
                    "service": &*leaf.id.name, "namespace": &*leaf.id.namespace, "weight": leaf.weight
                })),
                false => {
                    let why = format!(
                        "{} has no port {port}, which {} has; the others take its share",
                        leaf.id.name, root.name
                    );
                    leaf.field.warn(None, why, "give both the same ports");
                }
            }
        }
        match to.is_empty() {
            true => spec.warn(None, format!("nothing of port {port} is split: no backend is there"), ""),
            false => splits.push((port, to)),
        }
    }
    let Some(service) = b.services.get_mut(&root) else { return };
    for (port, to) in splits {
        let (from, clients) = (spec.source(), Clients::default());
        match &matches {
            None => service.add_split(Split { from, clients, port, to }),
            Some(None) => {}
            Some(Some(alternatives)) => {
                let any = |what| Route::new(Clients::default(), what, spec.source());
                let name = object.reference().to_string();
                service.add_routes(RouteSet {
                    from,
                    kind: conflict::Routes::TrafficSplit,
                    specific: 0,
                    clients,
                    order: Order::FirstMatch,
                    routes: vec![
                        any(json!({"name": name, "match": alternatives, "to": to})),
                        any(json!({"name": format!("{name}/rest")})),
                    ],
                    port,
                });
            }
        }
    }
}

fn root(spec: &Field<'_>, namespace: &str, b: &Builder<'_>) -> Option<ServiceId> {
    let Some(field) = spec.get("service") else {
        return spec.fail("has no service", "the Service whose requests are split");
    };
    let host = field.text()?;
    match b.resolve(&host, namespace) {
        Some(root) if *root.namespace == *namespace => Some(root),
        Some(_) => field.fail("is a Service of another namespace", "a split is for its own namespace"),
        None => field.absent(format!("there is no Service {host}"), ""),
    }
}

/// `None`: there are conditions, and none of them can be met.
fn matches(field: &Field<'_>, namespace: &str, groups: &[HttpRouteGroup]) -> Option<Vec<Value>> {
    let mut out = Vec::new();
    for reference in field.items() {
        let kind = reference.get("kind").and_then(|k| k.text());
        reference.ignore("apiGroup", "kind says it");
        let Some(name) = reference.get("name").and_then(|n| n.text()) else { continue };
        let group = groups.iter().find(|g| g.namespace == namespace && g.name == name);
        match group.filter(|_| kind.as_deref().is_none_or(|k| k == "HTTPRouteGroup")) {
            Some(group) => out.extend(group.matches.clone()),
            None => {
                reference.absent::<()>(format!("there is no HTTPRouteGroup {name} in {namespace}"), "");
            }
        }
    }
    match out.is_empty() {
        // Each reason is told: a group that is not there, or one that is empty.
        true => field.absent("matches nothing, so nothing is split", ""),
        false => Some(out),
    }
}

fn leaves<'r>(backends: &[Field<'r>], namespace: &str, b: &Builder<'_>) -> Vec<Leaf<'r>> {
    let mut found = Vec::new();
    for field in backends {
        let Some(service) = field.get("service") else {
            field.fail::<()>("has no service", "");
            continue;
        };
        let weight = field.get("weight").map_or(Some(1_000), |w| weight(&w));
        let (Some(name), Some(weight)) = (service.text(), weight) else { continue };
        match b.resolve(&name, namespace) {
            Some(id) => found.push((id, weight, field.clone())),
            None => {
                let why = format!("there is no Service {name}; the others take its share");
                let hint = "a split needs a Service for each version, which selects its pods only";
                field.ignored(why.clone());
                service.find_absent("G6", why, hint);
            }
        }
    }
    let weights = quantity::weights(&found.iter().map(|(_, weight, _)| *weight).collect::<Vec<_>>());
    let weights = weights.unwrap_or_else(|| vec![1; found.len()]);
    found.into_iter().zip(weights).map(|((id, _, field), weight)| Leaf { id, weight, field }).collect()
}

/// In thousandths. The first version has quantities, later ones whole numbers.
fn weight(field: &Field<'_>) -> Option<u64> {
    let text = match &field.node.value {
        doc::Value::Float(x) => {
            field.honoured();
            x.to_string()
        }
        _ => field.text()?,
    };
    match quantity::thousandths(&text).filter(|w| *w <= u64::from(u32::MAX)) {
        Some(weight) => Some(weight),
        None => field.fail(format!("{text:?} is not a weight"), "a whole number, or thousandths as in 900m"),
    }
}

/// Pods that several leaves select get more than one share.
fn overlaps(leaves: &[Leaf<'_>], b: &Builder<'_>) {
    let total: u64 = leaves.iter().map(|l| u64::from(l.weight)).sum();
    let pods: Vec<BTreeSet<&PodId>> = leaves.iter().map(|l| pods(&l.id, b)).collect();
    for (i, leaf) in leaves.iter().enumerate() {
        for (j, other) in leaves.iter().enumerate().filter(|(j, _)| *j != i) {
            let (own, others) = (&pods[i], &pods[j]);
            let wider = selects_all_of(b.services.get(&other.id), b.services.get(&leaf.id));
            let hint = format!("let {} select only its own version", other.id.name);
            if own.is_empty() || others.is_empty() {
                if wider && !(selects_all_of(b.services.get(&leaf.id), b.services.get(&other.id)) && j < i) {
                    let why = format!(
                        "{} selects the pods of {} too, so they get more than this weight",
                        other.id.name, leaf.id.name
                    );
                    leaf.field.warn(Some("G6"), why, &hint);
                }
                continue;
            }
            // Once for each pair: with the one whose pods are all the other's, or with the later one.
            let shared = own.intersection(others).count();
            let whole = shared == own.len() && (shared < others.len() || j < i);
            if shared == 0 || !(whole || (shared < own.len() && shared < others.len() && j < i)) {
                continue;
            }
            let share_of = |k: usize| {
                let common = own.intersection(&pods[k]).count() as f64 / pods[k].len().max(1) as f64;
                common * f64::from(leaves[k].weight) / total.max(1) as f64
            };
            let real: f64 = (0..leaves.len()).map(share_of).sum();
            let meant = f64::from(leaf.weight) / total.max(1) as f64;
            let why = format!(
                "{} selects {shared} of {} pods of {} too: they get {:.0} % of the requests, not {:.0} %",
                other.id.name,
                own.len(),
                leaf.id.name,
                real * 100.0,
                meant * 100.0
            );
            leaf.field.warn(Some("G6"), why, &hint);
        }
    }
}

fn pods<'b>(id: &ServiceId, b: &'b Builder<'_>) -> BTreeSet<&'b PodId> {
    let Some(service) = b.services.get(id).filter(|s| !s.selector.is_empty()) else { return BTreeSet::new() };
    let of = |(pod, what): &(&PodId, &Pod)| *pod.namespace == *id.namespace && what.has(&service.selector);
    b.pods.iter().filter(of).map(|(pod, _)| pod).collect()
}

/// Whether whatever `narrow` selects, `wide` selects too.
fn selects_all_of(wide: Option<&Service>, narrow: Option<&Service>) -> bool {
    let Some((wide, narrow)) = wide.zip(narrow) else { return false };
    let within = |wide: &BTreeMap<String, String>, narrow: &BTreeMap<String, String>| {
        !wide.is_empty() && wide.iter().all(|(k, v)| narrow.get(k) == Some(v))
    };
    within(&wide.selector, &narrow.selector)
}
