//! What the executable does besides being a sidecar: verbs, and the names it is called by. The sidecar's image has no shell and
//! no other program in it, yet its users type `kubectl exec POD -c istio-proxy -- curl localhost:15000/stats`.

mod ask;
pub mod curl;
pub mod pilot_agent;

use crate::redirect;
use clap::Parser;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs what was called for, by the program's own name (`curl` as a link to it) or its first argument (`weft-proxy curl`).
/// `None`: the sidecar itself.
pub fn other(words: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let words: Vec<OsString> = words.into_iter().collect();
    let name = words.first().and_then(|w| Path::new(w).file_name()?.to_str());
    run(name, &words).or_else(|| run(words.get(1)?.to_str(), &words[1..]))
}

fn run(name: Option<&str>, words: &[OsString]) -> Option<ExitCode> {
    match name? {
        "redirect" => Some(redirect::main(&redirect::Redirect::parse_from(words))),
        "curl" => Some(curl::main(words)),
        "pilot-agent" => Some(pilot_agent::main(&pilot_agent::PilotAgent::parse_from(words))),
        _ => None,
    }
}
