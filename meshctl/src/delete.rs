//! `meshctl delete`: objects out of a folder or a cluster.

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

/// Take objects out of a folder or a cluster
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl delete ts user-service-split            out of its file; the file goes with its last object\n  \
    meshctl delete vs/web dr/web -n shop --dry-run\n  \
    meshctl delete -f canary.yaml                   whatever that file names\n  \
    meshctl delete vs web -n shop --context staging\n\n\
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
        let kinds: Vec<Wanted> = match self.files.is_empty() {
            true => self.pairs()?.iter().map(|(kind, _)| Wanted::new(kind)).collect(),
            false => Vec::new(),
        };
        let given = input::read(&self.files)?;
        let listed: Vec<Wanted> =
            given.iter().flat_map(|g| g.objects(DEFAULT_NAMESPACE)).flatten().map(|o| Wanted::of(&o)).collect();
        let kinds = [kinds, listed].concat();
        Store::change(|| Store::open_with(&self.place, &kinds), |store| self.take(store, &given))?;
        Ok(ExitCode::SUCCESS)
    }

    fn take(&self, store: &Store, given: &[input::Given]) -> Result<()> {
        let wanted = match self.files.is_empty() {
            true => self.named(store)?,
            false => self.listed(store, given)?,
        };
        let mut draft = store.draft();
        let mut done = Vec::new();
        for reference in wanted {
            let Some(now) = draft.find(&reference) else {
                if self.ignore_not_found {
                    continue;
                }
                let hint = "meshctl get all shows what there is; --ignore-not-found passes over it";
                return Err(Error::new(format!("{reference} is not in {}", store.name()), hint));
            };
            draft.remove(&reference)?;
            let file = if now.file.is_empty() { String::new() } else { format!(" ({})", now.file) };
            done.push(format!("{reference} deleted{file}"));
        }
        draft.done().finish(self.writing, &done)
    }

    fn listed(&self, store: &Store, given: &[input::Given]) -> Result<Vec<ObjectRef>> {
        let namespace = store.namespace(&self.which).unwrap_or(DEFAULT_NAMESPACE);
        let mut out = Vec::new();
        for given in given {
            out.extend(given.objects(namespace)?.iter().map(Object::reference));
        }
        Ok(out)
    }

    /// Kinds and names.
    fn pairs(&self) -> Result<Vec<(&str, &str)>> {
        let pairs: Vec<(&str, &str)> = match self.what[0].contains('/') {
            true => self.what.iter().filter_map(|w| w.split_once('/')).collect(),
            false => self.what[1..].iter().map(|name| (&*self.what[0], &**name)).collect(),
        };
        if pairs.is_empty() || (self.what[0].contains('/') && pairs.len() != self.what.len()) {
            return Err(Error::new("which object?", "meshctl delete KIND NAME, or KIND/NAME"));
        }
        Ok(pairs)
    }

    fn named(&self, store: &Store) -> Result<Vec<ObjectRef>> {
        let mut out = Vec::new();
        for (kind, name) in self.pairs()? {
            let wanted = Wanted::new(kind);
            let is = |o: &Object| wanted.is(o) && o.name == name && store.takes(&self.which, o);
            let found: Vec<ObjectRef> = store.objects.0.iter().filter(|o| is(o)).map(|o| o.reference()).collect();
            match &found[..] {
                [one] => out.push(one.clone()),
                [] if self.ignore_not_found => {}
                [] => {
                    let hint = match wanted.is_known() {
                        true => format!("meshctl get {kind} shows what there is"),
                        false => wanted.hint(),
                    };
                    let place = store.within(&self.which);
                    return Err(Error::new(format!("no {kind} {name} in {place}"), hint));
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
