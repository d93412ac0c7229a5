//! What would happen, step by step as the sidecar's request path has them, as one JSON document.

use super::mesh::{Mesh, Pod, Sight};
use super::request::Asked;
use super::words;
use crate::error::{Error, Result};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;
use weft_dialects::ledger::Document;
use weft_policy::backend::Backend;
use weft_policy::balance::Algorithm;
use weft_policy::endpoint::{Endpoint, Source};
use weft_policy::headers::Vars;
use weft_policy::id::BackendId;
use weft_policy::listener::{Protocol, Unknown};
use weft_policy::matcher::Miss;
use weft_policy::mtls::{Mode, Security};
use weft_policy::reason::Reason;
use weft_policy::registry::Bound;
use weft_policy::route::{PlanAction, RoutePlan, Target};
use weft_policy::view::{ConnView, Fields, FieldsMut, RequestView, is_grpc};
use weft_policy::{cors, redirect, retry, rewrite};

pub fn explain(mesh: &Mesh, client: &Pod, asked: &Asked) -> Result<Json> {
    let mut out = json!({
        "request": {
            "method": asked.method, "host": asked.host, "authority": asked.authority, "path": asked.path,
            "query": asked.query, "target": asked.target, "headers": headers(asked),
        },
        "from": {
            "namespace": client.id.namespace, "pod": client.id.name, "workload": client.workload,
            "address": client.address.map(|a| a.to_string()), "sidecar": client.identity.is_some(),
            "identity": client.identity.as_ref().map(|id| id.as_str()),
        },
        "of": mesh.place,
        "problems": mesh.problems,
    });
    let dialled = match asked.name.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => mesh.addresses(&asked.name, &client.id.namespace).into_iter().map(IpAddr::V4).collect(),
    };
    let dialled: Vec<SocketAddr> = dialled.into_iter().map(|address| SocketAddr::new(address, asked.port)).collect();
    out["dials"] = json!(dialled.iter().map(SocketAddr::to_string).collect::<Vec<_>>());
    match mesh.sight(client) {
        Some(sight) => Explainer { mesh, client, asked, sight, dialled }.meshed(&mut out)?,
        None => plain(mesh, client, &dialled, asked, &mut out),
    }
    Ok(out)
}

fn headers(asked: &Asked) -> Json {
    let mut out: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in &asked.headers.0 {
        out.entry(name).or_default().push(value);
    }
    json!(out.into_iter().map(|(name, values)| (name, values.join(","))).collect::<BTreeMap<_, _>>())
}

/// Without a sidecar: the network alone decides, and the other side's sidecar what it takes.
fn plain(mesh: &Mesh, client: &Pod, dialled: &[SocketAddr], asked: &Asked, out: &mut Json) {
    let service = mesh.names.services.iter().find(|service| match &service.kind {
        crate::lab::service::Kind::Virtual { address, .. } => dialled.iter().any(|d| d.ip() == IpAddr::V4(*address)),
        _ => false,
    });
    let mut ends: Vec<SocketAddr> = Vec::new();
    match service.map(|service| (service, service.ports.iter().find(|p| p.number == asked.port))) {
        Some((service, Some(port))) => {
            out["destination"] = json!({
                "service": service.name, "namespace": service.namespace, "port": asked.port,
                "found": format!("address {}", dialled[0]),
                "origin": mesh.whole("", "Service", &service.namespace, &service.name).into_iter().collect::<Vec<_>>(),
            });
            let pods = mesh.names.pods_of(service);
            ends.extend(pods.filter_map(|pod| Some(SocketAddr::from((pod.address, pod.port(&port.target)?)))));
        }
        Some((_, None)) => {}
        // An address is dialled as it is.
        None => ends.extend(dialled.iter().filter(|d| mesh.pod_at(d.ip()).is_some())),
    }
    let probability = 1.0 / ends.len().max(1) as f64;
    let endpoint = |at: &SocketAddr| {
        json!({
            "address": at.to_string(), "probability": probability, "security": "plaintext", "http": "as the app speaks",
            "pod": mesh.pod_at(at.ip()).map(|pod| &pod.id.name), "server": server(mesh, client, *at, false),
        })
    };
    out["action"] = json!("plain");
    out["endpoints"] = ends.iter().map(endpoint).collect();
}

