//! A strict reader of HTTP/1 requests (RFC 9112, and stricter where the contract is), written from the rules and not from the
//! proxy's code. It judges both what is sent to the proxy and what the proxy sends on.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub old: bool,
    /// Names in lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, Vec<u8>)>,
    /// Nothing follows it on its connection.
    pub last: bool,
    /// Something in it is valid, and may yet be refused.
    pub odd: bool,
}

impl Request {
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_slice())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Between two requests.
    Clean,
    /// In the middle of one.
    Incomplete,
    Malformed(&'static str),
}

#[derive(Debug)]
pub struct Reading {
    pub requests: Vec<Request>,
    pub end: End,
    /// Bytes of whole requests.
    pub used: usize,
    /// The head of the request in which reading ended, where that was whole and valid.
    pub begun: Option<Request>,
}

enum Stop {
    Short,
    Bad(&'static str),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

pub fn read(bytes: &[u8]) -> Reading {
    let mut reader = Reader { bytes, at: 0 };
    let mut requests = Vec::new();
    loop {
        let used = reader.at;
        if used == bytes.len() {
            return Reading { requests, end: End::Clean, used, begun: None };
        }
        let mut begun = None;
        let stop = match reader.request(&mut begun) {
            Ok(request) => {
                let last = request.last;
                requests.push(request);
                if last {
                    return Reading { requests, end: End::Clean, used: reader.at, begun: None };
                }
                continue;
            }
            Err(stop) => stop,
        };
        let end = match stop {
            Stop::Short => End::Incomplete,
            Stop::Bad(why) => End::Malformed(why),
        };
        return Reading { requests, end, used, begun };
    }
}

impl<'a> Reader<'a> {
    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let rest = &self.bytes[self.at..];
        let Some(lf) = rest.iter().position(|b| *b == b'\n') else {
            // A bare CR that something else follows is a fault already.
            let bare = rest.iter().position(|b| *b == b'\r').is_some_and(|at| at + 1 < rest.len());
            return Err(if bare { Stop::Bad("bare CR") } else { Stop::Short });
        };
        let line = &rest[..lf];
        self.at += lf + 1;
        let Some(line) = line.strip_suffix(b"\r") else { return Err(Stop::Bad("bare LF")) };
        if line.contains(&b'\r') {
            return Err(Stop::Bad("bare CR"));
        }
        Ok(line)
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Stop> {
        let left = (self.bytes.len() - self.at) as u64;
        if n > left {
            return Err(Stop::Short);
        }
        let taken = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(taken)
    }

    fn fields(&mut self) -> Result<Vec<(String, Vec<u8>)>, Stop> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let Some(colon) = line.iter().position(|b| *b == b':') else { return Err(Stop::Bad("no colon")) };
            let name = &line[..colon];
            if !is_token(name) {
                return Err(Stop::Bad("field name"));
            }
            let value = trim(&line[colon + 1..]);
            if value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
                return Err(Stop::Bad("control byte in a value"));
            }
            fields.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()));
        }
    }

    fn request(&mut self, begun: &mut Option<Request>) -> Result<Request, Stop> {
        let mut odd = false;
        let mut line = self.line()?;
        while line.is_empty() {
            odd = true;
            line = self.line()?;
        }
        let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let [method, target, version] = words[..] else { return Err(Stop::Bad("request line")) };
        let old = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(Stop::Bad("version")),
        };
        if !is_token(method) {
            return Err(Stop::Bad("method"));
        }
        if target.is_empty() || target.iter().any(|b| *b <= 0x20 || *b == 0x7f) {
            return Err(Stop::Bad("target"));
        }
        let fields = self.fields()?;
        let all = |name: &str| -> Vec<&[u8]> {
            fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_slice()).collect()
        };
        match all("host")[..] {
            [] if old => {}
            // What had none gets an empty one on its way.
            [[]] => odd = true,
            [host] => {
                if !is_authority(host) {
                    return Err(Stop::Bad("host"));
                }
            }
            _ => return Err(Stop::Bad("not one host")),
        }
        let length = match all("content-length")[..] {
            [] => None,
            [one] if !one.is_empty() && one.iter().all(u8::is_ascii_digit) => {
                let text = String::from_utf8_lossy(one);
                // Leading zeros are digits too; who refuses them is careful, not wrong.
                odd |= one.len() > 1 && one[0] == b'0';
                Some(text.parse::<u64>().ok().filter(|n| *n < 1 << 62).ok_or(Stop::Bad("content-length"))?)
            }
            _ => return Err(Stop::Bad("content-length")),
        };
        let chunked = match all("transfer-encoding")[..] {
            [] => false,
            [one] if one.eq_ignore_ascii_case(b"chunked") && !old && length.is_none() => true,
            _ => return Err(Stop::Bad("transfer-encoding")),
        };
        match (method, target.first()) {
            (b"CONNECT", _) if is_authority(target) && target.contains(&b':') => {}
            (b"CONNECT", _) => return Err(Stop::Bad("target of CONNECT")),
            (b"OPTIONS", Some(b'*')) if target == b"*" => {}
            (_, Some(b'/')) => {}
            _ if target.starts_with(b"http://") => {
                let rest = &target[7..];
                let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
                if !is_authority(&rest[..end]) || end == 0 {
                    return Err(Stop::Bad("authority"));
                }
            }
            _ => return Err(Stop::Bad("target form")),
        }
        // A fragment, a byte that should have been escaped: one may forgive, and one may not.
        odd |= target.iter().any(|b| *b >= 0x80 || b"#\"<>\\^`{|}".contains(b));
        odd |= fields.iter().any(|(n, _)| n == "expect" || n == "upgrade");
        odd |= old;
        let words: Vec<String> = all("connection")
            .iter()
            .flat_map(|v| v.split(|b| *b == b',').map(|w| String::from_utf8_lossy(trim(w)).to_ascii_lowercase()))
            .collect();
        let last = words.iter().any(|w| w == "close") || (old && !words.iter().any(|w| w == "keep-alive"));
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let mut request = Request {
            method: text(method),
            target: text(target),
            old,
            fields,
            body: Vec::new(),
            trailers: Vec::new(),
            last,
            odd,
        };
        *begun = Some(request.clone());
        if let Some(length) = length {
            request.body = self.take(length)?.to_vec();
        }
        if chunked {
            self.chunks(&mut request)?;
        }
        Ok(request)
    }

    fn chunks(&mut self, request: &mut Request) -> Result<(), Stop> {
        loop {
            // A fault in a size shows before its line is over.
            let rest = &self.bytes[self.at..];
            let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
            match rest.get(digits) {
                None => return Err(Stop::Short),
                Some(b'\r') if digits > 0 && rest.get(digits + 1).is_none() => return Err(Stop::Short),
                Some(b'\r') if digits > 0 && rest[digits + 1] == b'\n' => {}
                Some(b';') if digits > 0 => request.odd = true,
                _ => return Err(Stop::Bad("chunk size")),
            }
            let line = self.line()?;
            if line.len() > 4096 {
                return Err(Stop::Bad("chunk extension"));
            }
            let digits = &line[..digits];
            let size = u64::from_str_radix(&String::from_utf8_lossy(digits), 16);
            let size = size.ok().filter(|n| *n < 1 << 60 && digits.len() < 16).ok_or(Stop::Bad("chunk size"))?;
            if size == 0 {
                request.trailers = self.fields()?;
                request.odd |= !request.trailers.is_empty();
                return Ok(());
            }
            request.body.extend_from_slice(self.take(size)?);
            match self.bytes[self.at..] {
                [] | [b'\r'] => return Err(Stop::Short),
                [b'\r', b'\n', ..] => self.at += 2,
                _ => return Err(Stop::Bad("after a chunk")),
            }
        }
    }
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// `host` or `host:port`, port 1 to 65535.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text.iter().rposition(|b| *b == b':') {
        Some(at) if !text[at..].contains(&b']') => (&text[..at], Some(&text[at + 1..])),
        _ => (text, None),
    };
    let host_ok = if let Some(inside) = host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]")) {
        String::from_utf8_lossy(inside).parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !host.is_empty() && host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(b))
    };
    let port_ok = port.is_none_or(|p| {
        p.iter().all(u8::is_ascii_digit) && matches!(String::from_utf8_lossy(p).parse::<u16>(), Ok(1..))
    });
    host_ok && port_ok
}
