//! `meshctl`: what a person types.

mod analyze;
mod error;
mod lab;
mod place;
mod terminal;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Weft's command line.
#[derive(Parser)]
#[command(
    name = "meshctl",
    version,
    after_help = "Exit codes: 0 done, 1 it failed (the message says why), 2 wrong use."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole mesh on this machine from a folder of manifests
    Lab(Box<lab::Lab>),
    /// Say what the mesh makes of manifests: mistakes, and what became of every field
    Analyze(analyze::Analyze),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Lab(lab) => lab.run(),
        Command::Analyze(analyze) => analyze.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line() {
        Cli::command().debug_assert();
        for good in [
            &["meshctl", "lab", "examples/a"][..],
            &["meshctl", "lab", "examples/a", "--no-mesh", "--image", "a/b=sleep 1"],
            &["meshctl", "lab", "ps", "-o", "json"],
            &["meshctl", "lab", "exec", "web", "--", "curl", "-s", "http://a"],
            &["meshctl", "lab", "scale", "web", "3"],
            &["meshctl", "lab", "examples/a", "--load", "--sampling", "1", "--otlp", "http://localhost:4317"],
            &["meshctl", "lab", "--load=20", "examples/a"],
            &["meshctl", "lab", "load", "users:80", "--from", "web", "-c", "5"],
            &["meshctl", "lab", "traces", "4BF9", "--last", "3"],
            &["meshctl", "analyze", "examples/a", "--fields"],
            &["meshctl", "analyze", "examples/a", "-o", "json"],
        ] {
            assert!(Cli::try_parse_from(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["meshctl", "lab"][..],
            &["meshctl", "lab", "a", "--no-mesh", "--mesh-all"],
            &["meshctl", "lab", "a", "--image", "x"],
            &["meshctl", "lab", "a", "--load=0"],
            &["meshctl", "lab", "a", "--otlp", "localhost:4317"],
            &["meshctl", "lab", "traces", "xyz"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
