//! Who answered, what arrived, who called, and what those that were called in turn said: the answer over HTTP/1.1 and HTTP/2.
//! A request may ask for another one: `/?status=503&delay=200&size=1000`.

use crate::app::{App, caller};
use crate::serve::Body;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

/// No request asks for more.
const MAX_BODY: usize = 16 << 20;

/// What a request asks for in its query, by name.
fn asked<T: std::str::FromStr>(request: &Parts, name: &str) -> Option<T> {
    let pairs = request.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok())
}

pub async fn answer(app: &App, request: Request<Incoming>) -> Response<Body> {
    let (request, mut body) = request.into_parts();
    let mut received = 0;
    while let Some(Ok(frame)) = body.frame().await {
        received += frame.data_ref().map_or(0, Bytes::len);
    }
    let fails = app.work(asked(&request, "delay")).await;
    let status = if fails { 500 } else { asked(&request, "status").unwrap_or(app.args.status) };
    let size = asked(&request, "size").unwrap_or(app.args.body_size).min(MAX_BODY);
    let (mut text, kind) = match &app.args.text {
        Some(text) => (format!("{text}\n"), "text/plain; charset=utf-8"),
        None => (format!("{:#}\n", describe(app, &request, received).await), "application/json"),
    };
    // White space, so that JSON stays JSON.
    text.extend(std::iter::repeat_n(' ', size.saturating_sub(text.len())));
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

async fn describe(app: &App, request: &Parts, received: usize) -> Value {
    let headers: Map<String, Value> = request
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let path = request.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut calls = Map::new();
    for call in &app.calls {
        calls.insert(call.name.clone(), call.make(path, &request.headers).await);
    }
    json!({
        "service": app.args.name,
        "version": app.args.app_version,
        "instance": app.instance,
        "caller": caller(&request.headers),
        "protocol": format!("{:?}", request.version),
        "method": request.method.as_str(),
        "path": path,
        "bodyBytes": received,
        "headers": headers,
        "calls": calls,
    })
}
