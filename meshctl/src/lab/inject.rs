//! Which pods get a sidecar: by the labels and annotations that decide it in a cluster.
//!
//! The pod's own word beats its namespace's, a label beats an annotation, and what nobody mentions has none.

use super::workload::Template;
use std::collections::BTreeMap;

/// What `meshctl lab` was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    None,
    AsLabelled,
    All,
}

/// A namespace's labels and annotations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Namespace {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

pub fn is_meshed(mesh: Mesh, namespace: &Namespace, pod: &Template) -> bool {
    // With the host's network there is nothing to redirect.
    if mesh == Mesh::None || pod.host_network {
        return false;
    }
    let pods_word = yes_or_no(pod.labels.get("sidecar.istio.io/inject"))
        .or_else(|| yes_or_no(pod.labels.get("weft.dev/inject")))
        .or_else(|| yes_or_no(pod.annotations.get("weft.dev/inject")))
        .or_else(|| yes_or_no(pod.annotations.get("sidecar.istio.io/inject")))
        .or_else(|| yes_or_no(pod.annotations.get("linkerd.io/inject")));
    if let Some(word) = pods_word {
        return word;
    }
    let namespaces_word = yes_or_no(namespace.labels.get("weft.dev/inject"))
        .or_else(|| yes_or_no(namespace.annotations.get("weft.dev/inject")))
        .or_else(|| yes_or_no(namespace.labels.get("istio-injection")))
        .or_else(|| yes_or_no(namespace.annotations.get("linkerd.io/inject")));
    namespaces_word.unwrap_or(mesh == Mesh::All)
}

fn yes_or_no(word: Option<&String>) -> Option<bool> {
    match word?.as_str() {
        "true" | "enabled" | "ingress" => Some(true),
        "false" | "disabled" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn labels_and_annotations_decide_as_in_kubernetes() {
        let plain = Namespace::default();
        let istio = Namespace { labels: map(&[("istio-injection", "enabled")]), ..plain.clone() };
        let linkerd = Namespace { annotations: map(&[("linkerd.io/inject", "enabled")]), ..plain.clone() };
        let pod = |labels: &[(&str, &str)], annotations: &[(&str, &str)]| Template {
            labels: map(labels),
            annotations: map(annotations),
            ..Template::default()
        };
        let rows = [
            (&plain, pod(&[], &[]), false),
            (&istio, pod(&[], &[]), true),
            (&linkerd, pod(&[], &[]), true),
            (&istio, pod(&[("sidecar.istio.io/inject", "false")], &[]), false),
            (&istio, pod(&[], &[("sidecar.istio.io/inject", "false")]), false),
            (&plain, pod(&[("sidecar.istio.io/inject", "true")], &[("sidecar.istio.io/inject", "false")]), true),
            (&linkerd, pod(&[], &[("linkerd.io/inject", "disabled")]), false),
            (&plain, pod(&[], &[("linkerd.io/inject", "ingress")]), true),
            (&plain, pod(&[], &[("weft.dev/inject", "true")]), true),
            // `istio-injection` is a word for namespaces only.
            (&plain, pod(&[("istio-injection", "enabled")], &[]), false),
            (&istio, Template { host_network: true, ..Template::default() }, false),
        ];
        for (i, (namespace, pod, meshed)) in rows.iter().enumerate() {
            assert_eq!(is_meshed(Mesh::AsLabelled, namespace, pod), *meshed, "row {i}");
            assert!(!is_meshed(Mesh::None, namespace, pod), "row {i}");
        }
        assert!(is_meshed(Mesh::All, &plain, &pod(&[], &[])));
        assert!(!is_meshed(Mesh::All, &plain, &pod(&[("sidecar.istio.io/inject", "false")], &[])));
    }
}
