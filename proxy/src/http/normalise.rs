//! The first thing that happens to a request: one reading of it is chosen, and everything after sees only that.
//!
//! The target becomes a checked authority and a canonical path. Fields that belong to one connection are removed, those a
//! client nominates in `Connection` first, so that it cannot have ours removed. Fields that only a proxy of the mesh may set
//! are removed unless a verified peer sent them.

use super::exchange::{FieldMap, Head};
use super::fields::{Fields, number};
use http::header::{CONNECTION, HOST, TE, UPGRADE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use smallvec::SmallVec;
use weft_policy::path;
use weft_policy::reason::Reason;

pub const HOPS: HeaderName = HeaderName::from_static("x-mesh-hops");
/// Told from sidecar to sidecar: the app spoke HTTP/2.
pub const SPOKEN: HeaderName = HeaderName::from_static("x-mesh-http2");
pub const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub const L5D_CLIENT: HeaderName = HeaderName::from_static("l5d-client-id");

/// A chain of calls through apps that copy every header is shorter; a loop is not.
const MAX_HOPS: u32 = 64;

/// What the request asked for besides.
#[derive(Debug, Default)]
pub struct Asked {
    /// The value of `Upgrade`, or CONNECT.
    pub leaving: bool,
    pub upgrade: Option<HeaderValue>,
    /// The client's app spoke HTTP/2 (first hand, or told by a verified peer).
    pub http2: bool,
}

/// `trusted`: a verified peer of the mesh, whose proxy ran this already.
pub fn request(head: &mut Head, trusted: bool) -> Result<Asked, Reason> {
    authority(head)?;
    target(head)?;
    let mut asked = Asked { http2: head.version == Version::HTTP_2, ..Asked::default() };
    asked.leaving = head.method == Method::CONNECT;
    if head.version != Version::HTTP_2 {
        asked.upgrade = wanted_upgrade(&head.fields.0).cloned();
        asked.leaving |= asked.upgrade.is_some();
    }
    if trusted && head.fields.0.remove(SPOKEN).is_some() {
        asked.http2 = true;
    } else if trusted {
        asked.http2 = false;
    }
    strip(&mut head.fields.0, trusted);
    hops(&mut head.fields)?;
    Ok(asked)
}

fn authority(head: &mut Head) -> Result<(), Reason> {
    let fields = &mut head.fields.0;
    let mut hosts = fields.get_all(HOST);
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(Reason::Malformed);
    }
    drop(hosts);
    match (&head.authority, host) {
        (Some(authority), Some(host)) => {
            // HTTP/1: an absolute target overrules Host. HTTP/2: the two must agree.
            if head.version == Version::HTTP_2 && !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) {
                return Err(Reason::Malformed);
            }
            fields.remove(HOST);
        }
        (None, Some(host)) => {
            fields.remove(HOST);
            if !host.is_empty() {
                head.authority = Some(Authority::from_maybe_shared(bytes_of(&host)).map_err(|_| Reason::Malformed)?);
            }
        }
        (Some(_), None) => {}
        (None, None) if head.version >= Version::HTTP_11 => return Err(Reason::Malformed),
        (None, None) => {}
    }
    if let Some(authority) = &head.authority {
        let text = authority.as_str();
        let (host, port) = split(text);
        // Digits alone: the parser of numbers takes a sign as well.
        let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
        let bad_port = port.is_some_and(|port| !digits(port) || !matches!(port.parse::<u16>(), Ok(1..)));
        if bad_port || host.is_empty() || text.bytes().any(|b| b == b'@') {
            return Err(Reason::Malformed);
        }
    }
    Ok(())
}

/// The host of an authority without user, and what stands behind the colon, if there is one. `Authority` would parse all of it
/// again, several times a request.
pub fn split(authority: &str) -> (&str, Option<&str>) {
    let colon = authority.bytes().rposition(|b| matches!(b, b':' | b']'));
    match colon.filter(|at| authority.as_bytes()[*at] == b':') {
        Some(at) => (&authority[..at], Some(&authority[at + 1..])),
        None => (authority, None),
    }
}

fn bytes_of(value: &HeaderValue) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(value.as_bytes())
}

