//! The gRPC API between control plane and proxies. `proto/weft/v1/mesh.proto` says what everything means.

pub mod v1 {
    #![allow(clippy::all, clippy::pedantic, missing_docs)]
    tonic::include_proto!("weft.v1");

    /// The file's descriptor, as the wire's peers of other versions would see it.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mesh.desc"));
}
