//! One request in flight: its record, and the guards that end with it. Whatever happens, it is reported exactly once.

use super::body::replay::Replayable;
use super::exchange::Served;
use super::exchange::{Body, BodyError, Head, Reply, Watch};
use super::outbound::REQUEST_ID;
use super::reject::{self, Asker, GRPC_STATUS};
use crate::telemetry::record::{Proto, Record};
use crate::telemetry::trace::Trace;
use crate::upstream::Lease;
use crate::upstream::pick::Picked;
use crate::worker::{Conn, Worker};
use http::{HeaderMap, StatusCode, Version};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;
use weft_policy::breaker::RequestPermit;
use weft_policy::outlier::Signal;
use weft_policy::reason::{Flags, Reason};
use weft_policy::view::is_grpc;

/// In a box from its begin to its end: it is large, and whoever answers last holds it.
pub struct Flight {
    pub worker: Rc<Worker>,
    pub record: Record,
    pub asker: Asker,
    /// What the answer came from, once there is one.
    pub held: Option<Held>,
    /// The request's body, where it has one: how much of it came is told whatever the end.
    pub replay: Option<Replayable>,
    reported: bool,
}

impl Flight {
    /// From a head as the client sent it.
    pub fn begin(worker: &Rc<Worker>, conn: &Conn, head: &Head) -> Box<Self> {
        let http2 = head.version == Version::HTTP_2;
        let grpc = head.fields.0.get(http::header::CONTENT_TYPE).is_some_and(|v| is_grpc(v.as_bytes()));
        let proto = match (grpc, http2) {
            (true, _) => Proto::Grpc,
            (false, true) => Proto::Http2,
            (false, false) => Proto::Http1,
        };
        worker.recorder.request_started(conn.listener.role);
        let trace = Trace::start(&head.fields, || worker.random(), worker.shared.sampling());
        Box::new(Self {
            worker: worker.clone(),
            record: Record {
                role: conn.listener.role,
                listener: conn.listener.name.clone(),
                peer: conn.peer.clone(),
                destination: conn.destination,
                proto,
                method: head.method.clone(),
                authority: head.authority.clone(),
                path: head.path.clone(),
                request_id: None,
                user_agent: head.fields.0.get(http::header::USER_AGENT).cloned(),
                trace,
                service: None,
                route: None,
                backend: None,
                attempts: Default::default(),
                started: Instant::now(),
                head_sent: None,
                status: StatusCode::OK,
                grpc_status: None,
                flags: Flags::default(),
                note: None,
                request_bytes: 0,
                response_bytes: 0,
                upgraded: false,
            },
            asker: Asker { grpc, mesh: conn.mesh, http2 },
            held: None,
            replay: None,
            reported: false,
        })
    }

