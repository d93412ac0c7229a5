//! The mutating webhook that gives pods their sidecars.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    weft_injector::app::main(weft_injector::app::Options::parse())
}
