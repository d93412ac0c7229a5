//! The sidecar. `http/outbound.rs` and `http/inbound.rs` are the request path; read those first, then `docs/request-path.md`.

pub mod accept;
pub mod admin;
pub mod app;
pub mod called_as;
pub mod config;
pub mod ending;
pub mod http;
pub mod introduction;
pub mod process;
pub mod redirect;
pub mod settings;
pub mod sys;
pub mod telemetry;
pub mod upstream;
pub mod worker;

use clap::Parser;
use std::process::ExitCode;

/// Whatever name it is called by.
pub fn main() -> ExitCode {
    called_as::other(std::env::args_os()).unwrap_or_else(|| app::main(&settings::Settings::parse()))
}
