//! Changes to header fields, of requests towards the backend and of responses towards the client.
//!
//! ```yaml
//! requestHeaders:
//!   set: {x-env: canary}            # in place of what is there
//!   add: {x-client: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}
//!   remove: [x-internal]
//! ```
//!
//! Removals come first, then what is set, then what is added. Fields that frame the message or belong to one hop cannot be
//! changed, nor can Host (`rewrite.authority` does that). Values may name the client's address, the protocol and request
//! fields: `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`, `%PROTOCOL%`, `%REQ(name)%`, `%REQ(:path)%` (also `:authority`,
//! `:method`); `%%` is a percent sign. A field whose variables come to nothing is not written. Has no state.

use crate::doc::{Cursor, Value as Doc};
use crate::view::{Fields, FieldsMut};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub set: Vec<(Box<str>, Value)>,
    pub add: Vec<(Box<str>, Value)>,
    pub remove: Vec<Box<str>>,
}

/// What variables stand for.
pub struct Vars<'a> {
    pub remote: IpAddr,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'a str,
    pub authority: &'a str,
    pub method: &'a str,
    /// As the client sent it, with its query.
    pub path: &'a str,
    /// The request's fields; `None` while these are what is changed.
    pub request: Option<&'a dyn Fields>,
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let config = Self {
                set: f.opt("set", pairs).unwrap_or_default(),
                add: f.opt("add", pairs).unwrap_or_default(),
                remove: f.list("remove", |c| {
                    let name = c.text()?;
                    changeable(c, &name)
                }),
            };
            let twice = config.add.iter().find(|(name, _)| config.set.iter().any(|(other, _)| other == name));
            if let Some((name, _)) = twice {
                return f.fail("add", format!("{name} is also in `set`"), "either replace the field or add to it");
            }
            Some(config)
        })
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    pub fn apply(&self, fields: &mut dyn FieldsMut, vars: &Vars<'_>) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            value.with(fields, vars, |fields, value| fields.set(name, value));
        }
        for (name, value) in &self.add {
            value.with(fields, vars, |fields, value| fields.append(name, value));
        }
    }
}

fn pairs(c: &mut Cursor<'_, '_>) -> Option<Vec<(Box<str>, Value)>> {
    let pairs = c.entries(|name, c| {
        let name = changeable(c, name)?;
        Some((name, Value::read(c)?))
    })?;
    let pairs: Vec<_> = pairs.into_iter().map(|(_, pair)| pair).collect();
    for (i, (name, _)) in pairs.iter().enumerate() {
        if pairs[..i].iter().any(|(other, _)| other == name) {
            return c.fail(format!("{name} is there twice"), "one value for each name; names differ by more than case");
        }
    }
    Some(pairs)
}

