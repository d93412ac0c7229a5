//! Where each part of a YAML text stands, byte by byte: what an editor needs beyond the tree of values.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::ops::Range;
use weft_policy::diag::Pos;

/// A value in the text.
#[derive(Clone, Debug)]
pub struct Spot {
    /// As the tree of values has it.
    pub at: Pos,
    pub span: Range<usize>,
    pub look: Look,
    /// It has an anchor or a tag, is an alias, or is written in a way that is not understood here: no hand is laid on it.
    pub tied: bool,
    pub parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing is written.
    Nothing,
    Plain,
    Single,
    Double,
    /// `|` or `>`
    Literal,
    Map,
    List,
    FlowMap,
    FlowList,
}

/// An entry of a map, or an element of a list.
#[derive(Clone, Debug)]
pub struct Part {
    /// The key's or the dash's first byte; in a flow list the value's.
    pub start: usize,
    /// Empty in lists.
    pub key: String,
    pub key_quoted: bool,
    /// Where the value may begin: behind the colon or the dash.
    pub after: usize,
    pub value: Spot,
}

impl Look {
    pub fn is_flow(self) -> bool {
        matches!(self, Self::FlowMap | Self::FlowList)
    }
}

/// Every document of a text without a byte order mark. `None`: it is no YAML.
pub fn documents(text: &str) -> Option<Vec<Spot>> {
    let mut reader = Reader { text, bytes: byte_offsets(text), open: Vec::new(), documents: Vec::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.ok()?;
        reader.event(event, span);
    }
    Some(reader.documents)
}

/// The parser counts characters.
fn byte_offsets(text: &str) -> Option<Vec<usize>> {
    (!text.is_ascii()).then(|| text.char_indices().map(|(i, _)| i).chain([text.len()]).collect())
}

struct Reader<'t> {
    text: &'t str,
    bytes: Option<Vec<usize>>,
    open: Vec<Open>,
    documents: Vec<Spot>,
}

struct Open {
    spot: Spot,
    slot: Slot,
    /// The key that waits for its value.
    key: Option<(String, bool, Range<usize>)>,
}

/// Where a value goes.
#[derive(Clone, Copy)]
struct Slot {
    start: usize,
    after: usize,
    understood: bool,
}

