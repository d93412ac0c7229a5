//! Waiting for what tells protocols apart, without holding anything up.
//!
//! Bytes are read (not peeked at) into a prefix that travels on with the connection. While a client is silent its server
//! may be the one that speaks first, so after a moment the upstream is dialled and both are listened to; whoever speaks
//! decides. An upstream that was dialled in vain is dropped.

use super::detect::{self, Sniffed, Spoke};
use crate::upstream::tcp::Connected;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use weft_policy::listener::{Limits, Protocol};
use weft_policy::reason::Reason;
use weft_tls::{Flusher, Hello, MeshStream, Peek};

use crate::worker::Phase;

/// A silent client of unknown protocol: its server gets a connection after this.
const DIAL_AFTER: Duration = Duration::from_millis(50);
/// As above, where the server is known to speak first but mesh clients come to the same port.
const DIAL_SOON: Duration = Duration::from_millis(10);
const READ: usize = 4096;
/// More than a TLS hello or a request line ever needs.
const MAX_PREFIX: usize = 68 * 1024;

/// A connection whose first bytes are being looked at.
pub struct Incoming {
    from: From,
    prefix: Vec<u8>,
}

enum From {
    Tcp(TcpStream),
    Mesh(MeshStream),
}

impl Incoming {
    pub fn tcp(tcp: TcpStream) -> Self {
        Self { from: From::Tcp(tcp), prefix: Vec::new() }
    }

    pub fn mesh(stream: MeshStream) -> Self {
        Self { from: From::Mesh(stream), prefix: Vec::new() }
    }

    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The raw socket and what was read from it; `None` for what came out of TLS.
    pub fn into_tcp(self) -> Option<(TcpStream, Vec<u8>)> {
        match self.from {
            From::Tcp(tcp) => Some((tcp, self.prefix)),
            From::Mesh(_) => None,
        }
    }

    pub fn into_stream(self, flusher: &Flusher) -> MeshStream {
        match self.from {
            From::Tcp(tcp) => MeshStream::plain(tcp, self.prefix, flusher),
            From::Mesh(mut stream) => {
                stream.unread(&self.prefix);
                stream
            }
        }
    }

    pub fn reset_on_close(&self) {
        match &self.from {
            From::Tcp(tcp) => crate::sys::sockopt::reset_on_close(tcp),
            From::Mesh(stream) => stream.reset_on_close(),
        }
    }

    /// Reads what there is; 0 at the end. Holds no buffer while there is nothing.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0u8; READ];
        let mut buf = ReadBuf::new(&mut space);
        ready!(match &mut self.from {
            From::Tcp(tcp) => Pin::new(tcp).poll_read(cx, &mut buf),
            From::Mesh(stream) => Pin::new(stream).poll_read(cx, &mut buf),
        })?;
        self.prefix.extend_from_slice(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    }
}

/// What the connection's place says about it before its bytes do.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub declared: Protocol,
    pub learned: Option<Spoke>,
    /// Mesh TLS may come in (inbound, not DISABLE).
    pub mesh: bool,
    /// Nothing but TLS may come in.
    pub strict: bool,
    pub limits: Limits,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Http1,
    Http2,
    Tls(Hello),
    /// `None`: the client spoke first.
    Opaque,
    ServerFirst,
    /// Plaintext where only TLS may come in.
    Plaintext,
    /// The client said nothing and left, or was too slow. Nothing is owed to it.
    Gone,
    /// The upstream closed or refused, and the client had not spoken.
    UpstreamGone,
}

