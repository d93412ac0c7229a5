//! The control plane's executable. Everything is in the library.

use clap::Parser;
use std::process::ExitCode;
use weft_control::{app, settings::Settings};

fn main() -> ExitCode {
    app::main(Settings::parse())
}
