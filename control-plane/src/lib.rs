//! The control plane.
//!
//! Three stages with a type at each border: `source` reads manifests into `Objects`; `world` translates them and lays the result
//! out as a `scope::View`; `push` sends every proxy what its pod may see and has asked for, as differences. Each stage has one
//! writer and publishes through a `watch`, so nothing is locked and a slow reader only misses what is out of date anyway.
//! `identity` is the authority that says who is who; it stands beside, and its roots are part of the view.
//!
//! Whatever comes in, be it a file, a request or a message, may be wrong or hostile. It is then refused with its place, the last
//! good state stays, and the others go on.

pub mod accept;
pub mod admin;
pub mod admission;
pub mod app;
pub mod conditions;
pub mod identity;
pub mod push;
pub mod report;
pub mod scope;
pub mod settings;
pub mod source;
pub mod state;
pub mod status;
pub mod world;
