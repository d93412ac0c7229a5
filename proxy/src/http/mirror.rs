//! Copies of requests for a shadow. The request never waits for them: a copy is made only where it costs nothing to make it,
//! and what becomes of it is counted and dropped.

use super::body::replay::Replayable;
use super::exchange::{Body, FieldMap, Head, Request};
use crate::upstream::dial::Inside;
use crate::upstream::pick::pick;
use crate::upstream::pool::lease;
use crate::worker::{Conn, Worker};
use http_body::Body as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_policy::backend::Backend;
use weft_policy::mirror::Permit;
use weft_policy::outlier::Signal;
use weft_policy::registry::Bound;
use weft_policy::route::RoutePlan;

/// A shadow may take this long; then it is let go.
const LIMIT: Duration = Duration::from_secs(15);

pub struct Copies(Vec<(Arc<Backend>, Permit, Head)>);

/// Decides which mirrors get a copy and holds their permits.
pub fn prepare(worker: &Worker, bound: &Bound, route: &RoutePlan, head: &Head) -> Copies {
    let mut copies = Vec::new();
    for mirror in &route.mirrors {
        if !mirror.config.decide(worker.random()) {
            continue;
        }
        let Some(backend) = mirror.backend.and_then(|i| bound.backends.get(i).cloned().flatten()) else { continue };
        let state = worker.mirrors.borrow_mut().entry(backend.id.clone()).or_default().clone();
        match state.start(&mirror.config) {
            Some(permit) => copies.push((backend, permit, head.clone())),
            None => metrics::counter!("weft_mirror_dropped_total", "reason" => "overflow").increment(1),
        }
    }
    Copies(copies)
}

/// The answer's head has come, so no retry follows: what was kept of the body is let go, unless a copy needs it.
pub fn settle(replay: &Replayable) {
    if !replay.ended() {
        replay.settle();
    }
}

pub fn start(worker: &Rc<Worker>, conn: &Rc<Conn>, copies: Copies, replay: Option<&Replayable>) {
    for (backend, permit, head) in copies.0 {
        let body = match replay {
            None => Some(Body::empty()),
            Some(replay) => replay.copy(),
        };
        let Some(body) = body else {
            metrics::counter!("weft_mirror_dropped_total", "reason" => "body").increment(1);
            continue;
        };
        let (worker, conn) = (worker.clone(), conn.clone());
        tokio::task::spawn_local(async move {
            let sent = tokio::time::timeout(LIMIT, send(&worker, &conn, &backend, head, body)).await;
            let result = if matches!(sent, Ok(Some(()))) { "ok" } else { "failed" };
            metrics::counter!("weft_mirror_total", "result" => result).increment(1);
            drop(permit);
        });
    }
}

async fn send(worker: &Rc<Worker>, conn: &Conn, backend: &Arc<Backend>, mut head: Head, body: Body) -> Option<()> {
    let mut picked = pick(worker, backend, None, &[], Instant::now()).await.ok()?;
    let mesh = picked.endpoint.identity.is_some();
    let inside = if mesh { Inside::Http2 } else { Inside::Http1 };
    let ip = conn.peer.addr.ip().to_string();
    weft_policy::view::FieldsMut::set(&mut head.fields, "x-forwarded-for", ip.as_bytes());
    let mut lease =
        lease(worker, backend, &backend.config.load_full(), &picked.endpoint, inside, &conn.listener.limits)
            .await
            .ok()?;
    let mut reply = lease.sender.send(Request { head, body }, false).await.ok()?;
    picked.tell(Signal::Nothing, Instant::now());
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut reply.body).poll_frame(cx)).await {
        frame.ok()?;
    }
    reply.fields = FieldMap::default();
    lease.reuse(Instant::now());
    Some(())
}
