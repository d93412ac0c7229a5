//! The conditions of a rule. Those about the caller and the port are decided here, since a client's document and a port's
//! routes are made for them; the others become a route's `match`.

use crate::istio::and;
use crate::reader::Field;
use crate::world::Clients;
use serde_json::{Map, Value, json};

#[derive(Clone, Debug)]
pub struct Match {
    pub clients: Clients,
    pub port: Option<u16>,
    /// Empty: every request.
    pub value: Map<String, Value>,
}

/// The alternatives of a rule that can hold in sidecars; `None`: there are some, and none of them can.
pub fn read(rule: &Field<'_>, exported: &Clients) -> Option<Vec<Match>> {
    let given = rule.list("match");
    if given.is_empty() {
        return Some(vec![Match { clients: exported.clone(), port: None, value: Map::new() }]);
    }
    let found: Vec<Match> = given.iter().filter_map(|m| alternative(m, exported)).collect();
    (!found.is_empty()).then_some(found)
}

fn alternative(m: &Field<'_>, exported: &Clients) -> Option<Match> {
    let mut value = Map::new();
    let mut whole = true;
    if let Some(name) = m.get("name") {
        name.differs("the rule's name is what logs and series show");
    }
    m.ignore("statPrefix", "series are named by service and route");
    let fold = m.get("ignoreUriCase").and_then(|f| f.bool()).unwrap_or(false);
    let mut add = |name: &str, found: Option<Option<Value>>| match found {
        Some(Some(found)) => {
            value.insert(name.into(), found);
        }
        // A condition that cannot be read must not become "everything".
        Some(None) => whole = false,
        None => {}
    };
    let text = |name: &str| m.get(name).map(|f| string_match(&f));
    let mut path = text("uri");
    if let Some(prefix) = m.get("uri").and_then(|u| u.get("prefix")) {
        let text = prefix.text().unwrap_or_default();
        if text.len() > 1 && !text.ends_with('/') {
            let message = format!("any text that begins so matches: {text}x too, and not only {text} and {text}/x");
            prefix.warn(Some("G13"), message, "Gateway API's PathPrefix compares whole segments");
        }
    }
    if let Some(Some(Value::Object(path))) = path.as_mut().filter(|_| fold) {
        match path.contains_key("regex") {
            true => m.ignore("ignoreUriCase", "has no effect on a regex, which says (?i) itself"),
            false => {
                path.insert("ignoreCase".into(), json!(true));
            }
        }
    }
    add("path", path);
    add("scheme", text("scheme"));
    add("method", text("method"));
    add("host", text("authority"));
    let mut headers = Map::new();
    for (name, field) in m.get("headers").map(|f| f.entries()).unwrap_or_default() {
        let found = string_match(&field);
        match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => add("host", Some(found)),
            ":method" => add("method", Some(found)),
            ":path" => add("path", Some(found)),
            ":scheme" => add("scheme", Some(found)),
            lower => match found {
                Some(found) => {
                    headers.insert(lower.into(), found);
                }
                None => add("headers", Some(None)),
            },
        }
    }
    for (name, field) in m.get("withoutHeaders").map(|f| f.entries()).unwrap_or_default() {
        let lower = name.to_ascii_lowercase();
        let not = string_match(&field).map(|found| match found == json!({}) {
            true => json!({"present": false}),
            false => json!({"not": found}),
        });
        match not {
            Some(_) if headers.contains_key(&lower) => {
                let hint = "one condition for each header: a regex can say both";
                add("headers", Some(field.fail("stands in `headers` as well", hint)));
            }
            Some(not) => {
                headers.insert(lower, not);
            }
            None => add("headers", Some(None)),
        }
    }
    let mut query = Map::new();
    for (name, field) in m.get("queryParams").map(|f| f.entries()).unwrap_or_default() {
        match string_match(&field) {
            Some(found) => {
                query.insert(name, found);
            }
            None => add("query", Some(None)),
        }
    }
    for (name, found) in [("headers", headers), ("query", query)] {
        if !found.is_empty() {
            add(name, Some(Some(Value::Object(found))));
        }
    }
    let (clients, port) = caller(m, exported)?;
    whole.then_some(Match { clients, port, value })
}

/// The conditions that http, tls and tcp have in common; `None`: they hold for no sidecar.
pub fn caller(m: &Field<'_>, exported: &Clients) -> Option<(Clients, Option<u16>)> {
    let port = m.get("port").map(|f| f.port());
    let labels = m.get("sourceLabels").map(|f| f.texts()).unwrap_or_default();
    let namespace = m.get("sourceNamespace").map(|f| f.text());
    let gateways: Vec<Option<String>> = m.list("gateways").iter().map(|f| f.text()).collect();
    if !gateways.is_empty() && !gateways.iter().flatten().any(|g| g == "mesh") {
        m.ignored("only for gateways, which Weft has none of yet");
        return None;
    }
    let (port, namespace) = (port.map_or(Some(None), |p| p.map(Some))?, namespace.map_or(Some(None), |n| n.map(Some))?);
    match and(exported, namespace, labels) {
        Some(clients) => Some((clients, port)),
        None => m.get("sourceNamespace").and_then(|f| f.fail("exportTo does not name this namespace", "")),
    }
}

/// `{exact: ...}`, `{prefix: ...}`, `{regex: ...}`; `{}` is presence.
pub fn string_match(field: &Field<'_>) -> Option<Value> {
    let found: Vec<(&str, Option<String>)> =
        ["exact", "prefix", "regex"].into_iter().filter_map(|kind| Some((kind, field.get(kind)?.text()))).collect();
    match &found[..] {
        [] if field.entries().is_empty() => Some(json!({})),
        [] => field.fail("no condition that is known", "one of exact, prefix, regex"),
        [(kind, text)] => {
            let text = text.clone()?;
            Some(json!({*kind: text}))
        }
        _ => field.fail("one condition is enough", "one of exact, prefix, regex"),
    }
}
