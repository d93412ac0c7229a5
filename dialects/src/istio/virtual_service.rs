//! VirtualService: which requests to a host go where, and what happens to them on the way.
//!
//! It acts in the client's sidecar, by the service that a host means, whatever the request's Host. Of several for one host the
//! most specific counts, and then the oldest; `conflict.rs` tells the others.

mod http;
mod matches;
mod stream;

use crate::builder::{Builder, Order, Port, Route, RouteSet};
use crate::conflict::Routes;
use crate::istio::{exported, targets};
use crate::reader::{Field, Reader, Source};
use crate::world::Clients;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use weft_policy::id::ServiceId;

/// A rule as far as it does not depend on whose routes it is among.
struct Rule {
    name: String,
    matches: Vec<matches::Match>,
    /// Empty: it does not forward.
    to: Vec<Destination>,
    mirrors: Vec<(Destination, Map<String, Value>)>,
    rest: Map<String, Value>,
    from: Source,
}

#[derive(Clone)]
struct Destination {
    service: ServiceId,
    port: Option<u16>,
    subset: Option<String>,
    /// `weight` and headers.
    rest: Map<String, Value>,
}

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let spec = reader.spec();
    let namespace = reader.object.namespace.as_str();
    let hosts: Vec<(Field<'_>, String)> =
        spec.list("hosts").into_iter().filter_map(|f| Some((f.clone(), f.text()?.to_ascii_lowercase()))).collect();
    let clients = exported(&spec, namespace);
    if !in_mesh(&spec) {
        spec.ignored("only for gateways, which Weft has none of yet");
        spec.warn(None, "has no effect: it is for gateways only", "add `mesh` to gateways for sidecars");
        return;
    }
    if hosts.is_empty() {
        spec.warn(None, "has no effect: it names no hosts (a delegate is not read)", "hosts: [NAME]");
    }
    let named = |i: usize| format!("{}.{i}", reader.object.name);
    let http: Vec<Rule> =
        spec.list("http").iter().enumerate().filter_map(|(i, f)| http::rule(f, named(i), &clients, b)).collect();
    let (tcp, tls) = (stream::rules(&spec, "tcp", &clients, b), stream::rules(&spec, "tls", &clients, b));
    for (field, host) in hosts {
        let mut found = targets(b, &host, namespace);
        if found.is_empty() {
            if host.starts_with('*') && host != "*" {
                field.warn(None, "no Service has such a name", "");
            }
            found = match host.starts_with('*') {
                true => continue,
                false => external(b, &field, &host, namespace, &http).map(|id| (id, 1000)).into_iter().collect(),
            };
        }
        let source = |name: &str| spec.get(name).map(|f| f.source());
        for (id, specific) in found {
            let Some(service) = b.services.get(&id) else { continue };
            let ports: Vec<(u16, &str)> = service.ports.iter().map(|(n, p)| (*n, p.protocol)).collect();
            for (port, protocol) in ports {
                let bytes = ["tcp", "tls"].contains(&protocol);
                let rules: Vec<&Rule> = if bytes { tcp.iter().chain(&tls).collect() } else { http.iter().collect() };
                let from = if bytes { source("tcp").or(source("tls")) } else { source("http") };
                let Some(from) = from.filter(|_| !rules.is_empty()) else { continue };
                let routes = rules.iter().flat_map(|r| routes(r, &id, port, b)).collect();
                add(b, &id, port, routes, specific, from, &clients);
            }
        }
    }
}

fn add(
    b: &mut Builder<'_>,
    id: &ServiceId,
    port: u16,
    routes: Vec<Route>,
    specific: u32,
    from: Source,
    clients: &Clients,
) {
    let set = RouteSet {
        from,
        kind: Routes::VirtualService,
        specific,
        clients: clients.clone(),
        order: Order::FirstMatch,
        routes,
        port,
    };
    if let Some(service) = b.services.get_mut(id) {
        service.add_routes(set);
    }
}

/// Without gateways it is for sidecars; with them only if they are named.
fn in_mesh(spec: &Field<'_>) -> bool {
    let gateways = spec.list("gateways");
    let mut mesh = gateways.is_empty();
    for gateway in &gateways {
        match gateway.text().as_deref() {
            Some("mesh") => mesh = true,
            _ => gateway.ignored("Weft has no gateways yet"),
        }
    }
    mesh
}

/// A host that is no Service: what its routes say is all there is of it.
fn external(b: &mut Builder<'_>, field: &Field<'_>, host: &str, namespace: &str, http: &[Rule]) -> Option<ServiceId> {
    let Some(id) = b.host(host, namespace) else {
        return field.fail("is no host", "a name such as web, web.demo or api.example.com");
    };
    field.warn(None, format!("there is no Service {host}; requests with this Host are routed"), "");
    let ports: BTreeSet<u16> = http.iter().flat_map(|r| &r.matches).map(|m| m.port.unwrap_or(80)).collect();
    if let Some(service) = b.services.get_mut(&id) {
        for port in if ports.is_empty() { BTreeSet::from([80]) } else { ports } {
            service.ports.entry(port).or_insert_with(|| Port { protocol: "http", ..Port::default() });
        }
    }
    Some(id)
}

