//! Bodies, read and written: lengths, chunks with trailers, and what ends with its connection.

use super::super::exchange::Body;
use super::head::{self, Framing, Malformed, check_line};
use super::{Ahead, Outgoing};
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body as _, SizeHint};
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Of a body that lies ready, what one write takes.
const AT_ONCE: usize = 128 * 1024;

/// What a body's bytes turn out to be.
#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// More has to be read first.
    More,
    End,
}

/// Reads one body.
#[derive(Debug)]
pub struct Decoder {
    at: At,
    /// Of a client: chunk extensions are refused, as nothing legitimate sends them and parsers differ about their end.
    strict: bool,
    /// Of trailers, and of a line of chunk framing.
    max: usize,
}

#[derive(Debug)]
enum At {
    Done,
    Length(u64),
    Size {
        digits: u8,
        value: u64,
    },
    /// Behind the size, where only an end of the line matters.
    Extension {
        value: u64,
        seen: usize,
    },
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    Trailers {
        fields: HeaderMap,
        seen: usize,
    },
    UntilClose,
    /// Found to be wrong while looking whether it was over.
    Bad,
}

impl Decoder {
    pub fn new(framing: Framing, strict: bool, max: u32) -> Self {
        let at = match framing {
            Framing::None | Framing::Length(0) => At::Done,
            Framing::Length(left) => At::Length(left),
            Framing::Chunked => At::Size { digits: 0, value: 0 },
            Framing::UntilClose => At::UntilClose,
        };
        Self { at, strict, max: max as usize }
    }

