//! The resources that the control plane has sent, each in its last good version, and the configuration they make.
//!
//! A resource is read by the readers of the file. One that cannot be read is refused alone: what was held of it stays, and so
//! do all others. Kinds and fields of a newer control plane are passed over.

use crate::config::check;
use crate::config::file::{self, ProxyConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use weft_policy::diag::{Diags, Pos, Severity};
use weft_policy::doc::{Cursor, Node, Value};
use weft_policy::endpoint;
use weft_policy::id::{ServiceId, TrustDomain};
use weft_policy::service::Entry;
use weft_policy::yaml;
use weft_tls::TrustBundle;

/// More than these a control plane has not sent by reason.
const MAX_RESOURCES: usize = 50_000;
const MAX_BYTES: usize = 256 << 20;
/// A reason is for people and for an object's status.
const MAX_REASON: usize = 1024;

/// What became of a resource that is not refused.
#[derive(Debug, PartialEq)]
pub enum Taken {
    Config,
    /// Nothing that requests see.
    Alias,
    Trust(TrustBundle),
    /// Of a kind that this proxy does not know.
    PassedOver,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    Proxy,
    Service {
        namespace: &'a str,
        name: &'a str,
    },
    Endpoints {
        namespace: &'a str,
        name: &'a str,
        port: u16,
    },
    /// What a destination means.
    Alias,
    Trust,
    Unknown,
}

impl<'a> Kind<'a> {
    fn of(name: &'a str) -> Result<Self, String> {
        let wrong = || format!("{name:?} is not a resource's name");
        let mut parts = name.split('/');
        let kind = parts.next().unwrap_or_default();
        let rest: Vec<&str> = parts.collect();
        Ok(match (kind, rest.as_slice()) {
            ("proxy", []) => Self::Proxy,
            ("trust", []) => Self::Trust,
            ("service", [namespace, name]) => Self::Service { namespace, name },
            ("endpoints", [namespace, name, port]) => {
                let port = port.parse().ok().filter(|p| *p > 0).ok_or_else(wrong)?;
                Self::Endpoints { namespace, name, port }
            }
            ("host" | "address", [_]) => Self::Alias,
            ("proxy" | "trust" | "service" | "endpoints" | "host" | "address", _) => return Err(wrong()),
            _ => Self::Unknown,
        })
    }
}

struct Held {
    version: String,
    /// `None` for what was passed over.
    document: Option<Node>,
    bytes: usize,
}

type Name = (String, String);

pub struct Plan {
    namespace: String,
    pod: String,
    base: PathBuf,
    held: BTreeMap<String, Held>,
    proxy: Option<ProxyConfig>,
    services: BTreeMap<Name, Vec<Entry>>,
    bytes: usize,
}

impl Plan {
    /// Of the pod that the proxy is in; relative paths in documents start at `base`.
    pub fn new(namespace: &str, pod: &str, base: PathBuf) -> Self {
        Self {
            namespace: namespace.into(),
            pod: pod.into(),
            base,
            held: BTreeMap::new(),
            proxy: None,
            services: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Version by name, of everything held.
    pub fn versions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.held.iter().map(|(name, held)| (name.as_str(), held.version.as_str()))
    }

    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Takes a resource's new version, or says why not; then everything is as it was.
    pub fn put(&mut self, name: &str, version: &str, document: &[u8]) -> Result<Taken, String> {
        let kind = Kind::of(name)?;
        let before = self.held.get(name).map_or(0, |h| h.bytes);
        if !self.held.contains_key(name) && self.held.len() >= MAX_RESOURCES {
            return Err(format!("more than {MAX_RESOURCES} resources"));
        }
        if self.bytes - before + document.len() > MAX_BYTES {
            return Err(format!("more than {MAX_BYTES} bytes of resources"));
        }
        if kind == Kind::Unknown {
            self.hold(name, version, None, 0);
            return Ok(Taken::PassedOver);
        }
        let text = std::str::from_utf8(document).map_err(|e| format!("not UTF-8 text at byte {}", e.valid_up_to()))?;
        let mut diags = Diags::tolerant();
        let node = yaml::parse(text, &mut diags).ok_or_else(|| reason(&diags))?;
        let taken = match kind {
            Kind::Proxy => {
                self.proxy = Some(self.read_proxy(&node, &mut diags)?);
                Taken::Config
            }
            Kind::Service { namespace, name } => {
                let merged = self.merged(&node, namespace, name, None);
                let entries = self.read_service(&merged, namespace, name, &mut diags)?;
                self.services.insert((namespace.into(), name.into()), entries);
                Taken::Config
            }
            Kind::Endpoints { namespace, name, port } => {
                read_endpoints(&node, namespace, name, &mut diags)?;
                // A service that is not here yet comes with its own turn.
                if let Some(service) = self.document(&service_of(namespace, name)) {
                    let merged = self.merged(service, namespace, name, Some((port, &node)));
                    let entries = self.read_service(&merged, namespace, name, &mut Diags::tolerant())?;
                    self.services.insert((namespace.into(), name.into()), entries);
                }
                Taken::Config
            }
            Kind::Alias => match meaning(&node, &mut diags) {
                Some(_) => Taken::Alias,
                None => return Err(reason(&diags)),
            },
            // Its holder has a say in it, and keeps it.
            Kind::Trust => return Ok(Taken::Trust(read_trust(&node, &mut diags)?)),
            Kind::Unknown => Taken::PassedOver,
        };
        for d in diags.0.iter().filter(|d| d.severity == Severity::Warning) {
            tracing::warn!(resource = name, field = %d.field, "{}", d.message);
        }
        self.hold(name, version, Some(node), document.len());
        Ok(taken)
    }

    /// Destinations that were asked for once.
    pub fn destinations(&self) -> impl Iterator<Item = &str> {
        self.held.keys().map(String::as_str).filter(|name| Kind::of(name) == Ok(Kind::Alias))
    }

    /// Whether a destination leads to a service that is here.
    pub fn leads(&self, name: &str) -> bool {
        let meaning = self.document(name).and_then(|node| meaning(node, &mut Diags::tolerant()));
        meaning.is_some_and(|service| self.services.contains_key(&service))
    }

    /// A resource that is held elsewhere is in force in this version.
    pub fn taken_elsewhere(&mut self, name: &str, version: &str) {
        self.hold(name, version, None, 0);
    }

    /// Whether that makes another configuration.
    pub fn remove(&mut self, name: &str) -> bool {
        let kind = Kind::of(name);
        if matches!(kind, Ok(Kind::Proxy | Kind::Trust)) {
            tracing::warn!(resource = name, "removed by the control plane; the last version stays in force");
            return false;
        }
        let Some(held) = self.held.remove(name) else { return false };
        self.bytes -= held.bytes;
        match kind {
            Ok(Kind::Service { namespace, name }) => {
                self.services.remove(&(namespace.to_string(), name.to_string())).is_some()
            }
            Ok(Kind::Endpoints { namespace, name, .. }) => {
                let Some(service) = self.document(&service_of(namespace, name)) else { return false };
                let merged = self.merged(service, namespace, name, None);
                match self.read_service(&merged, namespace, name, &mut Diags::tolerant()) {
                    Ok(entries) => {
                        self.services.insert((namespace.into(), name.into()), entries);
                        true
                    }
                    Err(_) => false,
                }
            }
            _ => false,
        }
    }

    /// All of it as the file would say it; `None` before there are listeners.
    pub fn config(&self) -> Option<ProxyConfig> {
        let mut config = self.proxy.clone()?;
        config.services = self.services.values().flatten().cloned().collect();
        check::fill_ports(&mut config);
        let mut document = self.document("proxy").map(yaml::json).unwrap_or_default();
        if let Some(fields) = document.as_object_mut() {
            let services = self.services.keys().filter_map(|(namespace, name)| {
                let node = self.document(&service_of(namespace, name))?;
                Some(yaml::json(&self.merged(node, namespace, name, None)))
            });
            fields.insert("services".into(), services.collect());
        }
        config.document = Arc::new(document);
        Some(config)
    }

    /// For the disk.
    pub fn saved(&self) -> serde_json::Value {
        let known = self.held.iter().filter_map(|(name, held)| {
            let document = yaml::json(held.document.as_ref()?);
            Some(serde_json::json!({"name": name, "version": held.version, "document": document}))
        });
        serde_json::json!({ "resources": known.collect::<Vec<_>>() })
    }

    /// Takes what was saved, as far as it can be read.
    pub fn restore(&mut self, saved: &serde_json::Value) {
        for resource in saved["resources"].as_array().into_iter().flatten() {
            let (Some(name), Some(version)) = (resource["name"].as_str(), resource["version"].as_str()) else {
                continue;
            };
            if let Err(why) = self.put(name, version, resource["document"].to_string().as_bytes()) {
                tracing::warn!(resource = name, error = %why, "not taken from the state folder");
            }
        }
    }

    fn hold(&mut self, name: &str, version: &str, document: Option<Node>, bytes: usize) {
        let held = Held { version: version.into(), document, bytes };
        let before = self.held.insert(name.into(), held).map_or(0, |h| h.bytes);
        self.bytes = self.bytes - before + bytes;
    }

    fn document(&self, name: &str) -> Option<&Node> {
        self.held.get(name)?.document.as_ref()
    }

    fn read_proxy(&self, node: &Node, diags: &mut Diags) -> Result<ProxyConfig, String> {
        let read = ProxyConfig::read(&mut Cursor::new(node, diags), &self.base);
        let Some((mut config, paths)) = read else { return Err(reason(diags)) };
        check::listeners(&config, &paths, node, diags);
        if diags.has_errors() {
            return Err(reason(diags));
        }
        for field in ["identity", "services"].into_iter().filter(|f| node.find(f).is_some()) {
            diags.warn(node.locate(field), field, "has no place in this resource, passed over", None);
        }
        config.identity = None;
        config.services = Vec::new();
        if node.find("workload.namespace").is_none() {
            config.workload.namespace = self.namespace.as_str().into();
        }
        if config.workload.pod.is_empty() {
            config.workload.pod = self.pod.as_str().into();
        }
        Ok(config)
    }

    fn read_service(&self, node: &Node, namespace: &str, name: &str, diags: &mut Diags) -> Result<Vec<Entry>, String> {
        let entries = Entry::read(&mut Cursor::new(node, diags), namespace);
        let Some(mut entries) = entries.filter(|_| !diags.has_errors()) else { return Err(reason(diags)) };
        let id = ServiceId::new(namespace, name);
        if let Some(other) = entries.iter().find(|e| e.config.id != id) {
            return Err(format!("name: the document is of {}", other.config.id));
        }
        entries.iter_mut().for_each(|e| file::rebase(e, &self.base));
        let config = ProxyConfig { services: entries, ..ProxyConfig::default() };
        check::services(&config, node, diags);
        match diags.has_errors() {
            true => Err(reason(diags)),
            false => Ok(config.services),
        }
    }

    /// A service with the endpoints that are held for its ports; `newest` is on its way in.
    fn merged(&self, service: &Node, namespace: &str, name: &str, newest: Option<(u16, &Node)>) -> Node {
        let mut service = service.clone();
        let Value::Map(fields) = &mut service.value else { return service };
        let endpoints = |port: u16| match newest {
            Some((of, node)) if of == port => Some(node),
            _ => self.document(&format!("endpoints/{namespace}/{name}/{port}")),
        };
        let several = fields.iter_mut().find_map(|(key, _, node)| match &mut node.value {
            Value::List(ports) if key == "ports" => Some(ports),
            _ => None,
        });
        match several {
            Some(ports) => {
                for port in ports {
                    if let Value::Map(fields) = &mut port.value {
                        put_endpoints(fields, endpoints);
                    }
                }
            }
            None => put_endpoints(fields, endpoints),
        }
        service
    }
}

fn put_endpoints<'n>(fields: &mut Vec<(String, Pos, Node)>, of: impl Fn(u16) -> Option<&'n Node>) {
    let port = fields.iter().find_map(|(key, _, node)| match node.value {
        Value::Int(port) if key == "port" => u16::try_from(port).ok(),
        _ => None,
    });
    if let Some(node) = port.and_then(of) {
        fields.retain(|(key, ..)| key != "endpoints");
        fields.push(("endpoints".into(), node.at, node.clone()));
    }
}

fn service_of(namespace: &str, name: &str) -> String {
    format!("service/{namespace}/{name}")
}

fn read_endpoints(node: &Node, namespace: &str, name: &str, diags: &mut Diags) -> Result<(), String> {
    let id = ServiceId::new(namespace, name);
    let read = Cursor::new(node, diags).list(|c| endpoint::Source::read(c, None, &id));
    read.filter(|_| !diags.has_errors()).map(drop).ok_or_else(|| reason(diags))
}

/// Namespace and name of the service that a destination means.
fn meaning(node: &Node, diags: &mut Diags) -> Option<Name> {
    Cursor::new(node, diags).fields(|f| {
        let service = f.req("service", |c| c.text());
        let namespace = f.req("namespace", |c| c.text());
        Some((namespace?, service?))
    })
}

fn read_trust(node: &Node, diags: &mut Diags) -> Result<TrustBundle, String> {
    let mut bundle = TrustBundle::default();
    let read = Cursor::new(node, diags).list(|c| {
        c.fields(|f| {
            let domain = f.req("domain", |c| {
                let text = c.text()?;
                TrustDomain::parse(&text).map_err(|e| c.fail::<()>(e.to_string(), "such as cluster.local")).ok()
            })?;
            f.req("roots", |c| {
                c.list(|c| {
                    let pem = c.text()?;
                    match bundle.add_pem(Some(domain.clone()), pem.as_bytes()) {
                        Ok(()) => Some(()),
                        Err(e) => c.fail(e.to_string(), "PEM certificates"),
                    }
                })
            })
        })
    });
    match read {
        Some(_) if !diags.has_errors() && !bundle.is_empty() => Ok(bundle),
        Some(_) if !diags.has_errors() => Err("no roots at all".into()),
        _ => Err(reason(diags)),
    }
}

/// `field: message (hint)`, of every error.
fn reason(diags: &Diags) -> String {
    let errors = diags.0.iter().filter(|d| d.severity == Severity::Error).map(|d| {
        let field = d.field.trim_start_matches('.');
        let colon = if field.is_empty() { "" } else { ": " };
        let hint = d.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
        format!("{field}{colon}{}{hint}", d.message)
    });
    // The same thing may be found by two readers.
    let errors: BTreeSet<String> = errors.collect();
    let mut text = errors.into_iter().collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        text = "cannot be read".into();
    }
    if text.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = r#"{"workload": {"name": "web"}, "future": 1,
        "listeners": [{"name": "out", "role": "outbound", "address": "127.0.0.1:15001", "to": "app", "newer": {}}]}"#;
    const APP: &str = r#"{"name": "app", "port": 80, "hosts": ["app"], "identity": "spiffe://d/ns/demo/sa/app"}"#;

    fn plan() -> Plan {
        Plan::new("demo", "web-0", "/nowhere".into())
    }

    fn put(plan: &mut Plan, name: &str, document: &str) -> Result<Taken, String> {
        plan.put(name, "1", document.as_bytes())
    }

    fn addresses(plan: &Plan) -> Vec<String> {
        let config = plan.config().unwrap();
        let endpoints = config.services[0].endpoints.iter();
        endpoints.map(|e| format!("{e:?}")).collect()
    }

    #[test]
    fn pieces_make_a_configuration() {
        let mut plan = plan();
        assert_eq!(put(&mut plan, "endpoints/demo/app/80", r#"["10.0.0.1:80"]"#), Ok(Taken::Config));
        assert_eq!(put(&mut plan, "service/demo/app", APP), Ok(Taken::Config));
        assert!(plan.config().is_none(), "no listeners yet");
        assert_eq!(put(&mut plan, "proxy", PROXY), Ok(Taken::Config));
        let config = plan.config().unwrap();
        assert_eq!((&*config.workload.namespace, &*config.workload.pod), ("demo", "web-0"));
        assert_eq!(config.listeners[0].to.as_ref().unwrap().port, Some(80));
        assert_eq!(config.document["services"][0]["endpoints"][0], "10.0.0.1:80");
        // The service's identity holds for endpoints that name none.
        assert!(addresses(&plan)[0].contains("spiffe://d/ns/demo/sa/app"));

        put(&mut plan, "endpoints/demo/app/80", r#"["10.0.0.2:80", "10.0.0.3:80"]"#).unwrap();
        assert_eq!(addresses(&plan).len(), 2);
        assert!(plan.remove("endpoints/demo/app/80"));
        assert!(addresses(&plan).is_empty());
        assert!(plan.remove("service/demo/app"));
        assert!(plan.config().unwrap().services.is_empty());
        assert!(!plan.remove("proxy") && plan.config().is_some());
        assert!(!plan.remove("service/demo/none"));
    }

    #[test]
    fn several_ports() {
        let mut plan = plan();
        put(&mut plan, "proxy", PROXY).unwrap();
        put(&mut plan, "service/demo/app", r#"{"name": "app", "ports": [{"port": 80}, {"port": 81}]}"#).unwrap();
        put(&mut plan, "endpoints/demo/app/81", r#"["10.0.0.1:81"]"#).unwrap();
        let config = plan.config().unwrap();
        let of = |port| config.services.iter().find(|s| s.config.port == port).unwrap().endpoints.len();
        assert_eq!((of(80), of(81)), (0, 1));
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let mut plan = plan();
        put(&mut plan, "proxy", PROXY).unwrap();
        put(&mut plan, "service/demo/app", APP).unwrap();
        put(&mut plan, "endpoints/demo/app/80", r#"["10.0.0.1:80"]"#).unwrap();
        let before = plan.config().unwrap();
        for (name, document, why) in [
            ("proxy", "{}", "listeners: is missing"),
            ("proxy", r#"{"listeners": []}"#, "nothing is listened on"),
            ("proxy", "[", "not YAML"),
            ("proxy", "\u{0}", ""),
            ("service/demo/app", r#"{"name": "app"}"#, "port: is missing"),
            ("service/demo/app", r#"{"name": "other", "port": 1}"#, "name: the document is of other.demo"),
            (
                "service/demo/app",
                r#"{"name": "app", "port": 80, "routes": [{"match": {"path": {"regex": "("}}}]}"#,
                "routes[0]",
            ),
            ("service/demo/app", "null", "nothing where a map"),
            ("endpoints/demo/app/80", r#"["nowhere"]"#, "[0]"),
            ("endpoints/demo/app/80", r#"["1.1.1.1:1", "1.1.1.1:1"]"#, "here twice"),
            ("endpoints/demo/app/0", "[]", "not a resource's name"),
            ("service/app", "{}", "not a resource's name"),
            ("trust", "[]", "no roots"),
            ("trust", r#"[{"domain": "d", "roots": ["x"]}]"#, "[0].roots[0]"),
        ] {
            let refused = put(&mut plan, name, document).unwrap_err();
            assert!(refused.contains(why), "{name} {document}: {refused}");
            assert_eq!(plan.config().unwrap(), before, "{name} {document}");
        }
        assert!(plan.put("proxy", "2", b"\xff").is_err());
        assert!(plan.put("proxy", "2", &vec![b' '; yaml::MAX_BYTES + 1]).is_err());
    }

    #[test]
    fn what_is_newer_is_passed_over() {
        let mut plan = plan();
        assert_eq!(put(&mut plan, "wasm/demo/x", "\u{1}"), Ok(Taken::PassedOver));
        assert_eq!(put(&mut plan, "proxy", PROXY), Ok(Taken::Config));
        let newer = r#"{"name": "app", "port": 80, "policy": {"breaker": {"maxConnections": 3, "newer": 1}, "later": {}},
            "subsets": [{"name": "v1", "labels": {"a": "b"}}]}"#;
        assert_eq!(put(&mut plan, "service/demo/app", newer), Ok(Taken::Config));
        let config = plan.config().unwrap();
        assert_eq!(config.services[0].backends.policy.breaker.max_connections, Some(3));
        assert_eq!(config.services[0].backends.subsets[0].policy.breaker.max_connections, Some(3));
    }

    #[test]
    fn saved_and_restored() {
        let mut plan = plan();
        put(&mut plan, "proxy", PROXY).unwrap();
        put(&mut plan, "service/demo/app", APP).unwrap();
        put(&mut plan, "endpoints/demo/app/80", r#"["10.0.0.1:80"]"#).unwrap();
        put(&mut plan, "wasm/x", "").unwrap();
        let mut again = self::plan();
        again.restore(&plan.saved());
        assert_eq!(again.config(), plan.config());
        assert_eq!(again.count(), 3);
        again.restore(&serde_json::json!({"resources": [{"name": "proxy", "version": "9", "document": 1}, 7]}));
        assert_eq!(again.config(), plan.config());
    }
}
