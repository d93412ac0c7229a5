//! What `-f` names: files, folders, standard input.

use crate::error::{Error, Result};
use crate::lab::manifest::DEFAULT_NAMESPACE;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_control::source::dir::Dirs;
use weft_dialects::{Object, object};
use weft_policy::diag::Diags;
use weft_policy::yaml;

/// A text with objects.
pub struct Given {
    pub name: Arc<str>,
    /// What a file with it would be called; none for standard input.
    pub stem: Option<String>,
    pub text: String,
}

pub fn read(files: &[PathBuf]) -> Result<Vec<Given>> {
    let mut out = Vec::new();
    for file in files {
        if file.as_os_str() == "-" {
            out.push(Given {
                name: "standard input".into(),
                stem: None,
                text: bounded(std::io::stdin(), "standard input")?,
            });
        } else if file.is_dir() {
            let inside = folder(file);
            if inside.is_empty() {
                return Err(Error::new(format!("{} holds no YAML", file.display()), "a folder of manifests"));
            }
            for file in inside {
                out.push(one(&file)?);
            }
        } else {
            out.push(one(file)?);
        }
    }
    Ok(out)
}

/// Every file of it that a lab would read.
fn folder(dir: &Path) -> Vec<PathBuf> {
    let mut dirs = Dirs::new(&[dir.to_path_buf()], DEFAULT_NAMESPACE);
    dirs.look();
    let found = dirs.found(0);
    let files = found.objects.0.iter().map(|o| PathBuf::from(&*o.file));
    let mut files: Vec<PathBuf> = files.chain(found.faults.into_iter().map(|f| f.file)).collect();
    files.sort();
    files.dedup();
    files
}

fn one(file: &Path) -> Result<Given> {
    let shown = file.display().to_string();
    let open = std::fs::File::open(file)
        .map_err(|e| Error::new(format!("{shown}: {e}"), "a file, a folder, or - for standard input"))?;
    let stem = file.file_stem().map(|s| s.to_string_lossy().into_owned());
    Ok(Given { text: bounded(open, &shown)?, name: shown.into(), stem })
}

fn bounded(from: impl Read, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let read = from.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::from(format!("{name}: {e}")))?;
    String::from_utf8(bytes).map_err(|_| Error::new(format!("{name} is no UTF-8 text"), "a YAML or JSON file"))
}

impl Given {
    /// All of them, or what is wrong.
    pub fn objects(&self, namespace: &str) -> Result<Vec<Object>> {
        let mut diags = Diags::default();
        let found = object::read(&self.name, &self.text, namespace, &mut diags).unwrap_or_default();
        if diags.has_errors() {
            let all: Vec<String> = diags.0.iter().map(|d| format!("{}: {d}", self.name)).collect();
            return Err(Error::new(all.join("\n  "), "mend the file; nothing was done"));
        }
        if found.is_empty() {
            return Err(Error::new(format!("{} holds no objects", self.name), "objects as Kubernetes has them"));
        }
        Ok(found)
    }
}
