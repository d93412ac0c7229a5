//! One change at a time: the first place where a text differs from what it is to mean, and the bytes to put there.

use super::Refusal;
use super::layout::{Look, Part, Spot, blanks, column, line_end, line_start, next_line, trivia, with_comments};
use super::value::same;
use super::write::{Hand, Written};
use std::ops::Range;
use weft_policy::diag::Pos;
use weft_policy::doc::{Node, Value};

/// Bytes, and what comes in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice {
    pub range: Range<usize>,
    pub text: String,
}

impl Splice {
    fn insert(at: usize, text: String) -> Self {
        Self { range: at..at, text }
    }

    fn remove(range: Range<usize>) -> Self {
        Self { range, text: String::new() }
    }
}

/// They do not overlap.
pub fn apply(text: &str, mut splices: Vec<Splice>) -> String {
    splices.sort_by_key(|s| s.range.start);
    let (mut out, mut from) = (String::with_capacity(text.len()), 0);
    for splice in splices {
        out.push_str(&text[from..splice.range.start.max(from)]);
        out.push_str(&splice.text);
        from = from.max(splice.range.end);
    }
    out.push_str(&text[from..]);
    out
}

pub struct Change<'t> {
    pub text: &'t str,
    pub hand: &'t Hand,
}

type Splices = Result<Option<Vec<Splice>>, Refusal>;

