//! What the sidecar asks its own app for on behalf of others: health, for the kubelet, which cannot pass mutual TLS, and metrics,
//! joined to ours, for scrapers. The injector moves both to the status port and hands the originals over in two variables.
//!
//! `WEFT_APP_PROBES`: `{"/app-health/CONTAINER/readyz": {"httpGet": {"path": "/", "port": 8080}, "timeoutSeconds": 1}, ...}`, each
//! an `httpGet`, `tcpSocket` or `grpc` as in Kubernetes. `WEFT_APP_METRICS`: `{"path": "/metrics", "port": 9095}`.

use crate::sys::sockopt::dialler;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use weft_tls::{Origination, Roots, origination_client};

pub const PROBES: &str = "WEFT_APP_PROBES";
pub const METRICS: &str = "WEFT_APP_METRICS";
/// Below this path are probes.
pub const HEALTH: &str = "/app-health/";

/// A kubelet does not read more of a probe's answer.
const HEALTH_BYTES: usize = 10 << 10;
const METRICS_BYTES: usize = 16 << 20;
const METRICS_PATIENCE: Duration = Duration::from_secs(10);
/// Kubernetes' default.
const PATIENCE: u64 = 1;
/// The status port's connections do not live longer.
const MOST_PATIENCE: u64 = 15;

pub struct App {
    probes: BTreeMap<String, Probe>,
    metrics: Option<(u16, String)>,
    /// An app's metrics are large; one scrape at a time.
    scrapes: Semaphore,
    mark: Option<u32>,
}

#[derive(Debug, PartialEq)]
struct Probe {
    what: What,
    patience: Duration,
}

#[derive(Debug, PartialEq)]
enum What {
    Http { port: u16, path: String, tls: bool, headers: HeaderMap },
    Tcp { port: u16 },
    Grpc { port: u16, service: String },
}

impl App {
    pub fn from_env(mark: Option<u32>) -> Result<Self, String> {
        let read = |name| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
        Self::read(read(PROBES).as_deref(), read(METRICS).as_deref(), mark)
    }

    pub fn read(probes: Option<&str>, metrics: Option<&str>, mark: Option<u32>) -> Result<Self, String> {
        let json = |text: &str, name| serde_json::from_str::<Value>(text).map_err(|e| format!("{name}: not JSON: {e}"));
        let mut found = BTreeMap::new();
        if let Some(text) = probes {
            let all = json(text, PROBES)?;
            for (path, probe) in all.as_object().ok_or_else(|| format!("{PROBES}: not a map of paths"))? {
                let wrong = |why: String| format!("{PROBES}: {path}: {why}");
                if !path.starts_with(HEALTH) {
                    return Err(wrong(format!("paths begin with {HEALTH}")));
                }
                found.insert(path.clone(), read_probe(probe).map_err(wrong)?);
            }
        }
        let metrics = match metrics {
            Some(text) => read_metrics(&json(text, METRICS)?).map_err(|why| format!("{METRICS}: {why}"))?,
            None => None,
        };
        Ok(Self { probes: found, metrics, scrapes: Semaphore::new(1), mark })
    }

    /// What the app says to a probe: its own status for HTTP, else 200 if it is well. `at` is the pod's address as the kubelet
    /// dialled it. `None`: no such probe.
    pub async fn health(&self, path: &str, at: IpAddr) -> Option<(StatusCode, Bytes)> {
        let probe = self.probes.get(path)?;
        let well = || (StatusCode::OK, Bytes::new());
        let asking = async {
            match &probe.what {
                What::Tcp { port } => self.dial(at, *port).await.map(|_| well()),
                What::Http { port, path, tls, headers } => {
                    let answer = self.get(at, *port, path, *tls, headers.clone(), HEALTH_BYTES).await?;
                    Ok((answer.status(), answer.into_body()))
                }
                What::Grpc { port, service } => self.grpc(at, *port, service).await.map(|()| well()),
            }
        };
        let outcome = timeout(probe.patience, asking).await;
        let late = || format!("no answer within {} s", probe.patience.as_secs());
        let answer = outcome.unwrap_or_else(|_| Err(late()));
        Some(answer.unwrap_or_else(|why| (StatusCode::SERVICE_UNAVAILABLE, format!("the app: {why}\n").into())))
    }

