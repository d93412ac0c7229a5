//! What a request must look like: matchers, read once and then only compared. Nothing allocates for the plain cases.
//!
//! ```yaml
//! match:
//!   - path: {pathPrefix: /api}          # or exact, prefix (any text), regex; with ignoreCase: true
//!     method: GET                       # text is exact; or {regex: GET|HEAD} and the like
//!     host: reviews.example.com
//!     headers:
//!       x-user: {exact: jason}          # exact, prefix, suffix, regex, present: true
//!       x-debug: {not: {exact: "1"}}    # also true where the field is absent
//!     query: {v: "2"}
//! ```
//!
//! All conditions of one match must hold. Rules: a regex matches the whole text, in time linear in it. A repeated field is seen
//! as all its values joined by a comma, a repeated query parameter as its first value; parameters are compared as they are
//! written. `{}` is presence, and an empty value is present. Hosts are compared in lower case without port. What cannot be
//! decided, as a regex over bytes that are not UTF-8, does not match, turned around or not.

use crate::doc::{Cursor, Fields as Map, Value};
use crate::path;
use crate::view::{Fields, RequestView};
use regex_automata::meta::{self, Regex};
use regex_automata::util::syntax;

/// A compiled regex that matches whole texts.
#[derive(Clone)]
pub struct Pattern {
    source: Box<str>,
    ignore_case: bool,
    regex: Regex,
}

/// Compiled size that a pattern may have. It bounds the time per byte as well as memory.
const MAX_COMPILED: usize = 1 << 20;
pub const MAX_PATTERN: usize = 1024;

impl Pattern {
    pub fn parse(source: &str) -> Result<Self, String> {
        Self::build(source, false)
    }

    pub fn ignoring_case(source: &str) -> Result<Self, String> {
        Self::build(source, true)
    }

    fn build(source: &str, ignore_case: bool) -> Result<Self, String> {
        // Compiled alone first: wrapping must not give meaning to `a)|(b`.
        compile(source, ignore_case)?;
        let regex = compile(&format!(r"\A(?:{source})\z"), ignore_case)?;
        Ok(Self { source: source.into(), ignore_case, regex })
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let source = c.text()?;
        match Self::parse(&source) {
            Ok(pattern) => Some(pattern),
            Err(why) => c.fail(
                why,
                "a regex of RE2's syntax, which matches the whole text; it has no look-around or back-references",
            ),
        }
    }

    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    pub fn source(&self) -> &str {
        &self.source
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.ignore_case == other.ignore_case
    }
}

impl Eq for Pattern {}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}/{}", self.source, if self.ignore_case { "i" } else { "" })
    }
}

/// Compiles a regex within the limits that every regex of a configuration has.
pub(crate) fn compile(source: &str, ignore_case: bool) -> Result<Regex, String> {
    if source.len() > MAX_PATTERN + 16 {
        return Err(format!("the regex is longer than {MAX_PATTERN} bytes"));
    }
    Regex::builder()
        .configure(
            meta::Config::new()
                .nfa_size_limit(Some(MAX_COMPILED))
                .hybrid_cache_capacity(512 << 10)
                .onepass_size_limit(Some(64 << 10)),
        )
        .syntax(syntax::Config::new().case_insensitive(ignore_case).nest_limit(64))
        .build(source)
        .map_err(|e| match e.size_limit() {
            Some(_) => "the regex is too large when compiled: use smaller counts or ASCII classes".to_string(),
            // The parser draws the pattern with a caret; only its last line says what is wrong.
            None => match e.syntax_error().map(|e| e.to_string()) {
                Some(text) => format!(
                    "the regex is not valid: {}",
                    text.lines().last().unwrap_or("").trim_start_matches("error: ")
                ),
                None => format!("the regex cannot be compiled: {e}"),
            },
        })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub text: Box<str>,
    /// ASCII letters only.
    pub ignore_case: bool,
}

impl Text {
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), ignore_case: false }
    }

    fn same(&self, value: &[u8]) -> bool {
        let text = self.text.as_bytes();
        if self.ignore_case { text.eq_ignore_ascii_case(value) } else { text == value }
    }

    fn starts(&self, value: &[u8]) -> bool {
        value.get(..self.text.len()).is_some_and(|start| self.same(start))
    }

    fn ends(&self, value: &[u8]) -> bool {
        value.len().checked_sub(self.text.len()).is_some_and(|at| self.same(&value[at..]))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    Exact(Text),
    Prefix(Text),
    Suffix(Text),
    Regex(Pattern),
    Present,
}

