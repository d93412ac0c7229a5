//! What manifests become: a golden for each kind in `routes/`, and one for each intent in `same/`, which several dialects say.
//!
//! `UPDATE_GOLDEN=1` writes the goldens of `routes/` and `same/` anew.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod trial;

use serde_json::Value as Json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_dialects::ledger::{Entry, Verdict};
use weft_dialects::{Ledger, Object, Objects, Options, World, translate};
use weft_policy::diag::Severity;
use weft_policy::doc::{Node, Value};
use weft_policy::plan::{self, ServicePlan};
use weft_policy::{retry, service};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn manifests(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    found.sort();
    found
}

fn objects(file: &Path) -> Objects {
    trial::objects(&std::fs::read_to_string(file).unwrap())
}

fn world(objects: &Objects) -> (World, Ledger) {
    let (world, ledger) = translate(objects, &Options::default());
    trial::check(&world);
    (world, ledger)
}

/// Services that have more than names, without what is the same for other clients.
fn golden(world: &World, ledger: &Ledger) -> String {
    let mut out = String::new();
    for (id, service) in &world.services {
        let mut above = String::new();
        for variant in &service.variants {
            let mut text = String::new();
            for port in variant.document["ports"].as_array().unwrap() {
                let order = port["order"].as_str().unwrap_or_default();
                writeln!(text, "{} {} {order}", port["port"], port["protocol"].as_str().unwrap()).unwrap();
                port["routes"].as_array().into_iter().flatten().for_each(|r| writeln!(text, "- {r}").unwrap());
                port.get("policy").inspect(|p| writeln!(text, "policy {p}").unwrap());
            }
            let clients: Vec<&str> = variant.clients.namespaces.iter().map(String::as_str).collect();
            let from: Vec<String> = variant.from.iter().map(ToString::to_string).collect();
            let clients = if clients.is_empty() { "all".into() } else { clients.join(", ") };
            if text != above {
                writeln!(out, "# {id} for {clients}, from {}\n{text}", from.join(", ")).unwrap();
            }
            above = text;
        }
    }
    for (id, pod) in &world.pods {
        writeln!(out, "# pod {}/{}\n{}", id.namespace, id.name, pod.document["listeners"]).unwrap();
    }
    writeln!(out, "# fields").unwrap();
    for e in ledger
        .entries
        .iter()
        .filter(|e| !matches!(e.object.kind.as_str(), "Service" | "Pod") || e.field.starts_with("metadata"))
    {
        writeln!(out, "{}", trial::verdict(e)).unwrap();
    }
    writeln!(out, "# findings\n{}", trial::findings(ledger)).unwrap();
    out
}

