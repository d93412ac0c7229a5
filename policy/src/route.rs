//! Routes: which requests, and what happens to them. Acts once per request; has no state.
//!
//! ```yaml
//! order: gatewayApi                 # or firstMatch: as listed
//! routes:
//!   - name: canary
//!     match:                        # alternatives; without any, everything
//!       - path: {pathPrefix: /api}
//!         headers: {x-user: {exact: jason}}
//!     to:                           # one of to, redirect, respond; without any, the service itself
//!       - {service: reviews, subset: v1, weight: 90}
//!       - {service: reviews, subset: v2, weight: 10, requestHeaders: {set: {x-canary: "1"}}}
//!     timeout: {request: 3s}
//!     retry: {...}
//!     fault: {...}
//!     mirror: [{to: reviews-next, percent: 10}]
//!     cors: {...}
//!     rewrite: {path: {pathPrefix: /}}
//!     requestHeaders: {set: {...}}
//!     responseHeaders: {remove: [...]}
//! ```
//!
//! A service with routes answers what none of them matches with 404 (`Reason::NoRoute`); one without routes forwards
//! everything. This file is the only place that knows which of several matching routes wins: `Order`.

use crate::doc::{Cursor, Value};
use crate::id::{BackendId, ServiceId};
use crate::matcher::{PathMatch, RequestMatch};
use crate::plan::CompileError;
use crate::reason::Reason;
use crate::rewrite::PathRewrite;
use crate::view::RequestView;
use crate::{cors, direct, fault, headers, mirror, redirect, retry, rewrite, service, timeout};
use std::cmp::Reverse;
use std::sync::Arc;

/// Which of several matching routes wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Order {
    /// The first in the list (Istio, Consul).
    FirstMatch,
    /// The most specific, by `rank` (Gateway API, Linkerd).
    #[default]
    GatewayApi,
}

impl Order {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.word(&[("firstMatch", Self::FirstMatch), ("gatewayApi", Self::GatewayApi)])
    }
}

/// Gateway API's precedence, greatest first: an exact path, the longest prefix, a method, most headers, most query
/// parameters. Equal ones stay in config order. A regex, which Gateway API leaves open, comes after every prefix but the one
/// that is no condition at all (`/`): it would never be reached otherwise.
fn rank(m: &RequestMatch) -> (u8, usize, bool, usize, usize) {
    let (kind, len) = match &m.path {
        Some(PathMatch::Exact(text)) => (3, text.text.len()),
        Some(PathMatch::Prefix(text) | PathMatch::PathPrefix(text)) if text.text.len() > 1 => {
            (2, text.text.trim_end_matches('/').len())
        }
        Some(PathMatch::Regex(_)) => (1, 0),
        _ => (0, 0),
    };
    (kind, len, m.method.is_some(), m.headers.len(), m.query.len())
}

/// A backend as a route names it, relative to the service that owns the route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendRef {
    /// Empty: the service itself.
    pub name: Arc<str>,
    pub namespace: Option<Arc<str>>,
    pub port: Option<u16>,
    pub subset: Option<Arc<str>>,
    /// Known not to exist or not to be permitted (Gateway API): its share is answered with 500.
    pub invalid: bool,
}

impl BackendRef {
    pub fn own() -> Self {
        Self { name: "".into(), namespace: None, port: None, subset: None, invalid: false }
    }