/// What the sidecar at the other end, if there is one, takes.
fn server(mesh: &Mesh, client: &Pod, at: SocketAddr, mtls: bool) -> Json {
    let Some(pod) = mesh.pod_at(at.ip()) else { return Json::Null };
    let Some(inbound) = mesh.inbound(&pod.id) else { return json!({"sidecar": false, "workload": pod.workload}) };
    let mode = inbound.mtls.mode_of(at.port());
    // A pod that calls itself goes past its own sidecar's inbound side.
    let refused = mode == Mode::Strict && !mtls;
    let document = Document::Pod(pod.id.clone());
    let own = pod.id == client.id;
    json!({
        "sidecar": true, "workload": pod.workload, "mtls": words::mode(mode), "clients": words::clients(&inbound.clients),
        "refused": refused, "itself": own, "origin": mesh.origins(&document, "inbound", "mtls"),
    })
}

struct Explainer<'m> {
    mesh: &'m Mesh,
    client: &'m Pod,
    asked: &'m Asked,
    sight: Sight,
    dialled: Vec<SocketAddr>,
}

/// A route and where it stands in its document.
struct Chosen<'b> {
    bound: &'b Bound,
    route: &'b RoutePlan,
    document: Option<Document>,
    /// `ports[0]`
    port: String,
    /// `ports[0].routes[1]`
    path: String,
}

