//! The mesh that a folder's objects make, and who says what about one Service in it. Nothing is decided here: which object a
//! route comes from, and who won, is what the translation itself has written down.

use crate::error::{Error, Result};
use crate::objects::Mesh;
use serde_json::Value as Json;
use weft_dialects::ledger::Document;
use weft_dialects::reader::Source;
use weft_dialects::world::Variant;
use weft_policy::doc::nearest;
use weft_policy::id::ServiceId;

/// A route as some clients have it.
#[derive(Clone, Copy)]
pub struct Way<'m> {
    pub service: &'m ServiceId,
    pub port: u16,
    /// As in docs/config-file.md.
    pub route: &'m Json,
    mesh: &'m Mesh,
    variant: usize,
    /// Which of `ports`, and which of its `routes`.
    index: (usize, usize),
}

impl Mesh {
    /// The Service that is meant: `web`, `web.demo`, `svc/web`.
    pub fn find(&self, typed: &str, namespace: Option<&str>) -> Result<&ServiceId> {
        let name = typed.strip_prefix("svc/").or(typed.strip_prefix("service/")).unwrap_or(typed);
        let named = |id: &&ServiceId| {
            let split = || name.rsplit_once('.').is_some_and(|(n, ns)| *n == *id.name && *ns == *id.namespace);
            namespace.is_none_or(|ns| *id.namespace == *ns) && (*id.name == *name || split())
        };
        let found: Vec<&ServiceId> = self.world.services.keys().filter(named).collect();
        let all = || self.world.services.keys().map(|id| format!("{}.{}", id.name, id.namespace)).collect::<Vec<_>>();
        match &found[..] {
            [one] => Ok(one),
            [] => {
                let elsewhere = self.world.services.keys().find(|id| namespace.is_some() && *id.name == *name);
                if let (Some(id), Some(namespace)) = (elsewhere, namespace) {
                    let message = format!("there is no Service {typed} in namespace {namespace}");
                    return Err(Error::new(message, format!("-n {}", id.namespace)));
                }
                let names = || self.world.services.keys().map(|id| &*id.name);
                let hint = match (nearest(name, names()), all()) {
                    (Some(near), _) => format!("did you mean {near}? meshctl route list shows all"),
                    (None, all) if all.is_empty() => {
                        "a folder or a cluster with Services: --dir DIR, --context NAME".into()
                    }
                    (None, all) if all.len() <= 12 => format!("one of {}", all.join(", ")),
                    _ => "meshctl route list shows all".into(),
                };
                Err(Error::new(format!("there is no Service {typed}"), hint))
            }
            several => {
                let all: Vec<String> = several.iter().map(|id| format!("{}.{}", id.name, id.namespace)).collect();
                Err(Error::new(format!("several Services are called {typed}"), format!("one of {}", all.join(", "))))
            }
        }
    }

    pub fn variants(&self, id: &ServiceId) -> &[Variant] {
        self.world.services.get(id).map_or(&[], |s| &s.variants)
    }

    /// The one that clients of a namespace get; without one, everybody else's.
    pub fn variant_for(&self, id: &ServiceId, clients: Option<&str>) -> usize {
        let variants = self.variants(id);
        let of = |ns: &str| variants.iter().position(|v| v.clients.are(ns, &Default::default()));
        clients.and_then(of).unwrap_or(variants.len().saturating_sub(1))
    }

    /// The routes of a Service's ports, in the order in which they stand in its document.
    pub fn ways<'m>(&'m self, id: &'m ServiceId, variant: usize) -> Vec<Way<'m>> {
        let document = self.variants(id).get(variant).map(|v| &v.document);
        let ports = document.and_then(|d| d["ports"].as_array()).into_iter().flatten().enumerate();
        let mut out = Vec::new();
        for (i, port) in ports {
            let number = port["port"].as_u64().and_then(|n| n.try_into().ok()).unwrap_or(0);
            for (j, route) in port["routes"].as_array().into_iter().flatten().enumerate() {
                out.push(Way { service: id, port: number, route, mesh: self, variant, index: (i, j) });
            }
        }
        out
    }

    /// Who gave a block of a port's policy.
    pub fn policy_from(&self, id: &ServiceId, variant: usize, port: usize, block: &str) -> Option<&Source> {
        self.origins(id, variant)?.get(&format!("ports[{port}].policy.{block}"))
    }

    /// A DestinationRule that has a part in how this port is called.
    pub fn destination_rule(&self, id: &ServiceId, variant: usize, port: usize) -> Option<&Source> {
        let of_port = format!("ports[{port}].");
        let parts = self.origins(id, variant)?.iter().filter(|(path, _)| path.starts_with(&of_port));
        parts.map(|(_, source)| source).find(|s| s.object.kind == "DestinationRule")
    }

