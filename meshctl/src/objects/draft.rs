//! What the files of a folder, or the objects of a cluster, are to be.
//!
//! A folder's objects are changed in the text they stand in. A cluster's have no text of their own: they get one for the
//! change, which is what `--dry-run` shows, and what comes out of it is written by the API server.

use super::{Mesh, Problem, Store, Writing, after, diff, read, save, told};
use crate::cluster::Cluster;
use crate::cluster::objects::{is_heard, written};
use crate::cluster::write::Write;
use crate::edit::write::{Hand, document};
use crate::edit::{self, Refusal, value};
use crate::error::{Error, Result};
use crate::lab::manifest::DEFAULT_NAMESPACE;
use crate::place::Source;
use crate::terminal::coloured;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_dialects::ledger::Finding;
use weft_dialects::object::{self, ObjectRef};
use weft_dialects::{Object, Objects};
use weft_policy::diag::{Diags, Severity};
use weft_policy::doc::Node;
use weft_policy::yaml;

/// In the order of ages it is the last, as what is made now will be.
const YOUNGEST: &str = "9999-12-31T23:59:59Z";

pub struct Draft<'s> {
    store: &'s Store,
    before: BTreeMap<PathBuf, String>,
    files: BTreeMap<PathBuf, String>,
    /// What is touched of a cluster's objects, in that order.
    touched: Vec<Touched>,
}

/// An object of a cluster, and what it is to be. Its text goes by its name.
struct Touched {
    reference: ObjectRef,
    live: Option<Arc<Object>>,
    wanted: Option<Arc<Object>>,
    /// As it goes to a server-side apply.
    given: Option<Json>,
}

/// `virtualservice.networking.istio.io/web.shop`, as kubectl has it.
fn key(object: &ObjectRef) -> PathBuf {
    let kind = object.kind.to_ascii_lowercase();
    let group = if object.group.is_empty() { String::new() } else { format!(".{}", object.group) };
    let namespace = if object.namespace.is_empty() { String::new() } else { format!(".{}", object.namespace) };
    format!("{kind}{group}/{}{namespace}", object.name).into()
}

fn objects_of(file: &str, text: &str) -> Vec<Object> {
    object::read(&file.into(), text, DEFAULT_NAMESPACE, &mut Diags::default()).unwrap_or_default()
}

impl Store {
    pub fn draft(&self) -> Draft<'_> {
        Draft { store: self, before: self.files.clone(), files: self.files.clone(), touched: Vec::new() }
    }
}

impl<'s> Draft<'s> {
    /// The object as it is now in the draft.
    pub fn find(&self, object: &ObjectRef) -> Option<Object> {
        let before = self.store.objects.0.iter().find(|o| o.reference() == *object);
        let is = |o: &Object| o.reference() == *object;
        if self.store.cluster().is_some() {
            let text = match self.touched.iter().find(|t| t.reference == *object) {
                Some(_) => self.files.get(&key(object))?.clone(),
                None => self.store.text(before?).into_owned(),
            };
            return objects_of("", &text).into_iter().find(is);
        }
        let first = before.and_then(|o| self.files.get_key_value(Path::new(&*o.file))).map(|(path, _)| path);
        let mut paths = first.into_iter().chain(self.files.keys());
        paths.find_map(|path| objects_of(&path.to_string_lossy(), self.files.get(path)?).into_iter().find(is))
    }

    /// The object is to be like this; what was done is returned in words.
    pub fn edit(&mut self, now: &Object, wanted: &Node) -> Result<String> {
        let reference = now.reference();
        self.change(&reference, |text, now| edit::rewrite(text, now.node.at, wanted).map(Some))?;
        let done = if value::same(&now.node, wanted) { "unchanged" } else { "changed" };
        Ok(format!("{reference} {done}{}", after(&now.file, now.node.at)))
    }

    /// The object is to be this one, as it is written elsewhere.
    pub fn replace(&mut self, object: &ObjectRef, by: &edit::Source<'_>) -> Result<()> {
        self.change(object, |text, now| edit::replace(text, now.node.at, by).map(Some))
    }

    /// A file that would be left without objects goes too.
    pub fn remove(&mut self, object: &ObjectRef) -> Result<()> {
        self.change(object, |text, now| edit::without(text, now.node.at))
    }

