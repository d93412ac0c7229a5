//! THE request path of the app's side: from a request the app sent to an answer from one of its destination's endpoints.
//!
//! Reads top to bottom. Each step says why it stands where it does; the policies' own files say what they do.

use super::attempt::{self, Failed, Plan};
use super::exchange::Served;
use super::exchange::{Body, Head, Reply, Request};
use super::fields::number;
use super::flight::Flight;
use super::{mirror, normalise};
use crate::upstream::implied::Kind;
use crate::worker::{Conn, Worker};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, StatusCode};
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use weft_policy::cors;
use weft_policy::fault::AbortWith;
use weft_policy::headers::Vars;
use weft_policy::listener::Unknown;
use weft_policy::reason::Reason;
use weft_policy::registry::Bound;
use weft_policy::route::{PlanAction, RoutePlan};
use weft_policy::view::{ConnView, FieldsMut, RequestView};
use weft_policy::{direct, redirect};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

pub async fn serve(worker: Rc<Worker>, conn: Rc<Conn>, mut request: Request) -> Served {
    let mut flight = Flight::begin(&worker, &conn, &request.head);
    let original = request.head.path.clone();

    // One reading of the request before anything looks at it.
    let asked = match normalise::request(&mut request.head, conn.mesh) {
        Ok(asked) => asked,
        Err(reason) => return flight.refuse(&request.head, reason),
    };
    identify(&worker, &conn, &mut flight, &mut request.head);

    // One look at the configuration: whatever changes meanwhile, this request is of one mind.
    let named = request.head.authority.clone();
    let host = host_of(named.as_ref());
    let mut discovered = true;
    if let Some(demand) = &worker.shared.demand
        && let Err(port) = configured(&worker, &conn, &request.head, &host)
    {
        let of_mesh = conn.listener.original_dst && conn.listener.is_of_mesh(conn.destination.ip());
        discovered = Box::pin(async {
            // The connection has asked before, but that may be forgotten by now.
            demand.host(&host, port).await && (!of_mesh || demand.address(conn.destination).await)
        })
        .await;
    }
    let bound = match destination(&worker, &conn, &request.head, &host, discovered) {
        Ok(bound) => bound,
        Err(reason) => return flight.reject(reason, false),
    };
    flight.record.service = Some(bound.plan.clone());
    let (route, marked) = {
        let view = view(&conn, &request.head, &host);
        let Some(route) = bound.plan.route(&view).cloned() else { return flight.reject(Reason::NoRoute, false) };
        let cors = route.cors.as_ref().map_or(cors::Decision::Pass, |cors| cors.decide(&view));
        (route, cors)
    };
    flight.record.route = Some(route.clone());

    // A preflight is answered before faults: it is not the request itself.
    if let (Some(cors), cors::Decision::Preflight | cors::Decision::Refuse) = (&route.cors, marked) {
        let mut reply = Reply::new(StatusCode::OK);
        if marked == cors::Decision::Preflight {
            cors.preflight(&request.head.fields, &mut reply.fields);
        }
        return flight.answer(reply);
    }

    let mut began = flight.record.started;
    // Faults stand before everything that costs the upstream anything, and are not retried.
    if let Some(fault) = &route.fault {
        let fault = fault.decide(worker.random(), worker.random());
        if let Some(delay) = fault.delay {
            flight.record.flags.delay_injected = true;
            Box::pin(tokio::time::sleep(delay)).await;
            // It does not count against the request's time.
            began = Instant::now();
        }
        if let Some(with) = fault.abort {
            return abort(flight, with);
        }
    }
    let deadline = route.timeout.request.map(|limit| began + limit);

    let targets = match &route.action {
        PlanAction::Redirect(redirect) => return redirected(flight, redirect, &route, &request.head, &host),
        PlanAction::Direct(direct) => return answered(flight, direct, &conn, &request.head, &original),
        PlanAction::Forward(targets) => targets,
    };
    let Some(target) = targets.pick(worker.random()) else { return flight.reject(Reason::InvalidBackend, false) };
    let Some(index) = target.backend else { return flight.reject(Reason::InvalidBackend, false) };
    flight.record.backend = bound.plan.backends.get(index).cloned();
    let Some(backend) = bound.backends.get(index).cloned().flatten() else {
        return flight.reject(Reason::NoCluster, false);
    };

    // The hash is of the request as the client sent it, before headers and rewrite change it.
    let affinity = {
        let config = backend.config.load();
        (!config.balance.hash.is_empty())
            .then(|| config.balance.affinity(&view(&conn, &request.head, &host), &mut || worker.random()))
    };
    let origin =
        (marked == cors::Decision::Mark).then(|| request.head.fields.0.get(http::header::ORIGIN).cloned()).flatten();
    let needs_request = !route.response_headers.is_empty() || !target.response_headers.is_empty();
    let seen = needs_request.then(|| request.head.clone());

    if let Err(reason) = rewrite(&route, &mut request.head, &original) {
        return flight.reject(reason, false);
    }
    for headers in [&route.request_headers, &target.request_headers].into_iter().filter(|h| !h.is_empty()) {
        let authority = request.head.authority.clone();
        let vars = vars(&conn, &flight, authority.as_ref().map_or("", |a| a.as_str()), &original);
        headers.apply(&mut request.head.fields, &vars);
    }
    if let Some(upgrade) = &asked.upgrade {
        request.head.fields.0.insert(http::header::UPGRADE, upgrade.clone());
        request.head.fields.0.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    }

    // The shadow sees what the upstream sees, and nobody waits for it.
    let mirrored = mirror::prepare(&worker, &bound, &route, &request.head);

    let plan = Plan {
        worker: &worker,
        conn: &conn,
        backend,
        began,
        retry: route.retry.as_ref().unwrap_or(&worker.retry_unasked),
        deadline,
        idle: route.timeout.idle,
        hash: affinity.as_ref().and_then(|a| a.hash),
        http2: asked.http2,
        leaving: asked.leaving,
    };
    let body = std::mem::replace(&mut request.body, Body::empty());
    let mut reply = match attempt::run(&plan, &mut flight, request.head, body).await {
        Ok(reply) => reply,
        Err(Failed { reason, retried }) => return flight.reject(reason, retried),
    };
    mirror::start(&worker, &conn, mirrored, flight.held.as_ref().and(flight.replay.as_ref()));

    normalise::response(&mut reply.fields.0);
    if let (Some(upgrade), Some(_)) = (&asked.upgrade, &reply.upgrade) {
        reply.fields.0.insert(http::header::UPGRADE, upgrade.clone());
        reply.fields.0.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        flight.record.upgraded = true;
    }
    let answered = flight.held.as_ref().map_or(began, |held| held.last);
    let served = (answered - began).as_millis().min(u64::MAX as u128) as u64;
    reply.fields.0.insert(SERVICE_TIME, number(served));
    if let (Some(cors), Some(origin)) = (&route.cors, &origin) {
        cors.allow(origin.as_bytes(), &mut reply.fields);
    }
    if let Some(seen) = &seen {
        let mut vars = vars(&conn, &flight, seen.authority.as_ref().map_or("", |a| a.as_str()), &original);
        vars.request = Some(&seen.fields);
        target.response_headers.apply(&mut reply.fields, &vars);
        route.response_headers.apply(&mut reply.fields, &vars);
    }
    for cookie in affinity.iter().flat_map(|a| &a.set_cookie) {
        reply.fields.append("set-cookie", cookie.as_bytes());
    }
    flight.answer(reply)
}

