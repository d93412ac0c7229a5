//! `meshctl explain`: what would happen to one request, and who said so.
//!
//! Nothing is sent. The manifests are translated and scoped as the control plane does it, the documents read and the route
//! chosen as the sidecar does it, by the same code; so what is printed is what would be done.

mod answer;
mod live;
mod mesh;
mod origin;
mod page;
mod request;
mod words;

use crate::error::{Error, Result};
use crate::place::Place;
use crate::runtime::wait;
use crate::terminal::coloured;
use clap::{Args, ValueEnum};
use mesh::Mesh;
use request::Asked;
use std::process::ExitCode;

/// Says what would happen to a request: route, backends, retries, timeouts, mTLS, and which object says so.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl explain GET http://hello:8080/ --from client                           of the lab that runs\n  \
    meshctl explain GET http://hello:8080/ --from client --live                    and how its breakers are now\n  \
    meshctl explain GET http://hello:8080/ --from client --dir examples/tutorial-5.9\n  \
    meshctl explain GET http://hello:8080/ --from client -H 'user-agent: Chrome'\n  \
    meshctl explain GET http://web/ --from deploy/client -n shop --context staging   of a cluster\n  \
    meshctl explain POST http://payment-service:8080/api/charge --from api-gateway -o json | jq .retry\n\n\
    Exit codes: 0 explained, 1 it cannot be (the message says why), 2 wrong use.")]
pub struct Explain {
    /// As the app sends it: GET, POST, ...
    method: String,
    /// As the app calls it: http://NAME[:PORT]/PATH[?QUERY]
    url: String,
    /// Who calls: a workload or a pod, NAMESPACE/NAME where names repeat
    #[arg(long, value_name = "WORKLOAD")]
    from: String,
    /// The caller's namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// A header of the request (repeatable)
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    #[command(flatten)]
    place: Place,
    /// Of a folder: every pod has a sidecar, as with `meshctl lab --mesh-all`
    #[arg(long)]
    mesh_all: bool,
    /// Ask the caller's sidecar how its breakers and endpoints are now
    #[arg(long)]
    live: bool,
    /// Everything, defaults and every endpoint too
    #[arg(long)]
    all: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

impl Explain {
    pub fn run(self) -> Result<ExitCode> {
        let asked = Asked::read(&self.method, &self.url, &self.headers)?;
        let mesh = Mesh::open(&self.place, self.mesh_all)?;
        let client = mesh.client(&self.from, self.namespace.as_deref())?;
        let mut answer = answer::explain(&mesh, &client, &asked)?;
        if self.live {
            let Some(running) = &mesh.running else {
                return Err(Error::new(
                    "a folder has no sidecars to ask",
                    "leave --live out, or meshctl lab DIR in another terminal",
                ));
            };
            wait(live::add(running, &client, &mut answer))?;
        }
        match self.output {
            Output::Json => println!("{answer:#}"),
            Output::Text => print!("{}", page::text(&answer, self.all, coloured())),
        }
        Ok(ExitCode::SUCCESS)
    }
}
