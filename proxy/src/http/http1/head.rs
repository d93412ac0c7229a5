//! Heads, read and written.
//!
//! A request is read strictly: a head that two parsers could read differently has no reading here. So lines end in CRLF and
//! nothing is folded, there is one length or one coding and never both, and names are tokens up to the colon. A response is
//! read as strictly in what frames its body; only its lines may end in a bare LF, which harms nobody: what is sent on is
//! always written anew.
//!
//! One pass over the bytes: values stay where they were read to.

use super::super::exchange::{FieldMap, Head};
use super::super::fields::Fields;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use std::cell::RefCell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};
use weft_policy::listener::Limits;
use weft_policy::reason::Reason;

/// Where a message's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// Looks for the empty line that ends a head, once over every byte.
#[derive(Debug, Default)]
pub struct Search {
    at: usize,
    lines: usize,
}

impl Search {
    /// The head's length with its empty line.
    pub fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(found) = memchr::memchr(b'\n', bytes.get(self.at..)?) {
            let lf = self.at + found;
            match bytes[lf + 1..] {
                [b'\n', ..] => return Some(lf + 2),
                [b'\r', b'\n', ..] => return Some(lf + 3),
                // Not known yet: looked at again.
                [] | [b'\r'] => {
                    self.at = lf;
                    return None;
                }
                _ => {
                    self.lines += 1;
                    self.at = lf + 1;
                }
            }
        }
        self.at = bytes.len();
        None
    }

    /// Lines seen so far, about.
    pub fn lines(&self) -> usize {
        self.lines
    }
}

/// A request as its head has it.
#[derive(Debug)]
pub struct Asked {
    pub head: Head,
    pub framing: Framing,
    /// The client keeps the connection for another request.
    pub keep: bool,
    /// It waits with its body until it is asked for it.
    pub expects: bool,
    /// CONNECT or Upgrade: it wants to leave HTTP.
    pub leaving: bool,
    /// It takes trailers behind an answer.
    pub trailers: bool,
}

/// A response as its head has it; `framing` is of an answer that may have a body.
#[derive(Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub fields: Fields,
    pub framing: Framing,
    pub keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Room for the fields that a proxy adds.
const OURS: usize = 6;

/// What can be refused before the head is complete, so that a client that never completes it learns early.
pub fn quick_look(partial: &[u8], limits: &Limits) -> Result<(), Reason> {
    if partial.len() <= limits.path_bytes as usize + 64 {
        return Ok(());
    }
    let line = memchr::memchr(b'\n', partial).unwrap_or(partial.len());
    if line > limits.path_bytes as usize + 64 { Err(Reason::UriTooLong) } else { Ok(()) }
}

/// Whether a first line cannot have been meant as a request of HTTP/1: three words of which the last names no version of it.
/// (A broken preface of HTTP/2 looks like that.)
pub fn is_foreign(bytes: &[u8]) -> bool {
    let Some(end) = memchr::memchr(b'\n', bytes) else { return false };
    let mut words = bytes[..end].trim_ascii_end().split(|b| *b == b' ');
    matches!((words.next(), words.next(), words.next(), words.next()), (_, _, Some(third), None) if !third.starts_with(b"HTTP/1"))
}

/// Reads a complete head. `lines` is how many it has, about.
pub fn request(bytes: &Bytes, lines: usize, limits: &Limits) -> Result<Asked, Reason> {
    let mut rest = Lines { rest: bytes, strict: true };
    let line = rest.next().ok_or(Reason::Malformed)?.map_err(|_| Reason::Malformed)?;
    let mut words = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Reason::Malformed);
    };
    if target.len() > limits.path_bytes as usize {
        return Err(Reason::UriTooLong);
    }
    let old = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Reason::Malformed),
    };
    if !method.iter().all(|b| is_token(*b)) {
        return Err(Reason::Malformed);
    }
    let method = Method::from_bytes(method).map_err(|_| Reason::Malformed)?;
    let (authority, path) = read_target(bytes, &method, target)?;

    let mut seen = Seen::default();
    let mut fields = Fields::with_capacity(lines.min(limits.header_count as usize) + OURS);
    let (mut count, mut hosts) = (0, 0);
    let (mut expects, mut trailers, mut upgrade) = (false, false, false);
    for line in rest {
        let line = line.map_err(|_| Reason::Malformed)?;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > limits.header_count {
            return Err(Reason::HeadersTooLarge);
        }
        let (name, text) = split(line).map_err(|_| Reason::Malformed)?;
        match name.len() {
            2 if name.eq_ignore_ascii_case(b"te") => trailers |= names(text, b"trailers"),
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            6 if name.eq_ignore_ascii_case(b"expect") => expects |= text.eq_ignore_ascii_case(b"100-continue"),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                upgrade = !text.get(..3).is_some_and(|v| v.eq_ignore_ascii_case(b"h2c"));
            }
            _ => seen.framing(name, text).map_err(|_| Reason::Malformed)?,
        }
        let (name, value) = field(bytes, name, text).map_err(|_| Reason::Malformed)?;
        fields.append(name, value);
    }
    // Exactly one coding, exactly `chunked`, only in HTTP/1.1, and never beside a length; one length, once.
    let chunked = match (seen.codings, seen.chunked) {
        (0, _) => false,
        (1, true) if !old && seen.lengths == 0 => true,
        _ => return Err(Reason::Malformed),
    };
    if hosts > 1 || (hosts == 0 && !old) || seen.lengths > 1 {
        return Err(Reason::Malformed);
    }
    let leaving = method == Method::CONNECT || (upgrade && seen.upgrade);
    Ok(Asked {
        framing: match seen.length {
            _ if chunked => Framing::Chunked,
            None | Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
        },
        keep: seen.keeps(old),
        expects: expects && !old,
        leaving,
        trailers,
        head: Head {
            asterisk: path.as_str() == "*",
            method,
            version: if old { Version::HTTP_10 } else { Version::HTTP_11 },
            authority,
            path,
            fields: FieldMap(fields),
        },
    })
}

