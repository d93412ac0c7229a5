//! One request, as many attempts as its policies allow.
//!
//! Once per request: the budget's deposit, the breaker's request permit. Per attempt, in this order: pick, connection (with
//! the breaker's connection and pending caps), send, classify, feedback to balancer and outlier detector. Between attempts:
//! the retry policy, then budget and breaker for the retry, then the pause. No attempt follows once a response head has been
//! handed on.

use super::body::replay::Replayable;
use super::exchange::{Body, BodyError, Head, Reply, Request};
use super::fields::number;
use super::flight::{Flight, Held};
use super::normalise::{ATTEMPT_COUNT, SPOKEN};
use super::reject::{GRPC_STATUS, MESH_ERROR};
use super::sender::SendFailed;
use crate::telemetry::record::Attempt;
use crate::upstream::dial::Inside;
use crate::upstream::pick::{Picked, pick};
use crate::upstream::pool::{Lease, lease};
use crate::worker::{Conn, Worker};
use http::HeaderValue;
use smallvec::SmallVec;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use weft_policy::backend::{self, Backend};
use weft_policy::breaker::RequestPermit;
use weft_policy::budget::{self, Refused};
use weft_policy::endpoint::Endpoint;
use weft_policy::mtls::{Security, UpstreamTls};
use weft_policy::outlier::Signal;
use weft_policy::reason::Reason;
use weft_policy::retry::{self, Decision, Outcome};

const RATELIMITED: http::HeaderName = http::HeaderName::from_static("x-envoy-ratelimited");

/// What the request path decided before the first attempt.
pub struct Plan<'a> {
    pub worker: &'a Rc<Worker>,
    pub conn: &'a Conn,
    pub backend: Arc<Backend>,
    pub retry: &'a retry::Config,
    pub began: Instant,
    pub deadline: Option<Instant>,
    pub idle: Option<Duration>,
    pub hash: Option<u64>,
    /// The app that sent the request spoke HTTP/2.
    pub http2: bool,
    /// CONNECT or Upgrade: needs a connection that can leave HTTP.
    pub leaving: bool,
}

/// No answer to hand on.
pub struct Failed {
    pub reason: Reason,
    pub retried: bool,
}

