//! HTTP: the request path and what is directly under it.

pub mod attempt;
pub mod body;
mod date;
pub mod early;
pub mod exchange;
pub mod fields;
pub mod flight;
pub mod gate;
pub mod http2;
pub mod hyper_driver;
pub mod inbound;
pub mod mirror;
pub mod normalise;
pub mod outbound;
pub mod reject;
pub mod sender;
pub mod server;
