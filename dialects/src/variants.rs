//! Which clients see one service alike.
//!
//! Every route and policy may be for some clients only. Clients that all these conditions mean in the same way get the same
//! document: one for each set of conditions that can hold together, and the sets with more of them come first, so that the
//! first whose clients fit is the right one.

use crate::world::Clients;
use std::collections::BTreeSet;

/// A service has no more kinds of clients than this; conditions that would make more are for nobody, and that is told.
pub const MAX_CLASSES: usize = 256;

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

/// At least one, and the last is for everybody; and the conditions that were too many.
pub fn classes<'c>(conditions: impl Iterator<Item = &'c Clients>) -> (Vec<Class>, Vec<Clients>) {
    let (mut distinct, mut left_out): (Vec<&Clients>, Vec<Clients>) = Default::default();
    // Every intersection of conditions that somebody can be in. Most exclude each other, as namespaces do.
    let mut kinds = vec![Clients::default()];
    for condition in conditions.filter(|c| !is_any(c)) {
        if distinct.contains(&condition) || left_out.contains(condition) {
            continue;
        }
        let mut more: Vec<Clients> = Vec::new();
        for kind in kinds.iter().filter_map(|kind| both(kind, condition)) {
            if !kinds.contains(&kind) && !more.contains(&kind) {
                more.push(kind);
            }
        }
        if kinds.len() + more.len() > MAX_CLASSES {
            left_out.push(condition.clone());
            continue;
        }
        kinds.extend(more);
        distinct.push(condition);
    }
    let class = |clients: Clients| {
        let holds = distinct.iter().filter(|c| implies(&clients, c)).map(|c| (*c).clone()).collect();
        Class { clients, holds }
    };
    let mut classes: Vec<Class> = kinds.into_iter().map(class).collect();
    classes.sort_by_key(|c| std::cmp::Reverse(c.holds.len()));
    (classes, left_out)
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
        let (classes, left_out) = classes(conditions.iter().chain([&Clients::default(), &conditions[0]]));
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
        assert!(left_out.is_empty());
        assert_eq!(super::classes([].into_iter()).0.len(), 1);
    }

    #[test]
    fn namespaces_add_up_and_labels_multiply() {
        let namespaces: Vec<Clients> = (0..200).map(|n| clients(&format!("n{n}"), &[])).collect();
        assert_eq!(classes(namespaces.iter()).0.len(), 201);
        let labels: Vec<Clients> = (0..20).map(|n| clients("", &[(&format!("l{n}"), "x")])).collect();
        let (classes, left_out) = classes(labels.iter());
        assert_eq!((classes.len(), left_out.len()), (256, 12));
    }
}