/// Host, request id and scheme, as the apps of a mesh expect them.
pub fn identify(worker: &Worker, conn: &Conn, flight: &mut Flight, head: &mut Head) {
    // HTTP/1.0 may leave the Host out; the next hop speaks a version that may not.
    if head.authority.is_none() {
        head.authority = conn.destination.to_string().parse().ok();
    }
    flight.record.authority = head.authority.clone();
    let fields = &mut head.fields.0;
    let id = match fields.get(REQUEST_ID) {
        Some(id) => id.clone(),
        None => {
            let id = request_id(worker.random(), worker.random());
            fields.insert(REQUEST_ID, id.clone());
            id
        }
    };
    flight.record.request_id = Some(id);
    if !fields.contains_key(FORWARDED_PROTO) {
        fields.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
}

/// A random UUID (version 4).
fn request_id(a: u64, b: u64) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&a.to_be_bytes());
    bytes[8..].copy_from_slice(&b.to_be_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    let mut value = HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"));
    // Never the same twice: HPACK's table is better kept for what is.
    value.set_sensitive(true);
    value
}

/// Host without port, lower case; empty where the client named none.
pub fn host_of(authority: Option<&Authority>) -> Cow<'_, str> {
    let host = authority.map_or("", |a| normalise::split(a.as_str()).0).trim_end_matches('.');
    match host.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    }
}

pub fn view<'a>(conn: &'a Conn, head: &'a Head, host: &'a str) -> RequestView<'a> {
    RequestView {
        conn: ConnView {
            peer: conn.peer.addr,
            destination: conn.destination,
            identity: conn.peer.identity.as_ref().and_then(|i| i.spiffe.as_ref()),
            server_name: conn.server_name.as_deref(),
        },
        method: head.method.as_str(),
        scheme: "http",
        host,
        path: head.path.path(),
        query: head.path.query(),
        fields: &head.fields,
    }
}

