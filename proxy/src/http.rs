//! HTTP: the request path and what is directly under it.

pub mod attempt;
pub mod body;
pub mod exchange;
pub mod fields;
pub mod flight;
pub mod flood;
pub mod h2_client;
pub mod http1;
pub mod hyper_driver;
pub mod inbound;
pub mod mirror;
pub mod normalise;
pub mod outbound;
pub mod reject;
pub mod sender;
pub mod server;
pub mod stall;
pub mod wire;