    /// `reviews`, `reviews.demo`, or `{service, namespace, port, subset}`.
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        if !matches!(c.node.value, Value::Map(_)) {
            return Self::name(c);
        }
        c.fields(Self::read_from)
    }

    fn read_from(f: &mut crate::doc::Fields<'_, '_>) -> Option<Self> {
        let namespace = f.opt("namespace", |c| name(c, false));
        let whole = namespace.is_some();
        let own = Self { namespace, ..Self::own() };
        let named = match f.has("service") {
            true => f.opt("service", |c| match whole {
                // With a namespace of its own the name may have dots, as that of an external host has.
                true => Some(Self { name: name(c, true)?, ..own }),
                false => Self::name(c),
            }),
            false => {
                f.opt("service", |_| Some(()));
                Some(own)
            }
        };
        let port = f.opt("port", |c| c.port());
        let subset = f.opt("subset", |c| name(c, true));
        let invalid = f.or("invalid", false, |c| c.bool());
        Some(Self { port, subset, invalid, ..named? })
    }

    fn name(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let text = name(c, true)?;
        let (name, namespace) = match text.split_once('.') {
            None => (text.clone(), None),
            Some((name, rest)) if !rest.contains('.') => (name.into(), Some(rest.into())),
            Some(_) => {
                let hint = "NAME or NAME.NAMESPACE; or {service: NAME, namespace: NAMESPACE} for a name with dots";
                return c.fail(format!("{text:?} has more than a name and a namespace"), hint);
            }
        };
        Some(Self { name, namespace, ..Self::own() })
    }

    pub fn resolve(&self, owner: &ServiceId, owner_port: u16) -> BackendId {
        let service = ServiceId {
            cluster: owner.cluster.clone(),
            namespace: self.namespace.clone().unwrap_or_else(|| owner.namespace.clone()),
            name: if self.name.is_empty() { owner.name.clone() } else { self.name.clone() },
        };
        BackendId { service, port: self.port.unwrap_or(owner_port), subset: self.subset.clone() }
    }
}

fn name(c: &mut Cursor<'_, '_>, dots: bool) -> Option<Arc<str>> {
    let text = c.text()?;
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_') || (dots && b == b'.');
    let parts = text.split('.').all(|part| !part.is_empty());
    if text.len() > 253 || !parts || !text.bytes().all(valid) {
        return c.fail(format!("{text:?} is not a name"), "lower-case letters, digits and -");
    }
    Some(text.into())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub backend: BackendRef,
    pub weight: u32,
    pub request_headers: headers::Config,
    pub response_headers: headers::Config,
}

