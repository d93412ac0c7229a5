//! A port of a service as clients see it: how it is found, its routes, and the backends it is made of.

use crate::backend;
use crate::doc::{Cursor, Fields, Node, Value};
use crate::endpoint;
use crate::id::{BackendId, DestKey, ServiceId, SpiffeId};
use crate::listener::Protocol;
use crate::route;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The unit of routing, of compile, and of ack or nack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub id: ServiceId,
    pub port: u16,
    pub keys: Vec<DestKey>,
    pub protocol: Protocol,
    pub order: route::Order,
    /// Empty: everything goes to the service itself.
    pub routes: Vec<route::Config>,
}

/// A subset of a service's endpoints with policies of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    pub name: Arc<str>,
    pub labels: BTreeMap<String, String>,
    pub policy: backend::Config,
}

impl Subset {
    pub fn takes(&self, endpoint: &endpoint::Config) -> bool {
        self.labels.iter().all(|(k, v)| endpoint.labels.get(k) == Some(v))
    }
}

/// The other half: what a service's port is made of. Endpoints come and go without touching the routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    pub service: ServiceId,
    pub port: u16,
    pub policy: backend::Config,
    pub subsets: Vec<Subset>,
}

impl Backends {
    /// Every backend this makes: the whole service, and each subset.
    pub fn each(&self) -> impl Iterator<Item = (BackendId, &backend::Config, Option<&Subset>)> {
        let id = |subset: Option<Arc<str>>| BackendId { service: self.service.clone(), port: self.port, subset };
        std::iter::once((id(None), &self.policy, None))
            .chain(self.subsets.iter().map(move |s| (id(Some(s.name.clone())), &s.policy, Some(s))))
    }
}

/// A port of a service as a file gives it, both halves and where the endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub config: Config,
    pub backends: Backends,
    pub endpoints: Vec<endpoint::Source>,
    /// Where in the document it was, for what is found wrong later.
    pub path: String,
}

/// How clients find a service; each key of a host, an address or a server name is made for every port.
struct Names {
    hosts: Vec<(Arc<str>, Option<u16>)>,
    addresses: Vec<(IpAddr, Option<u16>)>,
    server_names: Vec<(Arc<str>, Option<u16>)>,
}

impl Names {
    fn keys(&self, port: u16) -> Vec<DestKey> {
        let hosts = self.hosts.iter().map(|(h, p)| DestKey::Host { host: h.clone(), port: p.unwrap_or(port) });
        let addrs = self.addresses.iter().map(|(ip, p)| DestKey::Addr(SocketAddr::new(*ip, p.unwrap_or(port))));
        let snis = self.server_names.iter().map(|(n, p)| DestKey::Sni { name: n.clone(), port: p.unwrap_or(port) });
        let mut keys: Vec<DestKey> = hosts.chain(addrs).chain(snis).collect();
        keys.sort();
        keys.dedup();
        keys
    }
}

impl Entry {
    /// One service of a file: its ports in `ports`, or the fields of a single one beside its name.
    pub fn read(c: &mut Cursor<'_, '_>, default_namespace: &str) -> Option<Vec<Self>> {
        let path = c.path.clone();
        c.fields(|f| {
            let name = f.req("name", read_name);
            let namespace = f.opt("namespace", read_name);
            let names = Names {
                hosts: f.list("hosts", read_host),
                addresses: f.list("addresses", read_address),
                server_names: f.list("serverNames", read_host),
            };
            let identity = f.opt("identity", crate::mtls::read_id);
            // A name that is wrong is reported; its ports are read all the same.
            let name = name.unwrap_or_default();
            let (name, namespace) = match (name.split_once('.'), namespace) {
                // With a namespace of its own the name may have dots, as that of an external host has.
                (_, Some(namespace)) => (name, namespace),
                (None, None) => (name, default_namespace.to_string()),
                (Some((_, rest)), None) if rest.contains('.') => {
                    let hint = "NAME, NAME.NAMESPACE, or a name with dots beside a namespace field";
                    return f.fail("name", format!("{name:?} has more than a name and a namespace"), hint);
                }
                (Some((name, of)), None) => (name.to_string(), of.to_string()),
            };
            let id = ServiceId::new(&namespace, &name);
            if f.has("port") && f.has("ports") {
                return f.fail("port", "port and ports are both given", "port for a single one, ports for several");
            }
            if !f.has("ports") {
                return Some(vec![Self::read_port(f, &id, &names, identity.as_ref(), path)?]);
            }
            let entries = f.opt("ports", |c| {
                c.list(|c| {
                    let path = c.path.clone();
                    c.fields(|f| Self::read_port(f, &id, &names, identity.as_ref(), path))
                })
            })?;
            if entries.is_empty() {
                return f.fail("ports", "a service has at least one port", "");
            }
            for (i, entry) in entries.iter().enumerate() {
                if entries[..i].iter().any(|e| e.config.port == entry.config.port) {
                    f.fail::<()>("ports", format!("port {} is here twice", entry.config.port), "give each port once");
                }
            }
            Some(entries)
        })
    }

