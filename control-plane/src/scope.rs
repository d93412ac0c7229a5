//! What a proxy gets: of the world, what its pod may see and has asked for.
//!
//! A `View` is a world laid out for sending: every document a `Piece` with its name and the hash of its content, destinations
//! indexed. It is made once per change and shared by all sessions. `wanted` is pure: view, pod and subscriptions in, pieces out.
//! A service comes in the first variant whose clients the pod is among; one that has none for it is not there for it.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use weft_dialects::world::{Clients, PodId, Variant, World};
use weft_policy::diag::{Diag, Diags, Severity};
use weft_policy::doc::Cursor;
use weft_policy::id::{DestKey, ServiceId, SpiffeId};
use weft_policy::service::Entry;
use weft_policy::yaml;
use weft_tls::hex_sha256;

/// Below the size of a message, with room for the rest of it.
const MAX_DOCUMENT: usize = 3 << 20;

/// A resource as it is sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub name: Arc<str>,
    pub version: Arc<str>,
    pub document: Vec<u8>,
}

/// Of a document, by its content.
pub fn version(document: &Value) -> String {
    version_of(document.to_string().as_bytes())
}

fn version_of(document: &[u8]) -> String {
    let mut version = hex_sha256(document);
    version.truncate(32);
    version
}

impl Piece {
    fn new(name: String, document: &Value) -> Result<Arc<Self>, String> {
        let document = document.to_string().into_bytes();
        if document.len() > MAX_DOCUMENT {
            return Err(format!("{} bytes; at most {MAX_DOCUMENT} are sent", document.len()));
        }
        let version = version_of(&document);
        Ok(Arc::new(Self { name: name.into(), version: version.into(), document }))
    }
}

/// A document of the world that is not sent: translation made something that no proxy would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    pub name: String,
    pub why: String,
}

#[derive(Debug, Default)]
pub struct View {
    pods: BTreeMap<PodId, PodView>,
    services: BTreeMap<ServiceId, ServiceView>,
    hosts: BTreeMap<(Arc<str>, u16), BTreeSet<ServiceId>>,
    addresses: BTreeMap<SocketAddr, BTreeSet<ServiceId>>,
    trust: Option<Arc<Piece>>,
    pub withheld: Vec<Withheld>,
}

#[derive(Debug)]
struct PodView {
    identity: SpiffeId,
    workload: Arc<str>,
    labels: BTreeMap<String, String>,
    proxy: Arc<Piece>,
    /// What its listeners name.
    refers: Vec<ServiceId>,
}

#[derive(Debug)]
struct ServiceView {
    variants: Vec<VariantView>,
    endpoints: Vec<Arc<Piece>>,
}

#[derive(Debug)]
struct VariantView {
    clients: Clients,
    piece: Arc<Piece>,
    keys: Vec<DestKey>,
    refers: BTreeSet<ServiceId>,
}

/// What one proxy should have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub pieces: BTreeMap<Arc<str>, Arc<Piece>>,
    /// Of the subscriptions, those that lead nowhere.
    pub unknown: BTreeSet<String>,
    /// The pod is in the world; before that, only the trust is known, and nothing is known not to be wanted.
    pub placed: bool,
}

/// The certificate says it is this pod, the world says that pod is somebody else.
#[derive(Debug, PartialEq, Eq)]
pub struct OtherIdentity {
    pub expected: SpiffeId,
}

impl View {
    /// `previous` gives the last good piece in the place of one that cannot be sent.
    pub fn new(world: &World, trust: &Value, previous: &Self) -> Self {
        let mut view = Self::default();
        view.trust = view.piece("trust".into(), trust).or_else(|| previous.trust.clone());
        for (id, service) in &world.services {
            let before = previous.services.get(id);
            let mut variants = Vec::new();
            for (i, variant) in service.variants.iter().enumerate() {
                let old = before.and_then(|b| b.variants.get(i)).filter(|v| v.clients == variant.clients);
                variants.extend(view.variant(id, variant, old));
            }
            let mut endpoints = Vec::new();
            for (port, document) in &service.endpoints {
                let name = format!("endpoints/{}/{}/{port}", id.namespace, id.name);
                let old = before.and_then(|b| b.endpoints.iter().find(|p| *p.name == *name)).cloned();
                endpoints.extend(view.piece(name, document).or(old));
            }
            for key in variants.iter().flat_map(|v| &v.keys) {
                match key {
                    DestKey::Host { host, port } => view.hosts.entry((host.clone(), *port)).or_default(),
                    DestKey::Addr(address) => view.addresses.entry(*address).or_default(),
                    DestKey::Sni { .. } => continue,
                }
                .insert(id.clone());
            }
            view.services.insert(id.clone(), ServiceView { variants, endpoints });
        }
        for (id, pod) in &world.pods {
            let old = previous.pods.get(id).map(|p| p.proxy.clone());
            let Some(proxy) =
                view.piece_of("proxy", &pod.document, &format!("proxy of {}/{}", id.namespace, id.name)).or(old)
            else {
                continue;
            };
            let refers = listeners_refer(&pod.document, &id.namespace);
            let (identity, labels) = (pod.identity.clone(), pod.labels.clone());
            let workload = pod.workload.name.clone();
            view.pods.insert(id.clone(), PodView { identity, workload, labels, proxy, refers });
        }
        view
    }

