//! A scriptable application: HTTP/1.1 and HTTP/2 (by prior knowledge, or ALPN under TLS) on one port.
//!
//! What it does with a request is decided by a function of the head (`Seen`), so a script is ordinary code with its
//! counters; the usual misbehaviours are `Action`s. It runs on a thread and runtime of its own, counts what it saw,
//! and `shutdown` finishes what is in flight, as a good application does on SIGTERM.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::{mpsc, watch};

use crate::io::{HyperIo, Sock, Spawn};
use crate::rng::Rng;

/// The head of a request, as the application saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// 1 for the first request to this backend.
    pub n: u64,
    /// 1 for the first time this `x-request-id` (without one: this path) came.
    pub attempt: u64,
    pub connection: u64,
    pub method: String,
    /// The target as it stood on the wire: path and query; for CONNECT and absolute form more.
    pub target: String,
    pub version: http::Version,
    pub headers: HeaderMap,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub fn is_grpc(&self) -> bool {
        self.header("content-type").is_some_and(|t| t.starts_with("application/grpc"))
    }
}

pub type Answerer = Box<dyn FnOnce(&Seen, &Bytes) -> Reply + Send>;

pub enum Action {
    /// Reads the whole request, then answers.
    Reply(Reply),
    /// Answers at once, leaving the request's body unread.
    Early(Reply),
    /// Reads the whole request, then lets the function answer.
    WithBody(Answerer),
    /// 200 and JSON: what came (method, target, headers, nonce, body length and hash, connection, attempt, backend).
    Echo,
    /// Sends the request's body back as it arrives, and `grpc-status: 0` behind it if it is gRPC.
    EchoStream,
    /// Closes the whole connection with RST, before any head.
    ResetConnection,
    /// Closes the connection with FIN, before any head.
    CloseConnection,
    /// HTTP/2: RST_STREAM with this code; HTTP/1.1: as `CloseConnection`.
    ResetStream(u32),
    /// These bytes past the protocol, then close.
    Garbage(Bytes),
    /// Never answers.
    Hang,
}

/// An answer and how it is given.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub chunks: Vec<Bytes>,
    pub trailers: Vec<(String, String)>,
    pub delay_head: Duration,
    /// Before each chunk.
    pub delay_chunk: Duration,
    /// Goes on with the last chunk for ever.
    pub forever: bool,
    /// Breaks off after so many bytes of body: HTTP/1.1 closes (RST if `reset`), HTTP/2 resets the stream.
    pub cut_after: Option<usize>,
    pub reset: bool,
    /// Sends chunked (no length), although the body is known.
    pub chunked: bool,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn text(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, chunks: vec![body.into()], ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.into(), value.into()));
        self.chunked = true;
        self
    }

    /// An answer of gRPC with one message.
    pub fn grpc(status: u32, message: &[u8]) -> Self {
        Self { status: 200, chunks: vec![grpc_frame(message)], ..Self::default() }
            .header("content-type", "application/grpc")
            .trailer("grpc-status", &status.to_string())
    }

    pub fn delayed(mut self, delay: Duration) -> Self {
        self.delay_head = delay;
        self
    }
}

pub fn grpc_frame(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(message);
    frame.into()
}

/// FNV-1a: tells that a body came through whole.
pub fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

pub type Handler = Arc<dyn Fn(&Seen) -> Action + Send + Sync>;

/// Echo; gRPC streams are echoed as they come.
pub fn echo() -> Handler {
    Arc::new(|seen| if seen.is_grpc() { Action::EchoStream } else { Action::Echo })
}

/// Always this answer.
pub fn always(reply: Reply) -> Handler {
    Arc::new(move |_| Action::Reply(reply.clone()))
}

/// The first `n` requests get `reply`, the rest are echoed.
pub fn fail_first(n: u64, reply: Reply) -> Handler {
    Arc::new(move |seen| if seen.n <= n { Action::Reply(reply.clone()) } else { Action::Echo })
}

/// Each request gets `reply` with probability `p`, by a seeded generator; the rest are echoed.
pub fn fail_with(p: f64, seed: u64, reply: Reply) -> Handler {
    let rng = Mutex::new(Rng::new(seed));
    Arc::new(move |_| if rng.lock().expect("rng").unit() < p { Action::Reply(reply.clone()) } else { Action::Echo })
}

