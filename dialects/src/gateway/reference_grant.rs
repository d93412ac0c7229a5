//! ReferenceGrant: whose routes may send requests into its namespace. Without one, nobody's of another namespace may.

use crate::builder::Builder;
use crate::reader::{Field, Reader};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Of the grant, and of what it permits to refer to.
    namespace: String,
    from: Vec<From>,
    to: Vec<To>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct From {
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct To {
    group: String,
    kind: String,
    /// `None`: all of that kind.
    name: Option<String>,
}

/// Who refers.
#[derive(Clone, Copy, Debug)]
pub struct Referrer<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
}

impl Grant {
    pub fn permits(&self, referrer: Referrer<'_>, namespace: &str, service: &str) -> bool {
        let from =
            |f: &From| (&*f.group, &*f.kind, &*f.namespace) == (referrer.group, referrer.kind, referrer.namespace);
        let to =
            |t: &To| t.group.is_empty() && t.kind == "Service" && t.name.as_ref().is_none_or(|name| name == service);
        self.namespace == namespace && self.from.iter().any(from) && self.to.iter().any(to)
    }
}

pub fn translate(reader: &Reader<'_>, builder: &mut Builder<'_>) {
    let spec = reader.spec();
    let from = |f: &Field<'_>| {
        Some(From { group: text(f, "group")?, kind: text(f, "kind")?, namespace: text(f, "namespace")? })
    };
    let to = |f: &Field<'_>| {
        let name = f.get("name").map_or(Some(None), |n| n.text().map(Some))?;
        Some(To { group: text(f, "group")?, kind: text(f, "kind")?, name })
    };
    // An entry that cannot be read permits nothing.
    builder.grants.push(Grant {
        namespace: reader.object.namespace.clone(),
        from: spec.list("from").iter().filter_map(from).collect(),
        to: spec.list("to").iter().filter_map(to).collect(),
    });
}

fn text(field: &Field<'_>, name: &str) -> Option<String> {
    match field.get(name) {
        Some(field) => field.text(),
        None => field.fail(format!("has no {name}"), ""),
    }
}
