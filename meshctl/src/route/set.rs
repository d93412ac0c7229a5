//! `route set`: timeouts and retries of a route, and with `limits.rs` what its Service bears.

use super::delete::others;
use super::mesh::Way;
use super::{Which, create, gateway, istio, limits, linkerd, native, show};
use crate::error::{Error, Result};
use crate::objects::{Draft, Mesh, Store, Writing, after};
use clap::Args;
use serde_json::Value as Json;
use std::str::FromStr;
use std::time::Duration;
use weft_dialects::reader::Source;
use weft_policy::doc::{nearest, parse_duration};
use weft_policy::id::ServiceId;
use weft_policy::retry::Conditions;

#[derive(Args, Clone, Debug, Default)]
#[group(required = true, multiple = true)]
pub struct Settings {
    /// For the whole request, over all attempts; `none` for no limit
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Limit>,
    /// How often a request is tried again; 0 switches retries off
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: Option<u32>,
    /// For one attempt; `none` for no limit
    #[arg(long, value_name = "DURATION")]
    pub per_try_timeout: Option<Limit>,
    /// What is tried again: 5xx, gateway-error, reset, connect-failure, refused-stream, 503, ...
    #[arg(long, value_name = "WORDS", value_parser = conditions)]
    pub retry_on: Option<Limit>,
    /// Connections that one client's sidecar opens to the Service at most
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,
    /// Answers of 5xx in a row, after which an endpoint gets a rest
    #[arg(long = "consecutive-5xx", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub consecutive_5xx: Option<u32>,
}

/// A value, or that there is to be none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    None,
    Of(String),
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(typed: &str) -> std::result::Result<Self, String> {
        match (typed, parse_duration(typed)) {
            ("none", _) => Ok(Self::None),
            (_, Some(_)) => Ok(Self::Of(typed.into())),
            _ => Err("a duration such as 250ms, 2s or 1m30s, or none".into()),
        }
    }
}

fn conditions(typed: &str) -> std::result::Result<Limit, String> {
    if typed == "none" {
        return Ok(Limit::None);
    }
    match Conditions::parse(typed) {
        Ok(_) => Ok(Limit::Of(typed.into())),
        Err(word) => Err(format!(
            "{word:?} is not known; 5xx, gateway-error, reset, reset-before-request, connect-failure, refused-stream, \
             retriable-4xx, a code or a range of codes, or gRPC's cancelled, deadline-exceeded, internal, \
             resource-exhausted, unavailable"
        )),
    }
}

impl Settings {
    /// Whether anything of retries is asked for.
    pub fn retry(&self) -> bool {
        self.retries.is_some() || self.per_try_timeout.is_some() || self.retry_on.is_some()
    }

    /// Each limit by itself, with the block of a policy that it is in.
    pub fn limits(&self) -> Vec<(&'static str, Self)> {
        let connections = Self { max_connections: self.max_connections, ..Self::default() };
        let failures = Self { consecutive_5xx: self.consecutive_5xx, ..Self::default() };
        let both = [(self.max_connections, "breaker", connections), (self.consecutive_5xx, "outlier", failures)];
        both.into_iter().filter(|(asked, ..)| asked.is_some()).map(|(_, block, part)| (block, part)).collect()
    }

    /// What is a route's.
    fn of_routes(&self) -> Option<Self> {
        let part = Self { max_connections: None, consecutive_5xx: None, ..self.clone() };
        (part.retry() || part.timeout.is_some()).then_some(part)
    }

    /// What to retry, and for how long, means nothing without a number.
    pub fn attempts_known(&self, there: bool) -> Result<()> {
        match there || self.retries.is_some() {
            true => Ok(()),
            false => {
                Err(Error::new("how often is it to be tried again? This route says nothing of retries", "--retries 2"))
            }
        }
    }

