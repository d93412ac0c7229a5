//! `meshctl delete`: objects out of a folder.

use crate::error::{Error, Result};
use crate::lab::manifest::DEFAULT_NAMESPACE;
use crate::objects::kinds::Wanted;
use crate::objects::{Namespaces, Store, Writing, input};
use crate::place::Place;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use weft_dialects::Object;
use weft_dialects::object::ObjectRef;

/// Take objects out of a folder
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl delete ts user-service-split            out of its file; the file goes with its last object\n  \
    meshctl delete vs/web dr/web -n shop --dry-run\n  \
    meshctl delete -f canary.yaml                   whatever that file names\n\n\
    What others need is not deleted, unless --force says so.")]
pub struct Delete {
    /// KIND NAME..., or KIND/NAME...
    #[arg(required_unless_present = "files", conflicts_with = "files", value_name = "KIND NAME")]
    what: Vec<String>,
    /// The objects of a file, a folder, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    which: Namespaces,
    /// What is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    place: Place,
}

impl Delete {
    pub fn run(self) -> Result<ExitCode> {
        let store = Store::open(&self.place)?;
        store.warn();
        let wanted = match self.files.is_empty() {
            true => self.named(&store)?,
            false => self.listed()?,
        };
        let mut draft = store.draft();
        let mut done = Vec::new();
        for reference in wanted {
            let Some(now) = draft.find(&reference) else {
                if self.ignore_not_found {
                    continue;
                }
                let hint = "meshctl get all shows what there is; --ignore-not-found passes over it";
                return Err(Error::new(format!("{reference} is not in {}", store.folder.display()), hint));
            };
            draft.remove(&reference)?;
            done.push(format!("{reference} deleted ({})", now.file));
        }
        draft.done().finish(self.writing, &done)?;
        Ok(ExitCode::SUCCESS)
    }

    fn listed(&self) -> Result<Vec<ObjectRef>> {
        let namespace = self.which.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let mut out = Vec::new();
        for given in input::read(&self.files)? {
            out.extend(given.objects(namespace)?.iter().map(Object::reference));
        }
        Ok(out)
    }

    fn named(&self, store: &Store) -> Result<Vec<ObjectRef>> {
        let pairs: Vec<(&str, &str)> = match self.what[0].contains('/') {
            true => self.what.iter().filter_map(|w| w.split_once('/')).collect(),
            false => self.what[1..].iter().map(|name| (&*self.what[0], &**name)).collect(),
        };
        if pairs.is_empty() || (self.what[0].contains('/') && pairs.len() != self.what.len()) {
            return Err(Error::new("which object?", "meshctl delete KIND NAME, or KIND/NAME"));
        }
        let mut out = Vec::new();
        for (kind, name) in pairs {
            let wanted = Wanted::new(kind);
            let is = |o: &Object| wanted.is(o) && o.name == name && self.which.take(o);
            let found: Vec<ObjectRef> = store.objects.0.iter().filter(|o| is(o)).map(|o| o.reference()).collect();
            match &found[..] {
                [one] => out.push(one.clone()),
                [] if self.ignore_not_found => {}
                [] => {
                    let hint = match wanted.is_known() {
                        true => format!("meshctl get {kind} shows what there is"),
                        false => wanted.hint(),
                    };
                    return Err(Error::new(format!("no {kind} {name} in {}", store.folder.display()), hint));
                }
                several => {
                    let all: Vec<String> = several.iter().map(ToString::to_string).collect();
                    let hint = "-n NAMESPACE, or the kind with its group, as in httproute.gateway.networking.k8s.io";
                    return Err(Error::new(format!("{name} is {}", all.join(" and ")), hint));
                }
            }
        }
        Ok(out)
    }
}
