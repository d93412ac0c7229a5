//! Folders of YAML, with all below them. Files come and go, are replaced, written in place, and are links that are turned (as
//! mounted ConfigMaps are); a look at their stamps twenty times a second sees all of it and needs no kernel queue that can
//! overflow. A file is read when it has stopped changing. One with a mistake keeps the objects it had before, and its mistakes
//! are published beside them; the other files are not touched by it.

use super::{Fault, Found};
use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_dialects::object::{self, Object, ObjectRef, Objects};
use weft_policy::diag::{Diags, Pos};
use weft_policy::yaml;

const LOOK: Duration = Duration::from_millis(50);
/// A file that changes with every look is read all the same, after as many.
const PATIENCE: u32 = 40;
const MAX_DEPTH: usize = 16;
const MAX_FILES: usize = 10_000;

/// What a look at a file tells without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[derive(Debug, Default)]
struct File {
    seen: Option<Stamp>,
    read: Option<Stamp>,
    /// Looks since it changed and was not read.
    waited: u32,
    /// The last good ones.
    objects: Vec<Arc<Object>>,
    faults: Vec<Fault>,
}

/// The folders as they were at the last look.
#[derive(Debug)]
pub struct Dirs {
    roots: Vec<PathBuf>,
    namespace: String,
    files: BTreeMap<PathBuf, File>,
    faults: Vec<Fault>,
    first: bool,
}

impl Dirs {
    /// `namespace` is that of objects that name none.
    pub fn new(roots: &[PathBuf], namespace: &str) -> Self {
        let (files, faults) = (BTreeMap::new(), Vec::new());
        Self { roots: roots.to_vec(), namespace: namespace.into(), files, faults, first: true }
    }

    /// Whether anything is different from before.
    pub fn look(&mut self) -> bool {
        let mut walk = Walk::default();
        for root in &self.roots {
            walk.folder(root, &[]);
        }
        let mut changed = walk.faults != self.faults;
        self.faults = walk.faults;
        let before = self.files.len();
        // What could not be looked at is not gone: only a folder that was listed says so.
        let gone =
            |path: &PathBuf| !walk.files.contains_key(path) && !walk.unreadable.iter().any(|d| path.starts_with(d));
        self.files.retain(|path, _| !gone(path));
        changed |= self.files.len() != before;
        for (path, stamp) in walk.files {
            let file = self.files.entry(path.clone()).or_default();
            let settled = file.seen == Some(stamp) || self.first;
            file.seen = Some(stamp);
            if file.read == Some(stamp) {
                file.waited = 0;
                continue;
            }
            file.waited += 1;
            if settled || file.waited >= PATIENCE {
                file.waited = 0;
                file.read = Some(stamp);
                changed |= file.load(&path, &self.namespace);
            }
        }
        changed |= self.first;
        self.first = false;
        changed
    }

    /// All of it; of two objects of one name the first counts, and the second is a fault.
    pub fn found(&self, generation: u64) -> Found {
        let mut objects: Vec<Arc<Object>> = Vec::new();
        let mut faults = self.faults.clone();
        let mut places: HashMap<ObjectRef, (Arc<str>, Pos)> = HashMap::new();
        for (path, file) in &self.files {
            faults.extend(file.faults.iter().cloned());
            for object in &file.objects {
                match places.entry(object.reference()) {
                    std::collections::hash_map::Entry::Vacant(free) => {
                        free.insert((object.file.clone(), object.node.at));
                        objects.push(object.clone());
                    }
                    std::collections::hash_map::Entry::Occupied(taken) => {
                        let (first, at) = taken.get();
                        let message = format!("{} is already in {first}:{}, which counts", taken.key(), at.line);
                        let mut diags = Diags::default();
                        diags.error(object.node.at, "metadata.name", message, Some("remove one of them".into()));
                        faults.extend(diags.0.into_iter().map(|diag| Fault { file: path.clone(), diag }));
                    }
                }
            }
        }
        Found { objects: Arc::new(Objects(objects)), faults, generation }
    }
}

