//! Takes the calls of API servers over TLS.
//!
//! A call has a bounded body and a bounded time well below what an API server waits, and runs in a task of its own: one that
//! panics, hangs or is no review is answered with an error, upon which the API server does what the webhook's `failurePolicy`
//! says, and delays no other.

use super::certificate::Served;
use super::figures::{End, Figures};
use super::review::{self, Answer, Request};
use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::Service;

/// More than an API server takes of one object; two of them come with an update.
const MAX_BODY: usize = 7 << 20;
const CONNECTIONS: usize = 256;
/// At a time; the next ones wait, within their time.
const CALLS: usize = 32;
const STREAMS: u32 = 64;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// All of a call: API servers wait for 5 s where our configurations are installed.
const CALL: Duration = Duration::from_secs(4);
/// API servers keep theirs; what is left over from a crashed one goes.
const IDLE: Duration = Duration::from_secs(60);
const HEADERS: u32 = 16 * 1024;

/// What decides.
pub trait Handler: Send + Sync + 'static {
    /// What takes long belongs off the event loop. An error is not the object's fault: the API server's `failurePolicy` decides.
    fn review(&self, request: Request) -> impl Future<Output = Result<Answer, String>> + Send;
}

struct Door<H> {
    path: &'static str,
    handler: H,
    figures: Arc<Figures>,
    calls: Semaphore,
}

/// Until the listener is closed. Calls come to `path`.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    served: Served,
    path: &'static str,
    handler: H,
    figures: Arc<Figures>,
) {
    let door = Arc::new(Door { path, handler, figures, calls: Semaphore::new(CALLS) });
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let acceptor = TlsAcceptor::from(served.config());
    let mut pause = Duration::from_millis(10);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
                continue;
            }
        };
        pause = Duration::from_millis(10);
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let (door, acceptor) = (door.clone(), acceptor.clone());
        tokio::spawn(async move {
            connection(stream, acceptor, door).await;
            drop(permit);
        });
    }
}

async fn connection<H: Handler>(stream: TcpStream, acceptor: TlsAcceptor, door: Arc<Door<H>>) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        // Often an API server that does not trust our certificate yet: it says so itself.
        Ok(Err(error)) => return tracing::debug!(%error, "handshake"),
        Err(_) => return tracing::debug!("handshake took too long"),
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .keep_alive_interval(IDLE / 2)
        .keep_alive_timeout(IDLE / 6);
    let service = TowerToHyperService::new(Caller(door));
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "connection");
    }
}

struct Caller<H>(Arc<Door<H>>);

impl<H> Clone for Caller<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

type Page = Response<Full<Bytes>>;

impl<H, B> Service<http::Request<B>> for Caller<H>
where
    H: Handler,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Page;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Page, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let door = self.0.clone();
        Box::pin(async move {
            let began = Instant::now();
            let own = door.clone();
            let mut work = tokio::spawn(async move { own.answer(request).await });
            let (end, page) = match tokio::time::timeout(CALL, &mut work).await {
                Ok(Ok(done)) => done,
                Ok(Err(panic)) => {
                    tracing::error!(error = %panic, "a call failed");
                    (End::Failed, text(StatusCode::INTERNAL_SERVER_ERROR, "this call failed; the log says why"))
                }
                Err(_) => {
                    work.abort();
                    tracing::warn!("a call took too long");
                    (End::Failed, text(StatusCode::GATEWAY_TIMEOUT, "no answer in time"))
                }
            };
            door.figures.count(end, began.elapsed());
            Ok(page)
        })
    }
}

impl<H: Handler> Door<H> {
    async fn answer<B>(&self, request: http::Request<B>) -> (End, Page)
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let malformed = |status, why: &str| (End::Malformed, text(status, why));
        if request.uri().path() != self.path {
            return malformed(StatusCode::NOT_FOUND, &format!("reviews are answered at {}", self.path));
        }
        if *request.method() != Method::POST {
            return malformed(StatusCode::METHOD_NOT_ALLOWED, "only POST");
        }
        let Ok(_permit) = self.calls.acquire().await else {
            return (End::Busy, text(StatusCode::SERVICE_UNAVAILABLE, "too many calls"));
        };
        let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return malformed(StatusCode::PAYLOAD_TOO_LARGE, &format!("at most {MAX_BODY} bytes"));
            }
            Err(error) => return malformed(StatusCode::BAD_REQUEST, &format!("the body did not arrive: {error}")),
        };
        // Megabytes take their time.
        let read = match body.len() {
            0..65_536 => Ok(review::read(&body)),
            _ => tokio::task::spawn_blocking(move || review::read(&body)).await,
        };
        let request = match read {
            Ok(Ok(request)) => request,
            Ok(Err(why)) => return malformed(StatusCode::BAD_REQUEST, &why),
            Err(error) => return malformed(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let uid = request.uid.clone();
        match self.handler.review(request).await {
            Ok(answer) => {
                let end = match &answer {
                    Answer { denied: Some(_), .. } => End::Denied,
                    Answer { patch, .. } if patch.is_empty() => End::Allowed,
                    _ => End::Patched,
                };
                (end, page(StatusCode::OK, "application/json", review::write(&uid, answer).to_string()))
            }
            Err(why) => {
                tracing::warn!(why, "a call could not be decided");
                (End::Failed, text(StatusCode::INTERNAL_SERVER_ERROR, &why))
            }
        }
    }
}

fn text(status: StatusCode, why: &str) -> Page {
    page(status, "text/plain; charset=utf-8", format!("{why}\n"))
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Page {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
