//! Sending the client elsewhere. The answer has an absolute `location` and no body.
//!
//! ```yaml
//! redirect:
//!   status: 302                 # 301 (default), 302, 303, 307, 308
//!   scheme: https
//!   host: www.example.com
//!   port: 8443                  # or `scheme` (the scheme's own), `request` (the one in the request's Host)
//!   path: {full: /new}          # or {pathPrefix: /new}, {prefix: /new}
//! ```
//!
//! What is not named stays as in the request, the query too (unless `full` has one of its own). Without `port`, a new host or
//! scheme drops the request's port; a port that is the scheme's own is not written. Has no state.

use crate::doc::Cursor;
use crate::matcher::PathMatch;
use crate::reason::Reason;
use crate::rewrite::{self, PathRewrite};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub status: u16,
    pub scheme: Option<Scheme>,
    /// Host without port.
    pub host: Option<Box<str>>,
    pub port: Option<Port>,
    pub path: Option<Path>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Number(u16),
    /// 80 or 443.
    OfScheme,
    OfRequest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// As written; a query in it takes the place of the request's.
    Full(Box<str>),
    Rewrite(PathRewrite),
}

/// The request as the client addressed it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub scheme: &'a str,
    pub host: &'a str,
    /// The port written in the authority.
    pub port: Option<u16>,
    pub path: &'a str,
    pub query: Option<&'a str>,
}

impl Default for Config {
    fn default() -> Self {
        Self { status: 301, scheme: None, host: None, port: None, path: None }
    }
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let config = Self {
                status: f.or("status", 301, |c| match c.u16()? {
                    status @ (301 | 302 | 303 | 307 | 308) => Some(status),
                    other => c.fail(format!("{other} is not a redirect"), "one of 301, 302, 303, 307, 308"),
                }),
                scheme: f.opt("scheme", |c| c.word(&[("http", Scheme::Http), ("https", Scheme::Https)])),
                host: f.opt("host", |c| {
                    let host = c.text()?;
                    match rewrite::is_host(&host) {
                        true => Some(host.into()),
                        false => c.fail(
                            format!("{host:?} is not a host"),
                            "a host name without port, which has a field of its own",
                        ),
                    }
                }),
                port: f.opt("port", |c| match &c.node.value {
                    crate::doc::Value::Text(_) => c.word(&[("scheme", Port::OfScheme), ("request", Port::OfRequest)]),
                    _ => c.port().map(Port::Number),
                }),
                path: f.opt("path", Path::read),
            };
            if ["scheme", "host", "port", "path"].iter().all(|name| !f.has(name)) {
                return f.fail(
                    "",
                    "would send the client back to where it came from",
                    "name a scheme, host, port or path",
                );
            }
            Some(config)
        })
    }

    /// The value of `location`.
    pub fn location(&self, matched: Option<&PathMatch>, r: &Request<'_>) -> Result<String, Reason> {
        let scheme = match self.scheme {
            Some(Scheme::Http) => "http",
            Some(Scheme::Https) => "https",
            None => r.scheme,
        };
        let port = match self.port {
            Some(Port::Number(port)) => Some(port),
            Some(Port::OfScheme) => None,
            Some(Port::OfRequest) => r.port,
            None if self.host.is_some() || scheme != r.scheme => None,
            None => r.port,
        };
        let mut out = format!("{scheme}://{}", self.host.as_deref().unwrap_or(r.host));
        match (port, scheme) {
            (None, _) | (Some(80), "http") | (Some(443), "https") => {}
            (Some(port), _) => out.push_str(&format!(":{port}")),
        }
        let mut query = r.query;
        match &self.path {
            None => out.push_str(r.path),
            Some(Path::Full(path)) => {
                out.push_str(path);
                query = query.filter(|_| !path.contains('?'));
            }
            Some(Path::Rewrite(path)) => out.push_str(&path.apply(matched, r.path)?),
        }
        if let Some(query) = query {
            out.push('?');
            out.push_str(query);
        }
        Ok(out)
    }

    pub fn needs_match(&self) -> bool {
        matches!(&self.path, Some(Path::Rewrite(path)) if path.needs_match())
    }
}