impl Explainer<'_> {
    fn meshed(&self, out: &mut Json) -> Result<()> {
        out["withheld"] = json!(self.sight.withheld);
        let first = self.dialled.first().copied();
        let found = self.sight.destinations.of_request(first, &self.asked.host, self.asked.written);
        let Ok(bound) = found else {
            let deny = self.sight.outbound.as_ref().is_some_and(|l| l.unknown == Unknown::Deny);
            out["action"] = json!(if deny { "refused" } else { "passthrough" });
            out["retry"] = words::retries(&retry::Config::unasked());
            // Straight to a pod, and in plaintext.
            let pod = first.filter(|_| !deny).and_then(|at| Some((at, self.mesh.pod_at(at.ip())?)));
            if let Some((at, pod)) = pod {
                let server = server(self.mesh, self.client, at, false);
                out["endpoints"] = json!([{
                    "address": at.to_string(), "probability": 1.0, "security": "plaintext", "pod": pod.id.name, "server": server,
                }]);
            }
            return Ok(());
        };
        let (id, port) = (&bound.plan.id, bound.plan.port);
        let by_address = first.filter(|address| self.sight.destinations.by_addr(*address).is_some());
        let document = self.mesh.variant(self.client, id);
        let place = document.as_ref().and_then(|d| self.mesh.port_of(d, port)).map_or(0, |(i, _)| i);
        let (namespace, name) = (&*id.namespace, &*id.name);
        out["destination"] = json!({
            "service": name, "namespace": namespace, "port": port, "protocol": words::protocol(bound.plan.protocol),
            "found": match by_address {
                Some(address) => format!("address {address}"),
                None => format!("host {}", self.asked.host),
            },
            "origin": self.mesh.whole("", "Service", namespace, name).into_iter().collect::<Vec<_>>(),
        });
        // Of what is no HTTP nothing is read: the first route without a match says where it goes.
        let bytes = matches!(bound.plan.protocol, Protocol::Opaque | Protocol::Tls);
        let at = first.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.asked.port)));
        let view = self.view(at);
        let route = match bytes {
            true => Some(&bound.plan.default_route),
            false => bound.plan.route(&view),
        };
        let entry = self.sight.entries.get(&(id.clone(), port));
        let mut chosen = Chosen {
            bound,
            route: &bound.plan.default_route,
            document,
            port: format!("ports[{place}]"),
            path: String::new(),
        };
        if !bytes {
            out["routes"] = self.tried(&view, &chosen, entry);
        }
        let order = entry.map(|e| e.config.order);
        out["order"] = json!(match order {
            Some(weft_policy::route::Order::FirstMatch) => "as listed",
            _ => "the most specific first",
        });
        let Some(route) = route else {
            out["action"] = json!("noRoute");
            out["answer"] = json!({"status": Reason::NoRoute.status(), "why": "no route of this service matches"});
            return Ok(());
        };
        chosen.route = route;
        chosen.path = self.path_of(entry, route, &chosen.port);
        out["route"] = json!({"name": &*route.name, "origin": self.origins(&chosen, "")});
        if bytes {
            out["bytes"] = json!(true);
        } else {
            self.on_the_way(&view, &chosen, out);
        }
        match &route.action {
            PlanAction::Redirect(redirect) => {
                out["action"] = json!("redirect");
                out["answer"] = self.redirected(redirect, route);
                out["answer"]["origin"] = self.origins(&chosen, "redirect").into();
            }
            PlanAction::Direct(direct) => {
                out["action"] = json!("respond");
                let body = String::from_utf8_lossy(&direct.body);
                let fields = direct.headers.iter().map(|(name, value)| (name.to_string(), value.to_string()));
                out["answer"] = json!({
                    "status": direct.status, "body": body, "headers": fields.collect::<BTreeMap<_, _>>(),
                    "origin": self.origins(&chosen, "respond"),
                });
            }
            PlanAction::Forward(targets) => {
                out["action"] = json!("forward");
                let shares: Vec<(&Target, f64)> = targets.shares().collect();
                let backends: Result<Vec<Json>> =
                    shares.iter().map(|(target, share)| self.backend(&view, &chosen, target, *share)).collect();
                out["backends"] = backends?.into();
                out["backendsOrigin"] = self.origins(&chosen, "to").into();
                if shares.is_empty() {
                    out["answer"] =
                        json!({"status": Reason::InvalidBackend.status(), "why": "no backend has a weight"});
                }
            }
        }
        Ok(())
    }

    fn view(&self, destination: SocketAddr) -> RequestView<'_> {
        let peer = self.client.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        RequestView {
            conn: ConnView { peer: SocketAddr::new(peer, 0), destination, identity: None, server_name: None },
            method: &self.asked.method,
            scheme: "http",
            host: &self.asked.host,
            path: &self.asked.path,
            query: self.asked.query.as_deref(),
            fields: &self.asked.headers,
        }
    }

    fn origins(&self, chosen: &Chosen<'_>, part: &str) -> Vec<Json> {
        let document = chosen.document.as_ref();
        document.filter(|_| !chosen.path.is_empty()).map_or(Vec::new(), |d| self.mesh.origins(d, &chosen.path, part))
    }

    /// Names are unique within a service.
    fn path_of(&self, entry: Option<&weft_policy::service::Entry>, route: &RoutePlan, port: &str) -> String {
        let i = entry.and_then(|e| e.config.routes.iter().position(|r| r.name == route.name));
        i.map_or(String::new(), |i| format!("{port}.routes[{i}]"))
    }

    /// Every route up to the one that is taken, and why not the others.
    fn tried(&self, view: &RequestView<'_>, chosen: &Chosen<'_>, entry: Option<&weft_policy::service::Entry>) -> Json {
        let mut out: Vec<Json> = Vec::new();
        for (m, plan) in chosen.bound.plan.router.entries() {
            let miss = m.miss(view);
            let why = miss.as_ref().map(|miss| self.missed(miss));
            let path = self.path_of(entry, plan, &chosen.port);
            let origin = chosen.document.as_ref().map(|d| self.mesh.origins(d, &path, ""));
            match out.last_mut().filter(|last| last["name"] == *plan.name) {
                // Another alternative of the same route.
                Some(last) => {
                    last["matches"] = json!(miss.is_none());
                    if let Some(list) = last["why"].as_array_mut() {
                        list.extend(why.map(Json::from));
                    }
                }
                None => out.push(json!({
                    "name": &*plan.name, "matches": miss.is_none(), "origin": origin.unwrap_or_default(),
                    "why": why.into_iter().collect::<Vec<_>>(),
                })),
            }
            if miss.is_none() {
                break;
            }
        }
        out.into()
    }

    fn missed(&self, miss: &Miss<'_>) -> String {
        let asked = self.asked;
        match miss {
            Miss::Path(m) => format!("path {} where one is wanted that {m}", asked.path),
            Miss::Method(m) => format!("method {} where one is wanted that {m}", asked.method),
            Miss::Host(m) => format!("host {} where one is wanted that {m}", asked.host),
            Miss::Scheme(m) => format!("scheme http where one is wanted that {m}"),
            Miss::Header(m) => {
                let mut buffer = Vec::new();
                match asked.headers.joined(&m.name, &mut buffer) {
                    Some(value) => {
                        format!("header {} is {:?}; wanted: {m}", m.name, String::from_utf8_lossy(value))
                    }
                    None => format!("no header {}; wanted: {m}", m.name),
                }
            }
            Miss::Query(m) => format!("query {:?}; wanted: {m}", asked.query.as_deref().unwrap_or("")),
            Miss::Port(port) => format!("port {} where {port} is wanted", asked.port),
        }
    }

    /// What the route does besides sending on.
    fn on_the_way(&self, view: &RequestView<'_>, chosen: &Chosen<'_>, out: &mut Json) {
        let route = chosen.route;
        if let Some(cors) = &route.cors {
            let what = match cors.decide(view) {
                cors::Decision::Pass => "no CORS request, or of an origin that is not allowed: passes",
                cors::Decision::Preflight => "a preflight: answered here with 200",
                cors::Decision::Refuse => "a preflight of another origin: answered here with 200 and no leave",
                cors::Decision::Mark => "its answer is marked for the origin",
            };
            out["cors"] = json!({"does": what, "origin": self.origins(chosen, "cors")});
        }
        if let Some(fault) = &route.fault {
            let delay = fault.delay.as_ref();
            let delay = delay.map(|d| json!({"percent": d.fraction.as_percent(), "fixed": words::span(d.fixed)}));
            let abort = fault.abort.as_ref().map(|a| {
                let mut abort = words::aborted(a.with);
                abort["percent"] = json!(a.fraction.as_percent());
                abort
            });
            out["fault"] = json!({"delay": delay, "abort": abort, "origin": self.origins(chosen, "fault")});
        }
        let timeout = &route.timeout;
        if timeout.request.is_some() || timeout.idle.is_some() {
            out["timeout"] = json!({
                "request": timeout.request.map(words::span), "idle": timeout.idle.map(words::span),
                "origin": self.origins(chosen, "timeout"),
            });
        }
        if !matches!(route.action, PlanAction::Forward(_)) {
            return;
        }
        if let Some(rewrite) = &route.rewrite {
            out["rewrite"] = words::rewritten(rewrite);
            out["rewrite"]["origin"] = self.origins(chosen, "rewrite").into();
        }
        for (name, changes) in
            [("requestHeaders", &route.request_headers), ("responseHeaders", &route.response_headers)]
        {
            if !changes.is_empty() {
                out[name] = words::headers(changes);
                out[name]["origin"] = self.origins(chosen, name).into();
            }
        }
        let mirrors: Vec<Json> = route
            .mirrors
            .iter()
            .map(|mirror| {
                let to = mirror.backend.and_then(|i| chosen.bound.plan.backends.get(i));
                json!({
                    "to": to.map(BackendId::to_string), "percent": mirror.config.fraction.as_percent(),
                    "maxInFlight": mirror.config.max_in_flight, "origin": self.origins(chosen, "mirror"),
                })
            })
            .collect();
        if !mirrors.is_empty() {
            out["mirrors"] = mirrors.into();
        }
        let unasked = retry::Config::unasked();
        let config = route.retry.as_ref().unwrap_or(&unasked);
        out["retry"] = words::retries(config);
        out["retry"]["perTryTimeout"] = json!(config.per_try_timeout.map(words::span));
        out["retry"]["asked"] = json!(route.retry.is_some());
        if route.retry.is_some() {
            out["retry"]["origin"] = self.origins(chosen, "retry").into();
        }
    }

    fn redirected(&self, redirect: &redirect::Config, route: &RoutePlan) -> Json {
        let asked = redirect::Request {
            scheme: "http",
            host: &self.asked.host,
            port: self.asked.written,
            path: &self.asked.path,
            query: self.asked.query.as_deref(),
        };
        match redirect.location(route.matched.as_ref(), &asked) {
            Ok(location) => json!({"status": redirect.status, "location": location}),
            Err(reason) => json!({"status": reason.status(), "why": reason.word()}),
        }
    }

    /// The request as it leaves: rewritten, with its headers changed.
    fn sent(&self, route: &RoutePlan, target: &Target) -> std::result::Result<Json, Reason> {
        let (asked, mut fields) = (self.asked, self.asked.headers.clone());
        let (mut path, mut authority) = (asked.path.clone(), asked.authority.clone());
        if let Some(query) = &asked.query {
            path = format!("{path}?{query}");
        }
        if let Some(new) = route.rewrite_target(&asked.path, asked.query.as_deref())? {
            path = new;
            fields.set(rewrite::ORIGINAL_PATH, asked.target.as_bytes());
        }
        if let Some(new) = route.rewrite.as_ref().and_then(|r| r.authority.as_deref()) {
            authority = new.to_string();
        }
        let vars = Vars {
            remote: self.client.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            protocol: "HTTP/1.1",
            authority: &authority,
            method: &asked.method,
            path: &asked.target,
            request: None,
        };
        route.request_headers.apply(&mut fields, &vars);
        target.request_headers.apply(&mut fields, &vars);
        let sent = Asked { headers: fields, ..asked.clone() };
        Ok(json!({"authority": authority, "path": path, "headers": headers(&sent)}))
    }

    fn backend(&self, view: &RequestView<'_>, chosen: &Chosen<'_>, target: &Target, share: f64) -> Result<Json> {
        let invalid = |status: u16, why: &str| json!({"probability": share, "status": status, "why": why});
        let Some(index) = target.backend else {
            return Ok(invalid(
                Reason::InvalidBackend.status(),
                "this backend does not exist, or may not be used from here",
            ));
        };
        let internal = || Error::new("the plan names a backend that it does not have", "");
        let id = chosen.bound.plan.backends.get(index).ok_or_else(internal)?;
        let mut out = json!({
            "name": id.to_string(), "service": &*id.service.name, "namespace": &*id.service.namespace, "port": id.port,
            "subset": id.subset.as_deref(), "probability": share,
        });
        for (name, changes) in
            [("requestHeaders", &target.request_headers), ("responseHeaders", &target.response_headers)]
        {
            if !changes.is_empty() {
                out[name] = words::headers(changes);
            }
        }
        match self.sent(chosen.route, target) {
            Ok(sent) => out["sends"] = sent,
            Err(reason) => {
                out["status"] = json!(reason.status());
                out["why"] = json!("the rewritten path is no path");
            }
        }
        let Some(backend) = chosen.bound.backends.get(index).cloned().flatten() else {
            out["status"] = json!(Reason::NoCluster.status());
            out["why"] = json!("there is no such service, port or subset here");
            return Ok(out);
        };
        self.policies(id, &backend, &mut out);
        let config = backend.config.load_full();
        let mut draws = Draws(1);
        let affinity = (!config.balance.hash.is_empty()).then(|| config.balance.affinity(view, &mut || draws.next()));
        let hash = affinity.and_then(|a| a.hash);
        out["balance"]["hashed"] = json!(hash.is_some());
        let grpc = self.asked.headers.first("content-type").is_some_and(is_grpc);
        let endpoints: Vec<Json> = shares(&backend, hash)
            .into_iter()
            .map(|(endpoint, part)| {
                let security = config.tls.security(endpoint.identity.as_ref());
                let mesh = security == Security::Mesh;
                let address = endpoint.address.socket();
                json!({
                    "address": address.to_string(), "id": &*endpoint.id.0, "pod": &*endpoint.workload.pod,
                    "workload": &*endpoint.workload.name, "version": &*endpoint.workload.version,
                    "weight": endpoint.weight(), "probability": share * part,
                    "security": match security { Security::Plain => "plaintext", Security::Mesh => "mTLS", Security::Originate => "TLS" },
                    "expects": mesh.then(|| words::expected(&config.tls.expected(endpoint.identity.as_ref()))),
                    "http": if config.http.is_http2(mesh, grpc) { "HTTP/2" } else { "as the app speaks" },
                    "server": server(self.mesh, self.client, address, mesh),
                })
            })
            .collect();
        let entry = self.sight.entries.get(&(id.service.clone(), id.port));
        let names = entry.iter().flat_map(|e| &e.endpoints).filter_map(|source| match source {
            Source::Dns(dns) => Some(format!("{}:{}", dns.host, dns.port)),
            Source::Static(_) => None,
        });
        out["names"] = json!(names.collect::<Vec<_>>());
        if endpoints.is_empty() && out["names"].as_array().is_some_and(Vec::is_empty) {
            out["status"] = json!(Reason::NoHealthyUpstream.status());
            out["why"] = json!("it has no endpoint");
        }
        out["endpoints"] = endpoints.into();
        Ok(out)
    }

    /// What is in force between the choice of a backend and the wire, and whose word it is.
    fn policies(&self, id: &BackendId, backend: &Arc<Backend>, out: &mut Json) {
        let config = backend.config.load();
        let document = self.mesh.variant(self.client, &id.service);
        let port = document.as_ref().and_then(|d| self.mesh.port_of(d, id.port));
        let origin = |block: &str| -> Vec<Json> {
            let (Some(document), Some((i, port))) = (&document, port) else { return Vec::new() };
            let subset = id.subset.as_deref().and_then(|name| {
                let all = port["subsets"].as_array()?;
                all.iter().position(|s| s["name"] == name && s["policy"].get(block).is_some())
            });
            match subset {
                Some(subset) => self.mesh.origins(document, &format!("ports[{i}].subsets[{subset}]"), block),
                None => self.mesh.origins(document, &format!("ports[{i}].policy"), block),
            }
        };
        let mut put = |name: &str, value: Json| {
            let mut value = value;
            value["origin"] = origin(name).into();
            out[name] = value;
        };
        put("balance", words::balance(&config.balance));
        put("breaker", words::breaker(&config.breaker));
        put("connections", words::connections(&config.connect));
        put("http", json!({"speaks": words::http(config.http)}));
        if let Some(outlier) = &config.outlier {
            put("outlier", words::outlier(outlier));
        }
        if let Some(budget) = &config.budget {
            put("retryBudget", words::budget(budget));
        }
        let mode = match &config.tls {
            weft_policy::mtls::UpstreamTls::Auto => "auto",
            weft_policy::mtls::UpstreamTls::Disable => "disable",
            weft_policy::mtls::UpstreamTls::Mesh(_) => "mesh",
            weft_policy::mtls::UpstreamTls::Originate(_) => "originate",
        };
        put("tls", json!({"mode": mode}));
        if let Some(subset) = id.subset.as_deref()
            && let (Some(document), Some((i, port))) = (&document, port)
            && let Some(s) = port["subsets"].as_array().and_then(|all| all.iter().position(|s| s["name"] == subset))
        {
            out["origin"] = self.mesh.origins(document, &format!("ports[{i}].subsets[{s}]"), "").into();
        } else {
            let (namespace, name) = (&*id.service.namespace, &*id.service.name);
            out["origin"] = self.mesh.whole("", "Service", namespace, name).into_iter().collect();
        }
    }
}

