//! Limits of a Service's own endpoints: how many connections, and after how many failures one of them gets a rest. They are not a
//! route's, so they go into what says how the Service is called: a TrafficPolicy or a DestinationRule.

use super::set::Settings;
use super::{Which, create, native};
use crate::edit::value;
use crate::error::{Error, Result};
use crate::objects::{Draft, Mesh, after};
use serde_json::Value as Json;
use weft_dialects::Object;
use weft_dialects::builder::service_of;
use weft_dialects::reader::Source;
use weft_policy::doc::Node;
use weft_policy::id::ServiceId;

pub fn set(
    draft: &mut Draft<'_>,
    mesh: &Mesh,
    id: &ServiceId,
    which: &Which,
    settings: &Settings,
) -> Result<Vec<String>> {
    goes_to_itself(mesh, id, which)?;
    let variant = mesh.variant_for(id, which.clients.as_deref());
    let port = port(mesh, id, which);
    let mut done = Vec::new();
    // Each block may be somebody else's.
    for (block, part) in settings.limits() {
        let owner = mesh.policy_from(id, variant, port, block).filter(|s| has_words(s));
        let owner = owner.or_else(|| mesh.destination_rule(id, variant, port));
        match owner.and_then(|s| draft.find(&s.object)).filter(|o| is_for_it_alone(o, id)) {
            Some(now) => {
                let mut node = now.node.clone();
                match &*now.kind {
                    "TrafficPolicy" => native::set(&mut node, &part)?,
                    _ => destination_rule(&mut node, &part),
                }
                let line = draft.edit(&now, &node)?;
                if !done.contains(&line) {
                    done.push(line);
                }
            }
            None => done.extend(create::policy(draft, id, &part)?),
        }
    }
    Ok(done)
}

/// What will be, or who keeps it from being.
pub fn in_effect(mesh: &Mesh, id: &ServiceId, which: &Which, settings: &Settings) -> Result<String> {
    let variant = mesh.variant_for(id, which.clients.as_deref());
    let port = port(mesh, id, which);
    let policy = mesh.variants(id).get(variant).map_or(&Json::Null, |v| &v.document["ports"][port]["policy"]);
    let is = [
        (settings.max_connections, "breaker", &policy["breaker"]["maxConnections"]),
        (settings.consecutive_5xx, "outlier", &policy["outlier"]["ejection"]["consecutive5xx"]),
    ];
    for (wanted, block, is) in is {
        if wanted.is_some_and(|n| *is != n) {
            let who = mesh.policy_from(id, variant, port, block);
            let who = who.map(|s| format!(": {} says it{}", s.object, after(&s.file, s.at))).unwrap_or_default();
            let hint = format!("change that, or see meshctl route show {}", id.name);
            return Err(Error::new(format!("refused, for {block} would not be in effect{who}"), hint));
        }
    }
    let connections = settings.max_connections.map(|n| format!("at most {n} connections"));
    let failures = settings.consecutive_5xx.map(|n| format!("a rest after {n} failures in a row"));
    Ok(format!("{}: {}", id.name, connections.into_iter().chain(failures).collect::<Vec<_>>().join(", ")))
}

/// Which of the document's ports.
fn port(mesh: &Mesh, id: &ServiceId, which: &Which) -> usize {
    which.port.and_then(|p| mesh.ports(id).iter().position(|own| *own == p)).unwrap_or(0)
}

fn has_words(source: &Source) -> bool {
    matches!(&*source.object.kind, "TrafficPolicy" | "DestinationRule")
}

/// A DestinationRule for a whole domain is not one Service's to change.
fn is_for_it_alone(object: &Object, id: &ServiceId) -> bool {
    let host = value::get(&object.node, "spec").and_then(|s| value::word_at(s, "host"));
    let named = host.and_then(|h| service_of(&h, &object.namespace, "cluster.local"));
    object.kind != "DestinationRule" || named.as_ref() == Some(id)
}

/// Limits are of those that requests go to.
fn goes_to_itself(mesh: &Mesh, id: &ServiceId, which: &Which) -> Result<()> {
    let ways = super::set::candidates(mesh, id, which)?;
    let others: Vec<String> =
        ways.iter().filter(|w| w.forwards()).flat_map(|w| w.to()).map(|(to, _)| to.service.name.to_string()).collect();
    match others.is_empty() || others.iter().any(|name| *name == *id.name) {
        true => Ok(()),
        false => {
            let message = format!("requests to {} go to {}, and limits are theirs", id.name, others.join(" and "));
            Err(Error::new(message, format!("meshctl route set {} ...", others[0])))
        }
    }
}

fn destination_rule(node: &mut Node, part: &Settings) {
    value::within(node, "spec", |spec| {
        value::within(spec, "trafficPolicy", |policy| {
            if let Some(n) = part.max_connections {
                value::within(policy, "connectionPool", |pool| {
                    value::within(pool, "tcp", |tcp| value::put(tcp, "maxConnections", value::int(n)));
                });
            }
            if let Some(n) = part.consecutive_5xx {
                value::within(policy, "outlierDetection", |o| value::put(o, "consecutive5xxErrors", value::int(n)));
            }
        });
    });
}
