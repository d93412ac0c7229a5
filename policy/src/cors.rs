//! Cross-origin requests from browsers: preflights of allowed origins are answered, their actual responses are marked.
//!
//! ```yaml
//! cors:
//!   allowOrigins: ["https://shop.example.com", {regex: "https://.*\\.example\\.com"}]    # "*" is any
//!   allowMethods: [GET, POST]
//!   allowHeaders: [x-a]
//!   exposeHeaders: [x-b]
//!   maxAge: 24h
//!   allowCredentials: true
//!   unmatchedPreflights: forward    # default; or ignore: answered without permission
//! ```
//!
//! A request without `origin` is none of CORS's business; an origin that is not allowed gets no permission, but its request
//! goes on (browsers enforce CORS, not proxies). A preflight is an OPTIONS with `access-control-request-method`; answered with
//! 200 and no body. The permission names the request's own origin, as Envoy does. Has no state.

use crate::doc::{Cursor, Value};
use crate::headers::is_name;
use crate::matcher::StringMatch;
use crate::view::{Fields, FieldsMut, RequestView};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub origins: Vec<StringMatch>,
    /// As written into answers, joined by commas; empty: not written.
    pub methods: Box<str>,
    pub headers: Box<str>,
    pub expose: Box<str>,
    pub max_age: Option<u64>,
    pub credentials: bool,
    /// Answer preflights of origins that are not allowed, instead of passing them to the app.
    pub ignore_unmatched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing to do.
    Pass,
    /// Forward, and mark the response with `allow`.
    Mark,
    /// Answer 200 with the fields of `preflight`.
    Preflight,
    /// Answer 200 without permission.
    Refuse,
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let config = Self {
                origins: f.list("allowOrigins", |c| match &c.node.value {
                    Value::Text(any) if any == "*" => Some(StringMatch::Present),
                    _ => StringMatch::read(c),
                }),
                methods: names(f, "allowMethods"),
                headers: names(f, "allowHeaders"),
                expose: names(f, "exposeHeaders"),
                max_age: f.opt("maxAge", |c| c.duration()).map(|d| d.as_secs()),
                credentials: f.or("allowCredentials", false, |c| c.bool()),
                ignore_unmatched: f
                    .or("unmatchedPreflights", false, |c| c.word(&[("forward", false), ("ignore", true)])),
            };
            if config.origins.is_empty() {
                return f.fail("allowOrigins", "allows nobody", "origins as in https://shop.example.com, or \"*\"");
            }
            if config.credentials && config.origins.contains(&StringMatch::Present) {
                f.warn(
                    "allowCredentials",
                    "any site can act as the user, since every origin is allowed",
                    "name the origins",
                );
            }
            Some(config)
        })
    }

    pub fn decide(&self, r: &RequestView<'_>) -> Decision {
        let Some(origin) = r.fields.first("origin").filter(|o| !o.is_empty()) else { return Decision::Pass };
        let preflight =
            r.method == "OPTIONS" && r.fields.first("access-control-request-method").is_some_and(|m| !m.is_empty());
        let allowed = self.origins.iter().any(|o| o.matches(origin));
        match (allowed, preflight) {
            (true, true) => Decision::Preflight,
            (true, false) => Decision::Mark,
            (false, true) if self.ignore_unmatched => Decision::Refuse,
            (false, _) => Decision::Pass,
        }
    }

    /// The fields of the answer to a preflight.
    pub fn preflight(&self, request: &dyn Fields, out: &mut dyn FieldsMut) {
        self.origin(request.first("origin").unwrap_or_default(), out);
        // A literal * is no wildcard for requests with credentials, so what was asked for is named.
        let mut list = |name: &str, value: &str, asked: &str| {
            let asked = request.first(asked).filter(|_| self.credentials && value == "*");
            match asked.unwrap_or(value.as_bytes()) {
                [] => {}
                value => out.set(name, value),
            }
        };
        list("access-control-allow-methods", &self.methods, "access-control-request-method");
        list("access-control-allow-headers", &self.headers, "access-control-request-headers");
        if let Some(seconds) = self.max_age {
            out.set("access-control-max-age", seconds.to_string().as_bytes());
        }
    }

    /// Marks the actual response to an allowed origin; the app's own permissions are replaced.
    pub fn allow(&self, origin: &[u8], response: &mut dyn FieldsMut) {
        self.origin(origin, response);
        if !self.expose.is_empty() {
            response.set("access-control-expose-headers", self.expose.as_bytes());
        }
    }

    fn origin(&self, origin: &[u8], out: &mut dyn FieldsMut) {
        out.set("access-control-allow-origin", origin);
        if self.credentials {
            out.set("access-control-allow-credentials", b"true");
        }
    }
}

