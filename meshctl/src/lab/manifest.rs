//! The lab's folder: every manifest in it, and what could not be read. It is read as the control plane reads it.

use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use weft_control::source::dir::Dirs;
use weft_dialects::object::Objects;
use weft_policy::doc::{Node, Value};

/// Where objects without a namespace live, as with `kubectl`.
pub const DEFAULT_NAMESPACE: &str = "default";

#[derive(Default)]
pub struct Manifests {
    pub objects: Arc<Objects>,
    /// `file:line: message`
    pub problems: Vec<String>,
}

/// A folder of manifests as it was at the last look. A file that cannot be read, or is half written, keeps what it last said:
/// a slip of the pen stops no pod.
pub struct Folder(Dirs);

impl Folder {
    /// After a first look, by which it is there and can be listed.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        std::fs::read_dir(path)?;
        let mut dirs = Dirs::new(&[path.to_path_buf()], DEFAULT_NAMESPACE);
        dirs.look();
        Ok(Self(dirs))
    }

    /// Whether anything is different from before.
    pub fn look(&mut self) -> bool {
        self.0.look()
    }

    /// Everything the files say, in their order.
    pub fn manifests(&self) -> Manifests {
        Manifests::of(&self.0)
    }
}

impl Manifests {
    pub fn of(dirs: &Dirs) -> Self {
        let found = dirs.found(0);
        let problem = |fault: &weft_control::source::Fault| {
            let diag = &fault.diag;
            let field = if diag.field.is_empty() { String::new() } else { format!("{}: ", diag.field) };
            match diag.at.line {
                0 => format!("{}: {field}{}", fault.file.display(), diag.message),
                line => format!("{}:{line}: {field}{}", fault.file.display(), diag.message),
            }
        };
        Self { problems: found.faults.iter().map(problem).collect(), objects: found.objects }
    }
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
