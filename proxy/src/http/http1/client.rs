//! A connection to an endpoint. It has no task: a request is written where it is sent, and whoever waits for the answer, head
//! or body, reads the socket itself. Only a request that is still being sent when its answer begins gets a task, so that both
//! directions move.
//!
//! While it is idle nobody waits on it. That it was closed shows when somebody looks, which costs no system call: before a
//! request is sent, and once a second. What was sent into a connection just as its other end was being closed comes back too,
//! to be sent elsewhere: see `Exchange::comes_back`.

use super::super::exchange::{Body, BodyError, FieldMap, Head, Reply, Request, Tunnel, Upgrade, Wire};
use super::super::sender::{SendFailed, Sender, tell_refused};
use super::body::{Decoder, Piece, Stop, Writer};
use super::head::{self, Answered, Framing, Search};
use super::{Ahead, Outgoing, take_spare};
use crate::sys::sockopt;
use bytes::Bytes;
use http::header::UPGRADE;
use http::{HeaderValue, Method, StatusCode};
use http_body::{Frame, SizeHint};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use weft_policy::listener::Limits;
use weft_policy::reason::Reason;
use weft_tls::{MeshStream, Refusal};

/// Interim answers that are read before one that counts.
const INTERIM: u32 = 100;
/// An endpoint is trusted further than a client is.
const HEAD: u32 = 64 * 1024;
const FIELDS: u32 = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// A request is being sent or its answer being waited for.
    Asked,
    /// The answer's body is being read.
    Answering,
    Closed,
}

/// One connection.
pub struct Http1 {
    io: Option<MeshStream>,
    state: State,
    ahead: Ahead,
    decoder: Decoder,
    /// Which exchange the decoder is of.
    turn: u32,
    /// It may be used again after this exchange.
    keep: bool,
    /// The request is not sent yet, or will never be.
    sending: bool,
    /// A write failed. What the endpoint has said before may still be read; that reading ends then is no clean end.
    deaf: bool,
    /// Whoever waits for the answer's body, and whoever sends the request beside it.
    reader: Option<Waker>,
    writer: Option<Waker>,
    refusal: Refusal,
    max_head: usize,
    max_fields: usize,
    closed: Option<Box<dyn FnOnce()>>,
}

/// `closed` runs when the connection has ended.
pub fn connect(io: MeshStream, limits: &Limits, closed: impl FnOnce() + 'static) -> Sender {
    Sender::Http1(Rc::new(RefCell::new(Http1 {
        state: State::Idle,
        ahead: Ahead::default(),
        decoder: Decoder::done(),
        turn: 0,
        keep: true,
        sending: false,
        deaf: false,
        reader: None,
        writer: None,
        refusal: io.refusal(),
        max_head: limits.header_bytes.max(HEAD) as usize + HEAD as usize,
        max_fields: limits.header_count.max(FIELDS) as usize,
        closed: Some(Box::new(closed)),
        io: Some(io),
    })))
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.close();
    }
}

impl Http1 {
    /// Whether it takes no request: it is busy, or has ended. Says nothing of what is still on its way.
    pub fn is_closed(&mut self) -> bool {
        if self.state == State::Idle && self.poll_fill(&mut Context::from_waker(Waker::noop())).is_ready() {
            // An end, or an answer to nothing.
            self.close();
        }
        self.state != State::Idle
    }

