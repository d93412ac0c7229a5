//! `meshctl lab`: a whole mesh on one machine, from the manifests that a cluster would get.
//!
//! Each pod is a network namespace with the pod's programs as ordinary processes in it, and a sidecar if its labels ask for one;
//! `isolation.rs` tells what takes its place where there are none. Nothing but the lab's own is touched.

mod check;
mod clean;
pub mod control;
pub mod dns;
mod environment;
mod forward;
mod image;
pub mod imagine;
mod inject;
mod isolation;
mod live;
mod load;
mod loopback;
pub mod manifest;
pub mod net;
mod otlp;
mod pod;
mod preflight;
mod probe;
mod process;
pub mod record;
pub mod service;
mod spans;
mod table;
mod traces;
mod unit;
mod up;
pub mod verbs;
mod workload;

use crate::error::{During, Error, Result};
use clap::{Args, Subcommand, ValueEnum};
use image::Mapping;
use inject::Mesh;
use isolation::Isolation;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = EXAMPLES)]
pub struct Lab {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// Folder of manifests, as you would give it to kubectl apply; followed while the lab runs
    #[arg(value_name = "DIR", required = true)]
    folder: Option<PathBuf>,

    /// Program to run in the place of an image (repeatable); the container's args are appended
    #[arg(long = "image", value_name = "NAME=COMMAND")]
    images: Vec<Mapping>,

    /// Give every pod a sidecar, unless its own labels refuse one
    #[arg(long, conflicts_with = "no_mesh")]
    mesh_all: bool,

    /// No sidecars and no control plane: the apps alone, which reach each other by their Services' names
    #[arg(long)]
    no_mesh: bool,

    /// What keeps pods apart; without it the first of these that this machine has
    #[arg(long, value_enum, value_name = "HOW")]
    isolation: Option<Isolation>,

    /// News only, no live table of who calls whom; so it is wherever standard output is no terminal
    #[arg(long)]
    no_table: bool,

    /// Traffic: so many requests a second to each Service that speaks HTTP, from another pod with a sidecar
    #[arg(long, value_name = "RPS", num_args = 0..=1, require_equals = true, default_missing_value = "5", value_parser = rate, conflicts_with = "no_mesh")]
    load: Option<f64>,

    /// Share of requests that sidecars make spans of, in percent, for `lab traces`; a caller's decision wins
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0, value_parser = percent)]
    sampling: f64,

    /// Send the spans to a collector of yours as well (OTLP/gRPC), as in http://localhost:4317
    #[arg(long, value_name = "URL", value_parser = otlp::collector, conflicts_with = "no_mesh")]
    otlp: Option<tonic::transport::Endpoint>,

    /// Argument for the control plane (repeatable), as in --control-arg=--log=debug
    #[arg(long = "control-arg", value_name = "ARG", allow_hyphen_values = true)]
    control_args: Vec<String>,

    /// Take the steps of the lab's text (its steps.check), say of each whether it does what the text says, and stop the lab
    #[arg(long)]
    check: bool,

    /// How to print what --check finds
    #[arg(long, short, value_enum, default_value_t = Output::Table, requires = "check")]
    output: Output,
}