    /// Ours and the app's metrics, which are left out with a comment where they are not to be had.
    pub async fn metrics(&self, ours: Bytes, at: IpAddr) -> Bytes {
        let Some((port, path)) = &self.metrics else { return ours };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4;q=1,*/*;q=0.1"));
        let asking = async {
            let _one = self.scrapes.acquire().await.map_err(|e| e.to_string())?;
            self.get(at, *port, path, false, headers, METRICS_BYTES).await
        };
        let theirs = match timeout(METRICS_PATIENCE, asking).await {
            Ok(Ok(answer)) if answer.status() == StatusCode::OK => Ok(answer.into_body()),
            Ok(Ok(answer)) => Err(format!("it answered {}", answer.status())),
            Ok(Err(why)) => Err(why),
            Err(_) => Err(format!("no answer within {} s", METRICS_PATIENCE.as_secs())),
        };
        let mut text = BytesMut::from(&ours[..]);
        if !text.ends_with(b"\n") {
            text.put_u8(b'\n');
        }
        match theirs {
            Ok(theirs) => text.extend_from_slice(&theirs),
            Err(why) => {
                tracing::warn!(port, path, why, "the app's metrics");
                let why = why.replace(['\n', '\r'], " ");
                text.extend_from_slice(format!("# The app's metrics, port {port}, {path}: {why}\n").as_bytes());
            }
        }
        text.freeze()
    }

    /// As the sidecar passes requests on to its app, so that redirect rules leave it alone.
    async fn dial(&self, at: IpAddr, port: u16) -> Result<TcpStream, String> {
        let to = SocketAddr::new(at.to_canonical(), port);
        let connected = match dialler(to, true, self.mark) {
            Ok(socket) => socket.connect(to).await,
            Err(error) => Err(error),
        };
        connected.map_err(|e| format!("{to}: {e}"))
    }

    async fn get(
        &self,
        at: IpAddr,
        port: u16,
        path: &str,
        tls: bool,
        headers: HeaderMap,
        most: usize,
    ) -> Result<Response<Bytes>, String> {
        let stream = self.dial(at, port).await?;
        let mut request = Request::new(Full::default());
        *request.uri_mut() = path.parse().map_err(|_| format!("{path:?} is not a path"))?;
        *request.headers_mut() = headers;
        let fields = request.headers_mut();
        let host = SocketAddr::new(at.to_canonical(), port).to_string();
        fields.entry(header::HOST).or_insert(HeaderValue::from_str(&host).map_err(|e| e.to_string())?);
        fields.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("kube-probe/weft"));
        if !tls {
            return exchange(stream, request, most).await;
        }
        // As the kubelet does, which has no means to know a pod's certificate.
        let settings = Origination {
            roots: Roots::InsecureSkipVerify,
            expect: Vec::new(),
            identity: None,
            alpn: vec![b"http/1.1".to_vec()],
            send_sni: false,
        };
        let config = origination_client(&settings).map_err(|e| e.to_string())?;
        let name = ServerName::from(at.to_canonical());
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|e| e.to_string())?;
        exchange(stream, request, most).await
    }

    /// `grpc.health.v1.Health/Check`: a string in, a number out, so no generated code.
    async fn grpc(&self, at: IpAddr, port: u16, service: &str) -> Result<(), String> {
        let stream = self.dial(at, port).await?;
        let mut message = BytesMut::new();
        if !service.is_empty() {
            // Field 1, a string; `read_probe` bounds its length to one byte.
            message.put_slice(&[0x0a, service.len() as u8]);
            message.put_slice(service.as_bytes());
        }
        let mut body = BytesMut::from(&[0][..]);
        body.put_u32(message.len() as u32);
        body.put_slice(&message);
        let mut request = Request::new(Full::new(body.freeze()));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        let to = SocketAddr::new(at.to_canonical(), port);
        *request.uri_mut() = format!("http://{to}/grpc.health.v1.Health/Check").parse().map_err(|_| "no such URL")?;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, HEALTH_BYTES).collect().await.map_err(|e| e.to_string())?;
        let status = |fields: &HeaderMap| fields.get("grpc-status").map(|v| v.as_bytes() == b"0");
        let done = body.trailers().and_then(status).or_else(|| status(&head.headers));
        // Compressed or not, length, then field 1, a number: 1 is SERVING.
        match (head.status, done, &body.to_bytes()[..]) {
            (StatusCode::OK, Some(true), [0, _, _, _, _, 0x08, 1, ..]) => Ok(()),
            (StatusCode::OK, Some(true), _) => Err("it says that it is not serving".into()),
            (status, ..) => Err(format!("its health service does not answer (HTTP {})", status.as_u16())),
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>, most: usize) -> Result<Response<Bytes>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, most).collect().await.map_err(|e| e.to_string())?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

fn read_probe(value: &Value) -> Result<Probe, String> {
    let patience = match &value["timeoutSeconds"] {
        Value::Null => PATIENCE,
        n => n.as_u64().ok_or("timeoutSeconds: not a number of seconds")?.clamp(1, MOST_PATIENCE),
    };
    let what = match (&value["httpGet"], &value["tcpSocket"], &value["grpc"]) {
        (http, Value::Null, Value::Null) if http.is_object() => read_http(http)?,
        (Value::Null, tcp, Value::Null) if tcp.is_object() => What::Tcp { port: port(tcp)? },
        (Value::Null, Value::Null, grpc) if grpc.is_object() => {
            let service = grpc["service"].as_str().unwrap_or_default().to_string();
            if service.len() > 127 {
                return Err("grpc.service: longer than 127 bytes".into());
            }
            What::Grpc { port: port(grpc)?, service }
        }
        _ => return Err("one of httpGet, tcpSocket and grpc is needed".into()),
    };
    Ok(Probe { what, patience: Duration::from_secs(patience) })
}

fn read_http(http: &Value) -> Result<What, String> {
    let mut headers = HeaderMap::new();
    for field in http["httpHeaders"].as_array().into_iter().flatten() {
        let (name, value) = (field["name"].as_str().unwrap_or(""), field["value"].as_str().unwrap_or(""));
        let wrong = || format!("httpHeaders: {name:?} is not a header");
        let name: HeaderName = name.parse().map_err(|_| wrong())?;
        headers.append(name, value.parse().map_err(|_| wrong())?);
    }
    // A host that is dialled by name would be the app's word for anything; it is what the app is told, as Istio does.
    if let Some(host) = http["host"].as_str().filter(|host| !host.is_empty()) {
        let host = host.parse().map_err(|_| "host: not a name")?;
        headers.entry(header::HOST).or_insert(host);
    }
    let tls = match http["scheme"].as_str().unwrap_or("HTTP") {
        "HTTP" | "http" => false,
        "HTTPS" | "https" => true,
        other => return Err(format!("scheme: {other:?} is neither HTTP nor HTTPS")),
    };
    Ok(What::Http { port: port(http)?, path: path(http)?, tls, headers })
}

fn path(of: &Value) -> Result<String, String> {
    let text = of["path"].as_str().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if text.starts_with('/') { text.to_string() } else { format!("/{text}") };
    path.parse::<http::uri::PathAndQuery>().map(|_| path).map_err(|_| format!("path: {text:?} is not a path"))
}

/// A number, or its digits as annotations have them.
fn port(of: &Value) -> Result<u16, String> {
    let number = of["port"].as_u64().or_else(|| of["port"].as_str()?.parse().ok());
    let port = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    port.ok_or_else(|| format!("port: {} is not a port's number", of["port"]))
}

fn read_metrics(value: &Value) -> Result<Option<(u16, String)>, String> {
    if value["scrape"] == false || value["scrape"] == "false" {
        return Ok(None);
    }
    // Prometheus' own defaults are the container's ports, which nobody knows here.
    let path = if value["path"].is_null() { "/metrics".into() } else { path(value)? };
    Ok(Some((port(value)?, path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read_or_refused() {
        let text = r#"{"/app-health/app/livez": {"tcpSocket": {"port": 9090}, "timeoutSeconds": 3},
            "/app-health/app/readyz": {"httpGet": {"path": "up", "port": "8080", "scheme": "HTTPS", "host": "shop",
                                       "httpHeaders": [{"name": "x-a", "value": "1"}]}},
            "/app-health/app/startupz": {"grpc": {"port": 7070, "service": "a"}}}"#;
        let app = App::read(Some(text), Some(r#"{"scrape":"true","port":"9095"}"#), None).unwrap();
        let probe = &app.probes["/app-health/app/livez"];
        assert_eq!(*probe, Probe { what: What::Tcp { port: 9090 }, patience: Duration::from_secs(3) });
        let What::Http { port: 8080, path, tls: true, headers } = &app.probes["/app-health/app/readyz"].what else {
            panic!("{:?}", app.probes)
        };
        assert_eq!(
            (path.as_str(), headers["x-a"].as_bytes(), headers["host"].as_bytes()),
            ("/up", &b"1"[..], &b"shop"[..])
        );
        assert_eq!(app.metrics, Some((9095, "/metrics".into())));
        let metrics = App::read(None, Some(r#"{"port": 80, "path": "/m"}"#), None).unwrap().metrics;
        assert_eq!(metrics, Some((80, "/m".into())));
        assert!(App::read(None, Some(r#"{"scrape":"false"}"#), None).unwrap().metrics.is_none());
        for (text, word) in [
            ("{", "not JSON"),
            ("[]", "map"),
            (r#"{"/quitquitquit": {"tcpSocket": {"port": 1}}}"#, "/quitquitquit"),
            (r#"{"/app-health/a/livez": {}}"#, "/app-health/a/livez: one of"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 0}}}"#, "port"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": "http"}}}"#, "port"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "path": "/a b"}}}"#, "path"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "scheme": "ftp"}}}"#, "scheme"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a b"}]}}}"#, "httpHeaders"),
        ] {
            let error = App::read(Some(text), None, None).err().unwrap_or_default();
            assert!(error.starts_with(PROBES) && error.contains(word), "{text}: {error}");
        }
        let error = App::read(None, Some(r#"{"scrape":"true","port":"http"}"#), None).err().unwrap_or_default();
        assert!(error.starts_with(METRICS), "{error}");
    }
}
