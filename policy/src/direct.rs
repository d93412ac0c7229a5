//! An answer written in the configuration, without any backend. Has no state.
//!
//! ```yaml
//! respond:
//!   status: 503
//!   body: "closed for maintenance\n"
//!   headers: {retry-after: "60", content-type: text/plain}    # text/plain is the default where there is a body
//! ```

use crate::doc::Cursor;
use crate::headers;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub status: u16,
    pub body: Arc<[u8]>,
    /// Complete, with the content type; names in lower case.
    pub headers: Vec<(Box<str>, headers::Value)>,
}

const MAX_BODY: usize = 1 << 20;

impl Config {
    pub fn new(status: u16, body: &[u8]) -> Self {
        let mut config = Self { status, body: body.into(), headers: Vec::new() };
        config.default_type();
        config
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let status = f.req("status", |c| c.int(200, 599)).map(|s| s as u16);
            let body = f.opt("body", |c| match c.text()? {
                body if body.len() > MAX_BODY => c.fail("is too long", "at most 1 MiB"),
                body => Some(body),
            });
            let headers = f.opt("headers", |c| {
                c.entries(|name, c| {
                    let name = headers::changeable(c, name)?;
                    Some((name, headers::Value::read(c)?))
                })
            });
            let status = status?;
            if matches!(status, 204 | 304) && f.has("body") {
                return f.fail("body", format!("a {status} has no body"), "leave it out");
            }
            let headers = headers.unwrap_or_default().into_iter().map(|(_, pair)| pair).collect();
            let mut config = Self { status, body: body.unwrap_or_default().into_bytes().into(), headers };
            config.default_type();
            Some(config)
        })
    }

    fn default_type(&mut self) {
        if !self.body.is_empty() && !self.headers.iter().any(|(name, _)| &**name == "content-type") {
            self.headers.push(("content-type".into(), headers::Value::literal("text/plain")));
        }
    }

    /// Writes the headers of the answer.
    pub fn headers(&self, fields: &mut dyn crate::view::FieldsMut, vars: &headers::Vars<'_>) {
        for (name, value) in &self.headers {
            value.with(fields, vars, |fields, value| fields.set(name, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{List, read};

    #[test]
    fn answers() {
        let vars = headers::Vars {
            remote: [10, 0, 0, 9].into(),
            protocol: "HTTP/2",
            authority: "a",
            method: "GET",
            path: "/",
            request: None,
        };
        for (json, status, body, fields) in [
            (r#"{"status": 418}"#, 418, "", &[][..]),
            (r#"{"status": 200, "body": "hello"}"#, 200, "hello", &[("content-type", "text/plain")]),
            (
                r#"{"status": 503, "body": "{}", "headers": {"Content-Type": "application/json", "x": "%PROTOCOL%"}}"#,
                503,
                "{}",
                &[("content-type", "application/json"), ("x", "HTTP/2")],
            ),
        ] {
            let config = read(Config::read, json).unwrap_or_else(|e| panic!("{json}: {e:?}"));
            let mut out = List::default();
            config.headers(&mut out, &vars);
            out.0.sort();
            assert_eq!((config.status, &config.body[..], out), (status, body.as_bytes(), List::of(fields)), "{json}");
        }
        for bad in [
            r#"{}"#,
            r#"{"status": 100}"#,
            r#"{"status": 600}"#,
            r#"{"status": 204, "body": "x"}"#,
            r#"{"status": 200, "headers": {"content-length": "3"}}"#,
            r#"{"status": 200, "boddy": "x"}"#,
        ] {
            assert!(read(Config::read, bad).is_err(), "{bad}");
        }
        assert_eq!(Config::new(200, b"x"), read(Config::read, r#"{"status": 200, "body": "x"}"#).unwrap());
    }
}
