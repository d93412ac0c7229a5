//! What is known of a cluster: of each kind that is followed, its objects as they were last heard of.
//!
//! After a relist that knows less than half of the Services, EndpointSlices or Pods there were, those that are missing stay for a
//! while: an API server that comes up with an empty cache must not take the mesh down. Deletions that are told one by one count at
//! once.

use super::feed::Event;
use super::prune::PLACE;
use crate::source::{Fault, Found};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_dialects::kinds::Kind;
use weft_dialects::{Object, Objects};
use weft_policy::diag::{Diag, Diags, Pos};

/// A relist is doubted for as long.
pub const DOUBT: Duration = Duration::from_secs(30);
/// Fewer than that come and go.
const TRIVIAL: usize = 10;
const GUARDED: &[&str] = &["Service", "EndpointSlice", "Pod"];

/// Namespace and name.
type Key = (String, String);

#[derive(Debug)]
pub struct Store {
    kinds: Vec<&'static Kind>,
    /// By the place of the kind among `kinds`; of those that are not followed there is none.
    held: BTreeMap<usize, Held>,
}

#[derive(Debug, Default)]
struct Held {
    objects: BTreeMap<Key, Arc<Object>>,
    /// It was listed, or cannot be.
    answered: bool,
    denied: Option<String>,
    doubt: Option<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    missing: BTreeSet<Key>,
    until: Instant,
}

impl Store {
    pub fn new(kinds: Vec<&'static Kind>) -> Self {
        Self { kinds, held: BTreeMap::new() }
    }

    pub fn begin(&mut self, kind: usize) {
        self.held.insert(kind, Held::default());
    }

    /// Whether it made a difference.
    pub fn end(&mut self, kind: usize) -> bool {
        self.held.remove(&kind).is_some_and(|held| !held.objects.is_empty() || held.denied.is_some())
    }

    /// Whether it made a difference.
    pub fn take(&mut self, kind: usize, event: Event, now: Instant) -> bool {
        let Some(held) = self.held.get_mut(&kind) else { return false };
        let first = !std::mem::replace(&mut held.answered, true);
        let healed = match event {
            Event::Denied(_) | Event::Absent => false,
            _ => held.denied.take().is_some(),
        };
        let changed = match event {
            Event::Listed(objects) => held.list(self.kinds[kind], objects, now),
            Event::Changed(object) => held.change(object),
            Event::Deleted { namespace, name } => {
                let key = (namespace, name);
                if let Some(doubt) = &mut held.doubt {
                    doubt.missing.remove(&key);
                }
                held.objects.remove(&key).is_some()
            }
            Event::Absent => {
                held.doubt = None;
                let denied = held.denied.take().is_some();
                !std::mem::take(&mut held.objects).is_empty() | denied
            }
            Event::Denied(why) => {
                let why = Some(why);
                let new = held.denied != why;
                if let (true, Some(why)) = (new, &why) {
                    tracing::warn!(why, "{}", rule(self.kinds[kind]));
                }
                held.denied = why;
                new
            }
        };
        first | healed | changed
    }

    /// When to call `settle`.
    pub fn due(&self) -> Option<Instant> {
        self.held.values().filter_map(|held| Some(held.doubt.as_ref()?.until)).min()
    }

    /// Ends doubts that have lasted; whether it made a difference.
    pub fn settle(&mut self, now: Instant) -> bool {
        let mut changed = false;
        for (kind, held) in &mut self.held {
            let Some(doubt) = held.doubt.take_if(|doubt| doubt.until <= now) else { continue };
            let kind = self.kinds[*kind].kind;
            tracing::warn!(kind, gone = doubt.missing.len(), "what a relist did not know any more is gone");
            doubt.missing.iter().for_each(|key| drop(held.objects.remove(key)));
            changed = true;
        }
        changed
    }

    /// Every kind that is followed has said what there is.
    pub fn is_complete(&self) -> bool {
        self.held.values().all(|held| held.answered)
    }

