//! ServiceProfile: routes by method and path, which answers are failures, and where a service's requests go.
//!
//! Its name is a host. One of the client's namespace is for clients of that namespace, and wins there. Unlike in Linkerd, a
//! profile switches nothing else off. The fields `routes[].retries.{limit,timeout}` are ours: many labs have them.

use super::failures::Failures;
use super::{condition, inbound_policy};
use crate::builder::{self, Builder, Order, PolicySet, RouteSet, Split, service_of};
use crate::conflict;
use crate::reader::{Field, Reader, Source};
use crate::world::Clients;
use crate::{proof, quantity};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use weft_policy::id::ServiceId;

/// Of one request. Linkerd knows no bound but the budget, and one request may empty that.
const MAX_RETRIES: u32 = 10;
/// Of a route that says nothing.
const TIMEOUT: &str = "10s";

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, spec) = (reader.object, reader.spec());
    let routes = read_routes(&spec);
    let budget = read_budget(&spec, routes.iter().any(|r| r.retryable));
    let overrides = spec.list("dstOverrides");
    let opaque = super::annotations::ports_of(&spec);
    let id = service_of(&object.name, &object.namespace, &b.options.cluster_domain);
    let Some(id) = id.filter(|id| b.services.contains_key(id)) else {
        let (why, hint) = ("there is no such Service", "the host of a Service, as web.demo.svc.cluster.local");
        reader.absent(None, "metadata.name", why, hint);
        spec.ignored(why);
        return;
    };
    let own = *id.namespace == *object.namespace;
    // What a client's profile says is for its own namespace, and what follows is for everybody.
    let opaque = match own {
        true => {
            inbound_policy::profile(reader, &id, b);
            opaque
        }
        false => {
            spec.ignore("opaquePorts", "for the Service's own namespace to say");
            Vec::new()
        }
    };
    let clients =
        Clients { namespaces: (!own).then(|| object.namespace.clone()).into_iter().collect(), labels: BTreeMap::new() };
    let specific = u32::from(!own);
    let split = destinations(&overrides, &id, b);
    let Some(service) = b.services.get_mut(&id) else { return };
    for (number, port) in &mut service.ports {
        if opaque.iter().any(|range| range.contains(number)) {
            port.protocol = "tcp";
        }
    }
    for port in service.ports.keys().copied().collect::<Vec<_>>() {
        if !routes.is_empty() {
            let any = |what, from| builder::Route::new(Clients::default(), what, from);
            let listed = routes.iter().map(|r| any(r.document.clone(), r.from.clone()));
            service.add_routes(RouteSet {
                from: spec.source(),
                kind: conflict::Routes::ServiceProfile,
                specific,
                clients: clients.clone(),
                order: Order::FirstMatch,
                routes: listed.chain([any(json!({"name": "[DEFAULT]"}), spec.source())]).collect(),
                port,
            });
        }
        if let Some(budget) = &budget {
            service.add_policy(PolicySet {
                from: spec.source(),
                kind: conflict::Policies::ServiceProfile,
                specific,
                clients: clients.clone(),
                port,
                policy: Map::from_iter([("retryBudget".to_string(), budget.clone())]),
                subsets: Vec::new(),
            });
        }
        let to: Vec<Value> = split.iter().filter(|d| d.ports.contains(&port)).map(|d| d.to.clone()).collect();
        if !to.is_empty() {
            let from = spec.get("dstOverrides").map_or(spec.source(), |f| f.source());
            service.add_split(Split { from, clients: clients.clone(), port, to });
        }
    }
}

struct Route {
    from: Source,
    document: Value,
    retryable: bool,
}

fn read_routes(spec: &Field<'_>) -> Vec<Route> {
    let read = |field: &Field<'_>| {
        let found = read_route(field);
        if found.is_none() {
            field.ignored("without what is wrong it would match too much, so it is left out");
        }
        found
    };
    spec.list("routes").iter().filter_map(read).collect()
}

