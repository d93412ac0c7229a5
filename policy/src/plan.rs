//! Compile: from a service's configuration to what a request needs, precomputed. Pure and per unit of ack or nack; what does
//! not compile is refused with every reason at once, and the last good plan stays.

use crate::id::{BackendId, DestKey, ServiceId};
use crate::listener::Protocol;
use crate::route::{RoutePlan, Router};
use crate::service;
use crate::view::RequestView;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct CompileError {
    pub field: String,
    pub message: String,
}

#[derive(Debug, PartialEq, Eq)]
pub struct ServicePlan {
    pub id: ServiceId,
    pub port: u16,
    pub keys: Vec<DestKey>,
    pub protocol: Protocol,
    pub router: Router,
    /// What the routes' targets index; the first is the service itself.
    pub backends: Vec<BackendId>,
    /// Used where there are no routes at all, and for bytes that are not HTTP: where a port is declared as such, its first
    /// route without a match says where they go.
    pub default_route: Arc<RoutePlan>,
}

impl ServicePlan {
    /// The route of a request; `None` is `Reason::NoRoute`.
    pub fn route(&self, r: &RequestView<'_>) -> Option<&Arc<RoutePlan>> {
        match self.router.is_empty() {
            true => Some(&self.default_route),
            false => self.router.find(r),
        }
    }
}

pub fn compile(config: &service::Config) -> Result<Arc<ServicePlan>, Vec<CompileError>> {
    let own = BackendId { service: config.id.clone(), port: config.port, subset: None };
    let mut backends = vec![own];
    let mut errors = Vec::new();
    let router = Router::compile(config, &mut backends, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let bytes = matches!(config.protocol, Protocol::Opaque | Protocol::Tls);
    let default_route = router.for_bytes().filter(|_| bytes).unwrap_or_else(|| Arc::new(RoutePlan::default_to(0)));
    Ok(Arc::new(ServicePlan {
        id: config.id.clone(),
        port: config.port,
        keys: config.keys.clone(),
        protocol: config.protocol,
        router,
        backends,
        default_route,
    }))
}
