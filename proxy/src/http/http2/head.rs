//! Heads and trailers as they come out of HPACK, and the rules they must keep (RFC 9113, 8.2 and 8.3).

use super::hpack::{Pseudo, Sink};
use crate::http::exchange::{FieldMap, Head};
use crate::http::fields::Fields;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, COOKIE, TE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

/// The message breaks a rule: its stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A list of fields while it is read.
#[derive(Debug)]
pub struct List {
    method: Option<Bytes>,
    scheme: Option<Bytes>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    status: Option<Bytes>,
    fields: Fields,
    /// More fields than anybody may send.
    most: usize,
    too_many: bool,
    /// In HTTP/2 a cookie may come in crumbs; HTTP/1 knows only whole ones.
    crumbs: Option<Vec<u8>>,
    /// Of the body that is to follow.
    length: Option<u64>,
    regular: bool,
    malformed: bool,
}

impl List {
    /// With room for so many fields, and for no more than `most`.
    pub fn new(room: usize, most: usize) -> Self {
        Self {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            status: None,
            fields: Fields::with_capacity(room),
            most,
            too_many: false,
            crumbs: None,
            length: None,
            regular: false,
            malformed: false,
        }
    }

    pub fn len(&self) -> usize {
        self.fields.len()
    }

    pub fn is_too_long(&self) -> bool {
        self.too_many
    }

    fn take_fields(&mut self) -> Result<Fields, Malformed> {
        if let Some(cookie) = self.crumbs.take() {
            let cookie = HeaderValue::from_maybe_shared(Bytes::from(cookie)).map_err(|_| Malformed)?;
            self.fields.insert(COOKIE, cookie);
        }
        Ok(std::mem::take(&mut self.fields))
    }

    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The target's last authority is remembered: clients rarely have two.
    pub fn request(mut self, known: &mut Option<Authority>) -> Result<Head, Malformed> {
        if self.malformed || self.status.is_some() {
            return Err(Malformed);
        }
        let fields = self.take_fields()?;
        let method = Method::from_bytes(&self.method.ok_or(Malformed)?).map_err(|_| Malformed)?;
        let authority = match self.authority {
            None => None,
            Some(text) => match known {
                Some(known) if known.as_str().as_bytes() == text => Some(known.clone()),
                _ => {
                    // Its own memory: what is remembered must not hold on to a whole head.
                    let text = Bytes::copy_from_slice(&text);
                    let read = Authority::from_maybe_shared(text).map_err(|_| Malformed)?;
                    *known = Some(read.clone());
                    Some(read)
                }
            },
        };
        let connect = method == Method::CONNECT;
        let path = match self.path {
            None if connect && self.scheme.is_none() && authority.is_some() => PathAndQuery::from_static("/"),
            Some(path) if !connect && self.scheme.is_some_and(|s| !s.is_empty()) => {
                if path.first() != Some(&b'/') && path != "*" {
                    return Err(Malformed);
                }
                PathAndQuery::from_maybe_shared(path).map_err(|_| Malformed)?
            }
            _ => return Err(Malformed),
        };
        let asterisk = path.as_str() == "*";
        Ok(Head { method, version: Version::HTTP_2, authority, path, asterisk, fields: FieldMap(fields) })
    }

    pub fn response(mut self) -> Result<(StatusCode, Fields), Malformed> {
        let request = self.method.is_some() || self.scheme.is_some() || self.authority.is_some() || self.path.is_some();
        if self.malformed || request {
            return Err(Malformed);
        }
        let fields = self.take_fields()?;
        let status = StatusCode::from_bytes(&self.status.ok_or(Malformed)?).map_err(|_| Malformed)?;
        Ok((status, fields))
    }

    pub fn trailers(mut self) -> Result<HeaderMap, Malformed> {
        let pseudo = [&self.method, &self.scheme, &self.authority, &self.path, &self.status];
        if self.malformed || pseudo.iter().any(|p| p.is_some()) {
            return Err(Malformed);
        }
        Ok(self.take_fields()?.into())
    }
}

impl Sink for List {
    fn pseudo(&mut self, name: Pseudo, value: Bytes) {
        let place = match name {
            Pseudo::Method => &mut self.method,
            Pseudo::Scheme => &mut self.scheme,
            Pseudo::Authority => &mut self.authority,
            Pseudo::Path => &mut self.path,
            Pseudo::Status => &mut self.status,
            Pseudo::Protocol => {
                self.malformed = true;
                return;
            }
        };
        self.malformed |= self.regular || place.is_some();
        *place = Some(value);
    }

