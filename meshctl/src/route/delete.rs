//! `route delete`: whatever routes a Service, taken away.

use super::mesh::Way;
use super::show::governors;
use crate::edit::value;
use crate::error::{Error, Result};
use crate::objects::{Store, Writing};
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
                done.push(format!("{object} deleted ({})", now.file));
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
            Some(next) => format!("{}: {} counts now ({}:{})", id.name, next.object, next.file, next.at.line),
            None => format!("{}: requests go to the Service itself", id.name),
        });
    }
    change.finish(writing, &done)
}

/// The object without this Service, where it is for others too.
fn without(object: &Object, id: &ServiceId) -> Option<Node> {
    let (list, is): (&str, &dyn Fn(&Node) -> bool) = match &*object.kind {
        "VirtualService" => ("hosts", &|host: &Node| {
            let named = value::word(host).and_then(|h| service_of(&h, &object.namespace, "cluster.local"));
            named.as_ref() == Some(id)
        }),
        "HTTPRoute" | "GRPCRoute" => ("parentRefs", &|parent: &Node| {
            let namespace = value::word_at(parent, "namespace").unwrap_or_else(|| object.namespace.clone());
            let service = value::word_at(parent, "kind").is_some_and(|k| k == "Service");
            service && value::word_at(parent, "name").is_some_and(|n| ServiceId::new(&namespace, &n) == *id)
        }),
        _ => return None,
    };
    let mut node = object.node.clone();
    let spec = value::get_mut(&mut node, "spec")?;
    let items = value::items_mut(value::get_mut(spec, list))?;
    let before = items.len();
    items.retain(|item| !is(item));
    // One that means it by a wildcard is not for it alone, and not to be taken apart.
    (!items.is_empty() && items.len() < before).then_some(node)
}
