//! Which pods get a sidecar, and the change that gives them one.
//!
//! Pure: an object as JSON in, a [`Verdict`] out. A webhook puts the `patch` into its answer and `meshctl inject` prints the
//! `object`; both come from [`inject`], so they cannot differ. `decide.rs` says whether and why, `wishes.rs` what annotations
//! ask for, `pod.rs` puts the pod together, and `record.rs` takes it apart again. `app.rs` and `serve.rs` are the webhook, a program
//! of its own.
//!
//! What comes in is hostile: sizes are bounded, and a value that is not understood is refused for its field alone, with a
//! warning that names it. Nothing of a value is ever passed on that was not parsed and written anew.

pub mod app;
pub mod decide;
pub mod json_patch;
mod metrics;
mod pod;
mod probes;
pub mod record;
mod redirect;
pub mod serve;
pub mod settings;
mod shape;
mod sidecar;
mod values;
pub mod wishes;
pub mod workload;

pub use record::uninject;
pub use settings::{Dialect, Mode, Settings};
pub use workload::is_workload;

use decide::Decision;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The sidecar's user; rules of redirection leave alone what it sends, so no app may have it.
pub const UID: u32 = 1337;
/// Where the sidecar takes what the app sends, and what it is sent.
pub const OUTBOUND: u16 = 15001;
pub const INBOUND: u16 = 15006;
/// Where the sidecar answers for the app: its probes and its metrics.
pub const AGENT: u16 = 15020;
pub const READY: u16 = 15021;
pub const METRICS: u16 = 15090;
/// Where Linkerd's tools ask.
pub const LINKERD_ADMIN: u16 = 4191;

/// More than an API server takes.
const MAX_BYTES: usize = 3 << 20;
const MAX_DEPTH: usize = 64;
/// An API server passes on so much of a warning, and a few of them.
const MAX_WARNING: usize = 250;
const MAX_WARNINGS: usize = 20;

/// A pod's namespace, as far as it has a word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// One object that may get a sidecar.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A Pod, or what makes pods.
    pub object: &'a Value,
    pub namespace: &'a Namespace,
    /// Who asks where neither pod nor namespace does: whoever runs `meshctl inject`. A webhook has nobody.
    pub asked: Option<Dialect>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub outcome: Outcome,
    /// One sentence each, for whoever wrote the pod.
    pub warnings: Vec<String>,
    /// Which switch asked for a sidecar that the pod, which was skipped, cannot have.
    pub unmet: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Injected(Box<Injected>),
    /// Stays as it is, and why.
    Skipped(String),
    /// Must not run as it is, and why: a mesh that its pods go past is none.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// The object with its sidecar.
    pub object: Value,
    /// The same as operations of RFC 6902 on the object that came in.
    pub patch: Vec<Value>,
    pub dialect: Dialect,
    pub mode: Mode,
    /// The sidecar's container.
    pub container: String,
    /// Which switch asked for it.
    pub why: String,
}

/// None: the object is nothing that has pods.
pub fn inject(settings: &Settings, request: &Request<'_>) -> Option<Verdict> {
    if !is_workload(request.object) {
        return None;
    }
    let mut warnings = Warnings::default();
    let mut unmet = None;
    let outcome = outcome(settings, request, &mut warnings, &mut unmet);
    Some(Verdict { outcome, warnings: warnings.0, unmet })
}

fn outcome(settings: &Settings, request: &Request<'_>, warnings: &mut Warnings, unmet: &mut Option<String>) -> Outcome {
    if let Err(why) = shape::check(request.object) {
        return Outcome::Refused(why);
    }
    let Some(template) = workload::template(request.object) else {
        return Outcome::Skipped("it has no pod template".into());
    };
    match decide::decide(settings, request, &template, warnings) {
        Decision::Skip(why) => Outcome::Skipped(why),
        Decision::Cannot { asked, why } => {
            *unmet = Some(asked);
            Outcome::Skipped(why)
        }
        Decision::Refuse(why) => Outcome::Refused(why),
        Decision::Inject { dialect, why } => pod::build(settings, request, dialect, why, warnings),
    }
}

/// What is said to whoever wrote a pod, bounded.
#[derive(Debug, Default)]
pub struct Warnings(Vec<String>);

impl Warnings {
    pub fn add(&mut self, text: impl Into<String>) {
        let mut text = text.into();
        if text.chars().count() > MAX_WARNING {
            text = text.chars().take(MAX_WARNING - 3).chain("...".chars()).collect();
        }
        if self.0.len() < MAX_WARNINGS && !self.0.contains(&text) {
            self.0.push(text);
        }
    }
}

/// A value as it may be shown: short, and without anything that a terminal would obey.
fn shown(text: &str) -> String {
    const MOST: usize = 40;
    let start: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    match text.chars().nth(MOST) {
        None => format!("\"{start}\""),
        Some(_) => format!("\"{start}...\" ({} bytes)", text.len()),
    }
}

/// Labels and annotations are text; what YAML took for something else is what people meant to be text.
fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(b) => Some(Cow::Owned(b.to_string())),
        Value::Number(n) => Some(Cow::Owned(n.to_string())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
