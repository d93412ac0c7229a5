//! Clients: a raw HTTP/1.1 connection that sends any bytes and reads answers strictly, and HTTP/2 by the h2 crate.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

pub const TIMEOUT: Duration = Duration::from_secs(10);

/// A blocking byte stream, plain or TLS.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

impl Stream {
    pub fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self::Plain(stream))
    }

    /// Connects and finishes the handshake; under TLS 1.3 a refused client certificate shows at the first read.
    pub fn connect_tls(addr: SocketAddr, config: &Arc<ClientConfig>, sni: &str) -> io::Result<Self> {
        let Self::Plain(stream) = Self::connect(addr)? else { unreachable!() };
        Self::tls_over(stream, config, sni)
    }

    pub fn tls_over(mut stream: TcpStream, config: &Arc<ClientConfig>, sni: &str) -> io::Result<Self> {
        let name = ServerName::try_from(sni.to_string()).expect("a server name");
        let mut conn = rustls::ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        while conn.is_handshaking() {
            conn.complete_io(&mut stream)?;
        }
        Ok(Self::Tls(Box::new(rustls::StreamOwned::new(conn, stream))))
    }

    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(s) => s,
            Self::Tls(s) => &s.sock,
        }
    }

    /// What ALPN settled on.
    pub fn alpn(&self) -> Option<Vec<u8>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(s) => s.conn.alpn_protocol().map(<[u8]>::to_vec),
        }
    }

    pub fn set_timeout(&self, limit: Duration) {
        self.tcp().set_read_timeout(Some(limit)).expect("timeout");
    }

    /// Ends our direction.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Self::Tls(s) = self {
            s.conn.send_close_notify();
            s.flush()?;
        }
        self.tcp().shutdown(std::net::Shutdown::Write)
    }

    /// Closes with RST.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Reads up to the end (clean or reset) or the timeout; the second value tells which.
    pub fn read_all(&mut self) -> (Vec<u8>, End) {
        let mut all = Vec::new();
        let mut chunk = [0u8; 16 * 1024];
        loop {
            match self.read(&mut chunk) {
                Ok(0) => return (all, End::Closed),
                Ok(n) => all.extend_from_slice(&chunk[..n]),
                Err(e) if is_timeout(&e) => return (all, End::Timeout),
                Err(_) => return (all, End::Reset),
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    Reset,
    Timeout,
}

pub fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(s) => s.read(buf),
            Self::Tls(s) => s.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(s) => s.write(buf),
            Self::Tls(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(s) => s.flush(),
            Self::Tls(s) => s.flush(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub reason: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The 1xx answers before it.
    pub interim: Vec<u16>,
    pub version: String,
    /// The body had no length and ended with the connection.
    pub until_close: bool,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn trailer(&self, name: &str) -> Option<&str> {
        find(&self.trailers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

#[derive(Debug)]
pub enum ReadError {
    /// The connection ended before the first byte of an answer.
    NoAnswer,
    /// It ended within an answer: what was there.
    Short(Box<Response>),
    Malformed(String),
    Io(io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer => write!(f, "closed without an answer"),
            Self::Short(r) => write!(f, "closed within the answer (status {}, {} body bytes)", r.status, r.body.len()),
            Self::Malformed(what) => write!(f, "malformed: {what}"),
            Self::Io(e) => write!(f, "{e}"),
        }
    }
}

impl ReadError {
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Io(e) if is_timeout(e))
    }
}

/// Reads byte by byte where lines end, so nothing of the next answer is swallowed: the raw client needs no buffer.
struct Lines<'a, R: Read>(&'a mut R);

impl<R: Read> Lines<'_, R> {
    fn byte(&mut self) -> io::Result<Option<u8>> {
        let mut b = [0];
        loop {
            match self.0.read(&mut b) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(b[0])),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// A line that ends in CRLF, without it; None if the stream ended before its first byte.
    fn line(&mut self) -> Result<Option<String>, ReadError> {
        let mut line = Vec::new();
        loop {
            match self.byte() {
                Ok(Some(b'\n')) => {
                    if line.pop() != Some(b'\r') {
                        return Err(ReadError::Malformed("a bare LF".into()));
                    }
                    if line.contains(&b'\r') {
                        return Err(ReadError::Malformed("a bare CR".into()));
                    }
                    return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
                }
                Ok(Some(b)) => line.push(b),
                Ok(None) if line.is_empty() => return Ok(None),
                Ok(None) => return Err(ReadError::Malformed(format!("ends within {:?}", lossy(&line)))),
                Err(e) if line.is_empty() => return Err(ReadError::Io(e)),
                Err(e) => {
                    return Err(ReadError::Io(io::Error::new(e.kind(), format!("{e} within {:?}", lossy(&line)))));
                }
            }
            if line.len() > 1 << 20 {
                return Err(ReadError::Malformed("a line over 1 MiB".into()));
            }
        }
    }

    fn fields(&mut self) -> Result<Option<Vec<(String, String)>>, ReadError> {
        let mut fields = Vec::new();
        loop {
            let Some(line) = self.line()? else { return Ok(None) };
            if line.is_empty() {
                return Ok(Some(fields));
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| ReadError::Malformed(format!("no colon in {line:?}")))?;
            if name.is_empty() || name.contains([' ', '\t']) {
                return Err(ReadError::Malformed(format!("name {name:?}")));
            }
            fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_string()));
        }
    }

    /// Reads `n` bytes into `body`; false if the stream ended before.
    fn exact(&mut self, body: &mut Vec<u8>, n: usize) -> Result<bool, ReadError> {
        let want = body.len() + n;
        let mut chunk = [0u8; 64 * 1024];
        while body.len() < want {
            let room = (want - body.len()).min(chunk.len());
            match self.0.read(&mut chunk[..room]) {
                Ok(0) => return Ok(false),
                Ok(n) => body.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(e) => return Err(ReadError::Io(e)),
            }
        }
        Ok(true)
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads one answer, strictly: every fault in its framing is an error, an early end is never a shorter body.
pub fn read_response(stream: &mut impl Read, head_only: bool) -> Result<Response, ReadError> {
    let mut lines = Lines(stream);
    let mut interim = Vec::new();
    loop {
        let Some(line) = (match lines.line() {
            Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => return Err(ReadError::NoAnswer),
            other => other?,
        }) else {
            return Err(ReadError::NoAnswer);
        };
        let mut parts = line.splitn(3, ' ');
        let version = parts.next().unwrap_or_default().to_string();
        let status: u16 = match (version.as_str(), parts.next().map(str::parse)) {
            ("HTTP/1.1" | "HTTP/1.0", Some(Ok(status))) => status,
            _ => return Err(ReadError::Malformed(format!("status line {line:?}"))),
        };
        let reason = parts.next().unwrap_or_default().to_string();
        let Some(headers) = lines.fields()? else {
            return Err(ReadError::Short(Box::new(Response { status, reason, version, ..Response::default() })));
        };
        if (100..200).contains(&status) && status != 101 {
            interim.push(status);
            continue;
        }
        let mut response = Response { status, reason, headers, interim, version, ..Response::default() };
        if head_only || status == 101 || status == 204 || status == 304 {
            return Ok(response);
        }
        let lengths: Vec<&str> =
            response.headers.iter().filter(|(n, _)| n == "content-length").map(|(_, v)| v.as_str()).collect();
        let coding = response.header("transfer-encoding").map(str::to_ascii_lowercase);
        match (coding.as_deref(), lengths.as_slice()) {
            (Some("chunked"), []) => return read_chunked(&mut lines, response),
            (Some(other), _) => return Err(ReadError::Malformed(format!("transfer-encoding {other}, {lengths:?}"))),
            (None, [length]) => {
                let n = length.parse().map_err(|_| ReadError::Malformed(format!("content-length {length}")))?;
                let whole = lines.exact(&mut response.body, n)?;
                return if whole { Ok(response) } else { Err(ReadError::Short(Box::new(response))) };
            }
            (None, []) => {
                response.until_close = true;
                while let Some(b) = lines.byte().map_err(ReadError::Io)? {
                    response.body.push(b);
                }
                return Ok(response);
            }
            (None, many) => return Err(ReadError::Malformed(format!("several lengths {many:?}"))),
        }
    }
}

fn read_chunked<R: Read>(lines: &mut Lines<'_, R>, mut response: Response) -> Result<Response, ReadError> {
    loop {
        let line = match lines.line() {
            Ok(Some(line)) => line,
            Ok(None) => return Err(ReadError::Short(Box::new(response))),
            Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ReadError::Short(Box::new(response)));
            }
            Err(e) => return Err(e),
        };
        let size =
            usize::from_str_radix(&line, 16).map_err(|_| ReadError::Malformed(format!("chunk size {line:?}")))?;
        if size == 0 {
            return match lines.fields()? {
                Some(trailers) => {
                    response.trailers = trailers;
                    Ok(response)
                }
                None => Err(ReadError::Short(Box::new(response))),
            };
        }
        if !lines.exact(&mut response.body, size)? {
            return Err(ReadError::Short(Box::new(response)));
        }
        match lines.line()? {
            Some(end) if end.is_empty() => {}
            Some(other) => return Err(ReadError::Malformed(format!("after a chunk: {other:?}"))),
            None => return Err(ReadError::Short(Box::new(response))),
        }
    }
}

