//! Where the dialects put what they have read, and how it becomes the world's documents.
//!
//! A `Service` here is one of Kubernetes, or a host that is none. Translators say what it is called, which routes it has and
//! which policies, each with the clients it is for and the object it comes from. Nobody overwrites anybody: who wins is
//! `conflict.rs`'s to say, for each port and each kind of client.

use crate::conflict;
use crate::istio::peer_authentication;
use crate::ledger::{Document, Ledger};
use crate::object::{ObjectRef, Objects};
use crate::reader::Source;
use crate::world::{self, Clients, PodId, World};
use crate::{Options, proof, variants};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_policy::id::ServiceId;

/// The namespace of hosts that are no Services.
pub const EXTERNAL: &str = "external";

pub struct Builder<'a> {
    pub objects: &'a Objects,
    pub options: &'a Options,
    pub services: BTreeMap<ServiceId, Service>,
    /// Where clients dial each Service.
    pub addresses: BTreeMap<ServiceId, IpAddr>,
    /// Every pod, with a sidecar or without.
    pub pods: BTreeMap<PodId, crate::kubernetes::pod::Pod>,
    /// Labels of nodes that say where they are.
    pub nodes: BTreeMap<String, BTreeMap<String, String>>,
    /// Addresses that pods and Services get.
    pub ranges: Vec<ipnet::IpNet>,
    pub workloads: Vec<crate::kubernetes::workload::Workload>,
    /// By the service they are of.
    pub slices: Vec<crate::kubernetes::endpoint_slice::Slice>,
    /// Whose routes may send requests into other namespaces.
    pub grants: Vec<crate::gateway::reference_grant::Grant>,
    /// Matches that other objects name.
    pub route_groups: Vec<crate::smi::http_route_group::HttpRouteGroup>,
    /// Ports that are bytes in all Services of a namespace that say nothing else.
    pub opaque_ports: BTreeMap<String, Vec<std::ops::RangeInclusive<u16>>>,
    /// Retries and timeouts that are said beside routes.
    pub overlays: Vec<crate::overlay::Overlay>,
    /// What inbound listeners demand, of every scope.
    pub peer_authentications: Vec<crate::istio::peer_authentication::PeerAuthentication>,
}

/// Something for some clients.
#[derive(Clone, Debug, PartialEq)]
pub struct For<T> {
    pub clients: Clients,
    pub what: T,
}

#[derive(Clone, Debug, Default)]
pub struct Service {
    pub hosts: Vec<For<String>>,
    pub addresses: Vec<String>,
    pub server_names: Vec<For<String>>,
    pub ports: BTreeMap<u16, Port>,
    /// The object it is, if it is one.
    pub object: Option<ObjectRef>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Empty: endpoints do not come from pods.
    pub selector: BTreeMap<String, String>,
    /// No address of its own: clients dial its pods.
    pub headless: bool,
    /// Pods serve before they are ready.
    pub not_ready_too: bool,
    pub routes: Vec<RouteSet>,
    pub splits: Vec<Split>,
    pub policies: Vec<PolicySet>,
}

#[derive(Clone, Debug, Default)]
pub struct Port {
    /// Empty where the port has none.
    pub name: String,
    /// As in the documents: `detect`, `http`, `http1`, `http2`, `grpc`, `tcp`, `tls`.
    pub protocol: &'static str,
    /// The pods' port, by number or name.
    pub target: String,
    /// Its `endpoints`.
    pub endpoints: Vec<Value>,
}

/// How a list of routes chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    GatewayApi,
    FirstMatch,
}

