//! Changing the path or the Host of a request on its way to the backend. Acts once per request, after routing; the query is
//! kept, and the app finds the path as the client sent it in `x-envoy-original-path`.
//!
//! ```yaml
//! rewrite:
//!   authority: reviews.example.com
//!   path: {pathPrefix: /v2}       # in place of the matched segments (Gateway API's replacePrefixMatch)
//!      #  {prefix: /}             # in place of the matched text (Istio): /a/c -> / makes //x of /a/c/x
//!      #  {full: /index.html}
//!      #  {regex: "^/user/(.*)$", to: '/u/\1'}   # every match, anywhere in the path
//! ```
//!
//! Where an exact or a regex match chose the route, a prefix replaces the whole path. The result is made canonical again, so
//! a rewrite cannot bring back `..`. Has no state.

use crate::doc::{Cursor, Value};
use crate::matcher::{self, PathMatch};
use crate::path::{self, PathError};
use crate::reason::Reason;
use regex_automata::meta::Regex;
use std::borrow::Cow;

pub const ORIGINAL_PATH: &str = "x-envoy-original-path";

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub path: Option<PathRewrite>,
    pub authority: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    Full(Box<str>),
    Prefix(Box<str>),
    /// Without a final `/`.
    PathPrefix(Box<str>),
    Regex(Substitution),
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let config = Self { path: f.opt("path", PathRewrite::read), authority: f.opt("authority", authority) };
            if !f.has("path") && !f.has("authority") {
                return f.fail("", "a rewrite changes something", "path: {...} or authority: HOST");
            }
            Some(config)
        })
    }

    /// The new request target, or `None` where the path stays. `matched` is the path match that chose the route.
    pub fn target(
        &self,
        matched: Option<&PathMatch>,
        path: &str,
        query: Option<&str>,
    ) -> Result<Option<String>, Reason> {
        let Some(rewrite) = &self.path else { return Ok(None) };
        let new = rewrite.apply(matched, path)?;
        if new == path {
            return Ok(None);
        }
        Ok(Some(with_query(new, query)))
    }
}

pub(crate) fn with_query(path: Cow<'_, str>, query: Option<&str>) -> String {
    let mut target = path.into_owned();
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    target
}

pub(crate) fn authority(c: &mut Cursor<'_, '_>) -> Option<Box<str>> {
    let text = c.text()?;
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && (!host.contains(':') || host.ends_with(']')) => {
            (host, Some(port))
        }
        _ => (&*text, None),
    };
    let port_ok = port.is_none_or(|p| p.parse::<u16>().is_ok());
    if !is_host(host) || !port_ok {
        return c.fail(
            format!("{text:?} is not a host"),
            "a host name or address, with a port if needed, as in example.com:8080",
        );
    }
    Some(text.into())
}

pub(crate) fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            !host.is_empty() && host.len() <= 253 && host.bytes().all(valid)
        }
    }
}

/// A path to write into requests or redirects.
pub(crate) fn literal_path(c: &mut Cursor<'_, '_>) -> Option<Box<str>> {
    let text = c.text()?;
    if !text.is_empty() && !text.starts_with('/') {
        return c.fail(format!("{text:?} is not a path"), "a path starts with /");
    }
    if text.contains(['?', '#']) {
        return c.fail("has a query or a fragment", "the path alone: the request's query is kept");
    }
    match path::canonical(&text) {
        Ok(path) if text.is_empty() || path == text => Some(text.into()),
        Ok(path) => c.fail(format!("{text:?} is not in canonical form"), &path),
        Err(why) => c.fail(why.to_string(), "a path as requests have it"),
    }
}