/// One HTTP/1.1 connection.
pub struct Http1 {
    pub stream: Stream,
    host: String,
}

/// A plain connection; panics if nobody listens.
#[track_caller]
pub fn http1(addr: SocketAddr) -> Http1 {
    Http1::new(Stream::connect(addr).unwrap_or_else(|e| panic!("connect {addr}: {e}")), &addr.to_string())
}

impl Http1 {
    pub fn new(stream: Stream, host: &str) -> Self {
        Self { stream, host: host.to_string() }
    }

    pub fn tls(addr: SocketAddr, config: &Arc<ClientConfig>, sni: &str) -> io::Result<Self> {
        let mut stream = Stream::connect_tls(addr, config, sni)?;
        if stream.alpn().is_some_and(|token| token.starts_with(b"weft/")) {
            // Six texts about a workload that says nothing of itself.
            stream.write_all(&[0, 6, 0, 0, 0, 0, 0, 0])?;
        }
        Ok(Self::new(stream, sni))
    }

    /// The Host of `get` and `request`.
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.to_string();
        self
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    pub fn read(&mut self) -> Result<Response, ReadError> {
        read_response(&mut self.stream, false)
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, &[], b"").unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// Sends a well-formed request (Host and, with a body or a POST/PUT/PATCH, Content-Length are added) and reads its answer.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, ReadError> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
        if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            bytes.extend_from_slice(format!("host: {}\r\n", self.host).as_bytes());
        }
        for (name, value) in headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        self.send(bytes).map_err(ReadError::Io)?;
        read_response(&mut self.stream, method == "HEAD")
    }
}

