//! Manifests of many meshes to one model.
//!
//! `translate` is pure: objects in, a world and a ledger out. The world's documents are written in the format of
//! `docs/config-file.md`, the same that files, the wire, goldens and `explain` show; `weft-policy` reads them everywhere, so
//! what it refuses is found here and not in a proxy. The ledger says of every field of every object what became of it.
//!
//! One folder per dialect, one file per kind. No dialect calls another; who wins where two speak about one service is decided
//! in `conflict.rs`.

pub mod ledger;
pub mod object;
pub mod world;

pub use ledger::Ledger;
pub use object::{Object, Objects};
pub use world::World;
