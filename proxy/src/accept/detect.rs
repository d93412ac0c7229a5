//! What a connection speaks, told from its first bytes, and what destinations spoke before.
//!
//! Declared wins over learned, learned over sniffed. Memory never decides against bytes: it only says how long to wait for
//! them and what silence means, so a wrong memory is corrected by the first connection that contradicts it.

use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::net::SocketAddr;

/// A request line whose method is not a well-known one must end within this to count as HTTP.
const MAX_LINE: usize = 4096;
const MAX_METHOD: usize = 32;
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    NeedMore,
    Http1,
    H2Preface,
    /// A TLS record that carries a handshake; what kind of hello it is, `Hello::parse` says.
    Tls,
    Opaque,
}

/// A verdict that more bytes cannot change, or `NeedMore`.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    if bytes.is_empty() {
        return Sniffed::NeedMore;
    }
    match bytes {
        [22] | [22, 3] => return Sniffed::NeedMore,
        [22, 3, 0..=4, ..] => return Sniffed::Tls,
        _ => {}
    }
    if let Some(rest) = bytes.get(..PREFACE.len()) {
        if rest == PREFACE {
            return Sniffed::H2Preface;
        }
    } else if PREFACE.starts_with(bytes) {
        return Sniffed::NeedMore;
    }
    request_line(bytes)
}

