//! Towards an endpoint: pick, permit, connection, feedback.

pub mod dial;
pub mod implied;
pub mod pick;
pub mod pool;
pub mod tcp;

pub use pool::{Lease, Pools};
