//! YAML text to a tree with positions.
//!
//! Built from the parser's events, so that every bound holds while the text is read: size, depth, and the number of nodes
//! after aliases are expanded. The core schema of YAML 1.2, a little stricter: keys are plain words and may not
//! repeat, no merge keys, no custom tags. A whole number is one only as people write it, so `0123` stays text.

use crate::diag::{Diags, Pos};
use crate::doc::{Node, Value};
use rustc_hash::FxHashMap;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

pub const MAX_BYTES: usize = 4 << 20;
const MAX_DEPTH: usize = 64;
const MAX_NODES: usize = 500_000;

/// The only document, or `None` with the reason in `diags`.
pub fn parse(text: &str, diags: &mut Diags) -> Option<Node> {
    let mut found = read(text, false, diags)?;
    if found.is_empty() {
        let at = Pos { line: 1, column: 1 };
        diags.error(at, "", "the file is empty", Some("see docs/config-file.md".into()));
    }
    found.pop()
}

/// Every document that is not empty, or `None` with the reason in `diags`.
pub fn documents(text: &str, diags: &mut Diags) -> Option<Vec<Node>> {
    let mut found = read(text, true, diags)?;
    found.retain(|node| node.value != Value::Null);
    Some(found)
}

fn read(text: &str, several: bool, diags: &mut Diags) -> Option<Vec<Node>> {
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes", text.len());
        diags.error(Pos { line: 1, column: 1 }, "", message, Some(format!("at most {MAX_BYTES}")));
        return None;
    }
    match build(text.strip_prefix('\u{feff}').unwrap_or(text), several) {
        Ok(nodes) => Some(nodes),
        Err(wrong) => {
            diags.error(wrong.at, "", wrong.message, wrong.hint);
            None
        }
    }
}

struct Wrong {
    at: Pos,
    message: String,
    hint: Option<String>,
}

impl Wrong {
    fn new(at: Pos, message: impl Into<String>, hint: &str) -> Self {
        Self { at, message: message.into(), hint: (!hint.is_empty()).then(|| hint.into()) }
    }
}

/// A map or list whose end has not been seen yet.
struct Open {
    at: Pos,
    anchor: usize,
    /// How many levels are below it so far.
    height: usize,
    size: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    Map { items: Vec<(String, Pos, Node)>, seen: FxHashMap<String, u32>, key: Option<(String, Pos)> },
}

struct Anchored {
    node: Node,
    height: usize,
    size: usize,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    roots: Vec<Node>,
    several: bool,
    anchors: FxHashMap<usize, Anchored>,
    nodes: usize,
    documents: usize,
}

fn build(text: &str, several: bool) -> Result<Vec<Node>, Wrong> {
    let mut builder = Builder { several, ..Builder::default() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| {
            let hint = if e.info().contains("tab") { "indent with spaces" } else { "" };
            Wrong::new(pos(e.marker()), format!("not YAML: {}", e.info()), hint)
        })?;
        builder.event(event, pos(&span.start))?;
    }
    Ok(builder.roots)
}

fn pos(m: &Marker) -> Pos {
    Pos { line: m.line().try_into().unwrap_or(u32::MAX), column: (m.col() + 1).try_into().unwrap_or(u32::MAX) }
}

