//! The border under the request path: a head, a body stream, a reply. No codec's type crosses it, so what is under it
//! (`http1`, `http2`) can change without touching a policy.
//!
//! `http` and `http-body` are vocabulary, not a codec.

use super::fields::Fields;
use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use http_body::Frame;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;
use weft_policy::view;
use weft_tls::MeshStream;

/// Header fields as policies see and change them.
#[derive(Debug, Default, Clone)]
pub struct FieldMap(pub Fields);

impl view::Fields for FieldMap {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        for value in self.0.get_all(name) {
            if !visit(value.as_bytes()) {
                return;
            }
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(HeaderValue::as_bytes)
    }
}

impl view::FieldsMut for FieldMap {
    fn set(&mut self, name: &str, value: &[u8]) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
            self.0.insert(name, value);
        }
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
            self.0.append(name, value);
        }
    }

    fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }
}

/// A request's head, its target taken apart.
#[derive(Debug, Clone)]
pub struct Head {
    pub method: Method,
    pub version: Version,
    /// From the target or from Host; checked by `normalise`.
    pub authority: Option<Authority>,
    pub path: PathAndQuery,
    /// The target was `*` (OPTIONS).
    pub asterisk: bool,
    pub fields: FieldMap,
}

#[derive(Debug)]
pub struct Request {
    pub head: Head,
    pub body: Body,
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub fields: FieldMap,
    pub body: Body,
    /// The connection behind the answer, where both sides leave HTTP.
    pub upgrade: Option<Upgrade>,
}

impl Reply {
    pub fn new(status: StatusCode) -> Self {
        Self { status, fields: FieldMap::default(), body: Body::empty(), upgrade: None }
    }
}

pub use super::wire::Wire;

/// What the driver serves.
pub trait Serve {
    fn serve(self: Rc<Self>, request: Request) -> impl Future<Output = Served> + 'static;
}

/// An answer, or the end of the exchange without one.
pub enum Served {
    Reply(Box<Reply>),
    /// Nothing can be said: the connection (HTTP/1) or stream (HTTP/2) is cut.
    Cut,
}

/// A connection that left HTTP: what is on the wire, and what had been read already.
pub struct Tunnel {
    pub io: MeshStream,
    pub read: Bytes,
}

/// The other end of a tunnel, once its own connection has left HTTP.
#[derive(Debug)]
pub struct Upgrade(pub oneshot::Receiver<Tunnel>);

impl Upgrade {
    pub async fn ready(self) -> Option<Tunnel> {
        self.0.await.ok()
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tunnel")
    }
}

/// What can go wrong in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The sender broke off: reset, closed early, or invalid framing.
    #[error("the sender broke off")]
    Broken,
    /// No progress within the limit.
    #[error("no progress within the limit")]
    Idle,
    /// The request's time is over.
    #[error("the request's time is over")]
    Deadline,
    /// A policy or a drain ended it.
    #[error("ended by the proxy")]
    Ended,
}

/// Told what passes through a body; dropped without `end` means that the receiver went away.
pub trait Watch {
    fn data(&mut self, bytes: usize);
    fn trailers(&mut self, fields: &HeaderMap);
    /// The body ended, cleanly or not. Called at most once.
    fn end(&mut self, result: Result<(), BodyError>);
    /// Time limits, polled whenever the body would wait.
    fn poll_limit(&mut self, _cx: &mut Context<'_>) -> Poll<BodyError> {
        Poll::Pending
    }
}

enum Source {
    Empty,
    Full(Option<Bytes>),
    Wire(Wire),
    Replay(super::body::replay::Replay),
}

impl Source {
    /// Nothing follows what was delivered.
    fn is_over(&self) -> bool {
        match self {
            Source::Empty => true,
            Source::Full(bytes) => bytes.is_none(),
            Source::Wire(wire) => http_body::Body::is_end_stream(wire),
            Source::Replay(replay) => replay.is_end_stream(),
        }
    }
}

/// A body stream. One concrete type, so no request pays for boxing what it does not use.
pub struct Body {
    source: Source,
    watch: Option<Box<dyn Watch>>,
    done: bool,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let source = match &self.source {
            Source::Empty => "empty",
            Source::Full(_) => "full",
            Source::Wire(_) => "wire",
            Source::Replay(_) => "replay",
        };
        write!(f, "Body({source})")
    }
}

impl Body {
    const fn of(source: Source) -> Self {
        Self { source, watch: None, done: false }
    }

    pub const fn empty() -> Self {
        Self::of(Source::Empty)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self::of(Source::Full(Some(bytes))) }
    }

    pub fn wire(wire: Wire) -> Self {
        use http_body::Body as _;
        if wire.is_end_stream() { Self::empty() } else { Self::of(Source::Wire(wire)) }
    }

    pub fn replay(replay: super::body::replay::Replay) -> Self {
        Self::of(Source::Replay(replay))
    }

    pub fn watched(mut self, watch: Box<dyn Watch>) -> Self {
        debug_assert!(self.watch.is_none(), "one watch per body");
        self.watch = Some(watch);
        self
    }

    /// Nothing to read: not even trailers.
    pub fn is_empty(&self) -> bool {
        matches!(self.source, Source::Empty)
    }

    /// Bytes left where the framing says so.
    pub fn length(&self) -> Option<u64> {
        http_body::Body::size_hint(self).exact()
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Source::Wire(wire) => wire.poll_frame(cx),
            Source::Replay(replay) => replay.poll_frame(cx),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        let polled = this.poll_source(cx);
        let Some(watch) = &mut this.watch else {
            if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
                this.done = true;
            }
            return polled;
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    watch.data(data.len());
                    // Whoever knows the length does not ask again for the end.
                    if this.source.is_over() {
                        this.done = true;
                        watch.end(Ok(()));
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    watch.trailers(trailers);
                    this.done = true;
                    watch.end(Ok(()));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.done = true;
                watch.end(Ok(()));
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.done = true;
                watch.end(Err(error));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Pending => match watch.poll_limit(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(error) => {
                    this.done = true;
                    // Dropping the source resets what is upstream; the error breaks what is downstream.
                    this.source = Source::Empty;
                    watch.end(Err(error));
                    Poll::Ready(Some(Err(error)))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        if self.done {
            return true;
        }
        // A watch has to see the end, so it is polled for.
        self.watch.is_none() && self.source.is_over()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match &self.source {
            Source::Empty => http_body::SizeHint::with_exact(0),
            Source::Full(bytes) => http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Wire(wire) => http_body::Body::size_hint(wire),
            Source::Replay(replay) => replay.size_hint(),
        }
    }
}
