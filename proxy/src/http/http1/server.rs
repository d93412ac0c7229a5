//! A client's connection: one future, that reads a head, polls the request path in its place, writes the answer, and begins
//! again. The request's body reads the socket itself when it is asked for more, so a client is never read faster than its
//! bytes are wanted.

use super::super::exchange::{Body, BodyError, Reply, Request, Serve, Served, Tunnel, Wire};
use super::super::reject;
use super::body::{Decoder, Piece, Stop, Writer};
use super::head::{self, Asked, Framing, Search, Stay};
use super::{Ahead, Outgoing, take_spare};
use crate::ending::Ticket;
use crate::worker::{Phase, Worker};
use bytes::Bytes;
use http::header::CONNECTION;
use http::{Method, StatusCode, Version};
use http_body::{Frame, SizeHint};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};
use weft_policy::listener::Limits;
use weft_policy::reason::Reason;
use weft_tls::MeshStream;

/// Requests that lay ready and were served in a row before other connections get their turn.
const ROUNDS: u32 = 32;
/// An unread body of this size is read and thrown away for the connection's sake.
const DRAIN: usize = 64 * 1024;

/// With no more than this unsent, the socket accepts a few bytes whole.
const ROOM: usize = 64 * 1024;

/// What a connection shares with the body of its request.
struct Link {
    /// `None` once the connection is over, or has left HTTP.
    io: Option<MeshStream>,
    ahead: Ahead,
    decoder: Decoder,
    /// Which request the decoder is of.
    turn: u32,
    /// The client waits to be asked for its body.
    expects: bool,
    /// Whoever waits for more of the body: it hears what happens to the connection.
    reader: Option<Waker>,
    /// The client has ended its direction.
    ended: bool,
    /// Its bytes cannot be followed any further.
    malformed: bool,
}

impl Link {
    /// Reads once. 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.ahead.poll_fill(cx, io, self.decoder.expects()))?;
        self.ended = n == 0;
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Outgoing) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => out.poll_write(cx, io),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.reader = None;
        loop {
            match self.decoder.decode(&mut self.ahead) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::Trailers(fields)) => return Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::More) => {}
                Err(head::Malformed) => {
                    self.malformed = true;
                    return Poll::Ready(Some(Err(BodyError::Broken)));
                }
            }
            if std::mem::take(&mut self.expects)
                && let Some(io) = &mut self.io
                // Where there is room for all of it; who is not asked sends its body in the end all the same.
                && io.buffered() <= ROOM
            {
                let _ = Pin::new(io).poll_write(cx, b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Some(Err(BodyError::Broken))),
                Poll::Pending => {
                    self.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

/// The body of a request, as long as that is the connection's.
pub struct Upload {
    link: Rc<RefCell<Link>>,
    turn: u32,
}

impl Upload {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut link = self.link.borrow_mut();
        match link.turn == self.turn {
            true => link.poll_body(cx),
            false => Poll::Ready(Some(Err(BodyError::Broken))),
        }
    }

    pub fn is_end_stream(&self) -> bool {
        let link = self.link.borrow();
        link.turn == self.turn && link.decoder.is_done()
    }

    pub fn size_hint(&self) -> SizeHint {
        let link = self.link.borrow();
        if link.turn == self.turn { link.decoder.size_hint() } else { SizeHint::default() }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut link = self.link.borrow_mut();
        if link.turn == self.turn {
            link.reader = None;
        }
    }
}

/// What of a request matters for its answer.
struct Asking {
    version: Version,
    head_only: bool,
    connect: bool,
    leaving: bool,
    keep: bool,
    trailers: bool,
}

/// How a connection ends.
enum End {
    /// All that was to be said was said.
    Over,
    /// The same, and the client may still be sending.
    Unread,
    Refused(Reason),
    /// In the middle of an answer whose end is the connection's: this must not look like one.
    Broken,
    Gone,
}

struct Connection<'a> {
    link: Rc<RefCell<Link>>,
    limits: &'a Limits,
    worker: &'a Worker,
    ticket: Ticket,
    search: Search,
    /// A head of HTTP/1 has come.
    spoke: bool,
    /// The client does not speak HTTP/1: our words would mean nothing to it.
    mute: bool,
    timer: Timer,
    /// Bytes of the answer were written since somebody last asked.
    wrote: bool,
    patience: Option<Pin<Box<Sleep>>>,
    rounds: u32,
}