/// Routes that one object gives a port of a service.
#[derive(Clone, Debug)]
pub struct RouteSet {
    pub from: Source,
    pub kind: conflict::Routes,
    /// Among those of its kind the more specific wins: the length of the host that names the service, say.
    pub specific: u32,
    pub clients: Clients,
    pub order: Order,
    pub routes: Vec<Route>,
    pub port: u16,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Route {
    pub clients: Clients,
    /// An entry of `routes`; one without `to`, `redirect` and `respond` goes to the service, or as a split says.
    pub what: Value,
    pub from: Source,
    /// Fields of it that somebody else has said: `retry`, `timeout.request`.
    pub others: BTreeMap<String, Source>,
}

impl Route {
    pub fn new(clients: Clients, what: Value, from: Source) -> Self {
        Self { clients, what, from, others: BTreeMap::new() }
    }
}

/// Where what goes to a service goes instead, by weight.
#[derive(Clone, Debug)]
pub struct Split {
    pub from: Source,
    pub clients: Clients,
    pub port: u16,
    /// Entries of `to`.
    pub to: Vec<Value>,
}

/// What one object says of how a port of a service is called.
#[derive(Clone, Debug)]
pub struct PolicySet {
    pub from: Source,
    pub kind: conflict::Policies,
    pub specific: u32,
    pub clients: Clients,
    pub port: u16,
    /// Fields of a `policy`: `balance`, `breaker`, `outlier`, `retryBudget`, `tls`, `connections`, `http`.
    pub policy: Map<String, Value>,
    pub subsets: Vec<Subset>,
}

#[derive(Clone, Debug)]
pub struct Subset {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub policy: Map<String, Value>,
    pub from: Source,
}

impl Subset {
    fn document(&self) -> Value {
        match self.policy.is_empty() {
            true => json!({"name": self.name, "labels": self.labels}),
            false => json!({"name": self.name, "labels": self.labels, "policy": self.policy}),
        }
    }
}

impl Service {
    pub fn add_routes(&mut self, set: RouteSet) {
        self.routes.push(set);
    }

    pub fn add_split(&mut self, split: Split) {
        self.splits.push(split);
    }

    pub fn add_policy(&mut self, set: PolicySet) {
        self.policies.push(set);
    }

    /// The number of a port that is given by number or name.
    pub fn port(&self, name_or_number: &str) -> Option<u16> {
        let named = self.ports.iter().find(|(_, p)| !p.name.is_empty() && p.name == name_or_number).map(|(n, _)| *n);
        named.or_else(|| name_or_number.parse().ok().filter(|n| self.ports.contains_key(n)))
    }
}

impl<'a> Builder<'a> {
    pub fn new(objects: &'a Objects, options: &'a Options) -> Self {
        let (services, pods, workloads, slices, peer_authentications) = Default::default();
        let (nodes, ranges, grants, route_groups, opaque_ports, overlays) = Default::default();
        let addresses = crate::kubernetes::addresses(objects);
        Self {
            objects,
            options,
            services,
            addresses,
            pods,
            nodes,
            ranges,
            workloads,
            slices,
            grants,
            route_groups,
            opaque_ports,
            overlays,
            peer_authentications,
        }
    }

    /// The Kubernetes Service that a host means to somebody of a namespace: `web`, `web.demo`, `web.demo.svc`,
    /// `web.demo.svc.cluster.local`.
    pub fn resolve(&self, host: &str, namespace: &str) -> Option<ServiceId> {
        let id = service_of(host, namespace, &self.options.cluster_domain)?;
        self.services.get(&id).is_some_and(|s| s.object.is_some()).then_some(id)
    }

    /// The service that a host is, made if it is none yet: one without endpoints, which only its routes lead on from. `None`:
    /// it is no host. Whoever speaks of a host that is no Service speaks of the same one, whatever its namespace.
    pub fn host(&mut self, host: &str, namespace: &str) -> Option<ServiceId> {
        if let Some(id) = self.resolve(host, namespace) {
            return Some(id);
        }
        let there = |ns: &str| {
            let named = self.objects.of("", "Namespace").any(|o| o.name == ns);
            ns == namespace || named || self.services.keys().any(|id| &*id.namespace == ns)
        };
        // `example.com` looks like a Service of namespace `com`.
        let own = service_of(host, namespace, &self.options.cluster_domain).filter(|id| there(&id.namespace));
        let (id, hosts) = match own {
            Some(id) => {
                let hosts = crate::kubernetes::service::hosts(&id, &self.options.cluster_domain);
                (id, hosts)
            }
            None => {
                let any = For { clients: Clients::default(), what: host.to_string() };
                (ServiceId::new(EXTERNAL, &host.replace('*', "any")), vec![any])
            }
        };
        let service = Service { hosts, ..Service::default() };
        if service.names_are_wrong(&id).is_some() {
            return None;
        }
        self.services.entry(id.clone()).or_insert(service);
        Some(id)
    }

