//! `meshctl`: what a person types.

mod analyze;
mod apply;
mod delete;
mod edit;
mod error;
mod get;
mod lab;
mod objects;
mod place;
mod route;
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
    /// Routes of Services: show them, change shares, timeouts and retries where they are written
    Route(Box<route::Route>),
    Apply(apply::Apply),
    Delete(delete::Delete),
    Get(get::Get),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Lab(lab) => lab.run(),
        Command::Analyze(analyze) => analyze.run(),
        Command::Apply(apply) => apply.run(),
        Command::Delete(delete) => delete.run(),
        Command::Get(get) => get.run(),
        Command::Route(route) => route.run(),
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
            &["meshctl", "analyze", "examples/a", "--fields"],
            &["meshctl", "analyze", "examples/a", "-o", "json"],
        ] {
            assert!(Cli::try_parse_from(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["meshctl", "lab"][..],
            &["meshctl", "lab", "a", "--no-mesh", "--mesh-all"],
            &["meshctl", "lab", "a", "--image", "x"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