impl StringMatch {
    pub fn exact(text: &str) -> Self {
        Self::Exact(Text::new(text))
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        if !matches!(c.node.value, Value::Map(_)) {
            return c.text().map(|t| Self::exact(&t));
        }
        c.fields(|f| {
            let absent = f.opt("present", |c| c.bool()) == Some(false);
            let found = Self::read_from(f);
            one_of(f, &["exact", "prefix", "suffix", "regex", "present"])?;
            if absent {
                return f.fail("present", "false is not understood here", "another condition");
            }
            found
        })
    }

    /// The matcher among a map's fields, which has exactly one or none (`{}`).
    fn read_from(f: &mut Map<'_, '_>) -> Option<Self> {
        let fold = f.or("ignoreCase", false, |c| c.bool());
        let text = |c: &mut Cursor<'_, '_>| c.text().map(|t| Text { text: t.into(), ignore_case: fold });
        let found = f.opt("exact", text).map(Self::Exact);
        let found = found.or(f.opt("prefix", text).map(Self::Prefix));
        let found = found.or(f.opt("suffix", text).map(Self::Suffix));
        let found = found.or(f.opt("regex", Pattern::read).map(Self::Regex));
        folds_no_regex(f, fold)?;
        Some(found.unwrap_or(Self::Present))
    }

    /// `None`: cannot be decided.
    pub fn decide(&self, value: &[u8]) -> Option<bool> {
        Some(match self {
            Self::Exact(text) => text.same(value),
            Self::Prefix(text) => text.starts(value),
            Self::Suffix(text) => text.ends(value),
            Self::Regex(pattern) => pattern.matches(std::str::from_utf8(value).ok()?),
            Self::Present => true,
        })
    }

    pub fn matches(&self, value: &[u8]) -> bool {
        self.decide(value) == Some(true)
    }

    /// The same for hosts, which are compared in lower case and without port.
    fn for_host(self) -> Result<Self, String> {
        let lower = |t: Text| Text::new(&t.text.to_ascii_lowercase());
        Ok(match self {
            Self::Exact(text) => {
                let text = lower(text);
                let host = match text.text.rsplit_once(':') {
                    Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
                    _ => &text.text,
                };
                Self::exact(host)
            }
            Self::Prefix(text) => Self::Prefix(lower(text)),
            Self::Suffix(text) => Self::Suffix(lower(text)),
            Self::Regex(pattern) => Self::Regex(Pattern::ignoring_case(pattern.source())?),
            Self::Present => Self::Present,
        })
    }
}

fn folds_no_regex(f: &mut Map<'_, '_>, fold: bool) -> Option<()> {
    match fold && f.has("regex") {
        true => f.fail("ignoreCase", "is not for a regex", "start the regex with (?i)"),
        false => Some(()),
    }
}

