//! `route delete`: whatever routes a Service, taken away.

use super::mesh::Way;
use super::show::governors;
use crate::edit::value;
use crate::error::{Error, Result};
use crate::objects::{self, Store, Writing};
use weft_dialects::Object;
use weft_dialects::builder::service_of;
use weft_policy::doc::Node;
use weft_policy::id::ServiceId;

const ROUTES: [&str; 5] = ["VirtualService", "HTTPRoute", "GRPCRoute", "TrafficSplit", "ServiceProfile"];

pub fn run(store: &Store, typed: (&str, Option<&str>), writing: Writing) -> Result<()> {
    let mesh = store.mesh();
    let id = mesh.find(typed.0, typed.1)?;
    let ways: Vec<Way<'_>> = (0..mesh.variants(id).len()).flat_map(|v| mesh.ways(id, v)).collect();
    let sources = governors(&ways).into_iter().filter(|s| ROUTES.contains(&&*s.object.kind));
    let objects: Vec<_> = sources.map(|s| s.object.clone()).collect();
    if objects.is_empty() {
        let hint = match ways.is_empty() {
            true => format!("nothing is to be done: requests go to {} itself", id.name),
            false => format!("meshctl route show {} tells where its retries and timeouts are", id.name),
        };
        return Err(Error::new(format!("no object routes {}", id.name), hint));
    }
    let mut draft = store.draft();
    let mut done = Vec::new();
    for object in objects {
        let Some(now) = draft.find(&object) else { continue };
        match without(&now, id) {
            Some(less) => {
                done.push(format!("{}: it is for others still", draft.edit(&now, &less)?));
            }
            None => {
                draft.remove(&object)?;
                let file = if now.file.is_empty() { String::new() } else { format!(" ({})", now.file) };
                done.push(format!("{object} deleted{file}"));
            }
        }
    }
    let change = draft.done();
    let after = &change.mesh;
    if after.variants(id).is_empty() {
        done.push(format!("{}: nobody calls it by this name any more", id.name));
    } else {
        let left: Vec<Way<'_>> = (0..after.variants(id).len()).flat_map(|v| after.ways(id, v)).collect();
        done.push(match governors(&left).first() {
            Some(next) => format!("{}: {} counts now{}", id.name, next.object, objects::after(&next.file, next.at)),
            None => format!("{}: requests go to the Service itself", id.name),
        });
    }
    change.finish(writing, &done)
}

/// Where a route names whom it is for, and which of these mean a Service.
fn whom<'o>(object: &'o Object, id: &'o ServiceId) -> Option<(&'static str, impl Fn(&Node) -> bool + 'o)> {
    let list = match &*object.kind {
        "VirtualService" => "hosts",
        "HTTPRoute" | "GRPCRoute" => "parentRefs",
        _ => return None,
    };
    let means = move |item: &Node| match value::word(item) {
        Some(host) => service_of(&host, &object.namespace, "cluster.local").as_ref() == Some(id),
        None => {
            let namespace = value::word_at(item, "namespace").unwrap_or_else(|| object.namespace.clone());
            let service = value::word_at(item, "kind").is_some_and(|k| k == "Service");
            service && value::word_at(item, "name").is_some_and(|n| ServiceId::new(&namespace, &n) == *id)
        }
    };
    Some((list, means))
}

/// Whoever else a change of this object is for, in words.
pub fn others(object: &Object, id: &ServiceId) -> Option<String> {
    let (list, means) = whom(object, id)?;
    let spec = value::get(&object.node, "spec")?;
    let items = value::items(value::get(spec, list)).iter().filter(|item| !means(item));
    let names: Vec<String> = items.filter_map(|i| value::word(i).or_else(|| value::word_at(i, "name"))).collect();
    (!names.is_empty()).then(|| format!("{} is for {} too", object.reference(), names.join(", ")))
}

/// The object without this Service, where it is for others too.
fn without(object: &Object, id: &ServiceId) -> Option<Node> {
    let (list, means) = whom(object, id)?;
    let mut node = object.node.clone();
    let items = value::items_mut(value::get_mut(value::get_mut(&mut node, "spec")?, list))?;
    let before = items.len();
    items.retain(|item| !means(item));
    // One that means it by a wildcard is not for it alone, and not to be taken apart.
    (!items.is_empty() && items.len() < before).then_some(node)
}