/// `METHOD SP target SP HTTP/d`. A well-known method and a path settle it at once; anything else that looks like a method
/// (other protocols have words too: `EHLO me`, `get key`) must show its whole line.
fn request_line(bytes: &[u8]) -> Sniffed {
    // RFC 9112, 2.2: an empty line before the request is forgiven.
    let bytes = match bytes {
        [b'\r'] | [b'\r', b'\n'] => return Sniffed::NeedMore,
        [b'\r', b'\n', rest @ ..] => rest,
        _ => bytes,
    };
    let method = bytes.iter().take_while(|b| is_token(**b)).count();
    if method == 0 || method > MAX_METHOD {
        return Sniffed::Opaque;
    }
    let (method, rest) = bytes.split_at(method);
    match rest {
        [] | [b' '] => return Sniffed::NeedMore,
        [b' ', b'/', ..] if is_known(method) => return Sniffed::Http1,
        [b' ', b' ' | b'\r' | b'\n', ..] => return Sniffed::Opaque,
        [b' ', ..] => {}
        _ => return Sniffed::Opaque,
    }
    let line = match rest.iter().position(|b| *b == b'\n') {
        Some(end) => rest.get(..end).unwrap_or_default(),
        // A byte that no target has settles it before the line's end.
        None if rest.len() > MAX_LINE || rest.iter().any(|b| *b < b' ' && *b != b'\r') => return Sniffed::Opaque,
        None => return Sniffed::NeedMore,
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
    match version.strip_prefix(b"HTTP/") {
        Some([major, ..]) if major.is_ascii_digit() => Sniffed::Http1,
        _ => Sniffed::Opaque,
    }
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn is_known(method: &[u8]) -> bool {
    const KNOWN: [&[u8]; 8] = [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"PATCH", b"OPTIONS", b"TRACE"];
    KNOWN.contains(&method)
}

/// What a destination spoke the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoke {
    Http,
    /// Bytes, the client first.
    Opaque,
    /// Bytes, the server first.
    ServerFirst,
}

/// One worker's memory, by destination. The least recently used entry goes when it is full.
#[derive(Default)]
pub struct Learned(RefCell<Memory>);

#[derive(Default)]
struct Memory {
    entries: FxHashMap<SocketAddr, (Spoke, u64)>,
    clock: u64,
}

impl Learned {
    const MAX: usize = 1024;

    pub fn get(&self, destination: SocketAddr) -> Option<Spoke> {
        let mut memory = self.0.borrow_mut();
        memory.clock += 1;
        let now = memory.clock;
        let (spoke, used) = memory.entries.get_mut(&destination)?;
        *used = now;
        Some(*spoke)
    }

    pub fn put(&self, destination: SocketAddr, spoke: Spoke) {
        let mut memory = self.0.borrow_mut();
        memory.clock += 1;
        let now = memory.clock;
        memory.entries.insert(destination, (spoke, now));
        if memory.entries.len() > Self::MAX {
            // A quarter at once, so that a scan of the address space does not sort on every connection.
            let mut used: Vec<u64> = memory.entries.values().map(|(_, used)| *used).collect();
            let (_, oldest, _) = used.select_nth_unstable(Self::MAX / 4);
            let oldest = *oldest;
            memory.entries.retain(|_, (_, used)| *used > oldest);
        }
    }

    pub fn len(&self) -> usize {
        self.0.borrow().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::Sniffed::*;
    use super::*;

    const TABLE: &[(&[u8], Sniffed)] = &[
        (b"", NeedMore),
        (b"G", NeedMore),
        (b"GET", NeedMore),
        (b"GET ", NeedMore),
        (b"GET /", Http1),
        (b"GET / HTTP/1.1\r\n", Http1),
        (b"GET /\r\n", Http1),
        (b"\r\nGET / HTTP/1.1\r\n", Http1),
        (b"\r", NeedMore),
        (b"\r\n", NeedMore),
        (b"\r\n\r\n", Opaque),
        (b"POST / HTTP/1.0\r\n", Http1),
        (b"OPTIONS * HTTP/1.1\r\n", Http1),
        (b"OPTIONS * RTSP/1.0\r\n", Opaque),
        (b"OPTIONS sip:a@b SIP/2.0\r\n", Opaque),
        (b"GET http://a/ HTTP/1.1\r\n", Http1),
        (b"CONNECT a:443 HTTP/1.1\r\n", Http1),
        (b"PURGE /x HTTP/1.1\r\n", Http1),
        (b"PURGE /x HTTP/1.1\n", Http1),
        (b"M-SEARCH * HTTP/1.1\r\n", Http1),
        (b"get / HTTP/1.1\r\n", Http1),
        (b"get key\r\n", Opaque),
        (b"set key 0 0 5\r\nhello\r\n", Opaque),
        (b"EHLO me\r\n", Opaque),
        (b"NICK joe\r\n", Opaque),
        (b"GET  / HTTP/1.1\r\n", Opaque),
        (b"GET\t/ HTTP/1.1\r\n", Opaque),
        (b"GET\r\n", Opaque),
        (b"GET foo HTTP/x\r\n", Opaque),
        (b"*1\r\n$4\r\nPING\r\n", Opaque),
        (b"PING\r\n", Opaque),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Opaque),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", Opaque),
        (b"\r\n\r\n\0\r\nQUIT\n", Opaque),
        (b"PRI", NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", H2Preface),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", H2Preface),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", Http1),
        (b"PRI * HTTP/1.1\r\nHost: a\r\n\r\n", Http1),
        (b"PRI x\r\n", Opaque),
        (b"\x16\x03\x01\x02\x00\x01", Tls),
        (b"\x16\x03\x04", Tls),
        (b"\x16\x03", NeedMore),
        (b"\x16", NeedMore),
        (b"\x16\x03\x05\0\0", Opaque),
        (b"\x16\x02\x01\0\0", Opaque),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Opaque),
        (b"\x80", Opaque),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n", Opaque),
        (b"FOO \x01", Opaque),
    ];

    #[test]
    fn table() {
        for (bytes, expected) in TABLE {
            assert_eq!(sniff(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    /// Wherever the bytes are cut: either nothing is known yet, or what the whole says is known already.
    #[test]
    fn every_split() {
        let mut splits = 0;
        for (bytes, expected) in TABLE {
            for cut in 0..=bytes.len() {
                let early = sniff(&bytes[..cut]);
                assert!(early == NeedMore || early == *expected, "{:?} at {cut}", String::from_utf8_lossy(bytes));
                splits += 1;
            }
        }
        assert!(splits > 700, "{splits}");
    }

    #[test]
    fn waiting_is_bounded() {
        let mut long = b"FOO ".to_vec();
        long.resize(MAX_LINE - 1, b'x');
        assert_eq!(sniff(&long), NeedMore);
        long.resize(MAX_LINE + 64, b'x');
        assert_eq!(sniff(&long), Opaque);
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_used() {
        let at = |n: u32| SocketAddr::from((n.to_be_bytes(), 80));
        let learned = Learned::default();
        learned.put(at(0), Spoke::ServerFirst);
        for n in 1..5000 {
            learned.put(at(n), Spoke::Http);
            assert_eq!(learned.get(at(0)), Some(Spoke::ServerFirst));
            assert!(learned.len() <= Learned::MAX);
        }
        assert_eq!(learned.get(at(4999)), Some(Spoke::Http));
        assert_eq!(learned.get(at(1)), None);
        learned.put(at(0), Spoke::Opaque);
        assert_eq!(learned.get(at(0)), Some(Spoke::Opaque));
    }
}