    fn read_port(
        f: &mut Fields<'_, '_>,
        id: &ServiceId,
        names: &Names,
        identity: Option<&SpiffeId>,
        path: String,
    ) -> Option<Self> {
        let port = f.req("port", |c| c.port());
        let protocol = f.opt("protocol", Protocol::read).unwrap_or_default();
        let order = f.opt("order", route::Order::read).unwrap_or_default();
        let routes = f.list("routes", route::Config::read);
        let policy_node = f.opt("policy", |c| Some(c.node.clone()));
        let policy = f.opt("policy", backend::Config::read);
        let inherited = policy_node.filter(|_| policy.is_some());
        let subsets = f.list("subsets", |c| Subset::read(c, inherited.as_ref()));
        let endpoints = f.list("endpoints", |c| endpoint::Source::read(c, identity, id));
        let port = port?;
        for (i, subset) in subsets.iter().enumerate() {
            if subsets[..i].iter().any(|s| s.name == subset.name) {
                f.fail::<()>("subsets", format!("subset {} is here twice", subset.name), "give each name once");
            }
        }
        let mut seen = rustc_hash::FxHashSet::default();
        for endpoint in &endpoints {
            let name = match endpoint {
                endpoint::Source::Static(e) => e.id.to_string(),
                endpoint::Source::Dns(e) => format!("{}:{}", e.host, e.port),
            };
            if let Some(twice) = seen.replace(name) {
                f.fail::<()>(
                    "endpoints",
                    format!("{twice} is here twice"),
                    "give each endpoint once, or different ids",
                );
            }
        }
        let keys = names.keys(port);
        Some(Self {
            config: Config { id: id.clone(), port, keys, protocol, order, routes },
            backends: Backends { service: id.clone(), port, policy: policy.unwrap_or_default(), subsets },
            endpoints,
            path,
        })
    }
}

impl Subset {
    /// Settings that the subset's policy does not name are those of the port.
    fn read(c: &mut Cursor<'_, '_>, inherited: Option<&Node>) -> Option<Self> {
        c.fields(|f| {
            let name = f.req("name", read_name)?;
            let labels: BTreeMap<String, String> =
                f.req("labels", |c| c.entries(|_, c| c.text()))?.into_iter().collect();
            let policy = match (f.has("policy"), inherited) {
                (true, None) => f.opt("policy", backend::Config::read)?,
                (true, Some(base)) => f.opt("policy", |c| {
                    let node = overlay(base, c.node);
                    backend::Config::read(&mut Cursor { node: &node, path: c.path.clone(), diags: c.diags })
                })?,
                (false, Some(base)) => {
                    f.opt("policy", backend::Config::read);
                    read_quietly(base)?
                }
                (false, None) => {
                    f.opt("policy", backend::Config::read);
                    backend::Config::default()
                }
            };
            Some(Self { name: name.into(), labels, policy })
        })
    }
}

/// Reads what was read before without fault.
fn read_quietly(node: &Node) -> Option<backend::Config> {
    backend::Config::read(&mut Cursor::new(node, &mut crate::diag::Diags::tolerant()))
}

/// `base` with the fields of `over` in the place of its own.
fn overlay(base: &Node, over: &Node) -> Node {
    let (Value::Map(base), Value::Map(own)) = (&base.value, &over.value) else { return over.clone() };
    let kept = base.iter().filter(|(k, _, _)| !own.iter().any(|(o, _, _)| o == k));
    Node { at: over.at, value: Value::Map(own.iter().chain(kept).cloned().collect()) }
}

/// Lower-case letters, digits, `-` and `.`, as names are in Kubernetes.
pub(crate) fn read_name(c: &mut Cursor<'_, '_>) -> Option<String> {
    let text = c.text()?;
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
    if text.len() > 253 || text.split('.').any(str::is_empty) || !text.bytes().all(valid) {
        return c.fail(format!("{text:?} is not a name"), "a-z, 0-9, '-' and '_', at most 253 of them");
    }
    Some(text)
}

/// `reviews`, `*.example.com`, `*`; with `:PORT` for another port than the service's, with `:*` for any port.
fn read_host(c: &mut Cursor<'_, '_>) -> Option<(Arc<str>, Option<u16>)> {
    const HINT: &str =
        "a host such as reviews.demo, *.example.com or *, with :PORT or :* where the port is another or any";
    let text = c.text()?.to_ascii_lowercase();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, "*")) => (host, Some(0)),
        // The colons of a bare IPv6 address are in brackets, as in a Host header.
        Some((host, port)) if !port.ends_with(']') => match port.parse::<u16>().ok().filter(|p| *p > 0) {
            Some(port) => (host, Some(port)),
            None => return c.fail(format!("{text:?} has no such port"), HINT),
        },
        _ => (text.as_str(), None),
    };
    let address = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let valid = address || host == "*" || host.strip_prefix("*.").unwrap_or(host).split('.').all(label);
    if !valid || host.len() > 253 {
        return c.fail(format!("{text:?} is not a host"), HINT);
    }
    Some((host.into(), port))
}

fn read_address(c: &mut Cursor<'_, '_>) -> Option<(IpAddr, Option<u16>)> {
    let text = c.text()?;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((ip.to_canonical(), None));
    }
    match text.parse::<SocketAddr>() {
        Ok(addr) => Some((addr.ip().to_canonical(), Some(addr.port()))),
        Err(_) => c.fail(
            format!("{text:?} is not an address"),
            "an IP address such as 10.0.0.10 or fd00::10, with :PORT where the port is another",
        ),
    }
}