impl PathRewrite {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        const HINT: &str = "one of {full: /a}, {pathPrefix: /a}, {prefix: /a} and {regex: ..., to: ...}";
        if !matches!(c.node.value, Value::Map(_)) {
            return c.fail("a path rewrite says what it replaces", HINT);
        }
        c.fields(|f| {
            let names = ["full", "prefix", "pathPrefix", "regex"];
            if names.iter().filter(|n| f.has(n)).count() != 1 {
                for name in names.into_iter().chain(["to"]) {
                    f.opt(name, |_| Some(()));
                }
                return f.fail("", "one replacement is needed", HINT);
            }
            let found = f.opt("full", literal_path).map(|p| Self::Full(if p.is_empty() { "/".into() } else { p }));
            let found = found.or(f.opt("prefix", literal_path).map(Self::Prefix));
            let found =
                found.or(f.opt("pathPrefix", literal_path).map(|p| Self::PathPrefix(p.trim_end_matches('/').into())));
            let pattern = f.opt("regex", |c| c.text());
            if pattern.is_none() {
                return found;
            }
            let to = f.req("to", |c| c.text());
            match Substitution::parse(&pattern?, &to?) {
                Ok(substitution) => Some(Self::Regex(substitution)),
                Err(why) => f.fail("regex", why, r"a regex of RE2's syntax, with \1 to \9 in `to` for its groups"),
            }
        })
    }

    /// Whether the result depends on which path match chose the route.
    pub fn needs_match(&self) -> bool {
        matches!(self, Self::Prefix(_) | Self::PathPrefix(_))
    }

    /// The new path. Without a path match the route was chosen by a prefix of nothing but `/`.
    pub fn apply<'p>(&self, matched: Option<&PathMatch>, path: &'p str) -> Result<Cow<'p, str>, Reason> {
        if path == "*" {
            return Ok(Cow::Borrowed(path));
        }
        let new = match self {
            Self::Full(new) => new.to_string(),
            Self::Prefix(new) => {
                let len = matched.map_or(1, |m| m.matched_len(path)).min(path.len());
                format!("{new}{}", path.get(len..).unwrap_or_default())
            }
            Self::PathPrefix(new) => {
                let len = matched.map_or(0, |m| m.matched_len(path));
                format!("{new}{}", path.get(len..).unwrap_or_default())
            }
            Self::Regex(substitution) => match substitution.apply(path)? {
                Some(new) => new,
                None => return Ok(Cow::Borrowed(path)),
            },
        };
        let new = if new.starts_with('/') { new } else { format!("/{new}") };
        // What is cut and joined anew may hold dot segments or half an escape.
        match path::canonical(&new) {
            Ok(Cow::Owned(canonical)) => Ok(Cow::Owned(canonical)),
            Ok(Cow::Borrowed(_)) => Ok(Cow::Owned(new)),
            Err(PathError::NotAbsolute | PathError::Byte | PathError::Escape | PathError::Nul) => {
                Err(Reason::Malformed)
            }
        }
    }
}

/// A regex whose every match is replaced.
#[derive(Clone)]
pub struct Substitution {
    source: Box<str>,
    to: Box<str>,
    regex: Regex,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(Box<str>),
    Group(usize),
}

/// A small regex can multiply a path; what a hop would refuse is not made.
const MAX_RESULT: usize = 64 << 10;

impl Substitution {
    pub fn parse(source: &str, to: &str) -> Result<Self, String> {
        let regex = matcher::compile(source, false)?;
        let valid = |b: u8| b > b' ' && b < 0x7f && !matches!(b, b'?' | b'#');
        if to.len() > 1024 || !to.bytes().all(valid) {
            return Err("the replacement must be part of a path: no blanks, no query, no fragment".into());
        }
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut chars = to.chars();
        while let Some(ch) = chars.next() {
            if ch != '\\' {
                text.push(ch);
                continue;
            }
            match chars.next() {
                Some('\\') => text.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = usize::from(digit as u8 - b'0');
                    if group >= regex.captures_len() {
                        return Err(format!("the regex has no group {group}"));
                    }
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text).into()));
                    }
                    parts.push(Part::Group(group));
                }
                _ => return Err(r"\ is followed by a group's number or by another \".into()),
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        Ok(Self { source: source.into(), to: to.into(), regex, parts })
    }

    fn apply(&self, path: &str) -> Result<Option<String>, Reason> {
        let mut out = String::new();
        let mut kept = 0;
        let mut any = false;
        for found in self.regex.captures_iter(path) {
            let Some(whole) = found.get_group(0) else { continue };
            any = true;
            out.push_str(path.get(kept..whole.start).unwrap_or_default());
            for part in &self.parts {
                match part {
                    Part::Text(text) => out.push_str(text),
                    Part::Group(group) => {
                        out.push_str(found.get_group(*group).and_then(|g| path.get(g.range())).unwrap_or_default());
                    }
                }
            }
            kept = whole.end;
            if out.len() > MAX_RESULT {
                return Err(Reason::UriTooLong);
            }
        }
        out.push_str(path.get(kept..).unwrap_or_default());
        Ok(any.then_some(out))
    }
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.to == other.to
    }
}