impl Destination {
    pub fn to(backend: BackendRef, weight: u32) -> Self {
        Self { backend, weight, request_headers: Default::default(), response_headers: Default::default() }
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        if !matches!(c.node.value, Value::Map(_)) {
            return Some(Self::to(BackendRef::read(c)?, 1));
        }
        c.fields(|f| {
            let backend = BackendRef::read_from(f);
            let weight = f.or("weight", 1, |c| c.u32());
            let request_headers = f.opt("requestHeaders", headers::Config::read).unwrap_or_default();
            let response_headers = f.opt("responseHeaders", headers::Config::read).unwrap_or_default();
            Some(Self { backend: backend?, weight, request_headers, response_headers })
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To one of these by weight; none at all, or none with a weight, is answered with 500.
    Forward(Vec<Destination>),
    Redirect(redirect::Config),
    Direct(direct::Config),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// For people: in access logs and metrics. May be empty; otherwise it is unique within its service.
    pub name: Arc<str>,
    /// Any of these; empty is everything.
    pub matches: Vec<RequestMatch>,
    pub action: Action,
    pub timeout: timeout::Config,
    /// `None`: what may be retried without being asked.
    pub retry: Option<retry::Config>,
    pub fault: Option<fault::Config>,
    pub mirrors: Vec<mirror::Config>,
    pub cors: Option<cors::Config>,
    pub rewrite: Option<rewrite::Config>,
    pub request_headers: headers::Config,
    pub response_headers: headers::Config,
}

impl Config {
    pub fn new(name: &str, matches: Vec<RequestMatch>, action: Action) -> Self {
        Self {
            name: name.into(),
            matches,
            action,
            timeout: Default::default(),
            retry: None,
            fault: None,
            mirrors: Vec::new(),
            cors: None,
            rewrite: None,
            request_headers: Default::default(),
            response_headers: Default::default(),
        }
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let name = f.opt("name", |c| match c.text()? {
                name if name.len() > 253 => c.fail("is too long", "at most 253 bytes"),
                name if name.chars().any(char::is_control) => c.fail("has control characters", "one line of text"),
                name => Some(name),
            });
            let matches = f.opt("match", |c| one_or_many(c, RequestMatch::read)).unwrap_or_default();
            let actions = ["to", "redirect", "respond"].iter().filter(|a| f.has(a)).count();
            let to = f.opt("to", |c| one_or_many(c, Destination::read)).map(Action::Forward);
            let redirect = f.opt("redirect", redirect::Config::read).map(Action::Redirect);
            let direct = f.opt("respond", direct::Config::read).map(Action::Direct);
            let action = to.or(redirect).or(direct);
            let own = || Action::Forward(vec![Destination::to(BackendRef::own(), 1)]);
            let config = Self {
                timeout: f.opt("timeout", timeout::Config::read).unwrap_or_default(),
                retry: f.opt("retry", retry::Config::read),
                fault: f.opt("fault", fault::Config::read),
                mirrors: f.opt("mirror", |c| one_or_many(c, mirror::Config::read)).unwrap_or_default(),
                cors: f.opt("cors", cors::Config::read),
                rewrite: f.opt("rewrite", rewrite::Config::read),
                request_headers: f.opt("requestHeaders", headers::Config::read).unwrap_or_default(),
                response_headers: f.opt("responseHeaders", headers::Config::read).unwrap_or_default(),
                ..Self::new(&name.unwrap_or_default(), matches, action.unwrap_or_else(own))
            };
            if actions > 1 {
                return f.fail("", "a route does one thing", "one of to, redirect, respond");
            }
            if config.doubles_slashes() {
                let hint = "end the match with / as well, or use pathPrefix in both";
                f.warn("rewrite", "makes // of what follows the matched prefix, as Envoy does", hint);
            }
            Some(config)
        })
    }

    fn doubles_slashes(&self) -> bool {
        let Some(PathRewrite::Prefix(new)) = self.rewrite.as_ref().and_then(|r| r.path.as_ref()) else { return false };
        let open = |m: &RequestMatch| matches!(&m.path, Some(PathMatch::Prefix(text)) if !text.text.ends_with('/'));
        new.ends_with('/') && self.matches.iter().any(open)
    }
}

fn one_or_many<T>(c: &mut Cursor<'_, '_>, mut read: impl FnMut(&mut Cursor<'_, '_>) -> Option<T>) -> Option<Vec<T>> {
    match c.node.value {
        Value::List(_) => c.list(read),
        _ => read(c).map(|one| vec![one]),
    }
}

/// What a request does once its route is found. Requests hold this alone, so a long one does not keep a whole plan.
#[derive(Debug, PartialEq, Eq)]
pub struct RoutePlan {
    pub name: Arc<str>,
    pub action: PlanAction,
    /// The path match that leads here, where the rewrite or the redirect needs it.
    pub matched: Option<PathMatch>,
    pub timeout: timeout::Config,
    /// `None`: what may be retried without being asked.
    pub retry: Option<retry::Config>,
    pub fault: Option<fault::Config>,
    pub mirrors: Vec<MirrorPlan>,
    pub cors: Option<cors::Config>,
    pub rewrite: Option<rewrite::Config>,
    pub request_headers: headers::Config,
    pub response_headers: headers::Config,
}

#[derive(Debug, PartialEq, Eq)]
pub enum PlanAction {
    Forward(Targets),
    Redirect(redirect::Config),
    Direct(direct::Config),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorPlan {
    /// Index into the plan's backends; `None`: invalid, no copies.
    pub backend: Option<usize>,
    pub config: mirror::Config,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index into the plan's backends; `None`: an invalid one, whose share is answered with `Reason::InvalidBackend`.
    pub backend: Option<usize>,
    pub request_headers: headers::Config,
    pub response_headers: headers::Config,
}

/// Destinations with the running sums of their weights.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Targets {
    list: Vec<Target>,
    sums: Vec<u64>,
}

impl Targets {
    fn push(&mut self, target: Target, weight: u32) {
        if weight > 0 {
            self.sums.push(self.sums.last().unwrap_or(&0) + u64::from(weight));
            self.list.push(target);
        }
    }

    /// One target in proportion to the weights; none has a weight: `None`, which is answered with `Reason::InvalidBackend`.
    pub fn pick(&self, random: u64) -> Option<&Target> {
        if let [only] = &self.list[..] {
            return Some(only);
        }
        let total = *self.sums.last()?;
        let at = ((u128::from(random) * u128::from(total)) >> 64) as u64;
        self.list.get(self.sums.partition_point(|sum| *sum <= at))
    }

    /// Those with a weight, in config order.
    pub fn all(&self) -> &[Target] {
        &self.list
    }

