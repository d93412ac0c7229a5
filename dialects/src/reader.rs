//! How a kind reads its fields, so that every one of them is accounted for.
//!
//! Reading a value marks its field honoured; `ignored` and `differs` say otherwise, for a field or for all below it. What
//! nobody asked for is without effect, and whoever wrote it is told. A value of the wrong type is an error with its place;
//! the others are read all the same.

use crate::ledger::{Entry, Finding, Ledger, Verdict};
use crate::object::{self, Object, ObjectRef};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use weft_policy::diag::{Pos, Severity};
use weft_policy::doc::{self, Node, Value};

/// These are not listed: they say what the object is, not what it wants.
pub(crate) const HEAD: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// One object being read, by as many translators as its kind has.
pub struct Reader<'o> {
    pub object: &'o Object,
    /// Its place among all: where ages are equal or unknown, the earlier one is the older.
    pub order: usize,
    verdicts: RefCell<BTreeMap<String, Verdict>>,
    /// Which names were asked for below a path, for "did you mean".
    asked: RefCell<BTreeMap<String, BTreeSet<String>>>,
    findings: RefCell<Vec<Finding>>,
}

/// A value of the object, and where it stands.
#[derive(Clone)]
pub struct Field<'r> {
    reader: &'r Reader<'r>,
    pub node: &'r Node,
    pub at: Pos,
    /// As in `spec.http[0].retries.attempts`.
    pub path: String,
}

/// Which object and field something came from, and how old the object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub object: ObjectRef,
    pub file: Arc<str>,
    pub field: String,
    pub at: Pos,
    /// The older object wins: by time where both have one, and then by order.
    pub age: (Option<String>, usize),
}

impl<'o> Reader<'o> {
    pub fn new(object: &'o Object, order: usize) -> Self {
        let (verdicts, asked, findings) = Default::default();
        Self { object, order, verdicts, asked, findings }
    }

