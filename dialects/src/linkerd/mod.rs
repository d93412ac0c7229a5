//! Linkerd, as far as clients obey it: ServiceProfile, and annotations of Services and routes.

pub mod annotations;
mod condition;
mod failures;
pub mod inbound_policy;
pub mod service_profile;