#[derive(Subcommand)]
enum Verb {
    /// List the pods of a running lab
    Ps {
        #[command(flatten)]
        which: Which,
        /// How to print
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Print what a pod's containers wrote; `control` for the control plane
    Logs {
        #[command(flatten)]
        which: Which,
        /// A pod or a workload; NAMESPACE/NAME where names repeat
        pod: String,
        /// This container only; `sidecar` for the sidecar
        #[arg(long, short, value_name = "NAME")]
        container: Option<String>,
        /// Go on as more is written
        #[arg(long, short)]
        follow: bool,
    },
    /// Run a command inside a pod: its network, its names
    Exec {
        #[command(flatten)]
        which: Which,
        /// A pod or a workload
        pod: String,
        /// `sidecar`: as the sidecar, whose traffic is not redirected
        #[arg(long, short, value_name = "NAME")]
        container: Option<String>,
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Change the number of a workload's pods, until the lab ends
    Scale {
        #[command(flatten)]
        which: Which,
        workload: String,
        #[arg(value_parser = clap::value_parser!(u32).range(0..=1000))]
        replicas: u32,
    },
    /// Replace a workload's pods by new ones
    Restart {
        #[command(flatten)]
        which: Which,
        workload: String,
    },
    /// Open a port of 127.0.0.1 for a Service that has none
    Forward {
        #[command(flatten)]
        which: Which,
        /// NAME, NAME.NAMESPACE, with :PORT where there are several
        service: String,
    },
    /// Send requests from within a pod, through its sidecar, and count the answers
    Load(Box<load::Load>),
    /// Show the last request as a tree
    Traces(traces::Traces),
    /// Remove what labs that were killed have left behind
    Clean,
}

#[derive(Args)]
struct Which {
    /// Which lab, if several run
    #[arg(long = "lab", value_name = "ID")]
    id: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

const EXAMPLES: &str = "\
Examples:
  meshctl lab examples/lab-9.5                     start it; Ctrl-C takes all of it away
  meshctl lab examples/lab-9.5 --check             take its steps and say whether they hold; 0 or 1
  meshctl lab manifests --mesh-all                 a sidecar for everybody
  meshctl lab manifests --isolation loopback       without namespaces
  meshctl lab manifests --image shop/web='python3 server.py'
  meshctl lab ps -o json
  meshctl lab logs web -f
  meshctl lab exec web -- curl -s http://users:8080/
  meshctl lab scale web 3
  meshctl lab forward users:8080
  meshctl lab load users --from web --rps 200
  meshctl lab traces                               the last request as a tree
  meshctl lab clean                                after a kill -9

Pods get sidecars as in a cluster: by istio-injection on a namespace, sidecar.istio.io/inject on a pod,
linkerd.io/inject or weft.dev/inject on either. Pods reach each other and nothing outside of the lab.
Root is not needed: without it a lab is in a user namespace, or on loopback where those are forbidden.";

fn rate(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|r| (0.01..=10_000.0).contains(r)).ok_or("between 0.01 and 10000".into())
}

fn percent(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or("between 0 and 100".into())
}

impl Lab {
    pub fn run(self) -> Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().during("the runtime")?;
        let done = |outcome: Result<()>| outcome.map(|()| ExitCode::SUCCESS);
        match self.verb {
            Some(Verb::Ps { which, output }) => done(verbs::ps(which.id.as_deref(), output == Output::Json)),
            Some(Verb::Logs { which, pod, container, follow }) => {
                done(verbs::logs(which.id.as_deref(), &pod, container.as_deref(), follow))
            }
            Some(Verb::Exec { which, pod, container, command }) => {
                verbs::exec(which.id.as_deref(), &pod, container.as_deref(), &command)
            }
            Some(Verb::Scale { which, workload, replicas }) => {
                done(verbs::scale(which.id.as_deref(), &workload, replicas))
            }
            Some(Verb::Restart { which, workload }) => done(verbs::restart(which.id.as_deref(), &workload)),
            Some(Verb::Forward { which, service }) => done(verbs::forward(which.id.as_deref(), &service)),
            Some(Verb::Load(load)) => load.run(),
            Some(Verb::Traces(traces)) => done(runtime.block_on(traces.run())),
            Some(Verb::Clean) => done(runtime.block_on(verbs::clean())),
            None => {
                let Some(folder) = self.folder else { return Err(Error::new("which folder?", "meshctl lab DIR")) };
                let mesh = match (self.no_mesh, self.mesh_all) {
                    (true, _) => Mesh::None,
                    (_, true) => Mesh::All,
                    _ => Mesh::AsLabelled,
                };
                // The control plane reads it from wherever it runs.
                let folder = folder.canonicalize().during(folder.display())?;
                let options = up::Options {
                    folder,
                    mesh,
                    images: self.images,
                    load: self.load,
                    sampling: self.sampling,
                    otlp: self.otlp,
                    control_args: self.control_args,
                    isolation: self.isolation,
                    table: !self.no_table && !self.check,
                };
                if self.check {
                    return runtime.block_on(check::run(options, self.output == Output::Json));
                }
                done(runtime.block_on(up::run(options, async |_| std::future::pending().await)))
            }
        }
    }
}
