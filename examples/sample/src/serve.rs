//! Ports and connections. One port tells HTTP/1.1 from HTTP/2, and a request tells JSON, gRPC and WebSocket apart; the TCP echo
//! has a port of its own, since there the client waits for the server's word.

use crate::app::App;
use crate::{grpc, json, tcp, websocket};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Clone, Copy)]
enum Speaks {
    Http,
    Echo,
}

/// Serves until SIGTERM, and then until what is under way is finished.
pub async fn run(app: Arc<App>) -> io::Result<()> {
    let args = &app.args;
    let port = args.port.or_else(|| std::env::var("PORT").ok()?.parse().ok()).unwrap_or(8080);
    let http = [Some(port), args.grpc_port.filter(|p| *p != port || port == 0)]
        .into_iter()
        .flatten()
        .map(|p| (p, Speaks::Http));
    let mut doors = JoinSet::new();
    for (port, speaks) in http.chain(args.tcp_port.map(|p| (p, Speaks::Echo))) {
        let listener = TcpListener::bind(("0.0.0.0", port)).await;
        let listener = listener.map_err(|e| io::Error::new(e.kind(), format!("port {port}: {e}")))?;
        let what = if matches!(speaks, Speaks::Echo) { " (TCP echo)" } else { "" };
        eprintln!("{} listens on {}{what}", args.name, listener.local_addr()?);
        doors.spawn(accept(app.clone(), listener, speaks));
    }
    signal(SignalKind::terminate())?.recv().await;
    app.ending.send_replace(true);
    while doors.join_next().await.is_some() {}
    Ok(())
}

async fn accept(app: Arc<App>, listener: TcpListener, speaks: Speaks) {
    let mut connections = JoinSet::new();
    let mut ends = pin!(app.ends());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = &mut ends => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let app = app.clone();
                connections.spawn(async move {
                    match speaks {
                        Speaks::Http => connection(app, stream).await,
                        Speaks::Echo => tcp::echo(&app, stream).await,
                    }
                });
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    eprintln!("{} ends with {} connections to finish", app.args.name, connections.len());
    while connections.join_next().await.is_some() {}
}

async fn connection(app: Arc<App>, stream: TcpStream) {
    let service = hyper::service::service_fn(|request| answer(app.clone(), request));
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = app.ends() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    Ok(if grpc::is_meant(&request) {
        grpc::answer(app, request).await
    } else if websocket::is_meant(&request) {
        websocket::answer(app, request)
    } else {
        json::answer(&app, request).await
    })
}
