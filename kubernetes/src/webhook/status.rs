//! Plain HTTP for kubelets and Prometheus: `/ready`, `/live`, `/metrics`, and nothing else.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

const CONNECTIONS: usize = 32;
const CONNECTION: Duration = Duration::from_secs(15);

/// What is asked for.
pub trait Told: Send + Sync + 'static {
    /// What is missing, or nothing.
    fn ready(&self) -> Result<(), String>;
    fn metrics(&self) -> String;
}

pub async fn serve(listener: TcpListener, told: Arc<impl Told>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "status accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let told = told.clone();
        let service = tower::service_fn(move |request: Request<_>| {
            std::future::ready(Ok::<_, Infallible>(answer(&*told, &request)))
        });
        tokio::spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
            builder.http1().timer(TokioTimer::new()).keep_alive(false).half_close(true).max_buf_size(16 * 1024);
            let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            let _ = tokio::time::timeout(CONNECTION, serving).await;
            drop(permit);
        });
    }
}

fn answer<B>(told: &impl Told, request: &Request<B>) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
    }
    match request.uri().path() {
        "/ready" => match told.ready() {
            Ok(()) => text(StatusCode::OK, "ready\n".into()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
        },
        "/live" => text(StatusCode::OK, "live\n".into()),
        "/metrics" => text(StatusCode::OK, told.metrics()),
        _ => text(StatusCode::NOT_FOUND, "/ready /live /metrics\n".into()),
    }
}
