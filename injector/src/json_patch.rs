//! The difference of two documents as operations of RFC 6902, which is how a webhook answers.

use serde_json::{Map, Value, json};
use std::collections::HashMap;

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
    let (old, new) = (by_name(from), by_name(to));
    for (i, _) in from.iter().enumerate().rev().filter(|(_, v)| !name_of(v).is_some_and(|n| new.contains_key(n))) {
        below(path, &i.to_string(), |path| out.push(json!({"op": "remove", "path": path})));
    }
    for (i, new) in to.iter().enumerate() {
        below(path, &i.to_string(), |path| match name_of(new).and_then(|n| old.get(n)) {
            Some(old) => walk(old, new, path, out),
            None => out.push(json!({"op": "add", "path": path, "value": new})),
        });
    }
}

/// Whether all have names, no two the same, and those that stay are in the same order.
fn ordered(from: &[Value], to: &[Value]) -> bool {
    let (old, new) = (by_name(from), by_name(to));
    let stay = |list: &'_ [Value], other: &HashMap<&str, &Value>| -> Vec<String> {
        list.iter().filter_map(name_of).filter(|n| other.contains_key(n)).map(String::from).collect()
    };
    old.len() == from.len() && new.len() == to.len() && stay(from, &new) == stay(to, &old)
}

fn by_name(list: &[Value]) -> HashMap<&str, &Value> {
    list.iter().filter_map(|v| Some((name_of(v)?, v))).collect()
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