fn names(f: &mut crate::doc::Fields<'_, '_>, field: &'static str) -> Box<str> {
    let names = f.list(field, |c| {
        let name = c.text()?;
        if is_name(&name) {
            Some(name)
        } else {
            c.fail(format!("{name:?} is not a name"), "one name per entry, or \"*\"")
        }
    });
    names.join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{List, read, view, warnings};

    const FULL: &str = r#"{"allowOrigins": ["https://shop.example", {"regex": "https://.*\\.test"}], "allowMethods": ["GET", "POST"],
        "allowHeaders": ["x-a"], "exposeHeaders": ["x-b", "x-c"], "maxAge": "24h", "allowCredentials": true}"#;

    #[test]
    fn decisions() {
        let forward = read(Config::read, FULL).unwrap();
        let ignore = Config { ignore_unmatched: true, ..forward.clone() };
        let (asks, none) = (("access-control-request-method", "PUT"), ("x", ""));
        for (method, origin, ask, expected, ignoring) in [
            ("GET", "", none, Decision::Pass, Decision::Pass),
            ("GET", "https://shop.example", none, Decision::Mark, Decision::Mark),
            ("GET", "https://shop.example", asks, Decision::Mark, Decision::Mark),
            ("OPTIONS", "https://shop.example", none, Decision::Mark, Decision::Mark),
            ("OPTIONS", "https://shop.example", asks, Decision::Preflight, Decision::Preflight),
            ("OPTIONS", "https://a.test", asks, Decision::Preflight, Decision::Preflight),
            ("OPTIONS", "https://a.test.evil", asks, Decision::Pass, Decision::Refuse),
            ("OPTIONS", "https://evil", asks, Decision::Pass, Decision::Refuse),
            ("OPTIONS", "https://evil", none, Decision::Pass, Decision::Pass),
            ("OPTIONS", "null", asks, Decision::Pass, Decision::Refuse),
            ("GET", "https://evil", none, Decision::Pass, Decision::Pass),
            ("OPTIONS", "", asks, Decision::Pass, Decision::Pass),
        ] {
            let mut fields = List::of(&[ask]);
            if !origin.is_empty() {
                fields.append("origin", origin.as_bytes());
            }
            let request = RequestView { method, ..view("echo", "/", &fields) };
            assert_eq!(forward.decide(&request), expected, "{method} {origin} {ask:?}");
            assert_eq!(ignore.decide(&request), ignoring, "{method} {origin} {ask:?}");
        }
    }

    #[test]
    fn fields_of_answers() {
        let config = read(Config::read, FULL).unwrap();
        let request = List::of(&[("origin", "https://shop.example"), ("access-control-request-method", "PUT")]);
        let mut out = List::default();
        config.preflight(&request, &mut out);
        let expected = [
            ("access-control-allow-origin", "https://shop.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET,POST"),
            ("access-control-allow-headers", "x-a"),
            ("access-control-max-age", "86400"),
        ];
        assert_eq!(out, List::of(&expected));

        let mut response = List::of(&[("access-control-allow-origin", "*"), ("etag", "1")]);
        config.allow(b"https://shop.example", &mut response);
        let expected = [
            ("etag", "1"),
            ("access-control-allow-origin", "https://shop.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-b,x-c"),
        ];
        assert_eq!(response, List::of(&expected));

        let little = read(Config::read, r#"{"allowOrigins": ["*"]}"#).unwrap();
        let mut out = List::default();
        little.preflight(&request, &mut out);
        assert_eq!(out, List::of(&[("access-control-allow-origin", "https://shop.example")]));
    }

    #[test]
    fn wildcards_with_credentials_name_what_was_asked() {
        let all = r#"{"allowOrigins": ["https://a"], "allowMethods": ["*"], "allowHeaders": ["*"], "allowCredentials": true}"#;
        let config = read(Config::read, all).unwrap();
        let asked = [
            ("origin", "https://a"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x,y"),
        ];
        let mut out = List::default();
        config.preflight(&List::of(&asked), &mut out);
        assert_eq!(out.first("access-control-allow-methods"), Some(&b"PUT"[..]));
        assert_eq!(out.first("access-control-allow-headers"), Some(&b"x,y"[..]));
        let open = Config { credentials: false, ..config };
        open.preflight(&List::of(&asked), &mut out);
        assert_eq!(out.first("access-control-allow-methods"), Some(&b"*"[..]));
    }

    #[test]
    fn reading() {
        for bad in [
            r#"{}"#,
            r#"{"allowOrigins": []}"#,
            r#"{"allowOrigins": ["a"], "allowMethods": ["GET POST"]}"#,
            r#"{"allowOrigins": ["a"], "allowHeaders": ["a\r\n"]}"#,
            r#"{"allowOrigins": ["a"], "maxAge": "soon"}"#,
            r#"{"allowOrigins": ["a"], "unmatchedPreflights": "drop"}"#,
            r#"{"allowOrigin": ["a"]}"#,
        ] {
            assert!(read(Config::read, bad).is_err(), "{bad}");
        }
        assert_eq!(warnings(Config::read, r#"{"allowOrigins": ["*"], "allowCredentials": true}"#).len(), 1);
    }
}
