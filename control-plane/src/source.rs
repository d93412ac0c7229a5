//! Where objects come from. Whatever it is, it has one writer and publishes all there is.

pub mod dir;
pub mod kube;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use weft_dialects::Objects;
use weft_dialects::object::ObjectRef;
use weft_policy::diag::Diag;

/// All objects, and what is wrong with where they come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    pub objects: Arc<Objects>,
    pub faults: Vec<Fault>,
    /// How often something changed; 0 before the first look.
    pub generation: u64,
}

/// What was last seen as `status` of objects that have one of ours. It is no part of the object, which would be another one whenever
/// somebody writes there.
pub type Statuses = BTreeMap<ObjectRef, Value>;

#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub file: PathBuf,
    pub diag: Diag,
}