#[derive(Default)]
pub struct Counts {
    pub requests: AtomicU64,
    /// Answers (head and body) that were handed over whole.
    pub finished: AtomicU64,
    pub connections: AtomicU64,
    pub closed: AtomicU64,
    pub in_flight: AtomicU64,
    pub max_in_flight: AtomicU64,
    pub max_open: AtomicU64,
}

struct Shared {
    name: String,
    counts: Counts,
    handler: Mutex<Handler>,
    attempts: Mutex<HashMap<String, u64>>,
    seen: Mutex<Vec<Seen>>,
    keep: usize,
}

/// How a backend listens.
pub struct Options {
    pub addr: SocketAddr,
    pub name: String,
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub max_streams: Option<u32>,
    /// How many heads are recorded at most.
    pub keep: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addr: ([127, 0, 0, 1], 0).into(),
            name: "backend".into(),
            tls: None,
            max_streams: Some(10_000),
            keep: 20_000,
        }
    }
}

pub struct Backend {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Backend {
    /// On 127.0.0.1 and a free port.
    pub fn start(handler: Handler) -> Self {
        Self::with(Options::default(), handler)
    }

    /// The echo under a name, which its answers carry as `backend`.
    pub fn named(name: &str) -> Self {
        Self::with(Options { name: name.into(), ..Options::default() }, echo())
    }

    #[track_caller]
    pub fn with(options: Options, handler: Handler) -> Self {
        let listener = listen(options.addr);
        let addr = listener.local_addr().expect("address");
        let shared = Arc::new(Shared {
            name: options.name.clone(),
            counts: Counts::default(),
            handler: Mutex::new(handler),
            attempts: Mutex::default(),
            seen: Mutex::default(),
            keep: options.keep,
        });
        let (stop, stopped) = watch::channel(false);
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(options.name.clone())
            .spawn(move || crate::wait::block_on(serve(listener, for_thread, options, stopped)))
            .expect("thread");
        Self { addr, shared, stop, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    pub fn requests(&self) -> u64 {
        self.shared.counts.requests.load(Ordering::SeqCst)
    }

    /// Connections ever accepted.
    pub fn connections(&self) -> u64 {
        self.shared.counts.connections.load(Ordering::SeqCst)
    }

    pub fn open_connections(&self) -> u64 {
        self.connections() - self.shared.counts.closed.load(Ordering::SeqCst)
    }

    pub fn max_in_flight(&self) -> u64 {
        self.shared.counts.max_in_flight.load(Ordering::SeqCst)
    }

    /// Requests that carried this `x-request-id` or, without one, had this path.
    pub fn attempts(&self, key: &str) -> u64 {
        self.shared.attempts.lock().expect("attempts").get(key).copied().unwrap_or(0)
    }

    /// The recorded heads (the first `Options::keep`).
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("seen").clone()
    }

    #[track_caller]
    pub fn last(&self) -> Seen {
        self.shared.seen.lock().expect("seen").last().cloned().expect("the backend saw no request")
    }

    /// Another script from the next request on.
    pub fn set(&self, handler: Handler) {
        *self.shared.handler.lock().expect("handler") = handler;
    }

    /// Forgets counts and heads (open connections stay counted).
    pub fn clear(&self) {
        let c = &self.shared.counts;
        c.requests.store(0, Ordering::SeqCst);
        c.finished.store(0, Ordering::SeqCst);
        c.max_in_flight.store(c.in_flight.load(Ordering::SeqCst), Ordering::SeqCst);
        self.shared.attempts.lock().expect("attempts").clear();
        self.shared.seen.lock().expect("seen").clear();
    }

    /// Takes no more, says so on every connection, finishes what is in flight (at most 20 s), and ends.
    pub fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Backend {
    /// Without `shutdown`: like a crash, sockets close where they are.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let (never, _) = watch::channel(true);
            // A dropped sender ends the thread's runtime at once.
            drop(std::mem::replace(&mut self.stop, never));
            let _ = thread.join();
        }
    }
}

/// A listener with a queue long enough for a test's bursts, non-blocking.
#[track_caller]
pub fn listen(addr: SocketAddr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None).expect("socket");
    socket.set_reuse_address(true).expect("reuse");
    socket.bind(&addr.into()).unwrap_or_else(|e| panic!("bind {addr}: {e}"));
    socket.listen(4096).expect("listen");
    socket.set_nonblocking(true).expect("non-blocking");
    socket.into()
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, options: Options, mut stop: watch::Receiver<bool>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
    let tls = options.tls.map(tokio_rustls::TlsAcceptor::from);
    let mut tasks = tokio::task::JoinSet::new();
    let graceful = loop {
        tokio::select! {
            changed = stop.changed() => break changed.is_ok(),
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let (shared, tls, stop) = (Arc::clone(&shared), tls.clone(), stop.clone());
                tasks.spawn(connection(stream, shared, tls, options.max_streams, stop));
            }
            Some(_) = tasks.join_next() => {}
        }
    };
    if graceful {
        // Those that were already in the queue are ours as well.
        while let Ok(Ok((stream, _))) = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await {
            tasks.spawn(connection(stream, Arc::clone(&shared), tls.clone(), options.max_streams, stop.clone()));
        }
        drop(listener);
        let _ =
            tokio::time::timeout(Duration::from_secs(20), async { while tasks.join_next().await.is_some() {} }).await;
    }
}

struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counts.closed.fetch_add(1, Ordering::SeqCst);
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    shared: Arc<Shared>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    max_streams: Option<u32>,
    stop: watch::Receiver<bool>,
) {
    let counts = &shared.counts;
    let id = counts.connections.fetch_add(1, Ordering::SeqCst) + 1;
    counts.max_open.fetch_max(id - counts.closed.load(Ordering::SeqCst), Ordering::SeqCst);
    let _open = Open(Arc::clone(&shared));
    let _ = stream.set_nodelay(true);
    let sock = Sock(Arc::new(stream));
    match tls {
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(sock.clone()).await {
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                run(stream, sock, h2, id, shared, max_streams, stop).await;
            }
        }
        None => {
            if let Some(h2) = is_h2(&sock).await {
                run(sock.clone(), sock, h2, id, shared, max_streams, stop).await;
            }
        }
    }
}

/// Whether the client begins with HTTP/2's preface; None if it left before that showed.
async fn is_h2(sock: &Sock) -> Option<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0";
    let mut head = [0u8; PREFACE.len()];
    loop {
        let n = sock.0.peek(&mut head).await.ok().filter(|n| *n > 0)?;
        if head[..n] != PREFACE[..n] {
            return Some(false);
        }
        if n == PREFACE.len() {
            return Some(true);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn run<T>(
    stream: T,
    sock: Sock,
    h2: bool,
    id: u64,
    shared: Arc<Shared>,
    max_streams: Option<u32>,
    mut stop: watch::Receiver<bool>,
) where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| answer(request, id, sock.clone(), Arc::clone(&shared)));
    // The two connection types have the same methods but no common trait.
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            let mut asked = false;
            loop {
                tokio::select! {
                    biased;
                    changed = stop.changed(), if !asked => match changed {
                        Ok(()) => { asked = true; connection.as_mut().graceful_shutdown(); }
                        Err(_) => return,
                    },
                    _ = connection.as_mut() => return,
                }
            }
        }};
    }
    if *stop.borrow() {
        // Accepted while stopping: served once.
        stop.mark_changed();
    }
    if h2 {
        drive!(
            hyper::server::conn::http2::Builder::new(Spawn)
                .max_concurrent_streams(max_streams)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(1 << 22)
                .max_header_list_size(1 << 20)
                .enable_connect_protocol()
                .serve_connection(HyperIo(stream), service)
        )
    } else {
        drive!(hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(HyperIo(stream), service))
    }
}

struct InFlight(Arc<Shared>);