    /// The same, each with its share of the requests.
    pub fn shares(&self) -> impl Iterator<Item = (&Target, f64)> {
        let total = self.sums.last().copied().unwrap_or(1) as f64;
        let before = std::iter::once(0).chain(self.sums.iter().copied());
        let weights = self.sums.iter().zip(before).map(move |(sum, before)| (sum - before) as f64 / total);
        self.list.iter().zip(weights)
    }
}

impl RoutePlan {
    /// The route of a service that has none: to one backend, with defaults.
    pub fn default_to(backend: usize) -> Self {
        let mut targets = Targets::default();
        let target = Target {
            backend: Some(backend),
            request_headers: Default::default(),
            response_headers: Default::default(),
        };
        targets.push(target, 1);
        Self {
            name: "default".into(),
            action: PlanAction::Forward(targets),
            matched: None,
            timeout: Default::default(),
            retry: None,
            fault: None,
            mirrors: Vec::new(),
            cors: None,
            rewrite: None,
            request_headers: Default::default(),
            response_headers: Default::default(),
        }
    }

    /// Where a forwarded request goes; `None` is answered with `Reason::InvalidBackend`.
    pub fn pick(&self, random: u64) -> Option<&Target> {
        match &self.action {
            PlanAction::Forward(targets) => targets.pick(random),
            PlanAction::Redirect(_) | PlanAction::Direct(_) => None,
        }
    }

    /// The rewritten request target, or `None` where it stays.
    pub fn rewrite_target(&self, path: &str, query: Option<&str>) -> Result<Option<String>, Reason> {
        match &self.rewrite {
            Some(rewrite) => rewrite.target(self.matched.as_ref(), path, query),
            None => Ok(None),
        }
    }

    fn compile(config: &Config, matched: Option<PathMatch>, backends: &mut Backends<'_>) -> Self {
        let action = match &config.action {
            Action::Redirect(redirect) => PlanAction::Redirect(redirect.clone()),
            Action::Direct(direct) => PlanAction::Direct(direct.clone()),
            Action::Forward(destinations) => {
                let mut targets = Targets::default();
                for d in destinations {
                    let target = Target {
                        backend: backends.index(&d.backend),
                        request_headers: d.request_headers.clone(),
                        response_headers: d.response_headers.clone(),
                    };
                    targets.push(target, d.weight);
                }
                PlanAction::Forward(targets)
            }
        };
        let mirror = |m: &mirror::Config| MirrorPlan { backend: backends.index(&m.backend), config: m.clone() };
        Self {
            name: config.name.clone(),
            action,
            matched,
            timeout: config.timeout,
            retry: config.retry.clone(),
            fault: config.fault,
            mirrors: config.mirrors.iter().map(mirror).collect(),
            cors: config.cors.clone(),
            rewrite: config.rewrite.clone(),
            request_headers: config.request_headers.clone(),
            response_headers: config.response_headers.clone(),
        }
    }
}

/// Numbers the backends that routes name.
struct Backends<'a> {
    owner: &'a ServiceId,
    port: u16,
    list: &'a mut Vec<BackendId>,
}

impl Backends<'_> {
    fn index(&mut self, backend: &BackendRef) -> Option<usize> {
        if backend.invalid {
            return None;
        }
        let id = backend.resolve(self.owner, self.port);
        let known = self.list.iter().position(|b| *b == id);
        Some(known.unwrap_or_else(|| {
            self.list.push(id);
            self.list.len() - 1
        }))
    }
}

/// Matches in the order they are tried.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Router {
    entries: Vec<(RequestMatch, Arc<RoutePlan>)>,
}

/// Gateway API's limits for one rule, and ours for one service: the list is walked for each request.
pub const MAX_MATCHES: usize = 64;
pub const MAX_DESTINATIONS: usize = 16;
pub const MAX_ENTRIES: usize = 4096;