impl Builder {
    fn event(&mut self, event: Event<'_>, at: Pos) -> Result<(), Wrong> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                // Aliases do not reach into another document.
                self.anchors.clear();
                if self.documents > 1 && !self.several {
                    return Err(Wrong::new(at, "a second document", "one document in one file"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                if self.wants_key() {
                    return self.key(&text, style, at);
                }
                let value = scalar(&text, style, tag.as_deref(), at)?;
                self.add(Node { at, value }, anchor, 0, 1)?;
            }
            Event::SequenceStart(anchor, tag) => {
                self.start(at, anchor, tag.as_deref(), Kind::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                let kind = Kind::Map { items: Vec::new(), seen: FxHashMap::default(), key: None };
                self.start(at, anchor, tag.as_deref(), kind)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let value = match open.kind {
                    Kind::List(items) => Value::List(items),
                    Kind::Map { items, .. } => Value::Map(items),
                };
                self.add(Node { at: open.at, value }, open.anchor, open.height + 1, open.size + 1)?;
            }
            Event::Alias(id) => {
                if self.wants_key() {
                    return Err(Wrong::new(at, "an alias as a key", "keys are plain words"));
                }
                let Some(found) = self.anchors.get(&id) else {
                    return Err(Wrong::new(
                        at,
                        "an alias of something that is not complete",
                        "anchors come before aliases",
                    ));
                };
                let (height, size) = (found.height, found.size);
                self.count(size, at)?;
                if self.open.len() + height > MAX_DEPTH {
                    return Err(too_deep(at));
                }
                let node = self.anchors.get(&id).map(|a| a.node.clone());
                if let Some(node) = node {
                    self.place(node, height, size);
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize, at: Pos) -> Result<(), Wrong> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(Wrong::new(at, format!("more than {MAX_NODES} values, counting what aliases repeat"), ""));
        }
        Ok(())
    }

    fn start(&mut self, at: Pos, anchor: usize, tag: Option<&Tag>, kind: Kind) -> Result<(), Wrong> {
        if self.wants_key() {
            return Err(Wrong::new(at, "a list or a map as a key", "keys are plain words"));
        }
        if let Some(tag) = tag.filter(|t| !t.is_yaml_core_schema()) {
            return Err(unknown_tag(tag, at));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(at));
        }
        self.open.push(Open { at, anchor, height: 0, size: 0, kind });
        Ok(())
    }

    /// Whether the next event must be a key of the innermost map.
    fn wants_key(&self) -> bool {
        self.open.last().is_some_and(|o| matches!(o.kind, Kind::Map { key: None, .. }))
    }

    fn key(&mut self, text: &str, style: ScalarStyle, at: Pos) -> Result<(), Wrong> {
        self.count(1, at)?;
        if style == ScalarStyle::Plain && text == "<<" {
            return Err(Wrong::new(at, "merge keys are not known here", "repeat the fields, or alias a whole value"));
        }
        let Some(Open { kind: Kind::Map { seen, key, .. }, .. }) = self.open.last_mut() else { return Ok(()) };
        if let Some(line) = seen.insert(text.into(), at.line) {
            return Err(Wrong::new(at, format!("{text} is here twice; first on line {line}"), "give each field once"));
        }
        *key = Some((text.into(), at));
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize, height: usize, size: usize) -> Result<(), Wrong> {
        self.count(1, node.at)?;
        if anchor > 0 {
            // Copies held for aliases count as well, so nested anchors cannot multiply.
            self.count(size, node.at)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), height, size });
        }
        self.place(node, height, size);
        Ok(())
    }

    fn place(&mut self, node: Node, height: usize, size: usize) {
        let Some(open) = self.open.last_mut() else {
            self.roots.push(node);
            return;
        };
        open.height = open.height.max(height);
        open.size += size;
        match &mut open.kind {
            Kind::List(items) => items.push(node),
            Kind::Map { items, key, .. } => {
                if let Some((name, at)) = key.take() {
                    items.push((name, at, node));
                }
            }
        }
    }
}

fn too_deep(at: Pos) -> Wrong {
    Wrong::new(at, format!("nested more than {MAX_DEPTH} levels deep"), "")
}

fn unknown_tag(tag: &Tag, at: Pos) -> Wrong {
    Wrong::new(at, format!("the tag {tag} is not known"), "tags are not needed")
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Pos) -> Result<Value, Wrong> {
    match tag {
        None => {}
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => return Ok(Value::Text(text.into())),
        Some(tag) if tag.is_yaml_core_schema() => {}
        Some(tag) => return Err(unknown_tag(tag, at)),
    }
    if style != ScalarStyle::Plain {
        return Ok(Value::Text(text.into()));
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::Text(text.into())),
    })
}

fn number(text: &str) -> Option<Value> {
    if let Ok(i) = text.parse::<i64>() {
        return (i.to_string() == text).then_some(Value::Int(i));
    }
    // Only what looks like a decimal number: Rust also takes `inf`, and a commit id such as 12e4 is text.
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-'));
    let float = plain.then(|| text.parse::<f64>().ok()).flatten()?;
    (text.contains('.') && text.bytes().any(|b| b.is_ascii_digit())).then_some(Value::Float(float))
}

