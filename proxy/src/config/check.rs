//! What can only be said of a file as a whole: names that are taken twice, references to what does not exist, services that
//! do not compile, certificates that cannot be used.

use super::file::ProxyConfig;
use super::identity;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use weft_policy::diag::Diags;
use weft_policy::doc::{Node, Value, nearest};
use weft_policy::id::{BackendId, DestKey, ServiceId};
use weft_policy::mtls::{Mode, UpstreamTls};
use weft_policy::plan;
use weft_policy::route::{Action, BackendRef};

/// `listeners` says where in the document each listener was.
pub fn all(config: &ProxyConfig, listeners: &[String], root: &Node, diags: &mut Diags) {
    let mut check = Check { known: Known::new(config, root), config, paths: listeners, root, diags, alone: false };
    check.listeners();
    check.services();
    check.identity();
}

/// The listeners of a document that holds no services: where they lead is not known here.
pub fn listeners(config: &ProxyConfig, paths: &[String], root: &Node, diags: &mut Diags) {
    let known = Known::new(config, root);
    Check { known, config, paths, root, diags, alone: true }.listeners();
}

/// The same of a document that is one service.
pub fn services(config: &ProxyConfig, root: &Node, diags: &mut Diags) {
    let known = Known::new(config, root);
    Check { known, config, paths: &[], root, diags, alone: true }.services();
}

struct Check<'a> {
    known: Known<'a>,
    config: &'a ProxyConfig,
    paths: &'a [String],
    root: &'a Node,
    diags: &'a mut Diags,
    /// The rest of the configuration is in other documents.
    alone: bool,
}

/// What references can name.
struct Known<'a> {
    /// Subsets by service and port.
    ports: BTreeMap<(&'a ServiceId, u16), BTreeSet<&'a str>>,
    /// Names of services as written, also of those that could not be read: a reference to them is no error of its own.
    written: BTreeSet<&'a str>,
}

impl<'a> Known<'a> {
    fn new(config: &'a ProxyConfig, root: &'a Node) -> Self {
        let mut ports = BTreeMap::new();
        for entry in &config.services {
            let subsets = entry.backends.subsets.iter().map(|s| &*s.name).collect();
            ports.insert((&entry.config.id, entry.config.port), subsets);
        }
        let field = |node: &'a Node, name: &str| match &node.value {
            Value::Map(items) => items.iter().find(|(k, ..)| k == name).map(|(_, _, node)| node),
            _ => None,
        };
        let services = match field(root, "services").map(|n| &n.value) {
            Some(Value::List(services)) => services.as_slice(),
            _ => &[],
        };
        let written = services.iter().filter_map(|s| match &field(s, "name")?.value {
            Value::Text(name) => Some(name.split('.').next().unwrap_or(name)),
            _ => None,
        });
        Self { ports, written: written.collect() }
    }

    /// Which field of a reference is wrong, how, and what would be right.
    fn problem(&self, id: &BackendId) -> Option<(&'static str, String, String)> {
        let of_service = || self.ports.keys().filter(|(service, _)| **service == id.service);
        if let Some(subsets) = self.ports.get(&(&id.service, id.port)) {
            let subset = id.subset.as_deref().filter(|s| !subsets.contains(s))?;
            let message = format!("no subset `{subset}` of {}:{}", id.service, id.port);
            return Some(("subset", message, suggest(subset, subsets.iter().copied(), "its subsets")));
        }
        if of_service().next().is_some() {
            let ports: Vec<String> = of_service().map(|(_, port)| port.to_string()).collect();
            let message = format!("{} has no port {}", id.service, id.port);
            return Some(("port", message, format!("its ports: {}", ports.join(", "))));
        }
        let elsewhere: Vec<&ServiceId> =
            self.ports.keys().map(|(s, _)| *s).filter(|s| s.name == id.service.name).collect();
        if let Some(other) = elsewhere.first() {
            let message = format!("no service `{}` in namespace {}", id.service.name, id.service.namespace);
            return Some(("service", message, format!("did you mean {other}?")));
        }
        if self.written.contains(&*id.service.name) {
            return None;
        }
        let names = self.ports.keys().map(|(s, _)| &*s.name).chain(self.written.iter().copied());
        Some(("service", format!("no service `{}`", id.service.name), suggest(&id.service.name, names, "services")))
    }
}

