//! Whether what somebody applies can come into force, asked by the API server before it keeps it (`/validate`).
//!
//! The object takes its place among those that are known and all are translated, as they will be a moment later. What is new
//! then decides: a mistake in this object, or a document that no proxy would take. What only warns, or has no effect, is told to
//! whoever applies. What an object names and is not there yet is no mistake here, for it may be in the next line of the same file.
//! Nothing waits for a decision: what takes too long, and what comes before there is a world, is allowed with a word.

use crate::scope::View;
use crate::source::Found;
use crate::world::{Current, Translate};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use weft_dialects::kinds::is_of_meshes;
use weft_dialects::ledger::{Finding, Ledger, Verdict};
use weft_dialects::object::{self, Object, ObjectRef, Objects};
use weft_kubernetes::webhook::{self, Answer, Certificate, Configuration, Figures, Handler, Request, Served, bundle};
use weft_policy::diag::{Diags, Severity};

/// Of an API server's patience (5 s), half.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Of the Service and of the configuration.
const NAME: &str = "weft-control";
const LINES: usize = 20;
/// Where an object stands that nobody has kept yet.
const PLACE: &str = "(applied)";
/// Not the author's, and different each time.
const NOTES: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// Runs the webhook, with its certificate and its configuration's `caBundle`.
pub async fn serve(
    listener: TcpListener,
    names: Vec<String>,
    client: kube::Client,
    admission: Admission,
    figures: Arc<Figures>,
) {
    let namespace = std::env::var("POD_NAMESPACE").ok().filter(|n| !n.is_empty());
    let namespace = namespace.unwrap_or_else(|| "weft-system".into());
    let mut certificate = Certificate::of_service(NAME, &namespace, "weft-control-webhook");
    certificate.names.extend(names);
    let (trusted_in, trusted) = watch::channel(String::new());
    let (in_force_in, in_force) = watch::channel(String::new());
    let served = Served::default();
    tokio::join!(
        certificate.keep(client.clone(), served.clone(), trusted_in, in_force),
        bundle::keep(client, vec![Configuration::Validating(NAME.into())], trusted, in_force_in),
        webhook::serve(listener, served, "/validate", admission, figures),
    );
}

pub struct Admission {
    pub found: watch::Receiver<Arc<Found>>,
    pub worlds: watch::Receiver<Arc<Current>>,
    pub translate: Translate,
    /// One translation at a time: the proxies' own comes first.
    pub turn: Arc<Semaphore>,
}

