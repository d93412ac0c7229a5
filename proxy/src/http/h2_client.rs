//! HTTP/2 towards an endpoint, on the codec directly.
//!
//! A request is polled where its answer is awaited: no task, no channel and no wake-up of its own. Only a request body that
//! goes on after the answer's head gets a task, so that both directions of a stream move. One task per connection drives the
//! codec and asks a quiet peer whether it is still there.

use super::exchange::Wire;
use super::exchange::{Body, BodyError, FieldMap, Reply, Request};
use super::hyper_driver::give_request;
use super::sender::SendFailed;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason as Code, RecvStream, SendStream};
use http_body::{Body as _, Frame};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use weft_policy::listener::Limits;
use weft_policy::reason::Reason;
use weft_tls::{MeshStream, Refusal};

/// What answers may lie here because their clients do not take them: the connection's window bounds the memory, and being
/// several times the stream's, lets some streams stall before the others wait for them.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
const MAX_FRAME: u32 = 64 * 1024;
const SEND_BUFFER: usize = 256 * 1024;
/// Until the peer's settings say more.
const STREAMS: usize = 100;
/// A question to a peer, and how long it may take for the answer.
const KEEPALIVE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Client {
    send: SendRequest<Bytes>,
    state: Rc<State>,
}

struct State {
    max_streams: Cell<usize>,
    /// No new stream will succeed: the connection has ended, or the peer has said goodbye.
    closed: Cell<bool>,
    refusal: Refusal,
}

/// `closed` runs when the connection has ended.
pub async fn connect(io: MeshStream, limits: &Limits, closed: impl FnOnce() + 'static) -> Result<Client, Reason> {
    let refusal = io.refusal();
    let (send, mut connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(limits.header_bytes)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(STREAMS)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|_| Reason::ConnectFailed)?;
    let state = Rc::new(State { max_streams: Cell::new(STREAMS), closed: Cell::new(false), refusal });
    let known = state.clone();
    tokio::task::spawn_local(async move {
        let mut pulse = connection.ping_pong().map(Pulse::new);
        poll_fn(|cx| {
            if pulse.as_mut().is_some_and(|pulse| pulse.poll_dead(cx).is_ready()) {
                return Poll::Ready(());
            }
            let polled = Pin::new(&mut connection).poll(cx).map(|_| ());
            known.max_streams.set(connection.max_concurrent_send_streams());
            polled
        })
        .await;
        known.closed.set(true);
        closed();
        super::sender::tell_refused(&known.refusal);
    });
    Ok(Client { send, state })
}

/// Asks now and then, and ends the connection of a peer that does not answer.
struct Pulse {
    ping: h2::PingPong,
    timer: Pin<Box<Sleep>>,
    asked: bool,
}

impl Pulse {
    fn new(ping: h2::PingPong) -> Self {
        Self { ping, timer: Box::pin(tokio::time::sleep(KEEPALIVE)), asked: false }
    }

    fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked && self.ping.poll_pong(cx).is_ready() {
                self.asked = false;
                self.timer.as_mut().reset(Instant::now() + KEEPALIVE);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.asked || self.ping.send_ping(h2::Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.asked = true;
            self.timer.as_mut().reset(Instant::now() + KEEPALIVE);
        }
    }
}

impl Client {
    pub fn is_closed(&self) -> bool {
        self.state.closed.get()
    }

    pub fn max_streams(&self) -> usize {
        self.state.max_streams.get()
    }

    /// Sends a request; the future waits for the answer's head. Dropped before, it resets the stream.
    pub fn send(&mut self, request: Request) -> impl Future<Output = Result<Reply, SendFailed>> + use<> {
        let started = self.start(request);
        let state = self.state.clone();
        async move {
            let mut exchange = started?;
            let answered = poll_fn(|cx| exchange.poll(cx)).await;
            if exchange.pipe.is_some() && answered.is_ok() {
                // The answer has begun while the request goes on.
                let pipe = exchange.pipe.take();
                tokio::task::spawn_local(async move {
                    if let Some(mut pipe) = pipe {
                        let _ = poll_fn(|cx| pipe.poll(cx)).await;
                    }
                });
            }
            answered.map_err(|error| match (state.refusal.get(), error) {
                (Some(_), _) => SendFailed::new(Reason::TlsFailed, true),
                (None, Ended::Codec(error)) => {
                    if error.is_go_away() || error.is_io() {
                        state.closed.set(true);
                    }
                    let (reason, unprocessed) = why(&error);
                    SendFailed::new(reason, unprocessed)
                }
                // The request's own sender broke off; whoever holds its body knows how.
                (None, Ended::Request) => SendFailed::new(Reason::UpstreamReset, false),
            })
        }
    }