impl Router {
    pub fn compile(config: &service::Config, backends: &mut Vec<BackendId>, errors: &mut Vec<CompileError>) -> Self {
        let mut backends = Backends { owner: &config.id, port: config.port, list: backends };
        let mut entries = Vec::new();
        for (i, route) in config.routes.iter().enumerate() {
            let before = config.routes[..i].iter().position(|r| !r.name.is_empty() && r.name == route.name);
            check(config.order, i, route, before, errors);
            let needs_match = match &route.action {
                Action::Redirect(redirect) => redirect.needs_match(),
                _ => route.rewrite.as_ref().and_then(|r| r.path.as_ref()).is_some_and(PathRewrite::needs_match),
            };
            let everything = [RequestMatch::default()];
            let matches = if route.matches.is_empty() { &everything[..] } else { &route.matches[..] };
            // One plan for all of a route's matches, but for those whose paths are rewritten differently.
            let mut plans: Vec<Arc<RoutePlan>> = Vec::new();
            for m in matches {
                let matched = m.path.clone().filter(|_| needs_match);
                let plan = match plans.iter().find(|p| p.matched == matched) {
                    Some(plan) => plan.clone(),
                    None => {
                        let plan = Arc::new(RoutePlan::compile(route, matched, &mut backends));
                        plans.push(plan.clone());
                        plan
                    }
                };
                entries.push((m.clone(), plan));
            }
        }
        if entries.len() > MAX_ENTRIES {
            let message =
                format!("{} matches in all, more than the {MAX_ENTRIES} that a service may have", entries.len());
            errors.push(CompileError { field: "routes".into(), message });
        }
        match config.order {
            Order::FirstMatch => {}
            Order::GatewayApi => entries.sort_by_cached_key(|(m, _)| Reverse(rank(m))),
        }
        Self { entries }
    }

    /// The route of a request; `None` is `Reason::NoRoute` where there are routes at all.
    pub fn find(&self, r: &RequestView<'_>) -> Option<&Arc<RoutePlan>> {
        self.entries.iter().find(|(m, _)| m.matches(r)).map(|(_, plan)| plan)
    }

    /// The route of what is no request, and so cannot be matched.
    pub fn for_bytes(&self) -> Option<Arc<RoutePlan>> {
        let everything = |(m, plan): &&(RequestMatch, Arc<RoutePlan>)| {
            *m == RequestMatch::default() && matches!(plan.action, PlanAction::Forward(_))
        };
        self.entries.iter().find(everything).map(|(_, plan)| plan.clone())
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// In the order in which they are tried.
    pub fn entries(&self) -> impl Iterator<Item = (&RequestMatch, &Arc<RoutePlan>)> {
        self.entries.iter().map(|(m, plan)| (m, plan))
    }
}

/// What can only be said of a route as a whole or beside the others.
fn check(order: Order, i: usize, route: &Config, same_name: Option<usize>, errors: &mut Vec<CompileError>) {
    let mut fail = |field: &str, message: String| {
        let field = if field.is_empty() { format!("routes[{i}]") } else { format!("routes[{i}].{field}") };
        errors.push(CompileError { field, message });
    };
    if let Some(other) = same_name {
        fail(
            "name",
            format!("{:?} is also the name of routes[{other}]; names are unique within a service", route.name),
        );
    }
    if order == Order::GatewayApi && route.matches.len() > MAX_MATCHES {
        fail("match", format!("{} alternatives, more than Gateway API's {MAX_MATCHES}", route.matches.len()));
    }
    let destinations = match &route.action {
        Action::Forward(destinations) => destinations.len(),
        Action::Redirect(_) | Action::Direct(_) => {
            if route.rewrite.is_some() {
                fail("rewrite", "has no effect: nothing is forwarded; a redirect has a `path` of its own".into());
            }
            if !route.mirrors.is_empty() {
                fail("mirror", "has no effect: nothing is forwarded".into());
            }
            0
        }
    };
    if order == Order::GatewayApi && destinations > MAX_DESTINATIONS {
        fail("to", format!("{destinations} backends, more than Gateway API's {MAX_DESTINATIONS}"));
    }
    let replaces = |path: Option<&PathRewrite>| matches!(path, Some(PathRewrite::PathPrefix(_)));
    let redirected = match &route.action {
        Action::Redirect(redirect::Config { path: Some(redirect::Path::Rewrite(path)), .. }) => Some(path),
        _ => None,
    };
    let (field, replaces) = match redirected {
        Some(path) => ("redirect.path", replaces(Some(path))),
        None => ("rewrite.path", replaces(route.rewrite.as_ref().and_then(|r| r.path.as_ref()))),
    };
    let by_segments = |m: &RequestMatch| matches!(m.path, None | Some(PathMatch::PathPrefix(_)));
    if replaces && !route.matches.iter().all(by_segments) {
        fail(field, "replaces segments, so every match of the route needs path: {pathPrefix: ...}".into());
    }
}

#[cfg(test)]
mod tests;
