//! PeerAuthentication: whether an inbound listener demands mesh mTLS. A workload's own wins over its namespace's, and that over
//! the one of the whole mesh; in one scope the oldest counts. Selectors in the root namespace select nothing. What says UNSET
//! inherits; what nobody says is permissive.

use crate::builder::Builder;
use crate::kubernetes::pod::Pod;
use crate::kubernetes::workload::labels_of;
use crate::reader::{Reader, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What one object says, and of which pods.
#[derive(Clone, Debug)]
pub struct PeerAuthentication {
    pub from: Source,
    pub namespace: String,
    /// Empty: all of the namespace, or of the mesh.
    pub selector: BTreeMap<String, String>,
    /// `strict`, `permissive`, `disable`; `None` inherits.
    pub mode: Option<&'static str>,
    /// By the pods' ports.
    pub ports: BTreeMap<u16, Option<&'static str>>,
}

const MODES: [(&str, Option<&str>); 4] =
    [("STRICT", Some("strict")), ("PERMISSIVE", Some("permissive")), ("DISABLE", Some("disable")), ("UNSET", None)];

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, spec) = (reader.object, reader.spec());
    let selector = spec.get("selector").and_then(|s| s.get("matchLabels")).map(|f| f.texts()).unwrap_or_default();
    let mode = spec.get("mtls").and_then(|m| {
        m.honoured();
        m.get("mode")?.word(&MODES)?
    });
    let mut ports = BTreeMap::new();
    if let Some(levels) = spec.get("portLevelMtls") {
        for (key, level) in levels.entries() {
            match key.parse::<u16>().ok().filter(|p| *p > 0) {
                Some(port) => {
                    level.honoured();
                    ports.insert(port, level.get("mode").and_then(|f| f.word(&MODES)).flatten());
                }
                None => {
                    level.fail::<()>(format!("{key:?} is not a port"), "the number of a container's port");
                }
            }
        }
        if selector.is_empty() {
            ports.clear();
            levels.ignored("needs a selector, as in Istio");
            levels.warn(None, "has no effect without a selector", "selector: {matchLabels: {app: NAME}}");
        }
    }
    let root = object.namespace == b.options.root_namespace;
    if root && !selector.is_empty() {
        spec.ignored("selectors in the root namespace select nothing");
        let hint = "an object in the pods' namespace, or one without selector for the whole mesh";
        let message = format!("has no effect: selectors in {} select nothing", object.namespace);
        reader.warn("G21", "spec.selector", message, hint);
        return;
    }
    if !selector.is_empty() && labels_of(b, &object.namespace, &selector).next().is_none() {
        let message = format!("selects no pod of {}", object.namespace);
        reader.warn("G21", "spec.selector", message, "the labels of pods in the object's own namespace");
    }
    if mode == Some("strict") && !root && object.name == "default" && selector.is_empty() {
        let others = b.services.keys().any(|id| *id.namespace == object.namespace);
        if !others {
            let message = format!("is for namespace {} only, where there is no Service", object.namespace);
            let hint = format!("the namespace of the pods, or {} for the whole mesh", b.options.root_namespace);
            reader.warn("G21", "metadata.namespace", message, &hint);
        }
    }
    let namespace = object.namespace.clone();
    b.peer_authentications.push(PeerAuthentication { from: spec.source(), namespace, selector, mode, ports });
}

/// The `mtls` of a pod's inbound listener, and who said it.
pub fn of(b: &Builder<'_>, namespace: &str, pod: &Pod) -> (Value, Option<Source>) {
    let (workload, own, root) = (
        oldest(b, |a| a.namespace == namespace && !a.selector.is_empty() && pod.has(&a.selector)),
        oldest(b, |a| a.namespace == namespace && a.selector.is_empty()),
        oldest(b, |a| a.namespace == b.options.root_namespace && a.selector.is_empty()),
    );
    let said = [workload, own, root].into_iter().flatten().find(|a| a.mode.is_some());
    let mode = said.and_then(|a| a.mode).unwrap_or("permissive");
    let ports: BTreeMap<String, &str> = workload
        .iter()
        .flat_map(|a| &a.ports)
        // A port that says UNSET has the workload's mode.
        .filter_map(|(port, own)| Some((port.to_string(), (*own)?)))
        .filter(|(_, own)| *own != mode)
        .collect();
    match ports.is_empty() {
        true => (json!(mode), said.map(|a| a.from.clone())),
        false => (json!({"mode": mode, "ports": ports}), workload.map(|a| a.from.clone())),
    }
}

fn oldest<'b>(b: &'b Builder<'_>, takes: impl Fn(&PeerAuthentication) -> bool) -> Option<&'b PeerAuthentication> {
    b.peer_authentications.iter().filter(|a| takes(a)).min_by_key(|a| a.from.age.clone())
}

/// Those that another one of the same scope keeps from having an effect.
pub fn losers(b: &Builder<'_>) -> Vec<(Source, Source)> {
    let mut sorted: Vec<&PeerAuthentication> = b.peer_authentications.iter().collect();
    sorted.sort_by_key(|a| a.from.age.clone());
    let mut first: BTreeMap<(&str, &BTreeMap<String, String>), &Source> = BTreeMap::new();
    let mut out = Vec::new();
    for a in sorted {
        let winner = *first.entry((&a.namespace, &a.selector)).or_insert(&a.from);
        if winner.object != a.from.object {
            out.push((a.from.clone(), winner.clone()));
        }
    }
    out
}
