//! Retries and timeouts that are said beside routes: by annotations, and by a TrafficPolicy.
//!
//! What is attached to a route wins over the route's own fields. What is attached to a Service fills in where its routes say
//! nothing, and makes a route for everything where there is none. Here too is the one default that routes bring to their
//! backends: retries of Gateway API's routes, and those that a TrafficPolicy asks for, have a budget.

use crate::builder::{Order, PolicySet, Route, RouteSet, Service};
use crate::conflict::{Outcome, Policies, Routes};
use crate::ledger::{Ledger, Verdict};
use crate::object::ObjectRef;
use crate::reader::Source;
use crate::world::Clients;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use weft_policy::id::ServiceId;

#[derive(Clone, Debug)]
pub struct Overlay {
    pub from: Source,
    pub kind: Policies,
    /// Of one kind the more specific wins.
    pub specific: u32,
    pub on: Target,
    /// `retry` and `timeout`, as in a route.
    pub fields: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// All that this object says.
    Route(ObjectRef),
    Service(ServiceId, u16),
}

pub fn apply(
    services: &mut BTreeMap<ServiceId, Service>,
    mut overlays: Vec<Overlay>,
    outcome: &mut Outcome,
    ledger: &mut Ledger,
) {
    overlays.sort_by_key(|o| (o.kind, Reverse(o.specific), o.from.age.clone()));
    let mut by_target: BTreeMap<&Target, Vec<&Overlay>> = BTreeMap::new();
    overlays.iter().for_each(|o| by_target.entry(&o.on).or_default().push(o));
    let on = |target: Target| by_target.get(&target).map(Vec::as_slice).unwrap_or_default();
    let mut budgets = Vec::new();
    let mut replaced = BTreeMap::new();
    for (id, service) in services.iter_mut() {
        for port in service.ports.keys().copied().collect::<Vec<_>>() {
            let general = on(Target::Service(id.clone(), port));
            let mut attached = Vec::new();
            for set in service.routes.iter_mut().filter(|s| s.port == port) {
                let special = on(Target::Route(set.from.object.clone()));
                let asked = override_with(set, special, outcome, &mut replaced) | fill_with(set, general, outcome);
                attached.extend(provenance(set, special));
                if asked || set.kind.are_gateway_api() {
                    budgets.extend(retried(id, set));
                }
            }
            attached.into_iter().for_each(|a| service.add_policy(a));
            let set = everything(port, general);
            let closed = service.routes.iter().find(|s| s.port == port && s.clients == Clients::default());
            match (set, closed) {
                (Some(set), None) => {
                    general.iter().for_each(|o| outcome.win(&o.from));
                    if general.iter().any(|o| o.kind == Policies::TrafficPolicy && o.fields.contains_key("retry")) {
                        budgets.extend(retried(id, &set));
                    }
                    service.add_routes(set);
                }
                (_, Some(other)) => {
                    let winner = other.from.object.clone();
                    general.iter().for_each(|o| outcome.lose(&o.from, id, &winner));
                }
                (None, None) => {}
            }
        }
    }
    mark(&replaced, ledger);
    for (id, budget) in budgets {
        let Some(service) = services.get_mut(&id) else { continue };
        let same = |s: &PolicySet| s.kind == budget.kind && s.port == budget.port && s.clients == budget.clients;
        if service.ports.contains_key(&budget.port) && !service.policies.iter().any(same) {
            service.add_policy(budget);
        }
    }
}

/// Of several, the first wins field by field. True: a TrafficPolicy asks for retries.
fn override_with(set: &mut RouteSet, overlays: &[&Overlay], outcome: &mut Outcome, replaced: &mut Replaced) -> bool {
    for route in &mut set.routes {
        let Route { what, others, .. } = route;
        let Some(route) = forwarding(what) else { continue };
        for overlay in overlays.iter().rev() {
            for (block, fields) in &overlay.fields {
                let names = fields.as_object().into_iter().flat_map(|f| f.keys());
                others.extend(names.map(|name| (format!("{block}.{name}"), overlay.from.clone())));
                merge(route.entry(block.clone()).or_insert_with(|| json!({})), fields);
            }
        }
    }
    for overlay in overlays {
        outcome.win(&overlay.from);
        if overlay.from.object != set.from.object {
            let route = replaced.entry(set.from.object.clone()).or_default();
            for (block, fields) in &overlay.fields {
                let names = fields.as_object().into_iter().flat_map(|f| f.keys());
                route.extend(names.map(|name| (format!("{block}.{name}"), overlay.from.object.clone())));
            }
        }
    }
    overlays.iter().any(|o| o.kind == Policies::TrafficPolicy && o.fields.contains_key("retry"))
}

/// Who has a part in a route is named beside it.
fn provenance(set: &RouteSet, overlays: &[&Overlay]) -> Vec<PolicySet> {
    let others = overlays.iter().filter(|o| o.from.object != set.from.object);
    let policy = |o: &&Overlay| PolicySet {
        from: o.from.clone(),
        kind: o.kind,
        specific: 0,
        clients: set.clients.clone(),
        port: set.port,
        policy: Map::new(),
        subsets: Vec::new(),
    };
    others.map(policy).collect()
}

