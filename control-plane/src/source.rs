//! Where objects come from. Whatever it is, it has one writer and publishes all there is.

pub mod dir;
pub mod kube;

use std::path::PathBuf;
use std::sync::Arc;
use weft_dialects::Objects;
use weft_policy::diag::Diag;

/// All objects, and what is wrong with where they come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    pub objects: Arc<Objects>,
    pub faults: Vec<Fault>,
    /// How often something changed; 0 before the first look.
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub file: PathBuf,
    pub diag: Diag,
}