/// Serves a connection until it ends, or leaves HTTP.
pub async fn serve_http1<S: Serve + 'static>(io: MeshStream, limits: &Limits, worker: &Worker, service: S) {
    let service = Rc::new(service);
    let mut connection = Connection {
        link: Rc::new(RefCell::new(Link {
            io: Some(io),
            ahead: Ahead::default(),
            decoder: Decoder::done(),
            turn: 0,
            expects: false,
            reader: None,
            ended: false,
            malformed: false,
        })),
        limits,
        worker,
        ticket: worker.ending.register(),
        search: Search::default(),
        spoke: false,
        mute: false,
        timer: Timer::default(),
        wrote: false,
        patience: None,
        rounds: 0,
    };
    let end = loop {
        let (request, asking) = match poll_fn(|cx| connection.poll_next(cx)).await {
            Ok(next) => next,
            Err(end) => break end,
        };
        let served = {
            let mut serving = pin!(service.clone().serve(request));
            poll_fn(|cx| match serving.as_mut().poll(cx) {
                Poll::Ready(served) => Poll::Ready(Some(served)),
                Poll::Pending => connection.poll_absent(cx).map(|()| None),
            })
            .await
        };
        let mut reply = match served {
            Some(Served::Reply(reply)) => reply,
            // What could not be followed is told, where nothing was said yet.
            Some(Served::Cut) if connection.link.borrow().malformed => break End::Refused(Reason::Malformed),
            Some(Served::Cut) => break End::Over,
            None => break End::Gone,
        };
        let upgrade = reply.upgrade.take().filter(|_| asking.leaving);
        let (mut writer, until_close, stays) = connection.answer(*reply, &asking, upgrade.is_some());
        match poll_fn(|cx| connection.poll_answer(cx, &mut writer)).await {
            Ok(()) => {}
            Err(Stop::Body) if until_close => break End::Broken,
            Err(Stop::Body) => break End::Over,
            Err(Stop::Socket) => break End::Gone,
        }
        drop(writer);
        let whole = connection.finish();
        if let Some(upgrade) = upgrade {
            if whole && let Some(far) = upgrade.ready().await {
                connection.tunnel(far).await;
                return;
            }
            break End::Over;
        }
        match (whole, stays) {
            (true, true) => {}
            (true, false) => break End::Over,
            (false, _) => break End::Unread,
        }
    };
    connection.end(end).await;
}

