//! What the webhook answers: a patch for pods that get a sidecar, the reason for pods that must not run as they are, and warnings,
//! which `kubectl` shows.
//!
//! Whoever applies a Deployment never sees the pods' warnings, for its ReplicaSet makes them. So what makes pods may be asked about
//! too: it is never changed and never refused, and its author is told what its pods will be told.

use crate::{Namespace, Outcome, Request, Settings, inject, is_workload};
use k8s_openapi::api::core::v1::Namespace as Found;
use kube::api::{Api, PartialObjectMeta};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::ready;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use weft_kubernetes::watch::{Seen, follow};
use weft_kubernetes::webhook::{Answer, Figures, Handler, Request as Asked, Served, status};

/// Within the call's own time.
const ASK: Duration = Duration::from_secs(2);
/// An annotation on pods that were to have a sidecar and have none: why.
const NOTE: &str = "weft.dev/not-injected";

/// What namespaces say, by their names.
pub struct Namespaces {
    client: kube::Client,
    known: RwLock<BTreeMap<String, Arc<Namespace>>>,
    complete: AtomicBool,
}

impl Namespaces {
    pub fn new(client: kube::Client) -> Self {
        Self { client, known: RwLock::default(), complete: AtomicBool::new(false) }
    }

    /// For ever.
    pub async fn keep(&self) {
        let api: Api<PartialObjectMeta<Found>> = Api::all(self.client.clone());
        let tell = |seen: Seen<PartialObjectMeta<Found>>| {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            match seen {
                Seen::All(all) => {
                    *known = all.iter().map(namespace).map(|n| (n.name.clone(), Arc::new(n))).collect();
                    self.complete.store(true, Ordering::Relaxed);
                }
                Seen::One(one) => {
                    let one = namespace(&one);
                    known.insert(one.name.clone(), Arc::new(one));
                }
                Seen::Gone(one) => drop(known.remove(&namespace(&one).name)),
            }
            ready(ControlFlow::Continue(()))
        };
        follow(api, None, tell).await;
    }

    fn known(&self, name: &str) -> Option<Arc<Namespace>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// One that was made a moment ago is not known yet, and is asked for.
    async fn find(&self, name: &str) -> Result<Arc<Namespace>, String> {
        if let Some(known) = self.known(name) {
            return Ok(known);
        }
        let api: Api<Found> = Api::all(self.client.clone());
        let failed = |why: String| format!("namespace {name} cannot be looked up: {why}");
        match tokio::time::timeout(ASK, api.get_metadata(name)).await {
            Ok(Ok(found)) => Ok(Arc::new(namespace(&found))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("no answer in time".into())),
        }
    }
}

fn namespace(found: &PartialObjectMeta<Found>) -> Namespace {
    let meta = &found.metadata;
    let (labels, annotations) = (meta.labels.clone(), meta.annotations.clone());
    Namespace {
        name: meta.name.clone().unwrap_or_default(),
        labels: labels.unwrap_or_default(),
        annotations: annotations.unwrap_or_default(),
    }
}

/// Everything a call needs.
#[derive(Clone)]
pub struct Injector {
    settings: watch::Receiver<Arc<Settings>>,
    namespaces: Arc<Namespaces>,
    served: Served,
    figures: Arc<Figures>,
    outcomes: Arc<[AtomicU64; 3]>,
}

const OUTCOMES: [&str; 3] = ["injected", "skipped", "refused"];

impl Injector {
    pub fn new(
        settings: watch::Receiver<Arc<Settings>>,
        namespaces: Arc<Namespaces>,
        served: Served,
        figures: Arc<Figures>,
    ) -> Self {
        Self { settings, namespaces, served, figures, outcomes: Arc::default() }
    }
}

impl Handler for Injector {
    async fn review(&self, asked: Asked) -> Result<Answer, String> {
        let creates = asked.operation == "CREATE";
        if !is_workload(&asked.object) || (asked.kind.kind == "Pod" && !creates) {
            return Ok(Answer::allowed());
        }
        let namespace = self.namespaces.find(&asked.namespace).await?;
        let settings = self.settings.borrow().clone();
        let (kind, operation) = (asked.kind.kind.clone(), asked.operation.clone());
        // A pod may have megabytes.
        let decided = tokio::task::spawn_blocking(move || decide(&settings, &namespace, asked));
        let (answer, outcome) = decided.await.map_err(|e| format!("the pod could not be looked at: {e}"))?;
        if let Some(at) = OUTCOMES.iter().position(|o| Some(*o) == outcome) {
            self.outcomes[at].fetch_add(1, Ordering::Relaxed);
        }
        if let Some((_, why)) = &answer.denied {
            tracing::info!(kind, operation, why, "refused");
        }
        Ok(answer)
    }
}

