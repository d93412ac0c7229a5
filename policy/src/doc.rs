//! A parsed document with positions, and the reader every `Config::read` uses.
//!
//! A policy reads its own fields with [`Fields`]: each problem is written to [`Diags`] and reading goes on, so one run
//! reports all of them. `yaml.rs` builds the tree; nothing here knows the syntax.

use crate::diag::{Diags, Pos};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub at: Pos,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Pos, Node)>),
}

impl Node {
    /// Where the value of a path such as `services[0].routes[1].timeout` is.
    pub fn find(&self, path: &str) -> Option<Pos> {
        let (at, left) = self.walk(path);
        left.is_empty().then_some(at)
    }

    /// The same, or the place of what is around it: what is missing, or was found wrong later, has no place of its own.
    pub fn locate(&self, path: &str) -> Pos {
        self.walk(path).0
    }

    fn walk<'p>(&self, path: &'p str) -> (Pos, &'p str) {
        let (mut node, mut at, mut rest) = (self, self.at, path);
        while !rest.is_empty() {
            let next = match &node.value {
                Value::Map(items) => {
                    // Keys may hold dots, so the longest key that fits is taken.
                    let name = rest.trim_start_matches('.');
                    let fits = |k: &str| name.strip_prefix(k).filter(|r| r.is_empty() || r.starts_with(['.', '[']));
                    let fitting = items.iter().filter_map(|(k, at, node)| Some((k.len(), *at, node, fits(k)?)));
                    fitting.max_by_key(|(len, ..)| *len).map(|(_, at, node, left)| (at, node, left))
                }
                Value::List(items) => rest.strip_prefix('[').and_then(|r| r.split_once(']')).and_then(|(i, left)| {
                    let node = items.get(i.parse::<usize>().ok()?)?;
                    Some((node.at, node, left))
                }),
                _ => None,
            };
            let Some(found) = next else { break };
            (at, node, rest) = found;
        }
        (at, rest)
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

/// One value being read: where it is, what its path is, and where findings go.
pub struct Cursor<'n, 'd> {
    pub node: &'n Node,
    pub path: String,
    pub diags: &'d mut Diags,
}

impl<'n, 'd> Cursor<'n, 'd> {
    pub fn new(node: &'n Node, diags: &'d mut Diags) -> Self {
        Self { node, path: String::new(), diags }
    }

    /// Reports an error at this value; `hint` says what would be right.
    pub fn fail<T>(&mut self, message: impl Into<String>, hint: &str) -> Option<T> {
        let hint = (!hint.is_empty()).then(|| hint.to_string());
        self.diags.error(self.node.at, &self.path, message, hint);
        None
    }

    pub fn warn(&mut self, message: impl Into<String>, hint: &str) {
        let hint = (!hint.is_empty()).then(|| hint.to_string());
        self.diags.warn(self.node.at, &self.path, message, hint);
    }

    fn expected<T>(&mut self, what: &str) -> Option<T> {
        let got = self.node.value.kind();
        self.fail(format!("{got} where {what} is expected"), "")
    }

    pub fn text(&mut self) -> Option<String> {
        match &self.node.value {
            Value::Text(s) => Some(s.clone()),
            Value::Int(i) => Some(i.to_string()),
            Value::Bool(b) => Some(b.to_string()),
            // What was written cannot be had back: 1.10 and 1.1 are one number.
            Value::Float(_) => self.fail("a number where text is expected", "put it in quotes"),
            _ => self.expected("text"),
        }
    }

    pub fn bool(&mut self) -> Option<bool> {
        match &self.node.value {
            Value::Bool(b) => Some(*b),
            _ => self.expected("true or false"),
        }
    }

    /// A whole number within bounds.
    pub fn int(&mut self, min: i64, max: i64) -> Option<i64> {
        match &self.node.value {
            Value::Int(i) if (min..=max).contains(i) => Some(*i),
            Value::Int(i) => self.fail(format!("{i} is out of range"), &format!("a whole number from {min} to {max}")),
            _ => self.expected("a whole number"),
        }
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.int(0, u16::MAX.into()).map(|i| i as u16)
    }

    pub fn port(&mut self) -> Option<u16> {
        self.int(1, u16::MAX.into()).map(|i| i as u16)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.int(0, u32::MAX.into()).map(|i| i as u32)
    }

    pub fn float(&mut self, min: f64, max: f64) -> Option<f64> {
        let x = match &self.node.value {
            Value::Int(i) => *i as f64,
            Value::Float(x) => *x,
            _ => return self.expected("a number"),
        };
        if x.is_finite() && x >= min && x <= max {
            return Some(x);
        }
        self.fail(format!("{x} is out of range"), &format!("a number from {min} to {max}"))
    }

    /// `250ms`, `2s`, `1m30s`, `1h`; fractions as in `0.5s`.
    pub fn duration(&mut self) -> Option<Duration> {
        const HINT: &str = "a duration such as 250ms, 2s, 1m30s or 1h";
        let Value::Text(s) = &self.node.value else {
            return match self.node.value {
                Value::Int(0) => Some(Duration::ZERO),
                _ => self.fail(format!("{} is not a duration", self.node.value.kind()), HINT),
            };
        };
        match parse_duration(s) {
            Some(d) => Some(d),
            None => self.fail(format!("{s:?} is not a duration"), HINT),
        }
    }

    pub fn parse<T: std::str::FromStr>(&mut self, hint: &str) -> Option<T> {
        let text = self.text()?;
        match text.parse() {
            Ok(v) => Some(v),
            Err(_) => self.fail(format!("{text:?} is not understood"), hint),
        }
    }

    /// One of a few words.
    pub fn word<T: Copy>(&mut self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        match words.iter().find(|(w, _)| *w == text) {
            Some((_, v)) => Some(*v),
            None => {
                let all = words.iter().map(|(w, _)| *w).collect::<Vec<_>>().join(", ");
                self.fail(format!("{text:?} is not known here"), &format!("one of {all}"))
            }
        }
    }

    pub fn list<T>(&mut self, mut read: impl FnMut(&mut Cursor<'_, '_>) -> Option<T>) -> Option<Vec<T>> {
        let Value::List(items) = &self.node.value else { return self.expected("a list") };
        let mut out = Vec::with_capacity(items.len());
        let mut whole = true;
        for (i, node) in items.iter().enumerate() {
            let mut item = Cursor { node, path: format!("{}[{i}]", self.path), diags: self.diags };
            match read(&mut item) {
                Some(v) => out.push(v),
                None => whole = false,
            }
        }
        whole.then_some(out)
    }

    /// A map of free keys.
    pub fn entries<T>(
        &mut self,
        mut read: impl FnMut(&str, &mut Cursor<'_, '_>) -> Option<T>,
    ) -> Option<Vec<(String, T)>> {
        let Value::Map(items) = &self.node.value else { return self.expected("a map") };
        let mut out = Vec::with_capacity(items.len());
        let mut whole = true;
        for (key, _, node) in items {
            let mut item = Cursor { node, path: join(&self.path, key), diags: self.diags };
            match read(key, &mut item) {
                Some(v) => out.push((key.clone(), v)),
                None => whole = false,
            }
        }
        whole.then_some(out)
    }

    /// Reads the known fields of a map; whatever `read` does not ask for is reported as unknown.
    pub fn fields<T>(&mut self, read: impl FnOnce(&mut Fields<'_, '_>) -> Option<T>) -> Option<T> {
        let Value::Map(items) = &self.node.value else { return self.expected("a map") };
        let before = self.diags.0.len();
        let mut fields = Fields { items, at: self.node.at, path: &self.path, diags: self.diags, asked: Vec::new() };
        let out = read(&mut fields);
        let asked = std::mem::take(&mut fields.asked);
        for (key, at, _) in items {
            if asked.contains(&key.as_str()) {
                continue;
            }
            let hint = match nearest(key, asked.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                // Reading gave up before it had asked for everything, so this may well be known.
                None if out.is_none() => continue,
                None => format!("known here: {}", asked.join(", ")),
            };
            self.diags.unknown_field(*at, &join(&self.path, key), hint);
        }
        let failed = self.diags.0[before..].iter().any(|d| d.severity == crate::diag::Severity::Error);
        if failed { None } else { out }
    }
}

/// The fields of one map. Asking for a field makes it known.
pub struct Fields<'n, 'd> {
    items: &'n [(String, Pos, Node)],
    pub at: Pos,
    path: &'d str,
    diags: &'d mut Diags,
    asked: Vec<&'static str>,
}

impl Fields<'_, '_> {
    /// An optional field: `None` where it is absent, null or wrong (a wrong one is reported).
    pub fn opt<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Cursor<'_, '_>) -> Option<T>) -> Option<T> {
        self.asked.push(name);
        let (_, _, node) = self.items.iter().find(|(k, _, _)| k == name)?;
        if node.value == Value::Null {
            return None;
        }
        read(&mut Cursor { node, path: join(self.path, name), diags: self.diags })
    }

    pub fn or<T>(&mut self, name: &'static str, default: T, read: impl FnOnce(&mut Cursor<'_, '_>) -> Option<T>) -> T {
        self.opt(name, read).unwrap_or(default)
    }

    pub fn req<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Cursor<'_, '_>) -> Option<T>) -> Option<T> {
        if !self.has(name) {
            self.asked.push(name);
            self.diags.error(self.at, &join(self.path, name), "is missing", None);
            return None;
        }
        self.opt(name, read)
    }

    pub fn list<T>(&mut self, name: &'static str, read: impl FnMut(&mut Cursor<'_, '_>) -> Option<T>) -> Vec<T> {
        self.opt(name, |c| c.list(read)).unwrap_or_default()
    }

    pub fn has(&self, name: &str) -> bool {
        self.items.iter().any(|(k, _, v)| k == name && v.value != Value::Null)
    }

    /// Reports an error of the map as a whole, or of one field of it.
    pub fn fail<T>(&mut self, name: &str, message: impl Into<String>, hint: &str) -> Option<T> {
        let at = self.items.iter().find(|(k, _, _)| k == name).map_or(self.at, |(_, at, _)| *at);
        let path = if name.is_empty() { self.path.to_string() } else { join(self.path, name) };
        self.diags.error(at, &path, message, (!hint.is_empty()).then(|| hint.to_string()));
        None
    }

    pub fn warn(&mut self, name: &str, message: impl Into<String>, hint: &str) {
        let at = self.items.iter().find(|(k, _, _)| k == name).map_or(self.at, |(_, at, _)| *at);
        self.diags.warn(at, &join(self.path, name), message, (!hint.is_empty()).then(|| hint.to_string()));
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

pub fn parse_duration(s: &str) -> Option<Duration> {
    let mut rest = s;
    let mut total = 0f64;
    if s.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match rest.get(..unit)? {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return None,
            };
        rest = rest.get(unit..)?;
    }
    (total <= 365.0 * 86400.0).then(|| Duration::from_secs_f64(total))
}

