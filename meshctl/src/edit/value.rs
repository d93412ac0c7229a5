//! Trees of values as editors of objects make and change them. Places do not matter in them.

use weft_policy::diag::Pos;
use weft_policy::doc::{Node, Value};

pub fn new(value: Value) -> Node {
    Node { at: Pos::default(), value }
}

pub fn text(text: impl Into<String>) -> Node {
    new(Value::Text(text.into()))
}

pub fn int(n: impl Into<i64>) -> Node {
    new(Value::Int(n.into()))
}

pub fn list(items: impl IntoIterator<Item = Node>) -> Node {
    new(Value::List(items.into_iter().collect()))
}

pub fn map<'k>(items: impl IntoIterator<Item = (&'k str, Node)>) -> Node {
    new(Value::Map(items.into_iter().map(|(key, node)| (key.to_string(), Pos::default(), node)).collect()))
}

/// Whether two trees mean the same: places and the order of keys say nothing.
pub fn same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::Map(a), Value::Map(b)) => {
            let in_b = |(key, _, node): &(String, Pos, Node)| {
                b.iter().find(|(k, ..)| k == key).is_some_and(|(.., other)| same(node, other))
            };
            a.len() == b.len() && a.iter().all(in_b)
        }
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}

pub fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    weft_dialects::object::field(node, key)
}

pub fn get_mut<'n>(node: &'n mut Node, key: &str) -> Option<&'n mut Node> {
    match &mut node.value {
        Value::Map(items) => items.iter_mut().find(|(k, ..)| k == key).map(|(.., node)| node),
        _ => None,
    }
}

/// Changes a field, which is made if it is not there: an empty map.
pub fn within<T>(node: &mut Node, key: &str, change: impl FnOnce(&mut Node) -> T) -> T {
    let mut inner = get(node, key).cloned().unwrap_or_else(|| map([]));
    let out = change(&mut inner);
    put(node, key, inner);
    out
}

/// What is no map becomes one.
pub fn put(node: &mut Node, key: &str, value: Node) {
    match &mut node.value {
        Value::Map(items) => match items.iter_mut().find(|(k, ..)| k == key) {
            Some((.., found)) => *found = value,
            None => items.push((key.to_string(), Pos::default(), value)),
        },
        other => *other = Value::Map(vec![(key.to_string(), Pos::default(), value)]),
    }
}

pub fn remove(node: &mut Node, key: &str) {
    if let Value::Map(items) = &mut node.value {
        items.retain(|(k, ..)| k != key);
    }
}

/// Empty for what is no list.
pub fn items(node: Option<&Node>) -> &[Node] {
    match node.map(|n| &n.value) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

pub fn items_mut(node: Option<&mut Node>) -> Option<&mut Vec<Node>> {
    match node.map(|n| &mut n.value) {
        Some(Value::List(items)) => Some(items),
        _ => None,
    }
}

/// Text, or what YAML took for something else where text was meant.
pub fn word(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) => Some(text.clone()),
        Value::Int(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Float(x) => Some(x.to_string()),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

/// The text of a field.
pub fn word_at(node: &Node, key: &str) -> Option<String> {
    get(node, key).and_then(word)
}

/// What JSON says, as a tree.
pub fn from_json(json: &serde_json::Value) -> Node {
    use serde_json::Value as Json;
    new(match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or_default()), Value::Int),
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(from_json).collect()),
        Json::Object(items) => {
            Value::Map(items.iter().map(|(k, v)| (k.clone(), Pos::default(), from_json(v))).collect())
        }
    })
}

/// The value of a path such as `spec.http[1]`.
pub fn at_mut<'n>(node: &'n mut Node, path: &str) -> Option<&'n mut Node> {
    let mut here = node;
    for part in path.split('.') {
        let (name, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        here = get_mut(here, name)?;
        for index in indices.split(['[', ']']).filter(|i| !i.is_empty()) {
            here = items_mut(Some(here))?.get_mut(index.parse::<usize>().ok()?)?;
        }
    }
    Some(here)
}

/// A field's list, made if it is not there.
pub fn with_items<T>(node: &mut Node, key: &str, change: impl FnOnce(&mut Vec<Node>) -> T) -> T {
    let mut items = items(get(node, key)).to_vec();
    let out = change(&mut items);
    put(node, key, list(items));
    out
}
