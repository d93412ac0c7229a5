//! The lab's folder: every manifest in it, and what could not be read.

use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use weft_dialects::object::{self, Object, ObjectRef, Objects};
use weft_policy::diag::Diags;
use weft_policy::doc::{Node, Value};

/// Where objects without a namespace live, as with `kubectl`.
pub const DEFAULT_NAMESPACE: &str = "default";

#[derive(Default)]
pub struct Manifests {
    pub objects: Objects,
    /// `file:line: message`
    pub problems: Vec<String>,
}

/// A folder of manifests as it was at the last look. A file that cannot be read, or is half written, keeps what it last said:
/// a slip of the pen stops no pod.
#[derive(Default)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, Contents>,
}

#[derive(Default)]
struct Contents {
    stamp: Option<(SystemTime, u64)>,
    objects: Vec<Arc<Object>>,
    problems: Vec<String>,
}

impl Folder {
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Whether anything is different from before.
    pub fn look(&mut self) -> std::io::Result<bool> {
        let mut found = BTreeMap::new();
        walk(&self.path, 0, &mut found)?;
        let before = self.files.len();
        self.files.retain(|path, _| found.contains_key(path));
        let mut changed = self.files.len() != before;
        for (path, stamp) in found {
            let file = self.files.entry(path.clone()).or_default();
            if file.stamp != Some(stamp) {
                file.stamp = Some(stamp);
                file.read(&path);
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Everything the files say, in their order.
    pub fn manifests(&self) -> Manifests {
        let mut all = Manifests::default();
        let mut seen: BTreeMap<ObjectRef, String> = BTreeMap::new();
        for file in self.files.values() {
            all.problems.extend(file.problems.iter().cloned());
            for object in &file.objects {
                let at = format!("{}:{}", object.file, object.node.at.line);
                match seen.entry(object.reference()) {
                    Entry::Vacant(free) => {
                        free.insert(at);
                        all.objects.0.push(object.clone());
                    }
                    Entry::Occupied(first) => {
                        let (name, first) = (first.key(), first.get());
                        all.problems.push(format!("{at}: {name} is at {first} already; that one counts"));
                    }
                }
            }
        }
        all
    }
}

impl Contents {
    fn read(&mut self, path: &Path) {
        let file: Arc<str> = path.to_string_lossy().into();
        let mut diags = Diags::default();
        let text = std::fs::read_to_string(path).map_err(|e| format!("{file}: {e}"));
        let found = text.map(|text| object::read(&file, &text, DEFAULT_NAMESPACE, &mut diags));
        self.problems = diags.0.iter().map(|d| format!("{file}: {d}")).collect();
        match found {
            Err(problem) => self.problems.push(problem),
            Ok(found) if self.objects.is_empty() || !diags.has_errors() => {
                self.objects = found.unwrap_or_default().into_iter().map(Arc::new).collect();
            }
            Ok(_) => {}
        }
    }
}

fn walk(folder: &Path, depth: usize, found: &mut BTreeMap<PathBuf, (SystemTime, u64)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // A file may be gone by now: the next look will tell.
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if meta.is_dir() && depth < 8 {
            walk(&path, depth + 1, found)?;
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            found.insert(path, (meta.modified()?, meta.len()));
        }
    }
    Ok(())
}

/// The node as JSON, whose way of looking into what may not be there suits manifests.
pub fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(n) => (*n).into(),
        Value::Float(x) => (*x).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(items) => Json::Object(items.iter().map(|(key, _, node)| (key.clone(), json(node))).collect()),
    }
}

/// Text, or what YAML took for something else where text was meant.
pub fn text(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(n) => Some(n.to_string()),
        Json::Bool(b) => Some(b.to_string()),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

pub fn list(value: &Json) -> &[Json] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A map of texts: labels, selectors, a ConfigMap's data.
pub fn texts(value: &Json) -> BTreeMap<String, String> {
    let items = value.as_object().into_iter().flatten();
    items.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

pub fn port(value: &Json) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_testkit::dir::TempDir;

    #[test]
    fn a_broken_file_keeps_what_it_said() {
        let dir = TempDir::new();
        let service = |name: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n");
        dir.write("a.yaml", service("web"));
        dir.write("b.yml", service("web"));
        dir.write("c.txt", service("other"));
        let mut folder = Folder::new(dir.path());
        assert!(folder.look().unwrap());
        assert!(!folder.look().unwrap());
        let found = folder.manifests();
        assert_eq!(found.objects.0.len(), 1);
        assert!(found.problems[0].contains("b.yml:1: service/web.default is at"), "{:?}", found.problems);
        dir.write("a.yaml", "apiVersion: v1\nkind: [Serv");
        assert!(folder.look().unwrap());
        let found = folder.manifests();
        assert!(found.objects.0[0].file.ends_with("a.yaml"), "{:?}", found.objects);
        assert!(found.problems[0].contains("a.yaml: line "), "{:?}", found.problems);
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert!(folder.look().unwrap());
        assert!(folder.manifests().objects.0[0].file.ends_with("b.yml"));
    }
}
