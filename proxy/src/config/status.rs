//! What configuration is in force, and what was refused and why: for admin, and for people.

use std::time::SystemTime;

/// One thing that is applied or refused on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `service` or `listener`.
    pub kind: &'static str,
    pub name: String,
    /// Counts what was accepted, from 1.
    pub version: u64,
    pub state: State,
    pub since: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Applied,
    /// The last good version, if there was one, is in force.
    Refused(Vec<String>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub resources: Vec<Resource>,
    /// Of the last attempt to read the file; empty when it was accepted.
    pub file_errors: Vec<String>,
    pub last_success: Option<SystemTime>,
    /// Why the identity files were not taken; the earlier ones are in use.
    pub identity_error: Option<String>,
    /// Every name of an endpoint has been asked for at least once.
    pub names_settled: bool,
}
