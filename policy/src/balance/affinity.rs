//! What of a request decides where it goes, where an algorithm hashes; and the cookie that pins clients who bring none.
//!
//! A cookie with a lifetime is issued with the answer as `user="9b1fba1bc8063eee"; Max-Age=60; HttpOnly`, and its value decides
//! already where this request goes.

use super::{Config, hash};
use crate::doc::Cursor;
use crate::view::{Fields, RequestView};
use std::net::IpAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// All values of the field.
    Header(String),
    Cookie {
        name: String,
        path: Option<String>,
        /// Issue the cookie where it is missing; zero for as long as the browser runs.
        ttl: Option<Duration>,
    },
    SourceIp,
    /// The first parameter of this name, as it is written.
    Query(String),
}

impl HashOn {
    pub(super) fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let token = |c: &mut Cursor<'_, '_>| match c.text()? {
                name if is_token(&name) => Some(name),
                name => c.fail(format!("{name:?} is not a valid name"), "letters, digits and !#$%&'*+-.^_`|~"),
            };
            let header = f.opt("header", token).map(|name| HashOn::Header(name.to_ascii_lowercase()));
            let query = f.opt("query", |c| c.text()).map(HashOn::Query);
            let ip = f.opt("sourceIp", |c| c.bool()).filter(|on| *on).map(|_| HashOn::SourceIp);
            let cookie = f.opt("cookie", |c| {
                c.fields(|f| {
                    let name = f.req("name", token);
                    let path = f.opt("path", |c| match c.text()? {
                        path if path.bytes().all(|b| b.is_ascii_graphic() && b != b';') => Some(path),
                        path => {
                            c.fail(format!("{path:?} is not a cookie's path"), "a path without blanks and semicolons")
                        }
                    });
                    let ttl = f.opt("ttl", |c| c.duration());
                    Some(HashOn::Cookie { name: name?, path, ttl })
                })
            });
            let mut given = [header, query, ip, cookie].into_iter().flatten();
            match (given.next(), given.next()) {
                (Some(one), None) => Some(one),
                _ => f.fail("", "one source of a hash is needed here", "one of header, cookie, query, sourceIp"),
            }
        })
    }
}

/// Where a request belongs, and what its answer must carry so that the next one does too.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Affinity {
    /// `None`: the request has none of the sources.
    pub hash: Option<u64>,
    /// Values of `set-cookie`.
    pub set_cookie: Vec<String>,
}

impl Config {
    pub fn affinity(&self, request: &RequestView<'_>, random: &mut dyn FnMut() -> u64) -> Affinity {
        let mut out = Affinity::default();
        let mut buffer = Vec::new();
        for source in &self.hash {
            let found = match source {
                HashOn::Header(name) => request.fields.joined(name, &mut buffer).map(hash::bytes),
                HashOn::SourceIp => Some(hash_ip(request.source_ip())),
                HashOn::Query(name) => request.query.and_then(|q| query(q, name)).map(|v| hash::bytes(v.as_bytes())),
                HashOn::Cookie { name, path, ttl } => cookie(request.fields, name).or_else(|| {
                    let ttl = (*ttl)?;
                    let value = format!("{:016x}", random());
                    out.set_cookie.push(issue(name, &value, path.as_deref(), ttl));
                    Some(hash::bytes(value.as_bytes()))
                }),
            };
            if let Some(found) = found {
                out.hash = Some(out.hash.map_or(found, |before| before.rotate_left(1) ^ found));
            }
        }
        out
    }
}

/// A v4 address is the same client inside a v6 one.
fn hash_ip(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => hash::bytes(&ip.octets()),
        IpAddr::V6(ip) => hash::bytes(&ip.octets()),
    }
}

fn query<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The hash of the first cookie of this name; quotes are not part of a value.
fn cookie(fields: &dyn Fields, name: &str) -> Option<u64> {
    let mut found = None;
    fields.each("cookie", &mut |line| {
        let mut pairs = line.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        found = pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")).map(|value| {
            let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
            hash::bytes(bare.unwrap_or(value))
        });
        found.is_none()
    });
    found
}

fn issue(name: &str, value: &str, path: Option<&str>, ttl: Duration) -> String {
    let mut out = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        out.push_str(&format!("; Max-Age={}", ttl.as_secs().max(1)));
    }
    if let Some(path) = path {
        out.push_str(&format!("; Path={path}"));
    }
    out.push_str("; HttpOnly");
    out
}

fn is_token(name: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(valid)
}