    /// No body.
    pub fn done() -> Self {
        Self { at: At::Done, strict: true, max: 0 }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.at, At::Done)
    }

    /// How much there is to be read, at most.
    pub fn expects(&self) -> u64 {
        match self.at {
            At::Done | At::Bad => 0,
            At::Length(left) => left,
            // Its framing as well.
            At::Data(left) => left.saturating_add(64),
            At::UntilClose => u64::MAX,
            _ => 64,
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match self.at {
            At::Done => SizeHint::with_exact(0),
            At::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// The connection has ended; whether the body may end with it.
    pub fn end(&mut self) -> Result<(), Malformed> {
        match self.at {
            At::Done | At::UntilClose => {
                self.at = At::Done;
                Ok(())
            }
            _ => Err(Malformed),
        }
    }

    /// Takes the next piece from what was read.
    pub fn decode(&mut self, ahead: &mut Ahead) -> Result<Piece, Malformed> {
        loop {
            let bytes = &ahead.bytes[..];
            match &mut self.at {
                At::Done => return Ok(Piece::End),
                At::Bad => return Err(Malformed),
                _ if bytes.is_empty() => return Ok(Piece::More),
                At::UntilClose => return Ok(Piece::Data(ahead.take(usize::MAX))),
                At::Length(left) | At::Data(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= n as u64;
                    if *left == 0 {
                        self.at = if matches!(self.at, At::Length(_)) { At::Done } else { At::DataCr };
                    }
                    let data = ahead.take(n);
                    self.look_for_end(ahead);
                    return Ok(Piece::Data(data));
                }
                At::Trailers { fields, seen } => {
                    let Some(lf) = memchr::memchr(b'\n', bytes) else {
                        // A CR that something else follows is a fault already, and so is too much of anything.
                        let bare = bytes[..bytes.len() - 1].contains(&b'\r');
                        return if bare || *seen + bytes.len() > self.max { Err(Malformed) } else { Ok(Piece::More) };
                    };
                    *seen += lf + 1;
                    if *seen > self.max {
                        return Err(Malformed);
                    }
                    let line = ahead.take(lf + 1);
                    let text = check_line(&line[..lf], true)?;
                    if text.is_empty() {
                        let fields = std::mem::take(fields);
                        self.at = At::Done;
                        return Ok(if fields.is_empty() { Piece::End } else { Piece::Trailers(fields) });
                    }
                    let (name, value) = head::split(text)?;
                    let (name, value) = head::field(&line, name, value)?;
                    fields.try_append(name, value).map_err(|_| Malformed)?;
                }
                _ => self.framing(ahead)?,
            }
        }
    }

    /// Reads on between pieces: whoever got the last one should know that it was the last.
    fn look_for_end(&mut self, ahead: &mut Ahead) {
        if matches!(self.at, At::DataCr) && self.framing(ahead).is_err() {
            self.at = At::Bad;
        }
        if let (At::Trailers { fields, .. }, [b'\r', b'\n', ..]) = (&self.at, &ahead.bytes[..])
            && fields.is_empty()
        {
            ahead.skip(2);
            self.at = At::Done;
        }
    }

    /// Follows what is between the data of chunks, as far as it has come.
    fn framing(&mut self, ahead: &mut Ahead) -> Result<(), Malformed> {
        let mut used = 0;
        for &b in &ahead.bytes[..] {
            self.at = match self.at {
                At::Size { digits, value } => match (b as char).to_digit(16) {
                    Some(digit) if digits < 15 => At::Size { digits: digits + 1, value: value << 4 | u64::from(digit) },
                    None if digits > 0 && b == b'\r' => At::SizeLf(value),
                    None if digits > 0 && !self.strict && matches!(b, b';' | b' ' | b'\t') => {
                        At::Extension { value, seen: 0 }
                    }
                    _ => return Err(Malformed),
                },
                At::Extension { value, seen } => match b {
                    b'\r' => At::SizeLf(value),
                    b'\n' => return Err(Malformed),
                    _ if seen >= self.max => return Err(Malformed),
                    _ => At::Extension { value, seen: seen + 1 },
                },
                At::SizeLf(value) => match (b, value) {
                    (b'\n', 0) => At::Trailers { fields: HeaderMap::new(), seen: 0 },
                    (b'\n', left) => At::Data(left),
                    _ => return Err(Malformed),
                },
                At::DataCr if b == b'\r' => At::DataLf,
                At::DataLf if b == b'\n' => At::Size { digits: 0, value: 0 },
                At::DataCr | At::DataLf => return Err(Malformed),
                At::Data(_) | At::Trailers { .. } | At::Length(_) | At::UntilClose | At::Done | At::Bad => break,
            };
            used += 1;
        }
        ahead.skip(used);
        Ok(())
    }
}

/// Why a body could not be sent whole.
#[derive(Debug)]
pub enum Stop {
    /// It broke off, or is not as long as it was announced.
    Body,
    Socket,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Stop::Socket
    }
}

/// Writes one message: its head, and its body piece by piece.
pub struct Writer {
    pub out: Outgoing,
    body: Body,
    framing: Framing,
    /// Whether the reader wants trailers.
    trailers: bool,
    over: bool,
}

impl Writer {
    /// `out` begins with the head. `framing` is how the body is sent; with none it is read and dropped.
    pub fn new(out: Outgoing, body: Body, framing: Framing, trailers: bool) -> Self {
        let over = body.is_empty() && framing != Framing::Chunked;
        Self { out, body, framing, trailers, over }
    }

    /// Ready when the socket has accepted everything. `write` is given what there is; the socket is not held while the body
    /// is asked for more, as that may come from the same connection.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut Context<'_>, &mut Outgoing) -> Poll<io::Result<()>>,
    ) -> Poll<Result<(), Stop>> {
        loop {
            let mut waits = false;
            while !self.over && self.takes_more() {
                // Where a piece is ready, the head goes along with it.
                let taken = match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                    Poll::Ready(None) => self.finish(None),
                    Poll::Ready(Some(Err(_))) => Err(Stop::Body),
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => self.data(data),
                        Err(frame) => self.finish(frame.into_trailers().ok()),
                    },
                };
                if let Err(stop) = taken {
                    // What came before the break is the reader's all the same.
                    if !self.out.is_empty() && self.framing != Framing::Length(0) {
                        let _ = write(cx, &mut self.out);
                    }
                    return Poll::Ready(Err(stop));
                }
            }
            // With its head alone a message of no length is whole: that it is none is awaited.
            if waits && self.framing == Framing::Length(0) {
                return Poll::Pending;
            }
            if !self.out.is_empty() {
                ready!(write(cx, &mut self.out))?;
            }
            if self.over {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// What lies ready is written at once; chunks have their framing between them.
    fn takes_more(&self) -> bool {
        match self.framing {
            Framing::Chunked => self.out.data.is_empty() && self.out.tail.is_empty(),
            _ => self.out.length() < AT_ONCE && self.out.more.len() + 1 < Outgoing::PIECES,
        }
    }

    fn data(&mut self, data: Bytes) -> Result<(), Stop> {
        self.over = self.body.is_end_stream();
        match &mut self.framing {
            Framing::None => {}
            Framing::UntilClose => self.out.push(data),
            Framing::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Stop::Body)?;
                self.out.push(data);
                if self.over && *left > 0 {
                    return Err(Stop::Body);
                }
            }
            // A chunk of nothing would be the last.
            Framing::Chunked if data.is_empty() => {
                if self.over {
                    self.out.front.extend_from_slice(b"0\r\n\r\n");
                }
            }
            Framing::Chunked => {
                let _ = write!(self.out.front, "{:x}\r\n", data.len());
                self.out.data = data;
                self.out.tail = if self.over { b"\r\n0\r\n\r\n" } else { b"\r\n" };
            }
        }
        Ok(())
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Stop> {
        self.over = true;
        match self.framing {
            Framing::Length(1..) => return Err(Stop::Body),
            Framing::Chunked => {
                let front = &mut self.out.front;
                front.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().flatten().filter(|_| self.trailers) {
                    if !is_of_the_head(name) {
                        head::write_field(front, name.as_str().as_bytes(), value.as_bytes());
                    }
                }
                front.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }
}

/// Fields that mean something in a head and must not be smuggled in behind it.
fn is_of_the_head(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("content-")
        || matches!(
            name,
            "authorization"
                | "cache-control"
                | "connection"
                | "cookie"
                | "host"
                | "max-forwards"
                | "set-cookie"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything a body yields, and what is left behind it.
    fn read(
        framing: Framing,
        strict: bool,
        bytes: &[u8],
        split: usize,
    ) -> Result<(Vec<u8>, usize, bool, Vec<u8>), Malformed> {
        let mut decoder = Decoder::new(framing, strict, 1000);
        let mut ahead = Ahead::default();
        let (mut data, mut trailers, mut ended) = (Vec::new(), 0, false);
        for part in [&bytes[..split], &bytes[split..]] {
            ahead.bytes.extend_from_slice(part);
            while !ended {
                match decoder.decode(&mut ahead)? {
                    Piece::Data(piece) => data.extend_from_slice(&piece),
                    Piece::Trailers(fields) => trailers = fields.len(),
                    Piece::More => break,
                    Piece::End => ended = true,
                }
            }
        }
        Ok((data, trailers, ended, ahead.bytes.to_vec()))
    }

    #[test]
    fn bodies_are_read_however_they_come() {
        let rows: [(Framing, &[u8], &[u8], usize, bool, &[u8]); 7] = [
            (Framing::Length(5), b"helloGET", b"hello", 0, true, b"GET"),
            (Framing::Length(9), b"hello", b"hello", 0, false, b""),
            (Framing::None, b"GET", b"", 0, true, b"GET"),
            (Framing::Chunked, b"5\r\nhello\r\n0\r\n\r\nGET", b"hello", 0, true, b"GET"),
            (
                Framing::Chunked,
                b"a\r\n0123456789\r\n1\r\nx\r\n000\r\nx: y\r\nz: \r\n\r\nGET",
                b"0123456789x",
                2,
                true,
                b"GET",
            ),
            (Framing::Chunked, b"5\r\nhel", b"hel", 0, false, b""),
            (Framing::UntilClose, b"anything\r\n", b"anything\r\n", 0, false, b""),
        ];
        for (framing, bytes, data, trailers, ended, rest) in rows {
            for split in 0..=bytes.len() {
                let got = read(framing, true, bytes, split).unwrap();
                assert_eq!(got, (data.to_vec(), trailers, ended, rest.to_vec()), "{framing:?} {split}");
            }
        }
    }

    #[test]
    fn bad_chunks() {
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
            "0\r\nnocolon\r\n\r\n",
            "0\r\n folded: x\r\n\r\n",
            "5 \r\n",
            " 5\r\n",
        ] {
            for split in 0..=bad.len() {
                assert_eq!(read(Framing::Chunked, true, bad.as_bytes(), split), Err(Malformed), "{bad:?} {split}");
            }
        }
        let long = format!("0\r\nx: {}", "y".repeat(2000));
        assert_eq!(read(Framing::Chunked, true, long.as_bytes(), 5), Err(Malformed));
        let long = format!("1;{}", "y".repeat(2000));
        assert_eq!(read(Framing::Chunked, false, long.as_bytes(), 5), Err(Malformed));
        let (data, _, ended, _) = read(Framing::Chunked, false, b"2 ; a=b\r\nhi\r\n0;x\r\n\r\n", 3).unwrap();
        assert_eq!((&data[..], ended), (&b"hi"[..], true));
    }

    #[test]
    fn the_last_piece_is_known_to_be_the_last() {
        let mut ahead = Ahead::default();
        ahead.bytes.extend_from_slice(b"2\r\nhi\r\n0\r\n\r\n");
        let mut decoder = Decoder::new(Framing::Chunked, true, 100);
        assert!(matches!(decoder.decode(&mut ahead), Ok(Piece::Data(_))));
        assert!(decoder.is_done() && ahead.is_empty());
    }
}
