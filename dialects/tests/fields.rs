//! What the ledger calls honoured is: change such a field of any golden, and the world changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trial;

use std::path::Path;
use std::sync::Arc;
use weft_dialects::ledger::Verdict;
use weft_dialects::{Options, translate};
use weft_policy::doc::{Node, Value};

/// Other values that a field might take. One that changes the world is enough.
fn others(value: &Value) -> Vec<Value> {
    let text = |t: &str| Value::Text(t.to_string());
    match value {
        Value::Text(old) => {
            let words = "4s 77 mesh TCP UDP None ExternalName RANDOM DISABLE STRICT IGNORE UNAVAILABLE http tcp grpc 5xx \
                         10.96.9.9 web spiffe://cluster.local/ns/x/sa/x /other true Exact RegularExpression POST aGVs";
            let mut all = vec![text(&format!("{old}x"))];
            all.extend(words.split(' ').filter(|w| w != old).map(text));
            all
        }
        Value::Int(n) => vec![Value::Int(n + 1), Value::Int(n - 1), Value::Int(302)],
        Value::Float(x) => vec![Value::Float(x / 2.0)],
        Value::Bool(b) => vec![Value::Bool(!b)],
        // Presence where there is something, and the other way round.
        Value::Map(_) => {
            let only = |key: &str, t: &str| Value::Map(vec![(key.into(), Default::default(), node(text(t)))]);
            vec![only("exact", "other"), only("mode", "DISABLE")]
        }
        Value::List(_) => vec![Value::List(vec![node(text("other"))])],
        Value::Null => Vec::new(),
    }
}

fn node(value: Value) -> Node {
    Node { at: Default::default(), value }
}

/// The node with one field's value in place of another.
fn with(node: &Node, path: &str, target: &str, new: &Value) -> Node {
    if path == target {
        return Node { at: node.at, value: new.clone() };
    }
    let value = match &node.value {
        Value::Map(items) => Value::Map(
            items
                .iter()
                .map(|(key, at, node)| {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    (key.clone(), *at, with(node, &path, target, new))
                })
                .collect(),
        ),
        Value::List(items) => Value::List(
            items.iter().enumerate().map(|(i, node)| with(node, &format!("{path}[{i}]"), target, new)).collect(),
        ),
        other => other.clone(),
    };
    Node { at: node.at, value }
}

/// Fields that another field of their object makes idle in these examples.
const IDLE: &[(&str, &str)] = &[
    // appProtocol says what the port speaks.
    ("service/web.demo", "spec.ports[2].name"),
    // It serves, and is terminating.
    ("endpointslice/web-abc.default", "endpoints[1].conditions.ready"),
    // It is not ready.
    ("endpointslice/web-abc.default", "endpoints[2].addresses[0]"),
];

#[test]
fn what_is_honoured_changes_the_world() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let (mut seen, mut idle) = (0, Vec::new());
    for input in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if input.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let objects = trial::objects(&std::fs::read_to_string(&input).unwrap());
        let options = Options::default();
        let (world, ledger) = translate(&objects, &options);
        for entry in ledger.entries.iter().filter(|e| e.verdict == Verdict::Honoured) {
            // Annotations are read by their own way.
            if !entry.field.starts_with("spec") && entry.object.kind != "EndpointSlice" {
                continue;
            }
            let (object, field) = (entry.object.to_string(), entry.field.as_str());
            // Services are only referred to in the examples of other kinds.
            let own = ["service", "endpoint-slice"].contains(&&*input.file_stem().unwrap().to_string_lossy());
            if IDLE.contains(&(object.as_str(), field)) || (entry.object.kind == "Service" && !own) {
                continue;
            }
            seen += 1;
            let at = objects.0.iter().position(|o| o.reference() == entry.object).unwrap();
            let object = &objects.0[at];
            let changes = |new: &Value| {
                let mut changed = (**object).clone();
                changed.node = with(&object.node, "", &entry.field, new);
                let mut all = objects.clone();
                all.0[at] = Arc::new(changed);
                translate(&all, &options).0 != world
            };
            let old = value(&object.node, "", &entry.field).unwrap_or_else(|| panic!("{entry:?}"));
            if !others(&old).iter().any(changes) {
                idle.push(format!("{}: {} {}", input.display(), entry.object, entry.field));
            }
        }
    }
    assert!(seen > 150, "{seen} fields");
    assert!(idle.is_empty(), "these are called honoured, and change nothing:\n{}", idle.join("\n"));
}

fn value(node: &Node, path: &str, target: &str) -> Option<Value> {
    if path == target {
        return Some(node.value.clone());
    }
    match &node.value {
        Value::Map(items) => items.iter().find_map(|(key, _, node)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            target.starts_with(&path).then(|| value(node, &path, target)).flatten()
        }),
        Value::List(items) => {
            items.iter().enumerate().find_map(|(i, node)| value(node, &format!("{path}[{i}]"), target))
        }
        _ => None,
    }
}