fn read_target(bytes: &Bytes, method: &Method, target: &[u8]) -> Result<(Option<Authority>, PathAndQuery), Reason> {
    // The library knows URIs, and some of them are lenient.
    if target.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return Err(Reason::Malformed);
    }
    let shared = bytes.slice_ref(target);
    if *method == Method::CONNECT {
        let authority = Authority::from_maybe_shared(shared).map_err(|_| Reason::Malformed)?;
        return Ok((Some(authority), PathAndQuery::from_static("/")));
    }
    if target.first() == Some(&b'/') {
        return Ok((None, PathAndQuery::from_maybe_shared(shared).map_err(|_| Reason::Malformed)?));
    }
    let absolute = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme));
    if target != b"*" && !absolute(b"http://") && !absolute(b"https://") {
        return Err(Reason::Malformed);
    }
    let parts = Uri::from_maybe_shared(shared).map_err(|_| Reason::Malformed)?.into_parts();
    Ok((parts.authority, parts.path_and_query.unwrap_or(PathAndQuery::from_static("/"))))
}

/// Reads a complete head of a response.
pub fn response(bytes: &Bytes, lines: usize, max: usize) -> Result<Answered, Malformed> {
    let mut rest = Lines { rest: bytes, strict: false };
    let line = rest.next().ok_or(Malformed)??;
    let (old, line) = match line.split_at_checked(9) {
        Some((b"HTTP/1.1 ", line)) => (false, line),
        Some((b"HTTP/1.0 ", line)) => (true, line),
        _ => return Err(Malformed),
    };
    let status = match *line {
        [a, b, c] | [a, b, c, b' ', ..] if !line.iter().any(is_control) => {
            StatusCode::from_bytes(&[a, b, c]).map_err(|_| Malformed)?
        }
        _ => return Err(Malformed),
    };
    let mut seen = Seen::default();
    let mut fields = Fields::with_capacity(lines.min(max) + OURS);
    let mut count = 0;
    for line in rest {
        let line = line?;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > max {
            return Err(Malformed);
        }
        let (name, text) = split(line)?;
        let lengths = seen.lengths;
        seen.framing(name, text)?;
        // The same length said twice is said once.
        if lengths == 0 || seen.lengths == lengths {
            let (name, value) = field(bytes, name, text)?;
            fields.append(name, value);
        }
    }
    let framing = match (seen.codings, seen.chunked, seen.length) {
        (0, _, None) => Framing::UntilClose,
        (0, _, Some(length)) => Framing::Length(length),
        (1, true, None) if !old => Framing::Chunked,
        _ => return Err(Malformed),
    };
    Ok(Answered { status, fields, framing, keep: seen.keeps(old) })
}