impl File {
    /// Whether anything came of it.
    fn load(&mut self, path: &Path, namespace: &str) -> bool {
        let name: Arc<str> = path.to_string_lossy().into();
        let mut diags = Diags::default();
        let read = match text(path) {
            Ok(text) => object::read(&name, &text, namespace, &mut diags),
            Err(why) => {
                diags.error(Pos::default(), "", why, Some("a readable YAML file".into()));
                None
            }
        };
        let good = !diags.has_errors();
        let faults: Vec<Fault> = diags.0.into_iter().map(|diag| Fault { file: path.to_path_buf(), diag }).collect();
        let mut changed = faults != self.faults;
        if changed {
            for fault in &faults {
                tracing::warn!("{}:{}: {}", path.display(), fault.diag.at.line, fault.diag.message);
            }
        }
        self.faults = faults;
        // Nothing good before: what is good now is better than nothing.
        if let Some(objects) = read.filter(|_| good || self.objects.is_empty()) {
            let objects: Vec<Arc<Object>> = objects.into_iter().map(Arc::new).collect();
            changed |= objects != self.objects;
            self.objects = objects;
        }
        changed
    }
}

/// A file that a writer is still at, or a device by mistake, must not fill the memory.
fn text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let open = std::fs::File::open(path);
    let read = open.and_then(|f| f.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|e| format!("cannot be read: {e}"))?;
    String::from_utf8(bytes).map_err(|e| format!("not UTF-8 text at byte {}", e.utf8_error().valid_up_to()))
}

#[derive(Debug, Default)]
struct Walk {
    files: BTreeMap<PathBuf, Stamp>,
    unreadable: Vec<PathBuf>,
    faults: Vec<Fault>,
}

impl Walk {
    fn fault(&mut self, file: &Path, why: String) {
        let mut diags = Diags::default();
        diags.error(Pos::default(), "", why, None);
        self.faults.extend(diags.0.into_iter().map(|diag| Fault { file: file.to_path_buf(), diag }));
    }

    fn folder(&mut self, dir: &Path, above: &[(u64, u64)]) {
        let Ok(meta) = std::fs::metadata(dir) else {
            self.unreadable.push(dir.to_path_buf());
            return self.fault(dir, "is not there".into());
        };
        let own = (meta.dev(), meta.ino());
        if above.contains(&own) {
            return self.fault(dir, "a link that leads back to a folder above it".into());
        }
        if above.len() >= MAX_DEPTH {
            return self.fault(dir, format!("folders are read to a depth of {MAX_DEPTH}"));
        }
        let here: Vec<(u64, u64)> = above.iter().copied().chain([own]).collect();
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) => {
                self.unreadable.push(dir.to_path_buf());
                return self.fault(dir, format!("cannot be listed: {e}"));
            }
        };
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => paths.push(entry.path()),
                Err(e) => {
                    self.unreadable.push(dir.to_path_buf());
                    self.fault(dir, format!("cannot be listed to its end: {e}"));
                    break;
                }
            }
        }
        paths.sort();
        for path in paths {
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            // Editors' and writers' own, and the folders behind mounted ConfigMaps.
            if name.starts_with('.') {
                continue;
            }
            // Gone since it was listed, or a link to nowhere.
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            let yaml = path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"));
            if meta.is_dir() {
                self.folder(&path, &here);
            } else if meta.is_file() && yaml {
                if self.files.len() >= MAX_FILES {
                    return self.fault(dir, format!("more than {MAX_FILES} files; the rest is not read"));
                }
                self.files.insert(path, Stamp::of(&meta));
            }
        }
    }
}

