//! What workloads call, for their next replicas: a new one is sent ahead what the others use, so that its first requests wait
//! for nothing. Kept in memory only: after a restart the replicas that are there tell it again with their first Subscribe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use weft_policy::id::SpiffeId;

/// Destinations of one workload; a replica that calls more asks for the rest itself.
const DESTINATIONS: usize = 1000;
const WORKLOADS: usize = 10_000;
/// Since nobody has been connected who uses it.
const FORGET: Duration = Duration::from_secs(3600);

/// Replicas of one owner under one identity.
pub type Workload = (SpiffeId, Arc<str>);

#[derive(Debug, Default)]
pub struct Siblings(Mutex<BTreeMap<Workload, BTreeMap<Arc<str>, Use>>>);

#[derive(Debug)]
struct Use {
    by: usize,
    last: Instant,
}

impl Use {
    fn counts(&self, now: Instant) -> bool {
        self.by > 0 || now.saturating_duration_since(self.last) < FORGET
    }
}

/// What one replica uses; given back when dropped.
#[derive(Debug)]
pub struct Uses {
    siblings: Arc<Siblings>,
    of: Workload,
    names: BTreeSet<Arc<str>>,
}

impl Siblings {
    /// What replicas use, or used not long ago.
    pub fn ahead(&self, of: &Workload, now: Instant) -> Vec<String> {
        let all = self.lock();
        let names = all.get(of).into_iter().flatten().filter(|(_, u)| u.counts(now));
        names.map(|(name, _)| name.to_string()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Workload, BTreeMap<Arc<str>, Use>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uses {
    pub fn new(siblings: &Arc<Siblings>, of: Workload) -> Self {
        Self { siblings: siblings.clone(), of, names: BTreeSet::new() }
    }

    /// From now on it is these, as far as there is room.
    pub fn are<'n>(&mut self, names: impl Iterator<Item = &'n str>, now: Instant) {
        let names: BTreeSet<&str> = names.collect();
        if names.len() == self.names.len() && names.iter().all(|name| self.names.contains(*name)) {
            return;
        }
        let mut all = self.siblings.lock();
        if !all.contains_key(&self.of) && all.len() >= WORKLOADS {
            all.retain(|_, used| used.values().any(|u| u.counts(now)));
            if all.len() >= WORKLOADS {
                return;
            }
        }
        let used = all.entry(self.of.clone()).or_default();
        self.names.retain(|name| {
            let keep = names.contains(&**name);
            if !keep && let Some(u) = used.get_mut(name) {
                (u.by, u.last) = (u.by.saturating_sub(1), now);
            }
            keep
        });
        for name in names {
            if self.names.contains(name) {
                continue;
            }
            if !used.contains_key(name) && used.len() >= DESTINATIONS {
                used.retain(|_, u| u.counts(now));
                if used.len() >= DESTINATIONS {
                    continue;
                }
            }
            let name: Arc<str> = match used.get_key_value(name) {
                Some((known, _)) => known.clone(),
                None => name.into(),
            };
            used.entry(name.clone()).or_insert(Use { by: 0, last: now }).by += 1;
            self.names.insert(name);
        }
    }
}

impl Drop for Uses {
    fn drop(&mut self) {
        self.are(std::iter::empty(), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Workload {
        (SpiffeId::parse("spiffe://a.b/ns/demo/sa/web").unwrap(), name.into())
    }

    #[test]
    fn known_while_somebody_uses_it_and_for_a_while() {
        let siblings = Arc::new(Siblings::default());
        let now = Instant::now();
        let mut first = Uses::new(&siblings, of("web"));
        let mut second = Uses::new(&siblings, of("web"));
        first.are(["host/a:80", "host/b:80"].into_iter(), now);
        second.are(["host/b:80"].into_iter(), now);
        assert_eq!(siblings.ahead(&of("web"), now), ["host/a:80", "host/b:80"]);
        assert!(siblings.ahead(&of("api"), now).is_empty());
        first.are(["host/b:80"].into_iter(), now);
        assert_eq!(siblings.ahead(&of("web"), now).len(), 2, "remembered for a while");
        assert_eq!(siblings.ahead(&of("web"), now + FORGET), ["host/b:80"]);
        drop(first);
        assert_eq!(siblings.ahead(&of("web"), now + FORGET), ["host/b:80"]);
        drop(second);
        assert!(siblings.ahead(&of("web"), Instant::now() + FORGET).is_empty());
    }

    #[test]
    fn there_is_a_bound() {
        let siblings = Arc::new(Siblings::default());
        let now = Instant::now();
        let names: Vec<String> = (0..2 * DESTINATIONS).map(|n| format!("host/h{n}:80")).collect();
        let mut greedy = Uses::new(&siblings, of("web"));
        greedy.are(names.iter().map(String::as_str), now);
        assert_eq!(siblings.ahead(&of("web"), now).len(), DESTINATIONS);
        greedy.are(std::iter::empty(), now);
        // What nobody uses any more makes room.
        let later = now + FORGET;
        greedy.are(["host/new:80"].into_iter(), later);
        assert_eq!(siblings.ahead(&of("web"), later), ["host/new:80"]);
    }
}