impl Admission {
    pub fn new(
        found: watch::Receiver<Arc<Found>>,
        worlds: watch::Receiver<Arc<Current>>,
        translate: Translate,
    ) -> Self {
        Self { found, worlds, translate, turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Handler for Admission {
    async fn review(&self, request: Request) -> Result<Answer, String> {
        if !matches!(request.operation.as_str(), "CREATE" | "UPDATE") || !is_of_meshes(&request.kind.group) {
            return Ok(Answer::allowed());
        }
        // Controllers write status and finalizers all the time.
        if intent(&request.object) == intent(&request.old_object) {
            return Ok(Answer::allowed());
        }
        let (found, current) = (self.found.borrow().clone(), self.worlds.borrow().clone());
        if current.generation == 0 {
            return Ok(Answer::allowed().warn("not checked: weft-control has not read the cluster yet"));
        }
        let (translate, turn) = (self.translate.clone(), self.turn.clone());
        let judged = async move {
            let permit = turn.acquire_owned().await.map_err(|e| e.to_string())?;
            let work = tokio::task::spawn_blocking(move || {
                let answer = judge(&request, &found, &current, &translate);
                drop(permit);
                answer
            });
            work.await.map_err(|e| format!("it could not be translated: {e}"))
        };
        match tokio::time::timeout(PATIENCE, judged).await {
            Ok(answer) => answer,
            Err(_) => Ok(Answer::allowed().warn("not checked: weft-control has too much to do; see meshctl analyze")),
        }
    }
}

/// What its author says: all but status and what Kubernetes keeps in the metadata.
fn intent(object: &Value) -> Map<String, Value> {
    let Value::Object(fields) = object else { return Map::new() };
    let mut out = fields.clone();
    out.remove("status");
    out.remove("metadata");
    for name in ["labels", "annotations"] {
        if let Some(Value::Object(map)) = object.get("metadata").and_then(|m| m.get(name)) {
            let mut map = map.clone();
            map.retain(|key, _| !NOTES.contains(&key.as_str()));
            if !map.is_empty() {
                out.insert(name.into(), Value::Object(map));
            }
        }
    }
    out
}

fn judge(request: &Request, found: &Found, current: &Current, translate: &Translate) -> Answer {
    match read(request) {
        Ok(new) => judge_object(Arc::new(new), found, current, translate),
        Err(why) => Answer::denied(422, why),
    }
}

fn judge_object(new: Arc<Object>, found: &Found, current: &Current, translate: &Translate) -> Answer {
    let reference = new.reference();
    let mut objects: Vec<Arc<Object>> = found.objects.0.clone();
    match objects.iter_mut().find(|o| o.kind == new.kind && o.name == new.name && o.reference() == reference) {
        Some(old) => *old = new,
        None => objects.push(new),
    }
    let (world, ledger) = translate(&Objects(objects));
    let view = View::new(&world, &Value::Null, &current.view);
    let held = |name: &str, why: &str| current.view.withheld.iter().any(|w| w.name == name && w.why == why);
    let withheld = view.withheld.iter().filter(|w| w.name != "trust" && !held(&w.name, &w.why));
    let withheld: Vec<String> = withheld.map(|w| format!("{} would not be sent: {}", w.name, w.why)).collect();
    answer(&reference, &ledger, &current.ledger, withheld)
}

/// As all objects are read, with the name and the namespace that the request has.
fn read(request: &Request) -> Result<Object, String> {
    let mut object = request.object.clone();
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        // They are megabytes at times, and nobody reads them.
        meta.remove("managedFields");
        if !request.namespace.is_empty() {
            meta.insert("namespace".into(), request.namespace.clone().into());
        }
        let nameless = meta.get("name").and_then(Value::as_str).is_none_or(str::is_empty);
        if nameless {
            let name = if request.name.is_empty() { "(generated)" } else { &request.name };
            meta.insert("name".into(), name.into());
        }
    }
    let mut diags = Diags::default();
    let read = object::read(&PLACE.into(), &object.to_string(), &request.namespace, &mut diags);
    match read.unwrap_or_default().into_iter().next() {
        Some(object) => Ok(object),
        None => Err(diags.0.first().map_or("it is no object".into(), |d| d.message.clone())),
    }
}

fn answer(object: &ObjectRef, new: &Ledger, old: &Ledger, withheld: Vec<String>) -> Answer {
    let was = |f: &Finding| {
        old.findings.iter().any(|o| o.object == *object && (&o.field, &o.message) == (&f.field, &f.message))
    };
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for finding in new.findings.iter().filter(|f| f.object == *object) {
        match finding.severity {
            Severity::Error if !finding.absent && !was(finding) => errors.push(line(finding)),
            _ => warnings.push(line(finding)),
        }
    }
    errors.extend(withheld);
    if !errors.is_empty() {
        let (first, more) = errors.split_at(errors.len().min(LINES));
        let mut why = first.join("\n");
        if !more.is_empty() {
            why += &format!("\nand {} more", more.len());
        }
        return Answer { warnings, ..Answer::denied(422, why) };
    }
    let told: BTreeSet<&str> = new.findings.iter().filter(|f| f.object == *object).map(|f| f.field.as_str()).collect();
    let said: BTreeSet<&str> =
        new.findings.iter().filter(|f| f.object == *object).map(|f| f.message.as_str()).collect();
    for entry in new.entries.iter().filter(|e| e.object == *object && !told.contains(e.field.as_str())) {
        match &entry.verdict {
            Verdict::Honoured | Verdict::Differently(_) => {}
            // Of a kind that is not read, once is enough.
            Verdict::Ignored(why) if said.contains(why.as_str()) => {}
            Verdict::Ignored(why) => warnings.push(format!("{}: without effect: {why}", entry.field)),
            Verdict::WonBy(winner) => warnings.push(format!("{}: without effect: {winner} wins", entry.field)),
        }
    }
    Answer { warnings, ..Answer::default() }
}

/// As `meshctl analyze` says it, without the place: it has none yet.
fn line(finding: &Finding) -> String {
    let field = if finding.field.is_empty() { String::new() } else { format!("{}: ", finding.field) };
    let known = finding.reference.map_or(String::new(), |r| format!(" [{r}]"));
    let hint = finding.hint.as_ref().map_or(String::new(), |h| format!(" ({h})"));
    format!("{field}{}{hint}{known}", finding.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_dialects::Options;

    fn translation() -> Translate {
        Arc::new(|objects| weft_dialects::translate(objects, &Options::default()))
    }

    fn world(yaml: &str) -> (Found, Current) {
        let mut diags = Diags::default();
        let objects = object::read(&"a.yaml".into(), yaml, "demo", &mut diags).unwrap();
        let objects = Arc::new(Objects(objects.into_iter().map(Arc::new).collect()));
        let (world, ledger) = translation()(&objects);
        let view = View::new(&world, &Value::Null, &View::default());
        (
            Found { objects: objects.clone(), generation: 1, ..Found::default() },
            Current { view, ledger, objects, generation: 1 },
        )
    }

    fn ask(kind: &str, object: Value) -> Request {
        let review = json!({"uid": "u", "operation": "CREATE", "namespace": "demo", "object": object,
            "kind": {"group": "networking.istio.io", "version": "v1", "kind": kind}});
        serde_json::from_value(review).unwrap()
    }

    fn virtual_service(http: Value) -> Value {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "web"}, "spec": {"hosts": ["web"], "http": [http]}})
    }

