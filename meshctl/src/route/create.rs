//! Where nobody says anything of a Service's requests: a new HTTPRoute, and a TrafficPolicy for what Gateway API cannot say.

use super::set::Settings;
use super::shares::Share;
use super::split::Context;
use super::{Which, gateway, native};
use crate::edit::value::{int, list, map, put, text};
use crate::edit::write::{Hand, document};
use crate::error::{Error, Result};
use crate::objects::{Draft, Mesh};
use weft_policy::doc::Node;
use weft_policy::id::ServiceId;

const GATEWAY: &str = "gateway.networking.k8s.io";

pub fn split(
    draft: &mut Draft<'_>,
    mesh: &Mesh,
    id: &ServiceId,
    which: &Which,
    shares: &[Share],
) -> Result<Vec<String>> {
    is_service(draft, id)?;
    let ports = match (which.port, &mesh.ports(id)[..]) {
        (Some(port), _) => vec![port],
        (None, [only]) => vec![*only],
        (None, several) => {
            let all: Vec<String> = several.iter().map(|p| format!("--port {p}")).collect();
            return Err(Error::new(format!("{} has several ports", id.name), all.join(" or ")));
        }
    };
    let context = Context { mesh, service: id, namespace: &id.namespace, ports };
    let backend = |share: &Share| {
        let mut backend = gateway::backend(&share.name, "an HTTPRoute", &context)?;
        put(&mut backend, "weight", int(share.weight));
        Ok(backend)
    };
    let backends: Vec<Node> = shares.iter().map(backend).collect::<Result<_>>()?;
    let name = free(draft, id, GATEWAY, "HTTPRoute");
    let route = http_route(&name, id, which.port, map([("backendRefs", list(backends))]));
    let place = draft.create(&format!("{}-route", id.name), written(&[route]));
    Ok(vec![created(&format!("httproute/{name}.{}", id.namespace), &place, id)])
}

pub fn settings(
    draft: &mut Draft<'_>,
    mesh: &Mesh,
    id: &ServiceId,
    which: &Which,
    settings: &Settings,
) -> Result<Vec<String>> {
    is_service(draft, id)?;
    let name = free(draft, id, GATEWAY, "HTTPRoute");
    let cannot = gateway::cannot_say("HTTPRoute", settings).is_some();
    let mut rule = map([]);
    let said = Settings { retries: None, per_try_timeout: None, retry_on: None, ..settings.clone() };
    gateway::say(&mut rule, if cannot { &said } else { settings })?;
    let port = which.port.filter(|_| mesh.ports(id).len() > 1);
    let mut documents = vec![http_route(&name, id, port, rule)];
    let mut names = vec![format!("httproute/{name}.{}", id.namespace)];
    if cannot {
        let rest = Settings { timeout: None, ..settings.clone() };
        let target = map([("group", text(GATEWAY)), ("kind", text("HTTPRoute")), ("name", text(&*name))]);
        let policy = free(draft, id, "weft.dev", "TrafficPolicy");
        documents.push(traffic_policy(&policy, id, target, &rest)?);
        names.push(format!("trafficpolicy/{policy}.{}", id.namespace));
    }
    let place = draft.create(&format!("{}-route", id.name), written(&documents));
    Ok(names.iter().map(|name| created(name, &place, id)).collect())
}

/// For all of a Service's routes, as far as they say nothing of it themselves.
pub fn policy(draft: &mut Draft<'_>, id: &ServiceId, settings: &Settings) -> Result<Vec<String>> {
    is_service(draft, id)?;
    let name = free(draft, id, "weft.dev", "TrafficPolicy");
    let target = map([("group", text("")), ("kind", text("Service")), ("name", text(&*id.name))]);
    let policy = traffic_policy(&name, id, target, settings)?;
    let place = draft.create(&format!("{}-policy", id.name), written(&[policy]));
    Ok(vec![created(&format!("trafficpolicy/{name}.{}", id.namespace), &place, id)])
}

fn created(object: &str, place: &str, id: &ServiceId) -> String {
    format!("{object} created{place}, for no object of {}'s own says this", id.name)
}

fn http_route(name: &str, id: &ServiceId, port: Option<u16>, rule: Node) -> Node {
    let mut parent = map([("group", text("")), ("kind", text("Service")), ("name", text(&*id.name))]);
    port.into_iter().for_each(|port| put(&mut parent, "port", int(port)));
    map([
        ("apiVersion", text(format!("{GATEWAY}/v1"))),
        ("kind", text("HTTPRoute")),
        ("metadata", map([("name", text(name)), ("namespace", text(&*id.namespace))])),
        ("spec", map([("parentRefs", list([parent])), ("rules", list([rule]))])),
    ])
}

fn traffic_policy(name: &str, id: &ServiceId, target: Node, settings: &Settings) -> Result<Node> {
    let mut spec = map([("targetRefs", list([target]))]);
    native::say(&mut spec, settings)?;
    Ok(map([
        ("apiVersion", text("weft.dev/v1alpha1")),
        ("kind", text("TrafficPolicy")),
        ("metadata", map([("name", text(name)), ("namespace", text(&*id.namespace))])),
        ("spec", spec),
    ]))
}

fn written(documents: &[Node]) -> String {
    let hand = Hand { flows: true, ..Hand::default() };
    documents.iter().map(|d| document(d, &hand)).collect::<Vec<_>>().join("---\n")
}

/// The Service's own name, unless an object of the kind has it already.
fn free(draft: &Draft<'_>, id: &ServiceId, group: &str, kind: &str) -> String {
    let objects = draft.objects();
    let taken = |name: &String| objects.of(group, kind).any(|o| o.name == *name && *o.namespace == *id.namespace);
    let names = (1..).map(|n| if n == 1 { id.name.to_string() } else { format!("{}-{n}", id.name) });
    names.into_iter().find(|n| !taken(n)).unwrap_or_default()
}

/// A host that is no Service is routed by a VirtualService alone.
fn is_service(draft: &Draft<'_>, id: &ServiceId) -> Result<()> {
    let objects = draft.objects();
    match objects.of("", "Service").any(|o| o.name == *id.name && *o.namespace == *id.namespace) {
        true => Ok(()),
        false => Err(Error::new(
            format!("{} is no Service here, so no HTTPRoute can be attached to it", id.name),
            "a VirtualService with this host",
        )),
    }
}
