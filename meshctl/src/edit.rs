//! Changes YAML text and leaves it as its writer wrote it: comments, order, quotes, indentation, line ends, the other documents.
//!
//! An editor says what an object is to be; [`rewrite`] finds out what of it is different and changes those bytes alone. Then the
//! text is read again: it must mean just what was asked for, and everything else in it what it meant before. If not, nothing was
//! done. What has anchors, aliases or tags is not touched, for others may mean it too.

pub mod change;
pub mod layout;
pub mod value;
pub mod write;

use layout::Spot;
use value::same;
use weft_policy::diag::{Diags, Pos};
use weft_policy::doc::{Node, Value};
use weft_policy::yaml;

/// More single changes than that are no edit.
const MAX_STEPS: usize = 2_000;

/// Why a text was not changed, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub at: Pos,
    pub why: String,
}

impl Refusal {
    pub fn new(at: Pos, why: impl Into<String>) -> Self {
        Self { at, why: why.into() }
    }
}

/// A document of a text, or an element of the `items` of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    document: usize,
    item: Option<usize>,
}

/// The text in which the object that now stands at `at` is `wanted`.
pub fn rewrite(text: &str, at: Pos, wanted: &Node) -> Result<String, Refusal> {
    let (mark, body) = split_mark(text);
    let before = read(body)?;
    let place = find(&before, at).ok_or_else(|| Refusal::new(at, "no object begins here any more"))?;
    let mut now = body.to_string();
    let mut done = false;
    for _ in 0..MAX_STEPS {
        let Some(splices) = next(&now, place, wanted, at)? else {
            done = true;
            break;
        };
        now = change::apply(&now, splices);
    }
    if !done {
        return Err(Refusal::new(at, "more of it would change than can be edited"));
    }
    prove(&before, &now, place, wanted, at)?;
    Ok(format!("{mark}{now}"))
}

/// The first change that is still to be made.
fn next(text: &str, place: Place, wanted: &Node, at: Pos) -> Result<Option<Vec<change::Splice>>, Refusal> {
    let unreadable = || Refusal::new(at, "the change would make it unreadable");
    let (nodes, spots) = (read(text).map_err(|_| unreadable())?, layout::documents(text).ok_or_else(unreadable)?);
    let root = nodes.get(place.document).ok_or_else(unreadable)?;
    let spot = spots.iter().find(|s| s.at == root.at).ok_or_else(unreadable)?;
    let hand = write::Hand::of(text, spot);
    let (node, spot) = match place.item {
        None => (root, spot),
        Some(i) => item(root, spot, i).ok_or_else(unreadable)?,
    };
    change::Change { text, hand: &hand }.next(node, spot, wanted)
}

fn item<'a>(root: &'a Node, spot: &'a Spot, i: usize) -> Option<(&'a Node, &'a Spot)> {
    let node = value::items(value::get(root, "items")).get(i)?;
    let part = spot.parts.iter().find(|p| p.key == "items")?;
    Some((node, &part.value.parts.get(i)?.value))
}

/// Whether the new text means what it should, and nothing else has changed.
fn prove(before: &[Node], now: &str, place: Place, wanted: &Node, at: Pos) -> Result<(), Refusal> {
    let wrong = || Refusal::new(at, "it cannot be changed without touching more than was asked for");
    let after = read(now).map_err(|_| wrong())?;
    let mut expected = before.to_vec();
    let slot = expected.get_mut(place.document).ok_or_else(wrong)?;
    let slot = match place.item {
        None => slot,
        Some(i) => value::items_mut(value::get_mut(slot, "items")).and_then(|l| l.get_mut(i)).ok_or_else(wrong)?,
    };
    *slot = wanted.clone();
    match expected.len() == after.len() && expected.iter().zip(&after).all(|(a, b)| same(a, b)) {
        true => Ok(()),
        false => Err(wrong()),
    }
}

fn split_mark(text: &str) -> (&str, &str) {
    text.split_at(if text.starts_with('\u{feff}') { 3 } else { 0 })
}

fn read(text: &str) -> Result<Vec<Node>, Refusal> {
    let mut diags = Diags::default();
    yaml::documents(text, &mut diags).ok_or_else(|| {
        let first = diags.0.first();
        Refusal::new(first.map(|d| d.at).unwrap_or_default(), first.map(|d| d.message.clone()).unwrap_or_default())
    })
}

