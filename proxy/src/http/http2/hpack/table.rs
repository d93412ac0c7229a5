//! The static table, and what names and values are once they are read.

use bytes::Bytes;
use http::header::*;
use http::{HeaderName, HeaderValue};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pseudo {
    Authority,
    Method,
    Path,
    Scheme,
    Status,
    /// Of extended CONNECT, which is not offered.
    Protocol,
}

impl Pseudo {
    pub const fn text(self) -> &'static str {
        match self {
            Pseudo::Authority => ":authority",
            Pseudo::Method => ":method",
            Pseudo::Path => ":path",
            Pseudo::Scheme => ":scheme",
            Pseudo::Status => ":status",
            Pseudo::Protocol => ":protocol",
        }
    }

    pub fn of(text: &[u8]) -> Option<Self> {
        Some(match text {
            b":authority" => Pseudo::Authority,
            b":method" => Pseudo::Method,
            b":path" => Pseudo::Path,
            b":scheme" => Pseudo::Scheme,
            b":status" => Pseudo::Status,
            b":protocol" => Pseudo::Protocol,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone)]
pub enum Name {
    Pseudo(Pseudo),
    Field(HeaderName),
    /// Not a name: whoever sends it is malformed, but has a place in the table.
    Bad,
}

#[derive(Debug, Clone)]
pub enum Value {
    Pseudo(Bytes),
    Field(HeaderValue),
    Bad,
}

/// The last index of the static table.
pub const STATIC: usize = 61;

/// Entries 1 to 14: `:name`, value.
pub static PSEUDO: [(Pseudo, &str); 14] = [
    (Pseudo::Authority, ""),
    (Pseudo::Method, "GET"),
    (Pseudo::Method, "POST"),
    (Pseudo::Path, "/"),
    (Pseudo::Path, "/index.html"),
    (Pseudo::Scheme, "http"),
    (Pseudo::Scheme, "https"),
    (Pseudo::Status, "200"),
    (Pseudo::Status, "204"),
    (Pseudo::Status, "206"),
    (Pseudo::Status, "304"),
    (Pseudo::Status, "400"),
    (Pseudo::Status, "404"),
    (Pseudo::Status, "500"),
];

/// Entries 15 to 61. Only one of them has a value.
pub static FIELDS: [HeaderName; 47] = [
    ACCEPT_CHARSET,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    ACCEPT_RANGES,
    ACCEPT,
    ACCESS_CONTROL_ALLOW_ORIGIN,
    AGE,
    ALLOW,
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_DISPOSITION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_LOCATION,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    DATE,
    ETAG,
    EXPECT,
    EXPIRES,
    HeaderName::from_static("from"),
    HOST,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    LAST_MODIFIED,
    LINK,
    LOCATION,
    MAX_FORWARDS,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    RANGE,
    REFERER,
    REFRESH,
    RETRY_AFTER,
    SERVER,
    SET_COOKIE,
    STRICT_TRANSPORT_SECURITY,
    TRANSFER_ENCODING,
    USER_AGENT,
    VARY,
    VIA,
    WWW_AUTHENTICATE,
];

pub const GZIP_INDEX: usize = 16;
pub const GZIP: &str = "gzip, deflate";

/// The first entry of a name, or 0.
pub fn static_name(text: &str) -> u8 {
    let pseudo = PSEUDO.iter().position(|(name, _)| name.text() == text).map(|i| i + 1);
    let index = pseudo.or_else(|| FIELDS.iter().position(|name| name.as_str() == text).map(|i| i + 15));
    index.unwrap_or(0) as u8
}
