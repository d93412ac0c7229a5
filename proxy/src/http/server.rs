//! From a connection that speaks HTTP to the request path of its role.

use super::exchange::Request;
use super::exchange::{Serve, Served};
use super::{http1, http2, inbound, outbound};
use crate::worker::{Conn, Worker};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use weft_tls::MeshStream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpKind {
    Http1,
    Http2,
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

/// Serves the connection to its end.
pub async fn serve(worker: Rc<Worker>, conn: Rc<Conn>, io: MeshStream, kind: HttpKind) {
    let limits = conn.listener.limits;
    let trusted = conn.mesh;
    let app = App { worker: worker.clone(), conn };
    match kind {
        HttpKind::Http1 => http1::server::serve_http1(io, &limits, &worker, app).await,
        HttpKind::Http2 => http2::serve_http2(io, &limits, &worker, app, trusted).await,
    }
}
