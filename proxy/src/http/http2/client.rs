//! HTTP/2 towards an endpoint.
//!
//! A request is polled where its answer is awaited: no task, no channel and no wake-up of its own. Only a request body that
//! goes on after the answer's head gets a task, so that both directions of a stream move. One task per connection reads.

use super::body::{Conn, Http2Body, Writer};
use super::engine::{Engine, Role};
use super::frame::code;
use super::link::{End, Link};
use super::out::Out;
use super::pump::{Pump, Stopped};
use super::settings::Ours;
use super::streams::Why;
use crate::http::exchange::{Body, FieldMap, Reply, Request, Wire};
use crate::http::sender::{SendFailed, tell_refused};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use weft_policy::listener::Limits;
use weft_policy::reason::Reason;
use weft_tls::{MeshStream, Refusal};

/// What answers may lie here because their clients do not take them: the connection's window bounds the memory, and being
/// several times the stream's, lets some streams stall before the others wait for them.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
const MAX_FRAME: usize = 64 * 1024;
/// Servers have less cause to send many small frames than clients' sidecars, and more than clients.
const PATIENCE: u32 = 10;
/// Fields of an answer, where requests are allowed fewer.
const FIELDS: usize = 160;

/// A connection, for as long as anybody may send on it.
#[derive(Clone)]
pub struct Client(Rc<Keeper>);

struct Keeper {
    conn: Conn,
    refusal: Refusal,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Ok(mut engine) = self.conn.try_borrow_mut() {
            engine.unwanted = true;
            engine.out.wake();
        }
    }
}

/// Runs when the connection has ended, also when its task is cut.
struct Ended<F: FnOnce()>(Conn, Option<F>);

impl<F: FnOnce()> Drop for Ended<F> {
    fn drop(&mut self) {
        if let Ok(mut engine) = self.0.try_borrow_mut() {
            engine.end(Why::Gone);
        }
        if let Some(closed) = self.1.take() {
            closed();
        }
    }
}

/// `closed` runs when the connection has ended.
pub async fn connect(io: MeshStream, limits: &Limits, closed: impl FnOnce() + 'static) -> Result<Client, Reason> {
    let refusal = io.refusal();
    let ours = Ours {
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        max_frame: MAX_FRAME,
        list_bytes: limits.header_bytes as usize,
        list_fields: FIELDS.max(limits.header_count as usize),
        max_streams: 0,
    };
    let conn: Conn = Rc::new(RefCell::new(Engine::new(Role::Client, Out::new(Some(io)), ours, PATIENCE)));
    let keeper = Rc::new(Keeper { conn: conn.clone(), refusal: refusal.clone() });
    tokio::task::spawn_local(async move {
        let ended = Ended(conn.clone(), Some(closed));
        let mut link = Link::new(conn.clone(), Role::Client, Duration::ZERO);
        let end = poll_fn(|cx| link.poll(cx, &mut |_| ())).await;
        if let End::Fault(_) = end {
            // What is wrong with the connection is wrong with each answer on it.
            conn.borrow_mut().end(Why::Malformed);
        }
        drop(ended);
        tell_refused(&refusal);
        link.close(end).await;
    });
    Ok(Client(keeper))
}

impl Client {
    /// No new stream will succeed: the connection has ended, or the peer has said goodbye.
    pub fn is_closed(&self) -> bool {
        self.0.conn.borrow().is_closed()
    }

    pub fn max_streams(&self) -> usize {
        self.0.conn.borrow().max_streams()
    }

    /// Sends a request; the future waits for the answer's head. Dropped before, it resets the stream.
    pub fn send(&mut self, request: Request) -> impl Future<Output = Result<Reply, SendFailed>> + use<> {
        let started = start(&self.0.conn, request);
        let refusal = self.0.refusal.clone();
        async move {
            let mut exchange = started?;
            let answered = poll_fn(|cx| exchange.poll(cx)).await;
            if answered.is_ok()
                && let Some(mut pump) = exchange.take_pump()
            {
                // The answer has begun while the request goes on.
                tokio::task::spawn_local(async move { poll_fn(|cx| pump.poll(cx)).await });
            }
            answered.map_err(|failed| match refusal.get() {
                Some(_) => SendFailed::new(Reason::TlsFailed, true),
                None => failed,
            })
        }
    }
}

