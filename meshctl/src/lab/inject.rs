//! Which pods get a sidecar: the injector's own rule, so that a lab and a cluster cannot differ.

use super::workload::Template;
use serde_json::json;
use weft_injector::decide::{Decision, decide};
use weft_injector::workload::template;
use weft_injector::{Dialect, Namespace, Request, Settings, Warnings};

/// What `meshctl lab` was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    None,
    AsLabelled,
    All,
}

pub fn is_meshed(mesh: Mesh, namespace: &Namespace, pod: &Template) -> bool {
    let containers: Vec<_> = pod.containers.iter().map(|c| json!({"name": c.name})).collect();
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"labels": pod.labels, "annotations": pod.annotations},
        "spec": {"hostNetwork": pod.host_network, "containers": containers},
    });
    let request = Request { object: &object, namespace, asked: (mesh == Mesh::All).then_some(Dialect::Weft) };
    let decide = |pod| decide(&Settings::default(), &request, &pod, &mut Warnings::default());
    mesh != Mesh::None && matches!(template(&object).map(decide), Some(Decision::Inject { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::workload::Container;
    use std::collections::BTreeMap;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn labels_and_annotations_decide_as_in_kubernetes() {
        let plain = Namespace { name: "shop".into(), ..Namespace::default() };
        let istio = Namespace { labels: map(&[("istio-injection", "enabled")]), ..plain.clone() };
        let never = Namespace { labels: map(&[("istio-injection", "disabled")]), ..plain.clone() };
        let linkerd = Namespace { annotations: map(&[("linkerd.io/inject", "enabled")]), ..plain.clone() };
        let app = || vec![Container { name: "app".into(), ..Container::default() }];
        let pod = |labels: &[(&str, &str)], annotations: &[(&str, &str)]| Template {
            labels: map(labels),
            annotations: map(annotations),
            containers: app(),
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
            // A "no" of the namespace outweighs a "yes" of the pod, as with Istio.
            (&never, pod(&[("sidecar.istio.io/inject", "true")], &[]), false),
            (&plain, pod(&[], &[("weft.dev/inject", "true")]), true),
            // `istio-injection` is a word for namespaces only.
            (&plain, pod(&[("istio-injection", "enabled")], &[]), false),
            (&istio, Template { host_network: true, containers: app(), ..Template::default() }, false),
        ];
        for (i, (namespace, pod, meshed)) in rows.iter().enumerate() {
            assert_eq!(is_meshed(Mesh::AsLabelled, namespace, pod), *meshed, "row {i}");
            assert!(!is_meshed(Mesh::None, namespace, pod), "row {i}");
        }
        assert!(is_meshed(Mesh::All, &plain, &pod(&[], &[])));
        assert!(!is_meshed(Mesh::All, &plain, &pod(&[("sidecar.istio.io/inject", "false")], &[])));
    }
}
