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
                        false => c.fail(format!("{host:?} is not a host"), "a host name without port, which has a field of its own"),
                    }
                }),
                port: f.opt("port", |c| match &c.node.value {
                    crate::doc::Value::Text(_) => c.word(&[("scheme", Port::OfScheme), ("request", Port::OfRequest)]),
                    _ => c.port().map(Port::Number),
                }),
                path: f.opt("path", Path::read),
            };
            if ["scheme", "host", "port", "path"].iter().all(|name| !f.has(name)) {
                return f.fail("", "would send the client back to where it came from", "name a scheme, host, port or path");
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
                    false => c.fail(format!("{text:?} is not a path"), "a path starts with / and has no blanks and no fragment"),
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