    /// Everything, put together; losers are told in the ledger, which has every object's entries by now.
    pub fn finish(mut self, ledger: &mut Ledger) -> World {
        crate::kubernetes::endpoint_slice::fill(&mut self);
        let mut world = World::default();
        let mut outcome = conflict::Outcome::default();
        let mut services = std::mem::take(&mut self.services);
        crate::kubernetes::headless::expand(&mut services, &self.options.cluster_domain);
        services.values_mut().for_each(|s| s.refuse(&mut outcome));
        services.retain(|id, s| match s.names_are_wrong(id).zip(s.object.clone()) {
            Some((why, object)) => outcome.refuse(&object, self.objects, why),
            None => true,
        });
        one_owner_each(&mut services, &mut outcome, self.objects);
        let known: BTreeSet<ServiceId> = services.keys().cloned().collect();
        crate::overlay::apply(&mut services, std::mem::take(&mut self.overlays), &mut outcome, ledger);
        for (id, service) in &services {
            let (variants, origins): (Vec<_>, Vec<_>) = service.variants(id, &known, &mut outcome).into_iter().unzip();
            let told = origins.into_iter().enumerate().filter(|(_, origins)| !origins.is_empty());
            ledger.origins.extend(told.map(|(i, origins)| (Document::Service(id.clone(), i), origins)));
            let endpoints = service.ports.iter().map(|(port, p)| (*port, Value::Array(p.endpoints.clone()))).collect();
            world.services.insert(id.clone(), world::Service { variants, endpoints });
        }
        conflict::tell(&outcome, ledger);
        for (loser, winner) in peer_authentication::losers(&self) {
            conflict::lost(&loser, &winner.object, "its own scope", ledger);
        }
        self.services = services;
        world.pods = crate::kubernetes::pod::documents(&self, ledger);
        world
    }
}

impl Service {
    /// What a proxy would say of its names.
    fn names_are_wrong(&self, id: &ServiceId) -> Option<String> {
        let hosts: Vec<&str> = self.hosts.iter().map(|h| h.what.as_str()).collect();
        // Names that an ExternalName gives; the others' endpoints are addresses.
        let endpoints = self.ports.values().flat_map(|p| &p.endpoints).find(|e| e.get("dns").is_some());
        let endpoints: Vec<&Value> = endpoints.into_iter().collect();
        let document = json!({
            "name": &*id.name, "namespace": &*id.namespace, "hosts": hosts, "addresses": self.addresses, "port": 1,
            "endpoints": endpoints,
        });
        proof::service(&document).err()
    }

    /// Drops what proxies would refuse: an object as a whole, so that half of it is never in force.
    fn refuse(&mut self, outcome: &mut conflict::Outcome) {
        self.routes.retain(|set| {
            let order = if set.order == Order::FirstMatch { "firstMatch" } else { "gatewayApi" };
            let wrong = set.routes.iter().find_map(|r| proof::route(&r.what, order).err());
            outcome.judge(&set.from, wrong)
        });
        self.splits.retain(|s| outcome.judge(&s.from, proof::route(&json!({"to": s.to}), "gatewayApi").err()));
        self.policies.retain(|set| {
            let mut document = json!({"name": "any", "namespace": "any", "port": 1, "policy": set.policy});
            document["subsets"] = set.subsets.iter().map(Subset::document).collect();
            outcome.judge(&set.from, proof::service(&document).err())
        });
    }

