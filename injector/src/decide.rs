//! Whether a pod gets a sidecar, who asked for it, and why not.
//!
//! Each world's switches mean what they mean there. Istio: a "no" of pod or namespace outweighs a "yes" of the other. Linkerd:
//! the pod's annotation outweighs the namespace's. Weft's own `weft.dev/inject` outweighs all others of its place. Across
//! worlds, pods are heard before namespaces; there a "no" counts more, for namespaces a "yes" of either world does.

use crate::settings::{Dialect, Settings};
use crate::workload::{Template, name};
use crate::{Request, UID, Warnings, shown};
use serde_json::Value;

const OWN: &str = "weft.dev/inject";
const ISTIO_POD: &str = "sidecar.istio.io/inject";
const ISTIO_NAMESPACE: &str = "istio-injection";
const REVISION: &str = "istio.io/rev";
const LINKERD: &str = "linkerd.io/inject";
/// Kubernetes' own: a mesh that is down must not keep a cluster from healing.
const NEVER: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Names of what is added; a sidecar's container has one of its dialect's.
pub(crate) const INIT: &str = "weft-init";
pub(crate) const VOLUMES: [&str; 3] = ["weft-token", "weft-root", "weft-state"];
/// The kubelet's own pods, which nobody can change.
const MIRROR: &str = "kubernetes.io/config.mirror";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Inject {
        dialect: Dialect,
        why: String,
    },
    Skip(String),
    /// Somebody asks for a sidecar, and the pod cannot have one.
    Cannot {
        asked: String,
        why: String,
    },
    Refuse(String),
}

pub fn decide(settings: &Settings, request: &Request<'_>, pod: &Template<'_>, warnings: &mut Warnings) -> Decision {
    if never(settings, &request.namespace.name) {
        return Decision::Skip(format!("nothing in namespace {} gets a sidecar", request.namespace.name));
    }
    if let Some(why) = has_one(pod) {
        return Decision::Skip(why);
    }
    let unable = cannot(pod);
    // What is wrong with switches of pods that get none matters to nobody.
    let mut unheard = Warnings::default();
    let said = if unable.is_some() { &mut unheard } else { warnings };
    let decision = asked(settings, request, pod, said);
    let Decision::Inject { why: asked, .. } = &decision else { return unable.map_or(decision, Decision::Skip) };
    if let Some(why) = unable.or_else(|| taken(pod)) {
        return Decision::Cannot { asked: asked.clone(), why };
    }
    match runs_as_sidecar(pod) {
        Some(who) => Decision::Refuse(format!("{who}, which is the sidecar's: what it sends would go past the mesh")),
        None => decision,
    }
}

fn never(settings: &Settings, namespace: &str) -> bool {
    NEVER.contains(&namespace) || namespace == settings.namespace
}

/// What no switch can change.
fn cannot(pod: &Template<'_>) -> Option<String> {
    if pod.spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        return Some("it uses the host's network, where nothing can be redirected".into());
    }
    if pod.spec.get("os").and_then(|os| os.get("name")?.as_str()) == Some("windows") {
        return Some("it is a Windows pod".into());
    }
    if pod.annotation(MIRROR).is_some() {
        return Some("it is a static pod of its node".into());
    }
    None
}

/// Whoever put it in: a second time changes nothing.
fn has_one(pod: &Template<'_>) -> Option<String> {
    let sidecars = [Dialect::Weft, Dialect::Istio, Dialect::Linkerd].map(Dialect::container);
    let own = pod.containers().map(name).find(|n| sidecars.contains(n));
    own.map(|name| format!("it has a sidecar already: {name}"))
}

