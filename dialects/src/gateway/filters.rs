//! Filters: what a rule, or one of its backends, does to requests beside sending them on. One that cannot be done must not
//! be skipped, says Gateway API, so its requests are answered with 500.

use super::backend::Backends;
use crate::reader::Field;
use serde_json::{Map, Value, json};

/// What the filters of a list come to.
#[derive(Default)]
pub struct Filters {
    /// Fields of a route, or of one of its destinations.
    pub fields: Map<String, Value>,
    /// One of them cannot be done.
    pub impossible: bool,
}

/// Filters of a rule.
pub fn of_rule(rule: &Field<'_>, backends: &Backends<'_>) -> Filters {
    let mut out = Filters::default();
    let mut mirrors = Vec::new();
    for filter in rule.list("filters") {
        let done = match kind(&filter).as_deref() {
            Some("RequestMirror") => mirror(&filter, backends).map(|m| mirrors.extend(m)),
            Some("RequestRedirect") => redirect(&filter).map(|v| put(&mut out.fields, "redirect", v)),
            Some("URLRewrite") => rewrite(&filter).map(|v| put(&mut out.fields, "rewrite", v)),
            Some("CORS") => cors(&filter).map(|v| put(&mut out.fields, "cors", v)),
            Some(kind) => headers(&filter, kind, &mut out.fields),
            None => None,
        };
        out.impossible |= done.is_none();
    }
    if !mirrors.is_empty() {
        out.fields.insert("mirror".into(), mirrors.into());
    }
    out
}

/// Filters of one backend: only header changes can be done for a part of a rule's requests.
pub fn of_backend(backend: &Field<'_>) -> Filters {
    let mut out = Filters::default();
    for filter in backend.list("filters") {
        let done = kind(&filter).and_then(|kind| headers(&filter, &kind, &mut out.fields));
        out.impossible |= done.is_none();
    }
    out
}

fn put(fields: &mut Map<String, Value>, name: &str, value: Value) {
    fields.insert(name.into(), value);
}

fn kind(filter: &Field<'_>) -> Option<String> {
    match filter.get("type") {
        Some(kind) => kind.text(),
        None => filter.fail("has no type", "type: RequestHeaderModifier and the like"),
    }
}

/// What belongs to a filter of some type.
fn body<'r>(filter: &Field<'r>, name: &str) -> Option<Field<'r>> {
    match filter.get(name) {
        Some(body) => Some(body),
        None => filter.fail(format!("has no {name}"), "a filter has the field that its type names"),
    }
}

fn headers(filter: &Field<'_>, kind: &str, fields: &mut Map<String, Value>) -> Option<()> {
    let (name, field) = match kind {
        "RequestHeaderModifier" => ("requestHeaderModifier", "requestHeaders"),
        "ResponseHeaderModifier" => ("responseHeaderModifier", "responseHeaders"),
        _ => {
            let why = format!("{kind} cannot be done here; the requests are answered with 500, as Gateway API asks");
            return filter.fail(why, "take the filter away, or send these requests elsewhere");
        }
    };
    let body = body(filter, name)?;
    let pairs = |list: &str, before: &Map<String, Value>| -> Option<Map<String, Value>> {
        let mut out = Map::new();
        for item in body.list(list) {
            let text = |name: &str| match item.get(name) {
                Some(field) => field.text(),
                None => item.fail(format!("has no {name}"), ""),
            };
            let header = text("name")?.to_ascii_lowercase();
            // Of two values for one name a document says only one.
            if out.contains_key(&header) || before.contains_key(&header) {
                item.ignore("value", "the name is there twice, and the first one counts");
                continue;
            }
            // Values are text here, and have variables in the documents.
            out.insert(header, text("value")?.replace('%', "%%").into());
        }
        Some(out)
    };
    let set = pairs("set", &Map::new())?;
    let add = pairs("add", &set)?;
    let remove = body.list("remove").iter().map(|f| f.text().map(Value::from)).collect::<Option<Vec<_>>>()?;
    let mut out = Map::new();
    for (name, value) in [("set", Value::from(set)), ("add", add.into()), ("remove", remove.into())] {
        if value.as_object().is_none_or(|m| !m.is_empty()) && value.as_array().is_none_or(|l| !l.is_empty()) {
            out.insert(name.into(), value);
        }
    }
    if !out.is_empty() {
        fields.insert(field.into(), out.into());
    }
    Some(())
}

