//! `mesh-sample`: a small service to put a mesh around.
//!
//! It answers every path with JSON that says who answered, what arrived and who the mesh says has called; it calls the services
//! that the environment names, and fails as often as it is told to. The variables are those that labs set: `BACKEND_PORT` or
//! `PORT`, `SERVICE_NAME`, `VERSION`, `FAILURE_RATE` (0 to 1), `DELAY_MS`, `STATUS`, `BODY_SIZE`, `TEXT`, and `*_SERVICE_URL` for
//! services it calls in turn, through `http_proxy` if there is one. A request may ask for another answer: `/?status=503&delay=200&size=1000`.

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A small HTTP service for trying a mesh with.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  BACKEND_PORT=8080 SERVICE_NAME=users FAILURE_RATE=0.1 mesh-sample\n  \
                  curl '127.0.0.1:8080/any?status=503&delay=200&size=1000'"
)]
struct Args {
    /// Port to listen on, all addresses; PORT counts as well [default: 8080]
    #[arg(long, env = "BACKEND_PORT")]
    port: Option<u16>,
    /// Name to answer with
    #[arg(long, env = "SERVICE_NAME", default_value = "sample")]
    name: String,
    /// Version to answer with
    #[arg(long, env = "VERSION", default_value = "")]
    app_version: String,
    /// Share of requests to answer with 500
    #[arg(long, env = "FAILURE_RATE", default_value_t = 0.0)]
    failure_rate: f64,
    /// Milliseconds to wait before each answer
    #[arg(long, env = "DELAY_MS", default_value_t = 0)]
    delay_ms: u64,
    /// Status to answer with
    #[arg(long, env = "STATUS", default_value_t = 200)]
    status: u16,
    /// Bytes to fill each answer up with
    #[arg(long, env = "BODY_SIZE", default_value_t = 0)]
    body_size: usize,
    /// Answer with this text in place of JSON
    #[arg(long, env = "TEXT")]
    text: Option<String>,
}

struct App {
    args: Args,
    instance: String,
    /// Services to call: name and `host:port`.
    calls: Vec<(String, String)>,
    /// `host:port` of whom to call them through.
    proxy: Option<String>,
    served: AtomicU64,
}

/// No request asks for more.
const MAX_BODY: usize = 16 << 20;
const MAX_DELAY: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let calls = std::env::vars()
        .filter_map(|(key, url)| {
            let name = key.strip_suffix("_SERVICE_URL")?.to_ascii_lowercase();
            let host = url.strip_prefix("http://")?.trim_end_matches('/').to_string();
            Some((name, host))
        })
        .collect();
    let proxy = std::env::var("http_proxy").ok();
    let proxy = proxy.and_then(|url| Some(url.strip_prefix("http://")?.trim_end_matches('/').to_string()));
    let port = args.port.or_else(|| std::env::var("PORT").ok()?.parse().ok()).unwrap_or(8080);
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    eprintln!("{} listens on {}", args.name, listener.local_addr()?);
    let instance = std::env::var("HOSTNAME").unwrap_or_default();
    let app = Arc::new(App { args, instance, calls, proxy, served: AtomicU64::new(0) });
    let mut end = signal(SignalKind::terminate())?;
    let (ending, ends) = watch::channel(());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = end.recv() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(serve(app.clone(), stream, ends.clone()));
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // What is under way is finished.
    drop(listener);
    drop(ending);
    eprintln!("{} ends with {} connections to finish", app.args.name, connections.len());
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn serve(app: Arc<App>, stream: TcpStream, mut ends: watch::Receiver<()>) {
    let service = hyper::service::service_fn(|request| answer(app.clone(), request));
    let mut connection =
        pin!(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = ends.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// What a request asks for in its query, by name.
fn asked<T: std::str::FromStr>(request: &Request<Incoming>, name: &str) -> Option<T> {
    let pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok())
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let args = &app.args;
    let nth = app.served.fetch_add(1, Ordering::Relaxed);
    let delay = Duration::from_millis(asked(&request, "delay").unwrap_or(args.delay_ms)).min(MAX_DELAY);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    // Spread evenly instead of at random, so that a lab shows what its text says.
    let rate = args.failure_rate.clamp(0.0, 1.0);
    let fails = ((nth + 1) as f64 * rate).floor() > (nth as f64 * rate).floor();
    let status = if fails { 500 } else { asked(&request, "status").unwrap_or(args.status) };
    let size = asked(&request, "size").unwrap_or(args.body_size).min(MAX_BODY);
    let (mut text, kind) = match &args.text {
        Some(text) => (format!("{text}\n"), "text/plain; charset=utf-8"),
        None => (format!("{:#}\n", describe(&app, &request).await), "application/json"),
    };
    // White space, so that JSON stays JSON.
    text.extend(std::iter::repeat_n(' ', size.saturating_sub(text.len())));
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    Ok(response)
}

async fn describe(app: &App, request: &Request<Incoming>) -> Value {
    let headers: Map<String, Value> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let mut calls = Map::new();
    for (name, host) in &app.calls {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        calls.insert(name.clone(), call(host, app.proxy.as_deref(), path, request.headers()).await);
    }
    json!({
        "service": app.args.name,
        "version": app.args.app_version,
        "instance": app.instance,
        "caller": caller(request.headers()),
        "method": request.method().as_str(),
        "path": request.uri().to_string(),
        "headers": headers,
        "calls": calls,
    })
}

/// Who the mesh says has called: the URI of the last certificate that a sidecar has put down.
fn caller(headers: &http::HeaderMap) -> Option<&str> {
    let all = headers.get("x-forwarded-client-cert")?.to_str().ok()?;
    let fields = all.rsplit(',').next()?.split(';');
    fields.filter_map(|f| f.trim().strip_prefix("URI=")).next_back()
}

/// Calls another service and passes the trace on, as an app in a mesh should.
async fn call(host: &str, proxy: Option<&str>, path: &str, headers: &http::HeaderMap) -> Value {
    // A proxy is asked for a whole URL.
    let uri = proxy.map_or_else(|| path.to_string(), |_| format!("http://{host}{path}"));
    let tried = async {
        let stream = TcpStream::connect(proxy.unwrap_or(host)).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder().uri(uri).header(http::header::HOST, host);
        for name in ["traceparent", "tracestate", "x-request-id", "b3"] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
        Ok::<Value, String>(json!({"status": status, "body": body}))
    };
    match tokio::time::timeout(Duration::from_secs(10), tried).await {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => json!({"error": error}),
        Err(_) => json!({"error": "no answer within 10 s"}),
    }
}
