//! A strict reader in front of the HTTP/1 codec.
//!
//! The codec resolves ambiguous framing by itself (it prefers chunked, folds repeated fields, tolerates a bare LF) and its
//! caller cannot see that it did. A proxy must not pass such a message on: the next parser may resolve it the other way. So
//! every byte is followed here just far enough to know where heads begin and end, and a head that two parsers could read
//! differently is never handed to the codec. What was complete before it is still answered; then the connection ends with
//! the status in `Control::verdict`.
//!
//! It never changes a byte, and copies only heads that arrive in pieces.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use weft_policy::listener::Limits;
use weft_policy::reason::Reason;

/// What the connection's driver and the gate tell each other.
#[derive(Debug, Default)]
pub struct Control {
    /// Why reading stopped, for the driver to answer.
    pub verdict: Cell<Option<Reason>>,
    /// Its words would mean nothing to this client: it does not speak HTTP/1.
    pub mute: Cell<bool>,
    /// A request asked to leave HTTP and its answer is not known yet: nothing more is read until it is.
    undecided: Cell<bool>,
    tunnel: Cell<bool>,
    /// A request is being answered, and the codec does not look at the connection meanwhile.
    busy: Cell<bool>,
    /// Bytes went to the client since somebody last asked.
    wrote: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Control {
    /// A request was handed to the request path.
    pub fn asked(&self) {
        self.busy.set(true);
    }

    pub fn is_busy(&self) -> bool {
        self.busy.get()
    }

    pub fn take_wrote(&self) -> bool {
        self.wrote.take()
    }

    /// Every answer is told here; only those to CONNECT and Upgrade matter.
    pub fn answered(&self, leaves_http: bool) {
        if self.undecided.replace(false) {
            self.tunnel.set(leaves_http);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// Size digits so far.
    Size {
        digits: u8,
        value: u64,
    },
    SizeLf {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// Trailer lines; `line` bytes seen in the current one, `total` in all.
    Trailer {
        line: u32,
        total: u32,
        cr: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    Body { left: u64 },
    Chunked(Chunk),
    Tunnel,
}

/// The framing of one head.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    /// CONNECT or Upgrade.
    Leave {
        length: u64,
        chunked: bool,
    },
}

pub struct Gate<T> {
    io: T,
    control: Rc<Control>,
    limits: Limits,
    at: At,
    /// The beginning of a head whose end has not arrived.
    partial: Vec<u8>,
    timer: Option<Pin<Box<Sleep>>>,
    /// A head of HTTP/1 has come.
    spoke: bool,
    /// When what is being waited for is overdue.
    due: Option<Instant>,
}

impl<T> Gate<T> {
    pub fn new(io: T, control: Rc<Control>, limits: Limits) -> Self {
        Self { io, control, limits, at: At::Head, partial: Vec::new(), timer: None, spoke: false, due: None }
    }

    pub fn into_inner(self) -> T {
        self.io
    }

    /// Follows `bytes`; `Err(n, reason)` when only the first `n` may be handed on.
    fn follow(&mut self, bytes: &[u8]) -> Result<(), (usize, Reason)> {
        let mut at = 0;
        while at < bytes.len() {
            match self.at {
                At::Tunnel => return Ok(()),
                At::Body { left } => {
                    let take = left.min((bytes.len() - at) as u64);
                    at += take as usize;
                    self.at = if left == take { At::Head } else { At::Body { left: left - take } };
                }
                At::Chunked(chunk) => match follow_chunked(chunk, &bytes[at..], &self.limits) {
                    Ok((used, Some(next))) => {
                        at += used;
                        self.at = At::Chunked(next);
                    }
                    Ok((used, None)) => {
                        at += used;
                        self.at = At::Head;
                    }
                    // What came before the fault was handed on or is now; the codec stops at its own reading of it.
                    Err(reason) => return Err((at, reason)),
                },
                At::Head => {
                    let used = self.follow_head(&bytes[at..]).map_err(|reason| (at, reason))?;
                    at += used;
                    if self.control.undecided.get() && at < bytes.len() && self.at == At::Head {
                        // Bytes behind an undecided upgrade belong to whatever is decided; the codec keeps them in its
                        // buffer and gives them back with the connection. If HTTP goes on, they are not ours to trust.
                        self.at = At::Tunnel;
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes used of `bytes` by the head at its start, complete or not.
    fn follow_head(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
        self.control.mute.set(!self.spoke && self.partial.is_empty() && is_foreign(bytes));
        let max = self.limits.header_bytes as usize;
        let (head_end, framing) = if self.partial.is_empty() {
            // Empty lines before a request line are allowed.
            let skip = 2 * bytes.chunks_exact(2).take_while(|two| two == b"\r\n").count();
            if skip == bytes.len() {
                return Ok(skip);
            }
            match find_end(&bytes[skip..], 0) {
                Some(end) if end > max => return Err(Reason::HeadersTooLarge),
                Some(end) => (skip + end, judge_head(&bytes[skip..skip + end], &self.limits)?),
                None if bytes.len() - skip > max => return Err(Reason::HeadersTooLarge),
                None => {
                    quick_look(&bytes[skip..], &self.limits)?;
                    self.partial.extend_from_slice(&bytes[skip..]);
                    return Ok(bytes.len());
                }
            }
        } else {
            let before = self.partial.len();
            self.partial.extend_from_slice(bytes);
            match find_end(&self.partial, before.saturating_sub(3)) {
                Some(end) if end > max => return Err(Reason::HeadersTooLarge),
                Some(end) => {
                    let framing = judge_head(&self.partial[..end], &self.limits)?;
                    self.partial = Vec::new();
                    (end - before, framing)
                }
                None if self.partial.len() > max => return Err(Reason::HeadersTooLarge),
                None => {
                    quick_look(&self.partial, &self.limits)?;
                    return Ok(bytes.len());
                }
            }
        };
        self.spoke = true;
        self.at = match framing {
            Framing::None | Framing::Length(0) => At::Head,
            Framing::Length(left) => At::Body { left },
            Framing::Chunked => At::Chunked(Chunk::Size { digits: 0, value: 0 }),
            Framing::Leave { length, chunked } => {
                self.control.undecided.set(true);
                match (chunked, length) {
                    (true, _) => At::Chunked(Chunk::Size { digits: 0, value: 0 }),
                    (false, 0) => At::Head,
                    (false, left) => At::Body { left },
                }
            }
        };
        Ok(head_end)
    }

    /// Ready when the client has owed something for too long.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let limit = match self.at {
            At::Head if !self.partial.is_empty() => self.limits.header_timeout,
            At::Head => self.limits.idle,
            // Bodies have limits of their own, where somebody waits for them.
            _ => Duration::ZERO,
        };
        if limit.is_zero() {
            self.due = None;
            return Poll::Pending;
        }
        let due = match self.due {
            Some(due) => due,
            None => now + limit,
        };
        self.due = Some(due);
        if now >= due {
            return Poll::Ready(());
        }
        let timer = match &mut self.timer {
            // A later deadline does not need the timer moved: it fires early, and looks again.
            Some(timer) if timer.deadline() <= due && !timer.is_elapsed() => timer,
            Some(timer) => {
                timer.as_mut().reset(due);
                timer
            }
            None => self.timer.insert(Box::pin(tokio::time::sleep_until(due))),
        };
        ready!(timer.as_mut().poll(cx));
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gate<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.control.verdict.get().is_some() {
            return Poll::Ready(Ok(()));
        }
        if this.control.undecided.get() && this.at == At::Head {
            *this.control.waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if this.control.tunnel.get() {
            this.at = At::Tunnel;
        }
        if this.at == At::Head {
            // The codec wants the next request: the last one is answered.
            this.control.busy.set(false);
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Pending => match this.poll_due(cx) {
                Poll::Ready(()) if this.partial.is_empty() => Poll::Ready(Ok(())),
                Poll::Ready(()) => {
                    this.control.verdict.set(Some(Reason::ClientTimeout));
                    Poll::Ready(Ok(()))
                }
                Poll::Pending => Poll::Pending,
            },
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Ready(Ok(())) => {
                let fresh_partial = this.partial.is_empty();
                let fresh = &buf.filled()[before..];
                let followed = this.follow(fresh);
                if let Err((keep, reason)) = followed {
                    this.control.verdict.set(Some(reason));
                    buf.set_filled(before + keep);
                }
                // The head's time runs from its first byte, not from the last.
                if !(this.at == At::Head && !this.partial.is_empty() && !fresh_partial) {
                    this.due = None;
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gate<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.control.wrote.set(true);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.control.wrote.set(true);
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// The driver does that itself, when it has the socket back and has said what is left to say.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where the head ends, counting its empty line. `from` is where to start looking.
fn find_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = memchr::memchr(b'\n', &bytes[at..]) {
        let lf = at + found;
        match bytes.get(lf + 1) {
            Some(b'\n') => return Some(lf + 2),
            Some(b'\r') if bytes.get(lf + 2) == Some(&b'\n') => return Some(lf + 3),
            _ => at = lf + 1,
        }
    }
    None
}

/// Whether a first line cannot have been meant as a request of HTTP/1: three words of which the last names no version of it.
/// (A broken preface of HTTP/2 looks like that.)
fn is_foreign(bytes: &[u8]) -> bool {
    let Some(end) = memchr::memchr(b'\n', bytes) else { return false };
    let mut words = bytes[..end].trim_ascii_end().split(|b| *b == b' ');
    matches!((words.next(), words.next(), words.next(), words.next()), (_, _, Some(third), None) if !third.starts_with(b"HTTP/1"))
}

/// What can be refused before the head is complete, so that a client that never completes it learns early.
fn quick_look(partial: &[u8], limits: &Limits) -> Result<(), Reason> {
    let line = memchr::memchr(b'\n', partial).unwrap_or(partial.len());
    if line > limits.path_bytes as usize + 64 { Err(Reason::UriTooLong) } else { Ok(()) }
}

/// Reads a complete head just for its framing.
fn judge_head(head: &[u8], limits: &Limits) -> Result<Framing, Reason> {
    let mut lines = Lines(head);
    let request_line = lines.next().ok_or(Reason::Malformed)??;
    let mut words = request_line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Reason::Malformed);
    };
    if target.len() > limits.path_bytes as usize {
        return Err(Reason::UriTooLong);
    }
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) || target.is_empty() {
        return Err(Reason::Malformed);
    }
    if target.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return Err(Reason::Malformed);
    }
    // The codec takes `admin` for a host and asks for its root.
    let absolute = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme));
    let form = target[0] == b'/' || absolute(b"http://") || absolute(b"https://") || target == b"*";
    if !form && method != b"CONNECT" {
        return Err(Reason::Malformed);
    }
    let old = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Reason::Malformed),
    };
    let (mut hosts, mut fields) = (0, 0);
    let mut length: Option<u64> = None;
    let mut chunked = false;
    let (mut upgrade, mut connection_upgrade) = (false, false);
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        fields += 1;
        if fields > limits.header_count {
            return Err(Reason::HeadersTooLarge);
        }
        let colon = memchr::memchr(b':', line).ok_or(Reason::Malformed)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Err(Reason::Malformed);
        }
        if value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
            return Err(Reason::Malformed);
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if length.is_some() || value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
                    return Err(Reason::Malformed);
                }
                length = Some(value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')));
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                // Exactly one, exactly `chunked`, and only in HTTP/1.1.
                if chunked || old || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Reason::Malformed);
                }
                chunked = true;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                upgrade = !value.get(..3).is_some_and(|v| v.eq_ignore_ascii_case(b"h2c"));
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                connection_upgrade |= value.split(|b| *b == b',').any(|v| trim(v).eq_ignore_ascii_case(b"upgrade"));
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && !old) || (chunked && length.is_some()) {
        return Err(Reason::Malformed);
    }
    if method == b"CONNECT" || (upgrade && connection_upgrade) {
        return Ok(Framing::Leave { length: length.unwrap_or(0), chunked });
    }
    Ok(match (chunked, length) {
        (true, _) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::None,
    })
}

