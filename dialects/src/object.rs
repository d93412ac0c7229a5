//! What comes in: objects as somebody wrote them, each with the place it stands at.

use std::collections::BTreeMap;
use std::sync::Arc;
use weft_policy::diag::Diags;
use weft_policy::doc::{Node, Value};
use weft_policy::yaml;

/// One manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The file it stands in, as it was named to us.
    pub file: Arc<str>,
    /// `networking.istio.io/v1`, `v1`.
    pub api_version: String,
    pub kind: String,
    /// Empty for kinds that live in none.
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339; of files the modification time would be no better than their order, which `Objects` keeps.
    pub created: Option<String>,
    /// All of it, `apiVersion` and `metadata` included.
    pub node: Node,
}

/// Names an object for people, as `kubectl` does: `virtualservice/reviews.demo`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// `networking.istio.io`; empty for the core group.
    pub group: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl Object {
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    pub fn version(&self) -> &str {
        self.api_version.split_once('/').map_or(&self.api_version, |(_, version)| version)
    }

    pub fn reference(&self) -> ObjectRef {
        ObjectRef {
            group: self.group().into(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.to_ascii_lowercase(), self.name)?;
        if self.namespace.is_empty() { Ok(()) } else { write!(f, ".{}", self.namespace) }
    }
}

/// Everything there is, in the order in which it was given: where age decides and nobody knows it, order does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects(pub Vec<Arc<Object>>);

impl Objects {
    pub fn of<'a>(&'a self, group: &'a str, kind: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        self.0.iter().filter(move |o| o.kind == kind && o.group() == group)
    }
}

/// The objects of a file. `List`s are taken apart. What is no object is reported, and the others are taken all the same;
/// `None` if the text is no YAML.
pub fn read(file: &Arc<str>, text: &str, default_namespace: &str, diags: &mut Diags) -> Option<Vec<Object>> {
    let mut found = Vec::new();
    for node in yaml::documents(text, diags)? {
        let listed = match field(&node, "items").map(|n| &n.value) {
            Some(Value::List(items)) if word(&node, "kind").is_some_and(|k| k.ends_with("List")) => items.clone(),
            _ => vec![node],
        };
        found.extend(listed.into_iter().filter_map(|node| object(file, node, default_namespace, diags)));
    }
    Some(found)
}

fn object(file: &Arc<str>, node: Node, default_namespace: &str, diags: &mut Diags) -> Option<Object> {
    let (Some(api_version), Some(kind)) = (word(&node, "apiVersion"), word(&node, "kind")) else {
        let hint = "a Kubernetes object has apiVersion and kind";
        diags.error(node.at, "", "no Kubernetes object", Some(hint.into()));
        return None;
    };
    let meta = field(&node, "metadata");
    let Some(name) = meta.and_then(|m| word(m, "name")) else {
        diags.error(node.at, "metadata.name", format!("this {kind} has no name"), Some("metadata: {name: ...}".into()));
        return None;
    };
    let texts = |name: &str| match meta.and_then(|m| field(m, name)).map(|n| &n.value) {
        Some(Value::Map(items)) => items.iter().filter_map(|(k, _, v)| Some((k.clone(), text(v)?))).collect(),
        _ => BTreeMap::new(),
    };
    let (labels, annotations) = (texts("labels"), texts("annotations"));
    let namespace = match meta.and_then(|m| word(m, "namespace")) {
        _ if is_cluster_wide(&kind) => String::new(),
        given => given.unwrap_or_else(|| default_namespace.to_string()),
    };
    let created = meta.and_then(|m| word(m, "creationTimestamp"));
    Some(Object { file: file.clone(), api_version, kind, namespace, name, labels, annotations, created, node })
}

fn is_cluster_wide(kind: &str) -> bool {
    matches!(
        kind,
        "Namespace"
            | "Node"
            | "ServiceCIDR"
            | "GatewayClass"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "CustomResourceDefinition"
    )
}

/// A field of a map.
pub fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    match &node.value {
        Value::Map(items) => items.iter().find(|(key, ..)| key == name).map(|(.., node)| node),
        _ => None,
    }
}

fn word(node: &Node, name: &str) -> Option<String> {
    field(node, name).and_then(text)
}

/// Labels and annotations are text; what YAML took for something else is what people meant to be text.
fn text(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) => Some(text.clone()),
        Value::Int(n) => Some(n.to_string()),
        Value::Float(x) => Some(x.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> (Vec<Object>, Diags) {
        let mut diags = Diags::default();
        (read(&"a.yaml".into(), text, "demo", &mut diags).unwrap_or_default(), diags)
    }

    #[test]
    fn objects_of_a_file() {
        let (found, diags) = read_all(
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {version: 1.5, on: true}}\n---\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: prod}}\n\
             - {apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web, namespace: prod}}\n",
        );
        assert!(diags.0.is_empty(), "{:?}", diags.0);
        let names: Vec<String> = found.iter().map(|o| o.reference().to_string()).collect();
        assert_eq!(names, ["service/web.demo", "namespace/prod", "virtualservice/web.prod"]);
        assert_eq!(found[0].labels["version"], "1.5");
        assert_eq!((found[2].group(), found[2].version()), ("networking.istio.io", "v1"));
        assert_eq!(found[2].node.at.line, 10);
    }

    #[test]
    fn what_is_no_object_hides_no_other() {
        let (found, diags) =
            read_all("a: 1\n---\napiVersion: v1\nkind: Service\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n");
        assert_eq!(found.len(), 1);
        let said: Vec<String> = diags.0.iter().map(ToString::to_string).collect();
        assert!(said[0].starts_with("line 1: error: no Kubernetes object"), "{said:?}");
        assert!(said[1].starts_with("line 3: error: metadata.name: this Service has no name"), "{said:?}");
    }
}
