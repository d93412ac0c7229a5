//! The whole mesh in a real Kubernetes, as its users have it: installed by `meshctl install`, sidecars injected by the webhook,
//! asked with `kubectl`. A cluster costs 15 seconds and a gigabyte, so all tests share one and run one after the other.
//!
//! `mesh.rs` has the cluster with the mesh in it, `process.rs` what runs in pods; `run.rs` runs tests and tells of them as `cargo test`
//! does; `warm.rs` is a connection in use.

pub mod mesh;
pub mod process;
pub mod run;
pub mod warm;

pub use mesh::Mesh;

pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Fails with what was seen unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err(format!($($said)+).into());
        }
    };
}