    fn variants(
        &self,
        id: &ServiceId,
        known: &BTreeSet<ServiceId>,
        outcome: &mut conflict::Outcome,
    ) -> Vec<(world::Variant, BTreeMap<String, Source>)> {
        let hosts = self.hosts.iter().chain(&self.server_names).map(|h| &h.clients);
        let routes = self.routes.iter().flat_map(|s| s.routes.iter().map(|r| &r.clients).chain([&s.clients]));
        let rest = self.splits.iter().map(|s| &s.clients).chain(self.policies.iter().map(|s| &s.clients));
        let (classes, left_out) = variants::classes(hosts.chain(routes).chain(rest));
        for clients in &left_out {
            let routes =
                self.routes.iter().filter(|s| s.clients == *clients || s.routes.iter().any(|r| r.clients == *clients));
            let sources = routes.map(|s| &s.from);
            let sources = sources.chain(self.splits.iter().filter(|s| s.clients == *clients).map(|s| &s.from));
            let sources = sources.chain(self.policies.iter().filter(|s| s.clients == *clients).map(|s| &s.from));
            let why = format!("{id} has more than {} kinds of clients", variants::MAX_CLASSES);
            sources.for_each(|from| {
                outcome.judge(from, Some(why.clone()));
            });
        }
        classes.into_iter().map(|class| self.variant(id, class, known, outcome)).collect()
    }