    /// The whole object.
    pub fn root(&self) -> Field<'_> {
        Field { reader: self, node: &self.object.node, at: self.object.node.at, path: String::new() }
    }

    /// Without one, as if it were empty.
    pub fn spec(&self) -> Field<'_> {
        static EMPTY: Node = Node { at: Pos { line: 0, column: 0 }, value: Value::Null };
        let node = object::field(&self.object.node, "spec");
        let at = node.map_or(self.object.node.at, |n| n.at);
        self.root().ask("spec");
        Field { reader: self, node: node.unwrap_or(&EMPTY), at, path: "spec".into() }
    }

    /// An annotation's value; the place is where it stands. Metadata is not listed, so nothing is marked.
    pub fn annotation(&self, name: &str) -> Option<(&str, Pos)> {
        let value = self.object.annotations.get(name)?;
        Some((value, self.object.node.locate(&format!("metadata.annotations.{name}"))))
    }

    /// The same as a field, which is listed once it is marked.
    pub fn annotated(&self, name: &str) -> Option<Field<'_>> {
        self.root().get("metadata")?.get("annotations")?.get(name)
    }

    pub fn finding(
        &self,
        severity: Severity,
        reference: Option<&'static str>,
        field: &str,
        message: impl Into<String>,
        hint: &str,
    ) {
        let finding = self.found(severity, reference, field, message.into(), hint);
        self.findings.borrow_mut().push(finding);
    }

    /// An error for as long as another object is not there.
    pub fn absent(&self, reference: Option<&'static str>, field: &str, message: impl Into<String>, hint: &str) {
        let finding = self.found(Severity::Error, reference, field, message.into(), hint);
        self.findings.borrow_mut().push(Finding { absent: true, ..finding });
    }

    fn found(
        &self,
        severity: Severity,
        reference: Option<&'static str>,
        field: &str,
        message: String,
        hint: &str,
    ) -> Finding {
        Finding {
            severity,
            reference,
            object: self.object.reference(),
            file: self.object.file.clone(),
            field: field.into(),
            at: self.object.node.locate(field),
            message,
            hint: (!hint.is_empty()).then(|| hint.to_string()),
            absent: false,
        }
    }

    /// A warning about one of the known traps, such as `G5`.
    pub fn warn(&self, reference: &'static str, field: &str, message: impl Into<String>, hint: &str) {
        self.finding(Severity::Warning, Some(reference), field, message, hint);
    }

    fn mark(&self, path: &str, verdict: Verdict) {
        self.verdicts.borrow_mut().insert(path.to_string(), verdict);
    }

    /// What became of every field, into the ledger.
    pub fn finish(&self, ledger: &mut Ledger) {
        let mut out = Vec::new();
        if let Value::Map(items) = &self.object.node.value {
            for (key, at, node) in items {
                if !HEAD.contains(&key.as_str()) {
                    self.list(key.clone(), *at, node, None, &mut out);
                }
            }
        }
        for (path, verdict) in self.verdicts.borrow().iter().filter(|(p, _)| p.starts_with("metadata.annotations.")) {
            let (object, file) = (self.object.reference(), self.object.file.clone());
            let at = self.object.node.locate(path);
            out.push(Entry { object, file, field: path.clone(), at, verdict: verdict.clone() });
        }
        ledger.entries.extend(out);
        ledger.findings.extend(self.findings.take());
    }

    /// The fields of a value in its order. `around` is what was said of what it is in.
    fn list(&self, path: String, at: Pos, node: &Node, around: Option<&Verdict>, out: &mut Vec<Entry>) {
        let verdicts = self.verdicts.borrow();
        let said = verdicts.get(&path);
        let around = said.or(around);
        let more = |p: &String| p.len() > path.len() && p.starts_with(&path) && is_below(&p[path.len()..]);
        let inside = verdicts.range(path.clone()..).take_while(|(p, _)| p.starts_with(&path)).any(|(p, _)| more(p));
        // A subtree of which one thing was said is one line.
        let whole = around.is_some() && !inside;
        match &node.value {
            Value::Map(items) if !whole && !items.is_empty() => {
                for (key, at, node) in items {
                    self.list(join(&path, key), *at, node, around, out);
                }
            }
            Value::List(items) if !whole && !items.is_empty() => {
                for (i, node) in items.iter().enumerate() {
                    self.list(format!("{path}[{i}]"), node.at, node, around, out);
                }
            }
            Value::Null if around.is_none() => {}
            _ => {
                let verdict = around.cloned().unwrap_or_else(|| self.unknown(&path));
                let (object, file) = (self.object.reference(), self.object.file.clone());
                out.push(Entry { object, file, field: path, at, verdict });
            }
        }
    }

    fn unknown(&self, path: &str) -> Verdict {
        // The nearest map around it that was looked into knows what could have been meant.
        let (mut parent, mut name) = split(path);
        let asked = self.asked.borrow();
        while !asked.contains_key(parent) && !parent.is_empty() {
            (parent, name) = split(parent);
        }
        let near = asked.get(parent).and_then(|known| doc::nearest(name, known.iter().map(String::as_str)));
        let hint = near.map(|n| format!("did you mean {n}?")).unwrap_or_default();
        self.finding(Severity::Warning, None, path, "is not known here and has no effect", &hint);
        Verdict::Ignored("not known here".into())
    }
}

