//! Manifests of many meshes to one model.
//!
//! `translate` is pure: objects in, a world and a ledger out. The world's documents are written in the format of
//! `docs/config-file.md`, the same that files, the wire, goldens and `explain` show; `weft-policy` reads them everywhere, so
//! what it refuses is found here and not in a proxy. The ledger says of every field of every object what became of it.
//!
//! One folder per dialect, one file per kind. No dialect calls another; who wins where two speak about one service is decided
//! in `conflict.rs`.

pub mod builder;
pub mod conflict;
pub mod gateway;
pub mod istio;
pub mod kinds;
pub mod kubernetes;
pub mod ledger;
pub mod linkerd;
pub mod native;
pub mod object;
pub mod overlay;
mod proof;
pub mod quantity;
pub mod reader;
pub mod smi;
mod variants;
pub mod world;

pub use ledger::Ledger;
pub use object::{Object, Objects};
pub use world::World;

use builder::Builder;
use reader::Reader;
use weft_policy::telemetry::Tracing;

/// What a mesh is called. The defaults are those of Kubernetes and Istio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub trust_domain: String,
    pub cluster_domain: String,
    /// Where mesh-wide objects live.
    pub root_namespace: String,
    /// Addresses of the mesh's pods and services (CIDR), in the place of what Nodes and ServiceCIDRs say.
    pub mesh_ranges: Vec<String>,
    /// Where sidecars send spans, and of how many requests.
    pub tracing: Tracing,
    /// How sidecars write down requests: off, json or text.
    pub access_log: String,
}

impl Default for Options {
    fn default() -> Self {
        let own = |text: &str| text.to_string();
        Self {
            trust_domain: own("cluster.local"),
            cluster_domain: own("cluster.local"),
            root_namespace: own("istio-system"),
            mesh_ranges: Vec::new(),
            tracing: Tracing::default(),
            access_log: own("json"),
        }
    }
}

pub fn translate(objects: &Objects, options: &Options) -> (World, Ledger) {
    let readers: Vec<Reader<'_>> = objects.0.iter().enumerate().map(|(i, o)| Reader::new(o, i)).collect();
    let mut builder = Builder::new(objects, options);
    for kind in kinds::KINDS {
        readers.iter().filter(|r| kind.is(r.object)).for_each(|r| (kind.translate)(r, &mut builder));
    }
    for reader in &readers {
        kinds::check(reader);
    }
    let mut ledger = Ledger::default();
    readers.iter().for_each(|r| r.finish(&mut ledger));
    let world = builder.finish(&mut ledger);
    (world, ledger)
}
