//! What a request looks up: which service a destination is. Immutable; a change makes a new one that shares every entry that
//! did not change, so one service can come or go without the others being touched.
//!
//! No look-up allocates, and none depends on how many services there are.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::sync::Arc;
use weft_policy::id::DestKey;
use weft_policy::listener;
use weft_policy::registry::Bound;

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    listeners: FxHashMap<Arc<str>, Arc<listener::Config>>,
    addresses: FxHashMap<SocketAddr, Arc<Bound>>,
    hosts: Names,
    server_names: Names,
    /// By listener: destinations that are not looked up.
    fixed: FxHashMap<Arc<str>, Arc<Bound>>,
}

impl Snapshot {
    pub fn listener(&self, name: &str) -> Option<&Arc<listener::Config>> {
        self.listeners.get(name)
    }

    pub fn listeners(&self) -> impl Iterator<Item = &Arc<listener::Config>> {
        self.listeners.values()
    }

    pub fn by_addr(&self, addr: SocketAddr) -> Option<&Arc<Bound>> {
        self.addresses.get(&canonical(addr))
    }

    /// By a Host without its port, in any case: the name itself, then the most specific `*.suffix`, then `*`; within a name
    /// the entry of the port before the entry of any port.
    pub fn by_host(&self, host: &str, port: u16) -> Option<&Arc<Bound>> {
        self.hosts.find(host, port)
    }

    pub fn by_sni(&self, name: &str, port: u16) -> Option<&Arc<Bound>> {
        self.server_names.find(name, port)
    }

    pub fn fixed(&self, listener: &str) -> Option<&Arc<Bound>> {
        self.fixed.get(listener)
    }

    /// Every destination once for each of its keys.
    pub fn each(&self) -> impl Iterator<Item = &Arc<Bound>> {
        self.addresses.values().chain(self.hosts.each()).chain(self.server_names.each()).chain(self.fixed.values())
    }

    pub fn set_listeners(&mut self, listeners: impl Iterator<Item = Arc<listener::Config>>) {
        self.listeners = listeners.map(|l| (l.name.clone(), l)).collect();
    }

    pub fn set_fixed(&mut self, fixed: impl Iterator<Item = (Arc<str>, Arc<Bound>)>) {
        self.fixed = fixed.collect();
    }

    pub fn put(&mut self, key: &DestKey, bound: &Arc<Bound>) {
        match key {
            DestKey::Addr(addr) => {
                self.addresses.insert(canonical(*addr), bound.clone());
            }
            DestKey::Host { host, port } => self.hosts.put(host, *port, bound),
            DestKey::Sni { name, port } => self.server_names.put(name, *port, bound),
        }
    }

    pub fn remove(&mut self, key: &DestKey) {
        match key {
            DestKey::Addr(addr) => {
                self.addresses.remove(&canonical(*addr));
            }
            DestKey::Host { host, port } => self.hosts.remove(host, *port),
            DestKey::Sni { name, port } => self.server_names.remove(name, *port),
        }
    }
}

/// A dual-stack socket tells IPv4 addresses in IPv6 clothes.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The entries of one name, by port; 0 is any.
type Ports = SmallVec<[(u16, Arc<Bound>); 1]>;

#[derive(Clone, Debug, Default)]
struct Names {
    exact: FxHashMap<Arc<str>, Ports>,
    /// By what follows `*.`
    suffixes: FxHashMap<Arc<str>, Ports>,
    any: Ports,
}

impl Names {
    fn find(&self, name: &str, port: u16) -> Option<&Arc<Bound>> {
        let name = name.strip_suffix('.').unwrap_or(name);
        // Names are at most 253 bytes; anything longer can only be meant by `*`.
        let mut lower = [0u8; 256];
        let name = match lower.get_mut(..name.len()) {
            None => return pick(&self.any, port),
            Some(_) if !name.bytes().any(|b| b.is_ascii_uppercase()) => name,
            Some(buffer) => {
                buffer.copy_from_slice(name.as_bytes());
                buffer.make_ascii_lowercase();
                std::str::from_utf8(buffer).ok()?
            }
        };
        if let Some(found) = self.exact.get(name).and_then(|ports| pick(ports, port)) {
            return Some(found);
        }
        if !self.suffixes.is_empty() {
            let mut rest = name;
            while let Some((_, suffix)) = rest.split_once('.') {
                if let Some(found) = self.suffixes.get(suffix).and_then(|ports| pick(ports, port)) {
                    return Some(found);
                }
                rest = suffix;
            }
        }
        pick(&self.any, port)
    }

