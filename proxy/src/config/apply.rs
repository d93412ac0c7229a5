//! Puts configuration into force: compiles what changed, keeps what did not, and stores one new snapshot.
//!
//! Owned by the control thread alone. A service that does not compile keeps its own last good plan and is reported; the
//! others apply. What is equal is not touched: the same config applied again changes no pointer that a request can see, a
//! policy keeps its state, an endpoint its samples and connections.

use super::file::ProxyConfig;
use super::snapshot::Snapshot;
use super::status::{Resource, State};
use arc_swap::ArcSwap;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;
use weft_policy::endpoint::{self, Source};
use weft_policy::id::{BackendId, DestKey, ServiceId};
use weft_policy::listener;
use weft_policy::plan::{self, ServicePlan};
use weft_policy::registry::{Bound, Registry};
use weft_policy::route::BackendRef;
use weft_policy::service::{self, Backends};

/// What is configured, acknowledged and refused as one: a port of a service.
type Unit = (ServiceId, u16);

struct Held {
    /// As last given, whether it compiled or not.
    config: service::Config,
    backends: Backends,
    sources: Vec<Source>,
    /// As last handed to the backends.
    endpoints: Vec<endpoint::Config>,
    good: Option<Arc<ServicePlan>>,
    bound: Option<Arc<Bound>>,
    version: u64,
    state: State,
    since: SystemTime,
}

pub struct Applier {
    snapshot: Arc<ArcSwap<Snapshot>>,
    registry: Registry,
    units: BTreeMap<Unit, Held>,
    listeners: BTreeMap<Arc<str>, (Arc<listener::Config>, SystemTime)>,
    answers: FxHashMap<Arc<str>, Vec<IpAddr>>,
    namespace: Arc<str>,
}