    /// Whether `send` would take a request, as far as was last seen.
    pub fn is_ready(&self) -> bool {
        self.state == State::Idle
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.ahead = Ahead::default();
        self.turn = self.turn.wrapping_add(1);
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
        if let Some(mut io) = self.io.take() {
            // As much of a goodbye as the socket takes without waiting.
            let _ = Pin::new(&mut io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
        self.ended();
    }

    /// The connection is nobody's here any more.
    fn ended(&mut self) {
        if let Some(closed) = self.closed.take() {
            closed();
            tell_refused(&self.refusal);
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Some(io) => self.ahead.poll_fill(cx, io, self.decoder.expects()),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Outgoing) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => out.poll_write(cx, io),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// The answer is read to its end: the connection is free, or done with.
    fn settle(&mut self) {
        let free = self.keep && !self.sending && !self.deaf && self.ahead.is_empty();
        if free {
            self.state = State::Idle;
            self.turn = self.turn.wrapping_add(1);
        } else {
            self.close();
        }
    }

    fn why(&self, reason: Reason) -> SendFailed {
        match self.refusal.get() {
            Some(_) => SendFailed::new(Reason::TlsFailed, true),
            None => SendFailed::new(reason, false),
        }
    }

    /// Sends a request; the future waits for the answer's head. Where not a byte was sent, the request comes back.
    pub fn send(this: &Rc<RefCell<Self>>, request: Request, leaving: bool) -> Exchange {
        let mut link = this.borrow_mut();
        let sound = link.io.as_mut().is_some_and(|io| {
            let mut cx = Context::from_waker(Waker::noop());
            matches!(Pin::new(io).poll_flush(&mut cx), Poll::Ready(Ok(())))
        });
        if link.state != State::Idle || !sound {
            let mut failed = link.why(Reason::UpstreamClosed);
            failed.unprocessed = true;
            failed.request = Some(Box::new(request));
            drop(link);
            let mut exchange = Exchange::new(this);
            exchange.unsent = Some(failed);
            return exchange;
        }
        let Request { head, body } = request;
        let framing = match (body.is_empty(), body.length()) {
            (true, _) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => head::announced(&head.fields.0).map_or(Framing::Chunked, Framing::Length),
        };
        let begun_at = link.io.as_ref().map_or(0, MeshStream::sent);
        let kept = link.turn > 0;
        let mut out = Outgoing::new(take_spare());
        head::write_request(&mut out.front, &head, framing);
        link.state = State::Asked;
        link.sending = true;
        link.turn = link.turn.wrapping_add(1);
        let bare = body.is_empty();
        let mut writer = Some(Writer::new(out, body, framing, true));
        // Nothing follows the head: it need not wait for the first poll.
        if bare && let Some(one) = &mut writer {
            match link.poll_write(&mut Context::from_waker(Waker::noop()), &mut one.out) {
                Poll::Ready(Ok(())) => {
                    link.sending = false;
                    writer = None;
                }
                Poll::Ready(Err(_)) => link.deaf = true,
                Poll::Pending => {}
            }
        }
        drop(link);
        let mut exchange = Exchange::new(this);
        exchange.writer = writer;
        exchange.head_only = head.method == Method::HEAD;
        exchange.connect = head.method == Method::CONNECT;
        exchange.leaving = leaving;
        exchange.wanted = leaving.then(|| head.fields.0.get(UPGRADE).cloned()).flatten();
        exchange.kept = kept.then_some(Kept { head, bare, begun_at });
        exchange
    }
}

/// Why no answer's head was read.
enum End {
    /// `cleanly`: the endpoint's own end was seen, and not a reset alone.
    Closed {
        cleanly: bool,
    },
    Because(Reason),
}

/// A request on its way to its answer's head. Dropped before, it takes the connection along.
pub struct Exchange {
    link: Option<Rc<RefCell<Http1>>>,
    unsent: Option<SendFailed>,
    writer: Option<Writer>,
    search: Search,
    interim: u32,
    head_only: bool,
    connect: bool,
    leaving: bool,
    /// The protocols it would leave HTTP for.
    wanted: Option<HeaderValue>,
    /// On a connection that has been used before.
    kept: Option<Kept>,
}

/// What it takes to send a request again.
struct Kept {
    head: Head,
    /// It has no body.
    bare: bool,
    /// What the connection had sent before.
    begun_at: u64,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(link) = self.link.take()
            && self.unsent.is_none()
        {
            link.borrow_mut().close();
        }
    }
}

impl Future for Exchange {
    type Output = Result<Reply, SendFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(link) = this.link.clone() else { return Poll::Pending };
        if let Some(failed) = this.unsent.take() {
            this.link = None;
            return Poll::Ready(Err(failed));
        }
        if let Some(writer) = &mut this.writer {
            match writer.poll(cx, |cx, out| link.borrow_mut().poll_write(cx, out)) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    this.writer = None;
                    link.borrow_mut().sending = false;
                }
                // Whoever sent the body knows what became of it.
                Poll::Ready(Err(Stop::Body)) => {
                    return Poll::Ready(Err(SendFailed::new(Reason::UpstreamClosed, false)));
                }
                // The endpoint may have answered, and closed, before it had read everything. Reading tells.
                Poll::Ready(Err(Stop::Socket)) => {
                    this.writer = None;
                    link.borrow_mut().deaf = true;
                }
            }
        }
        let answered = {
            let link = &mut *link.borrow_mut();
            match ready!(this.poll_head(cx, link)) {
                Ok(answered) => answered,
                Err(End::Closed { cleanly }) => {
                    let request = this.comes_back(link, cleanly);
                    let failed = link.why(Reason::UpstreamClosed);
                    return Poll::Ready(Err(SendFailed {
                        unprocessed: failed.unprocessed || request.is_some(),
                        request,
                        ..failed
                    }));
                }
                Err(End::Because(reason)) => return Poll::Ready(Err(link.why(reason))),
            }
        };
        let reply = this.take_answer(link, answered);
        Poll::Ready(reply)
    }
}