impl InFlight {
    fn new(shared: &Arc<Shared>) -> Self {
        let now = shared.counts.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        shared.counts.max_in_flight.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.counts.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn answer(
    request: http::Request<Incoming>,
    connection: u64,
    sock: Sock,
    shared: Arc<Shared>,
) -> Result<http::Response<Answer>, BoxError> {
    let in_flight = InFlight::new(&shared);
    let (parts, body) = request.into_parts();
    let n = shared.counts.requests.fetch_add(1, Ordering::SeqCst) + 1;
    let target = match parts.version {
        http::Version::HTTP_2 => parts.uri.path_and_query().map_or_else(|| parts.uri.to_string(), ToString::to_string),
        _ => parts.uri.to_string(),
    };
    let mut seen = Seen {
        n,
        attempt: 0,
        connection,
        method: parts.method.to_string(),
        target,
        version: parts.version,
        headers: parts.headers,
    };
    if let Some(authority) = parts.uri.authority()
        && !seen.headers.contains_key("host")
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        // HTTP/2's authority under the name a script looks for.
        seen.headers.insert("host", value);
    }
    let key = seen.header("x-request-id").unwrap_or(seen.path()).to_string();
    seen.attempt = {
        let mut attempts = shared.attempts.lock().expect("attempts");
        // Bounded: a soak with unique ids must not look like a leak.
        if attempts.len() > 200_000 {
            attempts.clear();
        }
        let count = attempts.entry(key).or_insert(0);
        *count += 1;
        *count
    };
    {
        let mut all = shared.seen.lock().expect("seen");
        if all.len() < shared.keep {
            all.push(seen.clone());
        }
    }
    let handler = Arc::clone(&*shared.handler.lock().expect("handler"));
    let action = handler(&seen);
    let reply = match action {
        Action::Reply(reply) => {
            body.collect().await?;
            reply
        }
        Action::Early(reply) => {
            let (sender, receiver) = mpsc::channel(1);
            // The body is held, unread, until the answer is gone.
            return respond(reply, sock, in_flight, sender, receiver, Some(body)).await;
        }
        Action::WithBody(f) => {
            let body = body.collect().await?.to_bytes();
            f(&seen, &body)
        }
        Action::Echo => {
            let body = body.collect().await?.to_bytes();
            echo_reply(&seen, &body, &shared.name)
        }
        Action::EchoStream => return echo_stream(&seen, body, &shared.name, in_flight),
        Action::ResetConnection => {
            sock.reset_on_close();
            // Closing for reading too makes hyper drop the socket at once, also under HTTP/2; with linger 0 that is RST.
            return Err(abort(&sock, &seen).await);
        }
        Action::CloseConnection => return Err(abort(&sock, &seen).await),
        Action::ResetStream(code) => return Err(h2::Error::from(h2::Reason::from(code)).into()),
        Action::Garbage(bytes) => {
            sock.write_raw(&bytes).await;
            return Err(abort(&sock, &seen).await);
        }
        Action::Hang => {
            std::future::pending::<()>().await;
            unreachable!()
        }
    };
    let (sender, receiver) = mpsc::channel(1);
    respond(reply, sock, in_flight, sender, receiver, None).await
}

/// Makes the connection end without an answer.
async fn abort(sock: &Sock, seen: &Seen) -> BoxError {
    if seen.version == http::Version::HTTP_2 {
        sock.shutdown();
    }
    io::Error::other("scripted").into()
}

fn echo_reply(seen: &Seen, body: &Bytes, backend: &str) -> Reply {
    let mut headers = serde_json::Map::new();
    for name in seen.headers.keys() {
        let values: Vec<String> =
            seen.headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect();
        headers.insert(name.to_string(), values.join(", ").into());
    }
    let nonce = seen.header("x-weft-nonce").unwrap_or_default();
    let json = serde_json::json!({
        "backend": backend, "method": seen.method, "target": seen.target, "headers": headers, "nonce": nonce,
        "version": format!("{:?}", seen.version), "connection": seen.connection, "attempt": seen.attempt, "n": seen.n,
        "body_len": body.len(), "body_fnv": fnv(body),
        "body": String::from_utf8_lossy(&body[..body.len().min(4096)]),
    });
    Reply::text(200, json.to_string()).header("content-type", "application/json").header("x-weft-backend", backend)
}

fn head(status: u16, headers: &[(String, String)]) -> http::response::Builder {
    let mut builder = http::Response::builder().status(StatusCode::from_u16(status).expect("status"));
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    builder
}

fn trailer_map(trailers: &[(String, String)]) -> HeaderMap {
    let field =
        |(n, v): &(String, String)| (n.parse::<HeaderName>().expect("name"), HeaderValue::from_str(v).expect("value"));
    trailers.iter().map(field).collect()
}

async fn respond(
    reply: Reply,
    sock: Sock,
    in_flight: InFlight,
    sender: mpsc::Sender<io::Result<Frame<Bytes>>>,
    receiver: mpsc::Receiver<io::Result<Frame<Bytes>>>,
    unread: Option<Incoming>,
) -> Result<http::Response<Answer>, BoxError> {
    if !reply.delay_head.is_zero() {
        tokio::time::sleep(reply.delay_head).await;
    }
    let known = !reply.chunked && !reply.forever && !matches!(reply.status, 204 | 304);
    let length: usize = reply.chunks.iter().map(Bytes::len).sum();
    let mut builder = head(reply.status, &reply.headers);
    let has_length = reply.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length"));
    if known && !has_length {
        builder = builder.header("content-length", length);
    }
    if !reply.trailers.is_empty() {
        // HTTP/1.1 sends trailers only if they are announced.
        let names: Vec<&str> = reply.trailers.iter().map(|(n, _)| n.as_str()).collect();
        builder = builder.header("trailer", names.join(", "));
    }
    let empty = length == 0 && reply.trailers.is_empty() && reply.cut_after.is_none() && !reply.forever;
    let plain = reply.trailers.is_empty() && reply.cut_after.is_none() && !reply.forever && unread.is_none();
    if empty {
        drop(sender);
        in_flight.0.counts.finished.fetch_add(1, Ordering::SeqCst);
    } else if let ([chunk], true, true) = (&reply.chunks[..], plain, reply.delay_chunk.is_zero()) {
        // Along with its head, so that a small answer is one write.
        let _ = sender.try_send(Ok(Frame::data(chunk.clone())));
        in_flight.0.counts.finished.fetch_add(1, Ordering::SeqCst);
    } else {
        tokio::spawn(async move {
            let _unread = unread;
            let mut left = reply.cut_after;
            let mut chunks = reply.chunks.iter().cloned().collect::<std::collections::VecDeque<_>>();
            while let Some(chunk) = chunks.pop_front() {
                if !reply.delay_chunk.is_zero() {
                    tokio::time::sleep(reply.delay_chunk).await;
                }
                if reply.forever && chunks.is_empty() {
                    chunks.push_back(chunk.clone());
                }
                let part = left.map_or(chunk.clone(), |n| chunk.slice(..n.min(chunk.len())));
                if let Some(n) = &mut left {
                    *n -= part.len();
                }
                if sender.send(Ok(Frame::data(part))).await.is_err() {
                    return;
                }
                if left == Some(0) {
                    break;
                }
            }
            if reply.cut_after.is_some() {
                if reply.reset {
                    sock.reset_on_close();
                }
                let _ = sender.send(Err(io::Error::other("scripted"))).await;
                return;
            }
            if !reply.trailers.is_empty() {
                let _ = sender.send(Ok(Frame::trailers(trailer_map(&reply.trailers)))).await;
            }
            in_flight.0.counts.finished.fetch_add(1, Ordering::SeqCst);
        });
    }
    Ok(builder.body(Answer(receiver))?)
}

fn echo_stream(
    seen: &Seen,
    mut body: Incoming,
    backend: &str,
    in_flight: InFlight,
) -> Result<http::Response<Answer>, BoxError> {
    let (sender, receiver) = mpsc::channel(1);
    let grpc = seen.is_grpc();
    let content = seen.header("content-type").unwrap_or("application/octet-stream");
    let builder = http::Response::builder().header("content-type", content).header("x-weft-backend", backend);
    let builder = match seen.header("x-weft-nonce") {
        Some(nonce) => builder.header("x-weft-nonce", nonce),
        None => builder,
    };
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                let _ = sender.send(Err(io::Error::other("the request broke off"))).await;
                return;
            };
            if let Ok(data) = frame.into_data()
                && sender.send(Ok(Frame::data(data))).await.is_err()
            {
                return;
            }
        }
        if grpc {
            let trailers = trailer_map(&[("grpc-status".into(), "0".into())]);
            let _ = sender.send(Ok(Frame::trailers(trailers))).await;
        }
        in_flight.0.counts.finished.fetch_add(1, Ordering::SeqCst);
    });
    Ok(builder.body(Answer(receiver))?)
}

