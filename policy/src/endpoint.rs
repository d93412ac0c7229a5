//! One instance of a backend, as configuration says it, and what the proxy has learned about it.
//!
//! `Endpoint` lives as long as its uid and address do: a config change or a change of other endpoints replaces the set, never
//! the endpoint, so load samples, failure counts and ejections stand.

use crate::balance::Load;
use crate::id::{EndpointId, SpiffeId};
use crate::outlier;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Direct(SocketAddr),
    /// Through another network's gateway, by server name.
    ViaGateway { addr: SocketAddr, sni: Arc<str> },
}

impl Address {
    pub fn socket(&self) -> SocketAddr {
        match self {
            Address::Direct(addr) | Address::ViaGateway { addr, .. } => *addr,
        }
    }
}

/// What the endpoint's side of the connection speaks, where somebody said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub id: EndpointId,
    pub address: Address,
    /// The identity its certificate must prove; `None`: not in the mesh.
    pub identity: Option<SpiffeId>,
    pub labels: BTreeMap<String, String>,
    pub weight: u32,
    /// Gets no new requests.
    pub draining: bool,
    pub workload: crate::meta::Workload,
}

#[derive(Debug)]
pub struct Endpoint {
    pub id: EndpointId,
    pub address: Address,
    pub identity: Option<SpiffeId>,
    pub weight: u32,
    pub workload: crate::meta::Workload,
    pub load: Load,
    pub health: outlier::EndpointState,
    /// Set when the endpoint leaves: connections to it close once idle.
    gone: AtomicBool,
}

impl Endpoint {
    pub fn new(config: &Config) -> Self {
        Self {
            id: config.id.clone(),
            address: config.address.clone(),
            identity: config.identity.clone(),
            weight: config.weight,
            workload: config.workload.clone(),
            load: Load::default(),
            health: outlier::EndpointState::default(),
            gone: AtomicBool::new(config.draining),
        }
    }

    /// Whether this endpoint can stand for `config`: the same instance, reached and proven the same way.
    pub fn is(&self, config: &Config) -> bool {
        self.id == config.id
            && self.address == config.address
            && self.identity == config.identity
            && self.weight == config.weight
            && self.workload == config.workload
    }

    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}
