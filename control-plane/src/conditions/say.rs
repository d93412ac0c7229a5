//! What there is to say of an object: from what the dialects found, the conditions of its status. Pure.

use serde_json::{Value, json};
use weft_dialects::Object;
use weft_dialects::gateway::backend;
use weft_dialects::ledger::Finding;
use weft_dialects::object::field;
use weft_policy::diag::Severity;
use weft_policy::doc::{Node, Value as Doc};
use weft_policy::yaml;

/// Those with `status.parents`, and with `status.conditions`.
const ROUTES: [(&str, &str); 3] = [
    ("gateway.networking.k8s.io", "HTTPRoute"),
    ("gateway.networking.k8s.io", "GRPCRoute"),
    ("policy.linkerd.io", "HTTPRoute"),
];
const POLICY: (&str, &str) = ("weft.dev", "TrafficPolicy");
const MAX_MESSAGE: usize = 1024;

#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub kind: &'static str,
    pub holds: bool,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum About {
    /// `status.parents`: of each of its parents that is ours.
    Parents(Vec<(Value, Vec<Condition>)>),
    /// `status.conditions`.
    Whole(Vec<Condition>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The object is that one, and not a later one of its name.
    pub uid: String,
    pub generation: i64,
    pub about: About,
}

/// Whether there is something of ours in the status of a kind.
pub fn has_conditions(group: &str, kind: &str) -> bool {
    ROUTES.contains(&(group, kind)) || POLICY == (group, kind)
}

/// `None`: its kind has no status of ours, or it was never in a cluster.
pub fn report(object: &Object, findings: &[&Finding]) -> Option<Report> {
    let meta = field(&object.node, "metadata")?;
    let (Doc::Text(uid), Doc::Int(generation)) = (&field(meta, "uid")?.value, &field(meta, "generation")?.value) else {
        return None;
    };
    let about = match (object.group(), object.kind.as_str()) {
        kind if ROUTES.contains(&kind) => About::Parents(parents(object, findings)),
        kind if kind == POLICY => About::Whole(vec![policy(findings)]),
        _ => return None,
    };
    Some(Report { uid: uid.clone(), generation: *generation, about })
}

fn parents(object: &Object, findings: &[&Finding]) -> Vec<(Value, Vec<Condition>)> {
    let refs = field(&object.node, "spec").and_then(|spec| field(spec, "parentRefs")).map(|refs| &refs.value);
    let Some(Doc::List(refs)) = refs else { return Vec::new() };
    let of_backends: Vec<&Finding> = errors(findings).filter(|f| f.field.contains("backendRef")).collect();
    let of_refs = "spec.parentRefs";
    let of_rest: Vec<&Finding> =
        errors(findings).filter(|f| !f.field.contains("backendRef") && !f.field.starts_with(of_refs)).collect();
    let resolved = match of_backends.first() {
        None => yes("ResolvedRefs", "ResolvedRefs", "every reference leads somewhere"),
        Some(first) => no("ResolvedRefs", backend::reason(&first.message), &of_backends),
    };
    let parent = |(i, parent): (usize, &Node)| {
        let here = format!("{of_refs}[{i}]");
        let within = |f: &&Finding| f.field.strip_prefix(&here).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        let of_parent: Vec<&Finding> = errors(findings).filter(within).collect();
        let accepted = match (of_parent.is_empty(), of_rest.is_empty()) {
            (false, _) => no("Accepted", "NoMatchingParent", &of_parent),
            (true, false) => no("Accepted", "UnsupportedValue", &of_rest),
            (true, true) => yes("Accepted", "Accepted", "in effect"),
        };
        (yaml::json(parent), vec![accepted, resolved.clone()])
    };
    refs.iter().enumerate().filter(|(_, parent)| is_service(parent)).map(parent).collect()
}

/// Gateways are other people's.
fn is_service(parent: &Node) -> bool {
    let is = |name: &str, words: &[&str]| matches!(field(parent, name).map(|n| &n.value), Some(Doc::Text(text)) if words.contains(&text.as_str()));
    is("kind", &["Service"]) && is("group", &["", "core"])
}

fn policy(findings: &[&Finding]) -> Condition {
    let (targets, rest): (Vec<&Finding>, Vec<&Finding>) =
        errors(findings).partition(|f| f.field.starts_with("spec.targetRefs"));
    match (targets.is_empty(), rest.is_empty()) {
        (_, false) => no("Accepted", "Invalid", &rest),
        (false, true) => no("Accepted", "TargetNotFound", &targets),
        (true, true) => yes("Accepted", "Accepted", "in effect"),
    }
}

/// Those of what the object asks for. Annotations are another dialect's, and are told of elsewhere.
fn errors<'f>(findings: &[&'f Finding]) -> impl Iterator<Item = &'f Finding> {
    findings.iter().copied().filter(|f| f.severity == Severity::Error && f.field.starts_with("spec"))
}