/// Tries until there is an answer worth handing on, or no more may be tried.
pub async fn run(plan: &Plan<'_>, flight: &mut Flight, head: Head, body: Body) -> Result<Reply, Failed> {
    let (worker, backend) = (plan.worker, &plan.backend);
    let fail = |reason, retried: u32| Failed { reason, retried: retried > 0 };
    let replay = (!body.is_empty()).then(|| Replayable::new(body, stall_limit(&head, plan), plan.idle.is_some()));
    flight.replay = replay.clone();
    backend.budget.deposit(plan.began);
    let permit = RequestPermit::take(backend).ok_or(fail(Reason::Overflow, 0))?;
    let mut head = Some(head);
    let mut tried: SmallVec<[usize; 4]> = SmallVec::new();
    let mut retried = 0;
    let mut stale = 0;
    let mut retrying = None;
    let mut started = plan.began;
    loop {
        let Some(mut this_head) = head.take() else { return Err(fail(Reason::Internal, retried)) };
        this_head.fields.0.insert(ATTEMPT_COUNT, number(u64::from(retried) + 1));
        let avoid: &[usize] = if plan.retry.avoid_previous_hosts { &tried } else { &[] };
        let mut attempt = OneAttempt {
            started,
            retried,
            head: None,
            picked: None,
            mesh: false,
            secured: false,
            span: span_of(worker),
        };
        let limit = Limit::new(started, plan.retry.per_try_timeout, plan.deadline);
        let sent = {
            let quiet = plan.idle.map(|idle| Box::pin(quiet(idle, started, replay.as_ref())));
            let trying = pin!(once(plan, flight, this_head, replay.as_ref(), avoid, &mut attempt));
            limit.run(trying, quiet).await
        };
        drop(retrying.take());
        let secured = attempt.secured;
        head = attempt.head;
        let mut picked = attempt.picked;
        if let Some(picked) = &picked {
            tried.push(picked.index);
        }
        let ended = Instant::now();
        let (outcome, reason, signal) = match &sent {
            Ok(Ok((reply, _))) => {
                let (outcome, signal) = classify(reply, flight.asker.grpc, attempt.mesh);
                (outcome, None, signal)
            }
            Ok(Err(failed)) => {
                if let Some(error) = replay.as_ref().and_then(Replayable::client_failed) {
                    // It was the client that broke off; the endpoint is not to blame.
                    let reason = if error == BodyError::Idle { Reason::ClientTimeout } else { Reason::ClientGone };
                    return Err(fail(reason, retried));
                }
                (outcome_of(failed), Some(failed.reason), signal_of(failed.reason))
            }
            Err(reason @ (Reason::RequestTimeout | Reason::StreamIdle)) => {
                if let Some(picked) = &mut picked {
                    picked.tell(Signal::Timeout, ended);
                    note_attempt(flight, picked, attempt.span, started, ended, None, secured);
                }
                return Err(fail(*reason, retried));
            }
            Err(reason) => (Outcome::PerTryTimeout, Some(*reason), Signal::Timeout),
        };
        // A kept connection that the endpoint had closed: nothing was learned, nothing is counted.
        let sent = match sent {
            Ok(Err(SendFailed { request: Some(request), reason: Reason::UpstreamClosed, .. }))
                if replay.as_ref().is_none_or(Replayable::can_repeat) =>
            {
                stale += 1;
                if stale > 16 {
                    return Err(fail(Reason::UpstreamClosed, retried));
                }
                head = Some(request.head);
                tried.pop();
                started = ended;
                continue;
            }
            sent => sent,
        };
        let await_trailers =
            flight.asker.grpc && matches!(outcome, Outcome::Response { grpc_status: None, status: 200, .. });
        if let Some(picked) = &mut picked {
            if !await_trailers {
                picked.tell(signal, ended);
            }
            let status = match &sent {
                Ok(Ok((reply, _))) => Some(reply.status),
                _ => None,
            };
            note_attempt(flight, picked, attempt.span, started, ended, status, secured);
        }
        let wants = match plan.leaving && reason.is_none() {
            true => Decision::No,
            false => plan.retry.decide(&outcome, retried),
        };
        let may = wants == Decision::Retry && head.is_some() && {
            let repeatable = replay.as_ref().is_none_or(Replayable::can_repeat);
            if !repeatable {
                flight.record.note = Some("not retried: the body is larger than the replay buffer");
            }
            repeatable
        };
        if may {
            match budget::retry(backend, ended) {
                Ok(permit) => {
                    retrying = Some(permit);
                    retried += 1;
                    drop(sent);
                    drop(picked);
                    let pause = plan.retry.backoff.pause(retried, worker.random());
                    let wake = ended + pause;
                    if plan.deadline.is_some_and(|at| wake >= at) {
                        Box::pin(sleep_until(plan.deadline.unwrap_or(wake))).await;
                        return Err(fail(Reason::RequestTimeout, retried));
                    }
                    if !pause.is_zero() {
                        Box::pin(sleep_until(wake)).await;
                    }
                    started = Instant::now();
                    continue;
                }
                Err(Refused::Budget) => flight.record.note = Some("not retried: the retry budget is spent"),
                Err(Refused::Breaker) => flight.record.note = Some("not retried: the breaker allows no more retries"),
            }
        }
        flight.record.flags.retries_exhausted = wants == Decision::Exhausted;
        return match (sent, picked) {
            (Ok(Ok((reply, lease))), Some(picked)) => {
                if let Some(replay) = &replay {
                    super::mirror::settle(replay);
                }
                flight.held = Some(Held {
                    lease: Some(lease),
                    picked,
                    permit,
                    deadline: plan.deadline,
                    idle: plan.idle,
                    timer: None,
                    last: ended,
                    await_trailers,
                });
                Ok(reply)
            }
            _ => Err(fail(reason.unwrap_or(Reason::Internal), retried)),
        };
    }
}