/// What fields say of the body's end and the connection's.
#[derive(Default)]
struct Seen {
    length: Option<u64>,
    lengths: u32,
    codings: u32,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Seen {
    fn framing(&mut self, name: &[u8], text: &[u8]) -> Result<(), Malformed> {
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.close |= names(text, b"close");
                self.keep_alive |= names(text, b"keep-alive");
                self.upgrade |= names(text, b"upgrade");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = read_length(text).ok_or(Malformed)?;
                if self.length.is_some_and(|before| before != length) {
                    return Err(Malformed);
                }
                self.length = Some(length);
                self.lengths += 1;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.chunked = text.eq_ignore_ascii_case(b"chunked");
                self.codings += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn keeps(&self, old: bool) -> bool {
        !self.close && (!old || self.keep_alive)
    }
}

/// Digits, and few enough that nothing overflows.
fn read_length(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

fn names(list: &[u8], word: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|v| trim(v).eq_ignore_ascii_case(word))
}

/// A field line's name and the value's text.
pub fn split(line: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    // Names are too short for a vector search to be worth its beginning.
    let colon = line.iter().position(|b| *b == b':').ok_or(Malformed)?;
    Ok((&line[..colon], trim(&line[colon + 1..])))
}

/// The library's own rules are the strict ones: names are tokens, values have no control bytes but the tab.
pub fn field(bytes: &Bytes, name: &[u8], text: &[u8]) -> Result<(HeaderName, HeaderValue), Malformed> {
    let name = HeaderName::from_bytes(name).map_err(|_| Malformed)?;
    let value = HeaderValue::from_maybe_shared(bytes.slice_ref(text)).map_err(|_| Malformed)?;
    Ok((name, value))
}

/// Lines that end in CRLF. Where it is not strict, a bare LF is an end as well. A bare CR or a folded line is in no name and in
/// no value, so who reads those need not look for it.
struct Lines<'a> {
    rest: &'a [u8],
    strict: bool,
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(lf) = memchr::memchr(b'\n', self.rest) else { return Some(Err(Malformed)) };
        let line = &self.rest[..lf];
        self.rest = &self.rest[lf + 1..];
        Some(check_line(line, self.strict))
    }
}

