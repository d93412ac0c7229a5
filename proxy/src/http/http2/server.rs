//! HTTP/2 towards clients: a task per connection that reads, a local task per request that answers.

use super::body::{Conn, Http2Body, Writer};
use super::engine::{Arrival, Engine, Role};
use super::frame::code;
use super::link::Link;
use super::out::Out;
use super::pump::{Pump, Stopped};
use super::settings::{FRAME, Ours};
use super::streams::Why;
use crate::accept::counters;
use crate::http::date;
use crate::http::exchange::{Body, Reply, Request, Serve, Served, Wire};
use crate::http::fields::number;
use crate::worker::{Phase, Worker};
use http::header::{CONTENT_LENGTH, DATE};
use http_body::Body as _;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use weft_policy::listener::Limits;
use weft_tls::MeshStream;

/// Windows: one stream may not take the whole connection, and bulk must not wait for updates.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// What a sidecar has added to a list that was within its own limit.
const ADDED: usize = 32;

/// However the connection's task ends, its streams end with it.
struct Cut(Conn);

impl Drop for Cut {
    fn drop(&mut self) {
        if let Ok(mut engine) = self.0.try_borrow_mut() {
            engine.end(Why::Gone);
        }
    }
}

/// Serves HTTP/2 on a connection until it ends.
///
/// `trusted`: a sidecar that speaks for many clients and has counted each one's frames itself. What looks like a flood here is
/// their sum, and ending the connection would punish them all for one.
pub async fn serve_http2<S: Serve + 'static>(
    io: MeshStream,
    limits: &Limits,
    worker: &Worker,
    service: S,
    trusted: bool,
) {
    let service = Rc::new(service);
    let ours = Ours {
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        max_frame: FRAME,
        list_bytes: limits.header_bytes as usize,
        list_fields: limits.header_count as usize + if trusted { ADDED } else { 0 },
        max_streams: limits.max_streams as usize,
    };
    let patience = if trusted { 100 } else { 1 };
    let engine = Engine::new(Role::Server, Out::new(Some(io)), ours, patience);
    let conn: Conn = Rc::new(RefCell::new(engine));
    let _cut = Cut(conn.clone());
    let mut link = Link::new(conn.clone(), Role::Server, limits.header_timeout);
    let mut ticket = worker.ending.register();
    // Its goodbye takes every request that comes before the peer has heard it. A late connection gets its own only at the
    // end: a peer that has just moved here because of a goodbye would go round in circles.
    let goodbye = if ticket.late { Phase::Ending } else { Phase::Draining };
    let end = poll_fn(|cx| {
        if ticket.poll(cx) >= goodbye {
            conn.borrow_mut().announce_goodbye();
        }
        link.poll(cx, &mut |arrival| begin(&conn, &service, arrival, limits.body_idle))
    })
    .await;
    link.close(end).await;
}

fn begin<S: Serve + 'static>(conn: &Conn, service: &Rc<S>, arrival: Arrival, limit: Duration) {
    let Arrival { key, id, head, ends } = arrival;
    let body = match ends {
        true => Body::empty(),
        false => Body::wire(Wire::Http2(Http2Body::new(conn.clone(), key, id))),
    };
    let writer = Writer { conn: conn.clone(), key, id };
    let fickle = conn.borrow().is_fickle();
    let served = service.clone().serve(Request { head, body });
    let task = tokio::task::spawn_local(answer(writer, served, fickle, limit));
    if let Some(stream) = conn.borrow_mut().streams.held(key, id) {
        stream.task = Some(task.abort_handle());
    }
}

/// One request's task. Dropped, by the client's reset or the connection's end, it takes everything upstream of it along.
async fn answer(writer: Writer, served: impl Future<Output = Served>, fickle: bool, limit: Duration) {
    if fickle {
        // A reset that came right behind the request is seen before it is passed on.
        tokio::task::yield_now().await;
    }
    let Served::Reply(reply) = served.await else { return };
    let Reply { status, mut fields, body, .. } = *reply;
    let ends = body.is_end_stream();
    if !fields.0.contains_key(DATE) {
        fields.0.append(DATE, date::now());
    }
    if !ends
        && let Some(length) = body.length()
        && !fields.0.contains_key(CONTENT_LENGTH)
    {
        fields.0.append(CONTENT_LENGTH, number(length));
    }
    let (key, id) = (writer.key, writer.id);
    poll_fn(|cx| match writer.conn.borrow_mut().has_room(key, id, cx) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
    writer.conn.borrow_mut().send_answer(key, id, status, &fields.0, ends);
    if ends {
        return;
    }
    drop(fields);
    let conn = writer.conn.clone();
    let mut pump = Pump::new(writer, body, limit);
    if poll_fn(|cx| pump.poll(cx)).await == Err(Stopped::Stalled) {
        counters::stalled("stream");
        conn.borrow_mut().reset(key, id, code::CANCEL);
    }
}