fn vars<'a>(conn: &Conn, flight: &'a Flight, authority: &'a str, path: &'a http::uri::PathAndQuery) -> Vars<'a> {
    Vars {
        remote: conn.peer.addr.ip(),
        protocol: if flight.asker.http2 { "HTTP/2" } else { "HTTP/1.1" },
        authority,
        method: flight.record.method.as_str(),
        path: path.as_str(),
        request: None,
    }
}

/// Where the request is for: a fixed destination, the address the app dialled, the Host it named, or where it went anyway.
fn destination(worker: &Worker, conn: &Conn, head: &Head, host: &str, discovered: bool) -> Result<Arc<Bound>, Reason> {
    let listener = &conn.listener;
    match configured(worker, conn, head, host) {
        Ok(bound) => Ok(bound),
        // Never in plaintext by accident; and without a redirect there is nowhere to go on to.
        Err(_) if !discovered && (!listener.original_dst || listener.is_of_mesh(conn.destination.ip())) => {
            Err(Reason::NotDiscovered)
        }
        Err(_) if listener.unknown == Unknown::Deny => Err(Reason::NotAllowed),
        Err(_) if listener.original_dst => {
            worker.implied.get(Kind::Passthrough, conn.destination, Instant::now()).ok_or(Reason::Overload)
        }
        Err(_) => Err(Reason::NoRoute),
    }
}

/// As configured; or the port at which no such Host is.
fn configured(worker: &Worker, conn: &Conn, head: &Head, host: &str) -> Result<Arc<Bound>, u16> {
    let snapshot = worker.shared.snapshot.load();
    let listener = &conn.listener;
    if let Some(bound) = snapshot.fixed(&listener.name) {
        return Ok(bound.clone());
    }
    let dialled = listener.original_dst.then_some(conn.destination);
    let written = head.authority.as_ref().and_then(|a| a.port_u16());
    snapshot.destinations().of_request(dialled, host, written).cloned()
}

fn rewrite(route: &RoutePlan, head: &mut Head, original: &http::uri::PathAndQuery) -> Result<(), Reason> {
    let Some(rewrite) = &route.rewrite else { return Ok(()) };
    if let Some(target) = route.rewrite_target(head.path.path(), head.path.query())? {
        head.path = target.parse().map_err(|_| Reason::Internal)?;
        head.fields.set(weft_policy::rewrite::ORIGINAL_PATH, original.as_str().as_bytes());
    }
    if let Some(authority) = &rewrite.authority {
        head.authority = Some(authority.parse().map_err(|_| Reason::Internal)?);
    }
    Ok(())
}

fn abort(mut flight: Box<Flight>, with: AbortWith) -> Served {
    flight.record.flags.reason = Some(Reason::FaultAbort);
    let mut reply = super::reject::reply(Reason::FaultAbort, false, flight.asker);
    match with {
        AbortWith::Http(status) if !flight.asker.grpc => {
            reply.status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        }
        // A status of HTTP for a caller that speaks gRPC keeps its meaning; one of gRPC for plain HTTP has none: 200.
        AbortWith::Http(_) => {}
        AbortWith::Grpc(code) if flight.asker.grpc => {
            reply.fields.0.insert(super::reject::GRPC_STATUS, HeaderValue::from(u16::from(code)));
        }
        AbortWith::Grpc(_) => reply.status = StatusCode::OK,
    }
    flight.answer(reply)
}

fn redirected(flight: Box<Flight>, redirect: &redirect::Config, route: &RoutePlan, head: &Head, host: &str) -> Served {
    let asked = redirect::Request {
        scheme: "http",
        host,
        port: head.authority.as_ref().and_then(|a| a.port_u16()),
        path: head.path.path(),
        query: head.path.query(),
    };
    let location = match redirect.location(route.matched.as_ref(), &asked) {
        Ok(location) => location,
        Err(reason) => return flight.reject(reason, false),
    };
    let mut reply = Reply::new(StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND));
    reply.fields.set("location", location.as_bytes());
    flight.answer(reply)
}

fn answered(
    flight: Box<Flight>,
    direct: &direct::Config,
    conn: &Conn,
    head: &Head,
    original: &http::uri::PathAndQuery,
) -> Served {
    let mut reply = Reply::new(StatusCode::from_u16(direct.status).unwrap_or(StatusCode::OK));
    if !direct.body.is_empty() {
        reply.fields.set("content-type", b"text/plain");
        reply.body = Body::full(bytes::Bytes::copy_from_slice(&direct.body));
    }
    let mut vars = vars(conn, &flight, head.authority.as_ref().map_or("", |a| a.as_str()), original);
    vars.request = Some(&head.fields);
    direct.headers(&mut reply.fields, &vars);
    flight.answer(reply)
}
