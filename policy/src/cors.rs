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
                ignore_unmatched: f.or("unmatchedPreflights", false, |c| c.word(&[("forward", false), ("ignore", true)])),
            };
            if config.origins.is_empty() {
                return f.fail("allowOrigins", "allows nobody", "origins as in https://shop.example.com, or \"*\"");
            }
            if config.credentials && config.origins.contains(&StringMatch::Present) {
                f.warn("allowCredentials", "any site can act as the user, since every origin is allowed", "name the origins");
            }
            Some(config)
        })
    }

    pub fn decide(&self, r: &RequestView<'_>) -> Decision {
        let Some(origin) = r.fields.first("origin").filter(|o| !o.is_empty()) else { return Decision::Pass };
        let preflight = r.method == "OPTIONS" && r.fields.first("access-control-request-method").is_some_and(|m| !m.is_empty());
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
        if is_name(&name) { Some(name) } else { c.fail(format!("{name:?} is not a name"), "one name per entry, or \"*\"") }
    });
    names.join(",").into()
}
