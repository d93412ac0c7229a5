//! What there is: the manifests, the world that the control plane makes of them, and what one pod's sidecar sees of it.

use crate::cluster::pods::workload;
use crate::error::{Error, Result};
use crate::lab::imagine;
use crate::lab::manifest::{DEFAULT_NAMESPACE, Folder, Manifests, json, port, text};
use crate::lab::service::{self, View as Names};
use crate::objects::Store;
use crate::place::Place;
use crate::running::Running;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use weft_control::scope::View;
use weft_control::source::dir::Dirs;
use weft_dialects::ledger::Document;
use weft_dialects::object::{Object, Objects};
use weft_dialects::world::PodId;
use weft_dialects::{Ledger, Options, World, translate};
use weft_policy::destinations::Destinations;
use weft_policy::diag::Diags;
use weft_policy::doc::Cursor;
use weft_policy::endpoint::Source;
use weft_policy::id::{ServiceId, SpiffeId};
use weft_policy::listener;
use weft_policy::registry::{Bound, Registry};
use weft_policy::service::Entry;
use weft_policy::{plan, yaml};

pub struct Mesh {
    pub objects: Objects,
    pub problems: Vec<String>,
    pub world: World,
    pub ledger: Ledger,
    view: View,
    /// What the lab's DNS answers from.
    pub names: Names,
    /// Every pod that runs somewhere.
    pods: Vec<Pod>,
    /// `None`: a folder alone.
    pub running: Option<Running>,
    pub place: String,
}

/// A pod, with a sidecar or without.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: PodId,
    pub workload: String,
    pub address: Option<IpAddr>,
    /// `None`: it has no sidecar.
    pub identity: Option<SpiffeId>,
    labels: BTreeMap<String, String>,
}

/// What a pod's sidecar holds.
#[derive(Default)]
pub struct Sight {
    pub destinations: Destinations<Arc<Bound>>,
    pub entries: BTreeMap<(ServiceId, u16), Entry>,
    pub outbound: Option<listener::Config>,
    /// Documents that no proxy would take.
    pub withheld: Vec<String>,
}

