//! The first driver under the request path: hyper at connection level, and the only file that knows it.
//!
//! Server side: one future per connection; HTTP/1 requests are polled inline by it, HTTP/2 streams by local tasks.
//! Client side: a sender per connection and one local task that drives it.

use super::early::Early;
use super::exchange::{Body, BodyError, FieldMap, Head, Reply, Request, Serve, Served, Tunnel, Upgrade};
use super::gate::{Control, Gate};
use super::http2::Http2Body;
use super::sender::{SendFailed, Sender, tell_refused};
use crate::worker::{Phase, Worker};
use bytes::Bytes;
use http::header::{HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Version};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn as client;
use hyper::server::conn as server;
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use weft_policy::listener::Limits;
use weft_policy::reason::Reason;
use weft_tls::{Ear, MeshStream, Refusal};

/// A body as the codec delivers it.
pub enum Wire {
    Hyper(Incoming),
    Http2(Http2Body),
}

impl Wire {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Wire::Hyper(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|f| f.map_err(|_| BodyError::Broken)))
            }
            Wire::Http2(body) => body.poll_frame(cx),
        }
    }
}

impl http_body::Body for Wire {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Wire::poll_frame(&mut self, cx)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Wire::Hyper(body) => body.is_end_stream(),
            Wire::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Wire::Hyper(body) => body.size_hint(),
            Wire::Http2(body) => body.size_hint(),
        }
    }
}

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

/// Serves HTTP/1 on a connection until it ends, or leaves HTTP.
pub async fn serve_http1<S: Serve + 'static>(io: MeshStream, limits: &Limits, worker: &Worker, service: S) {
    let control = Rc::new(Control::default());
    let tunnel: Rc<RefCell<Option<Upgrade>>> = Rc::default();
    let mut absent = Absent { ear: io.ear(), patience: None };
    let gate = Gate::new(io, control.clone(), *limits);
    let service = {
        let (service, control, tunnel) = (Rc::new(service), control.clone(), tunnel.clone());
        let ending = worker.ending.clone();
        hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let (control, tunnel, ending) = (control.clone(), tunnel.clone(), ending.clone());
            control.asked();
            let leaving = request.method() == http::Method::CONNECT
                || super::normalise::wants_upgrade(&request.headers().clone().into());
            let served = service.clone().serve(take_request(request));
            async move {
                let Served::Reply(mut reply) = served.await else { return Err(CutError) };
                if leaving {
                    let upgrade = reply.upgrade.take();
                    control.answered(upgrade.is_some());
                    if upgrade.is_none() {
                        // What came behind a refused upgrade cannot be trusted to be HTTP.
                        reply.fields.0.insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
                    }
                    *tunnel.borrow_mut() = upgrade;
                } else if ending.phase() != Phase::Running {
                    // The client takes its next request elsewhere. Closing without a word would race with that request.
                    reply.fields.0.insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
                }
                Ok(give_reply(*reply, |body| body))
            }
        })
    };
    let mut connection = server::http1::Builder::new()
        .half_close(true)
        .max_headers(limits.header_count as usize)
        .max_header_size((limits.header_bytes as usize).max(8192))
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(gate), service);
    let mut told = false;
    let mut ticket = worker.ending.register();
    let broken = poll_fn(|cx| {
        // The gate does not let it shut the socket down: there may be more to say, or a tunnel to make of it.
        let mut polled = Pin::new(&mut connection).poll(cx);
        if polled.is_pending() && ticket.poll(cx) >= Phase::Ending && !told {
            // Polled first, so that a request whose bytes are here already is still served.
            told = true;
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(cx);
        }
        match polled {
            Poll::Ready(_) => Poll::Ready(false),
            Poll::Pending if control.is_busy() => absent.poll(cx, &control).map(|()| true),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    if broken {
        return;
    }
    let parts = connection.into_parts();
    let mut io = parts.io.into_inner().into_inner();
    let upgrade = tunnel.borrow_mut().take();
    if let Some(upgrade) = upgrade {
        if let Some(far) = upgrade.ready().await {
            crate::accept::stream::relay_tunnel(worker, Tunnel { io, read: parts.read_buf }, far, &ticket).await;
        }
        return;
    }
    use tokio::io::AsyncWriteExt;
    if let Some(reason) = control.verdict.get().filter(|_| !control.mute.get()) {
        super::reject::write_raw(&mut io, reason).await;
        super::reject::linger(&mut io).await;
    }
    let _ = io.shutdown().await;
}

/// A client that owes nothing more may close its direction and still wait for its answer; so the codec does not read while
/// it owes one, and would not see that nobody is there any more. This does: at once when the connection breaks, and after a
/// while when it was half closed, which is how most clients that gave up look.
struct Absent {
    ear: Ear,
    patience: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Absent {
    /// Without a byte of an answer.
    const PATIENCE: Duration = Duration::from_secs(15);

    fn poll(&mut self, cx: &mut Context<'_>, control: &Control) -> Poll<()> {
        if self.ear.poll_broken(cx).is_ready() {
            return Poll::Ready(());
        }
        if !self.ear.has_ended() {
            return Poll::Pending;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(Self::PATIENCE)));
        while patience.as_mut().poll(cx).is_ready() {
            if !control.take_wrote() {
                return Poll::Ready(());
            }
            patience.as_mut().reset(tokio::time::Instant::now() + Self::PATIENCE);
        }
        Poll::Pending
    }
}

pub struct Http1 {
    sender: client::http1::SendRequest<Body>,
    /// Where the connection goes if it leaves HTTP.
    leave: Rc<RefCell<Option<oneshot::Sender<Tunnel>>>>,
    refusal: Refusal,
}

/// HTTP/1 towards an endpoint. `closed` runs when the connection has ended.
pub async fn connect_http1(io: MeshStream, limits: &Limits, closed: impl FnOnce() + 'static) -> Result<Sender, Reason> {
    let refusal = io.refusal();
    let (sender, mut connection) = client::http1::Builder::new()
        .max_headers(limits.header_count.max(128) as usize)
        .max_buf_size(limits.header_bytes.max(64 * 1024) as usize + 64 * 1024)
        .handshake::<_, Body>(TokioIo::new(Early::new(io)))
        .await
        .map_err(|_| Reason::ConnectFailed)?;
    let told = refusal.clone();
    let leave: Rc<RefCell<Option<oneshot::Sender<Tunnel>>>> = Rc::default();
    let left = leave.clone();
    tokio::task::spawn_local(async move {
        let ended = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
        closed();
        tell_refused(&told);
        let parts = connection.into_parts();
        let mut io = parts.io.into_inner().into_inner();
        let leave = left.borrow_mut().take();
        match (ended, leave) {
            (Ok(()), Some(leave)) => {
                let _ = leave.send(Tunnel { io, read: parts.read_buf });
            }
            _ => {
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut io).await;
            }
        }
    });
    Ok(Sender::Http1(Rc::new(RefCell::new(Http1 { sender, leave, refusal }))))
}

impl Http1 {
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub async fn ready(this: &RefCell<Self>) -> bool {
        poll_fn(|cx| this.borrow_mut().sender.poll_ready(cx)).await.is_ok()
    }

    pub fn send(&mut self, request: Request, leaving: bool) -> impl Future<Output = Result<Reply, SendFailed>> + use<> {
        let connect = request.head.method == http::Method::CONNECT;
        let wanted = leaving.then(|| request.head.fields.0.get(UPGRADE).cloned()).flatten();
        let upgrade = leaving.then(|| {
            let (tx, rx) = oneshot::channel();
            *self.leave.borrow_mut() = Some(tx);
            Upgrade(rx)
        });
        let sending = self.sender.try_send_request(give_request(request, false));
        let refusal = self.refusal.clone();
        async move {
            match sending.await {
                Ok(response) => take_reply(response, connect, upgrade, wanted.as_ref()),
                Err(failed) => Err(take_failure(failed, &refusal)),
            }
        }
    }
}

fn take_reply(
    response: hyper::Response<Incoming>,
    connect: bool,
    upgrade: Option<Upgrade>,
    wanted: Option<&HeaderValue>,
) -> Result<Reply, SendFailed> {
    let (parts, incoming) = response.into_parts();
    let left = parts.status == http::StatusCode::SWITCHING_PROTOCOLS || (connect && parts.status.is_success());
    let framing = &parts.headers;
    // Also not to be believed: 101 to a request that asked for nothing, or for something else.
    let switched = parts.status == http::StatusCode::SWITCHING_PROTOCOLS;
    let unasked = left && (upgrade.is_none() || (switched && !is_wanted(framing.get(UPGRADE), wanted)));
    if is_ambiguous(framing) || unasked {
        return Err(SendFailed::new(Reason::UpstreamProtocol, false));
    }
    Ok(Reply {
        status: parts.status,
        fields: FieldMap(parts.headers.into()),
        body: if left { Body::empty() } else { Body::wire(Wire::Hyper(incoming)) },
        upgrade: upgrade.filter(|_| left),
    })
}

/// Whether two readers could see different bodies. The codec prefers a coding to a length, and reads one it does not know to
/// the connection's end.
fn is_ambiguous(fields: &http::HeaderMap) -> bool {
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(one), None) => {
            !one.as_bytes().eq_ignore_ascii_case(b"chunked") || fields.contains_key(http::header::CONTENT_LENGTH)
        }
        _ => true,
    }
}