impl Path {
    fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        const HINT: &str = "one of {full: /a}, {pathPrefix: /a} and {prefix: /a}";
        if !matches!(c.node.value, crate::doc::Value::Map(_)) {
            return c.fail("a redirect's path says what it replaces", HINT);
        }
        c.fields(|f| {
            let names = ["full", "pathPrefix", "prefix"];
            let count = names.iter().filter(|n| f.has(n)).count();
            let found = f.opt("full", |c| {
                let text = c.text()?;
                // Istio puts texts such as %PREFIX()% out literally, so escapes are not looked at.
                let valid = |b: u8| b > b' ' && b < 0x7f && b != b'#' && b != b'\\';
                match text.starts_with('/') && text.bytes().all(valid) {
                    true => Some(Self::Full(text.into())),
                    false => c.fail(
                        format!("{text:?} is not a path"),
                        "a path starts with / and has no blanks and no fragment",
                    ),
                }
            });
            let prefix = |c: &mut Cursor<'_, '_>| rewrite::literal_path(c);
            let found = found.or(f.opt("prefix", prefix).map(|p| Self::Rewrite(PathRewrite::Prefix(p))));
            let found = found.or(f
                .opt("pathPrefix", prefix)
                .map(|p| Self::Rewrite(PathRewrite::PathPrefix(p.trim_end_matches('/').into()))));
            if count != 1 {
                return f.fail("", "one replacement is needed", HINT);
            }
            found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::read;

    #[test]
    fn locations() {
        const PLAIN: Request<'_> =
            Request { scheme: "http", host: "echo", port: None, path: "/old/x", query: Some("a=1") };
        let at = |port| Request { port: Some(port), ..PLAIN };
        let tls = Request { scheme: "https", ..PLAIN };
        let old = PathMatch::prefix("/old");
        let segments = PathMatch::path_prefix("/old");
        for (json, matched, request, expected) in [
            // as observed: absolute, the request's authority, the query kept
            (r#"{"path": {"full": "/new"}}"#, &old, PLAIN, "http://echo/new?a=1"),
            (r#"{"path": {"full": "/new"}}"#, &old, at(8080), "http://echo:8080/new?a=1"),
            (r#"{"host": "other"}"#, &old, PLAIN, "http://other/old/x?a=1"),
            (r#"{"host": "other"}"#, &old, at(8080), "http://other/old/x?a=1"),
            (r#"{"scheme": "https"}"#, &old, PLAIN, "https://echo/old/x?a=1"),
            (r#"{"scheme": "https"}"#, &old, at(80), "https://echo/old/x?a=1"),
            (r#"{"scheme": "https"}"#, &old, at(8080), "https://echo/old/x?a=1"),
            (r#"{"scheme": "http"}"#, &old, at(8080), "http://echo:8080/old/x?a=1"),
            (r#"{"port": 8443}"#, &old, PLAIN, "http://echo:8443/old/x?a=1"),
            (r#"{"port": 8443}"#, &old, at(80), "http://echo:8443/old/x?a=1"),
            (r#"{"path": {"full": "/%PREFIX()%/x"}}"#, &old, PLAIN, "http://echo/%PREFIX()%/x?a=1"),
            (r#"{"path": {"full": "/new?b=2"}}"#, &old, PLAIN, "http://echo/new?b=2"),
            // a port that is the scheme's own is not written
            (r#"{"port": 443, "scheme": "https"}"#, &old, PLAIN, "https://echo/old/x?a=1"),
            (r#"{"port": 80}"#, &old, at(8080), "http://echo/old/x?a=1"),
            (r#"{"port": 80}"#, &old, tls, "https://echo:80/old/x?a=1"),
            (r#"{"port": "scheme"}"#, &old, at(8080), "http://echo/old/x?a=1"),
            (r#"{"port": "request", "host": "other"}"#, &old, at(8080), "http://other:8080/old/x?a=1"),
            (r#"{"port": "request", "scheme": "https"}"#, &old, at(8080), "https://echo:8080/old/x?a=1"),
            // prefixes
            (r#"{"path": {"pathPrefix": "/new"}}"#, &segments, PLAIN, "http://echo/new/x?a=1"),
            (r#"{"path": {"pathPrefix": "/"}}"#, &segments, PLAIN, "http://echo/x?a=1"),
            (r#"{"path": {"prefix": "/newer"}}"#, &old, PLAIN, "http://echo/newer/x?a=1"),
        ] {
            let config = read(Config::read, json).unwrap_or_else(|e| panic!("{json}: {e:?}"));
            assert_eq!(config.location(Some(matched), &request).as_deref(), Ok(expected), "{json}");
        }
    }

    #[test]
    fn reading() {
        for status in [301, 302, 303, 307, 308] {
            let config = read(Config::read, &format!(r#"{{"host": "a", "status": {status}}}"#)).unwrap();
            assert_eq!(config.status, status);
        }
        assert_eq!(read(Config::read, r#"{"host": "a"}"#).unwrap().status, 301);
        for bad in [
            r#"{}"#,
            r#"{"status": 302}"#,
            r#"{"host": "a", "status": 300}"#,
            r#"{"host": "a", "status": 304}"#,
            r#"{"scheme": "ftp"}"#,
            r#"{"host": "a:80"}"#,
            r#"{"host": "a/b"}"#,
            r#"{"port": 0}"#,
            r#"{"port": "http"}"#,
            r#"{"path": "/a"}"#,
            r#"{"path": {}}"#,
            r#"{"path": {"full": "a"}}"#,
            r#"{"path": {"full": "/a\r\nb"}}"#,
            r#"{"path": {"full": "/a", "prefix": "/b"}}"#,
            r#"{"uri": "/a"}"#,
        ] {
            assert!(read(Config::read, bad).is_err(), "{bad}");
        }
        let needs = |json: &str| read(Config::read, json).unwrap().needs_match();
        assert!(
            needs(r#"{"path": {"prefix": "/a"}}"#)
                && !needs(r#"{"path": {"full": "/a"}}"#)
                && !needs(r#"{"host": "a"}"#)
        );
    }
}
