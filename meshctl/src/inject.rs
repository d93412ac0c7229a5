//! `meshctl inject` and `meshctl uninject`: sidecars into manifests and out of them, as the webhook would put them in.

use crate::edit::{self, value, write};
use crate::error::{Error, Result};
use crate::lab::manifest::DEFAULT_NAMESPACE;
use crate::objects::input;
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weft_dialects::Object;
use weft_dialects::object;
use weft_injector::{Dialect, Mode, Namespace, Outcome, Request, Settings};
use weft_policy::diag::Diags;
use weft_policy::doc::{Node, Value};
use weft_policy::yaml;

/// Put sidecars into manifests, as the mesh's webhook would; the result goes to standard output
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl inject app.yaml | kubectl apply -f -\n  \
    kubectl get deploy web -o yaml | meshctl inject - | kubectl apply -f -\n  \
    meshctl inject app.yaml --as istio --mode classic     a container istio-proxy beside the app's\n  \
    meshctl inject app.yaml --settings mesh.yaml -o json\n\n\
    Every pod gets a sidecar but those that a label or an annotation says no for: of theirs, or\n\
    of a Namespace in the same files. What is no workload passes as it is. What was done, and\n\
    warnings, go to standard error.\n\
    Exit codes: 0 done, 1 a pod was refused or a file is no YAML, 2 wrong use.\n\
    docs/injection.md has every switch.")]