impl Eq for Substitution {}

impl std::fmt::Debug for Substitution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s/{}/{}/", self.source, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Xorshift, read};

    fn rewrite(json: &str) -> PathRewrite {
        read(PathRewrite::read, json).unwrap_or_else(|e| panic!("{json}: {e:?}"))
    }

    /// Observed with Envoy: the text that matched is replaced, whatever follows it.
    #[test]
    fn textual_prefixes() {
        for (matched, new, path, expected) in [
            (PathMatch::prefix("/a/b/"), "/", "/a/b/x", "/x"),
            (PathMatch::prefix("/a/c"), "/", "/a/cx", "/x"),
            (PathMatch::prefix("/a/c"), "/", "/a/c/x", "//x"),
            (PathMatch::prefix("/old"), "/new", "/older", "/newer"),
            (PathMatch::prefix("/old"), "/new", "/old", "/new"),
            (PathMatch::prefix("/old"), "", "/old", "/"),
            (PathMatch::prefix("/old"), "", "/old/x", "/x"),
            (PathMatch::prefix("/old"), "", "/older", "/er"),
            (PathMatch::exact("/old"), "/new", "/old", "/new"),
            (PathMatch::Regex(matcher::Pattern::parse("/old/.*").unwrap()), "/new", "/old/x/y", "/new"),
            (PathMatch::path_prefix("/old"), "/new", "/old/x", "/new/x"),
            // a rewrite cannot bring dot segments back
            (PathMatch::prefix("/static"), "/", "/static../secret", "/secret"),
            (PathMatch::prefix("/s/"), "/a/b/c/", "/s/x", "/a/b/c/x"),
        ] {
            let rewrite = rewrite(&format!(r#"{{"prefix": "{new}"}}"#));
            assert_eq!(rewrite.apply(Some(&matched), path).as_deref(), Ok(expected), "{matched:?} {new} {path}");
        }
        assert_eq!(rewrite(r#"{"prefix": "/x/"}"#).apply(None, "/a").as_deref(), Ok("/x/a"));
        assert_eq!(rewrite(r#"{"prefix": "/x"}"#).apply(None, "*").as_deref(), Ok("*"));
    }

    /// The table of Gateway API's `ReplacePrefixMatch`, and what follows from it.
    #[test]
    fn prefixes_of_segments() {
        for (path, matched, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo//bar", "/foo", "/", "//bar"),
            ("/bar", "/", "/xyz", "/xyz/bar"),
            ("/", "/", "/xyz", "/xyz/"),
        ] {
            let rewrite = rewrite(&format!(r#"{{"pathPrefix": "{new}"}}"#));
            let matched = PathMatch::path_prefix(matched);
            assert!(matched.matches(path));
            assert_eq!(rewrite.apply(Some(&matched), path).as_deref(), Ok(expected), "{path} {matched:?} {new}");
        }
        assert_eq!(rewrite(r#"{"pathPrefix": "/x"}"#).apply(None, "/a").as_deref(), Ok("/x/a"));
    }

    #[test]
    fn regexes() {
        for (regex, to, path, expected) in [
            ("^/user/(.*)$", r"/u/\\1", "/user/jo/x", "/u/jo/x"),
            ("a", "b", "/aXa", "/bXb"),
            ("/+", "/", "//a///b", "/a/b"),
            (r"/(\\d+)/(\\w+)", r"/\\2/\\1", "/12/ab", "/ab/12"),
            ("/x(y)?", r"/z\\1", "/x", "/z"),
            ("(/b)", r"\\0\\0", "/a/b", "/a/b/b"),
            ("/nothing", "/x", "/a", "/a"),
            ("^/a", r"\\\\", "/a/b", "///b"),
            ("^/a", "", "/a", "/"),
            ("^/a", "", "/ab", "/b"),
            ("x", "..", "/a/x/b", "/b"),
        ] {
            let rewrite = rewrite(&format!(r#"{{"regex": "{regex}", "to": "{to}"}}"#));
            assert_eq!(rewrite.apply(None, path).as_deref(), Ok(expected), "{regex} {to} {path}");
        }
        let long = "/".repeat(16 << 10);
        let bomb = rewrite(r#"{"regex": "(/)", "to": "/aaaaaaaaaaaaaaaa"}"#);
        assert_eq!(bomb.apply(None, &long), Err(Reason::UriTooLong));
        let half = rewrite(r#"{"regex": "f$", "to": ""}"#);
        assert_eq!(half.apply(None, "/%2f"), Err(Reason::Malformed));
        assert_eq!(Substitution::parse("a", "b"), Substitution::parse("a", "b"));
        assert_ne!(Substitution::parse("a", "b"), Substitution::parse("a", "c"));
    }

    #[test]
    fn targets_keep_their_query() {
        let config = read(Config::read, r#"{"path": {"full": "/new"}, "authority": "b.example:8080"}"#).unwrap();
        assert_eq!(config.target(None, "/a", Some("x=1")), Ok(Some("/new?x=1".into())));
        assert_eq!(config.target(None, "/a", None), Ok(Some("/new".into())));
        assert_eq!(config.target(None, "/new", Some("x")), Ok(None));
        assert_eq!(config.authority.as_deref(), Some("b.example:8080"));
        let host_only = read(Config::read, r#"{"authority": "[::1]:80"}"#).unwrap();
        assert_eq!(host_only.target(None, "/a", Some("x")), Ok(None));
    }

    #[test]
    fn reading() {
        for bad in [
            r#"{}"#,
            r#"{"path": "/a"}"#,
            r#"{"path": {}}"#,
            r#"{"path": {"full": "a"}}"#,
            r#"{"path": {"full": "/a?b"}}"#,
            r#"{"path": {"full": "/a b"}}"#,
            r#"{"path": {"full": "/a", "prefix": "/b"}}"#,
            r#"{"path": {"regex": "a"}}"#,
            r#"{"path": {"regex": "(", "to": "/"}}"#,
            r#"{"path": {"regex": "a", "to": "\\1"}}"#,
            r#"{"path": {"regex": "a", "to": "\\x"}}"#,
            r#"{"path": {"regex": "a", "to": "a b"}}"#,
            r#"{"path": {"prefix": "/../a"}}"#,
            r#"{"path": {"to": "/a"}}"#,
            r#"{"authority": "a b"}"#,
            r#"{"authority": ""}"#,
            r#"{"authority": "a:b"}"#,
            r#"{"authority": "http://a"}"#,
            r#"{"authority": "a:99999"}"#,
            r#"{"authority": "a/b"}"#,
            r#"{"authority": "::1"}"#,
            r#"{"authority": "[::g]"}"#,
            r#"{"path": {"full": "/a", "to": "b"}}"#,
        ] {
            assert!(read(Config::read, bad).is_err(), "{bad}");
        }
    }

    /// Whatever is replaced by whatever: the result is canonical.
    #[test]
    fn results_are_canonical() {
        const PARTS: [&str; 9] = ["/", "a", ".", "..", "%2f", ";x", "/.", "b", "%25"];
        let mut random = Xorshift(99);
        let text = |random: &mut Xorshift| {
            let n = random.below(8);
            let text = (0..n).fold(String::from("/"), |t, _| t + PARTS[random.below(PARTS.len())]);
            path::canonical(&text).unwrap().into_owned()
        };
        for _ in 0..20_000 {
            let (path, new) = (text(&mut random), text(&mut random));
            let cut = (1..=path.len()).filter(|i| path.is_char_boundary(*i)).nth(random.below(path.len())).unwrap();
            let matched = PathMatch::prefix(&path[..cut]);
            if let Ok(out) = PathRewrite::Prefix(new.into()).apply(Some(&matched), &path) {
                assert_eq!(path::canonical(&out).unwrap(), out, "{path} {matched:?}");
            }
        }
    }
}