    fn piece(&mut self, name: String, document: &Value) -> Option<Arc<Piece>> {
        let said = name.clone();
        self.piece_of(&name, document, &said)
    }

    fn piece_of(&mut self, name: &str, document: &Value, said: &str) -> Option<Arc<Piece>> {
        Piece::new(name.into(), document).map_err(|why| self.withheld.push(Withheld { name: said.into(), why })).ok()
    }

    /// Reads the document as a proxy will: for its keys, and so that nothing is sent that would be refused.
    fn variant(&mut self, id: &ServiceId, variant: &Variant, old: Option<&VariantView>) -> Option<VariantView> {
        let name = format!("service/{}/{}", id.namespace, id.name);
        let last = |old: &VariantView| VariantView {
            clients: old.clients.clone(),
            piece: old.piece.clone(),
            keys: old.keys.clone(),
            refers: old.refers.clone(),
        };
        let piece = self.piece(name.clone(), &variant.document);
        let Some(piece) = piece else { return old.map(last) };
        // Reading costs more than comparing.
        let keys = match old {
            Some(old) if old.piece == piece => old.keys.clone(),
            _ => match keys(&piece.document, &id.namespace) {
                Ok(keys) => keys,
                Err(why) => {
                    self.withheld.push(Withheld { name, why });
                    return old.map(last);
                }
            },
        };
        Some(VariantView { clients: variant.clients.clone(), piece, keys, refers: variant.refers.clone() })
    }

    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// Whose replica a pod is.
    pub fn owner(&self, pod: &PodId) -> Option<Arc<str>> {
        Some(self.pods.get(pod)?.workload.clone())
    }

    /// What a pod belongs to, if it is known and is who it should be.
    pub fn workload(&self, pod: &PodId, identity: &SpiffeId) -> Option<&str> {
        let own = self.pods.get(pod).filter(|own| own.identity == *identity)?;
        Some(&*own.workload).filter(|name| !name.is_empty())
    }

    pub fn services(&self) -> usize {
        self.services.len()
    }

    pub fn wanted(
        &self,
        pod: &PodId,
        identity: &SpiffeId,
        subscriptions: &BTreeSet<String>,
    ) -> Result<Wanted, OtherIdentity> {
        let mut wanted = Wanted::default();
        wanted.pieces.extend(self.trust.iter().map(|p| (p.name.clone(), p.clone())));
        let Some(own) = self.pods.get(pod) else { return Ok(wanted) };
        if own.identity != *identity {
            return Err(OtherIdentity { expected: own.identity.clone() });
        }
        wanted.placed = true;
        let mut scope = Scope { view: self, namespace: &pod.namespace, labels: &own.labels, wanted };
        scope.take(&own.proxy);
        for id in &own.refers {
            scope.service(id);
        }
        for name in subscriptions {
            if !scope.subscription(name) {
                scope.wanted.unknown.insert(name.clone());
            }
        }
        Ok(scope.wanted)
    }
}

/// One client looking at a view.
struct Scope<'v> {
    view: &'v View,
    namespace: &'v str,
    labels: &'v BTreeMap<String, String>,
    wanted: Wanted,
}

impl<'v> Scope<'v> {
    fn take(&mut self, piece: &Arc<Piece>) {
        self.wanted.pieces.insert(piece.name.clone(), piece.clone());
    }

    fn visible(&self, id: &ServiceId) -> Option<(&'v ServiceView, &'v VariantView)> {
        let service = self.view.services.get(id)?;
        let variant = service.variants.iter().find(|v| v.clients.are(self.namespace, self.labels))?;
        Some((service, variant))
    }

