//! Values as text, in the hand that a document is written in.

use super::layout::{Look, Spot, column};
use weft_policy::diag::Diags;
use weft_policy::doc::{Node, Value};
use weft_policy::yaml;

/// A flow map that would be longer than this is written as a block.
const WIDTH: usize = 100;

/// How somebody writes YAML.
#[derive(Clone, Debug)]
pub struct Hand {
    pub eol: &'static str,
    /// By how much a map's fields are further in than its key.
    pub step: usize,
    /// The same for a list's dashes.
    pub dash: usize,
    /// Small maps and lists are written `{a: b}`.
    pub flows: bool,
    /// Keys and texts are always in double quotes.
    pub json: bool,
}

impl Default for Hand {
    fn default() -> Self {
        Self { eol: "\n", step: 2, dash: 0, flows: false, json: false }
    }
}

impl Hand {
    pub fn of(text: &str, document: &Spot) -> Self {
        let crlf = text.find('\n').is_some_and(|i| text[..i].ends_with('\r'));
        let mut hand = Self { eol: if crlf { "\r\n" } else { "\n" }, ..Self::default() };
        let json = |spot: &Spot| spot.look == Look::FlowMap && spot.parts.iter().all(|p| p.key_quoted);
        hand.json = json(document) && !document.parts.is_empty();
        let (mut step, mut dash) = (None, None);
        let mut open = vec![document];
        while let Some(spot) = open.pop() {
            hand.flows |= spot.look.is_flow() && !spot.parts.is_empty();
            for part in &spot.parts {
                if spot.look == Look::Map && !part.value.tied {
                    let further = |value: &Spot| {
                        let (own, inner) = (column(text, part.start), column(text, value.parts.first()?.start));
                        inner.checked_sub(own)
                    };
                    match part.value.look {
                        Look::Map => step = step.or(further(&part.value)),
                        Look::List => dash = dash.or(further(&part.value)),
                        _ => {}
                    }
                }
                open.push(&part.value);
            }
        }
        hand.step = step.filter(|s| *s > 0).unwrap_or(2);
        hand.dash = dash.unwrap_or(0);
        hand
    }

    /// One line, whatever it is.
    pub fn flow(&self, node: &Node) -> String {
        match &node.value {
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(|n| self.flow(n)).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Map(items) => {
                let items: Vec<String> =
                    items.iter().map(|(key, _, n)| format!("{}: {}", self.key(key), self.flow(n))).collect();
                format!("{{{}}}", items.join(", "))
            }
            _ => self.scalar(node, Look::Plain, true),
        }
    }

    pub fn key(&self, key: &str) -> String {
        match self.json {
            true => quoted(key),
            false => self.scalar(&super::value::text(key), Look::Plain, true),
        }
    }

    /// A value that is no map and no list, in the quotes that the one before it had.
    pub fn scalar(&self, node: &Node, before: Look, in_flow: bool) -> String {
        let text = match &node.value {
            Value::Text(text) => text,
            Value::Null => return "null".into(),
            Value::Bool(b) => return b.to_string(),
            Value::Int(n) => return n.to_string(),
            Value::Float(x) => return format!("{x:?}"),
            Value::List(_) | Value::Map(_) => return self.flow(node),
        };
        let single = !text.contains(char::is_control);
        match before {
            _ if self.json => quoted(text),
            Look::Single if single => format!("'{}'", text.replace('\'', "''")),
            Look::Double | Look::Single => quoted(text),
            _ if is_plain(text, in_flow) => text.clone(),
            _ => quoted(text),
        }
    }

    /// A field as lines without their breaks, the first one without its indentation.
    pub fn field(&self, key: &str, node: &Node, indent: usize) -> Vec<String> {
        let key = self.key(key);
        match self.value(node, indent, &key) {
            Written::Line(text) => vec![format!("{key}: {text}")],
            Written::Below(lines) => [vec![format!("{key}:")], lines].concat(),
            Written::Literal(sign, lines) => [vec![format!("{key}: {sign}")], lines].concat(),
        }
    }