impl Reader<'_> {
    fn byte(&self, index: usize) -> usize {
        let byte = self.bytes.as_ref().map_or(index, |b| b.get(index).copied().unwrap_or(self.text.len()));
        byte.min(self.text.len())
    }

    fn event(&mut self, event: Event<'_>, span: Span) {
        let range = self.byte(span.start.index())..self.byte(span.end.index());
        let at = Pos {
            line: span.start.line().try_into().unwrap_or(u32::MAX),
            column: (span.start.col() + 1).try_into().unwrap_or(u32::MAX),
        };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(Open { key: key @ None, spot, .. }) = self.open.last_mut()
                    && matches!(spot.look, Look::Map | Look::FlowMap)
                {
                    *key = Some((text.into_owned(), style != ScalarStyle::Plain, range));
                    return;
                }
                let slot = self.slot(range.start);
                let tied = anchor > 0 || tag.is_some() || !slot.understood;
                let spot = self.scalar(&text, style, range, slot, at);
                self.place(Spot { tied, ..spot }, slot);
            }
            Event::Alias(_) => {
                let slot = self.slot(range.start);
                self.place(Spot { at, span: range, look: Look::Plain, tied: true, parts: Vec::new() }, slot);
            }
            Event::SequenceStart(anchor, tag) => self.start(anchor > 0 || tag.is_some(), range.start, at, false),
            Event::MappingStart(anchor, tag) => self.start(anchor > 0 || tag.is_some(), range.start, at, true),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { mut spot, slot, .. }) = self.open.pop() else { return };
                let inner = spot.parts.last().map(|p| p.value.span.end.max(p.after));
                match (spot.look.is_flow(), inner) {
                    (true, inner) => match self.closed(inner.unwrap_or(spot.span.start + 1)) {
                        Some(end) => spot.span.end = end,
                        None => (spot.span.end, spot.tied) = (range.end, true),
                    },
                    (false, inner) => spot.span.end = inner.unwrap_or(spot.span.start),
                }
                self.place(spot, slot);
            }
            _ => {}
        }
    }

    fn scalar(&self, text: &str, style: ScalarStyle, range: Range<usize>, slot: Slot, at: Pos) -> Spot {
        let (look, span) = match style {
            ScalarStyle::Plain if text.is_empty() => (Look::Nothing, slot.after..slot.after),
            ScalarStyle::Plain => {
                let written = self.text.get(range.clone()).unwrap_or_default().trim_end();
                (Look::Plain, range.start..range.start + written.len())
            }
            ScalarStyle::SingleQuoted => (Look::Single, range.start..self.quoted(range.start, '\'')),
            ScalarStyle::DoubleQuoted => (Look::Double, range.start..self.quoted(range.start, '"')),
            ScalarStyle::Literal | ScalarStyle::Folded => {
                // The parser's place is the first line of the text, behind the sign.
                let sign = slot.after + blanks(&self.text[slot.after..]);
                let end = self.text[..range.end.max(sign)].trim_end().len();
                (Look::Literal, sign..end.max(sign + 1))
            }
        };
        Spot { at, span, look, tied: false, parts: Vec::new() }
    }

    /// Behind the closing quote: the parser's place is behind the blanks and the remark after it.
    fn quoted(&self, start: usize, quote: char) -> usize {
        let mut chars = self.text[start..].char_indices().skip(1).peekable();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' if quote == '"' => drop(chars.next()),
                c if c != quote => {}
                '\'' if chars.next_if(|(_, next)| *next == '\'').is_some() => {}
                _ => return start + i + 1,
            }
        }
        self.text.len()
    }

    /// Behind the brace or bracket that follows the last part; the parser's place may be that of a comma before it.
    fn closed(&self, from: usize) -> Option<usize> {
        let skip = |at: usize| at + trivia(self.text.get(at..).unwrap_or_default());
        let at = skip(from);
        let at = if self.text[at..].starts_with(',') { skip(at + 1) } else { at };
        self.text[at..].starts_with(['}', ']']).then_some(at + 1)
    }

    fn start(&mut self, tied: bool, start: usize, at: Pos, map: bool) {
        let slot = self.slot(start);
        let in_flow = self.open.last().is_some_and(|o| o.spot.look.is_flow());
        let own = slot.after + trivia(&self.text[slot.after..]);
        // A list below its key at the key's own column begins, for the parser, behind its dash.
        let start = if !map && slot.understood && self.text[own..].starts_with('-') { own } else { start };
        let sign = self.text[start..].chars().next();
        let (look, understood) = match (map, sign) {
            (true, Some('{')) => (Look::FlowMap, true),
            (false, Some('[')) => (Look::FlowList, true),
            // `[a: 1]`
            (true, _) => (if in_flow { Look::FlowMap } else { Look::Map }, !in_flow),
            (false, _) => (Look::List, sign == Some('-')),
        };
        let tied = tied || !slot.understood || !understood;
        let spot = Spot { at, span: start..start, look, tied, parts: Vec::new() };
        self.open.push(Open { spot, slot, key: None });
    }

    /// Where the next value of the innermost map or list goes; `start` is where the parser saw it.
    fn slot(&self, start: usize) -> Slot {
        let Some(open) = self.open.last() else { return Slot { start, after: start, understood: true } };
        let lost = Slot { start, after: start, understood: false };
        if let Some((.., key)) = &open.key {
            let colon = key.end + trivia(&self.text[key.end..]);
            return match self.text[colon..].starts_with(':') {
                true => Slot { start: key.start, after: colon + 1, understood: true },
                false => lost,
            };
        }
        let before = open.spot.parts.last().map(|p| p.value.span.end.max(p.after));
        match open.spot.look {
            Look::List => {
                let from = before.unwrap_or(open.spot.span.start);
                let dash = from + trivia(&self.text[from..]);
                match self.text[dash..].starts_with('-') {
                    true => Slot { start: dash, after: dash + 1, understood: true },
                    false => lost,
                }
            }
            _ => Slot { start, after: start, understood: true },
        }
    }

    fn place(&mut self, value: Spot, slot: Slot) {
        let Some(open) = self.open.last_mut() else { return self.documents.push(value) };
        let (key, key_quoted) = open.key.take().map(|(key, quoted, _)| (key, quoted)).unwrap_or_default();
        open.spot.parts.push(Part { start: slot.start, key, key_quoted, after: slot.after, value });
    }
}

/// How many bytes of spaces and tabs a text begins with.
pub fn blanks(text: &str) -> usize {
    text.len() - text.trim_start_matches([' ', '\t']).len()
}

/// How many bytes of space, line breaks and comments it begins with.
pub fn trivia(text: &str) -> usize {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if !rest.starts_with('#') {
            return text.len() - rest.len();
        }
        rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
    }
}

/// Where the line that `from` is in ends, before its break.
pub fn line_end(text: &str, from: usize) -> usize {
    let end = text[from..].find('\n').map_or(text.len(), |i| from + i);
    if end > from && text[..end].ends_with('\r') { end - 1 } else { end }
}

/// Where the line after the one that `from` is in starts.
pub fn next_line(text: &str, from: usize) -> usize {
    text[from..].find('\n').map_or(text.len(), |i| from + i + 1)
}

pub fn line_start(text: &str, from: usize) -> usize {
    text[..from].rfind('\n').map_or(0, |i| i + 1)
}

/// Which column of its line a byte is in, counted in characters from 0.
pub fn column(text: &str, at: usize) -> usize {
    text[line_start(text, at)..at].chars().count()
}

/// The start of the line that `from` is in, or of the comments right above it.
pub fn with_comments(text: &str, from: usize) -> usize {
    let mut from = line_start(text, from);
    while from > 0 && text[line_start(text, from - 1)..from].trim_start().starts_with('#') {
        from = line_start(text, from - 1);
    }
    from
}