    fn field(&mut self, name: HeaderName, value: HeaderValue) {
        self.regular = true;
        if is_hop(&name) || (name == TE && value != "trailers") {
            self.malformed = true;
            return;
        }
        if name == CONTENT_LENGTH {
            let length = length_of(value.as_bytes());
            self.malformed |= length.is_none() || self.length.is_some();
            self.length = length;
        }
        if name == COOKIE
            && let Some(before) = self.fields.get(&COOKIE)
        {
            let crumbs = self.crumbs.get_or_insert_with(|| before.as_bytes().to_vec());
            crumbs.extend_from_slice(b"; ");
            crumbs.extend_from_slice(value.as_bytes());
            return;
        }
        if self.fields.len() >= self.most {
            self.too_many = true;
            return;
        }
        self.fields.append(name, value);
    }

    fn bad(&mut self) {
        self.malformed = true;
    }
}

fn length_of(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 18 && text.iter().all(u8::is_ascii_digit);
    digits.then(|| text.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

/// What says how HTTP/1 frames its messages has no meaning here, and would have one behind the next hop.
pub fn is_hop(name: &HeaderName) -> bool {
    let name = name.as_str();
    match name.len() {
        7 => name == "upgrade",
        10 => name == "connection" || name == "keep-alive",
        16 => name == "proxy-connection",
        17 => name == "transfer-encoding",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &'static str)]) -> List {
        let mut fields = List::new(4, 10);
        for (name, value) in list {
            match Pseudo::of(name.as_bytes()) {
                Some(pseudo) => fields.pseudo(pseudo, Bytes::from_static(value.as_bytes())),
                None => fields.field(HeaderName::try_from(*name).unwrap(), HeaderValue::from_static(value)),
            }
        }
        fields
    }

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/a?b"), (":authority", "a:1")];

    #[test]
    fn requests() {
        let mut known = None;
        let head = fields(&GET).request(&mut known).unwrap();
        assert_eq!((head.path.as_str(), head.authority.unwrap().as_str()), ("/a?b", "a:1"));
        assert_eq!(known.clone().unwrap().as_str(), "a:1");
        for (i, (name, _)) in GET.iter().enumerate().take(3) {
            let mut less = GET.to_vec();
            less.remove(i);
            assert!(fields(&less).request(&mut known).is_err(), "without {name}");
        }
        for more in [
            (":path", "/b"),
            (":status", "200"),
            (":protocol", "websocket"),
            ("connection", "close"),
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("content-length", "+1"),
            ("content-length", "1, 1"),
            ("content-length", ""),
            ("content-length", "99999999999999999999"),
        ] {
            let list = [&GET[..], &[more]].concat();
            assert!(fields(&list).request(&mut known).is_err(), "with {more:?}");
        }
        for path in ["", "b", "http://x/", "/a b", "/\u{7f}"] {
            let list = [(":method", "GET"), (":scheme", "http"), (":path", path)];
            assert!(fields(&list).request(&mut known).is_err(), "{path:?}");
        }
        let late = [(":method", "GET"), (":scheme", "http"), ("a", "b"), (":path", "/")];
        assert!(fields(&late).request(&mut known).is_err());
        assert!(
            fields(&[(":method", "OPTIONS"), (":scheme", "http"), (":path", "*")])
                .request(&mut known)
                .unwrap()
                .asterisk
        );
        let connect = fields(&[(":method", "CONNECT"), (":authority", "a:1")]).request(&mut known).unwrap();
        assert_eq!(connect.method, Method::CONNECT);
        let te = [&GET[..], &[("te", "trailers"), ("content-length", "12")]].concat();
        assert_eq!(fields(&te).length(), Some(12));
        assert!(fields(&te).request(&mut known).is_ok());
    }

    #[test]
    fn crumbs_and_crowds() {
        let list = [&GET[..], &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]].concat();
        let head = fields(&list).request(&mut None).unwrap();
        assert_eq!(head.fields.0.get_all("cookie").collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
        let many = [&GET[..], &[("x", "y"); 10]].concat();
        assert!(!fields(&many).is_too_long());
        assert!(fields(&[&many[..], &[("x", "y")]].concat()).is_too_long());
    }

    #[test]
    fn responses_and_trailers() {
        assert_eq!(fields(&[(":status", "204"), ("a", "b")]).response().unwrap().0, 204);
        assert!(fields(&[("a", "b")]).response().is_err());
        assert!(fields(&[(":status", "20")]).response().is_err());
        assert!(fields(&[(":status", "200"), (":path", "/")]).response().is_err());
        assert_eq!(fields(&[("grpc-status", "0")]).trailers().unwrap().len(), 1);
        assert!(fields(&[(":status", "200")]).trailers().is_err());
    }
}