/// The document as JSON.
pub fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(i) => (*i).into(),
        Value::Float(x) => (*x).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(items) => items.iter().map(|(key, _, value)| (key.clone(), json(value))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) -> Node {
        let mut diags = Diags::default();
        let node = parse(text, &mut diags);
        assert!(diags.0.is_empty(), "{:?}", diags.0);
        node.unwrap()
    }

    fn wrong(text: &str) -> String {
        let mut diags = Diags::default();
        assert_eq!(parse(text, &mut diags), None);
        assert_eq!(diags.0.len(), 1);
        diags.0[0].to_string()
    }

    fn at<'n>(node: &'n Node, key: &str) -> &'n Node {
        let Value::Map(items) = &node.value else { panic!("not a map") };
        &items.iter().find(|(k, _, _)| k == key).unwrap().2
    }

    #[test]
    fn values_and_their_places() {
        let doc = ok("a: 1\nb:\n  - x\n  - {c: true, d: ~, e: 'yes', f: 1.5}\n");
        assert_eq!(at(&doc, "a").value, Value::Int(1));
        let b = at(&doc, "b");
        let Value::List(items) = &b.value else { panic!() };
        assert_eq!(items[0].at, Pos { line: 3, column: 5 });
        assert_eq!(at(&items[1], "c").value, Value::Bool(true));
        assert_eq!(at(&items[1], "d").value, Value::Null);
        assert_eq!(at(&items[1], "e").value, Value::Text("yes".into()));
        assert_eq!(at(&items[1], "f").value, Value::Float(1.5));
        let Value::Map(top) = &doc.value else { panic!() };
        assert_eq!(top[1].1, Pos { line: 2, column: 1 });
    }

    #[test]
    fn what_looks_like_a_number() {
        for (text, value) in [
            ("12", Value::Int(12)),
            ("-3", Value::Int(-3)),
            ("0", Value::Int(0)),
            ("1.10", Value::Float(1.1)),
            ("0123", Value::Text("0123".into())),
            ("0x10", Value::Text("0x10".into())),
            ("1e5", Value::Text("1e5".into())),
            ("10.0.0.1", Value::Text("10.0.0.1".into())),
            (".inf", Value::Text(".inf".into())),
            ("-", Value::List(vec![Node { at: Pos { line: 1, column: 2 }, value: Value::Null }])),
            ("v1", Value::Text("v1".into())),
            ("no", Value::Text("no".into())),
            ("!!str 12", Value::Text("12".into())),
        ] {
            let node = ok(text);
            match (&node.value, &value) {
                (Value::List(_), Value::List(_)) => {}
                (got, want) => assert_eq!(got, want, "{text}"),
            }
        }
    }

    #[test]
    fn aliases_are_copies() {
        let doc = ok("a: &x {n: 1}\nb: *x\n");
        assert_eq!(at(&doc, "a").value, at(&doc, "b").value);
    }

    #[test]
    fn several_documents() {
        let mut diags = Diags::default();
        let found = documents("# first\n---\na: 1\n---\n---\nb: [&x 1, *x]\n", &mut diags).unwrap();
        assert_eq!(found.iter().map(|n| n.at.line).collect::<Vec<_>>(), [3, 6]);
        assert_eq!(documents("", &mut diags), Some(Vec::new()));
        assert!(diags.0.is_empty());
        assert_eq!(documents("a: &x 1\n---\nb: *x\n", &mut diags), None);
        assert_eq!(documents("a: 1\n---\nb: [\n", &mut diags), None);
        assert_eq!(diags.0.len(), 2);
    }

    #[test]
    fn what_is_refused_and_where() {
        for (text, start) in [
            ("a: 1\nb: 2\na: 3\n", "line 3: error: a is here twice; first on line 1"),
            ("a: {x: 1, x: 2}\n", "line 1: error: x is here twice"),
            ("a:\n\tb: 1\n", "line 2: error: not YAML"),
            ("a: [1, 2\n", "line 2: error: not YAML"),
            ("a: 1\n---\nb: 1\n", "line 2: error: a second document"),
            ("? [a]\n: 1\n", "line 1: error: a list or a map as a key"),
            ("a: &x 1\n*x : 2\n", "line 2: error: an alias as a key"),
            ("a: &x [*x]\n", "line 1: error: "),
            ("a: *nope\n", "line 1: error: not YAML"),
            ("a: &x {b: 1}\nc:\n  <<: *x\n", "line 3: error: merge keys"),
            ("a: !secret x\n", "line 1: error: the tag !secret is not known"),
            ("", "line 1: error: the file is empty"),
            ("# nothing\n", "line 1: error: the file is empty"),
        ] {
            let got = wrong(text);
            assert!(got.starts_with(start), "{text:?}: {got}");
        }
    }

    #[test]
    fn bounds_hold() {
        // The parser's own limit comes first where it has to look ahead for a key.
        assert!(wrong(&"[".repeat(100_000)).starts_with("line 1: error: not YAML: "));
        assert!(wrong(&"- ".repeat(100_000)).contains("nested more than 64 levels"));
        assert!(wrong(&format!("a: {}1{}", "[".repeat(64), "]".repeat(64))).contains("nested more than"));
        ok(&format!("a: {}1{}", "[".repeat(63), "]".repeat(63)));
        assert!(wrong(&"# x\n".repeat(MAX_BYTES / 4 + 1)).contains("bytes"));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(wrong(&bomb).contains("more than 500000 values"));
        let mut tower = String::from("a0: &a0 [x]\n");
        for i in 1..80 {
            tower.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
        }
        assert!(wrong(&tower).contains("nested more than 64 levels"));
    }
}