impl Change<'_> {
    /// `None`: it means what is wanted.
    pub fn next(&self, node: &Node, spot: &Spot, wanted: &Node) -> Splices {
        match same(node, wanted) {
            true => Ok(None),
            false => self.within(node, spot, wanted, None),
        }
    }

    /// They differ. `part` is what the value is of: none at the root.
    fn within(&self, node: &Node, spot: &Spot, wanted: &Node, part: Option<(&Spot, &Part)>) -> Splices {
        if spot.tied {
            let why = "an anchor, an alias or a tag is here, and others may mean it too";
            return Err(Refusal::new(spot.at, why));
        }
        match (&node.value, &wanted.value) {
            (Value::Map(old), Value::Map(new)) if !new.is_empty() && !old.is_empty() => self.map(old, spot, new),
            (Value::List(old), Value::List(new)) if !new.is_empty() && !old.is_empty() => self.list(old, spot, new),
            _ => match part {
                Some((parent, part)) => Ok(Some(self.replaced(parent, part, wanted))),
                None => Err(Refusal::new(spot.at, "it would be something else altogether")),
            },
        }
    }

    fn map(&self, old: &[(String, Pos, Node)], spot: &Spot, new: &[(String, Pos, Node)]) -> Splices {
        let wanted = |key: &str| new.iter().find(|(k, ..)| k == key).map(|(.., node)| node);
        for ((key, _, node), part) in old.iter().zip(&spot.parts) {
            if let Some(wanted) = wanted(key).filter(|w| !same(node, w)) {
                return self.within(node, &part.value, wanted, Some((spot, part)));
            }
        }
        if let Some((key, _, node)) = new.iter().find(|(key, ..)| old.iter().all(|(k, ..)| k != key)) {
            return Ok(Some(match spot.look.is_flow() {
                true => {
                    let text = format!("{}: {}", self.hand.key(key), self.hand.flow(node));
                    self.flow_part(spot, spot.parts.len(), text)
                }
                false => {
                    let indent = spot.parts.first().map_or(0, |p| column(self.text, p.start));
                    self.block_part(spot, spot.parts.len(), self.hand.field(key, node, indent), indent)
                }
            }));
        }
        let gone = old.iter().position(|(key, ..)| wanted(key).is_none());
        Ok(gone.map(|i| self.removed(spot, i)))
    }

    /// What is equal at both ends stays; of what is between, pairs are changed, and the rest comes or goes.
    fn list(&self, old: &[Node], spot: &Spot, new: &[Node]) -> Splices {
        let front = old.iter().zip(new).take_while(|(a, b)| same(a, b)).count();
        let room = old.len().min(new.len()) - front;
        let back = old.iter().rev().zip(new.iter().rev()).take(room).take_while(|(a, b)| same(a, b)).count();
        if room > back {
            let (node, wanted) = (&old[front], &new[front]);
            let part = spot.parts.get(front).ok_or_else(|| Refusal::new(spot.at, "this list is not understood"))?;
            return self.within(node, &part.value, wanted, Some((spot, part)));
        }
        if new.len() < old.len() {
            return Ok(Some(self.removed(spot, front)));
        }
        let element = &new[front];
        Ok(Some(match spot.look.is_flow() {
            true => self.flow_part(spot, front, self.hand.flow(element)),
            false => {
                let indent = spot.parts.first().map_or(0, |p| column(self.text, p.start));
                // As the one beside it is written.
                let beside = spot.parts.get(front.saturating_sub(1)).map(|p| p.value.look);
                let lines = match beside.is_some_and(Look::is_flow) {
                    true => vec![format!("- {}", self.hand.flow(element))],
                    false => self.hand.element(element, indent),
                };
                self.block_part(spot, front, lines, indent)
            }
        }))
    }

    fn replaced(&self, parent: &Spot, part: &Part, wanted: &Node) -> Vec<Splice> {
        let value = &part.value;
        let leaf = |n: &Node| match &n.value {
            Value::Map(items) => items.is_empty(),
            Value::List(items) => items.is_empty(),
            _ => true,
        };
        let in_flow = parent.look.is_flow();
        let scalar_before = matches!(value.look, Look::Plain | Look::Single | Look::Double);
        if scalar_before && leaf(wanted) && !matches!(&wanted.value, Value::Text(t) if t.contains('\n')) {
            let text = self.hand.scalar(wanted, value.look, in_flow);
            return vec![Splice { range: value.span.clone(), text }];
        }
        // From behind the colon or the dash.
        let range = part.after..value.span.end.max(part.after);
        if in_flow {
            let gap = if part.after == part.start { "" } else { " " };
            return vec![Splice { range, text: format!("{gap}{}", self.hand.flow(wanted)) }];
        }
        let indent = column(self.text, part.start);
        let text = match parent.look {
            Look::List => {
                let lines = self.hand.element(wanted, indent);
                lines.join(self.hand.eol).split_off(1)
            }
            _ => match self.hand.value(wanted, indent, &part.key) {
                Written::Line(text) => format!(" {text}"),
                Written::Below(lines) => lines.iter().map(|l| format!("{}{l}", self.hand.eol)).collect(),
                Written::Literal(sign, lines) => {
                    let lines: String = lines.iter().map(|l| format!("{}{l}", self.hand.eol)).collect();
                    format!(" {sign}{lines}")
                }
            },
        };
        vec![Splice { range, text }]
    }

    /// Lines as the `i`th part of a map or list in blocks.
    fn block_part(&self, spot: &Spot, i: usize, lines: Vec<String>, indent: usize) -> Vec<Splice> {
        let (eol, pad) = (self.hand.eol, " ".repeat(indent));
        let text = lines.join(eol);
        match i.checked_sub(1).and_then(|before| spot.parts.get(before)) {
            Some(before) => {
                let end = line_end(self.text, before.value.span.end.max(before.after));
                vec![Splice::insert(end, format!("{eol}{pad}{text}"))]
            }
            None => vec![Splice::insert(spot.span.start, format!("{text}{eol}{pad}"))],
        }
    }

    /// The `i`th part of what is in braces or brackets; a line for each stays so.
    fn flow_part(&self, spot: &Spot, i: usize, text: String) -> Vec<Splice> {
        let lines = spot.parts.first().is_some_and(|p| self.begins_its_line(p.start));
        let pad = |at: usize| format!("{}{}", self.hand.eol, " ".repeat(column(self.text, at)));
        let Some(before) = i.checked_sub(1).and_then(|before| spot.parts.get(before)) else {
            let Some(first) = spot.parts.first() else { return Vec::new() };
            let gap = if lines { pad(first.start) } else { " ".into() };
            return vec![Splice::insert(first.start, format!("{text},{gap}"))];
        };
        let end = before.value.span.end.max(before.after);
        let comma = self.comma(end);
        let line = line_end(self.text, end);
        let behind = comma.map_or(end, |c| c + 1);
        let rest = if behind <= line { self.text[behind..line].trim_start() } else { "" };
        match (lines && (rest.is_empty() || rest.starts_with('#')), comma.filter(|c| *c <= line)) {
            (true, Some(_)) => vec![Splice::insert(line, format!("{}{text},", pad(before.start)))],
            (true, None) => {
                vec![Splice::insert(end, ",".into()), Splice::insert(line, format!("{}{text}", pad(before.start)))]
            }
            (false, _) => vec![Splice::insert(end, format!(", {text}"))],
        }
    }

    fn removed(&self, spot: &Spot, i: usize) -> Vec<Splice> {
        let Some(part) = spot.parts.get(i) else { return Vec::new() };
        let end = part.value.span.end.max(part.after);
        let next = spot.parts.get(i + 1).map(|p| p.start);
        if !spot.look.is_flow() {
            let line = line_start(self.text, part.start);
            let after = next_line(self.text, end);
            if self.begins_its_line(part.start) {
                // At the end of a text without a last line break, the one before goes.
                let last = after == self.text.len() && !self.text.ends_with('\n');
                let from = if last { self.end_before(part.start) } else { line };
                return vec![Splice::remove(from..after)];
            }
            // It shares its line with a dash before it; what comes next takes its place there.
            return match next {
                Some(_) => vec![Splice::remove(part.start..after + blanks(&self.text[after..]))],
                None => vec![Splice::remove(part.start..end)],
            };
        }
        if let Some(next) = next {
            return vec![Splice::remove(part.start..next)];
        }
        let own = match self.begins_its_line(part.start) {
            true => self.end_before(part.start),
            false => self.text[..part.start].trim_end_matches(' ').len(),
        };
        let before = i.checked_sub(1).and_then(|b| spot.parts.get(b));
        let between = before.and_then(|b| self.comma(b.value.span.end.max(b.after)));
        match (self.comma(end), between) {
            // The comma at the end stays with the one before.
            (Some(last), Some(_)) => vec![Splice::remove(own..last + 1)],
            (None, Some(comma)) if comma + 1 > own => vec![Splice::remove(comma..end)],
            (None, Some(comma)) => vec![Splice::remove(comma..comma + 1), Splice::remove(own..end)],
            (last, None) => vec![Splice::remove(part.start..last.map_or(end, |l| l + 1))],
        }
    }

    /// Behind a value in braces or brackets.
    fn comma(&self, end: usize) -> Option<usize> {
        let at = end + trivia(&self.text[end..]);
        self.text[at..].starts_with(',').then_some(at)
    }

    /// Where the line before this one ends.
    fn end_before(&self, at: usize) -> usize {
        match line_start(self.text, at) {
            0 => 0,
            line => line_end(self.text, line_start(self.text, line - 1)),
        }
    }

    fn begins_its_line(&self, at: usize) -> bool {
        self.text[line_start(self.text, at)..at].trim().is_empty()
    }
}

/// Takes a document out, from the line that separates it from the one before to the one that separates it from the next. Of the
/// first one without such a line, only the comments right above it go along: those further up are the file's.
pub fn without_document(text: &str, spot: &Spot) -> Splice {
    let separates =
        |line: &str| line.strip_prefix("---").is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n']));
    let starts: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
    let separators: Vec<usize> = starts.iter().copied().filter(|s| separates(&text[*s..])).collect();
    let end = separators.iter().copied().find(|s| *s >= spot.span.end).unwrap_or(text.len());
    let from = separators.iter().copied().rfind(|s| *s <= spot.span.start);
    Splice::remove(from.unwrap_or_else(|| with_comments(text, spot.span.start))..end)
}