/// Lines that end in CRLF. Anything else (a bare LF, a bare CR, a folded line) is refused.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Reason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some(lf) = memchr::memchr(b'\n', self.0) else { return Some(Err(Reason::Malformed)) };
        let line = &self.0[..lf];
        self.0 = &self.0[lf + 1..];
        Some(match line.split_last() {
            Some((b'\r', line)) if !line.contains(&b'\r') && !matches!(line.first(), Some(b' ' | b'\t')) => Ok(line),
            _ => Err(Reason::Malformed),
        })
    }
}

/// Follows a chunked body. `Ok((used, None))` at its end.
fn follow_chunked(mut chunk: Chunk, bytes: &[u8], limits: &Limits) -> Result<(usize, Option<Chunk>), Reason> {
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        chunk = match chunk {
            Chunk::Data { left } => {
                let take = left.min((bytes.len() - at) as u64);
                at += take as usize;
                chunk = if left == take { Chunk::DataCr } else { Chunk::Data { left: left - take } };
                continue;
            }
            Chunk::Size { digits, value } => match (b as char).to_digit(16) {
                Some(digit) if digits < 15 => Chunk::Size { digits: digits + 1, value: value << 4 | u64::from(digit) },
                None if digits > 0 && b == b'\r' => Chunk::SizeLf { value },
                // Extensions are refused with the rest: nothing legitimate sends them, and parsers differ about their end.
                _ => return Err(Reason::Malformed),
            },
            Chunk::SizeLf { value } => match (b, value) {
                (b'\n', 0) => Chunk::Trailer { line: 0, total: 0, cr: false },
                (b'\n', left) => Chunk::Data { left },
                _ => return Err(Reason::Malformed),
            },
            Chunk::DataCr if b == b'\r' => Chunk::DataLf,
            Chunk::DataLf if b == b'\n' => Chunk::Size { digits: 0, value: 0 },
            Chunk::DataCr | Chunk::DataLf => return Err(Reason::Malformed),
            Chunk::Trailer { line, total, cr } => match b {
                b'\n' if cr && line == 0 => return Ok((at + 1, None)),
                b'\n' if cr => Chunk::Trailer { line: 0, total: total + 1, cr: false },
                b'\r' if !cr => Chunk::Trailer { line, total: total + 1, cr: true },
                _ if cr || b == b'\n' || b == 0 || total >= limits.header_bytes => return Err(Reason::Malformed),
                _ => Chunk::Trailer { line: line + 1, total: total + 1, cr: false },
            },
        };
        at += 1;
    }
    Ok((at, Some(chunk)))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

