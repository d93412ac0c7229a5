//! The sidecar's executable. Everything is in the library.

use clap::Parser;
use std::process::ExitCode;
use weft_proxy::{app, called_as, settings::Settings};

fn main() -> ExitCode {
    called_as::other(std::env::args_os()).unwrap_or_else(|| app::main(&Settings::parse()))
}