    fn origins(&self, id: &ServiceId, variant: usize) -> Option<&std::collections::BTreeMap<String, Source>> {
        self.ledger.origins.get(&Document::Service(id.clone(), variant))
    }

    pub fn ports(&self, id: &ServiceId) -> Vec<u16> {
        self.world.services.get(id).map(|s| s.endpoints.keys().copied().collect()).unwrap_or_default()
    }

    /// The subsets that a Service's document has, for anybody.
    pub fn subsets(&self, id: &ServiceId) -> Vec<String> {
        let ports = self.variants(id).iter().flat_map(|v| v.document["ports"].as_array().into_iter().flatten());
        let subsets = ports.flat_map(|p| p["subsets"].as_array().into_iter().flatten());
        let mut names: Vec<String> = subsets.filter_map(|s| s["name"].as_str().map(str::to_string)).collect();
        names.sort();
        names.dedup();
        names
    }
}

impl<'m> Way<'m> {
    /// Where the route comes from. Nobody: there are routes for others, and this one lets nothing through.
    pub fn from(&self) -> Option<&'m Source> {
        self.said("")
    }

    /// Who said this field of it, if it was not the route's own object.
    pub fn other(&self, field: &str) -> Option<&'m Source> {
        let parts: Vec<&str> = field.split('.').collect();
        // `retry` as a whole, too.
        (1..=parts.len()).rev().find_map(|n| self.said(&format!(".{}", parts[..n].join("."))))
    }

    fn said(&self, field: &str) -> Option<&'m Source> {
        let (i, j) = self.index;
        self.mesh.origins(self.service, self.variant)?.get(&format!("ports[{i}].routes[{j}]{field}"))
    }

    pub fn name(&self) -> &'m str {
        self.route["name"].as_str().unwrap_or_default()
    }

    /// It takes what no other takes.
    pub fn takes_all(&self) -> bool {
        match &self.route["match"] {
            Json::Null => true,
            Json::Array(list) => list.iter().any(|m| m.as_object().is_some_and(|m| m.is_empty())),
            _ => false,
        }
    }

    pub fn forwards(&self) -> bool {
        self.route.get("redirect").is_none() && self.route.get("respond").is_none()
    }

    /// Where it sends requests, each with its weight. Without a word, to the Service itself.
    pub fn to(&self) -> Vec<(Target, u64)> {
        let many = match &self.route["to"] {
            Json::Null => return vec![(self.target(&Json::Null), 1)],
            Json::Array(list) => list.iter().collect(),
            one => vec![one],
        };
        let weight = |to: &Json| to.get("weight").and_then(Json::as_u64).unwrap_or(1);
        many.into_iter().map(|to| (self.target(to), weight(to))).collect()
    }

    fn target(&self, to: &Json) -> Target {
        let text = |field: &str, own: &str| to.get(field).and_then(Json::as_str).unwrap_or(own).to_string();
        let namespace = text("namespace", &self.service.namespace);
        Target {
            service: ServiceId::new(&namespace, &text("service", to.as_str().unwrap_or(&self.service.name))),
            subset: to.get("subset").and_then(Json::as_str).map(str::to_string),
            port: to.get("port").and_then(Json::as_u64).and_then(|p| p.try_into().ok()),
            invalid: to.get("invalid").is_some_and(|i| *i == Json::Bool(true)),
        }
    }
}

/// What a share of requests goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub service: ServiceId,
    pub subset: Option<String>,
    pub port: Option<u16>,
    pub invalid: bool,
}

impl Target {
    /// As somebody would type it who splits the Service's requests.
    pub fn name(&self, way: &Way<'_>) -> String {
        let of = way.service;
        let mut name = match &self.subset {
            Some(subset) if self.service == *of => subset.clone(),
            Some(subset) => format!("{}/{subset}", self.service.name),
            None => self.service.name.to_string(),
        };
        if self.service.namespace != of.namespace {
            name += &format!(".{}", self.service.namespace);
        }
        if let Some(port) = self.port.filter(|p| *p != way.port) {
            name += &format!(":{port}");
        }
        if self.invalid { "(nobody: 500)".into() } else { name }
    }

    pub fn is(&self, name: &str) -> bool {
        self.subset.as_deref() == Some(name)
            || (self.subset.is_none() && *self.service.name == *name)
            || (self.subset.is_none() && name == format!("{}.{}", self.service.name, self.service.namespace))
    }
}
