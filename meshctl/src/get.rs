//! `meshctl get`: the objects of a folder or a cluster, as `kubectl get` lists them.

use crate::edit::{Source, value};
use crate::error::{Error, Result};
use crate::objects::kinds::Wanted;
use crate::objects::{Namespaces, Output, Store, stands};
use crate::place::Place;
use crate::terminal::{Tone, coloured, table};
use clap::Args;
use serde_json::{Value as Json, json};
use std::process::ExitCode;
use std::sync::Arc;
use weft_dialects::Object;
use weft_policy::doc::Node;
use weft_policy::yaml;

/// List the objects of a folder or a cluster, or print one
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl get vs                                  VirtualServices, and where they stand\n  \
    meshctl get svc,deploy -n microservices\n  \
    meshctl get ts user-service-split -o yaml       as it stands in its file, comments too\n  \
    meshctl get all --dir examples/lab-9.5 -o json\n  \
    meshctl get vs,httproute -A --context staging\n\n\
    Kinds are named as kubectl names them: svc, deploy, vs, dr, httproute, ts, sp, tp, pa, ...")]
pub struct Get {
    /// Which kinds, with commas between them; KIND/NAME for one object
    kind: String,
    /// One of them
    name: Option<String>,
    #[command(flatten)]
    which: Namespaces,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Place,
}

impl Get {
    pub fn run(self) -> Result<ExitCode> {
        let (kinds, name) = match (self.kind.split_once('/'), &self.name) {
            (Some((kind, name)), None) => (kind, Some(name)),
            _ => (&*self.kind, self.name.as_deref()),
        };
        let kinds: Vec<Wanted> = kinds.split(',').filter(|k| !k.is_empty()).map(Wanted::new).collect();
        let store = Store::only(&self.place, &kinds)?;
        store.warn();
        let named = |o: &Arc<Object>| name.is_none_or(|n| o.name == n) && store.takes(&self.which, o);
        let wanted = |o: &Arc<Object>| kinds.iter().any(|k| k.is(o)) && named(o);
        let mut found: Vec<&Arc<Object>> = store.objects.0.iter().filter(|o| wanted(o)).collect();
        found.sort_by_key(|o| kinds.iter().position(|k| k.is(o)));
        if found.is_empty() {
            return nothing(&store, &self.which, &kinds, &self.kind, name);
        }
        match self.output {
            Output::Json => println!("{:#}", as_json(&found)),
            Output::Yaml => print!("{}", as_yaml(&store, &found)),
            Output::Table | Output::Wide => print!("{}", as_table(&found, self.output == Output::Wide)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn nothing(store: &Store, which: &Namespaces, kinds: &[Wanted], typed: &str, name: Option<&str>) -> Result<ExitCode> {
    let folder = store.within(which);
    if let Some(unknown) = kinds.iter().find(|k| !k.is_known()) {
        return Err(Error::new(format!("no {typed} in {folder}"), unknown.hint()));
    }
    let Some(name) = name else {
        eprintln!("no {typed} in {folder}");
        return Ok(ExitCode::SUCCESS);
    };
    let of_kind = || store.objects.0.iter().filter(|o| kinds.iter().any(|k| k.is(o)));
    let known: Vec<String> = of_kind().map(|o| format!("{} (-n {})", o.name, o.namespace)).collect();
    let hint = if known.is_empty() { "meshctl get all shows what there is".into() } else { known.join(", ") };
    Err(Error::new(format!("no {typed} {name} in {folder}"), hint))
}

fn as_json(found: &[&Arc<Object>]) -> Json {
    let mut all: Vec<Json> = found.iter().map(|o| yaml::json(&o.node)).collect();
    match all.len() {
        1 => all.remove(0),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": all}),
    }
}

/// As they stand in their files, or as somebody could have written them.
fn as_yaml(store: &Store, found: &[&Arc<Object>]) -> String {
    let whole = |o: &&Arc<Object>| match store.cluster() {
        Some(_) => store.text(o).into_owned(),
        None => Source { node: &o.node, file: &store.text(o) }.whole(),
    };
    found.iter().map(whole).collect::<Vec<_>>().join("---\n")
}

fn as_table(found: &[&Arc<Object>], wide: bool) -> String {
    let differ = |of: fn(&Object) -> &str| found.iter().any(|o| of(o) != of(found[0]));
    let (kinds, namespaces) = (differ(|o| &o.kind), differ(|o| &o.namespace));
    let filed = found.iter().any(|o| !o.file.is_empty());
    let mut heading = vec!["NAME", "WHAT"];
    if filed {
        heading.push("FILE");
    }
    if namespaces {
        heading.insert(0, "NAMESPACE");
    }
    if wide {
        heading.push("VERSION");
    }
    let row = |o: &&Arc<Object>| {
        let name = if kinds { format!("{}/{}", o.kind.to_ascii_lowercase(), o.name) } else { o.name.clone() };
        let mut row = vec![name, about(o)];
        if filed {
            row.push(stands(&o.file, o.node.at).unwrap_or_default());
        }
        if namespaces {
            row.insert(0, o.namespace.clone());
        }
        if wide {
            row.push(o.api_version.clone());
        }
        row.into_iter().map(|cell| (cell, Tone::Plain)).collect()
    };
    table(&heading, &found.iter().map(row).collect::<Vec<_>>(), coloured())
}

/// What somebody who looks for an object knows it by.
fn about(object: &Object) -> String {
    let empty = value::map([]);
    let spec = value::get(&object.node, "spec").unwrap_or(&empty);
    let word = |key: &str| value::word_at(spec, key).unwrap_or_default();
    let each = |list: &str, say: &dyn Fn(&Node) -> Option<String>| {
        let said: Vec<String> = value::items(value::get(spec, list)).iter().filter_map(say).collect();
        said.join(", ")
    };
    let of = |key: &'static str| move |n: &Node| value::word_at(n, key);
    match &*object.kind {
        "Service" => each("ports", &of("port")),
        "Deployment" | "StatefulSet" | "ReplicaSet" => {
            let replicas = word("replicas");
            format!("{} replicas", if replicas.is_empty() { "1" } else { &replicas })
        }
        "VirtualService" => each("hosts", &value::word),
        "DestinationRule" => {
            format!("{}: {}", word("host"), each("subsets", &of("name"))).trim_end_matches(": ").into()
        }
        "HTTPRoute" | "GRPCRoute" => each("parentRefs", &of("name")),
        "TrafficPolicy" => each("targetRefs", &of("name")),
        "TrafficSplit" => {
            let share = |n: &Node| Some(format!("{}={}", value::word_at(n, "service")?, value::word_at(n, "weight")?));
            format!("{}: {}", word("service"), each("backends", &share))
        }
        "ServiceProfile" => each("routes", &of("name")),
        "PeerAuthentication" => value::get(spec, "mtls").and_then(|m| value::word_at(m, "mode")).unwrap_or_default(),
        _ => String::new(),
    }
}