impl Exchange {
    fn new(link: &Rc<RefCell<Http1>>) -> Self {
        Self {
            link: Some(link.clone()),
            unsent: None,
            writer: None,
            search: Search::default(),
            interim: 0,
            head_only: false,
            connect: false,
            leaving: false,
            wanted: None,
            kept: None,
        }
    }

    /// An endpoint that ends closes what is idle, and a request may be on its way into just that. It is given back where its
    /// connection was kept from before, not a byte of an answer came, and either
    /// * the endpoint's FIN has come and acknowledges nothing of the request: it was sent before any of it arrived; or
    /// * sending it twice does no harm (RFC 9110, 9.2.2). A fresh connection is the last try then, as it keeps nothing.
    fn comes_back(&mut self, link: &Http1, cleanly: bool) -> Option<Box<Request>> {
        let kept = self.kept.take()?;
        if self.interim > 0 || !link.ahead.is_empty() || link.refusal.get().is_some() {
            return None;
        }
        let unseen = cleanly && link.io.as_ref()?.arrived(sockopt::unsent) <= kept.begun_at;
        let harmless = kept.bare && kept.head.method.is_safe();
        (unseen || harmless).then(|| Box::new(Request { head: kept.head, body: Body::empty() }))
    }

    /// Reads up to a head that is an answer.
    fn poll_head(&mut self, cx: &mut Context<'_>, link: &mut Http1) -> Poll<Result<Answered, End>> {
        loop {
            while link.ahead.bytes.starts_with(b"\r\n") {
                link.ahead.skip(2);
                self.search = Search::default();
            }
            let bytes = &link.ahead.bytes[..];
            // What cannot become an answer is not waited for.
            if !bytes.iter().zip(b"HTTP/1.").all(|(a, b)| a == b || (bytes.len() == 1 && *a == b'\r')) {
                return Poll::Ready(Err(End::Because(Reason::UpstreamProtocol)));
            }
            match self.search.find(bytes) {
                Some(end) if end <= link.max_head => {
                    let lines = std::mem::take(&mut self.search).lines();
                    let Ok(answered) = head::response(&link.ahead.take(end), lines, link.max_fields) else {
                        return Poll::Ready(Err(End::Because(Reason::UpstreamProtocol)));
                    };
                    if !answered.status.is_informational() || answered.status == StatusCode::SWITCHING_PROTOCOLS {
                        return Poll::Ready(Ok(answered));
                    }
                    self.interim += 1;
                    if self.interim > INTERIM {
                        return Poll::Ready(Err(End::Because(Reason::UpstreamProtocol)));
                    }
                    continue;
                }
                None if bytes.len() <= link.max_head => {}
                _ => return Poll::Ready(Err(End::Because(Reason::UpstreamProtocol))),
            }
            match ready!(link.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(0) => return Poll::Ready(Err(End::Closed { cleanly: true })),
                // The kernel's word for a reset that came after the end.
                Err(e) => {
                    let cleanly = e.kind() == io::ErrorKind::BrokenPipe;
                    return Poll::Ready(Err(End::Closed { cleanly }));
                }
            }
        }
    }

