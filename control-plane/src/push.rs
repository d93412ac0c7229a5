//! What proxies are told: a stream for each, and only what is different from what it has.

pub mod delta;
pub mod server;
pub mod session;
pub mod siblings;
