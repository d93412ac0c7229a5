//! HTTP: the request path and what is directly under it.

pub mod attempt;
pub mod body;
mod date;
pub mod exchange;
pub mod fields;
pub mod flight;
pub mod http1;
pub mod http2;
pub mod inbound;
pub mod mirror;
pub mod normalise;
pub mod outbound;
pub mod reject;
pub mod sender;
pub mod server;
pub mod wire;
