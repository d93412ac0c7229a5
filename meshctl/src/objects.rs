//! The objects of a folder with the texts they stand in, and changes to them.
//!
//! A [`Draft`] holds what the files are to be. Before anything is written, what they would say is translated: a change that
//! brings errors is refused with their fields and reasons, and what it brings of warnings is printed.

pub mod diff;
pub mod input;
pub mod kinds;
mod save;

use crate::edit::{self, Refusal};
use crate::error::{Error, Result};
use crate::lab::manifest::DEFAULT_NAMESPACE;
use crate::place::Place;
use crate::terminal::coloured;
use clap::{Args, ValueEnum};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_control::source::dir::Dirs;
use weft_dialects::ledger::Finding;
use weft_dialects::object::{self, ObjectRef};
use weft_dialects::{Ledger, Object, Objects, Options, World, translate};
use weft_policy::diag::{Diags, Severity};
use weft_policy::doc::Node;
use weft_policy::yaml;

/// A folder as it was read.
pub struct Store {
    pub folder: PathBuf,
    files: BTreeMap<PathBuf, String>,
    pub objects: Objects,
    /// What cannot be read.
    pub problems: Vec<Problem>,
    mesh: OnceCell<Mesh>,
}

/// What the mesh makes of objects.
pub struct Mesh {
    pub world: World,
    pub ledger: Ledger,
}

impl Mesh {
    fn of(objects: &Objects) -> Self {
        let (world, ledger) = translate(objects, &Options::default());
        Self { world, ledger }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    file: String,
    /// 0: of the file as a whole.
    line: u32,
    message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

/// How a change is made.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Writing {
    /// Show what would change, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write it even if the mesh finds errors in what it would be
    #[arg(long)]
    pub force: bool,
}

/// Objects of which namespaces; of all without a word.
#[derive(Args, Clone, Debug, Default)]
pub struct Namespaces {
    /// Of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Of all namespaces, as without -n
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

impl Namespaces {
    pub fn take(&self, object: &Object) -> bool {
        self.namespace.as_ref().is_none_or(|n| object.namespace == *n)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Wide,
    Yaml,
    Json,
}

impl Store {
    pub fn open(place: &Place) -> Result<Self> {
        Self::read(&place.folder()?)
    }

    /// As the control plane reads it.
    pub fn read(folder: &Path) -> Result<Self> {
        if let Err(e) = std::fs::read_dir(folder) {
            let hint = "name a folder that holds manifests, such as --dir examples/lab-9.5";
            return Err(Error::new(format!("{} cannot be read: {e}", folder.display()), hint));
        }
        let mut dirs = Dirs::new(&[folder.to_path_buf()], DEFAULT_NAMESPACE);
        dirs.look();
        let found = dirs.found(0);
        let of_objects = found.objects.0.iter().map(|o| PathBuf::from(&*o.file));
        let names: Vec<PathBuf> = of_objects.chain(found.faults.iter().map(|f| f.file.clone())).collect();
        let mut files = BTreeMap::new();
        let mut problems = Vec::new();
        for name in names {
            if files.contains_key(&name) {
                continue;
            }
            match text(&name) {
                Ok(text) => drop(files.insert(name, text)),
                Err(message) => problems.push(Problem { file: name.display().to_string(), line: 0, message }),
            }
        }
        let (objects, more) = read(&files);
        problems.extend(more);
        Ok(Self { folder: folder.to_path_buf(), files, objects, problems, mesh: OnceCell::new() })
    }

    /// The file that an object stands in.
    pub fn text(&self, object: &Object) -> &str {
        self.files.get(Path::new(&*object.file)).map_or("", String::as_str)
    }

    pub fn mesh(&self) -> &Mesh {
        self.mesh.get_or_init(|| Mesh::of(&self.objects))
    }

    pub fn draft(&self) -> Draft<'_> {
        Draft { store: self, files: self.files.clone() }
    }