/// Whether one of the fields is there; more than one is an error. (Asked last: a field nobody asked for is unknown.)
fn one_of(f: &mut Map<'_, '_>, names: &[&'static str]) -> Option<bool> {
    let mut there = names.iter().filter(|n| f.has(n));
    let (first, second) = (there.next(), there.next());
    match second {
        Some(second) => f.fail(second, "one condition is enough", &format!("one of {}", names.join(", "))),
        None => Some(first.is_some()),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(Text),
    /// Istio's: any text the path starts with; `/api` matches `/apiary`.
    Prefix(Text),
    /// Gateway API's: whole segments; `/api` matches `/api`, `/api/` and `/api/x`. Without a final `/`.
    PathPrefix(Text),
    Regex(Pattern),
}

impl PathMatch {
    pub fn exact(text: &str) -> Self {
        Self::Exact(Text::new(text))
    }

    pub fn prefix(text: &str) -> Self {
        Self::Prefix(Text::new(text))
    }

    pub fn path_prefix(text: &str) -> Self {
        Self::PathPrefix(Text::new(text.trim_end_matches('/')))
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        const HINT: &str =
            "one of {exact: /a}, {pathPrefix: /a} (whole segments), {prefix: /a} (any text) and {regex: ...}";
        if !matches!(c.node.value, Value::Map(_)) {
            return c.fail("a path match says how it compares", HINT);
        }
        c.fields(|f| {
            let fold = f.or("ignoreCase", false, |c| c.bool());
            let text = |c: &mut Cursor<'_, '_>, tail: &str| {
                let text = c.text()?;
                let whole = format!("{text}{tail}");
                if !text.starts_with('/') {
                    return c.fail(format!("{text:?} is not a path"), "a path starts with /");
                }
                if text.contains(['?', '#']) {
                    return c.fail("a path has no query and no fragment", "the query is matched by `query`");
                }
                match path::canonical(&whole) {
                    Ok(canonical) if canonical == whole => {}
                    Ok(canonical) => {
                        let canonical = canonical.strip_suffix(tail).unwrap_or(&canonical);
                        c.warn("matches no request: requests are compared in their canonical form", canonical);
                    }
                    Err(why) => return c.fail(why.to_string(), "a path as requests have it"),
                }
                Some(Text { text: text.into(), ignore_case: fold })
            };
            let found = f.opt("exact", |c| text(c, "")).map(Self::Exact);
            // A textual prefix may stop within a segment, so what follows it is not known.
            let found = found.or(f.opt("prefix", |c| text(c, "x")).map(Self::Prefix));
            let found = found.or(f
                .opt("pathPrefix", |c| text(c, ""))
                .map(|t| Self::PathPrefix(Text { text: t.text.trim_end_matches('/').into(), ignore_case: fold })));
            let found = found.or(f.opt("regex", Pattern::read).map(Self::Regex));
            folds_no_regex(f, fold)?;
            match one_of(f, &["exact", "pathPrefix", "prefix", "regex"])? {
                true => found,
                false => f.fail("", "a path match needs a condition", HINT),
            }
        })
    }

    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => text.same(path.as_bytes()),
            Self::Prefix(text) => text.starts(path.as_bytes()),
            Self::PathPrefix(text) => {
                let path = path.as_bytes();
                text.starts(path) && matches!(path.get(text.text.len()), None | Some(b'/'))
            }
            Self::Regex(pattern) => pattern.matches(path),
        }
    }

    /// How much of a path that it matches is the matched prefix; all of it where it is not a prefix match.
    pub fn matched_len(&self, path: &str) -> usize {
        match self {
            Self::Prefix(text) | Self::PathPrefix(text) => text.text.len().min(path.len()),
            Self::Exact(_) | Self::Regex(_) => path.len(),
        }
    }
}

/// A header field, or a query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldMatch {
    pub name: Box<str>,
    pub value: StringMatch,
    pub invert: bool,
}

impl FieldMatch {
    /// `{exact: ...}` and so on, `{present: true|false}`, `{not: {...}}`, `{}` or a plain value.
    pub fn read(name: &str, c: &mut Cursor<'_, '_>) -> Option<Self> {
        let of = |value, invert| Self { name: name.into(), value, invert };
        if !matches!(c.node.value, Value::Map(_)) {
            return c.text().map(|t| of(StringMatch::exact(&t), false));
        }
        c.fields(|f| {
            let not = f.opt("not", StringMatch::read).map(|value| of(value, true));
            let absent = f.opt("present", |c| c.bool()) == Some(false);
            let plain = StringMatch::read_from(f).map(|value| of(value, absent));
            one_of(f, &["exact", "prefix", "suffix", "regex", "present", "not"])?;
            if f.has("not") { not } else { plain }
        })
    }

    fn read_header(name: &str, c: &mut Cursor<'_, '_>) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        let instead = match &*lower {
            "host" | ":authority" => Some("host"),
            ":path" => Some("path"),
            ":method" => Some("method"),
            ":scheme" => Some("scheme"),
            _ => None,
        };
        if let Some(instead) = instead {
            return c.fail(format!("{name} is not matched as a header"), &format!("use `{instead}` beside `headers`"));
        }
        if !crate::headers::is_name(&lower) {
            return c.fail(format!("{name:?} is not a header name"), "letters, digits and -, as in x-user");
        }
        Self::read(&lower, c)
    }

    fn read_parameter(name: &str, c: &mut Cursor<'_, '_>) -> Option<Self> {
        if name.is_empty() || !name.bytes().all(|b| b > b' ' && b < 0x7f && !matches!(b, b'&' | b'=' | b'#')) {
            return c.fail(format!("{name:?} is not a parameter's name"), "the name as it is written in queries");
        }
        Self::read(name, c)
    }

    fn verdict(&self, decided: Option<bool>) -> bool {
        decided.is_some_and(|yes| yes != self.invert)
    }

    pub fn matches_field(&self, fields: &dyn Fields) -> bool {
        if self.value == StringMatch::Present {
            return fields.first(&self.name).is_some() != self.invert;
        }
        let (mut seen, mut decided) = (0, None);
        fields.each(&self.name, &mut |value| {
            seen += 1;
            if seen == 1 {
                decided = self.value.decide(value);
            }
            seen == 1
        });
        match seen {
            0 => self.invert,
            1 => self.verdict(decided),
            _ => {
                let mut buffer = Vec::new();
                self.verdict(fields.joined(&self.name, &mut buffer).and_then(|all| self.value.decide(all)))
            }
        }
    }

    pub fn matches_query(&self, query: Option<&str>) -> bool {
        let mut pairs = query.unwrap_or("").split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        match pairs.find(|(name, _)| *name == &*self.name) {
            Some((_, value)) => self.verdict(self.value.decide(value.as_bytes())),
            None => self.invert,
        }
    }
}