    fn change(
        &mut self,
        object: &ObjectRef,
        how: impl FnOnce(&str, &Object) -> std::result::Result<Option<String>, Refusal>,
    ) -> Result<()> {
        let now = self.find(object).ok_or_else(|| Error::from(format!("{object} is not there any more")))?;
        let remote = self.store.cluster().is_some();
        let path = if remote { key(object) } else { PathBuf::from(&*now.file) };
        if remote {
            self.touch(object);
        }
        let text = self.files.get(&path).map(String::as_str).unwrap_or_default();
        let changed = how(text, &now).map_err(|refusal| match remote {
            true => Error::new(format!("{object}: {}", refusal.why), format!("kubectl edit {}", key(object).display())),
            false => Error::new(
                format!("{}:{}: {object}: {}", now.file, refusal.at.line.max(1), refusal.why),
                format!("edit {} by hand", now.file),
            ),
        })?;
        if let Some(touched) = self.touched.iter_mut().find(|t| t.reference == *object) {
            let made = changed.as_deref().and_then(|text| objects_of("", text).pop());
            let age = touched.live.as_ref().map_or(Some(YOUNGEST.into()), |live| live.created.clone());
            touched.wanted = made.map(|object| Arc::new(Object { created: age, ..object }));
        }
        match changed {
            Some(text) => drop(self.files.insert(path, text)),
            None => drop(self.files.remove(&path)),
        }
        Ok(())
    }

    /// From now on a cluster's object is looked at as the text that it would have.
    fn touch(&mut self, object: &ObjectRef) {
        if self.touched.iter().any(|t| t.reference == *object) {
            return;
        }
        let live = self.store.objects.0.iter().find(|o| o.reference() == *object).cloned();
        if let Some(live) = &live {
            let text = self.store.text(live).into_owned();
            self.before.insert(key(object), text.clone());
            self.files.insert(key(object), text);
        }
        self.touched.push(Touched { reference: object.clone(), wanted: live.clone(), live, given: None });
    }

    /// By server-side apply: what comes out of it, the API server says. `namespace` is for what names none. In words, what is done.
    pub fn apply(&mut self, cluster: &Cluster, object: &Object, namespace: &str) -> Result<String> {
        let mut given = yaml::json(&object.node);
        let comes = |name: &str| {
            let is = |t: &Touched| t.reference.kind == "Namespace" && t.reference.name == name;
            self.touched.iter().any(is)
        };
        let (live, wanted) = cluster.try_apply(&mut given, namespace, comes)?;
        let (reference, path) = (wanted.reference(), key(&wanted.reference()));
        if self.touched.iter().any(|t| t.reference == reference) {
            return Err(Error::new(format!("{reference} is given twice"), "give each object once"));
        }
        let text = |object: &Object| document(&written(&object.node), &Hand::default());
        let done = match &live {
            None => "created",
            Some(live) if text(live) == text(&wanted) => "unchanged",
            Some(_) => "changed",
        };
        self.before.extend(live.iter().map(|live| (path.clone(), text(live))));
        self.files.insert(path, text(&wanted));
        let age = live.as_ref().map_or(Some(YOUNGEST.into()), |live| live.created.clone());
        let wanted = Some(Arc::new(Object { created: age, ..wanted }));
        let said = format!("{reference} {done}");
        self.touched.push(Touched { reference, live: live.map(Arc::new), wanted, given: Some(given) });
        Ok(said)
    }

    /// New objects; of a folder in a file of their own, named `stem.yaml` unless there is one. Says where: ` (web.yaml)`.
    pub fn create(&mut self, stem: &str, text: String) -> String {
        let folder = match &self.store.origin {
            Source::Folder(folder) => folder,
            Source::Cluster(_) => {
                for object in objects_of("", &text) {
                    let (reference, path) = (object.reference(), key(&object.reference()));
                    self.files.insert(path, edit::Source { node: &object.node, file: &text }.whole());
                    let wanted = Some(Arc::new(Object { created: Some(YOUNGEST.into()), ..object }));
                    self.touched.push(Touched { reference, live: None, wanted, given: None });
                }
                return String::new();
            }
        };
        // Whoever named it cannot lead it elsewhere, or hide it.
        let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let stem: String = stem.chars().map(plain).collect();
        let stem = match stem.trim_start_matches('.') {
            "" => "objects",
            stem => stem,
        };
        let named = |n: u32| if n == 1 { format!("{stem}.yaml") } else { format!("{stem}-{n}.yaml") };
        let free = |path: &PathBuf| !self.files.contains_key(path) && !path.exists();
        let path = (1..).map(|n| folder.join(named(n))).find(free).unwrap_or_default();
        let place = format!(" ({})", path.display());
        self.files.insert(path, text);
        place
    }

    /// What there would be.
    pub fn objects(&self) -> Objects {
        self.read().0
    }

    fn read(&self) -> (Objects, Vec<Problem>) {
        if self.store.cluster().is_none() {
            return read(&self.files);
        }
        let touched = |o: &Arc<Object>| self.touched.iter().any(|t| t.reference == o.reference());
        let same = self.store.objects.0.iter().filter(|o| !touched(o)).cloned();
        // What is no mesh's is a cluster's own, and nobody has to be told that the mesh does not read it.
        let other = self.touched.iter().filter_map(|t| t.wanted.clone()).filter(|o| is_heard(o.group(), &o.kind));
        (Objects(same.chain(other).collect()), self.store.problems.clone())
    }

