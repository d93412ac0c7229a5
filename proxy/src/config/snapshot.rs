//! What a request looks up: which service a destination is. Immutable; a change makes a new one that shares every entry that
//! did not change, so one service can come or go without the others being touched.

use rustc_hash::FxHashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use weft_policy::destinations::Destinations;
use weft_policy::id::DestKey;
use weft_policy::listener;
use weft_policy::registry::Bound;

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    listeners: FxHashMap<Arc<str>, Arc<listener::Config>>,
    destinations: Destinations<Arc<Bound>>,
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

    /// Those that are looked up.
    pub fn destinations(&self) -> &Destinations<Arc<Bound>> {
        &self.destinations
    }

    pub fn by_addr(&self, addr: SocketAddr) -> Option<&Arc<Bound>> {
        self.destinations.by_addr(addr)
    }

    pub fn by_host(&self, host: &str, port: u16) -> Option<&Arc<Bound>> {
        self.destinations.by_host(host, port)
    }

    pub fn by_sni(&self, name: &str, port: u16) -> Option<&Arc<Bound>> {
        self.destinations.by_sni(name, port)
    }

    pub fn fixed(&self, listener: &str) -> Option<&Arc<Bound>> {
        self.fixed.get(listener)
    }

    /// Every destination once for each of its keys.
    pub fn each(&self) -> impl Iterator<Item = &Arc<Bound>> {
        self.destinations.each().chain(self.fixed.values())
    }

    pub fn set_listeners(&mut self, listeners: impl Iterator<Item = Arc<listener::Config>>) {
        self.listeners = listeners.map(|l| (l.name.clone(), l)).collect();
    }

    pub fn set_fixed(&mut self, fixed: impl Iterator<Item = (Arc<str>, Arc<Bound>)>) {
        self.fixed = fixed.collect();
    }

    pub fn put(&mut self, key: &DestKey, bound: &Arc<Bound>) {
        self.destinations.put(key, bound);
    }
}