fn yes(kind: &'static str, reason: &'static str, message: &str) -> Condition {
    Condition { kind, holds: true, reason, message: message.into() }
}

fn no(kind: &'static str, reason: &'static str, findings: &[&Finding]) -> Condition {
    let said: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.field, f.message)).collect();
    let message = said.join("\n").chars().take(MAX_MESSAGE).collect();
    Condition { kind, holds: false, reason, message }
}

/// The status that says so, if it is not what it says already. What others have written stays, and of a condition that is as it was,
/// the time.
pub fn merge(report: &Report, status: &Value, controller: &str, now: &str) -> Option<Value> {
    let write = |said: &[Condition], before: &Value| -> Vec<Value> {
        let one = |c: &Condition| {
            let word = if c.holds { "True" } else { "False" };
            let old = before.as_array().into_iter().flatten().find(|b| b["type"] == c.kind && b["status"] == word);
            json!({
                "type": c.kind,
                "status": word,
                "reason": c.reason,
                "message": c.message,
                "observedGeneration": report.generation,
                "lastTransitionTime": old.and_then(|b| b["lastTransitionTime"].as_str()).unwrap_or(now),
            })
        };
        said.iter().map(one).collect()
    };
    let (name, after) = match &report.about {
        About::Whole(said) => {
            let before = &status["conditions"];
            let mut after = write(said, before);
            let others = before.as_array().into_iter().flatten();
            after.extend(others.filter(|b| said.iter().all(|c| b["type"] != c.kind)).cloned());
            ("conditions", after)
        }
        About::Parents(parents) => {
            let before = status["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ours = |entry: &&Value| entry["controllerName"] == controller;
            let mut left: Vec<&(Value, Vec<Condition>)> = parents.iter().collect();
            let mut after = Vec::new();
            for entry in before {
                if !ours(&entry) {
                    after.push(entry.clone());
                } else if let Some(at) = left.iter().position(|(parent, _)| *parent == entry["parentRef"]) {
                    let (parent, said) = left.remove(at);
                    let conditions = write(said, &entry["conditions"]);
                    after.push(json!({"parentRef": parent, "controllerName": controller, "conditions": conditions}));
                }
            }
            for (parent, said) in left {
                let conditions = write(said, &Value::Null);
                after.push(json!({"parentRef": parent, "controllerName": controller, "conditions": conditions}));
            }
            ("parents", after)
        }
    };
    let same = status[name].as_array().map_or(after.is_empty(), |before| *before == after);
    (!same).then(|| json!({name: after}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_dialects::{Objects, Options, object, translate};
    use weft_policy::diag::Diags;

    const OURS: &str = "weft.dev/mesh";

    /// The report of the last object of a text.
    fn of(text: &str) -> Option<Report> {
        let found = object::read(&"a.yaml".into(), text, "demo", &mut Diags::default()).unwrap();
        let objects = Objects(found.into_iter().map(std::sync::Arc::new).collect());
        let (_, ledger) = translate(&objects, &Options::default());
        let last = objects.0.last().unwrap();
        let findings: Vec<&Finding> = ledger.findings.iter().filter(|f| f.object == last.reference()).collect();
        report(last, &findings)
    }

    fn route(spec: &str) -> Vec<(Value, Vec<Condition>)> {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: far, namespace: other}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, uid: u, generation: 7}}\nspec: {spec}\n"
        );
        match of(&text).unwrap() {
            Report { generation: 7, about: About::Parents(parents), .. } => parents,
            other => panic!("{other:?}"),
        }
    }

    const WEB: &str = "{group: '', kind: Service, name: web, port: 80}";

    #[test]
    fn what_is_said_of_routes() {
        let reasons = |spec: String| -> Vec<(bool, &'static str, bool, &'static str)> {
            let parents = route(&spec).into_iter();
            parents.map(|(_, c)| (c[0].holds, c[0].reason, c[1].holds, c[1].reason)).collect()
        };
        let to = |backend: &str| reasons(format!("{{parentRefs: [{WEB}], rules: [{{backendRefs: [{backend}]}}]}}"));
        assert_eq!(to("{name: web, port: 80}"), [(true, "Accepted", true, "ResolvedRefs")]);
        assert_eq!(to("{name: gone, port: 80}"), [(true, "Accepted", false, "BackendNotFound")]);
        assert_eq!(to("{name: web, port: 81}"), [(true, "Accepted", false, "BackendNotFound")]);
        assert_eq!(to("{name: far, namespace: other, port: 80}"), [(true, "Accepted", false, "RefNotPermitted")]);
        assert_eq!(to("{kind: Bucket, group: a.b, name: web, port: 80}"), [(true, "Accepted", false, "InvalidKind")]);
        // A mirror to nowhere is a reference too.
        let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}";
        let spec = format!("{{parentRefs: [{WEB}], rules: [{{filters: [{mirror}]}}]}}");
        assert_eq!(reasons(spec), [(true, "Accepted", false, "BackendNotFound")]);
        // Parents that are not there, and one that is not ours.
        let refs = format!(
            "[{WEB}, {{group: '', kind: Service, name: gone}}, {{name: gateway}}, {{group: '', kind: Service, name: web, port: 8}}]"
        );
        let said = reasons(format!("{{parentRefs: {refs}, rules: []}}"));
        let none = (false, "NoMatchingParent", true, "ResolvedRefs");
        assert_eq!(said, [(true, "Accepted", true, "ResolvedRefs"), none, none]);
        let bad = format!("{{parentRefs: [{WEB}], rules: [{{timeouts: {{request: soon}}}}]}}");
        assert_eq!(reasons(bad.clone()), [(false, "UnsupportedValue", true, "ResolvedRefs")]);
        assert!(route(&bad)[0].1[0].message.contains("spec.rules[0].timeouts.request"));
    }

    #[test]
    fn what_is_said_of_policies() {
        let say = |spec: &str| {
            let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n---\n";
            let head =
                "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, uid: u, generation: 1}\n";
            match of(&format!("{service}{head}spec: {spec}\n")).unwrap().about {
                About::Whole(said) => (said[0].holds, said[0].reason),
                other => panic!("{other:?}"),
            }
        };
        let to = |name: &str| {
            format!("{{targetRefs: [{{group: '', kind: Service, name: {name}}}], timeout: {{request: 1s}}}}")
        };
        assert_eq!(say(&to("web")), (true, "Accepted"));
        assert_eq!(say(&to("gone")), (false, "TargetNotFound"));
        assert_eq!(say(&to("web").replace("1s", "soon")), (false, "Invalid"));
    }

    #[test]
    fn nothing_is_said_of_what_is_not_in_a_cluster_or_not_ours() {
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: {}\n";
        assert_eq!(of(route), None);
        assert_eq!(of("apiVersion: v1\nkind: Service\nmetadata: {name: s, uid: u, generation: 1}\n"), None);
    }

    #[test]
    fn what_others_wrote_stays_and_so_do_times() {
        let condition = |holds| yes("Accepted", "Accepted", "in effect").tap(holds);
        let parent = |name: &str| json!({"group": "", "kind": "Service", "name": name});
        let report = |generation, parents: &[(&str, bool)]| Report {
            uid: "u".into(),
            generation,
            about: About::Parents(parents.iter().map(|(n, holds)| (parent(n), vec![condition(*holds)])).collect()),
        };
        let other = json!({"parentRef": {"name": "gw"}, "controllerName": "a.b/c", "conditions": []});
        let first = merge(&report(1, &[("a", true), ("b", true)]), &json!({"parents": [other]}), OURS, "t1").unwrap();
        assert_eq!((&first["parents"][0], first["parents"].as_array().unwrap().len()), (&other, 3));
        assert_eq!(merge(&report(1, &[("a", true), ("b", true)]), &first, OURS, "t2"), None);
        let second = merge(&report(2, &[("a", false), ("b", true)]), &first, OURS, "t2").unwrap();
        let times = |status: &Value, i: usize| {
            let c = &status["parents"][i]["conditions"][0];
            (c["lastTransitionTime"].as_str().unwrap().to_string(), c["observedGeneration"].as_i64().unwrap())
        };
        assert_eq!((times(&second, 1), times(&second, 2)), (("t2".into(), 2), ("t1".into(), 2)));
        // A parent that is no longer named goes, and what is others' stays.
        let third = merge(&report(3, &[]), &second, OURS, "t3").unwrap();
        assert_eq!(third["parents"], json!([other]));
        assert_eq!(merge(&report(3, &[]), &json!({}), OURS, "t3"), None);

        let whole = Report { uid: "u".into(), generation: 1, about: About::Whole(vec![condition(true)]) };
        let before = json!({"conditions": [{"type": "Seen", "status": "True"}]});
        let after = merge(&whole, &before, OURS, "t1").unwrap();
        assert_eq!(after["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(merge(&whole, &after, OURS, "t2"), None);
    }

    impl Condition {
        fn tap(self, holds: bool) -> Self {
            Self { holds, ..self }
        }
    }
}