/// The known word that was probably meant.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.map(|k| (distance(k, word), k)).filter(|(d, k)| *d <= 2 && *d < k.len().max(2)).min().map(|(_, k)| k)
}

/// Edit distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = if ca == *cb { diagonal } else { diagonal + 1 };
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("0.5s"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        for bad in ["", "5", "s", "1x", "-1s", "1.2.3s", "1e9h", "99999999h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn paths_lead_to_places() {
        let at = |line| Pos { line, column: 1 };
        let int = |line| Node { at: at(line), value: Value::Int(1) };
        let map = |line, items| Node { at: at(line), value: Value::Map(items) };
        let inner = map(3, vec![("x".into(), at(3), int(3)), ("a.b".into(), at(4), int(4))]);
        let doc = map(1, vec![("list".into(), at(2), Node { at: at(2), value: Value::List(vec![inner]) })]);
        for (path, line) in [
            ("", 1),
            ("list", 2),
            ("list[0]", 3),
            ("list[0].x", 3),
            ("list[0].a.b", 4),
            ("list[0].gone.deep", 3),
            ("list[7].x", 2),
            ("other", 1),
        ] {
            assert_eq!(doc.locate(path).line, line, "{path}");
        }
        assert_eq!(doc.find("list[0].x"), Some(at(3)));
        assert_eq!(doc.find("list[0].y"), None);
    }

    #[test]
    fn words_that_were_meant() {
        let known = ["reviews", "ratings", "a"];
        assert_eq!(nearest("revews", known.into_iter()), Some("reviews"));
        assert_eq!(nearest("details", known.into_iter()), None);
        assert_eq!(nearest("zz", known.into_iter()), None);
    }

    #[test]
    fn every_problem_is_reported_with_its_place() {
        let at = |line| Pos { line, column: 1 };
        let text = |line, s: &str| Node { at: at(line), value: Value::Text(s.into()) };
        let node = Node {
            at: at(1),
            value: Value::Map(vec![
                ("timeout".into(), at(1), text(1, "soon")),
                ("retris".into(), at(2), text(2, "3")),
                ("port".into(), at(3), Node { at: at(3), value: Value::Int(70000) }),
            ]),
        };
        let mut diags = Diags::default();
        let out = Cursor::new(&node, &mut diags).fields(|f| {
            f.opt("timeout", |c| c.duration());
            f.opt("retries", |c| c.u32());
            f.opt("port", |c| c.port());
            f.req("name", |c| c.text());
            Some(())
        });
        assert_eq!(out, None);
        let lines: Vec<String> = diags.0.iter().map(|d| d.to_string()).collect();
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(
            lines.iter().any(|l| l == "line 2: error: retris: unknown field (did you mean retries?)"),
            "{lines:#?}"
        );
        assert!(lines.iter().any(|l| l.starts_with("line 3: error: port: 70000 is out of range")), "{lines:#?}");
    }
}
