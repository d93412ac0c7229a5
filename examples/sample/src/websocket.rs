//! WebSocket (RFC 6455): every message comes back as it was, a ping gets its pong. Nothing is compressed.

use crate::app::{App, traced};
use crate::call::{dial, target};
use crate::serve::Body;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What every WebSocket server appends to the client's key.
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const MAX_FRAME: u64 = 1 << 20;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const LAST: u8 = 0x80;

/// Why a connection is closed.
const GOING_AWAY: u16 = 1001;
const PROTOCOL_ERROR: u16 = 1002;
const TOO_BIG: u16 = 1009;

pub fn is_meant(request: &Request<Incoming>) -> bool {
    let is = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    request.headers().get(UPGRADE).is_some_and(is) && request.headers().contains_key(SEC_WEBSOCKET_KEY)
}

fn accept_of(key: &[u8]) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, MAGIC.as_bytes()].concat()))
}

pub fn answer(app: Arc<App>, request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(Empty::new().boxed_unsync());
    let headers = request.headers();
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return response;
    }
    let accept = headers.get(SEC_WEBSOCKET_KEY).map(|key| accept_of(key.as_bytes())).unwrap_or_default();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let own = response.headers_mut();
    own.insert(UPGRADE, HeaderValue::from_static("websocket"));
    own.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    own.extend(HeaderValue::from_str(&accept).map(|v| (SEC_WEBSOCKET_ACCEPT, v)));
    own.extend(HeaderValue::from_str(&app.signature()).map(|v| (http::HeaderName::from_static("x-answered-by"), v)));
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let mut stream = TokioIo::new(upgraded);
            let why = tokio::select! {
                why = echo(&mut stream) => why,
                () = app.ends() => Some(GOING_AWAY),
            };
            if let Some(why) = why {
                let _ = write(&mut stream, LAST | CLOSE, &why.to_be_bytes(), None).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    response
}

/// Until the peer closes (`None`) or has to be closed, and why.
async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Option<u16> {
    loop {
        let frame = match read(stream).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Some(TOO_BIG),
            Err(_) => return None,
        };
        // Clients mask, and no extension was agreed on.
        if !frame.masked || frame.first & 0x70 != 0 {
            return Some(PROTOCOL_ERROR);
        }
        let first = match frame.first & 0xf {
            PING => LAST | PONG,
            PONG => continue,
            // A close is answered by one with the same reason.
            _ => frame.first,
        };
        write(stream, first, &frame.payload, None).await.ok()?;
        if frame.first & 0xf == CLOSE {
            let _ = stream.shutdown().await;
            return None;
        }
    }
}

struct Frame {
    /// Whether it is the last of its message, and what it is.
    first: u8,
    masked: bool,
    payload: Vec<u8>,
}

/// `None` if it is too long.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    let (first, masked) = (head[0], head[1] & 0x80 != 0);
    let length = match head[1] & 0x7f {
        126 => stream.read_u16().await?.into(),
        127 => stream.read_u64().await?,
        short => short.into(),
    };
    if length > MAX_FRAME {
        return Ok(None);
    }
    let mut mask = [0; 4];
    if masked {
        stream.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    apply(mask, &mut payload);
    Ok(Some(Frame { first, masked, payload }))
}

async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    first: u8,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> io::Result<()> {
    let mut frame = vec![first];
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        short @ ..126 => frame.push(masked | short as u8),
        long @ ..0x1_0000 => {
            frame.push(masked | 126);
            frame.extend((long as u16).to_be_bytes());
        }
        longer => {
            frame.push(masked | 127);
            frame.extend((longer as u64).to_be_bytes());
        }
    }
    frame.extend(mask.into_iter().flatten());
    let begin = frame.len();
    frame.extend_from_slice(payload);
    apply(mask.unwrap_or_default(), &mut frame[begin..]);
    stream.write_all(&frame).await?;
    stream.flush().await
}

fn apply(mask: [u8; 4], payload: &mut [u8]) {
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

/// A message there and back.
pub async fn call(authority: &str, path: &str, headers: &HeaderMap) -> Result<Value, String> {
    let stream = dial(authority).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection.with_upgrades());
    let random = RandomState::new();
    let key = STANDARD.encode([random.hash_one(0), random.hash_one(1)].map(u64::to_be_bytes).concat());
    let mut request = traced(Request::get(target(authority, path)).header(HOST, authority), headers);
    for (name, value) in [(UPGRADE, "websocket"), (CONNECTION, "upgrade"), (SEC_WEBSOCKET_VERSION, "13")] {
        request = request.header(name, value);
    }
    let request = request.header(SEC_WEBSOCKET_KEY, &key).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("no WebSocket: {status}"));
    }
    if response.headers().get(SEC_WEBSOCKET_ACCEPT).is_none_or(|v| v.as_bytes() != accept_of(key.as_bytes()).as_bytes())
    {
        return Err("the key was not answered".into());
    }
    let by = response.headers().get("x-answered-by").map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| e.to_string())?;
    let mut stream = TokioIo::new(upgraded);
    let mask = (random.hash_one(2) as u32).to_be_bytes();
    write(&mut stream, LAST | TEXT, b"hello", Some(mask)).await.map_err(|e| e.to_string())?;
    let frame = read(&mut stream).await.map_err(|e| e.to_string())?.ok_or("its frame is too long")?;
    let _ = write(&mut stream, LAST | CLOSE, &1000u16.to_be_bytes(), Some(mask)).await;
    Ok(json!({"status": 101, "answeredBy": by, "echo": String::from_utf8_lossy(&frame.payload)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_of_the_standard() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn frames_of_every_length() {
        for length in [0usize, 1, 125, 126, 65_535, 65_536, 1 << 20] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
                let mut bytes = Vec::new();
                write(&mut bytes, LAST | TEXT, &payload, mask).await.unwrap();
                let frame = read(&mut bytes.as_slice()).await.unwrap().unwrap();
                assert_eq!((frame.first, frame.masked, frame.payload == payload), (0x81, mask.is_some(), true));
            }
        }
        let too_long = [0x81, 127, 0, 0, 0, 0, 0, 0x10, 0, 1];
        assert!(read(&mut too_long.as_slice()).await.unwrap().is_none());
    }
}
