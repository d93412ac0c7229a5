//! TrafficPolicy, attached to Services and routes by `targetRefs`.
//!
//! ```yaml
//! apiVersion: weft.dev/v1alpha1
//! kind: TrafficPolicy
//! metadata: {name: web, namespace: demo}
//! spec:
//!   targetRefs:
//!   - {group: "", kind: Service, name: web, sectionName: http}    # a port by name or number; all without it
//!   retry: {attempts: 3, on: 5xx}
//!   timeout: {request: 3s}
//!   outlier: {accrual: {maxFailures: 3}}
//! ```
//!
//! `retry` and `timeout` are those of a route: they take the place of what the route says, or fill in what a Service's routes
//! leave open. The others are fields of a `policy`, and go with a Service only: they belong to what requests are sent to.
//! Everything is written as in `docs/config-file.md`. Targets are of the policy's own namespace. Of several policies, each block
//! is that of the one for the port, then of the oldest.

use crate::builder::{Builder, PolicySet};
use crate::conflict::Policies;
use crate::object::ObjectRef;
use crate::overlay::{Overlay, Target};
use crate::proof;
use crate::reader::{Field, Reader};
use crate::world::Clients;
use serde_json::{Map, Value, json};
use weft_policy::doc;
use weft_policy::id::ServiceId;
use weft_policy::yaml;

const OF_ROUTES: [&str; 2] = ["retry", "timeout"];
const OF_SERVICES: [&str; 7] = ["balance", "breaker", "outlier", "retryBudget", "tls", "connections", "http"];
const ROUTES: [(&str, &str); 4] = [
    ("gateway.networking.k8s.io", "HTTPRoute"),
    ("gateway.networking.k8s.io", "GRPCRoute"),
    ("policy.linkerd.io", "HTTPRoute"),
    ("networking.istio.io", "VirtualService"),
];

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let spec = reader.spec();
    let of_routes = blocks(&spec, &OF_ROUTES, |block, value| {
        proof::route(&json!({block: value}), "gatewayApi").map_err(|why| within(block, &why))
    });
    let of_services = blocks(&spec, &OF_SERVICES, |block, value| {
        let files = ["roots", "certificate", "key"].into_iter().find(|f| block == "tls" && value.get(f).is_some());
        match files {
            Some(file) => Err(format!("{file}: files are a proxy's own, and cannot be named for all of them")),
            None => proof::policy(&json!({block: value})).map_err(|why| within(block, &why)),
        }
    });
    let targets = spec.list("targetRefs");
    if targets.is_empty() {
        spec.fail::<()>(
            "has no targetRefs, so it has no effect",
            "targetRefs: [{group: \"\", kind: Service, name: web}]",
        );
    }
    for target in &targets {
        attach(target, reader, &of_routes, &of_services, b);
    }
}

/// A proof names the block itself; the finding is at its place already.
fn within(block: &str, why: &str) -> String {
    why.strip_prefix(block).map_or(why, |rest| rest.trim_start_matches(['.', ':', ' '])).to_string()
}

fn blocks(
    spec: &Field<'_>,
    names: &[&str],
    prove: impl Fn(&str, &Value) -> Result<Vec<String>, String>,
) -> Map<String, Value> {
    let mut out = Map::new();
    for name in names {
        let Some(field) = spec.get(name) else { continue };
        let value = yaml::json(field.node);
        match prove(name, &value) {
            Ok(warnings) => {
                warnings.iter().for_each(|w| field.warn(None, w.clone(), ""));
                leaves(&field);
                out.insert(name.to_string(), value);
            }
            Err(why) => field.fail(why, "as in docs/config-file.md").unwrap_or_default(),
        }
    }
    out
}

/// Each value is a line of the ledger.
fn leaves(field: &Field<'_>) {
    match &field.node.value {
        doc::Value::Map(_) => field.entries().iter().for_each(|(_, f)| leaves(f)),
        doc::Value::List(_) => field.items().iter().for_each(leaves),
        _ => field.honoured(),
    }
}

fn attach(
    target: &Field<'_>,
    reader: &Reader<'_>,
    of_routes: &Map<String, Value>,
    of_services: &Map<String, Value>,
    b: &mut Builder<'_>,
) -> Option<()> {
    let namespace = &reader.object.namespace;
    let group = target.get("group").map_or(Some(String::new()), |f| f.text())?;
    let text = |name: &str| target.get(name).map_or_else(|| target.fail(format!("has no {name}"), ""), |f| f.text());
    let (kind, name) = (text("kind")?, text("name")?);
    let section = target.get("sectionName").map_or(Some(None), |f| f.text().map(Some))?;
    // With one target, what is lost is lost as a whole.
    let from = if reader.spec().list("targetRefs").len() == 1 { reader.spec().source() } else { target.source() };
    if ROUTES.contains(&(&*group, &*kind)) {
        if b.objects.of(&group, &kind).all(|o| o.name != name || o.namespace != *namespace) {
            return target.absent(format!("there is no {kind} {name} in {namespace}"), "");
        }
        for block in of_services.keys() {
            reader.spec().get(block)?.warn(
                None,
                format!("{block} goes with a Service, not with the {kind} {name}"),
                "",
            );
        }
        if let Some(section) = section {
            target.warn(None, format!("is for all of {name}, not for {section} only"), "");
        }
        if of_routes.is_empty() {
            target.ignored("nothing of this policy is for routes");
            return None;
        }
        let on = Target::Route(ObjectRef { group, kind, namespace: namespace.clone(), name });
        b.overlays.push(Overlay { from, kind: Policies::TrafficPolicy, specific: 0, on, fields: of_routes.clone() });
        return Some(());
    }
    if !matches!(&*group, "" | "core") || kind != "Service" {
        let kinds = ROUTES.map(|(group, kind)| format!("{kind} ({group})")).join(", ");
        return target.fail(format!("{kind} ({group}) is no target"), &format!("Service, or {kinds}"));
    }
    let id = ServiceId::new(namespace, &name);
    let Some(service) = b.services.get_mut(&id) else {
        return target.absent(format!("there is no Service {name} in {namespace}"), "");
    };
    let specific = u32::from(section.is_some());
    let ports: Vec<u16> = match section {
        None => service.ports.keys().copied().collect(),
        Some(section) => match service.port(&section) {
            Some(port) => vec![port],
            None => return target.absent(format!("Service {name} has no port {section}"), "a port's name or number"),
        },
    };
    for port in ports {
        service.add_policy(PolicySet {
            from: from.clone(),
            kind: Policies::TrafficPolicy,
            specific,
            clients: Clients::default(),
            port,
            policy: of_services.clone(),
            subsets: Vec::new(),
        });
        if !of_routes.is_empty() {
            b.overlays.push(Overlay {
                from: from.clone(),
                kind: Policies::TrafficPolicy,
                specific,
                on: Target::Service(id.clone(), port),
                fields: of_routes.clone(),
            });
        }
    }
    Some(())
}
