//! HTTP/2's server side on hyper, at connection level: streams run as local tasks.

use super::exchange::{Body, FieldMap, Head, Reply, Request, Serve, Served, Wire};
use super::sender::Sender;
use super::stall::{Link, Offered, Streams};
use crate::worker::{Phase, Worker};
use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderValue, Version};
use hyper::body::Incoming;
use hyper::server::conn as server;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use weft_policy::listener::Limits;
use weft_policy::reason::Reason;
use weft_tls::MeshStream;

/// Windows: one stream may not take the whole connection, and bulk must not wait for updates.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Of answers; requests come in frames of the protocol's own size, which is what h2spec's case 4.2/3 takes for granted.
const SEND_BUFFER: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("cut")]
struct CutError;

fn take_request(request: hyper::Request<Incoming>) -> Request {
    let (parts, incoming) = request.into_parts();
    let uri = parts.uri.into_parts();
    let path = uri.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    let asterisk = path.as_str() == "*";
    Request {
        head: Head {
            asterisk,
            method: parts.method,
            version: parts.version,
            authority: uri.authority,
            path,
            fields: FieldMap(parts.headers.into()),
        },
        body: Body::wire(Wire::Hyper(incoming)),
    }
}

fn give_reply<B>(reply: Reply, make: impl FnOnce(Body) -> B) -> hyper::Response<B> {
    let mut response = hyper::Response::new(make(reply.body));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.fields.0.into();
    response
}

/// Serves HTTP/2 on a connection until it ends.
///
/// `trusted`: a sidecar that speaks for many clients and has counted each one's frames itself. What looks like a flood here is
/// their sum, and ending the connection would punish them all for one.
pub async fn serve_http2<S: Serve + 'static>(
    io: MeshStream,
    limits: &Limits,
    worker: &Worker,
    service: S,
    trusted: bool,
) {
    let service = Rc::new(service);
    let link = Rc::new(Link::default());
    let streams = Streams::new(link.clone(), limits.body_idle);
    let (offers, seen) = (streams.clone(), link.clone());
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let served = service.clone().serve(take_request(request));
        let (offers, seen) = (offers.clone(), seen.clone());
        async move {
            if seen.is_fickle() {
                tokio::task::yield_now().await;
            }
            match served.await {
                Served::Reply(reply) => {
                    Ok::<hyper::Response<Offered>, _>(give_reply(*reply, |body| offers.offer(body)))
                }
                Served::Cut => Err(CutError),
            }
        }
    });
    let patience = if trusted { 100 } else { 1 };
    let io = super::flood::Guard::new(io, link, limits.header_timeout, patience);
    let mut connection = pin!(
        server::http2::Builder::new(streams)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(limits.max_streams)
            .max_header_list_size(limits.header_bytes)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(50 * patience as usize)
            .max_local_error_reset_streams(500 * patience as usize)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(io), service)
    );
    let mut told = false;
    let mut ticket = worker.ending.register();
    // Its goodbye takes every request that comes before the peer has heard it. A late connection gets its own only at the
    // end: a peer that has just moved here because of a goodbye would go round in circles.
    let goodbye = if ticket.late { Phase::Ending } else { Phase::Draining };
    poll_fn(|cx| {
        if ticket.poll(cx) >= goodbye && !told {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx).map(|_| ())
    })
    .await;
}

/// HTTP/2 towards an endpoint.
pub async fn connect_http2(io: MeshStream, limits: &Limits, closed: impl FnOnce() + 'static) -> Result<Sender, Reason> {
    Ok(Sender::Http2(super::h2_client::connect(io, limits, closed).await?))
}

pub fn give_request(request: Request, http2: bool) -> hyper::Request<Body> {
    let Head { method, authority, path, mut fields, asterisk, .. } = request.head;
    // HTTP/2 has it in the target, where there is one.
    if !http2 || asterisk {
        let host = authority.as_ref().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
        fields.0.insert(HOST, host.unwrap_or(HeaderValue::from_static("")));
    }
    let connect = method == http::Method::CONNECT;
    // For methods that rarely have a body the codec sends none unless it is told to.
    if !http2 && !connect && !request.body.is_empty() && request.body.length().is_none() {
        fields.0.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let mut message = hyper::Request::new(request.body);
    let mut uri = http::uri::Parts::default();
    if connect {
        uri.authority = authority;
    } else {
        uri.path_and_query = Some(path);
        if http2 && authority.is_some() && !asterisk {
            uri.scheme = Some(http::uri::Scheme::HTTP);
            uri.authority = authority;
        }
    }
    // The parts come from a valid request, so they always fit together; `/` is what a bug would look like upstream.
    *message.uri_mut() = http::Uri::from_parts(uri).unwrap_or_default();
    *message.version_mut() = if http2 && message.uri().scheme().is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
    *message.method_mut() = method;
    *message.headers_mut() = fields.0.into();
    message
}