    pub fn is_denied(&self, kind: usize) -> bool {
        self.held.get(&kind).is_some_and(|held| held.denied.is_some())
    }

    pub fn objects(&self, kind: usize) -> impl Iterator<Item = &Arc<Object>> {
        self.held.get(&kind).into_iter().flat_map(|held| held.objects.values())
    }

    /// All of the kinds that are for the world.
    pub fn found(&self, generation: u64, for_the_world: impl Fn(usize) -> bool) -> Found {
        let held = self.held.iter().filter(|(kind, _)| for_the_world(**kind));
        let objects = held.flat_map(|(_, held)| held.objects.values().cloned()).collect();
        let faults = self.held.iter().flat_map(|(kind, held)| held.faults(self.kinds[*kind])).collect();
        Found { objects: Arc::new(Objects(objects)), faults, generation }
    }
}

impl Held {
    fn list(&mut self, kind: &Kind, objects: Vec<Object>, now: Instant) -> bool {
        let mut rest = std::mem::take(&mut self.objects);
        let before = rest.len();
        let mut changed = false;
        for object in objects {
            let key = (object.namespace.clone(), object.name.clone());
            let same = rest.remove(&key).filter(|old| **old == object);
            changed |= same.is_none();
            self.objects.insert(key, same.unwrap_or_else(|| Arc::new(object)));
        }
        let doubted = self.doubt.take();
        if rest.is_empty() {
            return changed | doubted.is_some();
        }
        // A second list that does not know them either settles it, and so does time.
        let known = doubted.as_ref().is_some_and(|doubt| rest.keys().all(|key| doubt.missing.contains(key)));
        if known || before < TRIVIAL || rest.len() * 2 <= before || !GUARDED.contains(&kind.kind) {
            return true;
        }
        tracing::warn!(
            kind = kind.kind,
            before,
            missing = rest.len(),
            "a relist knows less than half of what there was; the rest stays for {} s",
            DOUBT.as_secs()
        );
        self.doubt = Some(Doubt { missing: rest.keys().cloned().collect(), until: now + DOUBT });
        self.objects.append(&mut rest);
        true
    }

    fn change(&mut self, object: Object) -> bool {
        let key = (object.namespace.clone(), object.name.clone());
        // Once all are back there is nothing to doubt.
        let back = self.doubt.as_mut().is_some_and(|doubt| doubt.missing.remove(&key) && doubt.missing.is_empty());
        if back {
            self.doubt = None;
        }
        if self.objects.get(&key).is_some_and(|old| **old == object) {
            return back;
        }
        self.objects.insert(key, Arc::new(object));
        true
    }

    fn faults(&self, kind: &Kind) -> Vec<Fault> {
        let mut diags = Diags::default();
        if let Some(why) = &self.denied {
            diags.error(Pos::default(), "", format!("{} cannot be read: {why}", kind.kind), Some(rule(kind)));
        }
        if let Some(doubt) = &self.doubt {
            let message =
                format!("{} of kind {} were missing all at once and are kept for now", doubt.missing.len(), kind.kind);
            diags.warn(Pos::default(), "", message, None);
        }
        let fault = |diag: Diag| Fault { file: PathBuf::from(PLACE), diag };
        diags.0.into_iter().map(fault).collect()
    }
}