fn read_route(field: &Field<'_>) -> Option<Route> {
    let name = field.get("name").and_then(|f| f.text());
    let failures = Failures::read(&field.list("responseClasses"));
    let timeout = field.get("timeout").and_then(|f| f.duration().and_then(|_| f.text()));
    let retryable = field.get("isRetryable").and_then(|f| f.bool()).unwrap_or(false);
    let extension = field.get("retries");
    let limit = extension.as_ref().and_then(|r| r.get("limit")).and_then(|f| f.int(0, 100));
    let per_try = extension.as_ref().and_then(|r| r.get("timeout")).and_then(|f| f.duration().and_then(|_| f.text()));
    let matches = match field.get("condition") {
        Some(condition) => condition::read(&condition)?,
        None => {
            return field.fail("has no condition, so it matches nothing", "condition: {method: GET, pathRegex: /a}");
        }
    };
    let mut route = Map::new();
    route.insert("match".into(), matches.alternatives.into());
    let name = name.filter(|n| !n.is_empty() && n.len() <= 253 && !n.chars().any(char::is_control));
    route.insert("name".into(), json!(name.unwrap_or_else(|| field.path.clone())));
    route.insert("timeout".into(), json!({"request": timeout.unwrap_or(TIMEOUT.into())}));
    let mut retry = Map::new();
    if let Some(retries) = &extension {
        let hint =
            "isRetryable: true and a retryBudget, or the annotations retry.linkerd.io/http and retry.linkerd.io/limit";
        retries.warn(Some("G2"), "is not a field of Linkerd's; honoured here as an extension", hint);
        retry.insert("attempts".into(), json!(limit.unwrap_or(1)));
        if let Some(per_try) = per_try {
            retry.insert("perTryTimeout".into(), json!(per_try));
        }
    }
    if retryable && limit.is_none() {
        retry.insert("attempts".into(), json!(MAX_RETRIES));
        if let Some(field) = field.get("isRetryable") {
            field.differs(format!("a request is repeated at most {MAX_RETRIES} times, even if the budget has more"));
        }
    }
    if !retry.is_empty() {
        retry.insert("on".into(), json!(failures.conditions()));
        route.insert("retry".into(), retry.into());
        let unsafe_ones = ["POST", "PATCH", "CONNECT"];
        if matches.methods.iter().any(|m| unsafe_ones.contains(&m.as_str())) {
            let field = extension.clone().or_else(|| field.get("isRetryable"));
            field.inspect(|f| {
                let hint = "make sure that the app takes a repeated request for one";
                f.warn(Some("G18"), "repeats requests that are not safe to repeat", hint);
            });
        }
    }
    let document = Value::Object(route);
    match proof::route(&document, "firstMatch") {
        Ok(_) => Some(Route { from: field.source(), document, retryable: retryable && extension.is_none() }),
        Err(why) => field.fail(why, ""),
    }
}

/// As written; with its defaults where a route is retryable, for in Linkerd such retries always have one.
fn read_budget(spec: &Field<'_>, retryable: bool) -> Option<Value> {
    let Some(field) = spec.get("retryBudget") else {
        return retryable.then(|| json!({"percent": 20, "minPerSecond": 10, "window": "10s"}));
    };
    let ratio = field.get("retryRatio").and_then(|f| f.float(0.0, 10.0)).unwrap_or(0.2);
    let per_second = field.get("minRetriesPerSecond").and_then(|f| f.int(0, 1_000_000)).unwrap_or(10);
    let window = field.get("ttl").and_then(|f| {
        let seconds = f.duration()?.as_secs_f64().round().clamp(1.0, 60.0) as u64;
        if f.duration() != Some(std::time::Duration::from_secs(seconds)) {
            f.differs(format!("counted over {seconds} s: in whole seconds, from one to sixty"));
        }
        Some(seconds)
    });
    let percent = (ratio * 100.0).round() as u32;
    Some(json!({"percent": percent, "minPerSecond": per_second, "window": format!("{}s", window.unwrap_or(10))}))
}

struct Destination {
    /// The ports of the root that it is for.
    ports: Vec<u16>,
    /// An entry of `to`.
    to: Value,
}

/// What cannot be reached is left out, and the others take its share.
fn destinations(overrides: &[Field<'_>], root: &ServiceId, b: &Builder<'_>) -> Vec<Destination> {
    let found = |field| match destination(field, root, b) {
        Some(found) => Some((field, found)),
        None => {
            Field::ignored(field, "leads nowhere, so the others take its share");
            None
        }
    };
    let found: Vec<_> = overrides.iter().filter_map(found).collect();
    let weights = quantity::weights(&found.iter().map(|(_, (_, weight))| *weight).collect::<Vec<_>>());
    let Some(weights) = weights else {
        found.iter().for_each(|(field, _)| field.ignored("the weights are too large"));
        return Vec::new();
    };
    let weighted = found.into_iter().zip(weights).map(|((_, (mut destination, _)), weight)| {
        destination.to["weight"] = json!(weight);
        destination
    });
    weighted.collect()
}

fn destination(field: &Field<'_>, root: &ServiceId, b: &Builder<'_>) -> Option<(Destination, u64)> {
    let Some(authority) = field.get("authority") else {
        return field.fail("has no authority", "the host of a Service, with its port");
    };
    let text = authority.text()?;
    let weight = match field.get("weight") {
        Some(weight) => match quantity::thousandths(&weight.text()?) {
            Some(weight_of) => weight_of,
            None => return weight.fail("is not a weight", "a whole number, or thousandths as in 900m"),
        },
        None => return field.fail("has no weight", ""),
    };
    let (host, port) = text.rsplit_once(':').map_or((&*text, None), |(host, port)| (host, Some(port)));
    let Some((id, service)) = b.resolve(host, &root.namespace).and_then(|id| b.services.get(&id).map(|s| (id, s)))
    else {
        return authority.absent(format!("there is no Service {host}; the others take its share"), "");
    };
    let own: Vec<u16> = b.services.get(root).map(|s| s.ports.keys().copied().collect()).unwrap_or_default();
    let mut to = json!({"service": &*id.name, "namespace": &*id.namespace});
    let ports = match port {
        None => own.into_iter().filter(|p| service.ports.contains_key(p)).collect(),
        Some(port) => match port.parse::<u16>().ok().filter(|p| service.ports.contains_key(p)) {
            Some(port) => {
                to["port"] = json!(port);
                own
            }
            None => {
                let why = format!("{host} has no port {port}; the others take its share");
                return authority.absent(why, "a port of the Service");
            }
        },
    };
    Some((Destination { ports, to }, weight))
}