/// The answer, and what became of a pod.
fn decide(settings: &Settings, namespace: &Namespace, asked: Asked) -> (Answer, Option<&'static str>) {
    let mut object = asked.object;
    // The API server fills these in later.
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.entry("namespace").or_insert_with(|| Value::from(namespace.name.as_str()));
        if !meta.contains_key("name") {
            let name = meta.get("generateName").and_then(Value::as_str).unwrap_or_default();
            let name = Value::from(name.trim_end_matches('-'));
            meta.insert("name".into(), name);
        }
    }
    let original = object;
    let Some(verdict) = inject(settings, &Request { object: &original, namespace, asked: None }) else {
        return (Answer::allowed(), None);
    };
    let pod = asked.kind.kind == "Pod";
    let mut answer = Answer { warnings: verdict.warnings, ..Answer::default() };
    let outcome = match verdict.outcome {
        Outcome::Injected(injected) if pod => {
            answer.patch = injected.patch;
            OUTCOMES[0]
        }
        Outcome::Injected(_) => OUTCOMES[0],
        Outcome::Skipped(why) => {
            if let Some(switch) = verdict.unmet {
                let told = format!("no sidecar, though {switch} asks for one: {why}");
                if pod {
                    answer.patch = note(&original, &why);
                }
                answer.warnings.insert(0, told);
            }
            OUTCOMES[1]
        }
        Outcome::Refused(why) => {
            match pod {
                true => answer.denied = Some((422, why)),
                false => answer.warnings.insert(0, format!("its pods will be refused: {why}")),
            }
            OUTCOMES[2]
        }
    };
    (answer, pod.then_some(outcome))
}

fn note(pod: &Value, why: &str) -> Vec<Value> {
    let annotations = pod.pointer("/metadata/annotations");
    if annotations.is_some_and(|a| a.get(NOTE).is_some()) {
        return Vec::new();
    }
    vec![match annotations {
        Some(Value::Object(_)) => {
            json!({"op": "add", "path": format!("/metadata/annotations/{}", NOTE.replace('/', "~1")), "value": why})
        }
        _ => json!({"op": "add", "path": "/metadata/annotations", "value": {NOTE: why}}),
    }]
}

impl status::Told for Injector {
    fn ready(&self) -> Result<(), String> {
        match (self.served.is_ready(), self.namespaces.complete.load(Ordering::Relaxed)) {
            (false, _) => Err("the certificate is not there yet".into()),
            (_, false) => Err("the namespaces are not known yet".into()),
            _ => Ok(()),
        }
    }

    fn metrics(&self) -> String {
        let mut out = self.figures.text("weft_injector");
        out +=
            "# HELP weft_injector_pods_total Pods, by what became of them.\n# TYPE weft_injector_pods_total counter\n";
        for (word, n) in OUTCOMES.iter().zip(self.outcomes.iter()) {
            out += &format!("weft_injector_pods_total{{outcome=\"{word}\"}} {}\n", n.load(Ordering::Relaxed));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(object: Value, namespace: &Namespace) -> (Answer, Option<&'static str>) {
        let kind = object["kind"].as_str().unwrap_or_default();
        let request = json!({"uid": "u", "kind": {"version": "v1", "kind": kind}, "operation": "CREATE"});
        let mut asked: Asked = serde_json::from_value(request).unwrap();
        asked.object = object;
        decide(&Settings::default(), namespace, asked)
    }

    fn shop(labels: &[(&str, &str)]) -> Namespace {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Namespace { name: "shop".into(), labels, ..Namespace::default() }
    }

    fn pod(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"}, "spec": spec})
    }

    #[test]
    fn pods() {
        let on = shop(&[("istio-injection", "enabled")]);
        let plain = json!({"containers": [{"name": "app", "image": "a:1"}]});
        let (answer, outcome) = ask(pod(plain.clone()), &on);
        assert_eq!(outcome, Some("injected"));
        let touched = |p: &str| answer.patch.iter().any(|op| op["path"] == p);
        assert!(!touched("/metadata/name") && !touched("/metadata/namespace"), "{:?}", answer.patch);

        let (answer, outcome) = ask(pod(plain), &shop(&[]));
        assert_eq!((answer, outcome), (Answer::allowed(), Some("skipped")));

        let host = json!({"hostNetwork": true, "containers": [{"name": "app", "image": "a:1"}]});
        let (answer, _) = ask(pod(host), &on);
        assert!(answer.patch[0]["value"][NOTE].as_str().unwrap().contains("host's network"), "{answer:?}");
        assert!(answer.warnings[0].contains("istio-injection=enabled"), "{answer:?}");

        let same = json!({"securityContext": {"runAsUser": 1337}, "containers": [{"name": "app", "image": "a:1"}]});
        let (answer, outcome) = ask(pod(same), &on);
        assert_eq!((answer.denied.map(|d| d.0), outcome), (Some(422), Some("refused")));
    }

    #[test]
    fn what_makes_pods_is_told_and_stays() {
        let restricted = shop(&[("istio-injection", "enabled"), ("pod-security.kubernetes.io/enforce", "restricted")]);
        let mut deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"template": {"spec": {"containers": [{"name": "app", "image": "a:1"}]}}}});
        let (answer, outcome) = ask(deployment.clone(), &restricted);
        assert!(answer.patch.is_empty() && outcome.is_none());
        assert!(answer.warnings.iter().any(|w| w.contains("pod security restricted")), "{answer:?}");
        deployment["spec"]["template"]["spec"]["securityContext"] = json!({"runAsUser": 1337});
        let (answer, _) = ask(deployment, &restricted);
        assert!(answer.denied.is_none() && answer.warnings[0].starts_with("its pods will be refused"), "{answer:?}");
    }
}