impl Place {
    /// What the bytes so far say; `None`: not enough of them.
    fn judge(&self, bytes: &[u8]) -> Option<Verdict> {
        let first = *bytes.first()?;
        if first == 22 && (self.mesh || matches!(self.declared, Protocol::Detect | Protocol::Tls)) {
            match Hello::parse(bytes) {
                Peek::NeedMore => return None,
                Peek::Hello(hello) => return Some(Verdict::Tls(hello)),
                Peek::NotTls => {}
            }
        }
        if self.strict {
            return Some(Verdict::Plaintext);
        }
        match self.declared {
            Protocol::Http => match bytes.len().min(detect::PREFACE.len()) {
                n if bytes.get(..n) != detect::PREFACE.get(..n) => Some(Verdict::Http1),
                n if n == detect::PREFACE.len() => Some(Verdict::Http2),
                _ => None,
            },
            Protocol::Http1 => Some(Verdict::Http1),
            Protocol::Http2 => Some(Verdict::Http2),
            Protocol::Opaque | Protocol::Tls => Some(Verdict::Opaque),
            Protocol::Detect => match detect::sniff(bytes) {
                Sniffed::NeedMore => None,
                Sniffed::Http1 => Some(Verdict::Http1),
                Sniffed::H2Preface => Some(Verdict::Http2),
                // What looks like TLS but has no hello is somebody's own protocol.
                Sniffed::Tls | Sniffed::Opaque => Some(Verdict::Opaque),
            },
        }
    }

    /// Bytes came but too few to judge, and no more do.
    fn give_up(&self, bytes: &[u8]) -> Verdict {
        let hello = bytes.first() == Some(&22);
        match self.learned {
            _ if self.strict || (hello && self.mesh) => Verdict::Gone,
            _ if self.declared == Protocol::Http => Verdict::Http1,
            // Handing a request's first bytes on unseen would lead it around the policies: HTTP answers 408 instead.
            Some(Spoke::Http) if !hello => Verdict::Http1,
            _ => Verdict::Opaque,
        }
    }

    fn patience(&self, bytes: &[u8]) -> Duration {
        if bytes.first() == Some(&22) { self.limits.handshake_timeout } else { self.limits.detect_timeout }
    }

    fn may_dial(&self) -> bool {
        !self.strict && matches!(self.declared, Protocol::Detect | Protocol::Opaque)
    }

    fn dial_after(&self) -> Duration {
        match (self.declared, self.learned) {
            (Protocol::Opaque, _) | (_, Some(Spoke::ServerFirst)) if self.mesh => DIAL_SOON,
            (Protocol::Opaque, _) | (_, Some(Spoke::ServerFirst)) => Duration::ZERO,
            // A pooled HTTP connection that waits for its first request needs no company.
            (_, Some(Spoke::Http)) => self.limits.detect_timeout,
            _ => DIAL_AFTER.min(self.limits.detect_timeout),
        }
    }

    /// How long a silent client without an upstream is kept.
    fn silence(&self) -> Duration {
        if self.strict { self.limits.handshake_timeout } else { self.limits.idle }
    }
}

/// An upstream dialled before it is certain that it is needed.
pub struct Ahead<F> {
    state: State<F>,
}

enum State<F> {
    Idle(Option<F>),
    Dialling(Pin<Box<F>>),
    Connected(Box<Connected>),
    Failed(Reason),
}

impl<F: Future<Output = Result<Connected, Reason>>> Ahead<F> {
    /// Dials when first asked.
    pub fn new(dial: F) -> Self {
        Self { state: State::Idle(Some(dial)) }
    }

    fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<Result<&mut Connected, Reason>> {
        if let State::Idle(dial) = &mut self.state {
            self.state = dial.take().map_or(State::Failed(Reason::Internal), |dial| State::Dialling(Box::pin(dial)));
        }
        if let State::Dialling(dial) = &mut self.state {
            self.state = match ready!(dial.as_mut().poll(cx)) {
                Ok(connected) => State::Connected(Box::new(connected)),
                Err(reason) => State::Failed(reason),
            };
        }
        Poll::Ready(match &mut self.state {
            State::Connected(connected) => Ok(connected),
            State::Failed(reason) => Err(*reason),
            State::Idle(_) | State::Dialling(_) => Err(Reason::Internal),
        })
    }