fn start(conn: &Conn, request: Request) -> Result<Exchange, SendFailed> {
    let mut engine = conn.borrow_mut();
    if engine.is_closed() {
        let request = Some(Box::new(request));
        return Err(SendFailed { reason: Reason::UpstreamClosed, unprocessed: true, request });
    }
    if !engine.may_open() {
        let ticket = engine.ticket();
        return Ok(Exchange::Waiting(Waiting { conn: conn.clone(), ticket, request: Some(request) }));
    }
    drop(engine);
    Ok(Exchange::Open(open(conn, request)))
}

fn open(conn: &Conn, request: Request) -> Open {
    let Request { head, body } = request;
    let ends = body.is_empty();
    let (key, id) = conn.borrow_mut().open(&head, ends);
    let answer = Some(Http2Body::new(conn.clone(), key, id));
    let pump = (!ends).then(|| Pump::new(Writer { conn: conn.clone(), key, id }, body, Duration::ZERO));
    Open { answer, pump }
}

enum Exchange {
    /// In line for a stream.
    Waiting(Waiting),
    Open(Open),
}

struct Waiting {
    conn: Conn,
    ticket: u64,
    request: Option<Request>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Ok(mut engine) = self.conn.try_borrow_mut() {
            engine.leave_line(self.ticket);
        }
    }
}

struct Open {
    answer: Option<Http2Body>,
    pump: Option<Pump>,
}

impl Exchange {
    fn take_pump(&mut self) -> Option<Pump> {
        match self {
            Exchange::Open(open) => open.pump.take(),
            Exchange::Waiting(_) => None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, SendFailed>> {
        loop {
            match self {
                Exchange::Open(open) => return open.poll(cx),
                Exchange::Waiting(waiting) => {
                    let opened = ready!(waiting.poll(cx))?;
                    *self = Exchange::Open(opened);
                }
            }
        }
    }
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Open, SendFailed>> {
        let mut engine = self.conn.borrow_mut();
        if engine.is_closed() {
            let reason = if engine.ended().is_some() { Reason::UpstreamClosed } else { Reason::RefusedStream };
            return Poll::Ready(Err(SendFailed::new(reason, true)));
        }
        if !engine.may_open() {
            engine.wait_to_open(self.ticket, cx);
            return Poll::Pending;
        }
        drop(engine);
        match self.request.take() {
            Some(request) => Poll::Ready(Ok(open(&self.conn, request))),
            None => Poll::Ready(Err(SendFailed::new(Reason::Internal, true))),
        }
    }
}

impl Open {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, SendFailed>> {
        if let Some(pump) = &mut self.pump
            && let Poll::Ready(piped) = pump.poll(cx)
        {
            self.pump = None;
            // The request's own sender broke off; whoever holds its body knows how. A stream that ended under the pump says
            // so itself.
            if matches!(piped, Err(Stopped::Source(_))) {
                return Poll::Ready(Err(SendFailed::new(Reason::UpstreamReset, false)));
            }
        }
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(Err(SendFailed::new(Reason::Internal, false)));
        };
        let (status, fields) = ready!(answer.poll_head(cx)).map_err(failed)?;
        let body = self.answer.take().map_or_else(Body::empty, |body| Body::wire(Wire::Http2(body)));
        Poll::Ready(Ok(Reply { status, fields: FieldMap(fields), body, upgrade: None }))
    }
}

/// The reason in a stream's end, and whether the upstream is known not to have touched the request.
fn failed(why: Why) -> SendFailed {
    let (reason, unprocessed) = match why {
        Why::Refused | Why::Reset(code::REFUSED_STREAM) => (Reason::RefusedStream, true),
        Why::Reset(_) => (Reason::UpstreamReset, false),
        Why::Malformed => (Reason::UpstreamProtocol, false),
        Why::Gone | Why::Cancelled => (Reason::UpstreamClosed, false),
    };
    SendFailed::new(reason, unprocessed)
}
