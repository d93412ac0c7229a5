//! A port of a service as clients see it: how it is found, its routes, and the backends it is made of.

use crate::backend;
use crate::endpoint;
use crate::id::{BackendId, DestKey, ServiceId};
use crate::listener::Protocol;
use crate::route;
use std::collections::BTreeMap;
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
