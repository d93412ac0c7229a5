//! HTTPRouteGroup: named matches, which do nothing by themselves. A TrafficSplit may be for some of them only.

use crate::builder::Builder;
use crate::proof;
use crate::reader::{Field, Reader};
use serde_json::{Map, Value, json};

#[derive(Clone, Debug)]
pub struct HttpRouteGroup {
    pub namespace: String,
    pub name: String,
    /// Alternatives, as in a route.
    pub matches: Vec<Value>,
}

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    // The first versions have no spec.
    let root = reader.root();
    let listed = root.list("matches");
    let listed = if listed.is_empty() { reader.spec().list("matches") } else { listed };
    b.route_groups.push(HttpRouteGroup {
        namespace: reader.object.namespace.clone(),
        name: reader.object.name.clone(),
        matches: listed.iter().filter_map(one).collect(),
    });
}

fn one(field: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    field.ignore("name", "for TrafficTargets, which are not read yet");
    if let Some(path) = field.get("pathRegex") {
        out.insert("path".into(), json!({"regex": path.text()?}));
    }
    let methods = field.list("methods").iter().map(|m| m.text()).collect::<Option<Vec<_>>>()?;
    if !methods.is_empty() && !methods.iter().any(|m| m == "*") {
        out.insert("method".into(), json!({"regex": methods.join("|")}));
    }
    // A map, or a list of maps.
    let headers = field.get("headers").map(|headers| match headers.node.value {
        weft_policy::doc::Value::List(_) => headers.items().iter().flat_map(|h| h.entries()).collect(),
        _ => headers.entries(),
    });
    let mut found = Map::new();
    for (name, value) in headers.unwrap_or_default() {
        let regex = json!({"regex": value.text()?});
        match name.to_ascii_lowercase().as_str() {
            "host" => out.insert("host".into(), regex),
            other => found.insert(other.into(), regex),
        };
    }
    if !found.is_empty() {
        out.insert("headers".into(), found.into());
    }
    let out = Value::Object(out);
    match proof::route(&json!({"match": out}), "firstMatch") {
        Ok(_) => Some(out),
        Err(why) => field.fail(why, ""),
    }
}