    fn take_answer(&mut self, link: Rc<RefCell<Http1>>, answered: Answered) -> Result<Reply, SendFailed> {
        let Answered { status, fields, framing, keep } = answered;
        let switched = status == StatusCode::SWITCHING_PROTOCOLS;
        let left = switched || (self.connect && status.is_success());
        // Not to be believed: 101 to a request that asked for nothing, or for something else.
        if left && (!self.leaving || (switched && !is_wanted(fields.get(UPGRADE), self.wanted.as_ref()))) {
            return Err(SendFailed::new(Reason::UpstreamProtocol, false));
        }
        // From here on it is the answer's body that the connection depends on.
        self.link = None;
        let mut http1 = link.borrow_mut();
        let reply = |body, upgrade| Ok(Reply { status, fields: FieldMap(fields), body, upgrade });
        if left {
            let (give, take) = oneshot::channel();
            let read = http1.ahead.take(usize::MAX);
            if let Some(io) = http1.io.take() {
                let _ = give.send(Tunnel { io, read });
            }
            http1.close();
            return reply(Body::empty(), Some(Upgrade(take)));
        }
        let framing = match status {
            _ if self.head_only => Framing::None,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Framing::None,
            _ => framing,
        };
        http1.keep = keep && framing != Framing::UntilClose && !self.leaving;
        let max = u32::try_from(http1.max_head).unwrap_or(u32::MAX);
        http1.decoder = Decoder::new(framing, false, max);
        if http1.decoder.is_done() {
            http1.settle();
            return reply(Body::empty(), None);
        }
        http1.state = State::Answering;
        let turn = http1.turn;
        drop(http1);
        if let Some(writer) = self.writer.take() {
            tokio::task::spawn_local(go_on_sending(writer, Rc::downgrade(&link), turn));
        }
        reply(Body::wire(Wire::Download(Download { link, turn, over: false })), None)
    }
}

/// Sends the rest of a request whose answer has begun, for as long as that lasts.
async fn go_on_sending(mut writer: Writer, link: Weak<RefCell<Http1>>, turn: u32) {
    let sent = poll_fn(|cx| {
        {
            let Some(link) = link.upgrade() else { return Poll::Ready(None) };
            let mut link = link.borrow_mut();
            if link.turn != turn {
                return Poll::Ready(None);
            }
            link.writer = Some(cx.waker().clone());
        }
        let polled = writer.poll(cx, |cx, out| match link.upgrade() {
            Some(link) => link.borrow_mut().poll_write(cx, out),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        });
        polled.map(Some)
    })
    .await;
    let Some(link) = link.upgrade() else { return };
    let mut link = link.borrow_mut();
    if link.turn != turn {
        return;
    }
    match sent {
        Some(Ok(())) => link.sending = false,
        Some(Err(Stop::Socket)) => link.deaf = true,
        // Its client broke off: the endpoint must not take what it got for the whole.
        Some(Err(Stop::Body)) => link.close(),
        None => {}
    }
}

/// Whether a server switches to one of the protocols that the client named.
fn is_wanted(to: Option<&HeaderValue>, wanted: Option<&HeaderValue>) -> bool {
    let (Some(to), Some(wanted)) = (to, wanted) else { return false };
    let mut wanted = wanted.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
    wanted.any(|w| w.eq_ignore_ascii_case(to.as_bytes().trim_ascii()))
}

/// The body of an answer. Dropped before its end, it takes the connection along.
pub struct Download {
    link: Rc<RefCell<Http1>>,
    turn: u32,
    /// It has been read to its end, and the connection may be another's by now.
    over: bool,
}

