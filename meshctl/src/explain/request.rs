//! The request that is asked about, as a sidecar reads it.

use crate::error::{Error, Result};
use weft_policy::headers::{is_hop_by_hop, is_ours};
use weft_policy::path;
use weft_policy::view::{Fields, FieldsMut};

#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub method: String,
    /// Host and port as the Host header has them.
    pub authority: String,
    /// The Host's port, if it has one.
    pub written: Option<u16>,
    /// Host without port, in lower case.
    pub host: String,
    /// What the app looks up and dials, which a Host header does not change.
    pub name: String,
    pub port: u16,
    /// As the app writes it, with its query.
    pub target: String,
    /// Canonical.
    pub path: String,
    pub query: Option<String>,
    pub headers: Headers,
}

impl Asked {
    pub fn read(method: &str, url: &str, headers: &[String]) -> Result<Self> {
        const HINT: &str = "such as http://web:8080/path?a=b";
        let method = method.to_ascii_uppercase();
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(Error::new(format!("{method:?} is no method"), "GET, POST and the like"));
        }
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                return Err(Error::new(
                    "a sidecar sees TLS that the app makes itself as bytes: no routes, no retries",
                    "let the app call http://, and the mesh encrypts it",
                ));
            }
            Some((scheme, _)) => return Err(Error::new(format!("{scheme} is not HTTP"), HINT)),
            None => url,
        };
        let split = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(split);
        let target = match target.split('#').next().unwrap_or_default() {
            "" => "/".to_string(),
            query if query.starts_with('?') => format!("/{query}"),
            target => target.to_string(),
        };
        let (name, port) = host_and_port(authority).ok_or_else(|| Error::new(format!("{url:?} has no host"), HINT))?;
        let mut asked = Headers::default();
        let mut host = None;
        for header in headers {
            let (key, value) = header
                .split_once(':')
                .map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim()))
                .filter(|(key, _)| !key.is_empty() && !key.contains(char::is_whitespace))
                .ok_or_else(|| Error::new(format!("{header:?} is no header"), "-H 'user-agent: curl'"))?;
            match key.as_str() {
                "host" => host = Some(value.to_string()),
                // What belongs to a connection, and what only proxies may set, a sidecar takes away first.
                key if is_hop_by_hop(key) || is_ours(key) => {}
                key => asked.append(key, value.as_bytes()),
            }
        }
        let authority = host.unwrap_or_else(|| authority.to_string());
        let (host, written) =
            host_and_port(&authority).ok_or_else(|| Error::new(format!("{authority:?} is no Host"), HINT))?;
        let read = path::parse(&target).map_err(|e| Error::new(format!("{target:?}: {e}"), HINT))?;
        if asked.first("x-forwarded-proto").is_none() {
            asked.append("x-forwarded-proto", b"http");
        }
        asked.append("x-mesh-hops", b"1");
        Ok(Self {
            method,
            path: read.path.into_owned(),
            query: read.query.map(str::to_string),
            host: host.trim_end_matches('.').to_ascii_lowercase(),
            authority,
            written,
            name: name.to_ascii_lowercase(),
            port: port.unwrap_or(80),
            target,
            headers: asked,
        })
    }
}

fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok().filter(|p| *p > 0)?)),
        _ => (authority, None),
    };
    let valid = !host.is_empty() && !host.contains(['@', ' ', '/']);
    valid.then(|| (host.to_string(), port))
}

/// Fields in order, names in lower case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers(pub Vec<(String, String)>);

impl Fields for Headers {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        let _ = self.0.iter().filter(|(n, _)| n == name).all(|(_, value)| visit(value.as_bytes()));
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_bytes())
    }
}

impl FieldsMut for Headers {
    fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.append(name, value);
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        self.0.push((name.to_string(), String::from_utf8_lossy(value).into_owned()));
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let read = |url: &str| Asked::read("get", url, &[]);
        let asked = read("http://Web.demo:8080/a/../b?x=1#f").unwrap();
        assert_eq!((asked.method.as_str(), asked.authority.as_str()), ("GET", "Web.demo:8080"));
        assert_eq!((asked.host.as_str(), asked.port, asked.written), ("web.demo", 8080, Some(8080)));
        assert_eq!((asked.path.as_str(), asked.query.as_deref()), ("/b", Some("x=1")));
        let asked = read("web?q").unwrap();
        assert_eq!((asked.target.as_str(), asked.port, asked.written), ("/?q", 80, None));
        for bad in ["", "https://web/", "ftp://web", "http://", "http://web:0/", "http://a@b/", "http://web:x/"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers() {
        let read = |headers: &[&str]| {
            Asked::read("GET", "http://web:80/", &headers.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let asked = read(&["X-User: a", "x-user:b", "Host: other:81", "Connection: close", "x-envoy-x: 1"]).unwrap();
        assert_eq!(asked.headers.joined("x-user", &mut Vec::new()), Some(&b"a,b"[..]));
        assert_eq!((asked.host.as_str(), asked.written, asked.name.as_str()), ("other", Some(81), "web"));
        assert!(asked.headers.first("connection").is_none() && asked.headers.first("x-envoy-x").is_none());
        assert!(read(&["x"]).is_err() && read(&[": x"]).is_err());
    }
}
