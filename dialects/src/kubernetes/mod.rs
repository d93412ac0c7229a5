//! Kubernetes' own kinds: what there is to call, and who calls.

pub mod endpoint_slice;
pub mod headless;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod service;
pub mod workload;

pub use service::addresses;

use crate::builder::Builder;
use crate::reader::Reader;

/// Kinds that belong to an application and say nothing to a mesh.
pub fn without_effect(reader: &Reader<'_>, _: &mut Builder<'_>) {
    let names: Vec<String> = reader.root().entries().into_iter().map(|(name, _)| name).collect();
    for name in names.iter().filter(|n| !crate::reader::HEAD.contains(&n.as_str())) {
        reader.root().ignore(name, "the application's own");
    }
}