/// Whether a field is never passed on, whoever sent it.
pub fn is_hop_by_hop(name: &str) -> bool {
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
pub fn is_ours(name: &str) -> bool {
    let starts = |prefix: &str| {
        name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(|(a, b)| a == b || (a == b'_' && b == b'-'))
    };
    if !name.starts_with('x') && !name.starts_with('l') {
        return false;
    }
    (starts("x-envoy-") || starts("x-mesh-") || starts("x-forwarded-client-cert") || starts("l5d-"))
        && name != "x-mesh-hops"
}

pub(crate) fn is_name(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.len() <= 256 && name.bytes().all(token)
}

/// The name in lower case, if a configuration may change that field.
pub(crate) fn changeable(c: &mut Cursor<'_, '_>, name: &str) -> Option<Box<str>> {
    let name = name.to_ascii_lowercase();
    match &*name {
        "host" | ":authority" => c.fail(format!("{name} cannot be changed as a header"), "rewrite: {authority: ...}"),
        ":path" => c.fail(format!("{name} cannot be changed as a header"), "rewrite: {path: ...}"),
        "content-length" | "transfer-encoding" => {
            c.fail(format!("{name} says where the body ends and cannot be changed"), "leave it to the proxy")
        }
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "upgrade" => {
            c.fail(format!("{name} belongs to one connection and cannot be changed"), "leave it to the proxy")
        }
        _ if !is_name(&name) => c.fail(format!("{name:?} is not a header name"), "letters, digits and -, as in x-user"),
        _ => Some(name.into()),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Remote,
    Protocol,
    Authority,
    Method,
    Path,
    Field(Box<str>),
}

impl Value {
    pub fn literal(text: &str) -> Self {
        Self(vec![Part::Literal(text.into())])
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let text = match &c.node.value {
            Doc::Null => String::new(),
            _ => c.text()?,
        };
        let valid = |b: u8| b >= b' ' && b != 0x7f || b == b'\t';
        if !text.bytes().all(valid) || text.trim_matches([' ', '\t']) != text {
            return c.fail("is not a header value", "one line, without blanks around it");
        }
        if text.len() > 8 * 1024 {
            return c.fail("is too long", "a header value of at most 8 KiB");
        }
        Some(Self(parse(c, &text)))
    }

    /// The value as bytes, unless it is empty for want of what its variables name.
    pub(crate) fn with(
        &self,
        fields: &mut dyn FieldsMut,
        vars: &Vars<'_>,
        write: impl FnOnce(&mut dyn FieldsMut, &[u8]),
    ) {
        match &self.0[..] {
            [] => write(fields, b""),
            [Part::Literal(text)] => write(fields, text.as_bytes()),
            parts => {
                let mut out = Vec::new();
                for part in parts {
                    match part {
                        Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                        Part::Remote => out.extend_from_slice(vars.remote.to_string().as_bytes()),
                        Part::Protocol => out.extend_from_slice(vars.protocol.as_bytes()),
                        Part::Authority => out.extend_from_slice(vars.authority.as_bytes()),
                        Part::Method => out.extend_from_slice(vars.method.as_bytes()),
                        Part::Path => out.extend_from_slice(vars.path.as_bytes()),
                        Part::Field(name) => {
                            let value = match vars.request {
                                Some(request) => request.first(name),
                                None => fields.first(name),
                            };
                            out.extend_from_slice(value.unwrap_or_default());
                        }
                    }
                }
                if !out.is_empty() {
                    write(fields, &out);
                }
            }
        }
    }
}

/// As it is written in a configuration.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Literal(text) => f.write_str(&text.replace('%', "%%")),
            Part::Remote => f.write_str("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
            Part::Protocol => f.write_str("%PROTOCOL%"),
            Part::Authority => f.write_str("%REQ(:authority)%"),
            Part::Method => f.write_str("%REQ(:method)%"),
            Part::Path => f.write_str("%REQ(:path)%"),
            Part::Field(name) => write!(f, "%REQ({name})%"),
        })
    }
}

fn parse(c: &mut Cursor<'_, '_>, text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        let Some((word, after)) = after.split_once('%') else {
            c.warn("a single % stays as it is", "%% for a percent sign");
            literal.push('%');
            rest = after;
            continue;
        };
        match variable(word) {
            Some(part) => {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                }
                parts.push(part);
            }
            None if word.is_empty() => literal.push('%'),
            None => {
                let known = "known: %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%, %PROTOCOL%, %REQ(name)%";
                c.warn(format!("%{word}% is not known and stays as it is"), known);
                literal.push('%');
                literal.push_str(word);
                literal.push('%');
            }
        }
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    parts
}