    /// What cannot be read is not seen by anybody, and whoever looks is told.
    pub fn warn(&self) {
        for problem in &self.problems {
            eprintln!("warning: {problem}");
        }
    }
}

/// A file of the folder, if it is one.
fn text(file: &Path) -> std::result::Result<String, String> {
    let mut bytes = Vec::new();
    let open = std::fs::File::open(file);
    open.and_then(|f| f.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|_| "not UTF-8 text".into())
}

/// The objects of texts; of two of one name the first counts.
fn read(files: &BTreeMap<PathBuf, String>) -> (Objects, Vec<Problem>) {
    let (mut objects, mut problems): (Vec<Arc<Object>>, Vec<Problem>) = Default::default();
    let mut seen: HashSet<ObjectRef> = HashSet::new();
    for (path, text) in files {
        let file: Arc<str> = path.to_string_lossy().into();
        let mut diags = Diags::default();
        let found = object::read(&file, text, DEFAULT_NAMESPACE, &mut diags).unwrap_or_default();
        let problem = |line: u32, message: String| Problem { file: file.to_string(), line, message };
        problems.extend(diags.0.iter().map(|d| {
            let hint = d.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
            problem(d.at.line, format!("{}{hint}", d.message))
        }));
        for object in found {
            match seen.insert(object.reference()) {
                true => objects.push(Arc::new(object)),
                false => problems.push(problem(
                    object.node.at.line,
                    format!("{} is here a second time; the first one counts", object.reference()),
                )),
            }
        }
    }
    (Objects(objects), problems)
}

/// What the files of a folder are to be.
pub struct Draft<'s> {
    store: &'s Store,
    files: BTreeMap<PathBuf, String>,
}

impl<'s> Draft<'s> {
    /// The object as it is now in the draft.
    pub fn find(&self, object: &ObjectRef) -> Option<Object> {
        let before = self.store.objects.0.iter().find(|o| o.reference() == *object);
        let first: Vec<&PathBuf> = before.into_iter().filter_map(|o| self.name(o)).collect();
        first.into_iter().chain(self.files.keys()).find_map(|path| {
            let text = self.files.get(path)?;
            let found = object::read(&path.to_string_lossy().into(), text, DEFAULT_NAMESPACE, &mut Diags::default())?;
            found.into_iter().find(|o| o.reference() == *object)
        })
    }

    fn name(&self, object: &Object) -> Option<&PathBuf> {
        self.files.get_key_value(Path::new(&*object.file)).map(|(path, _)| path)
    }

    /// The object is to be like this; what was done is returned in words.
    pub fn edit(&mut self, now: &Object, wanted: &Node) -> Result<String> {
        let reference = now.reference();
        self.change(&reference, |text, now| edit::rewrite(text, now.node.at, wanted).map(Some))?;
        let done = if edit::value::same(&now.node, wanted) { "unchanged" } else { "changed" };
        Ok(format!("{reference} {done} ({}:{})", now.file, now.node.at.line))
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
        let path = PathBuf::from(&*now.file);
        let text = self.files.get(&path).map(String::as_str).unwrap_or_default();
        let changed = how(text, &now).map_err(|refusal| {
            Error::new(
                format!("{}:{}: {object}: {}", now.file, refusal.at.line.max(1), refusal.why),
                format!("edit {} by hand", now.file),
            )
        })?;
        match changed {
            Some(text) => drop(self.files.insert(path, text)),
            None => drop(self.files.remove(&path)),
        }
        Ok(())
    }

    /// A new file, named `stem.yaml` unless there is one; its name.
    pub fn create(&mut self, stem: &str, text: String) -> PathBuf {
        // Whoever named it cannot lead it elsewhere, or hide it.
        let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let stem: String = stem.chars().map(plain).collect();
        let stem = match stem.trim_start_matches('.') {
            "" => "objects",
            stem => stem,
        };
        let named = |n: u32| if n == 1 { format!("{stem}.yaml") } else { format!("{stem}-{n}.yaml") };
        let free = |path: &PathBuf| !self.files.contains_key(path) && !path.exists();
        let path = (1..).map(|n| self.store.folder.join(named(n))).find(free).unwrap_or_default();
        self.files.insert(path.clone(), text);
        path
    }

    /// What the folder would say.
    pub fn objects(&self) -> Objects {
        read(&self.files).0
    }

    /// As it is now, with what the mesh would make of it.
    pub fn done(self) -> Change<'s> {
        let (objects, problems) = read(&self.files);
        Change { store: self.store, files: self.files, problems, mesh: Mesh::of(&objects) }
    }
}

/// A draft that is to be written.
pub struct Change<'s> {
    store: &'s Store,
    files: BTreeMap<PathBuf, String>,
    problems: Vec<Problem>,
    pub mesh: Mesh,
}

impl Change<'_> {
    fn changed(&self) -> Vec<(&PathBuf, Option<&str>, Option<&str>)> {
        let before = &self.store.files;
        let names: std::collections::BTreeSet<&PathBuf> = before.keys().chain(self.files.keys()).collect();
        let sides = names
            .into_iter()
            .map(|name| (name, before.get(name).map(String::as_str), self.files.get(name).map(String::as_str)));
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
            done.iter().for_each(|line| eprintln!("{line} (dry run: nothing is written)"));
            return Ok(());
        }
        for (name, before, after) in changed {
            save::save(name, before, after)?;
        }
        done.iter().for_each(|line| println!("{line}"));
        Ok(())
    }

    /// What would be wrong that is not wrong now.
    fn news(&self) -> News {
        let same = |a: &Problem, b: &Problem| a.file == b.file && a.message == b.message;
        let new = |p: &&Problem| !self.store.problems.iter().any(|known| same(p, known));
        let problems = self.problems.iter().filter(new).map(Problem::to_string).collect();
        let before = &self.store.mesh().ledger;
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

pub fn told(finding: &Finding) -> String {
    let Finding { object, file, field, at, message, hint, reference, .. } = finding;
    let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
    let hint = hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
    let known = reference.map(|r| format!(" [{r}]")).unwrap_or_default();
    format!("{file}:{}: {object}: {field}{message}{hint}{known}", at.line)
}
