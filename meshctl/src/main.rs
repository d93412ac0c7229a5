//! `meshctl`: what a person types.

mod analyze;
mod apply;
mod ca;
mod check;
mod cluster;
mod completions;
mod delete;
mod door;
mod edit;
mod error;
mod explain;
mod get;
mod inject;
mod install;
mod lab;
mod objects;
mod place;
mod proxy;
mod route;
mod running;
mod runtime;
mod stat;
mod status;
mod terminal;
mod uninstall;
mod version;

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
    /// Say who calls whom in a running lab or a cluster, how often and how well
    Stat(stat::Stat),
    /// Routes of Services: show them, change shares, timeouts and retries where they are written
    Route(Box<route::Route>),
    Apply(apply::Apply),
    Delete(delete::Delete),
    Get(get::Get),
    /// Say what would happen to a request, and which object says so
    Explain(Box<explain::Explain>),
    Install(Box<install::Install>),
    Upgrade(Box<install::Upgrade>),
    Uninstall(uninstall::Uninstall),
    Check(check::Check),
    Ca(ca::Ca),
    Inject(inject::Inject),
    Uninject(inject::Uninject),
    /// Look into the sidecars of a running lab or a cluster
    Proxy(proxy::Proxy),
    /// Say whether every sidecar of a running lab or a cluster has what it should, and what is wrong
    Status(status::Status),
    /// Print versions: of this program, and of a running lab's or a cluster's
    Version(version::Version),
    /// Print what a shell needs to complete these commands
    Completions(completions::Completions),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Lab(lab) => lab.run(),
        Command::Analyze(analyze) => analyze.run(),
        Command::Stat(stat) => stat.run(),
        Command::Apply(apply) => apply.run(),
        Command::Delete(delete) => delete.run(),
        Command::Get(get) => get.run(),
        Command::Route(route) => route.run(),
        Command::Explain(explain) => explain.run(),
        Command::Install(install) => install.run(),
        Command::Upgrade(upgrade) => upgrade.run(),
        Command::Uninstall(uninstall) => uninstall.run(),
        Command::Check(check) => check.run(),
        Command::Ca(ca) => ca.run(),
        Command::Inject(inject) => inject.run(),
        Command::Uninject(uninject) => uninject.run(),
        Command::Proxy(proxy) => proxy.run(),
        Command::Status(status) => status.run(),
        Command::Version(version) => version.run(),
        Command::Completions(completions) => completions.run(&mut <Cli as clap::CommandFactory>::command()),
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
            &["meshctl", "lab", "examples/a", "--isolation", "loopback"],
            &["meshctl", "lab", "ps", "-o", "json"],
            &["meshctl", "lab", "exec", "web", "--", "curl", "-s", "http://a"],
            &["meshctl", "lab", "scale", "web", "3"],
            &["meshctl", "lab", "examples/a", "--load", "--sampling", "1", "--otlp", "http://localhost:4317"],
            &["meshctl", "lab", "--load=20", "examples/a"],
            &["meshctl", "lab", "load", "users:80", "--from", "web", "-c", "5"],
            &["meshctl", "lab", "traces", "4BF9", "--last", "3"],
            &["meshctl", "analyze", "examples/a", "--fields"],
            &["meshctl", "analyze", "examples/a", "-o", "json"],
            &["meshctl", "stat", "--from", "web", "--to", "svc/users", "-w", "10s", "-o", "wide"],
            &["meshctl", "stat", "--watch", "--lab", "abcdef"],
            &["meshctl", "route", "split", "web", "v1=90", "v2=10", "--dir", "a", "--dry-run"],
            &["meshctl", "route", "set", "web", "--timeout", "none", "--retries", "0", "--retry-on", "5xx,503"],
            &["meshctl", "apply", "-f", "a.yaml", "-f", "-"],
            &["meshctl", "delete", "vs", "web", "other"],
            &["meshctl", "get", "vs,dr", "-A", "-o", "wide"],
            &["meshctl", "explain", "GET", "http://web/", "--from", "client", "-H", "a: b", "--dir", "examples/a"],
            &["meshctl", "inject", "-", "--as", "istio", "--mode", "classic", "-o", "json"],
            &["meshctl", "uninject", "a.yaml", "b.yaml"],
            &["meshctl", "install", "--profile", "ha", "--compat", "istio", "--set", "control.replicas=3", "-y"],
            &["meshctl", "install", "--crds", "--dry-run", "--context", "east"],
            &["meshctl", "upgrade", "--values", "mesh.yaml", "--timeout", "10m"],
            &["meshctl", "uninstall", "--purge", "-y", "--kubeconfig", "k"],
            &["meshctl", "check", "--proxy", "-n", "shop", "-o", "json"],
            &["meshctl", "ca", "status", "-o", "json", "--lab", "abc"],
            &["meshctl", "ca", "rotate", "--wait", "--timeout", "30m", "--kubeconfig", "k"],
            &["meshctl", "ca", "rotate", "--force"],
            &["meshctl", "proxy", "clusters", "web", "-o", "json"],
            &["meshctl", "proxy", "log-level", "web", "debug"],
            &["meshctl", "status", "-o", "wide"],
            &["meshctl", "version", "--lab", "abc"],
            &["meshctl", "analyze", "-A", "--context", "staging"],
            &["meshctl", "route", "split", "web.shop", "v1=90", "v2=10", "--kubeconfig", "k", "-n", "shop"],
            &["meshctl", "proxy", "config", "web-1.shop", "--context", "staging"],
            &["meshctl", "completions", "zsh"],
        ] {
            assert!(Cli::try_parse_from(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["meshctl", "lab"][..],
            &["meshctl", "lab", "a", "--no-mesh", "--mesh-all"],
            &["meshctl", "lab", "a", "--image", "x"],
            &["meshctl", "stat", "--window", "0s"],
            &["meshctl", "stat", "--from", "a/b/c"],
            &["meshctl", "route", "split", "web"],
            &["meshctl", "route", "split", "web", "v1"],
            &["meshctl", "route", "set", "web"],
            &["meshctl", "route", "set", "web", "--timeout", "soon"],
            &["meshctl", "route", "set", "web", "--retry-on", "sometimes"],
            &["meshctl", "apply"],
            &["meshctl", "inject"],
            &["meshctl", "inject", "-", "--mode", "ambient"],
            &["meshctl", "install", "--profile", "huge"],
            &["meshctl", "install", "--dry-run", "-y"],
            &["meshctl", "check", "--pre", "--proxy"],
            &["meshctl", "check", "-n", "shop"],
            &["meshctl", "ca"],
            &["meshctl", "ca", "rotate", "--timeout", "30m"],
            &["meshctl", "ca", "rotate", "--wait", "--force"],
            &["meshctl", "delete"],
            &["meshctl", "delete", "vs", "web", "-f", "a.yaml"],
            &["meshctl", "get"],
            &["meshctl", "get", "vs", "--dir", "a", "--context", "staging"],
            &["meshctl", "get", "vs", "-n", "a", "-A"],
            &["meshctl", "explain", "GET", "http://web/"],
            &["meshctl", "completions", "tcsh"],
            &["meshctl", "lab", "a", "--isolation", "vm"],
            &["meshctl", "lab", "a", "--load=0"],
            &["meshctl", "lab", "a", "--otlp", "localhost:4317"],
            &["meshctl", "lab", "traces", "xyz"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