    fn report(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.reported, true) {
            self.record.request_bytes = self.replay.as_ref().map_or(0, Replayable::bytes);
            self.worker.recorder.finish(&self.record, now);
        }
    }

    /// Answers a request that is not looked at any further; the log has what its client called it.
    pub fn refuse(mut self: Box<Self>, head: &Head, reason: Reason) -> Served {
        self.record.request_id = head.fields.0.get(REQUEST_ID).cloned();
        self.record.authority = head.authority.clone();
        self.reject(reason, false)
    }

    /// Answers by itself.
    pub fn reject(mut self: Box<Self>, reason: Reason, retried: bool) -> Served {
        if reason == Reason::ClientGone {
            self.record.flags.reason = Some(reason);
            return Served::Cut;
        }
        self.record.flags.reason = Some(reason);
        let reply = reject::reply(reason, retried, self.asker);
        self.answer(reply)
    }

    /// Sends an answer and stays with it to its end.
    pub fn answer(mut self: Box<Self>, mut reply: Reply) -> Served {
        self.record.status = reply.status;
        // What came from upstream goes out in the same turn.
        self.record.head_sent = Some(self.held.as_ref().map_or_else(Instant::now, |held| held.last));
        if let Some(status) = reply.fields.0.get(GRPC_STATUS) {
            self.record.grpc_status = status.to_str().ok().and_then(|v| v.parse().ok());
        }
        if self.record.method == http::Method::HEAD {
            // Whoever made a body for it was wrong, and HTTP/2's codec would send it.
            reply.body = Body::empty();
        }
        if reply.body.is_empty() {
            self.clean();
        } else {
            let body = std::mem::replace(&mut reply.body, Body::empty());
            reply.body = body.watched(self);
        }
        Served::Reply(Box::new(reply))
    }

    /// The answer ended as it should.
    fn clean(&mut self) {
        let now = Instant::now();
        if let Some(mut held) = self.held.take() {
            if held.await_trailers {
                held.picked.tell(Signal::Reset, now);
            }
            // A response that ended before its request leaves a connection that nobody else may use.
            let whole = self.replay.as_ref().is_none_or(Replayable::ended);
            if let Some(lease) = held.lease.take().filter(|_| whole) {
                lease.reuse(now);
            }
        }
        self.report(now);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.reported {
            // The client went away: its connection's driver dropped what was being made for it.
            if self.record.head_sent.is_none() {
                self.record.status = StatusCode::from_u16(499).unwrap_or_default();
            }
            self.record.flags.reason.get_or_insert(Reason::ClientGone);
            self.report(Instant::now());
        }
    }
}

/// What an answer from upstream holds until its last byte.
pub struct Held {
    pub lease: Option<Lease>,
    pub picked: Picked,
    pub permit: RequestPermit,
    /// When the whole exchange must be over.
    pub deadline: Option<Instant>,
    pub idle: Option<Duration>,
    pub timer: Option<Pin<Box<Sleep>>>,
    pub last: Instant,
    /// The endpoint is judged by the trailers, which are not here yet.
    pub await_trailers: bool,
}

impl Watch for Flight {
    fn data(&mut self, bytes: usize) {
        self.record.response_bytes += bytes as u64;
        if let Some(held) = &mut self.held
            && held.idle.is_some()
        {
            held.last = Instant::now();
        }
    }

    fn trailers(&mut self, fields: &HeaderMap) {
        let Some(status) = fields.get(GRPC_STATUS) else { return };
        let status = status.to_str().ok().and_then(|v| v.parse().ok());
        self.record.grpc_status = status;
        if let (Some(held), Some(status)) = (&mut self.held, status)
            && std::mem::take(&mut held.await_trailers)
        {
            held.picked.tell(Signal::Grpc(status), Instant::now());
        }
    }

    fn end(&mut self, result: Result<(), BodyError>) {
        match result {
            Ok(()) => self.clean(),
            Err(error) => {
                let reason = match error {
                    BodyError::Broken => Reason::UpstreamBroken,
                    BodyError::Deadline => Reason::RequestTimeout,
                    BodyError::Idle => Reason::StreamIdle,
                    BodyError::Ended => Reason::Draining,
                };
                let now = Instant::now();
                self.record.flags.reason = Some(reason);
                if let Some(mut held) = self.held.take() {
                    held.picked.tell(Signal::Reset, now);
                }
                self.report(now);
            }
        }
    }

    fn poll_limit(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Some(held) = &mut self.held else { return Poll::Pending };
        let sent = self.replay.as_ref().and_then(Replayable::last);
        let quiet = held.idle.map(|idle| sent.map_or(held.last, |at| at.max(held.last)) + idle);
        let Some(due) = [held.deadline, quiet].into_iter().flatten().min() else { return Poll::Pending };
        loop {
            let timer = held.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            if timer.deadline() > due.into() {
                timer.as_mut().reset(due.into());
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if held.deadline.is_some_and(|at| now >= at) {
                return Poll::Ready(BodyError::Deadline);
            }
            if quiet.is_some_and(|at| now >= at) {
                return Poll::Ready(BodyError::Idle);
            }
            timer.as_mut().reset(due.into());
        }
    }
}