    /// With its endpoints, and everything its routes name, and so on.
    fn service(&mut self, id: &ServiceId) -> bool {
        if self.visible(id).is_none() {
            return false;
        }
        let mut next = vec![id.clone()];
        while let Some(id) = next.pop() {
            let Some((service, variant)) = self.visible(&id) else { continue };
            if self.wanted.pieces.insert(variant.piece.name.clone(), variant.piece.clone()).is_none() {
                next.extend(variant.refers.iter().cloned());
            }
            for piece in &service.endpoints {
                self.take(piece);
            }
        }
        true
    }

    /// Whether it leads anywhere.
    fn subscription(&mut self, name: &str) -> bool {
        if name == "*" {
            let view = self.view;
            for id in view.services.keys() {
                self.service(id);
            }
            return true;
        }
        let (kind, rest) = name.split_once('/').unwrap_or((name, ""));
        match kind {
            "proxy" | "trust" => rest.is_empty(),
            "service" => {
                let Some((namespace, name)) = rest.split_once('/') else { return false };
                self.service(&ServiceId::new(namespace, name))
            }
            "endpoints" => {
                let mut parts = rest.splitn(3, '/');
                let (Some(namespace), Some(service)) = (parts.next(), parts.next()) else { return false };
                let Some((service, _)) = self.visible(&ServiceId::new(namespace, service)) else { return false };
                match service.endpoints.iter().find(|p| *p.name == *name) {
                    Some(piece) => {
                        self.take(piece);
                        true
                    }
                    None => false,
                }
            }
            "host" => {
                let host = rest.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
                let found = host.and_then(|(host, port)| self.host(&host.to_ascii_lowercase(), port));
                self.alias(name, found)
            }
            "address" => {
                let address = rest.parse::<SocketAddr>().ok();
                let address = address.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
                let found =
                    address.and_then(|a| self.nearest(self.view.addresses.get(&a)?, |key| *key == DestKey::Addr(a)));
                self.alias(name, found)
            }
            _ => false,
        }
    }

    fn alias(&mut self, name: &str, found: Option<ServiceId>) -> bool {
        let Some(id) = found else { return false };
        let document = json!({"service": &*id.name, "namespace": &*id.namespace});
        let Ok(piece) = Piece::new(name.into(), &document) else { return false };
        self.take(&piece);
        self.service(&id)
    }

    /// The most specific host wins, and of one host its own port before any port.
    fn host(&self, host: &str, port: u16) -> Option<ServiceId> {
        let wildcards = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]));
        let patterns = std::iter::once(host.to_string()).chain(wildcards).chain(["*".to_string()]);
        patterns.flat_map(|p| [(p.clone(), port), (p, 0)]).find_map(|(pattern, port)| {
            let pattern: Arc<str> = pattern.into();
            let key = DestKey::Host { host: pattern.clone(), port };
            self.nearest(self.view.hosts.get(&(pattern, port))?, |k| *k == key)
        })
    }

    /// Of several services that claim a destination, the client's namespace's own; names may be short.
    fn nearest(&self, claimed: &BTreeSet<ServiceId>, is: impl Fn(&DestKey) -> bool) -> Option<ServiceId> {
        let claims = |id: &&ServiceId| self.visible(id).is_some_and(|(_, v)| v.keys.iter().any(&is));
        let mut here = claimed.iter().filter(|id| *id.namespace == *self.namespace);
        here.find(claims).or_else(|| claimed.iter().find(claims)).cloned()
    }
}

/// The destinations of a service's document, if a proxy would take it.
fn keys(document: &[u8], namespace: &str) -> Result<Vec<DestKey>, String> {
    let mut diags = Diags::default();
    let text = String::from_utf8_lossy(document);
    let entries =
        yaml::parse(&text, &mut diags).and_then(|node| Entry::read(&mut Cursor::new(&node, &mut diags), namespace));
    let wrong: Vec<&Diag> = diags.0.iter().filter(|d| d.severity == Severity::Error).collect();
    match entries {
        Some(entries) if wrong.is_empty() => Ok(entries.into_iter().flat_map(|e| e.config.keys).collect()),
        _ => Err(wrong.first().map_or("it cannot be read".into(), |d| match d.field.is_empty() {
            true => d.message.clone(),
            false => format!("{}: {}", d.field, d.message),
        })),
    }
}