pub fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(head: &str) -> Result<Framing, Reason> {
        judge_head(head.as_bytes(), &Limits::default())
    }

    #[test]
    fn heads() {
        let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(judge(&get("")), Ok(Framing::None));
        assert_eq!(judge(&get("Content-Length: 12\r\n")), Ok(Framing::Length(12)));
        assert_eq!(judge(&get("Transfer-Encoding: chunked\r\n")), Ok(Framing::Chunked));
        assert_eq!(
            judge(&get("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n")),
            Ok(Framing::Leave { length: 0, chunked: false })
        );
        assert_eq!(judge(&get("Connection: Upgrade\r\nUpgrade: h2c\r\n")), Ok(Framing::None));
        assert_eq!(judge("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::None));
        for bad in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5_0\r\n",
            "Content-Length: -1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: 9999999999999999999\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: ,chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            " folded: yes\r\n",
            "a: b\r\n c\r\n",
            "nocolon\r\n",
            ": empty\r\n",
            "a: b\nc: d\r\n",
            "a: b\rc\r\n",
            "a: \0\r\n",
            "n\u{e4}me: x\r\n",
            "Host: b\r\n",
        ] {
            assert_eq!(judge(&get(bad)), Err(Reason::Malformed), "{bad:?}");
        }
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(judge(bad), Err(Reason::Malformed), "{bad:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000));
        assert_eq!(judge(&long), Err(Reason::UriTooLong));
    }

    fn chunks(body: &str) -> Result<(usize, bool), Reason> {
        follow_chunked(Chunk::Size { digits: 0, value: 0 }, body.as_bytes(), &Limits::default())
            .map(|(used, rest)| (used, rest.is_none()))
    }

    #[test]
    fn chunked_bodies() {
        let whole = "5\r\nhello\r\n0\r\n\r\n";
        assert_eq!(chunks(whole), Ok((whole.len(), true)));
        let trailers = "a\r\n0123456789\r\n0\r\nx: y\r\n\r\nGET";
        assert_eq!(chunks(trailers), Ok((trailers.len() - 3, true)));
        assert_eq!(chunks("5\r\nhel"), Ok((6, false)));
        for bad in [
            "0x1\r\n",
            "+1\r\n",
            "-1\r\n",
            "0_2e\r\n",
            "\r\n",
            "g\r\n",
            "1;ext\r\na\r\n",
            "11111111111111111\r\n",
            "5\nhello",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "0\r\n\n",
            "0\r\nx\ry\r\n\r\n",
            "5 \r\n",
            " 5\r\n",
        ] {
            assert_eq!(chunks(bad), Err(Reason::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn any_split_reads_the_same() {
        let stream = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
                      GET /b HTTP/1.1\r\nHost: a\r\n\r\nPOST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
                      GET /bad HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let good = stream.find("GET /bad").unwrap();
        for split in 1..stream.len() {
            let mut gate = Gate::new(tokio::io::empty(), Rc::default(), Limits::default());
            let (a, b) = stream.as_bytes().split_at(split);
            let verdict = match gate.follow(a) {
                Err((keep, reason)) => (keep, reason),
                Ok(()) => {
                    let (keep, reason) = gate.follow(b).expect_err("the last head is bad");
                    (split + keep, reason)
                }
            };
            assert_eq!(verdict.1, Reason::Malformed);
            // Handing over the beginning of a head that came alone is harmless; its end never passes.
            assert!(verdict.0 >= good && verdict.0 < stream.len(), "split {split}: {}", verdict.0);
        }
    }
}
