//! Who said it: the object, file, line and field that a part of a document came from.

use super::mesh::Mesh;
use serde_json::{Value as Json, json};
use weft_dialects::ledger::{Document, Verdict};
use weft_dialects::object::Object;
use weft_dialects::reader::Source;

/// What the dialects call the parts of our documents, below the rule or the policy that they are in; `[*]` is any element.
const CALLED: [(&str, &[&str]); 18] = [
    ("to", &["route", "backendRefs", "backends", "dstOverrides"]),
    ("redirect", &["redirect", "filters[*].requestRedirect"]),
    ("respond", &["directResponse"]),
    ("rewrite", &["rewrite", "filters[*].urlRewrite"]),
    ("requestHeaders", &["headers.request", "filters[*].requestHeaderModifier"]),
    ("responseHeaders", &["headers.response", "filters[*].responseHeaderModifier"]),
    ("fault", &["fault"]),
    ("mirror", &["mirror", "mirrors", "filters[*].requestMirror"]),
    ("cors", &["corsPolicy", "filters[*].cors"]),
    ("timeout", &["timeout", "timeouts"]),
    ("retry", &["retry", "retries", "isRetryable"]),
    ("balance", &["balance", "loadBalancer"]),
    ("breaker", &["breaker", "connectionPool"]),
    ("connections", &["connections", "connectionPool"]),
    ("outlier", &["outlier", "outlierDetection"]),
    ("retryBudget", &["retryBudget"]),
    ("tls", &["tls"]),
    ("mtls", &["mtls", "portLevelMtls"]),
];

/// Annotations by what they say.
const ANNOTATED: [(&str, &str); 3] =
    [("retry", "retry.linkerd.io/"), ("timeout", "timeout.linkerd.io/"), ("outlier", "balancer.linkerd.io/")];

impl Mesh {
    /// Who said a part of a document: `ports[0].routes[1]` and in it `retry`. Several, where one filled in what another left
    /// open. None: nobody, it is the default.
    pub fn origins(&self, document: &Document, around: &str, part: &str) -> Vec<Json> {
        let Some(all) = self.ledger.origins.get(document) else { return Vec::new() };
        let path = if part.is_empty() { around.to_string() } else { format!("{around}.{part}") };
        let mut found: Vec<&Source> = Vec::new();
        let inside = all.iter().filter(|(p, _)| p.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')));
        found.extend(inside.map(|(_, source)| source).filter(|_| !part.is_empty()));
        match all.get(&path) {
            Some(own) => found.insert(0, own),
            None => found.extend(all.get(around).filter(|own| self.says(own, part))),
        }
        if found.is_empty() {
            found.extend(all.get(around));
        }
        let mut told: Vec<Json> = Vec::new();
        for source in found {
            let origin = self.place(source, part);
            if !told.contains(&origin) {
                told.push(origin);
            }
        }
        told
    }

    fn object(&self, source: &Source) -> Option<&Object> {
        self.objects.0.iter().find(|o| o.reference() == source.object).map(|o| &**o)
    }

    /// Whether an object has the field at all.
    fn says(&self, source: &Source, part: &str) -> bool {
        part.is_empty() || self.object(source).and_then(|object| field(object, source, part)).is_some()
    }

    pub fn place(&self, source: &Source, part: &str) -> Json {
        let found = self.object(source).and_then(|object| {
            let field = field(object, source, part)?;
            let line = object.node.locate(&field).line;
            Some((field, line))
        });
        let (field, line) = found.unwrap_or_else(|| (source.field.clone(), source.at.line));
        let below =
            |f: &str| f.strip_prefix(&field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        let entries = self.ledger.entries.iter().filter(|e| e.object == source.object && below(&e.field));
        let differs: Vec<Json> = entries
            .filter_map(|e| match &e.verdict {
                Verdict::Differently(how) => Some(json!({"field": e.field, "line": e.at.line, "how": how})),
                _ => None,
            })
            .collect();
        let mut out = json!({"object": source.object.to_string(), "file": &*source.file, "line": line, "field": field});
        if !differs.is_empty() {
            out["differs"] = differs.into();
        }
        out
    }

    /// An object as a whole.
    pub fn whole(&self, group: &str, kind: &str, namespace: &str, name: &str) -> Option<Json> {
        let mut all = self.objects.of(group, kind);
        let object = all.find(|o| o.namespace == namespace && o.name == name)?;
        let (line, file) = (object.node.at.line, &*object.file);
        Some(json!({"object": object.reference().to_string(), "file": file, "line": line, "field": ""}))
    }
}

/// The field of an object that says a part of what a source is about.
fn field(object: &Object, source: &Source, part: &str) -> Option<String> {
    let block = part.split('.').next().unwrap_or(part);
    if source.field.starts_with("metadata.annotations") {
        let (_, begins) = ANNOTATED.iter().find(|(b, _)| *b == block)?;
        let name = object.annotations.keys().find(|name| name.starts_with(begins))?;
        return Some(format!("metadata.annotations.{name}"));
    }
    let (_, names) = CALLED.iter().find(|(b, _)| *b == block)?;
    // A subset has its policy one level deeper, and the rules of some kinds stand beside it.
    let around = ["", ".trafficPolicy"].map(|more| format!("{}{more}", source.field));
    let candidates = around.iter().flat_map(|around| names.iter().map(move |name| format!("{around}.{name}")));
    candidates.flat_map(|path| each(&path)).find(|path| object.node.find(path).is_some())
}

/// A path with `[*]` for as many elements as filters may have.
fn each(path: &str) -> Vec<String> {
    match path.contains("[*]") {
        true => (0..16).map(|i| path.replace("[*]", &format!("[{i}]"))).collect(),
        false => vec![path.to_string()],
    }
}
