//! From policy's `Reason` to an answer of the proxy's own.

use super::exchange::{Body, FieldMap, Reply};
use super::fields::Fields;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_policy::reason::Reason;

pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
pub const MESH_ERROR: HeaderName = HeaderName::from_static("x-mesh-error");

/// How the asker wants to be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asker {
    pub grpc: bool,
    /// A verified peer of the mesh: it alone is told the reason's word.
    pub mesh: bool,
    pub http2: bool,
}

pub fn reply(reason: Reason, retried: bool, asker: Asker) -> Reply {
    let body = reason.body(retried);
    let mut fields = Fields::with_capacity(6);
    let mut status = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut stream = Body::full(body);
    if asker.grpc {
        status = StatusCode::OK;
        stream = Body::empty();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(GRPC_STATUS, HeaderValue::from(u16::from(reason.grpc_status())));
        if !body.is_empty() {
            fields.insert(GRPC_MESSAGE, HeaderValue::from_static(body));
        }
    } else if !body.is_empty() {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    match reason {
        Reason::Overflow => {
            fields.insert(OVERLOADED, HeaderValue::from_static("true"));
        }
        Reason::Overload => {
            fields.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    if reason.closes() && !asker.http2 {
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if asker.mesh {
        fields.insert(MESH_ERROR, HeaderValue::from_static(reason.word()));
    }
    Reply { status, fields: FieldMap(fields), body: stream, upgrade: None }
}

/// The answer to a head that no codec was shown.
pub async fn write_raw(io: &mut (impl AsyncWriteExt + Unpin), reason: Reason) {
    let status = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let body = reason.body(false);
    let text = format!(
        "HTTP/1.1 {} {}\r\ncontent-length: {}\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n{body}",
        status.as_str(),
        status.canonical_reason().unwrap_or("Error"),
        body.len(),
    );
    let _ = io.write_all(text.as_bytes()).await;
    let _ = io.flush().await;
}

/// Lets the client read the answer: closing while its bytes lie unread would reset the connection and the answer with it.
pub async fn linger(io: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) {
    let reading = async {
        let _ = io.shutdown().await;
        let mut waste = [0; 2048];
        let mut left = 256 * 1024usize;
        while let Ok(n) = io.read(&mut waste).await {
            left = left.saturating_sub(n);
            if n == 0 || left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), reading).await;
}