fn compare(file: &Path, found: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(file, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(file).unwrap_or_default();
    for (n, (a, b)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(a, b, "{}:{}", file.display(), n + 1);
    }
    assert_eq!(expected.lines().count(), found.lines().count(), "{}", file.display());
}

#[test]
fn kinds() {
    let files = manifests(&folder("routes"));
    assert_eq!(files.len(), 11);
    for file in files {
        let (world, ledger) = world(&objects(&file));
        compare(&file.with_extension("golden"), &golden(&world, &ledger));
    }
}

/// One intent, in every dialect that can say it, is one plan; only names of routes may differ.
#[test]
fn one_intent_is_one_plan() {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(folder("same")).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    assert_eq!(folders.len(), 5);
    let mut files = 0;
    for folder in folders {
        let mut first = None;
        for file in manifests(&folder) {
            files += 1;
            let (world, ledger) = world(&objects(&file));
            assert!(!ledger.has_errors(), "{}: {:?}", file.display(), ledger.findings);
            let nameless: Vec<Json> = world.services.values().flat_map(|s| s.variants.iter().map(nameless)).collect();
            let plans: Vec<_> = nameless.iter().map(plans).collect();
            let text: String = nameless.iter().map(|d| serde_json::to_string_pretty(d).unwrap() + "\n").collect();
            match &first {
                None => first = Some((file, text, plans)),
                Some((other, _, expected)) => {
                    assert_eq!(*expected, plans, "{} and {}", other.display(), file.display());
                }
            }
        }
        let (_, text, _) = first.expect("a manifest");
        compare(&folder.join("golden"), &text);
    }
    assert_eq!(files, 15);
}

/// What requests find. What is retried without being asked may be asked for; of one route, either order is the same.
fn plans(document: &Json) -> Vec<(Arc<ServicePlan>, service::Backends)> {
    let plan = |mut entry: service::Entry| {
        for route in &mut entry.config.routes {
            route.retry = route.retry.take().filter(|r| *r != retry::Config::unasked());
        }
        (plan::compile(&entry.config).unwrap(), entry.backends)
    };
    trial::entries(document).into_iter().map(plan).collect()
}

fn nameless(variant: &weft_dialects::world::Variant) -> Json {
    let mut document = variant.document.clone();
    for port in document["ports"].as_array_mut().unwrap() {
        for route in port.get_mut("routes").and_then(Json::as_array_mut).into_iter().flatten() {
            route.as_object_mut().unwrap().remove("name");
        }
    }
    document
}

/// Fields that say what would be so without them.
const SHADOWED: [(&str, &str); 2] = [
    ("service_profile.yaml", "spec.routes[0].responseClasses[0].condition.status.min"),
    ("service_profile_extension.yaml", "spec.routes[0].responseClasses[0].condition.status.min"),
];

/// What is called honoured is: another value makes another world, or is an error.
#[test]
fn honoured_fields_act() {
    let (mut changed, mut still) = (0, Vec::new());
    for file in manifests(&folder("routes")) {
        let objects = objects(&file);
        let (before, ledger) = world(&objects);
        let counts = |e: &&Entry| matches!(e.verdict, Verdict::Honoured | Verdict::Differently(_));
        let ours = |e: &&Entry| !matches!(e.object.kind.as_str(), "Service" | "Pod") || e.field.starts_with("metadata");
        let name = file.file_name().unwrap().to_str().unwrap();
        let excepted = |e: &&Entry| !SHADOWED.contains(&(name, &*e.field));
        for entry in ledger.entries.iter().filter(counts).filter(ours).filter(excepted) {
            let mut objects = objects.clone();
            let at = objects.0.iter().position(|o| o.reference() == entry.object).unwrap();
            let object: &mut Object = Arc::make_mut(&mut objects.0[at]);
            let node = find(&mut object.node, &entry.field);
            let Some(other) = other(&node.value) else { continue };
            node.value = other;
            if let (Value::Text(text), Some(name)) = (&node.value, entry.field.strip_prefix("metadata.annotations.")) {
                object.annotations.insert(name.into(), text.clone());
            }
            changed += 1;
            let (after, ledger) = world(&objects);
            let told = ledger.findings.iter().any(|f| f.severity == Severity::Error && f.field == entry.field);
            if before == after && !told {
                still.push(format!("{name}: {} {}", entry.object, entry.field));
            }
        }
    }
    assert!(still.is_empty(), "without effect:\n{}", still.join("\n"));
    assert!(changed > 200, "{changed}");
}

fn other(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Bool(b) => Value::Bool(!b),
        Value::Int(n) => Value::Int(n + 1),
        Value::Float(x) => Value::Float(x / 2.0),
        Value::Text(text) => Value::Text(match weft_policy::doc::parse_duration(text) {
            Some(_) => "7s".into(),
            None => match text.parse::<u32>() {
                Ok(n) => (n + 1).to_string(),
                Err(_) => format!("{text}x"),
            },
        }),
        Value::Null | Value::List(_) | Value::Map(_) => return None,
    })
}

fn find<'n>(node: &'n mut Node, path: &str) -> &'n mut Node {
    if path.is_empty() {
        return node;
    }
    match &mut node.value {
        Value::Map(items) => {
            let name = path.trim_start_matches('.');
            let fits =
                |k: &String| name.strip_prefix(k.as_str()).is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']));
            let (key, _, node) =
                items.iter_mut().filter(|(k, ..)| fits(k)).max_by_key(|(k, ..)| k.len()).expect("a field");
            let len = key.len();
            find(node, &name[len..])
        }
        Value::List(items) => {
            let (index, rest) = path.strip_prefix('[').and_then(|p| p.split_once(']')).expect("an index");
            find(&mut items[index.parse::<usize>().unwrap()], rest)
        }
        _ => panic!("{path} leads nowhere"),
    }
}
