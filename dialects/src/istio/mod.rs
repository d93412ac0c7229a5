//! Istio: `networking.istio.io` and `security.istio.io`.

pub mod destination_rule;
pub mod peer_authentication;
pub mod virtual_service;
