//! The objects of a folder or of a cluster, and changes to them.
//!
//! A [`Draft`] holds what they are to be. Before anything is written, what they would say is translated: a change that
//! brings errors is refused with their fields and reasons, and what it brings of warnings is printed.

pub mod diff;
mod draft;
pub mod input;
pub mod kinds;
mod save;

use crate::cluster::{Cluster, objects as remote};
use crate::edit::write::{Hand, document};
use crate::error::{Error, Result};
use crate::lab::manifest::DEFAULT_NAMESPACE;
use crate::place::{Place, Source};
use clap::{Args, ValueEnum};
use kinds::Wanted;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_control::source::dir::Dirs;
use weft_dialects::ledger::Finding;
use weft_dialects::object::{self, ObjectRef};
use weft_dialects::{Ledger, Object, Objects, Options, World, translate};
use weft_policy::diag::{Diags, Pos};
use weft_policy::yaml;

pub use draft::Draft;

/// A folder or a cluster as it was read.
pub struct Store {
    origin: Source,
    /// Of a folder.
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
            0 if self.file.is_empty() => f.write_str(&self.message),
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

/// Objects of which namespaces. Without a word they are all of a folder, and of a cluster those of the context's namespace.
#[derive(Args, Clone, Debug, Default)]
pub struct Namespaces {
    /// Of this namespace only; without it all of a folder count, and of a cluster the context's own
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
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
    /// With everything that has a say in what the mesh does.
    pub fn open(place: &Place) -> Result<Self> {
        Self::of(place.source()?, remote::is_heard)
    }

    /// With objects of these kinds, too: of a cluster only what is asked for is listed.
    pub fn open_with(place: &Place, kinds: &[Wanted]) -> Result<Self> {
        let wanted =
            |group: &str, kind: &str| remote::is_heard(group, kind) || kinds.iter().any(|k| k.fits(group, kind));
        Self::of(place.source()?, wanted)
    }

    /// With objects of these kinds alone, which no mesh can be made of.
    pub fn only(place: &Place, kinds: &[Wanted]) -> Result<Self> {
        // What `all` means is what kubectl means by it: no Secrets.
        let wanted = |group: &str, kind: &str| match kinds.iter().any(Wanted::is_all) {
            true => remote::is_heard(group, kind),
            false => kinds.iter().any(|k| k.fits(group, kind)),
        };
        Self::of(place.source()?, wanted)
    }

    pub fn of_cluster(cluster: Cluster) -> Result<Self> {
        Self::of(Source::Cluster(cluster), remote::is_heard)
    }

    fn of(origin: Source, wanted: impl Fn(&str, &str) -> bool) -> Result<Self> {
        let cluster = match origin {
            Source::Folder(folder) => return Self::read(&folder),
            Source::Cluster(cluster) => cluster,
        };
        let remote::Listed { objects, unseen } = cluster.objects(wanted)?;
        let problem = |message: String| Problem { file: String::new(), line: 0, message };
        let problems = unseen.into_iter().map(problem).collect();
        let origin = Source::Cluster(cluster);
        Ok(Self { origin, files: BTreeMap::new(), objects: Objects(objects), problems, mesh: OnceCell::new() })
    }

    /// Does something with what there is now; once more, if somebody else changes it meanwhile.
    pub fn change(open: impl Fn() -> Result<Self>, run: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let store = open()?;
        store.warn();
        match run(&store) {
            Err(e) if e.is_conflict() => run(&open()?),
            done => done,
        }
    }

    /// For people.
    pub fn name(&self) -> String {
        match &self.origin {
            Source::Folder(folder) => folder.display().to_string(),
            Source::Cluster(cluster) => cluster.to_string(),
        }
    }

    /// The same, with the namespace that is meant.
    pub fn within(&self, which: &Namespaces) -> String {
        match (self.cluster(), self.namespace(which)) {
            (Some(cluster), Some(namespace)) => format!("namespace {namespace} of {cluster} (-A looks into all)"),
            _ => self.name(),
        }
    }

    pub fn cluster(&self) -> Option<&Cluster> {
        match &self.origin {
            Source::Folder(_) => None,
            Source::Cluster(cluster) => Some(cluster),
        }
    }

    /// The namespace that is meant, if it is one.
    pub fn namespace<'n>(&'n self, which: &'n Namespaces) -> Option<&'n str> {
        let own = self.cluster().filter(|_| !which.all_namespaces).map(|cluster| cluster.namespace.as_str());
        which.namespace.as_deref().or(own)
    }

    /// Whether an object is in one of the namespaces that are meant. Of a cluster also what is in none.
    pub fn takes(&self, which: &Namespaces, object: &Object) -> bool {
        let in_none = self.cluster().is_some() && object.namespace.is_empty();
        self.namespace(which).is_none_or(|n| in_none || object.namespace == *n)
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
        Ok(Self { origin: Source::Folder(folder.to_path_buf()), files, objects, problems, mesh: OnceCell::new() })
    }

    /// The file that an object stands in; of a cluster's, what somebody could have written.
    pub fn text(&self, object: &Object) -> Cow<'_, str> {
        match &self.origin {
            Source::Folder(_) => self.files.get(Path::new(&*object.file)).map_or("", String::as_str).into(),
            Source::Cluster(_) => document(&remote::written(&object.node), &Hand::default()).into(),
        }
    }

    pub fn into_ledger(self) -> Ledger {
        self.mesh();
        self.mesh.into_inner().map(|mesh| mesh.ledger).unwrap_or_default()
    }

    pub fn mesh(&self) -> &Mesh {
        self.mesh.get_or_init(|| Mesh::of(&self.objects))
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

pub fn told(finding: &Finding) -> String {
    let Finding { object, field, message, hint, reference, .. } = finding;
    let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
    let hint = hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
    let known = reference.map(|r| format!(" [{r}]")).unwrap_or_default();
    let before = before(&finding.file, finding.at);
    format!("{before}{object}: {field}{message}{hint}{known}")
}

/// `web.yaml:3`; nothing of what stands in no file, as a cluster's objects.
pub fn stands(file: &str, at: Pos) -> Option<String> {
    (!file.is_empty()).then(|| format!("{file}:{}", at.line))
}

/// The same before something else: `web.yaml:3: `
pub fn before(file: &str, at: Pos) -> String {
    stands(file, at).map(|place| format!("{place}: ")).unwrap_or_default()
}

/// The same after something else: ` (web.yaml:3)`
pub fn after(file: &str, at: Pos) -> String {
    stands(file, at).map(|place| format!(" ({place})")).unwrap_or_default()
}
