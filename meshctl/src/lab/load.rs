//! Traffic for a lab: the sample app as a client, inside a pod and so through its sidecar. `meshctl lab load` runs one in the
//! foreground; `meshctl lab DIR --load` keeps one for each HTTP Service as long as the lab runs.

use super::image::ours;
use super::net::Netns;
use super::pod::{Context, Plan};
use super::probe::Ready;
use super::process::Inside;
use super::record::Lab;
use super::service::{Service, View};
use super::unit::{State, Stop, Unit, supervise};
use super::workload::Restart;
use super::{Output, Which, verbs};
use crate::error::{Error, Result};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Load {
    #[command(flatten)]
    which: Which,
    /// NAME, NAME.NAMESPACE, with :PORT where there are several
    service: String,
    /// The workload that calls, or one of its pods
    #[arg(long, value_name = "WORKLOAD")]
    from: String,
    /// Requests per second, whatever becomes of them
    #[arg(long, default_value = "50")]
    rps: String,
    /// How long: 30s, 5m, 1h, or forever
    #[arg(long, default_value = "30s")]
    duration: String,
    #[arg(long, default_value = "/", value_parser = path)]
    path: String,
    #[arg(long, default_value = "GET")]
    method: String,
    /// `NAME: VALUE` (repeatable)
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    headers: Vec<String>,
    /// Connections at most; a request that finds none free waits for one, and that counts as its time
    #[arg(long, short, default_value = "100")]
    connections: String,
    /// Exit with 1 if a request failed: no answer, or a status of 400 and above
    #[arg(long)]
    fail_on_error: bool,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  meshctl lab load users --from web
  meshctl lab load users.shop:80 --from web --rps 200 --duration 1m --path /api
  meshctl lab load users --from web --fail-on-error -o json";

fn path(text: &str) -> std::result::Result<String, String> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("begins with a slash".into()) }
}

fn client() -> Result<String> {
    ours("mesh-sample", "weft-sample").map(|path| path.to_string_lossy().into_owned())
}

impl Load {
    pub fn run(self) -> Result<ExitCode> {
        let lab = Lab::find(self.which.id.as_deref())?;
        let status = lab.status()?;
        let service = verbs::service(&status, &self.service)?;
        let found = verbs::pods(&status, &self.from, "this lab")?;
        let Some(pod) = found.iter().find(|p| p["ready"] == true) else {
            return Err(Error::new(format!("no pod of {:?} is ready", self.from), "meshctl lab ps tells why"));
        };
        if pod["sidecar"] != true {
            eprintln!("warning: {} has no sidecar, so nothing of this is counted at its side", self.from);
        }
        let inside = verbs::inside(&lab, pod);
        let output = self.output.to_possible_value().map_or(String::new(), |v| v.get_name().into());
        let mut argv = vec![client()?, "load".into(), format!("http://{service}{}", self.path)];
        for (flag, value) in [
            ("--rps", self.rps),
            ("--duration", self.duration),
            ("--method", self.method),
            ("--connections", self.connections),
            ("--output", output),
        ] {
            argv.extend([flag.into(), value]);
        }
        argv.extend(self.headers.into_iter().flat_map(|h| ["--header".into(), h]));
        argv.extend(self.fail_on_error.then(|| "--fail-on-error".into()));
        let words = inside.wrap(None, &argv);
        // It takes this one's place, so that Ctrl-C and the exit code are its own.
        // No proxy of the person's own is in a pod.
        let mut command = Command::new(&words[0]);
        let error = command.args(&words[1..]).env_remove("http_proxy").envs(inside.environment()).exec();
        Err(format!("{}: {error}", words[0]).into())
    }
}

/// Steady traffic from within, as long as it is not dropped.
pub struct Traffic {
    rps: f64,
    program: String,
    /// By the service's `NAME.NAMESPACE:PORT`: the pod that calls, and how to stop it.
    running: BTreeMap<String, (String, watch::Sender<Stop>)>,
}

impl Traffic {
    pub fn new(rps: f64) -> Result<Self> {
        Ok(Self { rps, program: client()?, running: BTreeMap::new() })
    }

    /// One caller for each port that speaks HTTP, another one where the last has gone; returns what is to be said about it.
    pub fn keep<'p>(
        &mut self,
        context: &Context,
        view: &View,
        able: impl Iterator<Item = &'p Arc<Plan>> + Clone,
    ) -> Vec<String> {
        let mut said = Vec::new();
        let mut wanted = BTreeMap::new();
        for service in &view.services {
            for port in service.ports.iter().filter(|p| p.speaks_http()) {
                let name = format!("{}.{}:{}", service.name, service.namespace, port.number);
                wanted.insert(name, service);
            }
        }
        let is_able = |pod: &str| able.clone().any(|p| p.file() == pod);
        self.running.retain(|service, (pod, _)| wanted.contains_key(service) && is_able(pod));
        for (name, service) in wanted {
            if self.running.contains_key(&name) || view.pods_of(service).next().is_none() {
                continue;
            }
            match caller(service, view, able.clone()) {
                Some(plan) => {
                    let stop = self.start(context, plan, &name);
                    said.push(format!("{} calls {name} {} times a second", plan.workload.name, self.rps));
                    self.running.insert(name, (plan.file(), stop));
                }
                None => said.push(format!("nobody calls {name}: no other pod has a sidecar")),
            }
        }
        said
    }

    fn start(&self, context: &Context, plan: &Plan, service: &str) -> watch::Sender<Stop> {
        let lab = &context.lab;
        let mut argv = vec![self.program.clone(), "load".into(), format!("http://{service}/")];
        let rps = self.rps.to_string();
        argv.extend(["--duration", "forever", "--output", "json", "--rps", &rps].map(Into::into));
        let inside = Inside::of(lab, Netns::pod(lab, plan.n), &plan.file(), &plan.name, plan.address);
        let unit = Unit {
            name: "load".into(),
            inside,
            address: plan.address,
            group: None,
            argv,
            env: Vec::new(),
            log: log(lab, service),
            restart: Restart::Always,
            ready: Ready::Runs,
            alive: None,
            before: None,
        };
        let (stop, stops) = watch::channel(Stop::No);
        tokio::spawn(supervise(unit, watch::Sender::new(State::default()), Arc::new(Notify::new()), stops));
        stop
    }
}

fn log(lab: &Lab, service: &str) -> PathBuf {
    lab.logs().join(format!("load.{service}.log"))
}

/// A pod that does not serve the service itself; of those, one of its namespace if there is one.
fn caller<'p>(
    service: &Service,
    view: &View,
    able: impl Iterator<Item = &'p Arc<Plan>> + Clone,
) -> Option<&'p Arc<Plan>> {
    let mut others = able.filter(|plan| !view.pods_of(service).any(|pod| pod.address == plan.address));
    let mut near = others.clone().filter(|plan| plan.workload.namespace == service.namespace);
    near.next().or_else(|| others.next())
}