/// Looks until nobody listens.
pub async fn watch(mut dirs: Dirs, out: watch::Sender<Arc<Found>>) {
    let mut generation = 0;
    loop {
        // File systems may be slow; nothing else waits for them.
        let looked = tokio::task::spawn_blocking(move || {
            let changed = dirs.look();
            (dirs, changed)
        });
        let changed;
        (dirs, changed) = match looked.await {
            Ok(looked) => looked,
            Err(error) => return tracing::error!(%error, "the folders are no longer watched"),
        };
        if changed {
            generation += 1;
            out.send_replace(Arc::new(dirs.found(generation)));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = out.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_testkit::dir::TempDir;

    fn service(name: &str) -> String {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n")
    }

    fn names(dirs: &Dirs) -> Vec<String> {
        dirs.found(1).objects.0.iter().map(|o| o.reference().to_string()).collect()
    }

    /// As the watch does, until a change has been seen and has settled.
    fn settle(dirs: &mut Dirs) -> bool {
        let first = dirs.look();
        first | dirs.look()
    }

    #[test]
    fn files_come_change_break_heal_and_go() {
        let temp = TempDir::new();
        temp.write("b.yaml", service("b"));
        temp.write(".hidden.yaml", service("hidden"));
        temp.write("readme.md", "no yaml");
        std::fs::create_dir(temp.join("deep")).unwrap();
        temp.write("deep/a.yml", service("a"));
        let mut dirs = Dirs::new(&[temp.path().to_path_buf()], "demo");
        assert!(dirs.look());
        assert_eq!(names(&dirs), ["service/b.demo", "service/a.demo"]);
        assert!(!settle(&mut dirs));

        temp.write("b.yaml", service("c"));
        assert!(settle(&mut dirs));
        assert_eq!(names(&dirs), ["service/c.demo", "service/a.demo"]);

        temp.write("b.yaml", service("d") + "---\nkind: [\n");
        assert!(settle(&mut dirs));
        assert_eq!(names(&dirs), ["service/c.demo", "service/a.demo"], "the last good one");
        let found = dirs.found(1);
        assert_eq!(found.faults.len(), 1);
        assert!(found.faults[0].file.ends_with("b.yaml") && found.faults[0].diag.at.line >= 5, "{:?}", found.faults);

        temp.write("b.yaml", service("d"));
        assert!(settle(&mut dirs));
        assert_eq!(names(&dirs), ["service/d.demo", "service/a.demo"]);
        assert!(dirs.found(1).faults.is_empty());

        std::fs::remove_file(temp.join("b.yaml")).unwrap();
        assert!(settle(&mut dirs));
        assert_eq!(names(&dirs), ["service/a.demo"]);
    }

    #[test]
    fn one_name_twice_and_folders_that_are_not_there() {
        let temp = TempDir::new();
        temp.write("a.yaml", service("a"));
        temp.write("b.yaml", service("a") + "---\n" + &service("b"));
        let missing = temp.join("missing");
        let mut dirs = Dirs::new(&[temp.path().to_path_buf(), missing.clone()], "demo");
        assert!(dirs.look());
        assert_eq!(names(&dirs), ["service/a.demo", "service/b.demo"]);
        let faults = dirs.found(1).faults;
        assert!(faults.iter().any(|f| f.file == missing), "{faults:?}");
        assert!(faults.iter().any(|f| f.diag.message.contains("a.yaml:1")), "{faults:?}");
        std::fs::create_dir(&missing).unwrap();
        assert!(settle(&mut dirs));
        assert_eq!(dirs.found(1).faults.len(), 1);
    }

    #[test]
    fn links_in_circles_and_links_that_are_turned() {
        let temp = TempDir::new();
        for (version, name) in [("..1", "one"), ("..2", "two")] {
            std::fs::create_dir(temp.join(version)).unwrap();
            temp.write(&format!("{version}/a.yaml"), service(name));
        }
        let turn = |to: &str| {
            std::os::unix::fs::symlink(to, temp.join("..next")).unwrap();
            std::fs::rename(temp.join("..next"), temp.join("..data")).unwrap();
        };
        turn("..1");
        std::os::unix::fs::symlink("..data/a.yaml", temp.join("a.yaml")).unwrap();
        let mut dirs = Dirs::new(&[temp.path().to_path_buf()], "demo");
        dirs.look();
        assert_eq!(names(&dirs), ["service/one.demo"]);
        turn("..2");
        assert!(settle(&mut dirs));
        assert_eq!(names(&dirs), ["service/two.demo"]);
        std::os::unix::fs::symlink(temp.path(), temp.join("circle")).unwrap();
        assert!(settle(&mut dirs));
        assert!(dirs.found(1).faults.iter().any(|f| f.diag.message.contains("leads back")));
        assert_eq!(names(&dirs), ["service/two.demo"]);
    }
}