// --- HTTP/2 ---

/// An HTTP/2 connection by prior knowledge or over TLS; its driver runs as a task, so use it inside a runtime.
#[derive(Clone)]
pub struct Http2 {
    send: h2::client::SendRequest<Bytes>,
    scheme: &'static str,
    authority: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<http::HeaderMap>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// From the trailers, or from the head of an answer that has only that.
    pub fn grpc_status(&self) -> Option<&str> {
        let from = |map: &http::HeaderMap| map.get("grpc-status").map(|v| v.to_str().unwrap_or("?").to_string());
        let found = self.trailers.as_ref().and_then(from).or_else(|| from(&self.headers))?;
        // Codes are few; a static text keeps the signature simple.
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"]
            .into_iter()
            .find(|c| *c == found)
            .or(Some("?"))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON: {e}"))
    }
}

impl Http2 {
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = tokio::time::timeout(TIMEOUT, tokio::net::TcpStream::connect(addr)).await??;
        stream.set_nodelay(true)?;
        Self::over(stream, "http", &addr.to_string()).await.map_err(io::Error::other)
    }

    pub async fn connect_tls(addr: SocketAddr, config: &Arc<ClientConfig>, sni: &str) -> io::Result<Self> {
        let stream = tokio::net::TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(sni.to_string()).expect("a server name");
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
        Self::over(stream, "https", sni).await.map_err(io::Error::other)
    }

    pub async fn over<T>(stream: T, scheme: &'static str, authority: &str) -> Result<Self, h2::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 22)
            .enable_push(false)
            .handshake(stream)
            .await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { send, scheme, authority: authority.to_string() })
    }

    pub fn authority(mut self, authority: &str) -> Self {
        self.authority = authority.to_string();
        self
    }

    pub fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> http::Request<()> {
        let uri = format!("{}://{}{path}", self.scheme, self.authority);
        let mut builder = http::Request::builder().method(method).uri(uri).version(http::Version::HTTP_2);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a request")
    }

    /// Waits until a stream may be opened and sends the head; the body is the caller's.
    pub async fn open(
        &self,
        head: http::Request<()>,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let mut send = self.send.clone().ready().await?;
        send.send_request(head, end)
    }

    /// True while the peer still takes new streams.
    pub async fn usable(&self) -> bool {
        self.send.clone().ready().await.is_ok()
    }

    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, h2::Error> {
        let (response, mut send) = self.open(self.head(method, path, headers), body.is_empty()).await?;
        if !body.is_empty() {
            send_all(&mut send, Bytes::copy_from_slice(body), true).await?;
        }
        collect(response).await
    }
}

/// Sends as the window opens, so the peer's flow control is felt.
pub async fn send_all(send: &mut h2::SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(Ok(n)) => {
                let part = data.split_to(n.min(data.len()));
                send.send_data(part, end && data.is_empty())?;
            }
            Some(Err(e)) => return Err(e),
            None => return Ok(()),
        }
    }
    Ok(())
}

pub async fn collect(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let response = response.await?;
    let (parts, mut recv) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        let _ = recv.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let trailers = recv.trailers().await?;
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
}
