//! The admin listeners: one question per connection, bounded in number and in time.

use super::app::{App, HEALTH};
use super::rules::{self, Door, Path};
use super::{AdminState, State, clusters, dump, stats};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// From accept to close: slow readers and silent clients are cut then.
const CONNECTION: Duration = Duration::from_secs(15);
/// Connections at a time; more are closed at once.
const CONNECTIONS: usize = 64;
/// After a failed accept (out of descriptors), so the loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Serves everything; for loopback.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>) {
    accept(listener, state, Door::Admin, None).await;
}

/// Serves readiness and metrics only; for the pod's address.
pub async fn serve_public(listener: TcpListener, state: Arc<AdminState>) {
    accept(listener, state, Door::Public, None).await;
}

/// Serves those, the app's health and metrics, and what ends the sidecar; for the pod's address.
pub async fn serve_status(listener: TcpListener, state: Arc<AdminState>, app: Arc<App>) {
    accept(listener, state, Door::Status, Some(app)).await;
}

/// Serves what Linkerd's port 4191 does for tools and probes; for the pod's address.
pub async fn serve_linkerd(listener: TcpListener, state: Arc<AdminState>) {
    accept(listener, state, Door::Linkerd, None).await;
}

async fn accept(listener: TcpListener, state: Arc<AdminState>, door: Door, app: Option<Arc<App>>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "admin accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let (state, app) = (state.clone(), app.clone());
        tokio::spawn(async move {
            connection(stream, peer, state, door, app).await;
            drop(permit);
        });
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, state: Arc<AdminState>, door: Door, app: Option<Arc<App>>) {
    let Ok(bound) = stream.local_addr() else { return };
    let service = service_fn(move |request: Request<Incoming>| {
        let (state, app) = (state.clone(), app.clone());
        async move { Ok::<_, Infallible>(answer(&request, peer, bound, &state, door, app.as_deref()).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(16 * 1024)
        .serve_connection(Io(stream), service);
    match tokio::time::timeout(CONNECTION, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, %peer, "admin connection"),
        Err(_) => tracing::debug!(%peer, "admin connection cut: too slow"),
    }
}

async fn answer(
    request: &Request<Incoming>,
    peer: SocketAddr,
    bound: SocketAddr,
    state: &Arc<AdminState>,
    door: Door,
    app: Option<&App>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if let Some(app) = app
        && path.starts_with(HEALTH)
        && let Some(answer) = health(app, request, bound).await
    {
        return answer;
    }
    let admitted = rules::admit(door, peer.ip(), bound, request.method(), path, request.headers());
    let mut response = match admitted {
        Ok(Path::Ready) if door == Door::Linkerd && state.proxy.state() == State::Live => {
            plain(StatusCode::OK, "ready\n")
        }
        Ok(what) => match state.questions.try_acquire() {
            Ok(_room) => match (page(what, request, state).await, app) {
                (ours, Some(app)) if what == Path::Metrics => with_theirs(ours, app, bound).await,
                (page, _) => page,
            },
            Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "too many questions at once\n"),
        },
        Err((status, why)) => plain(status, why),
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(rules::allowed(path)));
    }
    response
}

/// The app's answer to a probe. `None`: no such probe, or not a question.
async fn health(app: &App, request: &Request<Incoming>, bound: SocketAddr) -> Option<Response<Full<Bytes>>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return None;
    }
    let (status, body) = app.health(request.uri().path(), bound.ip()).await?;
    Some(plain(status, body))
}

/// Our metrics and the app's.
async fn with_theirs(ours: Response<Full<Bytes>>, app: &App, bound: SocketAddr) -> Response<Full<Bytes>> {
    let (head, body) = ours.into_parts();
    // It is there already.
    let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Response::from_parts(head, Full::new(app.metrics(text, bound.ip()).await))
}

async fn page(what: Path, request: &Request<Incoming>, state: &Arc<AdminState>) -> Response<Full<Bytes>> {
    match what {
        Path::Index | Path::Help => plain(StatusCode::OK, help()),
        Path::Live => plain(StatusCode::OK, "live\n"),
        Path::Ready => {
            let now = state.proxy.state();
            let status = if now == State::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let why = state.proxy.waiting_for().map(|why| format!(": {why}")).unwrap_or_default();
            plain(status, format!("{}{why}\n", now.word()))
        }
        Path::Metrics => typed(StatusCode::OK, METRICS, state.hub.metrics_text().await),
        Path::Stats => {
            state.hub.fresh().await;
            dumped(state, TEXT, || {
                let mut backends = state.proxy.backends();
                backends.sort_by(|a, b| a.id.cmp(&b.id));
                stats::text(&state.hub, &backends, state.proxy.state())
            })
        }
        Path::Clusters => dumped(state, TEXT, || clusters::text(state.proxy.backends())),
        Path::ConfigDump => dumped(state, JSON, || pretty(&dump::config(state))),
        Path::Certs => dumped(state, JSON, || pretty(&dump::certs(state))),
        Path::ServerInfo => dumped(state, JSON, || pretty(&dump::server_info(state))),
        Path::Listeners => {
            let mut out = String::new();
            for (name, address) in state.proxy.listeners() {
                let _ = writeln!(out, "{name}::{address}");
            }
            plain(StatusCode::OK, out)
        }
        Path::Logging => logging(request, state),
        Path::Drain => {
            tracing::info!("drain asked for by the admin interface");
            state.proxy.drain();
            plain(StatusCode::OK, "OK\n")
        }
        Path::Quit => {
            tracing::info!("exit asked for by the admin interface");
            state.proxy.quit();
            plain(StatusCode::OK, "OK\n")
        }
    }
}

fn logging(request: &Request<Incoming>, state: &Arc<AdminState>) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return plain(StatusCode::OK, format!("{}\n", state.proxy.log_filter()));
    }
    let Some(level) = query(request.uri().query().unwrap_or(""), "level") else {
        return plain(StatusCode::BAD_REQUEST, "say which: ?level=debug, or ?level=info,weft_proxy=trace\n");
    };
    match state.set_log_filter(&level) {
        None => plain(StatusCode::TOO_MANY_REQUESTS, "one change a second\n"),
        Some(Err(error)) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
        Some(Ok(())) => plain(StatusCode::OK, format!("{}\n", state.proxy.log_filter())),
    }
}

/// A value of the query, its percent signs resolved.
fn query(query: &str, key: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

fn help() -> String {
    let mut out = String::from("admin pages:\n");
    for (path, _, what, _, _) in rules::PATHS {
        let _ = writeln!(out, "  {path}: {what}");
    }
    out
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// One dump at a time.
fn dumped(state: &AdminState, kind: HeaderValue, make: impl FnOnce() -> String) -> Response<Full<Bytes>> {
    match state.dumps.try_acquire() {
        Ok(_one) => typed(StatusCode::OK, kind, make()),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "another dump is being made\n"),
    }
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, TEXT, body)
}

fn typed(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// tokio's stream under hyper. Copies what it reads; questions are short.
struct Io(TcpStream);

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut to: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut space = [0u8; 2048];
        let n = space.len().min(to.remaining());
        let mut buf = ReadBuf::new(&mut space[..n]);
        match Pin::new(&mut self.0).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) => {
                to.put_slice(buf.filled());
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