/// What RBAC has to say for a kind to be read.
fn rule(kind: &Kind) -> String {
    let (group, plural) = (kind.group, kind.plural());
    format!("the ClusterRole needs: apiGroups: [{group:?}], resources: [{plural:?}], verbs: [\"list\", \"watch\"]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kube::prune;
    use serde_json::json;
    use weft_dialects::kinds;

    fn store(kind: &str) -> Store {
        let kind = kinds::watched().into_iter().find(|k| k.kind == kind).unwrap();
        let mut store = Store::new(vec![kind]);
        store.begin(0);
        store
    }

    fn some(store: &Store, names: std::ops::Range<usize>) -> Vec<Object> {
        names.map(|n| one(store, n, 80)).collect()
    }

    fn one(store: &Store, n: usize, port: u16) -> Object {
        let json = json!({
            "metadata": {"name": format!("s{n}"), "namespace": "demo"},
            "spec": {"ports": [{"port": port}]},
        });
        prune::object(store.kinds[0], "v1", json).unwrap()
    }

    fn count(store: &Store) -> (usize, usize) {
        let found = store.found(1, |_| true);
        (found.objects.0.len(), found.faults.len())
    }

    #[test]
    fn only_differences_count() {
        let mut store = store("Service");
        let now = Instant::now();
        assert!(!store.is_complete());
        assert!(store.take(0, Event::Listed(Vec::new()), now), "an empty list is an answer");
        assert!(store.is_complete());
        let change = |store: &mut Store, port| {
            let object = one(store, 1, port);
            store.take(0, Event::Changed(object), now)
        };
        assert!(change(&mut store, 80) && !change(&mut store, 80) && change(&mut store, 81));
        let again = vec![one(&store, 1, 81)];
        assert!(!store.take(0, Event::Listed(again), now));
        let gone = || Event::Deleted { namespace: "demo".into(), name: "s1".into() };
        assert!(store.take(0, gone(), now) && !store.take(0, gone(), now));
        assert!(!store.take(0, Event::Absent, now) && !store.take(1, Event::Absent, now));
    }

    #[test]
    fn half_of_it_gone_is_doubted_for_a_while() {
        let mut store = store("Service");
        let now = Instant::now();
        let list = |store: &mut Store, names, now| {
            let objects = some(store, names);
            store.take(0, Event::Listed(objects), now)
        };
        list(&mut store, 0..20, now);
        list(&mut store, 0..10, now);
        assert_eq!(count(&store), (10, 0), "half may go");
        list(&mut store, 0..2, now);
        assert_eq!(count(&store), (10, 1));
        assert_eq!(store.due(), Some(now + DOUBT));
        // One of them comes back, one is told to be gone, one is new.
        let back = one(&store, 5, 80);
        assert!(!store.take(0, Event::Changed(back), now));
        store.take(0, Event::Deleted { namespace: "demo".into(), name: "s6".into() }, now);
        let new = one(&store, 99, 80);
        store.take(0, Event::Changed(new), now);
        assert_eq!(count(&store), (10, 1));
        assert!(!store.settle(now) && store.settle(now + DOUBT));
        assert_eq!(count(&store), (4, 0));
        assert_eq!(store.due(), None);

        // A second list settles it at once, and one that knows them all as well.
        list(&mut store, 0..20, now);
        list(&mut store, 0..0, now);
        assert_eq!(count(&store), (20, 1));
        list(&mut store, 0..0, now);
        assert_eq!(count(&store), (0, 0));
        list(&mut store, 0..20, now);
        list(&mut store, 0..0, now);
        list(&mut store, 0..20, now);
        assert_eq!((count(&store), store.due()), ((20, 0), None));
        // Deletions that are told are believed.
        for n in 0..20 {
            store.take(0, Event::Deleted { namespace: "demo".into(), name: format!("s{n}") }, now);
        }
        assert_eq!(count(&store), (0, 0));
    }

    #[test]
    fn what_may_not_be_read_is_said_with_the_rule() {
        let mut store = store("TrafficPolicy");
        let now = Instant::now();
        let denied = || Event::Denied("forbidden".into());
        assert!(store.take(0, denied(), now) && !store.take(0, denied(), now));
        assert!(store.is_complete(), "the others go on");
        let fault = store.found(1, |_| true).faults.remove(0);
        let hint = fault.diag.hint.unwrap();
        assert!(hint.contains("weft.dev") && hint.contains("trafficpolicies") && hint.contains("watch"), "{hint}");
        assert!(store.take(0, Event::Listed(Vec::new()), now));
        assert_eq!(count(&store), (0, 0));
    }
}
