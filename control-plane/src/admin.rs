//! The admin interface: what is known, as JSON, for people and for `meshctl`. On loopback only, and only under a loopback name,
//! so that no page of a browser can ask under another. It changes nothing. Of it, what kubelets and Prometheus want may be shown
//! to anybody, at an address of its own.

use crate::report::Edges;
use crate::source::Found;
use crate::status::Status;
use crate::world::Current;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tower::Service;
use weft_dialects::object::Object;
use weft_kubernetes::webhook::Figures;
use weft_policy::diag::{Pos, Severity};

const CONNECTIONS: usize = 32;
const CONNECTION: Duration = Duration::from_secs(15);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

const HELP: &str = "\
/ready     200 once proxies are served, 503 before
/live      200
/status    each proxy: what it has, what it refuses and why
/objects   every object and where it stands
/errors    what is wrong with files, objects and documents, and what proxies refuse
/edges     who calls whom, as proxies have counted
/metrics   for Prometheus
";

const OPEN: [&str; 3] = ["/ready", "/live", "/metrics"];

#[derive(Clone)]
pub struct Admin {
    /// Only the pages that are for everybody, under whatever Host.
    pub open: bool,
    pub found: watch::Receiver<Arc<Found>>,
    pub worlds: watch::Receiver<Arc<Current>>,
    pub status: Arc<Status>,
    pub edges: Arc<Edges>,
    /// Of the webhook, where there is one.
    pub admission: Option<Arc<Figures>>,
}

pub async fn serve(listener: TcpListener, admin: Admin) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "admin accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let admin = admin.clone();
        tokio::spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
            builder.http1().timer(TokioTimer::new()).keep_alive(false).half_close(true).max_buf_size(16 * 1024);
            let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(admin));
            let _ = tokio::time::timeout(CONNECTION, serving).await;
            drop(permit);
        });
    }
}

impl<B> Service<Request<B>> for Admin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(&request)))
    }
}

impl Admin {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
        if self.open && !OPEN.contains(&request.uri().path()) {
            return page(StatusCode::NOT_FOUND, TEXT, "here are /ready, /live and /metrics\n");
        }
        if !self.open && !host.is_some_and(is_loopback) {
            return page(StatusCode::FORBIDDEN, TEXT, "the Host has to be a loopback name, such as localhost\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n");
        }
        match request.uri().path() {
            "/" | "/help" => page(StatusCode::OK, TEXT, HELP),
            "/ready" => match self.worlds.borrow().generation {
                0 => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the first world is not made yet\n"),
                _ => page(StatusCode::OK, TEXT, "ready\n"),
            },
            "/live" => page(StatusCode::OK, TEXT, "live\n"),
            "/status" => document(&self.status.json()),
            "/objects" => document(&self.objects()),
            "/errors" => document(&self.errors()),
            "/edges" => document(&self.edges.json()),
            "/metrics" => page(StatusCode::OK, METRICS, self.metrics()),
            _ => page(StatusCode::NOT_FOUND, TEXT, HELP),
        }
    }

    fn objects(&self) -> Value {
        let found = self.found.borrow().clone();
        let object = |o: &Arc<Object>| {
            json!({
                "object": o.reference().to_string(),
                "apiVersion": o.api_version,
                "kind": o.kind,
                "namespace": o.namespace,
                "name": o.name,
                "file": &*o.file,
                "line": o.node.at.line,
            })
        };
        let objects: Vec<Value> = found.objects.0.iter().map(object).collect();
        json!({"generation": found.generation, "objects": objects})
    }

    fn errors(&self) -> Value {
        let (found, current) = (self.found.borrow().clone(), self.worlds.borrow().clone());
        let place = |file: &str, at: Pos| match at.line {
            0 => file.to_string(),
            line => format!("{file}:{line}"),
        };
        let word = |s: Severity| if s == Severity::Error { "error" } else { "warning" };
        let files: Vec<Value> = found
            .faults
            .iter()
            .map(|f| {
                let file = f.file.to_string_lossy();
                json!({
                    "at": place(&file, f.diag.at), "file": file, "line": f.diag.at.line, "column": f.diag.at.column,
                    "severity": word(f.diag.severity), "field": f.diag.field, "message": f.diag.message,
                    "hint": f.diag.hint,
                })
            })
            .collect();
        let findings: Vec<Value> = current
            .ledger
            .findings
            .iter()
            .map(|f| {
                json!({
                    "at": place(&f.file, f.at), "file": &*f.file, "line": f.at.line, "column": f.at.column,
                    "severity": word(f.severity), "reference": f.reference, "object": f.object.to_string(),
                    "field": f.field, "message": f.message, "hint": f.hint,
                })
            })
            .collect();
        let withheld: Vec<Value> =
            current.view.withheld.iter().map(|w| json!({"name": w.name, "why": w.why})).collect();
        json!({"files": files, "objects": findings, "withheld": withheld, "refused": self.status.refused()})
    }

    fn metrics(&self) -> String {
        let (found, current) = (self.found.borrow().clone(), self.worlds.borrow().clone());
        let own = self.status.metrics(&[
            ("objects", "Objects read.", found.objects.0.len() as u64),
            ("file_faults", "What is wrong with files.", found.faults.len() as u64),
            ("findings", "What is wrong with objects, or looks like it.", current.ledger.findings.len() as u64),
            ("withheld", "Documents that are not sent.", current.view.withheld.len() as u64),
            ("services", "Services of the world.", current.view.services() as u64),
            ("pods", "Pods of the world.", current.view.pods() as u64),
            ("edges", "Who calls whom, as proxies have told.", self.edges.count() as u64),
        ]);
        own + &self.admission.as_ref().map(|a| a.text("weft_control_admission")).unwrap_or_default()
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn document(value: &Value) -> Response<Full<Bytes>> {
    page(StatusCode::OK, JSON, format!("{value:#}\n"))
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for good in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:15014", "[::1]", "[::1]:1"] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in ["", "example.com", "localhost.example.com", "10.0.0.1:80", "127.0.0.1.example.com", "[::2]:1"] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }
}