/// Whether a server switches to one of the protocols that the client named.
fn is_wanted(to: Option<&HeaderValue>, wanted: Option<&HeaderValue>) -> bool {
    let (Some(to), Some(wanted)) = (to, wanted) else { return false };
    let mut wanted = wanted.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
    wanted.any(|w| w.eq_ignore_ascii_case(to.as_bytes().trim_ascii()))
}

fn take_failure(mut failed: client::TrySendError<hyper::Request<Body>>, refusal: &Refusal) -> SendFailed {
    let unsent = failed.take_message();
    let (reason, unprocessed) = match refusal.get() {
        Some(_) => (Reason::TlsFailed, true),
        None => why(failed.error()),
    };
    SendFailed { reason, unprocessed: unprocessed || unsent.is_some(), request: unsent.map(|m| Box::new(take_back(m))) }
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

fn take_back(message: hyper::Request<Body>) -> Request {
    let (mut parts, body) = message.into_parts();
    let uri = parts.uri.into_parts();
    let path = uri.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    parts.headers.remove(TRANSFER_ENCODING);
    let host = parts.headers.remove(HOST).and_then(|v| Authority::try_from(v.as_bytes()).ok());
    Request {
        head: Head {
            asterisk: path.as_str() == "*",
            method: parts.method,
            version: parts.version,
            authority: uri.authority.or(host),
            path,
            fields: FieldMap(parts.headers.into()),
        },
        body,
    }
}

/// The reason in a codec's error, and whether the upstream is known not to have touched the request.
fn why(error: &hyper::Error) -> (Reason, bool) {
    if error.is_canceled() {
        return (Reason::UpstreamClosed, true);
    }
    if error.is_parse() {
        return (Reason::UpstreamProtocol, false);
    }
    (Reason::UpstreamClosed, false)
}