    const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}\n";

    #[test]
    fn mistakes_are_refused_and_what_is_missing_is_not() {
        let (found, current) = world(WEB);
        let judged =
            |http: Value| judge(&ask("VirtualService", virtual_service(http)), &found, &current, &translation());
        let to = |subset: Value| json!({"route": [{"destination": {"host": "web", "subset": subset}}]});
        assert_eq!(judged(json!({"route": [{"destination": {"host": "web"}}]})).denied, None);
        let missing = judged(to(json!("v2")));
        assert!(missing.denied.is_none() && missing.warnings[0].contains("v2"), "{missing:?}");

        let mut bad = json!({"route": [{"destination": {"host": "web"}}]});
        bad["timeout"] = "soon".into();
        let (code, why) = judged(bad.clone()).denied.unwrap();
        assert!(code == 422 && why.contains("spec.http[0].timeout") && why.contains("soon"), "{why}");

        // What is wrong already may be changed.
        let text = format!("{WEB}---\n{}", virtual_service(bad.clone()));
        let (found, current) = world(&text);
        let again = judge(&ask("VirtualService", virtual_service(bad)), &found, &current, &translation());
        assert!(again.denied.is_none() && again.warnings.iter().any(|w| w.contains("soon")), "{again:?}");
    }

    /// One file may hold a route and its Service, and who applies two files need not know their order: alone in an empty cluster,
    /// none of what the examples hold is a mistake.
    #[test]
    fn whatever_is_named_may_come_later() {
        let (found, current) = world("");
        let mut yaml = vec![ABSENT.to_string()];
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples"))];
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
                match path.extension().is_some_and(|e| e == "yaml") {
                    true => yaml.push(std::fs::read_to_string(&path).unwrap()),
                    false if path.is_dir() => folders.push(path),
                    false => {}
                }
            }
        }
        let mut asked = 0;
        for text in yaml {
            let mut diags = Diags::default();
            let objects = object::read(&"a.yaml".into(), &text, "demo", &mut diags).unwrap();
            for object in objects.into_iter().filter(|o| is_of_meshes(o.group())) {
                let reference = object.reference();
                let answer = judge_object(Arc::new(object), &found, &current, &translation());
                assert_eq!(answer.denied, None, "{reference}");
                asked += 1;
            }
        }
        assert!(asked > 20, "{asked}");
    }

    const ABSENT: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a}