    fn variant(
        &self,
        id: &ServiceId,
        class: variants::Class,
        known: &BTreeSet<ServiceId>,
        outcome: &mut conflict::Outcome,
    ) -> (world::Variant, BTreeMap<String, Source>) {
        let mut origins = BTreeMap::new();
        let mut from: Vec<ObjectRef> = self.object.iter().cloned().collect();
        let mut refers = BTreeSet::new();
        let names = |list: &[For<String>]| -> Vec<String> {
            list.iter().filter(|n| class.takes(&n.clients)).map(|n| n.what.clone()).collect()
        };
        let mut ports = Vec::new();
        for (number, port) in &self.ports {
            let of = |set: &RouteSet| set.port == *number && class.takes(&set.clients);
            let sets: Vec<&RouteSet> = self.routes.iter().filter(|s| of(s)).collect();
            let splits = self.splits.iter().filter(|s| s.port == *number && class.takes(&s.clients)).collect();
            let chosen = conflict::routes(id, sets, splits, outcome);
            let taken = chosen.sets.iter().flat_map(|s| s.routes.iter().filter(|r| class.takes(&r.clients)));
            let mut taken: Vec<Route> = taken.cloned().collect();
            if let Some(split) = chosen.split {
                if taken.is_empty() && chosen.sets.is_empty() {
                    taken.push(Route::new(split.clients.clone(), json!({}), split.from.clone()));
                }
                for Route { what, others, .. } in &mut taken {
                    let Some(route) = what.as_object_mut() else { continue };
                    if !["to", "redirect", "respond"].iter().any(|a| route.contains_key(*a)) {
                        route.insert("to".into(), Value::Array(split.to.clone()));
                        others.insert("to".into(), split.from.clone());
                    }
                }
            }
            let place = format!("ports[{}]", ports.len());
            for (i, route) in taken.iter().enumerate() {
                origins.insert(format!("{place}.routes[{i}]"), route.from.clone());
                let others = route.others.iter();
                origins.extend(others.map(|(field, from)| (format!("{place}.routes[{i}].{field}"), from.clone())));
            }
            let mut routes: Vec<Value> = taken.into_iter().map(|r| r.what).collect();
            // Somebody has routes here, and none of them is for these clients or this port: nothing matches.
            if routes.is_empty() && !chosen.sets.is_empty() && port.protocol != "tcp" {
                routes.push(json!({"name": "none", "match": {"port": if *number == 1 { 2 } else { 1 }}}));
            }
            name_apart(&mut routes);
            routes.iter().for_each(|r| refers_to(r, id, &mut refers));
            let sets = self.policies.iter().filter(|s| s.port == *number && class.takes(&s.clients)).collect();
            let policy = conflict::policies(id, sets, outcome);
            from.extend(chosen.sets.iter().map(|s| s.from.object.clone()));
            from.extend(chosen.split.iter().map(|s| s.from.object.clone()));
            from.extend(policy.from.iter().cloned());
            let blocks = policy.blocks.into_iter();
            origins.extend(blocks.map(|(block, from)| (format!("{place}.policy.{block}"), from)));
            let subsets = policy.subsets.iter().enumerate();
            origins.extend(subsets.map(|(i, s)| (format!("{place}.subsets[{i}]"), s.from.clone())));

            let mut doc = json!({"port": number, "protocol": port.protocol});
            if !routes.is_empty() {
                if chosen.sets.first().is_some_and(|s| s.order == Order::FirstMatch) {
                    doc["order"] = json!("firstMatch");
                }
                doc["routes"] = Value::Array(routes);
            }
            if !policy.policy.is_empty() {
                doc["policy"] = Value::Object(policy.policy);
            }
            if !policy.subsets.is_empty() {
                doc["subsets"] = policy.subsets.iter().map(Subset::document).collect();
            }
            ports.push(doc);
        }
        let mut document = json!({"name": &*id.name, "namespace": &*id.namespace, "ports": ports});
        for (field, list) in [
            ("hosts", names(&self.hosts)),
            ("addresses", self.addresses.clone()),
            ("serverNames", names(&self.server_names)),
        ] {
            if !list.is_empty() {
                document[field] = json!(list);
            }
        }
        refers.retain(|r| r != id && known.contains(r));
        from.sort();
        from.dedup();
        (world::Variant { clients: class.clients, document, refers, from }, origins)
    }
}

/// An address and port that several Services claim is the first one's: a proxy could not tell them apart.
fn one_owner_each(services: &mut BTreeMap<ServiceId, Service>, outcome: &mut conflict::Outcome, objects: &Objects) {
    let mut owners: BTreeMap<(String, u16), ServiceId> = BTreeMap::new();
    for (id, service) in services {
        let Service { addresses, ports, object, headless, .. } = service;
        addresses.retain(|address| {
            let taken = ports.keys().find_map(|port| owners.get(&(address.clone(), *port)));
            if let Some((owner, object)) = taken.zip(object.as_ref()) {
                // Several headless Services may mean one pod.
                if !*headless {
                    outcome.refuse(object, objects, format!("{address} is the address of {owner} too, which keeps it"));
                }
                return false;
            }
            owners.extend(ports.keys().map(|port| ((address.clone(), *port), id.clone())));
            true
        });
    }
}

/// Routes of different objects may have one name, and names are unique within a service.
fn name_apart(routes: &mut [Value]) {
    let mut taken = BTreeSet::new();
    for route in routes {
        let Some(name) = route.get("name").and_then(Value::as_str).map(str::to_string) else { continue };
        let numbered = (2..).map(|n| format!("{name}-{n}"));
        let free = std::iter::once(name.clone()).chain(numbered).find(|n| !taken.contains(n));
        if let Some(free) = free {
            route["name"] = json!(free);
            taken.insert(free);
        }
    }
}

fn refers_to(route: &Value, own: &ServiceId, out: &mut BTreeSet<ServiceId>) {
    let many = |v: Option<&Value>| match v {
        Some(Value::Array(list)) => list.clone(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    };
    let mirrors = many(route.get("mirror")).into_iter().filter_map(|m| m.get("to").cloned());
    for to in many(route.get("to")).into_iter().chain(mirrors) {
        let name = to.get("service").and_then(Value::as_str).unwrap_or(&own.name);
        let namespace = to.get("namespace").and_then(Value::as_str).unwrap_or(&own.namespace);
        out.insert(ServiceId::new(namespace, name));
    }
}

/// Which service a host of Kubernetes' form names, whether it exists or not.
pub fn service_of(host: &str, namespace: &str, cluster_domain: &str) -> Option<ServiceId> {
    let host = host.trim_end_matches('.');
    let short = host.strip_suffix(cluster_domain).and_then(|h| h.strip_suffix('.')).unwrap_or(host);
    let parts: Vec<&str> = short.split('.').collect();
    match (&parts[..], short.len() == host.len()) {
        ([name], true) => Some(ServiceId::new(namespace, name)),
        ([name, ns], true) => Some(ServiceId::new(ns, name)),
        ([name, ns, "svc"], _) => Some(ServiceId::new(ns, name)),
        _ => None,
    }
}