    fn fields(&self) -> Vec<&'static str> {
        let asked = [
            (self.timeout.is_some(), "timeout.request"),
            (self.retries.is_some(), "retry.attempts"),
            (self.per_try_timeout.is_some(), "retry.perTryTimeout"),
            (self.retry_on.is_some(), "retry.on"),
        ];
        asked.into_iter().filter(|(is, _)| *is).map(|(_, field)| field).collect()
    }

    /// Which of the fields a route has otherwise.
    fn otherwise(&self, route: &Json) -> Option<&'static str> {
        let limit = |field: &Json| {
            let text = field.as_str().and_then(parse_duration);
            text.filter(|d| *d > Duration::ZERO)
        };
        let differs = |wanted: &Option<Limit>, is: &Json| match wanted {
            Some(Limit::Of(text)) => parse_duration(text).filter(|d| *d > Duration::ZERO) != limit(is),
            // Some dialects have defaults.
            _ => false,
        };
        let (timeout, retry) = (&route["timeout"]["request"], &route["retry"]);
        if differs(&self.timeout, timeout) {
            return Some("timeout.request");
        }
        if differs(&self.per_try_timeout, &retry["perTryTimeout"]) {
            return Some("retry.perTryTimeout");
        }
        if self.retries.is_some_and(|n| u64::from(n) != retry["attempts"].as_u64().unwrap_or(0)) {
            return Some("retry.attempts");
        }
        let on: Vec<String> = match &retry["on"] {
            Json::Array(list) => list.iter().map(|w| w.as_str().unwrap_or_default().to_string()).collect(),
            on => on.as_str().unwrap_or_default().split(',').map(|w| w.trim().to_string()).collect(),
        };
        let known = |word: &str| word == "retriable-status-codes" || on.iter().any(|w| w == word);
        match &self.retry_on {
            Some(Limit::Of(wanted)) if !wanted.split(',').map(str::trim).all(known) => Some("retry.on"),
            _ => None,
        }
    }
}

pub fn run(
    store: &Store,
    typed: (&str, Option<&str>),
    which: &Which,
    settings: &Settings,
    writing: Writing,
) -> Result<()> {
    let mesh = store.mesh();
    let id = mesh.find(typed.0, typed.1)?;
    let mut draft = store.draft();
    let mut done = Vec::new();
    let of_routes = settings.of_routes();
    if let Some(settings) = &of_routes {
        done.extend(set(&mut draft, mesh, id, which, settings)?);
    }
    let limits = !settings.limits().is_empty();
    if limits {
        done.extend(limits::set(&mut draft, mesh, id, which, settings)?);
    }
    let change = draft.done();
    let of_routes = of_routes.map(|settings| in_effect(&change.mesh, id, which, &settings));
    let of_limits = limits.then(|| limits::in_effect(&change.mesh, id, which, settings));
    for outcome in [of_routes, of_limits].into_iter().flatten() {
        match outcome {
            Ok(line) => done.push(line),
            Err(e) if !writing.force => return Err(e),
            Err(_) => {}
        }
    }
    change.finish(writing, &done)
}

/// Where it is said now, or where nobody says it.
fn set(draft: &mut Draft<'_>, mesh: &Mesh, id: &ServiceId, which: &Which, settings: &Settings) -> Result<Vec<String>> {
    let ways = candidates(mesh, id, which)?;
    let (source, of) = match one(&ways, which, settable)? {
        Some((source, of)) => (Some(source), of),
        None => (None, Vec::new()),
    };
    // Whoever says it now beside the route goes on saying it.
    let over = |way: &Way<'_>| {
        let others = settings.fields().into_iter().filter_map(|f| way.other(f));
        others.into_iter().find(|s| s.object.kind == "TrafficPolicy").cloned()
    };
    match of.iter().find_map(over).or(source.cloned()) {
        Some(source) if has_words(&source) => {
            let object = &source.object;
            let now = draft.find(object).ok_or_else(|| Error::from(format!("{object} is not there any more")))?;
            let mut node = now.node.clone();
            match &*object.kind {
                "VirtualService" => istio::set(&mut node, &source.field, settings),
                "ServiceProfile" => linkerd::set(&mut node, &source.field, settings),
                "TrafficPolicy" => native::set(&mut node, settings),
                _ => gateway::set(&mut node, object, &source.field, settings),
            }?;
            Ok(std::iter::once(draft.edit(&now, &node)?).chain(others(&now, id)).collect())
        }
        // A split has no word for it, and annotations yield to a policy.
        Some(_) => create::policy(draft, id, settings),
        None if ways.iter().any(|w| w.forwards() && w.from().is_some()) => {
            let hint = "a route in the profile, with condition: {pathRegex: /.*}, and then this again";
            Err(Error::new("these are the requests that no route of the ServiceProfile takes", hint))
        }
        None => create::settings(draft, mesh, id, which, settings),
    }
}