fn target(head: &mut Head) -> Result<(), Reason> {
    if head.asterisk {
        return if head.method == Method::OPTIONS { Ok(()) } else { Err(Reason::Malformed) };
    }
    if head.method == Method::CONNECT {
        return if head.authority.as_ref().is_some_and(|a| a.port_u16().is_some()) {
            Ok(())
        } else {
            Err(Reason::Malformed)
        };
    }
    let text = head.path.as_str();
    let target = path::parse(text).map_err(|_| Reason::Malformed)?;
    let unchanged = target.path.len() == head.path.path().len()
        && matches!(target.path, std::borrow::Cow::Borrowed(_))
        && target.query == head.path.query();
    if !unchanged {
        let canonical = match target.query {
            Some(query) => format!("{}?{query}", target.path),
            None => target.path.into_owned(),
        };
        head.path = PathAndQuery::from_maybe_shared(bytes::Bytes::from(canonical)).map_err(|_| Reason::Malformed)?;
    }
    Ok(())
}

/// The protocol a request wants to go on with. `h2c` is not one: nobody who means it needs the upgrade dance here.
fn wanted_upgrade(fields: &Fields) -> Option<&HeaderValue> {
    let upgrade = fields.get(UPGRADE)?;
    let nominated = fields.get_all(CONNECTION).any(|v| nominates(v, b"upgrade"));
    let h2c = upgrade.as_bytes().get(..3).is_some_and(|v| v.eq_ignore_ascii_case(b"h2c"));
    (nominated && !h2c).then_some(upgrade)
}

pub fn wants_upgrade(fields: &Fields) -> bool {
    wanted_upgrade(fields).is_some()
}

fn nominates(value: &HeaderValue, name: &[u8]) -> bool {
    value.as_bytes().split(|b| *b == b',').any(|v| v.trim_ascii().eq_ignore_ascii_case(name))
}

/// Whether a field is never passed on, whoever sent it.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
            | "te"
            | "expect"
            | "http2-settings"
    )
}

/// Whether a field is one of those that only proxies of the mesh set. `_` counts as `-`: too many apps cannot tell them apart.
fn is_ours(name: &str) -> bool {
    let starts = |prefix: &str| {
        name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(|(a, b)| a == b || (a == b'_' && b == b'-'))
    };
    if !name.starts_with('x') && !name.starts_with('l') {
        return false;
    }
    (starts("x-envoy-") || starts("x-mesh-") || starts("x-forwarded-client-cert") || starts("l5d-"))
        && name != "x-mesh-hops"
}