fn find(documents: &[Node], at: Pos) -> Option<Place> {
    documents.iter().enumerate().find_map(|(document, node)| {
        // A flow map and what is in it begin at different places; a `List` of one line too.
        let item = value::items(value::get(node, "items")).iter().position(|n| n.at == at);
        match node.at == at && matches!(node.value, Value::Map(_)) {
            true => Some(Place { document, item: None }),
            false => item.map(|i| Place { document, item: Some(i) }),
        }
    })
}

/// The text without the object at `at`. `None`: nothing but comments would be left.
pub fn without(text: &str, at: Pos) -> Result<Option<String>, Refusal> {
    let (mark, body) = split_mark(text);
    let before = read(body)?;
    let gone = || Refusal::new(at, "no object begins here any more");
    let place = find(&before, at).ok_or_else(gone)?;
    let root = before.get(place.document).ok_or_else(gone)?;
    if let Some(i) = place.item {
        let mut wanted = root.clone();
        value::items_mut(value::get_mut(&mut wanted, "items")).map(|items| items.remove(i));
        if !value::items(value::get(&wanted, "items")).is_empty() {
            return rewrite(text, root.at, &wanted).map(Some);
        }
    }
    if before.len() == 1 {
        return Ok(None);
    }
    let spots = layout::documents(body).ok_or_else(gone)?;
    let spot = spots.iter().find(|s| s.at == root.at).ok_or_else(gone)?;
    let now = change::apply(body, vec![change::without_document(body, spot)]);
    let after = read(&now).unwrap_or_default();
    let rest = before.iter().enumerate().filter(|(i, _)| *i != place.document).map(|(_, n)| n);
    match after.len() + 1 == before.len() && rest.zip(&after).all(|(a, b)| same(a, b)) {
        true => Ok(Some(format!("{mark}{now}"))),
        false => Err(Refusal::new(at, "it cannot be taken out without touching others")),
    }
}

/// The text in which the object at `at` is replaced by another one's text, comments and all. Elements of a `List` and objects
/// in braces get the values alone.
pub fn replace(text: &str, at: Pos, other: &Source<'_>) -> Result<String, Refusal> {
    let (mark, body) = split_mark(text);
    let before = read(body)?;
    let place = find(&before, at).ok_or_else(|| Refusal::new(at, "no object begins here any more"))?;
    if value_at(&before, place).is_some_and(|node| same(node, other.node)) {
        return Ok(text.to_string());
    }
    let spots = layout::documents(body).unwrap_or_default();
    let spot = spots.iter().find(|s| s.at == at && s.look == layout::Look::Map && place.item.is_none());
    if let Some((spot, given)) = spot.zip(other.text()) {
        let crlf = write::Hand::of(body, spot).eol == "\r\n";
        let given = given.replace("\r\n", "\n");
        let given = if crlf { given.replace('\n', "\r\n") } else { given };
        let range = spot.span.start..layout::line_end(body, spot.span.end);
        let now = change::apply(body, vec![change::Splice { range, text: given }]);
        if prove(&before, &now, place, other.node, at).is_ok() {
            return Ok(format!("{mark}{now}"));
        }
    }
    rewrite(text, at, other.node)
}

fn value_at(documents: &[Node], place: Place) -> Option<&Node> {
    let node = documents.get(place.document)?;
    match place.item {
        None => Some(node),
        Some(i) => value::items(value::get(node, "items")).get(i),
    }
}

/// An object and the text it stands in.
pub struct Source<'t> {
    pub node: &'t Node,
    pub file: &'t str,
}

impl<'t> Source<'t> {
    /// Its own lines, from its first field to its last, if it is a document of its own in blocks.
    fn lines(&self) -> Option<std::ops::Range<usize>> {
        let (_, body) = split_mark(self.file);
        let spots = layout::documents(body)?;
        let spot = spots.iter().find(|s| s.at == self.node.at && s.look == layout::Look::Map)?;
        let starts_its_line = layout::column(body, spot.span.start) == 0;
        starts_its_line.then(|| spot.span.start..layout::line_end(body, spot.span.end))
    }

    fn text(&self) -> Option<&'t str> {
        self.lines().map(|range| &split_mark(self.file).1[range])
    }

    /// With the comments right above it, as a new file would have it.
    pub fn whole(&self) -> String {
        let (_, body) = split_mark(self.file);
        match self.lines() {
            Some(range) => format!("{}\n", &body[layout::with_comments(body, range.start)..range.end]),
            None => write::document(self.node, &write::Hand::default()),
        }
    }
}

#[cfg(test)]
mod tests;