    fn put(&mut self, name: &Arc<str>, port: u16, bound: &Arc<Bound>) {
        let ports = match name.strip_prefix("*.") {
            _ if &**name == "*" => &mut self.any,
            Some(suffix) => self.suffixes.entry(suffix.into()).or_default(),
            None => self.exact.entry(name.clone()).or_default(),
        };
        match ports.iter_mut().find(|(p, _)| *p == port) {
            Some((_, held)) => *held = bound.clone(),
            None => ports.push((port, bound.clone())),
        }
    }

    fn remove(&mut self, name: &str, port: u16) {
        let (map, key) = match name.strip_prefix("*.") {
            _ if name == "*" => return self.any.retain(|(p, _)| *p != port),
            Some(suffix) => (&mut self.suffixes, suffix),
            None => (&mut self.exact, name),
        };
        if let Some(ports) = map.get_mut(key) {
            ports.retain(|(p, _)| *p != port);
            if ports.is_empty() {
                map.remove(key);
            }
        }
    }

    fn each(&self) -> impl Iterator<Item = &Arc<Bound>> {
        let named = self.exact.values().chain(self.suffixes.values()).flatten();
        named.chain(self.any.iter()).map(|(_, bound)| bound)
    }
}

fn pick(ports: &Ports, port: u16) -> Option<&Arc<Bound>> {
    let of = |wanted: u16| ports.iter().find(|(p, _)| *p == wanted).map(|(_, bound)| bound);
    of(port).or_else(|| of(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_policy::id::ServiceId;
    use weft_policy::listener::Protocol;
    use weft_policy::registry::Registry;
    use weft_policy::{plan, route, service};

    fn bound(name: &str) -> Arc<Bound> {
        let config = service::Config {
            id: ServiceId::new("demo", name),
            port: 80,
            keys: Vec::new(),
            protocol: Protocol::Http,
            order: route::Order::default(),
            routes: Vec::new(),
        };
        Arc::new(Registry::default().bind(&plan::compile(&config).unwrap()))
    }

    fn name(found: Option<&Arc<Bound>>) -> &str {
        found.map_or("-", |b| &b.plan.id.name)
    }

    fn host(host: &str, port: u16) -> DestKey {
        DestKey::Host { host: host.into(), port }
    }

    #[test]
    fn hosts_from_the_most_specific_to_the_least() {
        let mut s = Snapshot::default();
        for (key, service) in [
            (host("reviews", 80), "exact"),
            (host("reviews", 0), "exact-any-port"),
            (host("*.example.com", 80), "wild"),
            (host("*.eu.example.com", 0), "wild-eu"),
            (host("api.example.com", 443), "api"),
            (host("*", 0), "all"),
            (host("*", 9090), "all-9090"),
            (DestKey::Sni { name: "db.example.com".into(), port: 443 }, "db"),
            (DestKey::Addr("10.0.0.1:80".parse().unwrap()), "addr"),
        ] {
            s.put(&key, &bound(service));
        }
        for (host, port, expected) in [
            ("reviews", 80, "exact"),
            ("REVIEWS", 80, "exact"),
            ("reviews.", 80, "exact"),
            ("reviews", 81, "exact-any-port"),
            ("a.example.com", 80, "wild"),
            ("a.b.example.com", 80, "wild"),
            ("a.eu.example.com", 80, "wild-eu"),
            ("a.eu.example.com", 1, "wild-eu"),
            ("example.com", 80, "all"),
            ("api.example.com", 443, "api"),
            ("api.example.com", 80, "wild"),
            ("a.example.com", 81, "all"),
            ("x", 9090, "all-9090"),
            ("", 1, "all"),
        ] {
            assert_eq!(name(s.by_host(host, port)), expected, "{host}:{port}");
        }
        assert_eq!(name(s.by_host(&"x.".repeat(5000), 1)), "all");
        assert_eq!(name(s.by_sni("DB.example.com", 443)), "db");
        assert_eq!(name(s.by_sni("db.example.com", 80)), "-");
        assert_eq!(name(s.by_addr("[::ffff:10.0.0.1]:80".parse().unwrap())), "addr");
        assert_eq!(name(s.by_addr("10.0.0.1:81".parse().unwrap())), "-");
    }

    #[test]
    fn entries_come_and_go_alone() {
        let mut old = Snapshot::default();
        let (a, b) = (bound("a"), bound("b"));
        old.put(&host("a", 80), &a);
        old.put(&host("*.w", 80), &a);
        let mut new = old.clone();
        new.put(&host("b", 80), &b);
        new.remove(&host("*.w", 80));
        assert!(Arc::ptr_eq(new.by_host("a", 80).unwrap(), &a));
        assert_eq!(name(new.by_host("x.w", 80)), "-");
        assert_eq!(name(old.by_host("x.w", 80)), "a");
        assert_eq!(name(old.by_host("b", 80)), "-");
        for key in [host("a", 80), host("b", 80)] {
            new.remove(&key);
        }
        assert_eq!(new.each().count(), 0);
    }
}
