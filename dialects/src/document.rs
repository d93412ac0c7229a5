//! Documents as `weft-policy` reads them: what a proxy would refuse is found here.

use serde_json::Value;
use weft_policy::diag::{Diags, Pos, Severity};
use weft_policy::doc::{self, Cursor, Node};

/// What is wrong with a document, if anything is.
pub fn check<T>(document: &Value, read: impl FnOnce(&mut Cursor<'_, '_>) -> Option<T>) -> Option<String> {
    let (node, mut diags) = (node(document), Diags::default());
    let found = read(&mut Cursor::new(&node, &mut diags));
    let errors = diags.0.iter().filter(|d| d.severity == Severity::Error);
    let said: Vec<String> = errors
        .map(|d| {
            let field = if d.field.is_empty() { String::new() } else { format!("{}: ", d.field) };
            let hint = d.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
            format!("{field}{}{hint}", d.message)
        })
        .collect();
    match (said.is_empty(), found) {
        (true, Some(_)) => None,
        (true, None) => Some("is not understood".into()),
        (false, _) => Some(said.join("; ")),
    }
}

/// Without places: nobody wrote it.
pub fn node(value: &Value) -> Node {
    let value = match value {
        Value::Null => doc::Value::Null,
        Value::Bool(b) => doc::Value::Bool(*b),
        Value::Number(n) => match n.as_i64() {
            Some(n) => doc::Value::Int(n),
            None => doc::Value::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(text) => doc::Value::Text(text.clone()),
        Value::Array(items) => doc::Value::List(items.iter().map(node).collect()),
        Value::Object(items) => {
            doc::Value::Map(items.iter().map(|(k, v)| (k.clone(), Pos::default(), node(v))).collect())
        }
    };
    Node { at: Pos::default(), value }
}