fn variable(word: &str) -> Option<Part> {
    match word {
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => return Some(Part::Remote),
        "PROTOCOL" => return Some(Part::Protocol),
        _ => {}
    }
    let name = word.strip_prefix("REQ(")?.strip_suffix(')')?.to_ascii_lowercase();
    match &*name {
        ":authority" | "host" => Some(Part::Authority),
        ":method" => Some(Part::Method),
        ":path" => Some(Part::Path),
        _ => is_name(&name).then(|| Part::Field(name.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{List, read, warnings};

    fn vars(request: Option<&dyn Fields>) -> Vars<'_> {
        Vars {
            remote: [10, 0, 0, 9].into(),
            protocol: "HTTP/1.1",
            authority: "echo:80",
            method: "GET",
            path: "/a?b",
            request,
        }
    }

    #[test]
    fn removed_then_set_then_added() {
        let config = r#"{"remove": ["A", "content-type"], "set": {"A": "1", "X-B": "2"}, "add": {"c": "3"}}"#;
        let config = read(Config::read, config).unwrap();
        let mut fields =
            List::of(&[("a", "old"), ("x-b", "x"), ("x-b", "y"), ("c", "0"), ("content-type", "text/html")]);
        config.apply(&mut fields, &vars(None));
        let expected = [("c", "0"), ("a", "1"), ("x-b", "2"), ("c", "3")];
        assert_eq!(fields, List::of(&expected));
        assert!(!config.is_empty() && Config::default().is_empty());
    }

    #[test]
    fn variables() {
        let request = List::of(&[("x-user", "jason"), ("x-user", "eve")]);
        for (value, expected) in [
            ("plain", Some("plain")),
            ("", Some("")),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", Some("10.0.0.9")),
            ("<%PROTOCOL%>", Some("<HTTP/1.1>")),
            ("%REQ(X-User)%!", Some("jason!")),
            ("%REQ(:path)% %REQ(:AUTHORITY)% %REQ(:method)%", Some("/a?b echo:80 GET")),
            ("%REQ(x-none)%", None),
            ("a%REQ(x-none)%b", Some("ab")),
            ("100%%", Some("100%")),
            ("%%REQ(x-user)%%", Some("%REQ(x-user)%")),
            ("%START_TIME%", Some("%START_TIME%")),
            ("%REQ(a b)%", Some("%REQ(a b)%")),
            ("5%", Some("5%")),
        ] {
            let config = read(Config::read, &format!(r#"{{"set": {{"x": "{value}"}}}}"#)).unwrap();
            let mut response = List::of(&[("x-user", "response")]);
            config.apply(&mut response, &vars(Some(&request)));
            assert_eq!(response.first("x"), expected.map(str::as_bytes), "{value}");
        }
        let mut own = List::of(&[("x-user", "own")]);
        let config = read(Config::read, r#"{"set": {"x-copy": "%REQ(x-user)%"}}"#).unwrap();
        config.apply(&mut own, &vars(None));
        assert_eq!(own.first("x-copy"), Some(&b"own"[..]));
        assert!(warnings(Config::read, r#"{"set": {"x": "%START_TIME%"}}"#)[0].contains("%START_TIME% is not known"));
        assert!(warnings(Config::read, r#"{"set": {"x": "5%"}}"#)[0].contains("%%"));
        assert!(warnings(Config::read, r#"{"set": {"x": "100%%"}}"#).is_empty());
    }

    #[test]
    fn what_cannot_be_changed() {
        for name in [
            "Host",
            ":authority",
            ":path",
            ":status",
            "Content-Length",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "upgrade",
            "",
            "a b",
            "a:",
            "a\\r\\n",
            "ä",
        ] {
            for json in [
                format!(r#"{{"set": {{"{name}": "x"}}}}"#),
                format!(r#"{{"add": {{"{name}": "x"}}}}"#),
                format!(r#"{{"remove": ["{name}"]}}"#),
            ] {
                assert!(read(Config::read, &json).is_err(), "{json}");
            }
        }
        for value in ["a\\r\\nb: c", "a\\u0000", "\\u007f", " a", "a ", "\\t"] {
            assert!(read(Config::read, &format!(r#"{{"set": {{"x": "{value}"}}}}"#)).is_err(), "{value}");
        }
        assert!(read(Config::read, r#"{"set": {"x": "a\tb é"}}"#).is_ok());
        let twice = read(Config::read, r#"{"set": {"a": "1", "A": "2"}}"#).unwrap_err();
        assert!(twice[0].contains("a is there twice"), "{twice:?}");
        assert!(read(Config::read, r#"{"set": {"a": "1"}, "add": {"a": "2"}}"#).is_err());
        assert!(read(Config::read, r#"{"host": "x"}"#).is_err());
    }
}