pub struct Inject {
    /// A file, a folder, or - for standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: String,
    /// Whose names sidecars get where nobody else asks for one
    #[arg(long = "as", value_name = "WORLD", default_value = "weft")]
    world: World,
    /// Native sidecars (Kubernetes 1.29), or containers beside the app's; pods may say otherwise
    #[arg(long, value_name = "MODE")]
    mode: Option<Way>,
    /// The sidecar's image
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// What the install says: image, control plane, resources ... (YAML)
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Take sidecars out of manifests that `meshctl inject` or the mesh's webhook put in
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl uninject app.yaml\n  \
    kubectl get deploy web -o yaml | meshctl uninject - | kubectl apply -f -\n\n\
    What was there before comes back: probes, annotations, labels. Sidecars of other meshes stay.\n\
    Exit codes: 0 done, 1 failed, 2 wrong use.")]
pub struct Uninject {
    /// A file, a folder, or - for standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    #[default]
    Yaml,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum World {
    Weft,
    Istio,
    Linkerd,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    Native,
    Classic,
}

/// What became of an object.
enum Change {
    None,
    /// And what is told about it.
    New(Json, String),
    Stays(String),
    Refused(String),
}

impl Inject {
    pub fn run(self) -> Result<ExitCode> {
        let mut settings = self.settings.as_deref().map_or_else(|| Ok(Settings::default()), settings)?;
        if let Some(mode) = self.mode {
            settings.mode = match mode {
                Way::Native => Mode::Native,
                Way::Classic => Mode::Classic,
            };
        }
        settings.image = self.image.unwrap_or(settings.image);
        let asked = Some(match self.world {
            World::Weft => Dialect::Weft,
            World::Istio => Dialect::Istio,
            World::Linkerd => Dialect::Linkerd,
        });
        let given = input::read(&self.files)?;
        let namespaces = namespaces(&given);
        each(&given, self.output, |node, name| {
            let object = yaml::json(node);
            let own = value::get(node, "metadata").and_then(|m| value::word_at(m, "namespace"));
            let own = own.unwrap_or_else(|| self.namespace.clone());
            let nobody = Namespace { name: own.clone(), ..Namespace::default() };
            let request = Request { object: &object, namespace: namespaces.get(&own).unwrap_or(&nobody), asked };
            let Some(verdict) = weft_injector::inject(&settings, &request) else { return Change::None };
            for warning in &verdict.warnings {
                eprintln!("warning: {name}: {warning}");
            }
            match verdict.outcome {
                Outcome::Injected(new) => {
                    let told = format!("injected: {}, {}; {}", new.container, new.mode.word(), new.why);
                    Change::New(new.object, told)
                }
                Outcome::Skipped(why) => Change::Stays(format!("not injected: {why}")),
                Outcome::Refused(why) => Change::Refused(why),
            }
        })
    }
}

impl Uninject {
    pub fn run(self) -> Result<ExitCode> {
        each(&input::read(&self.files)?, self.output, |node, _| {
            let object = yaml::json(node);
            match weft_injector::uninject(&object) {
                Ok(Some(new)) => Change::New(new, "uninjected".into()),
                Ok(None) if weft_injector::is_workload(&object) => Change::Stays("it was not injected".into()),
                Ok(None) => Change::None,
                Err(why) => Change::Refused(why),
            }
        })
    }
}

/// Of an install, in the words of `weft_injector::Settings`.
fn settings(file: &Path) -> Result<Settings> {
    let shown = file.display();
    let hint = "the fields of docs/injection.md, such as image: registry/weft-proxy:1.0";
    let wrong = |why: String| Error::new(format!("{shown}: {why}"), hint);
    let given = input::read(&[file.to_path_buf()])?;
    let text = given.first().map_or("", |g| g.text.as_str());
    let mut diags = Diags::default();
    let node = yaml::parse(text, &mut diags)
        .ok_or_else(|| wrong(diags.0.first().map(ToString::to_string).unwrap_or_default()))?;
    serde_json::from_value(yaml::json(&node)).map_err(|e| wrong(e.to_string()))
}

/// The Namespaces among what was given: their switches count for what is in them.
fn namespaces(given: &[input::Given]) -> BTreeMap<String, Namespace> {
    let read = |g: &input::Given| object::read(&g.name, &g.text, DEFAULT_NAMESPACE, &mut Diags::default());
    let all = given.iter().filter_map(read).flatten().filter(|o| o.kind == "Namespace" && o.api_version == "v1");
    all.map(|Object { name, labels, annotations, .. }| (name.clone(), Namespace { name, labels, annotations }))
        .collect()
}

/// Changes every object and prints them all.
fn each(given: &[input::Given], output: Output, mut change: impl FnMut(&Node, &str) -> Change) -> Result<ExitCode> {
    let (mut texts, mut items, mut refused) = (Vec::new(), Vec::new(), false);
    for input::Given { name: file, text, .. } in given {
        let mut diags = Diags::default();
        let documents = yaml::documents(text, &mut diags).ok_or_else(|| {
            let all: Vec<String> = diags.0.iter().map(|d| format!("{file}: {d}")).collect();
            Error::new(all.join("\n  "), "mend the file; nothing was printed")
        })?;
        let mut news: Vec<(Node, Json)> = Vec::new();
        for document in &documents {
            for node in objects(document) {
                let called = called(node);
                match change(node, &called) {
                    Change::None => {}
                    Change::New(new, told) => {
                        eprintln!("{called} {told}");
                        news.push((node.clone(), new));
                    }
                    Change::Stays(told) => eprintln!("{called} {told}"),
                    Change::Refused(why) => {
                        refused = true;
                        eprintln!("error: {called} is refused: {why}");
                    }
                }
            }
        }
        if let Output::Json = output {
            let changed = |node: &Node| news.iter().find(|(old, _)| old.at == node.at).map(|(_, new)| new.clone());
            let all = documents.iter().flat_map(objects);
            items.extend(all.map(|node| changed(node).unwrap_or_else(|| yaml::json(node))));
            continue;
        }
        let wanted: Vec<(&Node, Node)> =
            news.iter().map(|(node, new)| (node, in_order(&value::from_json(new), node))).collect();
        // From the last one up, so that the places of those above stay.
        let edited = wanted.iter().rev().try_fold(text.clone(), |now, (node, new)| edit::rewrite(&now, node.at, new));
        texts.push(edited.unwrap_or_else(|_| anew(&documents, &wanted)));
    }
    let text = match output {
        Output::Json => format!("{:#}\n", json!({"apiVersion": "v1", "kind": "List", "items": items})),
        Output::Yaml => joined(&texts),
    };
    // A reader that went away has seen enough.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(if refused { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// A `List`'s elements, or the document itself.
fn objects(document: &Node) -> Vec<&Node> {
    match is_list(document) {
        true => value::items(value::get(document, "items")).iter().collect(),
        false => vec![document],
    }
}

/// `deployment/web.shop`, with nothing in it that a terminal would obey.
fn called(node: &Node) -> String {
    let meta = |name: &str| value::get(node, "metadata").and_then(|m| value::word_at(m, name));
    let name = meta("name").or_else(|| meta("generateName")).unwrap_or_default();
    let kind = value::word_at(node, "kind").unwrap_or_default().to_ascii_lowercase();
    let within = meta("namespace").map(|n| format!(".{n}")).unwrap_or_default();
    format!("{kind}/{name}{within}").chars().take(200).flat_map(char::escape_debug).collect()
}

/// What JSON has lost: the order of fields, as far as there was one.
fn in_order(new: &Node, old: &Node) -> Node {
    let value = match (&new.value, &old.value) {
        (Value::Map(new), Value::Map(old)) => {
            let place = |key: &str| old.iter().position(|(k, ..)| k == key).unwrap_or(usize::MAX);
            let mut items: Vec<_> = new
                .iter()
                .map(|(k, at, v)| {
                    let known = old.iter().find(|(key, ..)| key == k).map(|(.., v)| v);
                    (k.clone(), *at, known.map_or_else(|| v.clone(), |known| in_order(v, known)))
                })
                .collect();
            items.sort_by_key(|(k, ..)| place(k));
            Value::Map(items)
        }
        (Value::List(new), Value::List(old)) => {
            // By name where they have one: what is put before others moves them.
            let known = |i: usize, v: &Node| match value::word_at(v, "name") {
                Some(name) => old.iter().find(|o| value::word_at(o, "name").as_ref() == Some(&name)),
                None => old.get(i),
            };
            let each = new.iter().enumerate().map(|(i, v)| known(i, v).map_or_else(|| v.clone(), |o| in_order(v, o)));
            Value::List(each.collect())
        }
        (new, _) => new.clone(),
    };
    value::new(value)
}

/// A text whose anchors or tags keep it from being edited is written anew, without its comments.
fn anew(documents: &[Node], wanted: &[(&Node, Node)]) -> String {
    let new = |node: &Node| wanted.iter().find(|(old, _)| old.at == node.at).map(|(_, new)| new.clone());
    let all = documents.iter().map(|document| {
        let mut document = document.clone();
        match is_list(&document) {
            true => value::with_items(&mut document, "items", |items| {
                items.iter_mut().for_each(|item| *item = new(item).unwrap_or_else(|| item.clone()));
            }),
            false => document = new(&document).unwrap_or(document),
        }
        write::document(&document, &write::Hand::default())
    });
    all.collect::<Vec<_>>().join("---\n")
}

fn is_list(document: &Node) -> bool {
    let has_items = matches!(value::get(document, "items").map(|n| &n.value), Some(Value::List(_)));
    has_items && value::word_at(document, "kind").is_some_and(|k| k.ends_with("List"))
}

/// Texts of several files as documents of one.
fn joined(texts: &[String]) -> String {
    let mut out = String::new();
    for text in texts {
        if !out.is_empty() {
            if !out.ends_with('\n') {
                out.push('\n');
            }
            if !text.trim_start_matches('\u{feff}').starts_with("---") {
                out.push_str("---\n");
            }
        }
        out.push_str(text);
    }
    out
}
