//! Manifests in, and what came out, checked: whatever a world holds, `weft-policy` reads it without fault.
#![allow(dead_code)]

use serde_json::{Value, json};
use std::sync::Arc;
use weft_dialects::ledger::{Entry, Finding, Verdict};
use weft_dialects::world::{PodId, Variant};
use weft_dialects::{Ledger, Objects, Options, World, object, translate};
use weft_policy::diag::{Diags, Severity};
use weft_policy::doc::Cursor;
use weft_policy::id::ServiceId;
use weft_policy::meta::Workload;
use weft_policy::{listener, plan, service, telemetry, yaml};

pub fn objects(text: &str) -> Objects {
    let mut diags = Diags::default();
    let found = object::read(&"a.yaml".into(), text, "default", &mut diags);
    assert!(diags.0.is_empty(), "{:?}", diags.0);
    Objects(found.unwrap_or_default().into_iter().map(Arc::new).collect())
}

pub fn world(text: &str) -> (World, Ledger) {
    let (world, ledger) = translate(&objects(text), &Options::default());
    check(&world);
    (world, ledger)
}

/// Reads everything as a proxy would.
pub fn check(world: &World) {
    for (id, service) in &world.services {
        let last = service.variants.last().unwrap_or_else(|| panic!("{id} has no variant"));
        assert!(last.clients.namespaces.is_empty() && last.clients.labels.is_empty(), "{id}: not for everybody");
        for variant in &service.variants {
            let refers = variant.refers.iter().find(|r| !world.services.contains_key(*r));
            assert_eq!(refers, None, "{id} refers to what is not there");
            entries(&whole(variant, &service.endpoints));
        }
    }
    let mut namespaces: Vec<&str> = world.services.keys().map(|id| &*id.namespace).chain(["nowhere"]).collect();
    namespaces.dedup();
    for namespace in namespaces {
        one_meaning_each(world, namespace);
    }
    for (id, pod) in &world.pods {
        let mut diags = Diags::default();
        let node = yaml::parse(&pod.document.to_string(), &mut diags).unwrap_or_else(|| panic!("{:?}", diags.0));
        let read = Cursor::new(&node, &mut diags).fields(|f| {
            f.opt("workload", Workload::read);
            f.opt("telemetry", telemetry::Config::read);
            Some(f.list("listeners", listener::Config::read))
        });
        assert!(diags.0.is_empty(), "{id:?}: {:?} in {}", diags.0, pod.document);
        let read = read.unwrap_or_default();
        // Where nothing is redirected, one for calls and one for each port.
        match read.iter().any(|l| l.original_dst) {
            true => assert_eq!(read.len(), 2, "{id:?}"),
            false => assert_eq!(read.iter().filter(|l| !l.role.is_inbound()).count(), 1, "{id:?}"),
        }
    }
}

/// For one client, a host or an address at a port means one service: a proxy refuses what means two.
fn one_meaning_each(world: &World, namespace: &str) {
    let mut owners = std::collections::BTreeMap::new();
    for (id, service) in &world.services {
        let variant = service.variants.iter().find(|v| v.clients.are(namespace, &Default::default()));
        let variant = variant.unwrap_or_else(|| panic!("{id}: nothing for a client of {namespace}"));
        for entry in entries(&variant.document) {
            for key in entry.config.keys {
                let other = owners.insert(key.clone(), id.clone());
                assert!(other.is_none(), "{key:?} means {id} and {other:?} to clients of {namespace}");
            }
        }
    }
}

/// A variant with its endpoints, as it would stand in a file.
pub fn whole(variant: &Variant, endpoints: &std::collections::BTreeMap<u16, Value>) -> Value {
    let mut document = variant.document.clone();
    for port in document["ports"].as_array_mut().into_iter().flatten() {
        let number = port["port"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
        if let Some(list) = endpoints.get(&number) {
            port["endpoints"] = list.clone();
        }
    }
    document
}

/// From its text, as the proxy has it.
pub fn entries(document: &Value) -> Vec<service::Entry> {
    let text = document.to_string();
    let mut diags = Diags::default();
    let node = yaml::parse(&text, &mut diags).unwrap_or_else(|| panic!("{:?}: {text}", diags.0));
    let read = service::Entry::read(&mut Cursor::new(&node, &mut diags), "default");
    let wrong: Vec<_> = diags.0.iter().filter(|d| d.severity == Severity::Error).collect();
    assert!(wrong.is_empty(), "{wrong:?} in {document:#}");
    let read = read.unwrap_or_else(|| panic!("not read: {document:#}"));
    for entry in &read {
        plan::compile(&entry.config).unwrap_or_else(|e| panic!("{e:?} in {document:#}"));
    }
    read
}

pub fn said(finding: &Finding) -> String {
    let kind = if finding.severity == Severity::Error { "error" } else { "warning" };
    let reference = finding.reference.map(|r| format!(" {r}")).unwrap_or_default();
    let hint = finding.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
    let Finding { object, field, at, message, .. } = finding;
    format!("{}: {kind}{reference}: {object}: {field}: {message}{hint}", at.line)
}

pub fn verdict(entry: &Entry) -> String {
    let verdict = match &entry.verdict {
        Verdict::Honoured => "honoured".to_string(),
        Verdict::Differently(how) => format!("differs: {how}"),
        Verdict::Ignored(why) => format!("ignored: {why}"),
        Verdict::WonBy(other) => format!("won by {other}"),
    };
    format!("{}: {} {}: {verdict}", entry.at.line, entry.object, entry.field)
}

/// All of it, for people and goldens.
pub fn shown(world: &World, ledger: &Ledger) -> Value {
    let from = |v: &Variant| v.from.iter().map(ToString::to_string).collect::<Vec<_>>();
    let variant = |v: &Variant| {
        let refers: Vec<String> = v.refers.iter().map(ToString::to_string).collect();
        let clients = json!({"namespaces": v.clients.namespaces, "labels": v.clients.labels});
        json!({"clients": clients, "document": v.document, "refers": refers, "from": from(v)})
    };
    let service = |(id, s): (&ServiceId, &weft_dialects::world::Service)| {
        let endpoints: serde_json::Map<String, Value> =
            s.endpoints.iter().map(|(port, list)| (port.to_string(), list.clone())).collect();
        let variants: Vec<Value> = s.variants.iter().map(variant).collect();
        (id.to_string(), json!({"variants": variants, "endpoints": endpoints}))
    };
    let pod = |(id, p): (&PodId, &weft_dialects::world::Pod)| {
        (format!("{}.{}", id.name, id.namespace), json!({"identity": p.identity.as_str(), "document": p.document}))
    };
    let services: serde_json::Map<String, Value> = world.services.iter().map(service).collect();
    let pods: serde_json::Map<String, Value> = world.pods.iter().map(pod).collect();
    json!({
        "services": services,
        "pods": pods,
        "ledger": ledger.entries.iter().map(verdict).collect::<Vec<_>>(),
        "findings": ledger.findings.iter().map(said).collect::<Vec<_>>(),
    })
}

/// What the findings say, in one text.
pub fn findings(ledger: &Ledger) -> String {
    ledger.findings.iter().map(|f| said(f) + "\n").collect()
}
