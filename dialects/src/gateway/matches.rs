//! What a rule matches, for HTTP and gRPC. An alternative that cannot be read is left out: without its condition it would
//! match what nobody meant.

use crate::reader::Field;
use serde_json::{Map, Value, json};

/// The alternatives of a rule; `None`: it has some, and none of them could be read.
pub fn of(rule: &Field<'_>, read: impl Fn(&Field<'_>) -> Option<Value>) -> Option<Vec<Value>> {
    let listed = rule.list("matches");
    let one = |field: &Field<'_>| match read(field) {
        Some(found) => Some(found),
        None => {
            field.ignored("cannot be read, so it is left out");
            None
        }
    };
    let found: Vec<Value> = listed.iter().filter_map(one).collect();
    (!found.is_empty() || listed.is_empty()).then_some(found)
}

/// Without a field it is everything, as `PathPrefix` of `/` is.
pub fn http(field: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    if let Some(path) = field.get("path") {
        let value = path.get("value").map_or(Some("/".into()), |v| v.text())?;
        let kind = [("Exact", "exact"), ("PathPrefix", "pathPrefix"), ("RegularExpression", "regex")];
        let kind = path.get("type").map_or(Some("pathPrefix"), |t| t.word(&kind))?;
        if (kind, &*value) != ("pathPrefix", "/") {
            out.insert("path".into(), json!({kind: value}));
        }
    }
    if let Some(method) = field.get("method") {
        out.insert("method".into(), method.text()?.into());
    }
    headers(field, &mut out)?;
    let query = fields(field, "queryParams", |name| name.to_string())?;
    if !query.is_empty() {
        out.insert("query".into(), query.into());
    }
    Some(out.into())
}

/// A method is the path `/SERVICE/METHOD`.
pub fn grpc(field: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    if let Some(method) = field.get("method") {
        let regex =
            method.get("type").map_or(Some(false), |t| t.word(&[("Exact", false), ("RegularExpression", true)]));
        let text = |name| method.get(name).map_or(Some(None), |f| f.text().map(Some));
        let path = match (text("service")?, text("method")?, regex?) {
            (None, None, _) => return method.fail("names neither a service nor a method", "service, method or both"),
            (Some(service), Some(method), false) => json!({"exact": format!("/{service}/{method}")}),
            (Some(service), None, false) => json!({"pathPrefix": format!("/{service}")}),
            (None, Some(method), false) => json!({"regex": format!("/[^/]+/{}", literal(&method))}),
            (service, method, true) => {
                let any = || "[^/]+".to_string();
                json!({"regex": format!("/(?:{})/(?:{})", service.unwrap_or_else(any), method.unwrap_or_else(any))})
            }
        };
        out.insert("path".into(), path);
    }
    headers(field, &mut out)?;
    Some(out.into())
}

fn headers(field: &Field<'_>, out: &mut Map<String, Value>) -> Option<()> {
    let mut found = fields(field, "headers", str::to_ascii_lowercase)?;
    // The Host has a matcher of its own, which knows about ports.
    for name in ["host", ":authority"] {
        if let Some(host) = found.remove(name) {
            out.insert("host".into(), host);
        }
    }
    if !found.is_empty() {
        out.insert("headers".into(), found.into());
    }
    Some(())
}

/// Of a name that is there twice, only the first counts.
fn fields(field: &Field<'_>, list: &str, name_of: impl Fn(&str) -> String) -> Option<Map<String, Value>> {
    let mut out = Map::new();
    for item in field.list(list) {
        let name = name_of(&item.get("name").map_or_else(|| item.fail("has no name", ""), |f| f.text())?);
        if out.contains_key(&name) {
            item.ignore("value", "the name is there twice, and the first one counts");
            continue;
        }
        let kind =
            item.get("type").map_or(Some("exact"), |t| t.word(&[("Exact", "exact"), ("RegularExpression", "regex")]));
        let value = item.get("value").map_or_else(|| item.fail("has no value", ""), |f| f.text())?;
        out.insert(name, json!({kind?: value}));
    }
    Some(out)
}

/// As a regex that matches nothing else.
fn literal(text: &str) -> String {
    text.chars().flat_map(|c| (!c.is_ascii_alphanumeric() && c != '_').then_some('\\').into_iter().chain([c])).collect()
}