/// `to` of each listener: `NAME`, `NAME.NAMESPACE`, or a map of them.
fn listeners_refer(document: &Value, own: &str) -> Vec<ServiceId> {
    let to = |listener: &Value| {
        let to = &listener["to"];
        let name = to.as_str().or_else(|| to["service"].as_str())?;
        Some(match (to["namespace"].as_str(), name.split_once('.')) {
            (Some(namespace), _) => ServiceId::new(namespace, name),
            (None, Some((name, namespace))) => ServiceId::new(namespace, name),
            (None, None) => ServiceId::new(own, name),
        })
    };
    document["listeners"].as_array().into_iter().flatten().filter_map(to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_dialects::world::{Pod, Service};
    use weft_policy::meta::Workload;

    fn variant(namespaces: &[&str], document: Value, refers: &[&str]) -> Variant {
        Variant {
            clients: Clients {
                namespaces: namespaces.iter().map(ToString::to_string).collect(),
                labels: BTreeMap::new(),
            },
            document,
            refers: refers.iter().map(|n| ServiceId::new("demo", n)).collect(),
            from: Vec::new(),
        }
    }

    fn service(world: &mut World, namespace: &str, name: &str, variants: Vec<Variant>) {
        let endpoints = BTreeMap::from([(80, json!(["10.1.0.5:80"]))]);
        world.services.insert(ServiceId::new(namespace, name), Service { variants, endpoints });
    }

    fn plain(name: &str, hosts: &[&str]) -> Value {
        json!({"name": name, "port": 80, "hosts": hosts, "addresses": ["10.0.0.10"]})
    }

    fn id(namespace: &str, name: &str) -> PodId {
        PodId { namespace: namespace.into(), name: name.into() }
    }

    fn spiffe(namespace: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://a.b/ns/{namespace}/sa/web")).unwrap()
    }

    fn pod(world: &mut World, namespace: &str, document: Value) {
        let (identity, workload, labels) = (spiffe(namespace), Workload::default(), BTreeMap::new());
        world.pods.insert(id(namespace, "web-1"), Pod { identity, workload, labels, document });
    }

    fn view(world: &World) -> View {
        View::new(world, &json!([]), &View::default())
    }

    fn names(view: &View, namespace: &str, subscriptions: &[&str]) -> (Vec<String>, Vec<String>) {
        let subscriptions = subscriptions.iter().map(ToString::to_string).collect();
        let wanted = view.wanted(&id(namespace, "web-1"), &spiffe(namespace), &subscriptions).unwrap();
        (wanted.pieces.keys().map(ToString::to_string).collect(), wanted.unknown.into_iter().collect())
    }

    #[test]
    fn what_was_asked_for_and_what_it_needs() {
        let mut world = World::default();
        service(&mut world, "demo", "web", vec![variant(&[], plain("web", &["web", "web.demo"]), &["api"])]);
        service(&mut world, "demo", "api", vec![variant(&[], json!({"name": "api", "port": 80}), &["db", "gone"])]);
        service(&mut world, "demo", "db", vec![variant(&[], json!({"name": "db", "port": 80}), &["web"])]);
        service(&mut world, "demo", "own", vec![variant(&[], json!({"name": "own", "port": 80}), &[])]);
        pod(&mut world, "demo", json!({"listeners": [{"name": "in", "to": "own"}, {"name": "out"}]}));
        let view = view(&world);
        let own = ["endpoints/demo/own/80", "proxy", "service/demo/own", "trust"];
        assert_eq!(names(&view, "demo", &[]).0, own);
        assert_eq!(names(&view, "demo", &["proxy", "trust"]), (own.map(String::from).to_vec(), vec![]));
        let (got, unknown) =
            names(&view, "demo", &["host/WEB.demo:80", "host/web.demo:81", "service/demo/none", "x", ""]);
        assert_eq!(
            got,
            [
                "endpoints/demo/api/80",
                "endpoints/demo/db/80",
                "endpoints/demo/own/80",
                "endpoints/demo/web/80",
                "host/WEB.demo:80",
                "proxy",
                "service/demo/api",
                "service/demo/db",
                "service/demo/own",
                "service/demo/web",
                "trust"
            ]
        );
        assert_eq!(unknown, ["", "host/web.demo:81", "service/demo/none", "x"]);
        let alias =
            view.wanted(&id("demo", "web-1"), &spiffe("demo"), &["address/10.0.0.10:80".into()].into()).unwrap();
        let alias: Value = serde_json::from_slice(&alias.pieces["address/10.0.0.10:80"].document).unwrap();
        assert_eq!(alias, json!({"service": "web", "namespace": "demo"}));
        assert_eq!(names(&view, "demo", &["*"]).0.len(), 10);
    }

    #[test]
    fn the_first_variant_that_fits_and_none_for_others() {
        let mut world = World::default();
        let special = variant(&["demo"], plain("web", &["web"]), &[]);
        service(&mut world, "demo", "web", vec![special, variant(&[], plain("web", &["web.demo"]), &[])]);
        service(&mut world, "demo", "secret", vec![variant(&["demo"], json!({"name": "secret", "port": 80}), &[])]);
        pod(&mut world, "demo", json!({}));
        pod(&mut world, "other", json!({}));
        let view = view(&world);
        let version = |namespace: &str| {
            let wanted = view.wanted(&id(namespace, "web-1"), &spiffe(namespace), &["*".into()].into()).unwrap();
            (wanted.pieces["service/demo/web"].version.clone(), wanted.pieces.contains_key("service/demo/secret"))
        };
        assert_ne!(version("demo").0, version("other").0);
        assert_eq!((version("demo").1, version("other").1), (true, false));
        let hidden = ["service/demo/secret", "endpoints/demo/secret/80", "host/web:80"];
        assert_eq!(
            names(&view, "other", &hidden).1,
            ["endpoints/demo/secret/80", "host/web:80", "service/demo/secret"]
        );
        assert_eq!(names(&view, "demo", &hidden).1, Vec::<String>::new());
    }

    #[test]
    fn wildcards_and_the_namespace_of_the_client() {
        let mut world = World::default();
        for namespace in ["demo", "other"] {
            service(
                &mut world,
                namespace,
                "web",
                vec![variant(&[], json!({"name": "web", "port": 80, "hosts": ["web"]}), &[])],
            );
            pod(&mut world, namespace, json!({}));
        }
        let hosts = |h: &[&str]| json!({"name": "x", "port": 443, "hosts": h});
        service(&mut world, "ext", "wide", vec![variant(&[], hosts(&["*.example.com:*"]), &[])]);
        service(&mut world, "ext", "narrow", vec![variant(&[], hosts(&["*.api.example.com"]), &[])]);
        service(&mut world, "ext", "exact", vec![variant(&[], hosts(&["v1.api.example.com:8443"]), &[])]);
        let view = view(&world);
        let leads = |namespace: &str, to: &str| {
            let wanted = view.wanted(&id(namespace, "web-1"), &spiffe(namespace), &[to.to_string()].into()).unwrap();
            wanted.pieces.get(to).map(|p| {
                let v: Value = serde_json::from_slice(&p.document).unwrap();
                format!("{}.{}", v["service"].as_str().unwrap(), v["namespace"].as_str().unwrap())
            })
        };
        assert_eq!(leads("other", "host/web:80").as_deref(), Some("web.other"));
        assert_eq!(leads("demo", "host/web:80").as_deref(), Some("web.demo"));
        for (host, service) in [
            ("host/a.example.com:1", "wide.ext"),
            ("host/a.b.example.com:443", "wide.ext"),
            ("host/a.api.example.com:443", "narrow.ext"),
            ("host/a.api.example.com:80", "wide.ext"),
            ("host/v1.api.example.com:8443", "exact.ext"),
        ] {
            assert_eq!(leads("demo", host).as_deref(), Some(service), "{host}");
        }
        assert_eq!(leads("demo", "host/example.com:443"), None);
    }

    #[test]
    fn what_no_proxy_would_take_is_not_sent() {
        let mut world = World::default();
        service(&mut world, "demo", "web", vec![variant(&[], plain("web", &["web"]), &[])]);
        pod(&mut world, "demo", json!({}));
        let good = view(&world);
        service(&mut world, "demo", "web", vec![variant(&[], json!({"name": "web", "prot": 80}), &[])]);
        let next = View::new(&world, &json!([]), &good);
        assert_eq!(next.withheld.len(), 1);
        assert!(next.withheld[0].name == "service/demo/web" && !next.withheld[0].why.is_empty());
        assert_eq!(names(&next, "demo", &["host/web:80"]), names(&good, "demo", &["host/web:80"]));
        let huge = json!({"name": "web", "port": 80, "hosts": ["web"], "x": "y".repeat(MAX_DOCUMENT)});
        service(&mut world, "demo", "web", vec![variant(&[], huge, &[])]);
        assert_eq!(View::new(&world, &json!([]), &View::default()).withheld.len(), 1);
    }

    #[test]
    fn a_pod_that_is_not_there_and_one_that_is_somebody_else() {
        let mut world = World::default();
        pod(&mut world, "demo", json!({}));
        let view = view(&world);
        let nobody = view.wanted(&id("demo", "web-2"), &spiffe("demo"), &["*".into()].into()).unwrap();
        assert!(!nobody.placed && nobody.pieces.len() == 1 && nobody.unknown.is_empty());
        let other = view.wanted(&id("demo", "web-1"), &spiffe("other"), &BTreeSet::new());
        assert_eq!(other, Err(OtherIdentity { expected: spiffe("demo") }));
    }
}