    /// As it is now, with what the mesh would make of it.
    pub fn done(self) -> Change<'s> {
        let (objects, problems) = self.read();
        Change { draft: self, problems, mesh: Mesh::of(&objects) }
    }
}

/// A draft that is to be written.
pub struct Change<'s> {
    draft: Draft<'s>,
    problems: Vec<Problem>,
    pub mesh: Mesh,
}

impl Change<'_> {
    fn changed(&self) -> Vec<(&PathBuf, Option<&str>, Option<&str>)> {
        let Draft { before, files, .. } = &self.draft;
        let names: std::collections::BTreeSet<&PathBuf> = before.keys().chain(files.keys()).collect();
        let sides = names
            .into_iter()
            .map(|name| (name, before.get(name).map(String::as_str), files.get(name).map(String::as_str)));
        sides.filter(|(_, before, after)| before != after).collect()
    }

    /// Checks it, prints what is to be known of it, and writes it; or shows it. `done` says what was done.
    pub fn finish(self, writing: Writing, done: &[String]) -> Result<()> {
        let news = self.news();
        for finding in news.findings.iter().filter(|f| f.severity == Severity::Warning) {
            eprintln!("warning: {}", told(finding));
        }
        let errors = news.findings.iter().filter(|f| f.severity == Severity::Error).map(told);
        let errors: Vec<String> = news.problems.into_iter().chain(errors).collect();
        if !errors.is_empty() && !writing.force {
            let all: String = errors.iter().map(|e| format!("\n  {e}")).collect();
            let many = if errors.len() == 1 { "an error" } else { "errors" };
            return Err(Error::new(
                format!("refused, for it would bring {many}:{all}"),
                "mend that, or --force to write it all the same",
            ));
        }
        errors.iter().for_each(|e| eprintln!("warning: {e}"));
        let changed = self.changed();
        if writing.dry_run {
            for (name, before, after) in changed {
                print!("{}", diff::unified(&name.to_string_lossy(), before, after, coloured()));
            }
            self.write(true)?;
            done.iter().for_each(|line| eprintln!("{line} (dry run: nothing is written)"));
            return Ok(());
        }
        match self.draft.store.cluster() {
            Some(_) => self.write(false)?,
            None => changed.into_iter().try_for_each(|(name, before, after)| save::save(name, before, after))?,
        }
        done.iter().for_each(|line| println!("{line}"));
        Ok(())
    }

    /// By the API server, who has to allow it also if it is only to say what it would do.
    fn write(&self, dry: bool) -> Result<()> {
        let Some(cluster) = self.draft.store.cluster() else { return Ok(()) };
        for touched in &self.draft.touched {
            let json = |object: &Arc<Object>| yaml::json(&object.node);
            let (live, wanted) = (touched.live.as_ref().map(json), touched.wanted.as_ref().map(json));
            let name = key(&touched.reference);
            let same = self.draft.before.get(&name) == self.draft.files.get(&name);
            match (&touched.given, live, wanted) {
                (Some(_), ..) if dry => {}
                // Also where nothing changes: whose the fields are does.
                (Some(given), ..) => cluster.write(&Write::Apply(given), false)?,
                (None, Some(live), Some(wanted)) if !same => cluster.write(&Write::Replace(&wanted, &live), dry)?,
                (None, Some(live), None) => cluster.write(&Write::Delete(&live), dry)?,
                (None, None, Some(wanted)) => cluster.write(&Write::Create(&wanted), dry)?,
                (None, ..) => {}
            }
        }
        Ok(())
    }

    /// What would be wrong that is not wrong now.
    fn news(&self) -> News {
        let store = self.draft.store;
        let same = |a: &Problem, b: &Problem| a.file == b.file && a.message == b.message;
        let new = |p: &&Problem| !store.problems.iter().any(|known| same(p, known));
        let problems = self.problems.iter().filter(new).map(Problem::to_string).collect();
        let before = &store.mesh().ledger;
        // Fields and lines move with what is before them.
        let key = |f: &Finding| (f.object.clone(), f.message.clone(), f.severity == Severity::Error);
        let mut known: Vec<_> = before.findings.iter().map(key).collect();
        let findings = self.mesh.ledger.findings.iter().filter(|f| match known.iter().position(|k| *k == key(f)) {
            Some(i) => {
                known.swap_remove(i);
                false
            }
            None => true,
        });
        News { problems, findings: findings.cloned().collect() }
    }
}

struct News {
    problems: Vec<String>,
    findings: Vec<Finding>,
}
