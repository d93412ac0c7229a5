//! Calls to further services, with the trace passed on, as an app in a mesh should make them.

use crate::app::traced;
use crate::{grpc, tcp, websocket};
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;

/// Whom HTTP is sent through, as `http_proxy` says. In a lab without namespaces it is the sidecar: there is no DNS, and nothing is
/// redirected to it.
fn proxy() -> Option<String> {
    let url = std::env::var("http_proxy").ok()?;
    Some(url.strip_prefix("http://")?.trim_end_matches('/').to_string()).filter(|p| !p.is_empty())
}

/// A connection on which HTTP for that host and port can be sent.
pub async fn dial(authority: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(proxy().as_deref().unwrap_or(authority)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What HTTP/1.1 asks for there: a proxy wants the whole URL.
pub fn target(authority: &str, path: &str) -> String {
    if proxy().is_some() { format!("http://{authority}{path}") } else { path.to_string() }
}

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq)]
pub struct Call {
    pub name: String,
    how: How,
    /// `HOST:PORT`
    authority: String,
    /// Without the slash before it; empty: the request's.
    path: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Http1,
    Http2,
    Grpc,
    WebSocket,
    Tcp,
}

impl Call {
    pub fn new(name: &str, url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or("not a URL")?;
        let how = match scheme {
            "http" => How::Http1,
            "h2c" => How::Http2,
            "grpc" => How::Grpc,
            "ws" => How::WebSocket,
            "tcp" => How::Tcp,
            _ => return Err("neither http, h2c, grpc, ws nor tcp".into()),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = match authority.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_string(),
            _ if authority.is_empty() || how == How::Tcp => return Err("without host and port".into()),
            _ => format!("{authority}:80"),
        };
        Ok(Self { name: name.into(), how, authority, path: path.into() })
    }

    /// What became of it, whatever became of it.
    pub async fn make(&self, path: &str, headers: &HeaderMap) -> Value {
        let own = format!("/{}", self.path);
        let path = if self.path.is_empty() { path } else { &own };
        let tried = async {
            match self.how {
                How::Http1 => http1(&self.authority, path, headers).await,
                How::Http2 => http2(&self.authority, path, headers).await,
                How::Grpc => grpc::call(&self.authority, &self.path, headers).await,
                How::WebSocket => websocket::call(&self.authority, path, headers).await,
                How::Tcp => tcp::call(&self.authority).await,
            }
        };
        match tokio::time::timeout(PATIENCE, tried).await {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => json!({"error": error}),
            Err(_) => json!({"error": format!("no answer within {} s", PATIENCE.as_secs())}),
        }
    }
}

async fn http1(authority: &str, path: &str, headers: &HeaderMap) -> Result<Value, String> {
    let of = |e: hyper::Error| e.to_string();
    let stream = dial(authority).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(of)?;
    tokio::spawn(connection);
    let request = get(Request::get(target(authority, path)).header(HOST, authority), headers)?;
    read(sender.send_request(request).await.map_err(of)?).await
}

async fn http2(authority: &str, path: &str, headers: &HeaderMap) -> Result<Value, String> {
    let of = |e: hyper::Error| e.to_string();
    let stream = dial(authority).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(of)?;
    tokio::spawn(connection);
    let request = get(Request::get(format!("http://{authority}{path}")), headers)?;
    read(sender.send_request(request).await.map_err(of)?).await
}

fn get(request: http::request::Builder, headers: &HeaderMap) -> Result<Request<Empty<Bytes>>, String> {
    traced(request, headers).body(Empty::new()).map_err(|e| e.to_string())
}

async fn read(response: Response<Incoming>) -> Result<Value, String> {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
    Ok(json!({"status": status, "body": body}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let call = |how, authority: &str, path: &str| {
            Ok(Call { name: "a".into(), how, authority: authority.into(), path: path.into() })
        };
        assert_eq!(Call::new("a", "http://users:8080"), call(How::Http1, "users:8080", ""));
        assert_eq!(Call::new("a", "http://users/"), call(How::Http1, "users:80", ""));
        assert_eq!(Call::new("a", "h2c://users:1/v1?x=y"), call(How::Http2, "users:1", "v1?x=y"));
        assert_eq!(Call::new("a", "grpc://users:1/Chat"), call(How::Grpc, "users:1", "Chat"));
        for bad in ["", "users:80", "https://users", "tcp://users", "http://"] {
            assert!(Call::new("a", bad).is_err(), "{bad}");
        }
    }
}
