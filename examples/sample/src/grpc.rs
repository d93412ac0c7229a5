//! gRPC, by hand over HTTP/2: every message of `weft.sample.Echo` comes back with who answered (`echo.proto`). A call may be
//! one message or a stream in each direction; the handler is the same.

use crate::app::{App, caller, traced};
use crate::call::dial;
use crate::serve::Body;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, PartialEq, Message)]
struct Said {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    count: u32,
    #[prost(uint32, tag = "3")]
    pause_ms: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(string, tag = "2")]
    service: String,
    #[prost(string, tag = "3")]
    version: String,
    #[prost(string, tag = "4")]
    instance: String,
    #[prost(string, tag = "5")]
    caller: String,
    #[prost(btree_map = "string, string", tag = "6")]
    headers: BTreeMap<String, String>,
}

const SERVICE: &str = "/weft.sample.Echo/";
const MAX_MESSAGE: usize = 1 << 20;
const MAX_COUNT: u32 = 100_000;
const MAX_PAUSE: u32 = 60_000;

/// Status codes of gRPC.
const OK: u8 = 0;
const INVALID_ARGUMENT: u8 = 3;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const UNAVAILABLE: u8 = 14;

pub fn is_meant(request: &Request<Incoming>) -> bool {
    request.headers().get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

fn status(code: u8) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    headers
}

pub async fn answer(app: Arc<App>, request: Request<Incoming>) -> Response<Body> {
    let (request, body) = request.into_parts();
    let method = request.uri.path().strip_prefix(SERVICE);
    let refused = match method {
        Some("Say" | "Repeat" | "Chat") => app.work(None).await.then_some(UNAVAILABLE),
        _ => Some(UNIMPLEMENTED),
    };
    let mut response = match refused {
        // The head is all there is.
        Some(code) => {
            let mut response = Response::new(Empty::new().boxed_unsync());
            response.headers_mut().extend(status(code));
            response
        }
        None => {
            let (sender, channel) = Channel::<Bytes, Infallible>::new(16);
            let single = method == Some("Say");
            tokio::spawn(async move {
                let mut sender = sender;
                let code = tokio::select! {
                    code = echo(&app, &request, body, &mut sender, single) => code,
                    () = app.ends(), if !single => UNAVAILABLE,
                };
                let _ = sender.send_trailers(status(code)).await;
            });
            Response::new(channel.boxed_unsync())
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Answers every message as it comes; returns the status.
async fn echo(app: &App, request: &Parts, mut body: Incoming, to: &mut Sender<Bytes, Infallible>, single: bool) -> u8 {
    let mut reply = Reply {
        text: String::new(),
        service: app.args.name.clone(),
        version: app.args.app_version.clone(),
        instance: app.instance.clone(),
        caller: caller(&request.headers).unwrap_or_default().into(),
        headers: request
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
    };
    let mut waiting = BytesMut::new();
    loop {
        let said = match next::<Said>(&mut waiting, &mut body).await {
            Ok(Some(said)) => said,
            Ok(None) => return OK,
            Err(code) => return code,
        };
        reply.text = said.text;
        let count = if single { 1 } else { said.count.clamp(1, MAX_COUNT) };
        for i in 0..count {
            if i > 0 && said.pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(said.pause_ms.min(MAX_PAUSE).into())).await;
            }
            // Whoever called has gone: nobody reads the status.
            if to.send_data(frame(&reply)).await.is_err() {
                return OK;
            }
        }
    }
}

/// A message with its five bytes before it: not compressed, and how long.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// The next message, none at the end, or the status that says what is wrong.
async fn next<M: Message + Default>(waiting: &mut BytesMut, body: &mut Incoming) -> Result<Option<M>, u8> {
    loop {
        if let Some(head) = waiting.first_chunk::<5>() {
            let [compressed, length @ ..] = *head;
            let length = u32::from_be_bytes(length) as usize;
            if compressed != 0 {
                return Err(UNIMPLEMENTED);
            }
            if length > MAX_MESSAGE {
                return Err(RESOURCE_EXHAUSTED);
            }
            if waiting.len() >= 5 + length {
                waiting.advance(5);
                return M::decode(waiting.split_to(length)).map(Some).map_err(|_| INVALID_ARGUMENT);
            }
        }
        match body.frame().await {
            Some(Ok(frame)) => waiting.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d)),
            Some(Err(_)) => return Err(UNAVAILABLE),
            None if waiting.is_empty() => return Ok(None),
            None => return Err(INVALID_ARGUMENT),
        }
    }
}

/// One message, or with `Chat` three; the answers, and the status.
pub async fn call(authority: &str, method: &str, headers: &HeaderMap) -> Result<Value, String> {
    let of = |e: hyper::Error| e.to_string();
    let stream = dial(authority).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(of)?;
    tokio::spawn(connection);
    let method = if method.is_empty() { "Say" } else { method };
    let messages: &[&str] = if method == "Chat" { &["one", "two", "three"] } else { &["hello"] };
    let body: BytesMut =
        messages.iter().flat_map(|text| frame(&Said { text: (*text).into(), ..Said::default() })).collect();
    let request = Request::post(format!("http://{authority}{SERVICE}{method}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header("te", "trailers");
    let request = traced(request, headers).body(Full::new(body.freeze())).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(of)?;
    let code = |headers: &HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse::<u8>().ok();
    let (http, early) = (response.status().as_u16(), code(response.headers()));
    let body = response.into_body().collect().await.map_err(of)?;
    let code = early.or_else(|| body.trailers().and_then(code));
    let mut waiting = BytesMut::from(&*body.to_bytes());
    let mut replies = Vec::new();
    while let Some(length) = waiting.first_chunk::<5>().map(|h| u32::from_be_bytes([h[1], h[2], h[3], h[4]]) as usize) {
        if waiting.len() < 5 + length {
            break;
        }
        waiting.advance(5);
        let reply = Reply::decode(waiting.split_to(length)).map_err(|e| e.to_string())?;
        replies.push(json!({
            "text": reply.text, "service": reply.service, "version": reply.version, "instance": reply.instance,
            "caller": reply.caller, "headers": reply.headers,
        }));
    }
    Ok(json!({"status": http, "grpcStatus": code, "replies": replies}))
}
