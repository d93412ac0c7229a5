//! A look at a TLS ClientHello: server name and protocols, without a handshake and without state.
//!
//! The caller peeks at the first bytes of a connection and asks again with more of them until the answer is not
//! `NeedMore`. A hello may be spread over any number of records and is refused as `NotTls` beyond 64 KiB, so the caller's
//! buffer is bounded. Nothing is verified here; the text is checked so that it can be logged and matched.

const MAX_HELLO: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peek {
    NeedMore,
    NotTls,
    Hello(Hello),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hello {
    /// Lower case, without a trailing dot.
    pub sni: Option<String>,
    pub alpn: Vec<Vec<u8>>,
}

impl Hello {
    pub fn parse(bytes: &[u8]) -> Peek {
        let mut body = Vec::new();
        let mut rest = bytes;
        loop {
            // Enough bytes to say no come before enough bytes to say yes: an HTTP request must not wait for five bytes.
            if rest.first().is_some_and(|b| *b != 22) || rest.get(1).is_some_and(|b| *b != 3) {
                return Peek::NotTls;
            }
            let Some((header, tail)) = rest.split_first_chunk::<5>() else { return Peek::NeedMore };
            let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if header[2] > 4 || len == 0 || len > 16 * 1024 + 256 {
                return Peek::NotTls;
            }
            let piece = tail.get(..len).unwrap_or(tail);
            body.extend_from_slice(piece);
            if body.first().is_some_and(|b| *b != 1) {
                return Peek::NotTls;
            }
            if let Some(length) = body.get(1..4) {
                let length = length.iter().fold(0, |n, b| n << 8 | usize::from(*b));
                if length > MAX_HELLO {
                    return Peek::NotTls;
                }
                if let Some(message) = body.get(4..4 + length) {
                    return hello(message).map_or(Peek::NotTls, Peek::Hello);
                }
            }
            match tail.get(len..) {
                Some(next) => rest = next,
                None => return Peek::NeedMore,
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    /// A vector whose length is written in `width` bytes.
    fn vector(&mut self, width: usize) -> Option<&'a [u8]> {
        let len = self.take(width)?.iter().fold(0, |n, b| n << 8 | usize::from(*b));
        self.take(len)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
}

fn hello(message: &[u8]) -> Option<Hello> {
    let mut reader = Reader(message);
    reader.take(2 + 32)?;
    reader.vector(1)?;
    reader.vector(2)?;
    reader.vector(1)?;
    let mut found = Hello::default();
    if reader.0.is_empty() {
        return Some(found);
    }
    let mut extensions = Reader(reader.vector(2)?);
    while !extensions.0.is_empty() {
        let (kind, data) = (extensions.u16()?, extensions.vector(2)?);
        match kind {
            0 => found.sni = server_name(data)?,
            16 => {
                let mut list = Reader(Reader(data).vector(2)?);
                while !list.0.is_empty() {
                    found.alpn.push(list.vector(1)?.to_vec());
                }
            }
            _ => {}
        }
    }
    Some(found)
}

/// `Some(None)` when there is a name but not one a server could have: an IP address, two names, odd characters.
fn server_name(data: &[u8]) -> Option<Option<String>> {
    let mut list = Reader(Reader(data).vector(2)?);
    let mut names = Vec::new();
    while !list.0.is_empty() {
        let (kind, name) = (list.take(1)?, list.vector(2)?);
        if kind == [0] {
            names.push(name);
        }
    }
    let [name] = names.as_slice() else { return Some(None) };
    let valid = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.is_empty() || name.len() > 253 || !name.iter().all(valid) {
        return Some(None);
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    Some(name.parse::<std::net::IpAddr>().is_err().then_some(name))
}
