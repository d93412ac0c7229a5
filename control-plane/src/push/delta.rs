//! The difference between what a proxy has and what it should have.

use crate::scope::{Piece, Wanted};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use weft_proto::v1::{Resource, WatchResponse};

/// A message holds one document, or several up to this size.
const BATCH: usize = 1 << 20;

/// What a proxy has, as it said at first and as it was sent since: what goes into the stream arrives in order, or the stream
/// ends and the next one begins with what the proxy says then. A refused version counts as had, so it is not sent again.
#[derive(Debug, Default)]
pub struct Had {
    versions: BTreeMap<Arc<str>, Arc<str>>,
    /// Already answered as leading nowhere.
    unknown: BTreeSet<String>,
}

/// What is still to be sent of one difference. Documents are shared until their message is made.
#[derive(Debug, Default)]
pub struct Delta {
    changed: VecDeque<Arc<Piece>>,
    removed: Vec<String>,
    unknown: Vec<String>,
}

impl Had {
    pub fn new(have: impl IntoIterator<Item = (String, String)>) -> Self {
        let versions = have.into_iter().map(|(name, version)| (name.into(), version.into())).collect();
        Self { versions, unknown: BTreeSet::new() }
    }

    /// Its answer may be given again.
    pub fn asked(&mut self, name: &str) {
        self.unknown.remove(name);
    }

    pub fn version(&self, name: &str) -> Option<&str> {
        self.versions.get(name).map(AsRef::as_ref)
    }

    /// Counted as had from now on. `None`: there is nothing to say; `answer`: say so.
    pub fn delta(&mut self, wanted: &Wanted, answer: bool) -> Option<Delta> {
        let mut delta = Delta::default();
        for piece in wanted.pieces.values() {
            if self.version(&piece.name) != Some(&piece.version) {
                self.versions.insert(piece.name.clone(), piece.version.clone());
                delta.changed.push_back(piece.clone());
            }
        }
        delta.changed.make_contiguous().sort_by_key(|p| rank(&p.name));
        // Until the pod is known, what it has may well be right.
        if wanted.placed {
            let gone: Vec<Arc<str>> =
                self.versions.keys().filter(|n| !wanted.pieces.contains_key(*n)).cloned().collect();
            for name in gone {
                self.versions.remove(&name);
                delta.removed.push(name.to_string());
            }
            delta.unknown = wanted.unknown.difference(&self.unknown).cloned().collect();
            self.unknown = wanted.unknown.clone();
        }
        let nothing = delta.changed.is_empty() && delta.removed.is_empty() && delta.unknown.is_empty();
        (!nothing || answer).then_some(delta)
    }
}

/// What others lean on comes first.
fn rank(name: &str) -> u8 {
    match name.split('/').next() {
        Some("trust") => 0,
        Some("endpoints") => 1,
        Some("service") => 2,
        Some("proxy") => 4,
        _ => 3,
    }
}

impl Delta {
    /// The next message, and whether it is the last. Removals are in the last one: nothing may lean on them any more.
    pub fn message(&mut self) -> (WatchResponse, bool) {
        let mut message = WatchResponse::default();
        let mut size = 0;
        while let Some(piece) = self.changed.front() {
            size += piece.document.len() + piece.name.len() + 64;
            if size > BATCH && !message.changed.is_empty() {
                return (message, false);
            }
            message.changed.push(Resource {
                name: piece.name.to_string(),
                version: piece.version.to_string(),
                document: piece.document.clone(),
            });
            self.changed.pop_front();
        }
        message.removed = std::mem::take(&mut self.removed);
        message.unknown = std::mem::take(&mut self.unknown);
        message.complete = true;
        (message, true)
    }

    pub fn changed(&self) -> impl Iterator<Item = &Arc<Piece>> {
        self.changed.iter()
    }

    pub fn removed(&self) -> &[String] {
        &self.removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(name: &str, version: &str, size: usize) -> (Arc<str>, Arc<Piece>) {
        let piece = Piece { name: name.into(), version: version.into(), document: vec![b' '; size] };
        (piece.name.clone(), Arc::new(piece))
    }

    fn wanted(pieces: Vec<(Arc<str>, Arc<Piece>)>, unknown: &[&str]) -> Wanted {
        let unknown = unknown.iter().map(ToString::to_string).collect();
        Wanted { pieces: pieces.into_iter().collect(), unknown, placed: true }
    }

    fn all(mut delta: Delta) -> Vec<WatchResponse> {
        let mut messages = Vec::new();
        loop {
            let (message, last) = delta.message();
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    #[test]
    fn only_differences() {
        let mut had = Had::new([("a".to_string(), "1".to_string()), ("old".to_string(), "1".to_string())]);
        let first = had.delta(&wanted(vec![piece("a", "1", 1), piece("b", "1", 1)], &["x"]), false).unwrap();
        let messages = all(first);
        assert_eq!(messages.len(), 1);
        let m = &messages[0];
        assert_eq!((m.changed.len(), m.changed[0].name.as_str()), (1, "b"));
        assert_eq!((m.removed.clone(), m.unknown.clone(), m.complete), (vec!["old".into()], vec!["x".into()], true));
        let same = wanted(vec![piece("a", "1", 1), piece("b", "1", 1)], &["x"]);
        assert!(had.delta(&same, false).is_none());
        assert_eq!(all(had.delta(&same, true).unwrap()), [WatchResponse { complete: true, ..Default::default() }]);
        had.asked("x");
        assert_eq!(all(had.delta(&same, false).unwrap())[0].unknown, ["x"]);
        assert!(had.delta(&wanted(vec![piece("a", "1", 1), piece("b", "1", 1)], &[]), false).is_none());
        assert_eq!(all(had.delta(&same, false).unwrap())[0].unknown, ["x"], "it was there in between");
    }

    #[test]
    fn nothing_is_removed_from_a_pod_that_is_not_known() {
        let mut had = Had::new([("old".to_string(), "1".to_string())]);
        let waiting = Wanted { pieces: [piece("trust", "1", 1)].into(), ..Wanted::default() };
        let messages = all(had.delta(&waiting, true).unwrap());
        assert_eq!((messages[0].removed.len(), messages[0].complete), (0, true));
        assert!(had.delta(&waiting, false).is_none());
    }

    #[test]
    fn large_ones_go_in_several_messages() {
        let big = BATCH / 2;
        let pieces = vec![piece("proxy", "1", big), piece("service/a/b", "1", big), piece("trust", "1", 2 * BATCH)];
        let mut had = Had::new([("old".to_string(), "1".to_string())]);
        let messages = all(had.delta(&wanted(pieces, &[]), false).unwrap());
        let names: Vec<Vec<&str>> =
            messages.iter().map(|m| m.changed.iter().map(|r| r.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["trust"], vec!["service/a/b"], vec!["proxy"]]);
        let ends: Vec<(bool, usize)> = messages.iter().map(|m| (m.complete, m.removed.len())).collect();
        assert_eq!(ends, [(false, 0), (false, 0), (true, 1)]);
    }
}
