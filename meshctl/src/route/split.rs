//! `route split`: shares of a Service's requests.

use super::delete::others;
use super::mesh::Way;
use super::set::{candidates, one};
use super::shares::Share;
use super::{Which, create, gateway, istio, linkerd, show, smi};
use crate::error::{Error, Result};
use crate::objects::{Mesh, Store, Writing};
use weft_dialects::object::ObjectRef;
use weft_dialects::reader::Source;
use weft_policy::doc::Node;
use weft_policy::id::ServiceId;

/// What an edit of shares has to know besides the object.
pub struct Context<'m> {
    pub mesh: &'m Mesh,
    pub service: &'m ServiceId,
    /// Namespace of the object.
    pub namespace: &'m str,
    /// The ports of the Service that it is about.
    pub ports: Vec<u16>,
}

impl Context<'_> {
    /// The Service that a name means, seen from the object's namespace.
    pub fn service_named(&self, name: &str) -> Option<ServiceId> {
        let (short, namespace) = name.split_once('.').unwrap_or((name, self.namespace));
        let id = ServiceId::new(namespace, short);
        self.mesh.world.services.contains_key(&id).then_some(id)
    }

    /// A destination that is not there, and what could have been meant.
    pub fn unknown(&self, name: &str, why: &str, subsets: &[String]) -> Error {
        let services = self.mesh.world.services.keys().filter(|id| *id.namespace == *self.namespace);
        let known: Vec<&str> = subsets.iter().map(String::as_str).chain(services.map(|id| &*id.name)).collect();
        let hint = match weft_policy::doc::nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("one of {}", known.join(", ")),
        };
        Error::new(why.to_string(), hint)
    }
}

pub fn run(
    store: &Store,
    typed: (&str, Option<&str>),
    which: &Which,
    shares: &[Share],
    writing: Writing,
) -> Result<()> {
    distinct(shares)?;
    let mesh = store.mesh();
    let id = mesh.find(typed.0, typed.1)?;
    let ways = candidates(mesh, id, which)?;
    let mut draft = store.draft();
    let mut done = Vec::new();
    match one(&ways, which, says_where)? {
        Some((source, of)) => {
            let mut ports: Vec<u16> = of.iter().map(|w| w.port).collect();
            ports.dedup();
            let object = &source.object;
            let now = draft.find(object).ok_or_else(|| Error::from(format!("{object} is not there any more")))?;
            let context = Context { mesh, service: id, namespace: &object.namespace, ports };
            let mut node = now.node.clone();
            edit(&mut node, object, &source.field, shares, &context)?;
            done.push(draft.edit(&now, &node)?);
            done.extend(others(&now, id));
        }
        None => done.extend(create::split(&mut draft, mesh, id, which, shares)?),
    }
    let change = draft.done();
    let after = &change.mesh;
    let line = in_effect(after, id, which, shares);
    match line {
        Ok(line) => done.push(line),
        Err(e) if !writing.force => return Err(e),
        Err(_) => {}
    }
    change.finish(writing, &done)
}

fn distinct(shares: &[Share]) -> Result<()> {
    if let Some((_, twice)) = shares.iter().enumerate().find(|(i, s)| shares[..*i].iter().any(|o| o.name == s.name)) {
        return Err(Error::new(format!("{} is named twice", twice.name), "each name once"));
    }
    match shares.iter().any(|s| s.weight > 0) {
        true => Ok(()),
        false => Err(Error::new("nobody would get any request", "a weight above 0 for one of them")),
    }
}

/// A TrafficPolicy and annotations say nothing of it, and neither does a split of what it does not match.
fn says_where<'m>(way: &Way<'m>) -> Option<&'m Source> {
    let kinds = ["VirtualService", "HTTPRoute", "GRPCRoute", "TrafficSplit", "ServiceProfile"];
    let split_of_others = |s: &&Source| s.object.kind == "TrafficSplit" && way.route.get("to").is_none();
    way.other("to").or(way.from()).filter(|s| kinds.contains(&&*s.object.kind) && !split_of_others(s))
}

fn edit(node: &mut Node, object: &ObjectRef, field: &str, shares: &[Share], context: &Context<'_>) -> Result<()> {
    match &*object.kind {
        "VirtualService" => istio::split(node, field, shares, context),
        "HTTPRoute" | "GRPCRoute" => gateway::split(node, object, field, shares, context),
        "TrafficSplit" => smi::split(node, shares, context),
        _ => linkerd::split(node, shares, context),
    }
}

/// What will be, or who keeps it from being.
fn in_effect(mesh: &Mesh, id: &ServiceId, which: &Which, shares: &[Share]) -> Result<String> {
    let total: u64 = shares.iter().map(|s| u64::from(s.weight)).sum();
    let ways = candidates(mesh, id, which)?;
    let of = one(&ways, which, says_where)?.map(|(_, of)| of).unwrap_or_default();
    let as_wanted = |way: &Way<'_>| {
        let to = way.to();
        let sum: u64 = to.iter().map(|(_, w)| w).sum();
        let share = |s: &Share| -> u64 { to.iter().filter(|(t, _)| t.is(&s.name)).map(|(_, w)| w).sum() };
        sum > 0 && shares.iter().all(|s| share(s) * total == u64::from(s.weight) * sum)
    };
    match (of.first(), of.iter().find(|w| !as_wanted(w))) {
        (Some(way), None) => Ok(format!("{}: {}", id.name, show::to(way))),
        (_, way) => {
            let says = way.map_or("the Service itself".into(), show::to);
            let who = way.and_then(|w| w.other("to").or(w.from()));
            let who = who.map(|s| format!(", as {} says", s.object)).unwrap_or_default();
            let message = format!("refused, for it would not be in effect: requests would go to {says}{who}");
            Err(Error::new(message, format!("meshctl route show {}", id.name)))
        }
    }
}