/// Randomness that is the same every time.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Each endpoint's part of what goes to its backend, while all of them are healthy and equally loaded.
fn shares(backend: &Arc<Backend>, hash: Option<u64>) -> Vec<(Arc<Endpoint>, f64)> {
    const TRIES: u32 = 20_000;
    let set = backend.endpoints.load();
    let config = backend.config.load();
    let all = &set.endpoints;
    let hashes = matches!(config.balance.algorithm, Algorithm::Ring { .. } | Algorithm::Maglev { .. });
    if !hashes {
        let weight = |e: &Arc<Endpoint>| f64::from(e.weight().max(1));
        let total: f64 = all.iter().map(weight).sum();
        return all.iter().map(|e| (e.clone(), weight(e) / total)).collect();
    }
    // Asked of the picker itself: of this request, or where it has no hash, of many.
    let (mut draws, mut counts) = (Draws(7), vec![0u32; all.len()]);
    let tries = if hash.is_some() { 1 } else { TRIES };
    for _ in 0..tries {
        let now = Instant::now();
        let picked = set.picker.pick(all, &mut || draws.next(), hash, now, &|_| true, &[]);
        if let Some(count) = picked.and_then(|i| counts.get_mut(i)) {
            *count += 1;
        }
    }
    all.iter().zip(counts).map(|(e, n)| (e.clone(), f64::from(n) / f64::from(tries))).collect()
}