/// `line` is what stands before a LF.
pub fn check_line(line: &[u8], strict: bool) -> Result<&[u8], Malformed> {
    match line.split_last() {
        Some((b'\r', line)) => Ok(line),
        _ if strict => Err(Malformed),
        _ => Ok(line),
    }
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

fn is_control(b: &u8) -> bool {
    (*b < b' ' && *b != b'\t') || *b == 0x7f
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

// Writing.

/// The head of a request. A length of the fields' own is believed only where it is the body's.
pub fn write_request(out: &mut Vec<u8>, head: &Head, framing: Framing) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    let authority = head.authority.as_ref().map_or("", Authority::as_str);
    match (head.method == Method::CONNECT, head.asterisk) {
        (true, _) => out.extend_from_slice(authority.as_bytes()),
        (false, true) => out.push(b'*'),
        (false, false) => out.extend_from_slice(head.path.as_str().as_bytes()),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_field(out, b"host", authority.as_bytes());
    for (name, value) in head.fields.0.iter() {
        if name != HOST && name != CONTENT_LENGTH && name != TRANSFER_ENCODING {
            write_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    // An empty body that was announced stays announced: some servers insist.
    let announced = framing == Framing::None && head.fields.0.contains_key(CONTENT_LENGTH);
    write_framing(out, if announced { Framing::Length(0) } else { framing });
    out.extend_from_slice(b"\r\n");
}

/// What an answer's head says of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Nothing: in HTTP/1.1 it stays.
    Keep,
    /// To a client of HTTP/1.0 that asked.
    KeepAlive,
    Close,
    /// What the fields say: the connection leaves HTTP.
    Leave,
}

/// The head of a response. `length` is what a `content-length` says.
pub fn write_response(
    out: &mut Vec<u8>,
    version: Version,
    status: StatusCode,
    fields: &Fields,
    length: Option<u64>,
    chunked: bool,
    stay: Stay,
) {
    match (version, status) {
        (Version::HTTP_11, StatusCode::OK) => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        _ => {
            out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
            out.extend_from_slice(status.as_str().as_bytes());
            out.push(b' ');
            out.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    let mut dated = false;
    for (name, value) in fields.iter() {
        if name == CONTENT_LENGTH || name == TRANSFER_ENCODING || (name == CONNECTION && stay != Stay::Leave) {
            continue;
        }
        dated |= name == DATE;
        write_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    match (chunked, length) {
        (true, _) => write_framing(out, Framing::Chunked),
        (false, Some(length)) => write_framing(out, Framing::Length(length)),
        (false, None) => {}
    }
    match stay {
        Stay::Keep | Stay::Leave => {}
        Stay::KeepAlive => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Stay::Close => out.extend_from_slice(b"connection: close\r\n"),
    }
    if !dated {
        write_date(out);
    }
    out.extend_from_slice(b"\r\n");
}

pub fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            write_decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn write_decimal(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A length that the fields announce, if it is one.
pub fn announced(fields: &Fields) -> Option<u64> {
    fields.get(CONTENT_LENGTH).and_then(|value| read_length(value.as_bytes()))
}

thread_local! {
    /// The second that was last written as a date, and how.
    static NOW: RefCell<(u64, Vec<u8>)> = const { RefCell::new((u64::MAX, Vec::new())) };
}

fn write_date(out: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    NOW.with_borrow_mut(|(second, text)| {
        if *second != now {
            *second = now;
            text.clear();
            let _ = format_date(text, now);
        }
        write_field(out, b"date", text);
    });
}

/// As RFC 9110 wants dates: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn format_date(out: &mut Vec<u8>, unix: u64) -> std::io::Result<()> {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    let (days, second) = (unix / 86_400, unix % 86_400);
    // Years begin in March, so that the leap day is the last; eras are 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = year_of_era + era * 400 + u64::from(month >= 10);
    write!(
        out,
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[(month % 12) as usize],
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Result<Asked, Reason> {
        request(&Bytes::copy_from_slice(head.as_bytes()), 4, &Limits::default())
    }

    fn judge(head: &str) -> Result<(Framing, bool), Reason> {
        read(head).map(|asked| (asked.framing, asked.leaving))
    }

    #[test]
    fn requests() {
        let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(judge(&get("")), Ok((Framing::None, false)));
        assert_eq!(judge(&get("Content-Length: 12\r\n")), Ok((Framing::Length(12), false)));
        assert_eq!(judge(&get("Transfer-Encoding: chunked\r\n")), Ok((Framing::Chunked, false)));
        assert_eq!(judge(&get("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n")), Ok((Framing::None, true)));
        assert_eq!(judge(&get("Connection: Upgrade\r\nUpgrade: h2c\r\n")), Ok((Framing::None, false)));
        assert_eq!(judge("GET / HTTP/1.0\r\n\r\n"), Ok((Framing::None, false)));
        assert_eq!(judge("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"), Ok((Framing::None, true)));
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
            "GET admin HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT / HTTP/1.1\r\nHost: a:80\r\n\r\n",
        ] {
            assert_eq!(judge(bad), Err(Reason::Malformed), "{bad:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000));
        assert_eq!(judge(&long), Err(Reason::UriTooLong));
        let many = get(&"a: b\r\n".repeat(100));
        assert_eq!(judge(&many), Err(Reason::HeadersTooLarge));
    }

    #[test]
    fn targets() {
        let asked = read("GET http://B.test:81/p?q HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!((asked.head.authority.unwrap().as_str(), asked.head.path.as_str()), ("B.test:81", "/p?q"));
        let asked = read("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(asked.head.asterisk && asked.head.authority.is_none());
        let asked = read("GET http://b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(asked.head.path.as_str(), "/");
    }

    #[test]
    fn keeping() {
        for (head, keep) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false),
        ] {
            assert_eq!(read(head).unwrap().keep, keep, "{head:?}");
        }
    }

    fn answer(head: &str) -> Result<(u16, Framing, bool), Malformed> {
        response(&Bytes::copy_from_slice(head.as_bytes()), 4, 100).map(|a| (a.status.as_u16(), a.framing, a.keep))
    }

    #[test]
    fn responses() {
        for (head, want) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", (200, Framing::Length(2), true)),
            ("HTTP/1.1 200\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n", (200, Framing::Length(2), true)),
            ("HTTP/1.1 404 Not Found at all\r\ntransfer-encoding: Chunked\r\n\r\n", (404, Framing::Chunked, true)),
            ("HTTP/1.1 200 OK\nconnection: close\n\n", (200, Framing::UntilClose, false)),
            ("HTTP/1.0 200 OK\r\n\r\n", (200, Framing::UntilClose, false)),
            ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n", (200, Framing::Length(0), true)),
        ] {
            assert_eq!(answer(head), Ok(want), "{head:?}");
        }
        for bad in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 99 X\r\n\r\n",
            "HTTP/1.1 20 X\r\n\r\n",
            "HTTP/1.1 2000 X\r\n\r\n",
            "HTTP/1.1 abc X\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "NONSENSE\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n",
        ] {
            assert_eq!(answer(bad), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn ends_are_found_however_the_bytes_come() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nb: c\r\n\r\nrest";
        for split in 0..head.len() {
            let mut search = Search::default();
            let early = search.find(&head[..split]);
            let end = head.len() - 4;
            assert_eq!(early, (split >= end).then_some(end), "{split}");
            assert_eq!(early.or_else(|| search.find(head)), Some(end), "{split}");
        }
    }

    #[test]
    fn dates() {
        for (unix, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_804_204_799, "Thu, 04 Mar 2027 23:59:59 GMT"),
        ] {
            let mut out = Vec::new();
            format_date(&mut out, unix).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