impl Download {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let link = &mut *self.link.borrow_mut();
        loop {
            if link.turn != self.turn {
                return Poll::Ready(Some(Err(BodyError::Broken)));
            }
            let frame = match link.decoder.decode(&mut link.ahead) {
                Ok(Piece::Data(data)) => Some(Ok(Frame::data(data))),
                Ok(Piece::Trailers(fields)) => Some(Ok(Frame::trailers(fields))),
                Ok(Piece::End) => None,
                Ok(Piece::More) => {
                    match link.poll_fill(cx) {
                        Poll::Pending => {
                            link.reader = Some(cx.waker().clone());
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(1..)) => continue,
                        // A failed write took the socket's error with it: what is left looks like an end.
                        Poll::Ready(Ok(0)) if !link.is_deaf() && link.decoder.end().is_ok() => None,
                        Poll::Ready(_) => Some(Err(BodyError::Broken)),
                    }
                }
                Err(head::Malformed) => Some(Err(BodyError::Broken)),
            };
            match &frame {
                Some(Err(_)) => {
                    // Told a turn later, so that what came before it is on its way: a break right behind a head would be told
                    // in place of the head.
                    link.close();
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                _ if link.decoder.is_done() => {
                    self.over = true;
                    link.settle();
                }
                _ => {}
            }
            return Poll::Ready(frame);
        }
    }

    pub fn is_end_stream(&self) -> bool {
        self.over
    }

    pub fn size_hint(&self) -> SizeHint {
        let link = self.link.borrow();
        match (self.over, link.turn == self.turn) {
            (true, _) => SizeHint::with_exact(0),
            (false, true) => link.decoder.size_hint(),
            (false, false) => SizeHint::default(),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let mut link = self.link.borrow_mut();
        if link.turn == self.turn {
            link.close();
        }
    }
}

impl Http1 {
    fn is_deaf(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.deaf || self.io.as_mut().is_none_or(|io| !matches!(Pin::new(io).poll_flush(&mut cx), Poll::Ready(Ok(()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Version;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use weft_tls::Flusher;

    fn request(method: Method) -> Request {
        let path = "/".parse().unwrap();
        let fields = FieldMap::default();
        let head = Head { method, version: Version::HTTP_11, authority: None, path, asterisk: false, fields };
        Request { head, body: Body::empty() }
    }

    /// What was written is with the kernel.
    async fn flushed() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    /// Sends `method` on a connection that was used once (or never), of which the server makes `end` before or after it has read the
    /// request; whether the request comes back.
    fn after(method: Method, used: bool, reads: bool, end: fn(TcpStream)) -> bool {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let flusher = Flusher::new();
            let runs = flusher.clone();
            tokio::task::spawn_local(async move { runs.run().await });
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            let Sender::Http1(link) = connect(MeshStream::plain(tcp, Vec::new(), &flusher), &Limits::default(), || {})
            else {
                unreachable!()
            };
            let mut bytes = [0; 1024];
            if used {
                let first = Http1::send(&link, request(Method::GET), false);
                flushed().await;
                assert!(server.read(&mut bytes).unwrap() > 0);
                server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                assert_eq!(first.await.ok().unwrap().status, 200);
            }
            // Nothing is awaited in between: the end is there, and nobody here has looked.
            let sent = match reads {
                false => {
                    end(server);
                    Http1::send(&link, request(method), false)
                }
                true => {
                    let sent = Http1::send(&link, request(method), false);
                    flushed().await;
                    assert!(server.read(&mut bytes).unwrap() > 0);
                    end(server);
                    sent
                }
            };
            let Err(failed) = sent.await else { panic!("answered") };
            assert_eq!((failed.reason, failed.unprocessed), (Reason::UpstreamClosed, failed.request.is_some()));
            failed.request.is_some()
        })
    }

    #[test]
    fn what_was_sent_into_an_end_comes_back() {
        let close: fn(TcpStream) = drop;
        let reset: fn(TcpStream) = |server| {
            socket2::SockRef::from(&server).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        };
        // The end was on its way before the request: no app can have read it.
        assert!(after(Method::POST, true, false, close));
        // It was read: only what does no harm is sent again.
        for end in [close, reset] {
            assert!(!after(Method::POST, true, true, end));
            assert!(after(Method::GET, true, true, end));
            assert!(!after(Method::GET, false, true, end), "a fresh connection's end means something");
        }
    }
}
