//! One HTTP request to this pod, and its answer piece by piece.

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;

pub struct Question {
    pub method: Method,
    pub to: Authority,
    /// With its query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no answer, with the exit code that curl has for it.
#[derive(Debug)]
pub struct Failed {
    pub code: u8,
    pub why: String,
}

pub fn failed(code: u8, why: impl Into<String>) -> Failed {
    Failed { code, why: why.into() }
}

/// `http://HOST:PORT/PATH`, of which the scheme and the path may be left out.
pub fn address(url: &str) -> Result<(Authority, String), Failed> {
    let rest = match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) => return Err(failed(1, format!("Protocol \"{scheme}\" not supported: http is"))),
        None => url,
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = path.split_once('#').map_or(path, |(path, _)| path);
    let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
    let authority = authority.parse().map_err(|_| failed(3, "URL rejected: Malformed input"))?;
    Ok((authority, path))
}

/// Names of this pod and nothing else: whoever may run this in a sidecar must not get the sidecar's way out of the mesh by it.
fn this_pod(to: &Authority) -> Result<Vec<SocketAddr>, Failed> {
    let host = to.host().trim_start_matches('[').trim_end_matches(']');
    let port = to.port_u16().unwrap_or(80);
    let ips = match host.parse::<IpAddr>() {
        _ if host.eq_ignore_ascii_case("localhost") => {
            vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        }
        Ok(ip) if ip.to_canonical().is_loopback() => vec![ip],
        _ => {
            let why = format!(
                "{host} is not this pod: the sidecar's curl asks localhost only; for others run curl in the app's container"
            );
            return Err(failed(6, why));
        }
    };
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Sends it; `tell` hears what goes out, before it does.
pub async fn ask(question: Question, tell: impl Fn(&Request<Full<Bytes>>)) -> Result<Response<Incoming>, Failed> {
    let mut connected = Err(failed(7, ""));
    for address in this_pod(&question.to)? {
        connected = TcpStream::connect(address).await.map_err(|e| {
            failed(7, format!("Failed to connect to {} port {}: {e}", question.to.host(), address.port()))
        });
        if connected.is_ok() {
            break;
        }
    }
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(connected?)).await;
    let (mut sender, connection) = handshake.map_err(|e| failed(56, e.to_string()))?;
    tokio::spawn(connection);
    let mut request = Request::new(Full::new(question.body));
    *request.method_mut() = question.method;
    *request.uri_mut() = question.path.parse().map_err(|_| failed(3, "URL rejected: Malformed input"))?;
    let host = question.to.as_str().parse().map_err(|_| failed(3, "URL rejected: Malformed input"))?;
    request.headers_mut().insert(header::HOST, host);
    for (name, value) in &question.headers {
        request.headers_mut().insert(name, value.clone());
    }
    tell(&request);
    sender.send_request(request).await.map_err(|e| match e.is_incomplete_message() {
        true => failed(52, "Empty reply from server"),
        false => failed(56, e.to_string()),
    })
}

/// Hands the body to `to`, which says whether it wants more.
pub async fn body(answer: &mut Incoming, mut to: impl FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|_| failed(18, "transfer closed with outstanding read data remaining"))?;
        if let Some(data) = frame.data_ref() {
            to(data)?;
        }
    }
    Ok(())
}

/// Runs it on a runtime of its own, for so long at most.
pub fn run<T>(limit: Option<Duration>, what: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| failed(2, e.to_string()))?.block_on(async {
        match limit {
            None => what.await,
            Some(limit) => tokio::time::timeout(limit, what).await.unwrap_or_else(|_| {
                Err(failed(28, format!("Operation timed out after {} milliseconds", limit.as_millis())))
            }),
        }
    })
}
