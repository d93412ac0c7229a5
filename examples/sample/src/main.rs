//! `mesh-sample`: a small service to put a mesh around.
//!
//! It answers every path with JSON that says who answered and what arrived, calls the services that the environment names, and
//! fails as often as it is told to. The variables are those that labs set: `BACKEND_PORT`, `SERVICE_NAME`, `FAILURE_RATE`
//! (0 to 1), `DELAY_MS`, and `*_SERVICE_URL` for services it calls in turn.

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// A small HTTP service for trying a mesh with.
#[derive(Parser)]
#[command(version, after_help = "Example:\n  BACKEND_PORT=8080 SERVICE_NAME=users FAILURE_RATE=0.1 mesh-sample")]
struct Args {
    /// Port to listen on (all addresses)
    #[arg(long, env = "BACKEND_PORT", default_value_t = 8080)]
    port: u16,
    /// Name to answer with
    #[arg(long, env = "SERVICE_NAME", default_value = "sample")]
    name: String,
    /// Share of requests to answer with 500
    #[arg(long, env = "FAILURE_RATE", default_value_t = 0.0)]
    failure_rate: f64,
    /// Milliseconds to wait before each answer
    #[arg(long, env = "DELAY_MS", default_value_t = 0)]
    delay_ms: u64,
}

struct App {
    args: Args,
    /// Services to call: name and `host:port`.
    calls: Vec<(String, String)>,
    served: AtomicU64,
}

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
    let listener = TcpListener::bind(("0.0.0.0", args.port)).await?;
    eprintln!("{} listens on {}", args.name, listener.local_addr()?);
    let app = Arc::new(App { args, calls, served: AtomicU64::new(0) });
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let app = app.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| answer(app.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let nth = app.served.fetch_add(1, Ordering::Relaxed);
    if app.args.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(app.args.delay_ms)).await;
    }
    // Spread evenly instead of at random, so that a lab shows what its text says.
    let rate = app.args.failure_rate.clamp(0.0, 1.0);
    let fails = ((nth + 1) as f64 * rate).floor() > (nth as f64 * rate).floor();
    let headers: Map<String, Value> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let mut calls = Map::new();
    for (name, host) in &app.calls {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        calls.insert(name.clone(), call(host, path, request.headers()).await);
    }
    let status = if fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    let body = json!({
        "service": app.args.name,
        "method": request.method().as_str(),
        "path": request.uri().to_string(),
        "headers": headers,
        "calls": calls,
    });
    let text = format!("{body:#}\n");
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Calls another service and passes the trace on, as an app in a mesh should.
async fn call(host: &str, path: &str, headers: &http::HeaderMap) -> Value {
    let tried = async {
        let stream = TcpStream::connect(host).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder().uri(path).header(http::header::HOST, host);
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