impl Connection<'_> {
    /// Reads the next head; `Over` where the client wants no more, or may not have more.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Request, Asking), End>> {
        let phase = self.ticket.poll(cx);
        // Who has much to ask at once does not keep others waiting.
        if self.rounds >= ROUNDS {
            self.rounds = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some(next) = self.take_head() {
                self.rounds += 1;
                return Poll::Ready(next.map_err(End::Refused));
            }
            let mut link = self.link.borrow_mut();
            let fresh = link.ahead.is_empty();
            match link.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(End::Over)),
                // A head's time runs from its first byte, not from the last.
                Poll::Ready(Ok(_)) if fresh => self.timer.due = None,
                Poll::Ready(Ok(_)) => {}
                // Read first, so that a request whose bytes are here already is still served.
                Poll::Pending if fresh && phase >= Phase::Ending => return Poll::Ready(Err(End::Over)),
                Poll::Pending => {
                    self.rounds = 0;
                    let limit = if fresh { self.limits.idle } else { self.limits.header_timeout };
                    return self.timer.poll(cx, limit).map(|()| match fresh {
                        true => Err(End::Over),
                        false => Err(End::Refused(Reason::ClientTimeout)),
                    });
                }
            }
        }
    }

    /// The head that lies ready, if there is one.
    fn take_head(&mut self) -> Option<Result<(Request, Asking), Reason>> {
        let mut link = self.link.borrow_mut();
        // Empty lines before a request line are allowed.
        while link.ahead.bytes.starts_with(b"\r\n") {
            link.ahead.skip(2);
            self.search = Search::default();
        }
        if link.ahead.is_empty() {
            return None;
        }
        let bytes = &link.ahead.bytes[..];
        let max = self.limits.header_bytes as usize;
        let judged = match self.search.find(bytes) {
            Some(end) if end > max => Err(Reason::HeadersTooLarge),
            Some(end) => Ok(Some(end)),
            None if bytes.len() > max => Err(Reason::HeadersTooLarge),
            None => head::quick_look(bytes, self.limits).map(|()| None),
        };
        let asked = match judged {
            Ok(None) => return None,
            Ok(Some(end)) => {
                let lines = std::mem::take(&mut self.search).lines();
                let head = link.ahead.take(end);
                let asked = head::request(&head, lines, self.limits);
                self.mute = asked.is_err() && !self.spoke && head::is_foreign(&head);
                asked
            }
            Err(reason) => Err(reason),
        };
        let Asked { head, framing, keep, expects, leaving, trailers } = match asked {
            Ok(asked) => asked,
            Err(reason) => return Some(Err(reason)),
        };
        self.spoke = true;
        self.timer.due = None;
        self.wrote = false;
        let asking = Asking {
            version: head.version,
            head_only: head.method == Method::HEAD,
            connect: head.method == Method::CONNECT,
            leaving,
            keep,
            trailers,
        };
        link.decoder = Decoder::new(framing, true, self.limits.header_bytes);
        link.expects = expects && !link.decoder.is_done();
        let turn = link.turn;
        drop(link);
        let body = match framing {
            Framing::None => Body::empty(),
            _ => Body::wire(Wire::Upload(Upload { link: self.link.clone(), turn })),
        };
        Some(Ok((Request { head, body }, asking)))
    }

    /// Ready when nobody is there any more to be answered.
    ///
    /// A client that owes nothing more may close its direction and still wait for its answer. So its end alone tells nothing; but
    /// it is how most clients that gave up look, so that after a while without a byte for it, it is taken for one of those.
    fn poll_absent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        /// Without a byte of an answer.
        const PATIENCE: Duration = Duration::from_secs(15);
        {
            let link = &mut *self.link.borrow_mut();
            // Another task that waits for the body hears it; one waker is all a socket remembers.
            if link.reader.as_ref().is_some_and(|reader| !reader.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            // What was read already says that there was somebody.
            if !link.ended && link.ahead.is_empty() {
                if ready!(link.poll_fill(cx)).is_err() {
                    return Poll::Ready(());
                }
                if let Some(reader) = link.reader.take() {
                    reader.wake();
                }
            }
            if !link.ended {
                return Poll::Pending;
            }
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        while patience.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.wrote) {
                return Poll::Ready(());
            }
            patience.as_mut().reset(Instant::now() + PATIENCE);
        }
        Poll::Pending
    }

    /// An answer as it is written; whether its end is the connection's, and whether that stays for another request.
    fn answer(&self, mut reply: Reply, asking: &Asking, leaves: bool) -> (Writer, bool, bool) {
        let old = asking.version == Version::HTTP_10;
        let fields = &mut reply.fields.0;
        let announced = head::announced(fields);
        let status = reply.status;
        let (framing, length) = match reply.body.length() {
            // Its fields are those of the body that it does not have.
            _ if asking.head_only || status == StatusCode::NOT_MODIFIED => (Framing::None, announced),
            _ if status.is_informational() || status == StatusCode::NO_CONTENT => (Framing::None, None),
            _ if asking.connect && leaves => (Framing::None, None),
            Some(length) => (Framing::Length(length), Some(length)),
            None => match announced {
                Some(length) => (Framing::Length(length), Some(length)),
                None if old => (Framing::UntilClose, None),
                None => (Framing::Chunked, None),
            },
        };
        let until_close = framing == Framing::UntilClose;
        let closes = fields.get(CONNECTION).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"));
        // What came behind a refused upgrade cannot be trusted to be HTTP. And who is told now that this proxy goes takes its
        // next request elsewhere: closing without a word would race with it.
        let goes = asking.leaving || self.worker.ending.phase() != Phase::Running;
        let stays = asking.keep && !closes && !until_close && !goes;
        let stay = match (leaves, stays) {
            (true, _) => Stay::Leave,
            (false, false) => Stay::Close,
            (false, true) if old => Stay::KeepAlive,
            (false, true) => Stay::Keep,
        };
        let mut out = Outgoing::new(take_spare());
        let chunked = framing == Framing::Chunked;
        head::write_response(&mut out.front, asking.version, status, fields, length, chunked, stay);
        (Writer::new(out, reply.body, framing, asking.trailers), until_close, stays)
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>, writer: &mut Writer) -> Poll<Result<(), Stop>> {
        let (link, wrote) = (&self.link, &mut self.wrote);
        let polled = writer.poll(cx, |cx, out| {
            let before = out.written;
            let written = link.borrow_mut().poll_write(cx, out);
            *wrote |= written.is_ready() || out.written > before;
            written
        });
        match polled {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => self.poll_absent(cx).map(|()| Err(Stop::Socket)),
        }
    }

    /// The answer was written. Whether the request's body was read to its end, and the connection is at a next head.
    fn finish(&mut self) -> bool {
        let link = &mut *self.link.borrow_mut();
        link.turn = link.turn.wrapping_add(1);
        self.patience = None;
        if let Some(waker) = link.reader.take() {
            waker.wake();
        }
        let mut left = DRAIN;
        let mut cx = Context::from_waker(Waker::noop());
        let mut looked = false;
        while !link.decoder.is_done() {
            match link.decoder.decode(&mut link.ahead) {
                Ok(Piece::Data(data)) if data.len() < left => left -= data.len(),
                Ok(Piece::Data(_)) | Err(_) => return false,
                Ok(Piece::Trailers(_) | Piece::End) => {}
                // What has come already is cheap to read; waiting for more is not.
                Ok(Piece::More) if looked => return false,
                Ok(Piece::More) => {
                    looked = true;
                    if !matches!(link.poll_fill(&mut cx), Poll::Ready(Ok(1..))) {
                        return false;
                    }
                }
            }
        }
        true
    }

    async fn tunnel(self, far: Tunnel) {
        let (io, read) = {
            let link = &mut *self.link.borrow_mut();
            (link.io.take(), link.ahead.take(usize::MAX))
        };
        if let Some(io) = io {
            crate::accept::stream::relay_tunnel(self.worker, Tunnel { io, read }, far, &self.ticket).await;
        }
    }

    async fn end(self, end: End) {
        let io = {
            let link = &mut *self.link.borrow_mut();
            link.turn = link.turn.wrapping_add(1);
            link.ahead = Ahead::default();
            if let Some(waker) = link.reader.take() {
                waker.wake();
            }
            link.io.take()
        };
        let Some(mut io) = io else { return };
        match end {
            End::Gone => return,
            End::Broken => return io.reset_on_close(),
            End::Refused(_) if self.mute => {}
            End::Refused(reason) => {
                reject::write_raw(&mut io, reason).await;
                reject::linger(&mut io).await;
            }
            End::Unread => reject::linger(&mut io).await,
            End::Over => {}
        }
        let _ = io.shutdown().await;
    }
}

/// One timer for all that a client can owe between two requests. It is set when something is first waited for, and a deadline
/// that moves on does not move it: it fires early, and looks again.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    due: Option<Instant>,
}

impl Timer {
    /// Ready when what is waited for is overdue. Always polled from the same task.
    fn poll(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        if limit.is_zero() {
            return Poll::Pending;
        }
        let due = *self.due.get_or_insert_with(|| Instant::now() + limit);
        let sleep = match &mut self.sleep {
            // Set already, and not later than it has to be: it remembers the task.
            Some(sleep) if sleep.deadline() <= due && !sleep.is_elapsed() => return Poll::Pending,
            Some(sleep) => sleep,
            None => self.sleep.insert(Box::pin(tokio::time::sleep_until(due))),
        };
        if sleep.is_elapsed() && Instant::now() >= due {
            return Poll::Ready(());
        }
        sleep.as_mut().reset(due);
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
        Poll::Pending
    }
}