    /// An element of a list whose dash is at `indent`.
    pub fn element(&self, node: &Node, indent: usize) -> Vec<String> {
        let inner = indent + 2;
        match &node.value {
            Value::Map(items) if !items.is_empty() && !self.fits(node, "- ") => {
                let mut lines = self.fields(items, inner);
                if let Some(first) = lines.first_mut() {
                    *first = format!("- {}", first.trim_start());
                }
                lines
            }
            Value::List(items) if !items.is_empty() => vec![format!("- {}", self.flow(node))],
            _ => match self.value(node, indent, "- ") {
                Written::Line(text) => vec![format!("- {text}")],
                Written::Literal(sign, lines) => [vec![format!("- {sign}")], lines].concat(),
                Written::Below(lines) => [vec!["-".to_string()], lines].concat(),
            },
        }
    }

    /// What stands behind a key, or below it.
    pub fn value(&self, node: &Node, indent: usize, before: &str) -> Written {
        match &node.value {
            Value::Map(items) if !items.is_empty() && !self.fits(node, before) => {
                Written::Below(self.fields(items, indent + self.step))
            }
            Value::List(items) if !items.is_empty() && !self.fits(node, before) => {
                let at = indent + self.dash;
                Written::Below(items.iter().flat_map(|n| indented(self.element(n, at), at)).collect())
            }
            Value::Text(text) if !self.json => match literal(text) {
                Some(sign) => {
                    let at = " ".repeat(indent + self.step);
                    let line = |l: &str| if l.is_empty() { String::new() } else { format!("{at}{l}") };
                    Written::Literal(sign, text.trim_end_matches('\n').split('\n').map(line).collect())
                }
                None => Written::Line(self.scalar(node, Look::Plain, false)),
            },
            _ => Written::Line(self.scalar(node, Look::Plain, false)),
        }
    }

    /// Lines of a map's fields, all of them indented.
    pub fn fields(&self, items: &[(String, weft_policy::diag::Pos, Node)], indent: usize) -> Vec<String> {
        items.iter().flat_map(|(key, _, node)| indented(self.field(key, node, indent), indent)).collect()
    }

    fn fits(&self, node: &Node, before: &str) -> bool {
        let small = |n: &Node| !matches!(&n.value, Value::Map(i) if !i.is_empty()) && literal_free(n);
        let flat = match &node.value {
            Value::Map(items) => items.iter().all(|(.., n)| small(n) && !matches!(n.value, Value::List(_))),
            Value::List(items) => items.iter().all(|n| small(n) && !matches!(n.value, Value::List(_))),
            _ => true,
        };
        self.json || (self.flows && flat && before.len() + self.flow(node).len() < WIDTH)
    }
}

pub enum Written {
    /// Behind the key.
    Line(String),
    /// Indented lines below it.
    Below(Vec<String>),
    /// The sign behind it, and lines below.
    Literal(&'static str, Vec<String>),
}

fn indented(mut lines: Vec<String>, by: usize) -> Vec<String> {
    if let Some(first) = lines.first_mut() {
        *first = format!("{}{first}", " ".repeat(by));
    }
    lines
}

fn literal_free(node: &Node) -> bool {
    !matches!(&node.value, Value::Text(text) if text.contains('\n'))
}

/// Whether a text of several lines can be written as one, and under which sign.
fn literal(text: &str) -> Option<&'static str> {
    let body = text.trim_end_matches('\n');
    let printable = !body.contains(|c: char| c.is_control() && c != '\n');
    let even = !body.starts_with([' ', '\n']) && !body.lines().any(|l| !l.is_empty() && l.trim().is_empty());
    match text.len() - body.len() {
        _ if !body.contains('\n') || !printable || !even => None,
        0 => Some("|-"),
        1 => Some("|"),
        _ => None,
    }
}

