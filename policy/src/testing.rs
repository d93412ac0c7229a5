//! What tests of policies share: documents from JSON, header lists, a seeded generator.

use crate::diag::{Diags, Pos, Severity};
use crate::doc::{Cursor, Node, Value};
use crate::view::{ConnView, Fields, FieldsMut, RequestView};

pub fn node(json: &str) -> Node {
    fn convert(v: &serde_json::Value) -> Node {
        use serde_json::Value as J;
        let value = match v {
            J::Null => Value::Null,
            J::Bool(b) => Value::Bool(*b),
            J::Number(n) => n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap()), Value::Int),
            J::String(s) => Value::Text(s.clone()),
            J::Array(items) => Value::List(items.iter().map(convert).collect()),
            J::Object(map) => Value::Map(map.iter().map(|(k, v)| (k.clone(), Pos::default(), convert(v))).collect()),
        };
        Node { at: Pos::default(), value }
    }
    convert(&serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}")))
}

/// What a reader makes of a document, or its errors as lines.
pub fn read<T>(read: impl FnOnce(&mut Cursor<'_, '_>) -> Option<T>, json: &str) -> Result<T, Vec<String>> {
    let (out, diags) = read_all(read, json);
    match out {
        Some(out) if !diags.has_errors() => Ok(out),
        _ => {
            let errors: Vec<_> =
                diags.0.iter().filter(|d| d.severity == Severity::Error).map(|d| d.to_string()).collect();
            assert!(!errors.is_empty(), "refused without saying why: {json}");
            Err(errors)
        }
    }
}

pub fn read_all<T>(read: impl FnOnce(&mut Cursor<'_, '_>) -> Option<T>, json: &str) -> (Option<T>, Diags) {
    let node = node(json);
    let mut diags = Diags::default();
    let out = read(&mut Cursor::new(&node, &mut diags));
    (out, diags)
}

/// The lines of the warnings that reading gives.
pub fn warnings<T>(read: impl FnOnce(&mut Cursor<'_, '_>) -> Option<T>, json: &str) -> Vec<String> {
    let (_, diags) = read_all(read, json);
    diags.0.iter().filter(|d| d.severity == Severity::Warning).map(|d| d.to_string()).collect()
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(pub Vec<(String, Vec<u8>)>);

impl List {
    pub fn of(items: &[(&str, &str)]) -> Self {
        Self(items.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect())
    }
}

impl Fields for List {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        for (n, value) in &self.0 {
            if n == name && !visit(value) {
                return;
            }
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| &v[..])
    }
}

impl FieldsMut for List {
    fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.append(name, value);
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        self.0.push((name.into(), value.into()));
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }
}

/// A GET of a target, from 10.0.0.9 to 10.1.0.1:80, as the router sees it.
pub fn view<'a>(host: &'a str, target: &'a str, fields: &'a List) -> RequestView<'a> {
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    RequestView {
        conn: ConnView {
            peer: ([10, 0, 0, 9], 40_000).into(),
            destination: ([10, 1, 0, 1], 80).into(),
            identity: None,
            server_name: None,
        },
        method: "GET",
        scheme: "http",
        host,
        path,
        query,
        fields,
    }
}

pub struct Xorshift(pub u64);

impl Xorshift {
    pub fn next(&mut self) -> u64 {
        // xorshift64*: the multiplication makes the high bits, which decisions use, good enough for statistics.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
