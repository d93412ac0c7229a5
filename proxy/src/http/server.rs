//! From a connection that speaks HTTP to the request path of its role.

use super::exchange::Request;
use super::exchange::{Serve, Served};
use super::{http1, http2, inbound, outbound};
use crate::worker::{Conn, Worker};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use weft_tls::MeshStream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpKind {
    Http1,
    Http2,
    /// HTTP was declared, not which: the preface tells.
    Either,
}

struct App {
    worker: Rc<Worker>,
    conn: Rc<Conn>,
}

impl Serve for App {
    fn serve(self: Rc<Self>, request: Request) -> impl Future<Output = Served> + 'static {
        let (worker, conn) = (self.worker.clone(), self.conn.clone());
        // In a box, so that a connection that waits for a request does not hold the room of one.
        let path: Pin<Box<dyn Future<Output = Served>>> = match conn.listener.role.is_inbound() {
            true => Box::pin(inbound::serve(worker, conn, request)),
            false => Box::pin(outbound::serve(worker, conn, request)),
        };
        path
    }
}

/// How long a client may keep a connection before it sends anything, where its first bytes are needed.
const FIRST_BYTES: Duration = Duration::from_secs(3600);

/// Reads until the bytes are the HTTP/2 preface, or cannot become it.
async fn which(io: &mut MeshStream) -> Option<HttpKind> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut seen = Vec::with_capacity(1024);
    loop {
        if io.read_buf(&mut seen).await.ok()? == 0 {
            return None;
        }
        let common = seen.len().min(PREFACE.len());
        let kind = match seen[..common] == PREFACE[..common] {
            false => HttpKind::Http1,
            true if common == PREFACE.len() => HttpKind::Http2,
            true => continue,
        };
        io.unread(&seen);
        return Some(kind);
    }
}

/// Serves the connection to its end.
pub async fn serve(worker: Rc<Worker>, conn: Rc<Conn>, mut io: MeshStream, kind: HttpKind) {
    let limits = conn.listener.limits;
    let kind = match kind {
        HttpKind::Either => match tokio::time::timeout(FIRST_BYTES, which(&mut io)).await {
            Ok(Some(kind)) => kind,
            _ => return,
        },
        known => known,
    };
    let trusted = conn.mesh;
    let app = App { worker: worker.clone(), conn };
    match kind {
        HttpKind::Http1 | HttpKind::Either => http1::server::serve_http1(io, &limits, &worker, app).await,
        HttpKind::Http2 => http2::serve_http2(io, &limits, &worker, app, trusted).await,
    }
}