/// A rule among the routes of a port: one for each kind of clients it is for.
fn routes(rule: &Rule, owner: &ServiceId, port: u16, b: &Builder<'_>) -> Vec<Route> {
    let mut kinds: Vec<(Clients, Vec<Value>)> = Vec::new();
    for m in rule.matches.iter().filter(|m| m.port.is_none_or(|p| p == port)) {
        let value = Value::Object(m.value.clone());
        match kinds.iter_mut().find(|(clients, _)| *clients == m.clients) {
            Some((_, values)) => values.push(value),
            None => kinds.push((m.clients.clone(), vec![value])),
        }
    }
    let mut route = rule.rest.clone();
    route.insert("name".into(), json!(rule.name));
    if !rule.to.is_empty() {
        route.insert("to".into(), rule.to.iter().map(|d| d.write(owner, port, b)).collect());
    }
    if !rule.mirrors.is_empty() {
        let mirror = |(d, rest): &(Destination, Map<String, Value>)| {
            let mut out = rest.clone();
            out.insert("to".into(), d.write(owner, port, b));
            Value::Object(out)
        };
        route.insert("mirror".into(), rule.mirrors.iter().map(mirror).collect());
    }
    let made = |(clients, values): (Clients, Vec<Value>)| {
        let mut route = route.clone();
        if !values.iter().any(|v| v == &json!({})) {
            route.insert("match".into(), Value::Array(values));
        }
        Route::new(clients, Value::Object(route), rule.from.clone())
    };
    kinds.into_iter().map(made).collect()
}

impl Destination {
    /// `destination: {host, subset, port: {number}}`; a host that nobody has is answered 503, as in Istio.
    fn read(field: &Field<'_>, b: &Builder<'_>) -> Option<Self> {
        let namespace = field.source().object.namespace;
        let Some(host) = field.get("host") else { return field.fail("names no host", "host: NAME") };
        let name = host.text()?.to_ascii_lowercase();
        let subset = field.get("subset").map(|f| f.text());
        let port = field.get("port").and_then(|p| p.get("number")).map(|f| f.port());
        let port = port.map_or(Some(None), |p| p.map(Some))?;
        let Some(service) = b.resolve(&name, &namespace) else {
            host.warn(
                Some("G7"),
                format!("there is no Service {name}: its share of requests is answered 503"),
                "a Service of the rule's own namespace, or NAME.NAMESPACE",
            );
            return Some(Self { service: ServiceId::new(&namespace, &name), port, subset: None, rest: Map::new() });
        };
        let known = b.services.get(&service)?;
        if let Some(missing) = port.filter(|p| !known.ports.contains_key(p)) {
            field.warn(Some("G7"), format!("{service} has no port {missing}: answered 503 NC"), "");
        }
        if let Some(Some(subset)) = &subset {
            subset_is_known(field, &service, subset, b);
        }
        if port.is_none() && known.ports.len() > 1 {
            let hint = "port: {number: ...}";
            field.warn(None, format!("{service} has several ports; the one that was dialled is meant"), hint);
        }
        Some(Self { service, port, subset: subset.map_or(Some(None), |s| s.map(Some))?, rest: Map::new() })
    }

    fn write(&self, owner: &ServiceId, owner_port: u16, b: &Builder<'_>) -> Value {
        let mut out = self.rest.clone();
        if self.service != *owner {
            out.insert("service".into(), json!(&*self.service.name));
            out.insert("namespace".into(), json!(&*self.service.namespace));
        }
        let ports = b.services.get(&self.service).map(|s| &s.ports);
        let only = ports.filter(|p| p.len() == 1).and_then(|p| p.keys().next().copied());
        if let Some(port) = self.port.or(only).filter(|p| *p != owner_port) {
            out.insert("port".into(), json!(port));
        }
        if let Some(subset) = &self.subset {
            out.insert("subset".into(), json!(subset));
        }
        Value::Object(out)
    }
}

fn subset_is_known(field: &Field<'_>, service: &ServiceId, name: &str, b: &Builder<'_>) {
    let sets = b.services.get(service).map(|s| &s.policies[..]).unwrap_or_default();
    let known: BTreeSet<&str> = sets.iter().flat_map(|s| &s.subsets).map(|s| s.name.as_str()).collect();
    if !known.contains(name) {
        let message = format!("no DestinationRule defines subset {name} of {service}: its share is answered 503 NC");
        let hint = weft_policy::doc::nearest(name, known.iter().copied()).map(|n| format!("did you mean {n}?"));
        let hint = hint.unwrap_or_else(|| "a DestinationRule with this subset".into());
        field.find_absent("G7", message, &hint);
    }
}