/// `None`: it cannot be read; nothing to mirror to is no copy, and the request goes on.
fn mirror(filter: &Field<'_>, backends: &Backends<'_>) -> Option<Option<Value>> {
    let body = body(filter, "requestMirror")?;
    let mut out = Map::new();
    if let Some(percent) = body.get("percent") {
        out.insert("percent".into(), percent.int(0, 100)?.into());
    }
    if let Some(fraction) = body.get("fraction") {
        let numerator = fraction.get("numerator").map_or_else(|| fraction.fail("has no numerator", ""), |f| f.u32())?;
        let denominator = fraction.get("denominator").map_or(Some(100), |f| f.u32())?;
        out.insert("fraction".into(), json!({"numerator": numerator, "denominator": denominator}));
    }
    let Some(backend) = body.get("backendRef") else { return body.fail("has no backendRef", "") };
    let to = backends.resolve(&backend, "nothing is mirrored")?;
    if to.contains_key("invalid") {
        return Some(None);
    }
    out.insert("to".into(), to.into());
    Some(Some(out.into()))
}

fn path(field: &Field<'_>) -> Option<Value> {
    let kinds = [
        ("ReplaceFullPath", ("replaceFullPath", "full")),
        ("ReplacePrefixMatch", ("replacePrefixMatch", "pathPrefix")),
    ];
    let (name, is) = match field.get("type") {
        Some(kind) => kind.word(&kinds)?,
        None => return field.fail("has no type", "ReplaceFullPath or ReplacePrefixMatch"),
    };
    let text = body(field, name)?.text()?;
    Some(json!({is: if text.is_empty() { "/".into() } else { text }}))
}

fn redirect(filter: &Field<'_>) -> Option<Value> {
    let body = body(filter, "requestRedirect")?;
    let status = body.get("statusCode").map_or(Some(302), |s| s.int(300, 399))?;
    let mut out = Map::from_iter([("status".to_string(), json!(status))]);
    let scheme = body.get("scheme").map_or(Some(None), |f| f.text().map(Some))?;
    if let Some(scheme) = &scheme {
        out.insert("scheme".into(), json!(scheme));
    }
    if let Some(host) = body.get("hostname") {
        out.insert("host".into(), json!(host.text()?));
    }
    if let Some(path_of) = body.get("path") {
        out.insert("path".into(), path(&path_of)?);
    }
    // Without a port it is the scheme's own, and without a scheme the one that was dialled.
    match body.get("port") {
        Some(port) => put(&mut out, "port", json!(port.port()?)),
        None => put(&mut out, "port", json!(if scheme.is_some() { "scheme" } else { "request" })),
    }
    Some(out.into())
}

fn rewrite(filter: &Field<'_>) -> Option<Value> {
    let body = body(filter, "urlRewrite")?;
    let mut out = Map::new();
    if let Some(host) = body.get("hostname") {
        out.insert("authority".into(), json!(host.text()?));
    }
    if let Some(path_of) = body.get("path") {
        out.insert("path".into(), path(&path_of)?);
    }
    match out.is_empty() {
        true => body.fail("changes nothing", "hostname or path"),
        false => Some(out.into()),
    }
}

fn cors(filter: &Field<'_>) -> Option<Value> {
    let body = body(filter, "cors")?;
    let mut out = Map::new();
    let origins = body.list("allowOrigins").iter().map(origin).collect::<Option<Vec<_>>>()?;
    put(&mut out, "allowOrigins", origins.into());
    for name in ["allowMethods", "allowHeaders", "exposeHeaders"] {
        let list = body.list(name).iter().map(|f| f.text().map(Value::from)).collect::<Option<Vec<_>>>()?;
        if !list.is_empty() {
            put(&mut out, name, list.into());
        }
    }
    let seconds = body.get("maxAge").map_or(Some(5), |f| f.u32())?;
    put(&mut out, "maxAge", json!(format!("{seconds}s")));
    if let Some(credentials) = body.get("allowCredentials") {
        put(&mut out, "allowCredentials", json!(credentials.bool()?));
    }
    Some(out.into())
}

/// `https://*.example.com` has a wildcard, which takes one label or several.
fn origin(field: &Field<'_>) -> Option<Value> {
    let text = field.text()?;
    match text.split_once("://*.") {
        None => Some(json!(text)),
        Some((scheme, rest)) if [scheme, rest].iter().all(|part| part.bytes().all(is_plain)) => {
            Some(json!({"regex": format!("{scheme}://[^/]+\\.{}", rest.replace('.', "\\."))}))
        }
        Some(_) => field.fail(format!("{text:?} is not an origin"), "as in https://shop.example.com"),
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':')
}
