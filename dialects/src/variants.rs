//! Which clients see one service alike.
//!
//! Every route and policy may be for some clients only. Clients that all these conditions mean in the same way get the same
//! document: one for each set of conditions that can hold together, and the sets with more of them come first, so that the
//! first whose clients fit is the right one.

use crate::world::Clients;
use std::collections::BTreeSet;

/// Conditions beyond these are for nobody: their number counts in the exponent.
pub const MAX_CONDITIONS: usize = 6;

/// Clients for whom just these conditions hold.
#[derive(Clone, Debug)]
pub struct Class {
    pub clients: Clients,
    holds: Vec<Clients>,
}

impl Class {
    pub fn takes(&self, clients: &Clients) -> bool {
        is_any(clients) || self.holds.contains(clients)
    }
}

fn is_any(clients: &Clients) -> bool {
    clients.namespaces.is_empty() && clients.labels.is_empty()
}

/// At least one, and the last is for everybody.
pub fn classes<'c>(conditions: impl Iterator<Item = &'c Clients>) -> Vec<Class> {
    let mut distinct: Vec<&Clients> = Vec::new();
    for clients in conditions.filter(|c| !is_any(c)) {
        if !distinct.contains(&clients) && distinct.len() < MAX_CONDITIONS {
            distinct.push(clients);
        }
    }
    let mut classes: Vec<Class> = (0..1u32 << distinct.len())
        .filter_map(|set| {
            let holds: Vec<Clients> =
                distinct.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, c)| (*c).clone()).collect();
            let clients = holds.iter().try_fold(Clients::default(), |all, one| both(&all, one))?;
            // A set that brings others with it is one with those.
            let whole = distinct.iter().all(|c| holds.contains(c) || !implies(&clients, c));
            whole.then_some(Class { clients, holds })
        })
        .collect();
    classes.sort_by_key(|c| std::cmp::Reverse(c.holds.len()));
    classes
}

/// Whether all of these clients are of those.
fn implies(these: &Clients, those: &Clients) -> bool {
    let namespaces =
        those.namespaces.is_empty() || (!these.namespaces.is_empty() && these.namespaces.is_subset(&those.namespaces));
    namespaces && those.labels.iter().all(|(k, v)| these.labels.get(k) == Some(v))
}

/// Clients of both conditions; `None` if there can be none.
fn both(a: &Clients, b: &Clients) -> Option<Clients> {
    let namespaces: BTreeSet<String> = match (a.namespaces.is_empty(), b.namespaces.is_empty()) {
        (true, _) => b.namespaces.clone(),
        (_, true) => a.namespaces.clone(),
        _ => a.namespaces.intersection(&b.namespaces).cloned().collect(),
    };
    if namespaces.is_empty() && !(a.namespaces.is_empty() && b.namespaces.is_empty()) {
        return None;
    }
    let mut labels = a.labels.clone();
    for (key, value) in &b.labels {
        if labels.insert(key.clone(), value.clone()).is_some_and(|other| other != *value) {
            return None;
        }
    }
    Some(Clients { namespaces, labels })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(namespace: &str, labels: &[(&str, &str)]) -> Clients {
        let namespaces = Some(namespace).filter(|n| !n.is_empty()).map(String::from).into_iter().collect();
        Clients { namespaces, labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect() }
    }

    #[test]
    fn the_first_that_fits_is_the_right_one() {
        let conditions = [
            clients("demo", &[]),
            clients("prod", &[]),
            clients("", &[("app", "web")]),
            clients("", &[("app", "api")]),
        ];
        let classes = classes(conditions.iter().chain([&Clients::default(), &conditions[0]]));
        // None, four alone, and each namespace with each app.
        assert_eq!(classes.len(), 9);
        for namespace in ["demo", "prod", "other"] {
            for app in ["web", "api", "none"] {
                let labels = [("app".to_string(), app.to_string())].into();
                let class = classes.iter().find(|c| c.clients.are(namespace, &labels)).unwrap();
                for condition in &conditions {
                    assert_eq!(class.takes(condition), condition.are(namespace, &labels), "{namespace} {app}");
                }
                assert!(class.takes(&Clients::default()));
            }
        }
        assert_eq!(super::classes([].into_iter()).len(), 1);
    }
}
