//! `meshctl apply`: objects into a folder, each in the place of the one of its name.

use crate::edit::{self, Source, value};
use crate::error::{Error, Result};
use crate::lab::manifest::DEFAULT_NAMESPACE;
use crate::objects::{Store, Writing, input};
use crate::place::Place;
use clap::Args;
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use weft_dialects::Object;

/// Put objects into a folder, in the place of those of the same name
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl apply -f canary.yaml --dry-run          what would change\n  \
    meshctl apply -f changes/ -n shop\n  \
    kubectl get vs web -o yaml | meshctl apply -f - --dir manifests\n\n\
    An object that is there is replaced in its file; new ones get a file of their own. What the mesh would\n\
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
        let store = Store::open(&self.place)?;
        store.warn();
        let mut draft = store.draft();
        let mut done = Vec::new();
        let mut seen = HashSet::new();
        for mut given in input::read(&self.files)? {
            let objects = in_namespace(&mut given, self.namespace.as_deref())?;
            let (mut new, mut known) = (Vec::new(), 0);
            for object in &objects {
                let reference = object.reference();
                if !seen.insert(reference.clone()) {
                    let place = format!("{}:{}", object.file, object.node.at.line);
                    return Err(Error::new(format!("{place}: {reference} is given twice"), "give each object once"));
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
            let file = draft.create(given.stem.as_deref().unwrap_or(&own), text);
            done.extend(new.iter().map(|o| format!("{} created ({})", o.reference(), file.display())));
        }
        draft.done().finish(self.writing, &done)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The objects of a text, in which those without a namespace are given one.
fn in_namespace(given: &mut input::Given, namespace: Option<&str>) -> Result<Vec<Object>> {
    let mut objects = given.objects(DEFAULT_NAMESPACE)?;
    let Some(namespace) = namespace else { return Ok(objects) };
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
    Ok(objects)
}
