//! Rules of an HTTPRoute or a GRPCRoute.

use super::set::{Limit, Settings};
use super::shares::{Share, scaled};
use super::split::Context;
use crate::edit::value;
use crate::error::{Error, Result};
use weft_dialects::object::ObjectRef;
use weft_policy::doc::{Node, Value};
use weft_policy::id::ServiceId;

fn rule<'n>(node: &'n mut Node, field: &str) -> Result<&'n mut Node> {
    value::at_mut(node, field).ok_or_else(|| Error::from(format!("{field} is not there")))
}

pub fn split(node: &mut Node, object: &ObjectRef, field: &str, shares: &[Share], context: &Context<'_>) -> Result<()> {
    let rule = rule(node, field)?;
    let mut backends = value::items(value::get(rule, "backendRefs")).to_vec();
    let weight = |n: &Node| match value::get(n, "weight").map(|w| &w.value) {
        Some(Value::Int(n)) => u64::try_from(*n).unwrap_or(0),
        _ => 1,
    };
    let before = backends.iter().map(weight).sum();
    let mut left: Vec<usize> = (0..backends.len()).collect();
    for (share, weight) in shares.iter().zip(scaled(before, shares)) {
        let weight = value::int(i64::try_from(weight).unwrap_or(i64::MAX));
        let found: Vec<usize> = (0..backends.len()).filter(|i| is(&backends[*i], &share.name, context)).collect();
        match &found[..] {
            [one] => {
                value::put(&mut backends[*one], "weight", weight);
                left.retain(|i| i != one);
            }
            [] => {
                let mut new = backend(&share.name, &object.to_string(), context)?;
                value::put(&mut new, "weight", weight);
                backends.push(new);
            }
            _ => return Err(Error::new(format!("{} is there several times", share.name), "edit it by hand")),
        }
    }
    left.into_iter().for_each(|i| value::put(&mut backends[i], "weight", value::int(0)));
    value::put(rule, "backendRefs", value::list(backends));
    Ok(())
}

fn is(backend: &Node, name: &str, context: &Context<'_>) -> bool {
    let namespace = value::word_at(backend, "namespace").unwrap_or_else(|| context.namespace.to_string());
    let own = value::word_at(backend, "name").map(|n| ServiceId::new(&namespace, &n));
    own.is_some() && own == context.service_named(name)
}

/// `{name, port}` of a Service: Gateway API knows no subsets.
pub fn backend(name: &str, who: &str, context: &Context<'_>) -> Result<Node> {
    let Some(id) = context.service_named(name) else {
        if context.mesh.subsets(context.service).iter().any(|s| s == name) {
            let hint = format!(
                "a Service that selects only {name}'s pods, or a VirtualService with `destination: {{host: {}, subset: {name}}}`",
                context.service.name
            );
            return Err(Error::new(format!("{who} cannot name subsets, and {name} is one"), hint));
        }
        let why = format!("there is no Service {name} in {}", context.namespace);
        return Err(context.unknown(name, &why, &[]));
    };
    let ports = context.mesh.ports(&id);
    let port = match (context.ports.iter().find(|p| ports.contains(p)), &ports[..]) {
        (Some(same), _) => *same,
        (None, [only]) => *only,
        _ => {
            let hint = "edit it by hand, with the port that is meant";
            return Err(Error::new(format!("{name} has none of the ports of {}", context.service.name), hint));
        }
    };
    let mut new = value::map([("name", value::text(&*id.name))]);
    if *id.namespace != *context.namespace {
        value::put(&mut new, "namespace", value::text(&*id.namespace));
    }
    value::put(&mut new, "port", value::int(port));
    Ok(new)
}

pub fn set(node: &mut Node, object: &ObjectRef, field: &str, settings: &Settings) -> Result<()> {
    if let Some(what) = cannot_say(&object.kind, settings) {
        let ObjectRef { group, kind, namespace, name } = object;
        let hint = format!(
            "a TrafficPolicy for it (docs/traffic-policy.md), with meshctl apply -f -: metadata: {{name: {name}, namespace: \
             {namespace}}}, spec: {{targetRefs: [{{group: {group}, kind: {kind}, name: {name}}}], {}}}",
            super::native::fields(settings)
        );
        return Err(Error::new(format!("{object} governs this, and {what}"), hint));
    }
    say(rule(node, field)?, settings)
}

/// Into a rule, what it can say.
pub fn say(rule: &mut Node, settings: &Settings) -> Result<()> {
    if settings.timeout.is_some() || settings.per_try_timeout.is_some() {
        value::within(rule, "timeouts", |timeouts| {
            settings.timeout.iter().for_each(|t| t.put(timeouts, "request"));
            settings.per_try_timeout.iter().for_each(|t| t.put(timeouts, "backendRequest"));
        });
        drop_empty(rule, "timeouts");
    }
    if settings.retries.is_some() || settings.retry_on.is_some() {
        value::within(rule, "retry", |retry| {
            settings.attempts_known(value::get(retry, "attempts").is_some())?;
            settings.retries.iter().for_each(|n| value::put(retry, "attempts", value::int(*n)));
            match &settings.retry_on {
                None => {}
                Some(Limit::None) => value::remove(retry, "codes"),
                Some(Limit::Of(on)) => {
                    let codes: Vec<Node> = codes(on).unwrap_or_default().into_iter().map(value::int).collect();
                    value::put(retry, "codes", value::list(codes));
                }
            }
            Ok::<(), Error>(())
        })?;
    }
    Ok(())
}

fn drop_empty(node: &mut Node, key: &str) {
    if matches!(value::get(node, key).map(|n| &n.value), Some(Value::Map(items)) if items.is_empty()) {
        value::remove(node, key);
    }
}

/// What Gateway API has no words for.
pub fn cannot_say(kind: &str, settings: &Settings) -> Option<String> {
    if kind == "GRPCRoute" {
        return Some("a GRPCRoute says nothing of timeouts and retries".into());
    }
    if settings.retries == Some(0) {
        return Some("Gateway API cannot switch retries off".into());
    }
    match &settings.retry_on {
        Some(Limit::Of(on)) if codes(on).is_none() => {
            Some(format!("Gateway API retries on status codes (and on connections that fail), not on {on}"))
        }
        _ => None,
    }
}

/// Status codes, beside what is retried with them anyway.
fn codes(on: &str) -> Option<Vec<u16>> {
    let anyway = ["reset", "connect-failure", "refused-stream"];
    let words = on.split(',').map(str::trim).filter(|w| !w.is_empty() && !anyway.contains(w));
    words.map(|w| w.parse().ok().filter(|c| (400..600).contains(c))).collect()
}
