//! One instance of a backend, as configuration says it, and what the proxy has learned about it.
//!
//! `Endpoint` lives as long as its uid and address do: a config change or a change of other endpoints replaces the set, never
//! the endpoint, so load samples, failure counts and ejections stand.

use crate::balance::Load;
use crate::doc::{Cursor, Value};
use crate::id::{EndpointId, ServiceId, SpiffeId};
use crate::outlier;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Direct(SocketAddr),
    /// Through another network's gateway, by server name.
    ViaGateway {
        addr: SocketAddr,
        sni: Arc<str>,
    },
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

/// Where endpoints come from, as a file says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Static(Config),
    /// One endpoint for every address the name has at the time.
    Dns(Dns),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    pub host: Arc<str>,
    pub port: u16,
    pub identity: Option<SpiffeId>,
    pub labels: BTreeMap<String, String>,
    pub weight: u32,
    pub draining: bool,
    pub workload: crate::meta::Workload,
}

impl Dns {
    pub fn at(&self, ip: IpAddr) -> Config {
        let addr = SocketAddr::new(ip, self.port);
        Config {
            id: EndpointId(format!("{}/{addr}", self.host).into()),
            address: Address::Direct(addr),
            identity: self.identity.clone(),
            labels: self.labels.clone(),
            weight: self.weight,
            draining: self.draining,
            workload: self.workload.clone(),
        }
    }
}

impl Source {
    /// `10.1.0.5:8080`, or a map with `address` or `dns` and what else is known. `identity` is that of endpoints that name
    /// none, `service` whose endpoints they are.
    pub fn read(c: &mut Cursor<'_, '_>, identity: Option<&SpiffeId>, service: &ServiceId) -> Option<Self> {
        const ADDRESS: &str = "an IP address and a port, such as 10.1.0.5:8080 or [fd00::5]:8080";
        if matches!(c.node.value, Value::Text(_)) {
            let addr: SocketAddr = c.parse(&format!("{ADDRESS}; names are given as {{dns: HOST:PORT}}"))?;
            return Some(Self::Static(Config {
                id: EndpointId(addr.to_string().into()),
                address: Address::Direct(addr),
                identity: identity.cloned(),
                labels: BTreeMap::new(),
                weight: 1,
                draining: false,
                workload: of(service, &BTreeMap::new()),
            }));
        }
        c.fields(|f| {
            let dns = f.opt("dns", read_host_port);
            let addr: Option<SocketAddr> = f.opt("address", |c| c.parse(ADDRESS));
            if f.has("dns") == f.has("address") {
                return f.fail(
                    "",
                    "an endpoint has either an address or a DNS name",
                    "address: 10.1.0.5:8080, or dns: db.example.com:5432",
                );
            }
            let id = f.opt("id", |c| c.text());
            if id.is_some() && f.has("dns") {
                return f.fail(
                    "id",
                    "ids of a name's endpoints are made from the name and the address",
                    "leave it out",
                );
            }
            let sni = f.opt("gatewaySni", |c| c.text());
            if sni.is_some() && f.has("dns") {
                return f.fail("gatewaySni", "a gateway is given by its address", "use address instead of dns");
            }
            let identity = f.opt("identity", crate::mtls::read_id).or_else(|| identity.cloned());
            let labels: BTreeMap<String, String> =
                f.opt("labels", |c| c.entries(|_, c| c.text())).map(|e| e.into_iter().collect()).unwrap_or_default();
            let weight = f.or("weight", 1, |c| c.int(1, 10_000).map(|w| w as u32));
            let draining = f.or("draining", false, |c| c.bool());
            let workload = f.opt("workload", crate::meta::Workload::read).unwrap_or_else(|| of(service, &labels));
            if let Some((host, port)) = dns {
                return Some(Self::Dns(Dns { host, port, identity, labels, weight, draining, workload }));
            }
            let addr = addr?;
            Some(Self::Static(Config {
                id: EndpointId(id.unwrap_or_else(|| addr.to_string()).into()),
                address: match sni {
                    Some(sni) => Address::ViaGateway { addr, sni: sni.into() },
                    None => Address::Direct(addr),
                },
                identity,
                labels,
                weight,
                draining,
                workload,
            }))
        })
    }
}

/// What can be told about an instance from its service and labels.
fn of(service: &ServiceId, labels: &BTreeMap<String, String>) -> crate::meta::Workload {
    let label = |name: &str| labels.get(name).map(|v| Arc::from(v.as_str()));
    let app: Arc<str> = label("app").unwrap_or_else(|| service.name.clone());
    crate::meta::Workload {
        name: app.clone(),
        namespace: service.namespace.clone(),
        app,
        version: label("version").unwrap_or_default(),
        pod: "".into(),
        cluster: service.cluster.clone(),
    }
}

fn read_host_port(c: &mut Cursor<'_, '_>) -> Option<(Arc<str>, u16)> {
    let text = c.text()?;
    let parts =
        text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok().filter(|p| *p > 0)?)));
    let valid = |host: &str| {
        let host = host.strip_suffix('.').unwrap_or(host);
        host.len() <= 253
            && host.split('.').all(|l| {
                (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            })
    };
    match parts {
        Some((host, _)) if host.parse::<IpAddr>().is_ok() => {
            c.fail(format!("{host} is an address, not a name"), "give it as address")
        }
        Some((host, port)) if valid(host) => Some((host.to_ascii_lowercase().into(), port)),
        _ => c.fail(format!("{text:?} is not a name with a port"), "such as db.example.com:5432"),
    }
}

#[derive(Debug)]
pub struct Endpoint {
    pub id: EndpointId,
    pub address: Address,
    pub identity: Option<SpiffeId>,
    weight: AtomicU32,
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
            weight: AtomicU32::new(config.weight),
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
            && self.workload == config.workload
    }

    /// What may change under one instance: a weight that is turned costs neither connections nor a standing ejection.
    pub fn adopt(&self, config: &Config) {
        self.weight.store(config.weight, Ordering::Relaxed);
        self.set_gone(config.draining);
    }

    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}