/// JSON's text is YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether a text reads as itself without quotes, here and for those who read YAML 1.1 as kubectl does.
fn is_plain(text: &str, in_flow: bool) -> bool {
    const WORDS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "true", "false"];
    let number = |c: char| c.is_ascii_hexdigit() || "._:+-xXoO".contains(c);
    let looks_like_one =
        text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && text.chars().all(number);
    if WORDS.contains(&&*text.to_ascii_lowercase()) || looks_like_one || text.contains(char::is_control) {
        return false;
    }
    let trial = if in_flow { format!("[{text}]") } else { format!("- {text}\n") };
    let read = yaml::parse(&trial, &mut Diags::default());
    let Some(Value::List(items)) = read.map(|n| n.value) else { return false };
    matches!(&items[..], [Node { value: Value::Text(found), .. }] if found == text)
}

/// A document as somebody would write it.
pub fn document(node: &Node, hand: &Hand) -> String {
    let lines = match &node.value {
        Value::Map(items) if !items.is_empty() => hand.fields(items, 0),
        _ => vec![hand.flow(node)],
    };
    lines.iter().map(|line| format!("{line}{}", hand.eol)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::value::{int, list, map, same, text};
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let odd = [
            "",
            " a",
            "a ",
            "a: b",
            "a #b",
            "#a",
            "- a",
            "a,b",
            "{a",
            "[",
            "*x",
            "&x",
            "!x",
            "|",
            ">",
            "%",
            "@",
            "`",
            "'",
            "\"",
            "yes",
            "No",
            "~",
            "null",
            "true",
            "1",
            "1.0",
            "012",
            "0x1F",
            "12:30",
            "5xx",
            "900m",
            "10s",
            "a\nb",
            "a\nb\n",
            "a\n\nb\n\n",
            "\na",
            " a\nb",
            "tab\there",
            "é",
            "a\u{7f}",
            "---",
            "...",
            "?",
            "? a",
            ":",
            "a:",
            "-",
            "1e3",
            "2020-01-01",
            "<<",
            "=",
            "5xx,reset",
            ".inf",
            "0o7",
            "\u{feff}x",
            "a\r\nb",
        ];
        for hand in [
            Hand::default(),
            Hand { flows: true, dash: 2, ..Hand::default() },
            Hand { json: true, flows: true, ..Hand::default() },
        ] {
            for word in odd {
                let deep = map([("x", map([("y", list([text(word), map([("z", text(word))])]))]))]);
                let node = map([("k", text(word)), ("l", list([text(word), int(1)])), ("m", deep)]);
                let written = document(&node, &hand);
                let mut diags = Diags::default();
                let read = yaml::parse(&written, &mut diags);
                assert!(read.as_ref().is_some_and(|r| same(r, &node)), "{word:?} {hand:?}:\n{written}\n{:?}", diags.0);
                let flow = yaml::parse(&hand.flow(&node), &mut diags);
                assert!(flow.is_some_and(|r| same(&r, &node)), "{word:?}: {}", hand.flow(&node));
            }
        }
    }

    #[test]
    fn as_people_write_it() {
        let route = map([(
            "spec",
            map([
                ("parentRefs", list([map([("group", text("")), ("kind", text("Service")), ("name", text("web"))])])),
                (
                    "rules",
                    list([map([
                        ("backendRefs", list([map([("name", text("v1")), ("port", int(80)), ("weight", int(90))])])),
                        ("timeouts", map([("request", text("3s"))])),
                    ])]),
                ),
            ]),
        )]);
        let flows = Hand { flows: true, ..Hand::default() };
        assert_eq!(
            document(&route, &flows),
            "spec:\n  parentRefs:\n  - {group: \"\", kind: Service, name: web}\n  rules:\n  - backendRefs:\n    \
             - {name: v1, port: 80, weight: 90}\n    timeouts: {request: 3s}\n"
        );
        assert!(document(&route, &Hand::default()).contains("    - name: v1\n      port: 80\n      weight: 90\n"));
    }
}