/// An attempt, and what it leaves behind, whether it was finished or cut off.
struct OneAttempt {
    started: Instant,
    /// How many came before it.
    retried: u32,
    /// The head, where another attempt could need it.
    head: Option<Head>,
    picked: Option<Picked>,
    /// A sidecar answers there.
    mesh: bool,
    /// It went, or would have gone, in TLS.
    secured: bool,
    /// Its client span: what the next hop names as its parent, and what is reported.
    span: [u8; 8],
}

async fn once(
    plan: &Plan<'_>,
    flight: &Flight,
    mut head: Head,
    replay: Option<&Replayable>,
    avoid: &[usize],
    this: &mut OneAttempt,
) -> Result<(Reply, Lease), SendFailed> {
    let unprocessed = |reason| SendFailed::new(reason, true);
    let picked = match pick(plan.worker, &plan.backend, plan.hash, avoid, this.started).await {
        Ok(picked) => picked,
        Err(reason) => return Err(unprocessed(reason)),
    };
    let endpoint = picked.endpoint.clone();
    this.picked = Some(picked);
    // One look at the backend's settings per attempt.
    let config = plan.backend.config.load_full();
    let mesh = is_mesh(&config, &endpoint);
    let inside = inside(&config, plan, flight, mesh);
    this.mesh = mesh;
    this.secured = mesh || matches!(config.tls, UpstreamTls::Originate(_));
    // Until it is sent, the head is there for the next attempt; behind a copy where even then it may be needed again.
    this.head = Some(head);
    let leased = lease(plan.worker, &plan.backend, &config, &endpoint, inside, &plan.conn.listener.limits).await;
    let mut lease = leased.map_err(unprocessed)?;
    let Some(kept) = this.head.take() else { return Err(unprocessed(Reason::Internal)) };
    head = kept;
    // What was never sent comes back by itself; HTTP/2 may refuse what was.
    let again = lease.is_shared() || plan.retry.on.follows_sending();
    if again && this.retried < plan.retry.attempts {
        this.head = Some(head.clone());
    }
    flight.record.trace.inject(&mut head.fields, this.span, plan.worker.shared.b3());
    // A sidecar is told; no other server would know the word.
    if mesh && plan.http2 {
        head.fields.0.insert(SPOKEN, HeaderValue::from_static("1"));
    }
    let body = replay.map_or_else(Body::empty, Replayable::attempt);
    let reply = lease.sender.send(Request { head, body }, plan.leaving).await?;
    Ok((reply, lease))
}

fn span_of(worker: &Worker) -> [u8; 8] {
    (worker.random() | 1).to_be_bytes()
}

/// Whether a sidecar answers there.
fn is_mesh(config: &backend::Config, endpoint: &Endpoint) -> bool {
    config.tls.security(endpoint.identity.as_ref()) == Security::Mesh
}

/// What travels to this endpoint: HTTP/2 in the mesh, and otherwise what the app spoke, unless the backend says.
fn inside(config: &backend::Config, plan: &Plan<'_>, flight: &Flight, mesh: bool) -> Inside {
    match !plan.leaving && config.http.is_http2(mesh, plan.http2 || flight.asker.grpc) {
        true => Inside::Http2,
        false => Inside::Http1,
    }
}

fn classify(reply: &Reply, grpc: bool, mesh: bool) -> (Outcome, Signal) {
    let fields = &reply.fields.0;
    // The other sidecar did not get through to its app, which may be on its way out: no app has seen the request.
    let unreached = |word: &http::HeaderValue| {
        [Reason::ConnectFailed, Reason::ConnectTimeout].iter().any(|reason| word == reason.word())
    };
    let unreached = mesh && fields.get(MESH_ERROR).is_some_and(unreached);
    let grpc_status = match grpc {
        true => fields.get(GRPC_STATUS).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()),
        false => None,
    };
    let status = reply.status.as_u16();
    let outcome = match unreached {
        true => Outcome::ConnectFailed,
        false => {
            Outcome::Response { status, grpc_status, ratelimited: status == 429 && fields.contains_key(RATELIMITED) }
        }
    };
    let signal = match grpc_status {
        Some(code) if status == 200 => Signal::Grpc(code),
        _ => Signal::Status(status),
    };
    (outcome, signal)
}