fn strip(fields: &mut Fields, trusted: bool) {
    let stays_here = |name: &str| is_hop_by_hop(name) || (!trusted && is_ours(name));
    // The common request has none of these: one pass over its names tells.
    if !fields.keys().any(|name| stays_here(name.as_str())) {
        return;
    }
    let trailers_welcome = fields.get_all(TE).any(|te| nominates(te, b"trailers"));
    let nominated = nominated(fields);
    fields.retain(|name, _| !stays_here(name.as_str()) && !nominated.contains(name));
    if trailers_welcome {
        fields.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// What `Connection` says is meant for this connection alone.
fn nominated(fields: &Fields) -> SmallVec<[HeaderName; 4]> {
    let words = fields.get_all(CONNECTION).flat_map(|value| value.as_bytes().split(|b| *b == b','));
    words.filter_map(|word| HeaderName::from_bytes(word.trim_ascii()).ok()).collect()
}

/// Counts the proxies a request has passed; past any honest number it runs in circles.
fn hops(fields: &mut FieldMap) -> Result<(), Reason> {
    let hops = match fields.0.get(HOPS) {
        None => 1,
        Some(value) => {
            let so_far: u32 = value.to_str().ok().and_then(|v| v.parse().ok()).unwrap_or(MAX_HOPS);
            if so_far >= MAX_HOPS {
                return Err(Reason::Loop);
            }
            so_far + 1
        }
    };
    fields.0.insert(HOPS, number(u64::from(hops)));
    Ok(())
}

/// Trailers are fields too, and come after the checks: the same names do not pass there.
pub fn request_trailers(trailers: &mut HeaderMap) {
    let names: SmallVec<[HeaderName; 4]> = trailers
        .keys()
        .filter(|n| is_ours(n.as_str()) || is_hop_by_hop(n.as_str()) || is_framing(n.as_str()))
        .cloned()
        .collect();
    for name in names {
        trailers.remove(name);
    }
}

fn is_framing(name: &str) -> bool {
    matches!(name, "content-length" | "host" | "authorization" | "cookie" | "content-type" | "trailer")
}

/// What belongs to the upstream connection stays there, and so does what one proxy of the mesh tells the next.
pub fn response(fields: &mut Fields) {
    let stays_here = |name: &str| is_hop_by_hop(name) || name.starts_with("x-mesh-");
    if !fields.keys().any(|name| stays_here(name.as_str())) {
        return;
    }
    let nominated = nominated(fields);
    fields.retain(|name, _| !stays_here(name.as_str()) && !nominated.contains(name));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: Method, version: Version, target: &'static str, fields: &[(&str, &str)]) -> Head {
        let mut map = Fields::default();
        for (name, value) in fields {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Head {
            method,
            version,
            authority: None,
            path: PathAndQuery::from_static(target),
            asterisk: false,
            fields: FieldMap(map),
        }
    }

    fn get(fields: &[(&str, &str)]) -> Head {
        head(Method::GET, Version::HTTP_11, "/a/../b?q", fields)
    }

    #[test]
    fn one_reading() {
        let mut h = get(&[("host", "Reviews:8080"), ("connection", "x-secret, keep-alive"), ("x-secret", "1")]);
        request(&mut h, false).unwrap();
        assert_eq!(h.path.as_str(), "/b?q");
        assert_eq!(h.authority.unwrap().as_str(), "Reviews:8080");
        assert!(h.fields.0.get("x-secret").is_none() && h.fields.0.get("connection").is_none());
        assert_eq!(h.fields.0.get("x-mesh-hops").unwrap(), "1");
    }

    #[test]
    fn hosts_and_ports() {
        for (authority, host, port) in [
            ("a.test:80", "a.test", Some("80")),
            ("a.test", "a.test", None),
            ("[::1]:80", "[::1]", Some("80")),
            ("[::1]", "[::1]", None),
            ("a:", "a", Some("")),
            (":80", "", Some("80")),
            ("", "", None),
        ] {
            assert_eq!(split(authority), (host, port), "{authority}");
        }
    }

    #[test]
    fn hosts() {
        for bad in ["a@b", "a:0", "a:65536", "a b", "a:x", "a/b", "a,b c"] {
            assert!(matches!(request(&mut get(&[("host", bad)]), false), Err(Reason::Malformed)), "{bad}");
        }
        assert!(matches!(request(&mut get(&[]), false), Err(Reason::Malformed)));
        assert!(request(&mut head(Method::GET, Version::HTTP_10, "/", &[]), false).is_ok());
        let mut h = head(Method::GET, Version::HTTP_2, "/", &[("host", "b")]);
        h.authority = Some(Authority::from_static("a"));
        assert!(matches!(request(&mut h, false), Err(Reason::Malformed)));
    }

    #[test]
    fn forged_fields_go_and_peers_keep_theirs() {
        let forged = [
            ("host", "a"),
            ("x-forwarded-client-cert", "By=x"),
            ("x_forwarded_client_cert", "By=x"),
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-mesh-error", "x"),
            ("l5d-client-id", "x"),
            ("x-request-id", "kept"),
            ("x-forwarded-for", "kept"),
        ];
        let mut h = get(&forged);
        request(&mut h, false).unwrap();
        let mut left: Vec<_> = h.fields.0.keys().map(|n| n.as_str().to_string()).collect();
        left.sort();
        assert_eq!(left, ["x-forwarded-for", "x-mesh-hops", "x-request-id"]);
        let mut h = get(&[("host", "a"), ("x-envoy-attempt-count", "2")]);
        request(&mut h, true).unwrap();
        assert_eq!(h.fields.0.get(ATTEMPT_COUNT).unwrap(), "2");
    }

    #[test]
    fn upgrades_and_loops() {
        let mut h = get(&[("host", "a"), ("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(request(&mut h, false).unwrap().upgrade.unwrap(), "websocket");
        let mut h = get(&[
            ("host", "a"),
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
        ]);
        assert!(!request(&mut h, false).unwrap().leaving);
        assert!(h.fields.0.get("http2-settings").is_none());
        let mut h = get(&[("host", "a"), ("x-mesh-hops", "64")]);
        assert!(matches!(request(&mut h, false), Err(Reason::Loop)));
        let mut h = get(&[("host", "a"), ("te", "gzip, trailers")]);
        request(&mut h, false).unwrap();
        assert_eq!(h.fields.0.get("te").unwrap(), "trailers");
    }
}
