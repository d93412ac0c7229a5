//! `meshctl apply`: objects into a folder or a cluster, each in the place of the one of its name.

use crate::edit::{self, Source, value};
use crate::error::{Error, Result};
use crate::lab::manifest::DEFAULT_NAMESPACE;
use crate::objects::{Draft, Store, Writing, before, input};
use crate::place::Place;
use clap::Args;
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use weft_dialects::Object;

/// Put objects into a folder or a cluster, in the place of those of the same name
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl apply -f canary.yaml --dry-run          what would change\n  \
    meshctl apply -f changes/ -n shop\n  \
    kubectl get vs web -o yaml | meshctl apply -f - --dir manifests\n  \
    meshctl apply -f canary.yaml --context staging  to a cluster, by server-side apply\n\n\
    In a folder an object that is there is replaced in its file; new ones get a file of their own. In a cluster\n\
    what a file says is made so, whoever said otherwise, and what it does not say stays. What the mesh would\n\
    find wrong with the result is refused, with the field and the reason.")]
pub struct Apply {
    /// A file, a folder, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    place: Place,
}

impl Apply {
    pub fn run(self) -> Result<ExitCode> {
        // Standard input can be read once.
        let mut given = input::read(&self.files)?;
        for given in &mut given {
            in_namespace(given, self.namespace.as_deref())?;
        }
        Store::change(|| Store::open(&self.place), |store| self.put(store, &given))?;
        Ok(ExitCode::SUCCESS)
    }

    fn put(&self, store: &Store, given: &[input::Given]) -> Result<()> {
        let mut draft = store.draft();
        let mut done = Vec::new();
        match store.cluster() {
            Some(cluster) => {
                for object in
                    given.iter().map(|g| g.objects(DEFAULT_NAMESPACE)).collect::<Result<Vec<_>>>()?.iter().flatten()
                {
                    done.push(draft.apply(cluster, object, &cluster.namespace)?);
                }
            }
            None => in_files(&mut draft, given, &mut done)?,
        }
        draft.done().finish(self.writing, &done)
    }
}

/// Each into the file in which it stands, and new ones into one of their own.
fn in_files(draft: &mut Draft<'_>, given: &[input::Given], done: &mut Vec<String>) -> Result<()> {
    let mut seen = HashSet::new();
    for given in given {
        let objects = given.objects(DEFAULT_NAMESPACE)?;
        let (mut new, mut known) = (Vec::new(), 0);
        for object in &objects {
            let reference = object.reference();
            if !seen.insert(reference.clone()) {
                let place = before(&object.file, object.node.at);
                return Err(Error::new(format!("{place}{reference} is given twice"), "give each object once"));
            }
            let Some(now) = draft.find(&reference) else {
                new.push(object);
                continue;
            };
            known += 1;
            if value::same(&now.node, &object.node) {
                done.push(format!("{reference} unchanged ({})", now.file));
                continue;
            }
            draft.replace(&reference, &Source { node: &object.node, file: &given.text })?;
            done.push(format!("{reference} changed ({})", now.file));
        }
        let Some(first) = new.first() else { continue };
        let text = match known {
            0 => given.text.clone(),
            _ => new
                .iter()
                .map(|o| Source { node: &o.node, file: &given.text }.whole())
                .collect::<Vec<_>>()
                .join("---\n"),
        };
        let own = format!("{}-{}", first.kind.to_ascii_lowercase(), first.name);
        let place = draft.create(given.stem.as_deref().unwrap_or(&own), text);
        done.extend(new.iter().map(|o| format!("{} created{place}", o.reference())));
    }
    Ok(())
}

/// Gives those objects of a text a namespace that have none.
fn in_namespace(given: &mut input::Given, namespace: Option<&str>) -> Result<()> {
    let mut objects: Vec<Object> = given.objects(DEFAULT_NAMESPACE)?;
    let Some(namespace) = namespace else { return Ok(()) };
    for i in 0..objects.len() {
        let object = &objects[i];
        let own = value::get(&object.node, "metadata").and_then(|m| value::word_at(m, "namespace"));
        let place = format!("{}:{}: {}", object.file, object.node.at.line, object.reference());
        match own {
            // Of no namespace at all.
            _ if object.namespace.is_empty() => {}
            Some(own) if own == namespace => {}
            Some(own) => {
                let hint = format!("-n {own}, or none");
                return Err(Error::new(format!("{place}: it says namespace {own}, and -n says {namespace}"), hint));
            }
            None => {
                let mut wanted = object.node.clone();
                value::within(&mut wanted, "metadata", |m| value::put(m, "namespace", value::text(namespace)));
                given.text = edit::rewrite(&given.text, object.node.at, &wanted)
                    .map_err(|r| Error::new(format!("{place}: {}", r.why), "write the namespace into it"))?;
                objects = given.objects(DEFAULT_NAMESPACE)?;
            }
        }
    }
    Ok(())
}