fn outcome_of(failed: &SendFailed) -> Outcome {
    match failed.reason {
        Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => Outcome::ConnectFailed,
        Reason::Overflow | Reason::Overload | Reason::NoHealthyUpstream => Outcome::Overflow,
        Reason::RefusedStream => Outcome::RefusedStream,
        Reason::UpstreamProtocol => Outcome::ProtocolError,
        _ => Outcome::Reset { before_request_bytes: failed.unprocessed },
    }
}

fn signal_of(reason: Reason) -> Signal {
    match reason {
        Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => Signal::ConnectFailed,
        Reason::UpstreamClosed | Reason::UpstreamReset | Reason::UpstreamProtocol => Signal::Reset,
        Reason::PerTryTimeout => Signal::Timeout,
        // Refused streams are a goodbye, and overflow is our own doing.
        _ => Signal::Nothing,
    }
}

fn note_attempt(
    flight: &mut Flight,
    picked: &Picked,
    span: [u8; 8],
    started: Instant,
    ended: Instant,
    status: Option<http::StatusCode>,
    tls: bool,
) {
    let endpoint = picked.endpoint.clone();
    flight.record.attempts.push(Attempt { endpoint, started, ended, status, span, tls });
}

/// How long a client may owe bytes it has announced; streams owe nothing.
fn stall_limit(head: &Head, plan: &Plan<'_>) -> Option<Duration> {
    let announced = head.fields.0.contains_key(http::header::CONTENT_LENGTH);
    let limit = plan.conn.listener.limits.body_idle;
    (announced && !limit.is_zero()).then_some(limit)
}

/// The nearer of the attempt's and the request's limit.
#[derive(Clone, Copy)]
enum Limit {
    None,
    At(Instant, Reason),
}

impl Limit {
    fn new(started: Instant, per_try: Option<Duration>, deadline: Option<Instant>) -> Self {
        let try_ends = per_try.map(|limit| started + limit);
        match (try_ends, deadline) {
            (Some(at), Some(deadline)) if at < deadline => Limit::At(at, Reason::PerTryTimeout),
            (Some(at), None) => Limit::At(at, Reason::PerTryTimeout),
            (_, Some(deadline)) => Limit::At(deadline, Reason::RequestTimeout),
            (None, None) => Limit::None,
        }
    }

    /// The future stays where it is pinned: moving one of its size would cost more than most policies do.
    async fn run<F: Future>(
        self,
        mut future: Pin<&mut F>,
        mut quiet: Option<Pin<Box<impl Future<Output = ()>>>>,
    ) -> Result<F::Output, Reason> {
        let mut timer = pin!(None);
        poll_fn(|cx| {
            if let Poll::Ready(done) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if let Some(quiet) = &mut quiet
                && quiet.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(Reason::StreamIdle));
            }
            let Limit::At(at, reason) = self else { return Poll::Pending };
            // Only what has to wait needs a timer.
            if timer.is_none() {
                timer.set(Some(tokio::time::sleep_until(at.into())));
            }
            match timer.as_mut().as_pin_mut() {
                Some(timer) => timer.poll(cx).map(|()| Err(reason)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// Ends when nothing has come from either side for the route's idle limit.
async fn quiet(idle: Duration, started: Instant, replay: Option<&Replayable>) {
    loop {
        let due = replay.and_then(Replayable::last).map_or(started, |at| at.max(started)) + idle;
        if Instant::now() >= due {
            return;
        }
        sleep_until(due).await;
    }
}

async fn sleep_until(at: Instant) {
    tokio::time::sleep_until(at.into()).await;
}
