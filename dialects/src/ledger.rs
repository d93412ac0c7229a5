//! What became of every field of every object, and the mistakes that were seen on the way.

use crate::object::{Object, ObjectRef};
use crate::reader::Source;
use crate::world::PodId;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_policy::diag::{Pos, Severity};
use weft_policy::id::ServiceId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Honoured,
    /// In force, and not quite as its own mesh would do it: how.
    Differently(String),
    /// Without effect: why.
    Ignored(String),
    /// Another object says something else about the same, and wins.
    WonBy(ObjectRef),
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub object: ObjectRef,
    pub file: Arc<str>,
    /// As in `spec.http[0].retries.attempts`.
    pub field: String,
    pub at: Pos,
    pub verdict: Verdict,
}

/// A mistake, or what looks like one. `reference` is that of a known trap, such as `G5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub reference: Option<&'static str>,
    pub object: ObjectRef,
    pub file: Arc<str>,
    pub field: String,
    pub at: Pos,
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
    /// It is of another object that is not there, or not so: it may come, in the next line of the same file.
    pub absent: bool,
}

/// One of the world's documents.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Document {
    /// A service in one of its variants.
    Service(ServiceId, usize),
    Pod(PodId),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub entries: Vec<Entry>,
    pub findings: Vec<Finding>,
    /// Where the parts of a document come from, by their paths in it: `ports[0].routes[1]`, `ports[0].policy.breaker`, of
    /// pods `inbound.mtls`. What is not named is of what is around it.
    pub origins: BTreeMap<Document, BTreeMap<String, Source>>,
}

impl Ledger {
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|f| f.severity == Severity::Error)
    }

    pub fn entry(&mut self, object: &Object, field: impl Into<String>, at: Pos, verdict: Verdict) {
        let (object, file) = (object.reference(), object.file.clone());
        self.entries.push(Entry { object, file, field: field.into(), at, verdict });
    }
}
