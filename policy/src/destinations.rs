//! Which service a destination is: by the address that was dialled, by Host, or by the server name of TLS that is passed
//! through. The only place that knows which of several claims wins.
//!
//! No look-up allocates, and none depends on how many services there are.

use crate::id::DestKey;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Destinations<T> {
    addresses: FxHashMap<SocketAddr, T>,
    hosts: Names<T>,
    server_names: Names<T>,
}

impl<T> Default for Destinations<T> {
    fn default() -> Self {
        Self { addresses: FxHashMap::default(), hosts: Names::default(), server_names: Names::default() }
    }
}

impl<T: Clone> Destinations<T> {
    /// Where a request is for: the address the app dialled, where connections are redirected, and else the Host it named, at
    /// the port it dialled or wrote. `Err`: the port at which there is no such Host.
    pub fn of_request(&self, dialled: Option<SocketAddr>, host: &str, written: Option<u16>) -> Result<&T, u16> {
        if let Some(found) = dialled.and_then(|address| self.by_addr(address)) {
            return Ok(found);
        }
        let port = dialled.map_or(written.unwrap_or(80), |address| address.port());
        self.by_host(host, port).ok_or(port)
    }

    pub fn by_addr(&self, addr: SocketAddr) -> Option<&T> {
        self.addresses.get(&canonical(addr))
    }

    /// By a Host without its port, in any case: the name itself, then the most specific `*.suffix`, then `*`; within a name
    /// the entry of the port before the entry of any port.
    pub fn by_host(&self, host: &str, port: u16) -> Option<&T> {
        self.hosts.find(host, port)
    }

    pub fn by_sni(&self, name: &str, port: u16) -> Option<&T> {
        self.server_names.find(name, port)
    }

    /// Every destination once for each of its keys.
    pub fn each(&self) -> impl Iterator<Item = &T> {
        self.addresses.values().chain(self.hosts.each()).chain(self.server_names.each())
    }

    pub fn put(&mut self, key: &DestKey, to: &T) {
        match key {
            DestKey::Addr(addr) => {
                self.addresses.insert(canonical(*addr), to.clone());
            }
            DestKey::Host { host, port } => self.hosts.put(host, *port, to),
            DestKey::Sni { name, port } => self.server_names.put(name, *port, to),
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
type Ports<T> = SmallVec<[(u16, T); 1]>;

#[derive(Clone, Debug)]
struct Names<T> {
    exact: FxHashMap<Arc<str>, Ports<T>>,
    /// By what follows `*.`
    suffixes: FxHashMap<Arc<str>, Ports<T>>,
    any: Ports<T>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { exact: FxHashMap::default(), suffixes: FxHashMap::default(), any: Ports::default() }
    }
}

impl<T: Clone> Names<T> {
    fn find(&self, name: &str, port: u16) -> Option<&T> {
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

    fn put(&mut self, name: &Arc<str>, port: u16, to: &T) {
        let ports = match name.strip_prefix("*.") {
            _ if &**name == "*" => &mut self.any,
            Some(suffix) => self.suffixes.entry(suffix.into()).or_default(),
            None => self.exact.entry(name.clone()).or_default(),
        };
        match ports.iter_mut().find(|(p, _)| *p == port) {
            Some((_, held)) => *held = to.clone(),
            None => ports.push((port, to.clone())),
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

    fn each(&self) -> impl Iterator<Item = &T> {
        let named = self.exact.values().chain(self.suffixes.values()).flatten();
        named.chain(self.any.iter()).map(|(_, to)| to)
    }
}

fn pick<T>(ports: &Ports<T>, port: u16) -> Option<&T> {
    let of = |wanted: u16| ports.iter().find(|(p, _)| *p == wanted).map(|(_, to)| to);
    of(port).or_else(|| of(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Named = Arc<str>;

    fn bound(name: &str) -> Named {
        name.into()
    }

    fn name(found: Option<&Named>) -> &str {
        found.map_or("-", |name| name)
    }

    fn host(host: &str, port: u16) -> DestKey {
        DestKey::Host { host: host.into(), port }
    }

    #[test]
    fn hosts_from_the_most_specific_to_the_least() {
        let mut s = Destinations::default();
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
        let mut old = Destinations::default();
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

    #[test]
    fn what_was_dialled_before_what_was_named() {
        let mut d = Destinations::default();
        d.put(&DestKey::Addr("10.0.0.1:80".parse().unwrap()), &bound("dialled"));
        d.put(&host("named", 80), &bound("named"));
        d.put(&host("named", 8080), &bound("other-port"));
        let at = |text: &str| Some(text.parse().unwrap());
        for (dialled, written, expected) in [
            (at("10.0.0.1:80"), None, Ok("dialled")),
            (at("10.0.0.9:80"), Some(8080), Ok("named")),
            (at("10.0.0.9:8080"), None, Ok("other-port")),
            (None, None, Ok("named")),
            (None, Some(8080), Ok("other-port")),
            (None, Some(81), Err(81)),
            (at("10.0.0.9:81"), Some(80), Err(81)),
        ] {
            assert_eq!(d.of_request(dialled, "named", written).map(|n| &**n), expected, "{dialled:?} {written:?}");
        }
    }
}
