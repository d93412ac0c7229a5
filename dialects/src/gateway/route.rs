//! What HTTPRoute and GRPCRoute have in common: the Services they are attached to, and the frame of a rule.

use super::backend::Backends;
use super::filters::{self, Filters};
use super::reference_grant::Referrer;
use crate::builder::{Builder, Order, Route, RouteSet};
use crate::conflict;
use crate::proof;
use crate::reader::{Field, Reader};
use crate::world::Clients;
use serde_json::{Map, Value, json};
use weft_policy::id::ServiceId;

/// A Service's port that a route is attached to.
struct Parent {
    service: ServiceId,
    port: u16,
    /// Which of the parentRefs.
    index: usize,
}

/// Reads the rules with `read` and attaches them.
pub fn translate(
    reader: &Reader<'_>,
    builder: &mut Builder<'_>,
    read: impl Fn(&Field<'_>, &Backends<'_>) -> Option<Map<String, Value>>,
) {
    let object = reader.object;
    let spec = reader.spec();
    spec.ignore("hostnames", "a route of a Service is chosen by the address that was dialled");
    let refs = spec.list("parentRefs");
    let parents: Vec<Parent> = refs.iter().enumerate().flat_map(|(i, f)| parents(f, i, object, builder)).collect();
    let referrer = Referrer { group: object.group(), kind: &object.kind, namespace: &object.namespace };
    let backends = Backends::of(builder, referrer);
    let name = object.reference().to_string();
    let mut routes: Vec<Route> = Vec::new();
    for (i, rule) in spec.list("rules").iter().enumerate() {
        let given = rule.get("name").and_then(|n| n.text());
        let Some(mut route) = read(rule, &backends) else {
            rule.ignored("none of its matches can be read, so it is left out");
            continue;
        };
        route.insert("name".into(), json!(format!("{name}/{}", given.unwrap_or(i.to_string()))));
        if let Some(route) = proven(rule, route) {
            routes.push(Route::new(Clients::default(), route, rule.source()));
        }
    }
    if parents.is_empty() {
        return spec.ignored("attached to no Service that is here");
    }
    for parent in parents {
        let producer = *parent.service.namespace == *object.namespace;
        let clients = Clients {
            namespaces: (!producer).then(|| object.namespace.clone()).into_iter().collect(),
            ..Clients::default()
        };
        let Some(service) = builder.services.get_mut(&parent.service) else { continue };
        service.add_routes(RouteSet {
            from: if refs.len() == 1 { spec.source() } else { refs[parent.index].source() },
            kind: if producer { conflict::Routes::ProducerRoute } else { conflict::Routes::ConsumerRoute },
            specific: 0,
            clients,
            order: Order::GatewayApi,
            routes: routes.clone(),
            port: parent.port,
        });
    }
}

/// A rule that a proxy would refuse answers 500, for its requests must not fall to others; one that it could not even match
/// is left out.
fn proven(rule: &Field<'_>, mut route: Map<String, Value>) -> Option<Value> {
    let whole = Value::Object(route.clone());
    let why = match proof::route(&whole, "gatewayApi") {
        Ok(warnings) => {
            warnings.iter().for_each(|w| rule.warn(None, w.clone(), ""));
            return Some(whole);
        }
        Err(why) => why,
    };
    closed(&mut route);
    let closed = Value::Object(route);
    match proof::route(&closed, "gatewayApi") {
        Ok(_) => {
            rule.fail::<()>(format!("{why}; its requests are answered with 500"), "");
            Some(closed)
        }
        Err(_) => rule.fail(format!("{why}; it is left out"), ""),
    }
}

/// Answers 500, whatever else it says.
fn closed(route: &mut Map<String, Value>) {
    route.retain(|field, _| matches!(&**field, "match" | "name"));
    route.insert("to".into(), json!([{"invalid": true}]));
}

fn parents(field: &Field<'_>, index: usize, object: &crate::Object, builder: &Builder<'_>) -> Vec<Parent> {
    read_parent(field, index, object, builder).unwrap_or_default()
}

fn read_parent(field: &Field<'_>, index: usize, object: &crate::Object, builder: &Builder<'_>) -> Option<Vec<Parent>> {
    let text = |name: &str, otherwise: &str| field.get(name).map_or(Some(otherwise.to_string()), |f| f.text());
    let (group, kind) = (text("group", object.group())?, text("kind", "Gateway")?);
    let namespace = text("namespace", &object.namespace)?;
    let Some(name) = field.get("name") else { return field.fail("has no name", "the name of a Service") };
    let name = name.text()?;
    if kind != "Service" || !matches!(&*group, "" | "core") {
        field.ignored(format!("{kind} ({group}) is not served here"));
        if kind == "Service" {
            field.warn(None, "this Service is of no group that is known", "group: \"\"");
        }
        return None;
    }
    let id = ServiceId::new(&namespace, &name);
    let Some(service) = builder.services.get(&id) else {
        return field.absent(format!("there is no Service {name} in {namespace}"), "");
    };
    let number = field.get("port").map_or(Some(None), |p| p.port().map(Some))?;
    let section = field.get("sectionName").map_or(Some(None), |s| s.text().map(Some))?;
    let fits = |port: &u16| {
        let named = |name: &String| service.ports.get(port).is_some_and(|p| p.name == *name);
        number.is_none_or(|n| n == *port) && section.as_ref().is_none_or(named)
    };
    let ports: Vec<u16> = service.ports.keys().copied().filter(fits).collect();
    if ports.is_empty() {
        let all: Vec<String> = service.ports.keys().map(u16::to_string).collect();
        return field.absent(format!("Service {name} has no such port"), &format!("one of {}", all.join(", ")));
    }
    Some(ports.into_iter().map(|port| Parent { service: id.clone(), port, index }).collect())
}

/// Matches, filters and backends of a rule, as a route without a name. `None`: it matches nothing.
pub fn rule(
    rule: &Field<'_>,
    backends: &Backends<'_>,
    matches: impl Fn(&Field<'_>) -> Option<Value>,
) -> Option<Map<String, Value>> {
    let matches = super::matches::of(rule, matches);
    let Filters { fields: mut route, impossible } = filters::of_rule(rule, backends);
    let to: Vec<Value> = rule.list("backendRefs").iter().map(|b| destination(b, backends).into()).collect();
    let matches = matches?;
    if !matches.is_empty() {
        route.insert("match".into(), matches.into());
    }
    if impossible {
        for name in ["filters", "backendRefs"] {
            rule.get(name).inspect(|f| f.ignored("the rule answers 500, for one of its filters cannot be done"));
        }
        closed(&mut route);
    } else if route.contains_key("redirect") {
        rule.get("backendRefs").inspect(|f| f.ignored("a redirect sends nothing on"));
    } else if !to.is_empty() {
        route.insert("to".into(), to.into());
    }
    Some(route)
}

fn destination(field: &Field<'_>, backends: &Backends<'_>) -> Map<String, Value> {
    let filters = filters::of_backend(field);
    let weight = field.get("weight").map_or(Some(1), |w| w.int(0, 1_000_000));
    let mut to = match (backends.resolve(field, "its share is answered with 500"), filters.impossible) {
        (Some(to), false) => to,
        (Some(_), true) => {
            field.ignored("its share is answered with 500, for one of its filters cannot be done");
            Map::from_iter([("invalid".to_string(), json!(true))])
        }
        (None, _) => Map::from_iter([("invalid".to_string(), json!(true))]),
    };
    if !to.contains_key("invalid") {
        to.extend(filters.fields);
    }
    to.insert("weight".into(), json!(weight.unwrap_or(1)));
    to
}