/// Whether it is a place where timeouts and retries can be said.
fn has_words(source: &Source) -> bool {
    match &*source.object.kind {
        "VirtualService" | "HTTPRoute" | "GRPCRoute" | "TrafficPolicy" => true,
        "ServiceProfile" => source.field.starts_with("spec.routes["),
        _ => false,
    }
}

/// What a profile has no route for is nobody's to set.
fn settable<'m>(way: &Way<'m>) -> Option<&'m Source> {
    way.from().filter(|s| s.object.kind != "ServiceProfile" || s.field != "spec")
}

/// What will be, or who keeps it from being.
fn in_effect(mesh: &Mesh, id: &ServiceId, which: &Which, settings: &Settings) -> Result<String> {
    let ways = candidates(mesh, id, which)?;
    let of = one(&ways, which, settable)?.map(|(_, of)| of).unwrap_or_default();
    let wrong = of.iter().find_map(|way| Some((way, settings.otherwise(way.route)?)));
    let (way, field) = match (of.first(), wrong) {
        (None, _) => {
            return Err("refused, for it would not be in effect: nothing routes this Service".to_string().into());
        }
        (Some(way), None) => {
            let (timeout, retries) = (show::timeout(way), show::retries(way));
            return Ok(format!("{}: timeout {timeout}, retries {retries}", id.name));
        }
        (_, Some(found)) => found,
    };
    let who = way.other(field).or(way.from()).map(|s| format!(": {} says it{}", s.object, after(&s.file, s.at)));
    let hint = format!("change that, or see meshctl route show {}", id.name);
    Err(Error::new(format!("refused, for {field} would not be in effect{}", who.unwrap_or_default()), hint))
}

/// The routes that can be meant.
pub fn candidates<'m>(mesh: &'m Mesh, id: &'m ServiceId, which: &Which) -> Result<Vec<Way<'m>>> {
    let ports = mesh.ports(id);
    if let Some(port) = which.port.filter(|p| !ports.contains(p)) {
        let all: Vec<String> = ports.iter().map(u16::to_string).collect();
        return Err(Error::new(format!("{} has no port {port}", id.name), format!("one of {}", all.join(", "))));
    }
    let mut ways = mesh.ways(id, mesh.variant_for(id, which.clients.as_deref()));
    ways.retain(|w| which.port.is_none_or(|p| p == w.port));
    let Some(name) = &which.route else { return Ok(ways) };
    let mut names: Vec<&str> = ways.iter().map(|w| w.name()).filter(|n| !n.is_empty()).collect();
    names.dedup();
    if !names.contains(&&**name) {
        let hint = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None if names.is_empty() => "no --route: it has none yet".into(),
            None => format!("one of {names:?}"),
        };
        return Err(Error::new(format!("{} has no route {name:?}", id.name), hint));
    }
    ways.retain(|w| w.name() == name);
    Ok(ways)
}

/// The one place that is meant by these routes, by what `says` finds for each, and its routes. Of several, the one whose routes
/// take every request. None: nobody says anything.
pub fn one<'m>(
    ways: &[Way<'m>],
    which: &Which,
    says: impl Fn(&Way<'m>) -> Option<&'m Source>,
) -> Result<Option<(&'m Source, Vec<Way<'m>>)>> {
    let mut found: Vec<(&Source, Vec<Way<'m>>)> = Vec::new();
    for way in ways.iter().filter(|w| w.forwards()) {
        let Some(source) = says(way) else { continue };
        match found.iter_mut().find(|(s, _)| s.object == source.object && s.field == source.field) {
            Some((_, of)) => of.push(*way),
            None => found.push((source, vec![*way])),
        }
    }
    if which.route.is_none() && found.len() > 1 && found.iter().any(|(_, of)| of.iter().any(Way::takes_all)) {
        found.retain(|(_, of)| of.iter().any(Way::takes_all));
    }
    if found.len() > 1 {
        let mut names: Vec<String> = found.iter().map(|(_, of)| format!("--route {:?}", of[0].name())).collect();
        let objects = found.iter().map(|(s, _)| s.object.to_string());
        let objects: std::collections::BTreeSet<String> = objects.collect();
        names.dedup();
        let hint = names.join(" or ");
        return Err(Error::new(format!("which route? {} has several", Vec::from_iter(objects).join(" and ")), hint));
    }
    Ok(found.pop())
}