    /// Waits until the upstream has said something (`true`) or closed (`false`). What it said stays in its stream.
    fn poll_spoke(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Reason>> {
        let connected = ready!(self.poll_connected(cx))?;
        let mut space = [0u8; READ];
        let mut buf = ReadBuf::new(&mut space);
        if ready!(Pin::new(&mut connected.io).poll_read(cx, &mut buf)).is_err() {
            return Poll::Ready(Ok(false));
        }
        connected.io.unread(buf.filled());
        Poll::Ready(Ok(!buf.filled().is_empty()))
    }

    pub async fn connected(mut self) -> Result<Connected, Reason> {
        poll_fn(|cx| self.poll_connected(cx).map(|r| r.map(drop))).await?;
        match self.state {
            State::Connected(connected) => Ok(*connected),
            State::Failed(reason) => Err(reason),
            State::Idle(_) | State::Dialling(_) => Err(Reason::Internal),
        }
    }
}

enum Event {
    Client(io::Result<usize>),
    Upstream(Result<bool, Reason>),
    Timer,
    Drain,
}

/// Listens until it is clear what this connection is. `late` is told once if that took longer than the limit for it.
pub async fn classify<F>(
    incoming: &mut Incoming,
    place: &Place,
    ahead: &mut Ahead<F>,
    phase: &mut watch::Receiver<Phase>,
    late: impl Fn(),
) -> Verdict
where
    F: Future<Output = Result<Connected, Reason>>,
{
    let started = Instant::now();
    let mut first_byte: Option<Instant> = None;
    let mut dialled = false;
    let mut upstream_failed = false;
    let mut late = Some(late);
    let detect_until = started + place.limits.detect_timeout;
    loop {
        if let Some(verdict) = place.judge(&incoming.prefix) {
            return verdict;
        }
        if incoming.prefix.len() > MAX_PREFIX {
            return place.give_up(&incoming.prefix);
        }
        let now = Instant::now();
        if now >= detect_until
            && let Some(late) = late.take()
        {
            late();
        }
        let timer = match first_byte {
            Some(at) => {
                let until = at + place.patience(&incoming.prefix);
                if now >= until {
                    return place.give_up(&incoming.prefix);
                }
                Some(until)
            }
            None if place.may_dial() && !dialled => {
                let at = started + place.dial_after();
                if now >= at {
                    dialled = true;
                    continue;
                }
                Some(at)
            }
            // Nothing can be dialled for this client, and it is not known to speak HTTP later.
            None if upstream_failed && place.learned != Some(Spoke::Http) => {
                if now >= detect_until {
                    return Verdict::UpstreamGone;
                }
                Some(detect_until)
            }
            None if dialled && !upstream_failed => late.as_ref().map(|_| detect_until),
            None => {
                let silence = place.silence();
                let until = started + silence;
                if !silence.is_zero() && now >= until {
                    return Verdict::Gone;
                }
                (!silence.is_zero()).then_some(until)
            }
        };
        let sleep = timer.map(tokio::time::sleep_until);
        let listen = dialled && !upstream_failed && first_byte.is_none();
        let event = tokio::select! {
            biased;
            read = poll_fn(|cx| incoming.poll_more(cx)) => Event::Client(read),
            spoke = poll_fn(|cx| ahead.poll_spoke(cx)), if listen => Event::Upstream(spoke),
            _ = maybe(sleep) => Event::Timer,
            _ = phase.wait_for(|p| *p >= Phase::Ending), if first_byte.is_none() => Event::Drain,
        };
        match event {
            Event::Client(Ok(0)) if incoming.prefix.is_empty() => {
                // Where the server speaks first, a client with nothing to say may still want to hear it.
                let listens = place.declared == Protocol::Opaque || place.learned == Some(Spoke::ServerFirst);
                return if listens && !place.strict { Verdict::Opaque } else { Verdict::Gone };
            }
            // It will send no more: what there is goes on as it is.
            Event::Client(Ok(0)) => return place.give_up(&incoming.prefix),
            Event::Client(Ok(_)) => first_byte = first_byte.or_else(|| Some(Instant::now())),
            Event::Client(Err(_)) => return Verdict::Gone,
            Event::Upstream(Ok(true)) => return Verdict::ServerFirst,
            Event::Upstream(Ok(false)) => return Verdict::UpstreamGone,
            Event::Upstream(Err(_)) if place.declared == Protocol::Opaque => return Verdict::UpstreamGone,
            Event::Upstream(Err(_)) => upstream_failed = true,
            Event::Timer => {}
            Event::Drain => return Verdict::Gone,
        }
    }
}

async fn maybe(sleep: Option<tokio::time::Sleep>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}