fn is_below(rest: &str) -> bool {
    rest.starts_with('.') || rest.starts_with('[')
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

/// What a path is in, and its last name.
fn split(path: &str) -> (&str, &str) {
    let path = path.rsplit_once('[').filter(|(_, i)| i.ends_with(']') && !i.contains('.')).map_or(path, |(p, _)| p);
    path.rsplit_once('.').unwrap_or(("", path))
}

impl<'r> Field<'r> {
    /// A field of this map, if it is there and not null.
    pub fn get(&self, name: &str) -> Option<Field<'r>> {
        self.ask(name);
        match &self.node.value {
            Value::Map(items) => {
                let (_, at, node) = items.iter().find(|(key, _, node)| key == name && node.value != Value::Null)?;
                Some(Field { reader: self.reader, node, at: *at, path: join(&self.path, name) })
            }
            Value::Null => None,
            _ => self.wrong("a map"),
        }
    }

    fn ask(&self, name: &str) {
        self.reader.asked.borrow_mut().entry(self.path.clone()).or_default().insert(name.into());
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The elements of this list.
    pub fn items(&self) -> Vec<Field<'r>> {
        match &self.node.value {
            Value::List(items) => {
                if items.is_empty() {
                    self.honoured();
                }
                let item = |(i, node): (usize, &'r Node)| Field {
                    reader: self.reader,
                    node,
                    at: node.at,
                    path: format!("{}[{i}]", self.path),
                };
                items.iter().enumerate().map(item).collect()
            }
            _ => self.wrong("a list").unwrap_or_default(),
        }
    }

    /// The elements of a list that may be missing.
    pub fn list(&self, name: &str) -> Vec<Field<'r>> {
        self.get(name).map(|f| f.items()).unwrap_or_default()
    }

    /// The entries of a map of free keys.
    pub fn entries(&self) -> Vec<(String, Field<'r>)> {
        match &self.node.value {
            Value::Map(items) => {
                if items.is_empty() {
                    self.honoured();
                }
                let entry = |(key, at, node): &'r (String, Pos, Node)| {
                    (key.clone(), Field { reader: self.reader, node, at: *at, path: join(&self.path, key) })
                };
                items.iter().map(entry).collect()
            }
            _ => self.wrong("a map").unwrap_or_default(),
        }
    }

    pub fn text(&self) -> Option<String> {
        self.honoured();
        match &self.node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Int(n) => Some(n.to_string()),
            Value::Bool(b) => Some(b.to_string()),
            // The API server would refuse it; what was written cannot be had back.
            Value::Float(_) => self.fail("a number where text is expected", "put it in quotes"),
            _ => self.wrong("text"),
        }
    }

    pub fn bool(&self) -> Option<bool> {
        self.honoured();
        match &self.node.value {
            Value::Bool(b) => Some(*b),
            _ => self.wrong("true or false"),
        }
    }

    pub fn int(&self, min: i64, max: i64) -> Option<i64> {
        self.honoured();
        match &self.node.value {
            Value::Int(n) if (min..=max).contains(n) => Some(*n),
            Value::Int(n) => self.fail(format!("{n} is out of range"), &format!("a whole number from {min} to {max}")),
            _ => self.wrong("a whole number"),
        }
    }

    pub fn port(&self) -> Option<u16> {
        self.int(1, u16::MAX.into()).map(|n| n as u16)
    }

    pub fn u32(&self) -> Option<u32> {
        self.int(0, u32::MAX.into()).map(|n| n as u32)
    }

    pub fn float(&self, min: f64, max: f64) -> Option<f64> {
        self.honoured();
        let x = match &self.node.value {
            Value::Int(n) => *n as f64,
            Value::Float(x) => *x,
            _ => return self.wrong("a number"),
        };
        match x.is_finite() && x >= min && x <= max {
            true => Some(x),
            false => self.fail(format!("{x} is out of range"), &format!("a number from {min} to {max}")),
        }
    }

    /// `1h`, `1m30s`, `250ms`, as all dialects write them.
    pub fn duration(&self) -> Option<Duration> {
        let text = self.text()?;
        match doc::parse_duration(&text) {
            Some(duration) => Some(duration),
            None => self.fail(format!("{text:?} is not a duration"), "a duration such as 250ms, 2s, 1m30s or 1h"),
        }
    }

    /// One of a few words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => {
                let all = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
                self.fail(format!("{text:?} is not known here"), &format!("one of {all}"))
            }
        }
    }

    /// Labels and the like.
    pub fn texts(&self) -> BTreeMap<String, String> {
        self.entries().into_iter().filter_map(|(key, field)| Some((key, field.text()?))).collect()
    }

    /// This field and all below it that nothing else is said of.
    pub fn honoured(&self) {
        self.reader.mark(&self.path, Verdict::Honoured);
    }

    pub fn differs(&self, how: impl Into<String>) {
        self.reader.mark(&self.path, Verdict::Differently(how.into()));
    }

    /// This field and all below it, read or not.
    pub fn ignored(&self, why: impl Into<String>) {
        let below = |path: &String| path.strip_prefix(&self.path).is_some_and(is_below);
        self.reader.verdicts.borrow_mut().retain(|path, _| !below(path));
        self.rest_ignored(why);
    }

    /// What nobody has asked for of all below this field.
    pub fn rest_ignored(&self, why: impl Into<String>) {
        self.reader.mark(&self.path, Verdict::Ignored(why.into()));
    }

    /// The same for a field of this map, if it is there.
    pub fn ignore(&self, name: &str, why: &str) {
        if let Some(field) = self.get(name) {
            field.ignored(why);
        }
    }

    /// An error; the field is without effect.
    pub fn fail<T>(&self, message: impl Into<String>, hint: &str) -> Option<T> {
        let message = message.into();
        self.ignored(message.clone());
        self.reader.finding(Severity::Error, None, &self.path, message, hint);
        None
    }

    /// An error for as long as another object is not there.
    pub fn absent<T>(&self, message: impl Into<String>, hint: &str) -> Option<T> {
        let message = message.into();
        self.ignored(message.clone());
        self.reader.absent(None, &self.path, message, hint);
        None
    }

    /// The same of one of the known traps; what becomes of the field is said apart.
    pub fn find_absent(&self, reference: &'static str, message: impl Into<String>, hint: &str) {
        self.reader.absent(Some(reference), &self.path, message, hint);
    }

    /// What becomes of the field is said apart.
    pub fn find(&self, severity: Severity, reference: Option<&'static str>, message: impl Into<String>, hint: &str) {
        self.reader.finding(severity, reference, &self.path, message, hint);
    }

    /// A warning; what becomes of the field is said apart.
    pub fn warn(&self, reference: Option<&'static str>, message: impl Into<String>, hint: &str) {
        self.reader.finding(Severity::Warning, reference, &self.path, message, hint);
    }

    pub fn source(&self) -> Source {
        let object = self.reader.object;
        Source {
            object: object.reference(),
            file: object.file.clone(),
            field: self.path.clone(),
            at: self.at,
            age: (object.created.clone(), self.reader.order),
        }
    }

    fn wrong<T>(&self, what: &str) -> Option<T> {
        let got = match &self.node.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        };
        self.fail(format!("{got} where {what} is expected"), "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_policy::diag::Diags;

    fn read(text: &str, with: impl FnOnce(&Field<'_>)) -> Ledger {
        let found = object::read(&"a.yaml".into(), text, "demo", &mut Diags::default()).unwrap_or_default();
        let reader = Reader::new(&found[0], 0);
        with(&reader.spec());
        let mut ledger = Ledger::default();
        reader.finish(&mut ledger);
        ledger
    }

    const TEXT: &str = "apiVersion: a/v1\nkind: A\nmetadata: {name: a}\nspec:\n  host: web\n  retires: 3\n  pool:\n    \
                        tcp: {max: 1, idle: 1h}\n    http: {deep: [1, 2]}\n  labels: {a.b/c: d, e: f}\n  port: web\n  \
                        empty: {}\n  gone: null\nstatus: {a: 1}\n";

    #[test]
    fn every_field_is_accounted_for() {
        let ledger = read(TEXT, |spec| {
            assert_eq!(spec.get("host").and_then(|f| f.text()).as_deref(), Some("web"));
            assert!(!spec.has("retries") && !spec.has("gone"));
            let pool = spec.get("pool").unwrap();
            pool.ignored("no pools here");
            assert_eq!(pool.get("tcp").and_then(|t| t.get("max")?.u32()), Some(1));
            let labels = spec.get("labels").unwrap();
            assert_eq!(labels.texts().len(), 2);
            assert_eq!(spec.get("port").and_then(|f| f.port()), None);
        });
        let ignored = |why: &str| Verdict::Ignored(why.into());
        let seen: Vec<(&str, u32, Verdict)> =
            ledger.entries.iter().map(|e| (e.field.as_str(), e.at.line, e.verdict.clone())).collect();
        let expected = [
            ("spec.host", 5, Verdict::Honoured),
            ("spec.retires", 6, ignored("not known here")),
            ("spec.pool.tcp.max", 8, Verdict::Honoured),
            ("spec.pool.tcp.idle", 8, ignored("no pools here")),
            ("spec.pool.http", 9, ignored("no pools here")),
            ("spec.labels.a.b/c", 10, Verdict::Honoured),
            ("spec.labels.e", 10, Verdict::Honoured),
            ("spec.port", 11, ignored("text where a whole number is expected")),
            ("spec.empty", 12, ignored("not known here")),
        ];
        assert_eq!(seen, expected);
        let said: Vec<(Severity, u32, Option<&str>)> =
            ledger.findings.iter().map(|f| (f.severity, f.at.line, f.hint.as_deref())).collect();
        let warnings = [(6, Some("did you mean retries?")), (12, None)].map(|(l, h)| (Severity::Warning, l, h));
        assert_eq!(said, [&[(Severity::Error, 11, None)], &warnings[..]].concat());
    }

    #[test]
    fn whoever_has_no_spec_wants_nothing() {
        let ledger = read("apiVersion: a/v1\nkind: A\nmetadata: {name: a}\nspec: 3\n", |spec| {
            assert!(spec.list("http").is_empty());
        });
        assert_eq!(ledger.findings.len(), 1);
        assert_eq!(ledger.entries[0].verdict, Verdict::Ignored("a number where a map is expected".into()));
        assert_eq!(read("apiVersion: a/v1\nkind: A\nmetadata: {name: a}\n", |_| {}), Ledger::default());
    }
}