impl Applier {
    pub fn new(snapshot: Arc<ArcSwap<Snapshot>>) -> Self {
        Self {
            snapshot,
            registry: Registry::default(),
            units: BTreeMap::new(),
            listeners: BTreeMap::new(),
            answers: FxHashMap::default(),
            namespace: "".into(),
        }
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Names that endpoints are given by.
    pub fn names(&self) -> BTreeSet<Arc<str>> {
        let sources = self.units.values().flat_map(|h| &h.sources);
        sources
            .filter_map(|s| match s {
                Source::Dns(dns) => Some(dns.host.clone()),
                Source::Static(_) => None,
            })
            .collect()
    }

    /// Applies a whole configuration. Says whether anything that requests see has changed.
    pub fn apply(&mut self, config: &ProxyConfig, now: SystemTime) -> bool {
        self.namespace = config.workload.namespace.clone();
        let wanted: FxHashSet<Unit> = config.services.iter().map(unit).collect();
        let before = self.units.len();
        self.units.retain(|unit, _| wanted.contains(unit));
        let mut changed = self.units.len() != before;
        // Backends before plans, so that a plan finds all of its targets whatever the order of the file.
        for entry in &config.services {
            self.put(entry, now);
        }
        changed |= self.bind();
        changed |= self.put_listeners(&config.listeners, now);
        if changed {
            self.store();
        }
        // Only when nobody can look them up any more.
        let kept: FxHashSet<BackendId> =
            self.units.values().flat_map(|h| h.backends.each().map(|(id, ..)| id)).collect();
        self.registry.retain(|id| kept.contains(id));
        let names = self.names();
        self.answers.retain(|name, _| names.contains(name));
        changed
    }

    /// Takes what a name stands for now.
    pub fn answer(&mut self, host: &Arc<str>, addresses: Vec<IpAddr>) {
        self.answers.insert(host.clone(), addresses);
        for held in self.units.values_mut() {
            if held.sources.iter().any(|s| matches!(s, Source::Dns(d) if d.host == *host)) {
                let endpoints = resolve(&held.sources, &self.answers);
                if endpoints != held.endpoints {
                    self.registry.set_endpoints(&held.backends, &endpoints);
                    held.endpoints = endpoints;
                }
            }
        }
    }

    fn put(&mut self, entry: &service::Entry, now: SystemTime) {
        let endpoints = resolve(&entry.endpoints, &self.answers);
        let held = self.units.entry(unit(entry)).or_insert_with(|| {
            self.registry.put_all(&entry.backends);
            self.registry.set_endpoints(&entry.backends, &endpoints);
            let mut held = Held {
                config: entry.config.clone(),
                backends: entry.backends.clone(),
                sources: entry.endpoints.clone(),
                endpoints: endpoints.clone(),
                good: None,
                bound: None,
                version: 0,
                state: State::Applied,
                since: now,
            };
            held.compile(now);
            held
        });
        let members = |b: &Backends| b.subsets.iter().map(|s| (s.name.clone(), s.labels.clone())).collect::<Vec<_>>();
        let mut regroup = false;
        if held.backends != entry.backends {
            self.registry.put_all(&entry.backends);
            regroup = members(&held.backends) != members(&entry.backends);
            held.backends = entry.backends.clone();
            held.version += 1;
        }
        if held.sources != entry.endpoints {
            held.sources = entry.endpoints.clone();
            held.version += 1;
        }
        if regroup || held.endpoints != endpoints {
            self.registry.set_endpoints(&held.backends, &endpoints);
            held.endpoints = endpoints;
        }
        if held.config != entry.config {
            held.config = entry.config.clone();
            held.compile(now);
        }
    }

    /// Gives every plan its backends; a plan that has them already stays as it is.
    fn bind(&mut self) -> bool {
        let mut changed = false;
        for held in self.units.values_mut() {
            let Some(plan) = &held.good else { continue };
            let stands = held.bound.as_ref().is_some_and(|bound| {
                Arc::ptr_eq(&bound.plan, plan)
                    && plan.backends.iter().zip(&bound.backends).all(|(id, has)| {
                        let is = self.registry.get(id);
                        is.map(Arc::as_ptr) == has.as_ref().map(Arc::as_ptr)
                    })
            });
            if !stands {
                held.bound = Some(Arc::new(self.registry.bind(plan)));
                changed = true;
            }
        }
        changed
    }

    fn put_listeners(&mut self, listeners: &[listener::Config], now: SystemTime) -> bool {
        let mut next = BTreeMap::new();
        for config in listeners {
            let same = self.listeners.get(&config.name).filter(|(held, _)| **held == *config).cloned();
            next.insert(config.name.clone(), same.unwrap_or_else(|| (Arc::new(config.clone()), now)));
        }
        let same = next.len() == self.listeners.len()
            && next
                .iter()
                .all(|(name, (new, _))| self.listeners.get(name).is_some_and(|(held, _)| Arc::ptr_eq(held, new)));
        self.listeners = next;
        !same
    }

    /// Two services with one key cannot come from a checked file; should it happen, the first by name has it.
    fn store(&mut self) {
        let mut snapshot = Snapshot::default();
        let mut taken: FxHashSet<&DestKey> = FxHashSet::default();
        for held in self.units.values() {
            let Some(bound) = &held.bound else { continue };
            for key in &bound.plan.keys {
                if taken.insert(key) {
                    snapshot.put(key, bound);
                }
            }
        }
        let fixed = self.listeners.values().filter_map(|(l, _)| {
            let unit = target(l.to.as_ref()?, &self.namespace);
            Some((l.name.clone(), self.units.get(&unit)?.bound.clone()?))
        });
        snapshot.set_fixed(fixed);
        snapshot.set_listeners(self.listeners.values().map(|(l, _)| l.clone()));
        self.snapshot.store(Arc::new(snapshot));
    }

    pub fn resources(&self) -> Vec<Resource> {
        let services = self.units.iter().map(|((service, port), held)| Resource {
            kind: "service",
            name: format!("{service}:{port}"),
            version: held.version,
            state: held.state.clone(),
            since: held.since,
        });
        let listeners = self.listeners.values().map(|(l, since)| Resource {
            kind: "listener",
            name: l.name.to_string(),
            version: 1,
            state: State::Applied,
            since: *since,
        });
        services.chain(listeners).collect()
    }
}

impl Held {
    fn compile(&mut self, now: SystemTime) {
        self.since = now;
        match plan::compile(&self.config) {
            Ok(plan) => {
                self.state = State::Applied;
                if self.good.as_ref() != Some(&plan) {
                    self.version += 1;
                    self.good = Some(plan);
                }
            }
            Err(errors) => {
                let reasons: Vec<String> = errors.iter().map(ToString::to_string).collect();
                tracing::error!(service = %self.config.id, port = self.config.port, errors = ?reasons,
                    "refused, the last good version stays");
                self.state = State::Refused(reasons);
            }
        }
    }
}

fn unit(entry: &service::Entry) -> Unit {
    (entry.config.id.clone(), entry.config.port)
}

/// Where a listener's fixed destination is; the reader has filled in the port.
fn target(to: &BackendRef, namespace: &str) -> Unit {
    let id = to.resolve(&ServiceId::new(namespace, ""), 0);
    (id.service, id.port)
}

fn resolve(sources: &[Source], answers: &FxHashMap<Arc<str>, Vec<IpAddr>>) -> Vec<endpoint::Config> {
    let mut endpoints = Vec::with_capacity(sources.len());
    for source in sources {
        match source {
            Source::Static(config) => endpoints.push(config.clone()),
            Source::Dns(dns) => {
                endpoints.extend(answers.get(&dns.host).into_iter().flatten().map(|ip| dns.at(*ip)));
            }
        }
    }
    endpoints
}
