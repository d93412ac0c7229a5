//! The difference of two documents as operations of RFC 6902, which is how a webhook answers.

use serde_json::{Map, Value, json};

/// Operations that make `to` of `from`.
pub fn diff(from: &Value, to: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    walk(from, to, &mut String::new(), &mut out);
    out
}

fn walk(from: &Value, to: &Value, path: &mut String, out: &mut Vec<Value>) {
    match (from, to) {
        _ if from == to => {}
        (Value::Object(from), Value::Object(to)) => maps(from, to, path, out),
        (Value::Array(from), Value::Array(to)) if ordered(from, to) => lists(from, to, path, out),
        _ => out.push(json!({"op": "replace", "path": path, "value": to})),
    }
}

fn maps(from: &Map<String, Value>, to: &Map<String, Value>, path: &mut String, out: &mut Vec<Value>) {
    for (key, value) in from {
        below(path, key, |path| match to.get(key) {
            None => out.push(json!({"op": "remove", "path": path})),
            Some(new) => walk(value, new, path, out),
        });
    }
    for (key, value) in to.iter().filter(|(key, _)| !from.contains_key(*key)) {
        below(path, key, |path| out.push(json!({"op": "add", "path": path, "value": value})));
    }
}

/// Elements are known by their names, so that one put before others does not change them all.
fn lists(from: &[Value], to: &[Value], path: &mut String, out: &mut Vec<Value>) {
    let stays = |name: &str| to.iter().any(|v| name_of(v) == Some(name));
    for (i, _) in from.iter().enumerate().rev().filter(|(_, v)| !name_of(v).is_some_and(stays)) {
        below(path, &i.to_string(), |path| out.push(json!({"op": "remove", "path": path})));
    }
    for (i, new) in to.iter().enumerate() {
        let old = from.iter().find(|v| name_of(v) == name_of(new));
        below(path, &i.to_string(), |path| match old {
            Some(old) => walk(old, new, path, out),
            None => out.push(json!({"op": "add", "path": path, "value": new})),
        });
    }
}

/// Whether all have names, no two the same, and those that stay are in the same order.
fn ordered(from: &[Value], to: &[Value]) -> bool {
    let names = |list: &[Value]| -> Option<Vec<String>> {
        let names: Vec<String> = list.iter().map(|v| name_of(v).map(String::from)).collect::<Option<_>>()?;
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        (sorted.len() == names.len()).then_some(names)
    };
    let (Some(from), Some(to)) = (names(from), names(to)) else { return false };
    from.iter().filter(|n| to.contains(n)).eq(to.iter().filter(|n| from.contains(n)))
}

fn name_of(value: &Value) -> Option<&str> {
    value.get("name")?.as_str()
}

fn below<T>(path: &mut String, part: &str, then: impl FnOnce(&mut String) -> T) -> T {
    let length = path.len();
    path.push('/');
    path.push_str(&part.replace('~', "~0").replace('/', "~1"));
    let done = then(path);
    path.truncate(length);
    done
}
