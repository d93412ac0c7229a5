//! Rules of a VirtualService.

use super::set::{Limit, Settings};
use super::shares::{Share, scaled};
use super::split::Context;
use crate::edit::value;
use crate::error::{Error, Result};
use weft_dialects::builder::service_of;
use weft_policy::doc::{Node, Value};
use weft_policy::id::ServiceId;

fn rule<'n>(node: &'n mut Node, field: &str) -> Result<&'n mut Node> {
    value::at_mut(node, field).ok_or_else(|| Error::from(format!("{field} is not there")))
}

pub fn split(node: &mut Node, field: &str, shares: &[Share], context: &Context<'_>) -> Result<()> {
    let rule = rule(node, field)?;
    let mut routes = value::items(value::get(rule, "route")).to_vec();
    let weight = |n: &Node| match value::get(n, "weight").map(|w| &w.value) {
        Some(Value::Int(n)) => u64::try_from(*n).unwrap_or(0),
        _ => 0,
    };
    let before = routes.iter().map(weight).sum();
    let pattern = routes.clone();
    let mut left: Vec<usize> = (0..routes.len()).collect();
    for (share, weight) in shares.iter().zip(scaled(before, shares)) {
        let weight = value::int(i64::try_from(weight).unwrap_or(i64::MAX));
        let found: Vec<usize> = (0..routes.len()).filter(|i| is(&routes[*i], &share.name, context)).collect();
        match &found[..] {
            [one] => {
                value::put(&mut routes[*one], "weight", weight);
                left.retain(|i| i != one);
            }
            [] => {
                let destination = destination(&share.name, &pattern, context)?;
                routes.push(value::map([("destination", destination), ("weight", weight)]));
            }
            _ => {
                let message = format!("{} is the destination of several routes of this rule", share.name);
                return Err(Error::new(message, "edit it by hand"));
            }
        }
    }
    left.into_iter().for_each(|i| value::put(&mut routes[i], "weight", value::int(0)));
    value::put(rule, "route", value::list(routes));
    Ok(())
}

fn host(destination: &Node, context: &Context<'_>) -> Option<ServiceId> {
    service_of(&value::word_at(destination, "host")?, context.namespace, "cluster.local")
}

fn is(route: &Node, name: &str, context: &Context<'_>) -> bool {
    let Some(destination) = value::get(route, "destination") else { return false };
    match value::word_at(destination, "subset") {
        Some(subset) => subset == name,
        None => host(destination, context).is_some_and(|id| Some(id) == context.service_named(name)),
    }
}

/// A subset of what the rule has subsets of, or of the Service itself; else a Service.
fn destination(name: &str, routes: &[Node], context: &Context<'_>) -> Result<Node> {
    let destinations = || routes.iter().filter_map(|r| value::get(r, "destination"));
    let like = destinations().find(|d| value::get(d, "subset").is_some()).or(destinations().next());
    let of = like.and_then(|d| host(d, context)).unwrap_or_else(|| context.service.clone());
    let subsets = context.mesh.subsets(&of);
    let mut new = value::map([]);
    if subsets.iter().any(|s| s == name) {
        let own = || match *of.namespace == *context.namespace {
            true => of.name.to_string(),
            false => format!("{}.{}.svc.cluster.local", of.name, of.namespace),
        };
        value::put(&mut new, "host", value::text(like.and_then(|d| value::word_at(d, "host")).unwrap_or_else(own)));
        value::put(&mut new, "subset", value::text(name));
    } else if context.service_named(name).is_some() {
        value::put(&mut new, "host", value::text(name));
    } else {
        let why = format!("{name} is no subset of {} and no Service of {}", of.name, context.namespace);
        return Err(context.unknown(name, &why, &subsets));
    }
    if let Some(port) = like.and_then(|d| value::get(d, "port")) {
        value::put(&mut new, "port", port.clone());
    }
    Ok(new)
}

pub fn set(node: &mut Node, field: &str, settings: &Settings) -> Result<()> {
    let rule = rule(node, field)?;
    settings.timeout.iter().for_each(|t| t.put(rule, "timeout"));
    if !settings.retry() {
        return Ok(());
    }
    value::within(rule, "retries", |retries| {
        settings.attempts_known(value::get(retries, "attempts").is_some())?;
        settings.retries.iter().for_each(|n| value::put(retries, "attempts", value::int(*n)));
        settings.per_try_timeout.iter().for_each(|t| t.put(retries, "perTryTimeout"));
        settings.retry_on.iter().for_each(|on| on.put(retries, "retryOn"));
        Ok(())
    })
}

impl Limit {
    /// As the text of a field; without one there is none.
    pub fn put(&self, node: &mut Node, field: &str) {
        match self {
            Self::None => value::remove(node, field),
            Self::Of(text) => value::put(node, field, value::text(text.clone())),
        }
    }
}