/// The answer's body: what its task sends.
struct Answer(mpsc::Receiver<io::Result<Frame<Bytes>>>);

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Http2, ReadError, http1};
    use crate::wait::{block_on, until};

    #[test]
    fn echoes_on_both_protocols_and_counts() {
        let backend = Backend::named("b1");
        let mut client = http1(backend.addr());
        let answer = client.request("POST", "/x?y=1", &[("x-weft-nonce", "n1")], b"hello").expect("answer").json();
        assert_eq!((answer["nonce"].as_str(), answer["body_len"].as_u64()), (Some("n1"), Some(5)));
        assert_eq!(client.get("/y").json()["backend"], "b1");
        block_on(async {
            let client = Http2::connect(backend.addr()).await.expect("h2c");
            let message = grpc_frame(b"m");
            let answer = client.request("POST", "/grpc", &[("content-type", "application/grpc")], &message);
            let answer = answer.await.expect("answer");
            assert_eq!((answer.grpc_status(), &answer.body[..]), (Some("0"), &grpc_frame(b"m")[..]));
        });
        assert_eq!((backend.requests(), backend.connections()), (3, 2));
        assert_eq!(backend.attempts("/y"), 1);
        drop(client);
        until("connections closed", Duration::from_secs(5), || backend.open_connections() == 0);
        backend.shutdown();
    }

    #[test]
    fn misbehaves_as_told() {
        let backend = Backend::start(Arc::new(|seen| match seen.path() {
            "/reset" => Action::ResetConnection,
            "/close" => Action::CloseConnection,
            "/garbage" => Action::Garbage(Bytes::from_static(b"NONSENSE\r\n\r\n")),
            "/cut" => Action::Reply(Reply { cut_after: Some(3), ..Reply::text(200, "abcdef") }),
            "/trailers" => Action::Reply(Reply::text(200, "abc").trailer("x-t", "1")),
            "/early" => Action::Early(Reply::text(413, "no")),
            _ => Action::Reply(Reply::new(503)),
        }));
        let one = |path: &str| http1(backend.addr()).request("GET", path, &[("te", "trailers")], b"");
        assert!(matches!(one("/reset"), Err(ReadError::NoAnswer)));
        assert!(matches!(one("/close"), Err(ReadError::NoAnswer)));
        assert!(matches!(one("/garbage"), Err(ReadError::Malformed(_))));
        match one("/cut") {
            Err(ReadError::Short(r)) => assert_eq!((r.status, &r.body[..]), (200, &b"abc"[..])),
            other => panic!("{other:?}"),
        }
        let answer = one("/trailers").expect("answer");
        assert_eq!((answer.text().as_str(), answer.trailer("x-t")), ("abc", Some("1")));
        assert_eq!(one("/early").expect("answer").status, 413);
        assert_eq!(one("/").expect("answer").status, 503);
        block_on(async {
            let client = Http2::connect(backend.addr()).await.expect("h2c");
            backend.set(Arc::new(|_| Action::ResetStream(7)));
            let error = client.request("GET", "/", &[], b"").await.expect_err("reset");
            assert_eq!(error.reason(), Some(h2::Reason::REFUSED_STREAM));
            backend.set(Arc::new(|_| Action::ResetConnection));
            assert!(client.request("GET", "/", &[], b"").await.is_err());
            assert!(!client.usable().await);
        });
    }

    #[test]
    fn shutdown_finishes_what_is_in_flight() {
        let backend = Backend::start(always(Reply::text(200, "done").delayed(Duration::from_millis(300))));
        let mut client = http1(backend.addr());
        client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").expect("send");
        until("in flight", Duration::from_secs(5), || backend.requests() == 1);
        backend.shutdown();
        assert_eq!(client.read().expect("answer").text(), "done");
    }
}