/// The same, where the routes say nothing. What Linkerd's annotations say is nothing to a VirtualService.
fn fill_with(set: &mut RouteSet, overlays: &[&Overlay], outcome: &mut Outcome) -> bool {
    let mut asked = false;
    for overlay in overlays {
        if set.kind == Routes::VirtualService && overlay.kind != Policies::TrafficPolicy {
            continue;
        }
        for route in &mut set.routes {
            let Route { what, others, .. } = route;
            let Some(route) = forwarding(what) else { continue };
            for (block, fields) in &overlay.fields {
                let own = route.get(block).and_then(Value::as_object);
                // A time for each attempt says nothing of which attempts there are.
                let open = own.is_none_or(|o| block == "retry" && o.keys().all(|k| k == "perTryTimeout"));
                if open {
                    let mut filled = fields.clone();
                    own.into_iter().for_each(|own| merge(&mut filled, &Value::Object(own.clone())));
                    let names = fields.as_object().into_iter().flat_map(|f| f.keys());
                    let names = names.filter(|name| own.is_none_or(|own| !own.contains_key(*name)));
                    others.extend(names.map(|name| (format!("{block}.{name}"), overlay.from.clone())));
                    route.insert(block.clone(), filled);
                    outcome.win(&overlay.from);
                    asked |= overlay.kind == Policies::TrafficPolicy && block == "retry";
                }
            }
        }
    }
    asked
}

fn forwarding(route: &mut Value) -> Option<&mut Map<String, Value>> {
    route.as_object_mut().filter(|r| !r.contains_key("redirect") && !r.contains_key("respond"))
}

fn merge(into: &mut Value, from: &Value) {
    if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
        into.extend(from.clone());
    }
}

/// The route of a Service that has none.
fn everything(port: u16, overlays: &[&Overlay]) -> Option<RouteSet> {
    let mut route = json!({"name": "default"});
    for overlay in overlays.iter().rev() {
        overlay.fields.iter().for_each(|(block, fields)| route[block] = fields.clone());
    }
    let from = overlays.first()?.from.clone();
    let mut route = Route::new(Clients::default(), route, from.clone());
    for overlay in overlays.iter().rev() {
        route.others.extend(overlay.fields.keys().map(|block| (block.clone(), overlay.from.clone())));
    }
    Some(RouteSet {
        from,
        kind: Routes::Default,
        specific: 0,
        clients: Clients::default(),
        order: Order::GatewayApi,
        routes: vec![route],
        port,
    })
}

/// A budget for each backend that retries of these routes go to.
fn retried(owner: &ServiceId, set: &RouteSet) -> Vec<(ServiceId, PolicySet)> {
    let mut out = Vec::new();
    let budget = |clients: Clients, port| PolicySet {
        from: set.from.clone(),
        kind: Policies::RouteDefaults,
        specific: 0,
        clients,
        port,
        policy: Map::from_iter([("retryBudget".into(), json!({"percent": 20, "minPerSecond": 10, "window": "10s"}))]),
        subsets: Vec::new(),
    };
    for route in set.routes.iter().map(|r| &r.what) {
        if route.get("retry").is_none_or(|r| r.get("on").is_none()) {
            continue;
        }
        let Some(to) = route.get("to").and_then(Value::as_array) else {
            out.push((owner.clone(), budget(set.clients.clone(), set.port)));
            continue;
        };
        for to in to.iter().filter(|t| t.get("invalid").is_none()) {
            let text = |name, own: &str| to.get(name).and_then(Value::as_str).unwrap_or(own).to_string();
            let id = ServiceId::new(&text("namespace", &owner.namespace), &text("service", &owner.name));
            let port = to.get("port").and_then(Value::as_u64).and_then(|p| p.try_into().ok()).unwrap_or(set.port);
            // Others' backends were asked (by a grant) or are the route's own; the parent was not.
            let clients = if id == *owner { set.clients.clone() } else { Clients::default() };
            out.push((id, budget(clients, port)));
        }
    }
    out
}

/// Fields of a route that others have taken the place of, by what documents call them.
type Replaced = BTreeMap<ObjectRef, BTreeMap<String, ObjectRef>>;

/// What the dialects call them.
const NAMES: [(&str, &[&str]); 6] = [
    ("retry.attempts", &[".retry.attempts", ".retries.attempts"]),
    ("retry.on", &[".retry.codes", ".retries.retryOn"]),
    ("retry.perTryTimeout", &[".timeouts.backendRequest", ".retries.perTryTimeout"]),
    ("retry.backoff", &[".retry.backoff", ".retries.backoff"]),
    ("retry.avoidPreviousHosts", &[".retries.retryIgnorePreviousHosts"]),
    ("timeout.request", &[".timeouts.request", "].timeout"]),
];

fn mark(replaced: &Replaced, ledger: &mut Ledger) {
    if replaced.is_empty() {
        return;
    }
    for entry in &mut ledger.entries {
        let Some(fields) = replaced.get(&entry.object) else { continue };
        // An element of a list is its list's.
        let field = entry.field.strip_suffix(']').and_then(|f| f.rsplit_once('[')).map_or(&*entry.field, |(f, _)| f);
        let named = NAMES.iter().find(|(_, names)| names.iter().any(|n| field.ends_with(n)));
        let winner = named.and_then(|(name, _)| fields.get(*name)).cloned();
        if let Some(by) = winner.filter(|_| matches!(entry.verdict, Verdict::Honoured | Verdict::Differently(_))) {
            entry.verdict = Verdict::WonBy(by);
        }
    }
}