/// One alternative of a route; all of its conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RequestMatch {
    pub path: Option<PathMatch>,
    pub method: Option<StringMatch>,
    pub scheme: Option<StringMatch>,
    pub host: Option<StringMatch>,
    /// Names in lower case.
    pub headers: Vec<FieldMatch>,
    pub query: Vec<FieldMatch>,
    /// The port the client dialled.
    pub port: Option<u16>,
}

impl RequestMatch {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            Some(Self {
                path: f.opt("path", PathMatch::read),
                method: f.opt("method", StringMatch::read),
                scheme: f.opt("scheme", StringMatch::read),
                host: f.opt("host", |c| match StringMatch::read(c)?.for_host() {
                    Ok(host) => Some(host),
                    Err(why) => c.fail(why, ""),
                }),
                headers: f.opt("headers", headers).unwrap_or_default(),
                query: f.opt("query", |c| c.entries(FieldMatch::read_parameter)).map(values).unwrap_or_default(),
                port: f.opt("port", |c| c.port()),
            })
        })
    }

    pub fn matches(&self, r: &RequestView<'_>) -> bool {
        self.miss(r).is_none()
    }

    /// The first condition that does not hold.
    pub fn miss(&self, r: &RequestView<'_>) -> Option<Miss<'_>> {
        fn text<'m>(matcher: &'m Option<StringMatch>, value: &str) -> Option<&'m StringMatch> {
            matcher.as_ref().filter(|m| !m.matches(value.as_bytes()))
        }
        let miss = self.path.as_ref().filter(|p| !p.matches(r.path)).map(Miss::Path);
        let miss = miss.or_else(|| text(&self.method, r.method).map(Miss::Method));
        let miss = miss.or_else(|| text(&self.host, r.host).map(Miss::Host));
        let miss = miss.or_else(|| self.headers.iter().find(|h| !h.matches_field(r.fields)).map(Miss::Header));
        let miss = miss.or_else(|| self.query.iter().find(|q| !q.matches_query(r.query)).map(Miss::Query));
        let miss = miss.or_else(|| text(&self.scheme, r.scheme).map(Miss::Scheme));
        miss.or_else(|| self.port.filter(|p| *p != r.conn.destination.port()).map(Miss::Port))
    }
}

/// A condition of a match that a request does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss<'m> {
    Path(&'m PathMatch),
    Method(&'m StringMatch),
    Host(&'m StringMatch),
    Header(&'m FieldMatch),
    Query(&'m FieldMatch),
    Scheme(&'m StringMatch),
    Port(u16),
}

/// For people: `is "/a"`, `begins with "/a"`.
impl std::fmt::Display for PathMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "is {text}"),
            Self::Prefix(text) => write!(f, "begins with {text}"),
            Self::PathPrefix(text) if text.text.is_empty() => f.write_str("is anything"),
            Self::PathPrefix(text) => write!(f, "is {text} or below it"),
            Self::Regex(pattern) => write!(f, "matches the regex {}", pattern.source()),
        }
    }
}

impl std::fmt::Display for StringMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "is {text}"),
            Self::Prefix(text) => write!(f, "begins with {text}"),
            Self::Suffix(text) => write!(f, "ends with {text}"),
            Self::Regex(pattern) => write!(f, "matches the regex {}", pattern.source()),
            Self::Present => f.write_str("is there"),
        }
    }
}

impl std::fmt::Display for FieldMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let not = if self.invert { "not: " } else { "" };
        write!(f, "{} {not}{}", self.name, self.value)
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}{}", self.text, if self.ignore_case { " in any case" } else { "" })
    }
}

fn headers(c: &mut Cursor<'_, '_>) -> Option<Vec<FieldMatch>> {
    let headers = values(c.entries(FieldMatch::read_header)?);
    for (i, header) in headers.iter().enumerate() {
        if headers[..i].iter().any(|h| h.name == header.name) {
            return c.fail(format!("{} is there twice", header.name), "one condition for each name");
        }
    }
    Some(headers)
}

fn values<T>(entries: Vec<(String, T)>) -> Vec<T> {
    entries.into_iter().map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests;
