//! What comes out: services as clients see them, and pods as their own sidecars see them.
//!
//! Documents are in the format of `docs/config-file.md`. What a service is may depend on who calls it (a route of the client's
//! namespace, a match by the caller's labels), so it has variants, and the first whose clients fit is the one a proxy gets.

use crate::object::ObjectRef;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use weft_policy::id::{ServiceId, SpiffeId};
use weft_policy::meta::Workload;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    pub services: BTreeMap<ServiceId, Service>,
    pub pods: BTreeMap<PodId, Pod>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// Never empty; the last one is for everybody.
    pub variants: Vec<Variant>,
    /// The `endpoints` of each port.
    pub endpoints: BTreeMap<u16, Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    pub clients: Clients,
    /// An entry of `services`, without endpoints.
    pub document: Value,
    /// What its routes need to be there as well.
    pub refers: BTreeSet<ServiceId>,
    /// Which objects made it, for `explain` and for status.
    pub from: Vec<ObjectRef>,
}

/// Whom something is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Empty: of any namespace.
    pub namespaces: BTreeSet<String>,
    pub labels: BTreeMap<String, String>,
}

impl Clients {
    pub fn are(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        (self.namespaces.is_empty() || self.namespaces.contains(namespace))
            && self.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    pub namespace: String,
    pub name: String,
}

/// A pod with a sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub identity: SpiffeId,
    pub workload: Workload,
    pub labels: BTreeMap<String, String>,
    /// The configuration file without identity, services and endpoints: workload, telemetry, and the listeners `out` and `in`.
    pub document: Value,
}