fn suggest<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone, what: &str) -> String {
    match nearest(word, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => {
            let all: BTreeSet<&str> = known.collect();
            match all.is_empty() {
                true => format!("{what}: none"),
                false => format!("{what}: {}", all.into_iter().take(20).collect::<Vec<_>>().join(", ")),
            }
        }
    }
}

impl Check<'_> {
    fn error(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        let hint = hint.into();
        self.diags.error(self.root.locate(path), path, message, (!hint.is_empty()).then_some(hint));
    }

    fn reference(&mut self, path: &str, to: &BackendRef, owner: &ServiceId, port: u16) {
        if to.invalid || self.alone {
            return;
        }
        if let Some((field, message, hint)) = self.known.problem(&to.resolve(owner, port)) {
            let field = format!("{path}.{field}");
            let path = if self.root.find(&field).is_some() { &field } else { path };
            self.error(path, message, hint);
        }
    }

    fn listeners(&mut self) {
        let config = self.config;
        let mut names: FxHashMap<&str, &str> = FxHashMap::default();
        let mut addresses: FxHashMap<SocketAddr, String> = FxHashMap::default();
        for (field, address) in [("admin", config.admin), ("readiness", config.readiness), ("metrics", config.metrics)]
        {
            if let Some(address) = address {
                self.address(&mut addresses, address, field);
            }
        }
        if config.listeners.is_empty() && !self.diags.has_errors() {
            self.error("listeners", "nothing is listened on", "at least one listener");
        }
        for (listener, path) in config.listeners.iter().zip(self.paths) {
            if let Some(first) = names.insert(&listener.name, path) {
                let message = format!("{} is also the name of {first}", listener.name);
                self.error(&format!("{path}.name"), message, "give each a name of its own");
            }
            self.address(&mut addresses, listener.address, &format!("{path}.address"));
            if let Some(to) = &listener.to {
                self.fixed(&format!("{path}.to"), to);
            }
            let strict = listener.mtls.mode == Mode::Strict || listener.mtls.ports.values().any(|m| *m == Mode::Strict);
            if listener.role.is_inbound() && strict && !self.has_identity() {
                self.error(
                    &format!("{path}.mtls"),
                    "strict needs a certificate",
                    "an identity section, or another mode",
                );
            }
        }
    }

    fn fixed(&mut self, path: &str, to: &BackendRef) {
        let owner = ServiceId::new(&self.config.workload.namespace, "");
        let id = to.resolve(&owner, 0);
        if to.subset.is_some() {
            self.error(path, "a listener goes to a service, not to a subset", "let a route of it choose the subset");
        } else if to.name.is_empty() {
            self.error(path, "names no service", "to: NAME, or {service: NAME, port: PORT}");
        } else if !self.alone
            && to.port.is_none()
            && self.known.ports.keys().any(|(service, _)| **service == id.service)
        {
            self.error(path, format!("{} has several ports", id.service), "{service: NAME, port: PORT}");
        } else {
            self.reference(path, to, &owner, 0);
        }
    }

    fn address(&mut self, taken: &mut FxHashMap<SocketAddr, String>, address: SocketAddr, path: &str) {
        if address.port() == 0 {
            return;
        }
        if let Some(first) = taken.insert(address, path.to_string()) {
            self.error(path, format!("{address} is also {first}"), "give each an address or a port of its own");
        }
    }

    fn services(&mut self) {
        let mut ports: FxHashMap<(&ServiceId, u16), &str> = FxHashMap::default();
        let mut keys: FxHashMap<&DestKey, &str> = FxHashMap::default();
        for entry in &self.config.services {
            let (config, path) = (&entry.config, entry.path.as_str());
            if let Some(first) = ports.insert((&config.id, config.port), path) {
                let message = format!("port {} of {} is also {first}", config.port, config.id);
                self.error(path, message, "give each port of a service once");
                continue;
            }
            for key in &config.keys {
                let Some(first) = keys.insert(key, path) else { continue };
                let (field, text) = match key {
                    DestKey::Addr(addr) => ("addresses", addr.to_string()),
                    DestKey::Host { host, port: 0 } => ("hosts", format!("{host} at any port")),
                    DestKey::Host { host, port } => ("hosts", format!("{host}:{port}")),
                    DestKey::Sni { name, port } => ("serverNames", format!("{name}:{port}")),
                };
                let service = path.split(".ports[").next().unwrap_or(path);
                self.error(
                    &format!("{service}.{field}"),
                    format!("{text} leads to {first} already"),
                    "one service for each",
                );
            }
            if let Err(errors) = plan::compile(config) {
                for e in errors {
                    self.error(&format!("{path}.{}", e.field), e.message, "");
                }
            }
            for (i, route) in config.routes.iter().enumerate() {
                if let Action::Forward(to) = &route.action {
                    for (j, destination) in to.iter().enumerate() {
                        let at = self.element(&format!("{path}.routes[{i}].to"), j);
                        self.reference(&at, &destination.backend, &config.id, config.port);
                    }
                }
                for (j, mirror) in route.mirrors.iter().enumerate() {
                    let at = self.element(&format!("{path}.routes[{i}].mirror"), j) + ".to";
                    self.reference(&at, &mirror.backend, &config.id, config.port);
                }
            }
            self.upstream_tls(&format!("{path}.policy.tls"), &entry.backends.policy.tls);
            for (i, subset) in entry.backends.subsets.iter().enumerate() {
                if subset.policy.tls != entry.backends.policy.tls {
                    self.upstream_tls(&format!("{path}.subsets[{i}].policy.tls"), &subset.policy.tls);
                }
            }
        }
    }

    /// One that could not be read counts: it has been reported.
    fn has_identity(&self) -> bool {
        self.alone || self.root.find("identity").is_some()
    }

    /// A field that holds one thing or a list of them.
    fn element(&self, path: &str, i: usize) -> String {
        let item = format!("{path}[{i}]");
        if self.root.find(&item).is_some() { item } else { path.to_string() }
    }

    fn upstream_tls(&mut self, path: &str, tls: &UpstreamTls) {
        match tls {
            UpstreamTls::Mesh(_) if !self.has_identity() => {
                self.error(path, "mesh TLS needs a certificate", "an identity section, or another mode");
            }
            UpstreamTls::Originate(tls) => {
                if let Some(roots) = &tls.roots {
                    let read = identity::read_roots(&mut weft_tls::TrustBundle::default(), None, roots);
                    self.file(&format!("{path}.roots"), roots, read);
                }
                if let Some((certificate, key)) = &tls.client {
                    let read = identity::read_pair(certificate, key).map(drop);
                    self.file(&format!("{path}.certificate"), certificate, read);
                }
            }
            _ => {}
        }
    }

    fn file(&mut self, path: &str, file: &Path, read: Result<(), String>) {
        if let Err(why) = read {
            self.error(path, why, format!("a PEM file; looked for at {}", file.display()));
        }
    }

    fn identity(&mut self) {
        let Some(files) = &self.config.identity else { return };
        match identity::read_pair(&files.certificate, &files.key) {
            Ok(own) => {
                if own.not_after() < std::time::SystemTime::now() {
                    let at = self.root.locate("identity.certificate");
                    self.diags.warn(at, "identity.certificate", "the certificate has expired", None);
                }
            }
            Err(why) => self.file("identity.certificate", &files.certificate, Err(why)),
        }
        for (i, trust) in files.trust.iter().enumerate() {
            for (j, file) in trust.roots.iter().enumerate() {
                let read = identity::read_roots(&mut weft_tls::TrustBundle::default(), trust.domain.clone(), file);
                self.file(&format!("identity.trust[{i}].roots[{j}]"), file, read);
            }
        }
    }
}

/// A listener's service port where it has only one and the file does not say it.
pub fn fill_ports(config: &mut ProxyConfig) {
    let owner = ServiceId::new(&config.workload.namespace, "");
    for to in config.listeners.iter_mut().filter_map(|l| l.to.as_mut()).filter(|to| to.port.is_none()) {
        let service = to.resolve(&owner, 0).service;
        let of = config.services.iter().filter(|s| s.config.id == service);
        let ports: BTreeSet<u16> = of.map(|s| s.config.port).collect();
        if let (Some(only), 1) = (ports.first(), ports.len()) {
            to.port = Some(*only);
        }
    }
}