impl Mesh {
    /// The lab that runs or the cluster, with its pods; or a folder, with those that it would have.
    pub fn open(place: &Place, mesh_all: bool) -> Result<Self> {
        let (manifests, running, from) = match place.running() {
            Ok(Running::Cluster(cluster)) => {
                let store = Store::of_cluster(cluster.clone())?;
                store.warn();
                let manifests = Manifests { objects: Arc::new(store.objects), problems: Vec::new() };
                let from = cluster.to_string();
                (manifests, Some(Running::Cluster(cluster)), from)
            }
            // Whoever means a cluster does not mean a folder.
            Err(e) if place.is_cluster() => return Err(e),
            Ok(Running::Lab(lab)) => {
                let mut dirs = Dirs::new(&[lab.manifests.clone().into(), lab.pods()], DEFAULT_NAMESPACE);
                dirs.look();
                let from = format!("lab {} ({})", lab.id, lab.manifests);
                (Manifests::of(&dirs), Some(Running::Lab(lab)), from)
            }
            Err(_) => {
                let folder = place.folder()?;
                let name = folder.display().to_string();
                let open = Folder::open(&folder).map_err(|e| {
                    Error::new(format!("{name} cannot be read: {e}"), "--dir DIR, a folder that holds manifests")
                })?;
                let Manifests { objects, problems } = open.manifests();
                let objects = Arc::new(imagine::with_pods(&objects, mesh_all));
                (Manifests { objects, problems }, None, name)
            }
        };
        let objects = Objects(manifests.objects.0.clone());
        let (world, ledger) = translate(&objects, &Options::default());
        let view = View::new(&world, &Json::Object(Default::default()), &View::default());
        let services = service::services(&objects, &mut Vec::new());
        let names = Names { services, pods: objects.of("", "Pod").filter_map(named).collect() };
        let pods = objects.of("", "Pod").filter_map(|object| pod(object, &world)).collect();
        Ok(Self { problems: manifests.problems, world, ledger, view, names, pods, objects, running, place: from })
    }

    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.address == Some(address))
    }

    /// The pod that is meant by its name or its workload's, with `NAMESPACE/` or a kind before it.
    pub fn client(&self, wanted: &str, namespace: Option<&str>) -> Result<Pod> {
        let all = &self.pods;
        let known = |n: &str| all.iter().any(|pod| pod.id.namespace == n);
        let (before, name) = match wanted.split_once('/') {
            Some((before, name)) => (Some(before).filter(|n| known(n)), name),
            None => (None, wanted),
        };
        let here = |pod: &&Pod| namespace.or(before).is_none_or(|n| pod.id.namespace == n);
        let called = |pod: &&Pod| pod.id.name == name || pod.workload == name;
        let found: Vec<&Pod> = all.iter().filter(here).filter(called).collect();
        let Some(first) = found.first() else {
            let mut names: Vec<&str> = all.iter().filter(here).map(|pod| pod.workload.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            let hint = if names.is_empty() { "--dir, --context, or -n NAMESPACE".into() } else { names.join(", ") };
            return Err(Error::new(format!("no workload {wanted:?} in {}", self.place), format!("one of {hint}")));
        };
        if let Some(other) = found.iter().find(|pod| pod.id.namespace != first.id.namespace) {
            let (a, b) = (&first.id.namespace, &other.id.namespace);
            return Err(Error::new(format!("{name} is in {a} and in {b}"), format!("-n {a}")));
        }
        // One that has a sidecar shows more, while a workload is being replaced.
        let meshed = found.iter().find(|pod| pod.identity.is_some());
        Ok((*meshed.unwrap_or(first)).clone())
    }

    pub fn addresses(&self, name: &str, namespace: &str) -> Vec<Ipv4Addr> {
        crate::lab::dns::addresses(name, namespace, &self.names)
    }

    /// As its sidecar holds it when everything has arrived. `None` without a sidecar.
    pub fn sight(&self, pod: &Pod) -> Option<Sight> {
        let identity = pod.identity.as_ref()?;
        let wanted = self.view.wanted(&pod.id, identity, &["*".to_string()].into()).ok()?;
        let document = |name: &str| -> Option<Json> {
            wanted.pieces.get(name).and_then(|piece| serde_json::from_slice(&piece.document).ok())
        };
        let withheld = self.view.withheld.iter().map(|w| format!("{}: {}", w.name, w.why)).collect();
        let mut sight = Sight { withheld, ..Sight::default() };
        let listeners = document("proxy").map(|proxy| listeners(&proxy)).unwrap_or_default();
        sight.outbound = listeners.into_iter().find(|l| !l.role.is_inbound());
        let mut registry = Registry::default();
        for name in wanted.pieces.keys().filter(|n| n.starts_with("service/")) {
            let Some(mut service) = document(name) else { continue };
            for port in service["ports"].as_array_mut().into_iter().flatten() {
                let endpoints = name.replacen("service", "endpoints", 1);
                if let Some(found) = document(&format!("{endpoints}/{}", port["port"])) {
                    port["endpoints"] = found;
                }
            }
            for entry in entries(&service) {
                registry.put_all(&entry.backends);
                // Whoever has names for endpoints has none here: nobody is asked.
                let known = entry.endpoints.iter().filter_map(|source| match source {
                    Source::Static(config) => Some(config.clone()),
                    Source::Dns(_) => None,
                });
                registry.set_endpoints(&entry.backends, &known.collect::<Vec<_>>());
                sight.entries.insert((entry.config.id.clone(), entry.config.port), entry);
            }
        }
        let mut taken = std::collections::BTreeSet::new();
        for entry in sight.entries.values() {
            let Ok(plan) = plan::compile(&entry.config) else { continue };
            let bound = Arc::new(registry.bind(&plan));
            for key in &bound.plan.keys {
                if taken.insert(key.clone()) {
                    sight.destinations.put(key, &bound);
                }
            }
        }
        Some(sight)
    }

    /// Which document a pod has of a service.
    pub fn variant(&self, pod: &Pod, service: &ServiceId) -> Option<Document> {
        let variants = &self.world.services.get(service)?.variants;
        let i = variants.iter().position(|v| v.clients.are(&pod.id.namespace, &pod.labels))?;
        Some(Document::Service(service.clone(), i))
    }

    /// The port's document in it, and its place.
    pub fn port_of(&self, document: &Document, port: u16) -> Option<(usize, &Json)> {
        let Document::Service(id, variant) = document else { return None };
        let ports = self.world.services.get(id)?.variants.get(*variant)?.document["ports"].as_array()?;
        ports.iter().enumerate().find(|(_, p)| p["port"] == port)
    }

    /// What a pod's sidecar demands of who calls its app.
    pub fn inbound(&self, pod: &PodId) -> Option<listener::Config> {
        let document = &self.world.pods.get(pod)?.document;
        listeners(document).into_iter().find(|l| l.role.is_inbound())
    }
}

fn listeners(document: &Json) -> Vec<listener::Config> {
    let mut diags = Diags::tolerant();
    let node = yaml::parse(&document["listeners"].to_string(), &mut diags);
    node.and_then(|node| Cursor::new(&node, &mut diags).list(listener::Config::read)).unwrap_or_default()
}

fn entries(document: &Json) -> Vec<Entry> {
    let mut diags = Diags::tolerant();
    let node = yaml::parse(&document.to_string(), &mut diags);
    node.and_then(|node| Entry::read(&mut Cursor::new(&node, &mut diags), DEFAULT_NAMESPACE)).unwrap_or_default()
}

fn pod(object: &Arc<Object>, world: &World) -> Option<Pod> {
    let whole = json(&object.node);
    let address = whole["status"]["podIP"].as_str()?.parse().ok();
    let id = PodId { namespace: object.namespace.clone(), name: object.name.clone() };
    let owner = text(&whole["metadata"]["ownerReferences"][0]["name"]);
    let hash = object.labels.get("pod-template-hash").map(String::as_str);
    let owner = owner.map(|name| workload(&name, hash).to_string());
    let identity = world.pods.get(&id).map(|pod| pod.identity.clone());
    let workload = owner.unwrap_or_else(|| object.name.clone());
    Some(Pod { id, workload, address, identity, labels: object.labels.clone() })
}

/// As the lab's DNS sees a pod.
fn named(object: &Arc<Object>) -> Option<service::Pod> {
    let whole = json(&object.node);
    let containers = whole["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let ports = ports.filter_map(|p| Some((text(&p["name"])?, port(&p["containerPort"])?))).collect();
    Some(service::Pod {
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        subdomain: text(&whole["spec"]["subdomain"]),
        address: whole["status"]["podIP"].as_str()?.parse().ok()?,
        labels: object.labels.clone(),
        ports,
        ready: true,
    })
}