fn asked(settings: &Settings, request: &Request<'_>, pod: &Template<'_>, warnings: &mut Warnings) -> Decision {
    let namespace = request.namespace;
    let of = |place: &'static str| move |name: &'static str| Switch { name, place };
    let (on_pod, on_namespace) = (of("the pod"), of("the namespace"));
    let ns_label = |name: &str| namespace.labels.get(name).map(String::as_str);
    let ns_annotation = |name: &str| namespace.annotations.get(name).map(String::as_str);

    // The pod's words.
    let own = on_pod(OWN);
    let word =
        own.read(pod.label(OWN).as_deref(), warnings).or_else(|| own.read(pod.annotation(OWN).as_deref(), warnings));
    match word {
        Some(Word::Yes(why)) => return inject(Dialect::Weft, why),
        Some(Word::No(why)) => return Decision::Skip(why),
        None => {}
    }
    let istio = on_pod(ISTIO_POD);
    let istio = istio
        .read(pod.label(ISTIO_POD).as_deref(), warnings)
        .or_else(|| istio.read(pod.annotation(ISTIO_POD).as_deref(), warnings));
    let linkerd = on_pod(LINKERD).read(pod.annotation(LINKERD).as_deref(), warnings);
    for word in [&istio, &linkerd] {
        if let Some(Word::No(why)) = word {
            return Decision::Skip(why.clone());
        }
    }
    let istio_there = on_namespace(ISTIO_NAMESPACE).read(ns_label(ISTIO_NAMESPACE), warnings);
    let revision = |place: &str, value: &str| {
        let why = format!("{REVISION}={} on {place}", plain(value));
        match settings.revisions.iter().any(|r| r == value) {
            true => Word::Yes(why),
            false => {
                Word::No(format!("{why} asks for another control plane; this one is {}", settings.revisions.join(", ")))
            }
        }
    };
    let revision_here = pod.label(REVISION).map(|value| revision("the pod", &value));
    match (istio.or(revision_here), &istio_there) {
        (Some(Word::No(why)), _) => return Decision::Skip(why),
        (Some(Word::Yes(why)), Some(Word::No(no))) if linkerd.is_none() => {
            return Decision::Skip(format!("{no}, which outweighs {why}"));
        }
        (Some(Word::Yes(why)), None | Some(Word::Yes(_))) => return inject(Dialect::Istio, why),
        _ => {}
    }
    if let Some(Word::Yes(why)) = linkerd {
        return inject(Dialect::Linkerd, why);
    }

    // The namespace's.
    let own = on_namespace(OWN);
    match own.read(ns_label(OWN), warnings).or_else(|| own.read(ns_annotation(OWN), warnings)) {
        Some(Word::Yes(why)) => return inject(Dialect::Weft, why),
        Some(Word::No(why)) => return Decision::Skip(why),
        None => {}
    }
    let istio_there = istio_there.or_else(|| ns_label(REVISION).map(|value| revision("the namespace", value)));
    let linkerd_there = on_namespace(LINKERD).read(ns_annotation(LINKERD), warnings);
    match (istio_there, linkerd_there) {
        (Some(Word::Yes(why)), _) => inject(Dialect::Istio, why),
        (_, Some(Word::Yes(why))) => inject(Dialect::Linkerd, why),
        (Some(Word::No(why)), _) | (_, Some(Word::No(why))) => Decision::Skip(why),
        (None, None) => match request.asked {
            Some(dialect) => inject(dialect, "asked for by hand".into()),
            None if settings.by_default => inject(Dialect::Weft, "by default".into()),
            None => Decision::Skip(format!(
                "nothing asks for a sidecar: no {ISTIO_NAMESPACE}, {ISTIO_POD}, {LINKERD} or {OWN} here"
            )),
        },
    }
}

fn inject(dialect: Dialect, why: String) -> Decision {
    Decision::Inject { dialect, why }
}

/// What would be there twice.
fn taken(pod: &Template<'_>) -> Option<String> {
    if pod.list("containers").is_empty() {
        return Some("it has no containers".into());
    }
    let container = pod.containers().map(name).find(|n| *n == INIT).map(|n| format!("container {n}"));
    let volume = || pod.list("volumes").iter().map(name).find(|n| VOLUMES.contains(n)).map(|n| format!("volume {n}"));
    container.or_else(volume).map(|what| format!("it has a {what} of its own, and the sidecar's would have that name"))
}

/// Who has the sidecar's user or group, by which the rules know it: a container, or all that say nothing.
fn runs_as_sidecar(pod: &Template<'_>) -> Option<String> {
    let own = Some(u64::from(UID));
    let id = |of: Option<&Value>, which: &str| of.and_then(|s| s.get(which)?.as_u64());
    let all = pod.spec.get("securityContext");
    pod.containers().find_map(|container| {
        let context = container.get("securityContext");
        let which = ["runAsUser", "runAsGroup"].into_iter().find(|w| id(context, w).or(id(all, w)) == own)?;
        Some(format!("container {} has {which} {UID}", plain(name(container))))
    })
}

/// Of one switch.
enum Word {
    Yes(String),
    No(String),
}

#[derive(Clone, Copy)]
struct Switch {
    name: &'static str,
    place: &'static str,
}

impl Switch {
    fn read(self, value: Option<&str>, warnings: &mut Warnings) -> Option<Word> {
        let value = value?;
        let why = format!("{}={} on {}", self.name, plain(value), self.place);
        match value {
            "ingress" if self.name == LINKERD => {
                warnings
                    .add(format!("{why}: taken as enabled, for this sidecar routes by the address that was called"));
                Some(Word::Yes(why))
            }
            "true" | "enabled" => Some(Word::Yes(why)),
            "false" | "disabled" => Some(Word::No(why)),
            _ => {
                let right = if self.name == ISTIO_POD { "true or false" } else { "enabled or disabled" };
                warnings.add(format!("{} on {}: {} is not understood ({right})", self.name, self.place, shown(value)));
                None
            }
        }
    }
}

/// A value in a sentence.
fn plain(value: &str) -> String {
    let simple = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !value.is_empty() && value.len() <= 63 && value.chars().all(simple) { value.into() } else { shown(value) }
}