spec:
  parentRefs: [{group: "", kind: Service, name: none}]
  rules: [{backendRefs: [{name: none, port: 80}, {name: none, namespace: other, port: 80}]}]
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: a}
spec:
  parentRefs: [{group: core, kind: Service, name: none, port: 80}]
  rules: [{backendRefs: [{name: none, port: 80}]}]
---
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: none.demo.svc.cluster.local}
spec: {dstOverrides: [{authority: "none.demo.svc.cluster.local:80", weight: 1}]}
---
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: a}
spec: {service: none, matches: [{kind: HTTPRouteGroup, name: none}], backends: [{service: none-v1, weight: 1}]}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: a}
spec: {targetRefs: [{kind: Service, name: none}, {group: gateway.networking.k8s.io, kind: HTTPRoute, name: none}], timeout: {request: 1s}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec: {hosts: [none], http: [{route: [{destination: {host: none, subset: none}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec: {host: none, subsets: [{name: none, labels: {version: none}}]}
"#;

    #[test]
    fn what_the_author_says() {
        let of =
            |metadata: Value, status: Value| intent(&json!({"spec": {"a": 1}, "metadata": metadata, "status": status}));
        let one = of(json!({"resourceVersion": "1", "annotations": {NOTES[0]: "x"}}), json!({"ready": true}));
        assert_eq!(one, of(json!({"resourceVersion": "2", "finalizers": ["f"]}), json!(null)));
        assert_ne!(one, of(json!({"annotations": {"retry.linkerd.io/http": "5xx"}}), json!(null)));
    }

    #[test]
    fn what_nobody_reads_is_told() {
        let (found, current) = world(WEB);
        let told = |group: &str, kind: &str| {
            let object = json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": "a"},
                "spec": {"action": "DENY", "rules": [{}]}});
            let mut request = ask(kind, object);
            request.kind.group = group.into();
            let answer = judge(&request, &found, &current, &translation());
            assert_eq!((&answer.denied, answer.warnings.len()), (&None, 1), "{answer:?}");
            assert!(answer.warnings[0].contains("has no effect") && answer.warnings[0].len() <= 256, "{answer:?}");
            answer.warnings[0].contains("nothing is enforced")
        };
        for kind in ["EnvoyFilter", "ServiceEntry", "Sidecar", "Gateway"] {
            assert!(!told("networking.istio.io", kind), "{kind}");
        }
        assert!(!told("telemetry.istio.io", "Telemetry"));
        for kind in ["AuthorizationPolicy", "RequestAuthentication"] {
            assert!(told("security.istio.io", kind), "{kind}");
        }
        for kind in ["Server", "ServerAuthorization", "AuthorizationPolicy", "MeshTLSAuthentication"] {
            assert!(told("policy.linkerd.io", kind), "{kind}");
        }
        assert!(told("access.smi-spec.io", "TrafficTarget"));
    }

    /// How long an apply waits in a mesh of 1,000 services.
    #[test]
    fn a_large_world() {
        let services = (0..1000).map(|i| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web{i}}}\nspec: {{clusterIP: 10.0.{}.{}, ports: [{{name: http, port: 80}}]}}\n",
                i / 250,
                i % 250 + 1
            )
        });
        let (found, current) = world(&(WEB.to_string() + &services.collect::<String>()));
        let began = std::time::Instant::now();
        let ok = json!({"route": [{"destination": {"host": "web"}}]});
        let answer = judge(&ask("VirtualService", virtual_service(ok)), &found, &current, &translation());
        let took = began.elapsed();
        println!("admission with 1,000 services: {took:?}");
        assert!(answer.denied.is_none() && took < Duration::from_secs(20), "{took:?}");
    }
}