    fn start(&mut self, request: Request) -> Result<Exchange, SendFailed> {
        // Without an error this only says whether the stream has to queue, which it may.
        if let Poll::Ready(Err(_)) = self.send.poll_ready(&mut Context::from_waker(Waker::noop())) {
            self.state.closed.set(true);
            let request = Some(Box::new(request));
            return Err(SendFailed { reason: Reason::UpstreamClosed, unprocessed: true, request });
        }
        let (parts, body) = give_request(request, true).into_parts();
        let ends = body.is_empty();
        match self.send.send_request(http::Request::from_parts(parts, ()), ends) {
            Ok((response, stream)) => {
                Ok(Exchange { response, pipe: (!ends).then(|| Pipe { body, stream, rest: None }) })
            }
            Err(error) => {
                let (reason, _) = why(&error);
                Err(SendFailed::new(reason, true))
            }
        }
    }
}

enum Ended {
    Codec(h2::Error),
    Request,
}

struct Exchange {
    response: ResponseFuture,
    pipe: Option<Pipe>,
}

impl Exchange {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, Ended>> {
        if let Some(pipe) = &mut self.pipe
            && let Poll::Ready(piped) = pipe.poll(cx)
        {
            self.pipe = None;
            // A stream that was reset under the pipe says so itself, in its answer.
            if matches!(piped, Err(PipeEnded::Source)) {
                return Poll::Ready(Err(Ended::Request));
            }
        }
        let response = ready!(Pin::new(&mut self.response).poll(cx)).map_err(Ended::Codec)?;
        let (parts, stream) = response.into_parts();
        let length = parts.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        Poll::Ready(Ok(Reply {
            status: parts.status,
            fields: FieldMap(parts.headers.into()),
            body: Body::wire(Wire::Http2(Http2Body { stream, left: length, data_ended: false })),
            upgrade: None,
        }))
    }
}

/// A request's body on its way.
struct Pipe {
    body: Body,
    stream: SendStream<Bytes>,
    /// What the window had no room for yet.
    rest: Option<Bytes>,
}

enum PipeEnded {
    /// The peer wants no more.
    Stream,
    /// The body broke off.
    Source,
}

impl Pipe {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeEnded>> {
        loop {
            if let Some(mut rest) = self.rest.take() {
                self.stream.reserve_capacity(rest.len());
                if self.stream.capacity() == 0 {
                    match self.stream.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {
                            self.rest = Some(rest);
                            continue;
                        }
                        Poll::Ready(_) => return Poll::Ready(Err(PipeEnded::Stream)),
                        Poll::Pending => {
                            self.rest = Some(rest);
                            return self.poll_reset(cx);
                        }
                    }
                }
                let piece = rest.split_to(rest.len().min(self.stream.capacity()));
                let last = rest.is_empty() && self.body.is_end_stream();
                if self.stream.send_data(piece, last).is_err() {
                    return Poll::Ready(Err(PipeEnded::Stream));
                }
                if last {
                    return Poll::Ready(Ok(()));
                }
                self.rest = (!rest.is_empty()).then_some(rest);
                continue;
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return self.poll_reset(cx),
            };
            let sent = match frame {
                None => self.stream.send_data(Bytes::new(), true),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.rest = (!data.is_empty()).then_some(data);
                        continue;
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => self.stream.send_trailers(trailers),
                        Err(_) => continue,
                    },
                },
                Some(Err(_)) => {
                    self.stream.send_reset(Code::CANCEL);
                    return Poll::Ready(Err(PipeEnded::Source));
                }
            };
            return Poll::Ready(sent.map_err(|_| PipeEnded::Stream));
        }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeEnded>> {
        self.stream.poll_reset(cx).map(|_| Err(PipeEnded::Stream))
    }
}

/// An answer's body.
pub struct Http2Body {
    stream: RecvStream,
    /// Of what `content-length` announced.
    left: Option<u64>,
    data_ended: bool,
}

impl Http2Body {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // What is read is handed on at once, and whoever is slow holds the next poll back.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // An answer that was complete before its request was read.
                Some(Err(error)) if error.reason() == Some(Code::NO_ERROR) => return Poll::Ready(None),
                Some(Err(_)) => return Poll::Ready(Some(Err(BodyError::Broken))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|t| Ok(Frame::trailers(t))),
            Err(_) => Some(Err(BodyError::Broken)),
        })
    }

    pub fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub fn size_hint(&self) -> http_body::SizeHint {
        match self.left {
            Some(left) => http_body::SizeHint::with_exact(left),
            None => http_body::SizeHint::default(),
        }
    }
}

/// The reason in a codec's error, and whether the upstream is known not to have touched the request.
pub fn why(error: &h2::Error) -> (Reason, bool) {
    if error.is_go_away() && error.is_remote() {
        return (Reason::RefusedStream, true);
    }
    match error.reason() {
        Some(Code::REFUSED_STREAM) => (Reason::RefusedStream, true),
        Some(_) if error.is_reset() && error.is_remote() => (Reason::UpstreamReset, false),
        Some(_) if error.is_library() || error.is_reset() => (Reason::UpstreamProtocol, false),
        _ => (Reason::UpstreamClosed, false),
    }
}
