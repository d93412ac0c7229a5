//! Identity, trust and the socket of a mesh hop.
//!
//! `bundle` says which roots prove which trust domain, `identity` is our own certificate and key, `material` is the pair
//! of them that all workers share and a rotation swaps. `verify` decides whether a peer is who it must be and gives every
//! refusal one word (`reason`), and `proven` remembers whom it has verified. `config` turns all that into rustls configs with the provider chosen here, never the
//! process default. `socket` is the batching stream that both ends of a hop speak through, `hello` peeks at a TLS hello
//! without starting a handshake. `request` makes a key and asks for its certificate.

pub mod bundle;
mod ciphers;
pub mod config;
pub mod hello;
pub mod identity;
pub mod material;
mod proven;
pub mod reason;
pub mod request;
pub mod socket;
pub mod verify;

pub use bundle::TrustBundle;
pub use config::{MeshServer, Origination, Roots, mesh_client, mesh_server, open_server, origination_client};
pub use hello::{Hello, Peek};
pub use identity::{Identity, TlsError};
pub use material::{Live, Material};
pub use reason::{HandshakeError, Reason};
pub use request::Request;
pub use socket::{ConnInfo, Ear, Flusher, MeshStream, Refusal, Stats, Taking};
pub use verify::{Expect, PeerIdentity, hex_sha256};
