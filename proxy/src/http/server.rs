//! From a connection that speaks HTTP to the request path of its role.

use super::exchange::Request;
use super::hyper_driver::{self, Serve, Served};
use super::{inbound, outbound};
use crate::worker::{Conn, Worker};
use std::future::Future;
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
    fn serve(&self, request: Request) -> impl Future<Output = Served> + 'static {
        let (worker, conn) = (self.worker.clone(), self.conn.clone());
        async move {
            if conn.listener.role.is_inbound() {
                inbound::serve(worker, conn, request).await
            } else {
                outbound::serve(worker, conn, request).await
            }
        }
    }
}

/// Serves the connection to its end.
pub async fn serve(worker: Rc<Worker>, conn: Rc<Conn>, io: MeshStream, kind: HttpKind) {
    let limits = conn.listener.limits;
    let app = App { worker: worker.clone(), conn };
    match kind {
        HttpKind::Http1 => hyper_driver::serve_http1(io, &limits, &worker.ending, app).await,
        HttpKind::Http2 => hyper_driver::serve_http2(io, &limits, &worker.ending, app).await,
    }
}
